"""Jobs without a job file: one take from the command line, and a first job file, written for users to go on from."""

from __future__ import annotations

import hashlib
import re
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...pipeline.checkpoint.card import ModelCard, read_card
from ...pipeline.film.frame_rate import frame_rate
from .config import RESERVED_NAMES, JobConfig, load_job

OUTPUT = "longtake-out"
_LONGEST = 48  # characters of a prompt in a take's name
_LONGEST_SECONDS = 86400


def quick_job(
    prompt: str, model: str | None, seconds: float | None, seed: int | None, overrides: Sequence[str], say: Callable[[str], None]
) -> JobConfig:
    """A job of one take, rendered into OUTPUT/NAME, with the overrides applied. It is `seconds` long, or as long as the model's own clips; a
    longer one is rendered in windows of that length. say: called with a line for what was chosen.

    Raises ValueError, with the value and the mend.
    """
    for change in overrides:
        if "=" not in change:
            raise ValueError(f"'{change}' stands beside --prompt, which needs no job file; write settings as key=value.")
    name = take_name(prompt) if seed is None else f"{take_name(prompt)}-{seed}"
    values: dict[str, Any] = {"output": OUTPUT, "takes": [{"name": name, "prompt": prompt}]}
    if model is not None:
        values["model"] = model
    if seed is not None:
        values["seed"] = seed
    job = load_job(values, overrides)
    _check_overruled(load_job(values), job, model=model, seed=seed)
    if len(job.takes) != 1:
        raise ValueError(f"--prompt renders one take, and the settings make it {len(job.takes)}; leave takes out, or write a job file.")
    if not job.model.path:
        raise ValueError("--prompt needs a model; give --model demo, or --model with the path of a checkpoint in diffusers' format.")
    card = read_card(job.model.path, job.model.name)
    frames = job.num_frames if job.takes[0].num_frames is None else job.takes[0].num_frames
    if seconds is not None:
        if frames is not None:
            raise ValueError(f"--seconds is {seconds:g}, and num_frames is {frames}; give one of the two.")
        fps = frame_rate(card.fps if job.fps is None else job.fps)
        frames = num_frames(seconds, float(fps), card, goes_on=job.takes[0].continue_from is not None)
        say(f"--seconds {seconds:g}: {frames} frames at {float(fps):g} a second, {frames / float(fps):.2f} s")
        job = replace(job, num_frames=frames)
    is_long = frames is not None and frames > card.trained_frames
    if is_long and job.timeline is None and job.takes[0].timeline is None:
        say(f"timeline: windows of {card.trained_frames} frames, the length of the model's own clips; timeline=full renders the take as one")
        job = replace(job, timeline=load_job({"timeline": "windows"}).timeline)
    return job


def _check_overruled(told: JobConfig, job: JobConfig, *, model: str | None, seed: int | None) -> None:
    """Raise ValueError where an override says otherwise than an option. told: the job of the options alone; job: with the overrides."""
    [wanted] = told.takes
    for take in job.takes:
        if (take.prompt, take.prompts) != (wanted.prompt, wanted.prompts):
            raise ValueError("--prompt is given, and a setting changes the take's prompt; give one of the two.")
        if seed is not None and seed != (job.seed if take.seed is None else take.seed):
            raise ValueError(f"--seed is {seed}, and a setting changes the seed; give one of the two.")
    if model is not None and job.model.path != told.model.path:
        raise ValueError(f"--model is '{model}', and a setting names '{job.model.path}'; give one of the two.")


def num_frames(seconds: float, fps: float, card: ModelCard, *, goes_on: bool = False) -> int:
    """The number of frames nearest to `seconds` that the model can render. goes_on: from another film. Raises ValueError for a length that is not
    above 0 or over a day.
    """
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(f"--seconds is {seconds:g}; give the film's length, 4 for example, at most {_LONGEST_SECONDS}.")
    stride = card.temporal_stride
    first = stride if goes_on else 1
    return max(0, round((seconds * fps - first) / stride)) * stride + first


def take_name(prompt: str) -> str:
    """The prompt's first words as the name of a folder, accents left out. Where that is not the whole prompt, the name ends in letters of the
    prompt's hash, so that another prompt gets another name.
    """
    folded = "".join(letter for letter in unicodedata.normalize("NFKD", prompt.lower()) if not unicodedata.combining(letter))
    words = re.findall(r"[^\W_]+", folded)
    name = "-".join(re.findall(r"[a-z0-9]+", folded))
    is_whole = bool(name) and name == "-".join(words) and len(name) <= _LONGEST and name not in RESERVED_NAMES
    if len(name) > _LONGEST:
        name = name[:_LONGEST].rpartition("-")[0] or name[:_LONGEST]
    return name if is_whole else f"{name or 'take'}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:6]}"


def job_file(model: str, card: ModelCard, name: str) -> str:
    """A job file that renders as it is and says what else can be set. model: the value of `model` in it. name: the file's own."""
    output = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rpartition(".")[0]).strip("-.") or "job"
    seconds = card.trained_frames / card.fps
    return f"""\
# What to render, and how. Render it with: longtake render {shlex.quote(name)}
# Every setting that is commented out shows its default. Any of them can be changed on the command line as well: seed=3, takes.0.seed=3.

model: {_quoted(model)}
output: {output}-films        # a folder a take, and report/index.html for all of them

takes:
  - name: first              # names the take's folder
    prompt: a red circle moves left over a grey background
    seed: 0
    num_frames: {card.trained_frames}           # {seconds:.1f} s at {card.fps:g} frames a second; 1 more than a multiple of {card.temporal_stride}
  # - name: long
  #   timeline: windows      # for takes that are longer than the model's own clips of {card.trained_frames} frames
  #   num_frames: {3 * (card.trained_frames - 1) + 1}
  #   prompts:               # each holds from its frame on, or from a time: {{at: 2.5s, text: ...}}
  #     - {{frame: 0, text: a red circle moves left over a grey background}}
  #     - {{frame: {2 * (card.trained_frames - 1)}, text: a red circle stands still over a grey background}}

# For all takes; each take may set its own.
# height: {card.height}
# width: {card.width}
# num_inference_steps: 50
# guidance_scale: {card.guidance_scale:g}
# scheduler: {card.sampler or "":<17}# the sampler, one of {", ".join(card.samplers)}; the model's own if left out
# schedule: none             # or planned: the steps that `longtake calibrate --recipe schedule` chose, a YAML path for others
# negative_prompt: ""
# timeline: full             # or windows, rollout, banded

# fps: {card.fps:g}                  # of the film file
# cache: default             # planned where it was calibrated on the model; none, or one of `longtake recipes`
# parallel: auto             # all GPUs; or {{cfg_degree: 2, ulysses_degree: 2}} for example
# device: auto               # cuda where there are GPUs
# preview_every: 10          # steps
# save_latents: false
"""


def _quoted(text: str) -> str:
    """The text as YAML needs it: a plain word as it is, anything else in quotes."""
    return text if re.fullmatch(r"[A-Za-z/~.][A-Za-z0-9/._~-]*", text) else "'" + text.replace("'", "''") + "'"
