"""A model and its ONNX export on the test splits of corpora."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas
from transformers import PreTrainedModel

from exhubert.corpora.load import load_corpora
from exhubert.evaluation.metrics import classification_scores
from exhubert.evaluation.predictions import classify, predictions_table
from exhubert.model_folder.onnx_model import OnnxClassifier
from exhubert.utils.text import markdown_table

HEADER = ["corpus", "clips", "same class", "UAR torch", "UAR ONNX", "largest difference of logits"]


def compare_on_corpora(model: PreTrainedModel, exported: OnnxClassifier, extractor: Any, entries: Sequence[str]) -> str:
    """Classifies the test splits of corpora with a model and with its export, in windows, as evaluation does.

    Args:
        model: in eval mode.
        exported: made of it.
        extractor: their feature extractor.
        entries: corpus folders.

    Returns:
        A markdown table: for each corpus, and for the clips of all together, how many clips get the same class, both
        UARs, and the largest difference of logits of a window.

    Raises:
        ValueError: for anything wrong with a corpus, or if its labels are not the model's classes.
    """
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    read, _ = load_corpora(entries, labels=class_names)
    corpora = {name: splits["test"] for name, splits in read.items()}
    answers = classify(model, extractor, corpora, description="torch")
    others = classify(exported, extractor, corpora, description="ONNX")
    temperature = getattr(model.config, "calibration_temperature", 1.0)
    tables = [predictions_table(corpora, class_names, each, temperature) for each in (answers, others)]
    differences = pandas.Series(np.abs(others.logits - answers.logits).max(axis=1))
    differences = differences.groupby(answers.clip_of_window).max()
    rows = []
    for name in (*corpora, "all"):
        chosen = [name in (corpus, "all") for corpus in tables[0]["corpus"]]
        ours, theirs = (table[chosen] for table in tables)
        cells = [name, str(len(ours)), f"{100 * (ours['prediction'] == theirs['prediction']).mean():.2f} %"]
        for part in (ours, theirs):
            references = [class_names.index(label) for label in part["reference"]]
            predictions = [class_names.index(label) for label in part["prediction"]]
            uar = classification_scores(references, predictions, class_names)["uar"]
            cells.append("-" if uar is None else f"{100 * uar:.2f} %")  # over one class it is not defined
        rows.append([*cells, f"{differences[chosen].max():.2g}"])
    return markdown_table(HEADER, rows)
