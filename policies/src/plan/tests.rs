//! Counts and invariants of compiled plans; no engine runs here.

use super::*;
use crate::schedule::{BlockKind, Cell, blocks};

/// A small policy with a sampler of K steps.
fn config(steps: usize, change: impl FnOnce(&mut toml::Table)) -> PolicyConfig {
    let text = format!(
        "format = 1\nname = \"small\"\nrate_hz = 10.0\n\
         [architecture]\nlayers = 2\nheads = 2\nwidth = 8\ncondition_layers = 0\ncausal = true\ntime_as_cond = true\n\
         obs_as_cond = true\nhorizon = 6\nn_obs_steps = 2\nn_action_steps = 4\n\
         [observation]\nnames = [\"a\", \"b\", \"c\"]\nunits = [\"\", \"\", \"\"]\n\
         [observation.normalizer]\nmode = \"manual\"\nscale = [1.0, 1.0, 1.0]\noffset = [0.0, 0.0, 0.0]\n\
         [action]\nnames = [\"x\", \"y\"]\nunits = [\"\", \"\"]\n\
         [action.normalizer]\nmode = \"manual\"\nscale = [1.0, 1.0]\noffset = [0.0, 0.0]\n\
         [sampler]\nkind = \"ddpm\"\ninference_steps = {steps}\ntrain_steps = {steps}\n\
         beta_schedule = \"linear\"\nbeta_start = 0.001\nbeta_end = 0.1\nprediction_type = \"epsilon\"\n\
         clip_sample = true\nclip_sample_range = 1.0\nvariance_type = \"fixed_small\"\n"
    );
    let mut table: toml::Table = text.parse().expect("TOML");
    change(&mut table);
    let config: PolicyConfig = table.try_into().expect("a configuration");
    assert_eq!(config.problems(), Vec::<String>::new());
    config
}

fn set(table: &mut toml::Table, section: &str, key: &str, value: impl Into<toml::Value>) {
    table[section].as_table_mut().expect("a table").insert(key.into(), value.into());
}

/// The kinds of trunk: condition encoder as perceptron and as layers, inpainting, encoder only, DiT.
fn kinds(steps: usize) -> Vec<PolicyConfig> {
    vec![
        config(steps, |_| ()),
        config(steps, |t| set(t, "architecture", "condition_layers", 2)),
        config(steps, |t| set(t, "architecture", "obs_as_cond", false)),
        config(steps, |t| {
            set(t, "architecture", "obs_as_cond", false);
            set(t, "architecture", "time_as_cond", false);
        }),
        dit(steps),
    ]
}

fn dit(steps: usize) -> PolicyConfig {
    config(steps, |t| {
        set(t, "architecture", "causal", false);
        let dit = toml::toml! { timestep_width = 6
        rotary_base = 100.0 };
        set(t, "architecture", "dit", dit);
    })
}

/// Which block an operation ends, if any.
fn ended(plan: &Plan, op: &Op) -> Option<String> {
    let Op::Linear(l) = op else { return None };
    let tensor = plan.matrices[l.matrix.0].tensor.strip_suffix(".weight")?;
    let (stack, rest) = tensor.split_once(".layers.")?;
    if stack == "encoder" && plan.schedule.rows().iter().any(|(b, _)| b.kind == BlockKind::CrossAttention) {
        return None;
    }
    let (layer, part) = rest.split_once('.')?;
    let kind = match part {
        "self_attn.out_proj" => "self_attention",
        "multihead_attn.out_proj" => "cross_attention",
        "linear2" => "feed_forward",
        _ => return None,
    };
    Some(format!("layer{layer}.{kind}"))
}

fn computed(plan: &Plan) -> Vec<String> {
    plan.ops().filter_map(|op| ended(plan, op)).collect()
}

/// Products, or gates, that end a block and keep its output for later steps.
fn stores(plan: &Plan) -> usize {
    let gated = count(plan, |op| matches!(op, Op::Gate(_))) > 0;
    let keeps = |op: &&Op| match op {
        Op::Gate(g) => g.output.is_some(),
        Op::Linear(l) => !gated && l.output.is_some() && ended(plan, op).is_some(),
        _ => false,
    };
    plan.denoise.iter().filter(keeps).count()
}

fn count(plan: &Plan, which: fn(&Op) -> bool) -> usize {
    plan.denoise.iter().filter(|op| which(op)).count()
}

fn compile(config: &PolicyConfig, schedule: &Schedule) -> Plan {
    let plan = Plan::compile(config, schedule).expect("a plan");
    assert_eq!(plan.cost().block_computations, computed(&plan).len());
    memory_is_sound(&plan);
    plan
}

