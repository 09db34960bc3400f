"""A film at another frame rate, without encoding its pictures again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

from ...files import written_whole
from .encoder import MOVFLAGS
from .read import open_film


def retime(source: Path, target: Path, fps: Fraction) -> None:
    """Copies a film's encoded packets into a film of another frame rate: the same pictures, tags and metadata, nothing decoded.

    Raises ValueError for an unreadable film, and for one whose frames do not follow each other at one rate.
    """
    with (
        written_whole(target) as partial,
        open_film(source) as (container, stream),
        av.open(str(partial), "w", options={"movflags": MOVFLAGS}) as output,
    ):
        output.metadata.update(container.metadata)
        copied = output.add_stream_from_template(stream)
        copied.time_base = 1 / fps
        rate = stream.average_rate or Fraction(0)
        for packet in container.demux(stream):
            if packet.dts is None:  # the empty packet at the end of the stream
                continue
            packet.pts, packet.dts = (_frame_index(source, time, packet.time_base * rate) for time in (packet.pts, packet.dts))
            packet.duration, packet.time_base, packet.stream = 1, 1 / fps, copied
            output.mux(packet)


def _frame_index(source: Path, time: int | None, scale: Fraction) -> int:
    index = None if time is None else time * scale
    if index is None or index.denominator != 1:
        raise ValueError(f"{source}: its frames do not follow each other at one rate; render it again")
    return index.numerator
