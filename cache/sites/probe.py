"""What a trigger may look at when a model call begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...later import torch
from ..model.block_calls import StackInput, has_timestep_a_token, modulated, without_text
from ..state.segments import cut_frames, join_frames
from .site import ModelShape, SiteRun

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBES = ("residual", "hidden_states", "modulated", "timestep", "latents", "evolution")
_REPLICATED = ("timestep", "latents", "evolution")


def check_probe(probe: str) -> None:
    if probe not in PROBES:
        raise ValueError(f"probe is '{probe}'; it must be one of {', '.join(PROBES)}.")


class Probe:
    """Reads one kind of probe.

    residual: of the first blocks (FBCache); hidden_states: after the first blocks (DiCache); modulated: the first block's modulated
    input (TeaCache); timestep: its embedding (TeaCache on Wan); latents: the model's input; evolution: the latents through a filter that
    passes what the model already knows of the film at this noise level (SeaCache, arXiv 2602.18993, eq. 5 to 7), segment by segment where a take
    has segments.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.replicated = kind in _REPLICATED
        self._latents: Tensor | None = None

    def attach(self, transformer: nn.Module) -> Callable[[], None]:
        """Listen to the model's input where the probe is made from it; returns a function that ends that."""
        if self.kind not in ("latents", "evolution"):
            return lambda: None

        from ..model.wrap import Listener

        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._latents = args[0] if args else kwargs["hidden_states"]

        return transformer.register_forward_pre_hook(Listener(listen), with_kwargs=True).remove

    def read(self, given: StackInput, after_first: Tensor, call: SiteRun) -> Tensor:
        """The probe of a call, without the text. after_first: the hidden states after the first blocks, [batch, tokens, dim]; where there are no
        first blocks, those of `given`, which then stand for the residual as well. Raises ValueError for the probe `timestep` of a call that has one a
        token: shards of the tokens would see different ones, and decide apart.
        """
        if self.kind in ("residual", "hidden_states"):
            after = without_text(after_first, given.num_text)
            is_plain = self.kind == "hidden_states" or after_first is given.hidden_states
            return after if is_plain else after - without_text(given.hidden_states, given.num_text)
        if self.kind == "modulated":
            return modulated(given)
        if self.kind == "timestep":
            if has_timestep_a_token(given):
                raise ValueError("This call has a timestep a token, which probe 'timestep' cannot tell as one; use probe modulated.")
            return given.temb.flatten(1)
        assert self._latents is not None, "the model was called without its input being seen"
        if self.kind == "latents":
            return self._latents
        return join_frames([evolved(part, call.moment.timestep / 1000) for part in cut_frames(self._latents, call.segments)])

    def num_values(self, shape: ModelShape) -> int:
        if self.kind in ("latents", "evolution"):
            return shape.latents * shape.batch
        if self.kind == "timestep":
            return 6 * shape.dim * shape.batch
        return shape.tokens * shape.dim * shape.batch


def evolved(latents: Tensor, sigma: float, power: float = 3.0) -> Tensor:
    """Latents [batch, channels, frames, height, width] through SeaCache's Wiener filter, its mean gain 1.

    Along each of frames, height and width a clean film of spectrum 1 / f^power, scaled by 1 - sigma, is looked for under noise of sigma.
    """
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    dims = (2, 3, 4)
    gain = torch.ones((), device=latents.device)
    for dim in dims:
        frequency = torch.fft.fftfreq(latents.shape[dim], device=latents.device).abs()
        clean = 1 / (frequency**power + 1e-16)
        along = (1 - sigma) * clean / ((1 - sigma) ** 2 * clean + sigma**2)
        gain = gain.unsqueeze(-1) * along
    spectrum = torch.fft.fftn(latents.float(), dim=dims)
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=dims).real.contiguous()
