"""Takes for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longtake.pipeline.take import PromptAt, Take, TimelineSettings

WINDOWS = TimelineSettings("windows", 5, 2)

TINY_TAKE = Take(
    name="tiny",
    prompts=(PromptAt(0, "a red circle moves left"), PromptAt(20, "a blue square stands still")),
    negative_prompt="",
    seed=3,
    num_frames=41,
    height=32,
    width=32,
    num_inference_steps=6,
    guidance_scale=4.0,
    flow_shift=None,
    timeline=WINDOWS,
    noise="frame",
)


def tiny_take(**changes: Any) -> Take:
    return replace(TINY_TAKE, **changes)
