"""Windows over a take, and prompts along it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.fuse import fuse
from longtake.pipeline.timeline import Timeline

from same import assert_same
from takes import tiny_take

pytestmark = pytest.mark.numerical


@given(length=st.integers(1, 200), window=st.integers(1, 30), data=st.data())
def test_windows_cover_a_take(length: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    timeline = Timeline.overlapping(length, window, overlap)
    covered = sorted({frame for w in timeline.windows for frame in range(w.start, w.stop)})
    assert covered == list(range(length))
    assert {w.stop - w.start for w in timeline.windows} == {min(window, length)}
    assert all(len(w.weights) == w.stop - w.start and min(w.weights) > 0 for w in timeline.windows)
    for before, after in zip(timeline.windows, timeline.windows[1:], strict=False):
        assert before.stop - after.start >= overlap


@given(length=st.integers(1, 40))
def test_fusing_what_the_windows_were_shown_gives_it_back(length: int) -> None:
    timeline = Timeline.overlapping(length, 9, 3)
    latents = torch.randn(1, 2, length, 2, 2)
    assert_same(fuse(timeline, latents, lambda window, index: window), latents)


def test_weights_cross_fade_over_the_overlap() -> None:
    timeline = Timeline.overlapping(8, 5, 2)
    assert [(w.start, w.stop) for w in timeline.windows] == [(0, 5), (3, 8)]
    assert timeline.windows[0].weights == pytest.approx((1, 1, 1, 2 / 3, 1 / 3))
    assert timeline.windows[1].weights == pytest.approx((1 / 3, 2 / 3, 1, 1, 1))
    fused = fuse(timeline, torch.zeros(1, 1, 8, 1, 1), lambda window, index: torch.full_like(window, float(index)))
    assert fused.flatten().tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])


def test_overlap_must_fit_the_window() -> None:
    with pytest.raises(ValueError, match=r"timeline.overlap is 5 latent frames; it must be at least 0 and below the window of 5"):
        Timeline.overlapping(20, 5, 5)


def test_a_window_gets_the_prompt_at_its_centre(tiny_wan: Path) -> None:
    take, card = tiny_take(), read_card(str(tiny_wan))
    centres = [window.centre for window in take.timeline_for(card).windows]
    assert centres == [2, 5, 8]
    assert [take.prompt_at(centre, card) for centre in centres] == [take.prompts[0].text, take.prompts[1].text, take.prompts[1].text]
