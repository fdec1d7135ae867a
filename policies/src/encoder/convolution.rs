//! Convolutions on AVX-512, in place of tract's.
//!
//! tract multiplies matrices, and gathers the pixels under the kernel into one of them for every product; at an encoder's
//! sizes that is about a third of its time. Here nothing is gathered: a row of up to [`WIDEST`] neighbouring results for two
//! times [`LANES`] channels stays in registers while every tap of the kernel is multiplied with the pixels where they lie.
//!
//! Only convolutions in f32 over more than one pixel, of one image, without groups and with a stride of 1 or 2 along the rows;
//! all others, and all of them where there is no AVX-512, stay tract's. Sums are in a fixed order.

#![allow(unsafe_code, reason = "vector instructions, behind a look at the processor")]

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::sync::Arc;

use tract_onnx::prelude::{DatumExt, TValue, TVec, tract_ndarray, tvec};
use tract_onnx::tract_core::internal::{
    Datum, EvalContext, EvalOp, IntoTensor, Op, StaticName, Tensor, TractResult, TypedFact, TypedModel,
    TypedModelPatch, TypedNode, TypedOp, as_op, op_as_typed_op, op_out_of_plan,
};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::nn::DataFormat;

/// Numbers in a register.
const LANES: usize = 16;
/// Results in a row that are computed together: twice as many registers, and there are 32.
const WIDEST: usize = 12;

/// A convolution with everything that is known at load.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Direct {
    /// Channels, height and width of the padded input.
    padded: [usize; 3],
    /// Rows above and columns left of the image.
    before: [usize; 2],
    /// Height and width of the image.
    image: [usize; 2],
    /// Channels, height and width of the result.
    out: [usize; 3],
    strides: [usize; 2],
    /// Where each tap reads, from where the kernel lies.
    taps: Arc<Vec<usize>>,
    /// `[taps, 2, LANES]` for every two groups of channels, then `[taps, 1, LANES]` if one is left.
    weights: Arc<Tensor>,
    /// `[groups, LANES]`.
    bias: Arc<Tensor>,
}

/// The model with its convolutions replaced where that is possible.
pub(super) fn replace(mut model: TypedModel) -> TractResult<TypedModel> {
    if !is_x86_feature_detected!("avx512f") {
        return Ok(model);
    }
    for id in 0..model.nodes.len() {
        let node = &model.nodes[id];
        if let Some(direct) = Direct::of(&model, node)? {
            TypedModelPatch::replace_single_op(&model, node, &node.inputs[..1], direct)?.apply(&mut model)?;
        }
    }
    Ok(model)
}

