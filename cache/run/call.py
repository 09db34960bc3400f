"""One model call at one site: from what is measured to what is decided, kept and recalled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..decision import Decision, Verdict
from ..predictors import Predictor, sampled_channels
from ..sites import Site
from ..state.state import Slot
from ..sums import l1_sums
from ..trace.entry import TraceEntry, name_layers
from ..triggers import Moment

if TYPE_CHECKING:
    from .enable import Cached

_BRANCHES = ("cond", "uncond")
BRANCH_BY_BRANCH = (
    "Recipe '{}' decides from both branches before either runs, but this loop calls one after the other: call the model on a batch of both, use "
    "longtake's own loop, or a recipe whose branches decide for themselves."
)


@dataclass(frozen=True)
class Cursor:
    """at: the step's place on the recipe's abscissa."""

    segment: int
    moment: Moment
    branch: str
    at: float


class Call:
    """What a site asks for (SiteRun).

    A joint decision is made for the branch `both`: in a batch of them, or by branches that run at once in different places. Where the
    conditional branch decides for both, the other follows it; where they run at once, its sums count alone.
    """

    def __init__(self, cached: Cached, cursor: Cursor, part: int, site: Site, units: Sequence[range], num_text: int | None) -> None:
        mode, at_once = cached.recipe.branches, cached.shards.branches is not None
        if mode == "joint" and cursor.branch != "both" and not at_once:
            raise ValueError(BRANCH_BY_BRANCH.format(cached.recipe.name))
        if mode != "each" and cursor.branch not in (*_BRANCHES, "both"):
            raise ValueError(
                f"Recipe '{cached.recipe.name}' decides for both branches and knows them as {', '.join(_BRANCHES)} or both, not as "
                f"'{cursor.branch}'; name them so."
            )
        self.moment, self.segment = cursor.moment, cursor.segment
        self.branch = "both" if mode == "joint" else cursor.branch
        self._cached, self._at, self._units = cached, cursor.at, units
        self._part, self._site, self._num_text = part, site, num_text or 0
        self._row = _BRANCHES.index(cursor.branch) if at_once and mode != "each" else None
        self._follows = mode == "cond" and cursor.branch == "uncond" and not at_once
        # What is kept is of the branches that run here, even where others decide with them.
        self._slot: Slot = cached.state.slot(part, cursor.segment, cursor.branch, len(units))
        self._key = (cursor.segment, cursor.moment.step, self.branch, site.label)
        self._beside: Tensor | None = None
        self._learns = self._slot.trigger.learns and not cached.replay and not self._follows
        self._entry = -1
        self._watched: int | None = None  # the unit whose forecast is measured, one a call

    @property
    def reused_run(self) -> int:
        return self._slot.reused_run

    @property
    def _risk(self) -> float:
        return max(predictor.risk or 0.0 for predictor in self._slot.predictors.values())

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        """One reduction a decision whatever it will be: a branch that guards a collective is decided from reduced data alone."""
        cached, slot = self._cached, self._slot
        self._beside = probe if beside is None else beside
        trigger = None if cached.replay or self._follows else slot.trigger
        signal = trigger.signal(probe) if trigger else None
        needs = [predictor.measure(self._at, self._beside) for predictor in slot.predictors.values()]
        sums = self._reduce(signal, needs)
        for predictor, reduced in zip(slot.predictors.values(), sums[1:], strict=True):
            predictor.take(reduced)
        if cached.replay:
            verdict = cached.replay.verdict(self._key, self._units)
        elif self._follows and slot.ready:
            verdict = cached.state.verdicts[(self._part, self.segment)]
        elif self._follows:  # a branch that begins later than the one that decides
            verdict = Verdict.of(frozenset(), len(self._units))
        else:
            verdict = self._judge(sums[0])
            slot.trigger.settle(verdict.decision)
        cached.state.verdicts[(self._part, self.segment)] = verdict
        slot.reused_run = slot.reused_run + 1 if verdict.decision is Decision.REUSE else 0
        self._record(verdict, trigger is not None)
        computed = [unit for unit in range(len(self._units)) if unit not in verdict.reused]
        self._watched = computed[len(computed) // 2] if computed else None
        return verdict

    def _measured(self, tensor: Tensor, num_text: int | None = None) -> Tensor:
        """Without the text, which every shard holds."""
        text = self._num_text if num_text is None else num_text
        return tensor[:, : tensor.shape[1] - text] if text and tensor.ndim == 3 else tensor

    def _reduce(self, signal: Tensor | None, needs: list[Tensor | None]) -> list[Sequence[float]]:
        """The signal's reduced sums, then each predictor's, in at most one collective; empty where nothing was measured.

        Sums of what all shards hold are reduced as well, of the first shard alone: every decision is made from the same numbers.
        """
        slot, site, shards = self._slot, self._site, self._cached.shards
        are_partial = [site.shards_signal(slot.trigger), *map(site.shards_measure, slot.predictors.values())]
        pieces = [
            piece if piece is None or is_partial or shards.is_first else torch.zeros_like(piece)
            for piece, is_partial in zip((signal, *needs), are_partial, strict=True)
        ]
        common = [piece for piece in pieces if piece is not None]
        reduced = self._reduce_common(common, has_signal=signal is not None).tolist() if common else []
        results: list[Sequence[float]] = []
        for index, piece in enumerate(pieces):
            length = 0 if piece is None else len(piece)
            if self._row is not None and index == 0 and slot.trigger.by_branch:
                length *= 2
            results.append(reduced[:length])
            reduced = reduced[length:]
        return results

    def _reduce_common(self, common: list[Tensor], *, has_signal: bool) -> Tensor:
        """One collective. Where branches that decide together run at once, it is over both: what a batch of both would sum up is added
        up, what belongs to one branch (by_branch signals; forecasts, if the conditional branch decides alone) goes in a row of its own.
        """
        shards, is_joint = self._cached.shards, self._cached.recipe.branches == "joint"
        if self._row is None or shards.branches is None:
            return shards.tokens(torch.cat(common))
        signal, rest = torch.cat(common[:has_signal] or [common[0][:0]]), torch.cat(common[has_signal:] or [common[0][:0]])
        own = signal if is_joint or self._row == 0 else torch.zeros_like(signal)
        signals, rests = self._rows(own, apart=self._slot.trigger.by_branch), self._rows(rest, apart=not is_joint)
        reduced = shards.branches(torch.cat((signals, rests)))
        mine = len(signals) + (0 if is_joint else self._row * len(rest))
        return torch.cat((reduced[: len(signals)], reduced[mine : mine + len(rest)]))

    def _rows(self, sums: Tensor, *, apart: bool) -> Tensor:
        """This branch's sums, in a row of its own if `apart`."""
        nothing = torch.zeros_like(sums)
        return sums if not apart else torch.cat((sums, nothing) if self._row == 0 else (nothing, sums))

    def _judge(self, sums: Sequence[float]) -> Verdict:
        """The trigger's wish, overruled by the guards."""
        slot, guards = self._slot, self._cached.recipe.guards
        wish = slot.trigger.decide(self.moment, sums)
        if guards.compel(self.moment, slot.reused_run) or not slot.ready:
            wish = Decision.COMPUTE
        elif guards.max_risk:
            in_doubt = self._risk >= guards.max_risk
            if wish is not Decision.COMPUTE and in_doubt:
                wish, slot.owed = Decision.COMPUTE, slot.owed + 1
            elif wish is Decision.COMPUTE and slot.owed and not in_doubt:
                wish, slot.owed = Decision.REUSE, slot.owed - 1
        everything = frozenset(range(len(self._units)))
        reused = {Decision.COMPUTE: frozenset[int](), Decision.REUSE: everything}.get(wish)
        return Verdict.of(slot.trigger.reused_units() if reused is None else reused, len(self._units))

    def _record(self, verdict: Verdict, judged: bool) -> None:
        trigger = self._slot.trigger
        value = trigger.value if judged and trigger.value is not None and abs(trigger.value) < float("inf") else None
        margin = abs(value - trigger.threshold) if value is not None and trigger.threshold is not None else None
        if self._cached.recipe.guards.max_risk and judged and self._slot.ready:
            value, margin = self._risk, abs(self._risk - self._cached.recipe.guards.max_risk)
        layers = name_layers([run for unit, run in enumerate(self._units) if unit in verdict.reused or verdict.decision is not Decision.PARTIAL])
        self._entry = self._cached.trace.add(TraceEntry(*self._key, layers, verdict.decision.value, value=value, margin=margin))

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        key = f"{unit}.{name}"
        predictor = self._slot.predictors.get(key) or self._new_predictor(key, num_text)
        if unit == self._watched and predictor.ready:
            channels = sampled_channels(feature)
            sample, forecast = (self._measured(one, num_text) for one in (feature[..., :channels], predictor.predict(self._at, channels)))
            self._cached.errors.add(self._entry, l1_sums(forecast, sample))
            self._watched = None
        if self._learns:
            before = self._measured(predictor.predict(self._at), num_text) if predictor.ready else None
            learnt = learnt if self._slot.trigger.needs_latents else None
            self._slot.trigger.learn(unit, self._measured(feature, num_text) if learnt is None else learnt, before)
        amended = predictor.amend(self._at, feature)
        predictor.push(self._at, feature)
        return amended

    def _new_predictor(self, key: str, num_text: int | None) -> Predictor:
        predictor = self._cached.state.predictor(self._cached.recipe.parts[self._part])
        text = self._num_text if num_text is None else num_text
        predictor.measured = slice(None, -text if text else None)
        assert self._beside is not None, "keep() before decide()"
        predictor.measure(self._at, self._beside)  # it was not there yet when the others measured
        self._slot.predictors[key] = predictor
        return predictor

    def recall(self, unit: int = 0, name: str = "") -> Tensor:
        predictor = self._slot.predictors[f"{unit}.{name}"]
        feature = predictor.predict(self._at)
        predictor.settle(self._at, feature)
        return feature

    def check(self, real: Tensor, draft: Tensor) -> None:
        self._slot.trigger.learn(0, self._measured(real), self._measured(draft))
