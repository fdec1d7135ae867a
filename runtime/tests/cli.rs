//! The command line as a user meets it: the binary, its files and its errors.

#[path = "cli/cameras.rs"]
mod cameras;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
const SMALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/pusht-small");

fn refrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_refrain")).args(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed; returns what it printed.
fn succeeds(args: &[&str]) -> String {
    let output = refrain(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command that must fail with every one of `words` in its one error.
fn fails(args: &[&str], words: &[&str]) {
    let output = refrain(args);
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(!error.contains("panicked"), "{args:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{args:?}: expected {word:?} in: {error}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn tensor(file: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(file).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = file.tensor(name).expect("the tensor");
    let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (view.shape().to_vec(), data)
}

fn write(file: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, data)| data.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), data)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).expect("shape and size agree"))
    });
    std::fs::write(file, safetensors::serialize(views, None).expect("tensors")).expect("a writable folder");
}

/// A folder of this test's own, with observations for the small policy.
fn folder(observations: usize) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("in.safetensors");
    let data: Vec<f32> = (0..observations * 40).map(|i| 100.0 + (i * 37 % 300) as f32).collect();
    write(&input, &[("obs_raw", &[observations, 2, 20], &data)]);
    (folder, input)
}

#[test]
fn imports_a_checkpoint_and_predicts_what_pytorch_predicts() {
    let (folder, _) = folder(1);
    let package = folder.path().join("policy");
    let out = folder.path().join("out.safetensors");
    for name in ["mlp_causal", "odd_sizes", "encoder_only", "inpaint_causal", "action_steps_only"] {
        let checkpoint = format!("{FIXTURES}/{name}.ckpt");
        let trace = PathBuf::from(format!("{FIXTURES}/{name}.safetensors"));
        succeeds(&["import", &checkpoint, path(&package), "--dtype", "f32"]);
        succeeds(&["infer", path(&package), "--input", path(&trace), "--output", path(&out)]);
        for key in ["trajectory_norm", "action", "action_pred"] {
            let ((shape, got), (expected_shape, expected)) = (tensor(&out, key), tensor(&trace, key));
            assert_eq!(shape, expected_shape, "{name} {key}");
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            assert!(worst <= 2e-4 * scale, "{name} {key}: {worst}");
            assert!(got.iter().all(|v| v.is_finite()), "{name} {key}");
        }
    }
}

#[test]
fn a_policy_that_sees_is_imported_in_two_steps() {
    let (folder, _) = folder(1);
    let (package, checkpoint) = (folder.path().join("policy"), format!("{FIXTURES}/hybrid/policy.ckpt"));
    let said = succeeds(&["import", &checkpoint, path(&package)]);
    for word in [
        "without its encoders: front_image.onnx, wrist_image.onnx",
        "export_encoder.py",
        "--encoder ENCODERS",
    ] {
        assert!(said.contains(word), "{said}");
    }
    fails(&["bench", path(&package)], &["\"front_image.onnx\" is missing"]);
    succeeds(&["import", &checkpoint, path(&package), "--encoder", &format!("{FIXTURES}/hybrid")]);
    succeeds(&["plan", path(&package), "--svg", path(&folder.path().join("plan.svg"))]);
    assert!(succeeds(&["import", "--supported"]).contains("DiffusionTransformerHybridImagePolicy"));
    fails(&["import", path(folder.path()), path(&package)], &["config.json", "No such file"]);
    fails(&["import", &checkpoint], &["<OUT>"]);
}

