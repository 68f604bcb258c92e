"""Predictions of a model on corpora, and their scores; when to stop; which classes there are to learn and to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer

from exhubert.reports.bootstrap import uar_interval
from exhubert.training.metrics import classification_scores


def predict(trainer: Trainer, corpora: Mapping[str, Dataset], class_names: Sequence[str]) -> pandas.DataFrame:
    """Classifies corpora.

    Returns:
        One row a clip: `corpus`, `file_name`, `speaker`, `reference`, `prediction` (class names) and
        `probability_<class>` for each class.
    """
    tables = []
    for name, dataset in corpora.items():
        logits: Any = trainer.predict(dataset, metric_key_prefix=f"test_{name}").predictions
        probabilities = torch.from_numpy(np.asarray(logits)).double().softmax(dim=-1).numpy()
        columns: dict[str, Any] = {
            "corpus": name,
            "file_name": dataset["file_name"],
            "speaker": dataset["speaker"],
            "reference": [class_names[index] for index in dataset["labels"]],
            "prediction": [class_names[index] for index in probabilities.argmax(axis=-1)],
        }
        columns |= {f"probability_{label}": probabilities[:, index] for index, label in enumerate(class_names)}
        tables.append(pandas.DataFrame(columns))
    return pandas.concat(tables, ignore_index=True)


def score(predictions: pandas.DataFrame, class_names: Sequence[str], split: str) -> dict[str, dict[str, Any]]:
    """Scores each corpus of a table that `predict` returned: the `corpora` entry of `results.json`."""
    results = {}
    for corpus, rows in predictions.groupby("corpus", sort=False):
        references = [class_names.index(name) for name in rows["reference"]]
        predicted = [class_names.index(name) for name in rows["prediction"]]
        scores = classification_scores(references, predicted, class_names)
        speakers = list(rows["speaker"])
        results[str(corpus)] = {
            "split": split,
            "clips": len(rows),
            "speakers": len({speaker for speaker in speakers if speaker}),
            "uar": scores.pop("uar"),
            "uar_interval": uar_interval(references, predicted, speakers),
            **scores,
        }
    return results


class EarlyStopping(EarlyStoppingCallback):
    """Ends the training after so many evaluations, over all corpora, without a better average UAR.

    transformers' own asks after each corpus's evaluation, whose metrics have no average.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Nothing: one corpus does not decide."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Counts, when the averages are logged."""
        if logs and f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in logs:
            super().on_evaluate(args, state, control, logs, **kwargs)


def class_notices(corpora: Mapping[str, Mapping[str, Dataset]], class_names: Sequence[str]) -> list[str]:
    """Returns a line for each corpus whose training split lacks a class, and one if no corpus has it at all.

    A class that is scored but not trained on is named in it: UAR is over the classes that occur in the scored split.
    """
    notices = []
    learned: set[int] = set()
    for corpus, splits in corpora.items():
        occur = {split: set(dataset["labels"][:]) for split, dataset in splits.items()}
        learned |= occur["train"]
        lacking = [index for index in range(len(class_names)) if index not in occur["train"]]
        if not lacking:
            continue
        line = f"corpus {corpus!r}: no training clip is {' or '.join(class_names[index] for index in lacking)}"
        for split in ("validation", "test"):
            scored = [class_names[index] for index in lacking if index in occur[split]]
            line += f"; its {split} split has {' and '.join(scored)}, which counts in the UAR" if scored else ""
        notices.append(line)
    nowhere = [name for index, name in enumerate(class_names) if index not in learned]
    if nowhere:
        notices.append(f"no corpus has a training clip that is {' or '.join(nowhere)}: the model cannot learn it")
    return notices
