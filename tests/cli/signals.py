"""Signals that reach a command while it works, in the tests' own process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from int8calib.cli import console

ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextmanager
def handlers_of_a_shell() -> Iterator[None]:
    """Handle signals as a command does that a shell starts; a runner of tests may ignore some."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        ctrl_c = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if ctrl_c else signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def send_at(monkeypatch: pytest.MonkeyPatch, stage: str, number: int) -> None:
    """Send a signal to this process once, when a command has done the first image of a stage."""
    sent: list[int] = []

    def progress(self: object, now: str, done: int, total: int) -> None:
        if now == stage:
            if not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            time.sleep(0.01)

    monkeypatch.setattr(console._LogLines, "__call__", progress)
