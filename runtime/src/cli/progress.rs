//! Progress on stderr: one line that rewrites itself in a terminal, a line now and then elsewhere.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use crate::clock::{self, Nanos, Time};

/// Between lines where there is no terminal.
const PAUSE: Nanos = 20 * clock::SECOND;

/// Shows how far something is.
pub(super) struct Progress {
    terminal: bool,
    last: Mutex<Option<Time>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), last: Mutex::new(None) }
    }

    /// Shows a line; lost when stderr is closed.
    pub(super) fn show(&self, line: Arguments<'_>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K{line}");
        } else if last.is_none_or(|then| now - then > PAUSE) {
            let _ = writeln!(std::io::stderr(), "{line}");
            *last = Some(now);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }
}
