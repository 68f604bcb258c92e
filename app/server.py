"""The server: `exhubert app MODEL ...`, or the Space's `app.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SWEEP_SECONDS = 30.0


def run_app(
    models: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    longest: float = 60.0,
    largest: float = 100.0,
    kept: float = 60.0,
    **options: Any,
) -> int:
    """Serves the page and the API until it is interrupted or terminated; returns the exit code.

    Args:
        models: folders or Hub ids; the page has the first chosen.
        host, port: where to listen.
        longest, largest, kept: the fields of `Limits`, in minutes, megabytes and minutes.
        options: those of `load_models`.

    Raises:
        ValueError: for a wrong argument, or what is no model.
        OSError: if there is no such model, or somebody else listens there.
        ImportError: if Gradio is not installed.
    """
    if missing := [name for name in ("gradio", "webvtt") if importlib.util.find_spec(name) is None]:
        raise ImportError(f"the page needs {' and '.join(missing)}: pip install gradio webvtt-py, or exhubert[app]")
    for name, value in (("longest", longest), ("largest", largest), ("kept", kept)):
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name} is {value:g}; it must be above 0")
    check_free(host, port)
    from .answers import Limits

    pipelines = load_models(models, **options)
    stopped = threading.Event()
    with serving(pipelines, Limits(longest, largest, kept), host, port) as address, contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stopped.set()))
        if host not in LOOPBACK:
            print(f"warning: --host {host}: whoever reaches this machine can use the models", file=sys.stderr)
        print(f"{', '.join(pipelines)} at {address} (ctrl-c ends it)", flush=True)
        stopped.wait()
    return 0


def check_free(host: str, port: int) -> None:
    """Raises OSError if nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"port {port} of {host} is not to be had ({reason}); choose another by --port") from error


def load_models(
    models: Sequence[str],
    backend: str = "torch",
    device: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Loads a pipeline for each model, by its name: of a folder its own, as nobody is to see where it lies.

    Where this package is installed they are those of `exhubert predict`; in a Space, whose owner chose the models,
    their own code runs, on a GPU if there is one.

    Args:
        models: folders or Hub ids.
        backend, device, dtype, trust_remote_code: as `model_for_backend` takes them; of no account in a Space.

    Raises:
        ValueError, OSError, ImportError: as `model_for_backend` and `open_pipeline`; ValueError for two models of one
            name.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipelines: dict[str, Any] = {}
    for model in models:
        folder = Path(model).resolve()
        name = model
        if folder.is_dir():
            name = folder.parent.name if folder.name == "model" else folder.name  # of a run: `runs/demo/model`
        if name in pipelines:
            raise ValueError(f"two models are called {name}; give them folders of different names")
        if __package__ == "exhubert.app":
            from exhubert.convert.onnx import model_for_backend
            from exhubert.inference.speech import Options, open_pipeline

            found = model_for_backend(model, backend, trust_remote_code, device, dtype)
            options = Options(device=device, dtype=dtype, trust_remote_code=trust_remote_code)
            pipelines[name] = open_pipeline(found, options)
        else:
            import torch
            from transformers import pipeline

            where = "cuda" if torch.cuda.is_available() else "cpu"
            found = pipeline("speech-emotion-recognition", model=model, trust_remote_code=True, device=where)
            if where == "cpu" and hasattr(found.model, "set_fast_path"):
                found.model.set_fast_path()
            pipelines[name] = found
    return pipelines


@contextlib.contextmanager
def serving(pipelines: Mapping[str, Any], limits: Any, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serves pipelines by their names; yields the address. Its files are in a folder that is removed at the end."""
    before = os.environ.copy()
    with contextlib.ExitStack() as stack:
        stack.callback(_restore_environment, before)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="exhubert-app-", ignore_cleanup_errors=True))
        # What is read where Gradio is imported, where a page is made and where it is served.
        past_proxies = [before.get("no_proxy", before.get("NO_PROXY", "")), *LOOPBACK]
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_TEMP_DIR": folder,
            "no_proxy": ",".join(filter(None, past_proxies)),
        }
        from starlette.middleware import Middleware

        from .api import AT_ONCE, QUEUED, add_api
        from .guard import FoldersOfUploads, Guard, Uploads
        from .page import LOOK, build_page

        uploads = Uploads(Path(folder))
        page = build_page(pipelines, limits)
        with page:
            add_api(pipelines, limits, uploads)
        page.queue(default_concurrency_limit=AT_ONCE, max_size=QUEUED)
        app, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            state_session_capacity=1000,
            run_history=False,
            inbrowser=False,
            show_error=False,
            max_file_size=round(limits.largest_megabytes * 1e6),
            footer_links=["api"],
            app_kwargs={"middleware": [Middleware(Guard, uploads=uploads)]},
            **LOOK,
        )
        stack.callback(page.close, verbose=False)
        app.__class__ = FoldersOfUploads
        done = threading.Event()
        spared = frozenset(os.listdir(folder))  # of the page itself
        sweeper = threading.Thread(target=_sweep, args=(uploads, limits.kept_minutes * 60, spared, done), daemon=True)
        sweeper.start()
        stack.callback(done.set)
        yield address


def _sweep(uploads: Any, seconds: float, spared: frozenset[str], done: threading.Event) -> None:
    while not done.wait(min(SWEEP_SECONDS, seconds)):
        uploads.sweep(seconds, spared)


def _restore_environment(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
