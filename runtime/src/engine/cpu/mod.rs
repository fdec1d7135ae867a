//! The CPU engine: runs a plan on a few threads, with f16 or f32 weights and f32 sums.
//!
//! Guarantees: no allocation after load; the same input and noise give the same bits on the same processor, whatever
//! the number of threads, because every output is summed in one fixed order by one thread. Not here: batches; a
//! caller with several observations runs them one after the other, or on several engines that share their weights.

mod arena;
mod attention;
mod floor;
mod lanes;
mod linear;
mod math;
mod modulation;
mod product;
mod program;
mod team;
#[cfg(test)]
mod tests;
mod tokens;
mod weights;

use std::sync::Arc;

use refrain_policies::package::Package;
use refrain_policies::plan::{Plan, Probe};

use super::{Engine, EngineError};
use arena::Place;
use team::Team;

pub use floor::Floor;
pub use lanes::Isa;
pub use program::Program;
pub(super) use tokens::sinusoid;
pub use weights::CpuWeights;

/// Runs one plan on this processor.
pub struct CpuEngine {
    team: Team,
    /// What was last said to be known; written before every inference.
    known: Vec<f32>,
}

impl CpuEngine {
    /// Packs weights and starts `threads - 1` helper threads.
    pub fn new(package: Arc<Package>, plan: Arc<Plan>, threads: usize) -> Result<Self, EngineError> {
        let program = Program::new(&CpuWeights::new(package), plan, Isa::detect())?;
        Self::on(program, threads)
    }

    /// An engine on a shared program.
    pub fn on(program: Arc<Program>, threads: usize) -> Result<Self, EngineError> {
        let known = vec![0.0; program.plan.known.map_or(0, |view| view.len())];
        Team::new(program, threads.max(1)).map(|team| Self { team, known }).map_err(EngineError::Thread)
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.team.program().isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// A probed value of the last inference, row-major.
    pub fn probe(&mut self, probe: &Probe) -> Vec<f32> {
        let place = Place::of(&self.team.program().plan, &probe.view);
        self.read(place)
    }

    fn read(&mut self, place: Place) -> Vec<f32> {
        let mut out = vec![0.0; place.rows * place.cols];
        self.team.arena().read(place, &mut out);
        out
    }
}

impl Engine for CpuEngine {
    fn name(&self) -> String {
        format!("CPU ({:?})", self.isa())
    }

    fn know(&mut self, known: &[f32]) -> Result<(), EngineError> {
        super::check_known(&self.team.program().plan, known)?;
        self.known.copy_from_slice(known);
        Ok(())
    }

    fn infer(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        trajectory: &mut [f32],
    ) -> Result<(), EngineError> {
        let plan = Arc::clone(&self.team.program().plan);
        super::check_sizes(&plan, observation, noise, trajectory)?;
        self.team.arena().write(Place::of(&plan, &plan.observation), observation);
        if let Some(view) = &plan.known {
            self.team.arena().write(Place::of(&plan, view), &self.known);
        }
        self.team.run(noise);
        self.team.arena().read(Place::of(&plan, &plan.trajectory), trajectory);
        Ok(())
    }
}
