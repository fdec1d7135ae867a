// Whether neighbouring threads are neighbouring lanes of a subgroup, as `sum_subgroup.wgsl` needs.

@group(0) @binding(0) var<storage, read_write> found: array<vec2<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) size: u32,
) {
    found[thread] = vec2<u32>(lane, size);
}
