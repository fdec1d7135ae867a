//! The bridge: a host for a device on a serial line, UDP or zenoh, or for an arm on a servo bus. Trajectories come in and
//! joint states go out over zenoh; with `--demo` it moves the joints gently by itself.

mod lines;
mod messages;
mod zenoh_side;

use clap::Parser;
use lines::{AnyPort, Line, LineError};
use refrain_firmware_bridge::bridge::Bridge;
use refrain_firmware_bridge::clock::wall_ns;
use refrain_firmware_bridge::link::host::Event;
use refrain_firmware_bridge::link::{Chunk, HostConfig, Link};
use refrain_firmware_bridge::wire::{MAX_JOINTS, MAX_VALUES, StateRepr};
use std::process::ExitCode;
use std::time::Duration;
use zenoh_side::{Session, Topics};

/// Points of a demo chunk, 20 ms apart.
const POINTS: usize = 8;
const POINT_US: u32 = 20_000;
const CHUNK_PERIOD_US: u64 = 50_000;

/// Talks to a device: arms it, sends it chunks, prints its state.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    line: Line,
    /// Joints of the robot; a calibration says it itself.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=MAX_JOINTS as i64))]
    joints: u8,
    /// The joints' names in trajectories and states, in the device's order; a calibration says them itself.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    names: Vec<String>,
    /// Zenoh endpoints to connect to.
    #[arg(long, value_name = "ENDPOINT")]
    connect: Vec<String>,
    /// Zenoh endpoints to listen on.
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<String>,
    /// Take trajectories (`trajectory_msgs/JointTrajectory`) from this zenoh key.
    #[arg(long, value_name = "KEY")]
    trajectories: Option<String>,
    /// Publish joint states (`sensor_msgs/JointState`) on this zenoh key.
    #[arg(long, value_name = "KEY")]
    states: Option<String>,
    /// Arm once, as soon as the device can be armed.
    #[arg(long)]
    arm: bool,
    /// Send chunks: a sine of this amplitude in rad around where each joint was when armed.
    #[arg(long, value_name = "RAD", conflicts_with = "trajectories")]
    demo: Option<f32>,
    /// Stop the device and end after so many seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Print a state every so many ms.
    #[arg(long, default_value_t = 100)]
    print_ms: u64,
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

fn run(arguments: &Arguments) -> Result<(), LineError> {
    let on_zenoh =
        arguments.trajectories.is_some() || arguments.states.is_some() || arguments.line.needs_zenoh();
    let session = on_zenoh.then(|| Session::open(&arguments.connect, &arguments.listen)).transpose();
    let session = session.map_err(LineError::Zenoh)?;
    if arguments.line.only_reads() {
        return arguments.line.read_servos(Duration::from_millis(arguments.print_ms));
    }
    let (port, names) = arguments.line.open(session.as_ref())?;
    let given = if arguments.names.is_empty() { names } else { Some(arguments.names.clone()) };
    let names = given.unwrap_or_else(|| (1..=arguments.joints).map(|n| format!("joint_{n}")).collect());
    let topics = session
        .as_ref()
        .map(|session| {
            session.topics(arguments.trajectories.as_deref(), arguments.states.as_deref(), names.clone())
        })
        .transpose()
        .map_err(LineError::Zenoh)?;
    let config = HostConfig {
        joints: names.len() as u8,
        heartbeat_period_us: 20_000,
        state_timeout_us: 200_000,
        max_clock_error_us: 20_000,
        clock_drift_ppm: 500,
    };
    host(arguments, Bridge::new(port, config), names.len(), topics, session.as_ref());
    Ok(())
}

fn host(
    arguments: &Arguments,
    mut bridge: Bridge<AnyPort>,
    joints: usize,
    mut topics: Option<Topics>,
    session: Option<&Session>,
) {
    let start_us = bridge.now_us();
    let end_us = arguments.seconds.map(|seconds| start_us + (seconds * 1e6) as u64);
    let (mut to_arm, mut stopping, mut chunk_id) = (arguments.arm, false, 0);
    let (mut chunk_due_us, mut print_due_us) = (start_us, start_us);
    let mut link = Link::Searching;
    let mut state: Option<StateRepr> = None;
    let mut center: Option<[f32; MAX_JOINTS]> = None;
    let mut waiting = None;
    loop {
        let now_us = bridge.now_us();
        if bridge.link() != link {
            link = bridge.link();
            eprintln!("link: {link:?}");
        }
        match end_us {
            Some(end_us) if now_us > end_us + 200_000 => return,
            Some(end_us) if now_us > end_us && !stopping => {
                stopping = true;
                bridge.stop();
            }
            _ => (),
        }
        if to_arm && !stopping && bridge.arm() {
            to_arm = false;
        }
        let mut values = Vec::new();
        let mut chunk = None;
        // A trajectory that comes before the device is armed waits until it is, or until it is no longer valid.
        waiting = topics.as_ref().and_then(Topics::take).or(waiting);
        if link == Link::Armed
            && !stopping
            && let Some(taken) = waiting.take()
        {
            chunk_id += 1;
            values = taken.values;
            // From the wall clock, in which messages are stamped, to the bridge's own.
            let now_ns = wall_ns();
            let here = |ns: i64| now_us.saturating_add_signed((ns - now_ns) / 1000);
            chunk = Some(Chunk {
                id: chunk_id,
                observation_us: here(taken.observation),
                start_us: here(taken.start),
                valid_until_us: here(taken.valid_until),
                step_us: (taken.step / 1000) as u32,
                values: &values,
            });
        } else if let (Some(amplitude), Link::Armed, false, Some(state)) =
            (arguments.demo, link, stopping, &state)
            && now_us >= chunk_due_us
        {
            let center = center.get_or_insert(state.position);
            chunk_due_us = now_us + CHUNK_PERIOD_US;
            chunk_id += 1;
            let count = (POINTS * joints).min(MAX_VALUES);
            values.extend((0..count).map(|index| {
                let time_s =
                    ((now_us - start_us) + (index / joints) as u64 * u64::from(POINT_US)) as f32 * 1e-6;
                center[index % joints] + amplitude * (std::f32::consts::TAU * 0.25 * time_s).sin()
            }));
            let (observation_us, valid_until_us) = (now_us, now_us + 150_000);
            let (id, start_us, step_us) = (chunk_id, now_us, POINT_US);
            chunk = Some(Chunk { id, observation_us, start_us, valid_until_us, step_us, values: &values });
        }
        let polled = bridge.poll(chunk.as_ref(), Duration::from_millis(2), &mut |event| match event {
            Event::State(got) => {
                state = Some(got);
                if let Some(Err(error)) = topics.as_mut().map(|topics| topics.publish(&got)) {
                    eprintln!("state not published: {error}");
                }
            }
            Event::Fault(fault) => {
                eprintln!("fault: {:?} joint {} value {}", fault.cause, fault.joint, fault.value)
            }
        });
        match polled {
            Ok(Ok(())) => (),
            Ok(Err(unsent)) => eprintln!("{unsent}"),
            Err(error) => {
                eprintln!("error: {error}");
                match arguments.line.open(session) {
                    Ok((port, _)) => bridge.replace_port(port),
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        }
        if let Some(state) = &state
            && now_us >= print_due_us
        {
            print_due_us = now_us + arguments.print_ms * 1000;
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
