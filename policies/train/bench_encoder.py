"""Times a package's image encoders: Refrain beside ONNX Runtime, the same files, one thread each, in turns.

`bench_encoder.py PACKAGE --refrain target/release/refrain`. Both are timed in each round, so that a busy machine slows both; compare
the minima where it is not idle. Prints milliseconds per image, median and least, and Refrain's over ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime as ort


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rival(runner: ort.InferenceSession, images: int) -> list[float]:
    """Median and least of `images` runs."""
    image = np.random.default_rng(0).standard_normal(runner.get_inputs()[0].shape, np.float32)
    times = []
    for i in range(images + 3):
        start = time.perf_counter()
        runner.run(None, {"image": image})
        if i >= 3:
            times.append((time.perf_counter() - start) * 1e3)
    return [float(np.median(times)), min(times)]


def refrain(binary: Path, package: Path, images: int) -> dict[str, dict[str, float]]:
    """Per camera, the `encode` stage of `refrain bench`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        arguments = [binary, "bench", package, "--engine", "cpu", "--sampler", "ddim", "--steps", "1", "--threads", "1", "--chunks", str(images), "--json", out]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        return {s["camera"]: s for s in json.loads(out.read_text())["stages"] if s["stage"] == "encode"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--refrain", type=Path, default=Path("target/release/refrain"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="per round")
    args = parser.parse_args()
    cameras = tomllib.loads((args.package / "policy.toml").read_text())["cameras"]
    runners = {c["name"]: session(args.package / c.get("encoder", "encoder.onnx")) for c in cameras}
    ours: dict[str, list[list[float]]] = {name: [] for name in runners}
    theirs: dict[str, list[list[float]]] = {name: [] for name in runners}
    for _ in range(args.rounds):
        for name, stage in refrain(args.refrain, args.package, args.images).items():
            ours[name].append([stage["p50_ms"], stage["min_ms"]])
            theirs[name].append(rival(runners[name], args.images))
    print(f"{'camera':16} {'':7} {'refrain':>9} {'onnxruntime':>12} {'ratio':>6}   (ms per image, one thread, {args.rounds} rounds)")
    for name in runners:
        # The middle round's median; the least of all.
        pairs = [[np.median([row[0] for row in rows]), min(row[1] for row in rows)] for rows in (ours[name], theirs[name])]
        for kind, a, b in zip(("median", "least"), *pairs):
            print(f"{name:16} {kind:7} {a:9.2f} {b:12.2f} {a / b:6.2f}")


if __name__ == "__main__":
    main()
