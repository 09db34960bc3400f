"""Training the demo's DiT and text encoder by flow matching on encoded clips.

Half of the samples are cut from the middle of a clip, half give every latent frame its own noise level, some of those start with
clean context frames, and in half of these the context attends only to itself: what windows, rollouts and cached context need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from numpy.random import Generator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Tokenizer, UMT5EncoderModel

from ....files import written_whole
from ....parallel.attention.processors import with_attention
from ..nets import FLOW_SHIFT, LATENT_CHANNELS, MAX_LATENT_FRAMES, MAX_SEQUENCE_LENGTH, build_text_encoder, build_tokenizer, build_transformer
from ..scene import SIZE, draw, sample_scene, sentence, vocabulary
from .trainer import Schedule, Trainer
from .vae import clip_to_tensor

_SHARD = 100
_LATEST_START = 150  # frames into a take, for clips from the middle
_BEFORE_MIDDLE = 2  # latents of such a clip that are left out: they are encoded with too little of what was before them
_FRAMES_A_STEP = 64  # latent frames in a batch, whatever the clip length
_LENGTHS = {MAX_LATENT_FRAMES: 0.65, 6: 0.15, 4: 0.1, 2: 0.05, 1: 0.05}
# Half of all samples start in the middle of a clip, with a latent that stands for four frames; but few of the whole clips at one noise
# level do. A take looks like the latter, and the model must learn from them that it starts with a latent for one frame, which is encoded
# differently: rotary positions are relative and do not tell. In a mid-take window the neighbours, fused in at every step, tell.
_FROM_MIDDLE, _WHOLE_FROM_MIDDLE = 0.61, 0.03

_TWO_THINGS = 0.6  # of a batch: one thing alone is learnt sooner


def _clip_rng(index: int) -> Generator:
    return np.random.default_rng((7, index))


def _draw_clip(index: int) -> Tensor:
    """Clips with an even index are the start of a take, the others come from its middle."""
    rng = _clip_rng(index)
    scene = sample_scene(rng)
    if index % 2 == 0:
        return clip_to_tensor(draw(scene, 4 * MAX_LATENT_FRAMES - 3))
    return clip_to_tensor(draw(scene, 4 * (MAX_LATENT_FRAMES + _BEFORE_MIDDLE) - 3, start=int(rng.integers(1, _LATEST_START))))


@torch.no_grad()
def encode_clips(folder: Path, num_clips: int, device: torch.device) -> None:
    """Encode clips with the trained VAE into shards of 100: latents [16, 9, 12, 12], normalised, fp16."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(device)
    mean = torch.tensor(vae.config.latents_mean, device=device).view(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(-1, 1, 1, 1)
    (folder / "latents").mkdir(exist_ok=True)
    for shard in range(num_clips // _SHARD):
        target = folder / "latents" / f"{shard:04d}.safetensors"
        if target.exists():
            continue
        encoded = torch.empty(_SHARD, LATENT_CHANNELS, MAX_LATENT_FRAMES, SIZE // 8, SIZE // 8, dtype=torch.float16)
        for first in (*range(0, _SHARD, 10), *range(1, _SHARD, 10)):
            clips = torch.stack([_draw_clip(shard * _SHARD + index) for index in range(first, first + 10, 2)])
            with torch.autocast(device.type, torch.bfloat16):
                latents = vae.encode(clips.to(device)).latent_dist.mode().float()
            encoded[first : first + 10 : 2] = ((latents - mean) / std)[:, :, -MAX_LATENT_FRAMES:].half().cpu()
        with written_whole(target) as temporary:
            save_file({"latents": encoded}, temporary)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Softmax attention spelled out, over [batch, tokens, heads, head_dim].

    At these sizes torch's fused CPU kernel spends half of a training step in its backward pass; this one takes a tenth of it.
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return (scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value).transpose(1, 2)


class _TrainingProcessor:
    """Wan's own attention processor with a quick kernel and a mask that the training loop sets for a batch."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._processor = with_attention(WanAttnProcessor(), _plain_attention)

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *inputs: Tensor | None) -> Tensor:
        text, _, rotary = inputs
        return self._processor(attn, hidden_states, text, self.mask, rotary)  # type: ignore[no-any-return]


class DenoiserWithText(nn.Module):
    """The DiT and its text encoder, trained together."""

    def __init__(self, tokenizer: T5Tokenizer, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel, max_sequence_length: int) -> None:
        super().__init__()
        self.tokenizer, self.max_sequence_length = tokenizer, max_sequence_length
        self.transformer: WanTransformer3DModel = transformer
        self.text_encoder = text_encoder
        self.self_processor, text_processor = _TrainingProcessor(), _TrainingProcessor()
        for block in self.transformer.blocks:
            block.attn1.set_processor(self.self_processor)
            block.attn2.set_processor(text_processor)

    def encode(self, prompts: list[str], device: torch.device) -> Tensor:
        """[prompts, max_sequence_length, dim], zero where there is padding, as WanPipeline does."""
        limits = {"padding": "max_length", "max_length": self.max_sequence_length, "truncation": True}
        tokens = self.tokenizer(prompts, **limits, return_tensors="pt").to(device)
        embeds = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return embeds * tokens.attention_mask[..., None]

    def forward(self, latents: Tensor, timestep: Tensor, embeds: Tensor, context_frames: int) -> Tensor:
        """Velocity [batch, channels, frames, height, width]; the first `context_frames` attend only to each other if above 0."""
        self.self_processor.mask = _context_mask(latents.shape, context_frames, latents.device) if context_frames else None
        return self.transformer(latents, timestep, embeds, return_dict=False)[0]


def build_denoiser() -> DenoiserWithText:
    """The demo's, untrained."""
    tokenizer = build_tokenizer(vocabulary())
    return DenoiserWithText(tokenizer, build_transformer(), build_text_encoder(len(tokenizer)), MAX_SEQUENCE_LENGTH)


def _context_mask(shape: torch.Size, context_frames: int, device: torch.device) -> Tensor:
    tokens_a_frame = shape[3] * shape[4] // 4
    is_context = torch.arange(shape[2] * tokens_a_frame, device=device) < context_frames * tokens_a_frame
    return (~is_context[:, None] | is_context[None, :])[None, None]


@dataclass(frozen=True)
class Batch:
    """latents: [batch, channels, frames, height, width], clean; sigma: [batch, frames] in 0..1; weight of each frame's loss: [batch, frames], 0 on
    context frames. isolated: context frames that attend only to each other."""

    latents: Tensor
    prompts: list[str]
    sigma: Tensor
    weight: Tensor
    isolated: int


DrawBatch = Callable[[Generator, int], Batch]


class _Clips:
    """All shards in the folder; looks for new ones now and then, so that encoding may go on beside training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latents: list[Tensor] = []
        self._indices: dict[tuple[bool, int], list[int]] = {}  # by whether a clip is from the middle of a take, and its number of things

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("[0-9]*.safetensors"))[len(self.latents) :]:
            self.latents.append(load_file(path)["latents"])
            for index in range((len(self.latents) - 1) * _SHARD, len(self.latents) * _SHARD):
                self._indices.setdefault((index % 2 == 1, len(sample_scene(_clip_rng(index)).things)), []).append(index)

    def batch(self, rng: Generator) -> Batch:
        length = int(rng.choice(list(_LENGTHS), p=list(_LENGTHS.values())))
        count = _FRAMES_A_STEP // length
        per_frame = rng.random() < 0.5
        context = int(rng.integers(1, length)) if per_frame and length > 1 and rng.random() < 0.5 else 0
        isolated = context if rng.random() < 0.5 else 0
        share = _WHOLE_FROM_MIDDLE if length == max(_LENGTHS) and not per_frame else _FROM_MIDDLE
        cuts, prompts = [], []
        for _ in range(count):
            from_middle = bool(rng.random() < share)
            index = int(rng.choice(self._indices[from_middle, 2 if rng.random() < _TWO_THINGS else 1]))
            clip = self.latents[index // _SHARD][index % _SHARD]
            start = int(rng.integers(0, MAX_LATENT_FRAMES - length + 1)) if from_middle else 0
            cuts.append(clip[:, start : start + length].float())
            prompts.append("" if rng.random() < 0.1 else sentence(sample_scene(_clip_rng(index)), rng))
        sigma = noise_levels(rng, FLOW_SHIFT, count, length if per_frame else 1).expand(count, length).clone()
        sigma[:, :context] = 0
        weight = torch.ones(count, length)
        weight[:, :context] = 0
        return Batch(torch.stack(cuts), prompts, sigma, weight, isolated)


def noise_levels(rng: Generator, flow_shift: float, *shape: int) -> Tensor:
    """sigma in 0..1: half uniform, half logit-normal, then shifted as the scheduler shifts."""
    uniform, normal = rng.random(shape), 1 / (1 + np.exp(-rng.standard_normal(shape)))
    level = np.where(rng.random(shape) < 0.5, uniform, normal)
    return torch.from_numpy(flow_shift * level / (1 + (flow_shift - 1) * level)).float()


def train_dit(folder: Path, schedule: Schedule, device: torch.device) -> None:
    """Train on what `encode_clips` wrote; the weights stay in the trainer's checkpoint, from where `export` takes them."""
    model = build_denoiser().to(device)
    read = folder / "text.pt"
    if read.exists() and not (folder / "dit.pt").exists():
        average = torch.load(read, weights_only=True)["average"]
        prefix = "module.encoder."
        model.text_encoder.load_state_dict({name.removeprefix(prefix): weight for name, weight in average.items() if name.startswith(prefix)})
    clips = _Clips(folder / "latents")
    clips.refresh()

    def draw_batch(rng: Generator, step: int) -> Batch:
        if step % 200 == 0:
            clips.refresh()
        return clips.batch(rng)

    fit_velocity(model, draw_batch, schedule, folder, device)


def fit_velocity(model: DenoiserWithText, draw_batch: DrawBatch, schedule: Schedule, folder: Path, device: torch.device) -> None:
    """Train until the schedule ends; checkpoints go to `folder`/dit.pt. draw_batch: (random, step) -> what that step learns from."""
    model.transformer.compile_repeated_blocks(dynamic=False)
    torch._dynamo.config.cache_size_limit = 64

    def loss(rng: Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(rng, step)
        latents, sigma = batch.latents.to(device), batch.sigma.to(device)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(device)
        level = sigma[:, None, :, None, None]
        noisy = (1 - level) * latents + level * noise
        shared = bool((sigma == sigma[:, :1]).all())
        tokens_a_frame = latents.shape[3] * latents.shape[4] // 4
        timestep = 1000 * (sigma[:, 0] if shared else sigma.repeat_interleave(tokens_a_frame, dim=1))
        with torch.autocast(device.type, torch.bfloat16):
            velocity = model(noisy, timestep, model.encode(batch.prompts, device), batch.isolated).float()
        error = F.mse_loss(velocity, noise - latents, reduction="none").mean(dim=(1, 3, 4))
        weight = batch.weight.to(device)
        value = (error * weight).sum() / weight.sum()
        return value, {"loss_per_frame" if not shared else "loss_shared": float(value.detach())}

    matrices = [weight for weight in model.transformer.blocks.parameters() if weight.ndim == 2]
    Trainer("dit", model, schedule, folder, matrices).run(loss)
