use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{Architecture, FORMAT as POLICY_FORMAT, Normalizer, NormalizerMode, Provenance, Signal};
use crate::coverage::Coverage;
use crate::noise_schedule::BetaSchedule;
use crate::sampler::{PredictionType, SamplerKind, TimestepSpacing, VarianceType};
use crate::schedule::ScheduleError;

const STEPS: usize = 8;

fn hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn config() -> PolicyConfig {
    let signal = |names: &[&str]| Signal {
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        units: vec!["m".to_owned(); names.len()],
        normalizer: Normalizer {
            mode: NormalizerMode::Manual,
            scale: vec![1.0; names.len()],
            offset: vec![0.0; names.len()],
            min: Vec::new(),
            max: Vec::new(),
        },
    };
    PolicyConfig {
        format: POLICY_FORMAT,
        name: "two-layer".to_owned(),
        rate_hz: 10.0,
        default_schedule: None,
        architecture: Architecture {
            layers: 2,
            heads: 2,
            width: 8,
            condition_layers: 0,
            causal: true,
            time_as_cond: true,
            obs_as_cond: true,
            horizon: 4,
            n_obs_steps: 2,
            n_action_steps: 2,
            pred_action_steps_only: false,
            dit: None,
        },
        observation: signal(&["x", "y"]),
        action: signal(&["dx"]),
        cameras: Vec::new(),
        sampler: SamplerConfig {
            kind: SamplerKind::Ddpm,
            inference_steps: STEPS,
            train_steps: 100,
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            beta_start: 0.0001,
            beta_end: 0.02,
            trained_betas: Vec::new(),
            rescale_betas_zero_snr: false,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            timesteps: Vec::new(),
            variance_type: VarianceType::FixedSmall,
            eta: 0.0,
            set_alpha_to_one: true,
            use_clipped_model_output: false,
        },
        provenance: Provenance::default(),
    }
}

fn schedule() -> Schedule {
    let at = |i: usize| vec![0, 1 + i, 7];
    let rows = blocks(&config().architecture).into_iter().enumerate().map(|(i, b)| (b, at(i % 3)));
    Schedule::from_updates(&config().architecture, STEPS, rows).unwrap()
}

#[test]
fn coverage_must_fit_the_policy() {
    let mut wrong = file();
    let ranges = |n| Some(Coverage { low: vec![-1.0; n], high: vec![1.0; n] });
    if let Some(calibration) = &mut wrong.calibration {
        calibration.coverage = ranges(3);
    }
    let error = wrong.check(&config(), &hash('a')).unwrap_err().to_string();
    assert!(error.contains("calibration.coverage") && error.contains("2 numbers each, got 3"), "{error}");
}

fn file() -> ScheduleFile {
    let mut file = ScheduleFile::new(&config(), &hash('a'), &schedule(), Method::adaptive_caching(3, 0));
    file.calibration = Some(CalibrationData {
        source: "demonstrations.npz".to_owned(),
        observations: 32,
        seed: u64::MAX,
        sha256: hash('b'),
        coverage: Some(Coverage { low: vec![-1.0; 2], high: vec![1.0; 2] }),
    });
    file.report.insert("score".to_owned(), 0.963.into());
    file.report
        .insert("latency_ms".to_owned(), toml::Table::from_iter([("p99".to_owned(), 6.5.into())]).into());
    file
}

#[test]
fn reads_back_what_it_wrote() {
    let text = file().to_toml().unwrap();
    assert!(text.contains("\n\"layer0.cross_attention\" = [0, 2, 7]\n"), "{text}");
    let rows = text.find("layer0.self").unwrap()..text.find("layer1.feed").unwrap();
    assert!(text[rows].contains("layer1.cross"), "in the trunk's order");
    let read = ScheduleFile::parse(&text).unwrap();
    assert_eq!(read, file());
    assert_eq!(read.check(&config(), &hash('a')).unwrap(), schedule());
    assert_eq!(read.to_toml().unwrap(), text);
}

