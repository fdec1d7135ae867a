//! The bridge: a host on a serial line or UDP. Prints the device's state; with `--demo` it moves the joints gently.

use clap::{Args, Parser};
use refrain_firmware_bridge::bridge::Bridge;
use refrain_firmware_bridge::link::host::Event;
use refrain_firmware_bridge::link::{Chunk, HostConfig, Link};
use refrain_firmware_bridge::port::{Found, Port, PortError, SerialLine, UdpLine};
use refrain_firmware_bridge::wire::{MAX_JOINTS, MAX_VALUES, StateRepr};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Points of a demo chunk, 20 ms apart.
const POINTS: usize = 8;
const POINT_US: u32 = 20_000;
const CHUNK_PERIOD_US: u64 = 50_000;

/// Talks to a microcontroller: arms it, sends it chunks, prints its state.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    line: Line,
    /// Baud rate of the serial line.
    #[arg(long, default_value_t = 921_600)]
    baud: u32,
    /// Joints of the robot.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=MAX_JOINTS as i64))]
    joints: u8,
    /// Arm once, as soon as the device can be armed.
    #[arg(long)]
    arm: bool,
    /// Send chunks: a sine of this amplitude in rad around where each joint was when armed.
    #[arg(long, value_name = "RAD")]
    demo: Option<f32>,
    /// Stop the device and end after so many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Print a state every so many ms.
    #[arg(long, default_value_t = 100)]
    print_ms: u64,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Line {
    /// Serial device, for example /dev/ttyACM0.
    #[arg(long)]
    serial: Option<String>,
    /// Address of a device on UDP.
    #[arg(long)]
    udp: Option<SocketAddr>,
}

enum AnyPort {
    Serial(SerialLine),
    Udp(UdpLine),
}

impl AnyPort {
    fn open(arguments: &Arguments) -> Result<Self, PortError> {
        match (&arguments.line.serial, arguments.line.udp) {
            (Some(path), _) => SerialLine::open(path, arguments.baud).map(Self::Serial),
            (None, Some(peer)) => UdpLine::connect(peer).map(Self::Udp),
            (None, None) => unreachable!("clap requires one"),
        }
    }
}

impl Port for AnyPort {
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        match self {
            Self::Serial(port) => port.send(frame),
            Self::Udp(port) => port.send(frame),
        }
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        match self {
            Self::Serial(port) => port.receive(timeout, hand_on),
            Self::Udp(port) => port.receive(timeout, hand_on),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match AnyPort::open(&arguments) {
        Ok(port) => run(&arguments, port),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, port: AnyPort) -> ExitCode {
    let config = HostConfig {
        joints: arguments.joints,
        heartbeat_period_us: 20_000,
        state_timeout_us: 200_000,
        max_clock_error_us: 20_000,
        clock_drift_ppm: 500,
    };
    let mut bridge = Bridge::new(port, config);
    let start_us = bridge.now_us();
    let end_us = arguments.seconds.map(|seconds| start_us + (seconds * 1e6) as u64);
    let (mut to_arm, mut stopping, mut chunk_id) = (arguments.arm, false, 0);
    let (mut chunk_due_us, mut print_due_us) = (start_us, start_us);
    let mut link = Link::Searching;
    let mut state: Option<StateRepr> = None;
    let mut center: Option<[f32; MAX_JOINTS]> = None;
    loop {
        let now_us = bridge.now_us();
        if bridge.link() != link {
            link = bridge.link();
            eprintln!("link: {link:?}");
        }
        match end_us {
            Some(end_us) if now_us > end_us + 200_000 => return ExitCode::SUCCESS,
            Some(end_us) if now_us > end_us && !stopping => {
                stopping = true;
                bridge.stop();
            }
            _ => (),
        }
        if to_arm && !stopping && bridge.arm() {
            to_arm = false;
        }
        let mut values = [0.0; MAX_VALUES];
        let mut chunk = None;
        if let (Some(amplitude), Link::Armed, false, Some(state)) = (arguments.demo, link, stopping, &state)
            && now_us >= chunk_due_us
        {
            let center = center.get_or_insert(state.position);
            chunk_due_us = now_us + CHUNK_PERIOD_US;
            chunk_id += 1;
            let joints = usize::from(arguments.joints);
            for (index, value) in values[..POINTS * joints].iter_mut().enumerate() {
                let time_s =
                    ((now_us - start_us) + (index / joints) as u64 * u64::from(POINT_US)) as f32 * 1e-6;
                *value = center[index % joints] + amplitude * (std::f32::consts::TAU * 0.25 * time_s).sin();
            }
            let (observation_us, valid_until_us) = (now_us, now_us + 150_000);
            let values = &values[..POINTS * joints];
            let (id, start_us, step_us) = (chunk_id, now_us, POINT_US);
            chunk = Some(Chunk { id, observation_us, start_us, valid_until_us, step_us, values });
        }
        let polled = bridge.poll(chunk.as_ref(), Duration::from_millis(2), &mut |event| match event {
            Event::State(got) => state = Some(got),
            Event::Fault(fault) => {
                eprintln!("fault: {:?} joint {} value {}", fault.cause, fault.joint, fault.value)
            }
        });
        match polled {
            Ok(Ok(())) => (),
            Ok(Err(unsent)) => eprintln!("{unsent}"),
            Err(error) => {
                eprintln!("error: {error}");
                match AnyPort::open(arguments) {
                    Ok(port) => bridge.replace_port(port),
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        }
        if let Some(state) = &state
            && now_us >= print_due_us
        {
            print_due_us = now_us + arguments.print_ms * 1000;
            let joints = usize::from(arguments.joints);
            println!(
                "{:.3} {:?} torque={} chunk={} bad={} lost={} refused={} position={:.3?}",
                (now_us - start_us) as f64 * 1e-6,
                state.mode,
                u8::from(state.torque),
                state.chunk,
                state.bad_frames,
                state.lost_frames,
                state.refused_frames,
                &state.position[..joints]
            );
        }
    }
}
