"""What C libraries print to descriptor 2, caught while they work.

libjpeg, libpng and ncnn print a line for what they find wrong, which names neither file nor layer.
A program that leaves its descriptor 2 to them can have that caught (`catch_complaints`), as the
command line does; in other programs their lines stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Complaints:
    """What is printed to descriptor 2 while functions run, of several threads too."""

    def __init__(self) -> None:
        self._wanted = False
        self._opened: int | None = None
        self._stderr = 2
        self._running = 0
        self._changed = threading.Condition()

    def catch(self) -> None:
        """Catch from now on, where a file for it can be made."""
        self._wanted = True

    @property
    def _file(self) -> int | None:
        """Where it goes; None: nothing is caught."""
        if self._wanted:
            with self._changed, contextlib.suppress(OSError):
                if self._wanted:
                    with tempfile.TemporaryFile(buffering=0) as file:
                        self._stderr, self._opened = os.dup(2), os.dup(file.fileno())
                    self._wanted = False
        return self._opened

    def during(self, work: Callable[[], Result]) -> tuple[Result, str]:
        """Return what `work` returns, and what was printed meanwhile.

        Several threads may be here at a time. Where anything is printed, `work` is done once more,
        alone: it must be something that can be repeated.
        """
        file = self._file
        if file is None:
            return work(), ""
        before = self._enter(file)
        try:
            result = work()
        finally:
            size = self._leave(file)
        return (result, "") if size == before else (result, self.alone(work)[1])

    def alone(self, work: Callable[[], Result]) -> tuple[Result, str]:
        """Return what `work` returns, and what was printed, while no other thread is here."""
        file = self._file
        if file is None:
            return work(), ""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            self._empty(file)
            os.dup2(file, 2)
            try:
                result = work()
            finally:
                os.dup2(self._stderr, 2)
            text = os.pread(file, 1 << 16, 0).decode("utf-8", "replace")
            self._empty(file)
        return result, text

    def _enter(self, file: int) -> int:
        with self._changed:
            self._running += 1
            if self._running == 1:
                os.dup2(file, 2)
            return os.fstat(file).st_size

    def _leave(self, file: int) -> int:
        with self._changed:
            self._running -= 1
            if not self._running:
                os.dup2(self._stderr, 2)
                self._changed.notify_all()
            return os.fstat(file).st_size

    @staticmethod
    def _empty(file: int) -> None:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)


complaints = Complaints()
"""Those of this process."""


def catch_complaints() -> None:
    """Keep what C libraries print off descriptor 2, which nobody else may write to."""
    complaints.catch()
