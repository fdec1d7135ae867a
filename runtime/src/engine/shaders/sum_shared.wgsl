// Sums across threads through workgroup memory: for adapters without subgroups, or with narrow ones.

/// Threads of a workgroup; a power of two.
override SIZE: u32 = 256u;
/// Named, because naga 30 panics on sizes that are expressions.
override PARTIAL: u32 = 4u * SIZE;

var<workgroup> partial: array<f32, PARTIAL>;

/// Sums over `split` neighbouring threads (a power of two, at least 4): lanes 0..4 of them get components 0..4.
fn sum_lanes(value: vec4<f32>, thread: u32, split: u32) -> f32 {
    workgroupBarrier();
    for (var c = 0u; c < 4u; c++) {
        partial[c * SIZE + thread] = value[c];
    }
    workgroupBarrier();
    let lane = thread % split;
    var sum = 0.0;
    if lane < 4u {
        let first = lane * SIZE + thread - lane;
        for (var i = 0u; i < split; i++) {
            sum += partial[first + i];
        }
    }
    return sum;
}

/// Sums over `split` neighbouring threads, as above; lanes 0..4 of them get all components.
fn sum_four(value: vec4<f32>, thread: u32, split: u32) -> vec4<f32> {
    workgroupBarrier();
    for (var c = 0u; c < 4u; c++) {
        partial[c * SIZE + thread] = value[c];
    }
    workgroupBarrier();
    var sum = vec4<f32>(0.0);
    if thread % split < 4u {
        for (var i = thread / split * split; i < thread / split * split + split; i++) {
            sum += vec4<f32>(partial[i], partial[SIZE + i], partial[2u * SIZE + i], partial[3u * SIZE + i]);
        }
    }
    return sum;
}

/// Sums over the workgroup; every thread gets them.
fn sum_all(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    for (var c = 0u; c < 4u; c++) {
        partial[c * SIZE + thread] = value[c];
    }
    workgroupBarrier();
    for (var half = SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            for (var c = 0u; c < 4u; c++) {
                partial[c * SIZE + thread] += partial[c * SIZE + thread + half];
            }
        }
        workgroupBarrier();
    }
    return vec4<f32>(partial[0], partial[SIZE], partial[2u * SIZE], partial[3u * SIZE]);
}
