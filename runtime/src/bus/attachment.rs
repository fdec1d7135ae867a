//! The attachment of every message: what ROS messages have no field for.
//!
//! The first 33 bytes are rmw_zenoh's (`attachment_helpers.cpp`), so its nodes read them; commands carry 16 more, which
//! they skip:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | i64 LE sequence number, from 1, per publisher |
//! | 8..16 | i64 LE source time, ns since the Unix epoch: when the message was made |
//! | 16 | `0x10`, the length of what follows |
//! | 17..33 | the publisher: on plain keys its zenoh session, else [`publisher_of`] its token |
//! | 33..41 | i64 LE observation time, ns since the epoch: when the observation was made that the command comes from |
//! | 41..49 | i64 LE valid until, ns since the epoch: nobody may act on the command after it |

use xxhash_rust::xxh3::xxh3_128;

use crate::clock::Wall;

/// Bytes that rmw_zenoh knows.
const BASE: usize = 33;
/// Bytes of a command's attachment.
const FULL: usize = BASE + 16;
/// Length byte before the publisher.
const PUBLISHER_LENGTH: u8 = 16;

/// What an attachment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Sequence number, from 1, per publisher.
    pub sequence: i64,
    /// When the message was made.
    pub source: Wall,
    /// The publisher.
    pub publisher: [u8; 16],
    /// Of commands only.
    pub validity: Option<Validity>,
}

/// What a command's attachment says besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// When the observation was made that the command comes from.
    pub observation: Wall,
    /// Nobody may act on the command after it.
    pub until: Wall,
}

/// What rmw_zenoh's nodes take for a publisher's or client's identity (GID): the XXH3-128 of its liveliness token.
pub fn publisher_of(token: &str) -> [u8; 16] {
    xxh3_128(token.as_bytes()).to_le_bytes()
}

impl Attachment {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FULL);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.source.nanos().to_le_bytes());
        out.push(PUBLISHER_LENGTH);
        out.extend_from_slice(&self.publisher);
        if let Some(validity) = self.validity {
            out.extend_from_slice(&validity.observation.nanos().to_le_bytes());
            out.extend_from_slice(&validity.until.nanos().to_le_bytes());
        }
        out
    }

    /// From bytes; `None` for anything else, as rmw_zenoh's keyed layout before 0.2.4.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(i64::from_le_bytes);
        if bytes.get(16) != Some(&PUBLISHER_LENGTH) || !(bytes.len() == BASE || bytes.len() >= FULL) {
            return None;
        }
        let validity = match (number(33), number(41)) {
            (Some(observation), Some(until)) => {
                Some(Validity { observation: Wall::from_nanos(observation), until: Wall::from_nanos(until) })
            }
            _ => None,
        };
        Some(Self {
            sequence: number(0)?,
            source: Wall::from_nanos(number(8)?),
            publisher: bytes.get(17..BASE)?.try_into().ok()?,
            validity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: Attachment = Attachment {
        sequence: 1,
        source: Wall::from_nanos(1_700_000_000_000_000_000),
        publisher: [
            0xac, 0x17, 0x0f, 0x31, 0xea, 0xdc, 0xd9, 0xff, 0x0c, 0xd8, 0x6d, 0x7a, 0x17, 0x90, 0x7d, 0x1c,
        ],
        validity: None,
    };

    #[test]
    fn the_first_33_bytes_are_rmw_zenohs() {
        let hex: String = EXAMPLE.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "010000000000000000002a36fe9c971710ac170f31eadcd9ff0cd86d7a17907d1c");
    }

    #[test]
    fn both_lengths_come_back_and_others_do_not() {
        let validity = Validity { observation: Wall::from_nanos(5), until: Wall::from_nanos(-6) };
        let command = Attachment { validity: Some(validity), ..EXAMPLE };
        for attachment in [EXAMPLE, command] {
            assert_eq!(Attachment::from_bytes(&attachment.to_bytes()), Some(attachment));
        }
        let bytes = command.to_bytes();
        for length in (0..bytes.len()).filter(|length| *length != BASE) {
            assert_eq!(Attachment::from_bytes(&bytes[..length]), None, "{length} bytes");
        }
    }
}
