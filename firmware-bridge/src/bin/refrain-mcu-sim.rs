//! A simulated microcontroller behind a pseudo-terminal: the device code that firmware runs, motors with a lag, and
//! seeded faults on its line. Prints `port PATH` and then waits for a host.

#[cfg(not(unix))]
fn main() {
    eprintln!("error: pseudo-terminals need a Unix system");
    std::process::exit(1);
}

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    match unix::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
mod unix {
    use clap::Parser;
    use refrain_firmware_bridge::clock::{Clock, random_session};
    use refrain_firmware_bridge::link::{AfterFault, Device, DeviceConfig};
    use refrain_firmware_bridge::port::{PortError, SerialLine};
    use refrain_firmware_bridge::rehearsal::noise::{Noise, NoiseConfig};
    use refrain_firmware_bridge::rehearsal::world;
    use refrain_firmware_bridge::wire::framing::{Deframer, MAX_ENCODED, encode};
    use refrain_firmware_bridge::wire::{MAX_FRAME, MAX_JOINTS};
    use std::io::Write;
    use std::time::Duration;

    /// A simulated microcontroller behind a pseudo-terminal, with faults on its line.
    #[derive(Parser)]
    #[command(version)]
    struct Arguments {
        /// Joints of the robot.
        #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=MAX_JOINTS as i64))]
        joints: u8,
        /// Probability that a frame is lost, each way.
        #[arg(long, default_value_t = 0.0, value_parser = probability)]
        drop: f64,
        /// Probability that a byte is corrupted, each way.
        #[arg(long, default_value_t = 0.0, value_parser = probability)]
        corrupt: f64,
        /// Probability that a frame comes twice, each way.
        #[arg(long, default_value_t = 0.0, value_parser = probability)]
        duplicate: f64,
        /// Delay of every frame, each way, ms.
        #[arg(long, default_value_t = 0)]
        delay: u64,
        /// Start anew every so many ms.
        #[arg(long)]
        reset: Option<u64>,
        /// Go limp after a fault instead of holding.
        #[arg(long)]
        limp: bool,
        /// Seed of the faults.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    }

    fn probability(word: &str) -> Result<f64, String> {
        match word.parse() {
            Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
            _ => Err("expected a number from 0 to 1".into()),
        }
    }

    pub(super) fn run() -> Result<(), PortError> {
        let arguments = Arguments::parse();
        let after_fault = if arguments.limp { AfterFault::Limp } else { AfterFault::Hold };
        let config = DeviceConfig { joints: arguments.joints, after_fault, ..world::device_config() };
        let noise = NoiseConfig {
            drop: arguments.drop,
            corrupt: arguments.corrupt,
            duplicate: arguments.duplicate,
            delay_us: arguments.delay * 1000,
            ..NoiseConfig::default()
        };
        let (mut port, end) = SerialLine::open_pty()?;
        println!("port {}", end.path);
        let _ = std::io::stdout().flush();
        let mut down = Noise::new(noise, arguments.seed);
        let mut up = Noise::new(noise, arguments.seed ^ 0xFFFF_0000);
        let mut boot = random_session();
        let mut measured = [0.0f32; MAX_JOINTS];
        let joints = usize::from(arguments.joints);
        // The line's time goes on through the device's resets.
        let line_clock = Clock::start();
        loop {
            // A boot: a new clock, a new device, the motors where they are.
            let clock = Clock::start();
            let start_us = clock.now_us();
            boot = boot.wrapping_add(1_000_003);
            let mut device = Device::new(config, boot).expect("the built-in configuration is sound");
            let (mut deframer, mut pending) = (Deframer::new(), Vec::new());
            down.clear();
            up.clear();
            let mut tick_us = start_us;
            while arguments.reset.is_none_or(|ms| clock.now_us() - start_us < ms * 1000) {
                tick_us += u64::from(config.tick_us);
                let mut now_us = clock.now_us();
                while now_us < tick_us {
                    let mut bytes = [0; 4096];
                    let got = port.receive_raw(Duration::from_micros(tick_us - now_us), &mut bytes)?;
                    for byte in got {
                        pending.push(*byte);
                        if *byte == 0 {
                            down.send(line_clock.now_us(), std::mem::take(&mut pending));
                        }
                    }
                    now_us = clock.now_us();
                }
                while let Some(line) = down.receive(line_clock.now_us()) {
                    for byte in line {
                        if let Some(found) = deframer.push(byte) {
                            device.receive_framed(now_us, found);
                        }
                    }
                }
                let output = device.tick(now_us, &measured[..joints]);
                for (measured, setpoint) in measured.iter_mut().zip(output.setpoint).take(joints) {
                    if output.torque {
                        *measured += (setpoint - *measured) * 0.05;
                    }
                }
                let mut buffer = [0; MAX_FRAME];
                let mut line = [0; MAX_ENCODED];
                while let Some(len) = device.poll_transmit(now_us, &mut buffer) {
                    if let Ok(len) = encode(&buffer[..len], &mut line) {
                        up.send(line_clock.now_us(), line[..len].to_vec());
                    }
                }
                while let Some(line) = up.receive(line_clock.now_us()) {
                    port.send_raw(&line)?;
                }
            }
        }
    }
}
