"""The command line: `exhubert ...`, also as `python -m exhubert ...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="exhubert", description="ExHuBERT: speech emotion recognition.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="make a model folder of a checkpoint")
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    hubert = kinds.add_parser(
        "hubert",
        help="expand a HuBERT",
        description="Expands a HuBERT checkpoint and checks that the result computes the same, bit for bit.",
    )
    hubert.add_argument("--num-copies", type=int, default=1, help="copies of each encoder layer (default: 1)")
    published = kinds.add_parser(
        "published",
        help="take over the published ExHuBERT",
        description="Converts a checkpoint of the published ExHuBERT code, or one fine-tuned with it.",
    )
    contract = kinds.add_parser(
        "contract",
        help="get the plain HuBERT back",
        description="Drops the copies of an expanded model; of a trained one the head as well.",
    )
    for kind, run in ((hubert, _convert_hubert), (published, _convert_published), (contract, _convert_contract)):
        kind.add_argument("source", metavar="SRC", help="Hub id or folder of the checkpoint")
        kind.add_argument("destination", metavar="DST", help="folder to write; must not exist")
        kind.add_argument("--revision", help="commit, branch or tag of the Hub repo")
        kind.set_defaults(run=run)

    options = parser.parse_args(arguments)
    return options.run(options)


def quiet_transformers() -> None:
    """Leaves the terminal to a command's own lines: no load reports, no bars for reading and writing weights."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run_with_one_line_errors(command: Callable[[], int]) -> int:
    """Runs a command; a user's mistake ends in one line on standard error and exit code 1.

    With EXHUBERT_TRACEBACK=1 in the environment the whole traceback is shown.
    """
    try:
        return command()
    except SystemExit as error:
        return 1 if error.code == 2 else int(error.code or 0)  # 2 is argparse's; here it means partial success
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


def entry_point() -> int:
    """The console script."""
    return run_with_one_line_errors(main)


def _convert_hubert(options: argparse.Namespace) -> int:
    from exhubert.convert.hubert import convert_hubert

    quiet_transformers()
    convert_hubert(options.source, options.destination, options.num_copies, options.revision)
    return 0


def _convert_published(options: argparse.Namespace) -> int:
    from exhubert.convert.published import convert_published

    quiet_transformers()
    convert_published(options.source, options.destination, options.revision)
    return 0


def _convert_contract(options: argparse.Namespace) -> int:
    from exhubert.convert.contract import convert_contract

    quiet_transformers()
    convert_contract(options.source, options.destination, options.revision)
    return 0
