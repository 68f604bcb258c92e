"""Recipes that extend others, what follows from their keys, losses, targets, crops, augmentation, early stopping.

python -m pytest tests/test_training_options.py
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
import yaml
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import BatchSampler, DataLoader
from transformers import AutoModelForAudioClassification, TrainerState, TrainingArguments, WhisperConfig
from transformers.trainer_pt_utils import LabelSmoother

from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, prepare_input, read_audio
from exhubert.corpora.load import class_notices, load_corpora
from exhubert.evaluation.metrics import average_metrics
from exhubert.model_folder.load import make_feature_extractor
from exhubert.training.arguments import Recipe, parse, read_recipe, resolved
from exhubert.training.augmentation import Augmentation
from exhubert.training.callbacks import EarlyStopping, RoundProgress
from exhubert.training.collator import AudioCollator
from exhubert.training.losses import ClassificationLoss, balanced_weights, vote_targets
from exhubert.training.round_robin import Draw, MultiCorpus, RoundRobinSampler
from exhubert.training.trainer import RoundRobinTrainer

BASE = {"model": "m", "corpora": ["first", "second"], "output": "run", "rounds": 12, "batch_size": 8}
SIX = ["low/negative", "low/neutral", "low/positive", "high/negative", "high/neutral", "high/positive"]


@pytest.fixture
def write(tmp_path):
    """Writes a recipe, of `BASE` with changes, and returns its name."""

    def write(name="recipe.yaml", /, **changes):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump(BASE | changes), encoding="utf-8")
        return str(tmp_path / name)

    return write


# Recipes


def test_a_recipe_extends_another_one_and_wins(tmp_path, write):
    write("base.yaml", crop="start", freeze=["base"], training={"learning_rate": 1e-3, "weight_decay": 0.5})
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "middle.yaml").write_text("{extends: ../base.yaml, freeze: [feature_encoder]}")
    last = tmp_path / "below" / "last.yaml"
    last.write_text("{extends: middle.yaml, rounds: 7, training: {learning_rate: 0.25}}")
    recipe, training, _ = parse([str(last), "--corpora", "third"])
    assert (recipe.crop, recipe.freeze, recipe.rounds, recipe.corpora) == ("start", ["feature_encoder"], 7, ["third"])
    assert (training.learning_rate, training.weight_decay) == (0.25, 0.5)
    assert "extends" not in resolved(recipe, training)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "b", "b": "c", "c": "b"}, r"c\.yaml: `extends` leads in a circle: .*a\.yaml -> .*b\.yaml -> .*c\.yaml"),
        ({"a": "./a"}, r"a\.yaml: `extends` leads in a circle"),
        ({"a": "b"}, r"b\.yaml, which .*a\.yaml extends: no such recipe file"),
    ],
)
def test_recipes_that_cannot_be_extended(tmp_path, files, message):
    for name, base in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}.yaml")
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("changes", "expected"),  # updates, clips at once, accumulation
    [
        ({}, (24, 8, 1)),
        ({"update": "round"}, (12, 8, 2)),
        ({"micro_batches": 4}, (24, 2, 4)),
        ({"micro_batches": 2, "update": "round"}, (12, 4, 4)),
    ],
)
def test_updates_follow_from_the_recipe(write, changes, expected):
    training = parse([write(**changes)])[1]
    found = training.max_steps, training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": "epoch"}, "update is 'epoch'; it must be batch or round"),
        ({"class_weights": "sqrt"}, "class_weights is 'sqrt'; it must be none or balanced"),
        ({"micro_batches": 0}, "micro_batches is 0; it must be above 0"),
        ({"micro_batches": 3}, "batch_size is 8; it must be a multiple of the 1 processes x 3 micro_batches"),
        ({"early_stopping": -1}, "early_stopping is -1; it must be 0 or more"),
        ({"early_stopping": 2, "training": {"eval_strategy": "no"}}, "early_stopping needs evaluations"),
        (
            {"early_stopping": 2, "training": {"metric_for_best_model": "loss"}},
            "early_stopping goes by the average UAR; leave metric_for_best_model out",
        ),
        ({"soft_labels": "yes please"}, "soft_labels is 'yes please'; true or false is needed"),
        ({"lora": ["rank"]}, r"lora is \['rank'\]; a table `key: value` is needed"),
        ({"lora": {"ranks": 4}}, "lora: unknown key 'ranks'; the nearest is 'rank'"),
        ({"lora": {"rank": 0}}, "lora: rank is 0; it must be above 0"),
        ({"lora": {"dropout": 1.0}}, "lora: dropout is 1.0; it must be from 0 to below 1"),
        ({"augmentation": ["Gain"]}, r"augmentation is \['Gain'\]; a list of tables"),
        ({"extends": ["a.yaml"]}, r"`extends` is \['a.yaml'\]; the name of one recipe file is needed"),
        ({"training": {"label_smoothing_factor": 1.0}}, "label_smoothing_factor is 1.0; it must be from 0 to below 1"),
        (
            {"training": {"gradient_accumulation_steps": 2}},
            "gradient_accumulation_steps follows from the recipe; set `update` or `micro_batches` instead",
        ),
        ({"training": {"resume_from_checkpoint": "x"}}, "resume_from_checkpoint follows .* set --resume instead"),
    ],
)
def test_wrong_values_are_refused(write, changes, message):
    with pytest.raises(ValueError, match=message):
        parse([write(**changes)])


def test_one_process_on_several_gpus_is_refused(monkeypatch, write):
    """`Trainer` would give each of them a whole batch."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process sees 2 GPUs; start one process a GPU with `accelerate launch`"):
        parse([write()])


