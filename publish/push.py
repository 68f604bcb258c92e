"""Puts a model folder on the Hub: its files in one commit, then compared with what the Hub has."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from exhubert.model_folder.card import CARD, is_edited, is_sealed, stated_weights
from exhubert.model_folder.onnx_model import ONNX_FILE
from exhubert.model_folder.save import (
    CODE_FILES,
    EMOTION_CODE_FILE,
    SHARD,
    check_model_folder,
    code_references,
    shard_names,
)
from exhubert.publish.hub import check_target, connect, download, open_target, patiently, plain_errors
from exhubert.publish.run_card import EVAL_RESULTS, hub_card
from exhubert.utils.files import read_table, sha256_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ONNX_DATA = f"{ONNX_FILE}.data"
CONFIGS = ("config.json", "preprocessor_config.json")
PLAIN_FILES = (*CONFIGS, CARD, *CODE_FILES, EMOTION_CODE_FILE, ONNX_FILE, ONNX_DATA)
PICTURE = re.compile(r"(curves|reliability|(confusion|dimensions|plane)_[^/]+)\.png")  # what the card shows


def push_model_folder(
    directory: str | os.PathLike[str],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
    allow_changed_code: bool = False,
) -> str | None:
    """Uploads the files of a model folder, and no others, in one commit, and compares them with what the Hub has.

    The repo and the branch are made if they are missing. Weights that the repo has and the folder has not, such as
    other shards, are removed by the same commit; what else is there stays, and so does a card that a person wrote or
    changed there. A commit of somebody else in the meantime is not overwritten. The token is that of `hf auth login`
    or HF_TOKEN.

    Args:
        directory: a model folder, also a training checkpoint or an ONNX model folder.
        repo_id: `user/model`.
        private: whether a new repo is private; None: as the account's default is. True refuses a public one.
        revision: the branch; None: main.
        dry_run: only say what would be uploaded; nothing is asked of the Hub.
        allow_changed_code: whether code may go along that is not this package's; see `check_code`.

    Returns:
        The SHA of the commit that has the files, also where nothing had to be changed; None for a dry run.

    Raises:
        ValueError: if the folder lacks something, its weights cannot be read or are not those that its card states, its
            code is not this package's, or there is no token.
        OSError: if the Hub refuses, the connection breaks, or what it has is not what was sent.
    """
    check_target(repo_id, revision)
    directory = check_model_folder(directory)
    names, left_out = model_files(directory)
    check_code(directory, allow_changed_code)
    check_stated(directory, names)
    sizes = {name: tqdm.format_sizeof((directory / name).stat().st_size, "B") for name in names}
    total = tqdm.format_sizeof(sum((directory / name).stat().st_size for name in names), "B")
    where = f"{constants.ENDPOINT}/{repo_id}, branch {revision or 'main'}{', private' if private else ''}"
    print("\n".join([f"{directory} to {where}:", *(f"  {size:>7}  {name}" for name, size in sizes.items())]))
    print(f"{len(names)} files, {total}; left out: {', '.join(left_out) or 'none'}")
    if dry_run:
        print("a dry run: nothing was sent")
        return None

    api = connect()
    card = hub_card(directory, repo_id).encode()
    additions = [CommitOperationAdd(name, card if name == CARD else directory / name) for name in names]
    with plain_errors(repo_id):
        target = open_target(api, repo_id, private, revision)
        there = [file.rfilename for file in target.siblings or []]
        if CARD in there and not is_edited(directory / CARD):  # one that was is wanted by whoever pushes
            other = download(api, repo_id, CARD, target.sha)
            if other != card and not is_sealed(other.decode(errors="replace")):
                additions = [addition for addition in additions if addition.path_in_repo != CARD]
                print(f"{CARD} there was written or changed by hand and stays, unless this folder's was as well")
        stale = [name for name in there if name not in names and (SHARD.fullmatch(name) or name == ONNX_DATA)]
        commit = patiently(
            api.create_commit,
            repo_id,
            [*additions, *map(CommitOperationDelete, stale)],
            commit_message="Model pushed by exhubert",
            revision=revision,
            parent_commit=target.sha,
        )
    if commit.oid == target.sha:
        print(f"nothing to change: commit {commit.oid} has these files")
    else:
        print(f"pushed as commit {commit.oid}" + (f"; removed there: {', '.join(stale)}" if stale else ""))
    with plain_errors(f"{repo_id} is pushed (commit {commit.oid}), but comparing in {tempfile.gettempdir()} failed"):
        compare(api, repo_id, commit.oid, additions)
    print(f"compared: all {len(additions)} files are the same there. To load it, whatever is pushed later:")
    pinned = f'"{repo_id}", revision="{commit.oid}"'
    if "onnx" in read_table(directory / CONFIGS[0]):
        print(f"load_pipeline(snapshot_download({pinned}))")
    else:
        print(f"AutoModelForAudioClassification.from_pretrained({pinned}, trust_remote_code=True)")
    return commit.oid


def compare(api: HfApi, repo_id: str, commit: str, sent: Sequence[CommitOperationAdd]) -> None:
    """Compares files with those of a commit: large ones by the SHA-256 that the Hub states, small ones by downloading.

    Raises:
        ValueError: naming the first that differs, or is not there.
    """
    names = [addition.path_in_repo for addition in sent]
    stated = {file.path: file for file in patiently(api.get_paths_info, repo_id, names, revision=commit)}
    for addition in sent:
        name = addition.path_in_repo
        if name not in stated:
            raise ValueError(f"{name} is not there; do not use this commit")
        if stated[name].lfs:
            digest = stated[name].lfs.sha256
        else:
            digest = hashlib.sha256(download(api, repo_id, name, commit)).hexdigest()
        if digest != addition.upload_info.sha256.hex():
            raise ValueError(f"{name} comes back as another file, its SHA-256 differs; do not use this commit")


def check_right_to_push(repo_id: str, private: bool | None = None, revision: str | None = None) -> None:
    """Makes the repo and the branch if they are missing, and asks whether the token may write there.

    Raises:
        ValueError: if the names cannot be, or there is no token.
        OSError: if the Hub refuses, or is not to be reached.
    """
    check_target(repo_id, revision)
    api = connect()
    with plain_errors(repo_id):
        open_target(api, repo_id, private, revision)
        # Asked before an upload is how a file would be sent. It needs the right to write, and sends no text file yet.
        patiently(api.preupload_lfs_files, repo_id, [CommitOperationAdd(CARD, b"text")], revision=revision)


def push_finished_model(directory: Path, repo_id: str, private: bool | None, revision: str | None) -> int:
    """Pushes the model of a run that is complete; where that fails, says how to do it later.

    Returns:
        The exit code: 0, or 2 if the model is not on the Hub.
    """
    try:
        push_model_folder(directory, repo_id, private, revision)
        return 0
    except (OSError, ValueError) as error:
        options = (" --private" if private else "") + (f" --revision {shlex.quote(revision)}" if revision else "")
        command = f"exhubert push {shlex.quote(str(directory))} {repo_id}{options}"
        print(f"error: the run is complete, but not pushed: {error} (to push it: {command})", file=sys.stderr)
        return 2


def model_files(directory: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the files that a push uploads, and of what it leaves out, folders with a slash.

    Raises:
        ValueError: if the card, a code file that a configuration names, or a part of the weights is missing or would
            not be uploaded, or the weights cannot be read or are not numbers.
    """
    weights = weight_files(directory)
    # But for those of other repos (`user/model--file.Class`).
    code_files = [
        f"{reference.split('.')[0]}.py"
        for name in CONFIGS
        for key, reference in code_references(directory / name)
        if "--" not in reference and key not in (read_table(directory / name).get("custom_pipelines") or {})
    ]
    files = {path.name for path in directory.iterdir() if path.is_file() and not path.is_symlink()}
    known = {name for name in files if name in PLAIN_FILES or PICTURE.fullmatch(name)}
    names = known | {name for name in weights if name in files and SHARD.fullmatch(name)}
    names |= {
        f"{EVAL_RESULTS}/{path.name}"
        for path in (directory / EVAL_RESULTS).glob("*.yaml")
        if path.is_file() and not (path.is_symlink() or path.parent.is_symlink())
    }
    needed = {*CONFIGS, CARD, *code_files, *weights}
    if lacking := [name for name in sorted(needed) if not (directory / name).is_file()]:
        added = {*CODE_FILES, CARD, CONFIGS[1]} & set(lacking)
        remedy = f"; `exhubert repair {directory}` adds {', '.join(sorted(added))}" if added else ""
        raise ValueError(f"{directory} is not a whole model folder: it lacks {', '.join(lacking)}{remedy}")
    if foreign := sorted(needed - names):
        raise ValueError(
            f"{directory}: the model needs {', '.join(foreign)}, which a push leaves out: links, and names that no "
            f"model folder of this package has"
        )
    for name in weights:
        if name.endswith(".safetensors"):
            check_weights(directory / name)
    everything = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    sent = names | {f"{Path(name).parent}/" for name in names}
    return sorted(names), [name for name in everything if name not in sent]


