"""Sums that shards agree on: the same everywhere, what one place would have summed, in one collective. Toy sums, no processes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.cache.run.agreement import Pairing, Piece, Reduce, Scope, Shards, agree
from torch import Tensor

Place = tuple[list[Piece], bool, int | None]  # what one shard measures, whether it is its branch's first one, its row

Kinds = list[tuple[Scope, Pairing, int]]  # of each piece: its scope, pairing and length

_PIECES = st.lists(st.tuples(st.sampled_from(Scope), st.sampled_from(Pairing), st.integers(1, 3)), min_size=1, max_size=4)


def _agreed(places: Sequence[Place], over: str) -> list[dict[str, list[float]]]:
    """What all places come to: first each says what it adds, then each is told the total. over: the one group that they may use."""
    said: list[Tensor] = []

    def refuse(sums: Tensor) -> Tensor:
        raise AssertionError(f"only a collective over {over} is to be used")

    def say(sums: Tensor) -> Tensor:
        said.append(sums)
        return sums

    def run(place: Place, reduce: Reduce) -> dict[str, list[float]]:
        pieces, is_first, row = place
        shards = Shards(reduce, refuse, is_first) if over == "tokens" else Shards(refuse, reduce, is_first)
        return agree(pieces, shards, row)

    for place in places:
        run(place, say)
    assert len(said) == len(places), "one collective each"
    total = torch.stack(said).sum(dim=0)
    return [run(place, lambda sums: total) for place in places]


def _measured(kinds: Kinds, num_shards: int, seed: int) -> list[list[list[Piece]]]:
    """[branches][shards][pieces]. Whole numbers, whose sums are exact; what shards hold alike differs too, as on unlike machines."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            [
                Piece(f"piece {index}", torch.randint(-99, 99, (length,), generator=generator).double(), scope, pairing)
                for index, (scope, pairing, length) in enumerate(kinds)
            ]
            for _ in range(num_shards)
        ]
        for _ in range(2)
    ]


def _of_one_place(shards: list[list[Piece]], index: int) -> Tensor:
    """A branch's sums, had nothing been sharded."""
    pieces = [shard[index].sums for shard in shards]
    return pieces[0] if shards[0][index].scope is Scope.REPLICATED else torch.stack(pieces).sum(dim=0)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@given(kinds=_PIECES, seed=st.integers(0, 99))
def test_branches_that_run_at_once_agree_on_what_one_place_would_have_summed(num_shards: int, kinds: Kinds, seed: int) -> None:
    measured = _measured(kinds, num_shards, seed)
    places = [(pieces, shard == 0, row) for row in range(2) for shard, pieces in enumerate(measured[row])]
    for (_, _, row), agreed in zip(places, _agreed(places, "branches"), strict=True):
        assert row is not None
        for index, (_, pairing, _) in enumerate(kinds):
            each = [_of_one_place(branch, index) for branch in measured]
            expected = {
                Pairing.TOTAL: each[0] + each[1],
                Pairing.EACH: torch.cat(each),
                Pairing.OWN: each[row],
                Pairing.COND: each[0],
            }[pairing]
            assert agreed[f"piece {index}"] == expected.tolist(), pairing


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@given(kinds=_PIECES, seed=st.integers(0, 99))
def test_a_branch_for_itself_agrees_over_its_tokens(num_shards: int, kinds: Kinds, seed: int) -> None:
    shards = _measured(kinds, num_shards, seed)[0]
    for agreed in _agreed([(pieces, shard == 0, None) for shard, pieces in enumerate(shards)], "tokens"):
        assert agreed == {f"piece {index}": _of_one_place(shards, index).tolist() for index in range(len(kinds))}


def test_nothing_measured_costs_no_collective() -> None:
    def refuse(sums: Tensor) -> Tensor:
        raise AssertionError("a collective for nothing")

    assert agree([], Shards(refuse, refuse), 0) == {}
