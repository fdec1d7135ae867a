// Sums across threads through subgroups; the same functions as in `sum_shared.wgsl`.
//
// Neighbouring threads are taken to be neighbouring lanes of a subgroup; the engine checks that on the adapter
// before it chooses this file.

/// Threads of a workgroup; a power of two.
override SIZE: u32 = 256u;
/// The workgroup is one subgroup.
override ALONE: bool = false;

var<workgroup> partial: array<vec4<f32>, SIZE>;

/// Sums over `split` neighbouring threads (a power of two, at least 4, at most a subgroup): lanes 0..4 of them get
/// components 0..4.
fn sum_lanes(value: vec4<f32>, thread: u32, split: u32) -> f32 {
    // Two exchanges leave a lane one component of four lanes; the others only add.
    let odd = thread % 2u == 1u;
    let pair = select(value.xz, value.yw, odd) + subgroupShuffleXor(select(value.yw, value.xz, odd), 1u);
    let high = thread % 4u >= 2u;
    var sum = select(pair.x, pair.y, high) + subgroupShuffleXor(select(pair.y, pair.x, high), 2u);
    for (var mask = 4u; mask < split; mask *= 2u) {
        sum += subgroupShuffleXor(sum, mask);
    }
    return sum;
}

/// Sums over `split` neighbouring threads, as above; lanes 0..4 of them get all components.
fn sum_four(value: vec4<f32>, thread: u32, split: u32) -> vec4<f32> {
    let sum = sum_lanes(value, thread, split);
    let other = subgroupShuffleXor(sum, 1u);
    let pair = select(vec2<f32>(sum, other), vec2<f32>(other, sum), thread % 2u == 1u);
    let rest = subgroupShuffleXor(pair, 2u);
    return select(vec4<f32>(pair, rest), vec4<f32>(rest, pair), thread % 4u >= 2u);
}

/// Sums over the workgroup; every thread gets them.
fn sum_all(value: vec4<f32>, thread: u32) -> vec4<f32> {
    if ALONE {
        return subgroupAdd(value);
    }
    workgroupBarrier();
    partial[thread] = value;
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            partial[thread] += partial[thread + half];
        }
        workgroupBarrier();
    }
    return partial[0];
}
