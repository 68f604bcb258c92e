"""Intervals, tables and pictures.

python -m pytest tests/test_reports.py
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from exhubert.reports.bootstrap import uar_interval
from exhubert.reports.plots import plot_confusion, plot_curves
from exhubert.reports.tables import uar_table


def test_interval_holds_the_uar_and_shrinks_with_more_clips():
    rng = np.random.default_rng(0)
    widths = []
    for clips in (40, 400):
        references = np.arange(clips) % 2
        predictions = np.where(rng.random(clips) < 0.8, references, 1 - references)
        uar = np.mean([(predictions[references == label] == label).mean() for label in (0, 1)])
        low, high = uar_interval(references.tolist(), predictions.tolist(), ["one"] * clips)
        assert 0 <= low < uar < high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_speakers_who_differ_make_the_interval_wider_than_clips_alone():
    """Half of the speakers are always recognised, the others never: what matters is which speakers were drawn."""
    speakers = [f"s{number // 20}" for number in range(200)]
    references = [number % 2 for number in range(200)]
    predictions = [r if number // 20 % 2 else 1 - r for number, r in enumerate(references)]
    by_speaker = np.diff(uar_interval(references, predictions, speakers))
    by_clip = np.diff(uar_interval(references, predictions, ["one"] * 200))
    assert by_speaker > 2 * by_clip


def test_the_interval_is_the_same_each_time_and_none_for_one_clip():
    arguments = ([0, 1, 0, 1, 2], [0, 1, 1, 1, 0], list("abcde"))
    assert uar_interval(*arguments) == uar_interval(*arguments)
    assert uar_interval([0], [0], ["a"]) is None


def test_table_of_systems_and_corpora():
    table = uar_table({"before": {"emodb": 0.25}, "after": {"emodb": 0.5, "nemo": 0.625}})
    assert table.splitlines() == [
        "| UAR in % | before | after |",
        "|----------|-------:|------:|",
        "| emodb    |   25.0 |  50.0 |",
        "| nemo     |      - |  62.5 |",
        "| average  |      - |  56.2 |",
    ]


def test_pictures_are_written(tmp_path):
    plot_confusion(tmp_path / "c.png", [0, 0, 1, 2], [0, 1, 1, 1], ["a", "b", "c"], "title")
    plot_curves(tmp_path / "u.png", {"emodb": [(1, 0.2), (2, 0.4)], "average": [(1, 0.2), (2, 0.4)]}, "title")
    for name in ("c.png", "u.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10  # something is drawn


@pytest.mark.parametrize("absent", [0, 2])
def test_a_class_that_never_occurs_has_no_recall_in_the_interval(absent):
    present = [label for label in range(3) if label != absent]
    references = [present[number % 2] for number in range(50)]
    assert uar_interval(references, references, ["one"] * 50) == [1.0, 1.0]
