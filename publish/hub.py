"""How the Hub is talked to: its names, the token, patience, and errors that end in one line."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import logging, validate_repo_id

WAITS = (1, 2, 4)  # seconds before a request is sent again that the Hub answered with 5xx
REASONS = {
    401: "the Hub does not accept the token (401); log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there (403); it needs the right to write to this account's models",
    404: "the Hub has no such repo, branch or file, or the token may not see it (404)",
    412: "the repo was changed in the meantime (412); give the same command again",
    429: "too many requests (429); give the same command again in some minutes",
}


def check_target(repo_id: str, revision: str | None) -> None:
    """Raises ValueError for what cannot be the name of a model's repo, or of a branch."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repo; it is user/model, or organisation/model")
    validate_repo_id(repo_id)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"{revision} is a commit; a model is pushed to a branch")


def connect() -> HfApi:
    """Returns a client with the token of `hf auth login` or HF_TOKEN; raises ValueError if there is none."""
    token = get_token()
    if token is None:
        raise ValueError("there is no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(token=token)


def open_target(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> ModelInfo:
    """Makes the repo and the branch where they are missing, and returns what is there.

    Raises:
        ValueError: if it is to be private, and is public.
    """
    patiently(api.create_repo, repo_id, private=private, exist_ok=True)
    if revision:
        patiently(api.create_branch, repo_id, branch=revision, exist_ok=True)
    info = patiently(api.model_info, repo_id, revision=revision)
    if private and not info.private:
        raise ValueError("the repo is there already, and public; make it private on its page, or take another name")
    return info


def download(api: HfApi, repo_id: str, name: str, commit: str | None) -> bytes:
    """Returns the content of a small file, downloaded past the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        none = Path(scratch) / "none"
        path = api.hf_hub_download(repo_id, name, revision=commit, local_dir=scratch, cache_dir=none)
        return Path(path).read_bytes()


def patiently(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls, and calls again while the Hub answers 5xx, which the client itself does for uploads alone."""
    for wait in WAITS:
        try:
            return call(*arguments, **options)
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
        time.sleep(wait)
    return call(*arguments, **options)


@contextlib.contextmanager
def plain_errors(subject: str) -> Iterator[None]:
    """Turns whatever the client raises into an OSError of one line; keeps its warnings, with addresses, quiet."""
    verbosity = logging.get_verbosity()
    if verbosity == logging.WARNING:
        logging.set_verbosity_error()
    try:
        yield
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the line may have a progress bar that did not end
        raise OSError(f"{subject}: {reason_of(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def reason_of(error: BaseException) -> str:
    """What to tell a user of an error of the client."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return "offline mode is on; unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = f"; the Hub says: {cause.server_message}" if cause.server_message else ""
            reason = REASONS.get(status, f"the Hub answers with an error ({status}); try again later")
            return " ".join(f"{reason}{said}".split())
        cause = cause.__cause__
    text = re.sub(r"\?[^\s)'\"]*", "", " ".join(str(error).split()))  # addresses may be signed
    own = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
    if own or (isinstance(error, OSError) and error.errno):  # of the disk
        return text
    return f"no connection, or it broke ({text}); give the same command again, what has arrived is not sent twice"
