"""The contract of a family: one kind of model, loaded and called through diffusers' own classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from ...cache.schedule.put import check_scheduler, check_settings, set_sigmas
from ...parallel.attention.bands import BandedAttention, Bands
from ...parallel.attention.context import ContextStore
from ...parallel.attention.kernels import Kernel, NativeKernel
from ...parallel.attention.processors import Attention, with_attention
from ...parallel.attention.sequence import SequenceAttention
from ...parallel.groups.mesh import Mesh
from ...parallel.rows import RowShards
from ...parallel.tokens.shards import TokenShards
from ..checkpoint.card import ModelCard
from ..take import Take
from .quiet import quiet_loading
from .samplers import make_scheduler

Prompt = dict[str, Tensor]
_KEPT_PROMPTS = 32


class Decoding(ABC):
    """A take on its way from latents to frames: what of its first latents its later frames need is kept, and no more."""

    @abstractmethod
    def frames(self, latents: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        """Go on with the take's next latents, [1, channels, latent frames, height, width], and stream the frames that are known then: chunks
        [frames, height, width, 3] in 0..1. To be exhausted before the next call. is_last: whether no more latents follow.

        Where the model is bound to several ranks, each calls it with whole latents and gets whole frames.
        """


class Family(ABC):
    """A loaded model. `transformer` is diffusers' own; `scheduler` is made anew for each take.

    whole_frames: modules of the VAE's decoder that look at whole frames (attention), and cannot work on some rows of them. context: keys and
    values of clean frames, where the model is bound to keep them. bands: the segments of a banded take, where it is bound to attend by them.
    """

    whole_frames: ClassVar[tuple[type[nn.Module], ...]]
    card: ModelCard
    transformer: Any
    vae: Any
    device: torch.device
    context: ContextStore | None = None
    bands: Bands | None = None
    _rows: RowShards | None = None
    _bound: ExitStack | None = None

    @classmethod
    def load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device, held: torch.device) -> Family:
        """Load all parts; transformer and text encoders in `dtype`, the VAE in fp32. held: the device that the transformer's weights go to first."""
        with quiet_loading():
            return cls._load(card, dtype, device, held)

    @classmethod
    @abstractmethod
    def _load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device, held: torch.device) -> Family: ...

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Prompt:
        """A text as the stock pipeline encodes it: inputs of the transformer by name. The 32 texts that were used last are kept, as windows
        and takes share them; they are megabytes each on large models.
        """
        encoded = self._encoded.pop(prompt, None) or self._encode_prompt(prompt)
        self._encoded[prompt] = encoded
        if len(self._encoded) > _KEPT_PROMPTS:
            del self._encoded[next(iter(self._encoded))]
        return encoded

    @cached_property
    def _encoded(self) -> dict[str, Prompt]:
        """Texts in the order of their last use."""
        return {}

    @abstractmethod
    def _encode_prompt(self, prompt: str) -> Prompt: ...

    @abstractmethod
    def velocity(self, latents: Tensor, timestep: Tensor, prompt: Prompt, guidance_scale: float, num_clean: int = 0) -> Tensor:
        """One model call. latents: [batch, channels, latent frames, height, width]; timestep: scalar; prompt: of the same batch.

        guidance_scale: an input of models with guidance embedded; the others ignore it. num_clean: how many of the first latent frames have no
        noise, for models whose card has a `clean_context`; what is predicted for these frames means nothing.
        """

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [1, channels, latent frames, height, width] of frames [frames, height, width, 3] in 0..1."""

    @abstractmethod
    def decoding(self) -> Decoding:
        """Begin to decode a take, whose latents come round after round."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Stream the frames of a take whose latents are all there, as `Decoding.frames` does."""
        return self.decoding().frames(latents, is_last=True)

    def bind(self, mesh: Mesh, kernel: Kernel, *, by_frames: bool = False, keeps_context: bool = False, is_banded: bool = False) -> None:
        """Work as one rank of `mesh` until `unbind`: model calls share the tokens over its sequence axis, decoding shares the rows of every
        frame over all ranks. kernel: attention on this rank; by_frames: ranks hold whole frames of tokens; keeps_context: attention can write to and
        read from `context`; is_banded: segments attend to bands, and are shared over the window axis, as `bands` says. Raises ValueError, with
        nothing bound, for degrees that do not fit the model or its bands.
        """
        assert self._bound is None, "unbind() first"
        shards = TokenShards(mesh, by_frames=by_frames)
        context, bands = ContextStore() if keeps_context else None, Bands(mesh, shards) if is_banded else None
        with ExitStack() as bound:
            # Diffusers' own attention is what a rank alone can do with.
            if mesh.sequence.size > 1 or not isinstance(kernel, NativeKernel) or context is not None or bands is not None:
                bound.enter_context(self.shard(self.transformer, shards, kernel, context, bands))
            if mesh.size > 1:
                self._rows = RowShards(mesh.gang, self.vae.decoder, whole=self.whole_frames)
                bound.callback(self._rows.release)
            self._bound, self.context, self.bands = bound.pop_all(), context, bands

    def unbind(self) -> None:
        """Work alone again: the transformer and the VAE's decoder are what they were before `bind`, and hold no reference to the mesh."""
        if self._bound is not None:
            self._bound.close()
        self._bound = self._rows = self.context = self.bands = None

    @staticmethod
    @abstractmethod
    def shard(transformer: Any, shards: TokenShards, kernel: Kernel, context: ContextStore | None = None, bands: Bands | None = None) -> ExitStack:
        """Put the shard points of sequence parallelism on a transformer of this family; closing what is returned takes them off. context: what
        attention writes to and reads from, for families that can (CLEAN_CONTEXT). bands: what it attends to, for families that can (BANDED).
        """

    def scheduler(self, take: Take) -> Any:
        """A fresh diffusers scheduler with the take's timesteps set."""
        return self.scheduler_of(self.card, take, self.device)

    @classmethod
    def scheduler_of(cls, card: ModelCard, take: Take, device: torch.device | None = None) -> Any:
        """The same for a model that is not loaded. device: where its timesteps lie, the CPU if left out."""
        scheduler = make_scheduler(card, take)
        cls._set_timesteps(scheduler, take.num_inference_steps, device)
        if take.schedule is not None:
            check_scheduler(scheduler)
            check_settings(scheduler, take.schedule, f"Take '{take.name}'")
            set_sigmas(scheduler, take.schedule.sigmas)
        scheduler.set_begin_index(0)
        return scheduler

    @staticmethod
    def _set_timesteps(scheduler: Any, num_inference_steps: int, device: torch.device | None) -> None:
        scheduler.set_timesteps(num_inference_steps, device=device)


