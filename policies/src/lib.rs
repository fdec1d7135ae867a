//! Transformer Diffusion Policies as data: packages, importers, encoders, samplers, cache schedules and the plan.
//!
//! Everything here is pure: no clock, thread, network or GPU. An engine of `refrain-runtime` executes what the plan
//! says.

pub mod adaptive_caching;
pub mod calibration;
pub mod camera;
pub mod config;
pub mod correction;
pub mod coverage;
pub mod encoder;
pub mod forecast;
pub mod import;
pub mod noise_schedule;
pub mod package;
pub mod plan;
pub mod preprocess;
pub mod sampler;
pub mod schedule;
pub mod schedule_file;
pub mod vision;
