"""The form of a benchmark's results: one JSON file with where and when, the raw figures and the bars."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..files import write_atomic
from ..pipeline.versions import package_versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bar:
    """A figure that an issue asks for. at_least: whether it must reach the bar, or stay at or below it."""

    value: float
    unit: str
    bar: float
    at_least: bool

    @property
    def holds(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar


def write_results(name: str, bars: dict[str, Bar], raw: dict[str, Any]) -> None:
    """Write bench/results/NAME.json and print the bars; raw: whatever the bars were worked out from."""
    RESULTS.mkdir(exist_ok=True)
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": package_versions(("longtake", "torch", "diffusers", "transformers", "ray")),
        "python": platform.python_version(),
        "commit": commit(),
        "bars": {key: asdict(bar) for key, bar in bars.items()},
        "raw": raw,
    }
    path = RESULTS / f"{name}.json"
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    for key, bar in bars.items():
        print(f"{key}: {bar.value:g} {bar.unit} ({'at least' if bar.at_least else 'at most'} {bar.bar:g}) {'holds' if bar.holds else 'FAILS'}")
    print(path)


def read_bars() -> dict[str, dict[str, Bar]]:
    """All committed bars by benchmark."""
    return {
        path.stem: {key: Bar(**values) for key, values in json.loads(path.read_text())["bars"].items()} for path in sorted(RESULTS.glob("*.json"))
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with '+' where there are changes on top of it, results apart; empty outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=RESULTS.parent.parent, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".", ":!bench/results") else "")
