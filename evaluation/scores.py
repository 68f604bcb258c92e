"""Scores of predictions, with their intervals: what `results.json` and `comparison.json` hold.

`predictions` has one row a clip: `corpus`, `file_name`, `speaker`, `reference`, `prediction` (class names) and
`probability_<class>`; optionally `start_seconds`, `sex` and `language`. What is unknown is empty. Scores are from 0
to 1. UAR and macro-F1 are over the classes that occur among the references: one that is only predicted has no recall,
but its predictions are errors of the other classes. Intervals are those of `evaluation.bootstrap`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas
from sklearn.metrics import confusion_matrix

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.bootstrap import Resamples, interval, p_value, resample, scores_of
from exhubert.evaluation.calibration import expected_calibration_error

OVERALL = ("uar", "accuracy", "macro_f1")
DIMENSIONS = ("arousal", "valence")  # in the order of the six classes' names: low/negative
GROUPS = ("sex", "language")
PROBABILITY = "probability_"


class Answers(NamedTuple):
    """Class numbers `(clips,)` from 0 to `classes` - 1."""

    references: np.ndarray
    predicted: np.ndarray
    classes: int


def score(predictions: pandas.DataFrame, class_names: Sequence[str], split: str) -> dict[str, dict[str, Any]]:
    """Returns the `corpora` entry of `results.json`: the scores on each corpus.

    `recall` has the classes that occur. An interval is None where a single clip, or a single speaker who has the class,
    leaves nothing to draw from.

    Args:
        predictions: one row a clip.
        class_names: of the model.
        split: what was evaluated.

    Raises:
        ValueError: if there are no clips, or `predictions` has other classes.
    """
    results = {}
    for corpus, rows in _by_corpus(_checked(predictions, class_names)):
        points, answers = _points(rows, class_names), _answers(rows, class_names)
        drawn = _draw(corpus, rows, answers)
        sampled = scores_of(drawn.matrices[0])
        entry: dict[str, Any] = {"split": split, "clips": len(rows), "speakers": _count_speakers(rows)}
        for name in OVERALL:
            entry[name], entry[f"{name}_interval"] = points[name], interval(sampled[name], drawn.units)
        entry["interval_by"] = drawn.by
        entry["recall"] = points["recall"]
        entry["recall_interval"] = {
            name: interval(sampled["recall"][:, index], drawn.units_of_class[index])
            for index, name in enumerate(class_names)
            if name in points["recall"]
        }
        entry["ece"] = points["ece"]
        for dimension, answers in _dimensions(rows, class_names).items():
            sampled = scores_of(_draw(corpus, rows, answers).matrices[0])
            name = f"{dimension}_uar"
            entry[name], entry[f"{name}_interval"] = points[name], interval(sampled["uar"], drawn.units)
        results[corpus] = entry
    return results


def average(predictions: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the `average` entry of `results.json`: the means over the corpora, each of which counts the same.

    The interval of the average UAR is that of the mean of the corpora's resamples, which are independent; None if a
    corpus has a single clip. Arguments and errors are those of `score`.
    """
    points, samples, units = [], [], []
    for corpus, rows in _by_corpus(_checked(predictions, class_names)):
        drawn = _draw(corpus, rows, _answers(rows, class_names))
        points.append(_points(rows, class_names))
        samples.append(scores_of(drawn.matrices[0])["uar"])
        units.append(drawn.units)
    names = [name for name in points[0] if name not in ("uar", "recall")]
    return {
        "uar": float(np.mean([scores["uar"] for scores in points])),
        "uar_interval": interval(np.stack(samples), units),
        **{name: float(np.mean([scores[name] for scores in points])) for name in names},
    }


