// `attention`: scores, softmax and weighted values of one row and one head per workgroup.
// Twin: `cpu/attention.rs`.

/// Keys S, rounded up.
override KEYS: u32 = 16u;

/// Threads that share a key's dot product.
const LANES: u32 = 8u;

struct Params {
    /// `[R, D]`.
    query_at: u32,
    query_stride: u32,
    /// `[R, D]`, overwritten.
    output_at: u32,
    output_stride: u32,
    /// Numbers per head.
    depth: u32,
    /// Keys of all segments.
    keys: u32,
    /// Token s is seen by token r if `s <= r + ahead`; NONE: all are seen.
    ahead: u32,
    segments: u32,
    /// Per segment (keys_at, keys_stride, values_at, values_stride).
    places: array<vec4<u32>, 4>,
    /// Keys per segment.
    lengths: vec4<u32>,
}

@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> scores: array<f32, KEYS>;

/// Places of a key and its value.
fn places(key: u32) -> vec2<u32> {
    var segment = 0u;
    var s = key;
    while segment + 1u < params.segments && s >= params.lengths[segment] {
        s -= params.lengths[segment];
        segment++;
    }
    let place = params.places[segment];
    return vec2<u32>(place.x + s * place.y, place.z + s * place.w);
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let column = group.y * params.depth;
    let query = params.query_at + row * params.query_stride + column;
    let lane = thread % LANES;
    var seen = params.keys;
    if params.ahead != NONE {
        seen = min(seen, row + params.ahead + 1u);
    }
    for (var first = 0u; first < params.keys; first += SIZE / LANES) {
        let key = first + thread / LANES;
        var score = 0.0;
        if key < seen {
            let at = places(key).x + column;
            for (var d = lane; d < params.depth; d += LANES) {
                score += value_at(query + d) * value_at(at + d);
            }
        }
        let sum = sum_lanes(vec4<f32>(score, 0.0, 0.0, 0.0), thread, LANES);
        if lane == 0u && key < seen {
            scores[key] = sum * inverseSqrt(f32(params.depth));
        }
    }
    workgroupBarrier();
    var largest = scores[0];
    for (var s = 1u; s < seen; s++) {
        largest = max(largest, scores[s]);
    }
    for (var d = thread; d < params.depth; d += SIZE) {
        var total = 0.0;
        var value = 0.0;
        for (var s = 0u; s < seen; s++) {
            let e = exp(scores[s] - largest);
            total += e;
            value += e * value_at(places(s).y + column + d);
        }
        put(params.output_at + row * params.output_stride + column + d, value / total);
    }
}