impl Direct {
    fn of(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Self>> {
        let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
        let pool = &conv.pool_spec;
        let facts =
            node.inputs.iter().map(|input| model.outlet_fact(*input)).collect::<TractResult<Vec<_>>>()?;
        let [x, kernel, bias] = facts[..] else { return Ok(None) };
        let (Some(&[1, c, h, w]), Some(kernel), Some(bias)) =
            (x.shape.as_concrete(), &kernel.konst, &bias.konst)
        else {
            return Ok(None);
        };
        let float =
            [x.datum_type, kernel.datum_type(), bias.datum_type()].iter().all(|t| *t == f32::datum_type());
        let (&[kh, kw], &[o, _, _, _]) = (&pool.kernel_shape[..], kernel.shape()) else { return Ok(None) };
        if !float
            || conv.group != 1
            || conv.q_params.is_some()
            || conv.kernel_fmt != KernelFormat::OIHW
            || pool.data_format != DataFormat::NCHW
            || kh * kw == 1
            || ![1, o].contains(&bias.len())
        {
            return Ok(None);
        }
        let pads = pool.computed_padding(&[h, w]);
        let (dilations, strides) = (pool.dilations(), pool.strides());
        if strides[1] > 2 {
            return Ok(None);
        }
        let padded =
            [c, h + pads[0].pad_before + pads[0].pad_after, w + pads[1].pad_before + pads[1].pad_after];
        let taps: Vec<usize> = (0..c * kh * kw)
            .map(|tap| {
                let (channel, y, x) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                (channel * padded[1] + y * dilations[0]) * padded[2] + x * dilations[1]
            })
            .collect();
        let groups = o.div_ceil(LANES);
        let mut weights = vec![0.0f32; groups * taps.len() * LANES];
        let view = kernel.view();
        for (channel, row) in view.as_slice::<f32>()?.chunks_exact(taps.len()).enumerate() {
            let (group, lane) = (channel / LANES, channel % LANES);
            let together = if group / 2 * 2 + 1 < groups { 2 } else { 1 };
            let first = group / 2 * 2 * taps.len() * LANES;
            for (tap, weight) in row.iter().enumerate() {
                weights[first + (tap * together + group % 2) * LANES + lane] = *weight;
            }
        }
        let mut biases = vec![0.0f32; groups * LANES];
        let view = bias.view();
        biases[..o].iter_mut().zip(view.as_slice::<f32>()?.iter().cycle()).for_each(|(slot, b)| *slot = *b);
        Ok(Some(Self {
            padded,
            before: [pads[0].pad_before, pads[1].pad_before],
            image: [h, w],
            out: [o, pads[0].convoluted, pads[1].convoluted],
            strides: [strides[0], strides[1]],
            weights: Arc::new(Tensor::from_shape(&[groups, taps.len(), LANES], &weights)?),
            bias: Arc::new(Tensor::from_shape(&[groups, LANES], &biases)?),
            taps: Arc::new(taps),
        }))
    }

    /// The image with zeros around it.
    fn pad(&self, image: &[f32]) -> Vec<f32> {
        let [channels, height, width] = self.padded;
        let mut padded = vec![0.0; channels * height * width];
        let [h, w] = self.image;
        for (plane, from) in padded.chunks_exact_mut(height * width).zip(image.chunks_exact(h * w)) {
            let lines = plane.chunks_exact_mut(width).skip(self.before[0]);
            for (line, from) in lines.zip(from.chunks_exact(w)) {
                line[self.before[1]..][..w].copy_from_slice(from);
            }
        }
        padded
    }

    /// Two groups of channels at a time, then what is left.
    #[target_feature(enable = "avx512f")]
    fn run(&self, padded: &[f32], weights: &[[f32; LANES]], bias: &[[f32; LANES]], out: &mut [f32]) {
        let (taps, plane) = (self.taps.len(), self.out[1] * self.out[2]);
        let units = weights.chunks(2 * taps).zip(bias.chunks(2));
        for ((weights, bias), out) in units.zip(out.chunks_mut(2 * LANES * plane)) {
            match bias {
                [a, b] => self.channels(weights.as_chunks::<2>().0, &[*a, *b], padded, out),
                [a] => self.channels(weights.as_chunks::<1>().0, &[*a], padded, out),
                _ => {}
            }
        }
    }

    /// Writes `V` groups of channels `[V * LANES, height, width]`, or as many of them as there are.
    #[target_feature(enable = "avx512f")]
    fn channels<const V: usize>(
        &self,
        weights: &[[[f32; LANES]; V]],
        bias: &[[f32; LANES]; V],
        padded: &[f32],
        out: &mut [f32],
    ) {
        let [_, height, width] = self.out;
        let tiles = width.div_ceil(WIDEST);
        let mut sums = [[[0.0; LANES]; V]; WIDEST];
        for y in 0..height {
            for tile in 0..tiles {
                let (from, to) = (tile * width / tiles, (tile + 1) * width / tiles);
                let pixels = &padded[y * self.strides[0] * self.padded[2] + from * self.strides[1]..];
                match self.strides[1] {
                    1 => tile_of::<V, 1>(to - from, &self.taps, weights, bias, pixels, &mut sums),
                    _ => tile_of::<V, 2>(to - from, &self.taps, weights, bias, pixels, &mut sums),
                }
                for (channel, plane) in out.chunks_exact_mut(height * width).enumerate() {
                    let (group, lane) = (channel / LANES, channel % LANES);
                    let line = &mut plane[y * width..][from..to];
                    line.iter_mut().zip(&sums).for_each(|(slot, sums)| *slot = sums[group][lane]);
                }
            }
        }
    }
}

/// `results` of them, 1 to [`WIDEST`], from `pixels` on, `S` pixels apart; a stride that is known here spares the loop its checks.
#[target_feature(enable = "avx512f")]
fn tile_of<const V: usize, const S: usize>(
    results: usize,
    taps: &[usize],
    weights: &[[[f32; LANES]; V]],
    bias: &[[f32; LANES]; V],
    pixels: &[f32],
    sums: &mut [[[f32; LANES]; V]; WIDEST],
) {
    match results {
        1 => row::<1, V, S>(taps, weights, bias, pixels, sums),
        2 => row::<2, V, S>(taps, weights, bias, pixels, sums),
        3 => row::<3, V, S>(taps, weights, bias, pixels, sums),
        4 => row::<4, V, S>(taps, weights, bias, pixels, sums),
        5 => row::<5, V, S>(taps, weights, bias, pixels, sums),
        6 => row::<6, V, S>(taps, weights, bias, pixels, sums),
        7 => row::<7, V, S>(taps, weights, bias, pixels, sums),
        8 => row::<8, V, S>(taps, weights, bias, pixels, sums),
        9 => row::<9, V, S>(taps, weights, bias, pixels, sums),
        10 => row::<10, V, S>(taps, weights, bias, pixels, sums),
        11 => row::<11, V, S>(taps, weights, bias, pixels, sums),
        _ => row::<WIDEST, V, S>(taps, weights, bias, pixels, sums),
    }
}

/// `J` neighbouring results of `V` groups of channels.
#[target_feature(enable = "avx512f")]
fn row<const J: usize, const V: usize, const S: usize>(
    taps: &[usize],
    weights: &[[[f32; LANES]; V]],
    bias: &[[f32; LANES]; V],
    pixels: &[f32],
    sums: &mut [[[f32; LANES]; V]; WIDEST],
) {
    let mut start = [_mm512_setzero_ps(); V];
    for (register, lanes) in start.iter_mut().zip(bias) {
        // SAFETY: `lanes` are as many numbers as a register holds.
        *register = unsafe { _mm512_loadu_ps(lanes.as_ptr()) };
    }
    let mut registers = [start; J];
    for (place, weights) in taps.iter().zip(weights) {
        let mut kernel = [_mm512_setzero_ps(); V];
        for (register, lanes) in kernel.iter_mut().zip(weights) {
            // SAFETY: as above.
            *register = unsafe { _mm512_loadu_ps(lanes.as_ptr()) };
        }
        let pixels = &pixels[*place..][..(J - 1) * S + 1];
        for (result, sums) in registers.iter_mut().enumerate() {
            let pixel = _mm512_set1_ps(pixels[result * S]);
            for (sum, weights) in sums.iter_mut().zip(kernel) {
                *sum = _mm512_fmadd_ps(weights, pixel, *sum);
            }
        }
    }
    for (slots, registers) in sums.iter_mut().zip(registers) {
        for (slot, register) in slots.iter_mut().zip(registers) {
            // SAFETY: `slot` is as many numbers as a register holds.
            unsafe { _mm512_storeu_ps(slot.as_mut_ptr(), register) };
        }
    }
}

impl Op for Direct {
    fn name(&self) -> StaticName {
        "DirectConvolution".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Direct {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [channels, height, width] = self.out;
        let mut out = vec![0.0; channels * height * width];
        let (view, weights, bias) = (inputs[0].view(), self.weights.view(), self.bias.view());
        let padded = self.pad(view.as_slice::<f32>()?);
        let (weights, bias) =
            (weights.as_slice::<f32>()?.as_chunks().0, bias.as_slice::<f32>()?.as_chunks().0);
        // SAFETY: `replace` makes this operator only where the processor has AVX-512.
        unsafe { self.run(&padded, weights, bias, &mut out) };
        let out = tract_ndarray::Array4::from_shape_vec((1, channels, height, width), out)?;
        Ok(tvec!(out.into_tensor().into()))
    }
}

impl TypedOp for Direct {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [channels, height, width] = self.out;
        Ok(tvec!(f32::fact([1, channels, height, width])))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use tract_onnx::prelude::{IntoRunnable, SpecialOps};
    use tract_onnx::tract_core::ops::cnn::{PaddingSpec, PoolSpec};

