"""What all checks have in common: they see a take's pictures one after the other, and say once where a limit is passed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from .pictures import Picture


@dataclass(frozen=True)
class Part:
    """The frames of a take under one prompt, judged by their own beginning: what a new prompt changes was asked for.

    start: the first of them. learnt: how many, from there on, show what is usual; they are not judged themselves. second: frames in a second, or
    in half of `learnt` where these are fewer.
    """

    start: int
    learnt: int
    second: int


@dataclass(frozen=True)
class Found:
    """A limit is passed from `frame` on. text: the figure and the limit."""

    frame: int
    text: str


class Check(ABC):
    """One check of one part."""

    kind: ClassVar[str]

    def __init__(self, part: Part) -> None:
        self.part = part

    @abstractmethod
    def see(self, frame: int, picture: Picture) -> Found | None:
        """The part's next frame; what it passes, which may have begun earlier. Goes on finding it while it lasts."""