/// Every view lies in its buffer and the arena, and no two buffers that are alive at the same time share a number.
///
/// A buffer is alive from its first write to its last read; what load writes and an inference reads, for ever. It is
/// found from the views alone, operation by operation and pair by pair.
fn memory_is_sound(plan: &Plan) {
    let timeline: Vec<(Vec<View>, Vec<View>)> = plan.ops().map(place::touched).collect();
    let end = timeline.len();
    let mut alive: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    let mut stretch = |buffer: BufferId, at: usize| {
        let (first, last) = alive[buffer.0].get_or_insert((at, at));
        (*first, *last) = ((*first).min(at), (*last).max(at));
    };
    for (i, (reads, writes)) in timeline.iter().enumerate() {
        for view in reads.iter().chain(writes) {
            let buffer = plan.buffers[view.buffer.0];
            assert!(view.rows > 0 && view.cols > 0 && view.cols <= view.stride);
            assert!(view.at + (view.rows - 1) * view.stride + view.cols <= buffer.len, "{view:?}");
            assert!(buffer.at + buffer.len <= plan.arena, "{buffer:?} beyond the arena of {}", plan.arena);
            stretch(view.buffer, i);
            let at_load = timeline[..plan.load.len()].iter().flat_map(|(_, w)| w);
            if i >= plan.load.len() && at_load.clone().any(|w| w.buffer == view.buffer) {
                stretch(view.buffer, end);
            }
        }
        // Nothing is overwritten while the same operation still reads it, but for what is updated in place.
        for write in writes {
            for read in reads.iter().filter(|read| *read != write) {
                assert!(read.buffer != write.buffer, "operation {i} writes the buffer of {read:?}");
            }
        }
    }
    for view in [plan.observation, plan.trajectory].iter().chain(plan.probes.iter().map(|p| &p.view)) {
        stretch(view.buffer, plan.load.len());
        stretch(view.buffer, end);
    }
    let used: Vec<usize> = (0..alive.len()).filter(|b| alive[*b].is_some()).collect();
    let mut most = 0;
    for (n, &a) in used.iter().enumerate() {
        for &b in &used[..n] {
            let ((a0, a1), (b0, b1)) = (alive[a].expect("used"), alive[b].expect("used"));
            let (x, y) = (plan.buffers[a], plan.buffers[b]);
            let together = a0 <= b1 && b0 <= a1;
            let shared = x.at < y.at + y.len && y.at < x.at + x.len;
            assert!(!(together && shared), "buffers {a} {x:?} and {b} {y:?} overlap in time and place");
        }
        let at = alive[a].expect("used").0;
        let live = used.iter().filter(|b| alive[**b].is_some_and(|(first, last)| first <= at && at <= last));
        most = most.max(live.map(|b| plan.buffers[*b].len.next_multiple_of(16)).sum::<usize>());
    }
    // First fit wastes something, but not as much again.
    assert!(plan.arena <= 2 * most, "the arena has {} numbers, {most} are alive at once", plan.arena);
}

#[test]
fn a_full_plan_computes_every_block_at_every_step() {
    for config in kinds(7) {
        let schedule = Schedule::full(&config.architecture, 7);
        let plan = compile(&config, &schedule);
        let all = blocks(&config.architecture).len();
        assert_eq!(computed(&plan).len(), 7 * all);
        let names: Vec<String> = blocks(&config.architecture).iter().map(ToString::to_string).collect();
        assert_eq!(computed(&plan), [(); 7].map(|()| names.clone()).concat());
        assert_eq!(count(&plan, |op| matches!(op, Op::Head(_))), 7);
        assert_eq!(count(&plan, |op| matches!(op, Op::Quiet(_))), 0);
        assert_eq!(stores(&plan), 0, "nobody reads a cache");
        assert!(plan.load.iter().all(|op| ended(&plan, op).is_none()));
    }
}

#[test]
fn a_full_plan_takes_no_more_memory_for_more_steps() {
    // Only what depends on the timesteps grows: for a perceptron their keys and values, for a DiT its modulation.
    for (few, many) in kinds(4).iter().zip(kinds(40)) {
        let arena = |c: &PolicyConfig, k: usize| compile(c, &Schedule::full(&c.architecture, k)).arena;
        let kept = if few.architecture.dit.is_some() { 6 } else { 2 };
        let per_step = few.architecture.width * (1 + kept * few.architecture.layers + 4 + 1);
        let (few, many) = (arena(few, 4), arena(&many, 40));
        assert!(many <= few + 36 * per_step, "{many} numbers for 40 steps, {few} for 4");
    }
}

