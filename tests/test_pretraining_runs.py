"""A pre-training that is interrupted, or done by several processes, is the same.

python -m pytest tests/test_pretraining_runs.py
"""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from unlabelled import recipe_in, write_talk

import pretrain_hf
from distributed_run import launch, train_and_record
from exhubert.training.pretraining_trainer import PretrainingTrainer
from small_models import LARGE

UPDATES = 8
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return write_talk(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def undisturbed(ground):
    """The run folder of a run with dropout, saved every second update, and how to have another one."""
    training = {"learning_rate": 3.0e-3, "logging_steps": 2, "eval_steps": 4, "save_steps": 2, **QUIET}
    recipe = recipe_in(ground, updates=UPDATES, training=training, output=str(ground / "whole"))
    assert pretrain_hf.main([recipe]) == 0
    return ground / "whole", recipe


def outcome(run):
    """All weights and states in the end, the targets, the results but for what the folder is called, and the log."""
    last = run / "checkpoints" / f"checkpoint-{UPDATES}"
    tensors = {
        f"{folder.name} {name}": each
        for folder in (run / "model", last)
        for name, each in load_file(folder / "model.safetensors").items()
    }
    states = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    tensors |= {f"optimizer {number} {name}": each for number, state in states.items() for name, each in state.items()}
    with np.load(run / "targets.npz") as targets:
        tensors |= {f"targets {name}": torch.from_numpy(targets[name]) for name in ("frames", "lengths", "centroids")}
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    seen = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in log
        if "eval_loss" in entry
    ]
    return tensors, json.loads((run / "results.json").read_text()), seen


@pytest.mark.parametrize("how", ["signal", "killed", "killed before the first save"])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(undisturbed, monkeypatch, capsys, how):
    """After SIGTERM in update 5; without a word in update 5, or in update 1 after the targets were made."""
    whole, recipe = undisturbed
    run = whole.with_name(how.replace(" ", "-"))
    stopped_at, check_update = (1 if "before" in how else 5), PretrainingTrainer.check_update

    def stop(self):
        if self.state.global_step == stopped_at:
            if how != "signal":
                raise InterruptedError
            os.kill(os.getpid(), signal.SIGTERM)
        check_update(self)

    monkeypatch.setattr(PretrainingTrainer, "check_update", stop)
    if how == "signal":
        assert pretrain_hf.main([recipe, "--output", str(run)]) == 3
        assert f"update 5 of 8 is saved in {run}/checkpoints/checkpoint-5" in capsys.readouterr().out
    else:
        with pytest.raises(InterruptedError):
            pretrain_hf.main([recipe, "--output", str(run)])
    monkeypatch.undo()
    assert pretrain_hf.main([recipe, "--output", str(run), "--resume"]) == 0
    assert f"the targets are those in {run}/targets.npz" in capsys.readouterr().out
    (expected, results, log), (found, again, resumed) = outcome(whole), outcome(run)
    assert found.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    assert (again, resumed) == (results, log)
    assert pretrain_hf.main([recipe, "--output", str(run), "--resume"]) == 0
    assert "is complete; with more `updates` it would go on" in capsys.readouterr().out


def test_a_run_is_resumed_with_what_it_began_with(undisturbed, capsys):
    whole, recipe = undisturbed
    for options, expected in (
        (["--clusters", "5"], "clusters is 5, but the run in"),
        (["--updates", "4"], "updates is 4, but the run in"),
        (["--clips_per_corpus", "6", "--updates", "9"], "clips_per_corpus is 6, but the run in"),
    ):
        with pytest.raises(ValueError, match=expected):
            pretrain_hf.main([recipe, "--output", str(whole), "--resume", *options])
    assert json.loads((whole / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_and_two_parts_are_one_process_with_the_whole_batch(tmp_path):
    """Also where one of them has fewer masked frames than the other: the loss is a mean over all of them."""
    directory = write_talk(tmp_path)
    shape = dict.fromkeys(("attention_dropout", "activation_dropout", "feat_proj_dropout", "hidden_dropout"), 0.0)
    recipe = recipe_in(directory, updates=3, training={"learning_rate": 1.0e-3, "eval_steps": 3, **QUIET})
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in {**LARGE, **shape}.items()}
    (directory / "shape.yaml").write_text(json.dumps(values), encoding="utf-8")

    def run(name, *options):
        return {"arguments": [recipe, "--output", str(tmp_path / name), *options], "script": "pretrain_hf"}

    one = train_and_record(processes=1, **run("one"))
    parts = train_and_record(processes=1, **run("parts", "--micro_batches", "2"))
    two = launch(tmp_path / "launched", {2: {"runs": {"two": run("two")}}})[2]
    assert len(one["losses"]) == 3
    for record in (parts, *(each["runs"]["two"] for each in two)):
        assert record["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-5)
        for expected, got in zip(one["gradients"], record["gradients"], strict=True):
            assert set(got) == set(expected)
            assert all(torch.allclose(got[name], each, rtol=0, atol=1e-5) for name, each in expected.items())
    draws = [each["runs"]["two"]["draws"] for each in two]
    assert not set(draws[0]) & set(draws[1])
    assert sorted(draws[0] + draws[1]) == sorted(one["draws"])
    targets = [np.load(tmp_path / name / "targets.npz")["frames"] for name in ("one", "two")]
    assert np.array_equal(*targets)
    logs = [
        json.loads((tmp_path / name / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
        for name in ("one", "two")
    ]
    for single, double in zip(*logs, strict=True):
        for name in single.keys() & {"eval_loss", "accuracy_masked", "eval_accuracy_masked", "eval_perplexity_targets"}:
            assert double[name] == pytest.approx(single[name], rel=0, abs=1e-4), name
