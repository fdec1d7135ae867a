"""Compares the reference with recorded traces: `verify.py CHECKPOINT GOLDEN.safetensors` (see --help)."""

from __future__ import annotations

import argparse
import json
import re

import torch
from safetensors import safe_open

from reference import as_ddim, forward_cached, load_policy, make_scheduler, read_schedule, wrap_blocks

TOLERANCE = 2e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("golden")
    parser.add_argument("--schedules", help="JSON file of cache schedules, for the bac_* entries")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    policy = load_policy(args.checkpoint)
    with safe_open(args.golden, "pt") as file:
        golden = {k: file.get_tensor(k) for k in file.keys()}
        meta = json.loads(file.metadata()["meta"])
    obs, noise = golden["obs_raw"], golden["noise"]
    worst = 0.0

    def compare(name: str, got: torch.Tensor, unit: float = 1.0) -> None:
        nonlocal worst
        diff = (got - golden[name]).abs().max().item() / unit
        worst = max(worst, diff) if diff == diff else float("inf")
        print(f"{name:45} {diff:.2e}", flush=True)

    cond, _ = policy.inputs(obs)
    compare("obs_norm", policy.inputs(obs)[0])
    for t in sorted({int(m[1]) for k in golden if (m := re.match(r"forward\.t(\d+)\.", k))}):

        def wrap(name, f):
            def block(*a, **k):
                out = f(*a, **k)
                compare(f"forward.t{t}.{name}", out)
                return out

            return block

        with torch.no_grad(), wrap_blocks(policy.model, wrap):
            compare(f"forward.t{t}.memory", policy.model.memory(torch.full((obs.shape[0],), t), cond))
            compare(f"forward.t{t}.eps", policy.model(noise[0], t, cond))
    for name, timesteps in meta.items():
        run = name.removesuffix(".timesteps")
        config = policy.options["noise_scheduler"]
        scheduler = make_scheduler(as_ddim(config) if run.startswith("ddim") else config)
        scheduler.set_timesteps(len(timesteps))
        assert scheduler.timesteps.tolist() == timesteps
        x = policy.sample(obs, noise, scheduler)
        compare(f"{run}.trajectory_norm", x)
        compare(f"{run}.action", policy.actions(x)[1], unit=256.0)
    for name in [k for k in golden if k.startswith("bac_") and args.schedules]:
        scheduler = policy.scheduler()
        scheduler.set_timesteps(100)
        updates = iter(read_schedule(args.schedules, name.split(".")[0].removeprefix("bac_"), 100))
        cache: dict[str, torch.Tensor] = {}
        denoise = lambda x, t, cond: forward_cached(policy.model, x, t, cond, cache, next(updates))
        compare(name, policy.sample(obs, noise, scheduler, denoise=denoise))
    print(f"worst {worst:.2e}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"above {TOLERANCE}")


if __name__ == "__main__":
    main()