    use super::*;

    /// Numbers without a pattern.
    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
        let values: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }

    /// A convolution as tract has it.
    fn model(
        image: [usize; 3],
        out: usize,
        kernel: [usize; 2],
        pads: [usize; 4],
        strides: [usize; 2],
        dilation: usize,
    ) -> TypedModel {
        let [c, h, w] = image;
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, c, h, w])).unwrap();
        let weights = model.add_const("weights", numbers(&[out, c, kernel[0], kernel[1]], 1)).unwrap();
        let bias = model.add_const("bias", numbers(&[out], 2)).unwrap();
        let conv = Conv {
            pool_spec: PoolSpec {
                data_format: DataFormat::NCHW,
                kernel_shape: kernel.as_slice().into(),
                padding: PaddingSpec::Explicit(pads[..2].into(), pads[2..].into()),
                dilations: Some(tvec!(dilation, dilation)),
                strides: Some(strides.as_slice().into()),
                input_channels: c,
                output_channels: out,
            },
            kernel_fmt: KernelFormat::OIHW,
            group: 1,
            q_params: None,
        };
        let y = model.wire_node("conv", conv, &[x, weights, bias]).unwrap();
        model.select_output_outlets(&y).unwrap();
        model
    }

    fn ran(model: TypedModel, image: &Tensor) -> Vec<f32> {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let out = plan.run(tvec!(image.clone().into())).unwrap();
        out[0].view().as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn convolutions_are_those_of_tract() {
        for (image, out, kernel, pads, strides, dilation) in [
            ([3, 88, 88], 48, [7, 7], [3; 4], [2, 2], 1),
            ([48, 22, 22], 48, [3, 3], [1; 4], [1, 1], 1),
            ([8, 11, 11], 32, [3, 3], [1; 4], [1, 1], 1),
            ([5, 9, 13], 7, [3, 2], [1, 0, 0, 1], [1, 2], 1),
            ([4, 11, 11], 128, [3, 3], [1; 4], [2, 2], 1),
            ([3, 8, 25], 80, [3, 3], [1; 4], [1, 1], 1),
            ([2, 17, 40], 37, [5, 3], [2, 1, 2, 1], [3, 1], 2),
            ([1, 3, 3], 1, [3, 3], [0; 4], [1, 1], 1),
        ] {
            let seen = numbers(&[1, image[0], image[1], image[2]], 3);
            let theirs = model(image, out, kernel, pads, strides, dilation);
            let ours = replace(theirs.clone()).unwrap();
            let replaced = ours.nodes.iter().any(|node| node.op_is::<Direct>());
            assert_eq!(replaced, is_x86_feature_detected!("avx512f"), "{image:?}");
            let (theirs, ours) = (ran(theirs, &seen), ran(ours, &seen));
            assert_eq!(theirs.len(), ours.len());
            let largest = theirs.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (a, b) in theirs.iter().zip(&ours) {
                assert!((a - b).abs() <= 1e-5 * largest, "{image:?}: {a} and {b}");
            }
        }
    }

    #[test]
    fn others_stay_as_they_are() {
        let single = model([8, 5, 5], 16, [1, 1], [0; 4], [1, 1], 1);
        let far = model([8, 9, 9], 16, [3, 3], [0; 4], [1, 3], 1);
        for model in [single, far] {
            assert!(replace(model).unwrap().nodes.iter().all(|node| !node.op_is::<Direct>()));
        }
    }
}
