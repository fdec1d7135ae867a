//! Which images are taken, and which of them make an observation together, on a clock of our own.

use super::*;
use crate::clock::{MILLISECOND, Wall};
use crate::observation::{Intake, IntakeConfig, Part, Start, Window};

const PERIOD: Nanos = 100 * MILLISECOND;

fn lens() -> Lens {
    Lens {
        name: "front".into(),
        size: [2, 2],
        channels: Channels::Rgb,
        arrival_is_stamp: false,
        black: Some(4),
        frozen_after: Some(3),
    }
}

fn config(steps: usize, cameras: usize, out_of_sync: OutOfSync) -> IntakeConfig {
    IntakeConfig {
        size: 1,
        steps,
        period: PERIOD,
        max_age: 300 * MILLISECOND,
        clock_tolerance: 5 * MILLISECOND,
        parts: vec![Part { places: vec![0], arrival_is_stamp: false }],
        starts: vec![Start::Measured(0)],
        sight: Some(SightConfig {
            steps,
            period: PERIOD,
            max_age: 300 * MILLISECOND,
            clock_tolerance: 5 * MILLISECOND,
            tolerance: 20 * MILLISECOND,
            out_of_sync,
            lenses: vec![lens(); cameras],
        }),
    }
}

/// An intake with its window, on a clock in milliseconds.
struct Rig {
    intake: Intake,
    window: Window,
    sequence: i64,
}

impl Rig {
    fn new(steps: usize, cameras: usize, out_of_sync: OutOfSync) -> Self {
        let config = config(steps, cameras, out_of_sync);
        Self { window: Window::none(&config), intake: Intake::new(config), sequence: 0 }
    }

    fn origin(&mut self, made: i64) -> Origin {
        self.sequence += 1;
        Origin { sequence: Some(self.sequence), publisher: Some([1; 16]), stamp: Some(at(made).wall) }
    }

    /// The state made at `made` is its time.
    fn state(&mut self, made: i64, now: i64) -> Result<bool, Refusal> {
        let origin = self.origin(made);
        self.intake.accept(0, &origin, &[made as f64], at(now))
    }

    /// An image whose bytes are `shade`.
    fn image(&mut self, camera: usize, made: i64, now: i64, shade: u8) -> Result<bool, Refusal> {
        let origin = self.origin(made);
        let pixels = [shade; 12];
        self.intake.see(camera, &origin, &rgb(&pixels), at(now))
    }

    /// What is looked at: its time, the states, and the shades of the images.
    fn look(&mut self) -> (i64, Vec<f32>, Vec<u8>) {
        self.intake.window(&mut self.window);
        let shade = |snapshot: &Snapshot| snapshot.pixels.image().pixels.first().copied().unwrap_or(0);
        let shades = self.window.images.iter().map(shade).collect();
        (self.window.time.nanos() / MILLISECOND, self.window.values.clone(), shades)
    }

    fn refused(&self, why: Refusal) -> u64 {
        self.intake.counts().refused[Refusal::ALL.iter().position(|r| *r == why).unwrap()]
    }
}

fn rgb(pixels: &[u8]) -> Image<'_> {
    Image { height: 2, width: 2, step: 6, channels: Channels::Rgb, pixels }
}

fn at(millis: i64) -> Reading {
    Reading {
        time: Time::from_nanos(millis * MILLISECOND),
        wall: Wall::from_nanos((1_000_000 + millis) * MILLISECOND),
    }
}

#[test]
fn an_observation_needs_every_camera_and_the_state() {
    let mut rig = Rig::new(1, 2, OutOfSync::Wait);
    assert_eq!(rig.state(0, 1), Ok(false), "there is nothing to look at");
    assert_eq!(rig.intake.observed().sequence, 0);
    assert_eq!(rig.image(0, 5, 10, 50), Ok(false));
    assert_eq!(rig.image(1, 12, 15, 60), Ok(true), "whoever comes last completes it");
    assert_eq!(rig.look(), (0, vec![0.0], vec![50, 60]), "its time is that of its oldest part");
    assert_eq!(rig.state(8, 16), Ok(false));
    assert_eq!(rig.look().1, [8.0], "the state nearest to the image");
    assert_eq!(rig.window.sequence, 1, "and still the same observation");
    assert_eq!(rig.image(1, 105, 106, 61), Ok(false));
    assert_eq!(rig.image(0, 100, 107, 51), Ok(false));
    assert_eq!(rig.state(99, 108), Ok(true), "the state may come last too");
    assert_eq!(rig.look(), (99, vec![99.0], vec![51, 61]));
    assert_eq!(rig.refused(Refusal::OutOfSync), 0);
}

#[test]
fn what_does_not_match_waits_and_is_counted() {
    let mut rig = Rig::new(1, 2, OutOfSync::Wait);
    for frame in 0..4 {
        let made = 100 * frame;
        let _ = rig.state(made, made + 1);
        assert_eq!(rig.image(1, made + 50, made + 51, 60 + frame as u8), Ok(false), "half a period off");
        assert_eq!(rig.image(0, made, made + 52, 50 + frame as u8), Ok(false));
    }
    assert_eq!(rig.refused(Refusal::OutOfSync), 3, "each that the next one found unmatched");
    assert_eq!(rig.look().2, [0, 0], "there was nothing to look at");
}

