"""Windows over a take, and prompts along it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.parallel.tokens.bands import frames_needed, frames_of, share_out
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.fuse import fuse
from longtake.pipeline.timelines.banded import banded
from longtake.pipeline.timelines.rollout import rollout
from longtake.pipeline.timelines.windows import windows

from same import assert_same
from takes import tiny_take

pytestmark = pytest.mark.numerical


@given(length=st.integers(1, 200), window=st.integers(1, 30), data=st.data())
def test_windows_cover_a_take(length: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    timeline = windows(length, window, overlap)
    [only] = timeline.rounds
    assert sorted({frame for call in only.calls for frame in call.frames}) == list(range(length)) == list(only.frames)
    assert {len(call.frames) for call in only.calls} == {min(window, length)}
    assert all(len(call.weights) == len(call.frames) and min(call.weights) > 0 and not call.context for call in only.calls)
    for before, after in pairwise(only.calls):
        assert before.frames.stop - after.frames.start >= overlap


@given(length=st.integers(1, 200), window=st.integers(2, 30), data=st.data())
def test_a_rollout_goes_over_a_take_once(length: int, window: int, data: st.DataObject) -> None:
    """Each chunk is shown what lies right before it and the take's start, all of it done by then, and no more frames than a window in all; only
    what is shown again is kept.
    """
    anchors = data.draw(st.integers(0, window - 2))
    overlap = data.draw(st.integers(1, window - anchors - 1))
    timeline = rollout(length, window, overlap, anchors)
    assert [frame for one in timeline.rounds for frame in one.frames] == list(range(length))
    for number, one in enumerate(timeline.rounds):
        [call] = one.calls
        assert (call.frames, call.segment, set(call.weights)) == (one.frames, number, {1.0})
        assert call.num_shown <= window
        begin = one.frames.start
        wanted = {*range(min(anchors, begin)), *range(max(0, begin - overlap), begin)}
        assert list(call.context) == sorted(wanted)
        shown_later = {frame for later in timeline.rounds[number + 1 :] for frame in later.calls[0].context}
        assert timeline.needed_after(number) == {frame for frame in shown_later if frame < one.frames.stop}


@given(length=st.integers(1, 200), window=st.integers(1, 30), data=st.data())
def test_segments_cover_a_take_once(length: int, window: int, data: st.DataObject) -> None:
    """Each attends to frames around itself, as many for all, and to the anchors that are not among them, no more than a window in all; bands lie so
    that as much of them is before a segment as behind, but at the take's ends.
    """
    anchors = data.draw(st.integers(0, window - 1))
    [only] = banded(length, window, anchors).rounds
    [call] = only.calls
    assert [frame for band in call.bands for frame in band.frames] == list(range(length)) == list(only.frames)
    assert {len(band.frames) for band in call.bands[:-1]} <= {max(1, (window - anchors) // 3)}
    for band in call.bands:
        assert len(band.seen) == min(window - anchors, length) and set(band.frames) <= set(band.seen) <= set(range(length))
        before, after = band.frames.start - band.seen.start, band.seen.stop - band.frames.stop
        assert 0 <= after - before <= 1 or band.seen.start == 0 or band.seen.stop == length
        assert list(band.anchors) == [frame for frame in range(min(anchors, length)) if frame < band.seen.start]


@given(length=st.integers(1, 200), window=st.integers(1, 30), num_ranks=st.integers(1, 9), data=st.data())
def test_ranks_need_the_halos_around_their_segments(length: int, window: int, num_ranks: int, data: st.DataObject) -> None:
    [only] = banded(length, window, data.draw(st.integers(0, window - 1))).rounds
    bands = only.calls[0].bands
    if len(bands) < num_ranks:
        with pytest.raises(ValueError, match="segments cannot be shared by"):
            share_out(bands, num_ranks)
        return
    shares = share_out(bands, num_ranks)
    assert [band for share in shares for band in share] == list(bands)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for share in shares:
        assert set(frames_needed(share)) == {frame for band in share for frame in (*band.seen, *band.anchors)} >= set(frames_of(share))


def test_anchors_leave_room_for_a_band() -> None:
    with pytest.raises(ValueError, match=r"timeline.anchors is 5 latent frames; it must be at least 0 and below the window of 5"):
        banded(20, 5, 5)


def test_a_cut_leaves_one_anchor_and_two_frames() -> None:
    """Chunks stay as long as they are without it; the one after the next has its whole context again."""
    contexts = [one.calls[0].context for one in rollout(24, 9, 4, 2, lambda before, chunk: before.start == 9).rounds]
    assert contexts == [(), (0, 1, 5, 6, 7, 8), (0, 10, 11), (0, 1, 11, 12, 13, 14), (0, 1, 14, 15, 16, 17), (0, 1, 17, 18, 19, 20)]
    assert rollout(24, 9, 1, 0, lambda before, chunk: True) == rollout(24, 9, 1, 0)


@pytest.mark.parametrize(("overlap", "anchors"), [(0, 0), (9, 0), (6, 3)])
def test_a_rollouts_context_must_leave_room_for_new_frames(overlap: int, anchors: int) -> None:
    with pytest.raises(ValueError, match=f"timeline.overlap is {overlap} latent frames; it must be at least 1"):
        rollout(20, 9, overlap, anchors)


@given(length=st.integers(1, 40))
def test_fusing_what_the_windows_were_shown_gives_it_back(length: int) -> None:
    [only] = windows(length, 9, 3).rounds
    latents = torch.randn(1, 2, length, 2, 2)
    assert_same(fuse(only, latents, lambda window, call: window), latents)


def test_weights_cross_fade_over_the_overlap() -> None:
    [only] = windows(8, 5, 2).rounds
    assert [call.frames for call in only.calls] == [range(5), range(3, 8)]
    assert only.calls[0].weights == pytest.approx((1, 1, 1, 2 / 3, 1 / 3))
    assert only.calls[1].weights == pytest.approx((1 / 3, 2 / 3, 1, 1, 1))
    fused = fuse(only, torch.zeros(1, 1, 8, 1, 1), lambda window, call: torch.full_like(window, float(call.segment)))
    assert fused.flatten().tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])


def test_overlap_must_fit_the_window() -> None:
    with pytest.raises(ValueError, match=r"timeline.overlap is 5 latent frames; it must be at least 0 and below the window of 5"):
        windows(20, 5, 5)


def test_a_window_gets_the_prompt_at_its_centre(tiny_wan: Path) -> None:
    take, card = tiny_take(), read_card(str(tiny_wan))
    centres = [call.centre for call in take.timeline_for(card).calls]
    assert centres == [2, 5, 8]
    assert [take.prompt_at(centre, card) for centre in centres] == [take.prompts[0].text, take.prompts[1].text, take.prompts[1].text]
