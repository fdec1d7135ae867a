//! A recorded episode and its animated picture.

use std::fmt::Write as _;
use std::path::Path;

use crate::geometry::{BLOCK_RECTANGLES, GOAL, PLANE, PUSHER_RADIUS, WALL_RADIUS, WALL_SPAN};
use crate::{PushT, RATE_HZ, SUCCESS_COVERAGE, State, Step};

/// How long the last frame stays before the animation starts again, seconds.
const PAUSE_S: f64 = 1.5;
/// Height of the line of text under the plane, pixels.
const CAPTION_HEIGHT: f64 = 44.0;

/// What happened in an episode: `states` is one longer than `targets` and `steps`.
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// The start, then where everything was after each step.
    pub states: Vec<State>,
    /// The pusher's target of each step (x, y), pixels.
    pub targets: Vec<[f64; 2]>,
    /// What each step gave.
    pub steps: Vec<Step>,
}

impl Episode {
    /// An episode of no steps yet, starting where `episode` is.
    pub fn start(episode: &PushT) -> Self {
        Self { states: vec![episode.state()], targets: Vec::new(), steps: Vec::new() }
    }

    /// Adds a step: the target that was given, what it gave, and where `episode` is after it.
    pub fn push(&mut self, target: [f64; 2], step: Step, episode: &PushT) {
        self.targets.push(target);
        self.steps.push(step);
        self.states.push(episode.state());
    }

    /// The largest reward, 0 to 1.
    pub fn score(&self) -> f64 {
        self.steps.iter().map(|step| step.reward).fold(0.0, f64::max)
    }

    /// Whether any step ended with more than 0.95 of the goal covered.
    pub fn success(&self) -> bool {
        self.steps.iter().any(|step| step.success)
    }

    /// Writes [`Episode::svg`] to `path`.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn write_svg(&self, path: impl AsRef<Path>, caption: &str) -> std::io::Result<()> {
        std::fs::write(path, self.svg(caption))
    }

    /// The episode as one animated SVG in real time, without scripts: walls, goal, block, pusher with its path and
    /// target, `caption`, and the coverage as a bar with a mark at 0.95. It loops with a pause at the end.
    ///
    /// The drawing outside the animation shows the last state, for viewers that do not animate.
    pub fn svg(&self, caption: &str) -> String {
        let last = self.states.len() - 1;
        let seconds = last as f64 / RATE_HZ + PAUSE_S;
        let clock = Clock { seconds, last };
        let mut svg = String::new();
        let height = PLANE + CAPTION_HEIGHT;
        let [low, high] = WALL_SPAN;
        let (span, thick) = (high - low, 2.0 * WALL_RADIUS);
        let goal = tee(&transform(GOAL.position, GOAL.angle), "#90ee90");
        // Writing to a String cannot fail.
        let _ = write!(
            svg,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PLANE} {height}" width="{PLANE}" height="{height}" font-family="sans-serif" font-size="13">
<rect width="{PLANE}" height="{height}" fill="#fff"/>
<rect x="{low}" y="{low}" width="{span}" height="{span}" fill="none" stroke="#d3d3d3" stroke-width="{thick}"/>
{goal}"##
        );
        svg += &self.path();
        svg += &self.block(&clock);
        svg += &self.pusher(&clock);
        svg += &self.footer(caption, &clock);
        svg += "</svg>\n";
        svg
    }

    /// The whole way of the pusher as a faint line.
    fn path(&self) -> String {
        let points: Vec<String> =
            self.states.iter().map(|s| format!("{:.1},{:.1}", s.pusher[0], s.pusher[1])).collect();
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#4169e1\" stroke-opacity=\"0.25\" stroke-width=\"2\"/>\n",
            points.join(" ")
        )
    }

    /// The block: a moving group around a turning one. Angles are not wrapped, so no turn is long.
    fn block(&self, clock: &Clock) -> String {
        let end = &self.states[clock.last];
        let moves = clock.animate_transform(
            "translate",
            self.states.iter().map(|s| format!("{:.2},{:.2}", s.block[0], s.block[1])),
        );
        let turns = clock
            .animate_transform("rotate", self.states.iter().map(|s| format!("{:.3}", s.angle.to_degrees())));
        let rectangles = tee("", "#8ea3b7");
        format!(
            "<g transform=\"translate({:.2},{:.2})\">{moves}\n<g transform=\"rotate({:.3})\" stroke=\"#778899\" \
             stroke-width=\"2\">{turns}\n{rectangles}</g></g>\n",
            end.block[0],
            end.block[1],
            end.angle.to_degrees()
        )
    }

    /// The pusher, and a cross at its target.
    fn pusher(&self, clock: &Clock) -> String {
        let end = &self.states[clock.last].pusher;
        let moves = clock.animate_transform(
            "translate",
            self.states.iter().map(|s| format!("{:.2},{:.2}", s.pusher[0], s.pusher[1])),
        );
        let mut svg = format!(
            "<g transform=\"translate({:.2},{:.2})\">{moves}\n<circle r=\"{PUSHER_RADIUS}\" fill=\"#4169e1\"/>\
             <circle r=\"11\" fill=\"#4e7eff\"/></g>\n",
            end[0], end[1]
        );
        if let Some(target) = self.targets.last() {
            // The target of a step is shown from its start on.
            let targets = self.targets.iter().chain(self.targets.last());
            let moves = clock
                .animate_transform("translate", targets.map(|t| format!("{:.1},{:.1}", t[0], t[1])))
                .replace("<animateTransform ", "<animateTransform calcMode=\"discrete\" ");
            let _ = writeln!(
                svg,
                "<g transform=\"translate({:.1},{:.1})\">{moves}<path d=\"M-5,0H5M0,-5V5\" stroke=\"#d33\" \
                 stroke-width=\"2\"/></g>",
                target[0], target[1]
            );
        }
        svg
    }

    /// Caption, score, and a bar of the coverage.
    fn footer(&self, caption: &str, clock: &Clock) -> String {
        let width = PLANE - 24.0;
        let bar = |coverage: f64| format!("{:.1}", coverage.clamp(0.0, 1.0) * width);
        let coverages = || std::iter::once(0.0).chain(self.steps.iter().map(|step| step.coverage));
        let end = bar(self.steps.last().map_or(0.0, |step| step.coverage));
        let grows = clock.animate("width", coverages().map(bar));
        let mark = 12.0 + SUCCESS_COVERAGE * width;
        let outcome = if self.success() { ", success" } else { "" };
        let score = self.score();
        let seconds = clock.last as f64 / RATE_HZ;
        format!(
            "<rect x=\"12\" y=\"516\" width=\"{width}\" height=\"8\" fill=\"#eee\"/><rect x=\"12\" y=\"516\" \
             width=\"{end}\" height=\"8\" fill=\"#6c6\">{grows}</rect>\
             <path d=\"M{mark:.1},513v14\" stroke=\"#333\"/>\n\
             <text x=\"12\" y=\"544\">{}</text><text x=\"500\" y=\"544\" text-anchor=\"end\">score \
             {score:.3}{outcome}, {seconds:.1} s</text>\n",
            escape(caption)
        )
    }
}

