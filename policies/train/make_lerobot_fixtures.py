"""Makes `tests/fixtures/lerobot`: small random `multi_task_dit` checkpoints of LeRobot, what surrounds them, and their traces.

Everything is LeRobot's own (0.6.1 here): policy, configuration, pre- and postprocessor, and how they are saved; only CLIP is a
tiny random one with a word tokenizer. Needs LeRobot with `multi_task_dit` besides `requirements.txt`, Python 3.12. Everything
follows from the seeds in here. `NAME/` is the checkpoint with `encoders/` (`export_lerobot.py`), `NAME/trace.safetensors` its trace:
names as in `tests/fixtures/README.md`; besides `images` u8 [B, To, cameras, h, w, 3] and `cached.trajectory_norm`, the run in
which every block adds what it added at the last of the steps of `cached` (in `meta`) instead of being computed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
from unittest import mock

import torch
from diffusers.schedulers import scheduling_ddpm
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy, modulate
from lerobot.policies.multi_task_dit.processor_multi_task_dit import make_multi_task_dit_pre_post_processors
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from export_lerobot import export

BATCH, STATE, ACTION, TO, TA, HORIZON, STEPS = 2, 4, 3, 2, 5, 8, 6
TASK = "push the block"
STILL = 2.7182817  # where the last element of states and actions is all the time
SIZE, CROP = (18, 20), (16, 16)
MODES = {name: NormalizationMode(name) for name in ("MEAN_STD", "MIN_MAX", "QUANTILES")}
SHARED: dict[str, Any] = dict(
    n_obs_steps=TO,
    n_action_steps=TA,
    horizon=HORIZON,
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    timestep_embed_dim=8,
    num_train_timesteps=50,
    num_inference_steps=STEPS,
    tokenizer_max_length=8,
    vision_encoder_name="clip-tiny",
    text_encoder_name="clip-tiny",
    device="cpu",
)
# The wrist's camera comes first, against the alphabet.
CASES: dict[str, dict[str, Any]] = {
    "rotary_cameras": dict(
        cameras=["observation.images.wrist", "observation.images.top"],
        modes=dict(VISUAL=MODES["MEAN_STD"], STATE=MODES["MIN_MAX"], ACTION=MODES["MIN_MAX"]),
        image_crop_shape=CROP,
        noise_scheduler_type="DDIM",
    ),
    "positions_state": dict(
        cameras=[],
        modes=dict(STATE=MODES["MEAN_STD"], ACTION=MODES["QUANTILES"]),
        use_rope=False,
        use_positional_encoding=True,
        prediction_type="sample",
        clip_sample_range=1.5,
    ),
}
CACHED = {"layer0.self_attention": [0, 3], "layer0.feed_forward": [0, 1, 3], "layer1.self_attention": [0, 3], "layer1.feed_forward": [0, 3]}


def make_clip(folder: pathlib.Path) -> None:
    torch.manual_seed(3)
    words = ["<pad>", "<unk>", "<s>", "</s>", *TASK.split()]
    text = dict(vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(max_position_embeddings=8, projection_dim=8, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    vision = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=8)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    names = dict(pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def make_policy(case: dict[str, Any]) -> tuple[MultiTaskDiTPolicy, dict[str, dict[str, Tensor]]]:
    case = dict(case)
    cameras, modes = case.pop("cameras"), case.pop("modes")
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    inputs |= {key: PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for key in cameras}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
    config = MultiTaskDiTConfig(input_features=inputs, output_features=outputs, normalization_mapping=modes, **SHARED, **case)
    policy = MultiTaskDiTPolicy(config).eval()
    # LeRobot starts with gates of zero, which would hide every block.
    generator = torch.Generator().manual_seed(5)
    for parameter in policy.noise_predictor.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale

    def stats(shape: tuple[int, ...], still: bool = False) -> dict[str, Tensor]:
        low, high = torch.randn(shape, generator=generator) - 1, torch.randn(shape, generator=generator) + 2
        mean, std = (low + high) / 2, (high - low) / 5
        found = dict(min=low, max=high, mean=mean, std=std, q01=low + 0.1, q99=high - 0.1)
        if still:
            for name, values in found.items():
                values[-1] = 0 if name == "std" else STILL
        return found

    everything = {"observation.state": stats((STATE,), True), "action": stats((ACTION,), True)}
    return policy, everything | {key: stats((3, 1, 1)) for key in cameras}


class Caching(nn.Module):
    """A block that adds what it added before at the steps that are not its own."""

    def __init__(self, block: nn.Module, updates: list[list[int]]) -> None:
        super().__init__()
        self.block, self.updates, self.step, self.kept = block, updates, 0, [torch.empty(0)] * 2

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        block = self.block
        parts = [part.unsqueeze(1) for part in block.adaLN_modulation(features).chunk(6, dim=1)]
        for i, (shift, scale, gate) in enumerate((parts[:3], parts[3:])):
            if self.step in self.updates[i]:
                given = modulate((block.norm1, block.norm2)[i](x), shift, scale)
                if i == 1:
                    branch = block.mlp(given)
                else:
                    branch = block.attn(given) if block.use_rope else block.multihead_attn(given, given, given)[0]
                self.kept[i] = gate * branch
            x = x + self.kept[i]
        self.step += 1
        return x


def sample(policy: MultiTaskDiTPolicy, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """LeRobot's own loop with given noise: the trajectory, and what the network said at each step."""
    outputs: list[Tensor] = []
    hook = policy.noise_predictor.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    draws = iter(noise[1:])
    with (
        mock.patch.object(torch, "randn", lambda **_: noise[0]),
        mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(draws)),
    ):
        trajectory = policy.objective.conditional_sample(policy.noise_predictor, BATCH, condition)
    hook.remove()
    return trajectory, torch.stack(outputs)


