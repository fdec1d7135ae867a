//! Names and shapes of a policy's tensors: the only place that knows them.
//!
//! Names are those of `TransformerForDiffusion` (real-stanford/diffusion_policy) without the `model.` prefix. Causal
//! masks follow from the architecture and are not stored. The parts that a DiT has too have the same names; besides there
//! are `time_emb` (the timestep's perceptron) and `modulation`, all layers' adaptive LayerNorms in one: what the timestep
//! and what the observation adds to shift, scale and gate of self-attention, then of feed-forward, layer after layer.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Dit, PolicyConfig};

/// Tables of which the first rows are used: `[1, rows, D]`.
pub(super) const POSITION_TABLES: [&str; 2] = ["pos_emb", "cond_pos_emb"];

/// Name and shape of every tensor of a policy, in the model's order. The architecture must be free of problems.
///
/// Linear layers are `[out, in]`, attention projections `[3 D, D]` with query, key and value one after the other.
/// `pos_emb` and `cond_pos_emb` are `[1, rows, D]` with one row per token; files may hold more rows, which are cut
/// when loading.
pub fn expected_tensors(config: &PolicyConfig) -> Vec<(String, Vec<usize>)> {
    let a = &config.architecture;
    let (d, n) = (a.width, config.denoised_size());
    let mut list = List(Vec::new());
    list.linear("input_emb", d, n);
    list.add("pos_emb".into(), &[1, a.trunk_tokens(), d]);
    if let Some(dit) = &a.dit {
        list.dit(config, dit);
        list.linear("head", n, d);
        return list.0;
    }
    if a.time_as_cond {
        list.add("cond_pos_emb".into(), &[1, a.condition_tokens(), d]);
        if a.obs_as_cond {
            list.linear("cond_obs_emb", d, config.condition_size());
        }
        if a.condition_layers == 0 {
            list.linear("encoder.0", a.feed_forward_width(), d);
            list.linear("encoder.2", d, a.feed_forward_width());
        }
        for i in 0..a.condition_layers {
            list.layer(&format!("encoder.layers.{i}"), d, a.feed_forward_width(), false);
        }
        for i in 0..a.layers {
            list.layer(&format!("decoder.layers.{i}"), d, a.feed_forward_width(), true);
        }
    } else {
        for i in 0..a.layers {
            list.layer(&format!("encoder.layers.{i}"), d, a.feed_forward_width(), false);
        }
    }
    list.norm("ln_f", d);
    list.linear("head", n, d);
    list.0
}

struct List(Vec<(String, Vec<usize>)>);

impl List {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push((name, shape.to_vec()));
    }

    fn linear(&mut self, name: &str, out: usize, input: usize) {
        self.add(format!("{name}.weight"), &[out, input]);
        self.add(format!("{name}.bias"), &[out]);
    }

    fn norm(&mut self, name: &str, d: usize) {
        self.add(format!("{name}.weight"), &[d]);
        self.add(format!("{name}.bias"), &[d]);
    }

    fn attention(&mut self, name: &str, d: usize) {
        self.add(format!("{name}.in_proj_weight"), &[3 * d, d]);
        self.add(format!("{name}.in_proj_bias"), &[3 * d]);
        self.linear(&format!("{name}.out_proj"), d, d);
    }

    fn dit(&mut self, config: &PolicyConfig, dit: &Dit) {
        let (a, e) = (&config.architecture, dit.timestep_width);
        let (d, rows) = (a.width, 6 * a.width * a.layers);
        self.linear("time_emb.0", 2 * e, e);
        self.linear("time_emb.2", e, 2 * e);
        self.linear("modulation.time", rows, e);
        self.linear("modulation.observation", rows, a.n_obs_steps * config.condition_size());
        for i in 0..a.layers {
            let name = format!("encoder.layers.{i}");
            self.attention(&format!("{name}.self_attn"), d);
            self.linear(&format!("{name}.linear1"), a.feed_forward_width(), d);
            self.linear(&format!("{name}.linear2"), d, a.feed_forward_width());
        }
    }

    /// `nn.TransformerEncoderLayer`, or `nn.TransformerDecoderLayer` with cross-attention.
    fn layer(&mut self, name: &str, d: usize, feed_forward: usize, cross: bool) {
        self.attention(&format!("{name}.self_attn"), d);
        if cross {
            self.attention(&format!("{name}.multihead_attn"), d);
        }
        self.linear(&format!("{name}.linear1"), feed_forward, d);
        self.linear(&format!("{name}.linear2"), d, feed_forward);
        for i in 1..=2 + usize::from(cross) {
            self.norm(&format!("{name}.norm{i}"), d);
        }
    }
}

/// Whether a tensor of this shape serves as the expected one: equal, or a position table with rows to spare.
pub(crate) fn fits(name: &str, expected: &[usize], got: &[usize]) -> bool {
    match (expected, got) {
        (&[1, rows, d], &[1, got_rows, got_d]) if POSITION_TABLES.contains(&name) => {
            got_rows >= rows && got_d == d
        }
        _ => expected == got,
    }
}

/// Compares names and shapes with the expected ones; appends every difference.
pub(super) fn check<'a>(
    expected: &[(String, Vec<usize>)],
    got: impl Iterator<Item = (&'a str, &'a [usize])>,
    problems: &mut Vec<String>,
) {
    let shapes: BTreeMap<&str, &[usize]> = expected.iter().map(|(n, s)| (&n[..], &s[..])).collect();
    let mut seen = BTreeSet::new();
    for (name, shape) in got {
        match shapes.get(name) {
            None => problems.push(format!("weights: unexpected tensor {}", shown(name))),
            Some(expected) if !fits(name, expected, shape) => {
                problems.push(format!("weights: {name}: expected shape {expected:?}, got {shape:?}"));
            }
            Some(_) => {}
        }
        seen.insert(name);
    }
    for (name, shape) in expected.iter().filter(|(name, _)| !seen.contains(&name[..])) {
        problems.push(format!("weights: {name}: is missing, expected shape {shape:?}"));
    }
}

/// A name out of a file: quoted, escaped, cut to a length that a person reads.
pub(crate) fn shown(name: &str) -> String {
    const MOST: usize = 80;
    if name.chars().count() <= MOST {
        format!("{name:?}")
    } else {
        format!("{:?}...", name.chars().take(MOST).collect::<String>())
    }
}
