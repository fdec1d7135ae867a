"""Makes `tests/fixtures/hybrid`: a small random checkpoint of the hybrid image policy, its encoders and its trace.

The configuration has the layout of real-stanford/diffusion_policy's training of DiffusionTransformerHybridImagePolicy;
cameras and low-dimensional keys take turns in it. The encoder is a stand-in with the interface of robomimic's
ObservationEncoder; `export_encoder.py` writes its ONNX files. Everything follows from the seeds in here.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import dill
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from export_encoder import export_encoders
from make_fixtures import DDPM, field, randomize
from reference import Denoiser, make_scheduler, resolvers, scheduler_step

STEPS, HORIZON, OBS_STEPS, ACTION_STEPS, ACTION = 10, 8, 2, 4, 3
SIZE, CROP, FEATURES = (14, 16), [9, 12], 5
SHAPES: dict[str, dict[str, Any]] = {
    "eef_pos": {"shape": [3]},
    "front_image": {"shape": [3, *SIZE], "type": "rgb"},
    "gripper": {"shape": [1], "type": "low_dim"},
    "wrist_image": {"shape": [3, *SIZE], "type": "rgb"},
}
LOW = ["eef_pos", "gripper"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nets(x).flatten(1))


class ObservationEncoder(nn.Module):
    """Keys in order, each through its net and activation, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.obs_shapes = {key: entry["shape"] for key, entry in SHAPES.items()}
        self.obs_nets = nn.ModuleDict({key: Net() for key in SHAPES if key not in LOW})
        self.activation = nn.ReLU()

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        parts = []
        for key in self.obs_shapes:
            x = obs[key]
            if key in self.obs_nets:
                top, left = (round((n - c) / 2) for n, c in zip(SIZE, CROP))
                x = self.activation(self.obs_nets[key](x[..., top : top + CROP[0], left : left + CROP[1]]))
            parts.append(x.flatten(1))
        return torch.cat(parts, -1)


def config() -> dict[str, Any]:
    scheduler = {"_target_": DDPM, "num_train_timesteps": 50, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"}
    scheduler |= {"variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon"}
    return {
        "name": "train_diffusion_transformer_hybrid",
        "_target_": "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace.TrainDiffusionTransformerHybridWorkspace",
        "task_name": "${task.name}",
        "shape_meta": "${task.shape_meta}",
        "exp_name": "default",
        "horizon": HORIZON,
        "n_obs_steps": OBS_STEPS,
        "n_action_steps": ACTION_STEPS,
        "n_latency_steps": 0,
        "dataset_obs_steps": "${n_obs_steps}",
        "past_action_visible": False,
        "keypoint_visible_rate": 1.0,
        "obs_as_cond": True,
        "policy": {
            "_target_": "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
            "shape_meta": "${shape_meta}",
            "noise_scheduler": scheduler,
            "horizon": "${horizon}",
            "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
            "n_obs_steps": "${n_obs_steps}",
            "num_inference_steps": STEPS,
            "crop_shape": CROP,
            "obs_encoder_group_norm": True,
            "eval_fixed_crop": True,
            "n_layer": 2,
            "n_cond_layers": 0,
            "n_head": 2,
            "n_emb": 12,
            "p_drop_emb": 0.0,
            "p_drop_attn": 0.3,
            "causal_attn": True,
            "time_as_cond": True,
            "obs_as_cond": "${obs_as_cond}",
        },
        "training": {"device": "cuda:0", "seed": 42, "use_ema": True},
        "task": {
            "name": "fixture_image",
            "shape_meta": {"obs": SHAPES, "action": {"shape": [ACTION]}},
            "env_runner": {"_target_": "diffusion_policy.env_runner.fixture.Runner", "fps": 20},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "hybrid"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(11)
    generator = torch.Generator().manual_seed(11)
    resolvers()
    cfg = OmegaConf.create(config())
    options = OmegaConf.to_container(cfg.policy, resolve=True)

    encoder = ObservationEncoder().eval()
    features = sum(FEATURES if key not in LOW else SHAPES[key]["shape"][0] for key in SHAPES)
    model = Denoiser(ACTION, ACTION, HORIZON, OBS_STEPS, features, 2, 2, 12, causal_attn=True, obs_as_cond=True).eval()

    class Shell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

    randomize(Shell(), generator)  # type: ignore[arg-type]
    fields = {key: field("limits", torch.randn(64, SHAPES[key]["shape"][0], generator=generator) * 5 + 2) for key in LOW}
    action = field("limits", 3 * torch.randn(64, ACTION, generator=generator) + 1)
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state |= {f"obs_encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {"_dummy_variable": torch.empty(0), "mask_generator._dummy_variable": torch.empty(0)}
    for key, one in (fields | {"action": action}).items():
        prefix = f"normalizer.params_dict.{key}."
        state |= {prefix + "scale": one.scale.data, prefix + "offset": one.offset.data}
        state |= {f"{prefix}input_stats.{k}": v.data for k, v in one.input_stats.items()}
    for key in SHAPES:
        if key not in LOW:  # images in 0..1 to -1..1
            prefix = f"normalizer.params_dict.{key}."
            state |= {prefix + "scale": torch.tensor([2.0]), prefix + "offset": torch.tensor([-1.0])}
            stats = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": (1 / 12) ** 0.5}
            state |= {f"{prefix}input_stats.{k}": torch.tensor([v]) for k, v in stats.items()}
    payload = {"cfg": cfg, "state_dicts": {"model": dict(state), "ema_model": dict(state)}, "pickles": {"epoch": dill.dumps(1)}}
    with (out / "policy.ckpt").open("wb") as file:
        torch.save(payload, file, pickle_module=dill)

    # The trace: raw observations through normalisers, encoder and denoiser, in the order of shape_meta.
    images = {k: torch.randint(256, (OBS_STEPS, *SIZE, 3), generator=generator, dtype=torch.uint8) for k in SHAPES if k not in LOW}
    low = {k: torch.randn(OBS_STEPS, SHAPES[k]["shape"][0], generator=generator) * 5 + 2 for k in LOW}
    with torch.no_grad():
        seen = {k: v.permute(0, 3, 1, 2).float() / 255 * 2 - 1 for k, v in images.items()}
        seen |= {k: fields[k].normalize(low[k]) for k in LOW}
        cond = encoder(seen)[None]
        scheduler = make_scheduler(options["noise_scheduler"])
        scheduler.set_timesteps(STEPS)
        noise = torch.randn(STEPS + 1, 1, HORIZON, ACTION, generator=generator)
        x = noise[0]
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler_step(scheduler, model(x, t, cond), t, x, noise[1 + k])
        predicted = action.unnormalize(x)
    first = OBS_STEPS - 1
    tensors = {"obs_raw": torch.cat([low[k] for k in LOW], -1)[None], "noise": noise, "trajectory_norm": x, "action_pred": predicted}
    tensors |= {"action": predicted[:, first : first + ACTION_STEPS]} | {k: v[None] for k, v in images.items()}
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, out / "trace.safetensors")
    export_encoders(encoder, options["shape_meta"], CROP, out)
    for file in out.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main()
