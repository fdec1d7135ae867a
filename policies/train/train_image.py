"""Trains the Push-T image policy: 96 x 96 RGB and the pusher's position in, chunks of the pusher's targets out.

    train_image.py --data ../../../shared/pusht --out RUN --minutes 9       # train; resumes from RUN if it holds a checkpoint
    train_image.py --data ../../../shared/pusht --out RUN --evaluate 200    # score it in the simulator
    train_image.py --out RUN --export PACKAGE                              # encoder.onnx, the denoiser, reference data

A frame's way to the network: RGB uint8 [96, 96, 3], the middle 88 x 88 (4 cut off on each side), channels first, x / 127.5 - 1.
The encoder (ResNet-18 with GroupNorm, its last two stages not strided, spatial softmax over the 11 x 11 map) makes F features
of it; the condition of a frame is (features, pusher position in -1..1). The denoiser is the base policy's transformer with fewer
layers; both are trained together by the diffusion loss. Two helpers that are thrown away afterwards: a linear map from the features
to the block's keypoints (L1 loss), also on drawn scenes with random poses, and the demonstrations mirrored at the goal's axis.

The learning rate follows the clock, so a run of known length ends annealed. A checkpoint holds the averaged weights in f16, cut into
parts of 15 MiB; a resumed run starts from them and warms up again. Needs torch, numpy, OpenCV; pymunk to score; the rest of
requirements.txt to export.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pusht_scene
from denoiser import Denoiser
from pusht_scene import Farm

HORIZON, OBS_STEPS, ACTION_STEPS, TRAIN_STEPS = 16, 2, 8, 100
CROP = 88
CUT = (pusht_scene.SIZE - CROP) // 2
STAGES = [(48, 1), (96, 2), (128, 1), (128, 1)]  # width and stride of ResNet-18's four stages of two blocks
HEATMAPS, FEATURES, KEYPOINTS = 48, 64, 9
DENOISER = dict(input_dim=2, output_dim=2, horizon=HORIZON, n_obs_steps=OBS_STEPS, cond_dim=FEATURES + 2, n_layer=6, n_head=4)
DENOISER |= dict(n_emb=256, p_drop_emb=0.0, p_drop_attn=0.1, causal_attn=True, time_as_cond=True, obs_as_cond=True, n_cond_layers=0)
SCENES = 40_000  # random poses, drawn
NOISES = 8  # noise levels per encoded observation
PART = 15 * 2**20
START = time.time()


def say(text: str) -> None:
    print(f"[{time.time() - START:6.1f} s] {text}", flush=True)


# The network


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 16, width)


class Exact(nn.Linear):
    """A linear layer that is not rounded to bf16: what goes through it are positions."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm(width)
        self.skip = None
        if stride != 1 or inputs != width:
            self.skip = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + (x if self.skip is None else self.skip(x)))


class Encoder(nn.Module):
    """Images [B, 3, CROP, CROP] in -1..1 to features [B, FEATURES]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STAGES[0][0], 7, 2, 3, bias=False)
        self.stem_norm = norm(STAGES[0][0])
        blocks, width = [], STAGES[0][0]
        for wide, stride in STAGES:
            blocks += [Block(width, wide, stride), Block(wide, wide, 1)]
            width = wide
        self.blocks = nn.ModuleList(blocks)
        self.heat = nn.Conv2d(width, HEATMAPS, 1)
        side = CROP // 8
        line = torch.linspace(-1, 1, side)
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(side * side, 2))
        self.out = Exact(2 * HEATMAPS, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        heat = self.heat(x).flatten(2).float().softmax(-1)
        return self.out((heat[..., None] * self.grid).sum(-2).flatten(1))


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.denoiser = Denoiser(**DENOISER)
        self.keypoints = Exact(FEATURES, 2 * KEYPOINTS)
        for layer in (self.denoiser.input_emb, self.denoiser.cond_obs_emb, self.denoiser.head):
            layer.__class__ = Exact
        for name, p in self.denoiser.named_parameters():
            if p.dim() > 1 or name.endswith("pos_emb"):
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        for name in ("pusher", "action"):  # x * scale + offset is in -1..1
            self.register_buffer(f"{name}_scale", torch.ones(2))
            self.register_buffer(f"{name}_offset", torch.zeros(2))

    def fit(self, name: str, values: np.ndarray) -> None:
        low, high = (torch.tensor(f(values, 0), dtype=torch.float32) for f in (np.min, np.max))
        getattr(self, f"{name}_scale").copy_(2 / (high - low))
        getattr(self, f"{name}_offset").copy_(-1 - low * 2 / (high - low))

    def condition(self, images: Tensor, pushers: Tensor) -> Tensor:
        """Preprocessed images [B, To, 3, CROP, CROP] and pusher positions [B, To, 2] in pixels to [B, To, FEATURES + 2]."""
        features = self.encoder(images.flatten(0, 1).contiguous(memory_format=torch.channels_last)).float()
        return torch.cat([features.unflatten(0, pushers.shape[:2]), pushers * self.pusher_scale + self.pusher_offset], -1)


def preprocess(images: Tensor) -> Tensor:
    """uint8 [..., 96, 96, 3] to the network's [..., 3, CROP, CROP], as in inference."""
    images = images[..., CUT : CUT + CROP, CUT : CUT + CROP, :]
    return (images.float() / 127.5 - 1).movedim(-1, -3)


