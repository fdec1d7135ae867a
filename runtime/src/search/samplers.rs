//! Samplers that a search may choose, and noise that two samplers share.
//!
//! DDPM and DDIM, with few steps or many, whose timesteps are spread as diffusers does (leading, linspace, trailing) or
//! lie the denser the later. Any of them may leave out a whole step, as Step Rehash of Streamlined Inference does (arXiv
//! 2411.01171), or ask about another timestep, as ERTACache's timestep adjustment does (arXiv 2508.21091).
//!
//! Two samplers can only be compared action by action if they see the same noise. [`couple`] makes a coarse sampler's
//! draw from a fine one's: what the fine steps between two coarse ones add to the trajectory, brought to unit variance.

use refrain_policies::sampler::{SamplerConfig, SamplerKind, SamplerStep, TimestepSpacing};

/// Powers of late-dense timesteps.
const POWERS: [f64; 2] = [1.5, 2.0];

/// Numbers of steps that are tried beside those of the policy and those that can be computed in full.
const STEPS: [usize; 6] = [50, 30, 20, 15, 10, 5];

/// Samplers that are searched among on their own, since what they start from says little about what they come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Those to choose from.
    pub samplers: Vec<SamplerConfig>,
    /// Whether steps without an update are wanted, or every block at every step; none: either.
    pub quiet: Option<bool>,
    /// Whether timesteps may change.
    pub retimed: bool,
}

/// The policy's kind with every step computed, the policy's own steps, its kind with other steps of which some are quiet, and,
/// unless `own_kind` is asked for, the other kind. At most `updates` steps can be computed in full.
pub fn families(policy: &SamplerConfig, updates: usize, own_kind: bool) -> Vec<Family> {
    let counts = [&STEPS[..], &[policy.inference_steps, policy.train_steps, updates]].concat();
    let others: Vec<SamplerConfig> =
        variants(policy, policy.kind, &counts).into_iter().filter(|s| s != policy).collect();
    let mut families = vec![
        Family { samplers: others.clone(), quiet: Some(false), retimed: true },
        Family { samplers: vec![policy.clone()], quiet: None, retimed: false },
        Family { samplers: others, quiet: Some(true), retimed: true },
    ];
    if !own_kind {
        let other = match policy.kind {
            SamplerKind::Ddpm => SamplerKind::Ddim,
            SamplerKind::Ddim => SamplerKind::Ddpm,
        };
        families.push(Family { samplers: variants(policy, other, &counts), quiet: None, retimed: true });
    }
    families
}

/// Samplers of one kind with these numbers of steps, finest first; those that ask about the same timesteps stand once.
pub fn variants(policy: &SamplerConfig, kind: SamplerKind, counts: &[usize]) -> Vec<SamplerConfig> {
    let mut found: Vec<SamplerConfig> = Vec::new();
    let mut add = |sampler: SamplerConfig| {
        let timesteps = sampler.inference_timesteps();
        let sound = timesteps.iter().all(|&t| t < sampler.train_steps)
            && timesteps.windows(2).all(|w| w[1] < w[0])
            && timesteps.len() == sampler.inference_steps;
        if sound && found.iter().all(|f| f.inference_timesteps() != timesteps) {
            found.push(sampler);
        }
    };
    if policy.kind == kind {
        add(policy.clone());
    }
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    counts.dedup();
    for &steps in counts.iter().rev().filter(|&&steps| (1..=policy.train_steps).contains(&steps)) {
        let even = SamplerConfig { steps_offset: 0, ..policy.with(kind, steps) };
        for timestep_spacing in
            [TimestepSpacing::Leading, TimestepSpacing::Linspace, TimestepSpacing::Trailing]
        {
            add(SamplerConfig { timestep_spacing, ..even.clone() });
        }
        for power in POWERS {
            add(SamplerConfig { timesteps: late(policy.train_steps, steps, power), ..even.clone() });
        }
    }
    found
}

