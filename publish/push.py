"""Puts a model folder on the Hub: its files in one commit, then compared with what the Hub gives back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import logging, validate_repo_id
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from exhubert.model_folder.card import CARD, is_edited
from exhubert.model_folder.onnx_model import ONNX_FILE
from exhubert.model_folder.save import CODE_FILES, EMOTION_CODE_FILE, SHARD, check_model_folder
from exhubert.publish.run_card import hub_card

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ONNX_DATA = f"{ONNX_FILE}.data"
CONFIGS = ("config.json", "preprocessor_config.json")
PLAIN_FILES = (*CONFIGS, CARD, *CODE_FILES, EMOTION_CODE_FILE, ONNX_FILE, ONNX_DATA)
PICTURE = re.compile(r"(curves|reliability|confusion_[^/]+)\.png")  # what the card shows
WAITS = (1, 2, 4)  # seconds before a request is sent again that the Hub answered with 5xx
REASONS = {
    401: "the Hub does not accept the token (401); log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there (403); it needs the right to write to this account's models",
    404: "the Hub has no such repo, branch or file, or the token may not see it (404)",
    412: "the repo was changed in the meantime (412); give the same command again",
    429: "too many requests (429); give the same command again in some minutes",
}


def push_model_folder(
    directory: str | os.PathLike[str],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> str | None:
    """Uploads the files of a model folder, and no others, in one commit, and downloads them to compare.

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

    Returns:
        The SHA of the commit that has the files, also where nothing had to be changed; None for a dry run.

    Raises:
        ValueError: if the folder lacks something, its weights cannot be read, or there is no token.
        OSError: if the Hub refuses, the connection breaks, or what it gives back is not what was sent.
    """
    _check_target(repo_id, revision)
    directory = check_model_folder(directory)
    names, left_out = model_files(directory)
    sizes = {name: (directory / name).stat().st_size for name in names}
    print(
        f"{directory} to {constants.ENDPOINT}/{repo_id}, branch {revision or 'main'}{', private' if private else ''}:"
    )
    for name, size in sizes.items():
        print(f"  {tqdm.format_sizeof(size, 'B'):>7}  {name}")
    print(
        f"{len(names)} files, {tqdm.format_sizeof(sum(sizes.values()), 'B')}; left out: {', '.join(left_out) or 'none'}"
    )
    if dry_run:
        print("a dry run: nothing was sent")
        return None

    api = _connect()
    card = hub_card(directory, repo_id).encode()
    additions = [CommitOperationAdd(name, card if name == CARD else directory / name) for name in names]
    with _plain_errors(repo_id):
        target = _open_target(api, repo_id, private, revision)
        there = [file.rfilename for file in target.siblings or []]
        ours = is_edited(directory / CARD)  # then whoever pushes wants it
        if CARD in there and not ours and _has_other_edited_card(api, repo_id, target.sha, card):
            additions = [addition for addition in additions if addition.path_in_repo != CARD]
            print(f"{CARD} there was written or changed by hand and stays, unless this folder's was as well")
        stale = [name for name in there if name not in names and (SHARD.fullmatch(name) or name == ONNX_DATA)]
        commit = _patiently(
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
    with _plain_errors(f"{repo_id} is pushed (commit {commit.oid}), but comparing in {tempfile.gettempdir()} failed"):
        for addition in additions:
            _compare(api, repo_id, commit.oid, addition)
    print(f"downloaded and compared: all {len(additions)} files are the same. To load it, whatever is pushed later:")
    pinned = f'"{repo_id}", revision="{commit.oid}"'
    if "onnx" in _read_json(directory / CONFIGS[0]):
        print(f"load_pipeline(snapshot_download({pinned}))")
    else:
        print(f"AutoModelForAudioClassification.from_pretrained({pinned}, trust_remote_code=True)")
    return commit.oid


def check_right_to_push(repo_id: str, private: bool | None = None, revision: str | None = None) -> None:
    """Makes the repo and the branch if they are missing, and asks whether the token may write there.

    Raises:
        ValueError: if the names cannot be, or there is no token.
        OSError: if the Hub refuses, or is not to be reached.
    """
    _check_target(repo_id, revision)
    api = _connect()
    with _plain_errors(repo_id):
        _open_target(api, repo_id, private, revision)
        # Asked before an upload is how a file would be sent. It needs the right to write, and sends no text file yet.
        _patiently(api.preupload_lfs_files, repo_id, [CommitOperationAdd(CARD, b"text")], revision=revision)


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
    weights = _weights(directory)
    files = {path.name for path in directory.iterdir() if path.is_file() and not path.is_symlink()}
    known = {name for name in files if name in PLAIN_FILES or PICTURE.fullmatch(name)}
    names = known | {name for name in weights if name in files and SHARD.fullmatch(name)}
    needed = {*CONFIGS, CARD, *_code_files(directory), *weights}
    if lacking := [name for name in sorted(needed) if not (directory / name).is_file()]:
        raise ValueError(f"{directory} is not a whole model folder: it lacks {', '.join(lacking)}")
    if foreign := sorted(needed - names):
        raise ValueError(
            f"{directory}: the model needs {', '.join(foreign)}, which a push leaves out: links, and names that no "
            f"model folder of this package has"
        )
    for name in weights:
        if name.endswith(".safetensors"):
            _check_weights(directory / name)
    everything = sorted(path.name + "/" * path.is_dir() for path in directory.iterdir())
    return sorted(names), [name for name in everything if name not in names]


def _weights(directory: Path) -> list[str]:
    """The names of the files that the weights are read from, whatever other weights lie beside them."""
    if "onnx" in _read_json(directory / CONFIGS[0]):
        exported = directory / ONNX_FILE
        beside = exported.is_file() and ONNX_DATA.encode() in exported.read_bytes()
        return [ONNX_FILE, ONNX_DATA] if beside else [ONNX_FILE]
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    if (directory / INDEX).is_file():
        return [*sorted(set(_read_json(directory / INDEX).get("weight_map", {}).values())), INDEX]
    raise ValueError(f"{directory} is not a whole model folder: it lacks {WEIGHTS} or {INDEX}")


def _code_files(directory: Path) -> set[str]:
    """The code files that the configurations name, but for those of other repos (`user/model--file.Class`)."""
    references: list[Any] = []
    for name in CONFIGS:
        for value in (_read_json(directory / name).get("auto_map") or {}).values():
            references += value if isinstance(value, list) else [value]  # of a tokenizer, two or one and None
    named = [reference for reference in references if reference is not None and "--" not in reference]
    return {f"{reference.split('.')[0]}.py" for reference in named}


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as tensors:
            for name in tensors.offset_keys():
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and tensor.float().isnan().any():
                    raise ValueError(f"{path}: {name} has values that are not numbers (NaN); such a model is no use")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: the weights cannot be read ({error}); is the file whole?") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table in JSON: {error}") from error


def _check_target(repo_id: str, revision: str | None) -> None:
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repo; it is user/model, or organisation/model")
    validate_repo_id(repo_id)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"{revision} is a commit; a model is pushed to a branch")


def _connect() -> HfApi:
    token = get_token()
    if token is None:
        raise ValueError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(token=token)


def _open_target(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> ModelInfo:
    """Makes the repo and the branch where they are missing, and returns what is there."""
    _patiently(api.create_repo, repo_id, private=private, exist_ok=True)
    if revision:
        _patiently(api.create_branch, repo_id, branch=revision, exist_ok=True)
    info = _patiently(api.model_info, repo_id, revision=revision)
    if private and not info.private:
        raise ValueError("the repo is there already, and public; make it private on its page, or take another name")
    return info


def _patiently(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls, and calls again while the Hub answers 5xx, which the client itself does for uploads alone."""
    for wait in WAITS:
        try:
            return call(*arguments, **options)
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(wait)
    return call(*arguments, **options)


