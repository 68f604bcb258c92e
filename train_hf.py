"""Fine-tunes an audio-classification model on emotion corpora: both stages of the paper.

    python train_hf.py RECIPE [--key value ...] [--resume]
    accelerate launch train_hf.py RECIPE [--key value ...]

A recipe says what is trained on what (recipes/); every key of it, and every field of transformers'
TrainingArguments, is an option. Everything is written to the run folder, `output`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig, PreTrainedModel, TrainingArguments, set_seed

from exhubert import ExHuBERTForSequenceClassification
from exhubert.cli import quiet_transformers, run_with_one_line_errors
from exhubert.corpora.load import load_corpora
from exhubert.corpora.splits import SPLITS
from exhubert.model_folder import load_classifier, save_model_folder
from exhubert.training import run_folder
from exhubert.training.arguments import Recipe, parse, resolved
from exhubert.training.collator import AudioCollator
from exhubert.training.evaluation import predict, score
from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
from exhubert.training.trainer import RoundRobinTrainer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages: arguments, corpora, model, training, evaluation, saving. Returns the exit code."""
    recipe, training, resume = parse(arguments)
    main_process = training.process_index == 0
    say = print if main_process else _silent

    checkpoint = run_folder.find_checkpoint(recipe.output, resume)
    PartialState().wait_for_everyone()  # all have looked before one writes
    corpora, class_names = load_corpora(
        recipe.corpora,
        recipe.corpora_root,
        recipe.labels,
        recipe.label_file,
        recipe.skip_bad_audio,
        recipe.clips_per_corpus,
        recipe.protocol,
        recipe.fold,
    )
    for name, splits in corpora.items():
        counts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
        say(f"corpus {name}: {counts} clips, {len(set(splits['train']['speaker']))} speakers in train")

    set_seed(training.seed)
    model, new = load_model(recipe, class_names)
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    say(f"model {recipe.model}: {type(model).__name__}, {total:,} parameters, {trainable:,} trainable")
    if new:
        say(f"newly initialised, since {recipe.model} has no such weights: {', '.join(new)}")
    if main_process:
        run_folder.write_settings(recipe.output, resolved(recipe, training), training.seed)

    trainer = build_trainer(recipe, training, model, corpora)
    what = f"{recipe.rounds} rounds of one batch from each corpus, {training.max_steps} updates"
    say(f"training: {what}, {recipe.batch_size} clips a batch on {training.world_size} processes")
    trainer.train(resume_from_checkpoint=checkpoint)

    say("evaluating on the test splits")
    predictions = predict(trainer, {name: splits["test"] for name, splits in corpora.items()}, class_names)
    if main_process:
        results = score(predictions, class_names, "test")
        for name, scores in results.items():
            say(f"test UAR on {name}: {100 * scores['uar']:.1f} % ({scores['clips']} clips)")
        # The folder of a whole run is recognised by its results, so they come last.
        saved = save_model_folder(trainer.model, Path(recipe.output) / "model", recipe.window_seconds)
        run_folder.write_curves(recipe.output, trainer.state.log_history, recipe.output)
        described = {"model": recipe.model, "parameters": {"total": total, "trainable": trainable}}
        run_folder.write_results(recipe.output, described, results, predictions, training.seed)
        say(f"written to {recipe.output}; the model is in {saved}")
    return 0


def load_model(recipe: Recipe, class_names: list[str]) -> tuple[PreTrainedModel, list[str]]:
    """Loads the recipe's model with a head for `class_names`, expands it if asked to, and freezes its parts.

    Returns:
        The model, and the names of the weights that its checkpoint does not have.

    Raises:
        ValueError: if it does not exist, is no audio model, or lacks a part that is to be frozen.
    """
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    if recipe.expand_copies:
        model = ExHuBERTForSequenceClassification.from_hubert(recipe.model, recipe.expand_copies, **labels)
        source = AutoConfig.from_pretrained(recipe.model)
        has_head = any("ForSequenceClassification" in name for name in source.architectures or ())
        new = [] if has_head and source.num_labels == len(class_names) else ["the classification head"]
    else:
        model, new = load_classifier(recipe.model, ignore_mismatched_sizes=True, **labels)
    for part in recipe.freeze:
        method = {
            "feature_encoder": "freeze_feature_encoder",
            "originals": "freeze_og_encoder",
            "base": "freeze_base_model",
        }[part]
        if not hasattr(model, method):
            raise ValueError(f"freeze names {part!r}, which {type(model).__name__} does not have")
        getattr(model, method)()
    return model, new


def build_trainer(
    recipe: Recipe,
    training: TrainingArguments,
    model: PreTrainedModel,
    corpora: dict[str, dict[str, Dataset]],
) -> RoundRobinTrainer:
    """Puts sampler, data and model together."""
    train = [splits["train"] for splits in corpora.values()]
    sampler = RoundRobinSampler(
        [len(dataset) for dataset in train],
        recipe.batch_size,
        recipe.rounds,
        training.seed,
        proportional=recipe.sampling == "proportional",
    )
    return RoundRobinTrainer(
        sampler=sampler,
        collator=AudioCollator(recipe.window_seconds, recipe.crop),
        log_directory=Path(recipe.output) / "logs",
        model=model,
        args=training,
        train_dataset=MultiCorpus(train, training.seed),
        eval_dataset={name: splits["validation"] for name, splits in corpora.items()},
    )


def _silent(message: str) -> None:
    """What the other processes say."""


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