/// Falling timesteps from the last trained one to 0, with equal distances in `t^(1 / power)`.
fn late(train: usize, steps: usize, power: f64) -> Vec<usize> {
    let mut before = train;
    (0..steps)
        .map(|k| {
            let left = 1.0 - k as f64 / (steps - 1).max(1) as f64;
            let wanted = ((train - 1) as f64 * left.powf(power)).round() as usize;
            // No two alike, and room for those that follow.
            before = wanted.clamp(steps - 1 - k, before - 1);
            before
        })
        .collect()
}

/// The sampler without these steps, or none if nothing would be left.
pub fn without(sampler: &SamplerConfig, steps: &[usize]) -> Option<SamplerConfig> {
    let all = sampler.inference_timesteps();
    let kept = all.iter().enumerate().filter(|(k, _)| !steps.contains(k)).map(|(_, &t)| t);
    let timesteps: Vec<usize> = kept.collect();
    let inference_steps = timesteps.len();
    (inference_steps > 0).then(|| SamplerConfig { timesteps, inference_steps, ..sampler.clone() })
}

/// The sampler with another timestep at one step, if it still lies between its neighbours'.
pub fn retimed(sampler: &SamplerConfig, step: usize, timestep: usize) -> Option<SamplerConfig> {
    let mut timesteps = sampler.inference_timesteps();
    let below = step.checked_sub(1).map_or(sampler.train_steps, |before| timesteps[before]);
    let above = timesteps.get(step + 1).map_or(-1, |&t| t as i64);
    if timestep >= below || (timestep as i64) <= above || timestep == timesteps[step] {
        return None;
    }
    timesteps[step] = timestep;
    Some(SamplerConfig { timesteps, ..sampler.clone() })
}

/// Makes a draw `[K + 1, row]` for `coarse` out of one for `fine`. A coarse step between whose timesteps no fine one lies
/// keeps the noise that `to` has.
pub fn couple(fine: &[SamplerStep], coarse: &[SamplerStep], row: usize, from: &[f32], to: &mut [f32]) {
    to[..row].copy_from_slice(&from[..row]);
    for (k, step) in coarse.iter().enumerate() {
        let next = coarse.get(k + 1).map_or(-1, |s| s.timestep as i64);
        let mut shares: Vec<(usize, f64)> = Vec::new();
        for (j, f) in fine.iter().enumerate() {
            if f.timestep <= step.timestep && f.timestep as i64 > next {
                let slope = slope(f);
                shares.iter_mut().for_each(|(_, share)| *share *= slope);
                shares.push((j, f64::from(f.from_noise)));
            }
        }
        let size = shares.iter().map(|(_, share)| share * share).sum::<f64>().sqrt();
        if size > 0.0 {
            let out = &mut to[(1 + k) * row..][..row];
            out.fill(0.0);
            for (j, share) in shares {
                let weight = (share / size) as f32;
                out.iter_mut().zip(&from[(1 + j) * row..][..row]).for_each(|(o, z)| *o += weight * z);
            }
        }
    }
}

