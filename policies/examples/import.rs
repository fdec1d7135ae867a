//! Imports a checkpoint: `cargo run --example import -- CHECKPOINT OUT [NAME] [f16|f32]`.

use std::path::Path;

use refrain_policies::import::{self, Options};
use refrain_policies::package::Dtype;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, out, rest @ ..] = &args[..] else {
        return Err("expected CHECKPOINT OUT [NAME] [f16|f32]".into());
    };
    let dtype = if rest.get(1).is_some_and(|dtype| dtype == "f32") { Dtype::F32 } else { Dtype::F16 };
    let options = Options {
        name: rest.first().cloned(),
        dtype,
        license: Some("MIT OR Apache-2.0".into()),
        ..Options::default()
    };
    let package = import::checkpoint(Path::new(checkpoint), &options)?;
    package.save(Path::new(out))?;
    println!("{}: {} bytes of weights, sha256 {}", out, package.weights.bytes(), package.weights_sha256());
    for note in &package.config.provenance.notes {
        println!("note: {note}");
    }
    Ok(())
}
