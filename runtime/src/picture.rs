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
    /// Per chunk.
    pub milliseconds: f64,
    /// Action error against the full policy.
    pub error: f64,
    /// Score and its standard error.
    pub score: (f64, f64),
    /// Drawn hollow.
    pub rival: bool,
}

/// Where a panel of [`front`] lies and what it spans.
struct Panel {
    top: f64,
    x: (f64, f64),
    y: (f64, f64),
}

const WIDTH: f64 = 900.0;
const SIDES: (f64, f64) = (70.0, 190.0);
const PANEL: f64 = 330.0;
/// Scores this far below the best stand at the edge.
const FAR: f64 = 0.12;
/// Width of a letter and height of a line of a label.
const LETTER: f64 = 6.2;
const LINE: f64 = 11.5;
const GRID: &str = "#e4e4e4";
const EDGE: &str = "#c05020";

impl Panel {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let fx = (x / self.x.0).ln() / (self.x.1 / self.x.0).ln();
        let fy = (y - self.y.0) / (self.y.1 - self.y.0);
        (SIDES.0 + fx * (WIDTH - SIDES.0 - SIDES.1), self.top + PANEL * (1.0 - fy))
    }

    /// Lines, ticks and the axis' name.
    fn grid(&self, svg: &mut String, name: &str) {
        let bottom = self.top + PANEL;
        let mut tick = 10f64.powf(self.x.0.log10().floor());
        while tick < self.x.1 {
            for x in [tick, 2.0 * tick, 5.0 * tick].into_iter().filter(|x| (self.x.0..self.x.1).contains(x)) {
                let (px, _) = self.at(x, self.y.0);
                let _ = writeln!(
                    svg,
                    "<line x1='{px:.1}' x2='{px:.1}' y1='{}' y2='{bottom}' stroke='{GRID}'/><text x='{px:.1}' y='{}' text-anchor='middle'>{x}</text>",
                    self.top,
                    bottom + 16.0
                );
            }
            tick *= 10.0;
        }
        for i in 0..=5 {
            let y = self.y.0 + (self.y.1 - self.y.0) * f64::from(i) / 5.0;
            let (_, py) = self.at(self.x.0, y);
            let _ = writeln!(
                svg,
                "<line x1='{}' x2='{:.1}' y1='{py:.1}' y2='{py:.1}' stroke='{GRID}'/><text x='{}' y='{:.1}' text-anchor='end'>{y:.3}</text>",
                SIDES.0,
                WIDTH - SIDES.1,
                SIDES.0 - 6.0,
                py + 4.0
            );
        }
        let middle = self.top + PANEL / 2.0 + 60.0;
        let _ = writeln!(svg, "<text x='16' y='{middle}' transform='rotate(-90 16 {middle})'>{name}</text>");
    }

    /// The runs, and a line through those that no other one beats; `better` says whether the first value is.
    fn runs(
        &self,
        svg: &mut String,
        points: &[Point],
        value: fn(&Point) -> (f64, f64),
        better: fn(f64, f64) -> bool,
    ) {
        let mut order: Vec<&Point> = points.iter().collect();
        order.sort_by(|a, b| a.milliseconds.total_cmp(&b.milliseconds));
        let mut front: Vec<&Point> = Vec::new();
        for point in &order {
            if front.last().is_none_or(|last| better(value(point).0, value(last).0)) {
                front.push(point);
            }
        }
        let line: String = front
            .iter()
            .map(|p| self.at(p.milliseconds, value(p).0))
            .map(|(x, y)| format!("{x:.1},{y:.1} "))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points='{}' fill='none' stroke='{EDGE}' stroke-dasharray='5 4'/>",
            line.trim_end()
        );
        // Labels that would lie on each other move up or down; what lies beyond the panel stands at its edge with its value.
        let mut labels: Vec<(f64, f64, f64)> = Vec::new();
        for point in order {
            let (y, spread) = value(point);
            let inside = (self.y.0..=self.y.1).contains(&y);
            let name = if inside { point.name.clone() } else { format!("{} ({y:.3})", point.name) };
            let at = |y: f64| self.at(point.milliseconds, y.clamp(self.y.0, self.y.1));
            let ((px, py), (_, low), (_, high)) = (at(y), at(y - spread), at(y + spread));
            let fill = if point.rival { "white" } else { UPDATE };
            let (left, right) = (px + 8.0, px + 8.0 + LETTER * name.chars().count() as f64);
            let free = |y: f64| {
                labels.iter().all(|(l, r, other)| right < *l || *r < left || (other - y).abs() >= LINE)
            };
            let shifts =
                (0..40).map(|i| f64::from(i / 2 + i % 2) * LINE * if i % 2 == 1 { -1.0 } else { 1.0 });
            let label = shifts.map(|shift| py + 4.0 + shift).find(|y| free(*y)).unwrap_or(py + 4.0);
            labels.push((left, right, label));
            let _ = writeln!(
                svg,
                "<line x1='{px:.1}' x2='{px:.1}' y1='{low:.1}' y2='{high:.1}' stroke='{UPDATE}'/><circle cx='{px:.1}' cy='{py:.1}' r='4.5' fill='{fill}' stroke='{UPDATE}' stroke-width='1.5'/><text x='{left:.1}' y='{label:.1}' font-size='11'>{}</text>",
                escape(&name)
            );
        }
    }
}

/// Action error above, score with its standard error below, both against latency (logarithmic).
/// `points` is not empty.
pub fn front(points: &[Point], title: &str) -> String {
    let fold =
        |f: fn(f64, f64) -> f64, start: f64, of: &dyn Fn(&Point) -> f64| points.iter().map(of).fold(start, f);
    let x = (
        fold(f64::min, f64::INFINITY, &|p| p.milliseconds) * 0.8,
        fold(f64::max, 0.0, &|p| p.milliseconds) * 1.25,
    );
    // A few that are far off do not press the others together.
    let best = fold(f64::max, 0.0, &|p| p.score.0 + p.score.1) + 0.01;
    let worst = fold(f64::min, 1.0, &|p| p.score.0 - p.score.1) - 0.01;
    let mut errors: Vec<f64> = points.iter().map(|p| p.error).collect();
    errors.sort_by(f64::total_cmp);
    let most = errors.last().copied().unwrap_or(0.0).min(2.5 * errors[errors.len() / 2]).max(1e-3);
    let error = Panel { top: 50.0, x, y: (0.0, most * 1.08) };
    let score = Panel { top: 50.0 + PANEL + 60.0, x, y: (worst.max(best - FAR), best.min(1.0)) };
    let height = score.top + PANEL + 50.0;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' \
         font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='{}' y='26' font-size='15' font-weight='bold'>{}: what a chunk's time buys</text>\n",
        SIDES.0,
        escape(title)
    );
    error.grid(&mut svg, "action error, RMS");
    error.runs(&mut svg, points, |p| (p.error, 0.0), |a, b| a < b);
    score.grid(&mut svg, "score, +- standard error");
    score.runs(&mut svg, points, |p| p.score, |a, b| a > b);
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<text x='{}' y='{}'>chunk latency p50, ms (logarithmic); hollow: DDIM; dashed: nothing is both faster and better</text>",
        SIDES.0,
        height - 14.0
    );
    svg.push_str("</svg>\n");
    svg
}