def _has_other_edited_card(api: HfApi, repo_id: str, commit: str | None, card: bytes) -> bool:
    """Whether a person wrote or changed the card there, and it is not `card`."""
    with _downloaded(api, repo_id, CARD, commit) as path:
        return is_edited(path) and path.read_bytes() != card


def _compare(api: HfApi, repo_id: str, commit: str, sent: CommitOperationAdd) -> None:
    name = sent.path_in_repo
    with _downloaded(api, repo_id, name, commit) as path:
        same = UploadInfo.from_path(str(path)).sha256 == sent.upload_info.sha256
    if not same:
        raise ValueError(f"{name} comes back as another file, its SHA-256 differs; do not use this commit")


@contextlib.contextmanager
def _downloaded(api: HfApi, repo_id: str, name: str, commit: str | None) -> Iterator[Path]:
    """Downloads one file, past the cache; room is needed for one at a time."""
    with tempfile.TemporaryDirectory() as scratch:
        none = Path(scratch) / "none"
        yield Path(api.hf_hub_download(repo_id, name, revision=commit, local_dir=scratch, cache_dir=none))


@contextlib.contextmanager
def _plain_errors(subject: str) -> Iterator[None]:
    """Turns whatever the client raises into an OSError of one line; keeps its warnings, with addresses, quiet."""
    verbosity = logging.get_verbosity()
    if verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__) is not None:
            causes.append(cause)
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the line may have a progress bar that did not end
        raise OSError(f"{subject}: {_reason(causes)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _reason(causes: list[BaseException]) -> str:
    """What to tell a user of an error and what caused it."""
    for cause in causes:
        if isinstance(cause, OfflineModeIsEnabled):
            return "offline mode is on; unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = f"; the Hub says: {cause.server_message}" if cause.server_message else ""
            reason = REASONS.get(status, f"the Hub answers with an error ({status}); try again later")
            return " ".join(f"{reason}{said}".split())
    error = causes[0]
    text = re.sub(r"\?[^\s)'\"]*", "", " ".join(str(error).split()))  # addresses may be signed
    own = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
    if own or (isinstance(error, OSError) and error.errno):  # of the disk
        return text
    return f"no connection, or it broke ({text}); give the same command again, what has arrived is not sent twice"