#[test]
fn reads_a_file_written_by_hand() {
    let hand = r#"
        format = 1
        policy = "two-layer"
        weights_sha256 = "HASH"
        timesteps = [25, 0]
        updates."layer0.self_attention" = [0]
        updates."layer0.feed_forward" = [0, 1]
        updates."layer0.cross_attention" = [0]
        updates."layer1.self_attention" = [0]
        updates."layer1.cross_attention" = [0]
        updates."layer1.feed_forward" = [0]
        reuse = [{ steps = [1], weights = [0.9], blocks = ["layer1.feed_forward"] }]
        method.name = "by_hand"
        [sampler]
        kind = "ddim"
        inference_steps = 2
        train_steps = 50
        beta_schedule = "linear"
        beta_start = 0.001
        beta_end = 0.02
        prediction_type = "epsilon"
        clip_sample = false
        clip_sample_range = 1.0
        variance_type = "fixed_small"
    "#;
    let file = ScheduleFile::parse(&hand.replace("HASH", &hash('a'))).unwrap();
    let runs = PolicyConfig { sampler: file.sampler.clone(), ..config() };
    let schedule = file.check(&runs, &hash('a')).unwrap();
    assert_eq!(schedule.updates(), 7);
    assert_eq!(schedule.rows()[5].1, [Cell::Update, Cell::Reuse(vec![0.9])]);
    assert_eq!(schedule.rows()[4].1, [Cell::Update, Cell::Reuse(vec![1.0])]);
}

#[test]
fn forecasts_of_all_blocks_are_written_once() {
    let row = [Cell::Update, Cell::Update, Cell::Reuse(vec![2.0, -1.0]), Cell::Reuse(vec![2.0, -1.0])];
    let last = Cell::Reuse(vec![3.0, -2.0]);
    let mut rows: Vec<_> = blocks(&config().architecture).into_iter().map(|b| (b, row.to_vec())).collect();
    rows.iter_mut().for_each(|(_, cells)| cells.extend(vec![last.clone(); STEPS - 4]));
    rows[2].1[7] = Cell::Reuse(vec![0.5]);
    let schedule = Schedule::new(&config().architecture, STEPS, rows).unwrap();
    let file = ScheduleFile::new(&config(), &hash('a'), &schedule, Method::named("linear_forecast"));
    let all = |steps: &[usize], weights: &[f32]| ReuseWeights {
        steps: steps.to_vec(),
        weights: weights.to_vec(),
        blocks: Vec::new(),
    };
    assert!(
        file.reuse.contains(&all(&[2, 3], &[2.0, -1.0]))
            && file.reuse.contains(&all(&[4, 5, 6], &[3.0, -2.0]))
    );
    assert_eq!(file.reuse.len(), 4);
    let read = ScheduleFile::parse(&file.to_toml().unwrap()).unwrap();
    assert_eq!(read.check(&config(), &hash('a')).unwrap(), schedule);
}

#[test]
fn other_weights_and_samplers_are_refused() {
    let refused = |config: &PolicyConfig, sha: &str| file().check(config, sha).unwrap_err().to_string();
    assert_eq!(
        refused(&config(), &hash('c')),
        format!(
            "schedule was made for policy \"two-layer\" with weights {}, but policy \"two-layer\" has weights {}; calibrate again for these weights",
            hash('a'),
            hash('c')
        )
    );
    let with = |change: &dyn Fn(&mut SamplerConfig)| {
        let mut config = config();
        change(&mut config.sampler);
        config
    };
    assert_eq!(
        refused(&with(&|s| s.kind = SamplerKind::Ddim), &hash('a')),
        "schedule was made for sampler ddpm8, but the policy runs ddim8; run it with ddpm8, or calibrate again for ddim8"
    );
    assert!(refused(&with(&|s| s.inference_steps = 9), &hash('a')).contains("runs ddpm9"));
    assert_eq!(
        refused(&with(&|s| s.steps_offset = 3), &hash('a')),
        "schedule was made for sampler ddpm8 with steps_offset = 0, but the policy has steps_offset = 3; set it back, or calibrate again"
    );
    let listed = with(&|s| s.timesteps = vec![99, 80, 70, 60, 50, 40, 30, 0]);
    assert!(
        refused(&listed, &hash('a')).contains("with timesteps = [], but the policy has timesteps = [99, 80,")
    );
    assert!(refused(&with(&|s| s.clip_sample = false), &hash('a')).contains("clip_sample = true, but"));
    assert!(refused(&with(&|s| s.beta_end = f64::NAN), &hash('a')).contains("sampler.beta_end: expected"));
    // What changes no step is no other sampler.
    assert!(file().check(&with(&|s| s.eta = 0.5), &hash('a')).is_ok(), "DDPM has no eta");
    let same = with(&|s| s.timesteps = s.inference_timesteps());
    assert!(file().check(&same, &hash('a')).is_ok(), "the same timesteps as a list");
}