# Diffusion: DDPM with 100 steps, squaredcos_cap_v2, epsilon, clipped; DDIM with fewer


def alphas_cumulative() -> Tensor:
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / TRAIN_STEPS) / bar(i / TRAIN_STEPS), 0.999) for i in range(TRAIN_STEPS)]
    return torch.cumprod(1 - torch.tensor(betas), 0)


@torch.no_grad()
def sample(policy: Policy, cond: Tensor, steps: int, generator: torch.Generator, x: Tensor | None = None) -> Tensor:
    """Condition to normalised trajectories [B, HORIZON, 2], from noise `x` if given; `steps` = 100 is DDPM, fewer is DDIM without added noise."""
    bars = alphas_cumulative().to(cond.device)
    draw = lambda: torch.randn(len(cond), HORIZON, 2, device=cond.device, generator=generator)
    x = draw() if x is None else x
    stride = TRAIN_STEPS // steps
    for t in range((steps - 1) * stride, -1, -stride):
        bar, before = bars[t], bars[t - stride] if t >= stride else bars.new_ones(())
        eps = policy.denoiser(x, torch.full((len(x),), t, device=x.device), cond)
        start = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
        if steps < TRAIN_STEPS:
            x = before.sqrt() * start + (1 - before).sqrt() * eps
            continue
        alpha = bar / before
        x = (before.sqrt() * (1 - alpha) * start + alpha.sqrt() * (1 - before) * x) / (1 - bar)
        if t:
            x = x + ((1 - before) / (1 - bar) * (1 - alpha)).sqrt() * draw()
    return x


