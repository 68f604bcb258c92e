"""Calibration: how far a model's confidence is the share of its answers that are right, and temperature scaling.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", sections 2 and 4.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15
TEMPERATURES = (0.05, 20.0)  # beyond these, every answer is all but certain, or all but a guess


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike) -> float:
    """Returns the expected calibration error (ECE), from 0 to 1.

    It is the mean over clips of the distance between a bin's mean confidence and its accuracy, with bins of equal
    width as in `reliability`. With few clips in a bin that distance is mostly chance, and never averages to zero.

    Args:
        confidences: `(clips,)`, the probability of the predicted class, from 0 to 1.
        correct: `(clips,)`, whether the prediction is right.

    Raises:
        ValueError: if there are no clips, or a confidence is not from 0 to 1.
    """
    filled = reliability(confidences, correct)
    clips = sum(each["clips"] for each in filled)
    return sum(each["clips"] * abs(each["accuracy"] - each["confidence"]) for each in filled) / clips


def reliability(confidences: ArrayLike, correct: ArrayLike) -> list[dict[str, float]]:
    """Returns the bars of a reliability diagram: bins of equal width that have clips, in order.

    Each has `low` and `high`, its limits, of which it includes the upper, `clips`, and these clips' mean `confidence`
    and `accuracy`. Arguments and errors are those of `expected_calibration_error`.
    """
    confidence, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    if not len(confidence):
        raise ValueError("there are no clips whose calibration could be measured")
    odd = confidence[~((confidence >= 0) & (confidence <= 1 + 1e-6))]  # NaN as well
    if len(odd):
        raise ValueError(f"a confidence is {odd[0]}; it must be a probability, from 0 to 1")
    limits = np.linspace(0, 1, BINS + 1)
    bin_of_clip = np.searchsorted(limits[1:-1], confidence)
    filled = []
    for index in np.unique(bin_of_clip):
        chosen = bin_of_clip == index
        filled.append(
            {
                "low": float(limits[index]),
                "high": float(limits[index + 1]),
                "clips": int(chosen.sum()),
                "confidence": float(confidence[chosen].mean()),
                "accuracy": float(right[chosen].mean()),
            }
        )
    return filled


def clip_probabilities(logits: ArrayLike, clip_of_window: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Returns the probabilities of clips: the mean over a clip's windows of softmax(logits / temperature).

    A temperature leaves the class of a clip of one window as it is; one of several windows may get another.

    Args:
        logits: `(windows, classes)`.
        clip_of_window: `(windows,)`, the number of each window's clip, from 0; each clip has a window.
        temperature: above 0; above 1 makes the model less sure.

    Returns:
        `(clips, classes)` float64.

    Raises:
        ValueError: if there are no clips, a clip has no windows, logits are not finite, or the temperature is not
            above 0.
    """
    values, clips, windows = _checked(logits, clip_of_window)
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    sums = np.zeros((len(windows), values.shape[1]))
    np.add.at(sums, clips, softmax(values / temperature, axis=1))
    return sums / windows[:, None]


def fit_temperature(logits: ArrayLike, clip_of_window: ArrayLike, references: ArrayLike) -> float:
    """Returns the temperature with which `clip_probabilities` give the references the largest likelihood.

    It is between 0.05 and 20. A limit itself is returned where the likelihood has no peak: of a model that is never
    wrong on these clips (0.05), or that knows nothing of them (20).

    Args:
        logits: `(windows, classes)`.
        clip_of_window: `(windows,)`, the number of each window's clip, from 0; each clip has a window.
        references: `(clips,)` class numbers.

    Raises:
        ValueError: if there are no clips, a clip has no windows or no reference, or logits are not finite.
    """
    values, clips, windows = _checked(logits, clip_of_window)
    labels = np.asarray(references, dtype=np.int64)
    if len(labels) != len(windows):
        raise ValueError(f"there are {len(labels)} references for {len(windows)} clips")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(
            f"references are from {labels.min()} to {labels.max()}; the model has {values.shape[1]} classes"
        )
    rows, label_of_window = np.arange(len(values)), labels[clips]

    def negative_log_likelihood(log_temperature: float) -> float:
        likelihood = np.full(len(windows), -np.inf)
        np.logaddexp.at(likelihood, clips, log_softmax(values / np.exp(log_temperature), axis=1)[rows, label_of_window])
        return float(np.mean(np.log(windows) - likelihood))

    low, high = np.log(TEMPERATURES)
    found = float(minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded").x)
    return float(np.exp(min((low, found, high), key=negative_log_likelihood)))


def _checked(logits: ArrayLike, clip_of_window: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits as float64, clip numbers, and the number of windows of each clip."""
    values, clips = np.asarray(logits, dtype=np.float64), np.asarray(clip_of_window, dtype=np.int64)
    if not len(values) or len(values) != len(clips):
        raise ValueError(f"there are {len(values)} windows' logits for {len(clips)} windows; give one or more windows")
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).any(axis=1).argmax())
        raise ValueError(
            f"the logits of window {row} (clip {clips[row]}) are {values[row].tolist()}: the model is broken"
        )
    windows = np.bincount(clips)
    if not windows.all():
        raise ValueError(f"clip {int((windows == 0).argmax())} has no windows; clips are numbered from 0 without gaps")
    return values, clips, windows
