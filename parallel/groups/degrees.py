"""Choosing the shape of a gang. Pure arithmetic: no process groups, no models."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil, prod

_MIN_WINDOW_USE = 0.9  # share of the window axis's time that must be spent on windows, for spreading them to pay


@dataclass(frozen=True)
class Degrees:
    """How many ranks lie along each axis of a mesh; their product is the size of the gang.

    cfg: guidance branches apart (1 or 2); window: a long take's windows spread out; ring, ulysses: one call's tokens sharded.
    """

    cfg_degree: int = 1
    window_degree: int = 1
    ring_degree: int = 1
    ulysses_degree: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def num_ranks(self) -> int:
        return prod(self.sizes)

    @property
    def sequence_degree(self) -> int:
        """Ranks that share the tokens of one model call."""
        return self.ring_degree * self.ulysses_degree

    def __str__(self) -> str:
        named = [f"{field.name.removesuffix('_degree')} {getattr(self, field.name)}" for field in fields(self)]
        return " x ".join(name for name, size in zip(named, self.sizes, strict=True) if size > 1) or "one rank"


@dataclass(frozen=True)
class Demand:
    """What can be shared out over ranks in every take of a job: attention heads, tokens a model call, guidance branches, windows or segments.

    min_sequence: ranks that must share a call's tokens. has_ring: whether these can lie on a ring, which banded takes have none of.
    """

    num_heads: int
    num_tokens: int
    num_branches: int
    num_windows: int
    min_sequence: int = 1
    has_ring: bool = True


def choose_degrees(num_ranks: int, demand: Demand, ranks_per_node: int) -> tuple[Degrees, str]:
    """The degrees for a gang of `num_ranks`, and why in one line.

    What exchanges least comes first: guidance branches, then windows (one exchange of latents a step each), then Ulysses inside a
    node up to a divisor of the heads, then a ring for the rest and across nodes. Raises ValueError if there are fewer tokens than
    ranks to share them, or where none of the shapes without a ring has that many.
    """
    rest, reasons = num_ranks, []
    cfg = 2 if demand.num_branches == 2 and rest % 2 == 0 and rest // 2 >= demand.min_sequence else 1
    rest //= cfg
    if cfg == 2:
        reasons.append("cfg 2 for the two guidance branches")
    spread = [w for w in _divisors(rest) if rest // w >= demand.min_sequence and _window_use(demand.num_windows, w) >= _MIN_WINDOW_USE]
    window = max(spread, default=1) if demand.has_ring else _window_without_ring(rest, demand)
    rest //= window
    if window > 1:
        reasons.append(f"window {window} for {demand.num_windows} {'windows' if demand.has_ring else 'segments'}")
    inside = [u for u in _divisors(rest) if not demand.has_ring or (u <= ranks_per_node and (rest <= ranks_per_node or ranks_per_node % u == 0))]
    ulysses = max(u for u in inside if demand.num_heads % u == 0)
    ring = rest // ulysses
    if ulysses > 1:
        inside_node = f" and stays inside a node of {ranks_per_node}" if ulysses <= ranks_per_node else ""
        reasons.append(f"ulysses {ulysses}, which divides {demand.num_heads} heads{inside_node}")
    if ring > 1:
        reasons.append(f"ring {ring} for the rest")
    if rest > demand.num_tokens:
        raise ValueError(f"{demand.num_tokens} tokens cannot be shared by {rest} ranks; render larger takes or use fewer ranks.")
    return Degrees(cfg, window, ring, ulysses), f"{num_ranks} rank(s): " + ("; ".join(reasons) or "nothing to share out")


def _window_without_ring(num_ranks: int, demand: Demand) -> int:
    """The window degree, where Ulysses must take the rest: the largest of those that keep all ranks busy most of the time, or else the best."""
    fitting = [w for w in _divisors(num_ranks) if w <= demand.num_windows and demand.num_heads % (num_ranks // w) == 0]
    fitting = [w for w in fitting if num_ranks // w >= demand.min_sequence]
    if not fitting:
        raise ValueError(
            f"{num_ranks} ranks cannot share {demand.num_windows} segments and {demand.num_heads} heads without a ring, which timeline banded has "
            f"none of; use fewer ranks, or a number of them that divides the heads."
        )
    use = {w: _window_use(demand.num_windows, w) for w in fitting}
    return max(fitting, key=lambda w: (min(use[w], _MIN_WINDOW_USE), w))


def _window_use(num_windows: int, degree: int) -> float:
    """Share of a window axis's time that is spent on windows."""
    return num_windows / (ceil(num_windows / degree) * degree) if degree <= num_windows else 0.0


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
