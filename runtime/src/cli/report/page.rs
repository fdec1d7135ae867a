//! The page: one table, one picture, and what follows from them.

use std::fmt::Write;
use std::path::Path;

use super::{Row, Scored};
use crate::cli::Outcome;
use crate::picture::{self, Point};

/// Mean score and its standard error.
pub(super) fn score(row: &Row) -> (f64, f64) {
    mean(row.episodes.iter().map(|e| e.0))
}

/// Share of successes and its standard error.
pub(super) fn success(row: &Row) -> (f64, f64) {
    mean(row.episodes.iter().map(successful))
}

fn successful(episode: &Scored) -> f64 {
    f64::from(u8::from(episode.1))
}

/// Mean difference to the full policy over the same start states, and its standard error.
fn paired(row: &Row, full: &Row, of: impl Fn(&Scored) -> f64) -> (f64, f64) {
    let differences: Vec<f64> = row.episodes.iter().zip(&full.episodes).map(|(a, b)| of(a) - of(b)).collect();
    mean(differences.iter().copied())
}

fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let squares: f64 = values.map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}

/// What a schedule file records of its row.
pub(super) fn table(row: &Row, full: &Row, seed: u64) -> toml::Table {
    let rounded = |value: f64| (value * 1e4).round() / 1e4;
    let ((score, score_error), (success, success_error)) = (score(row), success(row));
    let (less, less_error) = paired(row, full, |e| e.0);
    let (fewer, fewer_error) = paired(row, full, successful);
    let mut table = toml::Table::new();
    for (key, value) in [
        ("score", score),
        ("score_standard_error", score_error),
        ("success", success),
        ("success_standard_error", success_error),
        ("score_minus_full", less),
        ("score_minus_full_standard_error", less_error),
        ("success_minus_full", fewer),
        ("success_minus_full_standard_error", fewer_error),
        ("action_error_rms", row.error_rms),
        ("action_error_worst", row.error_worst),
    ] {
        table.insert(key.into(), rounded(value).into());
    }
    table.insert("episodes".into(), (row.episodes.len() as i64).into());
    table.insert("seed".into(), (seed as i64).into());
    table.insert("task".into(), "pusht".into());
    table
}

/// Writes `README.md` and `front.svg`.
pub(super) fn write(
    out: &Path,
    policy: &str,
    episodes: usize,
    seed: u64,
    threads: usize,
    rows: &[Row],
) -> Outcome {
    let full = &rows[0];
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# {policy}: schedules against the full policy\n");
    let _ = writeln!(
        page,
        "Push-T, {episodes} episodes per row on the same start states (seeds {seed}..{}) with the same noise. \
         Errors after +- are standard errors. *Difference* is the paired difference to the full policy. *Action error* \
         is against the full policy on the same observations and noise, executed actions, normalised units; for DDIM it \
         also holds what the other sampler does differently. Latency: {threads} threads of this machine's CPU, the rows in \
         turns, every prediction on another observation; only ratios travel.\n",
        seed + episodes as u64
    );
    let _ = writeln!(page, "![action error and score against latency](front.svg)\n");
    let _ = writeln!(
        page,
        "| run | sampler | block computations | steps with updates | score | success | score difference | success difference | action error RMS | worst | p50 ms | p99 ms | max/min | x full |"
    );
    let _ = writeln!(
        page,
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    for row in rows {
        let (score, success) = (score(row), success(row));
        let (ds, dz) = (paired(row, full, |e| e.0), paired(row, full, successful));
        let l = row.latency;
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {:.3} +- {:.3} | {:.3} +- {:.3} | {:+.3} +- {:.3} | {:+.3} +- {:.3} | {:.4} | {:.3} | {:.2} | {:.2} | {:.2} | {:.3} |",
            row.name,
            row.sampler,
            row.block_computations,
            row.steps_with_updates,
            score.0,
            score.1,
            success.0,
            success.1,
            ds.0,
            ds.1,
            dz.0,
            dz.1,
            row.error_rms,
            row.error_worst,
            l.p50,
            l.p99,
            l.max / l.min,
            l.p50 / full.latency.p50
        );
    }
    let _ = writeln!(page, "\n## What follows\n");
    for row in rows.iter().skip(1).filter(|row| !row.name.starts_with("DDIM")) {
        let _ = writeln!(page, "- {}", verdict(row, full, rows));
    }
    for row in rows {
        if let Some(warning) = uncovered(row) {
            let _ = writeln!(page, "- {warning}");
        }
    }
    if let Some(best) = best(rows) {
        let _ = writeln!(page, "\nBest schedule by score: **{}**.", best.name);
    }
    let _ = writeln!(page, "\nMade by `refrain report`; run it again to check.");
    std::fs::write(out.join("README.md"), page)?;
    let points: Vec<Point> = rows
        .iter()
        .map(|row| Point {
            name: row.name.clone(),
            milliseconds: row.latency.p50,
            error: row.error_rms,
            score: score(row),
            rival: row.name.starts_with("DDIM"),
        })
        .collect();
    std::fs::write(out.join("front.svg"), picture::front(&points, policy))?;
    Ok(())
}

/// A warning where episodes held observations unlike those that the schedule was found with.
fn uncovered(row: &Row) -> Option<String> {
    let chunks: u64 = row.episodes.iter().map(|e| e.2).sum();
    let outside: u64 = row.episodes.iter().map(|e| e.3).sum();
    (outside > 0).then(|| {
        format!(
            "`{}` saw {outside} of {chunks} observations outside the ranges that it was found with: what it does to them \
             was not measured; search again with a recording that holds such observations.",
            row.name
        )
    })
}

/// The schedule with the best score.
fn best(rows: &[Row]) -> Option<&Row> {
    rows.iter()
        .skip(1)
        .filter(|row| !row.name.starts_with("DDIM"))
        .max_by(|a, b| score(a).0.total_cmp(&score(b).0))
}

/// One sentence per schedule: within noise of the full policy or not, and how the rival of equal computations does.
fn verdict(row: &Row, full: &Row, rows: &[Row]) -> String {
    let (difference, error) = paired(row, full, |e| e.0);
    let against_full = if difference.abs() <= 2.0 * error {
        "cannot be told from the full policy's"
    } else if difference < 0.0 {
        "is below the full policy's"
    } else {
        "is above the full policy's"
    };
    let mut text = format!(
        "`{}` ({} block computations): its score {against_full} ({difference:+.3} +- {error:.3})",
        row.name, row.block_computations
    );
    let rival = rows
        .iter()
        .filter(|r| r.name.starts_with("DDIM"))
        .min_by_key(|r| r.block_computations.abs_diff(row.block_computations));
    if let Some(rival) = rival {
        let (gain, error) = paired(row, rival, |e| e.0);
        let relation = if gain.abs() <= 2.0 * error {
            "not told apart from"
        } else if gain > 0.0 {
            "better than"
        } else {
            "worse than"
        };
        let _ = write!(
            text,
            "; {relation} {} ({} computations, {gain:+.3} +- {error:.3})",
            rival.name, rival.block_computations
        );
    }
    text + "."
}