#[test]
fn a_cache_is_hit() {
    for config in kinds(10) {
        let schedule = Schedule::aligned(&config.architecture, 10, &[0, 4, 9]).expect("a schedule");
        let plan = compile(&config, &schedule);
        let all = blocks(&config.architecture).len();
        assert_eq!(computed(&plan).len(), 3 * all);
        assert_eq!(schedule.updates(), 3 * all);
        let hits = 10 * all - computed(&plan).len();
        assert!(hits > 0, "a cache that is never hit");
        // The caches of the last update are read by nobody.
        assert_eq!(stores(&plan), 2 * all);
        let full = compile(&config, &Schedule::full(&config.architecture, 10));
        let (cached, full) = (plan.cost(), full.cost());
        assert!(cached.flops * 10 < full.flops * 5 && cached.operations * 10 < full.operations * 5);
    }
}

#[test]
fn quiet_steps_are_fused() {
    for config in kinds(10) {
        let schedule = Schedule::aligned(&config.architecture, 10, &[0, 4, 9]).expect("a schedule");
        let plan = compile(&config, &schedule);
        let runs: Vec<(usize, usize)> = plan
            .denoise
            .iter()
            .filter_map(|op| match op {
                Op::Quiet(q) => Some((q.head.step, q.samplers.len())),
                _ => None,
            })
            .collect();
        assert_eq!(runs, [(1, 3), (5, 4)]);
        let samplers = config.sampler.steps();
        for op in &plan.denoise {
            match op {
                Op::Quiet(q) => {
                    assert_eq!(q.samplers, samplers[q.head.step..][..q.samplers.len()]);
                    assert_eq!(q.embed.sum.map(|v| v.rows), Some(plan.shape.tokens));
                }
                Op::Head(h) => assert_eq!(h.sampler, samplers[h.step]),
                _ => {}
            }
        }
        // One sum of all blocks for each run, and nothing else but the update steps.
        let sums = plan.denoise.iter().filter(|op| matches!(op, Op::Combine(c) if c.terms.len() > 2));
        assert_eq!(sums.count(), 2);
    }
}

#[test]
fn neighbouring_reused_blocks_are_one_addition() {
    let config = config(6, |_| ());
    let first = blocks(&config.architecture);
    // The first block updates at every step, all others at step 0 only: one run of five blocks, five times.
    let rows = first.iter().map(|b| (*b, if *b == first[0] { (0..6).collect() } else { vec![0] }));
    let schedule = Schedule::from_updates(&config.architecture, 6, rows).expect("a schedule");
    let plan = compile(&config, &schedule);
    assert_eq!(computed(&plan).len(), 5 + first.len());
    let combines: Vec<&Combine> = plan
        .denoise
        .iter()
        .filter_map(|op| match op {
            Op::Combine(c) => Some(c),
            _ => None,
        })
        .collect();
    let sums = combines.iter().filter(|c| !c.accumulate).count();
    assert_eq!((sums, combines.len()), (1, 6), "one sum, added at five steps");
    assert_eq!(combines.iter().filter(|c| c.accumulate && c.terms.len() == 1).count(), 5);
    // Only what the sum reads is kept: the first block's output never is.
    assert_eq!(stores(&plan), first.len() - 1);
}

#[test]
fn weights_reach_back_and_zeros_vanish() {
    let config = config(4, |_| ());
    let cells = vec![Cell::Update, Cell::Update, Cell::Reuse(vec![0.0, 1.0]), Cell::Reuse(vec![2.0, -1.0])];
    let rows = blocks(&config.architecture).into_iter().map(|b| (b, cells.clone())).collect();
    let schedule = Schedule::new(&config.architecture, 4, rows).expect("a schedule");
    let plan = compile(&config, &schedule);
    let sums: Vec<Vec<f32>> = plan
        .denoise
        .iter()
        .filter_map(|op| match op {
            Op::Combine(c) => Some(c.terms.iter().map(|t| t.0).collect()),
            _ => None,
        })
        .collect();
    let all = blocks(&config.architecture).len();
    assert_eq!(sums, [vec![1.0; all], [2.0, -1.0].repeat(all)]);
    assert_eq!(stores(&plan), 2 * all);
    let nothing = vec![Cell::Update, Cell::Reuse(vec![0.0]), Cell::Reuse(vec![0.0]), Cell::Reuse(vec![0.0])];
    let rows = blocks(&config.architecture).into_iter().map(|b| (b, nothing.clone())).collect();
    let plan = compile(&config, &Schedule::new(&config.architecture, 4, rows).expect("a schedule"));
    assert_eq!(stores(&plan), 0);
    assert_eq!(count(&plan, |op| matches!(op, Op::Combine(_))), 0);
}

