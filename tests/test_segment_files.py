"""Files of segments, each read back by something else than what wrote it, with texts that could break it.

python -m pytest tests/test_segment_files.py
"""

from __future__ import annotations

import csv
import html
import os
import re
import sys

import pytest
import webvtt
from praatio import textgrid

from exhubert.inference.segment_files import STYLES, check_styles, write_segments
from exhubert.inference.turn_files import read_turns
from exhubert.segments_exhubert import Turn

EVIL = 'a<b>&\n\n2\t"-->{\\an8}\x1b\r\n00:01 --> 00:02\udce9'
SAFE = 'a<b>& 2 "-->{\\an8} 00:01 --> 00:02'


def segment(start, end, label="low/neutral", probability=0.75, uncertain="", **more):
    probabilities = {label: probability, "other": 1 - probability}
    answer = {"label": label, "probabilities": probabilities, "arousal": -0.25, "valence": 0.5}
    return {"start": start, "end": end, **answer, "uncertain": uncertain, **more}


PLAIN = {"segments": [segment(0.032, 1.5), segment(1.5, 3723.0625, "high/negative", 0.456, "low probability")]}
CHANNELS = {
    "channels": [
        {"channel": 1, "segments": [segment(1.0, 2.0, speaker="anna"), segment(4.0, 5.0, speaker="anna")]},
        {"channel": 2, "segments": [segment(0.5, 4.5, uncertain="short"), segment(4.25, 5.0), segment(4.6, 4.8)]},
    ]
}
HOSTILE = {"segments": [segment(0.0, 1.0, EVIL, speaker=EVIL), segment(2.0, 3.0, "=1+1", speaker="=SUM(A1)")]}
NOBODY: dict = {"segments": []}
OF_CHANNELS = [
    (0.5, 4.5, "channel 2: low/neutral 0.75 ?"),
    (1.0, 2.0, "channel 1, anna: low/neutral 0.75"),
    (4.0, 5.0, "channel 1, anna: low/neutral 0.75"),
    (4.25, 5.0, "channel 2: low/neutral 0.75"),
    (4.6, 4.8, "channel 2: low/neutral 0.75"),
]
OF_HOSTILE = [(0.0, 1.0, f"{SAFE}: {SAFE} 0.75"), (2.0, 3.0, "=SUM(A1): =1+1 0.75")]
EXPECTED = [
    (PLAIN, [(0.032, 1.5, "low/neutral 0.75"), (1.5, 3723.062, "high/negative 0.46 ?")]),
    (CHANNELS, OF_CHANNELS),
    (HOSTILE, OF_HOSTILE),
    (NOBODY, []),
]


@pytest.fixture
def written(tmp_path):
    def write(style, result, **more):
        path = tmp_path / "new" / f"clip.wav{STYLES[style]}"
        write_segments(path, style, "clip.wav", result, 4000.0, **more)
        return path.read_text(encoding="utf-8")

    return write


def seconds(clock: str) -> float:
    hours, minutes, rest = re.split(":", clock)
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def cues(text: str, mark: str, numbered: bool) -> list:
    """Cues of blocks between empty lines, by the specification: times in full, the text one line."""
    found = []
    for number, block in enumerate(filter(None, re.split(r"\n\n+", text.strip("\n"))), start=1):
        lines = block.split("\n")
        assert not numbered or lines.pop(0) == str(number)
        times, content = lines
        clock = rf"(\d\d+:[0-5]\d:[0-5]\d\{mark}\d\d\d)"
        start, end = re.fullmatch(f"{clock} --> {clock}", times).groups()
        found.append((seconds(start), seconds(end), content))
    return found


@pytest.mark.parametrize(("result", "expected"), EXPECTED)
def test_webvtt(written, result, expected):
    text = written("vtt", result)
    header, _, body = text.partition("\n")
    assert header == "WEBVTT"
    found = cues(body, ".", numbered=False)
    assert not [content for *_, content in found if re.search("[<>]|&(?!amp;|lt;|gt;)", content)]
    assert [(start, end, html.unescape(content)) for start, end, content in found] == expected
    assert len(webvtt.from_string(text, strict=True)) == len(expected)


@pytest.mark.parametrize(("result", "expected"), EXPECTED)
def test_srt_without_what_players_take_for_markup(written, result, expected):
    shown = [(start, end, content.translate(str.maketrans("<>{}", "[]()"))) for start, end, content in expected]
    assert cues(written("srt", result), ",", numbered=True) == shown


@pytest.mark.parametrize("style", ["vtt", "srt"])
@pytest.mark.parametrize(("result", "expected"), EXPECTED[:3])
def test_ffmpeg_reads_captions(written, tmp_path, style, result, expected):
    av = pytest.importorskip("av")
    written(style, result)
    with av.open(str(tmp_path / "new" / f"clip.wav.{style}")) as container:
        assert container.streams[0].codec_context.name == {"vtt": "webvtt", "srt": "srt"}[style]
        found = [packet for packet in container.demux() if packet.size]
    times = [(packet.pts * packet.time_base, (packet.pts + packet.duration) * packet.time_base) for packet in found]
    assert times == [(pytest.approx(start), pytest.approx(end)) for start, end, _ in expected]
    assert [len(bytes(packet).decode().splitlines()) for packet in found] == [1] * len(expected)


