"""Several processes of a run: they end together, whatever reaches one of them, and another number goes on.

python -m pytest tests/test_resume_processes.py
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import ROOT, free_port
from distributed_run import environment
from lives import PATIENCE_SECONDS, assert_same_end, signal_in_update, spoil_clips

pytestmark = pytest.mark.slow


def test_all_processes_end_at_the_same_update_and_another_number_goes_on(folder, live):
    """The signal reaches only one of two. One process goes on, with a notice; two again, bit for bit."""
    whole, halves = folder / "two", folder / "two-halves"
    assert live(whole, processes=2).code == 0
    life = live(halves, hook=(signal_in_update, 5, signal.SIGTERM, False, "1"), processes=2)
    assert life.code == 3, life.output
    assert "on 2 processes" in life.output
    assert life.output.count("interrupted: update 5 of 12 is saved") == 1
    shutil.copytree(halves, folder / "two-then-one")
    life = live(halves, "--resume", processes=2)
    assert life.code == 0, life.output
    assert_same_end(halves, whole, log=False)
    life = live(folder / "two-then-one", "--resume")
    assert life.code == 0, life.output
    assert "it was saved by 2 processes: the batches stay as they were" in life.output


def test_a_nan_loss_of_one_process_stops_all(folder, live):
    """The gradient's mean over processes would spoil the weights of both."""
    names = ["audio/e_joy_0.wav"]  # in one of the two shares at a time
    run = folder / "two-nan"
    life = live(run, hook=(spoil_clips, names), processes=2)
    assert life.code == 1, life.output
    assert life.output.count("error: the loss is nan at update 2, on clips of second: audio/") == 2
    assert "audio/e_joy_0.wav" in life.output


def test_the_death_of_one_process_ends_the_others(folder, live):
    """Without a launcher to end them: the survivor sees that the connection is gone."""
    life = live(folder / "death", hook=(signal_in_update, 3, signal.SIGKILL, False, "1"), processes=2)
    assert life.code == -1
    assert life.output.count("error: another process of this run is gone, or does not answer") == 1


@pytest.mark.heavy
def test_torchrun_ends_with_an_error_when_one_process_dies(folder, live):  # which writes the recipe
    script = folder / "dies.py"
    script.write_text(
        "import signal, sys, lives, train_hf\n"
        "lives.signal_in_update([], 3, signal.SIGKILL, False, '1')\n"
        "sys.exit(train_hf.main())\n"
    )
    given = environment()
    given["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), given["PYTHONPATH"]])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(script), str(folder / "recipe.yaml")]
    done = subprocess.run(
        [*command, "--output", str(folder / "torchrun")],
        env=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode != 0
    assert "on 2 processes" in done.stdout
    assert "SIGKILL" in done.stderr
