"""The reference that Refrain is compared with: transformer Diffusion Policies on stock torch.nn and diffusers.

What it is: the low-dimensional transformer policy of real-stanford/diffusion_policy (MIT), assembled from
`torch.nn.TransformerDecoder`, `torch.nn.TransformerEncoder` and the diffusers schedulers, with the parameter names of
that code base, so its checkpoints load unchanged. Sampling takes its noise as an argument.
What it is not: fast, or a training program.

Letters: B batch, T tokens, D width, K denoising steps, A action size, O observation size, To observation steps,
N size of a denoised token (A, or A + O when the observation is inpainted).
"""

from __future__ import annotations

import contextlib
import json
import pickle
import types
from typing import Any, Callable, Iterator
from unittest import mock

import dill
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn

from denoiser import Denoiser, WithDummy


BLOCKS = {"_sa_block": "self_attention", "_mha_block": "cross_attention", "_ff_block": "feed_forward"}


@contextlib.contextmanager
def wrap_blocks(model: Denoiser, wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Inside, every residual block's function f is `wrap(name, f)`, name = `layerI.{self_attention,...}`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's fused encoder layer has no blocks to look at
    try:
        for i, layer in enumerate(model.layers):
            for method, block in BLOCKS.items():
                if hasattr(layer, method):
                    setattr(layer, method, wrap(f"layer{i}.{block}", getattr(layer, method)))
        yield
    finally:
        for layer in model.layers:
            for method in BLOCKS:
                layer.__dict__.pop(method, None)
        torch.backends.mha.set_fastpath_enabled(fast)


def forward_cached(
    model: Denoiser, sample: Tensor, timestep: Tensor, cond: Tensor | None, cache: dict[str, Tensor], updates: set[str]
) -> Tensor:
    """`model(sample, timestep, cond)` of a decoder where only the blocks in `updates` are computed.

    The others add what they added last, from `cache`, where computed blocks leave their output.
    """
    x = model.drop(model.input_emb(sample) + model.pos_emb[:, : sample.shape[1]])
    memory = None
    for i, layer in enumerate(model.layers):
        name = f"layer{i}.self_attention"
        if name in updates:
            cache[name] = layer._sa_block(layer.norm1(x), model.mask, None)
        x = x + cache[name]
        name = f"layer{i}.cross_attention"
        if name in updates:
            if memory is None:
                memory = model.memory(timestep.expand(sample.shape[0]), cond)
            cache[name] = layer._mha_block(layer.norm2(x), memory, model.memory_mask, None)
        x = x + cache[name]
        name = f"layer{i}.feed_forward"
        if name in updates:
            cache[name] = layer._ff_block(layer.norm3(x))
        x = x + cache[name]
    return model.head(model.ln_f(x))


def read_schedule(path: str, name: str, steps: int) -> list[set[str]]:
    """For every denoising step the blocks to compute, from a file like `{"schedules": {name: {block: [steps]}}}`."""
    with open(path) as file:
        blocks = json.load(file)["schedules"][name]
    return [{block for block, at in blocks.items() if k in at} for k in range(steps)]


class Field(nn.Module):
    """One normaliser's parameters: x * scale + offset."""

    def __init__(self, scale: Tensor, offset: Tensor, input_stats: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        stats = {k: nn.Parameter(v, requires_grad=False) for k, v in (input_stats or {}).items()}
        self.input_stats = nn.ParameterDict(stats)

    def normalize(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset

    def unnormalize(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.scale


class Normalizer(nn.Module):
    def __init__(self, obs: Field, action: Field) -> None:
        super().__init__()
        self.params_dict = nn.ModuleDict({"obs": obs, "action": action})


class Policy(WithDummy):
    """Denoiser and normalisers; `options` is the `policy` section of a checkpoint's configuration, resolved."""

    def __init__(self, model: Denoiser, normalizer: Normalizer, options: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.mask_generator = WithDummy()
        self.normalizer = normalizer
        self.options = options

    @property
    def fields(self) -> tuple[Field, Field]:
        params = self.normalizer.params_dict
        return params["obs"], params["action"]

    def scheduler(self, **changes: Any) -> DDPMScheduler | DDIMScheduler:
        return make_scheduler(self.options["noise_scheduler"] | changes)

    def step_kwargs(self) -> dict[str, Any]:
        """What the configuration passes to `scheduler.step`: every key of the policy that is not an argument of its own."""
        own = {"_target_", "model", "noise_scheduler", "horizon", "obs_dim", "action_dim", "n_action_steps"}
        own |= {"n_obs_steps", "num_inference_steps", "obs_as_cond", "pred_action_steps_only"}
        return {k: v for k, v in self.options.items() if k not in own}

    def shape(self) -> tuple[int, int]:
        """Tokens and their size N."""
        o = self.options
        tokens = o["n_action_steps"] if o["pred_action_steps_only"] else o["horizon"]
        return tokens, o["action_dim"] + (0 if o["obs_as_cond"] else o["obs_dim"])

    def inputs(self, obs_raw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Raw observations [B, To, O] to (condition, values to inpaint), one of which is None."""
        obs = self.fields[0].normalize(obs_raw)
        return (obs, None) if self.options["obs_as_cond"] else (None, obs)

    @torch.no_grad()
    def sample(
        self,
        obs_raw: Tensor,
        noise: Tensor,
        scheduler: DDPMScheduler | DDIMScheduler,
        observe: Callable[[int, Tensor, Tensor], None] | None = None,
        denoise: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
        **step_kwargs: Any,
    ) -> Tensor:
        """Observations [B, To, O] and noise [>= K+1, B, T, N] to the denoised trajectory [B, T, N], normalised.

        noise[0] is the initial trajectory; noise[1 + k] is what denoising step k draws, if it draws at all.
        `observe(k, input, output)` sees each network call. Call `scheduler.set_timesteps` before.
        """
        cond, known = self.inputs(obs_raw)
        actions = self.options["action_dim"]

        def inpaint(x: Tensor) -> Tensor:
            if known is not None:
                x[:, : known.shape[1], actions:] = known
            return x

        x = noise[0].clone()
        for k, t in enumerate(scheduler.timesteps):
            x = inpaint(x)
            output = (denoise or self.model)(x, t, cond)
            if observe:
                observe(k, x, output)
            x = scheduler_step(scheduler, output, t, x, noise[1 + k], **step_kwargs)
        return inpaint(x)

    def actions(self, trajectory: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised trajectory to (the actions to execute [B, Ta, A], all predicted actions), in the demonstrations' units."""
        o = self.options
        predicted = self.fields[1].unnormalize(trajectory[..., : o["action_dim"]])
        if o["pred_action_steps_only"]:
            return predicted, predicted
        first = o["n_obs_steps"] - 1
        return predicted[:, first : first + o["n_action_steps"]], predicted


def scheduler_step(scheduler, output: Tensor, t: Tensor, x: Tensor, noise: Tensor, **kwargs: Any) -> Tensor:
    """One step of a diffusers scheduler that uses `noise` wherever it would have drawn some."""
    if isinstance(scheduler, DDIMScheduler):
        return scheduler.step(output, t, x, variance_noise=noise, **kwargs).prev_sample
    with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise):
        return scheduler.step(output, t, x, **kwargs).prev_sample


def make_scheduler(config: dict[str, Any]) -> DDPMScheduler | DDIMScheduler:
    classes = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}
    config = dict(config)
    return classes[config.pop("_target_").rsplit(".", 1)[-1]](**config)


def as_ddim(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The DDIM scheduler (diffusers' defaults) with the noise schedule, prediction type and clipping of a DDPM one."""
    kept = {k: v for k, v in config.items() if k != "variance_type"}
    return kept | {"_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler"} | changes


def resolvers() -> None:
    """The one resolver that the code base's own configurations use, `eval`, for conditional expressions only."""

    def evaluate(expression: str) -> Any:
        value, _, rest = expression.partition(" if ")
        test, _, other = rest.partition(" else ")
        chosen = value if not rest or test == "True" else other
        return sum(int(part) for part in chosen.split("+"))

    OmegaConf.register_resolver("eval", evaluate, replace=True)
    OmegaConf.register_resolver("now", lambda pattern: pattern, replace=True)


class HarmlessUnpickler(pickle.Unpickler):
    """Makes tensors, omegaconf nodes and plain containers, and nothing else."""

    ALLOWED = {
        "_codecs": {"encode"},
        "builtins": {"dict", "list", "int", "float", "str", "bool"},
        "collections": {"OrderedDict", "defaultdict"},
        "dill._dill": {"_load_type"},
        "omegaconf.base": {"ContainerMetadata", "Metadata"},
        "omegaconf.dictconfig": {"DictConfig"},
        "omegaconf.listconfig": {"ListConfig"},
        "omegaconf.nodes": {"AnyNode", "BooleanNode", "FloatNode", "IntegerNode", "StringNode"},
        "torch._utils": {"_rebuild_tensor_v2", "_rebuild_parameter"},
        "typing": {"Any"},
    }

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if name not in self.ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a policy checkpoint")
        found = super().find_class(module, name)
        return self.plain_type if found is dill._dill._load_type else found

    @staticmethod
    def plain_type(name: str) -> type:
        return {"dict": dict, "list": list, "int": int, "float": float, "str": str, "bool": bool}[name]


def read_checkpoint(path: str) -> dict[str, Any]:
    """The checkpoint's dictionary; a pickle that names anything unexpected is refused."""
    reader = types.SimpleNamespace(Unpickler=HarmlessUnpickler, load=None, __name__="pickle")
    return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)


def load_policy(path: str) -> Policy:
    """A `.ckpt` of real-stanford/diffusion_policy, EMA weights where it uses them, in float32."""
    resolvers()
    payload = read_checkpoint(path)
    config = payload["cfg"]
    options = OmegaConf.to_container(config.policy, resolve=True)
    use_ema = bool(OmegaConf.select(config, "training.use_ema", default=False))
    state = payload["state_dicts"]["ema_model" if use_ema else "model"]
    return policy_from_state(state, options)


def policy_from_state(state: dict[str, Tensor], options: dict[str, Any]) -> Policy:
    def field(name: str) -> Field:
        prefix = f"normalizer.params_dict.{name}."
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        stats = {k.removeprefix("input_stats."): v for k, v in found.items() if k.startswith("input_stats.")}
        return Field(found["scale"], found["offset"], stats)

    model = Denoiser(**{k: v for k, v in options["model"].items() if k != "_target_"})
    policy = Policy(model, Normalizer(field("obs"), field("action")), options)
    policy.load_state_dict(state)
    return policy.eval().float()
