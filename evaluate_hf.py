"""Evaluates audio-classification models on emotion corpora.

    python evaluate_hf.py --model DIR_OR_ID... --corpora DIR... [--split test] --output DIR

A model has classes, dimensions (arousal, valence, ...), or both. Writes `report.md` with its pictures, and for each
model `results.json`, `predictions.parquet` and its own pictures; with several models, into a folder for each, and
`comparison.json`. docs/evaluation.md says what is measured, and how. On several processes:
`accelerate launch evaluate_hf.py ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from accelerate import PartialState
from datasets import Dataset

from exhubert.audio_exhubert import longest_input_seconds
from exhubert.configuration_exhubert import class_names_of_config, dimensions_of_config
from exhubert.convert.onnx import BACKENDS, model_for_backend
from exhubert.corpora.dimensions import read_scales, scales_of
from exhubert.corpora.load import load_corpora
from exhubert.corpora.registry import folder_name
from exhubert.corpora.splits import SPLITS
from exhubert.evaluation.calibration import expected_calibration_error, fit_temperature
from exhubert.evaluation.degradations import CONDITIONS
from exhubert.evaluation.predictions import (
    WindowAnswers,
    class_names_of,
    classify,
    confidences,
    predictions_table,
)
from exhubert.evaluation.results import (
    CURVES,
    RESULTS,
    make_results,
    robustness,
    uar_text,
    write_predictions,
    write_results,
)
from exhubert.evaluation.scores import compare
from exhubert.model_folder.card import CARD, add_section, card_metadata
from exhubert.model_folder.load import DTYPES, choose_device, load_for_answers, precision_note
from exhubert.publish.run_card import calibration_section
from exhubert.reports.report import PICTURES, write_report
from exhubert.reports.tables import ccc_table, chances, uar_table
from exhubert.utils.command import lost_processes, quiet_transformers, run_with_one_line_errors, with_hyphens
from exhubert.utils.files import locked, read_table, write_text

Corpora = dict[str, dict[str, Dataset]]


def main(arguments: Sequence[str] | None = None, prog: str = "evaluate_hf.py") -> int:
    """Evaluates each model, then compares and reports. Returns the exit code: 2 if no score is defined on any corpus.

    That is of classes where no corpus has two of them, of dimensions where none has two different references.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, nargs="+", help="Hub ids or folders")
    parser.add_argument("--names", nargs="+", help="what to call the models in the report")
    parser.add_argument("--corpora", required=True, nargs="+", help="corpus folders")
    parser.add_argument("--split", default="test", choices=SPLITS, help="(default: test)")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--robustness", action="store_true", help="also under noise, telephone band and a codec")
    parser.add_argument(
        "--calibrate", action="store_true", help="fit a temperature on the validation split and save it in the model"
    )
    parser.add_argument("--label-file", help="YAML file with further emotion words")
    parser.add_argument(
        "--scales",
        default="{}",
        help="on which scales corpora have their dimensions, where the registry does not say: '{arousal: [1, 7]}'",
    )
    parser.add_argument("--skip-bad-audio", action="store_true", help="leave out clips whose audio does not decode")
    parser.add_argument("--clips-per-corpus", type=int, help="use a random part of each corpus, always the same")
    parser.add_argument("--protocol", default="auto", help="as corpora are split (default: auto); docs/corpora.md")
    parser.add_argument("--fold", type=int, help="which fold, from 1, of a protocol that has folds")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="windows in a forward of a process, at most (default: 8)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="default: float32")
    parser.add_argument("--exact", action="store_true", help="no faster forward, which may be 1e-5 off")
    parser.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        default="torch",
        help="torch, or the model's ONNX export on the CPU, in float32 or int8, made once and kept (default: torch)",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let code run that a model brings; read it first (default: no)"
    )
    options = parser.parse_args(with_hyphens(sys.argv[1:] if arguments is None else arguments))
    models = check(options)

    @functools.cache  # most models have the same classes
    def read(class_names: tuple[str, ...], dimensions: tuple[str, ...]) -> Corpora:
        corpora, _ = load_corpora(
            options.corpora,
            labels=class_names or "none",
            targets=dimensions,
            scales=scales_of(options.scales, dimensions),
            label_file=options.label_file,
            skip_bad_audio=options.skip_bad_audio,
            clips_per_corpus=options.clips_per_corpus,
            protocol=options.protocol,
            fold=options.fold,
            needed=(options.split, "validation") if options.calibrate else (options.split,),
        )
        return corpora

    state = PartialState(cpu=choose_device(options.device, options.dtype).type == "cpu")
    systems: dict[str, dict[str, Any]] = {}
    tables: dict[str, pandas.DataFrame] = {}
    lock = locked(options.output) if state.is_main_process else contextlib.nullcontext()
    with lock, lost_processes(state.num_processes):
        for name, (model, folder) in models.items():
            systems[name], tables[name] = evaluate(model, name, folder, read, options)
        if state.is_main_process:
            path = report(models, systems, tables, options)
            print_scores(systems)
            print(f"written to {options.output}; all tables and pictures are in {path}")
    averages = [results["average"] for results in systems.values()]
    return 2 if all(average.get("uar") is None and average.get("ccc") is None for average in averages) else 0


