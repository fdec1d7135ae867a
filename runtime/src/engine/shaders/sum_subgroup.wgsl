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
    var sum = value;
    for (var mask = 1u; mask < split; mask *= 2u) {
        sum += subgroupShuffleXor(sum, mask);
    }
    return sum[thread % 4u];
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
