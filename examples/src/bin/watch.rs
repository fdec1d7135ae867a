//! Listens to a robot's commands, as a robot controller would: decodes them and looks at how long they are valid.
//!
//! `cargo run --release --bin watch -- tcp/127.0.0.1:7447 pusht/command 2`, beside
//! `cargo run --release --bin refrain -- run examples/pusht/robot.toml`.

use std::error::Error;

use refrain_runtime::bus::attachment::Attachment;
use refrain_runtime::bus::cdr;
use zenoh::{Config, Wait};

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, topic, size] = arguments.as_slice() else {
        return Err("usage: watch ENDPOINT TOPIC NUMBERS".into());
    };
    let mut values = vec![0.0; size.parse()?];
    let mut config = Config::default();
    config.insert_json5("connect/endpoints", &format!("[{endpoint:?}]"))?;
    config.insert_json5("scouting/multicast/enabled", "false")?;
    let session = zenoh::open(config).wait()?;
    let subscriber = session.declare_subscriber(topic.as_str()).wait()?;
    println!("listening to {topic} at {endpoint}; Ctrl-C ends");
    while let Ok(sample) = subscriber.recv() {
        let attachment = sample.attachment().and_then(|a| Attachment::from_bytes(&a.to_bytes()));
        match (cdr::read_array(&sample.payload().to_bytes(), &mut values), attachment) {
            (Ok(()), Some(a)) => println!("{values:.1?}  sequence {}, {:?}", a.sequence, a.validity),
            (Ok(()), None) => println!("{values:.1?}  without an attachment: not to be executed"),
            (Err(refusal), _) => println!("not a Float64MultiArray of {} numbers: {refusal:?}", values.len()),
        }
    }
    Ok(())
}
