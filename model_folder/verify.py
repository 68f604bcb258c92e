"""Compares a model folder with this package and with its own card; nothing of it is imported, unpickled or run."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from exhubert import __version__
from exhubert.configuration_exhubert import CODE_FILES
from exhubert.model_folder.card import CARD, WEIGHTS, stated_weights
from exhubert.model_folder.load import not_found
from exhubert.model_folder.save import EMOTION_CODE_FILE, SHARD, code_references, shard_names
from exhubert.utils.files import sha256_of, visible_files
from exhubert.utils.text import first_line, printable

PACKAGE = Path(__file__).parent.parent
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".bat", ".ps1", ".exe", ".ipynb")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# Of a checkpoint: what `Trainer` goes on from, which it reads as tensors alone, and LoRA's parts.
STATES = re.compile(r"(optimizer|scheduler|scaler)\.pt|optimizer\.bin|rng_state(_\d+)?\.pth|lora\.safetensors")
GOOD = ("same", "state")


class Finding(NamedTuple):
    """What was found of a file: `status` is same, state (of a training), or what is wrong in one word."""

    status: str
    file: str
    note: str


def run_verify(model: str, revision: str | None = None) -> int:
    """Runs `exhubert verify`; returns the exit code, 0 if all is as it should be, else 1."""
    findings = verify_model_folder(model, revision)
    for finding in findings:
        print(f"{finding.status:10} {printable(finding.file)}: {printable(finding.note)}")
    wrong = sum(finding.status not in GOOD for finding in findings)
    print(f"{model}: {f'{wrong} of {len(findings)} are not as they should be' if wrong else 'all is as it should be'}")
    return 1 if wrong else 0


def verify_model_folder(model: str | os.PathLike[str], revision: str | None = None) -> list[Finding]:
    """Compares what lies in a model folder with this package's code and with what the folder's card states.

    - Code: each file that can run, and each that a configuration names, is the same as this package's, or it is said.
    - Weights: the SHA-256 of each file is that of the card, its header can be read, and no part is missing.
    - Pickles, which can hold code, are named; those of a checkpoint that are read as tensors alone are `state`.

    Args:
        model: folder or Hub id, whose files are fetched into the cache.
        revision: of the Hub repo: commit, branch or tag.

    Returns:
        A finding for each such file, in the order code, weights, pickles.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(model), revision=revision))
        except (OSError, ValueError) as error:
            raise not_found(str(model), error) from error
    files = {path.relative_to(folder).as_posix(): path for path in visible_files(folder)}
    odd = [name for name, path in files.items() if not path.is_file()]
    findings = [Finding("unreadable", name, "no regular file, or a link that leads nowhere") for name in odd]
    files = {name: path for name, path in files.items() if name not in odd}
    return [*findings, *_code(files), *_weights(files), *_pickles(files)]


def _code(files: Mapping[str, Path]) -> Iterator[Finding]:
    """Of what can run: whether it is this package's."""
    written_by = stated_weights(files[CARD])[0] if CARD in files else ""
    needed = {}
    for name, path in files.items():
        if name.endswith(".json") and "/" not in name:
            try:
                for key, reference in code_references(path):
                    if "--" in reference:
                        yield Finding("foreign", name, f"takes {key} from another repo ({reference})")
                    else:
                        needed[f"{reference.partition('.')[0]}.py"] = name
            except (OSError, ValueError) as error:
                yield Finding("unreadable", name, first_line(error))
    for name in [name for name in needed if name in (*CODE_FILES, EMOTION_CODE_FILE)]:
        for imported in _imports(name):
            needed.setdefault(imported, name)
    for name in sorted({*needed, *(name for name in files if name.lower().endswith(CODE))}):
        if name not in files:
            yield Finding("missing", name, f"{needed[name]} needs it")
        elif name not in (*CODE_FILES, EMOTION_CODE_FILE):
            named = f", and {needed[name]} names it" if name in needed else ""
            yield Finding("unknown", name, f"code that is not of this package{named}; read it before anything runs it")
        else:
            digest = _digest(files[name])
            if digest == sha256_of(PACKAGE / name):
                yield Finding("same", name, f"the code of exhubert {__version__}")
            elif not digest:
                yield Finding("unreadable", name, "it cannot be read")
            elif written_by in ("", __version__):
                yield Finding("differs", name, f"not the code of exhubert {__version__}; read it before it is trusted")
            else:
                other = f"compare it with that release, as code of another is none of exhubert {__version__}"
                yield Finding("differs", name, f"the card says that exhubert {written_by} wrote it: {other}")


def _imports(name: str) -> list[str]:
    """The code files that one of ours needs beside it."""
    needed, looked_at = [name], 0
    while looked_at < len(needed):
        tree = ast.parse((PACKAGE / needed[looked_at]).read_text(encoding="utf-8"))
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
        needed += [f"{module}.py" for module in modules if f"{module}.py" not in needed]
        looked_at += 1
    return needed[1:]


def _weights(files: Mapping[str, Path]) -> Iterator[Finding]:
    """Of the weights: whether they are those of the card, whole, and can be read."""
    stated = stated_weights(files[CARD])[1] if CARD in files else {}
    found = [name for name in files if WEIGHTS.fullmatch(name) and not STATES.fullmatch(name)]
    lacking = dict.fromkeys(stated, f"{CARD} states its SHA-256")
    if not found and not stated:
        lacking["model.safetensors"] = "there are no weights"
    parts: dict[str, set[str]] = {}  # of each shard, the names of weights that an index says
    for name in [name for name in files if SHARD.fullmatch(name) and name.endswith(".json")]:
        try:
            parts |= shard_names(files[name])
            lacking |= dict.fromkeys(parts, f"{name} names it")
        except (OSError, ValueError) as error:
            yield Finding("unreadable", name, first_line(error))
    for name in sorted({*found, *lacking}):
        if name not in files:
            yield Finding("missing", name, lacking[name])
            continue
        digest, problem = _digest(files[name]), _header_problem(files[name], parts.get(name, set()))
        if problem or not digest:
            yield Finding("unreadable", name, problem or "it cannot be read")
        elif name not in stated:
            why = f"{CARD} states no SHA-256 of it" if CARD in files else f"there is no {CARD} to state its SHA-256"
            yield Finding("unstated", name, why)
        elif digest != stated[name]:
            yield Finding("differs", name, f"its SHA-256 is {digest}, and {CARD} states {stated[name]}")
        else:
            yield Finding("same", name, f"SHA-256 {digest}, as {CARD} states")


def _header_problem(path: Path, wanted: set[str]) -> str:
    """What is wrong with the header of safetensors, or of which weights that an index names it has none."""
    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="numpy") as file:
            lacking = sorted(wanted - set(file.keys()))
    except (OSError, SafetensorError, ValueError) as error:
        return f"the weights cannot be read ({first_line(error)})"
    return f"it lacks {lacking[0]}, which the index says is in it" if lacking else ""


def _pickles(files: Mapping[str, Path]) -> Iterator[Finding]:
    """Files that may hold code beside their data."""
    is_checkpoint = "trainer_state.json" in files
    for name in files:
        if is_checkpoint and STATES.fullmatch(name):
            yield Finding("state", name, "of the training, which `--resume` reads as tensors alone")
        elif name.lower().endswith(PICKLES):
            yield Finding("pickle", name, "whatever unpickles it may run its code; nothing here needs it: delete it")


def _digest(path: Path) -> str:
    """The SHA-256 of a file; empty if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""
