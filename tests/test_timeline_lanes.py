"""Timelines of segments and of channels: what is drawn where.

python -m pytest tests/test_timeline_lanes.py
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from exhubert.inference.summary import Names
from exhubert.inference.timeline import plot_lanes, segment_columns, speaker_rows
from test_summary import BOTH, DIMENSIONS, OWN, SIX, made_up_segments, made_up_windows, of_segments

SURE = {"label": "yes", "probabilities": {"yes": 0.9, "no": 0.1}, "uncertain": ""}
UNSURE = {"label": "no", "probabilities": {"yes": 0.2, "no": 0.8}, "uncertain": "short"}


def test_columns_are_the_segments_and_their_means_where_they_overlap():
    segments = [{"start": 1.0, "end": 3.0, **SURE}, {"start": 2.0, "end": 4.0, **UNSURE}]
    edges, values = segment_columns(segments, OWN, 5.0, None)
    assert edges.tolist() == [0, 1, 2, 3, 4, 5]
    expected = [[np.nan] * 2, [0.9, 0.1], [0.55, 0.45], [0.2, 0.8], [np.nan] * 2]
    np.testing.assert_allclose(values, expected)
    edges, values = segment_columns(segments, OWN, 5.0, 2.5)
    assert edges.tolist() == [0, 2.5, 5]
    np.testing.assert_allclose(values[:, 0], [(1.5 * 0.9 + 0.5 * 0.2) / 2, (0.5 * 0.9 + 1.5 * 0.2) / 2])


def test_speakers_have_a_row_each_and_those_who_say_little_one_together():
    segments = [{"start": k, "end": k + 1 + k, **SURE, "speaker": f"s{k}"} for k in range(9)]
    rows = [(name, len(own)) for name, own in reversed(speaker_rows(segments))]
    assert rows == [("s4", 1), ("s5", 1), ("s6", 1), ("s7", 1), ("s8", 1), ("4 others", 4)]
    assert [name for name, _ in speaker_rows([{**SURE, "start": 0, "end": 1}])] == ["speech"]


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_gaps_are_grey_and_uncertain_segments_hatched(tmp_path):
    segments = [{"start": 0.0, "end": 10.0, **SURE}, {"start": 20.0, "end": 30.0, **UNSURE}]
    plot_lanes(tmp_path / "clip.png", "clip", of_segments(segments), OWN.classes, seconds=30.0)
    pixels = pixels_of(tmp_path / "clip.png")
    grey = abs(pixels - 0xD0).sum(axis=2) < 6
    gap = np.flatnonzero(grey.sum(axis=0) > 0.2 * len(pixels))
    dark = abs(pixels - 0x40).sum(axis=2) < 12
    row = dark[np.argmax(dark.sum(axis=1))]  # through the row of speech
    width = len(gap)
    assert gap[-1] - gap[0] == width - 1 > 200
    before, within, after = (row[gap[0] + k * width + 10 : gap[-1] + k * width - 10].mean() for k in (-1, 0, 1))
    assert before > 0.95 and within == 0 and 0.02 < after < 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        *(("windows", BOTH), ("segments", SIX), ("segments", DIMENSIONS), ("speakers", OWN)),
        *(("silent", BOTH), ("ten hours", OWN)),
    ],
)
def test_every_kind_of_recording_has_a_lane_for_each_channel(tmp_path, kind, names):
    seconds = 36_000 if kind == "ten hours" else 40

    def channel(number):
        if kind == "windows":
            return {"channel": number, "windows": made_up_windows(seconds, names)}
        speakers = ["$A$", "\ud800B\n", "C" * 90, "田中"] if kind == "speakers" else ()
        segments = made_up_segments(seconds, names, number, speakers)
        return {"channel": number, **of_segments([] if kind == "silent" and number == 1 else segments)}

    heights = []
    for count in (2, 3):
        result = {"channels": [channel(number + 1) for number in range(count)]}
        plot_lanes(tmp_path / "clip.png", "$title$", result, names.classes, names.quadrant, names.dimensions)
        with Image.open(tmp_path / "clip.png") as picture:
            assert picture.width == 1500
            heights.append(picture.height)
    assert 1.15 * heights[0] < heights[1] < 3600


def test_the_time_axis_says_what_is_a_mean(tmp_path, monkeypatch):
    labels = []
    keep = lambda figure, path: labels.extend(panel.get_xlabel() for panel in figure.axes)  # noqa: E731
    monkeypatch.setattr("exhubert.inference.timeline.save_figure", keep)
    windows = {"windows": made_up_windows(900, OWN)}
    for result in (windows, {"channels": [{"channel": k, **windows} for k in (1, 2)]}):
        plot_lanes(tmp_path / "clip.png", "clip", result, OWN.classes)
    assert labels.count("minutes:seconds (each step is the mean of about 3 windows)") == 2


def test_a_file_of_very_many_channels_has_a_picture_of_some(tmp_path):
    result = {"channels": [{"channel": k + 1, **of_segments([{"start": 0, "end": 1, **SURE}])} for k in range(40)]}
    plot_lanes(tmp_path / "clip.png", "clip", result, *Names(["yes", "no"])[:2])
    with Image.open(tmp_path / "clip.png") as picture:
        assert picture.height < 6000
