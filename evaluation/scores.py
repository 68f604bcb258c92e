"""Scores of predictions, with their intervals: what `results.json` and `comparison.json` hold.

`predictions` is what `predictions.predictions_table` makes, one row a clip; what is unknown is empty. Scores are from 0
to 1. UAR and macro-F1 are over the classes that occur among the references: one that is only predicted has no recall,
but its predictions are errors of the other classes. Where a single class occurs they are not defined, None, and the
corpus counts in no average of them. Intervals are those of `evaluation.bootstrap`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.bootstrap import Resamples, interval, p_value, resample
from exhubert.evaluation.calibration import expected_calibration_error
from exhubert.evaluation.metrics import METRICS, defined, scores_of
from exhubert.evaluation.predictions import PROBABILITY, class_names_of, confidences
from exhubert.evaluation.uar.uar import uar_and_recalls

DIMENSIONS = ("arousal", "valence")  # in the order of the six classes' names: low/negative
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
    tables = _checked(predictions, class_names).groupby("corpus", sort=False)
    scored = {str(corpus): _scored(str(corpus), rows, class_names) for corpus, rows in tables}
    entries = [entry for entry, *_ in scored.values()]
    averaged = (*METRICS, "ece", *(f"{dimension}_uar" for dimension in DIMENSIONS))
    means = {name: mean([entry[name] for entry in entries]) for name in averaged if name in entries[0]}
    with_uar = [each for each in scored.values() if each[0]["uar"] is not None]
    uar_interval = interval([samples for _, samples, _ in with_uar], [units for *_, units in with_uar])
    without = [corpus for corpus, (entry, *_) in scored.items() if entry["uar"] is None]
    found: dict[str, Any] = {"uar": means["uar"], "uar_interval": uar_interval, **means}
    found |= {"without_uar": without} if without else {}
    return {corpus: {"split": split, **entry} for corpus, (entry, *_) in scored.items()}, found


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the scores that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


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
        for value in values if len(values) > 1 else []:
            rows = pooled[pooled[column] == value]
            entry, *_ = _scored(f"{column}/{value}", rows, class_names)
            results.setdefault(column, {})[value] = {
                "corpora": rows["corpus"].unique().tolist(),
                **{name: entry[name] for name in GROUP_ENTRIES},
            }
    return results


def compare(predictions: Mapping[str, pandas.DataFrame], class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what `comparison.json` holds: for each pair of models, the UAR of the second minus that of the first.

    Both models get the same resamples, so that what a speaker makes hard for both of them cancels out. Clips are
    matched by corpus, file and start, and one that is there twice by its occurrence. p is that of
    `evaluation.bootstrap.p_value`. The models' classes may come in any order.

    Raises:
        ValueError: if the models were scored on other clips, with other references or with other classes.
    """
    tables = {name: _checked(table, class_names, name) for name, table in predictions.items()}
    pairs = []
    for a, b in combinations(tables, 2):
        clip = ["corpus", "file_name", "start_seconds"]
        one, other = (
            tables[name].assign(occurrence=tables[name].groupby(clip).cumcount()).set_index([*clip, "occurrence"])
            for name in (a, b)
        )
        only = one.index.symmetric_difference(other.index)
        if len(only):
            missing = f"{only[0][0]}/{only[0][1]} is missing for one of them"
            raise ValueError(f"{a} and {b} were not scored on the same clips: {missing}")
        other = other.reindex(one.index)
        differ = np.flatnonzero(one["reference"] != other["reference"])
        if len(differ):
            corpus, file_name, *_ = one.index[differ[0]]
            references = (table["reference"].iloc[differ[0]] for table in (one, other))
            what = "{} for one and {} for the other".format(*references)
            raise ValueError(f"{a} and {b} were scored with other references: {corpus}/{file_name} is {what}")
        both = tables[a].assign(other_prediction=other["prediction"].to_numpy())
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
        pairs.append({"models": [a, b], "corpora": corpora, "average": overall})
    return {"pairs": pairs}


def _checked(predictions: pandas.DataFrame, class_names: Sequence[str], model: str = "the model") -> pandas.DataFrame:
    """The table, with speakers named by their corpus too: those of two corpora are never the same person."""
    found = class_names_of(predictions)
    if set(found) != set(class_names):
        raise ValueError(f"{model} has the classes {', '.join(found)}; expected {', '.join(class_names)}")
    if predictions.empty:
        raise ValueError(f"{model} has classified no clips, so there is nothing to score")
    other = [name for name in (*predictions["reference"], *predictions["prediction"]) if name not in found]
    if other:
        raise ValueError(f"{other[0]!r} is none of the classes {', '.join(class_names)}")
    table, speakers = predictions.reset_index(drop=True), predictions["speaker"].to_numpy()
    return table.assign(speaker=(table["corpus"] + "/" + speakers).where(speakers != "", ""))


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
    drawn = _draw(name, rows, class_names)
    points, sampled = scores_of(drawn.whole[0]), scores_of(drawn.matrices[0])
    entry: dict[str, Any] = {"clips": len(rows), "speakers": drawn.speakers}
    for metric in METRICS:
        entry[metric], entry[f"{metric}_interval"] = defined(points[metric]), interval(sampled[metric], drawn.units)
    entry |= {"interval_by": drawn.by, "recall": {}, "recall_interval": {}}
    for index, class_name in enumerate(class_names):
        if np.isfinite(points["recall"][index]):
            entry["recall"][class_name] = float(points["recall"][index])
            of_class = interval(sampled["recall"][:, index], drawn.units_of_class[index])
            entry["recall_interval"][class_name] = of_class
    entry["ece"] = expected_calibration_error(*confidences(rows))
    for position, dimension in enumerate(DIMENSIONS if set(class_names) == set(SIX_CLASSES) else ()):
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
