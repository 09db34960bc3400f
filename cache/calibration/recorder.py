"""Recording what a recipe's sites see when every step is computed, and giving a model's outputs again; calibrations are worked out from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..decision import Verdict
from ..recipe.recipe import Recipe
from ..run.cached import Cached
from ..run.session import Cursor, Session
from ..sites import Site, SiteRun
from ..state.storage import Storage

MAX_TOKENS = 1024
Key = tuple[int, str, int, str]


@dataclass(frozen=True)
class Sight:
    """probe: what the trigger would measure; feature: what would be kept. Copies in fp32 on the CPU, latents whole; of tokens, at most
    MAX_TOKENS evenly spread ones without the text.
    """

    probe: Tensor
    feature: Tensor


class Recorder(Cached):
    """Attached like a cache, by the same sites, but nothing is ever reused: branches run one after the other, each for itself.

    sights: of the running step, by part of the recipe, branch, unit and name of the feature; `collect` them after each step.
    """

    def __init__(self, recipe: Recipe, num_inference_steps: int) -> None:
        super().__init__(Session.fresh(replace(recipe, branches="each"), num_inference_steps, Storage()))
        self.sights: dict[Key, Sight] = {}

    def collect(self) -> dict[Key, Sight]:
        sights, self.sights = self.sights, {}
        return sights

    def _begin(self, expert: int, part: int, site: Site, units: Sequence[range], num_text: int | None) -> SiteRun:
        assert self._cursor is not None, "a recorder is told its steps"
        return _Recording(self.sights, self._cursor, part, num_text or 0)


class _Recording:
    """The SiteRun of a recorded call: computes everything and records it."""

    reused_run, segments = 0, None

    def __init__(self, sights: dict[Key, Sight], cursor: Cursor, part: int, num_text: int) -> None:
        self.moment, self.branch, self.segment = cursor.moment, cursor.branch, cursor.segment
        self._sights, self._part, self._num_text = sights, part, num_text
        self._probe: Tensor | None = None

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        self._probe = _sampled(probe, 0)
        return Verdict.of(frozenset(), 1)

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        assert self._probe is not None, "keep() before decide()"
        sampled = _sampled(feature, self._num_text if num_text is None else num_text)
        if sampled.numel():  # else it is text alone
            self._sights[(self._part, self.branch, unit, name)] = Sight(self._probe, sampled)
        return feature

    def recall(self, unit: int = 0, name: str = "") -> Tensor:
        raise AssertionError("recall() of what was never reused")

    def check(self, real: Tensor, draft: Tensor) -> None:
        raise AssertionError("check() of what was never forecast")


class Playback(Cached):
    """Attached like a cache, at the model's output: notes what each call gives, or gives again what another one has noted.

    outputs: by branch and segment, one a step, in fp32 on the CPU.
    """

    def __init__(self, recipe: Recipe, num_inference_steps: int) -> None:
        """recipe: any that keeps the value of the model's output."""
        super().__init__(Session.fresh(replace(recipe, branches="each"), num_inference_steps, Storage()))
        self.outputs: dict[tuple[str, int], list[Tensor]] = {}
        self._given: dict[tuple[str, int], list[Tensor]] = {}
        self._until = -1

    def again_until(self, step: int) -> Playback:
        """Another one, for the same take: it gives the outputs that this one has noted, at `step` (above 0) those of the step before once more, and
        has the rest computed.
        """
        other = Playback(self.recipe, self.session.num_inference_steps)
        other._given, other._until = self.outputs, step
        return other

    def _begin(self, expert: int, part: int, site: Site, units: Sequence[range], num_text: int | None) -> SiteRun:
        cursor = self._here()
        key = (cursor.branch, cursor.segment)
        given = self._given.get(key, [])
        step = cursor.moment.step
        again = given[step - (step == self._until)] if step <= self._until else None
        return _Playing(cursor, self.outputs.setdefault(key, []), again)


class _Playing:
    """The SiteRun of a call whose output is noted, or given again."""

    reused_run, segments = 0, None

    def __init__(self, cursor: Cursor, outputs: list[Tensor], again: Tensor | None) -> None:
        self.moment, self.branch, self.segment = cursor.moment, cursor.branch, cursor.segment
        self._outputs, self._again = outputs, again
        self._like: Tensor | None = None

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        self._like = probe
        return Verdict.of(frozenset() if self._again is None else frozenset({0}), 1)

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        self._outputs.append(feature.detach().to("cpu", torch.float32, copy=True))
        return feature

    def recall(self, unit: int = 0, name: str = "") -> Tensor:
        assert self._again is not None and self._like is not None, "recall() of what was never noted"
        return self._again.to(self._like)

    def check(self, real: Tensor, draft: Tensor) -> None:
        raise AssertionError("check() of what was never forecast")


def _sampled(tensor: Tensor, num_text: int) -> Tensor:
    if tensor.ndim == 3:
        num_video = tensor.shape[1] - num_text
        tensor = tensor[:, : num_video : max(1, -(-num_video // MAX_TOKENS))]
    return tensor.detach().to("cpu", torch.float32, copy=True)
