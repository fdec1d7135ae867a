//! Dead-work removal and memory placement: what nobody reads is dropped, and every buffer gets its place.

use super::{Buffer, BufferId, Gate, Head, Linear, Op, Plan, View};

/// Every placed buffer starts on a cache line of f32s.
const ALIGN: usize = 16;

/// Views that an operation reads and writes; one that is updated in place stands in both.
pub(super) fn touched(op: &Op) -> (Vec<View>, Vec<View>) {
    match op {
        Op::Timesteps { output, .. } => (vec![], vec![*output]),
        Op::Start { trajectory, impose, known, .. } => {
            (impose.iter().chain(known).copied().collect(), vec![*trajectory])
        }
        Op::Linear(l) => (
            std::iter::once(l.input).chain(l.residual).collect(),
            l.output.into_iter().chain(l.residual).collect(),
        ),
        Op::Silu { input, output } => (vec![*input], vec![*output]),
        Op::Modulate(m) => (
            vec![m.input, m.shift.time, m.shift.observation, m.scale.time, m.scale.observation],
            vec![m.output],
        ),
        Op::Gate(g) => (
            [g.input, g.gate.time, g.gate.observation].into_iter().chain(g.residual).collect(),
            g.output.into_iter().chain(g.residual).collect(),
        ),
        Op::Rotate(r) => (vec![r.tokens], vec![r.tokens]),
        Op::Attention(a) => (
            std::iter::once(a.query).chain(a.segments.iter().flat_map(|s| [s.keys, s.values])).collect(),
            vec![a.output],
        ),
        Op::Combine(c) => {
            (c.terms.iter().map(|t| t.1).chain(c.accumulate.then_some(c.output)).collect(), vec![c.output])
        }
        Op::Embed(e) => (std::iter::once(e.trajectory).chain(e.sum).collect(), vec![e.output]),
        Op::Head(h) => head_touched(h),
        Op::Quiet(q) => {
            let (mut reads, writes) = head_touched(&q.head);
            reads.retain(|view| *view != q.head.input);
            reads.extend(q.embed.sum);
            (reads, writes)
        }
    }
}

fn head_touched(h: &Head) -> (Vec<View>, Vec<View>) {
    (
        [h.input, h.trajectory].into_iter().chain(h.impose).chain(h.known).collect(),
        std::iter::once(h.trajectory).chain(h.model).collect(),
    )
}

/// Drops operations and stores that do not reach the trajectory or a probe, walking backwards.
pub(super) fn drop_dead(plan: &mut Plan) {
    let mut live = vec![false; plan.buffers.len()];
    live[plan.trajectory.buffer.0] = true;
    for probe in &plan.probes {
        live[probe.view.buffer.0] = true;
    }
    for list in [&mut plan.denoise, &mut plan.observe, &mut plan.load] {
        let mut kept: Vec<Op> = Vec::with_capacity(list.len());
        for mut op in list.drain(..).rev() {
            if let Op::Linear(Linear { output, residual, .. }) | Op::Gate(Gate { output, residual, .. }) =
                &mut op
            {
                *output = output.filter(|v| live[v.buffer.0]);
                *residual = residual.filter(|v| live[v.buffer.0]);
            }
            let (reads, writes) = touched(&op);
            if writes.iter().any(|v| live[v.buffer.0]) {
                reads.iter().for_each(|v| live[v.buffer.0] = true);
                kept.push(op);
            }
        }
        kept.reverse();
        *list = kept;
    }
}

/// Places every used buffer; two share memory when one is dead before the other is born.
///
/// What `load` writes stays for ever; what an inference writes lives from its first write to its last use. What an
/// attention reads lives one operation longer, so that an engine may do the product that follows in the same kernel.
pub(super) fn place(plan: &mut Plan) {
    let timeline: Vec<(Vec<View>, Vec<View>)> = plan.ops().map(touched).collect();
    let attends: Vec<bool> = plan.ops().map(|op| matches!(op, Op::Attention(_))).collect();
    let loaded = plan.load.len();
    let mut life: Vec<Option<(usize, usize)>> = vec![None; plan.buffers.len()];
    let mut written_at_load = vec![false; plan.buffers.len()];
    for view in timeline[..loaded].iter().flat_map(|(_, writes)| writes) {
        written_at_load[view.buffer.0] = true;
    }
    let mut extend = |buffer: BufferId, from: usize, to: usize| {
        let span = life[buffer.0].get_or_insert((from, to));
        *span = (span.0.min(from), span.1.max(to));
    };
    let end = timeline.len();
    for (i, (reads, writes)) in timeline.iter().enumerate() {
        for view in reads.iter().chain(writes) {
            extend(view.buffer, i, i + usize::from(attends[i]));
            // Written at load and read by inferences: it must survive all of them.
            if i >= loaded && written_at_load[view.buffer.0] {
                extend(view.buffer, 0, end);
            }
        }
    }
    extend(plan.observation.buffer, 0, end);
    extend(plan.trajectory.buffer, 0, end);
    if let Some(known) = plan.known {
        extend(known.buffer, 0, end);
    }
    for probe in &plan.probes {
        extend(probe.view.buffer, 0, end);
    }
    let mut order: Vec<usize> = (0..plan.buffers.len()).filter(|&b| life[b].is_some()).collect();
    order.sort_by_key(|&b| (life[b].map(|l| l.0), std::cmp::Reverse(plan.buffers[b].len)));
    let mut arena = Arena::default();
    let mut alive: Vec<usize> = Vec::new();
    for b in order {
        let (born, _) = life[b].unwrap_or_default();
        alive.retain(|&other| {
            let dead = life[other].is_some_and(|l| l.1 < born);
            if dead {
                arena.free(plan.buffers[other]);
            }
            !dead
        });
        plan.buffers[b].at = arena.take(plan.buffers[b].len);
        alive.push(b);
    }
    plan.arena = arena.size;
}

/// First-fit allocator over free gaps, in units of [`ALIGN`].
#[derive(Default)]
struct Arena {
    gaps: Vec<Buffer>,
    size: usize,
}

impl Arena {
    fn take(&mut self, len: usize) -> usize {
        let len = len.next_multiple_of(ALIGN);
        if let Some(gap) = self.gaps.iter_mut().find(|g| g.len >= len) {
            let at = gap.at;
            gap.at += len;
            gap.len -= len;
            return at;
        }
        let at = self.size;
        self.size += len;
        at
    }

    fn free(&mut self, buffer: Buffer) {
        let freed = Buffer { at: buffer.at, len: buffer.len.next_multiple_of(ALIGN) };
        let next = self.gaps.partition_point(|g| g.at < freed.at);
        self.gaps.insert(next, freed);
        self.gaps.dedup_by(|later, earlier| {
            let joined = earlier.at + earlier.len == later.at;
            if joined {
                earlier.len += later.len;
            }
            joined
        });
        self.gaps.retain(|g| g.len > 0);
    }
}
