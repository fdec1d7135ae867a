//! One arm, the whole way: a policy's loop, zenoh, the bridge, a servo bus, six simulated servos; and a picture of how the
//! joints follow. With a real SO-101 only the servos differ (`examples/so101/README.md`).
//!
//! The policy here is a script: it looks at the joints and plans its chunk toward the next of a few poses. The way from there
//! to the servos is the real one, in three processes.
//!
//! `cargo build --release && target/release/one_arm 12 arm.svg`

use std::error::Error;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use refrain_policies::config::{NormalizerMode, PolicyConfig, Signal};
use refrain_runtime::bus::interface::{FLOAT64_MULTI_ARRAY, JOINT_STATE};
use refrain_runtime::bus::names::Qos;
use refrain_runtime::bus::{Bus, BusSection, cdr, free_endpoint};
use refrain_runtime::clock::{self, SECOND, Time};
use refrain_runtime::config::{JointField, RobotConfig};
use refrain_runtime::daemon::Daemon;
use refrain_runtime::engine::{Engine, EngineError};
use refrain_runtime::policy::Policy;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/so101");
const ROBOT: &str = include_str!("../../so101/robot.toml");
const POLICY: &str = include_str!("../../../policies/pusht-small/policy.toml");
const JOINTS: usize = 6;

/// Where the arm goes, one after the other, rad.
const POSES: [[f32; JOINTS]; 4] = [
    [0.8, -0.6, 0.9, 0.4, 0.6, 0.8],
    [-0.7, 0.5, 0.3, -0.6, -0.8, 0.1],
    [0.2, 0.9, -0.8, 0.7, 0.2, 1.2],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
];
/// An action is at most this far from the one before, rad; at 10 Hz 0.8 rad/s.
const STRIDE: f32 = 0.08;
/// Nearer than this, the next pose is the goal, rad.
const NEAR: f32 = 0.06;

/// A policy's engine that is a script. Its units are rad, in and out.
struct Script {
    pose: usize,
}

impl Engine for Script {
    fn name(&self) -> String {
        "script".into()
    }

