//! Rotations among the numbers of an action: interpolated and averaged as rotations, not number by number.
//!
//! Two representations: the first two rows of the rotation matrix (Zhou et al. 2019, as the public code's `rotation_6d`),
//! and a quaternion x, y, z, w (as ROS has it). What goes in need not be exactly a rotation, what comes out is one up to
//! rounding. Numbers that are no rotation at all (zero, parallel rows) are left to whoever interpolates number by number.
//!
//! Pure, bounded, no allocation.

use nalgebra::{Matrix3, Quaternion, Rotation3, RowVector3, UnitQuaternion};

/// Where a rotation's numbers stand in an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The first two rows of the matrix.
    SixD([usize; 6]),
    /// x, y, z, w.
    Quaternion([usize; 4]),
}

/// A weighted mean of rotations that lie close together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean(Option<Quaternion<f64>>);

/// Shorter vectors have no direction.
const LEAST: f64 = 1e-9;

impl Rotation {
    /// A rotation of six or four numbers; `None` for any other count.
    pub fn of(places: &[usize]) -> Option<Self> {
        match *places {
            [a, b, c, d, e, f] => Some(Self::SixD([a, b, c, d, e, f])),
            [x, y, z, w] => Some(Self::Quaternion([x, y, z, w])),
            _ => None,
        }
    }

    /// The rotation that an action holds, if it is one.
    pub fn read(&self, action: &[f64]) -> Option<UnitQuaternion<f64>> {
        match self {
            Self::SixD([a, b, c, d, e, f]) => {
                let row =
                    |x: &usize, y: &usize, z: &usize| RowVector3::new(action[*x], action[*y], action[*z]);
                let first = row(a, b, c).try_normalize(LEAST)?;
                let second = row(d, e, f);
                let second = (second - first * second.dot(&first)).try_normalize(LEAST)?;
                let matrix = Matrix3::from_rows(&[first, second, first.cross(&second)]);
                let rotation =
                    UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(matrix));
                rotation.coords.iter().all(|v| v.is_finite()).then_some(rotation)
            }
            Self::Quaternion([x, y, z, w]) => {
                let q = Quaternion::new(action[*w], action[*x], action[*y], action[*z]);
                UnitQuaternion::try_new(q, LEAST).filter(|q| q.coords.iter().all(|v| v.is_finite()))
            }
        }
    }

    /// Puts a rotation into an action.
    pub fn write(&self, rotation: &UnitQuaternion<f64>, action: &mut [f64]) {
        match self {
            Self::SixD(places) => {
                let matrix = rotation.to_rotation_matrix();
                for (i, place) in places.iter().enumerate() {
                    action[*place] = matrix[(i / 3, i % 3)];
                }
            }
            Self::Quaternion([x, y, z, w]) => {
                (action[*x], action[*y]) = (rotation.i, rotation.j);
                (action[*z], action[*w]) = (rotation.k, rotation.w);
            }
        }
    }

    /// The rotation at `share` of the shortest way from one action's to the other's; `out` stays where either is none.
    pub fn between(&self, from: &[f64], to: &[f64], share: f64, out: &mut [f64]) {
        let (Some(from), Some(to)) = (self.read(from), self.read(to)) else { return };
        // Opposite rotations have no shortest way; any is as good.
        let way = from.try_slerp(&to, share, LEAST).unwrap_or(if share < 0.5 { from } else { to });
        self.write(&way, out);
    }
}

impl Mean {
    /// Adds an action's rotation.
    pub fn add(&mut self, rotation: &Rotation, weight: f64, action: &[f64]) {
        let Some(q) = rotation.read(action) else { return };
        let sum = self.0.unwrap_or_default();
        // q and -q are the same rotation.
        let side = if sum.dot(&q) < 0.0 { -weight } else { weight };
        self.0 = Some(sum + q.into_inner() * side);
    }

    /// Puts the mean into an action, if there is one.
    pub fn write(&self, rotation: &Rotation, action: &mut [f64]) {
        if let Some(mean) = self.0.and_then(|sum| UnitQuaternion::try_new(sum, LEAST)) {
            rotation.write(&mean, action);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIX: Rotation = Rotation::SixD([0, 1, 2, 3, 4, 5]);
    const FOUR: Rotation = Rotation::Quaternion([1, 2, 3, 0]);

    fn close(got: &[f64], expected: &[f64]) {
        assert!(
            got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= 1e-9),
            "{got:?}, expected {expected:?}"
        );
    }

    /// Expected numbers are scipy 1.17.1's: `Slerp` at 0.3 between rotation vectors (0.4, -0.2, 0.9) and (-0.5, 1.1, 0.3).
    #[test]
    fn interpolation_is_scipys_slerp() {
        let from = [
            0.6095880268528326,
            -0.7927139812935674,
            -0.002642229999829465,
            0.7192246687011593,
            0.5544710424085266,
            -0.41866184333195383,
        ];
        let to = [
            0.42973850780749956,
            -0.4695537734941815,
            0.7712613491578315,
            -0.012975181437934247,
            0.850854686657346,
            0.5252408465265074,
        ];
        let mut out = [0.0; 6];
        SIX.between(&from, &to, 0.3, &mut out);
        let expected = [
            0.7097572306970871,
            -0.6648459827646502,
            0.23286153111862146,
            0.690746117720195,
            0.7217065901826247,
            -0.04482631527850163,
        ];
        close(&out, &expected);
        // w first, as `FOUR` has it; the second with the other sign, which is the same rotation.
        let from = [0.876384251986657, 0.19168895715769335, -0.09584447857884668, 0.43130015360481];
        let to = [-0.8124262539554032, 0.23416412147837767, -0.5151610672524309, -0.1404984728870266];
        let mut out = [0.0; 4];
        FOUR.between(&from, &to, 0.3, &mut out);
        close(&out, &[0.9223529792303106, 0.06437077794709235, 0.10058964557191125, 0.3674276906483422]);
    }

    #[test]
    fn numbers_that_are_no_rotation_are_left_alone() {
        let mut out = [7.0; 6];
        SIX.between(&[0.0; 6], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 0.5, &mut out);
        SIX.between(&[1.0, 0.0, 0.0, 2.0, 0.0, 0.0], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 0.5, &mut out);
        SIX.between(&[f64::NAN; 6], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], 0.5, &mut out);
        FOUR.between(&[0.0; 4], &[1.0; 4], 0.5, &mut out);
        assert_eq!(out, [7.0; 6]);
    }

    #[test]
    fn the_mean_does_not_mind_the_sign_of_a_quaternion() {
        let (a, b) = ([0.8, 0.6, 0.0, 0.0], [-0.6, -0.8, 0.0, 0.0]);
        let mut mean = Mean::default();
        mean.add(&FOUR, 0.5, &a);
        mean.add(&FOUR, 0.5, &b);
        let (mut got, mut half) = ([0.0; 4], [0.0; 4]);
        mean.write(&FOUR, &mut got);
        FOUR.between(&a, &b, 0.5, &mut half);
        close(&got, &half);
    }
}
