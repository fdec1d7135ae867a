//! GroupNorm as one operator, in place of the many that an export writes it with.
//!
//! From an image's groups to the ReLU: mean, difference, division by the root of the mean square; then, where they follow, scale
//! and shift of each channel, a residual and the ReLU. Computed where the image lies. Plain Rust, for every processor;
//! sums are in a fixed order. What is not written just so stays tract's.

use std::sync::Arc;

use tract_onnx::prelude::{DatumExt, TValue, TVec, tvec};
use tract_onnx::tract_core::internal::{
    AxisOp, Datum, EvalContext, EvalOp, IntoTensor, Op, OutletId, StaticName, Tensor, TractResult, TypedFact,
    TypedModel, TypedModelPatch, TypedNode, TypedOp, as_op, op_as_typed_op, op_out_of_plan,
};
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::math::{Add, Max, Mul, Sub};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, RmsNorm};

/// Sums that run beside each other, so that a processor's vectors are full.
const LANES: usize = 16;

/// `[1, C, height, width]`, and a residual of the same shape where `inputs` has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupNorm {
    groups: usize,
    /// One number, added to the mean square.
    epsilon: Arc<Tensor>,
    /// `[C]`.
    scale: Arc<Tensor>,
    /// `[C]`.
    shift: Arc<Tensor>,
    /// Whether what is negative becomes zero.
    relu: bool,
}

/// The model with its norms replaced where that is possible.
pub(super) fn replace(mut model: TypedModel) -> TractResult<TypedModel> {
    for id in 0..model.nodes.len() {
        if let Some(patch) = GroupNorm::patch(&model, &model.nodes[id])? {
            patch.apply(&mut model)?;
        }
    }
    Ok(model)
}

impl GroupNorm {
    /// What replaces the norm around a root mean square that tract has found.
    fn patch(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some((mut norm, image, mut last)) = Self::around(model, node)? else { return Ok(None) };
        let shape = &model.outlet_fact(image)?.shape;
        let mut inputs = vec![image];
        if let Some((add, residual)) = follower::<Add>(model, last)
            && model.outlet_fact(residual)?.shape == *shape
        {
            inputs.push(residual);
            last = add;
        }
        if let Some((max, zero)) = follower::<Max>(model, last)
            && number(model, zero)? == Some(0.0)
        {
            norm.relu = true;
            last = max;
        }
        let mut patch = TypedModelPatch::default();
        let taps = patch.taps(model, &inputs)?;
        let wire = patch.wire_node(format!("{}.group_norm", node.name), norm, &taps)?;
        patch.shunt_outside(model, last.id.into(), wire[0])?;
        Ok(Some(patch))
    }