    fn infer(&mut self, observation: &[f32], _: &[f32], trajectory: &mut [f32]) -> Result<(), EngineError> {
        let mut at: [f32; JOINTS] =
            std::array::from_fn(|joint| observation[observation.len() - JOINTS + joint]);
        let away = |at: &[f32; JOINTS], pose: usize| {
            at.iter().zip(&POSES[pose]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        if away(&at, self.pose) < NEAR {
            self.pose = (self.pose + 1) % POSES.len();
        }
        // The first action is the one of the observation before the last; see the policy's `n_obs_steps`.
        for (step, action) in trajectory.chunks_mut(JOINTS).enumerate() {
            for ((at, goal), action) in at.iter_mut().zip(&POSES[self.pose]).zip(action) {
                *at += if step < 2 { 0.0 } else { (goal - *at).clamp(-STRIDE, STRIDE) };
                *action = *at;
            }
        }
        Ok(())
    }
}

/// A process that ends with the example.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Curve = Arc<Mutex<Vec<(Time, [f64; JOINTS])>>>;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(Ok(12.0), |text| text.parse())?;
    let picture = arguments.next().map_or("arm.svg".into(), PathBuf::from);

    let mut servos = program("refrain-servo-sim")?.stdout(Stdio::piped()).spawn().map(Running)?;
    let mut line = String::new();
    BufReader::new(servos.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let port = line.trim().strip_prefix("port ").ok_or("the servos say no port")?.to_owned();

    let (to_bridge, to_daemon) = (free_endpoint()?, free_endpoint()?);
    let mut bridge = program("refrain-bridge")?
        .args(["--servos", &port, "--calibration", &format!("{FOLDER}/arm.toml"), "--arm"])
        .args(["--listen", &to_bridge, "--states", "joint_states"])
        .args(["--trajectories", "arm_controller/joint_trajectory"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)?;
    let mut said = BufReader::new(bridge.0.stdout.take().ok_or("no output")?).lines();
    let armed = said.by_ref().map_while(Result::ok).any(|line| line.contains("Holding"));
    if !armed {
        return Err("the bridge ended before the arm was armed".into());
    }
    std::thread::spawn(move || said.for_each(drop));

    let mut config = RobotConfig::parse(ROBOT)?;
    (config.bus.connect, config.bus.listen) = (vec![to_bridge.clone()], vec![to_daemon.clone()]);
    let policy = policy_config(&config)?;
    let robot = config.resolve(&policy)?;
    let daemon = Daemon::start(&robot, Policy::new(policy, Box::new(Script { pose: 0 })))?;
    let bus = Bus::open(&BusSection { connect: vec![to_bridge, to_daemon], ..BusSection::default() })?;
    let (commanded, measured) = (Curve::default(), Curve::default());
    let keep = Arc::clone(&commanded);
    let _commands = bus.subscribe("so101/command", &FLOAT64_MULTI_ARRAY, Qos::NEWEST, move |message| {
        let mut values = [0.0; JOINTS];
        if cdr::read_array(&message.payload, &mut values).is_ok() {
            keep.lock().unwrap_or_else(PoisonError::into_inner).push((clock::now(), values));
        }
    })?;
    let (keep, names) = (Arc::clone(&measured), robot.joints.clone());
    let _states = bus.subscribe("joint_states", &JOINT_STATE, Qos::SENSOR, move |message| {
        let mut values = [0.0; JOINTS];
        if cdr::read_joint_state(&message.payload, &names, JointField::Position, &mut values).is_ok() {
            keep.lock().unwrap_or_else(PoisonError::into_inner).push((clock::now(), values));
        }
    })?;
    clock::sleep_until(clock::now() + (seconds * SECOND as f64) as i64);
    let report = daemon.shutdown()?;
    bus.close()?;

    let commanded = commanded.lock().unwrap_or_else(PoisonError::into_inner);
    let measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
    if commanded.is_empty() || measured.is_empty() {
        return Err(
            format!("the arm did not move: {} commands, {} states", commanded.len(), measured.len()).into()
        );
    }
    let (worst, travelled) = compare(&commanded, &measured);
    std::fs::write(&picture, draw(&commanded, &measured, &robot.joints))?;
    println!(
        "{} chunks, {} commands, {} joint states",
        report.counts.chunks,
        commanded.len(),
        measured.len()
    );
    println!("way of the joints       {travelled:.2} rad");
    println!("farthest from command   {worst:.3} rad");
    println!("picture                 {}", picture.display());
    if travelled < 1.0 || worst > 0.2 {
        return Err("the joints did not follow".into());
    }
    Ok(())
}

/// A binary of the bridge, which lies beside this one.
fn program(name: &str) -> Result<Command, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = here.parent().unwrap_or(Path::new(".")).join(name);
    match path.exists() {
        true => Ok(Command::new(path)),
        false => Err(format!("no {}; cargo build --release", path.display())),
    }
}

/// The shape of the small Push-T policy with this robot's six joints, in rad.
fn policy_config(robot: &RobotConfig) -> Result<PolicyConfig, Box<dyn Error>> {
    let mut policy: PolicyConfig = toml::from_str(POLICY)?;
    policy.name = "script".into();
    let signal = |names: Vec<String>, like: &Signal| {
        let mut signal = like.clone();
        signal.units = vec!["rad".into(); names.len()];
        signal.normalizer.mode = NormalizerMode::Limits;
        signal.normalizer.scale = vec![1.0; names.len()];
        signal.normalizer.offset = vec![0.0; names.len()];
        signal.normalizer.min = Vec::new();
        signal.normalizer.max = Vec::new();
        signal.names = names;
        signal
    };
    let actions = robot.action.joints.iter().map(|joint| joint.name.clone()).collect();
    policy.observation = signal(robot.observation.topics[0].elements.clone(), &policy.observation);
    policy.action = signal(actions, &policy.action);
    Ok(policy)
}

/// The largest distance between what was commanded and what was measured at the same time, and the way of the joints.
fn compare(commanded: &[(Time, [f64; JOINTS])], measured: &[(Time, [f64; JOINTS])]) -> (f64, f64) {
    let mut worst: f64 = 0.0;
    for (time, state) in measured {
        let at = commanded.partition_point(|(t, _)| t <= time);
        let Some((_, command)) = at.checked_sub(1).and_then(|at| commanded.get(at)) else { continue };
        worst = state.iter().zip(command).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
    }
    let steps = measured.windows(2).flat_map(|pair| pair[0].1.iter().zip(&pair[1].1));
    (worst, steps.map(|(a, b)| (a - b).abs()).sum())
}

/// Commanded (thin) and measured (thick) positions over time, one band per joint.
fn draw(commanded: &[(Time, [f64; JOINTS])], measured: &[(Time, [f64; JOINTS])], names: &[String]) -> String {
    const WIDTH: f64 = 900.0;
    const BAND: f64 = 90.0;
    const LEFT: f64 = 110.0;
    const FINEST: f64 = 2.0;
    let (start, end) = (commanded[0].0, commanded[commanded.len() - 1].0);
    let span = ((end - start) as f64).max(1.0);
    let height = BAND * JOINTS as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + LEFT + 20.0
    );
    for (joint, name) in names.iter().enumerate() {
        let middle = BAND * (joint as f64 + 0.5);
        let _ = writeln!(svg, "<text x=\"8\" y=\"{:.0}\">{name}</text>", middle + 4.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{middle}\" x2=\"{:.0}\" y2=\"{middle}\" stroke=\"#ddd\"/>",
            LEFT + WIDTH
        );
        for (curve, style) in [
            (measured, "stroke=\"#e08a1e\" stroke-width=\"3\" stroke-opacity=\"0.6\""),
            (commanded, "stroke=\"#1f4e9c\" stroke-width=\"1\""),
        ] {
            let (mut path, mut drawn) = (String::new(), 0.0);
            for (time, values) in curve.iter().filter(|(time, _)| *time >= start && *time <= end) {
                let x = LEFT + (*time - start) as f64 / span * WIDTH;
                if x < drawn + FINEST {
                    continue;
                }
                drawn = x;
                let _ = write!(path, "{x:.1},{:.1} ", middle - values[joint] * BAND / 2.8);
            }
            let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" {style}/>");
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.0}\">{:.1} s; thin: commanded, thick: measured; a band is 2.8 rad high</text>\n</svg>",
        height - 10.0,
        span * 1e-9
    );
    svg
}
