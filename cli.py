"""The command line: `exhubert ...`, also as `python -m exhubert ...`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from exhubert import __version__
from exhubert.utils.command import quiet_transformers, run_with_one_line_errors, with_hyphens

# The scripts of the checkout's root, which read their own arguments: module and help.
SCRIPTS = {
    "pretrain": ("pretrain_hf", "pre-train a HuBERT on audio without labels"),
    "train": ("train_hf", "fine-tune a model by a recipe"),
    "evaluate": ("evaluate_hf", "evaluate models on corpora, and write a report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in SCRIPTS:
        return run_script(*arguments)
    parser = argparse.ArgumentParser(prog="exhubert", description="ExHuBERT: speech emotion recognition.")
    parser.add_argument("--version", action="version", version=f"exhubert {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, help_) in SCRIPTS.items():
        commands.add_parser(name, help=help_)
    _add_convert(commands)
    _add_corpora(commands)
    _add_inference(commands)

    repair = commands.add_parser(
        "repair",
        help="add what a model folder lacks",
        description="Adds the code files, the feature extractor and the card that a folder with a model in it lacks.",
    )
    repair.add_argument("directory", metavar="DIR", help="folder with config.json and safetensors")
    repair.set_defaults(run="model_folder.save:run_repair")

    verify = commands.add_parser(
        "verify",
        help="compare a model folder with this package and its card",
        description="Says whether the code that travels with a model is this package's, and its weights those that its "
        "card states. Nothing of it is run.",
    )
    verify.add_argument("model", metavar="MODEL", help="model folder, or Hub id, whose files are fetched")
    verify.add_argument("--revision", help="commit, branch or tag of the Hub repo")
    verify.set_defaults(run="model_folder.verify:run_verify")

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
    push.add_argument("--allow-changed-code", action="store_true", help="push code that is not this package's")
    push.set_defaults(run="publish.push:push_model_folder")
    options = vars(parser.parse_args(with_hyphens(arguments)))
    module, _, function = options.pop("run").partition(":")
    prints = options.pop("prints", False)
    command = getattr(import_module(f"exhubert.{module}"), function)
    if "transformers" in sys.modules:
        quiet_transformers()
    if options.get("backend"):
        find = import_module("exhubert.convert.onnx").model_for_backend
        how = {name: options[name] for name in ("trust_remote_code", "device", "dtype")}
        options["model"] = find(options["model"], options.pop("backend"), **how)
    result = command(**options)
    if prints:
        print(result)
    return result if isinstance(result, int) else 0


def run_script(name: str, *arguments: str) -> int:
    """Runs `exhubert pretrain`, `exhubert train` or `exhubert evaluate`; returns the exit code."""
    try:
        script = import_module(f"exhubert.{SCRIPTS[name][0]}")
    except ModuleNotFoundError as error:
        raise ImportError(f"exhubert {name} needs {error.name}, which the extra `train` installs") from error
    quiet_transformers()
    code: int = script.main(arguments, prog=f"exhubert {name}")
    return code


def entry_point() -> int:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the corpora's accents
    return run_with_one_line_errors(main)


def _add_convert(commands: Any) -> None:
    """The parsers of `exhubert convert ...`."""
    convert = commands.add_parser("convert", help="make a model folder of a checkpoint")
    kinds = convert.add_subparsers(required=True, metavar="KIND")
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
    for kind in (hubert, published, contract):
        kind.add_argument("source", metavar="SRC", help="Hub id or folder of the checkpoint")
        kind.add_argument("destination", metavar="DST", help="folder to write; must not exist")
        kind.add_argument("--revision", help="commit, branch or tag of the Hub repo")
    hubert.set_defaults(run="convert.hubert:convert_hubert")
    published.set_defaults(run="convert.published:convert_published")
    contract.set_defaults(run="convert.contract:convert_contract")

    onnx = kinds.add_parser(
        "onnx",
        help="export to ONNX",
        description="Exports an audio-classification model to ONNX and checks that it computes what torch computes.",
    )
    onnx.add_argument("source", metavar="SRC", help="Hub id or folder of the model")
    onnx.add_argument("destination", metavar="DST", help="folder to write; must not exist")
    onnx.add_argument("--int8", action="store_true", help="quantise the matrices: a quarter of the size, and faster")
    compared = "corpora, to compare on their test splits"
    onnx.add_argument("--check", dest="corpora", metavar="DIR", nargs="+", default=[], help=compared)
    _add_trust(onnx)
    onnx.set_defaults(run="convert.onnx:convert_onnx")


def _add_corpora(commands: Any) -> None:
    """The parsers of `exhubert corpora ...`."""
    corpora = commands.add_parser("corpora", help="list, prepare and check emotion corpora")
    actions = corpora.add_subparsers(required=True, metavar="ACTION")

    listed = actions.add_parser("list", help="the known corpora", description="Lists the registry of corpora.")
    listed.add_argument("--language", default="", help="a language's code, such as de")
    listed.add_argument("--licence", default="", help="a part of the licence's name, such as CC BY")
    listed.add_argument("--kind", default="", help="acted, elicited, natural or synthetic")
    listed.add_argument("--part", default="", help="emoset (26 corpora), emoset++ (37), unseen (6) or none")
    listed.set_defaults(run="corpora.registry:corpora_list", prints=True)

    shown = actions.add_parser("show", help="all that is known of one corpus")
    shown.add_argument("key", metavar="KEY", help="key or alias of a corpus, such as emodb")
    shown.set_defaults(run="corpora.registry:describe", prints=True)

    labels = actions.add_parser("labels", help="emotion words and their six classes")
    labels.add_argument("--corpus", metavar="KEY", help="only the words of this corpus, as they are meant there")
    labels.add_argument("--label-file", metavar="YAML", help="a file whose words add to these or replace them")
    labels.add_argument("--format", dest="style", default="table", choices=("table", "csv"), help="default: table")
    labels.set_defaults(run="corpora.labels:label_table", prints=True)

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
    prepare.set_defaults(run="corpora.prepare:prepare_corpus")

    check = actions.add_parser("check", help="look for bad audio and labels in a corpus folder")
    check.add_argument("directory", metavar="DIR", help="corpus folder")
    check.add_argument("--shortest", dest="shortest_seconds", type=float, default=0.1, help="seconds (default: 0.1)")
    check.add_argument("--longest", dest="longest_seconds", type=float, default=60.0, help="seconds (default: 60)")
    check.add_argument("--output", metavar="CSV", help="file for all findings")
    check.add_argument("--label-file", metavar="YAML", help="a file with further emotion words")
    check.set_defaults(run="corpora.check:run_check")

    stats = actions.add_parser("stats", help="tables and durations of corpus folders")
    stats.add_argument("directories", metavar="DIR", nargs="+", help="corpus folders")
    stats.add_argument("--output", metavar="DIR", help="folder for statistics.md and durations.png")
    stats.add_argument("--label-file", metavar="YAML", help="a file with further emotion words")
    stats.set_defaults(run="corpora.statistics:write_statistics", prints=True)


class InPlaceOf(argparse.Action):
    """An option with which another argument may be missing."""

    def __init__(self, *args: Any, other: argparse.Action, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.other = other

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        self.other.required = False


def _add_inference(commands: Any) -> None:
    """The parsers of `exhubert predict` and `exhubert embed`."""
    predict = commands.add_parser(
        "predict",
        help="classify audio",
        description="Classifies audio of any length and prints a row a file, or segment. Bad files are listed last.",
    )
    predict.add_argument(
        "--format", dest="style", choices=("table", "jsonl", "csv"), help="default: as --output is called, or table"
    )
    predict.add_argument("--output", metavar="FILE", help=".jsonl or .csv; files that have a row there are skipped")
    predict.add_argument("--timeline", metavar="DIR", help="folder for a picture of each file over time")
    predict.add_argument("--segment-files", metavar="DIR", help="folder for a file of each recording's segments")
    formats = ("vtt", "srt", "audacity", "textgrid", "elan", "csv")
    shown = f"{', '.join(formats)} (default: vtt)"
    predict.add_argument("--segment-format", metavar="FORMAT", nargs="+", choices=formats, help=shown)
    predict.set_defaults(run="inference.predict:run_predict")

    embed = commands.add_parser(
        "embed",
        help="write embeddings of audio",
        description="Writes the model's mean hidden states of audio of any length. Bad files are listed at the end.",
    )
    embed.add_argument("--output", metavar="FILE", required=True, help=".parquet")
    embed.add_argument("--layer", default="last", help="last, weighted, or a number from 0 (default: last)")
    embed.set_defaults(run="inference.embed:run_embed")

    for command in (predict, embed):
        command.usage = "%(prog)s [options] MODEL (AUDIO ... | --files-from FILE)"
        command.add_argument("model", metavar="MODEL", help="model folder or Hub id, or folder of an ONNX export")
        audio = "files, folders, quoted globs; - reads a file"
        needed = command.add_argument("audio", metavar="AUDIO", nargs="+", default=(), help=audio)
        files_from = "a list of further files, a name a line; - reads it"
        command.add_argument("--files-from", metavar="FILE", action=InPlaceOf, other=needed, help=files_from)
        command.add_argument(
            "--window",
            dest="window_seconds",
            type=float,
            metavar="SECONDS",
            help="length of a window (default: the model's)",
        )
        command.add_argument(
            "--hop",
            dest="hop_seconds",
            type=float,
            metavar="SECONDS",
            help="from window to window (default: half of one)",
        )
        command.add_argument(
            "--backend",
            choices=("torch", "onnx", "int8"),
            default="torch",
            help="torch, or the model's ONNX export on the CPU, in float32 or int8, made once and kept "
            "(default: torch)",
        )
        _add_segments(command)
        command.add_argument("--vad", action="store_true", help="leave out windows without speech (silero-vad)")
        command.add_argument(
            "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
        )
        command.add_argument(
            "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="default: float32"
        )
        command.add_argument("--batch-size", type=int, default=8, help="windows in a forward, at most (default: 8)")
        command.add_argument("--exact", action="store_true", help="no faster forward, which may be 1e-5 off")
        _add_trust(command)


def _add_segments(command: argparse.ArgumentParser) -> None:
    """The options of rows, segments and channels."""
    command.add_argument(
        "--per",
        choices=("clip", "window", "segment"),
        help="what has a row (default: a segment with --segments, else a clip)",
    )
    command.add_argument(
        "--segments", metavar="SOURCE", help="speech, as it is found; or a file of turns, or a folder of such files"
    )
    command.add_argument(
        "--channels", choices=("mix", "each"), default="mix", help="averaged, or each on its own (default: mix)"
    )
    for name, unit, default in (("probability", "P", 0.5), ("seconds", "SECONDS", 0.5)):
        command.add_argument(
            f"--least-{name}",
            type=float,
            default=argparse.SUPPRESS,
            metavar=unit,
            help=f"a segment with less is marked as uncertain (default: {default})",
        )


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let code run that the model brings; read it first (default: no)",
    )
