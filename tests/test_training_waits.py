"""What a training does not wait for: the GPU, data, a save with every evaluation; and what it says before it starts.

python -m pytest tests/test_training_waits.py
"""

from __future__ import annotations

import os
import time
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.utils.data import dataloader
from transformers import AutoModelForAudioClassification, TrainerCallback, TrainingArguments

import train_hf
from conftest import HUBERT_KINDS, make_classifier, refused
from exhubert import modeling_exhubert
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, read_audio
from exhubert.corpora.load import load_corpora
from exhubert.training import notices
from exhubert.training.arguments import for_device, parse
from exhubert.training.checkpoints import check_checkpoint
from exhubert.training.collator import AudioCollator
from exhubert.training.notices import check_disk, launch_notices
from exhubert.training.trainer import RoundRobinTrainer

QUIET = {"report_to": "none", "use_cpu": True, "eval_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture
def write_recipe(tmp_path, make_hubert, make_corpus):
    """Writes a recipe for two corpora and a small HuBERT."""
    make_corpus("first", speakers=("a", "b", "c", "d"))
    make_corpus("second", labels=("joy", "boredom"), speakers=("e", "f", "g"))
    keys = {"model": str(make_hubert(num_labels=6)), "corpora_root": str(tmp_path), "corpora": ["first", "second"]}
    keys |= {"output": str(tmp_path / "run"), "rounds": 3, "batch_size": 4, "window_seconds": 0.5}

    def write(training=QUIET, **changes):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**keys, **changes, "training": training}))
        return str(tmp_path / "recipe.yaml")

    return write


@pytest.fixture
def build(write_recipe):
    """Builds the trainer of that recipe, with changes, and another model if one is given."""

    def build(model=None, training=QUIET, **changes) -> RoundRobinTrainer:
        recipe, arguments, _ = parse([write_recipe(training, **changes)])
        corpora, _ = load_corpora(recipe.corpora, recipe.corpora_root)
        model = model or AutoModelForAudioClassification.from_pretrained(recipe.model)
        return train_hf.build_trainer(recipe, arguments, model, ExHuBERTFeatureExtractor(0.5), corpora)

    return build


