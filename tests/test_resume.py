"""A run that is killed or interrupted, at any moment, goes on as if nothing had happened.

python -m pytest tests/test_resume.py
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTForAudioClassification

import train_hf
from exhubert.training.collator import AudioCollator
from exhubert.training.interruption import SAME_PRESS_SECONDS, Signals
from lives import (
    UPDATES,
    assert_same_end,
    count_moments,
    die_after_save,
    die_in_save,
    kill_a_worker,
    limit_file_size,
    outcome,
    signal_in_evaluation,
    signal_in_test,
    signal_in_update,
)

WORKERS = "--dataloader_num_workers"


@pytest.fixture(scope="module")
def undisturbed(folder, live) -> Path:
    run = folder / "undisturbed"
    done = live(run, hook=(count_moments,))
    assert done.code == 0, done.output
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "workers"),
    [(3, "2"), *(pytest.param(10, workers, marks=pytest.mark.heavy) for workers in ("0", "2"))],
)
def test_kills_leave_no_trace(folder, live, undisturbed, wanted, workers):
    """Kill -9 at random moments of its life, also of saving and of writing results, resumed each time."""
    generator = np.random.default_rng(wanted + int(workers))
    moments = int(Path(f"{undisturbed}-moments").read_text())
    assert moments > 100
    kills = ended = 0
    while kills < wanted or not ended:
        run = folder / f"killed-{wanted}-{workers}-{ended}"
        resume = ["--resume"] if run.exists() else []
        # Of a life that goes on from halfway, moments of the whole would often be after its end.
        fatal = int(generator.integers(1, moments // 2)) if kills < wanted else 0
        life = live(run, *resume, WORKERS, workers, hook=(count_moments, fatal))
        assert life.code in (0, -signal.SIGKILL), life.output
        if life.code == 0:
            assert_same_end(run, undisturbed)
            ended += 1
        else:
            kills += 1


@pytest.mark.parametrize(("updates", "update"), [(1, "batch"), (2, "round")])
def test_what_was_learned_from_is_not_decoded_again(folder, live, monkeypatch, tmp_path, updates, update):
    """The samples of a resumed run are those that the first one had not drawn, by the batch and by the round."""
    options = ["--update", update, "--rounds", "3", "--eval_steps", "1", "--save_total_limit", "9"]
    recipe = [str(folder / "recipe.yaml"), "--output", str(tmp_path / "run"), *options]
    drawn: list[tuple[int, ...]] = []
    collate = AudioCollator.__call__

    def recorded(self: AudioCollator, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        drawn.extend(tuple(row["draw"]) for row in rows if "crop" in row)
        return collate(self, rows)

    monkeypatch.setattr(AudioCollator, "__call__", recorded)
    assert train_hf.main(recipe) == 0
    whole, drawn[:] = list(drawn), []
    assert len(whole) == 3 * 2 * 4
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        if int(path.name.split("-")[1]) > 1:
            path.rename(tmp_path / path.name)
    (tmp_path / "run" / "results.json").unlink()
    assert train_hf.main([*recipe, "--resume"]) == 0
    assert drawn == whole[4 * updates :]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_update_in_hand(folder, live, undisturbed, number):
    """Between two scheduled saves; SIGINT, as Ctrl-C does, to the whole group with its data workers."""
    run = folder / f"signal-{number}"
    workers = "2" if number == signal.SIGINT else "0"
    life = live(run, WORKERS, workers, hook=(signal_in_update, 5, number, number == signal.SIGINT))
    assert life.code == 3, life.output
    said = life.output.strip().splitlines()[-1]
    where = run / "checkpoints" / "checkpoint-5"
    assert said == f"interrupted: update 5 of 12 is saved in {where}; to go on, give the same command with --resume"
    life = live(run, "--resume")
    assert life.code == 0, life.output
    assert f"going on from {where}" in life.output
    assert_same_end(run, undisturbed, log=False)
    again = live(run, "--resume")
    assert again.code == 0
    assert f"the run in {run} is complete; with more `rounds` it would go on" in again.output


def test_the_death_of_a_data_worker_is_a_plain_error(folder, live, undisturbed):
    run = folder / "worker"
    life = live(run, WORKERS, "2", hook=(kill_a_worker, 5))
    assert life.code == 1, life.output
    line = life.output.strip().splitlines()[-1]
    assert line.startswith("error: a data worker died, perhaps for want of memory (DataLoader worker (pid")
    assert "--resume" in line and "not foreseen" not in line
    assert live(run, "--resume", WORKERS, "2").code == 0
    assert_same_end(run, undisturbed)


def test_a_signal_during_evaluation_does_not_wait_for_its_end(folder, live, undisturbed):
    """The evaluation that was cut short is made up for; so is one that is cut short while it is made up for."""
    run = folder / "evaluation"
    for options, corpus in (([], "second"), (["--resume"], "first")):
        life = live(run, *options, hook=(signal_in_evaluation, 4, corpus))
        assert life.code == 3, life.output
        assert "update 4 of 12 is saved" in life.output
        state = json.loads((run / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
        assert not [entry for entry in state["log_history"] if entry["step"] == 4 and "loss" not in entry]
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)


def test_a_signal_during_the_final_test(folder, live, undisturbed):
    run = folder / "test"
    life = live(run, hook=(signal_in_test,))
    assert life.code == 3, life.output
    assert not (run / "results.json").exists()
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)


def test_a_second_ctrl_c_ends_at_once():
    """But not the copy of the first that a launcher passes on."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received
        time.sleep(SAME_PRESS_SECONDS + 0.1)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kind", ["lora", pytest.param("ast", marks=pytest.mark.heavy)])
