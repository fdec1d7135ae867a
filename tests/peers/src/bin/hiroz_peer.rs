//! hiroz as a complete node: sees Refrain's, feeds it joint states, reads its trajectories and parameters, and stops it.
//!
//! `hiroz_peer ENDPOINT DOMAIN NODE JOINT...`; the last two joints are commanded. Prints `reading` once trajectories came,
//! stops the robot after a line on standard input, and ends with 0 if all was as it should be.

use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hiroz::Builder;
use hiroz::context::ZContextBuilder;
use hiroz::entity::EndpointKind;
use hiroz::parameter::{Parameter, ParameterClient, ParameterTarget, ParameterValue};
use hiroz::qos::{QosDurability, QosHistory, QosProfile};
use refrain_peers::messages::{JointState, JointTrajectory, Text, Trigger, TriggerRequest, joint_state};
use refrain_peers::{PATIENCE, wait_for};

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: hiroz_peer ENDPOINT DOMAIN NODE JOINT...");
    let (endpoint, domain, robot) = (next()?, next()?.parse()?, next()?);
    let joints: Vec<String> = arguments.collect();
    let commanded = &joints[joints.len() - 2..];

    let context = ZContextBuilder::default()
        .with_domain_id(domain)
        .with_mode("client")
        .with_connect_endpoints([endpoint.as_str()])
        .build()?;
    let node = Arc::new(context.create_node("hiroz_peer").build()?);

    let graph = node.graph();
    wait_for("the robot's node", || graph.get_node_names().iter().any(|(name, _)| *name == robot))?;
    wait_for("its services", || {
        let servers = |name: &str| graph.count_by_service(EndpointKind::Service, format!("/{robot}/{name}"));
        ["stop", "reset", "enable", "list_parameters", "set_parameters"].iter().all(|name| servers(name) == 1)
    })?;
    let publishers = |topic: &str| graph.count(EndpointKind::Publisher, topic);
    wait_for("its publishers", || {
        publishers("/arm_controller/joint_trajectory") == 1 && publishers("/diagnostics") == 1
    })?;

    let trajectories = node.create_sub::<JointTrajectory>("/arm_controller/joint_trajectory").build()?;
    let depth = NonZeroUsize::MIN;
    let latched = QosProfile {
        durability: QosDurability::TransientLocal,
        history: QosHistory::KeepLast(depth),
        ..QosProfile::default()
    };
    let modes = node.create_sub::<Text>(&format!("/{robot}/mode")).with_qos(latched).build()?;
    let states = node.create_pub::<JointState>("/joint_states").build()?;
    let done = Arc::new(AtomicBool::new(false));
    let feeder = {
        let (done, joints) = (Arc::clone(&done), joints.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = states.publish(&joint_state(&joints)) {
                    eprintln!("a state was not sent: {error}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    for _ in 0..3 {
        trajectories.recv_timeout(PATIENCE)?.check(commanded)?;
    }
    wait_mode(&|| modes.recv_timeout(PATIENCE), "running")?;
    println!("reading");

    let parameters = ParameterClient::new(Arc::clone(&node), ParameterTarget::new("/", robot.as_str()))?;
    let names = parameters.list(&[] as &[&str], None).await?.names;
    let values = parameters.get(&names).await?;
    let at = names.iter().position(|name| name == "action.joints").ok_or("no parameter action.joints")?;
    if values[at] != ParameterValue::StringArray(commanded.to_vec()) {
        return Err(format!("action.joints is {:?}", values[at]).into());
    }
    let answers = parameters.set(&[Parameter::new("seed", ParameterValue::Integer(1))]).await?;
    if answers.len() != 1 || answers[0].successful || !answers[0].reason.contains("robot.toml") {
        return Err(format!("setting was answered {answers:?}").into());
    }
    println!("parameters: {}", names.len());

    std::io::stdin().read_line(&mut String::new())?;
    let client = node.create_client::<Trigger>(&format!("/{robot}/stop")).build()?;
    let answer = client.call_with_timeout(&TriggerRequest::default(), PATIENCE).await?;
    if !answer.success || answer.message != "stop latched" {
        return Err(format!("the stop was answered {answer:?}").into());
    }
    wait_mode(&|| modes.recv_timeout(PATIENCE), "stopped")?;
    println!("stopped");
    done.store(true, Ordering::Relaxed);
    feeder.join().map_err(|_| "the feeder panicked")?;
    Ok(())
}

fn wait_mode(next: &dyn Fn() -> Result<Text, Failure>, mode: &str) -> Result<(), Failure> {
    while next()?.data != mode {}
    Ok(())
}
