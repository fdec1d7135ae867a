//! Prints the fault table: each fault in 20 seeded runs unless told otherwise. Exits with 1 if a target is missed.
//!
//! `cargo run --release --example fault_table -- [RUNS] [SEED]`

use refrain_firmware_bridge::rehearsal::table::{RUNS, SEED, Scenario, print_head, rehearse};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Ok(runs), Ok(seed)) =
        (arguments.next().unwrap_or(Ok(u64::from(RUNS))), arguments.next().unwrap_or(Ok(SEED)))
    else {
        eprintln!("usage: fault_table [RUNS] [SEED], both whole numbers");
        return ExitCode::from(2);
    };
    println!("{}", print_head());
    let mut missed = false;
    for scenario in Scenario::ALL {
        let row = rehearse(scenario, runs.max(1) as u32, seed);
        println!("{row}");
        for miss in row.misses() {
            println!("  MISSED {miss}");
            missed = true;
        }
    }
    ExitCode::from(u8::from(missed))
}
