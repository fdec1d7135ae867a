//! The scene as a small RGB image, as the camera of the public image demonstrations saw it.
//!
//! The 512 x 512 canvas of the public simulator is never held: only those of its pixels are coloured that bilinear
//! resizing reads (four per pixel of the result). Anti-aliasing is not done, since the source does none.

use crate::State;
use crate::geometry::{GOAL, PLANE, PUSHER_RADIUS, WALL_SPAN};

type Rgb = [u8; 3];
type Polygon = [[f64; 2]; 4];

const WHITE: Rgb = [255, 255, 255];
const GOAL_COLOUR: Rgb = [144, 238, 144];
const WALL_COLOUR: Rgb = [211, 211, 211];
const PUSHER_COLOUR: Rgb = [65, 105, 225];
const PUSHER_INNER_COLOUR: Rgb = [78, 126, 255];
const BLOCK_COLOUR: Rgb = [119, 136, 153];
const BLOCK_INNER_COLOUR: Rgb = [142, 163, 183];
/// Radius of the pusher's lighter disc, pixels.
const PUSHER_INNER_RADIUS: f64 = 11.0;
/// Half the width of the walls' lines and of the block's outline, pixels.
const HALF_LINE: f64 = 2.0;

/// Draws `state` as `size` x `size` RGB, row by row from the top, 3 bytes a pixel.
///
/// The colours, widths and order are those of the public simulator's renderer, the reduction is bilinear on pixel
/// centres without smoothing (OpenCV's default).
pub fn render_rgb(state: &State, size: usize) -> Vec<u8> {
    let scene = Scene::new(state);
    let scale = PLANE / size as f64;
    let taps: Vec<(f64, f64, f64)> = (0..size)
        .map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5).clamp(0.0, PLANE - 1.0);
            (at.floor(), (at.floor() + 1.0).min(PLANE - 1.0), at.fract())
        })
        .collect();
    let mut image = Vec::with_capacity(size * size * 3);
    for &(y0, y1, fy) in &taps {
        for &(x0, x1, fx) in &taps {
            let corners =
                [scene.colour(x0, y0), scene.colour(x1, y0), scene.colour(x0, y1), scene.colour(x1, y1)];
            let weights = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
            for channel in 0..3 {
                let mixed: f64 = corners
                    .iter()
                    .zip(weights)
                    .map(|(colour, weight)| f64::from(colour[channel]) * weight)
                    .sum();
                image.push(mixed.round() as u8);
            }
        }
    }
    image
}

/// What can be asked for its colour at a pixel of the canvas.
struct Scene {
    goal: [Polygon; 2],
    block: [Polygon; 2],
    pusher: [f64; 2],
}

impl Scene {
    /// Everything rounded to whole pixels, as the source draws it.
    fn new(state: &State) -> Self {
        let whole = |polygons: [Polygon; 2]| polygons.map(|p| p.map(|corner| corner.map(f64::round)));
        Self {
            goal: whole(GOAL.rectangles()),
            block: whole(state.block_pose().rectangles()),
            pusher: state.pusher.map(f64::round),
        }
    }

    /// Colour of the canvas pixel (x, y), the topmost thing first.
    fn colour(&self, x: f64, y: f64) -> Rgb {
        let p = [x, y];
        let from_pusher = (x - self.pusher[0]).hypot(y - self.pusher[1]);
        if from_pusher <= PUSHER_INNER_RADIUS {
            return PUSHER_INNER_COLOUR;
        }
        if from_pusher <= PUSHER_RADIUS {
            return PUSHER_COLOUR;
        }
        for polygon in self.block.iter().rev() {
            if edge_distance(polygon, p) <= HALF_LINE {
                return BLOCK_COLOUR;
            }
            if contains(polygon, p) {
                return BLOCK_INNER_COLOUR;
            }
        }
        let [low, high] = WALL_SPAN;
        let near = |c: f64| (c - low).abs() <= HALF_LINE || (c - high).abs() <= HALF_LINE;
        let between = |c: f64| (low - HALF_LINE..=high + HALF_LINE).contains(&c);
        if (near(x) && between(y)) || (near(y) && between(x)) {
            return WALL_COLOUR;
        }
        if self.goal.iter().any(|polygon| contains(polygon, p)) { GOAL_COLOUR } else { WHITE }
    }
}

/// Whether `p` is in a convex polygon (corners in order of increasing angle) or on its edge.
fn contains(polygon: &Polygon, p: [f64; 2]) -> bool {
    (0..4).all(|i| {
        let (a, b) = (polygon[i], polygon[(i + 1) % 4]);
        (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) >= 0.0
    })
}

/// Distance of `p` from the nearest edge of the polygon, pixels.
fn edge_distance(polygon: &Polygon, p: [f64; 2]) -> f64 {
    (0..4)
        .map(|i| {
            let (a, b) = (polygon[i], polygon[(i + 1) % 4]);
            let along = [b[0] - a[0], b[1] - a[1]];
            let length = along[0] * along[0] + along[1] * along[1];
            let t = (((p[0] - a[0]) * along[0] + (p[1] - a[1]) * along[1]) / length).clamp(0.0, 1.0);
            (p[0] - a[0] - t * along[0]).hypot(p[1] - a[1] - t * along[1])
        })
        .fold(f64::INFINITY, f64::min)
}
