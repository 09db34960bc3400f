"""`make showcase` renders 30 s of film on each timeline; this writes the page that shows them side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ...files import write_atomic

_PAGE = "side_by_side.html"
_HOW = {
    "windows": "Overlapping windows, fused at every step. Frames that two windows share are computed twice.",
    "banded": "One sequence of all frames, each of which attends to those around it, no more than the model was trained on.",
    "rollout": "Chunk after chunk, each shown the last frames that are done; those and the new ones attend to each other.",
    "rollout-isolated": "Chunk after chunk; the frames that are done attend to themselves alone, and are computed once a chunk.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where configs/showcase.yaml was rendered")
    print(write_page(parser.parse_args().folder))


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


def _figures(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    seconds, decisions = manifest["seconds"], manifest["decisions"]
    yield "denoising", f"{seconds['denoise']:.1f} s on {manifest['ranks']} ranks"
    yield "decoding", f"{seconds['decode']:.1f} s"
    if decisions:
        yield "calls computed", f"{100 * decisions['compute'] / sum(decisions.values()):.0f} %"
    if manifest["speedup"]:
        yield "by the cache", f"{manifest['speedup']:.1f} times as fast"


if __name__ == "__main__":
    main()
