"""One model call at a site that keeps tokens, of a window that begins elsewhere at each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..decision import Decision, Verdict
from ..predictors import Predictor, sampled_channels
from ..sites import Site
from ..state.frames import Frame
from ..state.holds import declared
from ..sums import l1_sums
from .call import Call
from .session import Cursor, Session


class MovingCall(Call):
    """Features and probes are kept frame by frame. The window takes over what was kept of its frames nearest to their places in it, by whichever
    window; it can reuse it if that is there for all of them, and no farther away than windows overlap. What a trigger has counted stays with the
    segment.

    Frames are forecast one by one: where a predictor measures, each frame goes by sums of its own, still in one collective a decision.
    """

    def __init__(self, session: Session, cursor: Cursor, part: int, site: Site, units: Sequence[range], num_text: int | None) -> None:
        super().__init__(session, cursor, part, site, units, num_text)
        assert cursor.frames is not None and session.overlap is not None and not num_text, "windows that shift name their frames and carry no text"
        self._numbers = cursor.frames
        self._kept = session.state.frames_of(part, cursor.branch)
        self._frames: list[Frame] = self._kept.taken(cursor.moment.step, cursor.frames, session.overlap)
        forecasts = session.recipe.parts[part].predictor.build()
        self._needs_probes = forecasts.measures or forecasts.num_probes > 0
        self._probes: list[Tensor] = []

    def _frames_of_slot(self, cursor: Cursor) -> range | None:
        return None

    @property
    def _predictors(self) -> Iterable[Predictor]:
        return [predictor for frame in self._frames for predictor in frame.predictors.values()]

    @property
    def _ready(self) -> bool:
        return all(frame.ready for frame in self._frames)

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        verdict = super().decide(probe, beside)
        self._kept.now[self.segment] = dict(zip(self._numbers, self._frames, strict=True))
        return verdict

    def _signal(self, probe: Tensor) -> Tensor | None:
        """Sums over tokens are sums over frames: each frame's probe is compared with its own."""
        trigger = self._slot.trigger
        if not declared(type(trigger)).probes or probe.ndim == 2:
            return trigger.signal(probe)
        signals = []
        for frame, share in zip(self._frames, self._split(probe), strict=True):
            frame.trigger = frame.trigger or self._session.state.trigger(self._part, len(self._units))
            signals.append(frame.trigger.signal(share))
        return torch.stack([signal for signal in signals if signal is not None]).sum(0)

    def _settle(self, decision: Decision) -> None:
        super()._settle(decision)
        for frame in self._frames:
            if frame.trigger is not None:
                frame.trigger.settle(decision)

    def _measuring(self, beside: Tensor) -> Iterator[tuple[str, Predictor, Tensor]]:
        if not self._needs_probes:
            return
        self._probes = self._split(beside)
        for number, frame, probe in zip(self._numbers, self._frames, self._probes, strict=True):
            for name, predictor in frame.predictors.items():
                yield f"{number}.{name}", predictor, probe

    def _split(self, tensor: Tensor) -> list[Tensor]:
        """Frame by frame: this shard's share of tokens [batch, tokens, dim], or latents [batch, channels, frames, height, width]."""
        if tensor.ndim == 5:
            return [part.clone() for part in tensor.split(1, dim=2)]
        return self._session.shards.by_frame.split(tensor, len(self._numbers))

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        assert not num_text, "windows that shift carry no text"
        key, shares = f"{unit}.{name}", self._split(feature)
        predictors = [frame.predictors.get(key) for frame in self._frames]
        ready = [predictor for predictor in predictors if predictor is not None and predictor.ready]
        if unit == self._watched and len(ready) == len(shares):
            channels = sampled_channels(feature)
            pairs = zip(ready, shares, strict=True)
            sums = [l1_sums(predictor.predict(self._at, channels), share[..., :channels]) for predictor, share in pairs]
            self._session.errors.add(self._entry, torch.stack(sums).sum(0))
            self._watched = None
        if self._learns:
            before = torch.cat([predictor.predict(self._at) for predictor in ready], dim=1) if len(ready) == len(shares) else None
            self._slot.trigger.learn(unit, torch.cat(shares, dim=1), before)
        for place, (frame, share) in enumerate(zip(self._frames, shares, strict=True)):
            predictor = frame.predictors.get(key) or self._fresh(frame, key, place)
            predictor.push(self._at, share)
            frame.places[key] = place
        return feature

    def _fresh(self, frame: Frame, key: str, place: int) -> Predictor:
        predictor = frame.predictors[key] = self._session.state.predictor(self._part)
        if self._needs_probes:
            predictor.measure(self._at, self._probes[place])  # it was not there yet when the others measured
        return predictor

    def recall(self, unit: int = 0, name: str = "") -> Tensor:
        shares = []
        for frame in self._frames:
            predictor = frame.predictors[f"{unit}.{name}"]
            shares.append(predictor.predict(self._at))
            predictor.settle(self._at, shares[-1])
        return self._session.shards.by_frame.join(shares)
