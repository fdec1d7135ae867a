"""The rival at its best in PyTorch: the denoising loop hand-written on torch.nn.functional, for batch 1.

For a decoder with observation tokens as condition and the MLP condition encoder. Everything that depends on the timestep
alone is computed at load, everything that depends on the observation alone once per chunk; cached blocks cost one addition,
a step without any update adds one running sum. Works eagerly and inside a CUDA graph: no allocation escapes, no host sync.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference import DDIMScheduler, Policy


class StepTable:
    """Sampler steps as numbers: x0 = clamp((x - noise_part * eps) * inverse), x = c0 * x0 + cx * x + ce * eps + sigma * z.

    Rows [K, 6]: noise_part, inverse, c0, cx, ce, sigma. For DDPM with `fixed_small` and DDIM with eta 0, prediction epsilon.
    """

    def __init__(self, scheduler) -> None:
        c = scheduler.config
        if c.prediction_type != "epsilon" or c.get("thresholding") or c.get("variance_type", "fixed_small") != "fixed_small":
            raise SystemExit("the benchmark knows prediction epsilon and variance fixed_small only")
        self.timesteps = scheduler.timesteps
        self.clip = c.clip_sample_range if c.clip_sample else float("inf")
        deterministic = isinstance(scheduler, DDIMScheduler)
        alphas = scheduler.alphas_cumprod.double()
        rows = []
        for k, t in enumerate(self.timesteps.tolist()):
            a = alphas[t]
            if deterministic:
                previous = t - c.num_train_timesteps // len(self.timesteps)
                p = alphas[previous] if previous >= 0 else scheduler.final_alpha_cumprod.double()
                rows.append([(1 - a).sqrt(), a.rsqrt(), p.sqrt(), 0.0, (1 - p).sqrt(), 0.0])
            else:
                p = alphas[self.timesteps[k + 1]] if k + 1 < len(self.timesteps) else torch.tensor(1.0)
                beta = 1 - a / p
                sigma = ((1 - p) / (1 - a) * beta).clamp(min=1e-20).sqrt() if t > 0 else 0.0
                rows.append([(1 - a).sqrt(), a.rsqrt(), p.sqrt() * beta / (1 - a), (a / p).sqrt() * (1 - p) / (1 - a), 0.0, sigma])
        self.rows = [[float(v) for v in row] for row in rows]


class TunedPolicy:
    """One policy prepared for K steps, with a schedule (`None`: all blocks at all steps)."""

    def __init__(self, policy: Policy, table: StepTable, schedule: list[set[str]] | None, device: str, dtype: torch.dtype) -> None:
        model, o = policy.model, policy.options["model"]
        if model.decoder is None or model.cond_obs_emb is None or o["n_cond_layers"] > 0:
            raise SystemExit("the benchmark knows decoders with observation tokens and the MLP condition encoder only")

        def to(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(device, dtype)

        self.table, self.schedule, self.dtype = table, schedule, dtype
        self.heads, self.width = o["n_head"], o["n_emb"]
        scale, offset = policy.fields[0].scale.detach(), policy.fields[0].offset.detach()
        self.scale, self.offset = scale.to(device), offset.to(device)
        self.embed = to(model.input_emb.weight), to(model.input_emb.bias)
        tokens = policy.shape()[0]
        self.positions = to(model.pos_emb[0, :tokens])
        self.mask, self.memory_mask = to(model.mask), to(model.memory_mask)
        self.cond = to(model.cond_obs_emb.weight), to(model.cond_obs_emb.bias)
        self.cond_positions = to(model.cond_pos_emb[0, 1:])
        self.encoder = [to(p) for p in (model.encoder[0].weight, model.encoder[0].bias, model.encoder[2].weight, model.encoder[2].bias)]
        self.final = to(model.ln_f.weight), to(model.ln_f.bias)
        self.head = to(model.head.weight), to(model.head.bias)
        d = self.width
        self.layers = []
        memory = model.encoder(model.time_emb(table.timesteps) + model.cond_pos_emb[0, :1])  # [K, D]
        obs_tokens = o["n_obs_steps"]
        for layer in model.layers:
            s, m = layer.self_attn, layer.multihead_attn
            time_kv = F.linear(memory, m.in_proj_weight[d:], m.in_proj_bias[d:]).view(-1, 2, self.heads, 1, d // self.heads)
            self.layers.append(
                dict(
                    norms=[(to(n.weight), to(n.bias)) for n in (layer.norm1, layer.norm2, layer.norm3)],
                    qkv=(to(s.in_proj_weight), to(s.in_proj_bias)),
                    out=(to(s.out_proj.weight), to(s.out_proj.bias)),
                    q=(to(m.in_proj_weight[:d]), to(m.in_proj_bias[:d])),
                    kv=(to(m.in_proj_weight[d:]), to(m.in_proj_bias[d:])),
                    cross_out=(to(m.out_proj.weight), to(m.out_proj.bias)),
                    up=(to(layer.linear1.weight), to(layer.linear1.bias)),
                    down=(to(layer.linear2.weight), to(layer.linear2.bias)),
                    time_kv=to(time_kv),
                    buffer=torch.zeros(2, self.heads, 1 + obs_tokens, d // self.heads, device=device, dtype=dtype),
                )
            )

    def heads_of(self, x: Tensor, parts: int) -> Tensor:
        """[tokens, parts * D] to [parts, 1, H, tokens, D / H]."""
        return x.view(x.shape[0], parts, 1, self.heads, -1).permute(1, 2, 3, 0, 4)

    def norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.width,), *weights)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: tuple[Tensor, Tensor]) -> Tensor:
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.linear(x[0].transpose(0, 1).reshape(-1, self.width), *out)

    def block(self, name: str, x: Tensor, w: dict, k: int) -> Tensor:
        if name == "self_attention":
            q, key, v = self.heads_of(F.linear(self.norm(x, w["norms"][0]), *w["qkv"]), 3)
            return self.attend(q, key, v, self.mask, w["out"])
        if name == "cross_attention":
            w["buffer"][:, :, :1].copy_(w["time_kv"][k])
            q = self.heads_of(F.linear(self.norm(x, w["norms"][1]), *w["q"]), 1)[0]
            key, v = w["buffer"][:, None]
            return self.attend(q, key, v, self.memory_mask, w["cross_out"])
        return F.linear(F.gelu(F.linear(self.norm(x, w["norms"][2]), *w["up"])), *w["down"])

    def __call__(self, obs_raw: Tensor, noise: Tensor) -> Tensor:
        """Observation [To, O] and noise [K+1, T, N] to the denoised trajectory [T, N], normalised, float32."""
        obs = (obs_raw * self.scale + self.offset).to(self.dtype)
        w1, b1, w2, b2 = self.encoder
        memory = F.linear(F.mish(F.linear(F.linear(obs, *self.cond) + self.cond_positions, w1, b1)), w2, b2)
        for w in self.layers:
            w["buffer"][:, :, 1:].copy_(self.heads_of(F.linear(memory, *w["kv"]), 2)[:, 0])
        cache: list[dict[str, Tensor]] = [{} for _ in self.layers]
        total: Tensor | None = None  # of all cached outputs, for steps without updates
        x = noise[0]
        for k, (noise_part, inverse, c0, cx, ce, sigma) in enumerate(self.table.rows):
            h = F.linear(x.to(self.dtype), *self.embed) + self.positions
            if self.schedule is not None and not self.schedule[k]:
                if total is None:
                    total = torch.stack([c for layer in cache for c in layer.values()]).sum(0)
                h = h + total
            else:
                total = None
                for i, w in enumerate(self.layers):
                    for name in ("self_attention", "cross_attention", "feed_forward"):
                        if self.schedule is None or f"layer{i}.{name}" in self.schedule[k]:
                            cache[i][name] = self.block(name, h, w, k)
                        h = h + cache[i][name]
            eps = F.linear(self.norm(h, self.final), *self.head).float()
            x0 = ((x - noise_part * eps) * inverse).clamp(-self.table.clip, self.table.clip)
            x = c0 * x0 + cx * x
            if ce:
                x = x + ce * eps
            if sigma:
                x = x + sigma * noise[1 + k]
        return x


def graphed(run: TunedPolicy, obs_raw: Tensor, noise: Tensor):
    """The whole loop as one CUDA graph: a function of (obs_raw, noise) on the device, which waits for its result."""
    obs, z = obs_raw.cuda(), noise.cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(obs, z)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(obs, z)

    def replay(obs_raw: Tensor, noise: Tensor) -> Tensor:
        obs.copy_(obs_raw)
        z.copy_(noise)
        graph.replay()
        return out.cpu()

    return replay
