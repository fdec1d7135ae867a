//! Frames: round trips, examples, refusals, random and corrupted bytes, resynchronisation.

use super::framing::{Deframer, MAX_ENCODED, encode};
use super::state::Refusal;
use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Any frame, decoded through its view.
#[derive(Debug, PartialEq)]
enum Any {
    Command(Box<CommandRepr>),
    State(Box<StateRepr>),
    Heartbeat(HeartbeatRepr),
    Fault(FaultRepr),
}

fn parse(bytes: &[u8]) -> Result<Any, Error> {
    Ok(match header::kind(bytes)? {
        Kind::Command => Any::Command(Box::new(CommandRepr::parse(&CommandView::new_checked(bytes)?))),
        Kind::State => Any::State(Box::new(StateRepr::parse(&StateView::new_checked(bytes)?))),
        Kind::Heartbeat => Any::Heartbeat(HeartbeatRepr::parse(&HeartbeatView::new_checked(bytes)?)),
        Kind::Fault => Any::Fault(FaultRepr::parse(&FaultView::new_checked(bytes)?)),
    })
}

fn emit(any: &Any) -> Vec<u8> {
    let mut buffer = [0xEE; MAX_FRAME];
    let len = match any {
        Any::Command(repr) => repr.emit(&mut buffer),
        Any::State(repr) => repr.emit(&mut buffer),
        Any::Heartbeat(repr) => repr.emit(&mut buffer),
        Any::Fault(repr) => repr.emit(&mut buffer),
    }
    .unwrap();
    buffer[..len].to_vec()
}

fn headers() -> impl Strategy<Value = Header> {
    (1..=MAX_JOINTS as u8, any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
        |(joints, sequence, session, epoch, time_us)| Header { joints, sequence, session, epoch, time_us },
    )
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_map(|value| if value.is_finite() { value } else { 0.0 })
}

fn rows(joints: usize) -> impl Strategy<Value = [f32; MAX_JOINTS]> {
    proptest::collection::vec(finite(), joints).prop_map(|values| {
        let mut row = [0.0; MAX_JOINTS];
        row[..values.len()].copy_from_slice(&values);
        row
    })
}

fn commands() -> impl Strategy<Value = Any> {
    let counts = headers().prop_flat_map(|header| {
        let most = MAX_POINTS.min(MAX_VALUES / header.joint_count()) as u16;
        (Just(header), 1..=most)
    });
    counts
        .prop_flat_map(|(header, points)| {
            let values = proptest::collection::vec(finite(), header.joint_count() * usize::from(points));
            (Just(header), Just(points), values, any::<(u32, u64, u64, u64)>(), 1..=u32::MAX)
        })
        .prop_map(|(header, points, some, (chunk, observation_us, start_us, valid_until_us), step_us)| {
            let mut values = [0.0; MAX_VALUES];
            values[..some.len()].copy_from_slice(&some);
            Any::Command(Box::new(CommandRepr {
                header,
                chunk,
                points,
                observation_us,
                start_us,
                valid_until_us,
                step_us,
                values,
            }))
        })
}

fn states() -> impl Strategy<Value = Any> {
    headers()
        .prop_flat_map(|header| {
            let joints = header.joint_count();
            let codes = (0..5u8, 0..5u8, 0..12u8, any::<bool>());
            (
                Just(header),
                codes,
                any::<[u32; 7]>(),
                any::<[u64; 2]>(),
                rows(joints),
                rows(joints),
                rows(joints),
            )
        })
        .prop_map(|(header, (mode, fault, refusal, torque), words, times, position, velocity, setpoint)| {
            Any::State(Box::new(StateRepr {
                header,
                mode: Mode::from_code(mode).unwrap(),
                fault: Cause::from_code(fault),
                refusal: Refusal::from_code(refusal),
                torque,
                host_sequence: words[0],
                chunk: words[1],
                bad_frames: words[2],
                lost_frames: words[3],
                refused_frames: words[4],
                host_session: words[5],
                echo_session: words[6],
                echo_us: times[0],
                echo_received_us: times[1],
                position,
                velocity,
                setpoint,
            }))
        })
}

