//! Exponential, GELU, SiLU and Mish on sixteen lanes.

#![allow(unsafe_code, reason = "vector instructions; see `lanes`")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "every block rests on the contract of `Lanes`")]

use super::lanes::Lanes;
use refrain_policies::plan::Activation;

/// `e^x`, clamped to -87 ..= 88; relative error below 2e-7.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    unsafe {
        // The bound comes first, so that NaN passes through.
        let x = L::min(L::splat(88.0), L::max(L::splat(-87.0), x));
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, so that the remainder keeps its bits.
        let f = L::fma(n, L::splat(-0.693_359_4), x);
        let f = L::fma(n, L::splat(2.121_944_4e-4), f);
        let mut p = L::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = L::fma(p, f, L::splat(c));
        }
        L::scale(p, n)
    }
}

/// `0.5 x (1 + erf(x / sqrt 2))`, with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
#[inline(always)]
pub(super) unsafe fn gelu<L: Lanes>(x: L::V) -> L::V {
    unsafe {
        let magnitude = L::abs(x);
        let z = L::mul(magnitude, L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = L::div(L::splat(1.0), L::fma(z, L::splat(0.327_591_1), L::splat(1.0)));
        let mut p = L::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
            p = L::fma(p, t, L::splat(c));
        }
        let tail = L::mul(L::mul(p, t), exp::<L>(L::sub(L::splat(0.0), L::mul(z, z))));
        let erf = L::sub(L::splat(1.0), tail);
        // erf is odd, so x erf(x) = |x| erf(|x|).
        L::mul(L::splat(0.5), L::fma(magnitude, erf, x))
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) unsafe fn silu<L: Lanes>(x: L::V) -> L::V {
    unsafe { L::div(x, L::add(L::splat(1.0), exp::<L>(L::sub(L::splat(0.0), x)))) }
}

/// `0.5 x (1 + tanh(z))` with `z = sqrt(2 / pi) (x + 0.044715 x^3)`, as `x / (1 + e^(-2 z))`.
#[inline(always)]
pub(super) unsafe fn gelu_tanh<L: Lanes>(x: L::V) -> L::V {
    // 2 sqrt(2 / pi)
    const RATE: f32 = 1.595_769;
    unsafe {
        let cubic = L::fma(L::mul(x, x), L::splat(RATE * 0.044_715), L::splat(RATE));
        let e = exp::<L>(L::sub(L::splat(0.0), L::mul(x, cubic)));
        L::div(x, L::add(L::splat(1.0), e))
    }
}

/// `x tanh(ln(1 + e^x))`, as `x n / (n + 2)` with `n = e^x (e^x + 2)`.
#[inline(always)]
pub(super) unsafe fn mish<L: Lanes>(x: L::V) -> L::V {
    unsafe {
        let e = exp::<L>(L::min(L::splat(20.0), x));
        let n = L::mul(e, L::add(e, L::splat(2.0)));
        L::mul(x, L::div(n, L::add(n, L::splat(2.0))))
    }
}

#[inline(always)]
pub(super) unsafe fn activate<L: Lanes>(activation: Activation, x: L::V) -> L::V {
    unsafe {
        match activation {
            Activation::None => x,
            Activation::Gelu => gelu::<L>(x),
            Activation::GeluTanh => gelu_tanh::<L>(x),
            Activation::Mish => mish::<L>(x),
        }
    }
}
