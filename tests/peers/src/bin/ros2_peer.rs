//! ros2-client as a complete node over zenoh: sees Refrain's, reads its trajectories, asks for its parameters.
//!
//! It stops nothing: it knows no type hash of `std_srvs`, and sends its calls on a key of its own.
//!
//! `ros2_peer ENDPOINT DOMAIN NODE JOINT...`; ends with 0 if all was as it should be.

use std::error::Error;
use std::time::Duration;

use refrain_peers::messages::JointTrajectory;
use refrain_peers::wait_for;
use ros2_client::zenoh::{Context, ContextOptions};
use ros2_client::{MessageTypeName, Name, NodeName, NodeOptions, Parameter, ParameterValue, QosProfile};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: ros2_peer ENDPOINT DOMAIN NODE JOINT...");
    let (endpoint, domain, robot) = (next()?, next()?.parse()?, next()?);
    let joints: Vec<String> = arguments.collect();
    let commanded = &joints[joints.len() - 2..];

    let mut config = zenoh::Config::default();
    let failed = |error| format!("zenoh configuration: {error}");
    config.insert_json5("mode", "\"client\"").map_err(failed)?;
    config.insert_json5("connect/endpoints", &format!("[{endpoint:?}]")).map_err(failed)?;
    config.insert_json5("timestamping/enabled", "true").map_err(failed)?;
    let context = Context::with_options(ContextOptions::new().domain_id(domain).zenoh_config(config))?;
    let node = context.new_node(NodeName::new("/", "ros2_peer")?, NodeOptions::new())?;

    wait_for("the robot's node", || context.node_names().iter().any(|name| name.trim_matches('/') == robot))?;
    let topic = node.create_topic(
        &Name::new("/arm_controller", "joint_trajectory")?,
        MessageTypeName::new("trajectory_msgs", "JointTrajectory"),
        &QosProfile::publisher_default(),
    );
    let trajectories = node.create_subscription::<JointTrajectory>(&topic, None)?;
    wait_for("its publisher", || node.publisher_count("/arm_controller/joint_trajectory") == 1)?;
    let mut read = 0;
    while read < 3 {
        let mut got = None;
        wait_for("a trajectory", || {
            got = trajectories.try_take().transpose();
            got.is_some()
        })?;
        let (trajectory, _) = got.ok_or("no trajectory")??;
        trajectory.check(commanded)?;
        read += 1;
    }
    println!("trajectories: {read}");

    let client = node.create_parameter_client(&NodeName::new("/", &robot)?)?;
    let mut names = Vec::new();
    wait_for("an answer", || match client.list_parameters(&[]) {
        Ok(listed) => {
            names = listed;
            true
        }
        Err(error) => {
            eprintln!("{error}");
            std::thread::sleep(Duration::from_millis(200));
            false
        }
    })?;
    let values = client.get_parameters(&["name", "no.such"])?;
    if values != [ParameterValue::String(robot.clone()), ParameterValue::NotSet] {
        return Err(format!("name is {values:?}").into());
    }
    let parameter = Parameter { name: "seed".into(), value: ParameterValue::Integer(1) };
    let refused = client.set_parameters([parameter])?;
    if !matches!(&refused[..], [Err(reason)] if reason.contains("robot.toml")) {
        return Err(format!("setting was answered {refused:?}").into());
    }
    println!("parameters: {}", names.len());
    Ok(())
}
