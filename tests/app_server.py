"""A server of two small models in a process of its own, for the tests of the page and the API; not a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import ROOT, free_port, make_classifier

PATIENCE_SECONDS = 120
# What the process does: connections to other machines and questions for their addresses are noted, and refused.
PROGRAM = """
import sys
LOOPBACK = ("127.0.0.1", "::1", "localhost", None, "", "0.0.0.0")
def heard(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in LOOPBACK and host not in [str(name).encode() for name in LOOPBACK]:
        print("outside:", event, arguments, file=sys.stderr, flush=True)
        raise OSError("no connections to other machines in this test")
sys.addaudithook(heard)
from exhubert.cli import entry_point
sys.exit(entry_point())
"""


class Server(NamedTuple):
    """A server that runs.

    Attributes:
        address: of the page.
        models: the folder of each model, by its name on the page.
        files: the folder in which the server's own files are.
        process: `process.send_signal(...)`, `process.pid`.
        log: what it has printed, standard error, too.
    """

    address: str
    models: dict[str, Path]
    files: Path
    process: subprocess.Popen
    log: Path


def write_models(folder: Path) -> dict[str, Path]:
    """Writes a calibrated model of the six classes, `emotions`, and one of two dimensions, `dimensions`."""
    from exhubert.configuration_exhubert import SIX_CLASSES
    from exhubert.model_folder import save_model_folder

    six = {"id2label": dict(enumerate(SIX_CLASSES)), "calibration_temperature": 0.5}
    alone = {"dimensions": {"arousal": [1, 7], "valence": [-1, 1]}, "problem_type": "regression"}
    alone["id2label"] = {0: "arousal", 1: "valence"}
    kinds = {"emotions": six, "dimensions": alone}
    return {
        name: Path(save_model_folder(make_classifier(0.2, num_hidden_layers=2, **changes), folder / name))
        for name, changes in kinds.items()
    }


@contextmanager
def app_of(folder: Path, models: dict[str, Path], *options: str) -> Iterator[Server]:
    """Runs `exhubert app` with options, its temporary files in `folder/tmp`; it must end clean at SIGTERM."""
    port, log = free_port(), folder / "app.log"
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    names = ("TMPDIR", "TMP", "TEMP")
    environment = os.environ | dict.fromkeys(names, str(folder / "tmp")) | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, "app", *map(str, models.values()), "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT.parent)
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while "ctrl-c" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        (files,) = (folder / "tmp").glob("exhubert-app-*")
        yield Server(f"http://127.0.0.1:{port}/", models, files, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0 and not files.exists()
        assert "outside:" not in log.read_text()
        assert not (folder / "tmp" / ".ses").exists(), "onnxruntime's telemetry is on"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def app_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both models, which takes recordings of 2 minutes and files of 20 MB."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("app")
    with app_of(folder, write_models(folder), "--longest", "2", "--largest", "20") as server:
        yield server
