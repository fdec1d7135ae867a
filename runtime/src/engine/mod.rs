//! Engines: they run a plan, and nothing else.
//!
//! One inference is: observation and noise in, trajectory out, the same operations in the same order every time.

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
}

/// Why an inference could not be made.
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
}
