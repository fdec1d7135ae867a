//! Shadow mode: what would have been commanded here beside what whoever is in charge commands.

/// How far apart one joint's commands were, in the action's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// The last time.
    pub last: f64,
    /// At most.
    pub largest: f64,
    /// All together.
    pub sum: f64,
}

/// How far apart commands were.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Differences {
    /// Commands that were compared.
    pub compared: u64,
    /// Commands of whoever is in charge when there was none here, or that could not be read.
    pub alone: u64,
    /// One per joint.
    pub joints: Vec<Difference>,
}

impl Differences {
    /// Adds a pair of commands, one number per joint each.
    pub fn add(&mut self, ours: &[f64], theirs: &[f64]) {
        self.compared += 1;
        self.joints.resize(ours.len(), Difference::default());
        for (joint, (ours, theirs)) in self.joints.iter_mut().zip(ours.iter().zip(theirs)) {
            let apart = (ours - theirs).abs();
            joint.last = apart;
            joint.largest = joint.largest.max(apart);
            joint.sum += apart;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_add_up_per_joint() {
        let mut all = Differences::default();
        all.add(&[1.0, 2.0], &[1.5, -1.0]);
        all.add(&[1.0, 2.0], &[1.0, 1.0]);
        assert_eq!(all.compared, 2);
        assert_eq!(all.joints[0], Difference { last: 0.0, largest: 0.5, sum: 0.5 });
        assert_eq!(all.joints[1], Difference { last: 1.0, largest: 3.0, sum: 4.0 });
    }
}