def test_options_of_the_command_line_and_the_resolved_recipe(tmp_path, write):
    given = ["--lora", "{rank: 4}", "--soft_labels", "--early_stopping", "3", "--report_to", "none"]
    recipe, training, _ = parse([write(training={"gradient_checkpointing_kwargs": {"use_reentrant": False}}), *given])
    assert (recipe.soft_labels, recipe.early_stopping, training.report_to) == (True, 3, [])
    assert (recipe.lora["rank"], recipe.lora["alpha"], recipe.lora["dropout"]) == (4, 16.0, 0.0)
    kept = resolved(recipe, training)
    assert kept["training"]["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(kept))
    again, training_again, _ = parse([str(tmp_path / "again.yaml")])
    assert again == recipe
    assert training_again.max_steps == training.max_steps
    assert parse([write()])[1].report_to == ["tensorboard"]


# Losses and targets


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_documented_sum(smoothing, weighted, soft):
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 6), torch.tensor([0, 5, 2, 2, 3])
    weights = torch.arange(1.0, 7.0) if weighted else torch.ones(6)
    target = torch.rand(5, 6).softmax(-1) if soft else torch.eye(6)[labels]
    loss = ClassificationLoss(SIX, smoothing, weights.numpy() if weighted else None)
    smoothed = (1 - smoothing) * target + smoothing / 6
    expected = -(weights * smoothed * logits.log_softmax(-1)).sum() / 5
    assert loss({"logits": logits}, target if soft else labels).item() == pytest.approx(expected.item(), rel=1e-5)
    if not weighted and not soft and smoothing:  # what `Trainer` alone would compute
        of_trainer = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
        assert of_trainer.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_the_parts_of_a_batch_add_up_to_the_batch(soft):
    """A weighted mean would divide each part by its own weights."""
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 6), torch.tensor([0, 0, 0, 0, 5, 1, 2, 3])
    labels = torch.rand(8, 6).softmax(-1) if soft else labels
    loss = ClassificationLoss(SIX, 0.1, np.array([0.1, 5, 1, 1, 1, 20]))
    count = labels.ne(-100).sum()  # as `Trainer` counts
    parts = sum(loss({"logits": logits[[i]]}, labels[[i]], num_items_in_batch=count) for i in range(8))
    assert parts.item() == pytest.approx(loss({"logits": logits}, labels).item(), rel=1e-5)


