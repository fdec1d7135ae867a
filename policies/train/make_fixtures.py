"""Makes `tests/fixtures`: small random checkpoints of the policy family with their traces, and sampler runs.

Every file follows from the seeds in here. Checkpoints have the layout of real-stanford/diffusion_policy (torch zip, dill
pickle); traces are what `reference.py` computes from them; README.md in the folder says what a trace holds.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections import OrderedDict
from typing import Any

import dill
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference import Denoiser, Field, Normalizer, Policy, as_ddim, load_policy, make_scheduler, resolvers
from reference import scheduler_step, wrap_blocks

BATCH = 2
DDPM = "diffusers.schedulers.scheduling_ddpm.DDPMScheduler"
DDIM = "diffusers.schedulers.scheduling_ddim.DDIMScheduler"

# Per fixture: changes to the configuration's sections, and how the file is written. `task`: sizes and switches at the top
# level; `model`, `scheduler`, `policy`: those sections. `ddim`: also trace DDIM with that many steps.
FIXTURES: dict[str, dict[str, Any]] = {
    "mlp_causal": dict(full_config=True, ema=True, ddim=5),
    "mlp_bidirectional": dict(
        model=dict(causal_attn=False),
        scheduler=dict(beta_schedule="linear", beta_end=0.2, num_train_timesteps=40, prediction_type="sample", variance_type="fixed_large"),
        policy=dict(num_inference_steps=8),
        normalizer="gaussian",
        interpolated=True,
        plain_dicts=True,
        ddim=4,
    ),
    "cond_layers_causal": dict(
        model=dict(n_cond_layers=2, n_emb=10),
        scheduler=dict(beta_schedule="scaled_linear", beta_end=0.2, num_train_timesteps=20, variance_type="fixed_small_log"),
        optimizer_state=True,
        ddim=5,
    ),
    "inpaint_causal": dict(
        task=dict(obs_as_cond=False),
        model=dict(n_emb=8),
        scheduler=dict(beta_schedule="sigmoid", beta_end=0.2, num_train_timesteps=30, clip_sample_range=1.5),
        normalizer="gaussian",
        interpolated=True,
    ),
    "inpaint_cond_layers": dict(
        task=dict(obs_as_cond=False),
        model=dict(causal_attn=False, n_cond_layers=1, n_emb=8),
        scheduler=dict(prediction_type="v_prediction", timestep_spacing="linspace"),
        ddim=5,
    ),
    "encoder_only": dict(task=dict(obs_as_cond=False), model=dict(causal_attn=False, time_as_cond=False), ddim=5),
    "encoder_only_causal": dict(
        task=dict(obs_as_cond=False, n_obs_steps=3),
        model=dict(time_as_cond=False),
        scheduler=dict(prediction_type="sample", num_train_timesteps=20),
        ema=True,
    ),
    "action_steps_only": dict(task=dict(pred_action_steps_only=True), model=dict(causal_attn=False, n_emb=8), ddim=5),
    "action_steps_only_causal": dict(task=dict(pred_action_steps_only=True), model=dict(horizon=4, n_emb=8)),
    "odd_sizes": dict(
        task=dict(horizon=7, action_dim=3, obs_dim=5, n_obs_steps=3, n_action_steps=3),
        model=dict(n_emb=20, n_head=5),
        scheduler=dict(num_train_timesteps=23, clip_sample=False, beta_schedule="linear", beta_end=0.2),
        policy=dict(num_inference_steps=7),
        interpolated=True,
        ddim=6,
    ),
    "ddim_stochastic": dict(
        model=dict(n_emb=8),
        scheduler=dict(_target_=DDIM, set_alpha_to_one=False, steps_offset=1),
        policy=dict(eta=0.7),
    ),
    "ddim_zero_snr": dict(
        model=dict(n_emb=8),
        scheduler=dict(
            _target_=DDIM,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            beta_schedule="scaled_linear",
            beta_end=0.2,
        ),
        policy=dict(use_clipped_model_output=True, num_inference_steps=6),
    ),
    "storages": dict(model=dict(n_emb=8), scheduler=dict(num_train_timesteps=20), normalizer="identity", odd_storages=True),
}


def config(spec: dict[str, Any]) -> dict[str, Any]:
    """The configuration as the code base writes it, before interpolation."""
    root: dict[str, Any] = {
        "name": "train_diffusion_transformer_lowdim",
        "_target_": "diffusion_policy.workspace.train_diffusion_transformer_lowdim_workspace.TrainDiffusionTransformerLowdimWorkspace",
        "obs_dim": 5,
        "action_dim": 2,
        "task_name": "fixture",
        "exp_name": "default",
        "horizon": 8,
        "n_obs_steps": 2,
        "n_action_steps": 4,
        "n_latency_steps": 0,
        "past_action_visible": False,
        "keypoint_visible_rate": 1.0,
        "obs_as_cond": True,
        "pred_action_steps_only": False,
    } | spec.get("task", {})
    scheduler = {
        "_target_": DDPM,
        "num_train_timesteps": 50,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "squaredcos_cap_v2",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "prediction_type": "epsilon",
    } | spec.get("scheduler", {})
    if scheduler["_target_"] == DDIM:
        del scheduler["variance_type"]
    root["policy"] = {
        "_target_": "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
        "model": {
            "_target_": "diffusion_policy.model.diffusion.transformer_for_diffusion.TransformerForDiffusion",
            "input_dim": "${eval:'${action_dim} if ${obs_as_cond} else ${obs_dim} + ${action_dim}'}",
            "output_dim": "${policy.model.input_dim}",
            "horizon": "${horizon}",
            "n_obs_steps": "${n_obs_steps}",
            "cond_dim": "${eval:'${obs_dim} if ${obs_as_cond} else 0'}",
            "n_layer": 2,
            "n_head": 2,
            "n_emb": 12,
            "p_drop_emb": 0.0,
            "p_drop_attn": 0.3,
            "causal_attn": True,
            "time_as_cond": True,
            "obs_as_cond": "${obs_as_cond}",
            "n_cond_layers": 0,
        }
        | spec.get("model", {}),
        "noise_scheduler": scheduler,
        "horizon": "${horizon}",
        "obs_dim": "${obs_dim}",
        "action_dim": "${action_dim}",
        "n_action_steps": "${n_action_steps}",
        "n_obs_steps": "${n_obs_steps}",
        "num_inference_steps": 10,
        "obs_as_cond": "${obs_as_cond}",
        "pred_action_steps_only": "${pred_action_steps_only}",
    } | spec.get("policy", {})
    root["training"] = {"device": "cuda:0", "seed": 42, "use_ema": spec.get("ema", False), "max_train_steps": None}
    if spec.get("full_config"):
        root["ema"] = {"_target_": "diffusion_policy.model.diffusion.ema_model.EMAModel", "power": 0.75, "max_value": 0.9999}
        root["dataloader"] = {"batch_size": 256, "num_workers": 1, "shuffle": True}
        root["optimizer"] = {"learning_rate": 1e-4, "weight_decay": 1e-3, "betas": [0.9, 0.95]}
        root["logging"] = {"name": "${now:%Y.%m.%d}_${name}_${task_name}", "tags": ["${name}", "${exp_name}"], "id": None}
        root["checkpoint"] = {"format_str": "epoch={epoch:04d}-score={score:.3f}.ckpt", "topk": {"k": 5, "mode": "max"}}
    return root


def randomize(policy: Policy, generator: torch.Generator) -> None:
    """Weights large enough that attention is far from uniform and every bias and gain matters."""
    for name, p in policy.model.named_parameters():
        draw = torch.randn(p.shape, generator=generator)
        if "norm" in name or "ln_f" in name:
            p.data = 0.25 * draw + (1 if name.endswith("weight") else 0)
        elif name.endswith("pos_emb"):
            p.data = 0.5 * draw
        elif "in_proj_weight" in name:
            p.data = 1.2 / math.sqrt(p.shape[1]) * draw
        else:
            p.data = 0.2 * draw


def field(kind: str, data: Tensor) -> Field:
    """A normaliser fitted to data [samples, channels] as the code base fits it."""
    low, high, mean, std = data.min(0)[0], data.max(0)[0], data.mean(0), data.std(0)
    stats = {"min": low, "max": high, "mean": mean, "std": std}
    if kind == "identity":
        one = torch.ones(1)
        return Field(one, 0 * one, {"min": -one, "max": one, "mean": 0 * one, "std": one})
    if kind == "gaussian":
        scale = 1 / torch.where(std < 1e-4, torch.ones_like(std), std)
        return Field(scale, -mean * scale, stats)
    constant = high - low < 1e-4
    scale = 2 / torch.where(constant, 2 * torch.ones_like(low), high - low)
    return Field(scale, torch.where(constant, -low, -1 - scale * low), stats)


def build(spec: dict[str, Any], seed: int) -> tuple[Policy, dict[str, Any], Tensor]:
    """A random policy, its checkpoint, and raw observations [B, To, O]."""
    generator = torch.Generator().manual_seed(seed)
    resolvers()
    cfg = OmegaConf.create(config(spec))
    options = OmegaConf.to_container(cfg.policy, resolve=True)
    if not spec.get("interpolated"):
        OmegaConf.resolve(cfg)
    kind = spec.get("normalizer", "limits")
    channels = torch.arange(options["obs_dim"])
    obs = torch.randn(64, options["obs_dim"], generator=generator)
    if kind != "identity":
        obs = obs * 10.0 ** (channels % 4 - 1.0) + 100 * channels
        obs[:, -1] = 3.25  # a channel that never moves
    action = 120 * torch.randn(64, options["action_dim"], generator=generator) + 256
    normalizer = Normalizer(field(kind, obs), field("limits" if kind == "identity" else kind, action))

    def random_policy() -> Policy:
        model = Denoiser(**{k: v for k, v in options["model"].items() if k != "_target_"})
        policy = Policy(model, normalizer, options).eval()
        randomize(policy, generator)
        return policy

    policies = {"model": random_policy()} | ({"ema_model": random_policy()} if spec.get("ema") else {})
    states = {name: p.state_dict() for name, p in policies.items()}
    if spec.get("odd_storages"):
        states["model"] = odd_storages(states["model"])
    if spec.get("plain_dicts"):
        states = {name: dict(s) for name, s in states.items()}
    optimizer = torch.optim.AdamW(policies["model"].model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    state: dict[str, Any] = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    if spec.get("optimizer_state"):
        moments = {"exp_avg": torch.ones(1, 8, 10), "exp_avg_sq": torch.ones(1, 8, 10)}
        state["state"][1] = {"step": torch.tensor(7.0)} | moments
    pickles = {"global_step": dill.dumps(1002), "epoch": dill.dumps(115), "_output_dir": dill.dumps("data/outputs/fixture")}
    payload = {"cfg": cfg, "state_dicts": states | {"optimizer": state}, "pickles": pickles}
    used = policies.get("ema_model", policies["model"])
    rows = torch.randint(64, (BATCH, options["n_obs_steps"]), generator=generator)
    return used, payload, obs[rows]


def odd_storages(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values as views into a shared storage, transposed, at an offset, in half and double precision."""
    out = OrderedDict(state)
    gain, bias = "model.ln_f.weight", "model.ln_f.bias"
    shared = torch.cat([torch.full((5,), math.nan), out[gain], out[bias]])
    width = out[gain].numel()
    out[gain], out[bias] = shared[5 : 5 + width], shared[5 + width :]
    for name in ("model.head.weight", "model.input_emb.weight"):
        out[name] = out[name].t().contiguous().t()
    half = "model.decoder.layers.0.linear1.weight"
    state[half].copy_(state[half].half())
    out[half] = state[half].half()
    out["normalizer.params_dict.action.scale"] = out["normalizer.params_dict.action.scale"].double()
    return out


