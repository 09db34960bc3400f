"""`longtake render`: a job file, or one take from a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .said import checked, complain, console, say, say_table, stoppable

if TYPE_CHECKING:
    from ..rendering import JobResult, Rendering, TakeResult


def render(
    job: Annotated[str | None, typer.Argument(help="the job's YAML file; left out with --prompt")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, cache=none for example")] = None,
    force: Annotated[bool, typer.Option("--force", help="render takes again that are done")] = False,
    prompt: Annotated[str | None, typer.Option(help="what to render, without a job file, into ./longtake-out/NAME")] = None,
    model: Annotated[str | None, typer.Option(help="with --prompt: 'demo', or a checkpoint folder")] = None,
    seconds: Annotated[float | None, typer.Option(help="with --prompt: the film's length; the model's own clips' if left out")] = None,
    seed: Annotated[int | None, typer.Option(help="with --prompt: another one gives another film; 0 if left out")] = None,
) -> None:
    """Render a job, or one take from a prompt; run again to go on with what is not done."""
    with stoppable("no take was running", "; finished takes stay, the same command goes on with the rest"):
        from ..rendering import Rendering

        changes = overrides or []
        if prompt is None:
            given = {"--model": model, "--seconds": seconds, "--seed": seed}
            checked(_only_with_prompt, job, [name for name, value in given.items() if value is not None])
            wanted: Any = job
        else:
            from ..settings.quick import quick_job

            changes = [*([] if job is None else [job]), *changes]  # without a job file, what stands first is a setting
            wanted = checked(quick_job, prompt, model, seconds, seed, changes, say)
        _run(checked(Rendering, wanted, changes, force=force, say=say))


def _only_with_prompt(job: str | None, given: list[str]) -> None:
    if job is None:
        raise ValueError("There is nothing to render; give a job file (`longtake new job.yaml` writes one), or --prompt '...'.")
    if given:
        verb = "belongs" if len(given) == 1 else "belong"
        raise ValueError(f"{' and '.join(given)} {verb} to --prompt; a job file has settings for it, to be changed by key=value.")


def _run(rendering: Rendering) -> None:
    from ..errors import AddressError, ClusterError
    from ..folder.access import JobRefused
    from ..gang.failures import GangError
    from ..rendering import JobFailed
    from ..show.progress import reporter

    try:
        with reporter(console()) as shown, rendering:
            for event in rendering:
                shown.event(event)
    except (AddressError, JobRefused) as error:
        complain("error", error)
        raise typer.Exit(2) from None
    except JobFailed as error:
        _show(error.result)
        complain("failed", error)
        raise typer.Exit(1) from None
    except (ClusterError, GangError, OSError) as error:
        complain("failed", error)
        raise typer.Exit(1) from None
    _show(rendering.result)


def _show(result: JobResult) -> None:
    """What became of each take: its frames, its seconds in all, the share of model calls that were computed and how many times
    as fast denoising was for it, and where its film is; or why there is none. Then, which takes freeze, loop, drift or jump.
    """
    say("")
    say_table([("take", "frames", "seconds", "computed", "speed-up", "film"), *map(_row, result.takes)])
    for take in result.marked:
        assert take.manifest is not None
        assert take.manifest.checks is not None
        for mark in take.manifest.checks.marks:
            say(f"marked: {take.name}, {mark}")


def _row(take: TakeResult) -> tuple[str, ...]:
    if take.manifest is None:
        what = "failed" if take.state.value == "failed" else "not rendered"
        return take.name, "-", "-", "-", "-", f"{what}{f': {take.cause}' if take.cause else ''}"
    manifest = take.manifest
    return (
        take.name,
        str(manifest.config["take"]["num_frames"]),
        f"{manifest.seconds['take']:.1f}",
        f"{manifest.computed:.0%}",
        "-" if manifest.speedup is None else f"{manifest.speedup:.1f}x",
        _near(take.film),
    )


def _near(path: Path | None) -> str:
    """A path as it is shortest to type here: relative where it lies below the working folder."""
    assert path is not None, "a take that is done has its film"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
