"""Bootstrap intervals: how much the scores of a test set hang on the speakers, or clips, that happen to be in it.

Units (speakers or clips) are drawn with replacement from those of the test set, as many as there are, again and
again; every draw is scored, and the middle 95 % of the scores are the interval. A few units vary too little when they
are drawn from themselves: of simulated test sets with 20 speakers, the plain percentile interval holds the true UAR in
91 to 93 %, and so does BCa. So percentiles further out are taken, those that Student's t asks for: the "expanded
percentile" interval (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"), which holds it in 93 to 95 %
and stays within 0 and 1. Where all draws score the same, the interval is a point and tells nothing; close to that it is
too narrow: that of a class with a true recall of 0.97 holds it in 86 % of test sets with 20 speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, t

from exhubert.reports.tables import FEW_SPEAKERS

LEVEL = 0.95
RESAMPLES = 2000
AT_ONCE = 200  # resamples, which bounds the memory


class Resamples(NamedTuple):
    """The resamples of one test set whose clips have classes.

    Attributes:
        by: what was drawn: "speaker" or "clip"; None where a single clip leaves nothing to draw from.
        units: how many of them there are.
        speakers: how many known speakers there are.
        units_of_class: `(classes,)` int, how many units have the class.
        whole: `(systems, classes, classes)` float64, the confusion matrices of the test set itself.
        matrices: `(systems, RESAMPLES, classes, classes)` float64, those of the resamples; references are in rows.
    """

    by: str | None
    units: int
    speakers: int
    units_of_class: np.ndarray
    whole: np.ndarray
    matrices: np.ndarray


def resample(
    references: ArrayLike,
    predictions: Sequence[ArrayLike],
    speakers: Sequence[str],
    classes: int,
    seed: int | Sequence[int] = 0,
) -> Resamples:
    """Draws from a test set that one or several systems classified.

    Speakers are drawn with all their clips, since clips of one speaker are not independent. With fewer than five known
    speakers, of which there are too few different draws, or where most clips are of unknown speakers, clips are drawn.
    The unknown clips among known speakers are drawn one by one, beside the speakers.

    Args:
        references: `(clips,)` class numbers.
        predictions: `(systems, clips)` class numbers; every system gets the same draws.
        speakers: `(clips,)`, "" where unknown.
        classes: how many classes there are.
        seed: the same seed and clips give the same draws, in whatever order the clips come.
    """
    cells = np.stack([np.asarray(labels, dtype=np.int64) for labels in (references, *predictions)], axis=1)
    order, by, units, known, unit = _units(cells, speakers)
    cells, copies = cells[order], np.ones(unit[-1] + 1, dtype=np.int64)
    if by != "speaker":  # clips with the same classes are alike
        cells, copies = np.unique(cells, axis=0, return_counts=True)
        unit = np.arange(len(cells))

    systems = len(predictions)
    confusion = np.zeros((len(copies), systems, classes, classes))
    for system in range(systems):
        np.add.at(confusion[:, system], (unit, cells[:, 0], cells[:, 1 + system]), 1)
    having = copies @ (confusion[:, 0].sum(axis=-1) > 0)
    drawn = _drawn(confusion.reshape(len(copies), -1), copies, seed)
    matrices = drawn.reshape(RESAMPLES, systems, classes, classes).swapaxes(0, 1)
    whole = np.tensordot(copies, confusion, axes=1)
    return Resamples(by, units, known, np.minimum(having, units), whole, matrices)


class ValueResamples(NamedTuple):
    """The resamples of one test set whose clips have values of dimensions.

    Attributes:
        by, units, speakers: as of `Resamples`, over the clips that have a reference of any dimension.
        units_of_dimension: `(dimensions,)` int, how many units have a reference of it.
        sums: `(systems, RESAMPLES, dimensions, 7)` float64, sums over the clips with a reference: 1, x, y, x * x,
            y * y, x * y and (x - y) ** 2, where x is the reference and y the prediction, both less the mean of the
            references. They are all that CCC, Pearson and RMSE need.
    """

    by: str | None
    units: int
    speakers: int
    units_of_dimension: np.ndarray
    sums: np.ndarray


def resample_values(
    references: ArrayLike, predictions: ArrayLike, speakers: Sequence[str], seed: int | Sequence[int] = 0
) -> ValueResamples:
    """Draws from a test set as `resample`; all dimensions get the same draws, so that their mean can be scored.

    Args:
        references: `(clips, dimensions)`, NaN where there is none; one clip or more has one.
        predictions: `(systems, clips, dimensions)`; every system gets the same draws.
        speakers, seed: as for `resample`.
    """
    truth, answers = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
    annotated = np.isfinite(truth).any(axis=1)
    truth, answers = truth[annotated], answers[:, annotated]
    names = np.asarray(speakers, dtype=str)[annotated]
    order, by, units, known, unit = _units(np.hstack([truth, *answers]), names)
    truth, answers = truth[order], answers[:, order]
    present = np.isfinite(truth)
    centre = np.where(present, truth, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)  # else squares lose digits
    x, y = np.broadcast_to(truth - centre, answers.shape), answers - centre
    columns = [np.ones(y.shape), x, y, x * x, y * y, x * y, (x - y) ** 2]
    rows = np.where(present[..., None], np.stack(columns, axis=-1), 0.0)
    unit_rows = np.zeros((unit[-1] + 1, *rows[:, 0].shape))
    np.add.at(unit_rows, unit, rows.swapaxes(0, 1))
    having = np.minimum((unit_rows[:, 0, :, 0] > 0).sum(axis=0), units)
    drawn = _drawn(unit_rows.reshape(len(unit_rows), -1), np.ones(len(unit_rows), dtype=np.int64), seed)
    return ValueResamples(by, units, known, having, drawn.reshape(RESAMPLES, *unit_rows.shape[1:]).swapaxes(0, 1))


def _units(values: np.ndarray, speakers: Sequence[str]) -> tuple[np.ndarray, str | None, int, int, np.ndarray]:
    """What is drawn: the order of the clips, `by`, `units`, `speakers` of `Resamples`, and each clip's unit, in order.

    `values` `(clips, columns)` are what a clip is told by, so that the order that clips come in changes nothing.
    """
    names = np.asarray(speakers, dtype=str)
    order = np.lexsort((*values.T, names))
    names = names[order]
    known = len(set(names) - {""})
    if known >= FEW_SPEAKERS and 2 * (names != "").sum() >= len(names):
        begins = (names == "") | np.append(True, names[1:] != names[:-1])
        return order, "speaker", known, known, begins.cumsum() - 1
    return order, "clip" if len(names) > 1 else None, len(names), known, np.arange(len(names))


def _drawn(rows: np.ndarray, copies: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """Sums `(RESAMPLES, columns)` over units that are drawn from `rows` `(units, columns)`, with so many `copies`."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES // AT_ONCE):
        times = rng.multinomial(copies.sum(), copies / copies.sum(), size=AT_ONCE)
        drawn.append(times.astype(float) @ rows)
    return np.concatenate(drawn)


