//! Kernels against plain ones, and the kernels' sources against the Rust that feeds them.
