"""The command line: `exhubert ...`, also as `python -m exhubert ...`."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


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

    onnx = kinds.add_parser(
        "onnx",
        help="export to ONNX",
        description="Exports an audio-classification model to ONNX and checks that it computes what torch computes.",
    )
    onnx.add_argument("source", metavar="SRC", help="Hub id or folder of the model")
    onnx.add_argument("destination", metavar="DST", help="folder to write; must not exist")
    onnx.add_argument("--int8", action="store_true", help="quantise the matrices: a quarter of the size, and faster")
    onnx.add_argument("--check", metavar="DIR", nargs="+", default=[], help="corpora, to compare on their test splits")
    onnx.set_defaults(run=_convert_onnx)

    _add_corpora(commands)
    _add_inference(commands)

    push = commands.add_parser(
        "push",
        help="put a model folder on the Hub",
        description="Uploads the files of a model in one commit, and compares them with what the Hub gives back.",
    )
    push.add_argument("directory", metavar="DIR", help="model folder, or checkpoint of a training")
    push.add_argument("repo_id", metavar="REPO_ID", help="user/model; is made if it does not exist")
    push.add_argument("--private", action="store_true", default=None, help="only you and your organisation can see it")
    push.add_argument("--revision", metavar="BRANCH", help="branch, made if it does not exist (default: main)")
    push.add_argument("--dry-run", action="store_true", help="list the files and send nothing")
    push.set_defaults(run=_push)
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


def entry_point() -> int:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the corpora's accents
    return run_with_one_line_errors(main)


def _add_corpora(commands: Any) -> None:
    """The parsers of `exhubert corpora ...`."""
    corpora = commands.add_parser("corpora", help="list, prepare and check emotion corpora")
    actions = corpora.add_subparsers(dest="action", required=True, metavar="ACTION")

    listed = actions.add_parser("list", help="the known corpora", description="Lists the registry of corpora.")
    listed.add_argument("--language", default="", help="a language's code, such as de")
    listed.add_argument("--licence", default="", help="a part of the licence's name, such as CC BY")
    listed.add_argument("--kind", default="", help="acted, elicited, natural or synthetic")
    listed.add_argument("--part", default="", help="emoset (26 corpora), emoset++ (37), unseen (6) or none")
    listed.set_defaults(run=_corpora_list)

    shown = actions.add_parser("show", help="all that is known of one corpus")
    shown.add_argument("key", metavar="KEY", help="key or alias of a corpus, such as emodb")
    shown.set_defaults(run=_corpora_show)

    labels = actions.add_parser("labels", help="emotion words and their six classes")
    labels.add_argument("--corpus", metavar="KEY", help="only the words of this corpus, as they are meant there")
    labels.add_argument("--label-file", metavar="YAML", help="a file whose words add to these or replace them")
    labels.set_defaults(run=_corpora_labels)

    prepare = actions.add_parser(
        "prepare",
        help="make a corpus folder of a corpus as it is distributed",
        description="Makes a folder that is ready for training of a corpus as it is distributed; downloads nothing.",
    )
    prepare.add_argument("key", metavar="KEY", help="key or alias of a corpus; with --table any name")
    prepare.add_argument("raw", metavar="RAW_DIR", help="folder into which the corpus was unpacked, at any depth")
    prepare.add_argument("output", metavar="OUT_DIR", help="folder to write; must not exist")
    prepare.add_argument(
        "--audio", default="link", choices=("link", "copy", "flac"), help="flac is 16 kHz mono (default: link)"
    )
    prepare.add_argument("--table", metavar="CSV", help="file_name, label, speaker, ... instead of the naming scheme")
    prepare.add_argument("--protocol", default="auto", help="how to split; see docs/corpora.md (default: auto)")
    prepare.add_argument("--fold", type=int, help="which fold, from 1, of a protocol that has folds")
    prepare.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    prepare.set_defaults(run=_corpora_prepare)

    check = actions.add_parser("check", help="look for bad audio and labels in a corpus folder")
    check.add_argument("directory", metavar="DIR", help="corpus folder")
    check.add_argument("--shortest", type=float, default=0.1, help="seconds (default: 0.1)")
    check.add_argument("--longest", type=float, default=60.0, help="seconds (default: 60)")
    check.add_argument("--output", metavar="CSV", help="file for all findings")
    check.add_argument("--label-file", metavar="YAML", help="a file with further emotion words")
    check.set_defaults(run=_corpora_check)

    stats = actions.add_parser("stats", help="tables and durations of corpus folders")
    stats.add_argument("directories", metavar="DIR", nargs="+", help="corpus folders")
    stats.add_argument("--output", metavar="DIR", help="folder for statistics.md and durations.png")
    stats.add_argument("--label-file", metavar="YAML", help="a file with further emotion words")
    stats.set_defaults(run=_corpora_stats)


def _add_inference(commands: Any) -> None:
    """The parsers of `exhubert predict` and `exhubert embed`."""
    predict = commands.add_parser(
        "predict",
        help="classify audio",
        description="Classifies audio of any length and prints a row a file. Bad files are listed at the end.",
    )
    predict.add_argument("--format", choices=("table", "jsonl", "csv"), help="default: as --output is called, or table")
    predict.add_argument("--output", metavar="FILE", help=".jsonl or .csv; files that have a row there are skipped")
    predict.add_argument("--timeline", metavar="DIR", help="folder for a picture of each file over time")
    predict.set_defaults(run=_predict)

    embed = commands.add_parser(
        "embed",
        help="write embeddings of audio",
        description="Writes the model's mean hidden states of audio of any length. Bad files are listed at the end.",
    )
    embed.add_argument("--output", metavar="FILE", required=True, help=".parquet or .npz")
    embed.add_argument("--layer", default="last", help="last, weighted, or a number from 0 (default: last)")
    embed.add_argument("--per", default="clip", choices=("clip", "window"), help="what has a row (default: clip)")
    embed.set_defaults(run=_embed)

    for command in (predict, embed):
        command.add_argument("model", metavar="MODEL", help="model folder or Hub id, or folder of an ONNX export")
        command.add_argument("audio", metavar="AUDIO", nargs="+", help="files, folders, quoted globs; - reads a file")
        command.add_argument(
            "--window", type=float, metavar="SECONDS", help="length of a window (default: the model's)"
        )
        command.add_argument(
            "--hop", type=float, metavar="SECONDS", help="from window to window (default: half of one)"
        )
        command.add_argument("--vad", action="store_true", help="leave out windows without speech (silero-vad)")


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


def _convert_onnx(options: argparse.Namespace) -> int:
    from exhubert.convert.onnx import convert_onnx

    quiet_transformers()
    convert_onnx(options.source, options.destination, options.int8, options.check)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from exhubert.inference.predict import run_predict

    quiet_transformers()
    return run_predict(
        options.model,
        options.audio,
        options.format,
        options.output,
        options.window,
        options.hop,
        options.timeline,
        options.vad,
    )


def _embed(options: argparse.Namespace) -> int:
    from exhubert.inference.embed import run_embed

    quiet_transformers()
    return run_embed(
        options.model,
        options.audio,
        options.output,
        options.layer,
        options.per,
        options.window,
        options.hop,
        options.vad,
    )


def _corpora_list(options: argparse.Namespace) -> int:
    from exhubert.corpora.registry import corpora_table, select

    chosen = select(options.language, options.licence, options.kind, options.part)
    print(corpora_table(chosen))
    print(f"{len(chosen)} corpora; * not confirmed by a source at hand; `exhubert corpora show KEY` says more")
    return 0


def _corpora_show(options: argparse.Namespace) -> int:
    from exhubert.corpora.registry import describe, find_corpus

    print(describe(find_corpus(options.key)))
    return 0


def _corpora_labels(options: argparse.Namespace) -> int:
    from exhubert.corpora.labels import label_table

    print(label_table(options.label_file, options.corpus))
    return 0


def _corpora_prepare(options: argparse.Namespace) -> int:
    from exhubert.corpora.prepare import prepare_corpus

    bad = prepare_corpus(
        options.key,
        options.raw,
        options.output,
        options.audio,
        options.table,
        options.protocol,
        options.fold,
        options.seed,
    )
    return 2 if bad else 0


def _corpora_check(options: argparse.Namespace) -> int:
    from exhubert.corpora.check import run_check

    return run_check(options.directory, options.shortest, options.longest, options.output, options.label_file)


def _corpora_stats(options: argparse.Namespace) -> int:
    from exhubert.corpora.statistics import write_statistics

    print(write_statistics(options.directories, options.output, options.label_file))
    return 0


def _push(options: argparse.Namespace) -> int:
    from exhubert.push import push_model_folder

    push_model_folder(options.directory, options.repo_id, options.private, options.revision, options.dry_run)
    return 0
