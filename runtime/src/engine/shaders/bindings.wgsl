// What every kernel sees: three storage buffers, and one slice of the table of parameters.
//
// A kernel's module is this file, one of `sum_shared.wgsl` and `sum_subgroup.wgsl`, and the kernel's own file.
// Letters: T tokens, D width, H heads, N denoised numbers, R rows, I inputs, C outputs, S keys.

/// An absent place.
const NONE: u32 = 0xffffffffu;

/// Every buffer of the plan as the plan placed it, then the upload: noise `[K + 1, T, N]` and observation `[To, O]`.
@group(0) @binding(0) var<storage, read_write> arena: array<vec4<f32>>;
/// Weights of products, packed by `gpu/weights.rs` in the order in which `linear` reads them.
@group(0) @binding(1) var<storage, read> matrices: array<vec4<u32>>;
/// Bits of f32 vectors (biases, gains, tables, sampler coefficients), and u32 tables of terms.
@group(0) @binding(2) var<storage, read> vectors: array<vec4<u32>>;

/// One number of the arena.
fn value_at(i: u32) -> f32 {
    return arena[i / 4u][i % 4u];
}

/// Writes one number of the arena.
fn put(i: u32, value: f32) {
    arena[i / 4u][i % 4u] = value;
}

/// One entry of a table.
fn entry(i: u32) -> u32 {
    return vectors[i / 4u][i % 4u];
}

/// One number of a vector.
fn number(i: u32) -> f32 {
    return bitcast<f32>(entry(i));
}

/// One element of a weighted sum of views; a term is (offset, stride, weight, 0).
fn weighted(terms_at: u32, terms: u32, row: u32, column: u32) -> f32 {
    var sum = 0.0;
    for (var t = 0u; t < terms; t++) {
        let term = vectors[terms_at / 4u + t];
        sum += bitcast<f32>(term.z) * value_at(term.x + row * term.y + column);
    }
    return sum;
}
