"""Scores of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas

from exhubert.evaluation.metrics import classification_scores
from exhubert.reports.bootstrap import uar_interval


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
