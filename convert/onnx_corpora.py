"""A model and its ONNX export on the test splits of corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas
from transformers import PreTrainedModel

from exhubert.configuration_exhubert import class_names_of_config, dimensions_of_config
from exhubert.corpora.dimensions import scales_of
from exhubert.corpora.load import load_corpora
from exhubert.evaluation.dimensions import dimension_metrics
from exhubert.evaluation.metrics import classification_scores
from exhubert.evaluation.predictions import PREDICTED, REFERENCE, classify, predictions_table
from exhubert.model_folder.onnx_model import OnnxClassifier
from exhubert.utils.text import markdown_table

OF_CLASSES = ["same class", "UAR torch", "UAR ONNX", "largest difference of logits"]
OF_DIMENSIONS = ["CCC torch", "CCC ONNX", "largest difference of dimensions"]


def compare_on_corpora(
    model: PreTrainedModel,
    exported: OnnxClassifier,
    extractor: Any,
    entries: Sequence[str],
    scales: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Classifies the test splits of corpora with a model and with its export, in windows, as evaluation does.

    Args:
        model: in eval mode.
        exported: made of it.
        extractor: their feature extractor.
        entries: corpus folders.
        scales: those that the registry does not state, as `corpora.dimensions.scale_of` takes them.

    Returns:
        A markdown table: for each corpus, and for the clips of all together, of a model with classes how many clips get
        the same class, both UARs, and the largest difference of logits of a window; of one with dimensions both mean
        CCCs, and their largest difference of a window, on 0 to 1.

    Raises:
        ValueError: for anything wrong with a corpus, if its labels are not the model's classes, or for a model of
            dimensions alone if it has no such columns.
    """
    class_names, dimensions = class_names_of_config(model.config), dimensions_of_config(model.config)
    read, _ = load_corpora(
        entries,
        labels=class_names or "none",
        targets=list(dimensions),
        scales=scales_of(scales, list(dimensions)),
        needed=("test",),
    )
    corpora = {name: splits["test"] for name, splits in read.items()}
    answers = classify(model, extractor, corpora, description="torch")
    others = classify(exported, extractor, corpora, description="ONNX")
    temperature = getattr(model.config, "calibration_temperature", 1.0)
    tables = [predictions_table(corpora, class_names, each, temperature, dimensions) for each in (answers, others)]

    def largest(values: np.ndarray | None, of_others: np.ndarray | None) -> pandas.Series:
        """Of each clip the largest difference of a window."""
        if values is None or of_others is None:
            return pandas.Series(dtype=float)
        return pandas.Series(np.abs(of_others - values).max(axis=1)).groupby(answers.clip_of_window).max()

    of_logits = largest(answers.logits, others.logits)
    of_dimensions = largest(answers.dimensions, others.dimensions)
    rows = []
    for name in (*corpora, "all"):
        chosen = [name in (corpus, "all") for corpus in tables[0]["corpus"]]
        ours, theirs = (table[chosen] for table in tables)
        cells = [name, str(len(ours))]
        if class_names:
            cells.append(f"{100 * (ours['prediction'] == theirs['prediction']).mean():.2f} %")
            cells += [uar_cell(part, class_names) for part in (ours, theirs)]
            cells.append(f"{of_logits[chosen].max():.2g}")
        if dimensions:
            cells += [ccc_cell(part, list(dimensions)) for part in (ours, theirs)]
            cells.append(f"{of_dimensions[chosen].max():.2g}")
        rows.append(cells)
    header = ["corpus", "clips", *(OF_CLASSES if class_names else []), *(OF_DIMENSIONS if dimensions else [])]
    return markdown_table(header, rows)


def uar_cell(table: pandas.DataFrame, class_names: Sequence[str]) -> str:
    """The UAR of predictions; over one class, and without any, it is not defined."""
    with_class = table[table["reference"] != ""]
    if not len(with_class):
        return "-"
    references, predictions = (
        [class_names.index(name) for name in with_class[each]] for each in ("reference", "prediction")
    )
    uar = classification_scores(references, predictions, class_names)["uar"]
    return "-" if uar is None else f"{100 * uar:.2f} %"


def ccc_cell(table: pandas.DataFrame, dimensions: Sequence[str]) -> str:
    """The mean CCC of predictions; where no two clips have different references it is not defined."""
    references, predictions = (table[[f"{prefix}{name}" for name in dimensions]] for prefix in (REFERENCE, PREDICTED))
    metrics = dimension_metrics(references, predictions, dimensions)
    return f"{metrics['ccc']:.4f}" if "ccc" in metrics else "-"
