"""Derive the unconditional branch from the conditional one (FasterCache's CFG-Cache, arXiv 2410.19355).

At computed steps the difference d = uncond - cond is kept; at others uncond = cond + w_l L(d) + w_h (d - L(d)), L a low-pass over each
latent frame. Published on spectra; the transform is linear, so that the difference of latents serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...later import torch
from ..decision import Decision
from .site import Begin, ModelShape, Site, SiteRun

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class GuidanceConfig:
    """radius: of the low-pass, as a share of a latent frame's smaller side. growth: factor that a weight grows by with each reused step
    in a row. low_until: share of the take until which the low frequencies' weight grows; high_from: from which the high ones' does.
    """

    radius: float = 0.2
    growth: float = 1.1
    low_until: float = 0.8
    high_from: float = 0.6

    def __post_init__(self) -> None:
        for name in ("radius", "low_until", "high_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; it must lie between 0 and 1.")
        if self.growth <= 0:
            raise ValueError(f"growth is {self.growth:g}; it must be above 0.")


class Guidance(Site):
    """The branches must be called one after the other, cond first. The probe is the latents."""

    label = "guidance"
    covers = frozenset({"guidance"})
    needs_branches = "each"
    sharded = False
    watches_tokens = False
    measures_tokens = False

    def __init__(self, config: GuidanceConfig) -> None:
        self.config = config
        self._cond: dict[int, tuple[int, Tensor]] = {}  # by segment: the step, and what the conditional branch made there

    def check(self, shape: ModelShape) -> None:
        return None

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        from ..model.wrap import wrap

        def forward(original: Callable[..., Any], hidden_states: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            call = begin([range(0)], None)
            if call.branch == "both":
                raise ValueError("The recipe derives one branch from the other, but this loop calls the model on both at once; use another recipe.")
            step, cond = self._cond.pop(call.segment, (-1, hidden_states))
            if call.branch != "cond" and (call.branch != "uncond" or step != call.moment.step):
                raise ValueError(
                    f"The recipe derives branch uncond from branch cond, and this is '{call.branch}' without this step's cond before it; call both "
                    f"at each step, by these names and in this order, or use another recipe."
                )
            if call.branch == "uncond" and call.decide(hidden_states).decision is Decision.REUSE:
                sample = self._derived(cond, call)
            else:
                sample = original(hidden_states, *args, return_dict=False, **kwargs)[0]
                if call.branch == "cond":
                    self._cond[call.segment] = (call.moment.step, sample)
                else:
                    call.keep(sample - cond, learnt=sample)
            return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

        return wrap(transformer, "forward", forward)

    def _derived(self, cond: Tensor, call: SiteRun) -> Tensor:
        config, difference = self.config, call.recall()
        low = low_pass(difference, config.radius)
        progress, grown = call.moment.step / call.moment.num_inference_steps, config.growth**call.reused_run
        low_weight = grown if progress <= config.low_until else 1.0
        high_weight = grown if progress >= config.high_from else 1.0
        return cond + low_weight * low + high_weight * (difference - low)

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        yield shape.latents * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return shape.latents * shape.batch, shape.latents * shape.batch


def low_pass(latents: Tensor, radius: float) -> Tensor:
    """Frequencies within a disk, of `radius` times the smaller side, of each latent frame [..., height, width]."""
    height, width = latents.shape[-2:]
    vertical, horizontal = (torch.fft.fftfreq(size, 1 / size, device=latents.device) for size in (height, width))
    inside = vertical[:, None] ** 2 + horizontal[None, :] ** 2 <= (radius * min(height, width)) ** 2
    return torch.fft.ifft2(torch.fft.fft2(latents.float()) * inside).real.to(latents.dtype)
