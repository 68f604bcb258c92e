"""Calibration error, reliability bins and temperature scaling.

python -m pytest tests/test_calibration.py
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from exhubert.evaluation.calibration import (
    clip_probabilities,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def test_calibration_error_and_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    confidences = np.append(rng.uniform(0.2, 1, size=500), [0.2, 1.0, 1 / 3])  # limits of bins as well
    correct = rng.random(len(confidences)) < confidences**2
    bins = reliability(confidences, correct)
    assert json.loads(json.dumps(bins)) == bins
    accuracy, confidence = calibration_curve(correct, confidences, n_bins=15)
    assert [each["accuracy"] for each in bins] == pytest.approx(accuracy)
    assert [each["confidence"] for each in bins] == pytest.approx(confidence)
    clips = [each["clips"] for each in bins]
    assert sum(clips) == len(confidences)
    assert all(each["low"] < each["confidence"] <= each["high"] for each in bins)
    expected = np.average(np.abs(accuracy - confidence), weights=clips)
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)
    assert expected_calibration_error([0.9] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.3)


def test_clip_probabilities_are_the_mean_over_windows():
    logits = np.array([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
    expected = [softmax(logits[:2] / 2, axis=1).mean(axis=0), softmax(logits[2] / 2)]
    assert clip_probabilities(logits, [0, 0, 1], 2.0) == pytest.approx(np.array(expected))


def test_temperature_undoes_overconfidence():
    """Answers are drawn from a model's probabilities, then its logits are made three times as large."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 4))
    references = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((3000, 1))).argmax(axis=1)
    windows = np.arange(3000)
    temperature = fit_temperature(3 * logits, windows, references)
    assert temperature == pytest.approx(3, rel=0.1)

    def calibration_error(temperature):
        probabilities = clip_probabilities(3 * logits, windows, temperature)
        return expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == references)

    assert calibration_error(temperature) < 0.03 < 0.2 < calibration_error(1.0)


def test_fitted_temperature_has_the_smallest_loss_of_clips_with_several_windows():
    rng = np.random.default_rng(1)
    references = rng.integers(3, size=60)
    clip_of_window = np.sort(np.append(np.arange(60), rng.integers(60, size=90)))
    logits = 4 * (rng.normal(size=(150, 3)) + np.eye(3)[references[clip_of_window]])

    def loss(temperature):
        return log_loss(references, clip_probabilities(logits, clip_of_window, temperature), labels=range(3))

    temperature = fit_temperature(logits, clip_of_window, references)
    assert 1 < temperature < 20
    assert loss(temperature) <= min(loss(each) for each in np.geomspace(0.05, 20, 200)) + 1e-9


def test_temperature_stays_within_its_limits_and_never_changes_the_class_of_a_window():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(200, 3)).astype(np.float32)
    logits[:50, 1] = np.nextafter(logits[:50, 0], np.float32(9))  # all but ties
    windows = np.arange(200)
    right = logits.argmax(axis=1)
    assert fit_temperature(logits, windows, right) == pytest.approx(0.05)
    assert fit_temperature(logits, windows, logits.argmin(axis=1)) == pytest.approx(20)
    for temperature in (0.05, 0.3, 1.0, 20):
        assert (clip_probabilities(logits, windows, temperature).argmax(axis=1) == right).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error([], []), "no clips"),
        (lambda: reliability([0.5, float("nan")], [True, False]), "nan; it must be a probability"),
        (lambda: fit_temperature(np.zeros((0, 3)), [], []), "give one or more windows"),
        (lambda: fit_temperature([[0.0, np.inf]], [0], [1]), r"window 0 \(clip 0\) are \[0.0, inf\]"),
        (lambda: fit_temperature([[0.0, 1.0]], [0], [0, 1]), "2 references for 1 clips"),
        (lambda: fit_temperature([[0.0, 1.0]], [0], [2]), "from 2 to 2; the model has 2 classes"),
        (lambda: clip_probabilities([[0.0, 1.0]], [1]), "clip 0 has no windows"),
        (lambda: clip_probabilities([[0.0, 1.0]], [0], 0.0), "temperature is 0.0; it must be above 0"),
    ],
)
def test_what_cannot_be_calibrated(call, message):
    with pytest.raises(ValueError, match=message):
        call()