def losses(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# The GPU


class Enough(Exception):
    """As many updates as a test wants."""


class StopAfter(TrainerCallback):
    def __init__(self, updates):
        self.updates = updates

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.updates:
            raise Enough


@pytest.mark.parametrize("update", ["batch", "round"])
def test_an_update_reads_no_value_of_the_device(monkeypatch, build, update):
    """On the meta device, which has no values, `Trainer` takes whole updates: whoever reads one raises."""
    device = TrainingArguments.device.fget
    monkeypatch.setattr(TrainingArguments, "device", property(lambda self: device(self) and torch.device("meta")))
    model = make_classifier(**HUBERT_KINDS["large"], num_labels=6)
    model.freeze_feature_encoder()
    plain = {**QUIET, "logging_steps": 100, "save_strategy": "no", "optim": "adamw_torch"}
    trainer = build(model, plain, rounds=50, update=update, class_weights="balanced")
    monkeypatch.setitem(vars(trainer.accelerator.state), "device", torch.device("meta"))
    trainer.add_callback(StopAfter(3))
    with pytest.raises(Enough):
        trainer.train()
    assert len(trainer.unchecked) == 3 * (2 if update == "round" else 1)
    assert {loss.device.type for _, loss, _ in trainer.unchecked} == {"meta"}
    with pytest.raises(RuntimeError, match="meta tensor"):  # so does the check, where it is due
        trainer.check_losses()


def test_compiled_layers_train_as_plain_ones_do(build):
    plain = {**QUIET, "logging_steps": 1, "save_strategy": "no"}
    found = []
    for changes in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        model = make_classifier(**HUBERT_KINDS["large"], num_labels=6, hidden_dropout=0.0, attention_dropout=0.0)
        trainer = build(model, {**plain, **changes}, fast_path=False)
        trainer.train()
        found.append([entry["loss"] for entry in losses(trainer)])
    assert type(trainer.model_wrapped) is type(model)  # not compiled as a whole
    assert "forward" in vars(model.hubert.encoder.layers[0])
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_what_is_read_at_times_only_is_logged_as_before(build):
    """The losses of all updates are in the logged means, and no norm of gradients that are not clipped is."""
    each = build(training={**QUIET, "logging_steps": 1, "save_strategy": "no"})
    each.train()
    rare = build(training={**QUIET, "logging_steps": 3, "save_strategy": "no"})
    rare.train()
    every = [entry["loss"] for entry in losses(each)]
    means = [np.mean(every[:3]), np.mean(every[3:])]
    assert [entry["loss"] for entry in losses(rare)] == pytest.approx(means, abs=1e-4)  # older releases round them
    assert "grad_norm" not in losses(each)[0]


def test_processes_sum_up_gradients_in_float32_and_keep_them_once(monkeypatch, build):
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    plugin.set_mixed_precision("bf16")
    create = RoundRobinTrainer.create_accelerator_and_postprocess

    def with_plugin(self):
        create(self)
        self.is_fsdp_enabled = True
        self.accelerator.state = SimpleNamespace(fsdp_plugin=plugin)

    monkeypatch.setattr(RoundRobinTrainer, "create_accelerator_and_postprocess", with_plugin)
    build()
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    plugin.set_state_dict_type("SHARDED_STATE_DICT")  # accelerate's own choice for FSDP2
    with pytest.raises(ValueError, match=r"is not done; give fsdp_state_dict_type: FULL_STATE_DICT"):
        build()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (True, 8, True, 4)),
        ({"fp16": True}, (None, 8, True, 4)),
        ({"bf16": False, "dataloader_num_workers": 0}, (False, 0, None, None)),
        ({"use_cpu": True}, (None, None, None, None)),
        ({"use_cpu": True, "dataloader_num_workers": 2}, (None, 2, True, 4)),
    ],
)
def test_a_gpu_gets_bfloat16_and_workers_unless_the_recipe_says_otherwise(monkeypatch, given, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(32), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    values = for_device({"use_cpu": False, "dataloader_pin_memory": True} | given)
    names = ("bf16", "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor")
    assert tuple(map(values.get, names)) == expected
    assert values["accelerator_config"] == {"non_blocking": "use_cpu" not in given}


@pytest.mark.parametrize("wanted", [True, False])
def test_the_fast_path_is_taken_where_the_model_has_one(monkeypatch, build, wanted):
    switched = []
    kind = modeling_exhubert.ExHuBERTForSequenceClassification
    monkeypatch.setattr(kind, "set_fast_path", lambda self, enabled=True: switched.append(enabled), raising=False)
    build(make_classifier(**HUBERT_KINDS["large"]), fast_path=wanted)
    build(make_classifier(**HUBERT_KINDS["large"]), {**QUIET, "bf16": True}, fast_path=wanted)
    assert switched == [True] * wanted


# Data


def test_the_mask_of_time_is_made_with_the_batch_for_models_that_take_it(build):
    takes = build(make_classifier(**HUBERT_KINDS["large"], num_labels=6))
    batch = next(iter(takes.get_train_dataloader()))
    assert batch["mask_time_indices"].dtype == torch.bool
    assert batch["mask_time_indices"].any()
    for changes in ({"mask_time_prob": 0.0}, {"apply_spec_augment": False}):
        without = build(make_classifier(**HUBERT_KINDS["large"], num_labels=6, **changes))
        assert "mask_time_indices" not in next(iter(without.get_train_dataloader()))
    assert "mask_time_indices" not in next(iter(build().get_train_dataloader()))  # a HuBERT draws its own


def test_one_loader_serves_all_corpora_and_changes_no_number(monkeypatch, build):
    """Its workers are started once; a loader for each corpus gives the same values, bit for bit."""
    started = []
    begin = dataloader._MultiProcessingDataLoaderIter.__init__

    def counted(self, loader):
        started.append(loader)
        begin(self, loader)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", counted)
    trainer = build(training={**QUIET, "dataloader_num_workers": 1, "per_device_eval_batch_size": 4})
    first, again = trainer.evaluate(), trainer.evaluate()
    assert len(started) == 1
    apart = build(training={**QUIET, "dataloader_num_workers": 1, "per_device_eval_batch_size": 4})
    expected = apart.evaluate(dict(apart.eval_dataset))  # as datasets of their own
    names = [name for name in expected if name.endswith(("_loss", "_uar", "_accuracy", "_macro_f1"))]
    assert {"eval_first_loss", "eval_second_uar", "eval_average_uar"} <= set(names)
    assert [first[name] for name in names] == [expected[name] for name in names] == [again[name] for name in names]


def test_the_share_of_time_that_went_by_waiting_for_data_is_logged(monkeypatch, build):
    """By a clock that goes on by three seconds with each batch that is made, and by one with each forward."""
    now, collate, step = [0.0], AudioCollator.__call__, RoundRobinTrainer.training_step

    def slow(self, rows):
        now[0] += 3
        return collate(self, rows)

    def slow_step(self, *args, **kwargs):
        now[0] += 1
        return step(self, *args, **kwargs)

    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic)
    monkeypatch.setattr("exhubert.training.trainer.time", clock)
    trainer = build(training={**QUIET, "logging_steps": 2, "save_strategy": "no"})
    monkeypatch.setattr(AudioCollator, "__call__", slow)
    monkeypatch.setattr(RoundRobinTrainer, "training_step", slow_step)
    trainer.train()
    updates = trainer.state.global_step
    assert trainer.data_wait() == pytest.approx(3 / 4)
    # One batch is made ahead: with the first update two, with the last none.
    assert [entry["data_wait"] for entry in losses(trainer)] == pytest.approx([9 / 11, 6 / 8, 3 / 5], abs=1e-3)
    assert updates == 6


