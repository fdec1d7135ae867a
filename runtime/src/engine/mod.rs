//! Engines: they run a plan, and nothing else.
//!
//! One inference is: observation and noise in, trajectory out, the same operations in the same order every time.

pub mod choice;
pub mod cpu;
pub mod gpu;

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

    /// What is known of the trajectories of the inferences that follow, `[T, 1 + A]`; see [`Plan::known`].
    fn know(&mut self, _known: &[f32]) -> Result<(), EngineError> {
        Err(EngineError::NothingKnown)
    }

    /// What runs the plan, in a few words for people.
    fn name(&self) -> String;

    /// How often it had to give way to a slower engine since it was made.
    fn fallbacks(&self) -> u64 {
        0
    }
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
    /// Actions are known, but the plan has no room for them.
    #[error("this engine's plan takes no known actions; compile it for joining chunks")]
    NothingKnown,
    /// What the policy sees could not be encoded.
    #[error(transparent)]
    Vision(#[from] refrain_policies::vision::VisionError),
    /// The system refused a thread.
    #[error("cannot start a CPU engine thread: {0}; lower engine threads or raise the process limit")]
    Thread(std::io::Error),
    /// No GPU answers.
    #[error(
        "no GPU adapter: {0}; install the GPU's Vulkan driver (mesa-vulkan-drivers for Intel, AMD and Raspberry Pi, the vendor's for NVIDIA), or run on the CPU"
    )]
    NoAdapter(String),
    /// An adapter refused to be opened.
    #[error("adapter {adapter} refuses: {reason}; update its driver, or run on the CPU")]
    Device {
        /// The adapter's name.
        adapter: String,
        /// What the driver said.
        reason: String,
    },
    /// The policy does not fit the adapter.
    #[error("{what} needs {bytes}, the GPU takes at most {limit}; use f16 weights or run on the CPU")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Bytes, or workgroups of a dispatch.
        bytes: usize,
        /// The adapter's limit.
        limit: usize,
    },
    /// The policy's denoiser has operations that the GPU engine lacks.
    #[error("the GPU engine does not run DiT denoisers yet: use --engine cpu")]
    DitOnGpu,
    /// The GPU's memory is full.
    #[error("the GPU is out of memory: {0}; close other programs on it, or run on the CPU")]
    OutOfMemory(String),
    /// The GPU went away or hangs; a new engine is needed.
    #[error("the GPU was lost: {0}; make a new engine, or run on the CPU")]
    Lost(String),
    /// The driver refused a kernel or a command.
    #[error("the GPU driver refused: {0}; please report this with the output of `refrain doctor`")]
    Gpu(String),
}

fn check_known(plan: &Plan, known: &[f32]) -> Result<(), EngineError> {
    match plan.known.map(|view| view.len()) {
        None => Err(EngineError::NothingKnown),
        Some(expected) if expected != known.len() => {
            Err(EngineError::Size { name: "known", expected, got: known.len() })
        }
        Some(_) => Ok(()),
    }
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
