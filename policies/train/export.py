"""Exports a trained policy to a Refrain package: a folder with `policy.toml` and `weights.safetensors`.

From a checkpoint of real-stanford/diffusion_policy: `export.py CHECKPOINT OUT`. From your own training code: call
`export(state_dict, options, out, ...)` with the policy's `state_dict()` (names as in that code base: `model.*`,
`normalizer.params_dict.{obs,action}.*`) and its resolved `policy` configuration. Tensor names in the package are those of
the state dict without `model.`; masks follow from the configuration and are not written. Loading in Refrain checks it all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from reference import Field, load_policy, policy_from_state, read_checkpoint

FORMAT = 1
COMMON = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr", "prediction_type", "clip_sample")
COMMON += ("clip_sample_range", "timestep_spacing", "steps_offset", "variance_type", "set_alpha_to_one")
IGNORED = ("dynamic_thresholding_ratio", "sample_max_value", "_target_", "num_train_timesteps", "thresholding")
DEFAULTS = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon", clip_sample=True)
DEFAULTS |= dict(clip_sample_range=1.0, timestep_spacing="leading", steps_offset=0, variance_type="fixed_small")


def sampler_table(options: dict[str, Any]) -> dict[str, Any]:
    """The `[sampler]` table from the resolved `policy` section; what Refrain cannot do is refused by name."""
    scheduler = {k: v for k, v in options["noise_scheduler"].items() if v is not None}
    kind = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}.get(scheduler["_target_"].rsplit(".", 1)[-1])
    if kind is None:
        raise SystemExit(f"noise_scheduler._target_: expected DDPMScheduler or DDIMScheduler, got {scheduler['_target_']}")
    unknown = sorted(set(scheduler) - set(COMMON) - set(IGNORED))
    if unknown or scheduler.get("thresholding"):
        raise SystemExit(f"noise_scheduler: not supported: {', '.join(unknown) or 'thresholding'}")
    if scheduler.get("variance_type", "").startswith("learned"):
        raise SystemExit(f"noise_scheduler.variance_type: not supported: {scheduler['variance_type']}")
    train_steps = scheduler.get("num_train_timesteps", 1000)
    table = {"kind": kind, "inference_steps": options.get("num_inference_steps") or train_steps, "train_steps": train_steps}
    table |= DEFAULTS | {k: v for k, v in scheduler.items() if k in COMMON}
    step = step_arguments(options)
    if unknown := sorted(set(step) - ({"eta", "use_clipped_model_output"} if kind == "ddim" else set())):
        raise SystemExit(f"policy: arguments of {kind}'s step that are not supported: {', '.join(unknown)}")
    table |= step
    reals = ("beta_start", "beta_end", "clip_sample_range", "eta")
    return {k: float(v) if k in reals else v for k, v in table.items()}


def step_arguments(options: dict[str, Any]) -> dict[str, Any]:
    own = {"_target_", "model", "noise_scheduler", "horizon", "obs_dim", "action_dim", "n_action_steps", "n_obs_steps"}
    own |= {"num_inference_steps", "obs_as_cond", "pred_action_steps_only"}
    return {k: v for k, v in options.items() if k not in own}


def shortest(values: Tensor, size: int) -> list[float]:
    """float32 values as the shortest decimals that give them back; one element stands for all channels."""
    return [float(str(v)) for v in values.detach().float().expand(size).numpy()]


def normalizer_table(field: Field, size: int) -> dict[str, Any]:
    scale, offset = field.scale.detach(), field.offset.detach()
    stats = {k: v.detach() for k, v in field.input_stats.items()}
    table = {"mode": "manual", "scale": shortest(scale, size), "offset": shortest(offset, size)}
    if {"min", "max", "mean", "std"} <= set(stats):
        low, high = stats["min"] * scale + offset, stats["max"] * scale + offset
        constant = stats["max"] - stats["min"] < 1e-4
        ends = ((low + 1).abs() < 1e-3) & ((high - 1).abs() < 1e-3) | constant & (low.abs() < 1e-3)
        moments = ((stats["mean"] * scale + offset).abs() < 1e-3) & (((stats["std"] * scale - 1).abs() < 1e-3) | constant)
        table["mode"] = "limits" if ends.all() else "gaussian" if moments.all() else "manual"
        table |= {"min": shortest(stats["min"], size), "max": shortest(stats["max"], size)}
    return table


def toml(tables: dict[str, Any], prefix: str = "") -> str:
    """Nested dictionaries of strings, booleans, numbers, flat lists and lists of dictionaries, as TOML."""
    nested = {k: v for k, v in tables.items() if isinstance(v, dict) or isinstance(v, list) and v and isinstance(v[0], dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in tables.items() if k not in nested and not (k == "cameras" and not v)]
    text = "\n".join(lines) + "\n"
    for key, value in nested.items():
        if isinstance(value, dict):
            text += f"\n[{prefix}{key}]\n" + toml(value, f"{prefix}{key}.")
        else:
            text += "".join(f"\n[[{prefix}{key}]]\n" + toml(row, f"{prefix}{key}.") for row in value)
    return text


def export(
    state: dict[str, Tensor],
    options: dict[str, Any],
    out: Path,
    name: str,
    rate_hz: float,
    observation: tuple[list[str], list[str]] | None = None,
    action: tuple[list[str], list[str]] | None = None,
    dtype: torch.dtype = torch.float16,
    provenance: dict[str, str] | None = None,
    cameras: list[dict[str, Any]] | None = None,
) -> None:
    """Writes the package `out`. `observation` and `action`: names and units of their elements.

    `cameras`: the `[[cameras]]` of policy.toml, for a policy whose first observation elements are their features, in this
    order; those are not normalised. Their encoders are copied by the caller.
    """
    policy = policy_from_state(state, options)  # fails here if names or shapes do not fit
    model, o = options["model"], options
    obs_field, action_field = policy.fields
    obs_as_cond = o["obs_as_cond"]
    tokens = policy.shape()[0]
    rows = {"pos_emb": tokens if model.get("time_as_cond", True) else tokens + 1, "cond_pos_emb": 1 + obs_as_cond * o["n_obs_steps"]}

    weights = {}
    for key, value in policy.model.state_dict().items():
        if key in ("_dummy_variable", "mask", "memory_mask"):
            continue
        value = value[:, : rows[key]] if key in rows else value
        weights[key] = value.to(dtype).contiguous()
        if not weights[key].isfinite().all():
            raise SystemExit(f"{key}: not finite as {str(dtype).removeprefix('torch.')}")

    cameras = cameras or []
    features = sum(camera["features"] for camera in cameras)
    if features:
        scale, offset = (p.detach().expand(o["obs_dim"]) for p in (obs_field.scale, obs_field.offset))
        if not ((scale[:features] == 1).all() and (offset[:features] == 0).all()):
            raise SystemExit(f"normalizer: the first {features} observation elements are features and must go in as they are")
        stats = {k: v.detach().expand(o["obs_dim"])[features:] for k, v in obs_field.input_stats.items()}
        obs_field = Field(scale[features:], offset[features:], stats)

    def signal(given: tuple[list[str], list[str]] | None, kind: str, size: int, field: Field) -> dict[str, Any]:
        names, units = given or ([f"{kind}{i}" for i in range(size)], [""] * size)
        if not len(names) == len(units) == size:
            raise SystemExit(f"{kind}: expected {size} names and units, got {len(names)} and {len(units)}")
        return {"names": names, "units": units, "normalizer": normalizer_table(field, size)}

    config = {
        "format": FORMAT,
        "name": name,
        "rate_hz": float(rate_hz),
        "architecture": {
            "layers": model["n_layer"],
            "heads": model["n_head"],
            "width": model["n_emb"],
            "condition_layers": model.get("n_cond_layers", 0) if model.get("time_as_cond", True) else 0,
            "causal": model.get("causal_attn", False),
            "time_as_cond": model.get("time_as_cond", True),
            "obs_as_cond": obs_as_cond,
            "horizon": o["horizon"],
            "n_obs_steps": o["n_obs_steps"],
            "n_action_steps": o["n_action_steps"],
            "pred_action_steps_only": o.get("pred_action_steps_only", False),
        },
        "observation": signal(observation, "obs", o["obs_dim"] - features, obs_field),
        "action": signal(action, "action", o["action_dim"], action_field),
        "cameras": cameras,
        "sampler": sampler_table(o),
        "provenance": provenance or {},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "weights.safetensors")
    (out / "weights.safetensors").chmod(0o644)
    (out / "policy.toml").write_text(toml(config))
    size = sum(w.numel() for w in weights.values())
    print(f"{out}: {len(weights)} tensors, {size / 1e6:.2f} M parameters, {str(dtype).removeprefix('torch.')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--name", help="default: the checkpoint's file name")
    parser.add_argument("--rate-hz", type=float, default=10.0, help="rate of the policy's actions (default: 10)")
    parser.add_argument("--dtype", choices=["f16", "f32"], default="f16")
    parser.add_argument("--cameras", type=Path, metavar="FILE", help="TOML with [[cameras]]; their encoders lie beside it")
    parser.add_argument("--license", default="", help="licence of the weights")
    for kind in ("obs", "action"):
        parser.add_argument(f"--{kind}-names", nargs="+", metavar="NAME")
        parser.add_argument(f"--{kind}-units", nargs="+", metavar="UNIT", help="one per name, or one for all")
    args = parser.parse_args()

    policy = load_policy(str(args.checkpoint))
    use_ema = bool(OmegaConf.select(read_checkpoint(str(args.checkpoint))["cfg"], "training.use_ema", default=False))

    def named(names: list[str] | None, units: list[str] | None) -> tuple[list[str], list[str]] | None:
        if names is None:
            return None
        units = units or [""]
        return names, units * len(names) if len(units) == 1 else units

    cameras = tomllib.loads(args.cameras.read_text())["cameras"] if args.cameras else []
    args.out.mkdir(parents=True, exist_ok=True)
    for file in {camera.get("encoder", "encoder.onnx") for camera in cameras}:
        shutil.copyfile(args.cameras.parent / file, args.out / file)
    provenance = {
        "source": args.checkpoint.name,
        "source_sha256": hashlib.sha256(args.checkpoint.read_bytes()).hexdigest(),
        "weights": "ema_model" if use_ema else "model",
        "license": args.license,
    }
    export(
        policy.state_dict(),
        policy.options,
        args.out,
        args.name or args.checkpoint.stem,
        args.rate_hz,
        named(args.obs_names, args.obs_units),
        named(args.action_names, args.action_units),
        torch.float16 if args.dtype == "f16" else torch.float32,
        provenance,
        cameras,
    )


if __name__ == "__main__":
    main()