def test_seeks_in_an_mp3_leave_the_terminal_alone(tmp_path, capfd):
    path, seconds = tmp_path / "bursts.mp3", np.arange(16_000 * 20) / 16_000
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(seconds)) * (np.sin(2 * np.pi * 3 * seconds) > 0)
    soundfile.write(path, noise + 0.3 * np.sin(880 * np.pi * seconds) * (np.sin(1.4 * np.pi * seconds) > 0), 16_000)
    rows = [{"audio": {"path": str(path)}, "labels": 0, "crop": place} for place in np.linspace(0.03, 0.9, 30)]
    expected = [read_audio(path, 17.0 * row["crop"], 3.0) for row in rows]
    if "libmpg123" not in capfd.readouterr().err:
        pytest.skip("this libsndfile writes nothing")
    collator = AudioCollator(ExHuBERTFeatureExtractor(3.0))
    found = [collator.samples(row) for row in rows]
    assert capfd.readouterr().err == ""
    assert [len(samples) for samples in found] == [len(samples) for samples in expected]
    os.write(2, b"here")  # standard error is there again
    assert capfd.readouterr().err == "here"


# Checkpoints


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, [1, 2, 3, 4, 5, 6]), (15, [6])])
def test_a_checkpoint_is_saved_when_its_time_has_come(tmp_path, build, minutes, saved):
    trainer = build(training={**QUIET, "save_total_limit": 9}, save_minutes=minutes)
    trainer.train()
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [int(path.name.split("-")[1]) for path in folders] == saved


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("training", "free", "said"),
    [
        # A weight is 4 bytes, AdamW's state of a trainable one 8: 4e9 + 8e9, three times
        ({}, 37e9, "disk: up to 3 checkpoints at once of 12 GB, 36 GB; 37 GB are free"),
        ({}, 35e9, "run needs 36 GB (up to 3 checkpoints at once of 12 GB), and 35 GB are free there; make room, or"),
        ({"save_total_limit": 1}, 30e9, "needs 36 GB"),  # the newest, the best, the one that is written
        ({"save_total_limit": 1, "load_best_model_at_end": False}, 30e9, "disk: up to 2 checkpoints at once of 12 GB"),
        ({"save_total_limit": None}, 99e9, "of 12 GB, and all of them stay (save_total_limit), 36 GB; 99 GB are free"),
        ({"optim": "adafactor"}, 30e9, "disk: up to 3 checkpoints at once of 4 GB"),
        ({"save_strategy": "no"}, 5e9, "disk: the model, 4 GB; 5 GB are free"),
    ],
)
def test_a_run_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch, write_keys, training, free, said):
    monkeypatch.setattr(notices.shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    arguments = parse([write_keys(training={"use_cpu": True, **training})])[1]
    parameters = {"total": 10**9, "trainable": 10**9}
    try:
        found = check_disk(str(tmp_path / "below" / "run"), arguments, parameters)
    except ValueError as error:
        found = str(error)
    assert said in found


def test_what_a_resumed_run_has_written_already_counts_as_room(tmp_path, monkeypatch, write_keys):
    monkeypatch.setattr(notices.shutil, "disk_usage", lambda path: Usage(10**12, 0, 0))
    arguments = parse([write_keys(training={"use_cpu": True})])[1]
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"x" * 4000)
    assert check_disk(str(tmp_path), arguments, {"total": 100, "trainable": 100}).startswith("disk: up to 3")
    with pytest.raises(ValueError, match="make room"):
        check_disk(str(tmp_path), arguments, {"total": 1000, "trainable": 1000})