    /// The norm up to its shift, its image and the last node.
    fn around<'a>(
        model: &'a TypedModel,
        node: &TypedNode,
    ) -> TractResult<Option<(Self, OutletId, &'a TypedNode)>> {
        let Some(rms) = node.op_as::<RmsNorm>() else { return Ok(None) };
        let difference = model.node(node.inputs[0].node);
        let (true, &[groups, mean]) = (is::<Sub>(difference), &difference.inputs[..]) else {
            return Ok(None);
        };
        let reshape = model.node(groups.node);
        let (Some(AxisOp::Reshape(..)), [image]) = (reshape.op_as(), &reshape.inputs[..]) else {
            return Ok(None);
        };
        let (whole, split) = (model.outlet_fact(*image)?, model.outlet_fact(groups)?);
        let (Some(&[1, c, h, w]), Some(&[1, g, n])) = (whole.shape.as_concrete(), split.shape.as_concrete())
        else {
            return Ok(None);
        };
        let float = whole.datum_type == f32::datum_type() && rms.eps.datum_type() == f32::datum_type();
        if !float || rms.axis != 2 || c % g != 0 || n != c / g * h * w || !is_mean(model, mean, groups, n)? {
            return Ok(None);
        }
        let Some(back) = model.single_succ(node.id)? else { return Ok(None) };
        if !matches!(back.op_as(), Some(AxisOp::Reshape(..))) || back.outputs[0].fact.shape != whole.shape {
            return Ok(None);
        }
        let channels = |outlet: OutletId| -> TractResult<Option<Arc<Tensor>>> {
            let Some(konst) = &model.outlet_fact(outlet)?.konst else { return Ok(None) };
            let fits = konst.shape() == [1, c, 1, 1] && konst.datum_type() == f32::datum_type();
            Ok(fits.then(|| konst.clone()))
        };
        let every = |number: f32| Tensor::from_shape(&[c], &vec![number; c]).map(Arc::new);
        let (mut scale, mut shift, mut last) = (every(1.0)?, every(0.0)?, back);
        if let Some((mul, factor)) = follower::<Mul>(model, last)
            && let Some(factor) = channels(factor)?
        {
            (scale, last) = (factor, mul);
        }
        if let Some((add, term)) = follower::<Add>(model, last)
            && let Some(term) = channels(term)?
        {
            (shift, last) = (term, add);
        }
        let norm = Self { groups: g, epsilon: rms.eps.clone(), scale, shift, relu: false };
        Ok(Some((norm, *image, last)))
    }

    /// Normalises `image` `[C, height * width]` where it lies.
    fn run(&self, image: &mut [f32], residual: Option<&[f32]>) -> TractResult<()> {
        let (epsilon, scale, shift) = (self.epsilon.view(), self.scale.view(), self.shift.view());
        let (epsilon, scale, shift) =
            (epsilon.as_slice::<f32>()?[0], scale.as_slice::<f32>()?, shift.as_slice::<f32>()?);
        let (group, plane) = (image.len() / self.groups, image.len() / scale.len());
        let mut channels = scale.iter().zip(shift);
        for (g, image) in image.chunks_exact_mut(group).enumerate() {
            let mean = sum(image, |value| value) / group as f32;
            let square = sum(image, |value| (value - mean) * (value - mean)) / group as f32;
            let norm = 1.0 / (square + epsilon).sqrt();
            let planes = image.chunks_exact_mut(plane).zip(&mut channels);
            for (c, (values, (scale, shift))) in planes.enumerate() {
                let scale = scale * norm;
                let residual = residual.map(|residual| &residual[g * group + c * plane..][..plane]);
                for value in values.iter_mut() {
                    *value = (*value - mean) * scale + shift;
                }
                if let Some(residual) = residual {
                    values.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
                }
                if self.relu {
                    // What is not a number stays so.
                    values.iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
                }
            }
        }
        Ok(())
    }
}

/// The sum of what `of` makes of the values.
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += of(*value));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|value| of(*value)).sum::<f32>()
}

fn is<O: BinMiniOp>(node: &TypedNode) -> bool {
    node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<O>())
}

/// The only successor, if it is an `O`, and what else goes into it.
fn follower<'a, O: BinMiniOp>(model: &'a TypedModel, node: &TypedNode) -> Option<(&'a TypedNode, OutletId)> {
    let next = model.single_succ(node.id).ok()?.filter(|next| is::<O>(next))?;
    let other = next.inputs.iter().find(|input| input.node != node.id)?;
    Some((next, *other))
}

/// The one number of a constant.
fn number(model: &TypedModel, outlet: OutletId) -> TractResult<Option<f32>> {
    let Some(konst) = &model.outlet_fact(outlet)?.konst else { return Ok(None) };
    if konst.len() != 1 || konst.datum_type() != f32::datum_type() {
        return Ok(None);
    }
    Ok(konst.view().as_slice::<f32>()?.first().copied())
}

/// Whether `mean` is that of each of the `groups`, of `n` numbers.
fn is_mean(model: &TypedModel, mean: OutletId, groups: OutletId, n: usize) -> TractResult<bool> {
    let product = model.node(mean.node);
    let (true, &[sums, share]) = (is::<Mul>(product), &product.inputs[..]) else { return Ok(false) };
    let reduce = model.node(sums.node);
    let sums = reduce.op_as::<Reduce>().is_some_and(|r| r.reducer == Reducer::Sum && r.axes[..] == [2]);
    let share = number(model, share)?.is_some_and(|share| (share * n as f32 - 1.0).abs() <= 1e-6);
    Ok(sums && share && reduce.inputs[..] == [groups])
}

impl Op for GroupNorm {
    fn name(&self) -> StaticName {
        "GroupNorm".into()
    }

    op_as_typed_op!();
}

impl EvalOp for GroupNorm {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut image = inputs.remove(0).into_tensor();
        let residual = inputs.first().map(|residual| residual.view());
        let residual = residual.as_ref().map(|residual| residual.as_slice::<f32>()).transpose()?;
        self.run(image.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, residual)?;
        Ok(tvec!(image.into()))
    }
}

