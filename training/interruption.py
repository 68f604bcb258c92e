"""SIGTERM and SIGINT: noted when they come, acted on when everything can be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SAME_PRESS_SECONDS = 1.0  # torchrun passes on the Ctrl-C that the terminal has sent to every process already


class Interrupted(Exception):
    """A signal has ended the run and everything is saved; says where."""


class EvaluationCutShort(Exception):
    """A signal came during an evaluation."""


class Signals:
    """While it is entered, SIGTERM and SIGINT only set `received`; a second SIGINT raises KeyboardInterrupt.

    Data workers, which inherit it, ignore both: a signal to the whole process group leaves them at work.
    """

    def __init__(self) -> None:
        self.received = False
        self._first = 0.0
        self._process = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self.received = False
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if not self.received:
            self.received, self._first = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first > SAME_PRESS_SECONDS:
            raise KeyboardInterrupt