/// A DDIM sampler whose second step goes from one timestep to another with the same signal: its x stays as it is, and
/// what the denoiser says has no weight.
fn idle() -> PolicyConfig {
    config(3, |t| {
        set(t, "sampler", "kind", "ddim");
        set(t, "sampler", "prediction_type", "sample");
        // 1 - 1e-9 is 1 in f32, so timesteps 1 and 0 have the same signal.
        set(t, "sampler", "trained_betas", toml::Value::Array(vec![0.25.into(), 1e-9.into(), 0.25.into()]));
        set(t, "sampler", "use_clipped_model_output", true);
    })
}

#[test]
fn an_update_that_nobody_reads_is_gone() {
    let config = idle();
    let steps = config.sampler.steps();
    assert_eq!(steps.iter().map(|s| s.reads_model()).collect::<Vec<_>>(), [true, false, true], "{steps:?}");
    let all = blocks(&config.architecture).len();
    // Everything is computed at every step: what step 1 computes goes nowhere.
    let full = Schedule::full(&config.architecture, 3);
    let plan = compile(&config, &full);
    assert_eq!((computed(&plan).len(), full.updates()), (2 * all, 3 * all));
    // Step 2 reuses what step 1 computed: nothing may go.
    let kept = Schedule::aligned(&config.architecture, 3, &[0, 1]).expect("a schedule");
    assert_eq!(computed(&compile(&config, &kept)).len(), 2 * all);
    // Step 2 reuses only the first block of step 1: what follows it in step 1 is gone.
    let first = blocks(&config.architecture)[0];
    let rows = blocks(&config.architecture)
        .into_iter()
        .map(|b| (b, if b == first { vec![0, 1] } else { vec![0, 1, 2] }));
    let schedule = Schedule::from_updates(&config.architecture, 3, rows).expect("a schedule");
    assert_eq!(computed(&compile(&config, &schedule)).len(), 2 * all);
    // Traced plans keep everything.
    let traced = Plan::traced(&config, &full).expect("a plan");
    assert_eq!(computed(&traced).len(), 3 * all);
    memory_is_sound(&traced);
}

#[test]
fn what_depends_on_timestep_or_observation_alone_leaves_the_loop() {
    let config = config(9, |_| ());
    let plan = compile(&config, &Schedule::full(&config.architecture, 9));
    let uses = |ops: &[Op], tensor: &str| {
        let of = |op: &&Op| matches!(op, Op::Linear(l) if plan.matrices[l.matrix.0].tensor == tensor);
        ops.iter().filter(of).count()
    };
    for tensor in ["encoder.0.weight", "encoder.2.weight"] {
        assert_eq!([&plan.load, &plan.observe, &plan.denoise].map(|ops| uses(ops, tensor)), [1, 1, 0]);
    }
    // Keys and values per layer: once at load for all timesteps, once per inference; in the loop only the queries.
    let cross = "decoder.layers.0.multihead_attn.in_proj_weight";
    assert_eq!([&plan.load, &plan.observe, &plan.denoise].map(|ops| uses(ops, cross)), [1, 1, 9]);
    assert_eq!(uses(&plan.observe, "cond_obs_emb.weight"), 1);
}

#[test]
fn the_modulation_of_a_dit_leaves_the_loop() {
    let config = dit(9);
    let plan = compile(&config, &Schedule::full(&config.architecture, 9));
    let products = |ops: &[Op]| -> Vec<String> {
        let of = |op: &Op| match op {
            Op::Linear(l) => Some(plan.matrices[l.matrix.0].tensor.clone()),
            _ => None,
        };
        ops.iter().filter_map(of).collect()
    };
    assert_eq!(products(&plan.load), ["time_emb.0.weight", "time_emb.2.weight", "modulation.time.weight"]);
    assert_eq!(products(&plan.observe), ["modulation.observation.weight"]);
    assert!(products(&plan.denoise).iter().all(|name| name.starts_with("encoder.layers.")));
    assert_eq!(count(&plan, |op| matches!(op, Op::Gate(_))), 9 * blocks(&config.architecture).len());
}

#[test]
fn a_schedule_of_another_shape_is_refused() {
    let config = config(5, |_| ());
    let longer = Schedule::full(&config.architecture, 6);
    assert_eq!(Plan::compile(&config, &longer).err(), Some(PlanError::Steps { expected: 5, got: 6 }));
    let mut other = config.architecture.clone();
    other.layers = 3;
    let deeper = Schedule::full(&other, 5);
    assert_eq!(Plan::compile(&config, &deeper).err(), Some(PlanError::Blocks { expected: 6, got: 9 }));
}