def print_scores(systems: dict[str, dict[str, Any]]) -> None:
    """Prints the UARs of the systems that have classes, and the CCCs of those that have dimensions."""
    classifying = {name: results for name, results in systems.items() if results["classes"]}
    corpora = {name: found["corpora"].items() for name, found in classifying.items()}
    if classifying:
        uars = {name: {corpus: scores["uar"] for corpus, scores in items} for name, items in corpora.items()}
        print(uar_table(uars, chance=chances(classifying)))
    for corpus, scores in next(iter(corpora.values()), ()):
        if scores["uar"] is None:
            print(f"UAR on {corpus}: {uar_text(scores)}; it counts in no average")
    valued = {name: results for name, results in systems.items() if "dimensions" in results}
    if table := ccc_table(valued):
        print(f"CCC, with 95 % intervals\n\n{table}")
    for corpus, scores in next(iter(valued.values()), {"corpora": {}})["corpora"].items():
        if scores["ccc"] is None:
            print(f"CCC on {corpus}: not defined, no two clips have different references; it counts in no average")


def check(options: argparse.Namespace) -> dict[str, tuple[str, Path]]:
    """Returns each model and the folder for its results, by the name that the report gives it.

    Raises:
        ValueError: for options that do not fit.
    """
    if (options.output / "recipe.yaml").exists():
        raise ValueError(f"{options.output} is a training's run folder; give another --output")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file; give --output a folder")
    options.scales = read_scales(options.scales)
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}; it must be above 0")
    if len(set(options.model)) < len(options.model):
        raise ValueError(f"--model names a model twice: {' '.join(options.model)}")
    if options.names and len(options.names) != len(options.model):
        raise ValueError(f"{len(options.names)} --names for {len(options.model)} models; give one each")
    names = options.names or options.model
    folders = [options.output]
    if len(names) > 1:
        folders = [options.output / re.sub(r"[^\w.-]+", "_", name.strip("./")) for name in names]
    if len(set(folders)) < len(folders):
        raise ValueError(f"two of the models would be written to one folder: {', '.join(names)}; give other --names")
    if options.calibrate:
        if options.split == "validation":
            raise ValueError("--calibrate fits on the validation split; evaluate another one")
        for model in options.model:
            if not os.access(model, os.W_OK):
                raise ValueError(f"{model} cannot be written to, where --calibrate saves")
            if not Path(model, "config.json").is_file():
                raise ValueError(f"{model} is no model folder, in whose config.json --calibrate could save")
    options.output.mkdir(parents=True, exist_ok=True)
    return dict(zip(names, zip(options.model, folders, strict=True), strict=True))


