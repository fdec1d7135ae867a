// `start`, `head`, `quiet` and `embed`: what treats every token alone, one token per workgroup, neighbouring
// operations in one dispatch. Twin: `cpu/tokens.rs`.
//
// In this order, each if wanted: the trajectory starts from noise; head and sampler step on `input`; `quiet` steps of
// embed, head and sampler; embed into `output`. Sums that an embedding adds may be computed here, and are written. The head's LayerNorm is folded into one reduction per step: with
// d = x - x[0], model = scale * (sum(gain matrix d) - mean(d) * sum(gain matrix)) + sum(bias matrix) + offset.

/// Denoised numbers N.
override NUMBERS: u32 = 2u;
/// The embedding of a quiet run without the trajectory's part is held in workgroup memory.
override HOLD: bool = true;
/// Width D.
override WIDTH: u32 = 256u;
/// Width where held, otherwise 1.
override HELD: u32 = 256u;

const EPSILON: f32 = 1e-5;

struct Params {
    /// `[T, N]`.
    trajectory_at: u32,
    trajectory_stride: u32,
    /// `[K + 1, T, N]`.
    noise_at: u32,
    tokens: u32,
    /// 1: row 0 of the noise becomes the trajectory.
    start: u32,
    /// `[T, D]` or NONE: head and sampler step on these tokens.
    input_at: u32,
    input_stride: u32,
    /// Steps of embed, head and sampler.
    quiet: u32,
    /// `[T, D]` or NONE: added by the embedding of quiet steps.
    quiet_sum_at: u32,
    quiet_sum_stride: u32,
    /// Terms whose sum becomes `quiet_sum` first; 0: it is there.
    quiet_terms_at: u32,
    quiet_terms: u32,
    /// `[T, D]` or NONE: the trajectory is embedded into it.
    output_at: u32,
    output_stride: u32,
    /// `[T, D]` or NONE: added by the last embedding.
    sum_at: u32,
    sum_stride: u32,
    /// Terms whose sum becomes `sum` first; 0: it is there.
    terms_at: u32,
    terms: u32,
    /// `[N, D]`, the embedding transposed.
    embed_at: u32,
    /// `[T, D]`: bias and positions in one.
    table_at: u32,
    /// `[N, D]`: gain times matrix.
    head_at: u32,
    /// `[N, 2]`: sum of gain times matrix; sum of bias times matrix, plus offset.
    offset_at: u32,
    /// Eight coefficients per step, from the first step here on.
    sampler_at: u32,
    /// Denoising step of the first sampler step here.
    step: u32,
    /// `[To, O]` or NONE: imposed on columns A.. of the first To tokens.
    impose_at: u32,
    impose_stride: u32,
    impose_rows: u32,
    impose_columns: u32,
    impose_first: u32,
    /// `[T, 1 + A]` or NONE: tokens whose first number is not 0 have these actions.
    known_at: u32,
    known_stride: u32,
    /// Share of a clean trajectory in what the first step starts from.
    start_signal: f32,
    /// `[T, N]` or NONE: the denoiser's output of the head.
    model_at: u32,
    model_stride: u32,
}

@group(0) @binding(3) var<uniform> params: Params;

var<workgroup> held: array<f32, HELD>;
var<workgroup> trajectory: array<f32, NUMBERS>;
var<workgroup> model: array<f32, NUMBERS>;

/// Positions, bias and sum of one column.
fn base(row: u32, column: u32, sum_at: u32, sum_stride: u32) -> f32 {
    // Without a branch, so that loads overlap.
    let has = sum_at != NONE;
    let sum = value_at(select(0u, sum_at + row * sum_stride + column, has));
    return number(params.table_at + row * WIDTH + column) + select(0.0, sum, has);
}

/// Computes a sum of cached outputs where one is wanted: a thread's columns eight at a time, so that loads overlap.
fn summed(row: u32, thread: u32, terms_at: u32, terms: u32, sum_at: u32, sum_stride: u32) {
    if terms == 0u {
        return;
    }
    for (var first = thread; first < WIDTH; first += 8u * SIZE) {
        var sums: array<f32, 8>;
        for (var t = 0u; t < terms; t++) {
            let term = vectors[terms_at / 4u + t];
            let at = term.x + row * term.y;
            for (var i = 0u; i < 8u; i++) {
                sums[i] += bitcast<f32>(term.z) * value_at(at + min(first + i * SIZE, WIDTH - 1u));
            }
        }
        for (var i = 0u; i < 8u; i++) {
            if first + i * SIZE < WIDTH {
                put(sum_at + row * sum_stride + first + i * SIZE, sums[i]);
            }
        }
    }
    storageBarrier();
}

/// One column of the embedded token on top of `value`.
fn embedded(value: f32, column: u32) -> f32 {
    var x = value;
    for (var i = 0u; i < NUMBERS; i++) {
        x += trajectory[i] * number(params.embed_at + i * WIDTH + column);
    }
    return x;
}

/// One column of the token that the head sees.
fn token(row: u32, column: u32, quiet: bool) -> f32 {
    if !quiet {
        return value_at(params.input_at + row * params.input_stride + column);
    }
    if HOLD {
        return embedded(held[column], column);
    }
    return embedded(base(row, column, params.quiet_sum_at, params.quiet_sum_stride), column);
}

