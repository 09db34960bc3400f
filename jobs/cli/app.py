"""The command line: `longtake render`, `longtake compare`. Bad input: one message and exit code 2; a failed job: 1; a stopped one: 130."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from ..signals import ignore_signals, interrupt_on_signals

app = typer.Typer(name="longtake", help="Render long video clips with diffusion transformers on Ray clusters.", no_args_is_help=True)

_WORTH_SAYING = 150  # characters of a setting; expected errors of many steps are for the file alone


def _console(*, stderr: bool = False) -> Console:
    """Prints what it is given: a path like '[/x].yaml' is no markup, and no text is coloured, shortened or turned into pictures."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _say(line: str) -> None:
    _console().print(line)


def _complain(kind: str, message: object) -> None:
    _console(stderr=True).print(Text.assemble((f"{kind}:", "red"), f" {message}"))


def _path(path: Path) -> Path:
    """With `~` and environment variables filled in."""
    from ..settings.config import expanded

    return Path(_checked(expanded, str(path), "The path"))


def _recipe(name: str) -> str:
    """A recipe's name, or its path as `_path` has it."""
    return str(_path(Path(name))) if name.endswith((".yaml", ".yml")) else name


def _checked(check: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a check of user input, or what it leads to. ValueError becomes one message and exit code 2; numbers that are none, exit code 1."""
    try:
        return check(*args, **kwargs)
    except ValueError as error:
        _complain("error", error)
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        _complain("failed", error)
        raise typer.Exit(1) from None


@app.command()
def render(
    job: Annotated[str, typer.Argument(help="the job's YAML file")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, cache=none for example")] = None,
    force: Annotated[bool, typer.Option("--force", help="render takes again that are done")] = False,
) -> None:
    """Render a job; run again to go on with what is not done."""
    with _stoppable("no take was running", "; finished takes stay, the same command goes on with the rest"):
        from ..settings.config import load_job
        from ..settings.plan import plan_job

        config = _checked(load_job, job, overrides or [])
        plan = _checked(plan_job, config, force=force, say=_say)

        from ..cluster import AddressError, ClusterError
        from ..driver import run_job
        from ..folder.folder import JobRefused
        from ..gang.gang import GangError
        from ..show.progress import reporter

        try:
            with reporter(_console()) as report:
                run_job(plan, report)
        except (AddressError, JobRefused) as error:
            _complain("error", error)
            raise typer.Exit(2) from None
        except (ClusterError, GangError, OSError) as error:
            _complain("failed", error)
            raise typer.Exit(1) from None


@contextmanager
def _stoppable(where: str, what_stays: str = "") -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the command with one line and exit code 130, whatever it is doing.

    where: what to say that it was doing, unless the exception knows better.
    """
    interrupt_on_signals()
    try:
        yield
    except KeyboardInterrupt as error:
        ignore_signals()
        with suppress(OSError):  # where SIGHUP came from there is no terminal to write to
            _complain("stopped", f"{str(error) or where}{what_stays}")
        raise typer.Exit(130) from None


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="a take's folder, or a film")],
    b: Annotated[Path, typer.Argument(help="a take's folder, or a film")],
) -> None:
    """PSNR and SSIM of two takes or films."""
    from ...pipeline.film.compare import compare_films

    films = [path / "film.mp4" if path.is_dir() else path for path in (_path(a), _path(b))]
    result = _checked(compare_films, *films)
    worst = f"worst {result.worst_psnr:.2f} dB at frame {result.worst_frame}"
    _say(f"{result.num_frames} frames: PSNR {result.psnr:.2f} dB ({worst}), SSIM {result.ssim:.4f}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="show this one with all its settings")] = None,
) -> None:
    """List the cache recipes, or show one; any setting can be changed in a job: `cache: {recipe: fbcache, trigger: {threshold: 0.1}}`."""
    from ...cache.recipe.budget import describe_collectives, describe_memory
    from ...cache.recipe.recipe import load_recipe, recipe_names

    if name is not None:
        _say(yaml.safe_dump(_checked(load_recipe, name).to_dict(), sort_keys=False, width=120).rstrip())
        return
    rows = [("recipe", "class", "memory a branch", "collectives", "trigger x site x predictor", "paper")]
    for known in map(load_recipe, recipe_names()):
        made_of = ", ".join(f"{part.trigger.name} x {part.site.name} x {part.predictor.name}" for part in known.parts)
        rows.append((known.name, known.category, describe_memory(known), describe_collectives(known), made_of, known.paper))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    _say("H: one tensor of the hidden states, tokens x dim. L: blocks of the model. latent: one of the model's input.")


traces = typer.Typer(help="Look at the decisions of rendered takes.", no_args_is_help=True)
app.add_typer(traces, name="trace")


@traces.command("show")
def show_trace(
    trace: Annotated[Path, typer.Argument(help="a take's folder, or its trace.json")],
    png: Annotated[Path | None, typer.Option(help="draw it as well, here")] = None,
) -> None:
    """Which steps were computed (#), in part (~) or reused (.), by segment, branch and site."""
    from ...pipeline.files import check_target
    from ..show.tracing import show

    loaded, picture = _checked(_load_trace, trace), None if png is None else _path(png)
    if picture is not None:
        _checked(check_target, picture, "--png", ".png", ".jpg", ".jpeg")
    for line in show(loaded):
        _say(line)
    if picture is not None:
        loaded.plot(picture)


