"""Which steps to compute so that linear forecasts of the skipped ones harm the film least: dynamic programming over measured takes.

The idea of LeMiCa (arXiv 2511.00090) and MeanCache (arXiv 2601.19961) with our predictor inside, re-derived. Let p < i < j be computed steps
with no other computed between them. The steps that are skipped between i and j put the error
D(p, i, j) = sum_{s=i+1}^{j-1} (v_i + a (v_i - v_p) (s - i) / (i - p) - v_s) R_s
into the film: v are the outputs of an uncached take, a is the share of the slope that the forecast believes in, and R_s is how much the
take's end changes with the output of step s (of Euler's sampler, sigma_{s+1} - sigma_s). The end of the take closes the last gap as a
computed step would, so that the last step need not be computed.

Once step j is computed the predictor corrects part of D. How much of the bend through three computed steps that correction believes in is fitted
for each gap, so that the least of D remains. D is linear in the outputs: their Gram matrix is enough to work out its mean square.

What a gap costs is no formula's to say: what an error does to the film depends on when it is made (later steps let early errors grow and
reduce late ones, by factors that are measured, but by less where corrections take hold), and on how much of it is corrected. So there are
several `Weighing`s, each of which has a cheapest plan, and whoever plans renders them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np

from ..predictors.predictor import damped_weights, difference_weights, lagrange_weights
from .path import Floats, Past, cheapest_path

MAX_GAP = 12
DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MAX_BENDING = 2.0
_POWERS = (0.5, 1.0, 0.25, 0.0)
_UNCORRECTED = 1 / 16  # of a gap's error, what counts where it is corrected: the model sees all of it once, at the step that ends the gap
_SPREADS = (2.0, 1.5, 2.5, 1.75, 2.25)
_LAST = 0.93  # of a take's steps, where the last computed one of a spread is
_EVEN_GAPS = 2  # times the mean gap: the shorter of the two limits that are tried


@dataclass(frozen=True)
class Weighing:
    """What a gap costs. growth_power: of the growth of errors, which the gap's squared error is multiplied with. corrected: whether what remains of
    the error after the correction is counted, or all of it. max_gap: the longest way from one computed step to the next, or to the take's end.
    """

    growth_power: float = 1.0
    corrected: bool = False
    max_gap: int = MAX_GAP

    def __str__(self) -> str:
        errors = "errors after their correction" if self.corrected else "errors before their correction"
        return f"{errors}, times their growth to the power {self.growth_power:g}, with gaps of up to {self.max_gap} steps"


def weighings(num_steps: int, num_computed: int) -> Iterator[Weighing]:
    """Those that are worth trying for so many steps, the likely ones first."""
    even = max(2, ceil(_EVEN_GAPS * num_steps / num_computed))
    for max_gap, power, corrected in product(sorted({MAX_GAP, min(MAX_GAP, even)}, reverse=True), _POWERS, (False, True)):
        yield Weighing(power, corrected, max_gap)


def spreads(num_steps: int, num_computed: int) -> Iterator[tuple[Past, str]]:
    """Steps with gaps that grow evenly, whatever the takes are, the likely ones first, and why each is one: on takes unlike the calibrated ones
    they are seldom far from the best.
    """
    for power in _SPREADS:
        places = np.linspace(0, 1, num_computed) ** power * (_LAST * num_steps)
        steps = [0]
        for number, place in enumerate(places[1:], start=1):
            steps.append(min(max(round(float(place)), steps[-1] + 1), num_steps - num_computed + number))
        yield tuple(steps), f"gaps that grow evenly, with places to the power {power:g}"


class Gaps:
    """The mean squared errors of gaps, and the numbers of the predictor that make them least."""

    def __init__(self, gram: Floats, responses: Floats) -> None:
        """gram: [steps, steps], mean products of the outputs of two steps, per latent value. responses: [steps], R."""
        self._gram, self._responses = gram, responses
        self._forecasts: dict[tuple[Past, int], tuple[float, float]] = {}
        self._corrections: dict[tuple[Past, int], tuple[float, float]] = {}

    @property
    def num_steps(self) -> int:
        return len(self._gram)

    def forecast(self, past: Past, there: int) -> tuple[float, float]:
        """Mean square of D, and the damping that makes it least. past: one or two computed steps; of one there is no slope."""
        edge = (past, there)
        if edge not in self._forecasts:
            self._forecasts[edge] = min(self._error(past, there, damping) for damping in (DAMPINGS if len(past) > 1 else (0.0,)))
        return self._forecasts[edge]

    def _error(self, past: Past, there: int, damping: float) -> tuple[float, float]:
        weights = np.zeros(self.num_steps)
        for step in range(past[-1] + 1, there):
            weights[list(past)] += self._responses[step] * np.array(damped_weights(past, step, damping))
            weights[step] -= self._responses[step]
        return self._square(weights), damping

    def correction(self, past: Past, there: int) -> tuple[float, float]:
        """Mean square of what remains of D, and the share of the bend that makes it least; of one computed step before the gap there is no bend."""
        edge = (past, there)
        if edge not in self._corrections:
            self._corrections[edge] = self._remainder(past, there)
        return self._corrections[edge]

    def _remainder(self, past: Past, there: int) -> tuple[float, float]:
        here, straight, bent = past[-1], np.zeros(self.num_steps), np.zeros(self.num_steps)
        for step in range(here + 1, there):
            straight[[here, there]] += self._responses[step] * np.array(lagrange_weights((here, there), step))
            straight[step] -= self._responses[step]
            if len(past) > 1:
                bent[[*past, there]] += self._responses[step] * (step - here) * (step - there) * np.array(difference_weights((*past, there), 2))
        size = self._square(bent)
        bending = float(np.clip(-(bent @ self._gram @ straight) / size, 0.0, _MAX_BENDING)) if size > 0 else 0.0
        return self._square(straight + bending * bent), bending

    def _square(self, weights: Floats) -> float:
        return max(0.0, float(weights @ self._gram @ weights))


def plan_steps(gaps: Gaps, growth: Floats, num_computed: int, weighing: Weighing) -> Past:
    """The steps to compute, the take's first among them. growth: [steps], of an error's mean square. Raises ValueError if so few steps cannot be
    spread over the take.
    """
    grown = growth**weighing.growth_power

    def extend(cost: float, past: Past, there: int) -> float:
        error = gaps.forecast(past, there)[0]
        if weighing.corrected and there < gaps.num_steps:  # the take's end is no step that could make up for the last gap
            error = gaps.correction(past, there)[0] + _UNCORRECTED * error
        return cost + float(grown[there - 1]) * error

    return cheapest_path(gaps.num_steps, num_computed, max_gap=weighing.max_gap, memory=2, nothing=0.0, extend=extend, free_end=True)[0]


@dataclass(frozen=True)
class PlannedSteps:
    """computed: these steps, ascending, the take's first among them. damping: for each step of the take, the share of the slope to believe in
    during the gap that starts there. bending: the share of the bend to believe in when that gap is corrected. amending: the share of that
    correction to make.
    """

    computed: Past
    damping: tuple[float, ...]
    bending: tuple[float, ...]
    amending: tuple[float, ...]


def fit_steps(gaps: Gaps, computed: Past, amended: Callable[[int, int], float]) -> PlannedSteps:
    """The predictor's best numbers for these computed steps. amended: the share of a correction to make, for the gap between two computed steps."""
    damping, bending, amending = [0.0] * gaps.num_steps, [0.0] * gaps.num_steps, [1.0] * gaps.num_steps
    for past, there in _pairs(computed, gaps.num_steps):
        damping[past[-1]] = gaps.forecast(past, there)[1]
        if there < gaps.num_steps:
            bending[past[-1]] = gaps.correction(past, there)[1]
            amending[past[-1]] = amended(past[-1], there) if there > past[-1] + 1 else 1.0
    return PlannedSteps(computed, tuple(damping), tuple(bending), tuple(amending))