/// The observation's or the known actions' part of one number of the trajectory, if imposed.
fn imposed(row: u32, i: u32, value: f32, signal: f32) -> f32 {
    if params.known_at != NONE && i < params.impose_first {
        let known = params.known_at + row * params.known_stride;
        if value_at(known) != 0.0 {
            let noise = value_at(params.noise_at + row * NUMBERS + i);
            return signal * value_at(known + 1u + i) + sqrt(max(1.0 - signal * signal, 0.0)) * noise;
        }
    }
    if params.impose_at != NONE && row < params.impose_rows && i >= params.impose_first
        && i < params.impose_first + params.impose_columns {
        return value_at(params.impose_at + row * params.impose_stride + i - params.impose_first);
    }
    return value;
}

/// Head and sampler step `index` of this dispatch.
fn head(row: u32, thread: u32, index: u32, quiet: bool) {
    // What the end needs is asked for now.
    let s = params.sampler_at / 4u + 2u * index;
    let first = bitcast<vec4<f32>>(vectors[s]);
    let second = bitcast<vec4<f32>>(vectors[s + 1u]);
    let noise_at = params.noise_at + ((params.step + index + 1u) * params.tokens + row) * NUMBERS;
    let drawn = value_at(noise_at + min(thread, NUMBERS - 1u));
    let early = params.offset_at + 2u * min(max(thread, 2u) - 2u, NUMBERS - 1u);
    let early_fold = vec2<f32>(number(early), number(early + 1u));
    let centre = token(row, 0u, quiet);
    let width = f32(WIDTH);
    var mean = 0.0;
    var scale = 0.0;
    // Slots 0 and 1 are the sums of LayerNorm, slot 2 + i is number i.
    for (var slot = 0u; slot < NUMBERS + 2u; slot += 4u) {
        var sums = vec4<f32>(0.0);
        for (var c = thread; c < WIDTH; c += SIZE) {
            let d = token(row, c, quiet) - centre;
            if slot == 0u {
                sums += vec4<f32>(d, d * d, 0.0, 0.0);
            } else {
                sums.x += d * number(params.head_at + (slot - 2u) * WIDTH + c);
                if slot - 1u < NUMBERS {
                    sums.y += d * number(params.head_at + (slot - 1u) * WIDTH + c);
                }
            }
            if slot < NUMBERS {
                sums.z += d * number(params.head_at + slot * WIDTH + c);
            }
            if slot + 1u < NUMBERS {
                sums.w += d * number(params.head_at + (slot + 1u) * WIDTH + c);
            }
        }
        sums = sum_all(sums, thread);
        if slot == 0u {
            mean = sums.x / width;
            scale = inverseSqrt(max(sums.y / width - mean * mean, 0.0) + EPSILON);
        }
        if thread < 4u && slot + thread >= 2u && slot + thread - 2u < NUMBERS {
            let i = slot + thread - 2u;
            var fold = early_fold;
            if slot > 0u {
                fold = vec2<f32>(number(params.offset_at + 2u * i), number(params.offset_at + 2u * i + 1u));
            }
            model[i] = scale * (sums[thread] - mean * fold.x) + fold.y;
        }
    }
    workgroupBarrier();
    for (var i = thread; i < NUMBERS; i += SIZE) {
        let x = trajectory[i];
        let m = model[i];
        if params.model_at != NONE && !quiet {
            put(params.model_at + row * params.model_stride + i, m);
        }
        var noise = drawn;
        if i > thread {
            noise = value_at(noise_at + i);
        }
        let x0 = clamp(first.x * x + first.y * m, -first.z, first.z);
        let next = first.w * x0 + second.x * x + second.y * m + second.z * noise;
        trajectory[i] = imposed(row, i, next, second.w);
    }
    workgroupBarrier();
}

@compute @workgroup_size(SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    let place = params.trajectory_at + row * params.trajectory_stride;
    for (var i = thread; i < NUMBERS; i += SIZE) {
        if params.start != 0u {
            trajectory[i] = imposed(row, i, value_at(params.noise_at + row * NUMBERS + i), params.start_signal);
        } else {
            trajectory[i] = value_at(place + i);
        }
    }
    workgroupBarrier();
    var index = 0u;
    if params.input_at != NONE {
        head(row, thread, index, false);
        index++;
    }
    if params.quiet > 0u {
        summed(row, thread, params.quiet_terms_at, params.quiet_terms, params.quiet_sum_at, params.quiet_sum_stride);
        if HOLD {
            for (var c = thread; c < WIDTH; c += SIZE) {
                held[c] = base(row, c, params.quiet_sum_at, params.quiet_sum_stride);
            }
            workgroupBarrier();
        }
        for (var q = 0u; q < params.quiet; q++) {
            head(row, thread, index, true);
            index++;
        }
    }
    if params.start != 0u || index > 0u {
        for (var i = thread; i < NUMBERS; i += SIZE) {
            put(place + i, trajectory[i]);
        }
    }
    if params.output_at != NONE {
        summed(row, thread, params.terms_at, params.terms, params.sum_at, params.sum_stride);
        for (var c = thread; c < WIDTH; c += SIZE) {
            let x = embedded(base(row, c, params.sum_at, params.sum_stride), c);
            put(params.output_at + row * params.output_stride + c, x);
        }
    }
}
