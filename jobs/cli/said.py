"""What the verbs have in common: printing lines and errors, turning a failed check into one message, and being stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..signals import ignore_signals, interrupt_on_signals

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Prints texts as they are: nothing in them is taken as markup (a path may be '[/x].yaml') or emoji, coloured, wrapped or cut off."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    console().print(line)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns that stand under each other, each as wide as its widest cell: nothing is cut off, on a terminal and in a log alike."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def complain(kind: str, message: object) -> None:
    from rich.text import Text

    console(stderr=True).print(Text.assemble((f"{kind}:", "red"), f" {message}"))


def checked(check: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a check of user input, or what it leads to. ValueError becomes one message and exit code 2, FloatingPointError exit code 1."""
    try:
        return check(*args, **kwargs)
    except ValueError as error:
        complain("error", error)
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        complain("failed", error)
        raise typer.Exit(1) from None


def given_path(path: Path) -> Path:
    """The path with `~` and environment variables filled in."""
    from ..settings.config import expanded

    return Path(checked(expanded, str(path), "The path"))


def _where_stopped(error: BaseException | None) -> str:
    """What the first signal's exception says, where a later signal has come while things were put in order for that one."""
    while error is not None and not (isinstance(error, KeyboardInterrupt) and str(error)):
        error = error.__context__
    return "" if error is None else str(error)


@contextmanager
def stoppable(where: str, what_stays: str = "") -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the command with one line and exit code 130, whatever it is doing.

    where: how far the command was, shown unless the exception says it. what_stays: the end of the message.
    """
    interrupt_on_signals()
    try:
        yield
    except KeyboardInterrupt as error:
        ignore_signals()
        with suppress(OSError):  # where SIGHUP came from there is no terminal to write to
            complain("stopped", f"{_where_stopped(error) or where}{what_stays}")
        raise typer.Exit(130) from None
