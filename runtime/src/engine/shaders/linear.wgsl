// `linear`: value = activation(norm(input) matrix^T + bias) + table, then output = value and
// residual += value + terms. Twin: `cpu/linear.rs`.
//
// One workgroup computes 16 rows times COLS outputs, a thread 2 rows times 2 outputs over every SPLITth input.
// The input goes through workgroup memory in chunks; the weights of a chunk are fetched to registers meanwhile.
// Input `8 SPLIT j + SPLIT e + lane` of an output is element e of a lane's j-th eight weights.

/// Outputs of a workgroup: 2, 4 or 8.
override COLS: u32 = 8u;
/// Threads that share an output's inputs: `SIZE / (8 * COLS / 2)`.
override SPLIT: u32 = 8u;
/// Inputs that workgroup memory holds at once: a multiple of `8 SPLIT`, as many as FETCHED allows.
override CHUNK: u32 = 256u;
override STAGED: u32 = 16u * CHUNK;
/// Weights are pairs of f16, otherwise f32.
override HALF: bool = false;
/// LayerNorm before the product.
override NORM: bool = false;
/// 0 none, 1 GELU, 2 Mish.
override ACTIVATION: u32 = 0u;

/// Rows of a workgroup.
const ROWS: u32 = 16u;
/// Four weights, or eight halves, times this many are held in registers: `CHUNK / (8 SPLIT) * 2 * (HALF ? 1 : 2)`.
const FETCHED: u32 = 16u;
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
    /// Eights of inputs per lane, over all chunks.
    eights: u32,
    bias_at: u32,
    gain_at: u32,
    norm_bias_at: u32,
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

var<workgroup> staged: array<f32, STAGED>;

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

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let lane = thread % SPLIT;
    let block = thread / SPLIT;
    let first_row = group.y * ROWS;
    let row = 2u * (block / (COLS / 2u));
    let column = 2u * (block % (COLS / 2u));
    let steps = CHUNK / (8u * SPLIT);

    // Sixteen threads per row: their share of the sums that LayerNorm needs, around the row's first number.
    let norm_row = min(first_row + thread / 16u, params.rows - 1u);
    let norm_at = params.input_at + norm_row * params.input_stride;
    var mean = 0.0;
    var scale = 1.0;
    if NORM {
        let centre = arena[norm_at];
        var sums = vec4<f32>(0.0);
        for (var k = thread % 16u; k < params.depth; k += 16u) {
            let d = arena[norm_at + k] - centre;
            sums.x += d;
            sums.y += d * d;
        }
        let s = row_sums(sums, thread) / f32(params.depth);
        mean = centre + s.x;
        scale = inverseSqrt(max(s.y - s.x * s.x, 0.0) + EPSILON);
    }

    var sums = vec4<f32>(0.0);
    for (var first = 0u; first < params.eights; first += steps) {
        // Weights first: their latency passes while the input is staged.
        var fetched: array<vec4<u32>, FETCHED>;
        for (var j = 0u; j < steps; j++) {
            // Beyond the last eight the first is fetched again; its inputs are staged as zero.
            let eight = select(first + j, 0u, first + j >= params.eights);
            for (var c = 0u; c < 2u; c++) {
                let at = ((group.x * params.eights + eight) * COLS + column + c) * SPLIT + lane;
                if HALF {
                    fetched[2u * j + c] = matrices[params.matrix_at + at];
                } else {
                    fetched[4u * j + 2u * c] = matrices[params.matrix_at + 2u * at];
                    fetched[4u * j + 2u * c + 1u] = matrices[params.matrix_at + 2u * at + 1u];
                }
            }
        }
        workgroupBarrier();
        for (var k = thread % 16u; k < CHUNK; k += 16u) {
            let input = first * 8u * SPLIT + k;
            var v = 0.0;
            if input < params.depth {
                v = arena[norm_at + input];
                if NORM {
                    v = (v - mean) * scale * number(params.gain_at + input) + number(params.norm_bias_at + input);
                }
            }
            staged[(thread / 16u) * CHUNK + k] = v;
        }
        workgroupBarrier();
        for (var j = 0u; j < steps; j++) {
            var a: array<vec4<f32>, 2>;
            var b: array<vec4<f32>, 2>;
            if HALF {
                let p = fetched[2u * j];
                let q = fetched[2u * j + 1u];
                a[0] = vec4<f32>(unpack2x16float(p.x), unpack2x16float(p.y));
                a[1] = vec4<f32>(unpack2x16float(p.z), unpack2x16float(p.w));
                b[0] = vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
                b[1] = vec4<f32>(unpack2x16float(q.z), unpack2x16float(q.w));
            } else {
                a[0] = bitcast<vec4<f32>>(fetched[4u * j]);
                a[1] = bitcast<vec4<f32>>(fetched[4u * j + 1u]);
                b[0] = bitcast<vec4<f32>>(fetched[4u * j + 2u]);
                b[1] = bitcast<vec4<f32>>(fetched[4u * j + 3u]);
            }
            for (var h = 0u; h < 2u; h++) {
                let at = row * CHUNK + (8u * j + 4u * h) * SPLIT + lane;
                let x = vec4<f32>(
                    staged[at], staged[at + SPLIT], staged[at + 2u * SPLIT], staged[at + 3u * SPLIT]
                );
                let y = vec4<f32>(
                    staged[at + CHUNK],
                    staged[at + CHUNK + SPLIT],
                    staged[at + CHUNK + 2u * SPLIT],
                    staged[at + CHUNK + 3u * SPLIT]
                );
                sums += vec4<f32>(dot(x, a[h]), dot(x, b[h]), dot(y, a[h]), dot(y, b[h]));
            }
        }
    }

    let sum = sum_lanes(sums, thread, SPLIT);
    let r = first_row + row + lane / 2u;
    let c = group.x * COLS + column + lane % 2u;
    if lane < 4u && r < params.rows && c < params.columns {
        var value = activated(sum + number(params.bias_at + c));
        if params.table_at != NONE {
            value += number(params.table_at + r * params.columns + c);
        }
        if params.output_at != NONE {
            arena[params.output_at + r * params.output_stride + c] = value;
        }
        if params.residual_at != NONE {
            let at = params.residual_at + r * params.residual_stride + c;
            arena[at] += value + weighted(params.terms_at, params.terms, r, c);
        }
    }
}

/// Sums over the sixteen threads of a row; each of them gets them.
fn row_sums(value: vec4<f32>, thread: u32) -> vec2<f32> {
    let sum = sum_lanes(value, thread, 16u);
    workgroupBarrier();
    if thread % 16u < 2u {
        staged[2u * (thread / 16u) + thread % 16u] = sum;
    }
    workgroupBarrier();
    return vec2<f32>(staged[2u * (thread / 16u)], staged[2u * (thread / 16u) + 1u]);
}
