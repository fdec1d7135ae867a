//! `refrain top`: a running daemon on one screen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{Outcome, say};
use crate::clock::Duration;
use crate::{metrics, threads};

#[derive(clap::Args)]
pub(super) struct Args {
    /// Where the daemon serves its metrics: `[metrics] listen` of its robot.toml.
    #[arg(default_value = "127.0.0.1:9464")]
    address: SocketAddr,
    /// Print one screen and end.
    #[arg(long)]
    once: bool,
}

/// How often the screen is drawn.
const PERIOD: Duration = Duration::from_millis(500);
/// Widest bar of a histogram.
const BAR: f64 = 40.0;

/// The daemon's page, by name and labels.
struct Page(BTreeMap<String, f64>);

impl Args {
    pub(super) fn run(self) -> Outcome {
        let mut before: Option<Page> = None;
        loop {
            let text = metrics::fetch(self.address).map_err(|error| {
                format!("{}: {error}; is `[metrics]` in the robot.toml of a running daemon?", self.address)
            })?;
            let page = Page::read(&text);
            let screen = screen(&page, before.as_ref());
            if self.once {
                say!("{screen}");
                return Ok(());
            }
            say!("\x1b[2J\x1b[H{screen}\nrefrain top {} - Ctrl-C ends it", self.address);
            before = Some(page);
            threads::park(PERIOD);
        }
    }
}

impl Page {
    fn read(text: &str) -> Self {
        let line = |line: &str| {
            let (name, value) = line.strip_prefix("refrain_")?.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn value(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// What stands in the first label of `name{label="..."}` entries, with their values.
    fn labelled<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter_map(move |(key, value)| {
            let labels = key.strip_prefix(name)?.strip_prefix('{')?;
            Some((labels.split('"').nth(1)?, *value))
        })
    }

    /// Upper end in seconds and count of every bucket.
    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let bucket = format!("{name}_bucket");
        let mut ends: Vec<(f64, f64)> = self
            .labelled(&bucket)
            .map(|(end, count)| (end.parse().unwrap_or(f64::INFINITY), count))
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        for (_, count) in &mut ends {
            (*count, below) = (*count - below, *count);
        }
        ends
    }
}

fn screen(page: &Page, before: Option<&Page>) -> String {
    let mut out = String::new();
    let active = |name| page.labelled(name).find(|(_, value)| *value == 1.0).map_or("?", |(label, _)| label);
    let plan = page.0.iter().find(|(key, value)| key.starts_with("plan{") && **value == 1.0);
    let schedule = plan.and_then(|(key, _)| key.split('"').nth(3)).unwrap_or("?");
    let _ = writeln!(out, "mode {:<9} schedule {schedule}", active("mode"));
    let ticks = |page: &Page| page.value("tick_wake_error_seconds_count");
    let rate = before.map(|b| (ticks(page) - ticks(b)) / PERIOD.as_secs_f64());
    let _ = writeln!(
        out,
        "ticks {:<10} {:>8} Hz   missed {:<6} chunks {:<8} observations {}",
        ticks(page),
        rate.map_or("-".into(), |rate| format!("{rate:.0}")),
        page.value("deadlines_missed_total"),
        page.value("chunks_total"),
        page.value("observations_total"),
    );
    for (title, name) in [
        ("woke late", "tick_wake_error_seconds"),
        ("prediction", "inference_seconds"),
        ("observation to chunk", "chunk_age_seconds"),
    ] {
        let buckets = page.buckets(name);
        let most = buckets.iter().map(|b| b.1).fold(1.0, f64::max);
        let _ = writeln!(out, "\n{title}");
        for (end, count) in buckets.iter().filter(|(_, count)| *count > 0.0) {
            let bar = "#".repeat((count / most * BAR).ceil() as usize);
            let _ = writeln!(out, "  <= {:>10}  {count:>9}  {bar}", span(*end));
        }
    }
    let _ = writeln!(out);
    for (name, value) in &page.0 {
        if *value > 0.0 && (name.ends_with("_total") || name.contains("_total{")) {
            let _ = writeln!(out, "  {:<55} {value}", name.replace("_total", ""));
        }
    }
    out
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "longer".into(),
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_mode_plan_and_histograms() {
        let page = Page::read(
            "refrain_mode{mode=\"Running\"} 1\nrefrain_mode{mode=\"Holding\"} 0\n\
             refrain_plan{rung=\"0\",schedule=\"late20\"} 1\nrefrain_stops_total 2\nrefrain_resets_total 0\n\
             refrain_inference_seconds_bucket{le=\"0.005\"} 3\nrefrain_inference_seconds_bucket{le=\"+Inf\"} 4\n",
        );
        let screen = screen(&page, None);
        for words in
            ["mode Running", "schedule late20", "5 ms          3  ####", "longer          1  ##", "stops"]
        {
            assert!(screen.contains(words), "{words:?} is not in:\n{screen}");
        }
        assert!(!screen.contains("resets"), "what never happened is left out");
    }
}
