"""Keep what each block, or each run of blocks, adds (Foresight, arXiv 2506.00329; AdaCache, arXiv 2411.02397; Delta-DiT, arXiv 2406.01125)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from ..stack import Block, Entry, block_lists, take_over
from .probe import Probe, check_probe
from .site import Begin, ModelShape, Site, SiteRun
from .stack import KINDS


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

    def __init__(self, config: BlocksConfig) -> None:
        self.config = config
        self._probe = Probe(config.probe)
        self.watches_tokens = not self._probe.replicated

    def runs(self, num_blocks: int) -> list[range]:
        count = self.config.num_runs or num_blocks
        cuts = [num_blocks * index // count for index in range(count + 1)]
        return [range(*pair) for pair in pairwise(cuts)]

    def check(self, shape: ModelShape) -> None:
        if self.config.num_runs > shape.num_blocks:
            raise ValueError(f"num_runs is {self.config.num_runs}, more than the model's {shape.num_blocks} blocks; lower it.")

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        num_blocks = sum(map(len, block_lists(transformer).values()))
        runs = self.runs(num_blocks)

        def run(blocks: list[Block], entry: Entry) -> Tensor:
            return self._run(blocks, runs, entry, begin(runs, entry.num_text))

        give_back, unlisten = take_over(transformer, run), self._probe.attach(transformer)

        def detach() -> None:
            unlisten()
            give_back()

        return detach

    def _run(self, blocks: list[Block], runs: list[range], entry: Entry, call: SiteRun) -> Tensor:
        hidden_states = entry.hidden_states
        probe = self._probe.read(entry, hidden_states, call.moment.timestep)
        reused = call.decide(probe).reused
        adds = self.config.keep == "residual"
        for unit, run in enumerate(runs):
            if unit in reused:
                recalled = call.recall(unit)
                hidden_states = hidden_states + recalled if adds else recalled
                continue
            before = hidden_states
            for index in run:
                hidden_states = blocks[index](hidden_states)
            call.keep(hidden_states - before if adds else hidden_states, unit)
        return hidden_states

    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        for _ in self.runs(shape.num_blocks):
            yield (shape.tokens + shape.text_tokens) * shape.dim * shape.batch

    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        return (self._probe.num_values(shape),) * 2
