//! Feeds corrupted frames to the receiver, ten million unless told otherwise, and prints what became of them.
//! Exits with 1 if one was accepted.
//!
//! `cargo run --release --example corrupted_frames -- [LINES] [SEED]`

use refrain_firmware_bridge::rehearsal::corruption::corrupt_frames;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u64>());
    let (Ok(lines), Ok(seed)) =
        (arguments.next().unwrap_or(Ok(10_000_000)), arguments.next().unwrap_or(Ok(1)))
    else {
        eprintln!("usage: corrupted_frames [LINES] [SEED], both whole numbers");
        return ExitCode::from(2);
    };
    let tally = corrupt_frames(lines, seed);
    println!("corrupted lines        {}", tally.lines);
    println!("dropped: framing       {}", tally.framing);
    println!("dropped: CRC           {}", tally.crc);
    println!("dropped: other checks  {}", tally.other);
    println!("came out unharmed      {}", tally.intact);
    println!("accepted, never sent   {}", tally.accepted);
    ExitCode::from(u8::from(tally.accepted != 0))
}
