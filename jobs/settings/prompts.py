"""Prompts that change during a take, as people write them: from a frame on, or from a second on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.take import PromptAt, SeedAt, Take


@dataclass
class PromptConfig:
    """A prompt and where it begins: at a frame, the take's first if left out, or `at` a time, 2.5s or 1m30s, which is moved to the nearest frame."""

    frame: int | None = None
    at: str | None = None
    text: str = ""


@dataclass
class SeedConfig:
    """A seed, and the frame or the time, 2.5s or 1m30s, from whose chunk on it holds."""

    frame: int | None = None
    at: str | None = None
    seed: int | None = None


def resolve_reseeds(take: str, reseeds: Sequence[SeedConfig], fps: Fraction) -> tuple[SeedAt, ...]:
    """As `resolve_prompts`. Raises ValueError for one without a seed, too."""
    resolved = []
    for one in reseeds:
        if one.seed is None:
            raise ValueError(f"Take '{take}': reseed at {one.at or f'frame {one.frame or 0}'} has no seed; write {{at: 12s, seed: 7}} for example.")
        resolved.append(SeedAt(_first_frame(take, one, fps, "reseed"), one.seed))
    return tuple(resolved)


def where_reseeds_begin(take: Take, card: ModelCard, fps: Fraction) -> Iterator[str]:
    """A line for each: the border that it was moved to."""
    chunks = [take.frames(one.frames, card) for one in take.timeline_for(card).rounds]
    for one in take.reseeds:
        begin = next(chunk.start for chunk in chunks if one.frame in chunk)
        where = f"frame {begin} ({float(begin / fps):.2f} s)"
        yield f"take '{take.name}': seed {one.seed} holds from {where} on, where the chunk of frame {one.frame} begins"


def resolve_prompts(take: str, prompts: Sequence[PromptConfig], fps: Fraction) -> tuple[PromptAt, ...]:
    """take: its name. fps: the film's frames a second. Raises ValueError for a prompt with both a frame and a time, and for what is no time."""
    return tuple(PromptAt(_first_frame(take, prompt, fps, "a prompt"), prompt.text) for prompt in prompts)


def _first_frame(take: str, placed: PromptConfig | SeedConfig, fps: Fraction, what: str) -> int:
    if placed.at is None:
        return placed.frame or 0
    if placed.frame is not None:
        raise ValueError(f"Take '{take}': {what} has frame {placed.frame} and at {placed.at}; keep one of the two.")
    return round(_seconds(take, placed.at, what) * fps)


def _seconds(take: str, at: str, what: str) -> Fraction:
    found = re.fullmatch(r"(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?", at.strip())
    if not found or found[0] == "":
        raise ValueError(f"Take '{take}': {what} is at '{at}'; write a time as 2.5s, 90s or 1m30s, or give its frame instead.")
    minutes, seconds = found.groups(default="0")
    return 60 * Fraction(minutes) + Fraction(seconds)


def timed_prompts(take: Take, prompts: Sequence[PromptConfig]) -> str:
    """What a message about a take's prompts, which speaks of frames, says of times; empty where none was given."""
    told = [f"{written.at} is frame {prompt.frame}" for written, prompt in zip(prompts, take.prompts, strict=True) if written.at is not None]
    return f" ({', '.join(told)})" if told else ""


def where_prompts_begin(take: Take, prompts: Sequence[PromptConfig], card: ModelCard, fps: Fraction) -> Iterator[str]:
    """A line for each prompt that begins elsewhere than was written: the frame that its time was moved to, and from where on the model is given it.

    take, prompts: the same take's, resolved and as written.
    """
    for written, prompt in zip(prompts, take.prompts, strict=True):
        frames = take.frames(take.first_span_with(prompt, card), card)
        if written.at is None and prompt.frame == frames.start:
            continue
        place, second = f"frame {prompt.frame}", f"{float(prompt.frame / fps):.2f} s"
        line = f"take '{take.name}': the prompt at {f'{written.at} begins at {place} ({second})' if written.at else f'{place} ({second})'}"
        first = f"first rendered for frames {frames.start} to {frames.stop - 1}"
        yield line if prompt.frame == frames.start else f"{line}; it is {first}" if written.at else f"{line} is {first}"