impl TypedOp for GroupNorm {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(inputs[0].shape.clone())))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use tract_onnx::prelude::{IntoRunnable, SpecialOps};
    use tract_onnx::tract_core::ops::math;

    use super::*;

    /// Numbers without a pattern, around `centre`.
    fn numbers(shape: &[usize], seed: usize, centre: f32) -> Tensor {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0 + centre;
        let values: Vec<f32> = (0..shape.iter().product()).map(number).collect();
        Tensor::from_shape(shape, &values).unwrap()
    }

    /// A norm as tract has it, with what `follows`; the image itself is the residual.
    fn model([c, h, w]: [usize; 3], groups: usize, follows: &[&str]) -> TypedModel {
        let mut model = TypedModel::default();
        let n = c / groups * h * w;
        let (whole, split) = (tvec!(c.into(), h.into(), w.into()), tvec!(groups.into(), n.into()));
        let x = model.add_source("x", f32::fact([1, c, h, w])).unwrap();
        let mut wire = |name: &str, op: Box<dyn TypedOp>, inputs: &[OutletId]| {
            model.wire_node(name, op, inputs).unwrap()[0]
        };
        let grouped = wire("split", Box::new(AxisOp::Reshape(1, whole.clone(), split.clone())), &[x]);
        let sum = wire("sum", Box::new(Reduce { axes: tvec!(2), reducer: Reducer::Sum }), &[grouped]);
        let constants = [
            ("share", Tensor::from_shape(&[1, 1, 1], &[1.0 / n as f32]).unwrap()),
            ("scale", numbers(&[1, c, 1, 1], 1, 0.5)),
            ("shift", numbers(&[1, c, 1, 1], 2, 0.0)),
            ("zero", Tensor::from_shape(&[1, 1, 1, 1], &[0.0f32]).unwrap()),
        ];
        let [share, scale, shift, zero] =
            constants.map(|(name, value)| model.add_const(name, value).unwrap());
        let mut wire = |name: &str, op: Box<dyn TypedOp>, inputs: &[OutletId]| {
            model.wire_node(name, op, inputs).unwrap()[0]
        };
        let mean = wire("mean", Box::new(math::mul()), &[sum, share]);
        let difference = wire("difference", Box::new(math::sub()), &[grouped, mean]);
        let eps = Arc::new(Tensor::from(1e-5f32));
        let norm = wire("norm", Box::new(RmsNorm { axis: 2, eps }), &[difference]);
        let mut y = wire("whole", Box::new(AxisOp::Reshape(1, split, whole)), &[norm]);
        for what in follows {
            let (op, inputs): (Box<dyn TypedOp>, _) = match *what {
                "scale" => (Box::new(math::mul()), [y, scale]),
                "shift" => (Box::new(math::add()), [shift, y]),
                "residual" => (Box::new(math::add()), [y, x]),
                _ => (Box::new(math::max()), [y, zero]),
            };
            y = wire(&format!("then {what}"), op, &inputs);
        }
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    fn ran(model: TypedModel, image: &Tensor) -> Vec<f32> {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let out = plan.run(tvec!(image.clone().into())).unwrap();
        out[0].view().as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn norms_are_those_of_tract() {
        for (shape, groups, follows) in [
            ([48, 22, 22], 3, &["scale", "shift", "relu"][..]),
            ([48, 11, 11], 3, &["scale", "shift", "residual", "relu"]),
            ([6, 3, 5], 2, &["residual"]),
            ([5, 1, 1], 1, &["shift"]),
            ([4, 7, 2], 4, &["scale", "relu"]),
            ([8, 4, 4], 2, &[]),
        ] {
            let [c, h, w] = shape;
            let image = numbers(&[1, c, h, w], 3, 2.0);
            let theirs = model(shape, groups, follows);
            let ours = replace(theirs.clone()).unwrap().into_optimized().unwrap();
            let norms = ours.nodes.iter().filter(|node| node.op_is::<GroupNorm>());
            assert_eq!(
                (norms.count(), ours.nodes.len()),
                (1, 2),
                "{shape:?}: image and norm, and nothing else"
            );
            let (theirs, ours) = (ran(theirs, &image), ran(ours, &image));
            assert_eq!(theirs.len(), ours.len());
            for (a, b) in theirs.iter().zip(&ours) {
                assert!((a - b).abs() <= 1e-5, "{shape:?}: {a} and {b}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let ours = replace(model([4, 3, 3], 2, &["relu"])).unwrap();
        let image = Tensor::from_shape(&[1, 4, 3, 3], &[f32::NAN; 36]).unwrap();
        assert!(ran(ours, &image).iter().all(|value| value.is_nan()));
    }
}
