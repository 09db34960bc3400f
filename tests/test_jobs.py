"""Job files, their errors, and whole jobs on a local Ray cluster: films, manifests, skipping, stopping and dying."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from click.testing import Result
from longtake.jobs.cli.app import app
from longtake.jobs.doctor import examine
from longtake.jobs.folder.access import JobRefused, locked
from longtake.jobs.folder.manifest import read_manifest
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.plan import Plan
from longtake.jobs.settings.planning import plan_job
from longtake.jobs.show.progress import BarReporter, LineReporter
from longtake.parallel.groups.degrees import Degrees
from longtake.pipeline.film.read import probe
from longtake.pipeline.loop.render import Renderer
from rich.console import Console
from safetensors.torch import load_file
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from same import assert_same

JOB: dict[str, Any] = {
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "timeline": {"name": "windows", "window": 17, "overlap": 8},
    "cache": {"recipe": "fbcache", "trigger": {"threshold": 0.2}},
    "parallel": {"ulysses_degree": 2, "threads": 1},
    "preview_every": 2,
    "takes": [
        {"name": "one", "prompt": "a red circle moves left", "seed": 1, "num_frames": 17},
        {"name": "two", "prompts": [{"frame": 0, "text": "a red circle"}, {"frame": 20, "text": "a blue square"}], "num_frames": 41},
    ],
}


def write_job(folder: Path, model: Path, **changes: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), "output": str(folder / "out"), **JOB, **changes}))
    return path


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As in a terminal."""
    command = [sys.executable, "-m", "longtake", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, **environment})


