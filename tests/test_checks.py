"""Whole-take checks: artificial films that freeze, loop, drift or jump, and clean ones that do not; figures against plain computations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from longtake.jobs.events import TakeState
from longtake.jobs.folder.manifest import read_manifest
from longtake.jobs.gang.rank import Rank
from longtake.jobs.gang.reports import Loaded
from longtake.jobs.rendering import JobFailed, JobResult, render
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.demo.scene import MOTIONS, SIZE, Scene, Thing, draw
from longtake.pipeline.film.checks.figures import Checks
from longtake.pipeline.film.checks.film import FilmChecks, Plan
from longtake.pipeline.film.checks.take import plan_checks
from longtake.pipeline.film.read import probe
from longtake.pipeline.take import PromptAt, TimelineSettings
from numpy.typing import NDArray

from takes import tiny_take

Frames = NDArray[np.uint8]
LENGTH, FPS = 145, Fraction(16)
JOINS = (33, 57, 81, 105, 129)  # of a rollout of the demo model: 9 latent frames, 3 of them context
FILM = Plan(LENGTH, FPS, first=33, stride=4, joins=JOINS)


def check(frames: Frames, plan: Plan = FILM, portion: int = 4) -> Checks:
    checks = FilmChecks(plan)
    for start in range(0, len(frames), portion):
        checks.add(torch.from_numpy(frames[start : start + portion]))
    return checks.result()


def passed(frames: Frames, plan: Plan = FILM) -> list[tuple[str, float]]:
    """What is marked, and at which second."""
    return [(mark.kind, mark.second) for mark in check(frames, plan).marks]


def scene(motion: str, background: str = "checkered") -> Scene:
    """A textured background drifts, so that no picture comes back."""
    thing = Thing("circle", "red", motion, 40.0, 50.0, 18.0, 3.3 if motion == "circling" else 2.3, 0.3)
    return Scene((thing,), background, (3.0, 5.0), (0.31, -0.23))


def flickering(frames: Frames, size: float = 1.0) -> Frames:
    """With what a decoder makes of pictures that are the same."""
    noise = np.random.default_rng(0).normal(0, size, frames.shape)
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("background", ["striped", "checkered"])
def test_what_goes_on_as_it_began_is_not_marked(motion: str, background: str) -> None:
    checks = check(flickering(draw(scene(motion, background), LENGTH)))
    assert checks.marks == ()
    assert checks.seam_ratio == pytest.approx(1, abs=0.15)
    assert checks.background_shift < 2
    assert checks.similarity > 0.95


def test_what_is_still_from_the_beginning_does_not_freeze() -> None:
    still = draw(scene("still", "grey"), LENGTH)
    assert passed(still) == []
    assert passed(flickering(still)) == []
    assert check(still).stillest is None


@pytest.mark.parametrize("flicker", [0.0, 1.0])
def test_a_film_that_freezes_is_marked_where_it_does(flicker: float) -> None:
    frames = draw(scene("left", "grey"), LENGTH)
    frames[48:] = frames[48]
    [(kind, second)] = passed(flickering(frames, flicker))
    assert kind == "freeze"
    assert second == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("period", [8, 16, 24])
def test_a_film_that_loops_is_marked_where_it_begins_to(period: int) -> None:
    """Also where it is decoded a little otherwise each time."""
    frames = draw(scene("circling"), LENGTH)
    frames[48 + period :] = np.resize(frames[48 : 48 + period], frames[48 + period :].shape)
    [(kind, second)] = passed(flickering(frames))
    assert (kind, second) == ("loop", (48 + period) / 16)
    assert "every" in check(frames).marks[0].text


def test_a_motion_that_comes_back_from_the_beginning_on_is_no_loop() -> None:
    """The first chunk shows it twice."""
    frames = draw(scene("circling"), 12)
    assert passed(np.resize(frames, (LENGTH, *frames.shape[1:]))) == []


@pytest.mark.parametrize(("levels", "second"), [(5, None), (-5, None), (24, 5.6), (-24, 5.6)])
def test_a_background_that_changes_colour_is_marked_where_it_passes_the_limit(levels: int, second: float | None) -> None:
    """From frame 48 on, by so many grey levels of one channel in all; a changed light is no drift of the frames that are compared with."""
    frames = draw(scene("circling"), LENGTH).astype(np.float64)
    frames[48:, :, :, 0] += np.linspace(0, levels, LENGTH - 48)[:, None, None]
    checks = check(frames.round().clip(0, 255).astype(np.uint8))
    assert checks.background_shift == pytest.approx(abs(levels) * (1 - 16 / (LENGTH - 48)), abs=1)
    assert [mark.kind for mark in checks.marks] == ([] if second is None else ["drift"])
    if second is not None:
        assert checks.marks[0].second == pytest.approx(second, abs=0.5)


def test_a_jump_at_a_join_is_marked_there_and_nowhere_else() -> None:
    frames = draw(scene("circling"), LENGTH)
    frames[105:, :, :] = np.roll(frames[105:], 30, axis=1)
    assert passed(frames) == [("seam", 6.56)]
    assert passed(frames, replace(FILM, joins=JOINS[:2])) == [], "a cut within a chunk is no seam"


def test_what_a_new_prompt_changes_was_asked_for_and_what_follows_is_compared_with_it() -> None:
    """A thing that stops, then a background of another colour, which drifts."""
    plan = replace(FILM, prompts=(0, 57, 105))
    frames = np.concatenate([draw(scene("left", "grey"), 57), draw(scene("still", "grey"), 48), draw(scene("left", "white"), LENGTH - 105)])
    assert passed(flickering(frames), plan) == []
    assert {kind for kind, _ in passed(flickering(frames))} == {"freeze", "seam", "drift"}
    brighter = frames.astype(np.float64) - np.linspace(0, 24, LENGTH)[:, None, None, None]
    assert [kind for kind, _ in passed(brighter.clip(0, 255).astype(np.uint8), plan)] == ["drift"], "drifts of all prompts add up"


@pytest.mark.parametrize("prompts", [(0, 57, 69), (0, 57, 69, 81, 93, 105, 117), (0, 133)])
def test_a_prompt_that_is_too_short_to_judge_is_not_held_against_the_one_before(prompts: tuple[int, ...]) -> None:
    """It is over a white background, which was asked for."""
    ends = (*prompts[1:], LENGTH)
    parts = [
        draw(scene("left", "white" if number % 2 else "grey"), end - begin) for number, (begin, end) in enumerate(zip(prompts, ends, strict=True))
    ]
    assert "drift" not in dict(passed(flickering(np.concatenate(parts)), replace(FILM, prompts=prompts)))


def test_what_moves_about_does_not_add_up_to_a_drift() -> None:
    """Over a texture colours are never quite those of another time, however often the prompt changes."""
    frames = draw(scene("circling"), 4 * LENGTH)
    plan = Plan(len(frames), FPS, first=33, stride=4, prompts=tuple(range(0, len(frames), 72)))
    assert passed(flickering(frames, 8.0), plan) == []


def test_changes_at_joins_and_at_other_borders_are_plain_differences() -> None:
    frames = flickering(draw(scene("up"), LENGTH), 5)[:, :40, :40]
    changes = np.abs(frames[1:].astype(int) - frames[:-1]).mean(axis=(1, 2, 3))
    borders = range(1, LENGTH, 4)
    other = np.mean([changes[border - 1] for border in borders if border not in JOINS])
    for portion in (1, 7, LENGTH):
        checks = check(frames, portion=portion)
        assert checks.joins == JOINS
        assert np.allclose(checks.join_changes, [changes[join - 1] for join in JOINS], atol=0.01)
        assert checks.border_change == pytest.approx(other, abs=0.01)
        assert checks.seam_ratio == pytest.approx(np.mean([changes[join - 1] for join in JOINS]) / other, abs=0.001)
        assert checks == check(frames)


def test_curves_tell_the_background_over_time() -> None:
    frames = np.full((LENGTH, SIZE, SIZE, 3), (100, 120, 140), np.uint8)
    frames[73:] += np.array([10, 0, 0], np.uint8)
    curves = check(frames).curves
    assert (curves.frame[0], curves.frame[-1], len(curves.frame)) == (0, LENGTH - 1, 60)
    assert (curves.background[0], curves.background[-1]) == ("#64788c", "#6e788c")
    assert (curves.background_shift[0], curves.background_shift[-1]) == (0.0, 10.0)
    assert (curves.similarity[0], curves.similarity[-1]) == (1.0, round(1 - 10 / 3 / 64, 3))


@pytest.mark.parametrize("length", [1, 2, 9, 33])
def test_short_films_are_checked_as_far_as_they_go(length: int) -> None:
    frames = draw(scene("left"), length)
    checks = check(frames, replace(FILM, num_frames=length, joins=()))
    assert (checks.num_frames, checks.marks, checks.seam_ratio) == (length, (), None)
    if length == 33:
        frames[17:] = frames[17]
        assert passed(frames, replace(FILM, num_frames=length, joins=())) == [("freeze", 1.06)]


def test_what_is_held_does_not_grow_but_for_colours() -> None:
    """A film of an hour is held in 50 MB."""
    import tracemalloc

    def held(length: int) -> int:
        checks = FilmChecks(Plan(length, FPS, 33, 4))
        frames = torch.from_numpy(draw(scene("circling"), 16)[:, :32, :32])
        tracemalloc.start()
        for _ in range(length // 16):
            checks.add(frames)
        bytes_held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return bytes_held

    assert (held(1600) - held(800)) / 800 < 500


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(1, 8, 8, 3), "frames are torch.float32"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"\[8, 8, 3\]; give uint8 \[frames"),
        (torch.zeros(LENGTH + 1, 8, 8, 3, dtype=torch.uint8), "146 frames came for a film of num_frames=145"),
    ],
)
def test_other_frames_are_refused(frames: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FilmChecks(FILM).add(frames)


def test_joins_are_where_another_call_begins_to_count_most() -> None:
    card = read_card("demo")
    prompts = (PromptAt(0, "a"), PromptAt(60, "b"), PromptAt(100, "b"))

    def plan(timeline: TimelineSettings, **changes: int) -> Plan:
        return plan_checks(tiny_take(num_frames=129, prompts=prompts, timeline=timeline), card, FPS)

    assert plan(TimelineSettings("full", 0, 0)) == Plan(129, FPS, 33, 4, (), (0,))
    assert plan(TimelineSettings("rollout", 9, 3)) == Plan(129, FPS, 33, 4, (33, 57, 81, 105), (0, 57))
    # Windows begin at latent frames 0, 6, 12, 18 and 24 and share three: the middle one counts as the first one's.
    assert plan(TimelineSettings("windows", 9, 3)) == Plan(129, FPS, 33, 4, (29, 53, 77, 101), (0, 53))


class _FadingRank(Rank):
    """Its decoder brightens all that comes after a take's 29th frame, on every rank."""

    def load(self, *args: Any) -> Loaded:
        loaded = super().load(*args)
        assert self._renderer is not None
        family = self._renderer.family
        decoding = family.decoding

        def fading() -> Any:
            plain, seen = decoding(), [0]

            def frames(latents: torch.Tensor, *, is_last: bool) -> Iterator[torch.Tensor]:
                for chunk in plain.frames(latents, is_last=is_last):
                    seen[0] += len(chunk)
                    yield (chunk + 0.2).clamp(0, 1) if seen[0] > 29 else chunk

            return SimpleNamespace(frames=frames)

        family.decoding = fading
        return loaded


