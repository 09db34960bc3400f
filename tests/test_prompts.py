"""Prompts that begin at a time: the frame that is meant, what is said of it, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longtake.jobs.settings.config import JobConfig, load_job, resolve_takes
from longtake.jobs.settings.prompts import PromptConfig, resolve_prompts, where_prompts_begin
from longtake.pipeline.checkpoint.card import read_card

FPS = Fraction(16)


def job(*prompts: dict[str, object], **take: object) -> JobConfig:
    return load_job({"takes": [{"name": "one", "timeline": "windows", "num_frames": 129, "prompts": list(prompts), **take}]})


@given(st.integers(0, 59), st.integers(0, 59_999), st.sampled_from([Fraction(16), Fraction(24000, 1001), Fraction(30)]))
def test_a_time_is_moved_to_the_nearest_frame(minutes: int, milliseconds: int, fps: Fraction) -> None:
    seconds = Fraction(milliseconds, 1000)
    [prompt] = resolve_prompts("one", [PromptConfig(at=f"{minutes}m{float(seconds):.3f}s", text="fog")], fps)
    assert abs(prompt.frame / fps - (60 * minutes + seconds)) <= 1 / (2 * fps)


@pytest.mark.parametrize(("at", "frame"), [("2.5s", 40), ("0s", 0), ("0.06s", 1), ("1m", 960), ("1m30s", 1440), (" 7s ", 112)])
def test_times_by_hand(at: str, frame: int) -> None:
    assert resolve_prompts("one", [PromptConfig(at=at, text="fog")], FPS)[0].frame == frame


def test_a_time_that_the_films_rate_decides() -> None:
    wanted, card = job({"text": "a red circle"}, {"at": "3s", "text": "a blue square"}), read_card("demo")
    assert [prompt.frame for prompt in resolve_takes(wanted, card, FPS)[0].prompts] == [0, 48]
    assert [prompt.frame for prompt in resolve_takes(wanted, card, Fraction(24))[0].prompts] == [0, 72]


def test_what_a_time_was_moved_to_is_said() -> None:
    """Of the demo's windows of 9 latent frames, 3 of them shared, the one that begins at latent frame 6, frame 21, is the first with its middle at
    frame 40 or later.
    """
    wanted, card = job({"at": "0s", "text": "a red circle"}, {"at": "2.49s", "text": "a blue square"}), read_card("demo")
    [take] = resolve_takes(wanted, card, FPS)
    first, second = where_prompts_begin(take, wanted.takes[0].all_prompts, card, FPS)
    assert first == "take 'one': the prompt at 0s begins at frame 0 (0.00 s)"
    assert second.startswith("take 'one': the prompt at 2.49s begins at frame 40 (2.50 s)")
    assert second.endswith("it is first rendered for frames 21 to 56")
    by_frame = [PromptConfig(text="a red circle"), PromptConfig(frame=40, text="a blue square")]
    assert list(where_prompts_begin(take, by_frame, card, FPS)) == [
        "take 'one': the prompt at frame 40 (2.50 s) is first rendered for frames 21 to 56"
    ]


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        ([{"at": "2.5", "text": "fog"}], r"a prompt is at '2\.5'; write a time as 2\.5s"),
        ([{"at": "", "text": "fog"}], "a prompt is at ''"),
        ([{"at": "-1s", "text": "fog"}], "a prompt is at '-1s'"),
        ([{"at": "1s", "frame": 16, "text": "fog"}], "has frame 16 and at 1s; keep one"),
        ([{"text": "fog"}, {"at": "9s", "text": "rain"}], r"a prompt starts at frame 144, but the take has 129 frames.*\(9s is frame 144\)"),
        ([{"text": "fog"}, {"at": "0.5s", "text": "rain"}, {"at": "0.6s", "text": "fog"}], "the prompt from frame 0 .'fog'. is used by no window"),
        ([{"text": "fog"}, {"at": "3s", "text": "rain"}, {"at": "7.9s", "text": "fog"}], "the prompt from frame 126 .'fog'. is used by no window"),
        ([{"at": "1s", "text": "fog"}], "they must start at 0"),
        ([{"text": "fog"}, {"at": "1s", "text": "rain"}, {"at": "1.01s", "text": "snow"}], "must start at 0 and ascend"),
    ],
)
def test_refused(prompts: list[dict[str, object]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve_takes(job(*prompts), read_card("demo"), FPS)


def test_other_faults_of_a_take_say_nothing_of_its_prompts() -> None:
    wanted = job({"text": "fog"}, {"at": "3s", "text": "rain"})
    wanted.height = 90
    with pytest.raises(ValueError, match="height is 90") as refused:
        resolve_takes(wanted, read_card("demo"), FPS)
    assert "is frame" not in str(refused.value)
