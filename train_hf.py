"""Fine-tunes a model on emotion corpora, for classes, dimensions such as arousal, or both: both stages of the paper.

    python train_hf.py RECIPE [--key value ...] [--resume] [--trust-remote-code]
    accelerate launch train_hf.py RECIPE [--key value ...]

A recipe says what is trained on what (recipes/); every key of it, and every field of transformers'
TrainingArguments, is an option. Everything is written to the run folder, `output`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed

from exhubert.configuration_exhubert import ExHuBERTConfig, class_names_of_config, dimensions_of_config
from exhubert.corpora.dimensions import shown_scales
from exhubert.corpora.load import class_notices, load_corpora, one_class_notices
from exhubert.corpora.splits import SPLITS
from exhubert.evaluation.predictions import classify, predictions_table
from exhubert.evaluation.results import dimension_text, make_results, uar_text, write_predictions, write_results
from exhubert.model_folder.load import make_feature_extractor
from exhubert.publish.push import check_right_to_push, push_finished_model
from exhubert.publish.run_card import corpus_facts, write_run_card
from exhubert.training import run_folder
from exhubert.training.arguments import Recipe, decisive_average, parse, resolved
from exhubert.training.augmentation import Augmentation
from exhubert.training.callbacks import EarlyStopping
from exhubert.training.collator import AudioCollator
from exhubert.training.dimensions import dimension_notices
from exhubert.training.frame_cache import shared_frame_cache, take_frames
from exhubert.training.interruption import INTERRUPTED, Interrupted, deaths_of_workers
from exhubert.training.losses import build_loss
from exhubert.training.models import load_model, parts_table, suit_device
from exhubert.training.notices import check_disk, launch_notices, resume_notices
from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
from exhubert.training.trainer import RoundRobinTrainer
from exhubert.utils.command import lost_processes, quiet_transformers, run_with_one_line_errors
from exhubert.utils.files import disk_errors, locked


def main(arguments: Sequence[str] | None = None, prog: str = "train_hf.py") -> int:
    """Reads the arguments, and trains in a folder that no other process has. Returns the exit code."""
    recipe, training, options = parse(arguments, prog)
    lock = locked(recipe.output) if training.process_index == 0 else contextlib.nullcontext()
    with lock, deaths_of_workers(), lost_processes(training.world_size):
        return train(recipe, training, options.resume, options.trust_remote_code)


def train(recipe: Recipe, training: TrainingArguments, resume: bool, trust_remote_code: bool) -> int:
    """Runs the stages: corpora, model, trainer, training, test, saving. Returns the exit code."""
    main_process = training.process_index == 0
    say: Callable[[str], None] = print if main_process else lambda message: None
    for notice in launch_notices(recipe, training):
        say(notice)
    settings = resolved(recipe, training)
    pushing, training.push_to_hub = training.push_to_hub, False  # `Trainer` would upload its checkpoints
    target = (training.hub_model_id, training.hub_private_repo, training.hub_revision)
    checkpoint = run_folder.find_checkpoint(recipe.output, resume, settings)
    if resume and run_folder.is_complete(recipe.output, settings):
        say(f"the run in {recipe.output} is complete; with more `rounds` it would go on")
        return 0
    if pushing and main_process:  # now, not after hours
        check_right_to_push(*target)
    PartialState().wait_for_everyone()  # all have looked before one writes

    corpora, class_names = read_corpora(recipe)
    dimensions = shown_scales(corpora, recipe.targets, recipe.scales)
    for name, splits in corpora.items():
        counts = ", ".join(f"{len(splits[split])} {split}" for split in SPLITS)
        say(f"corpus {name}: {counts} clips, {len(set(splits['train']['speaker']))} speakers in train")
    chosen_by = None if training.eval_strategy == "no" else training.metric_for_best_model
    notices = one_class_notices(corpora, class_names, chosen_by)
    for notice in [*notices, *dimension_notices(corpora, recipe.targets, chosen_by)]:
        say(notice)
    clips = run_folder.clips_of(corpora)
    if checkpoint:
        run_folder.check_clips(recipe.output, clips)
    for notice in resume_notices(checkpoint, resume, training.world_size):
        say(notice)

    set_seed(training.seed)
    model = build_model(recipe, class_names, say, trust_remote_code, dimensions)
    # Counted now, for a model that is spread over processes counts its own part.
    parameters = {"total": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
    extractor = make_feature_extractor(model.config, recipe.window_seconds)
    for notice in class_notices(corpora, class_names):
        say(notice)
    say(check_disk(recipe.output, training, parameters))
    trainer = build_trainer(recipe, training, model, extractor, corpora, say)
    if main_process:
        run_folder.write_settings(recipe.output, settings, clips, training.seed, corpus_facts(corpora))

    set_seed(training.seed + training.process_index)  # else dropout would be the same in every process
    what = f"{recipe.rounds} rounds of one batch from each corpus, {training.max_steps} updates"
    say(f"training: {what}, {recipe.batch_size} clips a batch on {training.world_size} processes")
    test = {name: splits["test"] for name, splits in corpora.items()}
    try:
        with trainer.signals:
            trainer.train(resume_from_checkpoint=checkpoint)
            say(f"{100 * trainer.data_wait():.0f} % of the time of the updates went by waiting for data")
            say("evaluating on the test splits")
            batch = training.per_device_eval_batch_size
            answers = classify(trainer.model, extractor, test, batch, in_step=trainer.in_step)
    except Interrupted as interrupted:
        say(f"interrupted: {interrupted}; to go on, give the same command with --resume")
        return INTERRUPTED

    saved = Path(recipe.output) / "model"
    with disk_errors(saved):
        trainer.save_model(str(saved))
    if main_process:
        predictions = predictions_table(test, class_names, answers, dimensions=dimensions)
        save_results(recipe, trainer, parameters, predictions, class_names)
        say(f"written to {recipe.output}; the model is in {saved}")
        if pushing:
            return push_finished_model(saved, *target)
    return 0


def read_corpora(recipe: Recipe) -> tuple[dict[str, dict[str, Dataset]], list[str]]:
    """Returns what `load_corpora` does of a recipe's corpora."""
    return load_corpora(
        recipe.corpora,
        recipe.corpora_root,
        recipe.labels,
        recipe.label_file,
        recipe.skip_bad_audio,
        recipe.clips_per_corpus,
        recipe.protocol,
        recipe.fold,
        soft_labels=recipe.soft_labels,
        targets=recipe.targets,
        scales=recipe.scales,
    )