fn frames() -> impl Strategy<Value = Any> {
    let heartbeats = (headers(), 0..3u8).prop_map(|(header, request)| {
        Any::Heartbeat(HeartbeatRepr { header, request: Request::from_code(request).unwrap() })
    });
    let faults = (headers(), 1..5u8, any::<(u8, u32, u64)>(), finite(), finite()).prop_map(
        |(header, cause, (joint, count, at_us), value, limit)| {
            let cause = Cause::from_code(cause).unwrap();
            Any::Fault(FaultRepr { header, cause, joint, count, at_us, value, limit })
        },
    );
    prop_oneof![commands(), states(), heartbeats, faults]
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(frame in frames()) {
        let bytes = emit(&frame);
        prop_assert!(bytes.len() <= MAX_FRAME);
        prop_assert_eq!(parse(&bytes).unwrap(), frame);
    }

    #[test]
    fn framing_carries_any_frame_and_resynchronises_after_garbage(
        frame in frames(),
        garbage in proptest::collection::vec(any::<u8>(), 0..5000),
    ) {
        let bytes = emit(&frame);
        let mut line = [0; MAX_ENCODED];
        let len = encode(&bytes, &mut line).unwrap();
        prop_assert!(!line[..len - 1].contains(&0));
        // One delimiter closes the garbage; the frame after it must come out whole.
        let stream = garbage.iter().chain(&[0]).chain(&line[..len]);
        let mut deframer = Deframer::new();
        let mut last = None;
        for byte in stream {
            if let Some(result) = deframer.push(*byte) {
                last = Some(result.map(<[u8]>::to_vec));
            }
        }
        prop_assert_eq!(last.unwrap().unwrap(), bytes);
    }

    #[test]
    fn a_shortened_or_lengthened_frame_is_refused(frame in frames(), cut in any::<proptest::sample::Index>()) {
        let mut bytes = emit(&frame);
        prop_assert!(parse(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert!(parse(&bytes).is_err());
    }

    #[test]
    fn any_single_bit_flip_is_refused(frame in frames(), at in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let mut bytes = emit(&frame);
        let index = at.index(bytes.len());
        bytes[index] ^= 1 << bit;
        prop_assert!(parse(&bytes).is_err());
    }
}

#[test]
fn the_worked_examples_are_these_bytes() {
    assert_eq!(emit(&Any::Heartbeat(example::HEARTBEAT)), example::HEARTBEAT_BYTES);
    assert_eq!(emit(&Any::Command(Box::new(example::command()))), example::COMMAND_BYTES);
    assert_eq!(parse(&example::HEARTBEAT_BYTES), Ok(Any::Heartbeat(example::HEARTBEAT)));
    assert_eq!(parse(&example::COMMAND_BYTES), Ok(Any::Command(Box::new(example::command()))));
}

/// The bytes printed in the module's documentation are the ones of the example.
#[test]
fn the_documentation_shows_the_examples_bytes() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    let words: Vec<&str> = include_str!("mod.rs").split_whitespace().filter(|word| word.len() == 2).collect();
    let shown = |bytes: &[u8]| words.windows(bytes.len()).any(|window| window == hex(bytes));
    let mut line = [0; 64];
    let len = encode(&example::HEARTBEAT_BYTES, &mut line).unwrap();
    assert!(shown(&line[..len]), "expected in the documentation: {}", hex(&line[..len]).join(" "));
    for part in [0..4, 4..8, 8..12, 12..16, 16..24, 24..28, 28..32] {
        assert!(shown(&example::HEARTBEAT_BYTES[part]));
    }
    assert!(!shown(&[0x12, 0x34, 0x56]), "the comparison can fail");
}

#[test]
fn crc_is_the_catalogues() {
    assert_eq!(header::crc(b"123456789"), 0xCBF4_3926);
}

/// Rewrites bytes of the example command and seals it again, so that only the later checks can refuse it.
fn resealed(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = example::COMMAND_BYTES.to_vec();
    change(&mut bytes);
    header::seal(&mut bytes);
    bytes
}

#[test]
fn each_check_refuses_with_its_own_error() {
    type Change = fn(&mut [u8]);
    let cases: [(Change, Error); 11] = [
        (|b| b[0] = 0x5A, Error::Magic(0x5A)),
        (|b| b[1] = 2, Error::Version(2)),
        (|b| b[2] = 9, Error::Kind(9)),
        (|b| b[3] = 0, Error::Joints(0)),
        (|b| b[3] = 17, Error::Joints(17)),
        (|b| b[3] = 3, Error::Length { expected: 92, got: 84 }),
        (|b| b[28] = 0, Error::Points(0)),
        (|b| b[28] = 65, Error::Points(65)),
        (|b| b[30] = 1, Error::Code(1)),
        (|b| b[56..60].fill(0), Error::Step),
        (|b| b[64..68].copy_from_slice(&f32::NAN.to_le_bytes()), Error::NonFinite),
    ];
    for (change, error) in cases {
        assert_eq!(CommandView::new_checked(resealed(change)).map(|_| ()), Err(error));
    }
    assert!(CommandView::new_checked(resealed(|_| ())).is_ok());
    assert_eq!(HeartbeatView::new_checked(example::COMMAND_BYTES).map(|_| ()), Err(Error::Kind(1)));
    let mut broken = example::COMMAND_BYTES;
    broken[70] ^= 1;
    assert_eq!(CommandView::new_checked(broken).map(|_| ()), Err(Error::Crc));
}

#[test]
fn emitting_refuses_what_parsing_would() {
    let mut buffer = [0; MAX_FRAME];
    let mut command = example::command();
    command.values[3] = f32::INFINITY;
    assert_eq!(command.emit(&mut buffer), Err(Error::NonFinite));
    command.values[3] = 0.0;
    assert_eq!(command.emit(&mut buffer[..83]), Err(Error::Length { expected: 84, got: 83 }));
    command.points = 0;
    assert_eq!(command.emit(&mut buffer), Err(Error::Points(0)));
    command.header.joints = 0;
    assert_eq!(command.emit(&mut buffer), Err(Error::Joints(0)));
}

#[test]
fn random_bytes_never_panic_and_are_never_a_frame() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut deframer = Deframer::new();
    for _ in 0..200_000 {
        let len = rng.random_range(0..200);
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes[..]);
        assert!(parse(&bytes).is_err());
        // The same with an honest CRC and header, to reach the later checks: nothing may panic.
        if len >= header::LEN + header::CRC_LEN {
            bytes[..2].copy_from_slice(&[header::MAGIC, header::VERSION]);
            bytes[2] = rng.random_range(0..6);
            bytes[3] = rng.random_range(0..20);
            header::seal(&mut bytes);
            let _ = parse(&bytes);
        }
        for byte in &bytes {
            if let Some(Ok(frame)) = deframer.push(*byte) {
                let _ = parse(frame);
            }
        }
    }
}

#[test]
fn an_overrun_is_reported_once_and_forgotten() {
    let mut deframer = Deframer::new();
    for _ in 0..MAX_ENCODED + 10 {
        assert!(deframer.push(1).is_none());
    }
    assert_eq!(deframer.push(0), Some(Err(Error::Overrun)));
    assert_eq!(deframer.push(0), None);
    let mut line = [0; 64];
    let len = encode(&example::HEARTBEAT_BYTES, &mut line).unwrap();
    let got: Vec<_> =
        line[..len].iter().filter_map(|byte| deframer.push(*byte).map(|r| r.map(<[u8]>::to_vec))).collect();
    assert_eq!(got, [Ok(example::HEARTBEAT_BYTES.to_vec())]);
}
