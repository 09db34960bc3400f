"""The first call: a take from one line, a job file to begin with, and rendering from Python with events and results."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from longtake import JobFailed, JobResult, Rendering, TakeResult, __version__, render
from longtake.jobs.driver import JobStopped
from longtake.jobs.errors import AddressError, ClusterError
from longtake.jobs.events import Decoded, Event, GangFormed, JobEnded, JobStarted, JobState, ModelLoaded, Note, Stepped, TakeChanged, TakeState
from longtake.jobs.folder.access import JobRefused
from longtake.jobs.folder.journal import JOURNAL, Journal
from longtake.jobs.gang.failures import Cause, GangError
from longtake.jobs.settings.config import JobConfig, load_job
from longtake.jobs.settings.planning import plan_job
from longtake.jobs.settings.quick import num_frames, quick_job, take_name
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.film.read import probe
from test_jobs import run_here

PROMPT = "a red circle moves left over a grey background"


@given(st.text())
def test_any_prompt_gives_a_take_s_name(prompt: str) -> None:
    name = take_name(prompt)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)
    assert len(name) <= 48 + 7


@given(seconds=st.floats(0.01, 1000), fps=st.sampled_from([8, 16, 24000 / 1001, 24.0]))
def test_seconds_become_the_nearest_length_that_the_model_renders(seconds: float, fps: float) -> None:
    card = read_card("demo")
    frames = num_frames(seconds, fps, card)
    assert (frames - 1) % card.temporal_stride == 0
    assert abs(frames - max(1.0, seconds * fps)) <= card.temporal_stride / 2 + 1e-6


def quick(*overrides: str, model: str | None = "demo", seconds: float | None = None, seed: int | None = None) -> JobConfig:
    return quick_job(PROMPT, model, seconds, seed, overrides, lambda line: None)


def test_a_prompt_is_a_job() -> None:
    job = quick(seconds=4, seed=3)
    [take] = job.takes
    assert (take.prompt, take.name, job.output) == (PROMPT, "a-red-circle-moves-left-over-a-grey-background-3", "longtake-out")
    assert (job.seed, job.num_frames, job.timeline and job.timeline.name) == (3, 65, "windows")
    assert quick(seconds=2).timeline is None
    assert quick().num_frames is None
    assert quick("fps=8", seconds=4).num_frames == 33
    assert quick("model=demo", "cache=none", model=None).cache.recipe == "none"
    assert (quick("timeline=full", seconds=4).timeline or job.timeline) != job.timeline


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", PROMPT], "--prompt needs a model; give --model demo"),
        (["--prompt", PROMPT, "--model", "/nowhere"], "There is no model folder '/nowhere'"),
        (["--prompt", PROMPT, "--model", "demo", "--seconds", "0"], "--seconds is 0; give the film's length"),
        (["--prompt", PROMPT, "--model", "demo", "--seconds", "nan"], "--seconds is nan"),
        (["--prompt", PROMPT, "--model", "demo", "--seconds", "4", "num_frames=33"], "--seconds is 4, and num_frames is 33"),
        (["job.yaml", "--prompt", PROMPT, "--model", "demo"], "'job.yaml' stands beside --prompt"),
        (["--prompt", PROMPT, "--model", "demo", "cahce=none"], "has no setting 'cahce'"),
        (["--prompt", " ", "--model", "demo"], "lacks a prompt"),
        (["--prompt", PROMPT, "--model", "demo", "--seconds", "1e308"], r"--seconds is 1e\+308; give the film's length, 4 for example, at most"),
        (["--prompt", PROMPT, "--model", "demo", "--seed", "3", "seed=5"], "--seed is 3, and a setting changes the seed"),
        (["--prompt", PROMPT, "--model", "demo", "--seed", "3", "takes.0.seed=5"], "--seed is 3, and a setting changes the seed"),
        (["--prompt", PROMPT, "--model", "demo", "model=/other"], "--model is 'demo', and a setting names '/other'"),
        (["--prompt", PROMPT, "--model", "demo", "takes.0.prompt=x"], "a setting changes the take's prompt"),
        (["--prompt", PROMPT, "--model", "demo", "takes=[]"], "--prompt renders one take, and the settings make it 0"),
        (["job.yaml", "--seed", "3"], "--seed belong.* to --prompt"),
        ([], "There is nothing to render"),
    ],
)
def test_what_cannot_be_a_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_here("render", *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_new_job_file_renders_as_it_is_and_with_all_its_comments(tiny_wan: Path, tmp_path: Path) -> None:
    for model in ("demo", str(tiny_wan)):
        path = tmp_path / f"{Path(model).name}.yaml"
        assert run_here("new", str(path), "--model", model).exit_code == 0
        job = load_job(str(path), [f"output={tmp_path}/out"])
        plan = plan_job(job)
        assert [planned.take.name for planned in plan.takes] == ["first"]
        said = re.sub(r"^( *)# (?=[- ] |\w+: |  )", r"\1", path.read_text(), flags=re.MULTILINE)
        usual = tmp_path / "usual.yaml"
        usual.write_text(said)
        again = plan_job(load_job(str(usual), [f"output={tmp_path}/out"]))
        assert [planned.take.name for planned in again.takes] == ["first", "long"]
        assert again.takes[0].film_key == plan.takes[0].film_key, "a comment does not state the usual value"
        assert again.delivery_key == plan.delivery_key
        refused = run_here("new", str(path))
        assert (refused.exit_code, "is there already" in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", ["a b.yaml", "it's $HOME.yml", "~x.yaml", "-.yaml", "\u6620.yaml"])
def test_a_new_job_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    assert run_here("new", "--", str(tmp_path / "in" / name)).exit_code == (2 if "$" in name else 0)
    for path in (tmp_path / "in").iterdir():
        output = Path(plan_job(load_job(str(path), [f"output={tmp_path}/{load_job(str(path)).output}"])).job.output)
        assert output.parent == tmp_path


def test_other_prompts_get_other_names() -> None:
    assert take_name("Caf\u00e9 cr\u00e8me!") == "cafe-creme"
    assert len({take_name(prompt) for prompt in ("\u6620\u753b", "\u732b", "report", "take", f"{PROMPT} and on", f"{PROMPT} and off")}) == 6
    assert take_name("report") != "report"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"takes": {"name": "a", "prompt": "x"}}, "takes is .* it must be a list; write `- ` before each"),
        ({"takes": [{"name": "a", "prompts": "x"}]}, r"takes\[0\]: prompts is 'x'; it must be a list"),
        ({"cache": ["fbcache"]}, "cache is .* it must be a mapping"),
        (5, "A job is a YAML file's path, a mapping or a JobConfig, not a int"),
    ],
)
def test_a_job_of_another_form_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rendering(wrong)
    with pytest.raises(ValueError, match="'1' is no override"):
        Rendering({"model": "demo"}, [1])


def test_errors_and_events_travel_between_processes(tmp_path: Path) -> None:
    take = TakeResult("one", TakeState.FAILED, tmp_path, None, None, "it burnt")
    for error in (
        JobFailed(JobResult(tmp_path, (take,))),
        AddressError("RAY_ADDRESS is ''"),
        GangError("died", rank=1, why=Cause.DIED),
        ClusterError("no"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
    event = TakeChanged(job="a", take="one", state=TakeState.DONE)
    assert pickle.loads(pickle.dumps(event)) == event


def test_the_version_is_shown() -> None:
    assert run_here("--version").stdout == f"longtake {__version__}\n"


def job(model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    takes = [{"name": "one", "prompt": "a red circle"}, {"name": "two", "prompt": "a blue square", "seed": 2}]
    return {"model": model, "output": output, "num_inference_steps": 4, "cache": "none", "parallel": {"threads": 1}, "takes": takes, **changes}


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / JOURNAL).read_text().splitlines()]


@pytest.mark.ray
def test_rendering_from_python_in_a_thread_with_a_ray_in_use(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(render(job(tiny_wan, tmp_path / "out"), ["seed=5"], on_event=events.append)))
    thread.start()
    thread.join(240)
    assert ray.is_initialized(), "a Ray that was in use goes on"
    [result] = results
    assert [take.state for take in result.takes] == [TakeState.DONE] * 2
    for take, seed in zip(result.takes, (5, 2), strict=True):
        assert take.film == tmp_path / "out" / take.name / "film.mp4"
        assert probe(take.film).num_frames == 17
        assert take.manifest.seed == seed
    assert result["two"].manifest.ranks == 1
    kinds = [type(event) for event in events if not isinstance(event, Note)]
    rendered = [TakeChanged, *[Stepped] * 4, *[Decoded] * kinds.count(Decoded)]
    assert kinds[:5] == [JobStarted, TakeChanged, TakeChanged, GangFormed, ModelLoaded]
    assert kinds[5 : 5 + 6] == rendered[:6]
    assert isinstance(events[0], JobStarted)
    assert events[0].config["fps"] == "8"
    assert json.loads(events[0].to_json())["config"]["takes"][1] == result["two"].manifest.config["take"]
    assert isinstance(events[-1], JobEnded)
    assert events[-1].state is JobState.DONE
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("in use already" in text for text in notes)
    assert any("one rank on the CPU" in text for text in notes)
    kept = [line for line in lines(tmp_path / "out") if line["event"] not in ("stepped", "decoded")]
    assert kept == [json.loads(event.to_json()) for event in events if not isinstance(event, Stepped | Decoded)]
    assert len({line["job"] for line in kept}) == 1


@pytest.mark.ray
def test_leaving_the_iterator_stops_the_job_and_it_goes_on_later(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    with Rendering(job(tiny_wan, tmp_path / "out")) as rendering:
        for event in rendering:
            if isinstance(event, Stepped) and event.take == "two":
                break
    assert not ray.is_initialized(), "a Ray that was joined for the job is left"
    one, two = rendering.result.takes
    assert (one.state, two.state, two.film, two.manifest) == (TakeState.DONE, TakeState.WAITING, None, None)
    assert [line["state"] for line in lines(tmp_path / "out") if line["event"] == "job_ended"] == ["stopped"]
    assert not list((tmp_path / "out" / "two").glob(".*"))
    with pytest.raises(RuntimeError, match="rendered already"):
        next(iter(rendering))
    again = render(job(tiny_wan, tmp_path / "out"))
    assert [take.state for take in again.takes] == [TakeState.DONE] * 2
    assert sum(line["event"] == "take_changed" and line["state"] == "running" for line in lines(tmp_path / "out")) == 3
    shown = run_here("render", _written(tmp_path, tiny_wan))
    assert re.search(r"^take +frames +seconds +computed +speed-up +film\none +17 +[\d.]+ +100% +- +.*one/film.mp4\ntwo ", shown.stdout, re.MULTILINE)


def _written(folder: Path, model: Path) -> str:
    path = folder / "job.json"  # which is YAML as well
    path.write_text(json.dumps(job(model, folder / "out"), default=str))
    return str(path)


@pytest.mark.ray
def test_an_interrupt_while_an_event_is_shown_names_the_take(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    def interrupted(at: type[Event]) -> Callable[[Event], None]:
        def interrupt(event: Event) -> None:
            if isinstance(event, at) and event.take == "two" and getattr(event, "state", None) is not TakeState.WAITING:
                raise KeyboardInterrupt

        return interrupt

    for number, (at, said) in enumerate(((TakeChanged, "take 'two' after step 0 of 4"), (Stepped, "take 'two' after step 1 of 4"))):
        with pytest.raises(JobStopped, match=said):
            render(job(tiny_wan, tmp_path / str(number)), on_event=interrupted(at))
        told = lines(tmp_path / str(number))
        assert (told[-2]["state"], told[-2]["cause"]) == ("waiting", f"stopped {said}")
        assert (told[-1]["state"], told[-1]["cause"]) == ("stopped", said)
        assert not list((tmp_path / str(number)).glob("two/.*"))


@pytest.mark.ray
def test_a_folder_that_takes_no_film_leaves_the_other_takes(ray_driver: str, tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a job renders where it was planned, whatever folder is worked in by then."""
    monkeypatch.chdir(tmp_path)
    rendering = Rendering(job(tiny_wan, Path("out")))
    (tmp_path / "out" / "one").write_text("in the way")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(JobFailed, match="take 'one': NotADirectoryError"):
        list(rendering)
    assert [take.state for take in rendering.result.takes] == [TakeState.FAILED, TakeState.DONE]
    assert rendering.result["two"].film == tmp_path / "out" / "two" / "film.mp4"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_gpus_that_this_machine_has_not_are_not_waited_for(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is joined may get some meanwhile: there parallel.placement_timeout says how long."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(JobRefused, match=r"99 rank\(s\) need a GPU each, and this machine has \d+; set device=cpu"):
        render(job(tiny_wan, tmp_path / "out", device="cuda", parallel={"ring_degree": 99}, height=320, width=320))
    assert not ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_two_jobs_in_two_threads_share_a_ray_of_their_own(tiny_wan: Path, tmp_path: Path) -> None:
    """The first one starts it, the last one ends it, though the one that started it is done long before."""
    address = os.environ.pop("RAY_ADDRESS", None)
    try:
        results: dict[str, Any] = {}
        threads = [threading.Thread(target=lambda name=name: results.update({name: render(job(tiny_wan, tmp_path / name))})) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        if address is not None:
            os.environ["RAY_ADDRESS"] = address
    assert [take.state for name in "ab" for take in results[name].takes] == [TakeState.DONE] * 4
    assert not ray.is_initialized()


@pytest.mark.ray
def test_a_failed_take_leaves_the_others(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    settings = job(tiny_wan, tmp_path / "out")
    settings["takes"][0]["guidance_scale"] = 1e38
    with pytest.raises(JobFailed, match=r"1 of 2 takes failed: take 'one': .*the take's latents are not finite") as failure:
        render(settings)
    one, two = failure.value.result.takes
    assert (one.state, one.film, two.state) == (TakeState.FAILED, None, TakeState.DONE)
    assert "not finite" in one.cause
    assert lines(tmp_path / "out")[-1]["state"] == "failed"


def test_a_journal_goes_on_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"event": "no')
    with Journal(tmp_path) as one, Journal(tmp_path) as other:
        one.append(Note(job="a", text="x"))
        other.append(Note(job="b", text="y"))
        for step in range(100):
            one.append(Stepped(job="a", take="t", step=step, num_steps=100, decisions={}))
    told = (tmp_path / JOURNAL).read_text().splitlines()
    assert told[0] == '{"event": "no'
    found = [json.loads(line) for line in told[1:] if line]
    assert [line.get("text") for line in found[:2]] == ["x", "y"]
    assert len(found) < 10, "steps that follow each other within a second are left out"
