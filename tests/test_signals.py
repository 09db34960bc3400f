"""Signals that come while ranks or a cluster are ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from longtake.jobs.cli.said import stoppable
from longtake.jobs.signals import STOPPING, Stopped, interrupt_on_signals, restore, uninterrupted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in STOPPING}
    yield
    restore(before)


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_signal_that_was_held_back_comes_at_the_end_of_the_block() -> None:
    interrupt_on_signals()
    reached = False
    with pytest.raises(Stopped), uninterrupted():
        send(*STOPPING)
        reached = True
    assert reached


def test_whoever_embeds_us_hears_his_own_signals() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with uninterrupted():
        send(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]
    with pytest.raises(RuntimeError, match="lost"):
        try:
            raise RuntimeError("lost")
        except RuntimeError:
            with uninterrupted():
                send(signal.SIGTERM)
            raise
    assert heard == [signal.SIGTERM] * 2


def test_what_stops_already_is_not_stopped_again() -> None:
    interrupt_on_signals()
    with pytest.raises(RuntimeError, match="lost"):
        try:
            raise RuntimeError("lost")
        except RuntimeError:
            with uninterrupted():
                send(*STOPPING)
            raise


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP is under nohup: a terminal that closes while a film is published stops no job."""
    interrupt_on_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with uninterrupted():
        send(signal.SIGHUP)


def test_a_later_signal_does_not_hide_what_the_first_one_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """It comes while things are put in order."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        with pytest.raises(typer.Exit) as ended, stoppable("no take was running", "; done"):
            try:
                raise Stopped("take 'one' after step 3 of 8")
            finally:
                raise Stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "stopped: take 'one' after step 3 of 8; done\n"