def test_balanced_weights_are_scikit_learns_for_one_corpus_and_for_proportional_sampling():
    first, second = np.array([0] * 6 + [1] * 3 + [4]), np.array([0, 1, 1, 1])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 4]), y=first)
    assert balanced_weights([first], 6)[[0, 1, 4]] == pytest.approx(expected)
    assert balanced_weights([first], 6)[[2, 3, 5]].tolist() == [1, 1, 1]
    together = np.concatenate([first, second])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 4]), y=together)
    assert balanced_weights([first, second], 6, proportional=True)[[0, 1, 4]] == pytest.approx(expected)


def test_balanced_weights_give_every_class_the_same_part_in_a_rounds_loss():
    sizes = (10, 400)  # round-robin draws as many clips from either
    corpora = [np.arange(sizes[0]) % 2, np.arange(sizes[1]) % 5 // 3]
    weights = balanced_weights(corpora, 2)
    parts = np.zeros(2)
    for draw in RoundRobinSampler(sizes, 10, rounds=40):
        label = corpora[draw.corpus][draw.clip]
        parts[label] += weights[label]
    assert parts == pytest.approx([400, 400])
    soft = [np.eye(2)[labels] for labels in corpora]
    assert balanced_weights(soft, 2) == pytest.approx(weights)


# A small training


@pytest.fixture
def train(tmp_path, make_hubert, make_corpus):
    """Trains a small HuBERT without dropout on two made-up corpora and returns the trainer."""
    make_corpus("first", speakers=("a", "b", "c", "d"), votes_joy=lambda row: str(row % 3), votes_anger=lambda row: "1")
    make_corpus("second", labels=("joy", "boredom"), speakers=("e", "f", "g"))
    corpora, names = load_corpora(["first", "second"], str(tmp_path), soft_labels=True)
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "mask_time_prob": 0.0}
    still |= {"feat_proj_dropout": 0.0, "final_dropout": 0.0, "layerdrop": 0.0}
    folder = make_hubert(name="still", num_labels=6, **still)

    def train(loss=None, targets=None, callbacks=None, resume=None, **changes):
        keys = {"model": str(folder), "corpora": ["first", "second"], "output": str(tmp_path / "run"), "rounds": 3}
        options = {"batch_size": 4, "window_seconds": 0.4, **changes}
        extra = options.pop("training", {})
        recipe_file = tmp_path / "recipe.yaml"
        plain = {"learning_rate": 1e-3, "report_to": "none", "disable_tqdm": True, "eval_strategy": "no"}
        plain |= {"save_strategy": "no", "load_best_model_at_end": False, "logging_steps": 1, **extra}
        recipe_file.write_text(yaml.safe_dump(keys | options | {"training": plain}))
        recipe, training, _ = parse([str(recipe_file)])
        parts = [splits["train"] for splits in corpora.values()]
        trainer = RoundRobinTrainer(
            sampler=RoundRobinSampler([len(part) for part in parts], recipe.batch_size, recipe.rounds),
            collator=AudioCollator(ExHuBERTFeatureExtractor(recipe.window_seconds)),
            log_directory=tmp_path / "logs",
            model=AutoModelForAudioClassification.from_pretrained(folder),
            args=training,
            train_dataset=MultiCorpus(parts, 0, targets),
            eval_dataset={name: splits["validation"] for name, splits in corpora.items()},
            compute_loss_func=loss or ClassificationLoss(names, training.label_smoothing_factor),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    train.corpora = corpora
    return train


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights_of(trainer):
    return torch.cat([parameter.flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("soft", [False, True])
def test_micro_batches_change_nothing_but_memory(train, soft):
    targets = vote_targets({name: splits["train"] for name, splits in train.corpora.items()}, SIX)[0] if soft else None
    loss = ClassificationLoss(SIX, 0.1, np.array([1, 2, 0.5, 1, 4, 1]))
    whole = train(loss, targets)
    parts = train(loss, targets, micro_batches=4)
    assert len(losses(whole)) == 6
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert torch.allclose(weights_of(parts), weights_of(whole), atol=1e-5)
    if soft:
        assert losses(train(loss)) != pytest.approx(losses(whole), abs=1e-3)


def test_an_update_a_round_learns_from_all_its_batches(train):
    """As one batch of all its clips; smoothing acts on the loss that is trained with."""
    rounds = train(update="round", training={"label_smoothing_factor": 0.3})
    assert len(losses(rounds)) == 3
    first = losses(rounds)[0]
    batches = [losses(train(rounds=1, training={"learning_rate": 0.0, "label_smoothing_factor": s})) for s in (0.3, 0)]
    assert first == pytest.approx(np.mean(batches[0]), abs=1e-5)
    assert abs(first - np.mean(batches[1])) > 1e-3


def test_early_stopping_counts_evaluations_without_a_better_average(train, tmp_path):
    """With a learning rate of 0 no evaluation after the first is better; an interruption does not reset the count."""
    watched = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
    watched |= {"save_total_limit": 9, "load_best_model_at_end": True}
    stopped = train(callbacks=[EarlyStopping(2)], training=watched, early_stopping=2, rounds=9)
    assert stopped.state.global_step == 3
    evaluations = [entry for entry in stopped.state.log_history if "eval_average_uar" in entry]
    assert len(evaluations) == 3
    resumed = train(
        callbacks=[EarlyStopping(2)],
        training=watched,
        early_stopping=2,
        rounds=9,
        resume=str(tmp_path / "run" / "checkpoints" / "checkpoint-2"),
    )
    assert resumed.state.global_step == 3


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ["round 1, first", "round 1, second", "round 2, first"]),
        ({"micro_batches": 2}, ["round 1, first", "round 1, second", "round 2, first"]),
        ({"update": "round"}, ["round 1", "round 2", "round 3"]),
        ({"sampling": "proportional"}, ["round 1", "round 1", "round 2"]),
    ],
)
def test_the_progress_bar_names_round_corpus_loss_and_uar(write, changes, shown):
    recipe, training, _ = parse([write(**changes)])
    proportional = recipe.sampling == "proportional"
    progress = RoundProgress(
        recipe.corpora, RoundRobinSampler([9, 9], recipe.batch_size, recipe.rounds, 0, proportional)
    )
    progress.training_bar, progress.current_step = Mock(), 0
    state = TrainerState(is_world_process_zero=True)
    for update, expected in enumerate(shown, start=1):
        state.global_step = update
        progress.on_step_end(training, state, None)
        assert progress.training_bar.set_description.call_args.args == (expected,)
    progress.on_log(training, state, None, logs={"loss": 1.25})
    progress.on_log(training, state, None, logs={"eval_first_uar": 0.5, "eval_second_uar": 0.25})
    progress.on_log(training, state, None, logs={"eval_average_uar": 0.375})
    assert progress.training_bar.set_postfix.call_args.args == ({"loss": "1.250", "UAR": "0.375"},)
    line = progress.training_bar.write.call_args.args[0]
    assert line == "update 3: validation UAR in %: first 50.0, second 25.0, average 37.5"


