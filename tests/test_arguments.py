"""The recipe, its keys on the command line, what follows from them, and what is refused.

python -m pytest tests/test_arguments.py
"""

from __future__ import annotations

import pytest
import yaml
from transformers import TrainingArguments

from exhubert.training.arguments import parse, read_recipe, resolved


def test_a_recipe_extends_another_one_and_wins(tmp_path, write_keys):
    write_keys("base.yaml", crop="start", freeze=["base"], training={"learning_rate": 1e-3, "weight_decay": 0.5})
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
def test_updates_follow_from_the_recipe(write_keys, changes, expected):
    training = parse([write_keys(**changes)])[1]
    found = training.max_steps, training.per_device_train_batch_size, training.gradient_accumulation_steps
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ["m"]}, r"model is \['m'\]; a word is needed"),
        ({"output": None}, "output is null; give a value, or leave the key out"),
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
def test_wrong_values_are_refused(write_keys, changes, message):
    with pytest.raises(ValueError, match=message):
        parse([write_keys(**changes)])


def test_one_process_on_several_gpus_is_refused(monkeypatch, write_keys):
    """`Trainer` would give each of them a whole batch."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process sees 2 GPUs; start one process a GPU with `accelerate launch`"):
        parse([write_keys()])


def test_options_of_the_command_line_and_the_resolved_recipe(tmp_path, write_keys):
    given = ["--lora", "{rank: 4}", "--soft_labels", "--early_stopping", "3", "--report_to", "none"]
    recipe, training, _ = parse(
        [write_keys(training={"gradient_checkpointing_kwargs": {"use_reentrant": False}}), *given]
    )
    assert (recipe.soft_labels, recipe.early_stopping, training.report_to) == (True, 3, [])
    assert (recipe.lora["rank"], recipe.lora["alpha"], recipe.lora["dropout"]) == (4, 16.0, 0.0)
    kept = resolved(recipe, training)
    assert kept["training"]["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(kept))
    again, training_again, _ = parse([str(tmp_path / "again.yaml")])
    assert again == recipe
    assert training_again.max_steps == training.max_steps
    assert parse([write_keys()])[1].report_to == ["tensorboard"]


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
def test_what_would_silently_go_wrong_is_refused(write_keys, changes, message):
    with pytest.raises(ValueError, match=message):
        parse([write_keys(**changes)])


def test_checkpoints_may_be_closer_than_evaluations(write_keys):
    training = parse([write_keys(training={"save_steps": 3, "eval_steps": 8})])[1]
    assert (training.save_steps, training.eval_steps, training.load_best_model_at_end) == (3, 8, True)


def test_checkpoints_go_by_time_unless_updates_are_given(write_keys, tmp_path):
    """And a resolved recipe, which has all defaults, says the same again."""
    for options, minutes, steps in (
        ([], 15.0, 200_000),
        (["--save_minutes", "2.5"], 2.5, 200_000),
        (["--save_steps", "500"], 0.0, 500),
        (["--save_minutes", "0"], 0.0, 20_000),
    ):
        recipe, training, _ = parse([write_keys(rounds=100_000), *options])
        for _ in range(2):
            assert (recipe.save_minutes, training.save_steps, training.eval_steps) == (minutes, steps, 20_000)
            (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved(recipe, training)))
            recipe, training, _ = parse([str(tmp_path / "again.yaml")])


def test_the_best_model_by_a_loss_is_the_one_with_the_lowest(write_keys):
    assert parse([write_keys()])[1].greater_is_better
    assert not parse([write_keys(training={"metric_for_best_model": "first_loss"})])[1].greater_is_better


def test_lists_and_optional_keys_are_emptied_on_the_command_line(write_keys):
    recipe = parse(
        [write_keys(freeze=["feature_encoder"], label_file="own.yaml"), "--freeze", "[]", "--label_file", "null"]
    )[0]
    assert (recipe.freeze, recipe.label_file) == ([], None)


def test_the_command_line_is_read_as_the_recipe_is(write_keys):
    """And a word that YAML takes for something else is still that word."""
    values = {"fold": 2, "clips_per_corpus": None, "skip_bad_audio": True, "window_seconds": "1e0", "output": 2024}
    values["training"] = {"learning_rate": "1e-4", "eval_steps": 0.25, "eval_strategy": False, "seed": 3}
    options = [f"--{key}={value}" for key, value in (values | values["training"]).items() if key != "training"]
    options = [option.replace("None", "null").replace("strategy=False", "strategy=no") for option in options]
    in_recipe, given = parse([write_keys(**values)]), parse([write_keys(), *options])
    assert given[0] == in_recipe[0]
    assert resolved(*given[:2]) == resolved(*in_recipe[:2])
    recipe, training, _ = given
    assert (recipe.window_seconds, recipe.output, training.eval_strategy) == (1.0, "2024", "no")
    assert (training.learning_rate, training.eval_steps, training.seed) == (1e-4, 0.25, 3)
