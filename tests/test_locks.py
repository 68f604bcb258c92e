"""An output has one writer at a time; the other process is named, and a dead one leaves nothing in the way.

python -m pytest tests/test_locks.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import refused
from exhubert import evaluate_hf, train_hf
from exhubert.cli import main
from exhubert.utils.files import locked, whole_folder

HOLD = """
import sys, time
from exhubert.utils.files import locked

with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes `output`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_every_command_names_the_process_that_writes_its_output(
    tmp_path, model_folder, make_corpus, write_keys, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tone = next((make_corpus() / "audio").iterdir())
    recipe = write_keys(model="model", corpora=["corpus"], rounds=1)
    table = ["--table", "corpus/metadata.csv"]
    with held(tmp_path / "out.csv") as process, contextlib.ExitStack() as others:
        for name in ("out.parquet", "prepared", "run", "evaluation", "hubert"):
            others.enter_context(locked(tmp_path / name))
        who = f"is being written by process {process.pid} on "
        assert who in refused(capsys, main, "predict", "model", tone, "--output", "out.csv")
        who = f"is being written by process {os.getpid()} on "
        assert who in refused(capsys, main, "embed", "model", tone, "--output", "out.parquet")
        assert who in refused(capsys, main, "corpora", "prepare", "mine", "corpus", "prepared", *table)
        assert who in refused(capsys, main, "convert", "contract", "model", "hubert")
        assert who in refused(capsys, train_hf.main, recipe, "--output", "run")
        assert who in refused(capsys, train_hf.main, recipe, "--output", "run", "--resume")
        options = ["--model", "model", "--corpora", "corpus", "--output", "evaluation"]
        assert who in refused(capsys, evaluate_hf.main, *options)
    assert not (tmp_path / "run").exists()
    assert not [path.name for path in tmp_path.iterdir() if "lock" in path.name and "out.csv" not in path.name]
    assert main(["predict", "model", str(tone), "--output", "out.csv"]) == 0  # the other one was killed
    assert not [path.name for path in tmp_path.iterdir() if "lock" in path.name]


def test_rows_survive_a_second_predict(model_folder, make_corpus, capsys, monkeypatch):
    """The second ends at once, and the rows of the first stay where they are."""
    monkeypatch.chdir(model_folder.parent)
    corpus = make_corpus()
    command = ["predict", "model", str(corpus), "--output", "rows.jsonl"]
    assert main(command) == 0
    rows = Path("rows.jsonl").read_bytes()
    with held(Path("rows.jsonl")):
        inode = os.stat("rows.jsonl").st_ino
        assert "rows.jsonl is being written by process" in refused(capsys, main, *command)
        assert (os.stat("rows.jsonl").st_ino, Path("rows.jsonl").read_bytes()) == (inode, rows)


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path):
    """As data workers do for some seconds."""
    script = HOLD.replace(
        "    time.sleep(600)",
        "    import os\n    if os.fork() == 0:\n        time.sleep(60)\n    time.sleep(2)\n    os.kill(os.getpid(), 9)",
    )
    parent = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.DEVNULL)
    assert parent.returncode == -signal.SIGKILL
    with locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_links_lead_to_one_lock_and_long_names_have_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with locked(tmp_path / "file"):
        with (
            pytest.raises(ValueError, match=rf"file is being written by process {os.getpid()} on \S+; wait"),
            locked(tmp_path / "link"),
        ):
            pass
        with locked(tmp_path / ("é" * 120)), whole_folder(tmp_path / "other") as unfinished:
            (unfinished / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]


def test_a_lock_file_without_a_process_is_in_nobodys_way(tmp_path):
    with locked(tmp_path / "run"):
        (lock,) = tmp_path.iterdir()
        shutil.copy(lock, tmp_path / "kept")
    (tmp_path / "kept").rename(lock)
    assert re.match(r"process \d+ on ", lock.read_text())
    with locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["prepare", "contract"])
def test_what_a_run_left_that_was_killed_when_all_was_done_goes_with_the_next(
    tmp_path, model_folder, make_corpus, capsys, command
):
    """Which is refused, as the folder is whole."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    (tmp_path / f".out.unfinished-{socket.gethostname()}-999999999").mkdir()
    (tmp_path / f".out.unfinished-{socket.gethostname()}-{os.getppid()}").mkdir()  # of one that is alive
    (tmp_path / ".out.lock.unfinished").touch()
    table = ["--table", make_corpus() / "metadata.csv"]
    given = ["corpora", "prepare", "mine", tmp_path / "corpus", tmp_path / "out", *table]
    given = given if command == "prepare" else ["convert", "contract", model_folder, tmp_path / "out"]
    assert "exists" in refused(capsys, main, *given)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left == [f".out.unfinished-{socket.gethostname()}-{os.getppid()}"]