def test_averages_are_over_corpora():
    metrics = {"eval_a_uar": 0.2, "eval_b_uar": 0.6, "eval_a_accuracy": 1.0, "eval_b_accuracy": 0.0}
    metrics |= {"eval_a_macro_f1": 0.5, "eval_b_macro_f1": 0.7, "eval_a_loss": 3.0}
    averages = average_metrics(metrics, ["a", "b"])
    assert averages == pytest.approx(
        {"eval_average_uar": 0.4, "eval_average_accuracy": 0.5, "eval_average_macro_f1": 0.6}
    )


# Classes and splits that are not there


def test_classes_without_training_clips_are_named():
    def part(*labels):
        return Dataset.from_dict({"labels": list(labels)})

    corpora = {
        "all": {"train": part(0, 1, 2), "validation": part(0), "test": part(0, 1)},
        "less": {"train": part(1), "validation": part(0, 1), "test": part(0, 2)},
    }
    assert class_notices(corpora, ["a", "b", "c"]) == [
        "corpus 'less': no training clip is a or c; its validation split has a, which counts in the UAR; its test "
        "split has a and c, which counts in the UAR"
    ]
    notices = class_notices({"all": corpora["all"]}, ["a", "b", "c", "d"])
    assert notices[-1] == "no corpus has a training clip that is d: the model cannot learn it"


