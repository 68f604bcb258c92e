"""Predictions of a model on corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import torch
from datasets import Dataset
from transformers import Trainer


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
