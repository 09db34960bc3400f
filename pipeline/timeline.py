"""How a take's latent frames are shown to the model: all at once, or in overlapping windows.

Pure arithmetic: knows latent frames and weights, nothing of models; loop/fuse.py puts together what the model makes of the windows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Latent frames start to stop (exclusive), and how much each counts where windows overlap."""

    start: int
    stop: int
    weights: tuple[float, ...]

    @property
    def frames(self) -> range:
        return range(self.start, self.stop)

    @property
    def centre(self) -> float:
        return (self.start + self.stop - 1) / 2


@dataclass(frozen=True)
class Timeline:
    """Windows that cover a take; a window's index is its segment in traces."""

    num_latent_frames: int
    windows: tuple[Window, ...]

    @classmethod
    def full(cls, num_latent_frames: int) -> Timeline:
        """All frames attend to all."""
        return cls(num_latent_frames, (Window(0, num_latent_frames, (1.0,) * num_latent_frames),))

    @classmethod
    def overlapping(cls, num_latent_frames: int, window: int, overlap: int) -> Timeline:
        """Windows of `window` frames, `overlap` of them shared with the next; the last one is shifted back, not shrunk.

        Weights fall off linearly over the overlap towards a window's ends, and not at the ends of the take.
        """
        if not 0 <= overlap < window:
            raise ValueError(f"timeline.overlap is {overlap} latent frames; it must be at least 0 and below the window of {window}.")
        if num_latent_frames <= window:
            return cls.full(num_latent_frames)
        last = num_latent_frames - window
        starts = [*range(0, last, window - overlap), last]
        windows = []
        for start in starts:
            rising = [1.0 if start == 0 else min(1.0, (i + 1) / (overlap + 1)) for i in range(window)]
            falling = [1.0 if start == last else min(1.0, (window - i) / (overlap + 1)) for i in range(window)]
            windows.append(Window(start, start + window, tuple(min(pair) for pair in zip(rising, falling, strict=True))))
        return cls(num_latent_frames, tuple(windows))
