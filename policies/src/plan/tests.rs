//! Counts and invariants of compiled plans; no engine runs here.