def forecast_errors(grams: Floats, plan: PlannedSteps) -> list[float]:
    """For each step, the relative error (root mean square) of the forecast that a computed one finds; 0 for others and the first.

    grams: [branches, steps, steps], mean products of each branch's outputs; the branches' errors are averaged.
    """
    errors = [0.0] * grams.shape[1]
    for past, there in _pairs(plan.computed, len(errors)):
        if there < len(errors):
            weights = np.zeros(len(errors))
            weights[list(past)] = damped_weights(past, there, plan.damping[past[-1]])
            weights[there] -= 1.0
            errors[there] = float(np.mean([np.sqrt(max(0.0, weights @ gram @ weights) / gram[there, there]) for gram in grams]))
    return errors


def _pairs(computed: Past, num_steps: int) -> Iterator[tuple[Past, int]]:
    """Each gap's last computed steps, two where there are two, and the step that ends it, the take's end among these."""
    for number, there in enumerate((*computed[1:], num_steps), start=1):
        yield computed[max(0, number - 2) : number], there


def moved_steps(computed: Past, num_steps: int, reach: Sequence[int] = (1, -1, 2, -2)) -> Iterator[Past]:
    """The same steps but for one, which is a little later or earlier; the take's first stays."""
    for by in reach:
        for number in range(len(computed) - 1, 0, -1):
            step = computed[number] + by
            after = computed[number + 1] if number + 1 < len(computed) else num_steps
            if computed[number - 1] < step < after:
                yield (*computed[:number], step, *computed[number + 1 :])
