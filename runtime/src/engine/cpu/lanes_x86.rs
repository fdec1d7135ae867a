//! The lanes of AVX-512 (one register) and AVX2 (two registers).

#![allow(clippy::undocumented_unsafe_blocks, reason = "every block rests on the contract of `Lanes`")]
#![allow(clippy::wildcard_imports, reason = "fifty intrinsics, each named by its prefix")]

use std::arch::x86_64::*;

use super::{LANES, Lanes};

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(in crate::engine::cpu) struct Avx512;

/// Two 256-bit registers.
#[derive(Clone, Copy)]
pub(in crate::engine::cpu) struct Avx2;

impl Lanes for Avx512 {
    type V = __m512;
    const ROWS: usize = 16;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::V {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps(mask(n), p) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask(n), v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn transpose(r: [Self::V; LANES], p: *mut f32) {
        // Pairs, then fours, then 128-bit quarters twice.
        unsafe {
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut q = t;
            for i in 0..4 {
                for j in 0..2 {
                    let (a, b) = (_mm512_castps_pd(t[4 * i + j]), _mm512_castps_pd(t[4 * i + j + 2]));
                    q[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    q[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // q[4 i + c] holds, per quarter g, column 4 g + c of rows 4 i .. 4 i + 4.
            for c in 0..4 {
                let (a, b, d, e) = (q[c], q[4 + c], q[8 + c], q[12 + c]);
                let low = _mm512_shuffle_f32x4::<0x88>(a, b);
                let high = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let low2 = _mm512_shuffle_f32x4::<0x88>(d, e);
                let high2 = _mm512_shuffle_f32x4::<0xdd>(d, e);
                _mm512_storeu_ps(p.add(LANES * c), _mm512_shuffle_f32x4::<0x88>(low, low2));
                _mm512_storeu_ps(p.add(LANES * (4 + c)), _mm512_shuffle_f32x4::<0x88>(high, high2));
                _mm512_storeu_ps(p.add(LANES * (8 + c)), _mm512_shuffle_f32x4::<0xdd>(low, low2));
                _mm512_storeu_ps(p.add(LANES * (12 + c)), _mm512_shuffle_f32x4::<0xdd>(high, high2));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

#[inline(always)]
fn mask(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

macro_rules! both {
    ($f:ident, $a:expr $(, $b:expr)*) => { unsafe { [$f($a[0] $(, $b[0])*), $f($a[1] $(, $b[1])*)] } };
}

impl Lanes for Avx2 {
    type V = [__m256; 2];
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::V {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        let mut out = [0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), n);
            Self::load(out.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        let mut out = [0f32; LANES];
        unsafe {
            Self::store(out.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(out.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        let sign = unsafe { [_mm256_set1_ps(-0.0); 2] };
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<MODE>(a[0]), _mm256_round_ps::<MODE>(a[1])] }
    }
    #[inline(always)]
    unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n[0]), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n[1]), bias));
            Self::mul(a, [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)])
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        let mut out = [0f32; LANES];
        unsafe { Self::store(out.as_mut_ptr(), a) };
        out.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: Self::V) -> f32 {
        let mut out = [0f32; LANES];
        unsafe { Self::store(out.as_mut_ptr(), a) };
        out.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::V; LANES], p: *mut f32) {
        let mut block = [[0f32; LANES]; LANES];
        for (line, row) in block.iter_mut().zip(rows) {
            unsafe { Self::store(line.as_mut_ptr(), row) };
        }
        for c in 0..LANES {
            for (r, line) in block.iter().enumerate() {
                unsafe { p.add(LANES * c + r).write(line[c]) };
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
