"""A job's page: what it tells of runs and takes, and how it behaves in a browser."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from longtake.jobs.cli.app import app
from longtake.jobs.events import Decoded, Event, GangFormed, JobEnded, JobStarted, JobState, ModelLoaded, Note, Stepped, TakeChanged, TakeState
from longtake.jobs.folder.journal import JOURNAL, Journal
from longtake.jobs.folder.manifest import Manifest
from longtake.jobs.report.history import Standing
from longtake.jobs.report.page import Page, page_of
from longtake.jobs.report.reading import check_job_folder, read_events, read_folders
from longtake.jobs.report.write import FOLDER, write_report
from longtake.pipeline.film.film import ContactSheet, FilmWriter
from PIL import Image
from typer.testing import CliRunner

if TYPE_CHECKING:
    pass

BEGAN = datetime(2026, 11, 26, 5, tzinfo=UTC)
HTML = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & \"quotes\""
LONG = "moths around a lamp in a glasshouse at night, " * 20
NAMES = ["harbour", "html", "glasshouse", "tram", "eclipse", "ships", "closing", "a" * 100]
SETTINGS = {"model": {"path": "/models/wan"}, "cache": {"recipe": "teacache"}, "fps": "8"}


def minute(number: float) -> datetime:
    return BEGAN + timedelta(minutes=number)


def take(name: str) -> dict[str, Any]:
    prompt = {"html": HTML, "glasshouse": LONG}.get(name, f"a film of {name}")
    return {"name": name, "prompt": prompt, "prompts": [], "seed": 3, "num_frames": 16, "width": 64, "height": 48, "num_inference_steps": None}


def started(job: str, names: list[str], at: float = 0) -> JobStarted:
    config = {**SETTINGS, "takes": [take(name) for name in names], "num_inference_steps": 50}
    return JobStarted(job=job, time=minute(at), longtake="0.1.0", model="/models/wan", output="/renders", takes=names, config=config)


def changed(job: str, name: str, state: TakeState, at: float, cause: str = "") -> TakeChanged:
    return TakeChanged(job=job, take=name, state=state, time=minute(at), cause=cause)


def deliver(folder: Path, finished: datetime = BEGAN, *, with_film: bool = True) -> None:
    """A take's folder as the driver leaves it."""
    folder.mkdir(exist_ok=True)
    if with_film:
        frames = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3), np.uint8)
        frames[:, :, 20:40] = np.arange(16, dtype=np.uint8)[:, None, None, None] * 16
        with FilmWriter(folder / "film.mp4", width=64, height=48, fps=8) as film:
            film.write(frames)
        sheet = ContactSheet(16)
        sheet.add(frames)
        sheet.save(folder / "contact_sheet.jpg")
        sheet.thumbnail(folder / "thumbnail.jpg")
        Image.new("RGB", (400, 32), "white").save(folder / "decisions.png")
    name = folder.name.partition("@")[0]
    resolved = {**take(name), "prompt": None, "prompts": [{"frame": 0, "text": take(name)["prompt"]}], "num_inference_steps": 50}
    Manifest(
        take=name,
        state="done",
        film_key="8f" * 32,
        seed=3,
        config={**SETTINGS, "take": resolved},
        recipe=None,
        ranks=2,
        threads=4,
        device="cpu",
        versions={"longtake": "0.1.0"},
        seconds={"load": 4.0, "encode": 0.5, "denoise": 8.0, "decode": 1.0, "write": 0.5, "take": 10.2},
        decisions={"compute": 40, "partial": 10, "reuse": 50},
        speedup=2.25,
        cache_bytes=0,
        peak_memory_bytes=0,
        finished=finished.isoformat(timespec="seconds"),
    ).write(folder)


def record(output: Path, *events: Event) -> None:
    for event in events:
        with Journal(output) as journal:  # anew for each, as it leaves out steps that follow too soon
            journal.append(event)


def page_in(output: Path) -> Page:
    return page_of(output, read_events(output / JOURNAL), read_folders(output), BEGAN)


def standings(output: Path) -> dict[str, str]:
    return {one.name: one.standing.value for one in page_in(output).takes}


def test_events_come_back_as_they_were_written_and_what_is_torn_or_unknown_is_passed_over(tmp_path: Path) -> None:
    events = [
        started("A", ["a"]),
        Note(job="A", take="a", text="said\u2028so", time=minute(0)),
        GangFormed(job="A", device="cpu", num_ranks=2, degrees={"ulysses": 2}, threads=[1, 1], time=minute(1)),
        ModelLoaded(job="A", seconds=1.5, time=minute(1)),
        changed("A", "a", TakeState.RUNNING, 2),
        Stepped(job="A", take="a", step=1, num_inference_steps=50, decisions={"compute": 2}, time=minute(3)),
        Decoded(job="A", take="a", frames=8, num_frames=16, time=minute(3)),
        JobEnded(job="A", state=JobState.STOPPED, cause="Ctrl-C", time=minute(4)),
    ]
    assert read_events(tmp_path / JOURNAL) == []
    record(tmp_path, *events)
    line = events[-2].to_json()
    odd = [line.replace("decoded", "from_the_future"), line.replace("2026-", ""), "[1]", "null", line.replace("+00:00", ""), '{"event": "note"}', ""]
    later = line.replace('"frames"', '"of_a_later_version": 1, "frames"')
    with (tmp_path / JOURNAL).open("a") as file:
        file.write("\n".join([*odd, later, line[:40]]))
    assert read_events(tmp_path / JOURNAL) == [*events, events[-2]]


