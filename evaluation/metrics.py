"""UAR, accuracy, macro-F1 and the recall of each class."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score
from transformers import EvalPrediction

METRICS = ("uar", "accuracy", "macro_f1")
UAR_MODULE = Path(__file__).with_name("uar")


@functools.cache
def _uar_metric() -> evaluate.EvaluationModule:
    return evaluate.load(str(UAR_MODULE))


def classification_scores(
    references: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns `uar`, `accuracy`, `macro_f1` and `recall` (class name to value), from 0 to 1.

    UAR, macro-F1 and recall are over the classes that occur among `references`: a test set without a class says
    nothing about it.
    """
    present = sorted(set(references))
    recalls = recall_score(references, predictions, labels=present, average=None)
    return {
        "uar": _uar_metric().compute(references=references, predictions=predictions)["uar"],
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, labels=present, average="macro")),
        "recall": {class_names[index]: float(value) for index, value in zip(present, recalls, strict=True)},
    }


def average_metrics(metrics: Mapping[str, float], corpora: Sequence[str], prefix: str = "eval") -> dict[str, float]:
    """Returns `<prefix>_average_uar`, `..._accuracy` and `..._macro_f1`: the means over the corpora.

    Args:
        metrics: `<prefix>_<corpus>_uar` and so on, as `Trainer` names them.
        corpora: the corpora's names.
        prefix: of the names.
    """
    return {
        f"{prefix}_average_{name}": sum(metrics[f"{prefix}_{corpus}_{name}"] for corpus in corpora) / len(corpora)
        for name in METRICS
    }


def only_logits(logits: Any, labels: Any) -> Any:
    """The logits alone, of a model that returns its hidden states as well; for `Trainer`, which would keep them all."""
    return logits[0] if isinstance(logits, tuple) else logits


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`Trainer`'s metrics of one corpus: `uar`, `accuracy`, `macro_f1`."""
    references = np.asarray(prediction.label_ids).tolist()
    predictions = np.asarray(prediction.predictions).argmax(axis=-1).tolist()
    names = [str(index) for index in range(np.asarray(prediction.predictions).shape[-1])]
    scores = classification_scores(references, predictions, names)
    return {name: scores[name] for name in METRICS}