def interval(samples: ArrayLike, units: int | Sequence[int]) -> list[float] | None:
    """Returns the 95 % interval `[low, high]` of a score, or of its average over corpora.

    Args:
        samples: `(RESAMPLES,)` or `(corpora, RESAMPLES)`, drawn for each corpus independently. NaN is left out.
        units: how many units each corpus has. None is returned if one has fewer than two, without corpora, and where no
            sample is a number.
    """
    widened = _widening(samples, units)
    if widened is None:
        return None
    averages, freedom, factor = widened
    tail = norm.cdf(factor * t.ppf((1 - LEVEL) / 2, freedom))
    low, high = np.quantile(averages, [tail, 1 - tail])
    return [float(low), float(high)]


def p_value(samples: ArrayLike, units: int | Sequence[int]) -> float | None:
    """Returns the two-sided p of "the difference is zero"; arguments as for `interval`.

    It is the level at which the interval just reaches zero, so that p is below 0.05 where the 95 % interval excludes
    it: twice the share of resamples on zero's other side, on Student's scale as the interval is. Its smallest value
    depends on RESAMPLES and the units: about 0.005 with 20 units, 0.04 with five. It is not corrected for comparing
    many pairs.
    """
    widened = _widening(samples, units)
    if widened is None:
        return None
    averages, freedom, factor = widened
    beyond = min((averages <= 0).sum(), (averages >= 0).sum())
    score = norm.ppf((beyond + 1) / (len(averages) + 1))
    return min(1.0, float(2 * t.cdf(score / factor, freedom)))


def _widening(samples: ArrayLike, units: int | Sequence[int]) -> tuple[np.ndarray, float, float] | None:
    """The averages over corpora, their degrees of freedom, and by how much they vary too little.

    The variance over resamples is (n - 1) / n of the unbiased one. The degrees of freedom are Welch and
    Satterthwaite's: n - 1 for one corpus, more for several.
    """
    counts = np.atleast_1d(np.asarray(units, dtype=float))
    if not counts.size or counts.min() < 2:
        return None
    samples = np.atleast_2d(samples)
    samples = samples[:, np.isfinite(samples).all(axis=0)]
    if not samples.size:
        return None
    variances = samples.var(axis=1)
    if not variances.any():
        variances = np.ones_like(variances)
    unbiased = variances * counts / (counts - 1)
    freedom = unbiased.sum() ** 2 / (unbiased**2 / (counts - 1)).sum()
    return samples.mean(axis=0), float(freedom), float(np.sqrt(unbiased.sum() / variances.sum()))
