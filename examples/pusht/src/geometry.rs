//! The T, the goal and the arena: fixed numbers, keypoints and the covered share of the goal.
//!
//! All lengths are pixels of the 512 x 512 plane, x to the right and y down; angles are radians, positive from x to y.
//! The block's frame has its origin in the middle of the bar's outer edge, with the stem along +y.
//! Source of the numbers: the Push-T environment of real-stanford/diffusion_policy
//! (`diffusion_policy/env/pusht/pusht_env.py`) and its public demonstrations.

/// Side of the plane, pixels.
pub const PLANE: f64 = 512.0;
/// Radius of the pusher, pixels.
pub const PUSHER_RADIUS: f64 = 15.0;
/// Half the thickness of a wall, pixels.
pub const WALL_RADIUS: f64 = 2.0;
/// The walls' centre lines as a rectangle: least and greatest coordinate, pixels.
pub const WALL_SPAN: [f64; 2] = [5.0, 506.0];
/// Position of the goal's frame, pixels.
pub const GOAL_POSITION: [f64; 2] = [256.0, 256.0];
/// Angle of the goal's frame, radians.
pub const GOAL_ANGLE: f64 = std::f64::consts::FRAC_PI_4;
/// The block's centre of gravity in its own frame: the mean of the two rectangles' centres, pixels.
pub const BLOCK_COG: [f64; 2] = [0.0, 45.0];
/// The bar and the stem in the block's frame, corners in order of increasing angle, pixels. They share no area.
pub const BLOCK_RECTANGLES: [[[f64; 2]; 4]; 2] = [
    [[-60.0, 0.0], [60.0, 0.0], [60.0, 30.0], [-60.0, 30.0]],
    [[-15.0, 30.0], [15.0, 30.0], [15.0, 120.0], [-15.0, 120.0]],
];
/// Area of the T, square pixels.
pub const BLOCK_AREA: f64 = 120.0 * 30.0 + 30.0 * 90.0;

/// The nine observed points of the block in its own frame, pixels: `block_keypoints_local` of the public demonstrations.
pub const BLOCK_KEYPOINTS: [[f64; 2]; 9] = [
    [9.269786713763871, 90.04097352393619],
    [-60.983472364471474, -1.1867297607997276],
    [60.91275557727772, -1.3933642242328201],
    [-0.2705034390160016, 25.54362499146542],
    [-14.064927576212233, 122.81585355412153],
    [39.002738500170146, 32.857404276587566],
    [-39.966414424694534, 32.729655446429945],
    [-16.82434437939744, 62.86317892234989],
    [23.54146122024909, -1.7002881094626152],
];

/// A rigid placement in the plane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pose {
    /// Where the frame's origin lies, pixels.
    pub position: [f64; 2],
    /// Turn of the frame, radians.
    pub angle: f64,
}

/// Where the block should end.
pub const GOAL: Pose = Pose { position: GOAL_POSITION, angle: GOAL_ANGLE };

impl Pose {
    /// A point of the frame in plane coordinates, pixels.
    pub fn apply(&self, point: [f64; 2]) -> [f64; 2] {
        let turned = rotate(point, self.angle);
        [self.position[0] + turned[0], self.position[1] + turned[1]]
    }

    /// The T's bar and stem at this pose, corners in plane coordinates, pixels.
    pub fn rectangles(&self) -> [[[f64; 2]; 4]; 2] {
        BLOCK_RECTANGLES.map(|rectangle| rectangle.map(|corner| self.apply(corner)))
    }
}

/// `point` turned about the origin by `angle` radians.
pub fn rotate(point: [f64; 2], angle: f64) -> [f64; 2] {
    let (sin, cos) = angle.sin_cos();
    [cos * point[0] - sin * point[1], sin * point[0] + cos * point[1]]
}

/// Share of the goal that a T at `block` covers, 0 to 1.
///
/// Each T is two convex pieces without common area, so the intersection is the sum over the four pairs.
pub fn coverage(block: &Pose) -> f64 {
    let (goal, block) = (GOAL.rectangles(), block.rectangles());
    let mut area = 0.0;
    for goal_piece in &goal {
        for block_piece in &block {
            area += overlap(goal_piece, block_piece);
        }
    }
    area / BLOCK_AREA
}

/// Area common to two convex polygons whose corners are in order of increasing angle (Sutherland-Hodgman clipping).
fn overlap(subject: &[[f64; 2]], window: &[[f64; 2]]) -> f64 {
    let mut kept = subject.to_vec();
    for (i, a) in window.iter().enumerate() {
        let b = window[(i + 1) % window.len()];
        let inside = |p: [f64; 2]| (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]);
        let corners = std::mem::take(&mut kept);
        for (j, &from) in corners.iter().enumerate() {
            let to = corners[(j + 1) % corners.len()];
            let (from_side, to_side) = (inside(from), inside(to));
            if from_side >= 0.0 {
                kept.push(from);
            }
            if (from_side >= 0.0) != (to_side >= 0.0) {
                let t = from_side / (from_side - to_side);
                kept.push([from[0] + t * (to[0] - from[0]), from[1] + t * (to[1] - from[1])]);
            }
        }
    }
    let twice: f64 = (0..kept.len())
        .map(|i| {
            let (p, q) = (kept[i], kept[(i + 1) % kept.len()]);
            p[0] * q[1] - q[0] * p[1]
        })
        .sum();
    (twice / 2.0).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goal_covers_itself() {
        assert!((coverage(&GOAL) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_whole_turn_changes_nothing() {
        let turned = Pose { angle: GOAL_ANGLE + std::f64::consts::TAU, ..GOAL };
        assert!((coverage(&turned) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn shifted_along_the_bar_by_half_of_it() {
        // In the goal's frame, 60 to the right: the bars share 60 x 30 and the stems nothing.
        let block = Pose { position: GOAL.apply([60.0, 0.0]), angle: GOAL_ANGLE };
        assert!((coverage(&block) - 60.0 * 30.0 / BLOCK_AREA).abs() < 1e-12);
    }

    #[test]
    fn the_bar_on_the_stem() {
        // In the goal's frame, 90 along the stem: the block's bar crosses the last 30 of the goal's stem.
        let block = Pose { position: GOAL.apply([0.0, 90.0]), angle: GOAL_ANGLE };
        assert!((coverage(&block) - 30.0 * 30.0 / BLOCK_AREA).abs() < 1e-12);
    }

    #[test]
    fn far_away_covers_nothing() {
        assert_eq!(coverage(&Pose { position: [20.0, 20.0], angle: 3.0 }), 0.0);
    }
}
