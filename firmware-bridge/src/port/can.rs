//! CAN: frames cut into segments of eight bytes, behind embedded-can's traits.
//!
//! Any driver that implements `embedded_can::nb::Can` will do: a microcontroller's, Linux's SocketCAN (feature `socketcan`),
//! an SLCAN adapter ([`super::slcan`]). Two identifiers, one each way, standard (11 bits):
//!
//! | byte of a segment | what |
//! | --- | --- |
//! | 0 | bit 7: the first of a frame; bit 6: the last; bits 5 to 0: counts a frame's segments from 0, wraps |
//! | 1 to 7 | the frame's next bytes; the last segment is as short as it must be |
//!
//! A segment that is not the next one ends its frame, which is then lost; the frame's own CRC stands. At 1 Mbit/s a
//! command of six joints and eight points (260 bytes) takes 38 segments, about 5 ms.

use super::{Found, Port, PortError};
use crate::clock::Clock;
use crate::wire::{Error, MAX_FRAME};
use embedded_can::nb::Can;
use embedded_can::{Frame, Id, StandardId};
use std::fmt::Debug;
use std::io;
use std::time::Duration;

const FIRST: u8 = 0x80;
const LAST: u8 = 0x40;
const COUNT: u8 = 0x3f;
/// Bytes of a frame in a segment.
const SHARE: usize = 7;
/// A frame that the bus does not take within this time is lost, µs.
const PATIENCE_US: u64 = 10_000;
/// Time between two looks at an idle bus.
const IDLE: Duration = Duration::from_micros(200);

/// The identifiers of a device's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identifiers {
    /// What this end sends with.
    pub send: StandardId,
    /// What this end listens to.
    pub receive: StandardId,
}

/// A CAN bus with one device.
pub struct CanLine<C: Can> {
    can: C,
    identifiers: Identifiers,
    assembly: Assembly,
    clock: Clock,
}

/// Puts segments together. Bounded, and allocates nothing after it is made.
#[derive(Debug)]
pub struct Assembly {
    bytes: Box<[u8; MAX_FRAME]>,
    len: usize,
    /// The next segment's count; `None` until a first one comes.
    next: Option<u8>,
}

impl Identifiers {
    /// The host's of device `node`, 0 to 63: commands go out as 0x200 + node, states come in as 0x280 + node.
    pub fn of_host(node: u8) -> Option<Self> {
        let node = u16::from(node);
        let (send, receive) = (StandardId::new(0x200 + node)?, StandardId::new(0x280 + node)?);
        (node < 64).then_some(Self { send, receive })
    }

    /// The other end's.
    pub fn swapped(self) -> Self {
        Self { send: self.receive, receive: self.send }
    }
}

impl<C: Can> CanLine<C>
where
    C::Error: Debug,
{
    /// On a bus that is open.
    pub fn new(can: C, identifiers: Identifiers) -> Self {
        Self { can, identifiers, assembly: Assembly::new(), clock: Clock::start() }
    }

    fn broken(&self, error: &C::Error) -> PortError {
        PortError::Broken { name: "CAN".into(), source: io::Error::other(format!("{error:?}")) }
    }
}

