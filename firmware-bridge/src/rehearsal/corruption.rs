//! Corrupted frames by the million: whatever a noisy line does to a frame, the receiver never takes it for another.
//!
//! Each round encodes a random sound frame for a serial line, corrupts the line in one of six ways and feeds it to a
//! [`Deframer`] and the checked views. A frame that comes out must be byte for byte one that went in.
//! A CRC-32 lets a random change through once in 2³², so ten million rounds expect 0.002 misses.

use crate::wire::framing::{Deframer, MAX_ENCODED, encode};
use crate::wire::{
    CommandRepr, CommandView, Error, FaultView, Header, HeartbeatRepr, HeartbeatView, Kind, MAX_FRAME,
    MAX_VALUES, Request, StateView, header,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What became of the corrupted frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Corrupted lines fed.
    pub lines: u64,
    /// Blocks dropped because COBS did not decode, or too long.
    pub framing: u64,
    /// Blocks dropped by the CRC.
    pub crc: u64,
    /// Blocks dropped by another check.
    pub other: u64,
    /// Frames that came out equal to one that went in (the corruption hit a neighbour or the delimiter).
    pub intact: u64,
    /// Frames accepted that nobody sent. Must be 0.
    pub accepted: u64,
}

/// Feeds `lines` corrupted lines drawn from `seed`.
pub fn corrupt_frames(lines: u64, seed: u64) -> Tally {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut deframer = Deframer::new();
    let mut previous = random_frame(&mut rng);
    while tally.lines < lines {
        let frame = random_frame(&mut rng);
        let clean = line_of(&frame);
        let mut line = clean.clone();
        corrupt(&mut rng, &mut line, &line_of(&previous));
        if line == clean {
            continue;
        }
        tally.lines += 1;
        // The closing zero ends whatever the corruption left open.
        for byte in line.iter().chain(&[0]) {
            match deframer.push(*byte) {
                None => (),
                Some(Err(_)) => tally.framing += 1,
                Some(Ok(got)) => match check(got) {
                    Ok(()) if got == frame || got == previous => tally.intact += 1,
                    Ok(()) => tally.accepted += 1,
                    Err(Error::Crc) => tally.crc += 1,
                    Err(_) => tally.other += 1,
                },
            }
        }
        previous = frame;
    }
    tally
}

fn check(bytes: &[u8]) -> Result<(), Error> {
    match header::kind(bytes)? {
        Kind::Command => CommandView::new_checked(bytes).map(|_| ()),
        Kind::State => StateView::new_checked(bytes).map(|_| ()),
        Kind::Heartbeat => HeartbeatView::new_checked(bytes).map(|_| ()),
        Kind::Fault => FaultView::new_checked(bytes).map(|_| ()),
    }
}

/// A heartbeat (one in four) or a command of up to 6 joints and 8 points.
fn random_frame(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let joints = rng.random_range(1..=6);
    let header = Header {
        joints,
        sequence: rng.random(),
        session: rng.random(),
        epoch: rng.random_range(0..4),
        time_us: rng.random_range(0..1 << 40),
    };
    let mut buffer = [0; MAX_FRAME];
    let written = if rng.random_ratio(1, 4) {
        HeartbeatRepr { header, request: Request::None }.emit(&mut buffer)
    } else {
        let points = rng.random_range(1..=8);
        let mut values = [0.0; MAX_VALUES];
        values[..usize::from(joints) * usize::from(points)].fill_with(|| rng.random_range(-3.0..3.0));
        let time = header.time_us;
        let (observation_us, start_us, valid_until_us) = (time, time + 50_000, time + 250_000);
        let (chunk, step_us) = (rng.random(), 20_000);
        CommandRepr { header, chunk, points, observation_us, start_us, valid_until_us, step_us, values }
            .emit(&mut buffer)
    };
    let len = written.expect("the counts are in range and the values finite");
    buffer[..len].to_vec()
}

fn line_of(frame: &[u8]) -> Vec<u8> {
    let mut line = [0; MAX_ENCODED];
    let len = encode(frame, &mut line).expect("the line takes any frame");
    line[..len].to_vec()
}

fn corrupt(rng: &mut ChaCha8Rng, line: &mut Vec<u8>, other: &[u8]) {
    let at = rng.random_range(0..line.len());
    match rng.random_range(0..6) {
        // One to four flipped bits.
        0 => {
            for _ in 0..rng.random_range(1..=4) {
                let index = rng.random_range(0..line.len());
                line[index] ^= 1 << rng.random_range(0..8);
            }
        }
        // Each byte replaced with a probability of 1 % or 20 %.
        1 => {
            let rate = if rng.random() { 0.01 } else { 0.2 };
            for byte in line.iter_mut() {
                if rng.random_bool(rate) {
                    *byte = rng.random();
                }
            }
        }
        // A burst of random bytes.
        2 => {
            let end = (at + rng.random_range(1..=16)).min(line.len());
            rng.fill(&mut line[at..end]);
        }
        // Lost bytes.
        3 => {
            let end = (at + rng.random_range(1..=16)).min(line.len());
            line.drain(at..end);
        }
        // Inserted bytes.
        4 => {
            let extra: Vec<u8> = (0..rng.random_range(1..=16)).map(|_| rng.random()).collect();
            line.splice(at..at, extra);
        }
        // Spliced: the head of this frame with the tail of the one before.
        _ => {
            let from = rng.random_range(0..other.len());
            line.truncate(at);
            line.extend_from_slice(&other[from..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_corrupted_frame_is_accepted() {
        let tally = corrupt_frames(200_000, 7);
        println!("{tally:?}");
        assert_eq!((tally.lines, tally.accepted), (200_000, 0));
        // The rounds reached all the checks.
        assert!(tally.framing > 10_000 && tally.crc > 10_000 && tally.other > 1_000 && tally.intact > 100);
    }
}
