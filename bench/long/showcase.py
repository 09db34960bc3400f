"""`make showcase` renders 30 s of film on each timeline; this writes the page that shows them side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image, ImageDraw

from ...files import write_atomic, written_whole
from ...pipeline.film.read import read_frames

_PAGE = "side_by_side.html"
_STILLS, _GAP, _LABEL = 12, 4, 14  # stills a film; pixels between them, and above a row
_HOW = {
    "windows": "Overlapping windows, fused at every step. Frames that two windows share are computed twice.",
    "banded": "One sequence of all frames, each of which attends to those around it, no more than the model was trained on.",
    "rollout": "Chunk after chunk, each shown the last frames that are done; those and the new ones attend to each other.",
    "rollout-isolated": "Chunk after chunk; the frames that are done attend to themselves alone, and are computed once a chunk.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where configs/showcase.yaml was rendered")
    folder = parser.parse_args().folder
    print(write_page(folder))
    print(write_sheet(folder))


def write_page(folder: Path) -> Path:
    """folder: with the takes of configs/showcase.yaml, rendered."""
    manifests = {name: json.loads((folder / name / "manifest.json").read_text()) for name in _HOW}
    take = next(iter(manifests.values()))["config"]["take"]
    fps = float(next(iter(manifests.values()))["config"]["fps"])
    prompts = [{"seconds": round(prompt["frame"] / fps), "text": prompt["text"]} for prompt in take["prompts"]]
    takes = [{"name": name, "how": _HOW[name], "figures": list(_figures(manifest))} for name, manifest in manifests.items()]
    template = Environment(autoescape=True).from_string((resources.files("longtake.bench.long") / _PAGE).read_text())
    page = folder / "side-by-side.html"
    write_atomic(page, template.render(seconds=round(take["num_frames"] / fps), prompts=prompts, takes=takes))
    return page


def write_sheet(folder: Path) -> Path:
    """Stills of all takes, one row each under its name, from the first frame to the last one."""
    rows = []
    for name in _HOW:
        frames = [frame for chunk in read_frames(folder / name / "film.mp4") for frame in chunk]
        stills = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, _STILLS)]
        row = Image.new("RGB", (sum(still.shape[1] + _GAP for still in stills), stills[0].shape[0] + _LABEL), "white")
        ImageDraw.Draw(row).text((0, 1), name, fill="black")
        for number, still in enumerate(stills):
            row.paste(Image.fromarray(still), (number * (still.shape[1] + _GAP), _LABEL))
        rows.append(row)
    sheet = Image.new("RGB", (rows[0].width - _GAP, sum(row.height + _GAP for row in rows)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + _GAP)))
    path = folder / "side-by-side.jpg"
    with written_whole(path) as temporary:
        sheet.save(temporary, "JPEG", quality=90)
    return path


def _figures(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    seconds, decisions = manifest["seconds"], manifest["decisions"]
    yield "denoising", f"{seconds['denoise']:.1f} s on {manifest['ranks']} ranks"
    yield "decoding", f"{seconds['decode']:.1f} s"
    if decisions:
        yield "calls computed", f"{100 * decisions['compute'] / sum(decisions.values()):.0f} %"
    if manifest["speedup"]:
        yield "by the cache", f"{manifest['speedup']:.1f} times as fast"
    checks = manifest["checks"]
    if checks["seam_ratio"]:
        yield "change at joins", f"{checks['seam_ratio']:.2f} of other borders"
    yield "background, end to start", f"{checks['background_shift']:.1f} grey levels"
    for mark in checks["marks"]:
        yield f"marked at {mark['second']:.1f} s", mark["kind"]


if __name__ == "__main__":
    main()
