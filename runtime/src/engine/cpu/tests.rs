//! Fast kernels against plain ones.
