//! An image encoder: one ONNX file, run by tract on the CPU.
//!
//! The file has one input, `image` f32 [1, C, height, width], preprocessed, and one output, `features` f32 [1, F]; all
//! shapes are static and everything is inside the file. It is optimised once, when loaded, and its state is kept. Runs
//! on the caller's thread. Names, shapes and operators are checked before tract sees the file, so that the message says
//! what is wrong; whatever else is wrong with a file is an error too, never a panic. Norms over groups of channels are
//! Refrain's own operators, and convolutions where the processor has AVX-512.

#[cfg(target_arch = "x86_64")]
mod convolution;
mod norm;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dimension;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto};
use tract_onnx::prelude::{
    Framework, InferenceModelExt, IntoRunnable, TValue, Tensor, TractResult, TypedModel, TypedSimplePlan,
    TypedSimpleState, tvec,
};

/// Name of the encoder's input.
pub const INPUT: &str = "image";
/// Name of the encoder's output.
pub const OUTPUT: &str = "features";
/// Operators that run a graph of their own; their shapes are only known while they run.
const CONTROL_FLOW: [&str; 3] = ["If", "Loop", "Scan"];

/// Why an encoder cannot be loaded or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncoderError {
    /// The bytes are no ONNX file.
    #[error("{file}: is not a whole ONNX file: {reason}; export the encoder again")]
    NotOnnx {
        /// The file.
        file: String,
        /// The decoder's words.
        reason: String,
    },
    /// An input or output is called otherwise, or there are more or fewer than one.
    #[error("{file}: expected one {kind} called {expected:?}, got {got:?}; name it so in the export")]
    Name {
        /// The file.
        file: String,
        /// `input` or `output`.
        kind: &'static str,
        /// Its name.
        expected: &'static str,
        /// Names there.
        got: Vec<String>,
    },
    /// A dimension is not a number.
    #[error("{file}: {name} has the shape {got}; expected {expected}: export with static shapes")]
    Dynamic {
        /// The file.
        file: String,
        /// The input or output.
        name: &'static str,
        /// Its shape in the policy.
        expected: String,
        /// Its shape in the file.
        got: String,
    },
    /// It has another shape or type than the policy's cameras say.
    #[error("{file}: {name} is {got}; policy.toml says {expected}")]
    Shape {
        /// The file.
        file: String,
        /// The input or output.
        name: &'static str,
        /// Type and shape in the policy.
        expected: String,
        /// Type and shape in the file.
        got: String,
    },
    /// Operators that cannot be run.
    #[error("{file}: unsupported operators: {}; export the encoder without them", .operators.join(", "))]
    Unsupported {
        /// The file.
        file: String,
        /// Each once, in order.
        operators: Vec<String>,
    },
    /// Weights lie outside the file.
    #[error("{file}: {tensor:?} lies in another file; export with all weights inside (external_data=False)")]
    External {
        /// The file.
        file: String,
        /// The first such tensor.
        tensor: String,
    },
    /// Anything else that is wrong with the graph.
    #[error("{file}: cannot be made to run: {reason}")]
    Graph {
        /// The file.
        file: String,
        /// Tract's words.
        reason: String,
    },
    /// Running failed.
    #[error("{file}: {reason}")]
    Run {
        /// The file.
        file: String,
        /// What went wrong.
        reason: String,
    },
}

/// A loaded encoder.
pub struct Encoder {
    file: String,
    shape: [usize; 4],
    features: usize,
    state: TypedSimpleState,
}

impl Encoder {
    /// Loads and optimises the encoder in `onnx` for images `shape` [1, C, height, width] and `features` numbers.
    /// `file` is its name in messages.
    pub fn load(file: &str, onnx: &[u8], shape: [usize; 4], features: usize) -> Result<Self, EncoderError> {
        let reader = tract_onnx::onnx();
        let model = reader.proto_model_for_read(&mut { onnx }).map_err(|error| EncoderError::NotOnnx {
            file: file.into(),
            reason: error.root_cause().to_string(),
        })?;
        check(file, &model, shape, features, |operator| reader.op_register.0.contains_key(operator))?;
        let graph = |reason: String| EncoderError::Graph { file: file.into(), reason };
        // What the checks let through may still trip tract over; a file must not take the process down.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let model = reader.model_for_proto_model(&model)?.into_typed()?.into_decluttered()?;
            let plan = prepare(model)?.into_optimized()?.into_runnable()?;
            TypedSimplePlan::spawn(&plan)
        }));
        let state = made
            .map_err(|_| graph("the graph is inconsistent".into()))?
            .map_err(|error| graph(format!("{error:#}")))?;
        let mut encoder = Self { file: file.into(), shape, features, state };
        // A graph may contradict the shapes that it states; this run finds out.
        let image = vec![0.0; shape.iter().product()];
        encoder.run(&image, &mut vec![0.0; features]).map_err(|error| match error {
            EncoderError::Run { reason, .. } => graph(reason),
            other => other,
        })?;
        Ok(encoder)
    }

    /// F: numbers that it gives.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Encodes one preprocessed image `[C, height, width]` into `features` `[F]`.
    pub fn run(&mut self, image: &[f32], features: &mut [f32]) -> Result<(), EncoderError> {
        let state = &mut self.state;
        let shape = self.shape;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let input = Tensor::from_shape(&shape, image)?;
            let outputs = state.run(tvec!(TValue::from(input)))?;
            let got = outputs[0].view();
            features.copy_from_slice(got.as_slice::<f32>()?);
            Ok::<_, tract_onnx::prelude::TractError>(())
        }));
        let failed = |reason: String| EncoderError::Run { file: self.file.clone(), reason };
        ran.map_err(|_| failed("the graph contradicts the shapes that it states".into()))?
            .map_err(|error| failed(format!("{error:#}")))?;
        match features.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(i) => Err(failed(format!("feature {i} is {}", features[i]))),
        }
    }
}