@torch.no_grad()
def evaluate(policy: Policy, farm: Farm, count: int, steps: int, first_seed: int = 100_000) -> dict[str, float]:
    """Scores the policy over `count` episodes."""
    device = policy.pusher_scale.device
    policy.eval()
    generator = torch.Generator(device).manual_seed(0)
    began = time.time()
    frames, pushers, best, done = farm.episodes("reset", np.arange(first_seed, first_seed + count))
    for _ in range(-(-pusht_scene.MAX_STEPS // ACTION_STEPS)):
        images = preprocess(torch.from_numpy(frames).to(device))
        cond = policy.condition(images, torch.from_numpy(pushers).float().to(device))
        actions = (sample(policy, cond, steps, generator) - policy.action_offset) / policy.action_scale
        chunk = actions[:, OBS_STEPS - 1 : OBS_STEPS - 1 + ACTION_STEPS].double().cpu().numpy()
        frames, pushers, best, done = farm.episodes("step", chunk)
        if done.all():
            break
    scores = np.clip(best / pusht_scene.SUCCESS, 0, 1)
    result = dict(sampler=f"{'DDPM' if steps == TRAIN_STEPS else 'DDIM'}-{steps}", episodes=count, score=float(scores.mean()))
    result |= dict(error=float(scores.std() / count**0.5), success=float((best > pusht_scene.SUCCESS).mean()))
    say(f"{json.dumps(result)} in {time.time() - began:.1f} s")
    return result


# Data


def read_images(folder: Path) -> np.ndarray:
    """The demonstrations' frames [N, 96, 96, 3] from `images.npy.xz` or the public zarr archive (needs numcodecs)."""
    if (packed := folder / "images.npy.xz").exists():
        with lzma.open(packed) as file:
            return np.lib.format.read_array(file)
    import zipfile

    import numcodecs

    with zipfile.ZipFile(folder / "pusht_images_96px.zarr.zip") as archive:
        about = json.loads(archive.read("img/.zarray"))
        codec, (chunk, *rest) = numcodecs.get_codec(about["compressor"]), about["chunks"]
        names = [f"img/{i}.0.0.0" for i in range(-(-about["shape"][0] // chunk))]
        parts = [np.frombuffer(codec.decode(archive.read(name)), np.uint8).reshape(chunk, *rest) for name in names]
    return np.concatenate(parts)[: about["shape"][0]]


class Data:
    """All frames on the device: the demonstrations, their mirror images (drawn), and random scenes (drawn)."""

    def __init__(self, folder: Path, farm: Farm, device: torch.device, scenes: int, limit: int | None) -> None:
        demos = np.load(folder / "pusht_lowdim_demos.npz")
        ends = demos["episode_ends"][:limit]
        states, actions = (demos[k][: ends[-1]].astype(np.float64) for k in ("state", "action"))
        images = read_images(folder)[: ends[-1]]
        say(f"{len(ends)} demonstrations, {len(states)} frames")
        mirrored = pusht_scene.mirror_states(states)
        rng = np.random.default_rng(1)
        span = [(15, 497), (15, 497), (50, 462), (50, 462), (-math.pi, math.pi)]
        random = np.stack([rng.uniform(low, high, scenes) for low, high in span], 1)
        drawn = farm.draw(np.concatenate([mirrored, random]))
        say(f"{len(drawn)} frames drawn")
        self.images = torch.cat([torch.from_numpy(a).to(device) for a in (images, drawn)])
        everything = np.concatenate([states, mirrored, random])
        points = pusht_scene.place(demos["block_keypoints_local"], everything[:, 2:5].T[..., None])
        put = lambda a: torch.from_numpy(np.asarray(a, np.float32)).to(device)
        self.keypoints = put(points.reshape(-1, 2 * KEYPOINTS) / 256 - 1)
        self.pusher = everything[: 2 * len(states), :2]
        self.action = np.concatenate([actions, pusht_scene.mirror(actions)])
        self.pushers, self.actions = put(self.pusher), put(self.action)
        self.first_scene = 2 * len(states)
        windows, begin = [], 0
        for end in [*ends, *(ends + len(states))]:  # a window may hang over by OBS_STEPS - 1 before and ACTION_STEPS - 1 after
            at = np.arange(begin - OBS_STEPS + 1, end - HORIZON + ACTION_STEPS)[:, None] + np.arange(HORIZON)
            windows.append(at.clip(begin, end - 1))
            begin = end
        self.windows = torch.from_numpy(np.concatenate(windows)).to(device)

    def crops(self, frames: Tensor, corner: Tensor) -> Tensor:
        """Frames [N] cut at corner [N, 2] (y, x), preprocessed: [N, 3, CROP, CROP], channels last in memory."""
        side = torch.arange(CROP, device=frames.device)
        y, x = corner[:, 0, None] + side, corner[:, 1, None] + side
        cut = self.images[frames[:, None, None], y[:, :, None], x[:, None, :]]
        return (cut.float() / 127.5 - 1).permute(0, 3, 1, 2)


# Training


class Trainer:
    def __init__(self, policy: Policy, data: Data, args: argparse.Namespace) -> None:
        self.policy, self.data, self.args = policy, data, args
        self.device = policy.pusher_scale.device
        self.gpu = self.device.type == "cuda"
        rate = torch.zeros((), device=self.device)
        decay = [p for p in policy.parameters() if p.dim() > 1]
        plain = [p for p in policy.parameters() if p.dim() <= 1 and p.numel()]
        groups = [dict(params=decay, weight_decay=args.weight_decay), dict(params=plain, weight_decay=0.0)]
        fast = dict(fused=True, capturable=True) if self.gpu else {}
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), **fast)
        self.bars = alphas_cumulative().to(self.device)
        self.encode, self.denoise = policy.encoder, policy.denoiser
        self.graph = None

    def set_rate(self, rate: float) -> None:
        """In place: a captured step reads it from where it was."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(rate)

    def compile(self) -> None:
        self.encode = torch.compile(self.policy.encoder, dynamic=False)
        self.denoise = torch.compile(self.policy.denoiser, dynamic=False)

    def losses(self) -> Tensor:
        """Draws a batch; returns (diffusion loss, keypoint error)."""
        data, batch, policy, device = self.data, self.args.batch, self.policy, self.device
        picked = data.windows[torch.randint(len(data.windows), (batch,), device=device)]
        seen = picked[:, :OBS_STEPS]
        scenes = torch.randint(data.first_scene, len(data.images), (batch // 2,), device=device)
        frames = torch.cat([seen.flatten(), scenes])
        corner = torch.randint(2 * CUT + 1, (2, batch + batch // 2, 2), device=device).sum(0) // 2  # mostly near the middle
        corner = torch.cat([corner[:batch].repeat_interleave(OBS_STEPS, 0), corner[batch:]])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu, cache_enabled=False):
            features = self.encode(data.crops(frames, corner))
            error = (policy.keypoints(features).float() - data.keypoints[frames]).abs().mean()
            pushers = data.pushers[seen] * policy.pusher_scale + policy.pusher_offset
            cond = torch.cat([features[: batch * OBS_STEPS].float().unflatten(0, (batch, OBS_STEPS)), pushers], -1)
            actions = data.actions[picked] * policy.action_scale + policy.action_offset
            cond, actions = (v.repeat_interleave(NOISES, 0) for v in (cond, actions))
            t = torch.randint(TRAIN_STEPS, (len(actions),), device=device)
            noise, bar = torch.randn_like(actions), self.bars[t][:, None, None]
            guess = self.denoise(bar.sqrt() * actions + (1 - bar).sqrt() * noise, t, cond)
        return torch.stack([F.mse_loss(guess.float(), noise), error])

    def step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses()
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return losses.detach()

    def capture(self) -> None:
        """The whole step as one CUDA graph: nothing is launched from Python any more."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.captured = self.step()
        self.graph = graph

    def advance(self) -> Tensor:
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.captured


def train(policy: Policy, averaged: Policy, data: Data, farm: Farm, args: argparse.Namespace, past: dict) -> None:
    policy.train()
    trainer = Trainer(policy, data, args)
    if trainer.gpu and not args.plain:
        for what in (trainer.compile, trainer.capture):
            try:
                trainer.set_rate(1e-6)
                what()
                trainer.step() if trainer.graph is None else trainer.advance()
                torch.cuda.synchronize()
                say(f"{what.__name__}: done")
            except Exception as reason:  # slower, but it goes on
                say(f"{what.__name__}: {type(reason).__name__}: {str(reason)[:600]}")
                trainer.graph = None
                if what == trainer.compile:
                    trainer.encode, trainer.denoise = policy.encoder, policy.denoiser
    began, end = time.time(), START + args.minutes * 60
    total = past.get("steps", 0)
    pairs = [(a, p) for a, p in zip(averaged.parameters(), policy.parameters()) if p.numel()]
    slow, fast = [a.data for a, _ in pairs], [p.data for _, p in pairs]
    mean, step, shown, saved = torch.zeros(2, device=trainer.device), 0, time.time(), time.time()
    halves = [0.5] if args.evaluate else []
    while True:
        share = (time.time() - began) / max(end - began, 1e-9)
        if args.steps:
            share = max(share, step / args.steps)
        if share >= 1:
            break
        warm = min(1.0, (step + 1) / args.warmup)
        lr = args.lr * warm * max(0.5 * (1 + math.cos(math.pi * share)), 1e-3)
        trainer.set_rate(lr)
        losses = trainer.advance()
        decay = min(0.999, (1 + total) / (10 + total))
        torch._foreach_lerp_(slow, fast, 1 - decay)
        step, total = step + 1, total + 1
        mean = mean.lerp_(losses, max(0.01, 1 / step))
        if trainer.gpu and step % 20 == 0:
            torch.cuda.synchronize()  # the clock decides: do not run ahead of the device
        if time.time() - shown > args.every:
            shown = time.time()
            loss, error = mean.tolist()
            rate = f"{(time.time() - began) / step * 1e3:.1f} ms a step, lr {lr:.1e}"
            say(f"step {total}, {share:.0%}: loss {loss:.4f}, keypoints off by {error * 256:.2f} px, {rate}")
            if not math.isfinite(loss):
                raise SystemExit("the loss is not finite")
        if time.time() - saved > 100:
            saved = time.time()
            save(args.out, averaged, {"steps": total, "log": past.get("log", [])})
        if halves and share > halves[0]:
            halves.pop()
            past.setdefault("log", []).append({"steps": total} | evaluate(averaged, farm, min(args.evaluate, 64), 10))
    past["steps"] = total
    save(args.out, averaged, past)


def save(folder: Path, averaged: Policy, past: dict) -> None:
    """Writes `checkpoint.I`: the averaged weights in f16, cut into parts, and `log.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(averaged.named_parameters())
    state = {k: v.half() if k in weights else v for k, v in averaged.state_dict().items()}
    content = io.BytesIO()
    torch.save({"averaged": state, "past": past}, content)
    content = content.getvalue()
    for i in range(-(-len(content) // PART)):
        part = folder / f"checkpoint.{i}.new"
        part.write_bytes(content[i * PART : (i + 1) * PART])
    for part in sorted(folder.glob("checkpoint.*.new")):
        part.replace(part.with_suffix(""))
    (folder / "log.json").write_text(json.dumps(past, indent=1))
    say(f"saved at step {past['steps']}")


def load(folder: Path, averaged: Policy) -> dict:
    parts = sorted(folder.glob("checkpoint.?"))
    if not parts:
        return {}
    content = torch.load(io.BytesIO(b"".join(p.read_bytes() for p in parts)), map_location="cpu", weights_only=True)
    averaged.load_state_dict(content["averaged"])
    say(f"read the checkpoint of step {content['past']['steps']}")
    return content["past"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=0.0, help="train until this long after the start")
    parser.add_argument("--steps", type=int, default=0, help="or for this many steps, if that comes first")
    parser.add_argument("--evaluate", type=int, default=0, metavar="N", help="score over N episodes")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the package's parts")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=500, help="steps")
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=SCENES, help="random scenes for the keypoints")
    parser.add_argument("--limit", type=int, help="use only so many demonstrations")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between lines of progress")
    parser.add_argument("--plain", action="store_true", help="neither torch.compile nor a CUDA graph")
    args = parser.parse_args()

    farm = Farm(args.processes) if args.minutes or args.evaluate else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    averaged = Policy().requires_grad_(False)
    past = load(args.out, averaged)
    policy = copy.deepcopy(averaged).requires_grad_(True)
    torch.manual_seed(past.get("steps", 0))
    if args.minutes:
        data = Data(args.data, farm, device, args.scenes, args.limit)
        for p in (policy, averaged):
            p.fit("pusher", data.pusher)
            p.fit("action", data.action)
            p.to(device, memory_format=torch.channels_last)
        count = lambda m: sum(p.numel() for p in m.parameters()) / 1e6
        say(f"encoder {count(policy.encoder):.2f} M, denoiser {count(policy.denoiser):.2f} M parameters; {len(data.windows)} windows")
        train(policy, averaged, data, farm, args, past)
    elif not past:
        raise SystemExit(f"{args.out}: no checkpoint there")
    averaged.to(device)
    if args.evaluate:
        for steps in (10, TRAIN_STEPS):
            past.setdefault("log", []).append({"steps": past["steps"]} | evaluate(averaged, farm, args.evaluate, steps))
        (args.out / "log.json").write_text(json.dumps(past, indent=1))
    if args.export:
        import export_image

        export_image.write(averaged.cpu().eval(), past, args.export)


if __name__ == "__main__":
    main()
