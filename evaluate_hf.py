"""Evaluates an audio-classification model on emotion corpora.

    python evaluate_hf.py --model DIR_OR_ID --corpora DIR... [--split test] --output DIR

Writes `results.json`, `predictions.parquet` and a confusion matrix for each corpus.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import exhubert  # noqa: F401  (makes its models known to the Auto classes)
from exhubert.cli import quiet_transformers, run_with_one_line_errors
from exhubert.corpora.load import load_corpora
from exhubert.corpora.splits import SPLITS
from exhubert.reports.tables import uar_table
from exhubert.training.collator import AudioCollator
from exhubert.training.evaluation import predict, score
from exhubert.training.run_folder import write_results
from transformers import AutoModelForAudioClassification, Trainer, TrainingArguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads, predicts, scores, writes. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="evaluate_hf.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="Hub id or folder")
    parser.add_argument("--corpora", required=True, nargs="+", help="corpus folders")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--window-seconds", type=float, default=3.0, help="the first so many seconds are classified")
    parser.add_argument("--clips-per-corpus", type=int, help="use a random part of each corpus, always the same")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args(arguments)
    quiet_transformers()

    model = AutoModelForAudioClassification.from_pretrained(options.model)
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    corpora, _ = load_corpora(options.corpora, labels=class_names, clips_per_corpus=options.clips_per_corpus)
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
        trainer = Trainer(model=model, args=training, data_collator=AudioCollator(options.window_seconds))
        predictions = predict(trainer, {name: splits[options.split] for name, splits in corpora.items()}, class_names)
    if training.process_index == 0:
        results = score(predictions, class_names, options.split)
        Path(options.output).mkdir(parents=True, exist_ok=True)
        parameters = {"total": model.num_parameters(), "trainable": model.num_parameters(only_trainable=True)}
        described = {"model": options.model, "parameters": parameters}
        write_results(options.output, described, results, predictions, training.seed)
        print(uar_table({options.model: {name: scores["uar"] for name, scores in results.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(run_with_one_line_errors(main))
