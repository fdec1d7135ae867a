"""Writes a trained image policy: `encoder.onnx`, the denoiser as a Refrain package, and reference data for tests.

Called by `train_image.py --export FOLDER`. The encoder's graph is written out in plain operators (no GroupNormalization): static
shapes, one frame at a time, input `image` f32 [1, 3, 88, 88] (cut and scaled), output `features` f32 [1, F]. Weights are f16, each
with a Cast to f32 that a runtime folds at load. The graph is checked against torch before anything is believed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

import export
import train_image as t
from pusht_scene import Episode, draw

OPSET = 17
TOLERANCE = 1e-4  # relative, onnxruntime against torch, both in f32 with the same f16 weights


class Graph:
    """Collects nodes and weights; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes, self.weights = [], []

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def half(self, value: Tensor) -> str:
        """A weight that is stored as f16."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value.detach().numpy().astype(np.float16), name))
        return self.add("Cast", name, to=TensorProto.FLOAT)

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape(self, *sides: int) -> str:
        return self.constant(np.array(sides, np.int64))

    def conv(self, x: str, layer: nn.Conv2d) -> str:
        bias = () if layer.bias is None else (self.half(layer.bias),)
        pads = [*layer.padding, *layer.padding]
        return self.add("Conv", x, self.half(layer.weight), *bias, pads=pads, strides=list(layer.stride), kernel_shape=list(layer.kernel_size))

    def norm(self, x: str, layer: nn.GroupNorm, side: int) -> str:
        """GroupNorm over [1, C, side, side]: mean and variance over the last axis of [1, G, C / G side side], which runtimes are fast at."""
        channels = layer.num_channels
        x = self.add("Reshape", x, self.shape(1, layer.num_groups, channels // layer.num_groups * side * side))
        x = self.add("Sub", x, self.add("ReduceMean", x, axes=[2], keepdims=1))
        variance = self.add("ReduceMean", self.add("Mul", x, x), axes=[2], keepdims=1)
        x = self.add("Div", x, self.add("Sqrt", self.add("Add", variance, self.constant(np.float32(layer.eps)))))
        x = self.add("Reshape", x, self.shape(1, channels, side, side))
        x = self.add("Mul", x, self.half(layer.weight.reshape(1, channels, 1, 1)))
        return self.add("Add", x, self.half(layer.bias.reshape(1, channels, 1, 1)))


def encoder_model(encoder: t.Encoder) -> onnx.ModelProto:
    g, side = Graph(), t.CROP // 2
    x = g.add("Relu", g.norm(g.conv("image", encoder.stem), encoder.stem_norm, side))
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    side //= 2
    for block in encoder.blocks:
        side //= block.conv1.stride[0]
        y = g.add("Relu", g.norm(g.conv(x, block.conv1), block.norm1, side))
        y = g.norm(g.conv(y, block.conv2), block.norm2, side)
        skip = x if block.skip is None else g.norm(g.conv(x, block.skip[0]), block.skip[1], side)
        x = g.add("Relu", g.add("Add", y, skip))
    heat = g.add("Reshape", g.conv(x, encoder.heat), g.shape(1, t.HEATMAPS, side * side))
    points = g.add("MatMul", g.add("Softmax", heat, axis=-1), g.constant(encoder.grid.numpy()))
    flat = g.add("Reshape", points, g.shape(1, 2 * t.HEATMAPS))
    product = g.add("MatMul", flat, g.half(encoder.out.weight.T.contiguous()))
    g.nodes.append(helper.make_node("Add", [product, g.half(encoder.out.bias)], ["features"], name="features"))
    graph = helper.make_graph(
        g.nodes,
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, t.CROP, t.CROP])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, t.FEATURES])],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="refrain")
    onnx.checker.check_model(model, full_check=True)
    return model


def denoiser_state(policy: t.Policy) -> tuple[dict[str, Tensor], dict]:
    """State and options as `export.export` wants them: an observation is (features, pusher x, y)."""
    identity = torch.ones(t.FEATURES), torch.zeros(t.FEATURES)
    fields = {"obs": [torch.cat([i, p]) for i, p in zip(identity, (policy.pusher_scale, policy.pusher_offset))]}
    fields["action"] = [policy.action_scale, policy.action_offset]
    state = {f"model.{k}": v for k, v in policy.denoiser.state_dict().items()}
    state |= {"_dummy_variable": torch.empty(0), "mask_generator._dummy_variable": torch.empty(0)}
    for name, (scale, offset) in fields.items():
        state |= {f"normalizer.params_dict.{name}.scale": scale, f"normalizer.params_dict.{name}.offset": offset}
    low, high = ((edge - policy.action_offset) / policy.action_scale for edge in (-1, 1))
    middle, spread = (low + high) / 2, (high - low) / 4  # not measured: only min and max are used
    for key, value in dict(min=low, max=high, mean=middle, std=spread).items():
        state[f"normalizer.params_dict.action.input_stats.{key}"] = value
    scheduler = dict(_target_="diffusers.schedulers.scheduling_ddpm.DDPMScheduler", num_train_timesteps=t.TRAIN_STEPS)
    scheduler |= dict(beta_schedule="squaredcos_cap_v2", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon")
    scheduler |= dict(clip_sample=True, variance_type="fixed_small")
    options = dict(model=t.DENOISER, noise_scheduler=scheduler, num_inference_steps=t.TRAIN_STEPS, horizon=t.HORIZON)
    options |= dict(obs_dim=t.FEATURES + 2, action_dim=2, n_obs_steps=t.OBS_STEPS, n_action_steps=t.ACTION_STEPS)
    return state, options | dict(obs_as_cond=True, pred_action_steps_only=False)


def scenes(count: int) -> np.ndarray:
    """States of an episode of our own in which the pusher crosses the block."""
    episode, states = Episode(state=[150, 120, 256, 220, 0.6]), []
    for i in range(count):
        for _ in range(4):
            episode.step([150 + 40 * i, 160 + 30 * i])
        states.append(episode.state())
    return np.stack(states)


@torch.no_grad()
def write(policy: t.Policy, past: dict, folder: Path) -> None:
    for p in policy.parameters():
        p.copy_(p.half().float())  # what the package holds
    folder.mkdir(parents=True, exist_ok=True)
    state, options = denoiser_state(policy)
    scores = [f"{e['sampler']}: {e['score']:.3f} over {e['episodes']}" for e in past.get("log", [])[-2:]]
    about = {"source": "policies/train/train_image.py", "license": "MIT OR Apache-2.0"}
    about["notes"] = [f"trained for {past['steps']} steps; scored while training: {'; '.join(scores)}"]
    camera = {"name": "image", "size": [96, 96], "crop": [t.CROP, t.CROP], "mean": [0.5] * 3, "std": [0.5] * 3}
    camera |= {"encoder": "encoder.onnx", "features": t.FEATURES}
    pusher, target = ([f"{name}_x", f"{name}_y"] for name in ("pusher", "target"))
    units = ["px", "px"]
    export.export(state, options, folder, "pusht-image", 10.0, (pusher, units), (target, units), provenance=about, cameras=[camera])

    model = encoder_model(policy.encoder)
    onnx.save(model, folder / "encoder.onnx")
    states = scenes(4)
    frames = torch.from_numpy(np.stack([draw(s) for s in states]))
    pushers = torch.from_numpy(states[:, :2]).float()
    images = t.preprocess(frames)
    features = policy.encoder(images)
    session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    seen = np.concatenate([session.run(None, {"image": image[None].contiguous().numpy()})[0] for image in images])
    error = float(np.abs(seen - features.numpy()).max() / features.abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"encoder.onnx differs from torch by {error:.1e} relative, expected at most {TOLERANCE:.0e}")

    cond = policy.condition(images[None, 2:], pushers[None, 2:])
    noise = torch.randn(1, t.HORIZON, 2, generator=torch.Generator().manual_seed(7))
    trajectory = t.sample(policy, cond, 10, torch.Generator(), noise)
    actions = (trajectory - policy.action_offset) / policy.action_scale
    first = t.OBS_STEPS - 1
    reference = dict(frames=frames, pushers=pushers, input_0=images[0].contiguous(), features=features, noise=noise)
    reference |= dict(trajectory=trajectory, actions=actions[:, first : first + t.ACTION_STEPS].contiguous(), condition=cond)
    about = {"frames": "u8 [4, 96, 96, 3] RGB", "input_0": "frame 0 as the encoder gets it", "condition": "frames 2 and 3"}
    about |= {"trajectory": "DDIM-10 from noise, normalised", "actions": "of it, in pixels"}
    save_file(reference, folder / "reference.safetensors", about)
    (folder / "reference.safetensors").chmod(0o644)
    t.say(f"encoder.onnx: {len(model.graph.node)} nodes, {(folder / 'encoder.onnx').stat().st_size / 1e6:.2f} MB, {error:.1e} off torch")
