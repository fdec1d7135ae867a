// `cross`: attention of tokens to a few condition tokens with both its products folded into the keys and values,
// one token per workgroup: no token meets another, so three operations are one.
// Twin: `linear`, `attention` and `linear` of the CPU; `gpu/fold.rs` has the algebra.
//
// value = sum over heads and keys of softmax(norm(x) key + offset) folded value + bias, then output = value and
// residual += value + terms.

/// Heads times keys, rounded up.
override SLOTS: u32 = 16u;
/// Width D.
override WIDTH: u32 = 256u;

/// Threads that share a key's dot product.
const LANES: u32 = 16u;
const EPSILON: f32 = 1e-5;

struct Params {
    /// `[R, D]`.
    input_at: u32,
    input_stride: u32,
    heads: u32,
    /// Keys of all segments.
    keys: u32,
    /// Token s is seen by token r if `s <= r + ahead`; NONE: all are seen.
    ahead: u32,
    segments: u32,
    gain_at: u32,
    norm_bias_at: u32,
    /// `[D]`.
    bias_at: u32,
    /// `[R, D]` or NONE.
    output_at: u32,
    output_stride: u32,
    /// `[R, D]` or NONE.
    residual_at: u32,
    residual_stride: u32,
    terms_at: u32,
    terms: u32,
    padding: u32,
    /// Per segment (at, stride, keys, 0); a key is its folded keys `[H, D]`, values `[H, D]` and offsets `[H]`.
    places: array<vec4<u32>, 4>,
}

@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> token: array<f32, WIDTH>;
var<workgroup> scores: array<f32, SLOTS>;

/// Place of a key.
fn place(key: u32) -> u32 {
    var segment = 0u;
    var s = key;
    while segment + 1u < params.segments && s >= params.places[segment].z {
        s -= params.places[segment].z;
        segment++;
    }
    return params.places[segment].x + s * params.places[segment].y;
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let input = params.input_at + row * params.input_stride;
    let centre = arena[input];
    var sums = vec4<f32>(0.0);
    for (var c = thread; c < WIDTH; c += SIZE) {
        let d = arena[input + c] - centre;
        token[c] = d;
        sums.x += d;
        sums.y += d * d;
    }
    let s = sum_all(sums, thread) / f32(WIDTH);
    let scale = inverseSqrt(max(s.y - s.x * s.x, 0.0) + EPSILON);
    for (var c = thread; c < WIDTH; c += SIZE) {
        token[c] = (token[c] - s.x) * scale * number(params.gain_at + c) + number(params.norm_bias_at + c);
    }
    workgroupBarrier();

    var seen = params.keys;
    if params.ahead != NONE {
        seen = min(seen, row + params.ahead + 1u);
    }
    let slots = params.heads * params.keys;
    let lane = thread % LANES;
    for (var first = 0u; first < slots; first += SIZE / LANES) {
        let slot = first + thread / LANES;
        var score = 0.0;
        var key = 0u;
        if slot < slots {
            key = place(slot / params.heads);
            let at = key + (slot % params.heads) * WIDTH;
            for (var c = lane; c < WIDTH; c += LANES) {
                score += token[c] * arena[at + c];
            }
        }
        let sum = sum_lanes(vec4<f32>(score, 0.0, 0.0, 0.0), thread, LANES);
        if lane == 0u && slot < slots {
            scores[slot] = sum + arena[key + 2u * params.heads * WIDTH + slot % params.heads];
        }
    }
    workgroupBarrier();
    // One thread per head turns scores into weights; keys that are not seen weigh nothing.
    for (var h = thread; h < params.heads; h += SIZE) {
        var largest = scores[h];
        for (var k = 1u; k < seen; k++) {
            largest = max(largest, scores[k * params.heads + h]);
        }
        var total = 0.0;
        for (var k = 0u; k < seen; k++) {
            let e = exp(scores[k * params.heads + h] - largest);
            scores[k * params.heads + h] = e;
            total += e;
        }
        for (var k = 0u; k < seen; k++) {
            scores[k * params.heads + h] /= total;
        }
    }
    workgroupBarrier();
    for (var c = thread; c < WIDTH; c += SIZE) {
        var value = number(params.bias_at + c);
        for (var k = 0u; k < seen; k++) {
            let at = place(k) + params.heads * WIDTH + c;
            for (var h = 0u; h < params.heads; h++) {
                value += scores[k * params.heads + h] * arena[at + h * WIDTH];
            }
        }
        if params.output_at != NONE {
            arena[params.output_at + row * params.output_stride + c] = value;
        }
        if params.residual_at != NONE {
            let at = params.residual_at + row * params.residual_stride + c;
            arena[at] += value + weighted(params.terms_at, params.terms, row, c);
        }
    }
}
