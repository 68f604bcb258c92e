"""UAR, accuracy, macro-F1 and the recall of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix
from transformers import EvalPrediction

from exhubert.evaluation.uar.uar import uar_and_recalls

METRICS = ("uar", "accuracy", "macro_f1")


def scores_of(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Scores confusion matrices `(..., classes, classes)` with the references in rows.

    Returns:
        `uar`, `accuracy` and `macro_f1`, each `(...)`, and `recall` `(..., classes)`, which is NaN where a class does
        not occur among the references. UAR and macro-F1 are over the classes that occur, NaN where fewer than two do.
    """
    uar, recall = uar_and_recalls(matrices)
    occurring, predicted = matrices.sum(axis=-1), matrices.sum(axis=-2)
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    f1 = np.where(occurring > 0, 2 * hits / np.maximum(occurring + predicted, 1), np.nan)
    macro_f1 = np.where(np.isnan(uar), np.nan, np.nanmean(f1, axis=-1))
    accuracy = hits.sum(axis=-1) / occurring.sum(axis=-1)
    return {"uar": uar, "accuracy": accuracy, "macro_f1": macro_f1, "recall": recall}


def classification_scores(references: ArrayLike, predictions: ArrayLike, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns `uar`, `accuracy`, `macro_f1` and `recall` (class name to value), from 0 to 1.

    UAR, macro-F1 and recall are over the classes that occur among `references`: a test set without a class says
    nothing about it. UAR and macro-F1 are None where a single class occurs.
    """
    scores = scores_of(confusion_matrix(references, predictions, labels=range(len(class_names))))
    recalls = zip(class_names, scores["recall"], strict=True)
    return {
        **{name: defined(scores[name]) for name in METRICS},
        "recall": {name: float(recall) for name, recall in recalls if np.isfinite(recall)},
    }


def average_metrics(
    metrics: Mapping[str, float], corpora: Sequence[str], prefix: str = "eval", dimensions: Sequence[str] = ()
) -> dict[str, float]:
    """Returns `<prefix>_average_uar`, `..._accuracy` and `..._macro_f1`: the means over the corpora that have them.

    With `dimensions` also `..._ccc` and `..._ccc_<dimension>`; and where there are both, `<prefix>_average_score`, the
    mean of average UAR and average CCC. `metrics` are `<prefix>_<corpus>_uar` and so on, as `Trainer` names them.
    """
    scores = (*METRICS, *(("ccc", *(f"ccc_{dimension}" for dimension in dimensions)) if dimensions else ()))
    known = {name: [f"{prefix}_{corpus}_{name}" for corpus in corpora] for name in scores}
    found = {name: [metrics[each] for each in names if each in metrics] for name, names in known.items()}
    averages = {f"{prefix}_average_{name}": sum(values) / len(values) for name, values in found.items() if values}
    both = [averages[name] for name in (f"{prefix}_average_uar", f"{prefix}_average_ccc") if name in averages]
    return averages | ({f"{prefix}_average_score": sum(both) / 2} if len(both) == 2 else {})


def defined(score: Any) -> float | None:
    """A score as a plain number; None, as JSON has it, where it is not defined (NaN)."""
    return float(score) if np.isfinite(score) else None


def only_logits(logits: Any, labels: Any) -> Any:
    """The logits alone, of a model that returns its hidden states as well; for `Trainer`, which would keep them all."""
    return logits[0] if isinstance(logits, tuple) else logits


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`Trainer`'s metrics of one corpus: `uar`, `accuracy`, `macro_f1`, without those that are not defined."""
    logits = np.asarray(prediction.predictions)
    classes = range(logits.shape[-1])
    scores = scores_of(confusion_matrix(prediction.label_ids, logits.argmax(axis=-1), labels=classes))
    return {name: float(scores[name]) for name in METRICS if np.isfinite(scores[name])}
