"""Pre-trains a HuBERT on audio without labels, by HuBERT's own method: masked frames are predicted as clusters.

    python pretrain_hf.py RECIPE [--key value ...] [--resume]
    accelerate launch pretrain_hf.py RECIPE [--key value ...]

One run is one iteration: the first clusters MFCC, a later one the features of the model before it (`target_model`).
A recipe says what is trained on what (recipes/pretraining/); every key of it, and every field of transformers'
TrainingArguments, is an option. Everything is written to the run folder, `output`; its `model/` is a `HubertModel`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import HubertConfig, TrainingArguments, set_seed

from exhubert.evaluation.results import write_results
from exhubert.model_folder.load import make_feature_extractor
from exhubert.modeling_exhubert import frame_samples
from exhubert.reports.plots import plot_pretraining
from exhubert.training import run_folder
from exhubert.training.arguments import resolved
from exhubert.training.audio_pool import AudioPool, hold_out, read_pool
from exhubert.training.interruption import INTERRUPTED, Interrupted, deaths_of_workers
from exhubert.training.masked_prediction import (
    HubertForMaskedPrediction,
    MaskedPredictionCollator,
    hubert_config,
    load_encoder,
    make_model,
    random_encoder,
    read_start,
    save_hubert,
)
from exhubert.training.models import suit_device
from exhubert.training.notices import check_disk, launch_notices, resume_notices
from exhubert.training.pretraining_recipe import PretrainingRecipe, parse_pretraining
from exhubert.training.pretraining_trainer import POOL, PretrainingTrainer, ValidationPool
from exhubert.training.probe import ProbeCorpus, probe_table, read_probe_corpora, run_probes
from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
from exhubert.training.targets import (
    TARGETS,
    Features,
    Targets,
    find_targets,
    hidden_states_of,
    load_targets,
    mfcc_with_deltas,
    save_targets,
    targets_key,
)
from exhubert.utils.command import lost_processes, quiet_transformers, run_with_one_line_errors
from exhubert.utils.files import disk_errors, locked
from exhubert.utils.versions import versions


def main(arguments: Sequence[str] | None = None, prog: str = "pretrain_hf.py") -> int:
    """Reads the arguments, and trains in a folder that no other process has. Returns the exit code."""
    recipe, training, options = parse_pretraining(arguments, prog)
    lock = locked(recipe.output) if training.process_index == 0 else contextlib.nullcontext()
    with lock, deaths_of_workers(), lost_processes(training.world_size):
        return pretrain(recipe, training, options.resume)


def pretrain(recipe: PretrainingRecipe, training: TrainingArguments, resume: bool) -> int:
    """Runs the stages: audio, model, targets, training, saving. Returns the exit code."""
    main_process = training.process_index == 0
    say: Callable[[str], None] = print if main_process else lambda message: None
    for notice in launch_notices(recipe, training):
        say(notice)
    settings = resolved(recipe, training)
    checkpoint = run_folder.find_checkpoint(recipe.output, resume, settings, PretrainingRecipe)
    if resume and run_folder.is_complete(recipe.output, settings, PretrainingRecipe):
        say(f"the run in {recipe.output} is complete; with more `updates` it would go on")
        return 0
    PartialState().wait_for_everyone()  # all have looked before one writes

    config, random = read_start(recipe)
    check_targets(recipe, config, random)
    pool = read_pool(recipe.corpora, recipe.corpora_root, recipe.skip_bad_audio, recipe.clips_per_corpus)
    held_out = hold_out(pool)
    probe_corpora = read_probe_corpora(
        recipe.probe_corpora, recipe.corpora_root, recipe.label_file, recipe.skip_bad_audio
    )
    for name, rows in pool.table.groupby("corpus", sort=False):
        held = int(held_out[rows.index].sum())
        minutes = rows["duration_seconds"].sum() / 60
        say(f"corpus {name}: {len(rows) - held} train, {held} validation clips, {minutes:,.0f} minutes")
    clips = {POOL: {"train": pool.select(~held_out).digest(), "validation": pool.select(held_out).digest()}}
    if checkpoint:
        run_folder.check_clips(recipe.output, clips)
    for notice in resume_notices(checkpoint, resume, training.world_size):
        say(notice)

    set_seed(training.seed)
    model = make_model(recipe, config, None if random else load_encoder(recipe.model))
    parameters = {"total": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
    start = "random weights" if random else "its weights"
    say(f"model {recipe.model}: {parameters['total']:,} parameters, {parameters['trainable']:,} trainable, {start}")
    say(check_disk(recipe.output, training, parameters))
    if main_process:
        facts = {str(name): {"clips": len(rows)} for name, rows in pool.table.groupby("corpus", sort=False)}
        run_folder.write_settings(recipe.output, settings, clips, training.seed, facts)
    targets = make_targets(recipe, training, model, pool, ~held_out, say)
    found = targets.facts
    say(
        f"targets: {found['clusters']} clusters of {found['frames']:,} frames, perplexity {found['perplexity']:.1f}, "
        f"stability over seeds {found['stability']:.2f}"
    )
    trainer = build_trainer(recipe, training, model, pool, held_out, targets)

    set_seed(training.seed + training.process_index)  # else dropout would be the same in every process
    say(f"training: {recipe.updates} updates, {recipe.batch_size} clips a batch on {training.world_size} processes")
    try:
        with trainer.signals:
            trainer.train(resume_from_checkpoint=checkpoint)
            say(f"{100 * trainer.data_wait():.0f} % of the time of the updates went by waiting for data")
            validation = last_evaluation(trainer)
    except Interrupted as interrupted:
        say(f"interrupted: {interrupted}; to go on, give the same command with --resume")
        return INTERRUPTED

    described = {
        "model": recipe.model,
        "parameters": parameters,
        "audio": {"clips": len(pool), "hours": pool.hours, "validation_clips": int(held_out.sum())},
        "targets": found,
        "validation": validation,
    }
    save_results(recipe, trainer, config, random, probe_corpora, described)
    return 0


def check_targets(recipe: PretrainingRecipe, config: HubertConfig, random: bool) -> None:
    """Fills in which model the targets are of; raises ValueError if they cannot be had from it."""
    if recipe.targets == "mfcc":
        return
    if random and not recipe.target_model:
        raise ValueError("targets are features, and `model` has none yet; give target_model, the model before it")
    recipe.target_model = recipe.target_model or recipe.model
    target = hubert_config(recipe.target_model)
    if recipe.target_layer > target.num_hidden_layers:
        raise ValueError(
            f"target_layer is {recipe.target_layer}; {recipe.target_model} has the hidden states 0 to "
            f"{target.num_hidden_layers}"
        )
    if frame_samples(target) != frame_samples(config):
        raise ValueError(
            f"{recipe.target_model} makes frames of {frame_samples(target)[0]} samples every "
            f"{frame_samples(target)[1]}, and {recipe.model} of {frame_samples(config)[0]} every "
            f"{frame_samples(config)[1]}; they must be the same"
        )


def make_targets(
    recipe: PretrainingRecipe,
    training: TrainingArguments,
    model: HubertForMaskedPrediction,
    pool: AudioPool,
    train: np.ndarray,
    say: Callable[[str], None],
) -> Targets:
    """Returns the targets that the run folder has, or makes and keeps them."""
    path = Path(recipe.output) / TARGETS
    names = ("targets", "clusters", "target_model", "target_layer", "mask_length")
    settings = {name: getattr(recipe, name) for name in names} | {"seed": training.seed}
    key = targets_key(pool, settings | {"frames": frame_samples(model.config)})
    kept = load_targets(path, key)
    PartialState().wait_for_everyone()
    if kept is not None:
        say(f"the targets are those in {path}")
        return kept
    features: Features
    if recipe.targets == "mfcc":
        say("clustering MFCC")
        features = partial(mfcc_with_deltas, config=model.config)
    else:
        say(f"clustering hidden_states[{recipe.target_layer}] of {recipe.target_model}")
        assert recipe.target_model is not None
        encoder = load_encoder(recipe.target_model).to(training.device)
        features = hidden_states_of(encoder, recipe.target_layer)
    targets = find_targets(pool, train, features, recipe.clusters, recipe.mask_length, model.config, training.seed, say)
    if training.process_index == 0:
        save_targets(path, targets, key)
    return targets


def build_trainer(
    recipe: PretrainingRecipe,
    training: TrainingArguments,
    model: HubertForMaskedPrediction,
    pool: AudioPool,
    held_out: np.ndarray,
    targets: Targets,
) -> PretrainingTrainer:
    """Puts sampler, data and model together; raises ValueError if no clip of a part is left."""
    there = np.array([len(each) > 0 for each in targets.of_clips])
    parts = {"training": np.flatnonzero(~held_out & there), "validation": np.flatnonzero(held_out & there)}
    for part, rows in parts.items():
        if not len(rows):
            raise ValueError(f"no {part} clip can be used; give more audio")
    (train, train_targets), (validation, validation_targets) = (
        (pool.select(rows), [targets.of_clips[row] for row in rows]) for rows in parts.values()
    )
    suit_device(model, training, recipe.fast_path)
    collator = MaskedPredictionCollator(make_feature_extractor(model.config, recipe.window_seconds), model.config)
    return PretrainingTrainer(
        sampler=RoundRobinSampler([len(train)], recipe.batch_size, recipe.updates, training.seed),
        collator=collator,
        log_directory=Path(recipe.output) / "logs",
        save_minutes=recipe.save_minutes if training.save_strategy == "steps" else 0.0,
        model=model,
        args=training,
        train_dataset=MultiCorpus([train], training.seed, [train_targets]),
        eval_dataset={POOL: ValidationPool(validation, training.seed, validation_targets)},
    )


def last_evaluation(trainer: PretrainingTrainer) -> dict[str, float]:
    """The validation metrics of the trained model, by their names without `eval_`."""
    entries = [entry for entry in trainer.state.log_history if trainer.whole_evaluation in entry]
    there = entries and entries[-1]["step"] == trainer.state.global_step
    metrics = entries[-1] if there else trainer.evaluate()
    names = ("loss", "accuracy_masked", "accuracy_unmasked", "perplexity_predicted", "perplexity_targets")
    return {name: metrics[f"eval_{name}"] for name in names}


def save_results(
    recipe: PretrainingRecipe,
    trainer: PretrainingTrainer,
    config: HubertConfig,
    random: bool,
    probe_corpora: dict[str, ProbeCorpus],
    described: dict[str, Any],
) -> None:
    """Writes the model, probes it, and writes what a run leaves beside it; the results last.

    All processes have to call it; the probes' clips are dealt to them.
    """
    run = Path(recipe.output)
    saved = run / "model"
    main_process = trainer.args.process_index == 0
    if main_process:
        with disk_errors(saved):
            trained: Any = trainer.accelerator.unwrap_model(trainer.model)
            save_hubert(trained, config, saved, recipe.window_seconds, "" if random else recipe.model)
        plot_pretraining(run / "curves.png", trainer.state.log_history, run.name)
    PartialState().wait_for_everyone()
    encoders = {"random": partial(random_encoder, config)}
    encoders |= {} if random else {"start": partial(load_encoder, recipe.model)}
    encoders |= {"pre-trained": partial(load_encoder, str(saved))}
    probes = run_probes(encoders, probe_corpora, run, trainer.args.device) if probe_corpora else {}
    if main_process:
        if probes:
            print(f"linear probes, UAR in %:\n{probe_table(probes)}")
        write_results(run, {**described, "probe": probes, "seed": trainer.args.seed, "versions": versions()})
        print(f"written to {run}; the model is in {saved}")


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
