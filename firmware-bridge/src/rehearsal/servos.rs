//! Simulated servos on a bus, byte by byte: Feetech STS3215 (protocol 1) and Dynamixel X (protocol 2).
//!
//! A servo has a memory table, a shaft that follows its goal while torque is on, at no more than its speed, and complaints
//! that can be set. It answers ping, read, write, sync read and sync write as the vendors' manuals have them, and says
//! nothing to packets with a wrong checksum. Time is an argument.
//!
//! What it does not do: gravity, load, temperature, other registers' meaning.
//!
//! Sources: Feetech *Communication Protocol Manual*; ROBOTIS e-Manual, *DYNAMIXEL Protocol 2.0*.

use crate::servo::Model;
use crc::{CRC_16_UMTS, Crc};

/// The checksum of protocol 2.
const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_UMTS);
/// Everybody.
const BROADCAST: u8 = 0xfe;
/// How fast a shaft turns at most, ticks/s: an STS3215 without load at 7.4 V.
const SPEED: f64 = 2900.0;
/// Longest packet that is waited for.
const LONGEST: usize = 512;

mod instruction {
    pub(super) const PING: u8 = 0x01;
    pub(super) const READ: u8 = 0x02;
    pub(super) const WRITE: u8 = 0x03;
    pub(super) const SYNC_READ: u8 = 0x82;
    pub(super) const SYNC_WRITE: u8 = 0x83;
    pub(super) const STATUS: u8 = 0x55;
}

/// One servo.
#[derive(Clone, Debug)]
pub struct Servo {
    /// Its identifier.
    pub id: u8,
    /// Where the shaft is, ticks.
    pub position: f64,
    /// What it complains of with every answer: 0 nothing.
    pub error: u8,
    /// It says nothing and hears nothing: its plug is out.
    pub unplugged: bool,
    memory: [u8; 256],
}

/// Servos on one line.
#[derive(Clone, Debug)]
pub struct Servos {
    model: Model,
    servos: Vec<Servo>,
    heard: Vec<u8>,
}

/// A packet's target, instruction and parameters, and its length on the wire.
struct Packet {
    id: u8,
    instruction: u8,
    parameters: Vec<u8>,
    length: usize,
}

impl Servos {
    /// Servos 1 to `count`, in the middle, without torque.
    pub fn new(model: Model, count: u8) -> Self {
        let servo = |id| Servo { id, position: 2048.0, error: 0, unplugged: false, memory: [0; 256] };
        let mut servos = Self { model, servos: (1..=count).map(servo).collect(), heard: Vec::new() };
        servos.advance(0.0);
        servos
    }

    /// The servo with this identifier.
    pub fn servo(&mut self, id: u8) -> Option<&mut Servo> {
        self.servos.iter_mut().find(|servo| servo.id == id)
    }

    /// Whether a servo's torque is on, and its goal in ticks.
    pub fn told(&self, id: u8) -> Option<(bool, i32)> {
        let servo = self.servos.iter().find(|servo| servo.id == id)?;
        Some((servo.memory[self.torque()] != 0, self.number(servo, self.goal())))
    }

    /// Lets time pass: shafts follow their goals.
    pub fn advance(&mut self, seconds: f64) {
        let (torque, goal, present) = (self.torque(), self.goal(), self.present());
        let width = self.width();
        for index in 0..self.servos.len() {
            let target = f64::from(self.number(&self.servos[index], goal));
            let servo = &mut self.servos[index];
            if servo.memory[torque] != 0 {
                let most = SPEED * seconds;
                servo.position += (target - servo.position).clamp(-most, most);
            }
            let ticks = (servo.position.round() as i32).to_le_bytes();
            servo.memory[present..present + width].copy_from_slice(&ticks[..width]);
        }
    }

