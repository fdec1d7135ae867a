// `attend`: attention of a few tokens to each other and the product that follows, in one dispatch:
// value = attention(query, keys, values) matrix^T + bias, then output = value and residual += value + terms.
// Twins: `cpu/attention.rs`, then `cpu/linear.rs`.
//
// One workgroup of 256 threads computes 4 rows times 8 outputs. Every workgroup of the same rows repeats their attention, which costs
// less than a dispatch. Weights lie as `linear` has them, with 8 outputs per tile and 32 lanes.

/// Heads H.
override HEADS: u32 = 4u;
/// Keys S.
override KEYS: u32 = 16u;
/// Numbers per head, a multiple of four.
override DEPTH: u32 = 64u;
/// Heads times keys; named, because naga 30 panics on sizes that are expressions.
override PAIRS: u32 = HEADS * KEYS;
/// Heads times MOST_KEYS.
override SHARES: u32 = HEADS * 16u;
/// Weights are PAIRS of f16, otherwise f32.
override HALF: bool = false;

const ROWS: u32 = 4u;
/// Keys of a head in `shares`; those beyond S have no share.
const MOST_KEYS: u32 = 16u;
const COLS: u32 = 8u;
const SPLIT: u32 = 32u;
/// Inputs of the product, the widest stream D.
const SPAN: u32 = 8u * SPLIT;
/// Threads that share a key's dot products.
const LANES: u32 = 4u;
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
var<workgroup> shares: array<vec4<f32>, SHARES>;
/// Attention's output, one component per row, in the order of `slot`.
var<workgroup> mixed: array<vec4<f32>, SPAN>;

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

/// One column of the values of keys s .. s + 4.
fn four_values(s: u32, column: u32) -> vec4<f32> {
    let k = min(vec4<u32>(s, s + 1u, s + 2u, s + 3u), vec4<u32>(KEYS - 1u)) * params.values_stride
        + params.values_at + column;
    return vec4<f32>(value_at(k.x), value_at(k.y), value_at(k.z), value_at(k.w));
}

/// Four values times their shares.
fn mixed_four(at: u32, v: vec4<f32>) -> vec4<f32> {
    return shares[at] * v.x + shares[at + 1u] * v.y + shares[at + 2u] * v.z + shares[at + 3u] * v.w;
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

    let eight = params.matrix_at + ((group.x * COLS + tile) * SPLIT + lane) * select(2u, 1u, HALF);
    let first_weights = matrices[eight];
    var more_weights: vec4<u32>;
    if !HALF {
        more_weights = matrices[eight + 1u];
    }
    let column = min(thread, HEADS * DEPTH - 1u);
    let v0 = four_values(0u, column);
    let v1 = four_values(4u, column);
    let v2 = four_values(8u, column);
    let v3 = four_values(12u, column);

    let part = thread % LANES;
    for (var first = 0u; first < PAIRS; first += SIZE / LANES) {
        let pair = min(first + thread / LANES, PAIRS - 1u);
        let head = pair / KEYS * DEPTH;
        let key = params.keys_at + pair % KEYS * params.keys_stride + head;
        var score = vec4<f32>(0.0);
        for (var d = 4u * part; d < DEPTH; d += 4u * LANES) {
            let k = arena[(key + d) / 4u];
            score += vec4<f32>(
                dot(arena[(q.x + head + d) / 4u], k),
                dot(arena[(q.y + head + d) / 4u], k),
                dot(arena[(q.z + head + d) / 4u], k),
                dot(arena[(q.w + head + d) / 4u], k)
            );
        }
        let sum = sum_lanes(score, thread, LANES);
        let seen = params.ahead == NONE || pair % KEYS <= first_row + part + params.ahead;
        scores[pair][part] = select(UNSEEN, sum * inverseSqrt(f32(DEPTH)), seen);
    }
    workgroupBarrier();
    if thread < SHARES {
        let head = thread / MOST_KEYS * KEYS;
        let key = thread % MOST_KEYS;
        var largest = scores[head];
        for (var s = 1u; s < KEYS; s++) {
            largest = max(largest, scores[head + s]);
        }
        let share = exp(scores[head + min(key, KEYS - 1u)] - largest);
        shares[thread] = select(vec4<f32>(0.0), share, key < KEYS);
    }
    workgroupBarrier();
    let head = column / DEPTH * MOST_KEYS;
    let mix = mixed_four(head, v0) + mixed_four(head + 4u, v1) + mixed_four(head + 8u, v2) + mixed_four(head + 12u, v3);
    var total = vec4<f32>(0.0);
    for (var s = 0u; s < MOST_KEYS; s++) {
        total += shares[head + s];
    }
    // Inputs beyond the width meet weights that are zero.
    mixed[slot(thread)] = mix / total;
    workgroupBarrier();
    var low = bitcast<vec4<f32>>(first_weights);
    var high = bitcast<vec4<f32>>(more_weights);
    if HALF {
        low = halves(first_weights.xy);
        high = halves(first_weights.zw);
    }
    let sums = product(4u * lane, low) + product(4u * (SPLIT + lane), high);
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