def test_a_run_that_was_killed_leaves_its_take_stopped_until_another_one_goes_on_with_it(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a", "b"]), changed("A", "a", TakeState.WAITING, 0), changed("A", "a", TakeState.RUNNING, 1))
    assert standings(tmp_path) == {"a": "running", "b": "waiting"}
    record(tmp_path, started("B", ["b"], at=60), changed("B", "b", TakeState.RUNNING, 61))
    assert standings(tmp_path) == {"a": "stopped", "b": "running"}
    assert "killed" in {one.name: one.cause for one in page_in(tmp_path).takes}["a"]
    record(tmp_path, JobEnded(job="B", state=JobState.FAILED, cause="rank 1 died", time=minute(62)))
    page = page_in(tmp_path)
    assert (page.standing, page.run.cause if page.run else "") == (Standing.FAILED, "rank 1 died")
    assert standings(tmp_path)["b"] == "stopped"
    record(tmp_path, started("C", ["a", "b"], at=70))
    assert standings(tmp_path) == {"a": "waiting", "b": "waiting"}


def test_two_jobs_in_one_folder_go_on_side_by_side(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.RUNNING, 1), started("B", ["b"], at=2), changed("B", "b", TakeState.RUNNING, 2))
    record(tmp_path, Stepped(job="A", take="a", step=7, num_inference_steps=50, decisions={}, time=minute(3)))
    assert standings(tmp_path) == {"a": "running", "b": "running"}
    record(tmp_path, changed("B", "b", TakeState.DONE, 4), JobEnded(job="B", state=JobState.DONE, time=minute(4)))
    page = page_in(tmp_path)
    assert page.run is not None
    assert (page.run.job, page.standing) == ("A", Standing.RUNNING)
    assert [one.progress.text for one in page.takes if one.progress] == ["step 7 of 50"]


def test_a_stopped_take_is_told_from_one_that_never_began(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a", "b"]), *(changed("A", name, TakeState.WAITING, 0) for name in "ab"), changed("A", "a", TakeState.RUNNING, 1))
    record(tmp_path, changed("A", "a", TakeState.WAITING, 2, "stopped after step 3 of 50"), JobEnded(job="A", state=JobState.STOPPED, time=minute(2)))
    assert standings(tmp_path) == {"a": "stopped", "b": "waiting"}


def test_a_film_that_was_whole_before_its_job_was_killed_is_done(tmp_path: Path) -> None:
    record(tmp_path, started("A", ["a"]), changed("A", "a", TakeState.RUNNING, 1), started("B", ["b"], at=9))
    deliver(tmp_path / "a", finished=minute(2), with_film=False)
    assert standings(tmp_path)["a"] == "done"
    deliver(tmp_path / "a", finished=minute(0), with_film=False)
    assert standings(tmp_path)["a"] == "stopped"


def test_manifests_alone_are_enough_and_one_that_cannot_be_read_hides_no_other_take(tmp_path: Path) -> None:
    for name in ("a", "b"):
        deliver(tmp_path / name, with_film=False)
    (tmp_path / "b" / "manifest.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert standings(tmp_path) == {"a": "done", "b": "failed"}
    page = page_in(tmp_path)
    assert (page.machine, page.model, page.longtake) == ("cpu, 2 ranks, 4 CPU threads a rank", "/models/wan", "0.1.0")
    assert [(stage.name, stage.share) for stage in page.takes[0].stages] == [
        ("load", None),
        ("encode", 5),
        ("denoise", 80),
        ("decode", 10),
        ("write", 5),
    ]
    assert "no manifest that this version can read" in write_report(tmp_path).read_text()


def test_the_page_is_written_without_what_renders(tmp_path: Path) -> None:
    deliver(tmp_path / "a", with_film=False)
    heavy = "{'torch', 'diffusers', 'transformers', 'ray', 'av', 'numpy', 'matplotlib'}"
    write = "from longtake.jobs.report.write import write_report; write_report(Path(sys.argv[1]))"
    code = f"import sys; from pathlib import Path; {write}; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_the_command_makes_the_page_and_refuses_folders_that_are_no_jobs(tmp_path: Path) -> None:
    job = tmp_path / "a job"
    job.mkdir()
    deliver(job / "a", with_film=False)
    result = CliRunner().invoke(app, ["report", str(job)])
    assert (result.exit_code, result.stdout) == (0, f"{job / FOLDER / 'index.html'}\n")
    assert (job / FOLDER / "index.html").is_file()
    refused = {job / "a": f"give the job's, '{job}'", tmp_path: "neither events.jsonl nor a take", tmp_path / "none": "There is no folder"}
    for path, mend in refused.items():
        result = CliRunner().invoke(app, ["report", str(path)])
        assert result.exit_code == 2
        assert mend in result.stderr
        with pytest.raises(ValueError, match=str(path)):
            check_job_folder(path)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("name", [FOLDER, JOURNAL, "Report"])
def test_no_take_lies_where_the_page_and_the_events_do(name: str) -> None:
    with pytest.raises(ValueError, match=f"name is '{name}'"):
        resolve_takes(JobConfig(takes=[TakeConfig(name=name, prompt="fog")]), read_card("demo"))
