//! Faults on purpose, in virtual time and with seeds: the proofs that the numbers in the documentation come from.
//!
//! - [`corruption`]: millions of corrupted frames, none accepted.
//!
//! Not for a robot: nothing here touches a port.

pub mod corruption;