def run_here(*arguments: str) -> Result:
    """The same in this process, which has imported everything already: half the time of a short job."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["guidance=3"], r"has no setting 'guidance'.*'guidance_scale'"),
        (["takes.0.promt=x"], r"takes\[0\], has no setting 'promt'. Did you mean 'prompt'"),
        (["num_inference_steps=many"], "many"),
        (["height=33"], "height is 33; it must be a multiple of 16 for this model, 32 for example"),
        (["takes.0.num_frames=18"], "num_frames is 18; it must be 1 more than a multiple of 4, 17 for example"),
        (["parallel.ulysses_degree=4"], "parallel.ulysses_degree is 4; it must divide the model's 6 heads: 1, 2, 3, 6"),
        (["takes.0.prompt="], "Take 'one' lacks a prompt"),
        (["takes.1.prompts.0.frame=4"], "must start at 0"),
        (["takes.1.prompts.1.frame=44"], "starts at frame 44"),
        (["takes.1.timeline=full"], r"the prompt from frame 0 \('a red circle'\) is used by no window"),
        (["takes.1.prompts.1.frame=36"], r"the prompt from frame 36 \('a blue square'\) is used by no window"),
        (["takes.1.name=one"], "Two takes are called 'one'"),
        (["takes.1.name=../up"], "takes\\[1\\]: name is '../up'"),
        (["model=/nowhere"], "no model folder '/nowhere'"),
        (["output=/proc/out"], "Cannot write to the output folder '/proc/out'"),
        (["output=/etc/hosts"], r"Cannot write to the output folder '/etc/hosts' \(File exists\)"),
        (["output=/etc/hosts/out"], "Cannot write to the output folder '/etc/hosts/out' .Not a directory."),
        (["output=/tmp/" + "x" * 300], "File name too long"),
        (["takes.0.name=" + "x" * 201], r"takes\[0\]: name has 201 characters"),
        (["cache=fbcahce"], "Did you mean 'fbcache'"),
        (["cache.trigger.treshold=1"], "Did you mean 'threshold'"),
        (["num_inference_steps=3"], "nothing would be reused"),
        (["takes.0.name=report"], "name is 'report', which the job uses for files of its own"),
        (["takes.0.name=Report"], "name is 'Report', which the job uses for files of its own"),
        (["takes.0.name=events.jsonl"], "name is 'events.jsonl', which the job uses for files of its own"),
        (["timeline=bands"], "timeline is 'bands'; it must be full, windows, rollout or banded"),
        (["priority=101"], "Take 'one': priority is 101; it must be from 0 to 100"),
        (["parallel.num_gangs=0"], "parallel.num_gangs is '0'; it must be auto, or a number from 1 to 1000"),
        (["parallel.num_gangs=many"], "parallel.num_gangs is 'many'; it must be auto"),
        (["snapshot_every=-1"], "snapshot_every is -1; give the seconds between snapshots, or 0"),
        (["retries.job=-1"], "retries.job is -1; give a number of times, 0 for none"),
        (["retries.wait_minutes=-2"], "retries.wait_minutes is -2; give minutes"),
        (["retries.hung_minutes=0"], "retries.hung_minutes is 0; give minutes, more than 0"),
        (["timeline.overlap=17"], "overlap is 17; it must be a multiple of 4"),
        (["timeline.overlap=20"], r"Take 'one': timeline.overlap is 20; with a window of 17 frames it must be from 0 to 16"),
        (["takes.1.prompts.1.bogus=1"], r"The job, takes\[1\], prompts\[1\], has no setting 'bogus'"),
        (["on_drift=end"], "on_drift is 'end'; it must be one of mark, stop"),
        (["on_drift=stop"], "on_drift is stop, and no take has several rounds"),
        (["model.dtype=float8"], "model.dtype is 'float8'"),
        (["model.shard=gnag"], "model.shard is 'gnag'; it must be one of none, gang"),
        (["model.shard=gang", "parallel.ulysses_degree=1"], "no ranks share tokens"),
        (["model.shard=gang", "model.offload=blocks"], "choose one of them"),
        (["attention_backend=native", "parallel.kernel=xfuser"], "attention_backend is 'native' and parallel.kernel is xfuser"),
        (["parallel.num_ranks=3"], r"parallel.num_ranks is 3, but the degrees \(ulysses 2\) multiply to 2"),
        (["cache.budget_gb=0.00001"], r"would hold .* GB on a rank for take .*cache.budget_gb is 1e-05"),
        (["cache.over_budget=drop"], "over_budget is 'drop'; it must be one of refuse, host"),
        (["cache.over_budget=host", "device=cpu"], "whose memory is the host's"),
        (["cache.dtype=int4"], "dtype is 'int4'; it must be one of model, bfloat16, float16, float8"),
        (["cache=teacache"], "run `longtake calibrate MODEL --recipe teacache`: jobs find the file"),
        (["cache=fastercache", "parallel.ulysses_degree=1", "parallel.cfg_degree=2"], r"set parallel\.cfg_degree to 1"),
        (["cache=fastercache", "guidance_scale=1"], "works on both guidance branches, but take"),
        (["parallel.cfg_degree=3"], "parallel.cfg_degree is 3, but there are two branches at most"),
        (["parallel.cfg_degree=2", "guidance_scale=1"], "not every take has a second branch"),
        (["parallel.window_degree=2"], r"a take has only 1 window\(s\)"),
        (["parallel.ring_degree=40"], "A take has 20 tokens, too few for 80 ranks"),
        (["parallel.degrees=given"], "parallel.degrees is 'given'; it must be auto, or be left out"),
        (["parallel.degrees=auto"], r"parallel.degrees is auto, but degrees are given as well \(ulysses 2\)"),
        (["cache.replay=none.json"], "There is no trace 'none.json'"),
        (["parallel.kernel=fast"], "parallel.kernel is 'fast'; it must be one of native, xfuser"),
        (["attention_backend=flush"], "attention_backend is 'flush'; diffusers knows flash"),
        (["noise=white"], "noise is 'white'"),
        (["guidance_scale=.nan"], "guidance_scale is nan; it must be a finite number"),
        (["guidance_scale=-1"], "guidance_scale is -1; it must be finite and at least 0"),
        (["takes.1.flow_shift=.inf"], r"takes\[1\].flow_shift is inf; it must be a finite number"),
        (["flow_shift=0"], "flow_shift is 0; it must be finite and above 0"),
        (["cache.trigger.threshold=.nan"], "cache.trigger.threshold is nan"),
        (["cache.budget_gb=0"], "cache.budget_gb is 0; it must be above 0"),
        (["parallel.collective_timeout=.inf"], "parallel.collective_timeout is inf"),
        (["parallel.placement_timeout=1e300"], r"parallel.placement_timeout is 1e\+300; it must be above 0 seconds and at most 1e\+06"),
        (["preview_every=-1"], "preview_every is -1"),
        (["takes.0.seed=-1"], "seed is -1; it must be from 0 to"),
        (["takes.0.seed=9223372036854775808"], "seed is 9223372036854775808; it must be from 0 to"),
        (["num_inference_steps=100000"], "num_inference_steps is 100000; it must be from 1 to 10000"),
        (["takes.0.num_frames=4000001"], "num_frames is 4000001; it must be at most 1000000"),
        (["height=160000"], "height is 160000; films are at most 16384 pixels"),
        (["fps=0"], "fps is 0; it must be a number from 1 to 1000"),
        (["negative_prompt=blue", "guidance_scale=1"], "negative_prompt is 'blue', but guidance_scale is 1, so that it has no effect"),
        (["nonsense"], "'nonsense' is no override"),
    ],
)
def test_bad_jobs_are_refused(tiny_wan: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    job = write_job(tmp_path, tiny_wan)
    with pytest.raises(ValueError, match=message):
        plan_job(load_job(str(job), overrides))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vae", "lacks 'vae/'"),
        ("model_index.json", "lacks model_index.json"),
        ("transformer/diffusion_pytorch_model.safetensors", "has no weights in 'transformer/'"),
        ("text_encoder/config.json", "text_encoder' lacks config.json"),
        ("tokenizer/tokenizer.json", "has no vocabulary in 'tokenizer/'"),
    ],
)
def test_incomplete_checkpoints_are_refused(tiny_wan_copy: Path, tmp_path: Path, part: str, message: str) -> None:
    broken = tiny_wan_copy / part
    shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
    with pytest.raises(ValueError, match=message):
        plan_job(load_job(str(write_job(tmp_path, tiny_wan_copy))))


def test_a_take_s_place_must_be_a_folder(tiny_wan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "two").write_text("a file")
    with pytest.raises(ValueError, match=r"Cannot write to the output folder '.*two' \(Not a directory\)"):
        plan_job(load_job(str(write_job(tmp_path, tiny_wan))))
    (tmp_path / "out" / "two").unlink()
    (tmp_path / "out" / "two").symlink_to(tmp_path / "a disk that is not mounted")
    with pytest.raises(ValueError, match=r"Cannot write to the output folder '.*two' \(No such file or directory\)"):
        plan_job(load_job(str(write_job(tmp_path, tiny_wan))))


def test_a_chosen_gang_passes_the_checks_of_a_given_one(tiny_wan: Path, tmp_path: Path) -> None:
    def auto(*overrides: str) -> Plan:
        return plan_job(load_job(str(write_job(tmp_path, tiny_wan)), ["parallel=auto", *overrides]))

    for changes, degrees in (
        (["cache=fora"], Degrees(cfg_degree=2)),
        (["cache=fastercache"], Degrees(ulysses_degree=2)),
        (["cache=fora", "model.shard=gang"], Degrees(ulysses_degree=2)),
    ):
        plan = auto(*changes)
        chosen, why = plan.choose_degrees(2, 2)
        assert chosen == degrees, why
        plan.check(chosen, "cpu")
    for overrides, degrees, device, message in (
        (["cache=fastercache"], Degrees(cfg_degree=2), "cpu", "set parallel.cfg_degree to 1"),
        (["cache.budget_gb=0.00001"], Degrees(), "cpu", "would hold .* GB on a rank"),
        (["model.shard=gang"], Degrees(cfg_degree=2), "cpu", "no ranks share tokens"),
        (["cache.over_budget=host"], Degrees(), "cpu", "over_budget is host and device is cpu, whose memory is the host's"),
        ([], Degrees(ulysses_degree=4), "cpu", "must divide the model's 6 heads"),
        ([], Degrees(window_degree=4), "cpu", r"has only 1 window\(s\)"),
    ):
        with pytest.raises(ValueError, match=message):
            auto(*overrides).check(degrees, device)
    auto("cache.over_budget=host").check(Degrees(), "cuda")
    with pytest.raises(JobRefused, match="20 tokens cannot be shared"):
        auto().choose_degrees(64, 64)


def test_a_job_needs_ffmpeg_before_it_begins(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(ValueError, match="ffmpeg does not run"):
        plan_job(load_job(str(write_job(tmp_path, tiny_wan))))


@pytest.mark.parametrize("line", ["[bound, interval]", "no job file '[/x].yaml'", "[red]x[/red] :smile: " + "x" * 200])
def test_messages_are_shown_as_they_are(line: str) -> None:
    for kind in (LineReporter, BarReporter):
        written = StringIO()
        kind(Console(file=written)).say(line)
        assert written.getvalue() == line + "\n"


def test_the_verbs_are_these() -> None:
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    assert set(command.commands) == {"render", "new", "report", "compare", "recipes", "trace", "calibrate", "tune", "doctor"}


def test_bad_input_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    result = run_cli("render", str(tmp_path / "missing.yaml"))
    assert result.returncode == 2
    assert "There is no job file" in result.stderr
    assert "Traceback" not in result.stderr
    compared = run_here("compare", str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"))
    assert (compared.exit_code, "a.mp4" in compared.stderr) == (2, True)
    marked = run_here("render", "[/x] :smile: [bound, interval].yaml")
    assert marked.exit_code == 2
    assert "There is no job file '[/x] :smile: [bound, interval].yaml'" in marked.stderr


@pytest.mark.ray
def test_a_job_end_to_end(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    job = str(write_job(tmp_path, tiny_wan))
    result = run_cli("render", job)
    assert result.returncode == 0, result.stderr
    for name, num_frames in (("one", 17), ("two", 41)):
        folder = tmp_path / "out" / name
        info = probe(folder / "film.mp4")
        assert (info.width, info.height, info.num_frames, info.fps) == (32, 32, num_frames, 8)
        files = {"film.mp4", "manifest.json", "trace.json", "decisions.png", "thumbnail.jpg", "contact_sheet.jpg", "preview.jpg"}
        assert {path.name for path in folder.iterdir()} == files
        manifest = read_manifest(folder)
        assert manifest is not None
        assert (manifest.ranks, manifest.threads, manifest.device) == (2, 1, "cpu")
        assert list(manifest.seconds) == ["load", "encode", "denoise", "decode", "write", "take"]
        assert sum(manifest.seconds[stage] for stage in ("encode", "denoise", "decode", "write")) <= manifest.seconds["take"]
        assert manifest.speedup is not None
        windows = 1 if num_frames == 17 else 3
        assert sum(manifest.decisions.values()) == windows * 2 * 6
        assert len(json.loads((folder / "trace.json").read_text())["entries"]) == windows * 2 * 6
    first = (tmp_path / "out" / "one" / "film.mp4").stat().st_mtime_ns

    again = run_here("render", job)
    assert again.exit_code == 0
    assert again.stdout.count("is done already") == 2
    assert (tmp_path / "out" / "one" / "film.mp4").stat().st_mtime_ns == first

    retimed = run_here("render", job, "fps=24000/1001")
    assert retimed.exit_code == 0, retimed.stderr
    assert retimed.stdout.count("has 23.976 frames a second now") == 2
    assert "loading" not in retimed.stdout
    film = tmp_path / "out" / "one" / "film.mp4"
    assert probe(film).fps == pytest.approx(24000 / 1001)
    assert probe(film).num_frames == 17
    first = film.stat().st_mtime_ns

    with locked([tmp_path / "out" / "one"]):
        refused = run_here("render", job, "takes.0.seed=5")
    assert refused.exit_code == 2
    assert "loading" not in refused.stdout
    assert f"is being written by another job (process {os.getpid()} on" in refused.stderr
    assert film.stat().st_mtime_ns == first

    earlier = read_manifest(tmp_path / "out" / "one")
    assert earlier is not None
    again = run_here("render", job, "takes.0.seed=5", "parallel.ulysses_degree=1")
    assert again.exit_code == 0, again.stderr
    kept = tmp_path / "out" / f"one@{earlier.film_key[:8]}"
    assert (kept / "film.mp4").stat().st_mtime_ns == first
    compared = run_here("compare", str(kept), str(tmp_path / "out" / "one"))
    assert compared.exit_code == 0
    assert compared.stdout.startswith("17 frames: PSNR")


def _start_long_job(tmp_path: Path, model: Path, *, own_cluster: bool = False) -> subprocess.Popen[str]:
    """Of a gang whose collectives would wait for ten minutes: who ends sooner does so because he was told."""
    parallel = {"cfg_degree": 2, "threads": 1, "collective_timeout": 600}
    job = write_job(tmp_path, model, num_inference_steps=4000, parallel=parallel)
    command = [sys.executable, "-m", "longtake", "render", str(job), "preview_every=1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS" or not own_cluster}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "one" / "preview.jpg").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step within 240 s"
        time.sleep(0.1)
    return process


def _ranks() -> list[psutil.Process]:
    """The ranks on clusters that this test session has started."""
    return [process for process in psutil.Process().children(recursive=True) if "Rank" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _assert_nothing_is_left(tmp_path: Path, started: list[psutil.Process]) -> None:
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert {path.name for path in (tmp_path / "out" / "one").iterdir()} <= {"preview.jpg", "snapshots"}


@pytest.mark.ray
@pytest.mark.parametrize(("number", "own_cluster"), [(signal.SIGINT, False), (signal.SIGHUP, False), (signal.SIGTERM, True)])
def test_a_signal_ends_the_job(ray_cluster: str, tiny_wan: Path, tmp_path: Path, number: signal.Signals, own_cluster: bool) -> None:
    """Sent again and again until the process has ended, so that further ones meet every stage of stopping."""
    process = _start_long_job(tmp_path, tiny_wan, own_cluster=own_cluster)
    started = psutil.Process(process.pid).children(recursive=True) + _ranks()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.fullmatch(r"stopped: take 'one' after step \d+ of 4000; finished takes stay, .*\n", errors)
    _assert_nothing_is_left(tmp_path, started)


@pytest.mark.ray
def test_a_gang_shapes_itself_and_renders_the_same_film(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    parallel = {"degrees": "auto", "num_ranks": 3, "threads": 1}
    job = str(write_job(tmp_path, tiny_wan, parallel=parallel, save_latents=True, takes=JOB["takes"][:1]))
    result = run_here("render", job)
    assert result.exit_code == 0, result.stderr
    assert "parallel=auto: 3 rank(s): ulysses 3, which divides 6 heads" in result.stdout
    plan = plan_job(load_job(job))
    alone = Renderer(plan.card).render(plan.takes[0].take, plan.recipe)
    assert_same(load_file(tmp_path / "out" / "one" / "latents.safetensors")["latents"], alone.latents)


@pytest.mark.ray
def test_doctor_says_what_there_is(ray_cluster: str, tmp_path: Path) -> None:
    result = run_here("doctor", "--ranks", "3", "--folder", str(tmp_path))
    for line in (
        r"ok +torch: \d",
        r"ok +ffmpeg: libx264",
        r"ok +Ray: at .*: 1 node\(s\), 8 CPUs, 0 GPUs",
        r"ok +gloo, 3 ranks: round trip \d+ us, .* GB/s a rank",
    ):
        assert re.search(line, result.stdout), result.stdout
    result = run_here("doctor", "--ranks", "30", "--folder", str(tmp_path / "films" / "to come"))
    assert result.exit_code == 1
    assert f"GB free under {tmp_path}\n" in result.stdout
    assert "mend gloo, 30 ranks: No place for 30 ranks" in result.stdout


@pytest.mark.parametrize("place", ["file", "file/films", "/proc/films"])
def test_doctor_names_a_folder_that_takes_no_films(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    found = next(finding for finding in examine(1, tmp_path / place) if finding.name == "disk")
    assert "no films can be written to" in found.value
    assert found.mend == "choose another output folder"


def test_letters_that_a_terminal_cannot_show_end_no_command(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(
        json.dumps({"schema_version": 2, "recipe": "\u6620\u753b", "num_inference_steps": 1, "model": "", "entries": []})
    )
    shown = run_cli("trace", "show", str(tmp_path), PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stdout) == (0, "recipe \\u6620\\u753b: 0 compute, 0 reuse\n"), shown.stderr


@pytest.mark.parametrize("command", [["tune", "--psnr", "30", "JOB"], ["calibrate", "--prompt", "a circle", "--recipe", "teacache", "MODEL"]])
def test_what_writes_recipes_can_be_stopped_from_its_start(tiny_wan_copy: Path, tmp_path: Path, command: list[str]) -> None:
    """Here while the weights are read for their hash, or before."""
    with (tiny_wan_copy / "lora.safetensors").open("wb") as lora:
        lora.truncate(10**11)
    places = {"JOB": write_job(tmp_path, tiny_wan_copy, cache="none"), "MODEL": tiny_wan_copy}
    line = [sys.executable, "-m", "longtake", *(str(places.get(word, word)) for word in command)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(file.path.endswith("lora.safetensors") for file in psutil.Process(process.pid).open_files()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "stopped: nothing is written")
