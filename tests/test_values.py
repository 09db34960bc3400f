"""Settings as people write them: texts keep their letters, overrides reach what they name, and what cannot be read gets one message."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.jobs.settings.config import JobConfig, load_job
from longtake.pipeline.film.frame_rate import frame_rate

JOB = """
model: demo
output: out
takes:
  - {name: a, prompt: x, seed: 3, num_frames: 17}
  - {name: b, prompt: y, num_frames: 33}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "job.yaml"
    path.write_text(JOB)
    return path


def at(config: JobConfig, key: str) -> Any:
    value: Any = config
    for step in key.split("."):
        value = value[int(step)] if step.isdigit() else getattr(value, step)
    return value


_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(st.sampled_from("ab #:${}[]\"'\\!&*@|>%~-\n\t,0.")),
    st.sampled_from(["yes", "no", "on", "True", "1.50", "0x1F", "12:30", "2026-11-26", "${a.b}", "\\${a}", "scene #2", "[wide] x", "null "]),
)


@settings(max_examples=150, deadline=None)
@given(text=_TEXTS)
def test_what_stands_behind_the_equals_sign_is_the_prompt(job: Path, text: str) -> None:
    changes = [f"{key}={text}" for key in ("takes.0.prompt", "negative_prompt", "takes.1.name")]
    config = load_job(str(job), changes if text != "null" else [])
    if text != "null":  # alone, it takes a value away
        assert (config.takes[0].prompt, config.negative_prompt, config.takes[1].name) == (text,) * 3


@settings(max_examples=100, deadline=None)
@given(text=_TEXTS)
def test_a_prompt_in_a_file_keeps_its_letters(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "prompt.yaml"
    takes = [{"name": "a", "prompt": text, "prompts": [{"frame": 0, "text": text}]}]
    path.write_text(yaml.safe_dump({"model": "demo", "takes": takes}, default_style='"'))
    config = load_job(str(path))
    assert (config.takes[0].prompt, config.takes[0].prompts[0].text) == (text, text)


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "12", "1.50", "0x1F", "1_000", "12:30", "2026-11-26", "true", "1e3"])
def test_a_plain_word_of_a_file_is_a_text_where_a_text_is_wanted(tmp_path: Path, word: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {word}\ncache: {word}\nnoise: {word}\ntakes: [{{name: {word}, prompt: {word}, timeline: {word}}}]\n")
    config = load_job(str(path))
    take = config.takes[0]
    assert take.timeline is not None
    assert [config.model.path, config.cache.recipe, config.noise, take.name, take.prompt, take.timeline.name] == [word] * 6


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        (["takes.*.seed=7"], "takes.1.seed", 7),
        (["takes[1].prompt=z"], "takes.1.prompt", "z"),
        (["takes.*.timeline=windows", "takes.0.timeline.window=33"], "takes.0.timeline.window", 33),
        (["takes.0.prompts=[{frame: 0, text: no}]"], "takes.0.prompts.0.text", "no"),
        (["seed=7"], "seed", 7),
        (["takes.0.seed=null"], "takes.0.seed", None),
        (["guidance_scale=1e1"], "guidance_scale", 10.0),
        (["save_latents=yes"], "save_latents", True),
        (["cache.trigger={computed: [0, 2]}", "cache.trigger.interval=2"], "cache.trigger", {"computed": [0, 2], "interval": 2}),
        (["cache.trigger.threshold=0.3", "cache.budget_gb=3", "cache=fora"], "cache.trigger", {}),
        (["cache.trigger.threshold=0.3", "cache.budget_gb=3", "cache=fora"], "cache.budget_gb", 3.0),
        (["model.dtype=bfloat16", "model=other"], "model.dtype", "bfloat16"),
        (["parallel.ulysses_degree=2", "parallel.threads=3", "parallel=auto"], "parallel.ulysses_degree", None),
        (["parallel.ulysses_degree=2", "parallel.threads=3", "parallel=auto"], "parallel.threads", 3),
        (["fps=24000/1001"], "fps", "24000/1001"),
    ],
)
def test_overrides_reach_what_they_name(job: Path, changes: list[str], key: str, value: object) -> None:
    assert at(load_job(str(job), changes), key) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["num_frames=33"], r"'num_frames=33' reaches no take: every take sets num_frames itself; write takes\.\*\.num_frames="),
        (["takes.*.timeline=windows", "timeline.window=33"], r"reaches no take: every take sets timeline itself; write takes\.\*\.timeline\.window="),
        (["takes.5.seed=1"], "has '5' where the number of a list's item is wanted .0 to 1, or . for all."),
        (["takes.0.seed.x=1"], "reaches into 'seed', which is 3"),
        (["a..b=1"], "names no setting"),
        (["cache.trigger=[1"], r"'cache.trigger=\[1' is not valid YAML"),
        (["seed=!red"], "is not valid YAML"),
        (["takes.0.seed=1.5"], "1.5"),
        (["output=$NO_SUCH_PLACE/x"], r"no environment variable \$NO_SUCH_PLACE"),
        (["model=~no-such-user/x"], "there is no such user"),
    ],
)
def test_overrides_that_reach_nothing_are_refused(job: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_job(str(job), changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a mapping"),
        (b"- a", "must be a mapping"),
        (b"a: [b", "is not valid YAML"),
        (b"\x80", "is not valid YAML"),
        (b"model: a\nmodel: b", "found the key 'model' twice"),
        (b"cache: {trigger: {a: 1, a: 2}}", "found the key 'a' twice"),
        (b"takes: [{prompt: !red x}]", "could not determine a constructor for the tag '!red'"),
        (b"x: &a [*a]", "is not valid YAML"),
        (b"1: x", "has no setting '1'"),
        (b"takes: x", "takes"),
        (b"takes: [x]", "takes"),
        (b"takes: null", "takes"),
        (b"model: [x]", "model is .* must be a mapping"),
        (b"cache:", "cache"),
        (b"takes: [{name: [a], prompt: x}]", "string"),
        (b"num_frames: true", "num_frames"),
    ],
)
def test_a_file_that_is_no_job_gets_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_job(str(path))


