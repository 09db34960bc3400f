"""What is listed, read, checked and refused imports nothing that takes seconds to import: no torch, no diffusers, no Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path

import longtake.cache
import pytest
from longtake.cache import Trace, TraceEntry
from longtake.cache.decision import Decision

SLOW = ["torch", "diffusers", "transformers", "ray", "av", "matplotlib", "torchmetrics", "numpy"]

# Runs each of its arguments, a piece of Python or a command line, and prints what of SLOW was imported by then; all in one fresh process.
PROGRAM = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

slow, pieces = map(json.loads, sys.argv[1:])
for piece in pieces:
    out, code = StringIO(), 0
    with redirect_stdout(out), redirect_stderr(out):
        try:
            if isinstance(piece, list):
                from longtake.jobs.cli.app import app

                app(piece)
            else:
                exec(piece)
        except SystemExit as end:
            code = end.code
        except ValueError as error:
            code = f"refused: {error}"
    print(json.dumps([code, [name for name in slow if name in sys.modules], out.getvalue()]))
"""


def _run(pieces: list[str | list[str]]) -> list[tuple[int | str, str]]:
    """Exit code (or refusal) and output of each piece, none of which has imported anything slow."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(SLOW), json.dumps(pieces)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(pieces), ended.stderr
    for piece, (_, imported, _) in zip(pieces, answers, strict=True):
        assert not imported, f"{piece} imports {', '.join(imported)}"
    return [(code, output) for code, _, output in answers]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.json"
    entries = [TraceEntry(0, step, "cond", "stack", "1-2", decision.value, 0.1, 0.1) for step, decision in enumerate(Decision)]
    Trace("fbcache", num_inference_steps=len(entries), entries=entries).save(path)
    return str(path)


def test_lists_traces_and_refusals_import_nothing_slow(trace: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"{{model: demo, output: {tmp_path}/films, takes: [{{name: a, prompt: a red circle}}]}}")
    render = ["render", str(job)]
    succeed = [["recipes"], ["recipes", "fbcache"], ["trace", "show", trace], ["trace", "diff", trace, trace]]
    refuse = [
        ["recipes", "fbcashe"],
        ["trace", "show", str(tmp_path / "none.json")],
        ["render", str(tmp_path / "none.yaml")],
        [*render, "seeed=1"],
        [*render, "takes.0.num_frames=34"],
        [*render, "cache=fbcashe"],
        [*render, "cache=fbcache", "cache.trigger.treshold=1"],
        [*render, f"model={tmp_path}"],
        [*render, "parallel.ulysses_degree=5"],
        ["tune", str(job), "--psnr", "30", "--take", "none"],
        ["calibrate", str(tmp_path)],
    ]
    answers = _run([*succeed, *refuse])
    assert [code for code, _ in answers] == [0] * len(succeed) + [2] * len(refuse)
    assert "teacache" in answers[0][1] and "first_steps" in answers[1][1] and "#.~" in answers[2][1]
    assert all("error:" in output for _, output in answers[len(succeed) :])


def test_reading_a_card_and_planning_a_job_import_nothing_slow(tmp_path: Path) -> None:
    """Planned whole: its takes, recipe, film keys, degrees, and the bytes that its cache will hold."""
    demo = str(resources.files("longtake.configs") / "demo.yaml")
    _, (_, planned), (refused, _) = _run(
        [
            "from longtake.pipeline.checkpoint.card import read_card; print(read_card('demo').num_layers)",
            f"""
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.planning import plan_job
plan = plan_job(load_job({demo!r}, ["output={tmp_path}/films", "cache.budget_gb=1", "parallel=auto"]))
degrees, _ = plan.choose_degrees(num_ranks=2, ranks_per_node=2)
plan.check(degrees, "cpu")
print(plan.recipe.name, len(plan.takes), degrees)
""",
            f"from longtake.pipeline.checkpoint.card import read_card; read_card({str(tmp_path)!r})",
        ]
    )
    assert planned.startswith("planned")
    assert str(refused).startswith("refused")


def test_a_job_that_is_done_imports_nothing_slow(tmp_path: Path) -> None:
    """Nor does its page, nor what `longtake new` and --prompt work out."""
    job = tmp_path / "job.yaml"
    job.write_text(f"{{model: demo, output: {tmp_path}/films, takes: [{{name: a, prompt: a red circle}}]}}")
    done = f"""
from longtake.jobs.folder.manifest import Manifest
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.planning import plan_job
plan = plan_job(load_job({str(job)!r}))
[take] = plan.takes
take.folder.mkdir()
(take.folder / "film.mp4").write_text("a film")
told = dict(take="a", state="done", film_key=take.film_key, delivery_key=plan.delivery_key, seed=0, config=plan.config_of(take), recipe=None)
told |= dict(ranks=1, threads=1, device="cpu", versions={{}}, seconds={{"take": 1.0}}, decisions={{}}, cache_bytes=0, peak_memory_bytes=0)
Manifest(**told, finished="2026-11-26T00:00:00+00:00").write(take.folder)
"""
    prompted = ["render", "--model", "demo", "--prompt", "a red circle", "--seconds", "4", "num_frames=33"]
    _, (rendered, told), (reported, _), (new, _), (refused, why) = _run(
        [done, ["render", str(job)], ["report", str(tmp_path / "films")], ["new", str(tmp_path / "new.yaml")], prompted]
    )
    assert (rendered, reported, new, refused) == (0, 0, 0, 2), told
    assert "take 'a' is done already" in told
    assert "give one of the two" in why


def test_the_cache_hands_on_its_names() -> None:
    """Without importing them beforehand, and nothing else."""
    for name in longtake.cache.__all__:
        assert name in dir(longtake.cache)
        found = getattr(longtake.cache, name)
        assert getattr(import_module(found.__module__), name) is found
    with pytest.raises(ImportError, match="Recip"):
        exec("from longtake.cache import Recip")
