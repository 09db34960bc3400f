"""Keep the model's output: latent-sized, so that keeping is almost free, and reusing skips the model whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..decision import Decision
from .site import Begin, ModelShape, Site
from .stack import KINDS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class OutputConfig:
    """keep: the output's `value`, or its `residual` over the latents that went in (EasyCache, ERTACache)."""

    keep: str = "value"

    def __post_init__(self) -> None:
        if self.keep not in KINDS:
            raise ValueError(f"keep is '{self.keep}'; it must be one of {', '.join(KINDS)}.")


class Output(Site):
    """The probe is the model's input, the latents. Where tokens are sharded inside the model, both are whole on every shard."""

    label = "output"
    covers = frozenset({"output"})
    sharded = False
    watches_tokens = False
    measures_tokens = False

    def __init__(self, config: OutputConfig) -> None:
        self.config = config
        self.keeps_velocity = config.keep == "value"

    def check(self, shape: ModelShape) -> None:
        return None

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        from ..model.wrap import wrap

        adds = self.config.keep == "residual"

        def forward(original: Callable[..., Any], hidden_states: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            call = begin([range(0)], None)
            if call.decide(hidden_states).decision is Decision.REUSE:
                recalled = call.recall()
                sample = hidden_states[:, : recalled.shape[1]] + recalled if adds else recalled
            else:
                computed = original(hidden_states, *args, return_dict=False, **kwargs)[0]
                kept = computed - hidden_states[:, : computed.shape[1]] if adds else computed
                amended = call.keep(kept, learnt=computed)  # as a rule `kept` itself
                sample = computed + (amended - kept)
            return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

        return wrap(transformer, "forward", forward)

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        yield shape.latents * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return shape.latents * shape.batch, shape.latents * shape.batch
