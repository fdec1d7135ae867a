//! The bridge and a device on a CAN bus: in memory with losses, and through SLCAN on a pseudo-terminal.
#![cfg(unix)]

use embedded_can::nb::Can;
use refrain_firmware_bridge::bridge::Bridge;
use refrain_firmware_bridge::clock::Clock;
use refrain_firmware_bridge::link::host::Event;
use refrain_firmware_bridge::link::{Chunk, Device, Link};
use refrain_firmware_bridge::port::Port;
use refrain_firmware_bridge::port::can::{CanLine, Identifiers};
use refrain_firmware_bridge::port::slcan::{Slcan, SlcanFrame};
use refrain_firmware_bridge::rehearsal::world::{device_config, host_config};
use refrain_firmware_bridge::wire::{MAX_FRAME, StateRepr};
use serialport::{SerialPort, TTYPort};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

type Queue = Arc<Mutex<VecDeque<SlcanFrame>>>;

/// One end of a bus in memory that loses every so manieth segment.
struct InMemory {
    out: Queue,
    inward: Queue,
    lose_every: usize,
    sent: usize,
}

/// What a segment on a bus without hardware cannot do: fail.
#[derive(Debug)]
struct Never(Infallible);

impl embedded_can::Error for Never {
    fn kind(&self) -> embedded_can::ErrorKind {
        embedded_can::ErrorKind::Other
    }
}

impl Can for InMemory {
    type Frame = SlcanFrame;
    type Error = Never;

    fn transmit(&mut self, frame: &SlcanFrame) -> nb::Result<Option<SlcanFrame>, Never> {
        self.sent += 1;
        if !self.sent.is_multiple_of(self.lose_every) {
            self.out.lock().expect("the bus").push_back(*frame);
        }
        Ok(None)
    }

    fn receive(&mut self) -> nb::Result<SlcanFrame, Never> {
        self.inward.lock().expect("the bus").pop_front().ok_or(nb::Error::WouldBlock)
    }
}

/// A device on its end of a bus until the end is dropped.
fn device(mut line: impl Port + Send + 'static, over: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut device = Device::new(device_config(), 7).expect("a sound configuration");
        let (clock, mut frame, mut measured) = (Clock::start(), [0; MAX_FRAME], [0.0; 6]);
        while !over.load(Ordering::Relaxed) {
            let received = line.receive(Duration::from_millis(1), &mut |found| {
                device.receive_framed(clock.now_us(), found);
            });
            let output = device.tick(clock.now_us(), &measured);
            if output.torque {
                measured.copy_from_slice(&output.setpoint[..6]);
            }
            while let Some(len) = device.poll_transmit(clock.now_us(), &mut frame) {
                let _ = line.send(&frame[..len]);
            }
            if received.is_err() {
                return;
            }
        }
    });
}

/// Arms the device and moves it; the state when it has arrived.
fn moved(line: impl Port) -> StateRepr {
    let mut bridge = Bridge::new(line, host_config());
    let (start, mut last, mut asked, mut due_us) = (Instant::now(), None::<StateRepr>, false, 0);
    while start.elapsed() < LONG {
        if !asked && bridge.link() == Link::Disarmed {
            asked = bridge.arm();
        }
        let now_us = bridge.now_us();
        let values = [0.4; 12];
        let chunk = Chunk {
            id: 1,
            observation_us: now_us,
            start_us: now_us,
            valid_until_us: now_us + 140_000,
            step_us: 50_000,
            values: &values,
        };
        let send = bridge.link() == Link::Armed && now_us >= due_us;
        if send {
            due_us = now_us + 50_000;
        }
        let polled = bridge.poll(send.then_some(&chunk), Duration::from_millis(2), &mut |event| {
            if let Event::State(state) = event {
                last = Some(state);
            }
        });
        polled.expect("the bus works").ok();
        if let Some(state) = last.filter(|s| s.position[..6].iter().all(|p| (p - 0.4).abs() < 0.01)) {
            return state;
        }
    }
    panic!("never arrived: {last:?}, link {:?}, {:?}", bridge.link(), bridge.counters());
}

#[test]
fn a_device_moves_over_a_bus_in_memory_that_loses_segments() {
    let identifiers = Identifiers::of_host(5).expect("a node");
    let (there, back) = (Queue::default(), Queue::default());
    let end = |out: &Queue, inward: &Queue, lose_every| InMemory {
        out: Arc::clone(out),
        inward: Arc::clone(inward),
        lose_every,
        sent: 0,
    };
    let over = Arc::new(AtomicBool::new(false));
    device(CanLine::new(end(&back, &there, 199), identifiers.swapped()), Arc::clone(&over));
    let state = moved(CanLine::new(end(&there, &back, 211), identifiers));
    over.store(true, Ordering::Relaxed);
    assert!(state.lost_frames > 0 || state.bad_frames > 0, "segments were lost: {state:?}");
}

/// A pseudo-terminal's two ends, each an SLCAN adapter: a line of one is a frame on the other's bus.
fn slcan_pair() -> (Slcan, Slcan) {
    let (mut near, near_host) = TTYPort::pair().expect("a pseudo-terminal");
    let (mut far, far_device) = TTYPort::pair().expect("a pseudo-terminal");
    for port in [&mut near, &mut far] {
        port.set_timeout(Duration::from_millis(1)).expect("a timeout");
    }
    // The bus: what either adapter is told to send, the other reports.
    let (mut near_out, mut far_out) =
        (near.try_clone_native().expect("a port"), far.try_clone_native().expect("a port"));
    for (mut from, mut to) in [
        (near, far_out.try_clone_native().expect("a port")),
        (far, near_out.try_clone_native().expect("a port")),
    ] {
        std::thread::spawn(move || {
            let mut bytes = [0; 512];
            loop {
                match from.read(&mut bytes) {
                    Ok(count) => {
                        if to.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                    Err(_) => return,
                }
            }
        });
    }
    let _ = (near_out.flush(), far_out.flush());
    (
        Slcan::on(Box::new(near_host)).expect("an adapter"),
        Slcan::on(Box::new(far_device)).expect("an adapter"),
    )
}

#[test]
fn a_device_moves_through_slcan_on_a_pseudo_terminal() {
    let identifiers = Identifiers::of_host(5).expect("a node");
    let (host, other) = slcan_pair();
    let over = Arc::new(AtomicBool::new(false));
    device(CanLine::new(other, identifiers.swapped()), Arc::clone(&over));
    let state = moved(CanLine::new(host, identifiers));
    over.store(true, Ordering::Relaxed);
    assert_eq!(state.bad_frames, 0, "{state:?}");
}