#[test]
fn one_camera_missing_is_counted_and_comes_back() {
    let mut rig = Rig::new(1, 2, OutOfSync::Wait);
    let step = |rig: &mut Rig, made: i64, both: bool| {
        let shade = (made / 100) as u8;
        let _ = rig.state(made, made + 1);
        let _ = rig.image(0, made, made + 2, 50 + shade);
        if both { rig.image(1, made, made + 3, 60 + shade) } else { Ok(false) }
    };
    assert_eq!(step(&mut rig, 0, true), Ok(true));
    for made in [100, 200, 300] {
        let _ = step(&mut rig, made, false);
    }
    assert_eq!(rig.look().0, 0, "the old observation stands, and ages");
    assert_eq!(rig.intake.observed().time, at(0).time, "so the robot holds");
    assert_eq!(rig.refused(Refusal::OutOfSync), 2, "each that the next one found alone");
    assert_eq!(step(&mut rig, 400, true), Ok(true));
    assert_eq!((rig.look().0, rig.refused(Refusal::OutOfSync)), (400, 3));
}

#[test]
fn nearest_takes_what_is_there() {
    let mut rig = Rig::new(1, 2, OutOfSync::Nearest);
    assert_eq!(rig.image(0, 0, 1, 50), Ok(false), "nothing to go with");
    let _ = rig.state(0, 2);
    assert_eq!(rig.image(1, 50, 51, 60), Ok(true));
    assert_eq!(rig.refused(Refusal::OutOfSync), 1, "it is counted all the same");
    assert_eq!(rig.look(), (0, vec![0.0], vec![50, 60]));
    assert_eq!(rig.image(0, 400, 401, 51), Ok(false), "what is nearest is too old");
}

#[test]
fn the_policy_looks_back_in_periods_of_its_own() {
    let mut rig = Rig::new(3, 1, OutOfSync::Wait);
    // Images at 20 Hz, states at 100 Hz: the policy looks at every second image, and at the states of their times.
    for made in (0..=400).step_by(10) {
        let _ = rig.state(made, made + 1);
        if made % 50 == 0 {
            assert_eq!(rig.image(0, made, made + 2, 10 + (made / 50) as u8), Ok(true), "{made}");
        }
    }
    assert_eq!(rig.look(), (400, vec![200.0, 300.0, 400.0], vec![14, 16, 18]));
    let mut young = Rig::new(3, 1, OutOfSync::Wait);
    let _ = young.state(0, 1);
    let _ = young.image(0, 0, 2, 50);
    assert_eq!(young.look().2, [50, 50, 50], "the first image is repeated at the start");
}

#[test]
fn each_wrong_image_has_its_name_and_counter() {
    let mut rig = Rig::new(1, 1, OutOfSync::Wait);
    let _ = rig.state(0, 1);
    assert_eq!(rig.image(0, 0, 1, 50), Ok(true));
    let pixels = [80; 40];
    let good = rgb(&pixels[..12]);
    for (image, made, why) in [
        (Image { height: 3, ..good }, 100, Refusal::WrongSize),
        (Image { width: 3, step: 9, ..good }, 100, Refusal::WrongSize),
        (Image { channels: Channels::Mono, ..good }, 100, Refusal::WrongEncoding),
        (Image { step: 5, ..good }, 100, Refusal::WrongStep),
        (Image { pixels: &pixels[..11], ..good }, 100, Refusal::Truncated),
        (Image { pixels: &[4; 12], ..good }, 100, Refusal::Black),
        (good, -200, Refusal::TooOld),
        (good, 0, Refusal::OutOfOrder),
        (good, 120, Refusal::FromTheFuture),
    ] {
        let (before, origin) = (rig.refused(why), rig.origin(made));
        assert_eq!(rig.intake.see(0, &origin, &image, at(101)), Err(why));
        assert_eq!(rig.refused(why), before + 1);
    }
    let padded = Image { step: 8, pixels: &pixels[..14], ..good };
    let origin = rig.origin(100);
    assert_eq!(rig.intake.see(0, &origin, &padded, at(101)), Ok(false), "padding is no fault");
    let (_, bytes) = (rig.state(100, 102), (10..38).collect::<Vec<u8>>());
    let padded = Image { step: 16, pixels: &bytes[..22], ..good };
    let origin = rig.origin(110);
    assert_eq!(rig.intake.see(0, &origin, &padded, at(111)), Ok(true));
    rig.look();
    let kept = rig.window.images[0].pixels.image().pixels.to_vec();
    assert_eq!(kept, [&bytes[..6], &bytes[16..22]].concat(), "and what is kept has none");
}

#[test]
fn a_frozen_camera_is_named_until_it_moves() {
    let mut rig = Rig::new(1, 1, OutOfSync::Wait);
    let frame = |rig: &mut Rig, made: i64, shade: u8| {
        let _ = rig.state(made, made + 1);
        rig.image(0, made, made + 2, shade)
    };
    assert_eq!(frame(&mut rig, 0, 50), Ok(true));
    assert_eq!(frame(&mut rig, 100, 50), Ok(true), "twice may be chance");
    assert_eq!(frame(&mut rig, 200, 50), Err(Refusal::Frozen));
    assert_eq!(frame(&mut rig, 300, 50), Err(Refusal::Frozen));
    assert_eq!(frame(&mut rig, 400, 51), Ok(true));
    assert_eq!(frame(&mut rig, 500, 50), Ok(true));
}

#[test]
fn buffers_of_images_are_used_again() {
    let mut rig = Rig::new(1, 1, OutOfSync::Wait);
    let mut places = std::collections::BTreeSet::new();
    for frame in 0..50 {
        let _ = rig.state(100 * frame, 100 * frame + 1);
        assert_eq!(rig.image(0, 100 * frame, 100 * frame + 2, 10 + frame as u8), Ok(true));
        rig.look();
        places.insert(rig.window.images[0].pixels.image().pixels.as_ptr() as usize);
    }
    assert!(places.len() <= 5, "{} buffers", places.len());
}
