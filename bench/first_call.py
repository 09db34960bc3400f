"""How long a user waits for a first answer: `python -m longtake.bench first_call`; `python -m longtake.bench demo` measures it as well.

recipes_seconds: the command `longtake recipes`. refusal_seconds: `longtake render` of a job file with a misspelt setting. Both are whole
processes, start of Python included, with compiled bytecode in place; medians over rounds that run both and a Python that does nothing in
turn, which tells how much of the time is not ours.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .results import Bar, write_results

_ROUNDS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.yaml"
        job.write_text("model: demo\noutput: films\ncahce: fbcache\ntakes: [{name: first, prompt: a red circle moves left}]\n")
        longtake = [sys.executable, "-m", "longtake"]
        commands = {
            "recipes": ([*longtake, "recipes"], 0),
            "refusal": ([*longtake, "render", str(job)], 2),
            "python": ([sys.executable, "-c", "pass"], 0),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(1 + _ROUNDS):
            for name, (command, code) in commands.items():
                seconds[name].append(_time(command, code))
    counted = {f"{name}_seconds": runs[1:] for name, runs in seconds.items()}
    medians = {name: round(statistics.median(runs), 3) for name, runs in counted.items()}
    bars = {
        "recipes_seconds": Bar(medians["recipes_seconds"], "s", 1, at_least=False),
        "refusal_seconds": Bar(medians["refusal_seconds"], "s", 2, at_least=False),
    }
    write_results("first_call", bars, counted)


def _time(command: list[str], code: int) -> float:
    """Seconds of a command that must end with an exit code."""
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    assert ended.returncode == code, f"{command} ended with {ended.returncode}: {ended.stderr}"
    return round(seconds, 3)


if __name__ == "__main__":
    main()
