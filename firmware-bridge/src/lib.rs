//! Carries actions to a microcontroller and its state back.
