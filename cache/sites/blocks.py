"""Keep what each block, or each run of blocks, adds (Foresight, arXiv 2506.00329; AdaCache, arXiv 2411.02397; Delta-DiT, arXiv 2406.01125)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..model.block_calls import StackInput, num_blocks
from .probe import Probe, check_probe
from .site import Begin, ModelShape, Site, SiteRun
from .stack import KINDS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..model.cached_stack import Block, BlockRunner


@dataclass(frozen=True)
class BlocksConfig:
    """num_runs: into how many runs of about equal length the blocks are cut, each kept and decided as one; 0: each block is its own.

    probe: of PROBES in probe.py, at the first block. keep: the `residual` that a run adds, or the `value` that it returns (BWCache).
    """

    num_runs: int = 0
    probe: str = "hidden_states"
    keep: str = "residual"

    def __post_init__(self) -> None:
        if self.num_runs < 0:
            raise ValueError(f"num_runs is {self.num_runs}; it must be at least 1, or 0 for a run a block.")
        check_probe(self.probe)
        if self.keep not in KINDS:
            raise ValueError(f"keep is '{self.keep}'; it must be one of {', '.join(KINDS)}.")


class Blocks(Site):
    label = "blocks"
    covers = frozenset({"blocks"})

    def __init__(self, config: BlocksConfig) -> None:
        self.config = config
        self.keeps_units_apart = config.num_runs != 1
        self._probe = Probe(config.probe)
        self.watches_tokens = self.measures_tokens = not self._probe.replicated

    def runs(self, count: int) -> list[range]:
        """The runs that so many blocks are cut into."""
        runs = self.config.num_runs or count
        cuts = [count * index // runs for index in range(runs + 1)]
        return [range(*pair) for pair in pairwise(cuts)]

    def check(self, shape: ModelShape) -> None:
        if self.config.num_runs > shape.num_blocks:
            raise ValueError(f"num_runs is {self.config.num_runs}, more than the model's {shape.num_blocks} blocks; lower it.")

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        from ..model.cached_stack import intercept

        runs = self.runs(num_blocks(transformer))

        def start(given: StackInput) -> BlockRunner:
            call = begin(runs, given.num_text)
            probe = self._probe.read(given, given.hidden_states, call)
            return _BlocksRunner(runs, call.decide(probe).reused, call, adds=self.config.keep == "residual")

        release, unlisten = intercept(transformer, start), self._probe.attach(transformer)

        def detach() -> None:
            unlisten()
            release()

        return detach

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        for _ in self.runs(shape.num_blocks):
            yield (shape.tokens + shape.text_tokens) * shape.dim * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return (self._probe.num_values(shape),) * 2


class _BlocksRunner:
    """Runs a model call's blocks, but for the runs of them that are reused."""

    def __init__(self, runs: list[range], reused: frozenset[int], call: SiteRun, *, adds: bool) -> None:
        self._units = {index: unit for unit, run in enumerate(runs) for index in run}
        self._runs, self._reused, self._call, self._adds = runs, reused, call, adds
        self._before: Tensor | None = None

    def __call__(self, index: int, hidden_states: Tensor, block: Block) -> Tensor:
        unit = self._units[index]
        run = self._runs[unit]
        if index == run.start:
            self._before = hidden_states
        assert self._before is not None, "a model began a run of blocks in its middle"
        if unit not in self._reused:
            out = block(hidden_states)
            if index == run.stop - 1:
                self._call.keep(out - self._before if self._adds else out, unit)
            return out
        if index < run.stop - 1:
            return hidden_states
        recalled = self._call.recall(unit)
        return self._before + recalled if self._adds else recalled