impl<C: Can> Port for CanLine<C>
where
    C::Error: Debug,
{
    fn send(&mut self, frame: &[u8]) -> Result<(), PortError> {
        let end_us = self.clock.now_us() + PATIENCE_US;
        for segment in segments(frame) {
            let segment = C::Frame::new(self.identifiers.send, segment.bytes());
            let Some(segment) = segment else { return Ok(()) };
            loop {
                match self.can.transmit(&segment) {
                    // A frame that was waiting made room: it is lost, and its own frame with it.
                    Ok(_) => break,
                    Err(nb::Error::WouldBlock) if self.clock.now_us() < end_us => std::thread::sleep(IDLE),
                    Err(nb::Error::WouldBlock) => return Ok(()),
                    Err(nb::Error::Other(error)) => return Err(self.broken(&error)),
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, timeout: Duration, hand_on: &mut dyn FnMut(Found<'_>)) -> Result<(), PortError> {
        let end_us = self.clock.now_us().saturating_add(timeout.as_micros() as u64);
        loop {
            match self.can.receive() {
                Ok(segment) if segment.id() == Id::Standard(self.identifiers.receive) => {
                    if let Some(found) = self.assembly.push(segment.data()) {
                        hand_on(found);
                        return Ok(());
                    }
                }
                Ok(_) => {}
                Err(nb::Error::WouldBlock) if self.clock.now_us() < end_us => std::thread::sleep(IDLE),
                Err(nb::Error::WouldBlock) => return Ok(()),
                Err(nb::Error::Other(error)) => return Err(self.broken(&error)),
            }
        }
    }
}

/// Up to eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    bytes: [u8; SHARE + 1],
    len: usize,
}

impl Segment {
    /// As they go into a CAN frame.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A frame's segments, in order.
pub fn segments(frame: &[u8]) -> impl Iterator<Item = Segment> + '_ {
    let last = frame.len().div_ceil(SHARE).saturating_sub(1);
    frame.chunks(SHARE).enumerate().map(move |(index, share)| {
        let mut bytes = [0; SHARE + 1];
        let first = if index == 0 { FIRST } else { 0 };
        bytes[0] = first | if index == last { LAST } else { 0 } | (index as u8 & COUNT);
        bytes[1..=share.len()].copy_from_slice(share);
        Segment { bytes, len: share.len() + 1 }
    })
}

impl Default for Assembly {
    fn default() -> Self {
        Self::new()
    }
}

impl Assembly {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { bytes: Box::new([0; MAX_FRAME]), len: 0, next: None }
    }

    /// Takes a segment; gives the frame that it completes, or that one was lost.
    pub fn push(&mut self, segment: &[u8]) -> Option<Found<'_>> {
        let (head, share) = segment.split_first()?;
        if head & FIRST != 0 {
            let cut = self.next.take().is_some();
            self.len = 0;
            self.next = Some(0);
            if cut && head & LAST == 0 {
                // What began before is lost; the new one goes on.
                self.take(head & COUNT, share);
                return Some(Err(Error::Framing));
            }
        }
        self.next?;
        if !self.take(head & COUNT, share) {
            self.next = None;
            return Some(Err(Error::Framing));
        }
        if head & LAST == 0 {
            return None;
        }
        self.next = None;
        Some(Ok(&self.bytes[..self.len]))
    }

    fn take(&mut self, count: u8, share: &[u8]) -> bool {
        let Some(slots) = self.bytes.get_mut(self.len..self.len + share.len()) else { return false };
        if self.next != Some(count) {
            return false;
        }
        slots.copy_from_slice(share);
        self.len += share.len();
        self.next = Some((count + 1) & COUNT);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::example::COMMAND_BYTES;
    use proptest::prelude::*;

    fn pushed(assembly: &mut Assembly, segments: &[Segment]) -> Vec<Result<Vec<u8>, Error>> {
        segments
            .iter()
            .filter_map(|s| assembly.push(s.bytes()).map(|found| found.map(<[u8]>::to_vec)))
            .collect()
    }

    #[test]
    fn the_worked_command_in_segments() {
        let cut: Vec<Segment> = segments(&COMMAND_BYTES).collect();
        assert_eq!(cut.len(), 12);
        assert_eq!(cut[0].bytes(), [0x80, 0xa5, 0x01, 0x01, 0x02, 0x08, 0x00, 0x00]);
        assert_eq!(cut[11].bytes(), [0x4b, 0x00, 0xc0, 0x3f, 0xa6, 0x85, 0x59, 0x26]);
        assert_eq!(pushed(&mut Assembly::new(), &cut), [Ok(COMMAND_BYTES.to_vec())]);
    }

    proptest! {
        #[test]
        fn a_lost_or_repeated_segment_loses_its_frame_only(
            frame in prop::collection::vec(any::<u8>(), 15..MAX_FRAME),
            at in any::<prop::sample::Index>(),
            twice: bool,
        ) {
            let cut: Vec<Segment> = segments(&frame).collect();
            let mut damaged = cut.clone();
            let at = at.index(cut.len());
            if twice { damaged.insert(at, cut[at]); } else { damaged.remove(at); }
            let mut assembly = Assembly::new();
            let found = pushed(&mut assembly, &damaged);
            let repeated_end = twice && (at == 0 || at + 1 == cut.len());
            prop_assert!(repeated_end || found.iter().all(Result::is_err), "{found:?}");
            let after = pushed(&mut assembly, &cut);
            prop_assert_eq!(after.last(), Some(&Ok(frame)));
        }

        #[test]
        fn any_segments_are_bounded(segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..600)) {
            let mut assembly = Assembly::new();
            for segment in segments {
                if let Some(Ok(frame)) = assembly.push(&segment) {
                    prop_assert!(frame.len() <= MAX_FRAME);
                }
            }
        }
    }
}
