//! Runs a policy plan in a real-time loop and publishes its actions.

#[cfg(feature = "pusht")]
pub mod builtin;
pub mod bus;
pub mod chunk;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
#[cfg(feature = "pusht")]
pub mod demo;
pub mod engine;
#[cfg(feature = "pusht")]
pub mod eval;
pub mod events;
pub mod lockstep;
pub mod mailbox;
pub mod noise;
pub mod observation;
pub mod picture;
pub mod planner;
pub mod policy;
pub mod report;
pub mod safety;
pub mod threads;
pub mod trajectory;