def groups(predictions: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the `groups` entry of `results.json`: UAR and recall by sex and by language.

    The clips of all corpora are pooled; those without a value are left out. A column is there only where it has two or
    more values. Groups may differ by their corpora as much as by what the column says. Arguments and errors are those
    of `score`.
    """
    pooled = _checked(predictions, class_names)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for column in GROUPS:
        values = sorted(set(pooled[column]) - {""})
        if len(values) < 2:
            continue
        results[column] = {}
        for value in values:
            rows = pooled[pooled[column] == value]
            points = _points(rows, class_names)
            drawn = _draw(f"{column}/{value}", rows, _answers(rows, class_names))
            results[column][value] = {
                "corpora": [str(corpus) for corpus in dict.fromkeys(rows["corpus"])],
                "clips": len(rows),
                "speakers": _count_speakers(rows),
                "uar": points["uar"],
                "uar_interval": interval(scores_of(drawn.matrices[0])["uar"], drawn.units),
                "interval_by": drawn.by,
                "recall": points["recall"],
            }
    return results


def compare(predictions: Mapping[str, pandas.DataFrame], class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what `comparison.json` holds: for each pair of models, the UAR of the second minus that of the first.

    Both models get the same resamples, so that what a speaker makes hard for both of them cancels out. Clips are
    matched by corpus, file and start, and one that is there twice by its occurrence. p is that of
    `bootstrap.p_value`.

    Args:
        predictions: of each model, by its name.
        class_names: of all models, in any order.

    Raises:
        ValueError: if the models were scored on other clips, with other references or with other classes.
    """
    tables = {name: _checked(table, class_names, name) for name, table in predictions.items()}
    pairs = []
    for a, b in combinations(tables, 2):
        matched = _matched(a, tables[a], b, tables[b])
        corpora, samples, units = {}, [], []
        for corpus, rows in _by_corpus(tables[a]):
            before, after = _answers(rows, class_names), _answers(matched.loc[rows.index], class_names)
            drawn = _draw(corpus, rows, before, after)
            uars = scores_of(drawn.matrices)["uar"]
            samples.append(uars[1] - uars[0])
            units.append(drawn.units)
            corpora[corpus] = {
                "difference": float(_scores(after)["uar"] - _scores(before)["uar"]),
                "interval": interval(samples[-1], drawn.units),
                "interval_by": drawn.by,
                "p": p_value(samples[-1], drawn.units),
                "clips": len(rows),
            }
        overall = {
            "difference": float(np.mean([found["difference"] for found in corpora.values()])),
            "interval": interval(np.stack(samples), units),
            "p": p_value(np.stack(samples), units),
        }
        pairs.append({"models": [a, b], "corpora": corpora, "average": overall})
    return {"pairs": pairs}


def _checked(predictions: pandas.DataFrame, class_names: Sequence[str], model: str = "the model") -> pandas.DataFrame:
    """The table with the columns that older ones lack, what is unknown empty, and rows numbered from 0."""
    found = [str(name).removeprefix(PROBABILITY) for name in predictions if str(name).startswith(PROBABILITY)]
    if set(found) != set(class_names):
        raise ValueError(f"{model} has the classes {', '.join(found)}; expected {', '.join(class_names)}")
    if predictions.empty:
        raise ValueError(f"{model} has classified no clips, so there is nothing to score")
    other = [name for name in (*predictions["reference"], *predictions["prediction"]) if name not in found]
    if other:
        raise ValueError(f"{other[0]!r} is none of the classes {', '.join(class_names)}")
    table = predictions.reset_index(drop=True)
    for column in ("speaker", *GROUPS):
        values = table[column] if column in table else [""] * len(table)
        table[column] = ["" if pandas.isna(value) else str(value) for value in values]
    starts = table["start_seconds"] if "start_seconds" in table else [0.0] * len(table)
    table["start_seconds"] = [0.0 if pandas.isna(value) else float(value) for value in starts]
    return table


def _by_corpus(table: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    return ((str(corpus), rows) for corpus, rows in table.groupby("corpus", sort=False))


def _answers(rows: pandas.DataFrame, class_names: Sequence[str]) -> Answers:
    numbers = {name: number for number, name in enumerate(class_names)}
    references, predicted = ([numbers[name] for name in rows[column]] for column in ("reference", "prediction"))
    return Answers(np.array(references), np.array(predicted), len(class_names))


def _dimensions(rows: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, Answers]:
    """Arousal and valence, if the classes are the six; else nothing.

    The probabilities of the classes that share a value are added, and the largest sum wins. So a clip's arousal may be
    another than that of its most probable class.
    """
    if set(class_names) != set(SIX_CLASSES):
        return {}
    references = _answers(rows, class_names).references
    probabilities = rows[[PROBABILITY + name for name in class_names]].to_numpy(dtype=float)
    found = {}
    for position, dimension in enumerate(DIMENSIONS):
        values = list(dict.fromkeys(name.split("/")[position] for name in SIX_CLASSES))
        value_of_class = np.array([values.index(name.split("/")[position]) for name in class_names])
        sums = probabilities @ np.eye(len(values))[value_of_class]
        found[dimension] = Answers(value_of_class[references], sums.argmax(axis=1), len(values))
    return found


def _scores(answers: Answers) -> dict[str, np.ndarray]:
    return scores_of(confusion_matrix(answers.references, answers.predicted, labels=range(answers.classes)))


def _points(rows: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """The scores of some clips, without intervals."""
    scores = _scores(_answers(rows, class_names))
    recalls = zip(class_names, scores["recall"], strict=True)
    confidences = rows[[PROBABILITY + name for name in class_names]].max(axis=1).to_numpy()
    right = (rows["prediction"] == rows["reference"]).to_numpy()
    return {
        **{name: float(scores[name]) for name in OVERALL},
        "recall": {name: float(recall) for name, recall in recalls if np.isfinite(recall)},
        "ece": expected_calibration_error(confidences, right),
        **{f"{name}_uar": float(_scores(found)["uar"]) for name, found in _dimensions(rows, class_names).items()},
    }


def _draw(name: str, rows: pandas.DataFrame, *systems: Answers) -> Resamples:
    """The resamples of a corpus or a group: the same each time, and independent of those with another name."""
    predicted = [answers.predicted for answers in systems]
    seed = zlib.crc32(name.encode())
    return resample(systems[0].references, predicted, _speakers(rows), systems[0].classes, seed)


def _speakers(rows: pandas.DataFrame) -> list[str]:
    """The clips' speakers, "" where unknown. Those of two corpora are never the same person."""
    return [
        f"{name}/{speaker}" if speaker else "" for name, speaker in zip(rows["corpus"], rows["speaker"], strict=True)
    ]


def _count_speakers(rows: pandas.DataFrame) -> int:
    return len(set(_speakers(rows)) - {""})


def _matched(a: str, before: pandas.DataFrame, b: str, after: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of `after` in the order of those of `before`, which are of the same clips."""
    clip = ["corpus", "file_name", "start_seconds"]
    one, other = (
        pandas.MultiIndex.from_frame(table[clip].assign(occurrence=table.groupby(clip).cumcount()))
        for table in (before, after)
    )
    only = [*one.difference(other), *other.difference(one)]
    if only:
        corpus, file_name, *_ = only[0]
        raise ValueError(
            f"{a} and {b} were not scored on the same clips: {corpus}/{file_name} is missing for one of them"
        )
    matched = after.iloc[other.get_indexer(one)].reset_index(drop=True)
    differ = (before["reference"] != matched["reference"]).to_numpy().nonzero()[0]
    if len(differ):
        row = before.iloc[differ[0]]
        raise ValueError(
            f"{a} and {b} were scored with other references: {row['corpus']}/{row['file_name']} is {row['reference']} "
            f"for one and {matched['reference'].iloc[differ[0]]} for the other"
        )
    return matched
