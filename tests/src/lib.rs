//! What the tests that cross crates share: traces of the reference implementation, the plain definition of the model,
//! an interpreter of plans, random policies, and how two results are compared.
//!
//! Nothing here is fast, and nothing here is used outside tests.

pub mod cameras;
pub mod compare;
pub mod counting;
pub mod engines;
pub mod interpreter;
pub mod model;
pub mod process;
pub mod python;
pub mod random;
pub mod robot;
pub mod trace;
