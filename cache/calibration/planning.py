"""Plans for the recipe `planned`, and schedules, chosen by what they do: candidates are rendered on the calibration takes, and the best is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from math import inf
from typing import Any

from ..recipe.recipe import Recipe
from ..run.cached import Cached
from ..run.session import Session
from ..schedule.put import check_scheduler
from ..state.storage import Storage
from .amending import amended_share
from .choose import choose, improve, relative_error, summary
from .path import Past
from .plan import Gaps, PlannedSteps, fit_steps, forecast_errors, moved_steps, plan_steps, spreads, weighings
from .schedule import schedules
from .takes import Measured, Takes, calls_of_measuring, measure

Say = Callable[[str], None]
Numbers = dict[str, dict[str, Any]]  # new settings of trigger and predictor, by their names
_POOR = 0.5  # an error, by the latents' size, with which a film shows something else
TAKES_A_TAKE = 4  # how many takes' worth of model calls one calibration take may cost in all


class Planning:
    """Full takes, measured once, from which plans for one budget after another are chosen.

    form: the recipe without numbers. say: told how long it takes and what was chosen.
    """

    def __init__(self, takes: Takes, form: Recipe, say: Say) -> None:
        """Raises ValueError, with the mend, for samplers that are no linear maps."""
        self._takes, self._form, self._say = takes, form, say
        steps, count = takes.num_inference_steps, len(takes)
        worth = TAKES_A_TAKE * count
        say(f"rendering {count} full take(s) of {steps} steps, then plans for them: at most {worth} takes' worth of model calls")
        self._began = time.monotonic()
        self.measured: Measured = measure(takes, form, self._say_minutes)
        self._seconds = (time.monotonic() - self._began) / calls_of_measuring(count, steps)  # a step
        self._gaps = Gaps(self.measured.outputs, self.measured.responses)

    def _say_minutes(self) -> None:
        """Once the first take is rendered."""
        minutes = TAKES_A_TAKE * len(self._takes) * (time.monotonic() - self._began) / 60
        self._say(f"about {minutes:.1f} min in all, at most, for one budget of steps")

    def renders(self, num_computed: int) -> int:
        """How many renderings of one take are left to choose with."""
        steps, count = self._takes.num_inference_steps, len(self._takes)
        return max(1, (TAKES_A_TAKE * count * steps - calls_of_measuring(count, steps)) // num_computed)

    def announce(self, num_computed: int) -> int:
        """Say how long choosing takes at most; returns the renderings that there are."""
        renders, steps = self.renders(num_computed), self._takes.num_inference_steps
        minutes = renders * num_computed * self._seconds / 60
        self._say(f"{num_computed} of {steps} steps: up to {renders} renderings of a take, about {minutes:.1f} min")
        return renders

    def candidates(self, num_computed: int) -> dict[Past, str]:
        """Steps to compute, and why each choice of them is one: of every kind the likely ones first, the kinds in turn."""
        planned: dict[Past, str] = {}
        for weighing in weighings(self._takes.num_inference_steps, num_computed):
            try:
                steps = plan_steps(self._gaps, self.measured.growth, num_computed, weighing)
            except ValueError:  # so few steps cannot be spread with gaps that short
                continue
            planned.setdefault(steps, str(weighing))
        spread = dict(spreads(self._takes.num_inference_steps, num_computed))
        kinds = [planned, spread]
        if self.measured.takes_sigmas:
            kinds.append(schedules(self.measured, [*planned, *spread]))
        found: dict[Past, str] = {}
        for turn in zip_longest(*(kind.items() for kind in kinds)):
            for steps, why in filter(None, turn):
                found.setdefault(steps, why)
        return found

    def plan(self, num_computed: int) -> Numbers:
        """The numbers of the best plan that computes so many steps."""
        return self.numbers(self._fitted(self._best(num_computed, self._error_of_plan)))

    def schedule(self, num_steps: int) -> list[float]:
        """The sigmas of the best schedule of so many steps. Raises ValueError, with the mend, for samplers that take no schedule."""
        check_scheduler(self.measured.scheduler)
        sigmas: list[float] = self.measured.sigmas[list(self._best(num_steps, self._error_of_schedule))].tolist()
        return sigmas

    def _best(self, num_computed: int, error: Callable[[Past, int], float]) -> Past:
        renders, candidates = self.announce(num_computed), self.candidates(num_computed)
        choice = choose(list(candidates), error, len(self._takes), renders)
        self._say(f"chosen by {candidates[choice.chosen]}: {choice}")
        best, errors, left = improve(choice, self._moved, error, renders - choice.renders)
        if best != choice.chosen:
            self._say(f"moved: {summary(errors)}, with {renders - choice.renders - left} more renderings")
        self._say(f"computed: {' '.join(map(str, best))}")
        if max(errors) > _POOR:
            self._say(f"{num_computed} steps are too few for these takes: some film is another one; compute more")
        return best

    def _moved(self, computed: Past) -> list[Past]:
        return list(moved_steps(computed, self._takes.num_inference_steps))

    def _fitted(self, computed: Past) -> PlannedSteps:
        return fit_steps(self._gaps, computed, partial(amended_share, self.measured.sampler, self.measured.sigmas.tolist()))

    def numbers(self, plan: PlannedSteps) -> Numbers:
        errors = forecast_errors(self.measured.branches, plan)
        return {
            "trigger": {"computed": list(plan.computed), "expected_errors": errors},
            "predictor": {
                "expected_errors": errors,
                "damping_by_step": list(plan.damping),
                "bending_by_step": list(plan.bending),
                "amending_by_step": list(plan.amending),
                "responses": self.measured.sampler.responses,
            },
        }

    def _error_of_plan(self, computed: Past, index: int) -> float:
        recipe = with_numbers(self._form, self.numbers(self._fitted(computed)))
        return self._error(index, Cached(Session.fresh(recipe, self._takes.num_inference_steps, Storage())))

    def _error_of_schedule(self, steps: Past, index: int) -> float:
        return self._error(index, sigmas=self.measured.sigmas[list(steps)].tolist())

    def _error(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> float:
        try:
            played = self._takes.render(index, cached, sigmas)
        except FloatingPointError:  # a candidate that diverges is a bad one, and no more
            return inf
        assert played.latents is not None, "a take without steps"
        return relative_error(played.latents, self.measured.films[index])


def with_numbers(form: Recipe, numbers: Numbers) -> Recipe:
    values = form.to_dict()
    for what, settings in numbers.items():
        values[what].update(settings)
    return Recipe.from_mapping(values)
