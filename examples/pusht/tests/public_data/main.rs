//! Comparisons with the public Push-T demonstrations. Each says so loudly and compares nothing where the data is missing.

mod demonstrations;
mod files;
mod images;
