"""What every command does: a user's mistake ends in one line, and the terminal is left to the command's own lines."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence


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
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("EXHUBERT_TRACEBACK") == "1":
            raise
        # An error of a data worker arrives as that worker's whole traceback, the message last.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        message = lines[-1].removeprefix(f"{type(error).__name__}: ") if "Traceback" in str(error) else " ".join(lines)
        print(f"error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


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
