// `combine`: output = sum of weight * view, or output += ... Twin: `combine` in `cpu/tokens.rs`.

struct Params {
    /// `[R, C]`.
    output_at: u32,
    output_stride: u32,
    rows: u32,
    columns: u32,
    terms_at: u32,
    terms: u32,
    /// 1: add to the output.
    accumulate: u32,
}

@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= params.rows * params.columns {
        return;
    }
    let row = id.x / params.columns;
    let column = id.x % params.columns;
    let at = params.output_at + row * params.output_stride + column;
    var value = weighted(params.terms_at, params.terms, row, column);
    if params.accumulate != 0u {
        value += value_at(at);
    }
    put(at, value);
}
