//! Loading a package holds its weights once. In a file of its own: the peak is that of the whole process.

mod support;

use std::path::Path;

use refrain_policies::package::Package;
use support::memory;

#[test]
fn loading_holds_the_weights_once() {
    let Some((_, before)) = memory() else {
        eprintln!("SKIPPED: this system does not tell a process its memory");
        return;
    };
    let package = Package::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("pusht")).unwrap();
    let (peak, _) = memory().unwrap();
    let (weights, used) = (package.weights.bytes(), peak - before);
    println!("{used} bytes for {weights} bytes of weights: {:.2}", used as f64 / weights as f64);
    assert!(used as f64 <= 1.2 * weights as f64, "{used} bytes for {weights} bytes of weights");
}
