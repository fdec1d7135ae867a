//! The example of one arm runs, and its joints follow.

use std::path::Path;
use std::process::Command;

#[test]
fn six_joints_follow_through_zenoh_the_bridge_and_the_servo_bus() {
    let example = Path::new(env!("CARGO_BIN_EXE_one_arm"));
    let servos = example.with_file_name("refrain-servo-sim");
    if !servos.exists() {
        eprintln!("SKIPPED: no {}; cargo test --release --workspace builds it", servos.display());
        return;
    }
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("arm.svg");
    let output = Command::new(example).arg("6").arg(&picture).output().expect("the example starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    let svg = std::fs::read_to_string(&picture).expect("a picture");
    assert_eq!(svg.matches("<polyline").count(), 12);
}