def package_order(policy: MultiTaskDiTPolicy, condition: Tensor) -> Tensor:
    """The condition as a package has it: per step the cameras' features, then the state, without the text."""
    rows = condition.reshape(BATCH, TO, -1)
    text = policy.config.hidden_dim
    return torch.cat([rows[..., STATE : rows.shape[-1] - text], rows[..., :STATE]], -1)


@torch.no_grad()
def make(name: str, case: dict[str, Any], out: pathlib.Path) -> None:
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(7)
    policy, stats = make_policy(case)
    policy.save_pretrained(folder)
    pre, post = make_multi_task_dit_pre_post_processors(policy.config, stats)
    pre.save_pretrained(folder, config_filename="policy_preprocessor.json")
    post.save_pretrained(folder, config_filename="policy_postprocessor.json")
    export(policy, TASK, folder / "encoders")

    generator = torch.Generator().manual_seed(9)
    cameras = list(policy.config.image_features)
    state = torch.randn(BATCH, TO, STATE, generator=generator)
    state[..., -1] = STILL
    images = torch.randint(0, 256, (BATCH, TO, len(cameras), *SIZE, 3), generator=generator, dtype=torch.uint8)
    batches = []
    for step in range(TO):
        observation = {"observation.state": state[:, step], "task": [TASK] * BATCH}
        for i, key in enumerate(cameras):
            observation[key] = images[:, step, i].permute(0, 3, 1, 2).float() / 255
        batches.append(pre(observation))
    batch = {key: batches[-1][key] for key in batches[-1] if "language" in key}
    for key in ("observation.state", *cameras):
        batch[key] = torch.stack([b[key] for b in batches], 1)
    condition = policy.observation_encoder.encode(policy._prepare_batch(batch))

    noise = torch.randn(STEPS + 1, BATCH, HORIZON, ACTION, generator=generator)
    trajectory, eps = sample(policy, condition, noise)
    action = post(trajectory[:, TO - 1 : TO - 1 + TA].reshape(-1, ACTION)).reshape(BATCH, TA, ACTION)
    blocks = list(policy.noise_predictor.transformer_blocks)
    kinds = ("self_attention", "feed_forward")
    runs = []
    for updates in (lambda layer: [[*range(STEPS)]] * 2, lambda layer: [CACHED[f"layer{layer}.{kind}"] for kind in kinds]):
        wrapped = nn.ModuleList(Caching(block, updates(layer)) for layer, block in enumerate(blocks))
        policy.noise_predictor.transformer_blocks = wrapped
        runs.append(sample(policy, condition, noise)[0])
    assert torch.equal(runs[0], trajectory), "without caching, the blocks are LeRobot's"
    trace = dict(obs_raw=state, obs_norm=package_order(policy, condition), noise=noise, eps=eps, trajectory_norm=trajectory, action=action)
    trace |= {"cached.trajectory_norm": runs[1]} | (dict(images=images) if cameras else {})
    timesteps = policy.objective.noise_scheduler.timesteps.tolist()
    meta = json.dumps(dict(timesteps=timesteps, cached=CACHED, task=TASK))
    save_file({key: value.contiguous() for key, value in trace.items()}, folder / "trace.safetensors", dict(meta=meta))
    print(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "lerobot"
    parser.add_argument("--out", type=pathlib.Path, default=default)
    out = parser.parse_args().out.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # so that the checkpoints name CLIP without a path
        make_clip(pathlib.Path("clip-tiny"))
        for name, case in CASES.items():
            make(name, case, out)
        os.chdir("/")


if __name__ == "__main__":
    main()
