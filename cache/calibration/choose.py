"""Choosing among candidates by what they do to rendered takes: successive halving, then small changes while they help. Knows no candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, inf, log, log10
from typing import Generic, TypeVar

from torch import Tensor

Candidate = TypeVar("Candidate")
_WORST = 1.5  # how many times as large an error in its worst take the chosen one may have as the candidate that does best there
_LEFT = 2  # candidates that are rendered to the last take
_LEAST = 1e-9  # an error that is none


def relative_error(latents: Tensor, film: Tensor) -> float:
    """Root mean square of a take's difference from another one, by the latter's size; inf where it is not finite."""
    error = float((latents - film).double().square().mean().sqrt() / film.double().square().mean().sqrt())
    return max(error, _LEAST) if error < inf else inf


def decibels(error: float) -> float:
    return -20 * log10(error) if error < inf else -inf


@dataclass
class Choice(Generic[Candidate]):
    """What was rendered of whom. errors: of each candidate, on the first takes, as many as it was rendered on."""

    candidates: Sequence[Candidate]
    best: int = 0
    errors: dict[int, list[float]] = field(default_factory=dict)
    renders: int = 0

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.best]

    def mean(self, number: int) -> float:
        return _mean(self.errors[number])

    def __str__(self) -> str:
        return f"{summary(self.errors[self.best])}, the best of {len(self.errors)} plans"


def summary(errors: Sequence[float]) -> str:
    return f"{decibels(_mean(errors)):.1f} dB of the latents on the mean of {len(errors)} take(s), {decibels(max(errors)):.1f} on the worst"


def _mean(errors: Sequence[float]) -> float:
    """Geometric: the mean of decibels."""
    return exp(sum(map(log, errors)) / len(errors)) if max(errors) < inf else inf


def rounds(count: int, num_takes: int) -> list[int]:
    """How many of `count` candidates are rendered on each take: half as many from take to take, and two at last."""
    sizes = [count]
    for _ in range(num_takes - 1):
        sizes.append(min(sizes[-1], max(_LEFT, ceil(sizes[-1] / 2))))
    return sizes


def choose(candidates: Sequence[Candidate], error: Callable[[Candidate, int], float], num_takes: int, renders: int) -> Choice[Candidate]:
    """The candidate with the least mean error, among those whose worst take is not much worse than the best one's worst.

    candidates: the likely ones first; as many of them are tried as `renders` renderings of one take allow. error: of a candidate on a take.
    """
    count = max(number for number in range(1, len(candidates) + 1) if number == 1 or sum(rounds(number, num_takes)) <= renders)
    choice = Choice(candidates, errors={number: [] for number in range(count)})
    alive = list(range(count))
    for take, size in enumerate(rounds(count, num_takes)):
        alive = sorted(alive, key=choice.mean if take else int)[:size]
        for number in alive:
            choice.errors[number].append(error(candidates[number], take))
            choice.renders += 1
    allowed = _WORST * min(max(choice.errors[number]) for number in alive)
    choice.best = min((number for number in alive if max(choice.errors[number]) <= allowed), key=choice.mean)
    return choice


def improve(
    start: Candidate,
    errors: list[float],
    changes: Callable[[Candidate], Iterable[Candidate]],
    error: Callable[[Candidate, int], float],
    renders: int,
) -> tuple[Candidate, list[float], int]:
    """Go from a candidate to a changed one as long as that makes the mean error smaller; returns the last, its errors and the renderings left.

    errors: of the start, one a take. changes: of a candidate, the likely ones first. A change is given up at the first take that leaves it behind.
    """
    best, tried = start, {start}
    while True:
        for change in changes(best):
            if change in tried:
                continue
            tried.add(change)
            found: list[float] = []
            while len(found) < len(errors) and renders > 0:
                found.append(error(change, len(found)))
                renders -= 1
                if _mean(found) >= _mean(errors[: len(found)]):
                    break
            if len(found) == len(errors) and _mean(found) < _mean(errors) and max(found) <= _WORST * max(errors):
                best, errors = change, found
                break
            if renders <= 0:
                return best, errors, renders
        else:
            return best, errors, renders
