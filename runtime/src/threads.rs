//! Thread creation and what a thread asks of the operating system, in one place.
//!
//! Real-time scheduling, a fixed CPU, locked memory and processors that stay awake are asked for by configuration. A refusal is reported and
//! survived: the thread then runs as any other.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::thread::{Builder, JoinHandle, Thread};

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::{CpuSet, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::clock::Duration;

/// What a thread asks for; `None` asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_FIFO` priority, 1 to 99.
    pub priority: Option<u8>,
    /// The only CPU it runs on.
    pub cpu: Option<usize>,
}

/// What the operating system did not grant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No real-time priority.
    #[error(
        "SCHED_FIFO priority {priority} was refused ({reason}); grant CAP_SYS_NICE or raise LimitRTPRIO; going on without"
    )]
    Priority {
        /// The priority asked for.
        priority: u8,
        /// The operating system's words.
        reason: String,
    },
    /// No fixed CPU.
    #[error("CPU {cpu} was refused ({reason}); going on with any CPU")]
    Cpu {
        /// The CPU asked for.
        cpu: usize,
        /// The operating system's words.
        reason: String,
    },
    /// Memory may be paged out.
    #[error(
        "locking memory was refused ({reason}); grant CAP_IPC_LOCK or raise LimitMEMLOCK; going on without"
    )]
    Memory {
        /// The operating system's words.
        reason: String,
    },
    /// Processors may sleep deeply.
    #[error(
        "keeping processors awake was refused ({reason}); let the daemon write {LATENCY}; going on without"
    )]
    Awake {
        /// The operating system's words.
        reason: String,
    },
}

/// Linux's latency promise: what stands in it holds while it is open.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Starts a named thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(body)
}

/// Runs `body(0..workers)` on as many named threads and returns what they return, in order.
///
/// # Panics
/// When a thread cannot be started or its body panics.
pub fn in_parallel<T: Send>(name: &str, workers: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                Builder::new()
                    .name(format!("{name}-{worker}"))
                    .spawn_scoped(scope, move || body(worker))
                    .expect("the operating system starts a thread")
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    })
}

/// CPUs that this process may use.
pub fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Applies `wanted` to the calling thread and returns what was refused.
pub fn promote(wanted: Scheduling) -> Vec<Refusal> {
    let mut refused = Vec::new();
    if let Some(cpu) = wanted.cpu {
        let mut set = CpuSet::new();
        let result = if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
            sched_setaffinity(None, &set)
        } else {
            Err(rustix::io::Errno::INVAL)
        };
        if let Err(error) = result {
            refused.push(Refusal::Cpu { cpu, reason: error.to_string() });
        }
    }
    if let Some(priority) = wanted.priority {
        let granted = ThreadPriorityValue::try_from(priority).map_err(|e| e.to_string()).and_then(|value| {
            set_thread_priority_and_policy(
                thread_native_id(),
                ThreadPriority::Crossplatform(value),
                ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
            )
            .map_err(|error| match error {
                thread_priority::Error::OS(code) => io::Error::from_raw_os_error(code).to_string(),
                other => format!("{other:?}"),
            })
        });
        if let Err(reason) = granted {
            refused.push(Refusal::Priority { priority, reason });
        }
    }
    refused
}

/// Locks all memory of the process, now and later, so that a tick never waits for a page.
pub fn lock_memory() -> Result<(), Refusal> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|error| Refusal::Memory { reason: error.to_string() })
}

/// Keeps processors out of the sleep that they wake from late, until the file is dropped; as cyclictest does.
pub fn stay_awake() -> Result<File, Refusal> {
    let open = OpenOptions::new().write(true).open(LATENCY);
    let promised = open.and_then(|mut file| file.write_all(&0_i32.to_ne_bytes()).map(|()| file));
    promised.map_err(|error| Refusal::Awake { reason: error.to_string() })
}

/// Wakes one parked thread. Waking never blocks (one futex call), so the real-time thread may do it.
#[derive(Clone, Debug)]
pub struct Waker(Thread);

impl Waker {
    /// Wakes the thread that `handle` belongs to.
    pub fn of<T>(handle: &JoinHandle<T>) -> Self {
        Self(handle.thread().clone())
    }

    /// Wakes the calling thread.
    pub fn current() -> Self {
        Self(std::thread::current())
    }

    /// Wakes the thread now, or makes its next [`park`] return at once.
    pub fn wake(&self) {
        self.0.unpark();
    }
}

/// Sleeps until woken or for `at_most`; may return early.
pub fn park(at_most: Duration) {
    std::thread::park_timeout(at_most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_reported_and_survived() {
        let refused =
            spawn("test", || promote(Scheduling { priority: Some(0), cpu: Some(1_000_000) })).unwrap();
        let refused = refused.join().unwrap();
        assert!(matches!(refused[0], Refusal::Cpu { cpu: 1_000_000, .. }), "{refused:?}");
        assert!(matches!(refused[1], Refusal::Priority { priority: 0, .. }), "{refused:?}");
        assert!(promote(Scheduling::default()).is_empty());
    }

    #[test]
    fn workers_answer_in_order() {
        assert_eq!(in_parallel("worker", 4, |i| i * i), [0, 1, 4, 9]);
    }
}