@traces.command("diff")
def diff_traces(a: Annotated[Path, typer.Argument(help="a take's folder, or its trace.json")], b: Annotated[Path, typer.Argument()]) -> None:
    """The first decision in which two takes part; exit code 1 if there is one."""
    from ..show.tracing import diff

    line = diff(_checked(_load_trace, a), _checked(_load_trace, b))
    _say(line)
    raise typer.Exit(0 if line.startswith("equal") else 1)


def _load_trace(path: Path) -> Any:
    from ...cache import Trace

    path = _path(path)
    return Trace.load(path / "trace.json" if path.is_dir() else path)


@app.command()
@_stoppable("nothing is written")
def calibrate(  # noqa: PLR0913, PLR0917 - options of a command
    model: Annotated[str, typer.Argument(help="'demo', or a checkpoint folder")],
    out: Annotated[Path | None, typer.Option(help="the recipe to write (YAML); in the model's folder, where jobs find it, if left out")] = None,
    recipe: Annotated[str, typer.Option(help="ertacache, lemica, magcache, meancache, planned, ra_cfgcache, smoothcache or teacache")] = "planned",
    steps: Annotated[int, typer.Option(help="denoising steps of the takes to come", min=3)] = 50,
    computed: Annotated[int | None, typer.Option(help="steps to compute of them (planned, lemica, meancache), two in five if left out")] = None,
    threshold: Annotated[float | None, typer.Option(help="error to allow (smoothcache: alpha, ertacache: lambda)")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what to render for it; repeat for several takes")] = None,
    guidance_scale: Annotated[float, typer.Option()] = 5.0,
    flow_shift: Annotated[float | None, typer.Option(help="of the takes to come, the model's own if left out")] = None,
) -> None:
    """Measure a model on a few full takes and write a recipe that was made for it."""
    from ...pipeline.calibration import calibrate as calibration
    from ...pipeline.checkpoint.card import read_card
    from ...pipeline.recipes.caching import numbers_path

    card = _checked(read_card, str(_path(Path(model))))
    takes = calibration.calibration_takes(card, prompt or [], steps, guidance_scale, flow_shift)
    method, *_ = _checked(calibration.check_calibration, recipe, card, takes, computed=computed, threshold=threshold)
    target = _path(out) if out else numbers_path(card, recipe, 0 if method.any_steps else steps)
    _checked(_check_target, target, make=out is None)

    from ...pipeline.files import write_atomic
    from ...pipeline.loop.render import Renderer

    renderer = _checked(Renderer, card, device=_device())
    made = _checked(calibration.calibrate, recipe, renderer, takes, computed=computed, threshold=threshold)
    write_atomic(target, yaml.safe_dump(made.to_dict(), sort_keys=False))
    for part in made.parts:
        settings = ", ".join(f"{name}={value}" for name, value in vars(part.trigger.config).items() if len(str(value)) <= _WORTH_SAYING)
        _say(f"{target}: {made.name}, {part.site.name}: {part.trigger.name}({settings})")


def _check_target(out: Path, *, make: bool) -> None:
    """make: the folder if it is not there."""
    from ...pipeline.files import check_target

    try:
        if make:
            out.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write beside the model ({error}); give --out, and that file as cache.recipe.") from None
    check_target(out, "--out", ".yaml", ".yml")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
@_stoppable("nothing is written")
def tune(
    job: Annotated[str, typer.Argument(help="the job's YAML file")],
    psnr: Annotated[float | None, typer.Option(help="find the fastest recipe of at least so many dB against no cache")] = None,
    speedup: Annotated[float | None, typer.Option(help="find the best recipe that is at least so many times as fast")] = None,
    take: Annotated[str | None, typer.Option(help="the take to try recipes on; the first one if left out")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="a candidate, name or YAML path; repeat for several; else all shipped ones")] = None,
    trials: Annotated[int, typer.Option(help="settings to try of a recipe", min=1)] = 4,
    out: Annotated[Path | None, typer.Option(help="the recipe to write; tuned.yaml beside the job if left out")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite an earlier one")] = False,
) -> None:
    """Search recipes and their thresholds on a short proxy of a job; write the best as a recipe, with a picture of all that was tried."""
    from ...pipeline.tuning.search import Goal
    from ..tune import plan_tuning, run_tuning

    goal = _checked(Goal, psnr, speedup)
    tuning = _checked(plan_tuning, job, goal, take=take, recipes=[_recipe(one) for one in recipe or []], out=_path(out) if out else None, force=force)
    is_reached = _checked(run_tuning, tuning, trials, _say)
    raise typer.Exit(0 if is_reached else 1)


@app.command()
def doctor(
    ranks: Annotated[int, typer.Option(help="how many ranks to measure the links between", min=1)] = 2,
    folder: Annotated[Path, typer.Option(help="where films are to be written")] = Path(),
) -> None:
    """What this machine and its cluster offer, what is missing and the mend; exit code 1 if something is."""
    from ..doctor import examine

    console, is_well = _console(), True
    with _stoppable("not everything was looked at"):
        for finding in examine(ranks, _path(folder)):
            mark = ("ok  ", "green") if finding.mend is None else ("mend", "red")
            told = f": {finding.value}{'' if finding.mend is None else f' -> {finding.mend}'}"
            console.print(Text.assemble(mark, " ", (finding.name, "bold"), told))
            is_well = is_well and finding.mend is None
    raise typer.Exit(0 if is_well else 1)


def main() -> None:
    if isinstance(sys.stdout, TextIOWrapper):  # a path or a prompt that the terminal cannot show ends no job
        sys.stdout.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
