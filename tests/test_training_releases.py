"""A training of two rounds, ended by a signal after the first and resumed: on each release of transformers.

python -m pytest tests/test_training_releases.py

What `RoundRobinTrainer` takes from `Trainer` differs from release to release; `make test-releases` runs this on each.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

import train_hf
from exhubert.training.trainer import RoundRobinTrainer

CORPORA = {"first": ("anger", "neutral"), "second": ("joy", "boredom")}
UPDATES = 4  # two rounds of two corpora


def states(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the model and of the last checkpoint, and the optimizer's states."""
    checkpoint = run / "checkpoints" / f"checkpoint-{UPDATES}"
    tensors = {}
    for folder in (run / "model", checkpoint):
        tensors |= {f"{folder.name} {name}": value for name, value in load_file(folder / "model.safetensors").items()}
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return tensors | {f"{number} {name}": value for number, each in optimizer.items() for name, value in each.items()}


def test_a_run_that_is_ended_and_resumed_ends_as_the_undisturbed_one(
    tmp_path, monkeypatch, capsys, make_hubert, make_corpus
):
    """With dropout, SpecAugment, evaluations and the best model loaded at the end."""
    for name, labels in CORPORA.items():
        make_corpus(name, labels=labels, speakers=("a", "b", "c"), takes=1)
    recipe = {"model": str(make_hubert(head="none")), "corpora_root": str(tmp_path), "corpora": list(CORPORA)}
    recipe |= {"rounds": UPDATES // 2, "batch_size": 2, "window_seconds": 0.4, "early_stopping": 5}
    recipe["training"] = {"learning_rate": 1e-3, "eval_steps": 2, "report_to": "none", "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    given = [str(tmp_path / "recipe.yaml"), "--output"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train_hf.main([*given, str(whole)]) == 0

    check_update = RoundRobinTrainer.check_update

    def signalled(trainer: RoundRobinTrainer) -> None:
        if trainer.state.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        check_update(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(RoundRobinTrainer, "check_update", signalled)
        assert train_hf.main([*given, str(halves)]) == train_hf.INTERRUPTED
    assert "update 3 of 4 is saved" in capsys.readouterr().out
    assert not (halves / "results.json").exists()
    assert train_hf.main([*given, str(halves), "--resume"]) == 0
    assert "going on from" in capsys.readouterr().out

    expected, got = states(whole), states(halves)
    assert expected.keys() == got.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, got[name])] == []
    results = [json.loads((run / "results.json").read_text()) for run in (whole, halves)]
    assert results[0]["corpora"] == results[1]["corpora"]
    for run in (whole, halves):
        log = json.loads((run / "checkpoints" / f"checkpoint-{UPDATES}" / "trainer_state.json").read_text())
        assert [entry["step"] for entry in log["log_history"] if "eval_average_uar" in entry] == [2, 4]
        assert log["best_global_step"] in (2, 4)


def test_the_losses_of_a_round_are_not_multiplied_by_its_batches(tmp_path, make_hubert, make_corpus):
    """`Trainer` leaves the division out where it takes a model for one that scales its own loss: here about ln 6."""
    for name, labels in CORPORA.items():
        make_corpus(name, labels=labels, speakers=("a", "b", "c"), takes=1)
    recipe = {"model": str(make_hubert(head="none")), "corpora_root": str(tmp_path), "corpora": list(CORPORA)}
    recipe |= {"rounds": 2, "batch_size": 2, "window_seconds": 0.4, "output": str(tmp_path / "run"), "update": "round"}
    recipe["training"] = {"logging_steps": 1, "eval_steps": 2, "report_to": "none", "use_cpu": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert train_hf.main([str(tmp_path / "recipe.yaml")]) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2
    assert all(1.0 < loss < 2.5 for loss in losses)
