"""Predictions of a model on corpora, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import torch
from datasets import Dataset
from transformers import Trainer

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
