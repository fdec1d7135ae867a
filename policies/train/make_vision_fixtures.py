"""Makes `tests/fixtures/vision`: what torchvision does to images, a small random image policy, and encoders that are wrong.

`preprocess.safetensors`: images and what torchvision's transforms make of them, `cameras` in the metadata as in policy.toml.
`policy/`: a package with two cameras, its features, conditions and actions computed by PyTorch in `trace.safetensors`.
`*.onnx`: files that a loader must refuse by name. Everything follows from the seeds in here.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from export import export
from make_fixtures import build

# Name -> height and width of the source, changes to the camera.
PREPROCESS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "plain": ((9, 12), {}),
    "bgr": ((9, 12), dict(channels="bgr")),
    "mono": ((9, 12), dict(channels="mono", mean=[0.4], std=[0.3])),
    "crop_even": ((96, 96), dict(crop=[84, 84], mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])),
    "crop_odd": ((13, 16), dict(crop=[10, 9])),
    "crop_odd_half": ((12, 17), dict(crop=[7, 10])),
    "shrink": ((48, 64), dict(resize=[15, 20], mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])),
    "shrink_without_antialias": ((48, 64), dict(resize=[15, 20], antialias=False)),
    "grow": ((11, 7), dict(resize=[24, 31])),
    "grow_without_antialias": ((11, 7), dict(resize=[24, 31], antialias=False)),
    "grow_and_shrink": ((10, 40), dict(resize=[24, 13])),
    "shrink_and_crop": ((60, 80), dict(resize=[40, 50], crop=[33, 44])),
    "to_one_pixel": ((5, 6), dict(resize=[1, 1])),
}


def camera(name: str, size: tuple[int, int], features: int = 1, **changes: Any) -> dict[str, Any]:
    """A `[[cameras]]` table of policy.toml."""
    return {"name": name, "size": list(size), "features": features} | changes


def preprocess(camera: dict[str, Any], image: Tensor) -> Tensor:
    """RGB (or one-channel) bytes [H, W, C] to the encoder's input [C, h, w], by torchvision."""
    if camera.get("channels") == "bgr":
        image = image.flip(-1)
    steps: list[nn.Module] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if "resize" in camera:
        steps.append(v2.Resize(camera["resize"], antialias=camera.get("antialias", True)))
    if "crop" in camera:
        steps.append(v2.CenterCrop(camera["crop"]))
    if "mean" in camera:
        steps.append(v2.Normalize(camera["mean"], camera["std"]))
    return torch.as_tensor(v2.Compose(steps)(image.permute(2, 0, 1)))


def image(generator: torch.Generator, size: tuple[int, int], channels: int) -> Tensor:
    return torch.randint(256, (*size, channels), generator=generator, dtype=torch.uint8)


def make_preprocess(out: pathlib.Path) -> None:
    generator = torch.Generator().manual_seed(0)
    cameras, tensors = [], {}
    for name, (size, changes) in PREPROCESS.items():
        table = camera(name, size, **changes)
        source = image(generator, size, 1 if changes.get("channels") == "mono" else 3)
        tensors |= {f"{name}.image": source, f"{name}.input": preprocess(table, source).contiguous()}
        cameras.append(table)
    save_file(tensors, out / "preprocess.safetensors", metadata={"cameras": json.dumps(cameras)})


