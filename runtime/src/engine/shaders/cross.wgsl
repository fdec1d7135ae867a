// `cross`: attention of tokens to a few condition tokens with both its products folded into the keys and values,
// one token per workgroup: no token meets another, so three operations are one.
// Twin: `linear`, `attention` and `linear` of the CPU; `gpu/fold.rs` has the algebra.
//
// value = sum over heads and keys of softmax(norm(x) key + offset) folded value + bias, then output = value and
// residual += value + terms. LayerNorm's gain and bias are folded into keys and offsets; with d = x - x[0],
// score = scale * (sum(d key) - mean(d) * slope) + offset.

/// Heads H.
override HEADS: u32 = 4u;
/// Keys S of all segments.
override KEYS: u32 = 3u;
/// Heads times keys; named, because naga 30 panics on sizes that are expressions.
override SLOTS: u32 = HEADS * KEYS;
/// Width D.
override WIDTH: u32 = 256u;

/// Threads that share two keys' dot products.
const LANES: u32 = 32u;
const MOST_SLOTS: u32 = 64u;
const EPSILON: f32 = 1e-5;
/// Keys that are not seen.
const UNSEEN: f32 = -3e38;

struct Params {
    /// `[R, D]`.
    input_at: u32,
    input_stride: u32,
    /// Token s is seen by token r if `s <= r + ahead`; NONE: all are seen.
    ahead: u32,
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
    padding0: u32,
    padding1: u32,
    /// Where each key lies: its folded keys `[H, D]`, values `[H, D]`, offsets `[H]` and slopes `[H]`.
    places: array<vec4<u32>, 8>,
}

@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> scores: array<f32, SLOTS>;

/// Place of a key.
fn place(key: u32) -> u32 {
    return params.places[key / 4u][key % 4u];
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let input = params.input_at + row * params.input_stride;
    // What the end needs of the first column is asked for now.
    let column = min(thread, WIDTH - 1u);
    var values: array<f32, MOST_SLOTS>;
    for (var s = 0u; s < SLOTS; s++) {
        values[s] = value_at(place(s / HEADS) + (HEADS + s % HEADS) * WIDTH + column);
    }
    let centre = value_at(input);
    let lane = thread % LANES;
    for (var first = 0u; first < SLOTS; first += 2u * SIZE / LANES) {
        let slot = min(first + 2u * (thread / LANES), SLOTS - 1u);
        let other = min(slot + 1u, SLOTS - 1u);
        let key = place(slot / HEADS) + slot % HEADS * WIDTH;
        let other_key = place(other / HEADS) + other % HEADS * WIDTH;
        let mine = select(other, slot, lane == 0u);
        let extra = place(mine / HEADS) + 2u * HEADS * WIDTH + mine % HEADS;
        let offset = value_at(extra);
        let slope = value_at(extra + HEADS);
        var sums = vec4<f32>(0.0);
        for (var c = lane; c < WIDTH; c += LANES) {
            let d = value_at(input + c) - centre;
            sums += vec4<f32>(d, d * d, d * value_at(key + c), d * value_at(other_key + c));
        }
        let s = sum_four(sums, thread, LANES);
        if lane < 2u {
            let mean = s.x / f32(WIDTH);
            let scale = inverseSqrt(max(s.y / f32(WIDTH) - mean * mean, 0.0) + EPSILON);
            let seen = params.ahead == NONE || mine / HEADS <= row + params.ahead;
            let score = scale * (select(s.w, s.z, lane == 0u) - mean * slope) + offset;
            scores[mine] = select(UNSEEN, score, seen);
        }
    }
    workgroupBarrier();
    for (var c = thread; c < WIDTH; c += SIZE) {
        if c > thread {
            for (var s = 0u; s < SLOTS; s++) {
                values[s] = value_at(place(s / HEADS) + (HEADS + s % HEADS) * WIDTH + c);
            }
        }
        var value = number(params.bias_at + c);
        for (var h = 0u; h < HEADS; h++) {
            var largest = scores[h];
            for (var k = 1u; k < KEYS; k++) {
                largest = max(largest, scores[k * HEADS + h]);
            }
            var total = 0.0;
            var sum = 0.0;
            for (var k = 0u; k < KEYS; k++) {
                let share = exp(scores[k * HEADS + h] - largest);
                total += share;
                sum += share * values[k * HEADS + h];
            }
            value += sum / total;
        }
        if params.output_at != NONE {
            put(params.output_at + row * params.output_stride + c, value);
        }
        if params.residual_at != NONE {
            let to = params.residual_at + row * params.residual_stride + c;
            put(to, value_at(to) + value + weighted(params.terms_at, params.terms, row, c));
        }
    }
}