@pytest.mark.parametrize(
    ("of_speakers", "lacking"),
    [(["train", "train", "validation", "validation"], "test"), (["validation", "validation", "test", "test"], "train")],
)
def test_a_split_without_clips_is_an_error(make_corpus, of_speakers, lacking):
    folder = make_corpus("corpus", split=lambda row: of_speakers[row // 6])
    with pytest.raises(ValueError, match=rf"corpus 'corpus': no clips in its {lacking} split \(24 clips in all\)"):
        load_corpora([str(folder)])


# Audio


@pytest.fixture
def ramp(tmp_path):
    """A file of 10 s whose samples say when they are: 0.09 for each second."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 160_000), 16_000, subtype="FLOAT")
    return {"audio": {"path": str(path), "bytes": None}, "labels": 1, "file_name": "ramp.wav"}


def test_a_random_crop_stays_inside_its_segment(ramp):
    segment = {**ramp, "start_seconds": 4.0, "duration_seconds": 2.5}
    dataset = MultiCorpus([[ramp, segment]], seed=3)
    heard = {0: [], 1: []}
    collator = AudioCollator(ExHuBERTFeatureExtractor(1.0))
    for pass_ in range(40):
        for clip in heard:
            samples = collator.samples(dataset[Draw(0, pass_, clip)])
            heard[clip] += [samples[0] / 0.09, samples[-1] / 0.09]
            assert len(samples) == 16_000
    assert 0 <= min(heard[0]) < 1 and 9 < max(heard[0]) <= 10.001
    assert 3.999 <= min(heard[1]) < 4.3 and 6.2 < max(heard[1]) <= 6.501


def test_augmentation_is_off_without_a_word_and_in_evaluation(ramp):
    plain = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop="start")([ramp])["input_values"][0]
    loud = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop="start", augment=lambda samples, seed: samples * 0 + seed)
    assert np.allclose(loud([ramp])["input_values"][0], plain)
    assert np.allclose(plain, prepare_input(read_audio(ramp["audio"]["path"], 0.0, 1.0), 1.0))
    assert Recipe().augmentation == []


NOISE = [{"name": "AddGaussianSNR", "p": 0.5, "min_snr_db": 5.0, "max_snr_db": 20.0}, {"name": "Gain", "p": 0.5}]


def test_augmentation_follows_from_the_seed_alone():
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    samples = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    augment = Augmentation(NOISE)
    random.seed(5)
    np.random.seed(5)
    first = [augment(samples, seed) for seed in range(20)]
    again = [Augmentation(NOISE)(samples, seed) for seed in reversed(range(20))][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 10
    assert any(np.array_equal(one, samples) for one in first)  # neither transform, at p = 0.5
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            [{"name": "AddGausianSNR"}],
            "no transform 'AddGausianSNR' in audiomentations; the nearest is 'AddGaussianSNR'",
        ),
        ([{"p": 0.5}], "a transform without a `name`"),
        ([{"name": "Gain", "min_gain": 1}], "Gain has no parameter 'min_gain'; the nearest is 'min_gain_db'"),
        ([{"name": "Gain", "p": 2.0}], "Gain with .* fails"),
        ([{"name": "AddBackgroundNoise", "sounds_path": "/nowhere", "p": 0.1}], "AddBackgroundNoise with .* fails"),
        ([{"name": "Lambda"}], "no transform 'Lambda'"),
    ],
)
def test_augmentation_that_cannot_be(write, transforms, message):
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    with pytest.raises(ValueError, match=message):
        parse([write(augmentation=transforms)])


def test_augmentation_on_the_command_line(write):
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    given = ["--augmentation", "{name: Gain, p: 1}", "{name: PolarityInversion}"]
    assert parse([write(), *given])[0].augmentation == [{"name": "Gain", "p": 1}, {"name": "PolarityInversion"}]
    assert parse([write(augmentation=NOISE), "--augmentation", "[]"])[0].augmentation == []


def test_augmentation_without_the_library_names_the_extra(monkeypatch, write):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(ValueError, match=r"needs the library audiomentations: .*exhubert\[augment\]"):
        parse([write(augmentation=NOISE)])


def test_a_collator_gives_each_model_its_input(ramp):
    config = WhisperConfig(num_mel_bins=80, max_source_positions=1500)
    batch = AudioCollator(make_feature_extractor(config, 1.0))([ramp])
    assert batch["input_features"].shape == (1, 80, 3000)
    assert "input_values" not in batch


@pytest.mark.parametrize("augmented", [False, True])
def test_workers_make_the_same_batches(make_corpus, augmented):
    """Crops and augmentation do not depend on which process makes a batch, nor on what it made before."""
    if augmented:
        pytest.importorskip("audiomentations", reason="the extra `augment`")
    data = load_corpora([str(make_corpus("corpus"))])[0]["corpus"]["train"]
    collator = AudioCollator(ExHuBERTFeatureExtractor(0.3), augment=Augmentation(NOISE) if augmented else None)
    sampler = RoundRobinSampler([len(data)], 4, rounds=6)
    batches = {}
    for workers in (0, 2):
        loader = DataLoader(
            MultiCorpus([data]),
            batch_sampler=BatchSampler(sampler, 4, drop_last=False),
            collate_fn=collator,
            num_workers=workers,
        )
        batches[workers] = list(loader)
    assert len(batches[0]) == 6
    for alone, shared in zip(batches[0], batches[2], strict=True):
        assert set(alone) == {"input_values", "labels", "draws"}
        assert all(torch.equal(alone[key], shared[key]) for key in alone)
    assert [tuple(draw) for batch in batches[0] for draw in batch["draws"].tolist()] == list(sampler)


MEMORY = """
    import contextlib, ctypes, gc, json, sys
    import psutil
    from pathlib import Path
    from transformers import AutoModelForAudioClassification, TrainerCallback
    from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
    from exhubert.corpora.load import load_corpora
    from exhubert.training.arguments import parse
    from exhubert.training.collator import AudioCollator
    from exhubert.training.losses import ClassificationLoss
    from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
    from exhubert.training.trainer import RoundRobinTrainer

    def used():
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {"rss": psutil.Process().memory_info().rss, "objects": sys.getallocatedblocks()}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                self.early = used()

    recipe, training, _ = parse(sys.argv[1:])
    corpora, names = load_corpora(recipe.corpora)
    (splits,) = corpora.values()
    trainer = RoundRobinTrainer(
        sampler=RoundRobinSampler([len(splits["train"])], recipe.batch_size, recipe.rounds),
        collator=AudioCollator(ExHuBERTFeatureExtractor(recipe.window_seconds)),
        log_directory=Path(recipe.output),
        model=AutoModelForAudioClassification.from_pretrained(recipe.model),
        args=training,
        train_dataset=MultiCorpus([splits["train"]]),
        eval_dataset={"none": splits["validation"]},
        compute_loss_func=ClassificationLoss(names),
        callbacks=[watch := Watch()],
    )
    trainer.train()
    print(json.dumps({"clips": len(splits["train"]), "early": watch.early, "late": used()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("many", [8_000, pytest.param(20_000, marks=pytest.mark.heavy)])
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path, make_hubert, many):
    """So many rows are a table of some MB in Arrow and a permutation; a Python object a clip would be counted."""
    model, found = make_hubert(num_labels=6), {}
    for rows in (200, many):
        folder = tmp_path / f"clips{rows}"
        folder.mkdir()
        soundfile.write(folder / "long.wav", np.zeros(16_000 * 41), 16_000)
        splits = ["validation", "test", *["train"] * 8]
        lines = [
            f"long.wav,{row * 0.002:.3f},0.3,{('anger', 'neutral')[row % 2]},s{row % 10},{splits[row % 10]}"
            for row in range(rows)
        ]
        header = "file_name,start_seconds,duration_seconds,label,speaker,split"
        (folder / "metadata.csv").write_text("\n".join([header, *lines]))
        recipe = {"model": str(model), "corpora": [str(folder)], "output": str(tmp_path / "run"), "rounds": 30}
        recipe |= {"batch_size": 4, "window_seconds": 0.3}
        recipe["training"] = {"report_to": "none", "disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no"}
        recipe["training"] |= {"load_best_model_at_end": False}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[rows] = json.loads(done.stdout.splitlines()[-1])
    assert (found[200]["clips"], found[many]["clips"]) == (160, 0.8 * many)
    assert found[many]["late"]["objects"] - found[200]["late"]["objects"] < 4_000
    assert found[many]["late"]["rss"] - found[200]["late"]["rss"] < 30e6
    assert found[many]["late"]["rss"] - found[many]["early"]["rss"] < 5e6


def test_recipes_of_the_repository_that_extend_others_are_whole():
    """What a shipped recipe inherits is there."""
    root = Path(__file__).resolve().parent.parent / "recipes"
    for path in root.rglob("*.yaml"):
        if "accelerate" not in path.parts:
            read_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"metric_for_best_model": "accuracy"}}, "there is no 'accuracy'; the nearest is '.*accuracy'"),
        ({"training": {"dataloader_drop_last": True}}, "dataloader_drop_last follows from the recipe"),
        ({"training": {"accelerator_config": {"split_batches": True}}}, "accelerator_config follows from the recipe"),
        ({"lora": {"rank": 2}, "expand_copies": 1}, "lora is an alternative to copies of layers"),
        ({"lora": {"rank": 2}, "freeze": ["originals"]}, "lora is an alternative to copies of layers"),
    ],
)
def test_what_would_silently_go_wrong_is_refused(write, changes, message):
    with pytest.raises(ValueError, match=message):
        parse([write(**changes)])


def test_checkpoints_may_be_closer_than_evaluations(write):
    training = parse([write(training={"save_steps": 3, "eval_steps": 8})])[1]
    assert (training.save_steps, training.eval_steps, training.load_best_model_at_end) == (3, 8, True)
    long = parse([write(rounds=100_000)])[1]
    assert (long.save_steps, long.eval_steps) == (500, 20_000)


def test_the_best_model_by_a_loss_is_the_one_with_the_lowest(write):
    assert parse([write()])[1].greater_is_better
    assert not parse([write(training={"metric_for_best_model": "first_loss"})])[1].greater_is_better


def test_lists_and_optional_keys_are_emptied_on_the_command_line(write):
    recipe = parse(
        [write(freeze=["feature_encoder"], label_file="own.yaml"), "--freeze", "[]", "--label_file", "null"]
    )[0]
    assert (recipe.freeze, recipe.label_file) == ([], None)
