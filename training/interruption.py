"""SIGTERM and SIGINT: noted when they come, acted on when everything can be saved. And data workers that die."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from exhubert.utils.text import first_line

INTERRUPTED = 3  # the exit code after SIGTERM or SIGINT, when everything is saved
SAME_PRESS_SECONDS = 1.0  # torchrun passes on the Ctrl-C that the terminal has sent to every process already


class Interrupted(Exception):
    """A signal has ended the run and everything is saved; says where."""


class EvaluationCutShort(Exception):
    """A signal came during an evaluation."""


@contextlib.contextmanager
def deaths_of_workers() -> Iterator[None]:
    """Turns what torch raises, wherever the run is, when a data worker dies into a ChildProcessError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = first_line(error).rstrip(". ")
        raise ChildProcessError(
            f"a data worker died, perhaps for want of memory ({reason}); to go on, give the same command with "
            "--resume; fewer dataloader_num_workers need less"
        ) from error


class Signals:
    """While it is entered, SIGTERM and SIGINT only set `received`; a second SIGINT raises KeyboardInterrupt.

    Data workers, which inherit it, ignore both: a signal to the whole process group leaves them at work.
    """

    def __init__(self) -> None:
        self.received = False
        self.handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self.received, process, first = False, os.getpid(), 0.0

        def note(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if os.getpid() != process:
                return
            if not self.received:
                self.received, first = True, time.monotonic()
            elif number == signal.SIGINT and time.monotonic() - first > SAME_PRESS_SECONDS:
                raise KeyboardInterrupt

        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.handlers_before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
        self.handlers_before = {}
