"""Scores of predictions, with their intervals: what `results.json` and `comparison.json` hold.

`predictions` is what `predictions.predictions_table` makes, one row a clip; what is unknown is empty. Scores are from 0
to 1. UAR and macro-F1 are over the classes that occur among the references: one that is only predicted has no recall,
but its predictions are errors of the other classes. Where a single class occurs they are not defined, None, and the
corpus counts in no average of them. A clip without a class is left out. Scores of dimensions are those of
`evaluation.dimensions`; of a model that has no classes they are all there is. Intervals are those of
`evaluation.bootstrap`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.bootstrap import RESAMPLES, Resamples, interval, p_value, resample
from exhubert.evaluation.calibration import expected_calibration_error
from exhubert.evaluation.dimensions import average_dimensions, compare_dimensions, score_dimensions
from exhubert.evaluation.metrics import METRICS, defined, scores_of
from exhubert.evaluation.predictions import (
    PREDICTED,
    PROBABILITY,
    REFERENCE,
    class_names_of,
    confidences,
    dimension_names_of,
)
from exhubert.evaluation.uar.uar import uar_and_recalls

QUADRANT = ("arousal", "valence")  # in the order of the six classes' names: low/negative
GROUPS = ("sex", "language")
GROUP_ENTRIES = ("clips", "speakers", "uar", "uar_interval", "interval_by", "recall")


def score(predictions: pandas.DataFrame, class_names: Sequence[str], split: str) -> dict[str, dict[str, Any]]:
    """Returns the `corpora` entry of `results.json`: the scores on each corpus.

    `recall` has the classes that occur. An interval is None where a single clip, or a single speaker who has the class,
    leaves nothing to draw from.

    Raises:
        ValueError: if there are no clips, or `predictions` has other classes.
    """
    return score_and_average(predictions, class_names, split)[0]


def average(predictions: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the `average` entry of `results.json`: the means over the corpora, each of which counts the same.

    A score that is not defined on a corpus is averaged over the others. `without_uar` names the corpora that have no
    UAR, where there are some. The interval of the average UAR is that of the mean of the corpora's resamples, which are
    independent; None if a corpus has a single clip. Arguments and errors are those of `score`.
    """
    return score_and_average(predictions, class_names, "")[1]