def test_a_model_that_is_not_saved_as_it_is_in_memory(folder, live, kind):
    """LoRA is merged into the weights of a checkpoint; transformers renames those of an AST as it saves them."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ASTForAudioClassification(ASTConfig(**small, max_length=64, num_mel_bins=16)).save_pretrained(folder / "ast")
    options = ["--lora", "{rank: 2}"] if kind == "lora" else ["--model", str(folder / "ast")]
    whole, halves = folder / f"{kind}-whole", folder / f"{kind}-halves"
    done = live(whole, *options)
    assert done.code == 0, done.output
    assert live(halves, *options, hook=(signal_in_update, 5, signal.SIGTERM)).code == 3
    life = live(halves, *options, "--resume")
    assert life.code == 0, life.output
    assert_same_end(halves, whole, log=False)


@pytest.mark.parametrize("written", ["model.safetensors", "optimizer.pt"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(folder, live, undisturbed, written):
    run = folder / f"save-{written}"
    life = live(run, hook=(die_in_save, 6, written))
    assert life.code == -signal.SIGKILL, life.output
    assert sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))[-1] == "checkpoint-4"
    assert list((run / "checkpoints").rglob(f".unfinished/checkpoint-6/{written}"))
    life = live(run, "--resume")
    assert "going on from" in life.output
    assert_same_end(run, undisturbed)


def test_a_kill_after_the_last_save_leaves_no_checkpoint_too_many(folder, live, undisturbed):
    run = folder / "last-save"
    assert live(run, hook=(die_after_save, UPDATES)).code == -signal.SIGKILL
    kept = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert len(list((run / "checkpoints").glob("checkpoint-*"))) == len(kept) + 1
    assert live(run, "--resume").code == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    assert_same_end(run, undisturbed)


def test_a_run_killed_before_its_first_checkpoint_starts_again(folder, live, undisturbed):
    run = folder / "early"
    assert live(run, hook=(signal_in_update, 1, signal.SIGKILL)).code == -signal.SIGKILL
    assert "is in use already" in live(run).output
    life = live(run, "--resume")
    assert "there is no checkpoint yet: starting from the beginning" in life.output
    assert_same_end(run, undisturbed)


def test_more_rounds_go_on_with_a_complete_run(folder, live, undisturbed):
    """And end as a run that was to have them from the start does."""
    run = folder / "longer"
    assert live(run, "--rounds", "3").code == 0
    life = live(run, "--resume")
    assert life.code == 0, life.output
    assert_same_end(run, undisturbed, log=False)
    life = live(run, "--resume", "--rounds", "3")
    assert f"rounds is 3, but the run in {run} is of 6; give more" in life.output


def test_a_run_folder_can_be_moved_and_how_it_is_watched_be_changed(folder, live, undisturbed):
    """Best so far goes along; logging, evaluating and saving more often does not change a weight."""
    assert live(folder / "here", hook=(signal_in_update, 7, signal.SIGTERM)).code == 3
    (folder / "here").rename(folder / "there")
    options = ["--eval_steps", "1", "--logging_steps", "3", WORKERS, "1", "--per_device_eval_batch_size", "3"]
    life = live(folder / "there", "--resume", *options, "--load_best_model_at_end", "false")
    assert life.code == 0, life.output
    expected, _, _ = outcome(undisturbed)
    tensors, _, history = outcome(folder / "there")
    assert all(torch.equal(expected[name], tensors[name]) for name in expected if not name.startswith("model "))
    assert [entry["step"] for entry in history if "eval_average_uar" in entry] == [2, 4, 6, *range(7, 13)]


def test_early_stopping_goes_on_counting(folder, live):
    """A run that is stopped after two evaluations without progress, interrupted after the first and at its end."""
    options = ["--early_stopping", "2", "--learning_rate", "1e-9"]  # the first evaluation is the best
    whole = folder / "stopped"
    assert live(whole, *options).code == 0
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-6"]
    halves = folder / "stopped-halves"
    assert live(halves, *options, hook=(signal_in_update, 5, signal.SIGTERM)).code == 3
    assert live(halves, *options, "--resume", hook=(signal_in_test,)).code == 3
    life = live(halves, *options, "--resume")
    assert life.code == 0
    assert sorted(path.name for path in (halves / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-6"]
    names = ("average", "corpora")
    results = [json.loads((run / "results.json").read_text()) for run in (whole, halves)]
    assert [results[0][name] for name in names] == [results[1][name] for name in names]


@pytest.mark.parametrize("size", [100_000, 300_000])
def test_a_full_disk_ends_in_one_line(folder, live, undisturbed, size):
    """Neither the weights nor, with more room, the optimizer's state can be written; the rest is in place."""
    weights = (undisturbed / "model" / "model.safetensors").stat().st_size
    states = (undisturbed / "checkpoints" / f"checkpoint-{UPDATES}" / "optimizer.pt").stat().st_size
    assert 100_000 < weights < 300_000 < states
    run = folder / f"full-{size}"
    life = live(run, hook=(limit_file_size, 6, size))
    assert life.code == 1
    line = life.output.strip().splitlines()[-1]
    target, kept = (run / "checkpoints" / f"checkpoint-{update}" for update in (6, 4))
    assert line.startswith(f"error: {target} could not be written, ")
    assert line.endswith(f"; {kept} is whole, and --resume goes on from it")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)
