//! Simulations and clients to copy from.
