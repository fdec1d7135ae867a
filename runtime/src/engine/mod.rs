//! Engines: they run a plan, and nothing else.
//!
//! One inference is: observation and noise in, trajectory out, the same operations in the same order every time.

pub mod cpu;

use refrain_policies::plan::Plan;

/// Runs one policy's plan.
pub trait Engine: Send {
    /// Denoises one trajectory.
    ///
    /// `observation` is `[To, O]` normalised, `noise` is `[K + 1, T, N]` (row 0 the initial trajectory, row 1 + k
    /// what step k draws), `trajectory` receives `[T, N]` normalised.
    fn infer(
        &mut self,
        observation: &[f32],
        noise: &[f32],
        trajectory: &mut [f32],
    ) -> Result<(), EngineError>;

    /// What runs the plan, in a few words for people.
    fn name(&self) -> String;
}

/// Why an engine cannot be made, or an inference cannot.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An argument has another size than the plan.
    #[error("{name} has {got} numbers, expected {expected}")]
    Size {
        /// The argument.
        name: &'static str,
        /// Numbers that the plan needs.
        expected: usize,
        /// Numbers given.
        got: usize,
    },
    /// The package lacks a weight that the plan names.
    #[error("weight {name} is missing or has fewer than {expected} numbers; import the policy again")]
    Weight {
        /// State-dict name.
        name: String,
        /// Numbers that the plan needs.
        expected: usize,
    },
    /// A GPU was asked for by name.
    #[error("no GPU engine: this build runs policies on the CPU; use --engine cpu or auto")]
    NoGpu,
    /// The system refused a thread.
    #[error("cannot start a CPU engine thread: {0}; lower engine threads or raise the process limit")]
    Thread(std::io::Error),
}

fn check_sizes(
    plan: &Plan,
    observation: &[f32],
    noise: &[f32],
    trajectory: &[f32],
) -> Result<(), EngineError> {
    for (name, expected, got) in [
        ("observation", plan.observation.len(), observation.len()),
        ("noise", plan.noise_len(), noise.len()),
        ("trajectory", plan.trajectory.len(), trajectory.len()),
    ] {
        if expected != got {
            return Err(EngineError::Size { name, expected, got });
        }
    }
    Ok(())
}