def score_and_average(
    predictions: pandas.DataFrame, class_names: Sequence[str], split: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Returns what `score` and `average` do, of one pass over the resamples."""
    tables = {str(corpus): rows for corpus, rows in _checked(predictions, class_names).groupby("corpus", sort=False)}
    found: dict[str, Any] = {}
    entries: dict[str, dict[str, Any]] = {corpus: {"split": split} for corpus in tables}
    if class_names:
        scored = {corpus: _scored(corpus, rows, class_names) for corpus, rows in tables.items()}
        averaged = (*METRICS, "ece", *(f"{dimension}_uar" for dimension in QUADRANT))
        of_classes = [entry for entry, *_ in scored.values()]
        means = {
            name: mean([entry.get(name) for entry in of_classes])
            for name in averaged
            if any(name in entry for entry in of_classes)
        }
        with_uar = [each for each in scored.values() if each[0]["uar"] is not None]
        uar_interval = interval([samples for _, samples, _ in with_uar], [units for *_, units in with_uar])
        without = [corpus for corpus, (entry, *_) in scored.items() if entry["uar"] is None]
        found = {"uar": means["uar"], "uar_interval": uar_interval, **means}
        found |= {"without_uar": without} if without else {}
        for corpus, (entry, *_) in scored.items():
            entries[corpus] |= entry
    if dimension_names_of(predictions):
        valued = {corpus: score_dimensions(corpus, rows) for corpus, rows in tables.items()}
        found |= average_dimensions(valued)
        for corpus, (entry, _) in valued.items():
            entries[corpus] |= ({} if class_names else _size(tables[corpus], entry)) | entry
    return entries, found


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the scores that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def groups(predictions: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the `groups` entry of `results.json`: UAR, recall and scores of dimensions by sex and by language.

    The clips of all corpora are pooled; those without a value are left out. A column is there only where it has two or
    more values. Groups may differ by their corpora as much as by what the column says. Arguments and errors are those
    of `score`.
    """
    pooled = _checked(predictions, class_names)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for column in GROUPS:
        values = sorted(set(pooled[column]) - {""})
        for value in values if len(values) > 1 else []:
            rows = pooled[pooled[column] == value]
            found: dict[str, Any] = {"corpora": rows["corpus"].unique().tolist()}
            if class_names:
                entry, *_ = _scored(f"{column}/{value}", rows, class_names)
                found |= {name: entry[name] for name in GROUP_ENTRIES}
            if dimension_names_of(rows):
                entry, _ = score_dimensions(f"{column}/{value}", rows)
                found |= ({} if class_names else _size(rows, entry)) | entry
            results.setdefault(column, {})[value] = found
    return results


def compare(
    predictions: Mapping[str, pandas.DataFrame],
    class_names: Sequence[str],
    scales: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """Returns what `comparison.json` holds: for each pair of models, the UAR of the second minus that of the first.

    Both models get the same resamples, so that what a speaker makes hard for both of them cancels out. Clips with a
    reference are matched by corpus, file and start, and one that is there twice by its occurrence. p is that of
    `evaluation.bootstrap.p_value`. The models' classes may come in any order. With `scales` the models' CCC is compared
    likewise, under `ccc`.

    Args:
        predictions: name of the model -> its table.
        class_names: of all the models; none where these have no classes, or different ones.
        scales: name of the model -> dimension -> the scale that its values are on; the same dimensions for each.

    Raises:
        ValueError: if the models were scored on other clips, with other references or with other classes.
    """
    tables = {name: _checked(table, class_names or class_names_of(table), name) for name, table in predictions.items()}
    pairs = []
    for a, b in combinations(tables, 2):
        pair: dict[str, Any] = {"models": [a, b]}
        if class_names:
            one, other = _matched(tables, a, b, ["reference"])
            differ = np.flatnonzero(one["reference"] != other["reference"])
            _refuse_other_references(a, b, one, other, "reference", differ)
            pair |= _compared(one.assign(other_prediction=other["prediction"]), class_names)
        if scales:
            dimensions = list(scales[a])
            references = [REFERENCE + dimension for dimension in dimensions]
            one, other = _matched(tables, a, b, references)
            one, other = (_on_unit_scale(table, scales[name]) for table, name in ((one, a), (other, b)))
            for column in references:
                same = np.isclose(one[column], other[column], rtol=0, atol=1e-6, equal_nan=True)
                _refuse_other_references(a, b, one, other, column, np.flatnonzero(~same))
            pair["ccc"] = compare_dimensions(one, other, dimensions)
        pairs.append(pair)
    return {"pairs": pairs}


def _matched(
    tables: Mapping[str, pandas.DataFrame], a: str, b: str, references: Sequence[str]
) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """The tables of two models, with the same clips in the same order: those that have any of the `references`.

    A model of classes and dimensions has clips that have but one of these, which another model need not have.
    """
    clip = ["corpus", "file_name", "start_seconds"]
    found = []
    for table in (tables[a], tables[b]):
        given = table[(table[references].notna() & (table[references] != "")).any(axis=1)]
        found.append(given.assign(occurrence=given.groupby(clip).cumcount()).set_index([*clip, "occurrence"]))
    one, other = found
    only = one.index.symmetric_difference(other.index)
    if len(only):
        missing = f"{only[0][0]}/{only[0][1]} is missing for one of them"
        raise ValueError(f"{a} and {b} were not scored on the same clips: {missing}")
    return one.reset_index(), other.reindex(one.index).reset_index()


def _refuse_other_references(
    a: str, b: str, one: pandas.DataFrame, other: pandas.DataFrame, column: str, differ: np.ndarray
) -> None:
    if len(differ):
        row = one.iloc[differ[0]]
        what = f"{row[column]} for one and {other[column].iloc[differ[0]]} for the other"
        raise ValueError(f"{a} and {b} were scored with other references: {row['corpus']}/{row['file_name']} is {what}")


def _on_unit_scale(table: pandas.DataFrame, scale: Mapping[str, Sequence[float]]) -> pandas.DataFrame:
    """The table with the values of dimensions from 0 to 1, so that those of models on two scales can be compared."""
    return table.assign(
        **{
            prefix + name: (table[prefix + name] - low) / (high - low)
            for name, (low, high) in scale.items()
            for prefix in (REFERENCE, PREDICTED)
        }
    )


def _compared(both: pandas.DataFrame, class_names: Sequence[str]) -> dict[str, Any]:
    """How the UAR of `other_prediction` differs from that of `prediction`, on each corpus and on average."""
    corpora: dict[str, dict[str, Any]] = {}
    samples, units = [], []
    for corpus, rows in both.groupby("corpus", sort=False):
        drawn = _draw(str(corpus), rows, class_names, ("prediction", "other_prediction"))
        uars = scores_of(drawn.matrices)["uar"]
        differences = uars[1] - uars[0]
        before, after = scores_of(drawn.whole)["uar"]
        corpora[str(corpus)] = {
            "difference": defined(after - before),
            "interval": interval(differences, drawn.units),
            "interval_by": drawn.by,
            "p": p_value(differences, drawn.units),
            "clips": len(rows),
        }
        if corpora[str(corpus)]["difference"] is not None:
            samples.append(differences)
            units.append(drawn.units)
    overall = {
        "difference": mean([found["difference"] for found in corpora.values()]),
        "interval": interval(samples, units),
        "p": p_value(samples, units),
    }
    return {"corpora": corpora, "average": overall}


def _checked(predictions: pandas.DataFrame, class_names: Sequence[str], model: str = "the model") -> pandas.DataFrame:
    """The table, with speakers named by their corpus too: those of two corpora are never the same person."""
    found = class_names_of(predictions)
    if set(found) != set(class_names):
        raise ValueError(f"{model} has the classes {', '.join(found)}; expected {', '.join(class_names)}")
    if predictions.empty:
        raise ValueError(f"{model} has classified no clips, so there is nothing to score")
    without = {""} if dimension_names_of(predictions) else set()  # clips that have a value, and no class
    answers = (*predictions["reference"], *predictions["prediction"]) if found else ()
    other = [name for name in answers if name not in (*found, *without)]
    if other:
        raise ValueError(f"{other[0]!r} is none of the classes {', '.join(class_names)}")
    table, speakers = predictions.reset_index(drop=True), predictions["speaker"].to_numpy()
    return table.assign(speaker=(table["corpus"] + "/" + speakers).where(speakers != "", ""))


def _size(rows: pandas.DataFrame, scores: Mapping[str, Any]) -> dict[str, Any]:
    """The clips and speakers of a model that has no classes, and what is drawn of them for `scores`."""
    by = next(iter(scores["dimensions"].values()))["interval_by"]
    return {"clips": len(rows), "speakers": len(set(rows["speaker"]) - {""}), "interval_by": by}


def _draw(
    name: str, rows: pandas.DataFrame, class_names: Sequence[str], predictions: Sequence[str] = ("prediction",)
) -> Resamples:
    """The resamples of a corpus or a group: the same each time, and independent of those with another name."""
    numbers = {name: number for number, name in enumerate(class_names)}
    references, *predicted = (rows[column].map(numbers).to_numpy() for column in ("reference", *predictions))
    return resample(references, predicted, rows["speaker"].tolist(), len(class_names), zlib.crc32(name.encode()))


def _scored(name: str, rows: pandas.DataFrame, class_names: Sequence[str]) -> tuple[dict[str, Any], np.ndarray, int]:
    """The scores of a corpus or a group, the UAR of its resamples and how many units these are drawn from.

    For arousal and valence the probabilities of the classes that share a value are added, and the largest sum wins. So
    a clip's arousal may be another than that of its most probable class.
    """
    entry: dict[str, Any]
    rows = rows[rows["reference"] != ""]
    if rows.empty:
        entry = dict.fromkeys(f"{metric}{end}" for metric in METRICS for end in ("", "_interval"))
        entry |= {"interval_by": None, "recall": {}, "recall_interval": {}, "ece": None}
        return {"clips": 0, "speakers": 0, **entry}, np.full(RESAMPLES, np.nan), 0
    drawn = _draw(name, rows, class_names)
    points, sampled = scores_of(drawn.whole[0]), scores_of(drawn.matrices[0])
    entry = {"clips": len(rows), "speakers": drawn.speakers}
    for metric in METRICS:
        entry[metric], entry[f"{metric}_interval"] = defined(points[metric]), interval(sampled[metric], drawn.units)
    entry |= {"interval_by": drawn.by, "recall": {}, "recall_interval": {}}
    for index, class_name in enumerate(class_names):
        if np.isfinite(points["recall"][index]):
            entry["recall"][class_name] = float(points["recall"][index])
            of_class = interval(sampled["recall"][:, index], drawn.units_of_class[index])
            entry["recall_interval"][class_name] = of_class
    entry["ece"] = expected_calibration_error(*confidences(rows))
    for position, dimension in enumerate(QUADRANT if set(class_names) == set(SIX_CLASSES) else ()):
        value_of = {six: six.split("/")[position] for six in SIX_CLASSES}
        values = list(dict.fromkeys(value_of.values()))
        answers = rows.assign(reference=rows["reference"].map(value_of))
        probabilities = rows[[PROBABILITY + six for six in value_of]].to_numpy(dtype=float)
        sums = probabilities @ [[float(of == value) for value in values] for of in value_of.values()]
        answers["prediction"] = np.array(values)[sums.argmax(axis=1)]
        of_dimension = _draw(name, answers, values)
        entry[f"{dimension}_uar"] = defined(uar_and_recalls(of_dimension.whole[0])[0])
        uars, _ = uar_and_recalls(of_dimension.matrices[0])
        entry[f"{dimension}_uar_interval"] = interval(uars, of_dimension.units)
    return entry, sampled["uar"], drawn.units
