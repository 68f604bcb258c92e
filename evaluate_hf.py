"""Evaluates audio-classification models on emotion corpora.

    python evaluate_hf.py --model DIR_OR_ID... --corpora DIR... [--split test] --output DIR

Writes `results.json`, `predictions.parquet` and a confusion matrix for each corpus; with several models, into a
folder for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from transformers import Trainer, TrainingArguments
from transformers.feature_extraction_utils import FeatureExtractionMixin

from exhubert.audio_exhubert import WINDOW_SECONDS
from exhubert.cli import quiet_transformers, run_with_one_line_errors
from exhubert.corpora.load import load_corpora
from exhubert.corpora.splits import SPLITS
from exhubert.evaluation.metrics import only_logits
from exhubert.evaluation.predictions import predict
from exhubert.evaluation.results import write_results
from exhubert.evaluation.scores import score
from exhubert.model_folder import load_classifier
from exhubert.reports.tables import uar_table
from exhubert.training.collator import AudioCollator


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates each model, then prints one table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="evaluate_hf.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, nargs="+", help="Hub ids or folders")
    parser.add_argument("--corpora", required=True, nargs="+", help="corpus folders")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    parser.add_argument("--label_file", help="YAML file with further emotion words")
    parser.add_argument("--skip_bad_audio", action="store_true", help="leave out clips whose audio does not decode")
    parser.add_argument("--clips_per_corpus", type=int, help="use a random part of each corpus, always the same")
    parser.add_argument("--protocol", default="auto", help="how each corpus is split; see docs/corpora.md")
    parser.add_argument("--fold", type=int, help="which fold, from 1, of a protocol that has folds")
    parser.add_argument("--batch_size", type=int, default=8)
    options = parser.parse_args(arguments)
    if (options.output / "recipe.yaml").exists():
        raise ValueError(f"{options.output} is a training's run folder; give another --output")

    uars = {}
    for model in options.model:
        folder = options.output / model.strip("./").replace("/", "_") if len(options.model) > 1 else options.output
        uars[model] = evaluate(model, folder, options)
    print(uar_table(uars))
    return 0


def evaluate(name_or_path: str, output: Path, options: argparse.Namespace) -> dict[str, float]:
    """Evaluates one model, writes its results, and returns its UAR on each corpus.

    Raises:
        ValueError: if the model's checkpoint has no classification head, or a corpus is not as it should be.
    """
    model, new = load_classifier(name_or_path)
    if new:
        raise ValueError(f"{name_or_path} has no trained classifier: it lacks {new[0]} ({len(new)} such weights)")
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    recipe = Path(name_or_path).parent / "recipe.yaml"
    trained = yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    for name in ("protocol", "fold"):
        value = trained.get(name, getattr(options, name))
        if value != getattr(options, name):
            print(f"note: {name_or_path} was trained with --{name} {value}; else its training clips may be tested")
    corpora, _ = load_corpora(
        options.corpora,
        labels=class_names,
        label_file=options.label_file,
        skip_bad_audio=options.skip_bad_audio,
        clips_per_corpus=options.clips_per_corpus,
        protocol=options.protocol,
        fold=options.fold,
    )
    with tempfile.TemporaryDirectory() as scratch:
        training = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=options.batch_size,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            dataloader_pin_memory=False,
            disable_tqdm=False,
        )
        trainer = Trainer(
            model=model,
            args=training,
            preprocess_logits_for_metrics=only_logits,
            data_collator=AudioCollator(_window_seconds(name_or_path), config=model.config),
        )
        predictions = predict(trainer, {name: splits[options.split] for name, splits in corpora.items()}, class_names)
    results = score(predictions, class_names, options.split)
    if training.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        parameters = {"total": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
        described = {"model": name_or_path, "parameters": parameters}
        write_results(str(output), described, results, predictions, training.seed)
    return {name: scores["uar"] for name, scores in results.items()}


def _window_seconds(name_or_path: str) -> float:
    """The window that the model was trained on, where its folder says so."""
    try:
        values, _ = FeatureExtractionMixin.get_feature_extractor_dict(name_or_path)
    except OSError:  # a model without a feature extractor
        return WINDOW_SECONDS
    return float(values.get("window_seconds", WINDOW_SECONDS))


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
