"""Searching recipes and the settings of their triggers for the one that serves a goal best.

Knows trials, not films: whoever calls it says how a recipe is measured (proxy.py does, on a loaded model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...cache import Recipe
from ...cache.recipe.knobs import ladder

_TRIALS_BEFORE_DROPPING = 2


@dataclass(frozen=True)
class Trial:
    """A recipe as it was measured. psnr: dB against the uncached frames. speedup: of denoising. computed: share of the decisions."""

    recipe: Recipe
    psnr: float
    speedup: float
    computed: float

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB at {self.speedup:.2f} times the speed, {self.computed:.0%} computed"


@dataclass(frozen=True)
class Goal:
    """The fastest recipe of at least `psnr` dB, or the one of best PSNR that is at least `speedup` times as fast as no cache."""

    psnr: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if (self.psnr is None) == (self.speedup is None):
            raise ValueError("Tuning needs one goal: --psnr 30 for the fastest recipe of that quality, or --speedup 2 for the best one that fast.")
        if self.psnr is not None and not 0 < self.psnr < math.inf:
            raise ValueError(f"--psnr is {self.psnr:g}; it must be above 0 dB, 30 for example.")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise ValueError(f"--speedup is {self.speedup:g}; it must be above 1, 2 for example.")

    def __str__(self) -> str:
        return f"{self.psnr:g} dB" if self.psnr is not None else f"{self.speedup:g} times the speed"

    def held(self, trial: Trial) -> float:
        """The figure that the goal bounds."""
        return trial.speedup if self.psnr is None else trial.psnr

    def gained(self, trial: Trial) -> float:
        """The figure to make the most of."""
        return trial.psnr if self.psnr is None else trial.speedup

    def is_met(self, trial: Trial) -> bool:
        bound = self.speedup if self.psnr is None else self.psnr
        return bound is not None and self.held(trial) >= bound

    def is_reached(self, trial: Trial) -> bool:
        """Whether the goal is met by a cache that reuses something and saves time; one that does neither is no find, whatever its quality."""
        return self.is_met(trial) and trial.computed < 1 and trial.speedup > 1


class _Climb:
    """Bisection over one recipe's ladder, from the setting that it comes with."""

    def __init__(self, recipe: Recipe) -> None:
        self._rungs = ladder(recipe)
        self._index = self._rungs.index(recipe)
        self._low, self._high = -1, len(self._rungs)  # rungs between them are untried
        self._trials: list[Trial] = []

    @property
    def rung(self) -> Recipe:
        return self._rungs[self._index]

    def note(self, trial: Trial, goal: Goal) -> None:
        """Go faster while there is quality to spare, or while speed is missing."""
        self._trials.append(trial)
        if goal.is_met(trial) == (goal.psnr is not None):
            self._low = self._index
        else:
            self._high = self._index
        self._index = (self._low + self._high) // 2

    def is_over(self, goal: Goal, leader: Trial | None) -> bool:
        """Whether all is tried, or nothing here can beat the leader: a setting that meets the goal gains less than one that misses it."""
        if self._high - self._low <= 1:
            return True
        if leader is None or len(self._trials) < _TRIALS_BEFORE_DROPPING:
            return False
        missed = (goal.gained(trial) for trial in self._trials if not goal.is_met(trial))
        return min(missed, default=math.inf) <= goal.gained(leader)


def search(recipes: Sequence[Recipe], measure: Callable[[Recipe], Trial], goal: Goal, num_trials: int) -> Iterator[Trial]:
    """Measure each recipe at up to `num_trials` settings, nearing the goal by bisection; yields each trial as it is made.

    All recipes take turns, so that a leader is known early and what cannot overtake it is dropped.
    """
    climbs = [_Climb(recipe) for recipe in recipes]
    leader: Trial | None = None
    for _ in range(num_trials):
        for climb in climbs:
            if climb.is_over(goal, leader):
                continue
            trial = measure(climb.rung)
            climb.note(trial, goal)
            if goal.is_reached(trial) and (leader is None or goal.gained(trial) > goal.gained(leader)):
                leader = trial
            yield trial


def confirm(trials: Sequence[Trial], measure: Callable[[Recipe], Trial], goal: Goal) -> Trial | None:
    """The best trial that reaches the goal, by the smaller of two measured speed-ups, as one may have been luck; None if none does."""
    best: Trial | None = None
    for trial in sorted(filter(goal.is_reached, trials), key=goal.gained, reverse=True):
        if best is not None and goal.gained(trial) <= goal.gained(best):
            break  # measured again, neither this one nor the rest can gain more
        again = replace(trial, speedup=min(trial.speedup, measure(trial.recipe).speedup))
        if goal.is_reached(again) and (best is None or goal.gained(again) > goal.gained(best)):
            best = again
    return best
