"""Scores of continuous dimensions (arousal, valence, dominance, ...): CCC, Pearson and RMSE, with their intervals.

The concordance correlation coefficient (CCC; Lin 1989) is 1 only where predictions equal the references, and lower the
more they differ in mean or spread, which Pearson's correlation does not see. What is not defined is None:

- a clip without a reference of a dimension (NaN) is left out of that dimension;
- CCC and Pearson are not defined over fewer than two clips, or where all references are equal, which say nothing of a
  model; the corpus counts in no average of them;
- where all predictions are equal CCC is 0 and Pearson is not defined;
- RMSE is defined from one clip on, in the units of the scale that the model's values are shown on.

The values themselves are audmetric's; those of the resamples follow from sums over speakers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import audmetric
import numpy as np
import pandas
from numpy.typing import ArrayLike

from exhubert.evaluation.bootstrap import ValueResamples, interval, p_value, resample_values
from exhubert.evaluation.predictions import PREDICTED, REFERENCE, dimension_names_of

CONSTANT = 1e-12  # a variance below that share of the mean square is what rounding leaves of equal values


def value_scores(references: ArrayLike, predictions: ArrayLike) -> dict[str, float | None]:
    """Returns `ccc`, `pearson` and `rmse` of one dimension; None where one is not defined, see above.

    Args:
        references: `(clips,)`, NaN where there is none.
        predictions: `(clips,)`, on the same scale.
    """
    truth, answers = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
    present = np.isfinite(truth)
    truth, answers = truth[present], answers[present]
    varied = len(truth) > 1 and bool(np.ptp(truth))
    differing = varied and bool(np.ptp(answers))
    return {
        "ccc": audmetric.concordance_cc(truth, answers) if differing else 0.0 if varied else None,
        "pearson": audmetric.pearson_cc(truth, answers) if differing else None,
        "rmse": audmetric.mean_squared_error(truth, answers) ** 0.5 if len(truth) else None,
    }


def dimension_metrics(references: ArrayLike, predictions: ArrayLike, dimensions: Sequence[str]) -> dict[str, float]:
    """`Trainer`'s metrics of one corpus: `ccc_<dimension>` and their mean, `ccc`, without those that are not defined.

    Args:
        references: `(clips, dimensions)`, NaN where there is none.
        predictions: `(clips, dimensions)`, on the same scale.
        dimensions: their names.
    """
    columns = zip(dimensions, np.asarray(references).T, np.asarray(predictions).T, strict=True)
    cccs = {f"ccc_{name}": value_scores(truth, answers)["ccc"] for name, truth, answers in columns}
    found = {name: ccc for name, ccc in cccs.items() if ccc is not None}
    return found | ({"ccc": float(np.mean(list(found.values())))} if found else {})


def scores_of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `ccc`, `pearson` and `rmse`, each `(...)`, of the sums `(..., 7)` of `ValueResamples`; NaN for None."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y, square_x, square_y, product, error = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
        variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
        covariance = product - mean_x * mean_y
        varied = variance_x > CONSTANT * square_x
        ccc = 2 * covariance / (variance_x + variance_y + (mean_x - mean_y) ** 2)
        pearson = np.clip(covariance / np.sqrt(variance_x * variance_y), -1, 1)
    return {
        "ccc": np.where(varied, ccc, np.nan),
        "pearson": np.where(varied & (variance_y > CONSTANT * square_y), pearson, np.nan),
        "rmse": np.sqrt(error),
    }


class Sampled(NamedTuple):
    """A score or a difference of scores, `(RESAMPLES,)` of its resamples, and how many units these are drawn from."""

    value: float
    samples: np.ndarray
    units: int


def score_dimensions(name: str, rows: pandas.DataFrame) -> tuple[dict[str, Any], dict[str, Sampled]]:
    """Scores the dimensions of a corpus or a group, `rows` of a table of predictions, whose draws follow from `name`.

    Returns:
        `ccc`, the mean over the dimensions that have one, `ccc_interval`, and `dimensions`: of each the three scores
        with their intervals, `clips`, `speakers` and `interval_by`; and the CCC of each dimension that has one.
    """
    dimensions = dimension_names_of(rows)
    truth, answers = _values(rows, dimensions)
    drawn = _draw(name, rows, truth, [answers])
    entries: dict[str, dict[str, Any]] = {}
    cccs: dict[str, Sampled] = {}
    for number, dimension in enumerate(dimensions):
        entry = entries[dimension] = {}
        for metric, value in value_scores(truth[:, number], answers[:, number]).items():
            entry |= {metric: value, f"{metric}_interval": None}
            if drawn is not None and value is not None:
                samples = scores_of_sums(drawn.sums[0, :, number])[metric]
                sampled = Sampled(value, samples, int(drawn.units_of_dimension[number]))
                entry[f"{metric}_interval"] = interval(samples, sampled.units)
                if metric == "ccc":
                    cccs[dimension] = sampled
        present = np.isfinite(truth[:, number])
        speakers = set(rows["speaker"].to_numpy()[present]) - {""}
        entry |= {"clips": int(present.sum()), "speakers": len(speakers), "interval_by": drawn.by if drawn else None}
    return {**_summary([mean_of(cccs)] if cccs else []), "dimensions": entries}, cccs


def mean_of(cccs: Mapping[str, Sampled]) -> Sampled:
    """The mean over the dimensions of a corpus, which have the same draws."""
    values, samples, units = zip(*cccs.values(), strict=True)
    return Sampled(float(np.mean(values)), np.mean(samples, axis=0), min(units))


def average_dimensions(scored: Mapping[str, tuple[dict[str, Any], dict[str, Sampled]]]) -> dict[str, Any]:
    """Returns what `average` in `results.json` has of dimensions: the means over the corpora, each counting the same.

    These are `ccc` and `ccc_interval`, over the corpora's means, and for each of the `dimensions` the same with
    `pearson` and `rmse`. A corpus where a score is not defined is left out; `without_ccc` names those without any CCC.

    Args:
        scored: corpus -> what `score_dimensions` returned of it.
    """
    entries, cccs = [entry for entry, _ in scored.values()], [known for _, known in scored.values()]
    found: dict[str, Any] = {**_summary([mean_of(each) for each in cccs if each]), "dimensions": {}}
    for dimension in entries[0]["dimensions"]:
        found["dimensions"][dimension] = _summary([each[dimension] for each in cccs if dimension in each])
        for metric in ("pearson", "rmse"):
            values = [entry["dimensions"][dimension][metric] for entry in entries]
            known = [value for value in values if value is not None]
            found["dimensions"][dimension][metric] = float(np.mean(known)) if known else None
    without = [corpus for corpus, (entry, _) in scored.items() if entry["ccc"] is None]
    return found | ({"without_ccc": without} if without else {})


def compare_dimensions(a: pandas.DataFrame, b: pandas.DataFrame, dimensions: Sequence[str]) -> dict[str, Any]:
    """Returns the `ccc` entry of a pair in `comparison.json`: the CCC of `b` minus that of `a`, of the same draws.

    The tables have the same clips in the same order with the same references. Each of the `corpora` that has a CCC,
    and the `average`, has `difference`, `interval` and `p` of the mean over the dimensions, and of each of the
    `dimensions`.
    """
    corpora: dict[str, Any] = {}
    differences: list[dict[str, Sampled]] = []
    for corpus, rows in a.groupby("corpus", sort=False):
        truth, before = _values(rows, dimensions)
        after = _values(b.loc[rows.index], dimensions)[1]
        drawn = _draw(str(corpus), rows, truth, [before, after])
        found: dict[str, Sampled] = {}
        for number, dimension in enumerate(dimensions):
            ends = [value_scores(truth[:, number], answers[:, number])["ccc"] for answers in (before, after)]
            if drawn is not None and ends[0] is not None and ends[1] is not None:
                first, second = scores_of_sums(drawn.sums[:, :, number])["ccc"]
                units = int(drawn.units_of_dimension[number])
                found[dimension] = Sampled(ends[1] - ends[0], second - first, units)
        if drawn is not None and found:
            differences.append(found)
            corpora[str(corpus)] = {
                **_difference([mean_of(found)]),
                "interval_by": drawn.by,
                "clips": int(np.isfinite(truth).any(axis=1).sum()),
                "dimensions": {dimension: _difference([sampled]) for dimension, sampled in found.items()},
            }
    average = _difference([mean_of(found) for found in differences])
    average["dimensions"] = {
        dimension: _difference([found[dimension] for found in differences if dimension in found])
        for dimension in dimensions
    }
    return {"corpora": corpora, "average": average}


def _summary(of_corpora: Sequence[Sampled]) -> dict[str, Any]:
    """The mean over corpora, whose draws are independent."""
    value = float(np.mean([each.value for each in of_corpora])) if of_corpora else None
    samples, units = [each.samples for each in of_corpora], [each.units for each in of_corpora]
    return {"ccc": value, "ccc_interval": interval(samples, units)}


def _difference(of_corpora: Sequence[Sampled]) -> dict[str, Any]:
    """The mean difference over corpora, and how surely it is not zero."""
    found = _summary(of_corpora)
    p = p_value([each.samples for each in of_corpora], [each.units for each in of_corpora])
    return {"difference": found["ccc"], "interval": found["ccc_interval"], "p": p}


def _values(rows: pandas.DataFrame, dimensions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The references, NaN where there is none, and the predictions of a table, each `(clips, dimensions)`."""
    truth, answers = (
        rows[[prefix + name for name in dimensions]].to_numpy(dtype=float) for prefix in (REFERENCE, PREDICTED)
    )
    return truth, answers


def _draw(
    name: str, rows: pandas.DataFrame, references: np.ndarray, predictions: Sequence[np.ndarray]
) -> ValueResamples | None:
    """The resamples of a corpus or a group, as those of its classes; None where no clip has a reference."""
    if not np.isfinite(references).any():
        return None
    return resample_values(references, predictions, rows["speaker"].tolist(), zlib.crc32(name.encode()))