#[test]
fn noise_comes_from_the_seed_where_the_input_has_none() {
    let (folder, input) = folder(2);
    let run = |seed: &str| {
        let out = folder.path().join(format!("{seed}.safetensors"));
        let args = ["infer", SMALL, "--input", path(&input), "--output", path(&out), "--seed", seed];
        succeeds(&[&args[..], &["--sampler", "ddim", "--steps", "5", "--engine", "cpu"]].concat());
        tensor(&out, "action").1
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn infer_names_what_is_wrong_with_its_input() {
    let (folder, input) = folder(1);
    let (bad, out) = (folder.path().join("bad.safetensors"), folder.path().join("out.safetensors"));
    let run = ["infer", SMALL, "--input", path(&bad), "--output", path(&out)];
    fails(&run, &["bad.safetensors", "No such file"]);
    std::fs::write(&bad, b"not tensors").unwrap();
    fails(&run, &["bad.safetensors", "not a whole safetensors file"]);
    write(&bad, &[("observations", &[1, 2, 20], &[0.0; 40])]);
    fails(&run, &["expected tensor obs_raw", "observations"]);
    write(&bad, &[("obs_raw", &[1, 2, 19], &[0.0; 38])]);
    fails(&run, &["obs_raw", "[B, 2, 20]", "[1, 2, 19]"]);
    let mut data = [0.0; 40];
    data[7] = f32::NAN;
    write(&bad, &[("obs_raw", &[1, 2, 20], &data)]);
    fails(&run, &["obs_raw[7]", "NaN"]);
    write(&bad, &[("obs_raw", &[1, 2, 20], &[0.0; 40]), ("noise", &[3, 1, 16, 2], &[0.0; 96])]);
    fails(&run, &["noise", "[at least 101, 1, 16, 2]", "[3, 1, 16, 2]"]);
    let good = ["infer", SMALL, "--input", path(&input), "--output", path(&out)];
    fails(&[&good[..], &["--steps", "1000"]].concat(), &["inference_steps", "100", "1000"]);
    fails(&[&good[..], &["--schedule", "nothing"]].concat(), &["nothing", "full", "ddpm100_late10"]);
    fails(
        &[&good[..], &["--schedule", "ddpm100_late10", "--steps", "10"]].concat(),
        &["ddpm100_late10", "ddpm100", "ddpm10"],
    );
    fails(&["infer", "/nowhere", "--input", path(&input), "--output", path(&out)], &["policy.toml"]);
}

#[test]
fn plan_counts_and_draws() {
    let (folder, _) = folder(1);
    let svg = folder.path().join("plan.svg");
    let said = succeeds(&["plan", SMALL, "--schedule", "ddpm100_late10", "--svg", path(&svg)]);
    assert!(said.contains("120 of 1200") && said.contains("90 quiet steps fused"), "{said}");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
    assert!(drawn.contains("layer3.feed_forward"));
}

/// The rows of a benchmark are those that were asked for, and every one has a time.
#[test]
fn bench_times_the_schedules_it_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bench.json");
    let args = ["bench", SMALL, "--engine", "cpu", "--threads", "1", "--chunks", "2", "--json", path(&file)];
    let printed = succeeds(&[&args[..], &["--schedule", "ddpm100_late10"]].concat());
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().filter_map(|row| row["schedule"].as_str()).collect();
    assert_eq!(names, ["full", "ddpm100_late10"]);
    assert!(rows.iter().all(|row| row["p50_ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{json}");
    assert!(printed.contains("ddpm100_late10"), "{printed}");
    fails(&["bench"], &["<POLICY>"]);
    fails(&["bench", "nowhere"], &["nowhere"]);
}

/// A copy of the small policy without schedules and observations.
fn package(folder: &tempfile::TempDir) -> PathBuf {
    let package = folder.path().join("policy");
    std::fs::create_dir(&package).unwrap();
    for file in ["policy.toml", "weights.safetensors"] {
        std::fs::copy(Path::new(SMALL).join(file), package.join(file)).unwrap();
    }
    package
}

#[test]
fn calibrate_writes_schedules_that_run() {
    let (folder, input) = folder(3);
    let package = package(&folder);
    let calibrate = ["calibrate", path(&package)];
    let adaptive = ["--observations", path(&input), "--updates", "3", "--union", "2"];
    let ddim = ["--sampler", "ddim", "--steps", "8", "--default"];
    let said = succeeds(&[&calibrate[..], &adaptive, &ddim].concat());
    assert!(said.contains("ddim8_bac3_union2"), "{said}");
    let out = folder.path().join("out.safetensors");
    let run = ["infer", path(&package), "--input", path(&input), "--output", path(&out)];
    assert!(succeeds(&[&run[..], &["--schedule", "ddim8_bac3_union2"]].concat()).contains("ddim8"));
    let table = folder.path().join("table.json");
    std::fs::write(&table, r#"{"layer0.self_attention": [0, 200]}"#).unwrap();
    fails(&[&calibrate[..], &["--table", path(&table)]].concat(), &["layer0.self_attention", "200", "99"]);
    std::fs::write(&table, r#"{"layer0.self_attention": [0]}"#).unwrap();
    fails(
        &[&calibrate[..], &["--table", path(&table)]].concat(),
        &["no row for block", "layer0.cross_attention"],
    );
    let said = succeeds(&[&calibrate[..], &["--late", "10"]].concat());
    assert!(said.contains("120 of 1200"), "{said}");
    let late = std::fs::read_to_string(package.join("schedules/ddpm100_late10.toml")).unwrap();
    assert!(late.contains("[0, 21, 39, 55, 68, 79, 88, 94, 98, 99]"), "{late}");
    fails(&[&calibrate[..], &["--late", "10", "--power", "nan"]].concat(), &["--power", "NaN"]);
    fails(&[&calibrate[..], &["--aligned", "1,2"]].concat(), &["step 0"]);
    fails(&[&calibrate[..], &["--updates", "3"]].concat(), &["observations.safetensors", "--observations"]);
}

#[test]
fn search_finds_a_schedule_that_runs_and_goes_on_where_it_was() {
    let (folder, _) = folder(1);
    let package = package(&folder);
    let own = "observations.safetensors";
    std::fs::copy(Path::new(SMALL).join(own), package.join(own)).unwrap();
    let search = ["search", path(&package), "--engine", "cpu", "--threads", "1", "--own-sampler"];
    let search = [&search[..], &["--searched", "4", "--validation", "2", "--held-out", "2"]].concat();
    let budget = ["--budget", "60", "--evaluations", "30", "--name", "found"];
    let said = succeeds(&[&search[..], &budget].concat());
    assert!(said.contains("found.toml") && said.contains("held-out"), "{said}");
    let found = std::fs::read_to_string(package.join("schedules/found.toml")).unwrap();
    assert!(found.contains("coverage") && found.contains("held_out_error_policy"), "{found}");
    let svg = folder.path().join("plan.svg");
    let plan = succeeds(&["plan", path(&package), "--schedule", "found", "--svg", path(&svg)]);
    assert!(plan.contains("60 of "), "{plan}");
    // What was measured is not measured again, and a line that was cut off is passed over.
    let journal = package.join("schedules/search.jsonl");
    let measured = std::fs::read_to_string(&journal).unwrap();
    let cut = measured.trim_end().len() - 9;
    std::fs::write(&journal, format!("{}\n", &measured[..cut])).unwrap();
    succeeds(&[&search[..], &budget[..4], &["--name", "again"]].concat());
    let again = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(again.lines().count(), measured.lines().count() + 1, "{again}");
    let rows = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(package.join("schedules").join(name)).unwrap();
        text.lines().filter(|line| line.starts_with("\"layer")).map(str::to_owned).collect()
    };
    assert_eq!(rows("found.toml").len(), 12);
    assert_eq!(rows("found.toml"), rows("again.toml"));
    let page = folder.path().join("forecasts.md");
    let forecasts = ["forecasts", path(&package), "--schedule", "found", "--fitted", "4", "--held-out", "2"];
    let said = succeeds(&[&forecasts[..], &["--out", path(&page)]].concat());
    assert!(said.contains("| found | taylor2, gated |") && said.contains("| found | fitted3 |"), "{said}");
    assert!(said.contains("| found | reuse, corrected |"), "{said}");
    fails(&[&search[..], &["--budget", "5"]].concat(), &["nothing fits"]);
    fails(&[&search[..], &["--deadline", "5"]].concat(), &["such as 5ms", "\"5\""]);
    let many = ["search", path(&package), "--budget", "60", "--searched", "4", "--held-out", "9999"];
    fails(&many, &["9999", "held out", "record more"]);
}

#[cfg(feature = "pusht")]
#[test]
fn the_demo_needs_no_file_and_pushes_the_t() {
    let (folder, _) = folder(1);
    let picture = folder.path().join("demo.svg");
    let log = folder.path().join("run.mcap");
    let said = succeeds(&["demo", "--speed", "inf", "--picture", path(&picture), "--record", path(&log)]);
    assert!(said.contains("goal reached"), "{said}");
    assert!(said.contains("chunk latency") && said.contains("0 failed"), "{said}");
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    // What it recorded is what schedules can be found with.
    let package = package(&folder);
    let calibrate = ["calibrate", path(&package), "--updates", "3", "--sampler", "ddim", "--steps", "8"];
    succeeds(&[&calibrate[..], &["--observations", path(&log), "--limit", "4", "--name", "seen"]].concat());
    let seen = std::fs::read_to_string(package.join("schedules/seen.toml")).unwrap();
    assert!(seen.contains("source = \"run.mcap\"") && seen.contains("observations = 4"), "{seen}");
    let search = [
        "search",
        path(&package),
        "--own-sampler",
        "--searched",
        "2",
        "--validation",
        "1",
        "--held-out",
        "1",
        "--engine",
        "cpu",
    ];
    let few = ["--budget", "60", "--evaluations", "3", "--observations", path(&log)];
    assert!(succeeds(&[&search[..], &few].concat()).contains("search60.toml"));
    std::fs::write(&log, "no recording").unwrap();
    fails(&[&search[..], &few].concat(), &["run.mcap", "expected a recording"]);
}

#[cfg(feature = "pusht")]
#[test]
fn eval_scores_and_records_what_calibrate_reads() {
    let (folder, _) = folder(1);
    let recorded = folder.path().join("seen.safetensors");
    let run = ["eval", "pusht", SMALL, "--episodes", "2", "--seed", "3", "--schedule", "ddpm100_late10"];
    let one = succeeds(&[&run[..], &["--threads", "1", "--record", path(&recorded)]].concat());
    let two = succeeds(&[&run[..], &["--threads", "2"]].concat());
    let score = |said: &str| said.lines().find(|l| l.starts_with("score")).map(str::to_owned);
    assert_eq!(score(&one), score(&two), "the score does not depend on the number of workers");
    assert_eq!(tensor(&recorded, "obs_raw").0[1..], [2, 20]);
}

#[test]
fn a_robot_is_explained_and_its_mistakes_are_named() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pusht/robot.toml");
    let said = succeeds(&["check", example]);
    for words in ["[0] -> keypoint_0_x (px", "pusht/command", "target_y (px", "all fits"] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    let (folder, _) = folder(1);
    let robot = folder.path().join("robot.toml");
    let text = std::fs::read_to_string(example).expect("the example");
    let text = text.replace("../../policies/pusht-small", SMALL);
    let change = |from: &str, to: &str| {
        assert!(text.contains(from), "{from:?} is not in the example");
        std::fs::write(&robot, text.replace(from, to)).expect("a writable folder");
        path(&robot).to_owned()
    };
    let robot_toml = change("position = [0.0, 512.0]", "position = [0.0, 8.9]");
    fails(&["check", &robot_toml], &["2 thing(s) do not fit"]);
    let silent = change("tcp/127.0.0.1:7447", "tcp/127.0.0.1:0");
    fails(&["check", &silent, "--listen", "0.2"], &["1 thing(s) do not fit"]);
    let urdf = folder.path().join("arm.urdf");
    std::fs::write(
        &urdf,
        r#"<robot name="t"><joint name="target_y" type="prismatic"><limit lower="0" upper="1" velocity="2"/></joint></robot>"#,
    )
    .expect("a writable folder");
    fails(&["check", &robot_toml, "--urdf", path(&urdf)], &["thing(s) do not fit"]);
    let at = text.rfind("[[action.joints]]").expect("joints");
    let end = at + text[at..].find("[bus]").expect("a bus");
    std::fs::write(&robot, [&text[..at], &text[end..]].concat()).expect("a writable folder");
    let output = refrain(&["check", path(&robot), "--urdf", path(&urdf)]);
    assert!(self::text(&output.stdout).contains("position = [0.0, 1.0]\nvelocity = 2.0"), "{output:?}");
    assert!(self::text(&output.stderr).contains("\"target_y\" has no limits"), "{output:?}");
}

/// A daemon that ends with its test.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What systemd is told until `word` comes.
fn told(socket: &std::os::unix::net::UnixDatagram, word: &str) -> Vec<String> {
    let (mut said, mut buffer) = (Vec::new(), [0; 256]);
    while said.last().is_none_or(|last: &String| !last.contains(word)) {
        let read = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{word}: {e}; {said:?}"));
        said.push(text(&buffer[..read]));
    }
    said
}

/// `refrain run` as systemd starts and ends it, choosing its schedule, watched by `refrain top`, recorded and replayed.
#[test]
fn the_daemon_chooses_a_schedule_tells_systemd_and_ends_with_a_replayable_recording() {
    let (folder, _) = folder(1);
    let package = package(&folder);
    std::fs::create_dir(package.join("schedules")).unwrap();
    for name in ["ddpm100_late10.toml", "ddpm100_late20.toml"] {
        let file = Path::new("schedules").join(name);
        std::fs::copy(Path::new(SMALL).join(&file), package.join(&file)).unwrap();
    }
    // The pin as anyone computes it, with what is no part of the package beside it.
    std::fs::write(package.join("notes.txt"), "mine").unwrap();
    let pin = Command::new("sh")
        .args(["-c", "find . -type f '(' -name '*.toml' -o -name '*.safetensors' ')' | LC_ALL=C sort | xargs sha256sum | sha256sum"])
        .current_dir(&package)
        .output()
        .expect("a shell");
    let pin = text(&pin.stdout)[..64].to_owned();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let example = include_str!("../../examples/pusht/robot.toml");
    let socket = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    // Either every plan has the time it wants, or none has.
    for (deadline_ms, words) in [
        ("1e6", vec!["chosen: full", "ladder: full, "]),
        ("800.001", vec!["full: p50", "does not fit", "chosen: ddpm100_late10"]),
    ] {
        let mut robot = example.to_owned();
        for (from, to) in [
            ("../../policies/pusht-small", path(&package)),
            ("engine = \"auto\"", "engine = \"cpu\""),
            ("schedule = \"full\"", "schedule = \"auto\""),
            ("# sha256 = \"...\"", &format!("sha256 = {pin:?}")),
            ("deadline_ms = 1000.0", &format!("deadline_ms = {deadline_ms}")),
            ("tcp/127.0.0.1:7447", "tcp/127.0.0.1:0"),
        ] {
            assert!(robot.contains(from), "{from:?} is not in the example");
            robot = robot.replace(from, to);
        }
        robot += &format!(
            "\n[record]\nfolder = \"recordings{deadline_ms}\"\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n"
        );
        let file = folder.path().join("robot.toml");
        std::fs::write(&file, robot).unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_refrain"))
            .args(["run", path(&file), "--threads", "1"])
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .stdout(std::process::Stdio::piped())
            .spawn();
        let mut daemon = Daemon(daemon.expect("the binary runs"));
        assert_eq!(told(&socket, "READY=1").len(), 1, "ready is said first");
        told(&socket, "WATCHDOG=1");
        told(&socket, "WATCHDOG=1");
        let screen = succeeds(&["top", "--once", &format!("127.0.0.1:{port}")]);
        assert!(screen.contains("mode Warmup") && screen.contains("woke late"), "{screen}");
        let end = Command::new("kill").arg(daemon.0.id().to_string()).status().expect("kill");
        assert!(end.success());
        told(&socket, "STOPPING=1");
        let status = daemon.0.wait().expect("an end");
        let mut said = String::new();
        std::io::Read::read_to_string(daemon.0.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert!(status.success(), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in:\n{said}");
        }
        let recordings = folder.path().join(format!("recordings{deadline_ms}"));
        let other = folder.path().join("other.toml");
        std::fs::write(&other, std::fs::read_to_string(&file).unwrap().replace(&pin, &"0".repeat(64)))
            .unwrap();
        // It would run for ever.
        let refused = Command::new("timeout")
            .args(["20", env!("CARGO_BIN_EXE_refrain"), "run", path(&other)])
            .output()
            .expect("coreutils");
        let error = text(&refused.stderr);
        assert!(error.contains("policy.sha256: expected 0000") && error.contains(&pin), "{error}");
        let log = std::fs::read_dir(recordings).unwrap().next().expect("a recording").unwrap().path();
        let replayed = succeeds(&["replay", path(&log), "--engine", "cpu"]);
        assert!(replayed.contains("the same, byte for byte"), "{replayed}");
    }
}