/// Time of the animation: `last + 1` key frames at the control rate, then a pause.
struct Clock {
    seconds: f64,
    last: usize,
}

impl Clock {
    fn animate_transform(&self, kind: &str, values: impl Iterator<Item = String>) -> String {
        let timing = self.timing(values);
        format!("<animateTransform attributeName=\"transform\" type=\"{kind}\" {timing}/>")
    }

    fn animate(&self, attribute: &str, values: impl Iterator<Item = String>) -> String {
        let timing = self.timing(values);
        format!("<animate attributeName=\"{attribute}\" {timing}/>")
    }

    fn timing(&self, values: impl Iterator<Item = String>) -> String {
        let mut values: Vec<String> = values.collect();
        let mut times: Vec<String> =
            (0..values.len()).map(|i| format!("{:.5}", i as f64 / RATE_HZ / self.seconds)).collect();
        values.extend(values.last().cloned());
        times.push("1".into());
        format!(
            "dur=\"{:.2}s\" repeatCount=\"indefinite\" keyTimes=\"{}\" values=\"{}\"",
            self.seconds,
            times.join(";"),
            values.join(";")
        )
    }
}

/// The T's two rectangles under a transform.
fn tee(transform: &str, fill: &str) -> String {
    let mut svg = format!("<g transform=\"{transform}\" fill=\"{fill}\">");
    for [least, _, greatest, _] in BLOCK_RECTANGLES {
        let (width, height) = (greatest[0] - least[0], greatest[1] - least[1]);
        let _ = write!(
            svg,
            "<rect x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{height}\"/>",
            least[0], least[1]
        );
    }
    svg + "</g>\n"
}

fn transform(position: [f64; 2], angle: f64) -> String {
    format!("translate({},{}) rotate({})", position[0], position[1], angle.to_degrees())
}

/// Text that is safe between tags.
fn escape(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_control()).collect();
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Episode {
        let mut push_t = PushT::new(3);
        let mut episode = Episode::start(&push_t);
        for i in 0..30 {
            let target = [256.0 + 4.0 * f64::from(i), 256.0];
            let step = push_t.step(target);
            episode.push(target, step, &push_t);
        }
        episode
    }

    #[test]
    fn the_picture_holds_every_state_and_a_safe_caption() {
        let episode = recorded();
        let svg = episode.svg("a < b & \u{7} c");
        assert!(svg.contains("a &lt; b &amp;  c"));
        for state in &episode.states {
            assert!(svg.contains(&format!("{:.2},{:.2}", state.block[0], state.block[1])));
        }
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn a_picture_of_nothing_yet_is_a_picture() {
        let svg = Episode::start(&PushT::new(1)).svg("");
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