/// Puts our own operators where they are faster than tract's.
fn prepare(model: TypedModel) -> TractResult<TypedModel> {
    let model = norm::replace(model)?;
    #[cfg(target_arch = "x86_64")]
    let model = convolution::replace(model)?;
    Ok(model)
}

/// What can be seen without running anything.
fn check(
    file: &str,
    model: &ModelProto,
    shape: [usize; 4],
    features: usize,
    is_known: impl Fn(&str) -> bool,
) -> Result<(), EncoderError> {
    let Some(graph) = &model.graph else {
        return Err(EncoderError::NotOnnx { file: file.into(), reason: "it has no graph".into() });
    };
    let inputs: Vec<&ValueInfoProto> = {
        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
        graph.input.iter().filter(|input| !is_weight(&input.name)).collect()
    };
    let outputs: Vec<&ValueInfoProto> = graph.output.iter().collect();
    check_value(file, "input", INPUT, &inputs, &shape)?;
    check_value(file, "output", OUTPUT, &outputs, &[1, features])?;
    let mut operators: Vec<String> = Vec::new();
    for node in &graph.node {
        let name = &node.op_type;
        let runs = is_known(name) && !CONTROL_FLOW.contains(&&name[..]);
        if !runs && !operators.contains(name) {
            operators.push(name.clone());
        }
    }
    if !operators.is_empty() {
        return Err(EncoderError::Unsupported { file: file.into(), operators });
    }
    check_tensors(file, graph)
}

fn check_value(
    file: &str,
    kind: &'static str,
    name: &'static str,
    values: &[&ValueInfoProto],
    expected: &[usize],
) -> Result<(), EncoderError> {
    let value = match values {
        [value] if value.name == name => value,
        others => {
            let got = others.iter().map(|value| value.name.clone()).collect();
            return Err(EncoderError::Name { file: file.into(), kind, expected: name, got });
        }
    };
    let wanted = format!("f32 {expected:?}");
    let described = value.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(Type::TensorType(tensor)) = described else {
        let got = "no tensor".into();
        return Err(EncoderError::Shape { file: file.into(), name, expected: wanted, got });
    };
    let dimensions: Vec<Option<&Dimension>> =
        tensor.shape.iter().flat_map(|shape| shape.dim.iter().map(|d| d.value.as_ref())).collect();
    let shown: Vec<String> = dimensions
        .iter()
        .map(|d| match d {
            Some(Dimension::DimValue(n)) => n.to_string(),
            Some(Dimension::DimParam(name)) => format!("{name:?}"),
            None => "?".into(),
        })
        .collect();
    let shown = format!("[{}]", shown.join(", "));
    if tensor.shape.is_none() || dimensions.iter().any(|d| !matches!(d, Some(Dimension::DimValue(_)))) {
        return Err(EncoderError::Dynamic {
            file: file.into(),
            name,
            expected: format!("{expected:?}"),
            got: shown,
        });
    }
    let same = dimensions.len() == expected.len()
        && dimensions
            .iter()
            .zip(expected)
            .all(|(d, n)| matches!(d, Some(Dimension::DimValue(value)) if usize::try_from(*value) == Ok(*n)));
    if !same || tensor.elem_type != DataType::Float as i32 {
        let kind = DataType::try_from(tensor.elem_type).map_or("unknown", |kind| kind.as_str_name());
        let kind = if kind == "FLOAT" { "f32" } else { kind };
        let got = format!("{kind} {shown}");
        return Err(EncoderError::Shape { file: file.into(), name, expected: wanted, got });
    }
    Ok(())
}

/// Every weight is inside the file; that it is as long as its shape says, tract checks.
fn check_tensors(file: &str, graph: &GraphProto) -> Result<(), EncoderError> {
    let constants = graph.node.iter().flat_map(|node| node.attribute.iter().filter_map(|a| a.t.as_ref()));
    match graph.initializer.iter().chain(constants).find(|tensor| {
        !tensor.external_data.is_empty() || tensor.data_location.is_some_and(|location| location != 0)
    }) {
        None => Ok(()),
        Some(tensor) => Err(EncoderError::External { file: file.into(), tensor: tensor.name.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_norm_of_the_shipped_encoder_is_one_operator() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/pusht-image/encoder.onnx");
        let model = tract_onnx::onnx().model_for_path(file).unwrap().into_typed().unwrap();
        let model = prepare(model.into_decluttered().unwrap()).unwrap().into_optimized().unwrap();
        let count = |name: &str| model.nodes.iter().filter(|node| node.op.name() == name).count();
        assert_eq!((count("GroupNorm"), count("RmsNorm"), count("Reduce<Sum>")), (19, 0, 0));
    }
}
