"""Keep the whole stack but for its first and last blocks (FBCache of ParaAttention; DBCache of cache-dit; DeepCache, arXiv 2312.00858)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..decision import Decision
from ..model.block_calls import StackInput, num_blocks
from ..recipe.config import check_count
from .probe import Probe, check_probe
from .site import Begin, ModelShape, Site, SiteRun

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..model.cached_stack import Block, BlockRunner

KINDS = ("residual", "value")


@dataclass(frozen=True)
class StackConfig:
    """first_blocks, last_blocks: how many blocks are computed at every step (Fn and Bn); below 1 they are shares of the model's blocks.

    probe: of PROBES in probe.py. keep: the `residual` that the blocks between add, or the `value` that they return. verify: forecast
    the last blocks as well and show the trigger how far off that was; needs last_blocks.
    """

    first_blocks: float = 1
    last_blocks: float = 0
    probe: str = "residual"
    keep: str = "residual"
    verify: bool = False

    def __post_init__(self) -> None:
        if min(self.first_blocks, self.last_blocks) < 0:
            raise ValueError(f"first_blocks={self.first_blocks:g} and last_blocks={self.last_blocks:g} must not be negative.")
        check_count("first_blocks", self.first_blocks)
        check_count("last_blocks", self.last_blocks)
        check_probe(self.probe)
        if self.keep not in KINDS:
            raise ValueError(f"keep is '{self.keep}'; it must be one of {', '.join(KINDS)}.")
        if self.verify and not self.last_blocks:
            raise ValueError("verify is true and last_blocks 0; compute at least the last block at every step.")


class Stack(Site):
    label = "stack"
    covers = frozenset({"blocks"})

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.checks = config.verify
        self._probe, self._residual = Probe(config.probe), Probe("residual")
        self.watches_tokens = not self._probe.replicated

    def computed_blocks(self, count: int) -> tuple[int, int]:
        """How many first and last blocks are computed at every step in a model of so many."""

        def computed(blocks: float) -> int:
            return int(blocks) if blocks >= 1 else max(1, round(blocks * count)) if blocks else 0

        return computed(self.config.first_blocks), computed(self.config.last_blocks)

    def check(self, shape: ModelShape) -> None:
        self._between(shape.num_blocks)

    def _between(self, count: int) -> range:
        """The blocks that are kept, of so many. Raises ValueError if there are none."""
        first, last = self.computed_blocks(count)
        if first + last >= count:
            raise ValueError(
                f"first_blocks={self.config.first_blocks:g} and last_blocks={self.config.last_blocks:g} leave nothing to reuse in a model "
                f"of {count} blocks; compute fewer than {count} at every step."
            )
        return range(first, count - last)

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        """One stack over all block lists."""
        from ..model.cached_stack import intercept

        count = num_blocks(transformer)
        between = self._between(count)

        def start(given: StackInput) -> BlockRunner:
            return _StackRunner(self, between, count, given, begin([between], given.num_text))

        release, unlisten = intercept(transformer, start), self._probe.attach(transformer)

        def detach() -> None:
            unlisten()
            release()

        return detach

    def decides_reuse(self, given: StackInput, before: Tensor, call: SiteRun) -> bool:
        """Whether this call reuses the blocks that are kept. before: the hidden states that go into them."""
        residual = self._residual.read(given, before, call)
        probe = residual if self.config.probe == "residual" else self._probe.read(given, before, call)
        return call.decide(probe, residual).decision is Decision.REUSE

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        for _ in range(2 if self.config.verify else 1):
            yield (shape.tokens + shape.text_tokens) * shape.dim * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return self._probe.num_values(shape), self._residual.num_values(shape)


class _StackRunner:
    """Runs a model call's first and last blocks, and those between unless they are reused."""

    def __init__(self, site: Stack, between: range, count: int, given: StackInput, call: SiteRun) -> None:
        self._site, self._between, self._count, self._given, self._call = site, between, count, given, call
        self._reused = False
        self._before = self._after = given.hidden_states

    def __call__(self, index: int, hidden_states: Tensor, block: Block) -> Tensor:
        adds = self._site.config.keep == "residual"
        if index == self._between.start:
            self._before = hidden_states
            self._reused = self._site.decides_reuse(self._given, hidden_states, self._call)
        if index == self._between.stop:
            self._after = hidden_states
        if index in self._between and self._reused:
            if index < self._between.stop - 1:
                return hidden_states
            recalled = self._call.recall()
            return self._before + recalled if adds else recalled
        out = block(hidden_states)
        if index == self._between.stop - 1:
            self._call.keep(out - self._before if adds else out)
        if self._site.config.verify and index == self._count - 1:
            self._verify(out - self._after)
        return out

    def _verify(self, real: Tensor) -> None:
        """real: what the last blocks add."""
        if self._reused:
            self._call.check(real, self._call.recall(name="last"))
        else:
            self._call.keep(real, name="last")
