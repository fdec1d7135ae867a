//! The inner product kernel: up to sixteen rows times a panel of sixteen outputs, all sums in registers.

#![allow(unsafe_code, reason = "vector instructions on raw pointers; see `lanes`")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every block rests on the contract stated on the function"
)]

use super::lanes::{LANES, Lanes};

/// LayerNorm epsilon of torch.nn.
pub(super) const EPSILON: f32 = 1e-5;

/// A panel's weights as they lie in memory.
pub(super) trait Weight: Copy {
    /// Sixteen weights as f32.
    ///
    /// # Safety
    /// Sixteen elements are readable; the processor has the instruction set.
    unsafe fn load<L: Lanes>(p: *const Self) -> L::V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::V {
        unsafe { L::load(p) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::V {
        unsafe { L::load_f16(p) }
    }
}

/// Steps ahead of which weights are fetched; a panel step is 32 or 64 bytes.
const AHEAD: usize = 32;

/// `acc[r] = sum over k of packed[k][r] * panel[k]`; rows lie 16 apart in `packed`.
#[inline(always)]
unsafe fn rows<L: Lanes, W: Weight, const R: usize>(
    packed: *const f32,
    panel: *const W,
    depth: usize,
    out: *mut f32,
) {
    unsafe {
        let mut acc = [L::splat(0.0); R];
        for k in 0..depth {
            L::prefetch(panel.wrapping_add((k + AHEAD) * LANES).cast());
            let w = W::load::<L>(panel.add(k * LANES));
            let a = packed.add(k * LANES);
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = L::fma(L::splat(*a.add(r)), w, *acc);
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            L::store(out.add(r * LANES), acc);
        }
    }
}

/// `out[r][c] = sum over k of packed[k][r] * panel[k][c]` for `r < n`, rows of `out` 16 apart.
///
/// # Safety
/// `packed` and `panel` hold `16 depth` elements, `out` 256; `n <= 16`.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes, W: Weight>(
    packed: *const f32,
    panel: *const W,
    depth: usize,
    n: usize,
    out: *mut f32,
) {
    let mut first = 0;
    while first < n {
        let size = (n - first).min(L::ROWS);
        unsafe {
            let (a, o) = (packed.add(first), out.add(first * LANES));
            match size {
                1 => rows::<L, W, 1>(a, panel, depth, o),
                2 => rows::<L, W, 2>(a, panel, depth, o),
                3 => rows::<L, W, 3>(a, panel, depth, o),
                4 => rows::<L, W, 4>(a, panel, depth, o),
                5..=6 if L::ROWS <= 6 => rows::<L, W, 6>(a, panel, depth, o),
                5..=8 => rows::<L, W, 8>(a, panel, depth, o),
                9..=12 => rows::<L, W, 12>(a, panel, depth, o),
                _ => rows::<L, W, 16>(a, panel, depth, o),
            }
        }
        first += size;
    }
}

/// Transposes up to sixteen rows into `packed[k][r]`, through LayerNorm if `norm` (gain, bias) is given; missing rows
/// are zero.
///
/// # Safety
/// `input` holds `n` rows of `depth` elements, `stride` apart; `packed` holds `16 depth.next_multiple_of(16)`;
/// gain and bias hold `depth`.
#[inline(always)]
pub(super) unsafe fn pack<L: Lanes>(
    input: *const f32,
    stride: usize,
    n: usize,
    depth: usize,
    norm: Option<(*const f32, *const f32)>,
    packed: *mut f32,
) {
    unsafe {
        let mut moments = [(0f32, 1f32); LANES];
        if norm.is_some() {
            for (r, m) in moments.iter_mut().enumerate().take(n) {
                *m = self::moments::<L>(input.add(r * stride), depth, EPSILON);
            }
        }
        for k in (0..depth).step_by(LANES) {
            let width = (depth - k).min(LANES);
            let mut block = [L::splat(0.0); LANES];
            for (r, v) in block.iter_mut().enumerate().take(n) {
                *v = L::load_n(input.add(r * stride + k), width);
            }
            if let Some((gain, bias)) = norm {
                let (gain, bias) = (L::load_n(gain.add(k), width), L::load_n(bias.add(k), width));
                for (v, (mean, scale)) in block.iter_mut().zip(moments).take(n) {
                    let centred = L::mul(L::sub(*v, L::splat(mean)), L::splat(scale));
                    *v = L::fma(centred, gain, bias);
                }
            }
            L::transpose(block, packed.add(k * LANES));
        }
    }
}

/// Mean and reciprocal deviation of one row, `epsilon` added to the variance.
#[inline(always)]
pub(super) unsafe fn moments<L: Lanes>(row: *const f32, depth: usize, epsilon: f32) -> (f32, f32) {
    unsafe {
        let mut sum = L::splat(0.0);
        for k in (0..depth).step_by(LANES) {
            sum = L::add(sum, L::load_n(row.add(k), (depth - k).min(LANES)));
        }
        let mean = L::sum(sum) / depth as f32;
        let centre = L::splat(mean);
        let mut squares = L::splat(0.0);
        let whole = depth - depth % LANES;
        for k in (0..whole).step_by(LANES) {
            let d = L::sub(L::load(row.add(k)), centre);
            squares = L::fma(d, d, squares);
        }
        let mut variance = L::sum(squares);
        for k in whole..depth {
            let d = *row.add(k) - mean;
            variance += d * d;
        }
        (mean, 1.0 / (variance / depth as f32 + epsilon).sqrt())
    }
}
