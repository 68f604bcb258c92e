"""What every command does: a user's mistake ends in one line, and the terminal is left to the command's own lines."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from exhubert.utils.text import first_line, printable

LONGEST_REASON = 400  # characters
NOT_UNPICKLED = "its pickle is damaged, or holds more than tensors, which could run code: not loaded"
LONGEST_LINE = 2000  # of which the middle is left out
LOST_PROCESS = ("Connection", "gloo", "NCCL", "Timed out")  # in the errors of collectives
UNFORESEEN = " (not foreseen: with EXHUBERT_TRACEBACK=1 it says where)"


def run_with_one_line_errors(command: Callable[[], int]) -> int:
    """Runs a command; a user's mistake ends in one line on standard error and exit code 1.

    With EXHUBERT_TRACEBACK=1 in the environment the whole traceback is shown.
    """
    try:
        return command()
    except SystemExit as error:
        return 1 if error.code == 2 else int(error.code or 0)  # 2 is argparse's; here it means partial success
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except AssertionError:  # ours
        raise
    except Exception as error:
        if os.environ.get("EXHUBERT_TRACEBACK") == "1":
            raise
        foreseen = isinstance(error, (ValueError, OSError, ImportError))
        print(f"error: {error_line(error)}{'' if foreseen else UNFORESEEN}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def error_line(error: BaseException) -> str:
    """As `one_line`, fit for a terminal: what is not printable is escaped, of a very long text the middle left out."""
    text = printable(one_line(error))
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 2]} ... {text[-LONGEST_LINE // 2 + 5 :]}"


def one_line(error: BaseException) -> str:
    """An error's text in one line; its kind goes before it where the text alone says too little."""
    # An error of a data worker arrives as that worker's whole traceback, the message last.
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    text = lines[-1].removeprefix(f"{kind}: ") if "Traceback" in str(error) else " ".join(map(str.strip, lines))
    return (text or kind) if isinstance(error, (ValueError, OSError, ImportError)) else f"{kind}: {text}"


@contextlib.contextmanager
def named_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turns whatever reading something raises into a ValueError, `what (reason); remedy`.

    OSError and ImportError, which name it themselves, stay.
    """
    try:
        yield
    except (OSError, ImportError, AssertionError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(f"{what} ({NOT_UNPICKLED}); use safetensors") from error
    except Exception as error:
        reason = textwrap.shorten(one_line(error), LONGEST_REASON)
        raise ValueError(f"{what} ({reason}){remedy and '; '}{remedy}") from error


@contextlib.contextmanager
def lost_processes(count: int) -> Iterator[None]:
    """Turns what the collectives of several processes raise when one of them has died into a ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        if count == 1 or not any(word in str(error) for word in LOST_PROCESS):
            raise
        reason = first_line(error)
        raise ConnectionError(f"another process of this run is gone, or does not answer ({reason})") from error


def quiet_transformers() -> None:
    """Leaves the terminal to a command's own lines: no load reports, no bars of transformers' and datasets'."""
    from transformers.utils import logging

    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def with_hyphens(arguments: Sequence[str]) -> list[str]:
    """A command line on which every option is written with hyphens: `--batch_size=8` becomes `--batch-size=8`."""
    options = list(itertools.takewhile(lambda argument: argument != "--", arguments))
    written = []
    for argument in options:
        name, equals, value = argument.partition("=")
        written.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return [*written, *arguments[len(options) :]]


@contextlib.contextmanager
def silent_c_libraries() -> Iterator[None]:
    """What C libraries write to standard error meanwhile goes nowhere; what other threads write there does too.

    For one thread at a time: of two that overlap the second would find standard error gone, and leave it so.

    libmpg123 writes a line for many a seek in an MP3, of frames that it does not use.
    """
    try:
        terminal = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


class _Lines:
    """Where a bar goes that no terminal shows: each of its states is a line."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.last = file, ""

    def write(self, text: str) -> None:
        text = re.sub(r"[\r\n]|\x1b\[\w", "", text).rstrip()
        if text not in ("", self.last):
            self.file.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        self.file.flush()


def progress_bar(files: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A progress bar on standard error, with tqdm's options: on a terminal redrawn, in a file or log a line a minute.

    What is done within a minute has no line there. `update(0)` shows what was set since.
    """
    if sys.stderr.isatty():
        return tqdm(files, **{"file": sys.stderr, "miniters": 0, "dynamic_ncols": True, **options})
    rare = {"mininterval": 60, "maxinterval": 60, "delay": 60, "miniters": 0}
    return tqdm(files, **{**options, **rare, "file": _Lines(sys.stderr)})
