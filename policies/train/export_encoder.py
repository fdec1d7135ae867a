"""Exports the image encoders of a real-stanford/diffusion_policy hybrid checkpoint for `refrain import --encoder`.

`export_encoder.py CHECKPOINT OUT`, where the policy was trained: it needs that code base and robomimic, and runs the
checkpoint's pickle. Writes `OUT/KEY.onnx` for every camera: input `image` f32 [1, C, h, w], scaled by the normaliser and
cut, output `features` f32 [1, F], static shapes, plain operators. ONNX Runtime must agree with torch on every file.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # relative, ONNX Runtime against torch


class PlainGroupNorm(nn.Module):
    """GroupNorm in operators that every runtime has."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        shape = [int(n) for n in x.shape]
        x = x.reshape(shape[0], self.groups, -1)
        x = x - x.mean(-1, keepdim=True)
        x = x / ((x * x).mean(-1, keepdim=True) + self.eps).sqrt()
        return x.reshape(shape) * self.weight[None, :, None, None] + self.bias[None, :, None, None]


def plain(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, PlainGroupNorm(child) if isinstance(child, nn.GroupNorm) else plain(child))
    return module


class Eye(nn.Module):
    """What robomimic's ObservationEncoder does to one camera's image after cutting it."""

    def __init__(self, encoder: nn.Module, key: str) -> None:
        super().__init__()
        self.net = plain(encoder.obs_nets[key])
        self.activation = getattr(encoder, "activation", None)

    def forward(self, image: Tensor) -> Tensor:
        x = self.net(image)
        if self.activation is not None:
            x = self.activation(x)
        return x.flatten(1)


def save_onnx(module: nn.Module, image: Tensor, path: Path) -> None:
    names: dict[str, Any] = dict(input_names=["image"], output_names=["features"])
    if "external_data" in inspect.signature(torch.onnx.export).parameters:
        names |= dict(dynamo=True, external_data=False, verbose=False, opset_version=18)
    else:
        names |= dict(opset_version=13)
    logging.disable(logging.WARNING)  # the exporter narrates
    torch.onnx.export(module, (image,), str(path), **names)
    logging.disable(logging.NOTSET)
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)


@torch.no_grad()
def export_encoders(encoder: nn.Module, shape_meta: dict[str, Any], crop: list[int] | None, out: Path) -> None:
    """Writes the encoders of all cameras. The encoder's keys must come in the order of `shape_meta`, as the import takes them."""
    keys = list(shape_meta["obs"])
    if list(encoder.obs_shapes) != keys:
        raise SystemExit(f"obs_encoder: expected the keys {keys} in this order, got {list(encoder.obs_shapes)}")
    encoder.eval()
    out.mkdir(parents=True, exist_ok=True)
    for key in keys:
        entry = shape_meta["obs"][key]
        if entry.get("type", "low_dim") != "rgb":
            continue
        channels, *size = entry["shape"]
        image = torch.rand(1, channels, *(crop or size)) * 2 - 1
        eye, path = Eye(encoder, key).eval(), out / f"{key}.onnx"
        expected = eye(image).numpy()
        save_onnx(eye, image, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"image": image.numpy()})
        error = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6))
        if not error <= TOLERANCE:
            raise SystemExit(f"{path}: differs from torch by {error:.1e} relative, expected at most {TOLERANCE:.0e}")
        print(f"{path}: {expected.shape[1]} features, {path.stat().st_size / 1e6:.2f} MB, {error:.1e} off torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="folder to make")
    args = parser.parse_args()

    import dill
    import hydra
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("eval", eval, replace=True)
    with args.checkpoint.open("rb") as file:
        payload = torch.load(file, map_location="cpu", pickle_module=dill)
    cfg = payload["cfg"]
    workspace = hydra.utils.get_class(cfg._target_)(cfg)
    workspace.load_payload(payload, exclude_keys=["optimizer"], include_keys=None)
    policy = workspace.ema_model if cfg.training.use_ema else workspace.model
    options = OmegaConf.to_container(cfg.policy, resolve=True)
    crop = options.get("crop_shape", [76, 76])  # that code base's default
    export_encoders(policy.obs_encoder.cpu().float(), options["shape_meta"], crop, args.out)


if __name__ == "__main__":
    main()