/// What becomes of a change of the trajectory in one step while the clean trajectory stays.
fn slope(step: &SamplerStep) -> f64 {
    let model = if step.x0_from_model == 0.0 { 0.0 } else { -step.x0_from_x / step.x0_from_model };
    f64::from(step.from_x + step.from_model * model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_policies::noise_schedule::BetaSchedule;
    use refrain_policies::sampler::{PredictionType, VarianceType};

    fn sampler() -> SamplerConfig {
        SamplerConfig {
            kind: SamplerKind::Ddpm,
            inference_steps: 100,
            train_steps: 100,
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            beta_start: 1e-4,
            beta_end: 0.02,
            trained_betas: Vec::new(),
            rescale_betas_zero_snr: false,
            prediction_type: PredictionType::Epsilon,
            clip_sample: true,
            clip_sample_range: 1.0,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            timesteps: Vec::new(),
            variance_type: VarianceType::FixedSmall,
            eta: 0.0,
            set_alpha_to_one: true,
            use_clipped_model_output: false,
        }
    }

    #[test]
    fn variants_differ_and_can_run() {
        for kind in [SamplerKind::Ddpm, SamplerKind::Ddim] {
            let found = variants(&sampler(), kind, &[100, 20, 10, 10]);
            assert_eq!(found.iter().filter(|s| s.inference_steps == 100).count(), 1, "all of all is one");
            assert!(found.iter().filter(|s| s.inference_steps == 10).count() >= 4, "{found:?}");
            for s in &found {
                assert_eq!(s.kind, kind);
                let t = s.inference_timesteps();
                assert_eq!(t.len(), s.inference_steps);
                assert!(t.windows(2).all(|w| w[1] < w[0]) && t[0] < 100, "{t:?}");
            }
        }
        assert_eq!(late(100, 100, 2.0), (0..100).rev().collect::<Vec<_>>());
        assert_eq!(late(100, 5, 2.0), [99, 56, 25, 6, 0]);
    }

    #[test]
    fn the_policy_s_own_steps_are_a_family() {
        for own_kind in [true, false] {
            let families = families(&sampler(), 10, own_kind);
            assert_eq!(families.len(), if own_kind { 3 } else { 4 });
            assert_eq!((&families[1].samplers[..], families[1].retimed), (&[sampler()][..], false));
            for other in [&families[0], &families[2]] {
                assert!(other.samplers.iter().all(|s| s.kind == SamplerKind::Ddpm && *s != sampler()));
                assert!(other.samplers.iter().any(|s| s.inference_steps == 10));
            }
        }
    }

    #[test]
    fn steps_are_left_out_and_moved() {
        let few = SamplerConfig { timesteps: vec![90, 60, 30, 0], inference_steps: 4, ..sampler() };
        let fewer = without(&few, &[1]).unwrap();
        assert_eq!((fewer.inference_timesteps(), fewer.inference_steps), (vec![90, 30, 0], 3));
        assert!(without(&few, &[0, 1, 2, 3]).is_none());
        assert_eq!(retimed(&few, 1, 70).unwrap().timesteps, [90, 70, 30, 0]);
        assert_eq!(retimed(&few, 0, 99).unwrap().timesteps, [99, 60, 30, 0]);
        for timestep in [90, 30, 60] {
            assert!(retimed(&few, 1, timestep).is_none());
        }
        assert!(retimed(&few, 3, 0).is_none() && retimed(&few, 0, 100).is_none());
    }

    /// While the clean trajectory stays the same, a DDPM step of ten timesteps is ten steps of one; with coupled noise
    /// both lead to the same place (Ho et al. 2020, the posterior is Gaussian at every stride).
    #[test]
    fn coupled_samplers_follow_one_path() {
        let fine = sampler().steps();
        let coarse = sampler().with(SamplerKind::Ddpm, 10).steps();
        assert_eq!(coarse[0].timestep, 90);
        let from: Vec<f32> = (0..101).map(|i| ((i * 37 % 19) as f32 - 9.0) / 5.5).collect();
        let mut to = vec![f32::NAN; 11];
        couple(&fine, &coarse, 1, &from, &mut to);
        let clean = 0.3;
        let run = |steps: &[SamplerStep], noise: &[f32], start: f32, first: usize, last: usize| {
            (first..last).fold(start, |x, k| {
                let s = &steps[k];
                s.from_x0 * clean + s.from_x * x + s.from_noise * noise[1 + k]
            })
        };
        // From timestep 90 to 80 and on to 10.
        for (k, last) in [(1, 19), (8, 89)] {
            let (a, b) = (run(&coarse, &to, 0.7, 0, k), run(&fine, &from, 0.7, 9, last));
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let mut same = vec![0.0; 101];
        couple(&fine, &fine, 1, &from, &mut same);
        // The last step draws no noise, and keeps what was there.
        assert!(same[..100].iter().zip(&from).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
