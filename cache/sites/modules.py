"""Keep what attention and feed-forward modules return, block by block (FORA, arXiv 2407.01425; PAB, arXiv 2408.12588).

Gates and modulation are computed afresh on what is kept. Where tokens are sharded, a self-attention that is not run spares its exchange
of tokens as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from ...later import torch
from ..decision import Decision
from ..model.block_calls import StackInput, block_calls, block_lists, read_input
from ..recipe.config import suggestion
from .probe import Probe, check_probe
from .site import Begin, ModelShape, Site, SiteRun

if TYPE_CHECKING:
    from torch import nn

# The attributes that diffusers gives these modules in its blocks. What attends to the text jointly counts as self-attention.
_ATTRIBUTES = {"self_attention": ("attn1", "attn"), "cross_attention": ("attn2",), "feed_forward": ("ffn", "ff", "ff_context")}


@dataclass(frozen=True)
class ModulesConfig:
    """modules: which of self_attention, cross_attention and feed_forward; empty: all that the model has. probe: of PROBES in probe.py,
    at the first block.

    HunyuanVideo's single blocks have a feed-forward that is one with the attention's output; of them attention alone is kept.
    """

    modules: list[str] = field(default_factory=list)
    probe: str = "hidden_states"

    def __post_init__(self) -> None:
        for name in self.modules:
            if name not in _ATTRIBUTES:
                raise ValueError(f"modules names '{name}'. {suggestion(name, list(_ATTRIBUTES))}")
        check_probe(self.probe)


class Modules(Site):
    """A unit is a block's chosen modules."""

    keeps_units_apart = True

    def __init__(self, config: ModulesConfig) -> None:
        self.config = config
        self.covers = frozenset(config.modules or _ATTRIBUTES)
        self.label = "+".join(config.modules) or "modules"
        self._probe = Probe(config.probe)
        self.watches_tokens = self.measures_tokens = not self._probe.replicated
        self._call: SiteRun | None = None
        self._reused: frozenset[int] = frozenset()

    def check(self, shape: ModelShape) -> None:
        self._check_kinds(set(_ATTRIBUTES) - ({"cross_attention"} if shape.num_joint else set()))

    def _check_kinds(self, there: set[str]) -> None:
        for kind in self.config.modules:
            if kind not in there:
                name = kind.replace("_", "-")
                raise ValueError(f"The model has no {name} apart; choose a recipe that does not keep it, or set site.modules to {sorted(there)}.")

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        from ..model.wrap import Listener

        calls, blocks = block_calls(transformer), list(chain(*block_lists(transformer).values()))
        self._check_kinds({kind for kind, names in _ATTRIBUTES.items() if any(hasattr(block, name) for block in blocks for name in names)})
        units = [range(index, index + 1) for index in range(len(blocks))]
        undo = [self._probe.attach(transformer)]

        def start(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = read_input(calls, block, args, kwargs)
            self._start(given, begin(units, given.num_text))

        for unit, block in enumerate(blocks):
            for name in chain(*(_ATTRIBUTES[kind] for kind in self.config.modules or _ATTRIBUTES)):
                if hasattr(block, name):
                    undo.append(self._wrap(unit, getattr(block, name), name))
        undo.append(blocks[0].register_forward_pre_hook(Listener(torch._dynamo.disable(start)), with_kwargs=True).remove)

        def detach() -> None:
            for step in undo:
                step()

        return detach

    def _start(self, given: StackInput, call: SiteRun) -> None:
        probe = self._probe.read(given, given.hidden_states, call)
        verdict = call.decide(probe)
        self._call = call
        self._reused = frozenset() if verdict.decision is Decision.COMPUTE else verdict.reused

    def _wrap(self, unit: int, module: nn.Module, name: str) -> Callable[[], None]:
        from ..model.wrap import wrap

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            call = self._call
            assert call is not None, "a module ran before its model's first block"
            text = kwargs["encoder_hidden_states"] if name == "attn" else None
            if unit in self._reused:
                recalled = call.recall(unit, name)
                return recalled if text is None else recalled.tensor_split([recalled.shape[1] - text.shape[1]], dim=1)
            output = original(*args, **kwargs)
            feature = output if text is None else torch.cat(output, dim=1)
            num_text = feature.shape[1] if name == "ff_context" else text.shape[1] if text is not None else 0
            call.keep(feature, unit, name, num_text=num_text)
            return output

        return wrap(module, "forward", torch._dynamo.disable(forward))

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        for block in range(shape.num_blocks):
            for kind in self.config.modules or _ATTRIBUTES:
                missing = {"cross_attention": shape.num_joint > 0, "feed_forward": 0 < shape.num_joint <= block}
                if not missing.get(kind, False):
                    yield (shape.tokens + shape.text_tokens) * shape.dim * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return (self._probe.num_values(shape),) * 2
