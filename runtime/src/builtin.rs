//! The policy that is part of the binary, so that the demo needs no file.

use refrain_policies::package::{Package, PackageError};
use refrain_policies::schedule_file::{ScheduleFile, ScheduleFileError};

const POLICY: &str = include_str!("../../policies/pusht-small/policy.toml");
const WEIGHTS: &[u8] = include_bytes!("../../policies/pusht-small/weights.safetensors");
const SCHEDULE: &str = include_str!("../../policies/pusht-small/schedules/ddpm100_late20.toml");

/// Name of the built-in schedule, the package's default.
pub const SCHEDULE_NAME: &str = "ddpm100_late20";

/// The small Push-T policy.
pub fn package() -> Result<Package, PackageError> {
    Package::from_bytes(POLICY, WEIGHTS)
}

/// Its default schedule.
pub fn schedule() -> Result<ScheduleFile, ScheduleFileError> {
    ScheduleFile::parse(SCHEDULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_schedule_is_the_default_of_the_built_in_policy() {
        let package = package().unwrap();
        assert_eq!(package.config.default_schedule.as_deref(), Some(SCHEDULE_NAME));
        schedule().unwrap().check(&package.config, &package.weights_sha256()).unwrap();
    }
}
