"""Times what else runs such a policy: ONNX Runtime and PyTorch, the full denoising loop and cached ones, one chunk at a time.

Rows: `onnxruntime`: the one-step denoiser exported to ONNX, called at every step. `torch stock`: the reference modules and the
diffusers scheduler, as the policy's own code runs them; with a schedule, its cached blocks are additions. `torch tuned`: the
same mathematics hand-written (tuned.py): hoisted timestep and observation work, fused attention, sampler steps as tables.
With `--device cuda`: `torch eager` is stock on the GPU, and tuned runs as one CUDA graph in float32 (TF32) and bfloat16. Every row is first checked against the
reference's trajectory. A chunk is from raw observation to normalised trajectory; noise is drawn outside.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from reference import Policy, as_ddim, forward_cached, load_policy, make_scheduler, read_schedule, scheduler_step
from tuned import StepTable, TunedPolicy, graphed

Chunk = Callable[[Tensor, Tensor], Tensor]  # obs_raw [To, O], noise [K+1, T, N] -> trajectory [T, N]


def export_onnx(policy: Policy, path: Path) -> None:
    """trajectory [1, T, N], timestep [1] (int64), cond [1, To, O] -> model_output [1, T, N]."""
    tokens, size = policy.shape()
    o = policy.options
    inputs = (torch.zeros(1, tokens, size), torch.zeros(1, dtype=torch.long), torch.zeros(1, o["n_obs_steps"], o["obs_dim"]))
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)  # the exporter narrates
    try:
        names = dict(input_names=["trajectory", "timestep", "cond"], output_names=["model_output"])
        torch.onnx.export(policy.model, inputs, str(path), dynamo=True, verbose=False, external_data=False, **names)
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(True)


def onnx_chunk(policy: Policy, table: StepTable, path: Path, threads: int) -> Chunk:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    tokens, size = policy.shape()
    x = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, tokens, size), np.float32))
    out = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, tokens, size), np.float32))
    times = [ort.OrtValue.ortvalue_from_numpy(np.array([t])) for t in table.timesteps.tolist()]
    binding = session.io_binding()
    scale, offset = (p.detach().numpy() for p in (policy.fields[0].scale, policy.fields[0].offset))
    rows = np.array(table.rows, np.float32)

    def chunk(obs_raw: Tensor, noise: Tensor) -> Tensor:
        cond = ort.OrtValue.ortvalue_from_numpy((obs_raw.numpy() * scale + offset)[None])
        z = noise.numpy()
        sample = z[0][None]
        for k, (noise_part, inverse, c0, cx, ce, sigma) in enumerate(rows):
            x.update_inplace(np.ascontiguousarray(sample))
            binding.bind_ortvalue_input("trajectory", x)
            binding.bind_ortvalue_input("timestep", times[k])
            binding.bind_ortvalue_input("cond", cond)
            binding.bind_ortvalue_output("model_output", out)
            session.run_with_iobinding(binding)
            eps = out.numpy()
            x0 = ((sample - noise_part * eps) * inverse).clip(-table.clip, table.clip)
            sample = c0 * x0 + cx * sample + ce * eps + sigma * z[1 + k]
        return torch.from_numpy(sample[0])

    return chunk


def stock_chunk(policy: Policy, scheduler, schedule: list[set[str]] | None) -> Chunk:
    def chunk(obs_raw: Tensor, noise: Tensor) -> Tensor:
        cond, _ = policy.inputs(obs_raw[None])
        cache: dict[str, Tensor] = {}
        x = noise[0][None]
        for k, t in enumerate(scheduler.timesteps):
            if schedule is None:
                eps = policy.model(x, t, cond)
            else:
                eps = forward_cached(policy.model, x, t.to(x.device), cond, cache, schedule[k])
            x = scheduler_step(scheduler, eps, t, x, noise[1 + k][None])
        return x[0]

    return chunk


def on_cuda(chunk: Chunk) -> Chunk:
    """The same chunk with its inputs carried to the GPU and its result back."""
    return lambda obs_raw, noise: chunk(obs_raw.to("cuda"), noise.to("cuda")).cpu()


def measure(chunk: Chunk, inputs: tuple[Tensor, Tensor], chunks: int) -> dict[str, float]:
    for _ in range(3):
        chunk(*inputs)
    times = []
    for _ in range(chunks):
        start = time.perf_counter()
        chunk(*inputs)
        times.append((time.perf_counter() - start) * 1e3)
    low, median, p99 = np.percentile(times, [0, 50, 99])
    return {"min_ms": round(low, 3), "median_ms": round(median, 3), "p99_ms": round(p99, 3), "load": os.getloadavg()[0]}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [l.split(":")[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")] if info.exists() else []
    return f"{names[0]} x {len(names)}" if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--sampler", choices=["ddpm", "ddim"], help="default: the checkpoint's")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--schedules", help='JSON file {"schedules": {name: {block: [steps]}}}')
    parser.add_argument("--schedule", action="append", default=[], metavar="NAME", help="cache schedule to time; repeatable")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--only", help="time only rows whose name contains this")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--onnx", type=Path, help="keep the exported one-step denoiser here")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures here")
    args = parser.parse_args()
    if args.schedule and not args.schedules:
        parser.error("--schedule needs --schedules FILE")

    policy = load_policy(args.checkpoint)
    config = policy.options["noise_scheduler"]
    scheduler = make_scheduler(as_ddim(config) if args.sampler == "ddim" else config)
    scheduler.set_timesteps(args.steps or policy.options["num_inference_steps"])
    steps = len(scheduler.timesteps)
    table = StepTable(scheduler)
    schedules = {None: None} | {n: read_schedule(args.schedules, n, steps) for n in args.schedule}
    generator = torch.Generator().manual_seed(0)
    tokens, size = policy.shape()
    stats = policy.fields[0].input_stats
    spread = torch.rand(policy.options["n_obs_steps"], policy.options["obs_dim"], generator=generator)
    inputs = stats["min"] + spread * (stats["max"] - stats["min"]), torch.randn(steps + 1, tokens, size, generator=generator)

    with torch.inference_mode():
        expected = {name: stock_chunk(policy, scheduler, s)(*inputs) for name, s in schedules.items()}
        folder = tempfile.TemporaryDirectory()
        onnx = args.onnx or Path(folder.name) / "denoiser.onnx"
        makers: list[tuple[str, int, str | None, Callable[[], Chunk], float]] = []
        if args.device == "cpu":
            export_onnx(policy, onnx)
            for n in args.threads:
                makers.append(("onnxruntime", n, None, lambda n=n: onnx_chunk(policy, table, onnx, n), 1e-3))
                for name, s in schedules.items():
                    makers.append(("torch stock", n, name, lambda s=s: stock_chunk(policy, scheduler, s), 1e-3))
                    tuned = lambda s=s: TunedPolicy(policy, table, s, "cpu", torch.float32)
                    makers.append(("torch tuned", n, name, tuned, 1e-3))
        else:
            torch.backends.cuda.matmul.allow_tf32 = True
            eager = copy.deepcopy(policy).to("cuda")
            for name, s in schedules.items():
                makers.append(("torch eager", 0, name, lambda s=s: on_cuda(stock_chunk(eager, scheduler, s)), 0.1))
                for label, dtype, tolerance in (("f32 (TF32)", torch.float32, 0.1), ("bf16", torch.bfloat16, 0.5)):
                    make = lambda s=s, d=dtype: graphed(TunedPolicy(policy, table, s, "cuda", d), *inputs)
                    makers.append((f"CUDA graph {label}", 0, name, make, tolerance))

        device = cpu_name() if args.device == "cpu" else torch.cuda.get_device_name()
        print(f"{device}, PyTorch {torch.__version__}, {type(scheduler).__name__} {steps} steps, load {os.getloadavg()[0]:.2f}")
        print(f"{'':24} {'schedule':18} {'threads':>7} {'min':>9} {'median':>9} {'p99':>9} {'load':>5} {'error':>8}  (ms)")
        rows = []
        for rival, threads, name, make, tolerance in makers:
            if args.only and args.only not in rival:
                continue
            torch.set_num_threads(threads or 1)
            chunk = make()
            error = (chunk(*inputs) - expected[name]).abs().max().item()
            if not error <= tolerance:
                raise SystemExit(f"{rival}, schedule {name}: differs from the reference by {error}")
            row = {"rival": rival, "threads": threads, "schedule": name or "full", "error": error} | measure(chunk, inputs, args.chunks)
            rows.append(row)
            times = " ".join(f"{row[k]:9.2f}" for k in ("min_ms", "median_ms", "p99_ms"))
            print(f"{rival:24} {row['schedule']:18} {threads or '-':>7} {times} {row['load']:5.2f} {error:8.1e}", flush=True)
        folder.cleanup()
    if args.json:
        about = {"device": device, "torch": torch.__version__, "sampler": type(scheduler).__name__, "steps": steps, "chunks": args.chunks}
        args.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
