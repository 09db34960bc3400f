"""Correct a velocity by the trajectory's mean acceleration, read off the latents (MeanCache, arXiv 2601.19961; re-derived).

t is the last computed place and r a few computed places before it; z the latents there, v the velocity. On the sigma abscissa
JVP = [z_t - z_r - (t - r) v_r] / (t - r)^2 is half of the acceleration since r, and the velocity to go on with from s is v_t + 2 (s - t) JVP.
The guided v_r, which moved the latents, is read off their first step after r, so that branches need not know each other.

With r just before t there is nothing to correct by: if a reused v_r has moved the latents all the way, JVP is 0.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..state.holds import Holds
from ..state.storage import Kept
from .predictor import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..sampler.linear_map import LinearMap


@dataclass(frozen=True)
class MeanVelocityConfig:
    """states_back: how many computed places before the last one the acceleration is measured from (K). damping: share of the correction
    that is applied, 1 for all of it, 0 for plain reuse.
    """

    states_back: int = 2
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.states_back < 2:
            raise ValueError(f"states_back is {self.states_back}; it must be at least 2, as one place back the latents show no change of velocity.")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping is {self.damping:g}; it must lie between 0 and 1.")


class MeanVelocity(Predictor):
    """For the site `output`, whose probe is the latents, on the abscissa `sigma`; the sampler must step by velocity times sigma."""

    needs_velocity = True
    needs_abscissa = "sigma"
    holds = Holds(probes=("_last", "_computed", "_moved", "_correction"), features=("_velocity",))

    def __init__(self, config: MeanVelocityConfig) -> None:
        super().__init__()
        self.config = config
        self._last: tuple[float, Tensor] | None = None  # latents of the call at hand
        self._computed: deque[tuple[float, Tensor]] = deque()  # latents at the last computed places
        self._moved: deque[Tensor] = deque()  # the latents' slopes just after these
        self._velocity: Kept | None = None
        self._correction: Tensor | None = None

    @property
    def needs_sampler(self) -> bool:
        return True

    def check_sampler(self, sampler: LinearMap) -> None:
        if not sampler.moves_by_velocity:
            raise ValueError(
                f"Predictor mean_velocity reads velocities off the latents, which {sampler.scheduler} moves by more than the last one; give "
                f"the model FlowMatchEulerDiscreteScheduler, or use another recipe (planned, taylorseer)."
            )

    @property
    def num_kept(self) -> int:
        return 1

    @property
    def num_probes(self) -> int:
        """Latents and slope of each place, and the correction."""
        return 2 * self.config.states_back + 1

    @property
    def ready(self) -> bool:
        return self._velocity is not None

    def measure(self, at: float, probe: Tensor) -> None:
        if len(self._moved) < len(self._computed) and at > self._computed[-1][0]:
            place, latents = self._computed[-1]
            self._moved.append((probe - latents) / (at - place))
        self._last = (at, probe)

    def push(self, at: float, feature: Tensor) -> None:
        assert self._last is not None and self._last[0] == at, "push() before measure()"
        if len(self._computed) == self.config.states_back:
            place, latents = self._computed.popleft()
            gap = at - place
            self._correction = (self._last[1] - latents - gap * self._moved.popleft()) / gap**2
        self._computed.append(self._last)
        self._last = None
        self._velocity = self.storage.put(feature)

    def settle(self, at: float, feature: Tensor) -> None:
        self._last = None

    def predict(self, at: float, channels: int | None = None) -> Tensor:
        """The abscissa rises as sigma falls, so that the latents' slope along it is the velocity divided by minus its span."""
        assert self._velocity is not None and self._computed, "predict() before push()"
        velocity = self._velocity.get(channels)
        if self._correction is None or not self.config.damping:
            return velocity
        return velocity - 2 * self.span * self.config.damping * (at - self._computed[-1][0]) * self._correction[..., :channels].to(velocity.dtype)