def trace(policy: Policy, obs: Tensor, spec: dict[str, Any], seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that is recorded of one policy: tensors and metadata."""
    o = policy.options
    steps = o["num_inference_steps"]
    tokens, size = policy.shape()
    noise = torch.randn(steps + 1, BATCH, tokens, size, generator=torch.Generator().manual_seed(seed + 1000))
    out = {"obs_raw": obs, "obs_norm": policy.fields[0].normalize(obs), "noise": noise}
    scheduler = policy.scheduler()
    scheduler.set_timesteps(steps)
    outputs: list[Tensor] = []
    kwargs = policy.step_kwargs()
    x = policy.sample(obs, noise, scheduler, observe=lambda k, x, y: outputs.append(y), **kwargs)
    action, predicted = policy.actions(x)
    out |= {"trajectory_norm": x, "action": action, "action_pred": predicted, "eps": torch.stack(outputs)}
    kind = "ddim" if o["noise_scheduler"]["_target_"] == DDIM else "ddpm"
    meta: dict[str, Any] = {"sampler": kind, "steps": steps, "timesteps": scheduler.timesteps.tolist(), "step_kwargs": kwargs}
    meta |= {"policy": o, "use_ema": spec.get("ema", False), "normalizer": spec.get("normalizer", "limits")}

    # How far float32 rounding alone moves this trajectory: a tolerance must be well above it.
    double = policy.double().sample(obs.double(), noise.double(), scheduler, **kwargs)
    policy.float()
    meta["float64_difference"] = (double - x).abs().max().item()

    if n := spec.get("ddim"):
        ddim = make_scheduler(as_ddim(o["noise_scheduler"]))
        ddim.set_timesteps(n)
        x = policy.sample(obs, noise, ddim)
        out |= {f"ddim{n}.trajectory_norm": x, f"ddim{n}.action": policy.actions(x)[0]}
        meta[f"ddim{n}.timesteps"] = ddim.timesteps.tolist()

    cond, _ = policy.inputs(obs)
    for t in (meta["timesteps"][0], meta["timesteps"][-2]):

        def wrap(name: str, block):
            def recorded(*args, **kwargs):
                out[f"forward.t{t}.{name}"] = block(*args, **kwargs)
                return out[f"forward.t{t}.{name}"]

            return recorded

        with torch.no_grad(), wrap_blocks(policy.model, wrap):
            if o["model"]["time_as_cond"]:
                out[f"forward.t{t}.memory"] = policy.model.memory(torch.full((BATCH,), t), cond)
            out[f"forward.t{t}.eps"] = policy.model(noise[0], t, cond)
    for name, tensor in out.items():
        assert tensor.isfinite().all(), name
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in out.items()}, meta


# Policies of which `known.safetensors` traces runs with known actions, and the DDIM runs besides their own sampler.
KNOWN = {"mlp_causal": 5, "mlp_bidirectional": 4, "cond_layers_causal": 5, "inpaint_causal": None, "encoder_only": 5}
KNOWN |= {"action_steps_only": 5, "odd_sizes": 6, "ddim_stochastic": None, "ddim_zero_snr": None}


def known_run(policy: Policy, obs: Tensor, noise: Tensor, scheduler, mask: Tensor, known: Tensor, **kwargs: Any) -> Tensor:
    """`Policy.sample` with the actions [B, T, A] of tokens in mask [B, T] imposed before every network call, noised to its
    timestep by the scheduler with noise[0], and clean at the end; as diffusers' inpainting pipelines do."""
    cond, observed = policy.inputs(obs)
    actions = policy.options["action_dim"]

    def impose(x: Tensor, clean: Tensor) -> Tensor:
        x = x.clone()
        x[..., :actions] = torch.where(mask[..., None], clean, x[..., :actions])
        if observed is not None:
            x[:, : observed.shape[1], actions:] = observed
        return x

    x = noise[0]
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            x = impose(x, scheduler.add_noise(known, noise[0][..., :actions], t.expand(len(known))))
            x = scheduler_step(scheduler, policy.model(x, t, cond), t, x, noise[1 + k], **kwargs)
    return impose(x, known)


def known_actions(folder: pathlib.Path) -> None:
    """Writes `known.safetensors`: the checkpoints in the folder with a prefix of their actions known."""
    out: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    for name, ddim_steps in KNOWN.items():
        policy = load_policy(str(folder / f"{name}.ckpt"))
        golden = load_file(folder / f"{name}.safetensors")
        tokens, _ = policy.shape()
        known = 0.5 * torch.randn(BATCH, tokens, policy.options["action_dim"], generator=generator)
        mask = torch.arange(tokens)[None] < torch.tensor([[3], [tokens // 2]])
        out |= {f"{name}.mask": mask.float(), f"{name}.known": known}
        scheduler = policy.scheduler()
        scheduler.set_timesteps(policy.options["num_inference_steps"])
        x = known_run(policy, golden["obs_raw"], golden["noise"], scheduler, mask, known, **policy.step_kwargs())
        out[f"{name}.trajectory_norm"] = x
        if ddim_steps:
            ddim = make_scheduler(as_ddim(policy.options["noise_scheduler"]))
            ddim.set_timesteps(ddim_steps)
            x = known_run(policy, golden["obs_raw"], golden["noise"], ddim, mask, known)
            out[f"{name}.ddim{ddim_steps}.trajectory_norm"] = x
    write(folder / "known.safetensors", {k: v.contiguous() for k, v in out.items()}, metadata={})


def sampler_cases() -> dict[str, tuple[dict[str, Any], int, dict[str, Any]]]:
    """Name to (scheduler configuration, inference steps, arguments of `step`)."""
    base = dict(_target_=DDPM, num_train_timesteps=100, beta_start=0.0001, beta_end=0.02, beta_schedule="squaredcos_cap_v2")
    base |= dict(variance_type="fixed_small", clip_sample=True, prediction_type="epsilon")
    ddim = as_ddim(base)
    cases: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {}

    def ddpm_case(name: str, steps: int = 10, **changes: Any) -> None:
        cases[f"ddpm.{name}"] = (base | changes, steps, {})

    def ddim_case(name: str, steps: int = 10, step: dict[str, Any] | None = None, **changes: Any) -> None:
        cases[f"ddim.{name}"] = (ddim | changes, steps, step or {})

    for steps in (100, 50, 33, 7, 2, 1):
        ddpm_case(f"steps{steps}", steps)
        ddim_case(f"steps{steps}", steps)
    for beta in ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "laplace"):
        ddpm_case(f"{beta}.train20", num_train_timesteps=20, beta_schedule=beta, beta_end=0.2)
        ddpm_case(f"{beta}.train1000", num_train_timesteps=1000, beta_schedule=beta, clip_sample=False)
    for beta in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        ddim_case(f"{beta}.train20", num_train_timesteps=20, beta_schedule=beta, beta_end=0.2)
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        ddpm_case(f"variance.{variance}", variance_type=variance)
        ddpm_case(f"variance.{variance}.steps100", 100, variance_type=variance)
        ddpm_case(f"variance.{variance}.offset1", variance_type=variance, steps_offset=1)
    for kind in ("epsilon", "sample", "v_prediction"):
        for clip, options in {"clip": {}, "noclip": dict(clip_sample=False), "clip2": dict(clip_sample_range=2.0)}.items():
            ddpm_case(f"{kind}.{clip}", prediction_type=kind, **options)
            ddim_case(f"{kind}.{clip}", prediction_type=kind, **options)
            ddim_case(f"{kind}.{clip}.eta", prediction_type=kind, step=dict(eta=0.5), **options)
        ddim_case(f"{kind}.reclip", prediction_type=kind, step=dict(use_clipped_model_output=True, eta=1.0))
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (10, 13):
            ddpm_case(f"{spacing}.steps{steps}", steps, timestep_spacing=spacing)
            ddim_case(f"{spacing}.steps{steps}", steps, timestep_spacing=spacing)
            ddim_case(f"{spacing}.steps{steps}.eta", steps, timestep_spacing=spacing, step=dict(eta=1.0))
    ddpm_case("offset1", steps_offset=1)
    ddim_case("offset1", steps_offset=1)
    ddim_case("alpha0", set_alpha_to_one=False)
    ddim_case("alpha0.offset1.eta", set_alpha_to_one=False, steps_offset=1, step=dict(eta=0.5))
    for kind in ("epsilon", "sample", "v_prediction"):
        for spacing in ("leading", "trailing"):
            options = dict(prediction_type=kind, timestep_spacing=spacing, rescale_betas_zero_snr=True, beta_schedule="scaled_linear")
            ddpm_case(f"zero_snr.{kind}.{spacing}", **options)
            ddim_case(f"zero_snr.{kind}.{spacing}", **options)
    betas = [round(0.01 + 0.009 * i, 6) for i in range(20)]
    ddpm_case("trained_betas", num_train_timesteps=20, trained_betas=betas)
    ddim_case("trained_betas", num_train_timesteps=20, trained_betas=betas)
    # Named by a configuration, but of no use: see samplers.json, `not_finite`.
    ddpm_case("variance.fixed_large_log", variance_type="fixed_large_log")
    ddpm_case("zero_snr.noclip", rescale_betas_zero_snr=True, clip_sample=False, timestep_spacing="trailing")
    # Known to diffusers and not offered by Refrain.
    ddpm_case("thresholding", thresholding=True, sample_max_value=2.0)
    ddim_case("thresholding", thresholding=True, sample_max_value=2.0)
    return cases


def samplers(folder: pathlib.Path) -> None:
    """Scheduler steps with a fixed sequence of model outputs and noise: samplers without a network."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(101, 1, 3, 2, generator=generator)
    outputs = torch.randn(100, 1, 3, 2, generator=generator)
    tensors = {"noise": noise, "model_outputs": outputs}
    cases, not_finite, unsupported = {}, {}, {}
    for name, (options, steps, kwargs) in sampler_cases().items():
        scheduler = make_scheduler(options)
        scheduler.set_timesteps(steps)
        x, samples = noise[0], []
        for k, t in enumerate(scheduler.timesteps):
            x = scheduler_step(scheduler, outputs[k], t, x, noise[1 + k], **kwargs)
            samples.append(x)
        case = {"config": options, "steps": steps, "step_kwargs": kwargs}
        if not torch.stack(samples).isfinite().all():
            not_finite[name] = case
            continue
        (unsupported if "thresholding" in options else cases)[name] = case
        tensors[f"{name}.timesteps"] = scheduler.timesteps
        keep = samples if steps <= 13 else samples[:2] + samples[-2:]  # long runs: the first two and the last two
        tensors[f"{name}.samples"] = torch.stack(keep)
    write(folder / "samplers.safetensors", tensors)
    (folder / "samplers.json").write_text(dumps({"cases": cases, "not_finite": not_finite, "unsupported": unsupported}))
    print(f"samplers: {len(cases)} cases, not finite: {', '.join(not_finite)}", flush=True)


def write(path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def dumps(value: dict[str, Any]) -> str:
    """JSON with one line per second-level entry."""
    parts = [f'"{k}": {{\n' + ",\n".join(f"{json.dumps(n)}: {json.dumps(e)}" for n, e in v.items()) + "\n}" for k, v in value.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures"
    parser.add_argument("--out", type=pathlib.Path, default=default, help="folder to write (default: tests/fixtures)")
    parser.add_argument("--only", nargs="*", help="names of fixtures (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, (name, spec) in enumerate(FIXTURES.items()):
        if args.only and name not in args.only:
            continue
        policy, payload, obs = build(spec, seed)
        path = args.out / f"{name}.ckpt"
        with path.open("wb") as file:
            torch.save(payload, file, pickle_module=dill)
        tensors, meta = trace(policy, obs, spec, seed)
        write(args.out / f"{name}.safetensors", tensors, metadata={"meta": json.dumps(meta)})
        again, _ = trace(load_policy(str(path)), obs, spec, seed)  # what was written is what was traced
        assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors), name
        kib = sum((args.out / f"{name}{e}").stat().st_size for e in (".ckpt", ".safetensors")) / 1024
        print(f"{name}: {kib:.0f} KiB, float64 differs by {meta['float64_difference']:.1e}", flush=True)
    if not args.only:
        samplers(args.out)
        known_actions(args.out)


if __name__ == "__main__":
    main()
