//! Sixteen f32 lanes: one interface, three instruction sets, chosen once at load.
//!
//! Kernels are written once over [`Lanes`] and compiled per instruction set by [`dispatch`]. They hold no closures:
//! a closure does not inherit the instruction set and would call every operation as a function. A `load` or `store` of
//! `n < 16` lanes touches only `n` elements; the other lanes of a load are zero.

#![allow(
    unsafe_code,
    reason = "vector instructions and raw pointers; every caller passes pointers into bounds-checked views"
)]
#![allow(clippy::missing_safety_doc, reason = "one contract for all: stated on the trait")]

/// Lanes per vector, whatever the instruction set.
pub(super) const LANES: usize = 16;

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512F.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of plain loops; NEON on aarch64.
    Portable,
}

impl Isa {
    /// The widest that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All that this processor has, for comparisons.
    pub fn available() -> Vec<Self> {
        let widest = Self::detect();
        [Self::Avx512, Self::Avx2, Self::Portable].into_iter().skip_while(|isa| *isa != widest).collect()
    }
}

/// Vector operations.
///
/// # Safety
/// The processor has the instruction set; pointers are valid for `n` (or 16) elements of their type, `n <= 16`.
pub(super) trait Lanes: Copy {
    /// Sixteen f32.
    type V: Copy;
    /// Rows of a product that fit into the registers.
    const ROWS: usize;

    unsafe fn splat(v: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V;
    unsafe fn load_f16(p: *const u16) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for whole n in -126..=127.
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn largest(a: Self::V) -> f32;
    /// Writes the transpose of sixteen rows: `p[16 * c + r] = rows[r][c]`.
    unsafe fn transpose(rows: [Self::V; LANES], p: *mut f32);
    unsafe fn prefetch(p: *const u8);
}

/// Plain loops.
#[derive(Clone, Copy)]
pub(super) struct Portable;

macro_rules! lanewise {
    ($($lane:ident),* => $e:expr) => {{
        let mut out = [0f32; LANES];
        for (i, o) in out.iter_mut().enumerate() {
            $(let $lane = $lane[i];)*
            *o = $e;
        }
        out
    }};
}

impl Lanes for Portable {
    type V = [f32; LANES];
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::V {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        let mut out = [0f32; LANES];
        // SAFETY: the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), n) };
        out
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        // SAFETY: the trait's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        // Shifting gives the number times 2^-112, subnormals included; weights are finite.
        lanewise!(bits => {
            let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(239 << 23);
            f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
        })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) };
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b => if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Without an FMA instruction `mul_add` is a slow library call.
        lanewise!(a, b, c => if cfg!(target_feature = "neon") { a.mul_add(b, c) } else { a * b + c })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        lanewise!(a => a.abs())
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        lanewise!(a => a.round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        lanewise!(a, n => a * f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES], p: *mut f32) {
        for c in 0..LANES {
            for (r, row) in rows.iter().enumerate() {
                // SAFETY: the trait's contract: 256 elements.
                unsafe { p.add(LANES * c + r).write(row[c]) };
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86.rs"]
mod x86;

/// Calls `kernel::<L>(arguments)` compiled for the instruction set at hand.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident ( $($name:ident : $ty:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,fma")]
        unsafe fn avx512($($name: $ty),*) {
            // SAFETY: the caller's contract.
            unsafe { $kernel::<$crate::engine::cpu::lanes::Avx512>($($name),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($name: $ty),*) {
            // SAFETY: the caller's contract.
            unsafe { $kernel::<$crate::engine::cpu::lanes::Avx2>($($name),*) }
        }
        match $isa {
            // SAFETY: `Isa::detect` saw the instruction set; the rest is the caller's contract.
            #[cfg(target_arch = "x86_64")]
            $crate::engine::cpu::lanes::Isa::Avx512 => unsafe { avx512($($name),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::engine::cpu::lanes::Isa::Avx2 => unsafe { avx2($($name),*) },
            // SAFETY: the caller's contract.
            _ => unsafe { $kernel::<$crate::engine::cpu::lanes::Portable>($($name),*) },
        }
    }};
}
pub(super) use dispatch;
