"""Exports what surrounds the denoiser of a LeRobot `multi_task_dit` checkpoint, for `refrain import FOLDER PACKAGE --encoder OUT`.

`export_lerobot.py FOLDER OUT --task TEXT`, where the policy was trained: it needs LeRobot with its extra `multi_task_dit`.
Writes an ONNX file per camera (one for all where they share their encoder): input `image` f32 [1, 3, h, w], normalised, resized
and cut, output `features` f32 [1, F], static shapes; and `text.safetensors` with the features of TEXT, for a package does one
task. ONNX Runtime must agree with torch on every file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy, ObservationEncoder
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from export_encoder import TOLERANCE, save_onnx


class Eye(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image).flatten(1)


def short(key: str) -> str:
    """The camera's name in the package."""
    return key.removeprefix("observation.").removeprefix("images.")


@torch.no_grad()
def export_cameras(encoder: ObservationEncoder, out: Path) -> None:
    features = list(encoder.config.image_features.items())
    shared = encoder.vision_encoder is not None
    for i, (key, feature) in enumerate(features[:1] if shared else features):
        path = out / ("encoder.onnx" if shared else f"{short(key)}.onnx")
        eye = Eye(encoder.vision_encoder if shared else encoder.vision_encoders[i]).eval()
        image = encoder._apply_preprocessing(torch.rand(1, *feature.shape) * 2 - 1)
        expected = eye(image).numpy()
        save_onnx(eye, image, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {"image": image.numpy()})
        error = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6))
        if not error <= TOLERANCE:
            raise SystemExit(f"{path}: differs from torch by {error:.1e} relative, expected at most {TOLERANCE:.0e}")
        print(f"{path}: {expected.shape[1]} features, {path.stat().st_size / 1e6:.2f} MB, {error:.1e} off torch")


@torch.no_grad()
def export_text(policy: MultiTaskDiTPolicy, task: str, out: Path) -> None:
    c = policy.config
    tokenizer = AutoTokenizer.from_pretrained(c.text_encoder_name)
    tokens = tokenizer(
        [task],
        max_length=c.tokenizer_max_length,
        truncation=c.tokenizer_truncation,
        padding=c.tokenizer_padding,
        padding_side=c.tokenizer_padding_side,
        return_tensors="pt",
    )
    features = policy.observation_encoder.text_encoder(tokens["input_ids"], tokens["attention_mask"].bool())
    save_file({"features": features[0].float().contiguous()}, out / "text.safetensors", {"task": task})
    print(f"{out / 'text.safetensors'}: {features.shape[1]} features of {task!r}")


def export(policy: MultiTaskDiTPolicy, task: str, out: Path) -> None:
    policy = policy.to("cpu").float().eval()
    out.mkdir(parents=True, exist_ok=True)
    if policy.config.image_features:
        export_cameras(policy.observation_encoder, out)
    export_text(policy, task, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--task", required=True, help="what the policy shall do, as in its training data")
    args = parser.parse_args()
    export(MultiTaskDiTPolicy.from_pretrained(args.checkpoint), args.task, args.out)


if __name__ == "__main__":
    main()