def read_part(model_class: Any, folder: Path, **options: Any) -> Any:
    """One part of a checkpoint, loaded by its class. Raises ValueError, naming the weights, where the files lack some (diffusers and
    transformers would go on with random ones), and where files of diffusers' models have some that the class does not use.
    """
    model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
    keys = {"lacks": found["missing_keys"], "has left over": found["unexpected_keys"] if isinstance(model, diffusers.ModelMixin) else ()}
    for what, names in keys.items():
        if names:
            named = f"{min(names)}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
            raise ValueError(f"{model_class.__name__} in '{folder}' {what} weights ({named}); download the part again, or save it whole.")
    return model


def attend_together(
    transformer: Any,
    modules: Iterable[tuple[str, nn.Module]],
    shards: TokenShards,
    kernel: Kernel,
    context: ContextStore | None = None,
    bands: Bands | None = None,
) -> ExitStack:
    """Give attention modules, by name, sequence-parallel attention; closing what is returned gives them their processors back. Raises
    ValueError, with all processors in place, if the degree does not divide the heads.
    """
    heads, degree = transformer.config.num_attention_heads, shards.mesh.ulysses.size
    if heads % degree:
        raise ValueError(f"ulysses_degree={degree} does not divide the model's {heads} heads.")
    return replace_attention(
        (module, SequenceAttention(shards, kernel, name, context) if bands is None else BandedAttention(bands, kernel, name))
        for name, module in modules
    )


def replace_attention(modules: Iterable[tuple[nn.Module, Attention]]) -> ExitStack:
    """Give attention modules another attention function; closing what is returned gives them their processors back."""
    with ExitStack() as replaced:
        for module, attend in modules:
            attention: Any = module
            replaced.callback(attention.set_processor, attention.processor)
            attention.set_processor(with_attention(attention.processor, torch.compiler.disable(attend)))
        return replaced.pop_all()