/// A change of a sound file, and what the error says. Errors come from reading or from checking.
#[test]
fn bad_files_are_named() {
    fn refused(change: impl FnOnce(&mut ScheduleFile)) -> String {
        let mut bad = file();
        change(&mut bad);
        let text = toml::to_string(&bad).unwrap();
        let read = ScheduleFile::parse(&text).and_then(|f| f.check(&config(), &hash('a')));
        read.unwrap_err().to_string()
    }
    let first: Block = "layer0.self_attention".parse().unwrap();
    let reuse = |steps: &[usize], weights: &[f32], blocks: &[Block]| ReuseWeights {
        steps: steps.to_vec(),
        weights: weights.to_vec(),
        blocks: blocks.to_vec(),
    };
    let cases: Vec<(String, &str)> = vec![
        (refused(|f| f.format = 2), "expected format 1, got 2; make it again"),
        (
            refused(|f| f.weights_sha256 = "A".repeat(64)),
            "weights_sha256: expected 64 lowercase hex digits, got",
        ),
        (refused(|f| f.calibration.as_mut().unwrap().sha256.clear()), "calibration.sha256: expected 64"),
        (
            refused(|f| f.calibration.as_mut().unwrap().observations = 0),
            "calibration.observations: expected at least 1",
        ),
        (refused(|f| f.method.name.clear()), "method.name: is empty"),
        (refused(|f| f.sampler.inference_steps = 0), "sampler.inference_steps: expected 1 to train_steps"),
        (refused(|f| f.timesteps[0] += 1), "timesteps are not those of its [sampler], ddpm8"),
        (refused(|f| f.timesteps.truncate(STEPS - 1)), "timesteps are not those"),
        (
            refused(|f| f.updates[0].1 = vec![0, 3, 2]),
            "layer0.self_attention: expected rising steps, got 3 before 2",
        ),
        (refused(|f| f.updates[0].1 = vec![0, 0]), "expected rising steps, got 0 before 0"),
        (refused(|f| f.updates[0].1 = vec![1]), "row layer0.self_attention does not update at step 0"),
        (refused(|f| f.updates[0].1.clear()), "does not update at step 0"),
        (refused(|f| f.updates[0].1 = vec![0, 8]), "updates at step 8, expected 0 to 7"),
        (refused(|f| f.updates[0].1 = vec![0, 1 << 40]), "updates at step 1099511627776, expected 0 to 7"),
        (refused(|f| f.updates.truncate(5)), "no row for block layer1.feed_forward"),
        (
            refused(|f| f.updates[5].0.layer = 7),
            "names block \"layer7.feed_forward\", which this policy does not have",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[5], &[f32::NAN], &[])]),
            "step 5: expected at least one finite reuse weight",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[5], &[f32::INFINITY], &[])]),
            "expected at least one finite reuse weight",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[4], &[], &[first])]),
            "step 4: expected at least one finite reuse weight",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[4], &[1.0; 9], &[first])]),
            "9 reuse weights, but only 3 outputs are cached",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[4], &[1.0; 3], &[first])]),
            "3 reuse weights, but only 2 outputs are cached",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[7], &[1.0], &[first])]),
            "reuse of layer0.self_attention at step 7, which is an update",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[9], &[1.0], &[first])]),
            "reuse of layer0.self_attention at step 9, expected 1 to 7",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[4, 4], &[0.5], &[first])]),
            "two reuse entries for layer0.self_attention at step 4",
        ),
        (
            refused(|f| f.reuse = vec![reuse(&[4], &[0.5], &[Block { layer: 2, ..first }])]),
            "reuse names block layer2.self_attention, which has no update steps",
        ),
    ];
    for (got, expected) in cases {
        assert!(got.contains(expected), "expected {expected:?}, got {got:?}");
    }
}