    /// Bytes on the line; gives what the servos answer.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.heard.extend_from_slice(bytes);
        let mut answer = Vec::new();
        while let Some(start) = self.heard.windows(2).position(|pair| pair == [0xff, 0xff]) {
            self.heard.drain(..start);
            match self.parse() {
                Some(Ok(packet)) => {
                    self.heard.drain(..packet.length);
                    answer.extend(self.obey(&packet));
                }
                Some(Err(())) => drop(self.heard.drain(..1)),
                None if self.heard.len() > LONGEST => drop(self.heard.drain(..1)),
                None => break,
            }
        }
        answer
    }

    /// The packet at the start of what was heard; `None` when it is not whole yet.
    fn parse(&self) -> Option<Result<Packet, ()>> {
        let heard = &self.heard;
        if self.model == Model::Sts3215 {
            let (id, length) = (*heard.get(2)?, usize::from(*heard.get(3)?));
            if length < 2 || id == 0xff {
                return Some(Err(()));
            }
            let body = heard.get(2..4 + length)?;
            let (sum, rest) = body.split_last()?;
            let parameters = rest[3..].to_vec();
            let packet = Packet { id, instruction: rest[2], parameters, length: 4 + length };
            return Some(if checksum(rest) == *sum { Ok(packet) } else { Err(()) });
        }
        if heard.get(2..4)? != [0xfd, 0x00] {
            return Some(Err(()));
        }
        let length = usize::from(u16::from_le_bytes([*heard.get(5)?, *heard.get(6)?]));
        if !(3..LONGEST).contains(&length) {
            return Some(Err(()));
        }
        let whole = heard.get(..7 + length)?;
        let (rest, crc) = whole.split_at(5 + length);
        let parameters = unstuffed(&rest[8..]);
        let packet = Packet { id: rest[4], instruction: rest[7], parameters, length: 7 + length };
        Some(if CRC.checksum(rest).to_le_bytes() == crc { Ok(packet) } else { Err(()) })
    }

    fn obey(&mut self, packet: &Packet) -> Vec<u8> {
        let wide = usize::from(self.model == Model::DynamixelX);
        let number = |at: usize| {
            let low = usize::from(*packet.parameters.get(at << wide)?);
            let high = if wide == 1 { usize::from(*packet.parameters.get((at << wide) + 1)?) } else { 0 };
            Some(low | high << 8)
        };
        let rest = |count: usize| packet.parameters.get(count << wide..).unwrap_or(&[]);
        let broadcast = packet.id == BROADCAST;
        let mut answer = Vec::new();
        match packet.instruction {
            instruction::SYNC_READ => {
                let (Some(address), Some(length)) = (number(0), number(1)) else { return answer };
                for id in rest(2) {
                    answer.extend(self.answer(*id, |servo| servo.memory.get(address..address + length)));
                }
            }
            instruction::SYNC_WRITE => {
                let (Some(address), Some(length)) = (number(0), number(1)) else { return answer };
                for row in rest(2).chunks_exact(length + 1) {
                    self.write(row[0], address, &row[1..]);
                }
            }
            instruction::READ if !broadcast => {
                let (Some(address), Some(length)) = (number(0), number(1)) else { return answer };
                answer = self.answer(packet.id, |servo| servo.memory.get(address..address + length));
            }
            instruction::WRITE => {
                let Some(address) = number(0) else { return answer };
                let ids: Vec<u8> = self.servos.iter().map(|servo| servo.id).collect();
                for id in ids.into_iter().filter(|id| broadcast || *id == packet.id) {
                    self.write(id, address, rest(1));
                }
                if !broadcast {
                    answer = self.answer(packet.id, |_| Some(&[]));
                }
            }
            instruction::PING => answer = self.answer(packet.id, |_| Some(&[])),
            _ => {}
        }
        answer
    }

    fn write(&mut self, id: u8, address: usize, data: &[u8]) {
        let plugged = self.servo(id).filter(|servo| !servo.unplugged);
        if let Some(slots) = plugged.and_then(|servo| servo.memory.get_mut(address..address + data.len())) {
            slots.copy_from_slice(data);
        }
    }

    fn answer(&self, id: u8, data: impl Fn(&Servo) -> Option<&[u8]>) -> Vec<u8> {
        let servo = self.servos.iter().find(|servo| servo.id == id && !servo.unplugged);
        let Some((servo, data)) = servo.and_then(|servo| Some((servo, data(servo)?))) else {
            return Vec::new();
        };
        if self.model == Model::Sts3215 {
            let mut packet = vec![0xff, 0xff, id, data.len() as u8 + 2, servo.error];
            packet.extend_from_slice(data);
            packet.push(checksum(&packet[2..]));
            return packet;
        }
        let data = stuffed(data);
        let mut packet = vec![0xff, 0xff, 0xfd, 0x00, id];
        packet.extend_from_slice(&(data.len() as u16 + 4).to_le_bytes());
        packet.extend_from_slice(&[instruction::STATUS, servo.error]);
        packet.extend_from_slice(&data);
        packet.extend_from_slice(&CRC.checksum(&packet).to_le_bytes());
        packet
    }

    fn number(&self, servo: &Servo, address: usize) -> i32 {
        let mut bytes = [0; 4];
        bytes[..self.width()].copy_from_slice(&servo.memory[address..address + self.width()]);
        i32::from_le_bytes(bytes)
    }

    fn width(&self) -> usize {
        if self.model == Model::Sts3215 { 2 } else { 4 }
    }

    fn torque(&self) -> usize {
        if self.model == Model::Sts3215 { 40 } else { 64 }
    }

    fn goal(&self) -> usize {
        if self.model == Model::Sts3215 { 42 } else { 116 }
    }

    fn present(&self) -> usize {
        if self.model == Model::Sts3215 { 56 } else { 132 }
    }
}

/// Protocol 1's: the inverted sum.
fn checksum(bytes: &[u8]) -> u8 {
    !bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
}

/// Protocol 2 writes `ff ff fd` in parameters as `ff ff fd fd`.
fn stuffed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for byte in bytes {
        out.push(*byte);
        if out.ends_with(&[0xff, 0xff, 0xfd]) {
            out.push(0xfd);
        }
    }
    out
}

fn unstuffed(bytes: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut skip = false;
    for byte in bytes {
        if skip && *byte == 0xfd {
            skip = false;
            continue;
        }
        out.push(*byte);
        skip = out.ends_with(&[0xff, 0xff, 0xfd]);
    }
    out
}
