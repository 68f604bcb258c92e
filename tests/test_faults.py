"""A quick part of `make test-faults`: what a stranger's files may do, in processes of their own, and kills of ours.

python -m pytest tests/test_faults.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Tries so many inputs of a part; returns the table, and what failed."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "faults")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(part: str, count: int) -> str:
        tallies = importlib.import_module(part).attack(count, 0, tmp_path, tmp_path / "kept")
        failures = [f"{tally.kind}: {line}" for tally in tallies for line in tally.failures]
        assert sum(tally.tried for tally in tallies) >= count
        return "\n".join(failures)

    return run


@pytest.mark.parametrize(("part", "count"), [("hostile_audio", 200), ("hostile_texts", 68)])
def test_what_is_hostile_is_read_or_refused(attack, part, count):
    pytest.importorskip("av", reason="writing the formats needs av: pip install av")
    pytest.importorskip("onnx", reason="writing graphs needs onnx: pip install onnx")
    assert attack(part, count) == ""


def test_what_was_killed_is_done_by_the_same_command_again(attack):
    """Conversion, preparation, prediction, embedding and pushing; test_resume.py has trainings."""
    pytest.importorskip("onnxscript", reason="the lives' server imports what exports need: pip install onnxscript")
    assert attack("kills", 10) == ""
