//! The single-slot mailbox: how threads meet.
//!
//! One side writes, the other reads; the newest value wins and older ones are lost on purpose. Both sides are wait-free
//! and allocate nothing: values live in three slots that are filled in place, so a preempted writer can never make the
//! real-time thread wait. (A bounded queue of one cannot promise that: its reader spins while a writer that has claimed
//! the slot is descheduled.) What a value means at which time is written in the value itself: every type that travels
//! here carries its own stamp.

use triple_buffer::TripleBuffer;

/// The writing side.
pub struct Sender<T: Send> {
    slots: triple_buffer::Input<T>,
    superseded: u64,
}

/// The reading side.
pub struct Receiver<T: Send> {
    slots: triple_buffer::Output<T>,
}

/// A mailbox whose three slots start as clones of `initial`; make it as large as any value will be.
pub fn mailbox<T: Clone + Send>(initial: &T) -> (Sender<T>, Receiver<T>) {
    let (input, output) = TripleBuffer::new(initial).split();
    (Sender { slots: input, superseded: 0 }, Receiver { slots: output })
}

impl<T: Send> Sender<T> {
    /// Fills a slot in place and publishes it. The slot holds an older value of unknown age: `fill` must write all of it.
    pub fn send(&mut self, fill: impl FnOnce(&mut T)) {
        fill(self.slots.input_buffer_mut());
        self.superseded += u64::from(self.slots.publish());
    }

    /// Values that were replaced before they were read.
    pub fn superseded(&self) -> u64 {
        self.superseded
    }
}

impl<T: Send> Receiver<T> {
    /// Takes the newest value, if there is one that was not taken yet.
    pub fn take(&mut self) -> Option<&T> {
        self.slots.update().then(|| self.slots.peek_output_buffer())
    }

    /// The value taken last; before the first, what the slots were made with.
    pub fn latest(&self) -> &T {
        self.slots.peek_output_buffer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;

    #[test]
    fn the_newest_value_wins() {
        let (mut sender, mut receiver) = mailbox(&0);
        assert_eq!(receiver.take(), None);
        sender.send(|v| *v = 1);
        sender.send(|v| *v = 2);
        assert_eq!(receiver.take(), Some(&2));
        assert_eq!(receiver.take(), None);
        assert_eq!(receiver.latest(), &2);
        assert_eq!(sender.superseded(), 1);
    }

    #[test]
    fn values_are_never_torn_and_never_go_back() {
        let (mut sender, mut receiver) = mailbox(&[0_u64; 64]);
        let writer = threads::spawn("writer", move || {
            for i in 1..=50_000 {
                sender.send(|v| v.fill(i));
            }
        })
        .unwrap();
        let mut last = 0;
        while last < 50_000 {
            if let Some(v) = receiver.take() {
                assert!(v.iter().all(|x| *x == v[0]), "torn value");
                assert!(v[0] > last, "went back from {last} to {}", v[0]);
                last = v[0];
            }
        }
        writer.join().unwrap();
    }
}