def test_takes_may_share_by_yaml_s_own_means(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: demo\ntakes:\n- &a {name: a, prompt: no, seed: 1}\n- {<<: *a, name: b}\n")
    assert [(take.name, take.prompt, take.seed) for take in load_job(str(path)).takes] == [("a", "no", 1), ("b", "no", 1)]


def test_home_and_environment_are_filled_in_paths_alone(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SHOW", "/shows/x")
    changes = ["model=~/m", "output=$SHOW/films", "cache.recipe=${SHOW}/r.yaml", "cache.replay=~/t.json", "takes.0.prompt=~ $SHOW ${HOME}"]
    config = load_job(str(job), changes)
    assert (config.model.path, config.output) == ("/home/ann/m", "/shows/x/films")
    assert (config.cache.recipe, config.cache.replay) == ("/shows/x/r.yaml", "/home/ann/t.json")
    assert config.takes[0].prompt == "~ $SHOW ${HOME}"


@pytest.mark.parametrize(
    ("stated", "rate"),
    [
        (24, Fraction(24)),
        (16.0, Fraction(16)),
        ("23.976", Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("30.00", Fraction(30)),
    ],
)
def test_frame_rates_are_exact(stated: str | float, rate: Fraction) -> None:
    assert frame_rate(stated) == rate


@pytest.mark.parametrize("stated", ["0", "-24", "nan", ".inf", "24/0", "fast", "", "1e9", "24001/1000003"])
def test_what_is_no_frame_rate_is_refused(stated: str) -> None:
    with pytest.raises(ValueError, match=f"fps is {re.escape(stated)}"):
        frame_rate(stated)