@pytest.mark.parametrize(("result", "expected"), EXPECTED)
def test_audacity_labels(written, tmp_path, result, expected):
    lines = [line.split("\t") for line in written("audacity", result).splitlines()]
    assert [(float(start), float(end), text) for start, end, text in lines] == [
        (start, pytest.approx(end, abs=1e-3), text) for start, end, text in expected
    ]
    assert all(re.fullmatch(r"\d+\.\d{6}", time) for *times, _ in lines for time in times)
    turns = read_turns(tmp_path / "new" / "clip.wav.txt").get(None, [])
    assert [turn.speaker for turn in turns] == [text for *_, text in expected]


def test_textgrids_have_a_tier_for_each_who_speaks_and_for_what_overlaps(written, tmp_path):
    written("textgrid", CHANNELS)
    path = tmp_path / "new" / "clip.wav.TextGrid"
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    assert {name: [tuple(entry) for entry in grid.getTier(name).entries] for name in grid.tierNames} == {
        "channel 2": [(0.5, 4.5, "low/neutral 0.75 ?"), (4.6, 4.8, "low/neutral 0.75")],
        "channel 1, anna": [(1.0, 2.0, "low/neutral 0.75"), (4.0, 5.0, "low/neutral 0.75")],
        "channel 2 (2)": [(4.25, 5.0, "low/neutral 0.75")],
    }
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, 4000)
    assert read_turns(path)[None][:2] == [Turn(0.5, 4.5, "channel 2"), Turn(4.6, 4.8, "channel 2")]
    written("textgrid", HOSTILE)
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    assert grid.tierNames == (SAFE, "=SUM(A1)")
    assert [entry.label for name in grid.tierNames for entry in grid.getTier(name).entries] == [
        *(f"{SAFE} 0.75", "=1+1 0.75"),
    ]
    written("textgrid", NOBODY)
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
    assert [tuple(entry) for entry in grid.getTier("emotion").entries] == [(0.0, 4000.0, "")]


def test_segments_of_a_sample_are_read_back(written, tmp_path):
    """Times that Python would write with an exponent; and the last sample of a recording."""
    written("textgrid", {"segments": [segment(0.0, 1 / 16_000), segment(1 / 16_000, 2 / 16_000)]})
    path = tmp_path / "new" / "clip.wav.TextGrid"
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    assert [entry.label for entry in grid.getTier("emotion").entries] == ["low/neutral 0.75"] * 2
    end = 32_003 / 16_000
    write_segments(path, "textgrid", "clip.wav", {"segments": [segment(2.000156, end)]}, end)
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    assert len(grid.getTier("emotion").entries) == 1


def test_elan_gets_annotations_that_do_not_overlap_on_a_tier(written):
    header, *lines = [line.split("\t") for line in written("elan", CHANNELS).splitlines()]
    assert header == ["Tier", "Begin Time", "End Time", "Annotation"]
    assert ["channel 1, anna", "00:00:01.000", "00:00:02.000", "low/neutral 0.75"] in lines
    for tier in {line[0] for line in lines}:
        times = [seconds(time) for name, *times, _ in lines if name == tier for time in times]
        assert times == sorted(times)
    assert len(lines) == 5
    _, *lines = [line.split("\t") for line in written("elan", HOSTILE).splitlines()]
    assert [line[0] for line in lines] == [SAFE, "=SUM(A1)"]


def test_csv_is_turns_again_and_no_cell_is_a_formula(written, tmp_path):
    rows = list(csv.DictReader(written("csv", CHANNELS).splitlines()))
    first = {"file": "clip.wav", "channel": "2", "start": "0.5", "duration": "4.0", "speaker": ""}
    first |= {"label": "low/neutral", "probability": "0.75", "arousal": "-0.25", "valence": "0.5"}
    assert rows[0] == first | {"uncertain": "short"}
    turns = read_turns(tmp_path / "new" / "clip.wav.csv")["clip.wav"]
    assert turns[:2] == [Turn(0.5, 4.5, None, 2), Turn(1.0, 2.0, "anna", 1)]
    rows = list(csv.reader(written("csv", HOSTILE).splitlines()))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]
    assert [row[4] for row in rows[1:]] == [SAFE, "'=SUM(A1)"]


def test_dimensions_alone(written):
    answer = {"dimensions": {"arousal": 4.25, "valence": 3.0}, "uncertain": "short"}
    result = {"segments": [{"start": 0.0, "end": 0.25, **answer}]}
    assert written("audacity", result) == "0.000000\t0.250000\tarousal 4.25, valence 3.00 ?\n"
    (row,) = csv.DictReader(written("csv", result, dimensions=["arousal", "valence"]).splitlines())
    assert (row["label"], row["dimension_arousal"], row["uncertain"]) == ("", "4.25", "short")


@pytest.mark.parametrize("style", STYLES)
def test_what_is_there_stays_where_a_file_cannot_be_written(tmp_path, monkeypatch, style):
    path = tmp_path / f"clip{STYLES[style]}"
    path.write_text("before")

    def no_room(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", no_room)
    with pytest.raises(OSError, match="no space"):
        write_segments(path, style, "clip", PLAIN, 4000.0)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "webvtt", None)
    check_styles(["csv", "audacity", "elan"])
    with pytest.raises(ImportError, match="pip install webvtt-py praatio"):
        check_styles(["csv", "vtt"])
