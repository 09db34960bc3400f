"""Choosing among candidates by what they do to rendered takes: successive halving, then small changes while they help. Knows no candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, log10
from statistics import fmean
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
    """What was rendered of whom. takes: in the order in which they were rendered. errors: of each candidate, on the first of these takes, as many
    as it was rendered on.
    """

    candidates: Sequence[Candidate]
    takes: Sequence[int]
    best: int = 0
    errors: dict[int, list[float]] = field(default_factory=dict)
    renders: int = 0

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.best]

    def mean(self, number: int) -> float:
        return fmean(self.errors[number])

    def __str__(self) -> str:
        return f"{summary(self.errors[self.best])}, the best of {len(self.errors)} plans"


def summary(errors: Sequence[float]) -> str:
    return f"{decibels(fmean(errors)):.1f} dB of the latents on the mean of {len(errors)} take(s), {decibels(max(errors)):.1f} on the worst"


def rounds(count: int, num_takes: int) -> list[int]:
    """How many of `count` candidates are rendered on each take: half as many from take to take, and two at last."""
    sizes = [count]
    for _ in range(num_takes - 1):
        sizes.append(min(sizes[-1], max(_LEFT, ceil(sizes[-1] / 2))))
    return sizes


def choose(candidates: Sequence[Candidate], error: Callable[[Candidate, int], float], num_takes: int, renders: int) -> Choice[Candidate]:
    """The candidate with the least mean error, among those whose worst take is not much worse than the best one's worst.

    The first candidate is rendered on all takes, and says how hard they are; the hardest ones, which tell candidates apart best, come first. The
    mean is the arithmetic one, so that they count most: what does well on a hard take does so on others, and not the other way round.

    candidates: the likely ones first; as many of them are tried as `renders` renderings of one take allow. error: of a candidate on a take.
    """
    count = max(number for number in range(1, len(candidates) + 1) if number == 1 or num_takes - 1 + sum(rounds(number, num_takes)) <= renders)
    known = {(0, take): error(candidates[0], take) for take in range(num_takes)}
    hardest = sorted(range(num_takes), key=lambda take: -known[0, take])
    choice = Choice(candidates, hardest, errors={number: [] for number in range(count)})
    alive = list(range(count))
    for take, size in zip(hardest, rounds(count, num_takes), strict=True):
        alive = sorted(alive, key=lambda number: choice.mean(number) if choice.errors[number] else 0.0)[:size]
        for number in alive:
            if (number, take) not in known:
                known[number, take] = error(candidates[number], take)
            choice.errors[number].append(known[number, take])
    choice.renders = len(known)
    allowed = _WORST * min(max(choice.errors[number]) for number in alive)
    choice.best = min((number for number in alive if max(choice.errors[number]) <= allowed), key=choice.mean)
    return choice


def improve(
    choice: Choice[Candidate],
    changes: Callable[[Candidate], Iterable[Candidate]],
    error: Callable[[Candidate, int], float],
    renders: int,
) -> tuple[Candidate, list[float], int]:
    """Go from the chosen candidate to a changed one as long as that makes the mean error smaller; returns the last, its errors, in the order of
    `choice.takes`, and the renderings left.

    changes: of a candidate, the likely ones first. A change is given up at the first take that leaves it behind.
    """
    best, errors, tried = choice.chosen, choice.errors[choice.best], {choice.chosen}
    while True:
        for change in changes(best):
            if change in tried:
                continue
            tried.add(change)
            found: list[float] = []
            while len(found) < len(errors) and renders > 0:
                found.append(error(change, choice.takes[len(found)]))
                renders -= 1
                if fmean(found) >= fmean(errors[: len(found)]):
                    break
            if len(found) == len(errors) and fmean(found) < fmean(errors) and max(found) <= _WORST * max(errors):
                best, errors = change, found
                break
            if renders <= 0:
                return best, errors, renders
        else:
            return best, errors, renders
