//! Simulated servos behind a pseudo-terminal: prints the path to open, then answers as the real ones do.

use clap::{Parser, ValueEnum};
use refrain_firmware_bridge::clock::Clock;
use refrain_firmware_bridge::rehearsal::servos::Servos;
use refrain_firmware_bridge::servo::Model;
use serialport::{SerialPort, TTYPort};
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Pretends to be servos 1 to N on a serial bus.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Kind of servos.
    #[arg(long, value_enum, default_value_t = Kind::Sts3215)]
    model: Kind,
    /// How many.
    #[arg(long, default_value_t = 6)]
    count: u8,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sts3215,
    DynamixelX,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    // The far end stays open, so that the near end works while nobody else has it open.
    let (mut near, far) = TTYPort::pair()?;
    near.set_timeout(Duration::from_millis(5))?;
    println!("port {}", far.name().unwrap_or_default());
    let model = match arguments.model {
        Kind::Sts3215 => Model::Sts3215,
        Kind::DynamixelX => Model::DynamixelX,
    };
    let mut servos = Servos::new(model, arguments.count);
    let (clock, mut bytes) = (Clock::start(), [0; 512]);
    let mut last_us = clock.now_us();
    loop {
        let read = near.read(&mut bytes);
        let now_us = clock.now_us();
        servos.advance((now_us - last_us) as f64 * 1e-6);
        last_us = now_us;
        match read {
            Ok(count) => near.write_all(&servos.hear(&bytes[..count]))?,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error),
        }
    }
}