#[test]
fn bad_text_is_named() {
    let text = file().to_toml().unwrap();
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        ScheduleFile::parse(&text.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let cases = [
        (refused("policy = ", "polcy = "), "unknown field `polcy`"),
        (refused("kind = ", "sort = 1\nkind = "), "unknown field `sort`"),
        (refused("observations = ", "x = 1\nobservations = "), "unknown field `x`"),
        (refused("name = ", "title = 1\nname = "), "unknown field `title`"),
        (refused("format = 1", ""), "missing field `format`"),
        (refused("format = 1", "format = 99\nnovelty = true"), "expected format 1, got 99"),
        (refused("\"layer0.self_attention\"", "layer0.self_attention"), "block name such as"),
        (
            refused("\"layer0.self_attention\"", "\"layer00.self_attention\""),
            "got \"layer00.self_attention\"",
        ),
        (refused("\"layer0.self_attention\"", "\"layer0.cross_attention\""), "duplicate key"),
        (refused("[0, 1, 7]", "[0, -1, 7]"), "invalid value"),
        (refused("[0, 1, 7]", "\"all\""), "expected a sequence"),
    ];
    for (got, expected) in cases {
        assert!(got.contains(expected), "expected {expected:?}, got {got:?}");
    }
    assert!(matches!(ScheduleFile::parse(&"#".repeat(MAX_BYTES + 1)), Err(ScheduleFileError::TooLarge)));
}

/// A fresh folder under the system's temporary one, removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("refrain-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn schedules_are_found_by_name() {
    let folder = Folder::new("schedules");
    let package = &folder.0;
    assert!(ScheduleFile::names(package).unwrap().is_empty());
    let missing = ScheduleFile::load(package, "bac-10").unwrap_err().to_string();
    assert!(missing.contains("there are: none"), "{missing}");

    for name in ["full", "bac-10_3"] {
        assert_eq!(
            file().save(package, name).unwrap(),
            package.join("schedules").join(format!("{name}.toml"))
        );
    }
    std::fs::write(package.join("schedules/notes.txt"), "").unwrap();
    std::fs::write(package.join("schedules/not a name.toml"), "").unwrap();
    assert_eq!(ScheduleFile::names(package).unwrap(), ["bac-10_3", "full"]);
    assert_eq!(ScheduleFile::load(package, "full").unwrap(), file());
    let missing = ScheduleFile::load(package, "bac-10").unwrap_err().to_string();
    assert!(missing.contains("there are: bac-10_3, full;"), "{missing}");

    std::fs::create_dir(package.join("schedules/folder.toml")).unwrap();
    assert!(ScheduleFile::load(package, "folder").unwrap_err().to_string().contains("is not a plain file"));
    std::fs::write(package.join("schedules/binary.toml"), [0xff, 0xfe]).unwrap();
    assert!(matches!(ScheduleFile::load(package, "binary"), Err(ScheduleFileError::Io { .. })));
    std::fs::write(package.join("schedules/large.toml"), vec![b'#'; MAX_BYTES + 1]).unwrap();
    assert!(matches!(ScheduleFile::load(package, "large"), Err(ScheduleFileError::TooLarge)));
}

#[test]
fn names_stay_in_the_folder() {
    let long = "x".repeat(65);
    for name in ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "x.toml", "x\0", "é", "a b", &long] {
        assert!(
            matches!(ScheduleFile::load(Path::new("."), name), Err(ScheduleFileError::Name(n)) if n == name)
        );
        assert!(matches!(file().save(Path::new("."), name), Err(ScheduleFileError::Name(_))));
    }
}

fn cells() -> impl Strategy<Value = Vec<Cell>> {
    let weights = prop::collection::vec(-1e30_f32..1e30, 1..3);
    let cell = prop_oneof![
        2 => Just(Cell::Update),
        2 => Just(Cell::Reuse(vec![1.0])),
        1 => weights.prop_map(Cell::Reuse),
    ];
    prop::collection::vec(cell, STEPS).prop_map(|mut cells| {
        cells[0] = Cell::Update;
        let mut cached = 0;
        for cell in &mut cells {
            match cell {
                Cell::Update => cached += 1,
                Cell::Reuse(weights) => weights.truncate(cached),
            }
        }
        cells
    })
}

proptest! {
    #[test]
    fn every_schedule_survives_its_file(table in prop::collection::vec(cells(), 6)) {
        let rows = blocks(&config().architecture).into_iter().zip(table).collect();
        let schedule = Schedule::new(&config().architecture, STEPS, rows).unwrap();
        let file = ScheduleFile::new(&config(), &hash('a'), &schedule, Method::named("any"));
        let read = ScheduleFile::parse(&file.to_toml().unwrap()).unwrap();
        prop_assert_eq!(&read, &file);
        prop_assert_eq!(read.check(&config(), &hash('a')).unwrap(), schedule);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(ScheduleFile::parse(&String::from_utf8_lossy(&bytes)).is_err());
    }

    #[test]
    fn damaged_files_never_panic(at in 0_usize..4000, cut in 0_usize..12, patch in "[ -~\n]{0,12}") {
        let text = file().to_toml().unwrap();
        let at = at % text.len();
        let end = (at + cut).min(text.len());
        let damaged = format!("{}{patch}{}", &text[..at], &text[end..]);
        if let Ok(read) = ScheduleFile::parse(&damaged) {
            match read.check(&config(), &hash('a')) {
                Ok(schedule) => prop_assert_eq!(schedule.steps(), STEPS),
                Err(ScheduleFileError::Schedule(ScheduleError::Length { .. })) => prop_assert!(false),
                Err(_) => {}
            }
        }
    }
}
