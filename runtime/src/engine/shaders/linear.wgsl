// `linear`: value = activation(norm(input) matrix^T + bias) + table, then output = value and
// residual += value + terms. Twin: `cpu/linear.rs`.
//
// One workgroup computes ROWS rows times COLS outputs, a thread 2 rows times 2 outputs over every SPLITth piece of
// the input; nothing waits for another thread before the sums. LayerNorm is folded into the one pass: with
// d = x - x[0], norm(x) w + b = scale * (sum(gain d w) - mean(d) * sum(gain w)) + (sum(norm bias w) + b), where the
// last two sums come from the weights alone.
// Element e of a lane's j-th eight weights is for input `8 SPLIT j + 4 SPLIT (e / 4) + 4 lane + e % 4`.

/// Outputs of a workgroup.
override COLS: u32 = 16u;
/// Threads that share an output's inputs.
override SPLIT: u32 = 8u;
/// Eights that a lane fetches at once: 1, 2 or 4; a lane's number of eights is a multiple.
override STEPS: u32 = 4u;
/// Inputs lie on multiples of four.
override VECTOR: bool = false;
/// Weights are pairs of f16, otherwise f32.
override HALF: bool = false;
/// LayerNorm before the product.
override NORM: bool = false;
/// 0 none, 1 GELU, 2 Mish.
override ACTIVATION: u32 = 0u;

const EPSILON: f32 = 1e-5;

struct Params {
    /// `[R, I]`.
    input_at: u32,
    input_stride: u32,
    rows: u32,
    depth: u32,
    /// C.
    columns: u32,
    /// In units of 16 bytes.
    matrix_at: u32,
    /// Eights of inputs per lane.
    eights: u32,
    /// `[C]`: bias, with LayerNorm's part.
    bias_at: u32,
    /// `[I]`, with LayerNorm.
    gain_at: u32,
    /// `[C]`: sum of gain times weight, with LayerNorm.
    slope_at: u32,
    /// `[R, C]` or NONE.
    table_at: u32,
    /// `[R, C]` or NONE.
    output_at: u32,
    output_stride: u32,
    /// `[R, C]` or NONE.
    residual_at: u32,
    residual_stride: u32,
    terms_at: u32,
    terms: u32,
}

@group(0) @binding(3) var<uniform> params: Params;

/// What a lane needs for one eight: inputs of two rows, gains, weights of two outputs.
struct Eight {
    x0: vec4<f32>,
    x1: vec4<f32>,
    y0: vec4<f32>,
    y1: vec4<f32>,
    gain0: vec4<f32>,
    gain1: vec4<f32>,
    a0: vec4<u32>,
    a1: vec4<u32>,
    b0: vec4<u32>,
    b1: vec4<u32>,
}

struct Sums {
    /// Row 0 output 0, row 0 output 1, row 1 output 0, row 1 output 1.
    products: vec4<f32>,
    /// Row 0 sum and sum of squares, the same of row 1.
    norms: vec4<f32>,
}

/// `0.5 v (1 + erf(v / sqrt 2))`, with erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
fn gelu(v: f32) -> f32 {
    let z = abs(v) * 0.70710678118654752;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    let erf = 1.0 - p * exp(-z * z);
    return 0.5 * (v + abs(v) * erf);
}

/// `v tanh(ln(1 + e^v))`, as `v n / (n + 2)` with `n = e^v (e^v + 2)`.
fn mish(v: f32) -> f32 {
    let e = exp(min(v, 20.0));
    let n = e * (e + 2.0);
    return v * (n / (n + 2.0));
}

fn activated(v: f32) -> f32 {
    if ACTIVATION == 1u {
        return gelu(v);
    }
    if ACTIVATION == 2u {
        return mish(v);
    }
    return v;
}

/// Inputs k .. k + 4 of the row at `row`; beyond the row, `rest`. Without a branch, so that loads overlap.
fn inputs(row: u32, k: u32, rest: f32) -> vec4<f32> {
    if VECTOR {
        return select(vec4<f32>(rest), arena[(row + min(k, params.depth - 4u)) / 4u], k < params.depth);
    }
    let i = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let j = min(i, vec4<u32>(params.depth - 1u)) + row;
    let v = vec4<f32>(value_at(j.x), value_at(j.y), value_at(j.z), value_at(j.w));
    return select(vec4<f32>(rest), v, i < vec4<u32>(params.depth));
}

/// Gains of inputs k .. k + 4; beyond the row they lie in the padding or in the next vector, and meet zeros.
fn gains(k: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vectors[(params.gain_at + min(k, params.depth - 1u)) / 4u]);
}