def test_a_full_disk_is_said_before_training(tmp_path, monkeypatch, capsys, write_recipe):
    monkeypatch.setattr(notices.shutil, "disk_usage", lambda path: Usage(10**12, 0, 1000))
    line = refused(capsys, train_hf.main, write_recipe())
    assert "and 1e-06 GB are free there" in line
    assert not (tmp_path / "run").exists()  # it can be started again


# Launching


def test_a_checkpoint_of_the_other_layout_names_the_launcher(tmp_path, capsys, write_recipe):
    """Not damage, and nothing to throw away."""
    assert train_hf.main([write_recipe(rounds=1)]) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer.bin")  # as FSDP calls it
    (tmp_path / "run" / "results.json").unlink()
    line = refused(capsys, train_hf.main, write_recipe(rounds=2), "--resume")
    assert line.startswith(f"error: {checkpoint} is whole, and was saved by FSDP")
    assert line.endswith("accelerate launch --config_file recipes/accelerate/fsdp2_8.yaml")
    (checkpoint / "optimizer.bin").rename(checkpoint / "optimizer.pt")
    with pytest.raises(ValueError, match=r"is whole, and was saved by one process, or by DDP.*torchrun"):
        check_checkpoint(checkpoint, sharded=True)


def test_one_process_where_several_were_asked_for_is_said(monkeypatch, write_keys):
    """As `accelerate launch --num_processes 2` leaves the environment of the one that it starts without a GPU."""
    recipe, training, _ = parse([write_keys(training={"use_cpu": True})])
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launch_notices(recipe, training) == []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    (notice,) = launch_notices(recipe, training)
    assert notice.startswith("accelerate launch was asked for several processes and has started one")


def test_a_small_share_and_a_gpu_in_float32_are_said(write_keys):
    recipe, _, _ = parse([write_keys(training={"use_cpu": True})])
    given = SimpleNamespace(world_size=4, device=torch.device("cuda"), bf16=False, fp16=False, tf32=None)
    share, precision = launch_notices(recipe, given)
    assert share.startswith("each of the 4 processes has 2 of a batch's 8 clips")
    assert precision.startswith("the GPU computes in float32; --bf16")
    given.world_size, given.bf16 = 2, True
    assert launch_notices(recipe, given) == []


def test_deepspeed_is_refused_in_one_line(monkeypatch, write_keys):
    with pytest.raises(ValueError, match="deepspeed cannot be used here: its checkpoints are no model folders; "):
        parse([write_keys(), "--deepspeed", "ds.json"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"DeepSpeed cannot be used here: .*; launch without --use_deepspeed"):
        parse([write_keys()])
