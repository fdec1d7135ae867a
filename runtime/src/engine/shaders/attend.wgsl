// `attend`: attention of a few tokens to each other and the product that follows, in one dispatch:
// value = attention(query, keys, values) matrix^T + bias, then output = value and residual += value + terms.
// Twins: `cpu/attention.rs`, then `cpu/linear.rs`.
//
// One workgroup computes 4 rows times 8 outputs. Every workgroup of the same rows repeats their attention, which costs
// less than a dispatch. Weights lie as `linear` has them, with 8 outputs per tile and 32 lanes.

/// Heads H.
override HEADS: u32 = 4u;
/// Keys S.
override KEYS: u32 = 16u;
/// Numbers per head, a multiple of four.
override DEPTH: u32 = 64u;
/// Heads times keys; named, because naga 30 panics on sizes that are expressions.
override PAIRS: u32 = HEADS * KEYS;
/// Width D, rounded up to 128.
override WIDTH: u32 = 256u;
/// Weights are PAIRS of f16, otherwise f32.
override HALF: bool = false;

const ROWS: u32 = 4u;
const COLS: u32 = 8u;
const SPLIT: u32 = 32u;
/// Threads that share a key's dot products.
const LANES: u32 = 8u;
/// Keys that are not seen.
const UNSEEN: f32 = -3e38;

struct Params {
    /// `[T, D]`.
    query_at: u32,
    query_stride: u32,
    /// `[S, D]`.
    keys_at: u32,
    keys_stride: u32,
    /// `[S, D]`.
    values_at: u32,
    values_stride: u32,
    rows: u32,
    /// Token s is seen by token r if `s <= r + ahead`; NONE: all are seen.
    ahead: u32,
    /// C.
    columns: u32,
    /// In units of 16 bytes.
    matrix_at: u32,
    /// Eights of inputs per lane.
    eights: u32,
    /// `[C]`.
    bias_at: u32,
    /// `[T, C]` or NONE.
    output_at: u32,
    output_stride: u32,
    /// `[T, C]` or NONE.
    residual_at: u32,
    residual_stride: u32,
    terms_at: u32,
    terms: u32,
}

@group(0) @binding(3) var<uniform> params: Params;

/// Per head and key, one component per row: scores, then `e^(score - largest)`.
var<workgroup> scores: array<vec4<f32>, PAIRS>;
var<workgroup> shares: array<vec4<f32>, PAIRS>;
/// Attention's output, one component per row, in the order of `slot`.
var<workgroup> mixed: array<vec4<f32>, WIDTH>;

/// Where input k lies, so that neighbouring lanes read neighbouring places.
fn slot(k: u32) -> u32 {
    return k / 128u * 128u + k % 4u * 32u + k % 128u / 4u;
}

fn halves(v: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}

/// Four inputs times their weights, for four rows.
fn product(k: u32, w: vec4<f32>) -> vec4<f32> {
    let i = slot(k);
    return mixed[i] * w.x + mixed[i + 32u] * w.y + mixed[i + 64u] * w.z + mixed[i + 96u] * w.w;
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * ROWS;
    let last = params.rows - 1u;
    let q = vec4<u32>(
        min(first_row, last), min(first_row + 1u, last), min(first_row + 2u, last), min(first_row + 3u, last)
    ) * params.query_stride + params.query_at;
    // What the end needs is asked for now.
    let lane = thread % SPLIT;
    let tile = thread / SPLIT;
    let r = first_row + lane;
    let c = group.x * COLS + tile;
    let writes = lane < ROWS && r < params.rows && c < params.columns;
    var bias = 0.0;
    var residual = 0.0;
    if writes {
        bias = number(params.bias_at + c);
        if params.residual_at != NONE {
            residual = value_at(params.residual_at + r * params.residual_stride + c)
                + weighted(params.terms_at, params.terms, r, c);
        }
    }

    let part = thread % LANES;
    for (var first = 0u; first < PAIRS; first += SIZE / LANES) {
        let pair = first + thread / LANES;
        var score = vec4<f32>(0.0);
        if pair < PAIRS {
            let head = pair / KEYS * DEPTH;
            let key = params.keys_at + pair % KEYS * params.keys_stride + head;
            for (var d = 4u * part; d < DEPTH; d += 4u * LANES) {
                let k = arena[(key + d) / 4u];
                score += vec4<f32>(
                    dot(arena[(q.x + head + d) / 4u], k),
                    dot(arena[(q.y + head + d) / 4u], k),
                    dot(arena[(q.z + head + d) / 4u], k),
                    dot(arena[(q.w + head + d) / 4u], k)
                );
            }
        }
        let sum = sum_lanes(score, thread, LANES);
        if part < ROWS && pair < PAIRS {
            let seen = params.ahead == NONE || pair % KEYS <= first_row + part + params.ahead;
            scores[pair][part] = select(UNSEEN, sum * inverseSqrt(f32(DEPTH)), seen);
        }
    }
    workgroupBarrier();
    for (var pair = thread; pair < PAIRS; pair += SIZE) {
        let head = pair / KEYS * KEYS;
        var largest = scores[head];
        for (var s = 1u; s < KEYS; s++) {
            largest = max(largest, scores[head + s]);
        }
        shares[pair] = exp(scores[pair] - largest);
    }
    workgroupBarrier();
    for (var d = thread; d < WIDTH; d += SIZE) {
        var value = vec4<f32>(0.0);
        if d < HEADS * DEPTH {
            let head = d / DEPTH * KEYS;
            var total = vec4<f32>(0.0);
            for (var s = 0u; s < KEYS; s++) {
                let share = shares[head + s];
                total += share;
                value += share * value_at(params.values_at + s * params.values_stride + d);
            }
            value /= total;
        }
        mixed[slot(d)] = value;
    }
    workgroupBarrier();
    var sums = vec4<f32>(0.0);
    for (var j = 0u; j < params.eights; j++) {
        let eight = ((group.x * params.eights + j) * COLS + tile) * SPLIT + lane;
        let k = 8u * SPLIT * j + 4u * lane;
        var low: vec4<f32>;
        var high: vec4<f32>;
        if HALF {
            let w = matrices[params.matrix_at + eight];
            low = halves(w.xy);
            high = halves(w.zw);
        } else {
            low = bitcast<vec4<f32>>(matrices[params.matrix_at + 2u * eight]);
            high = bitcast<vec4<f32>>(matrices[params.matrix_at + 2u * eight + 1u]);
        }
        if k < WIDTH {
            sums += product(k, low);
        }
        if k + 4u * SPLIT < WIDTH {
            sums += product(k + 4u * SPLIT, high);
        }
    }
    let value = sum_lanes(sums, thread, SPLIT) + bias;
    if writes {
        if params.output_at != NONE {
            put(params.output_at + r * params.output_stride + c, value);
        }
        if params.residual_at != NONE {
            put(params.residual_at + r * params.residual_stride + c, residual + value);
        }
    }
}
