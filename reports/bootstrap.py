"""Confidence intervals of the UAR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000
MIN_SPEAKERS = 5


def uar_interval(
    references: Sequence[int], predictions: Sequence[int], speakers: Sequence[str], seed: int = 0
) -> list[float] | None:
    """Returns the 95 % percentile-bootstrap interval `[low, high]` of the UAR.

    Speakers are resampled, since clips of one speaker are not independent; with fewer than five speakers, of
    which there are too few different resamples, clips are. None if a single clip leaves nothing to resample. In a
    resample that lacks a class, UAR is over the classes that it has.
    """
    units = np.asarray(speakers)
    if len(set(speakers)) < MIN_SPEAKERS:
        units = np.arange(len(references))
    if len(units) < 2:
        return None
    _, unit = np.unique(units, return_inverse=True)
    classes = max(*references, *predictions) + 1
    confusion = np.zeros((unit.max() + 1, classes, classes))
    np.add.at(confusion, (unit, np.asarray(references), np.asarray(predictions)), 1)

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        matrix = confusion[drawn.astype(int)].sum(axis=-3)
        occurring = matrix.sum(axis=-1)
        hits = np.diagonal(matrix, axis1=-2, axis2=-1)
        recall = np.divide(hits, occurring, out=np.zeros_like(hits), where=occurring > 0)
        return recall.sum(axis=-1) / (occurring > 0).sum(axis=-1)

    result = bootstrap(
        (np.arange(len(confusion)),),
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]
