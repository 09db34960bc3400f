"""Prompts that change during a take, as people write them: from a frame on, or from a second on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.take import PromptAt, Take


@dataclass
class PromptConfig:
    """A prompt and where it begins: at a frame, the take's first if left out, or `at` a time, 2.5s or 1m30s, which is moved to the nearest frame."""

    frame: int | None = None
    at: str | None = None
    text: str = ""


def resolve_prompts(take: str, prompts: Sequence[PromptConfig], fps: Fraction) -> tuple[PromptAt, ...]:
    """take: its name. fps: the film's frames a second. Raises ValueError for a prompt with both a frame and a time, and for what is no time."""
    return tuple(PromptAt(_first_frame(take, prompt, fps), prompt.text) for prompt in prompts)


def _first_frame(take: str, prompt: PromptConfig, fps: Fraction) -> int:
    if prompt.at is None:
        return prompt.frame or 0
    if prompt.frame is not None:
        raise ValueError(f"Take '{take}': a prompt has frame {prompt.frame} and at {prompt.at}; keep one of the two.")
    return round(_seconds(take, prompt.at) * fps)


def _seconds(take: str, at: str) -> Fraction:
    found = re.fullmatch(r"(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?", at.strip())
    if not found or found[0] == "":
        raise ValueError(f"Take '{take}': a prompt is at '{at}'; write a time as 2.5s, 90s or 1m30s, or give its frame instead.")
    minutes, seconds = found.groups(default="0")
    return 60 * Fraction(minutes) + Fraction(seconds)


def timed_prompts(take: Take, prompts: Sequence[PromptConfig]) -> str:
    """What a message about a take's prompts, which speaks of frames, says of times; empty where none was given."""
    told = [f"{written.at} is frame {prompt.frame}" for written, prompt in zip(prompts, take.prompts, strict=True) if written.at is not None]
    return f" ({', '.join(told)})" if told else ""


def where_prompts_begin(take: Take, prompts: Sequence[PromptConfig], card: ModelCard, fps: Fraction) -> Iterator[str]:
    """A line for each prompt that was given a time: the frame that it was moved to, and from where on the model is given it.

    take, prompts: the same take's, resolved and as written.
    """
    for written, prompt in zip(prompts, take.prompts, strict=True):
        if written.at is not None:
            line = f"take '{take.name}': the prompt at {written.at} begins at frame {prompt.frame} ({float(prompt.frame / fps):.2f} s)"
            frames = take.frames(take.first_span_with(prompt, card), card)
            yield line if prompt.frame == frames.start else f"{line}; it is first rendered for frames {frames.start} to {frames.stop - 1}"