def check_code(directory: Path, allow_changed_code: bool) -> None:
    """Looks for code files that are not this package's, and for classes that a folder takes from another repo.

    Raises:
        ValueError: naming them, unless they are allowed: then they are printed.
    """
    package = Path(__file__).parent.parent
    changed = [
        f"{name} differs from this package's"
        for name in (*CODE_FILES, EMOTION_CODE_FILE)
        if (directory / name).is_file() and (directory / name).read_bytes() != (package / name).read_bytes()
    ]
    for name in CONFIGS:
        for key, reference in code_references(directory / name):
            if "--" in reference:
                changed.append(f"{name} takes {key} from another repo ({reference})")
    if changed and not allow_changed_code:
        raise ValueError(
            f"{directory}: {'; '.join(changed)}; whoever loads the model would run that: read it, and push it with "
            "--allow-changed-code, or save the model anew with this package"
        )
    if changed:
        print("\n".join(["code that is not this package's:", *(f"  {line}" for line in changed)]))


def check_stated(directory: Path, names: Sequence[str]) -> None:
    """Raises ValueError if the card states the SHA-256 of other weights: `exhubert verify` would refuse the model."""
    _, stated = stated_weights(directory / CARD)
    others = [name for name in names if name in stated and stated[name] != sha256_of(directory / name)]
    if others:
        raise ValueError(
            f"{directory}: {CARD} states another SHA-256 of {', '.join(others)}: damaged, or saved anew; if that is "
            f"meant, take `exhubert:` with the lines below it out of {CARD}"
        )


def weight_files(directory: Path) -> list[str]:
    """The names of the files that the weights are read from, whatever other weights lie beside them."""
    if "onnx" in read_table(directory / CONFIGS[0]):
        exported = directory / ONNX_FILE
        beside = exported.is_file() and ONNX_DATA.encode() in exported.read_bytes()
        return [ONNX_FILE, ONNX_DATA] if beside else [ONNX_FILE]
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if (directory / INDEX).is_file():
        return [*sorted(shard_names(directory / INDEX)), INDEX]
    raise ValueError(f"{directory} is not a whole model folder: it lacks {WEIGHTS} or {INDEX}")


def check_weights(path: Path) -> None:
    """Raises ValueError for a safetensors file that cannot be read, or has values that are not numbers."""
    try:
        with safe_open(path, "pt") as tensors:
            for name in tensors.offset_keys():
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and tensor.float().isnan().any():
                    raise ValueError(f"{path}: {name} has values that are not numbers (NaN); such a model is no use")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the weights cannot be read ({error}); is the file whole?") from error
