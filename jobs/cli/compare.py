"""`longtake compare`: how alike two films are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .said import checked, given_path, say


def compare(
    a: Annotated[Path, typer.Argument(help="a take's folder, or a film")],
    b: Annotated[Path, typer.Argument(help="a take's folder, or a film")],
) -> None:
    """PSNR and SSIM of two takes or films."""
    from ...pipeline.film.compare import compare_films

    films = [path / "film.mp4" if path.is_dir() else path for path in (given_path(a), given_path(b))]
    result = checked(compare_films, *films)
    if result.psnr == float("inf"):
        say(f"{result.num_frames} frames: equal")
        return
    worst = f"worst {result.worst_psnr:.2f} dB at frame {result.worst_frame}"
    say(f"{result.num_frames} frames: PSNR {result.psnr:.2f} dB ({worst}), SSIM {result.ssim:.4f}")
