//! ros2-client as a DDS node, with no zenoh in it: behind zenoh-plugin-ros2dds it feeds Refrain joint states, reads its
//! trajectories and stops it.
//!
//! `dds_peer NODE JOINT...`; the last two joints are commanded. Ends with 0 if all was as it should be.

use std::error::Error;
use std::time::{Duration, Instant};

use refrain_peers::PATIENCE;
use refrain_peers::messages::{JointState, JointTrajectory, TriggerRequest, TriggerResponse, joint_state};
use ros2_client::dds::{Context, ServiceMapping};
use ros2_client::{MessageTypeName, Name, NodeName, NodeOptions, QosProfile, ServiceTypeName};

/// Trajectories to read.
const READ: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let robot = arguments.next().ok_or("usage: dds_peer NODE JOINT...")?;
    let joints: Vec<String> = arguments.collect();
    let commanded = &joints[joints.len() - 2..];

    let context = Context::new()?;
    let options = NodeOptions::new().enable_rosout(false);
    let mut node = context.new_node(NodeName::new("/", "dds_peer")?, options)?;
    let spinner = node.spinner()?;
    std::thread::spawn(move || futures::executor::block_on(spinner.spin()));
    let qos = QosProfile::publisher_default();
    let states = node.create_topic(
        &Name::new("/", "joint_states")?,
        MessageTypeName::new("sensor_msgs", "JointState"),
        &qos,
    )?;
    let states = node.create_publisher::<JointState>(&states, None)?;
    let trajectories = node.create_topic(
        &Name::new("/arm_controller", "joint_trajectory")?,
        MessageTypeName::new("trajectory_msgs", "JointTrajectory"),
        &qos,
    )?;
    let trajectories = node.create_subscription::<JointTrajectory>(&trajectories, None)?;
    let stop = node.create_client::<TriggerRequest, TriggerResponse>(
        ServiceMapping::Cyclone,
        &Name::new(&format!("/{robot}"), "stop")?,
        &ServiceTypeName::new("std_srvs", "Trigger"),
        qos.clone(),
        qos,
    )?;

    let (start, mut read, mut asked) = (Instant::now(), 0, Instant::now());
    while start.elapsed() < PATIENCE {
        states.publish(joint_state(&joints)).map_err(|error| format!("a state was not sent: {error:?}"))?;
        while let Some((trajectory, _)) = trajectories.take()? {
            trajectory.check(commanded)?;
            read += 1;
        }
        // Asked again until it is answered: what is sent before a route stands is lost.
        if read >= READ && asked.elapsed() > Duration::from_secs(1) {
            asked = Instant::now();
            println!("trajectories: {read}");
            stop.send_request(TriggerRequest::default()).map_err(|error| format!("not sent: {error:?}"))?;
        }
        if let Ok(Some((_, answer))) = stop.receive_response() {
            let right = answer.success && answer.message == "stop latched";
            println!("stop: {answer:?}");
            return if right { Ok(()) } else { Err("that is not the answer".into()) };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("never stopped; {read} trajectories came").into())
}
