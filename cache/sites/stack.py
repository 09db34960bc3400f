"""Keep the whole stack but for its first and last blocks (FBCache of ParaAttention; DBCache of cache-dit; DeepCache, arXiv 2312.00858)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..decision import Decision
from ..stack import Block, Entry, block_lists, take_over
from .probe import Probe, check_probe
from .site import Begin, ModelShape, Site, SiteRun

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
        check_probe(self.probe)
        if self.keep not in KINDS:
            raise ValueError(f"keep is '{self.keep}'; it must be one of {', '.join(KINDS)}.")
        if self.verify and not self.last_blocks:
            raise ValueError("verify is true and last_blocks 0; compute at least the last block at every step.")


class Stack(Site):
    label = "stack"

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self._probe, self._residual = Probe(config.probe), Probe("residual")
        self.watches_tokens = not self._probe.replicated

    def computed_blocks(self, num_blocks: int) -> tuple[int, int]:
        """How many first and last blocks are computed at every step in a model of so many."""

        def count(blocks: float) -> int:
            return int(blocks) if blocks >= 1 else max(1, round(blocks * num_blocks)) if blocks else 0

        return count(self.config.first_blocks), count(self.config.last_blocks)

    def check(self, shape: ModelShape) -> None:
        self._between(shape.num_blocks)

    def _between(self, num_blocks: int) -> range:
        """The blocks that are kept. Raises ValueError if there are none."""
        first, last = self.computed_blocks(num_blocks)
        if first + last >= num_blocks:
            raise ValueError(
                f"first_blocks={self.config.first_blocks:g} and last_blocks={self.config.last_blocks:g} leave nothing to reuse in a model "
                f"of {num_blocks} blocks; compute fewer than {num_blocks} at every step."
            )
        return range(first, num_blocks - last)

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        """One stack over all block lists, in the first list; the others iterate as empty."""
        num_blocks = sum(map(len, block_lists(transformer).values()))
        between = self._between(num_blocks)

        def run(blocks: list[Block], entry: Entry) -> Tensor:
            return self._run(blocks, between, entry, begin([between], entry.num_text))

        give_back, unlisten = take_over(transformer, run), self._probe.attach(transformer)

        def detach() -> None:
            unlisten()
            give_back()

        return detach

    def _run(self, blocks: list[Block], between: range, entry: Entry, call: SiteRun) -> Tensor:
        before = _through(blocks[: between.start], entry.hidden_states)
        residual = self._residual.read(entry, before, call.moment.timestep)
        probe = residual if self.config.probe == "residual" else self._probe.read(entry, before, call.moment.timestep)
        reused = call.decide(probe, residual).decision is Decision.REUSE
        adds = self.config.keep == "residual"
        if reused:
            recalled = call.recall()
            after = before + recalled if adds else recalled
        else:
            after = _through(blocks[between.start : between.stop], before)
            call.keep(after - before if adds else after)
        end = _through(blocks[between.stop :], after)
        if self.config.verify:
            real = end - after
            if reused:
                call.check(real, call.recall(name="last"))
            else:
                call.keep(real, name="last")
        return end

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        for _ in range(2 if self.config.verify else 1):
            yield (shape.tokens + shape.text_tokens) * shape.dim * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return self._probe.num_values(shape), self._residual.num_values(shape)


def _through(blocks: list[Block], hidden_states: Tensor) -> Tensor:
    for block in blocks:
        hidden_states = block(hidden_states)
    return hidden_states