def build_model(
    recipe: Recipe,
    class_names: list[str],
    say: Callable[[str], None] = print,
    trust_remote_code: bool = False,
    dimensions: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> PreTrainedModel:
    """Loads the recipe's model; what a user should know of it goes to `say`."""
    model, new = load_model(recipe, class_names, trust_remote_code, dimensions)
    for name, (lowest, highest) in dimensions.items():
        say(f"dimension {name}: answered on {lowest:g} to {highest:g}")
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    say(f"model {recipe.model}: {type(model).__name__}, {total:,} parameters, {trainable:,} trainable")
    say(parts_table(model))
    if new:
        say(f"newly initialised, since {recipe.model} has no such weights: {', '.join(new)}")
    if getattr(model.config, "num_copies", 0) and not recipe.expand_copies:
        say(f"{recipe.model} is expanded already: {model.config.num_copies} copies of each layer")
    return model


def build_trainer(
    recipe: Recipe,
    training: TrainingArguments,
    model: PreTrainedModel,
    extractor: Any,
    corpora: dict[str, dict[str, Dataset]],
    say: Callable[[str], None] = print,
) -> RoundRobinTrainer:
    """Puts sampler, data, loss and model together; what a user should know of them goes to `say`."""
    train = {name: splits["train"] for name, splits in corpora.items()}
    class_names = class_names_of_config(model.config)
    loss, targets, notices = build_loss(recipe, training.label_smoothing_factor, train, class_names)
    for notice in notices:
        say(notice)
    augment = Augmentation(recipe.augmentation) if recipe.augmentation else None
    sampler = RoundRobinSampler(
        [len(dataset) for dataset in train.values()],
        recipe.batch_size,
        recipe.rounds,
        training.seed,
        proportional=recipe.sampling == "proportional",
    )
    suit_device(model, training, recipe.fast_path)
    cache = None
    if recipe.cnn_cache:
        take_frames(model)
        heard = [splits[split] for splits in corpora.values() for split in ("train", "validation")]
        main_process = training.process_index == 0
        cache = shared_frame_cache(main_process, recipe.cnn_cache, model, extractor, heard, training.device, say)
    config: Any = model.config
    masks = config.model_type == ExHuBERTConfig.model_type and config.apply_spec_augment and config.mask_time_prob > 0
    return RoundRobinTrainer(
        sampler=sampler,
        collator=AudioCollator(extractor, recipe.crop, augment, config if masks else None, cache),
        log_directory=Path(recipe.output) / "logs",
        save_minutes=recipe.save_minutes if training.save_strategy == "steps" else 0.0,
        model=model,
        args=training,
        train_dataset=MultiCorpus(list(train.values()), training.seed, targets),
        eval_dataset={name: splits["validation"] for name, splits in corpora.items()},
        compute_loss_func=loss,
        decisive=decisive_average(recipe),
        dimensions=list(dimensions_of_config(model.config)),
        callbacks=[EarlyStopping(recipe.early_stopping)] if recipe.early_stopping else None,
    )


def save_results(
    recipe: Recipe,
    trainer: RoundRobinTrainer,
    parameters: dict[str, int],
    predictions: pandas.DataFrame,
    class_names: list[str],
) -> None:
    """Writes what a run leaves beside its model; the results last, by which the folder of a whole run is known."""
    described: dict[str, Any] = {"model": recipe.model, "split": "test", "parameters": parameters}
    described["window_seconds"] = recipe.window_seconds
    dimensions = dimensions_of_config(trainer.model.config)
    results = make_results(described, predictions, class_names, trainer.args.seed, dimensions)
    for name, scores in results["corpora"].items():
        if class_names:
            print(f"test UAR on {name}: {uar_text(scores)} ({scores['clips']} clips)")
        if dimensions:
            print(f"test CCC on {name}: {dimension_text(scores)}")
    run, title = Path(recipe.output), Path(recipe.output).name
    chosen = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    run_folder.write_curves(recipe.output, trainer.state.log_history, trainer.eval_dataset, chosen)
    write_predictions(run, results, predictions, title)
    if not write_run_card(recipe.output, results):
        print(f"{run / 'model' / 'README.md'} was edited by hand and is left as it is")
    write_results(run, results)


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