def evaluate(
    name_or_path: str,
    name: str,
    output: Path,
    read: Callable[[tuple[str, ...], tuple[str, ...]], Corpora],
    options: argparse.Namespace,
) -> tuple[dict[str, Any], pandas.DataFrame]:
    """Evaluates the model `name_or_path`, called `name`, on what `read` returns for its classes and dimensions.

    Returns:
        What is in `results.json`, which is written to `output`, and the predictions.

    Raises:
        ValueError: if the model's checkpoint has no head, a corpus is not as it should be, or `--calibrate` is given
            for a model that has no classes.
    """
    state = PartialState()
    trust = options.trust_remote_code
    run_as = model_for_backend(name_or_path, options.backend, trust, options.device, options.dtype)
    model, extractor = load_for_answers(run_as, options.device, options.dtype, options.exact, trust)
    if state.is_main_process and (note := precision_note(model.device, options.dtype)):
        print(note, file=sys.stderr)
    class_names, dimensions = class_names_of_config(model.config), dimensions_of_config(model.config)
    if options.calibrate and not class_names:
        raise ValueError(f"{name_or_path} has no classes, whose probabilities --calibrate fits; leave it out")
    parameters = {"total": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
    recipe, results_of_run = recipe_of(name_or_path), Path(name_or_path).parent / RESULTS
    if recipe and results_of_run.is_file():  # what was frozen only the run knows
        trained = read_table(results_of_run).get("parameters")
        parameters = (
            trained if isinstance(trained, dict) and trained.get("total") == parameters["total"] else parameters
        )
    for option in ("protocol", "fold"):
        value = recipe.get(option, getattr(options, option))
        if value != getattr(options, option) and state.is_main_process:
            print(f"note: {name_or_path} was trained with --{option} {value}; else its training clips may be tested")
    corpora = read(tuple(class_names), tuple(dimensions))
    split = {corpus: parts[options.split] for corpus, parts in corpora.items()}

    temperature, calibration = getattr(model.config, "calibration_temperature", 1.0), {}
    if options.calibrate:
        held_out = {corpus: parts["validation"] for corpus, parts in corpora.items()}
        fitting = classify(model, extractor, held_out, options.batch_size, description=f"{name}: calibrating")
        references = [label for part in held_out.values() for label in part["labels"][:]]
        temperature = fit_on_classes(fitting, references)
        clips = sum(label >= 0 for label in references)
        calibration = {"temperature": temperature, "split": "validation", "clips": clips}

    answers = classify(model, extractor, split, options.batch_size, description=name)
    predictions = predictions_table(split, class_names, answers, temperature, dimensions)
    described = {"model": name_or_path, "split": options.split, "parameters": parameters}
    described["window_seconds"] = longest_input_seconds(extractor)
    described["dtype"] = options.dtype
    if options.backend != "torch":
        described["backend"] = options.backend
    results = make_results(described, predictions, class_names, dimensions=dimensions)
    uncalibrated = None
    if options.calibrate:
        uncalibrated = predictions_table(split, class_names, answers, dimensions=dimensions)
        for key, table in (("ece_before", uncalibrated), ("ece_after", predictions)):
            calibration[key] = expected_calibration_error(*confidences(table[table["reference"] != ""]))
        results["calibration"] = calibration
    if options.robustness:
        degraded = {"clean": predictions}
        for condition in CONDITIONS:
            heard = classify(model, extractor, split, options.batch_size, condition, description=f"{name}: {condition}")
            degraded[condition] = predictions_table(split, class_names, heard, temperature, dimensions)
        results["robustness"] = robustness(degraded, class_names, options.split)
    if state.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        write_predictions(output, results, predictions, name, uncalibrated)
        write_results(output, results)
        if options.calibrate:
            path = Path(name_or_path, "config.json")
            config = read_table(path) | {"calibration_temperature": temperature}
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
            add_section(path.parent, "Calibration", calibration_section(calibration))
    return results, predictions


def fit_on_classes(answers: WindowAnswers, references: Sequence[int]) -> float:
    """The temperature of the clips that have a class: -100 stands for none."""
    known = np.asarray(references) >= 0
    if not known.any():
        raise ValueError("--calibrate: no clip of the validation split has a class")
    of_known = known[answers.clip_of_window]
    numbers = known.cumsum() - 1
    clips = numbers[answers.clip_of_window[of_known]]
    return fit_temperature(answers.logits[of_known], clips, np.asarray(references)[known])


def report(
    models: dict[str, tuple[str, Path]],
    systems: dict[str, dict[str, Any]],
    tables: dict[str, pandas.DataFrame],
    options: argparse.Namespace,
) -> Path:
    """Compares models in the classes and the dimensions that they share, and writes `report.md`; returns its path."""
    for name in ("comparison.json", *PICTURES):  # of an earlier evaluation
        (options.output / name).unlink(missing_ok=True)
    comparison = None
    if len(systems) > 1:
        classes = [class_names_of(table) for table in tables.values()]
        alike = len(set(map(frozenset, classes))) == 1
        scales = [results.get("dimensions", {}) for results in systems.values()]
        shared = [name for name in scales[0] if all(name in scale for scale in scales)]
        if (alike and classes[0]) or shared:
            of_shared = {
                system: {name: scale[name] for name in shared} for system, scale in zip(systems, scales, strict=True)
            }
            comparison = compare(tables, classes[0] if alike else [], of_shared if shared else None)
            write_text(options.output / "comparison.json", json.dumps(comparison, indent=2) + "\n")
        if not alike:
            print("the models have different classes, in which they are not compared clip by clip")
    facts = {
        "date": datetime.date.today().isoformat(),
        "split": options.split,
        "protocol": options.protocol if options.fold is None else f"{options.protocol}, fold {options.fold}",
    }
    if options.clips_per_corpus:
        facts["clips"] = f"about {options.clips_per_corpus} of each corpus"
    trained_on = {name: trained_corpora(model) for name, (model, _) in models.items()}
    curves = {name: Path(model).parent / CURVES for name, (model, _) in models.items()}
    return write_report(
        options.output,
        systems,
        facts=facts,
        folders={name: os.path.relpath(folder, options.output) for name, (_, folder) in models.items()},
        comparison=comparison,
        curves={name: read_table(path) for name, path in curves.items() if path.is_file()},
        trained_on={name: corpora for name, corpora in trained_on.items() if corpora},
    )


def recipe_of(name_or_path: str) -> dict[str, Any]:
    """The resolved recipe of the run that made a model; empty where the model does not lie in a run folder."""
    path = Path(name_or_path).parent / "recipe.yaml"
    in_run = path.is_file() and path.with_name("environment.json").is_file()
    recipe = read_table(path) if in_run else {}
    return recipe if isinstance(recipe.get("corpora"), list) else {}


def trained_corpora(name_or_path: str) -> list[str]:
    """The corpora that a model was trained on, the last first: by the recipes of its runs, else by its card."""
    corpora: list[str] = []
    seen: set[str] = set()
    while name_or_path not in seen:
        seen.add(name_or_path)
        recipe = recipe_of(name_or_path)
        if not recipe:
            corpora += card_metadata(Path(name_or_path) / CARD).get("datasets", [])
            break
        corpora += [folder_name(corpus) for corpus in recipe["corpora"]]
        name_or_path = str(recipe.get("model"))
    return list(dict.fromkeys(corpora))


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
