"""Losses, micro-batches, rounds, early stopping, the progress bar, classes that are not there.

python -m pytest tests/test_training_options.py
"""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoModelForAudioClassification, TrainerState
from transformers.trainer_pt_utils import LabelSmoother

from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
from exhubert.corpora.load import class_notices, load_corpora
from exhubert.evaluation.metrics import average_metrics
from exhubert.training.arguments import parse
from exhubert.training.callbacks import EarlyStopping, RoundProgress
from exhubert.training.collator import AudioCollator
from exhubert.training.losses import ClassificationLoss, balanced_weights, vote_targets
from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
from exhubert.training.trainer import RoundRobinTrainer

SIX = ["low/negative", "low/neutral", "low/positive", "high/negative", "high/neutral", "high/positive"]


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
    watched |= {"save_steps": 1, "save_total_limit": 9, "load_best_model_at_end": True}
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
def test_the_progress_bar_names_round_corpus_loss_and_uar(write_keys, changes, shown):
    recipe, training, _ = parse([write_keys(**changes)])
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
