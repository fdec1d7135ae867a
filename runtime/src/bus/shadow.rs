//! Shadow mode's ear: every command of whoever is in charge is set beside the newest one made here.
//!
//! Numbers are compared one by one, so a quaternion and its negative, which are one rotation, differ.

use std::sync::{Arc, Mutex, PoisonError};

use super::names::Qos;
use super::{Bus, BusError, Subscription};
use crate::clock;
use crate::config::Robot;
use crate::control::Command;
use crate::record;

/// Listens until dropped.
pub struct Shadow {
    ours: Arc<Mutex<Command>>,
    _subscription: Subscription,
}

impl Shadow {
    /// Listens on the robot's command topic. `on_command` gets every command that comes there, beside the one made here if
    /// there is a valid one; it is called on zenoh's threads.
    pub fn open(
        bus: &Bus,
        robot: &Robot,
        on_command: impl Fn(Option<record::Shadow>) + Send + Sync + 'static,
    ) -> Result<Self, BusError> {
        let ours = Arc::new(Mutex::new(Command::NONE));
        let newest = Arc::clone(&ours);
        let reading = robot.command.reading(robot.joints.len());
        let topic = robot.command_topic.clone().unwrap_or_default();
        let subscription = bus.subscribe(&topic, robot.command.interface(), Qos::NEWEST, move |message| {
            let mut theirs = Vec::new();
            let read = reading.read(&message.payload, &mut theirs);
            let (ours, now) = (*newest.lock().unwrap_or_else(PoisonError::into_inner), clock::now());
            let fine = read.is_ok() && theirs.iter().all(|value| value.is_finite());
            on_command((fine && ours.send && now <= ours.valid_until).then(|| record::Shadow {
                time: now.nanos(),
                tick: ours.sequence,
                ours: ours.values().to_vec(),
                theirs,
            }));
        })?;
        Ok(Self { ours, _subscription: subscription })
    }

    /// The newest command made here.
    pub fn set(&self, command: &Command) {
        *self.ours.lock().unwrap_or_else(PoisonError::into_inner) = *command;
    }
}
