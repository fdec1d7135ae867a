//! `refrain plan`: what a policy and a schedule compile to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use refrain_policies::plan::{Op, Plan};
use refrain_policies::schedule::Cell;

use super::selection::{FULL, SamplerArgs, Selected, load};
use super::{Outcome, say};
use crate::picture;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Policy package.
    policy: PathBuf,
    #[command(flatten)]
    sampler: SamplerArgs,
    /// Cache schedule of the policy, or `full`.
    #[arg(long, value_name = "NAME", default_value = FULL)]
    schedule: String,
    /// Picture to write: blocks by denoising steps.
    #[arg(long, value_name = "FILE", default_value = "plan.svg")]
    svg: PathBuf,
    /// Also list every operation.
    #[arg(long)]
    ops: bool,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let package = load(&self.policy)?;
        let selected = Selected::new(&self.policy, package, self.sampler, &self.schedule)?;
        let plan = selected.plan()?;
        let title = format!(
            "{} · {} · schedule {}",
            selected.config.name,
            selected.config.sampler.label(),
            selected.name
        );
        say!("{title}");
        say!("{}", summary(&plan).trim_end());
        if self.ops {
            for (phase, ops) in [("load", &plan.load), ("observe", &plan.observe), ("denoise", &plan.denoise)]
            {
                ops.iter().enumerate().for_each(|(i, op)| say!("{phase} {i}: {}", line(&plan, op)));
            }
        }
        std::fs::write(&self.svg, picture::heat_map(&plan, &title))
            .map_err(|e| format!("{}: {e}; choose another file with --svg", self.svg.display()))?;
        say!("picture: {}", self.svg.display());
        Ok(())
    }
}

/// Name of an operation's kernel.
fn kernel(op: &Op) -> &'static str {
    match op {
        Op::Timesteps { .. } => "timesteps",
        Op::Start { .. } => "start",
        Op::Linear(_) => "linear",
        Op::Silu { .. } => "silu",
        Op::Modulate(_) => "modulate",
        Op::Gate(_) => "gate",
        Op::Rotate(_) => "rotate",
        Op::Attention(_) => "attention",
        Op::Combine(_) => "combine",
        Op::Embed(_) => "embed",
        Op::Head(_) => "head",
        Op::Quiet(_) => "quiet",
    }
}

fn line(plan: &Plan, op: &Op) -> String {
    let detail = match op {
        Op::Linear(l) => {
            let m = &plan.matrices[l.matrix.0];
            format!(
                "[{}, {}] x {} rows {}..{}{}{}",
                l.input.rows,
                l.input.cols,
                m.tensor,
                m.first,
                m.first + m.rows,
                if l.output.is_some() { ", stored" } else { "" },
                if l.residual.is_some() { ", added" } else { "" }
            )
        }
        Op::Attention(a) => {
            format!("{} tokens to {}", a.query.rows, a.segments.iter().map(|s| s.keys.rows).sum::<usize>())
        }
        Op::Combine(c) => format!("{} terms{}", c.terms.len(), if c.accumulate { ", added" } else { "" }),
        Op::Head(h) => format!("step {}, timestep {}", h.step, h.sampler.timestep),
        Op::Quiet(q) => format!("steps {}..{}", q.head.step, q.head.step + q.samplers.len()),
        Op::Rotate(r) => format!("{} tokens, {} heads", r.tokens.rows, r.tokens.cols / r.depth),
        Op::Modulate(_) | Op::Gate(_) | Op::Silu { .. } => String::new(),
        Op::Timesteps { .. } | Op::Start { .. } | Op::Embed(_) => String::new(),
    };
    format!("{} {detail}", kernel(op))
}

fn summary(plan: &Plan) -> String {
    use std::fmt::Write;
    let cost = plan.cost();
    let blocks = plan.schedule.rows().len();
    let total = plan.shape.steps * blocks;
    let mut out = String::new();
    let quiet: usize =
        plan.denoise.iter().map(|op| if let Op::Quiet(q) = op { q.samplers.len() } else { 0 }).sum();
    let mut counted = BTreeMap::new();
    for op in plan.observe.iter().chain(&plan.denoise) {
        *counted.entry(kernel(op)).or_insert(0) += 1;
    }
    let counts: Vec<String> = counted.iter().map(|(name, n)| format!("{n} {name}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "  block computations  {} of {total} ({:.1} %)",
        cost.block_computations,
        100.0 * cost.block_computations as f64 / total as f64
    );
    let _ = writeln!(
        out,
        "  steps with updates  {} of {}, {quiet} quiet steps fused",
        cost.steps_with_updates, plan.shape.steps
    );
    let _ = writeln!(out, "  operations          {} per inference: {}", cost.operations, counts.join(", "));
    let _ = writeln!(out, "  at load             {} operations", plan.load.len());
    let _ = writeln!(out, "  FLOPs               {:.3} G", cost.flops as f64 / 1e9);
    let _ = writeln!(
        out,
        "  bytes moved         {:.1} MB of weights (f16), {:.1} MB of activations",
        cost.weights as f64 * 2e-6,
        cost.arena_traffic as f64 * 4e-6
    );
    let used = plan.buffers.iter().map(|b| b.len).sum::<usize>();
    let _ = writeln!(
        out,
        "  buffers             {} in {:.2} MB ({:.1} MB without sharing)",
        plan.buffers.len(),
        plan.arena as f64 * 4e-6,
        used as f64 * 4e-6
    );
    let _ = writeln!(out, "  updates per block");
    for (block, cells) in plan.schedule.rows() {
        let at: Vec<String> = cells
            .iter()
            .enumerate()
            .filter(|(_, c)| **c == Cell::Update)
            .map(|(k, _)| k.to_string())
            .collect();
        let shown = if at.len() > 24 { "…".to_owned() } else { at.join(" ") };
        let _ = writeln!(out, "    {:<24} {:>3}  {shown}", block.to_string(), at.len());
    }
    out
}