class Encoder(nn.Module):
    """Image [1, C, h, w] to features [1, F]; weights in half precision, as exported encoders have them."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, features)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)))


def half_weights(model: onnx.ModelProto) -> None:
    """Stores float32 initialisers of more than 8 values as float16 with a Cast."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 8:
            name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, name + "_f16"))
            casts.append(helper.make_node("Cast", [name + "_f16"], [name], name=name + "_cast", to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


def save_encoder(encoder: nn.Module, shape: list[int], path: pathlib.Path, **changes: Any) -> None:
    logging.disable(logging.WARNING)  # the exporter narrates
    names = dict(input_names=["image"], output_names=["features"]) | changes
    torch.onnx.export(encoder, (torch.zeros(1, *shape),), str(path), dynamo=True, verbose=False, external_data=False, **names)
    logging.disable(logging.NOTSET)
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    half_weights(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_policy(out: pathlib.Path) -> None:
    """Two cameras, two low-dimensional observations."""
    generator = torch.Generator().manual_seed(1)
    front = camera("front", (20, 24), 6, crop=[16, 16], mean=[0.5] * 3, std=[0.5] * 3, encoder="front.onnx")
    wrist = camera("wrist", (18, 18), 4, channels="mono", resize=[12, 12], encoder="wrist.onnx")
    encoders = {}
    for table, shape in ((front, [3, 16, 16]), (wrist, [1, 12, 12])):
        torch.manual_seed(len(encoders))
        encoder = Encoder(shape[0], table["features"]).eval()
        for p in encoder.parameters():
            p.data = p.data.half().float()
        encoders[table["name"]] = encoder
        out.mkdir(parents=True, exist_ok=True)
        save_encoder(encoder, shape, out / table["encoder"])

    spec = dict(task=dict(obs_dim=12, n_obs_steps=2), model=dict(n_emb=8), scheduler=dict(num_train_timesteps=20))
    policy, _, obs = build(spec, 3)
    field = policy.fields[0]
    field.scale.data[:10], field.offset.data[:10] = 1, 0  # features go in as they are
    low = obs[:1, :, 10:]
    images = {c["name"]: [image(generator, tuple(c["size"]), 3 if c is front else 1) for _ in range(2)] for c in (front, wrist)}
    with torch.no_grad():
        seen = [
            torch.cat([encoders[c["name"]](preprocess(c, images[c["name"]][step])[None])[0] for c in (front, wrist)])
            for step in range(2)
        ]
    features = torch.stack(seen)[None]
    raw = torch.cat([features, low], dim=-1)
    steps = policy.options["num_inference_steps"]
    noise = torch.randn(steps + 1, 1, *policy.shape(), generator=generator)
    scheduler = policy.scheduler()
    scheduler.set_timesteps(steps)
    trajectory = policy.sample(raw, noise, scheduler)
    action, predicted = policy.actions(trajectory)
    tensors = {"obs_raw": low, "features": features, "condition": field.normalize(raw), "noise": noise}
    tensors |= {"trajectory_norm": trajectory, "action": action, "action_pred": predicted}
    tensors |= {f"{name}.{step}": images[name][step] for name in images for step in range(2)}
    export(policy.state_dict(), policy.options, out, "vision", 10.0, dtype=torch.float32, cameras=[front, wrist])
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, out / "trace.safetensors")


def make_wrong(out: pathlib.Path) -> None:
    """Each of these has one thing wrong; the sound ones expect [1, 3, 8, 8] and give 4 features."""
    torch.manual_seed(5)
    encoder = Encoder(3, 4).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    save_encoder(encoder, [3, 8, 8], out / "sound.onnx")
    save_encoder(encoder, [3, 8, 8], out / "dynamic.onnx", dynamic_shapes=({0: batch},))
    save_encoder(encoder, [3, 8, 8], out / "wrong_input_name.onnx", input_names=["pixels"])
    save_encoder(encoder, [3, 8, 8], out / "wrong_output_name.onnx", output_names=["embedding"])

    sound = onnx.load(out / "sound.onnx")

    def changed(name: str) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(sound)
        return model

    model = changed("unsupported")
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(helper.make_node("Unique", ["before"], ["features"]))
    model.graph.node.append(helper.make_node("AcmeFancyNorm", ["before"], ["unused"], domain="acme"))
    onnx.save(model, out / "unsupported.onnx")

    model = changed("lying")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    onnx.save(model, out / "lying.onnx")

    model = changed("two_outputs")
    extra = model.graph.output.add()
    extra.CopyFrom(model.graph.output[0])
    extra.name = model.graph.node[0].output[0]
    onnx.save(model, out / "two_outputs.onnx")

    model = changed("external")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    onnx.save(model, out / "external.onnx")

    model = changed("dangling")
    model.graph.node[-1].output[0] = "elsewhere"
    onnx.save(model, out / "dangling.onnx")

    model = changed("not_finite")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == model.graph.node[-1].input[2])
    bias.CopyFrom(numpy_helper.from_array(np.float32([0, np.nan, 0, 0]), bias.name))
    onnx.save(model, out / "not_finite.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "vision"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    make_preprocess(out)
    make_policy(out / "policy")
    make_wrong(out)
    for path in sorted(out.rglob("*")):
        if path.is_file():
            path.chmod(0o644)
            print(f"{path.relative_to(out)}: {path.stat().st_size / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