fn fetch(j: u32, tiles: u32, lane: u32, row: u32, next: u32, centre: f32, next_centre: f32) -> Eight {
    var f: Eight;
    let units = select(2u, 1u, HALF);
    let weights = tiles + j * COLS * SPLIT * units;
    let beside = weights + SPLIT * units;
    f.a0 = matrices[weights];
    f.b0 = matrices[beside];
    if !HALF {
        f.a1 = matrices[weights + 1u];
        f.b1 = matrices[beside + 1u];
    }
    let k = 8u * SPLIT * j + 4u * lane;
    f.x0 = inputs(row, k, centre);
    f.x1 = inputs(row, k + 4u * SPLIT, centre);
    f.y0 = inputs(next, k, next_centre);
    f.y1 = inputs(next, k + 4u * SPLIT, next_centre);
    if NORM {
        f.gain0 = gains(k);
        f.gain1 = gains(k + 4u * SPLIT);
    }
    return f;
}

fn halves(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}

fn multiplied(sums: Sums, f: Eight, centre: f32, next_centre: f32) -> Sums {
    var s = sums;
    var a0 = bitcast<vec4<f32>>(f.a0);
    var a1 = bitcast<vec4<f32>>(f.a1);
    var b0 = bitcast<vec4<f32>>(f.b0);
    var b1 = bitcast<vec4<f32>>(f.b1);
    if HALF {
        a0 = halves(f.a0.xy);
        a1 = halves(f.a0.zw);
        b0 = halves(f.b0.xy);
        b1 = halves(f.b0.zw);
    }
    var x0 = f.x0;
    var x1 = f.x1;
    var y0 = f.y0;
    var y1 = f.y1;
    if NORM {
        x0 -= centre;
        x1 -= centre;
        y0 -= next_centre;
        y1 -= next_centre;
        let one = vec4<f32>(1.0);
        s.norms += vec4<f32>(
            dot(x0 + x1, one), dot(x0, x0) + dot(x1, x1), dot(y0 + y1, one), dot(y0, y0) + dot(y1, y1)
        );
        x0 *= f.gain0;
        x1 *= f.gain1;
        y0 *= f.gain0;
        y1 *= f.gain1;
    }
    s.products += vec4<f32>(
        dot(x0, a0) + dot(x1, a1), dot(x0, b0) + dot(x1, b1), dot(y0, a0) + dot(y1, a1), dot(y0, b0) + dot(y1, b1)
    );
    return s;
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % SPLIT;
    let block = thread / SPLIT;
    let rows = 4u * SIZE / (SPLIT * COLS);
    let tile = 2u * (block % (COLS / 2u));
    let first_row = group.y * rows + 2u * (block / (COLS / 2u));
    // Rows beyond the last are computed like the last and not written.
    let row = params.input_at + min(first_row, params.rows - 1u) * params.input_stride;
    let next = params.input_at + min(first_row + 1u, params.rows - 1u) * params.input_stride;
    var centre = 0.0;
    var next_centre = 0.0;
    if NORM {
        centre = value_at(row);
        next_centre = value_at(next);
    }
    // What the end needs is asked for now.
    let r = first_row + lane / 2u;
    let c = group.x * COLS + tile + lane % 2u;
    let writes = lane < 4u && r < params.rows && c < params.columns;
    var bias = 0.0;
    var slope = 0.0;
    var residual = 0.0;
    if writes {
        bias = number(params.bias_at + c);
        if NORM {
            slope = number(params.slope_at + c);
        }
        if params.residual_at != NONE {
            residual = value_at(params.residual_at + r * params.residual_stride + c)
                + weighted(params.terms_at, params.terms, r, c);
        }
    }
    var s: Sums;
    let tiles = params.matrix_at
        + ((group.x * params.eights * COLS + tile) * SPLIT + lane) * select(2u, 1u, HALF);
    for (var first = 0u; first < params.eights; first += STEPS) {
        let f0 = fetch(first, tiles, lane, row, next, centre, next_centre);
        var f1: Eight;
        var f2: Eight;
        var f3: Eight;
        if STEPS >= 2u {
            f1 = fetch(first + 1u, tiles, lane, row, next, centre, next_centre);
        }
        if STEPS >= 4u {
            f2 = fetch(first + 2u, tiles, lane, row, next, centre, next_centre);
            f3 = fetch(first + 3u, tiles, lane, row, next, centre, next_centre);
        }
        s = multiplied(s, f0, centre, next_centre);
        if STEPS >= 2u {
            s = multiplied(s, f1, centre, next_centre);
        }
        if STEPS >= 4u {
            s = multiplied(s, f2, centre, next_centre);
            s = multiplied(s, f3, centre, next_centre);
        }
    }
    var sum = sum_lanes(s.products, thread, SPLIT);
    if NORM {
        let both = sum_four(s.norms, thread, SPLIT) / f32(params.depth);
        let n = select(both.zw, both.xy, lane < 2u);
        sum = (sum - n.x * slope) * inverseSqrt(max(n.y - n.x * n.x, 0.0) + EPSILON);
    }
    if writes {
        var value = activated(sum + bias);
        if params.table_at != NONE {
            value += number(params.table_at + r * params.columns + c);
        }
        if params.output_at != NONE {
            put(params.output_at + r * params.output_stride + c, value);
        }
        if params.residual_at != NONE {
            put(params.residual_at + r * params.residual_stride + c, residual + value);
        }
    }
}
