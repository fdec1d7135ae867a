//! Runs a policy plan in a real-time loop and publishes its actions.

pub mod engine;
pub mod policy;
