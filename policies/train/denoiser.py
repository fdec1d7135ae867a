"""The denoiser of transformer Diffusion Policies on stock torch.nn, for training and as the reference.

Parameter names are those of real-stanford/diffusion_policy (MIT), so its checkpoints load unchanged.
Letters: B batch, T tokens, D width, O observation size, To observation steps, N size of a denoised token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Timesteps [B] to [B, D]: sines in the first half, cosines in the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timesteps: Tensor) -> Tensor:
        half = self.width // 2
        step = -math.log(10000) / (half - 1)
        frequencies = torch.exp(step * torch.arange(half, device=timesteps.device))
        angles = timesteps[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class WithDummy(nn.Module):
    """That code base gives several modules an empty parameter by which they know their device."""

    def __init__(self) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter(torch.empty(0))


def additive_mask(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


class Denoiser(WithDummy):
    """One denoising network: noisy tokens [B, T, input_dim], timestep, condition [B, To, cond_dim] to [B, T, output_dim].

    Three shapes of it: a decoder whose memory is the time token and the observation tokens (`cond_dim` > 0), a decoder
    whose memory is the time token alone, and an encoder in which time is the first token (`time_as_cond` false).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.0,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        obs_as_cond: bool = False,  # not read: cond_dim decides, in the original too
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        has_obs = cond_dim > 0
        if has_obs and not time_as_cond:
            raise ValueError("observation as condition needs time_as_cond")
        obs_tokens = (horizon if n_obs_steps is None else n_obs_steps) if has_obs else 0
        tokens = horizon if time_as_cond else horizon + 1
        memory_tokens = 1 + obs_tokens if time_as_cond else 0

        layer = dict(
            d_model=n_emb,
            nhead=n_head,
            dim_feedforward=4 * n_emb,
            dropout=p_drop_attn,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )

        def encoder(layers: int) -> nn.Module:
            return nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), layers, enable_nested_tensor=False)

        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, memory_tokens, n_emb)) if time_as_cond else None
        self.register_buffer("mask", None)
        self.register_buffer("memory_mask", None)
        if causal_attn:
            row = torch.arange(tokens)[:, None]
            self.mask = additive_mask(row >= torch.arange(tokens))
            if has_obs:
                self.memory_mask = additive_mask(row >= torch.arange(memory_tokens) - 1)
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalEmbedding(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if has_obs else None
        self.decoder = None
        if not time_as_cond:
            self.encoder = encoder(n_layer)
        else:
            if n_cond_layers > 0:
                self.encoder = encoder(n_cond_layers)
            else:
                self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), n_layer)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that the tokens go through: each has two (encoder) or three (decoder) residual blocks."""
        return self.encoder.layers if self.decoder is None else self.decoder.layers

    def memory(self, timestep: Tensor, cond: Tensor | None) -> Tensor:
        """Timesteps [B] and condition to the decoder's memory [B, 1 + To, D] ([B, 1, D] without a condition)."""
        x = self.time_emb(timestep)[:, None]
        if self.cond_obs_emb is not None:
            x = torch.cat([x, self.cond_obs_emb(cond)], dim=1)
        return self.encoder(self.drop(x + self.cond_pos_emb[:, : x.shape[1]]))

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor | None = None) -> Tensor:
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        causal = self.mask is not None
        x = self.input_emb(sample)
        if self.decoder is None:
            x = torch.cat([self.time_emb(timestep)[:, None], x], dim=1)
            x = self.encoder(self.drop(x + self.pos_emb[:, : x.shape[1]]), mask=self.mask, is_causal=causal)[:, 1:]
        else:
            x = self.drop(x + self.pos_emb[:, : x.shape[1]])
            memory = self.memory(timestep, cond)
            x = self.decoder(x, memory, tgt_mask=self.mask, memory_mask=self.memory_mask, tgt_is_causal=causal)
        return self.head(self.ln_f(x))
