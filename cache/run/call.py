"""One model call at one site: from what is measured to what is decided, kept and recalled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from ..decision import Decision, Verdict
from ..predictors import Predictor, sampled_channels
from ..sites import Site
from ..state.state import Slot
from ..sums import l1_sums
from ..trace.entry import TraceEntry, name_layers
from .agreement import Pairing, Piece, Scope, agree
from .session import Cursor, Session

_BRANCHES = ("cond", "uncond")
BRANCH_BY_BRANCH = (
    "Recipe '{}' decides from both branches before either runs, but this loop calls one after the other: call the model on a batch of both, use "
    "longtake's own loop, or a recipe whose branches decide for themselves."
)
_SIGNAL = "signal"


class Call:
    """What a site may ask of the model call that it runs (SiteRun).

    Where a recipe's branches are `joint`, both guidance branches do the same, which is traced as one decision of branch `both`. The call is
    of a batch of both, or of one of them while other shards run the other. Where they are `cond`, the conditional branch decides and the
    unconditional one, which is called after it, does the same; if other shards run it at the same time, it decides from the conditional
    one's sums.
    """

    def __init__(self, session: Session, cursor: Cursor, part: int, site: Site, units: Sequence[range], num_text: int | None) -> None:
        """part: which of the recipe's. units, num_text: as in `Begin`. Raises ValueError for a branch that the recipe cannot decide for."""
        mode, at_once = session.recipe.branches, session.shards.branches is not None
        _check_branch(session, cursor.branch)
        self.moment, self.segment, self.segments = cursor.moment, cursor.segment, session.shards.segments
        self.branch = "both" if mode == "joint" else cursor.branch
        self._session, self._at, self._units = session, cursor.at, units
        self._part, self._site, self._num_text = part, site, num_text or 0
        # This branch, 0 for cond and 1 for uncond, where both decide together while each runs on shards of its own.
        self._row = _BRANCHES.index(cursor.branch) if at_once and mode != "each" else None
        self._follows = mode == "cond" and cursor.branch == "uncond" and not at_once
        # The slot of the branch that runs here: its features are its own, even where the other one decides for it.
        self._slot: Slot = session.state.slot(part, cursor.segment, cursor.branch, len(units), self._frames_of_slot(cursor))
        self._key = (cursor.segment, cursor.moment.step, self.branch, site.label)
        self._beside: Tensor | None = None
        self._learns = self._slot.trigger.learns and not session.replay and not self._follows
        self._entry = -1  # of this decision, in the trace
        self._watched: int | None = None  # the unit whose forecast is measured, one a call

    def _frames_of_slot(self, cursor: Cursor) -> range | None:
        return cursor.frames

    @property
    def reused_run(self) -> int:
        return self._slot.reused_run

    @property
    def _predictors(self) -> Iterable[Predictor]:
        return self._slot.predictors.values()

    @property
    def _ready(self) -> bool:
        """Whether all of this call's features can be forecast."""
        return self._slot.ready

    @property
    def _risk(self) -> float:
        return max(predictor.risk or 0.0 for predictor in self._predictors)

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        """What was measured is reduced before anything is decided, on every shard: one that left the collective out would leave the rest waiting."""
        session, slot = self._session, self._slot
        self._beside = probe if beside is None else beside
        judges = not session.replay and not self._follows
        signal = self._signal(probe) if judges else None
        measuring = list(self._measuring(self._beside))
        agreed = agree(self._pieces(signal, measuring), session.shards, self._row)
        for name, predictor, _ in measuring:
            predictor.receive(agreed.get(name, []))
        if session.replay:
            verdict = session.replay.verdict(self._key, self._units)
        elif self._follows and self._ready:
            verdict = session.state.verdicts[(self._part, self.segment)]
        elif self._follows:  # nothing is kept of this branch yet, though the other one decided to reuse
            verdict = Verdict.of(frozenset(), len(self._units))
        else:
            verdict = self._judge(agreed.get(_SIGNAL, []))
            self._settle(verdict.decision)
        session.state.verdicts[(self._part, self.segment)] = verdict
        slot.reused_run = slot.reused_run + 1 if verdict.decision is Decision.REUSE else 0
        self._record(verdict, judges)
        computed = [unit for unit in range(len(self._units)) if unit not in verdict.reused]
        self._watched = computed[len(computed) // 2] if computed else None
        return verdict

    def _signal(self, probe: Tensor) -> Tensor | None:
        """The trigger's sums over this shard's part of the probe."""
        return self._slot.trigger.signal(probe)

    def _settle(self, decision: Decision) -> None:
        self._slot.trigger.settle(decision)

    def _measuring(self, beside: Tensor) -> Iterator[tuple[str, Predictor, Tensor]]:
        """All predictors, by names of their own, with what each is to measure."""
        for name, predictor in self._slot.predictors.items():
            yield name, predictor, beside

    def _pieces(self, signal: Tensor | None, measuring: Iterable[tuple[str, Predictor, Tensor]]) -> list[Piece]:
        """The trigger's sums, then each predictor's; none of those that measure nothing."""
        slot, site, is_joint = self._slot, self._site, self._session.recipe.branches == "joint"
        pieces = []
        if signal is not None:
            pairing = Pairing.COND if not is_joint else Pairing.EACH if slot.trigger.by_branch else Pairing.TOTAL
            pieces.append(Piece(_SIGNAL, signal, _scope(site.shards_signal(slot.trigger)), pairing))
        for name, predictor, probe in measuring:
            if (sums := predictor.measure(self._at, probe)) is not None:
                pieces.append(Piece(name, sums, _scope(site.shards_measure(predictor)), Pairing.TOTAL if is_joint else Pairing.OWN))
        return pieces

    def _measured(self, tensor: Tensor, num_text: int | None = None) -> Tensor:
        """The tensor without the text, which every shard holds."""
        text = self._num_text if num_text is None else num_text
        return tensor[:, : tensor.shape[1] - text] if text and tensor.ndim == 3 else tensor

    def _judge(self, sums: Sequence[float]) -> Verdict:
        """The trigger's wish, overruled by the guards. sums: the trigger's, over all shards."""
        slot, guards = self._slot, self._session.recipe.guards
        wish = slot.trigger.decide(self.moment, sums)
        if guards.compel(self.moment, slot.reused_run) or not self._ready:
            wish = Decision.COMPUTE
        elif guards.max_risk:
            in_doubt = self._risk >= guards.max_risk
            if wish is not Decision.COMPUTE and in_doubt:
                wish, slot.owed = Decision.COMPUTE, slot.owed + 1
            elif wish is Decision.COMPUTE and slot.owed and not in_doubt:
                wish, slot.owed = Decision.REUSE, slot.owed - 1
        num_units = len(self._units)
        all_or_none = frozenset(range(num_units) if wish is Decision.REUSE else ())
        return Verdict.of(slot.trigger.reused_units() if wish is Decision.PARTIAL else all_or_none, num_units)

    def _record(self, verdict: Verdict, judged: bool) -> None:
        trigger = self._slot.trigger
        value = trigger.value if judged and trigger.value is not None and abs(trigger.value) < float("inf") else None
        margin = abs(value - trigger.threshold) if value is not None and trigger.threshold is not None else None
        max_risk = self._session.recipe.guards.max_risk
        if max_risk and judged and self._ready:
            value, margin = self._risk, abs(self._risk - max_risk)
        layers = name_layers([run for unit, run in enumerate(self._units) if unit in verdict.reused or verdict.decision is not Decision.PARTIAL])
        self._entry = self._session.trace.add(TraceEntry(*self._key, layers, verdict.decision.value, value=value, margin=margin))

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        key = f"{unit}.{name}"
        predictor = self._slot.predictors.get(key) or self._new_predictor(key, num_text)
        if unit == self._watched and predictor.ready:
            channels = sampled_channels(feature)
            sample, forecast = (self._measured(one, num_text) for one in (feature[..., :channels], predictor.predict(self._at, channels)))
            self._session.errors.add(self._entry, l1_sums(forecast, sample))
            self._watched = None
        if self._learns:
            before = self._measured(predictor.predict(self._at), num_text) if predictor.ready else None
            learnt = learnt if self._slot.trigger.needs_latents else None
            self._slot.trigger.learn(unit, self._measured(feature, num_text) if learnt is None else learnt, before)
        amended = predictor.amend(self._at, feature)
        predictor.push(self._at, feature)
        return amended

    def _new_predictor(self, key: str, num_text: int | None) -> Predictor:
        predictor = self._session.state.predictor(self._part)
        predictor.num_text = self._num_text if num_text is None else num_text
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


def _check_branch(session: Session, branch: str) -> None:
    """Raise ValueError, with the mend, for a call of a branch that the recipe cannot decide for."""
    mode, name, at_once = session.recipe.branches, session.recipe.name, session.shards.branches is not None
    if mode == "joint" and branch != "both" and not at_once:
        raise ValueError(BRANCH_BY_BRANCH.format(name))
    if mode != "each" and (branch not in (*_BRANCHES, "both") or (branch == "both" and at_once)):
        known = "cond or uncond (each runs on shards of its own)" if at_once else "cond, uncond or both"
        raise ValueError(f"Recipe '{name}' decides for both branches and knows them as {known}, not as '{branch}'; name them so.")


def _scope(is_sharded: bool) -> Scope:
    return Scope.TOKENS if is_sharded else Scope.REPLICATED