@pytest.mark.ray
def test_a_take_that_drifts_is_stopped_and_no_other(ray_driver: str, tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two ranks, which end it together; its film lies there up to the end of that chunk, and is not rendered again unless that would differ."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("longtake.jobs.gang.gang.Rank", _FadingRank)
    takes = [{"name": "long", "num_frames": 65}, {"name": "short", "num_frames": 29}]
    job = {
        "model": str(tiny_wan),
        "output": str(tmp_path),
        "num_inference_steps": 2,
        "timeline": {"name": "rollout", "window": 17, "overlap": 8},
        "cache": "none",
        "save_latents": True,
        "parallel": {"ulysses_degree": 2, "threads": 1},
        "takes": [{**take, "prompt": "a red circle"} for take in takes],
    }

    def rendered(*changes: str) -> tuple[JobResult, list[str]]:
        said: list[str] = []
        try:
            return render(job, changes, on_event=lambda event: said.append(getattr(event, "text", ""))), said
        except JobFailed as failed:
            return failed.result, said

    result, _ = rendered("on_drift=stop")
    assert [take.state for take in result.takes] == [TakeState.FAILED, TakeState.DONE]
    assert result["long"].cause.startswith("stopped after 5.1 s, on_drift=stop: ")
    assert probe(tmp_path / "long" / "film.mp4").num_frames == 41
    assert {path.name for path in (tmp_path / "long").iterdir()} >= {"manifest.json", "contact_sheet.jpg", "latents.safetensors"}
    manifest = read_manifest(tmp_path / "long")
    assert manifest is not None
    assert manifest.checks is not None
    assert (manifest.state, manifest.checks.num_frames) == ("stopped", 41)
    assert probe(tmp_path / "short" / "film.mp4").num_frames == 29
    assert result.marked == ()

    again, said = rendered("on_drift=stop")
    assert [take.state for take in again.takes] == [TakeState.FAILED, TakeState.DONE]
    assert "another seed or prompt may do" in again["long"].cause
    assert not any("loading" in line for line in said), "what would stop again is not rendered"

    marked, said = rendered()
    assert [take.state for take in marked.takes] == [TakeState.DONE] * 2
    assert [take.name for take in marked.marked] == ["long"]
    assert probe(tmp_path / "long" / "film.mp4").num_frames == 65
    assert any(line.startswith("take 'long' is marked: ") for line in said)
