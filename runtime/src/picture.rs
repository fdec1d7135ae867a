//! Pictures of plans, as SVG.

use std::fmt::Write;

use refrain_policies::plan::{Op, Plan};
use refrain_policies::schedule::Cell;

const CELL: usize = 12;
const LEFT: usize = 190;
const TOP: usize = 64;
const UPDATE: &str = "#1f4e79";
const REUSE: &str = "#cfe0f0";
const QUIET: &str = "#f4b942";

/// Blocks by denoising steps: computed, reused, and which quiet steps were fused into one operation.
pub fn heat_map(plan: &Plan, title: &str) -> String {
    let rows = plan.schedule.rows();
    let steps = plan.shape.steps;
    let (width, height) = (LEFT + steps * CELL + 24, TOP + rows.len() * CELL + 74);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' \
         font-family='sans-serif' font-size='11'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='12' y='22' font-size='15' font-weight='bold'>{}</text>\n",
        escape(title)
    );
    let cost = plan.cost();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x='12' y='42'>{} of {} block computations, {} of {steps} steps with updates, {} operations</text>",
        cost.block_computations,
        rows.len() * steps,
        cost.steps_with_updates,
        cost.operations
    );
    for (r, (block, cells)) in rows.iter().enumerate() {
        let y = TOP + r * CELL;
        let _ = writeln!(svg, "<text x='{}' y='{}' text-anchor='end'>{block}</text>", LEFT - 8, y + CELL - 2);
        // One rectangle per stretch of equal cells keeps the file small.
        let mut first = 0;
        while first < steps {
            let update = cells[first] == Cell::Update;
            let len = cells[first..].iter().take_while(|c| (**c == Cell::Update) == update).count();
            let fill = if update { UPDATE } else { REUSE };
            let _ = writeln!(
                svg,
                "<rect x='{}' y='{y}' width='{}' height='{}' fill='{fill}'/>",
                LEFT + first * CELL,
                len * CELL - 1,
                CELL - 1
            );
            first += len;
        }
    }
    let bottom = TOP + rows.len() * CELL;
    for op in &plan.denoise {
        if let Op::Quiet(quiet) = op {
            let _ = writeln!(
                svg,
                "<rect x='{}' y='{}' width='{}' height='8' fill='{QUIET}'/>",
                LEFT + quiet.head.step * CELL,
                bottom + 3,
                quiet.samplers.len() * CELL - 1
            );
        }
    }
    for k in (0..steps).step_by(if steps > 20 { 10 } else { 1 }) {
        let _ = writeln!(svg, "<text x='{}' y='{}'>{k}</text>", LEFT + k * CELL, bottom + 24);
    }
    let _ =
        writeln!(svg, "<text x='{}' y='{}' text-anchor='end'>denoising step</text>", LEFT - 8, bottom + 24);
    for (i, (fill, label)) in
        [(UPDATE, "computed and cached"), (REUSE, "reused"), (QUIET, "quiet steps, one operation")]
            .iter()
            .enumerate()
    {
        let x = LEFT + i * 170;
        let _ = writeln!(
            svg,
            "<rect x='{x}' y='{}' width='12' height='12' fill='{fill}'/><text x='{}' y='{}'>{label}</text>",
            bottom + 42,
            x + 18,
            bottom + 52
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text as it may stand in SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One run in [`front`].
pub struct Point {
    /// Label.
    pub name: String,
    /// Milliseconds per chunk.
    pub x: f64,
    /// Score.
    pub y: f64,
    /// Standard error of the score.
    pub error: f64,
    /// Drawn hollow.
    pub rival: bool,
}

/// Score against latency (logarithmic), with standard errors.
pub fn front(points: &[Point], title: &str) -> String {
    let (width, height, left, right, top, bottom) = (900.0, 440.0, 70.0, 170.0, 50.0, 60.0);
    let fold =
        |f: fn(f64, f64) -> f64, start: f64, of: &dyn Fn(&Point) -> f64| points.iter().map(of).fold(start, f);
    let (x0, x1) = (fold(f64::min, f64::INFINITY, &|p| p.x) * 0.8, fold(f64::max, 0.0, &|p| p.x) * 1.25);
    let y0 = (fold(f64::min, 1.0, &|p| p.y - p.error) - 0.02).max(0.0);
    let y1 = (fold(f64::max, 0.0, &|p| p.y + p.error) + 0.01).min(1.0);
    let at = |x: f64, y: f64| {
        let fx = (x / x0).ln() / (x1 / x0).ln();
        (left + fx * (width - left - right), height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom))
    };
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' \
         font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='{left}' y='26' font-size='15' font-weight='bold'>{}: score and latency</text>\n",
        escape(title)
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x='{left}' y='{}'>chunk latency p50, ms (logarithmic)</text><text x='16' y='{}' \
         transform='rotate(-90 16 {})'>score, +- standard error</text>",
        height - 14.0,
        height / 2.0 + 60.0,
        height / 2.0 + 60.0
    );
    let mut tick = 10f64.powf(x0.log10().floor());
    while tick < x1 {
        for x in [tick, 2.0 * tick, 5.0 * tick].into_iter().filter(|x| (x0..x1).contains(x)) {
            let (px, py) = at(x, y0);
            let _ = writeln!(
                svg,
                "<line x1='{px:.1}' x2='{px:.1}' y1='{top}' y2='{py:.1}' stroke='#e4e4e4'/><text x='{px:.1}' y='{:.1}' text-anchor='middle'>{x}</text>",
                py + 16.0
            );
        }
        tick *= 10.0;
    }
    for i in 0..=5 {
        let y = y0 + (y1 - y0) * f64::from(i) / 5.0;
        let (_, py) = at(x0, y);
        let _ = writeln!(
            svg,
            "<line x1='{left}' x2='{:.1}' y1='{py:.1}' y2='{py:.1}' stroke='#e4e4e4'/><text x='{:.1}' y='{:.1}' text-anchor='end'>{y:.3}</text>",
            width - right,
            left - 6.0,
            py + 4.0
        );
    }
    for point in points {
        let ((px, py), (_, low), (_, high)) =
            (at(point.x, point.y), at(point.x, point.y - point.error), at(point.x, point.y + point.error));
        let fill = if point.rival { "white" } else { UPDATE };
        let _ = writeln!(
            svg,
            "<line x1='{px:.1}' x2='{px:.1}' y1='{low:.1}' y2='{high:.1}' stroke='{UPDATE}'/><circle cx='{px:.1}' cy='{py:.1}' r='5' fill='{fill}' stroke='{UPDATE}' stroke-width='1.5'/><text x='{:.1}' y='{:.1}'>{}</text>",
            px + 9.0,
            py + 4.0,
            escape(&point.name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}
