"""The summary of a recording: its numbers against a plain computation, what it says of them, hostile names.

python -m pytest tests/test_summary.py
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from conftest import make_classifier
from exhubert.cli import main
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.inference.summary import Names, write_summary
from exhubert.model_folder import save_model_folder
from exhubert.pipeline_exhubert import quadrant_of

SIX = Names(list(SIX_CLASSES), ("arousal", "valence"))
BOTH = SIX._replace(dimensions={"arousal": (1, 7), "loud": (-60, 0)})
DIMENSIONS = BOTH._replace(classes=[], quadrant=())
OWN = Names(["yes", "no"])


def made_up_answer(generator, names):
    answer = {}
    if names.classes:
        values = generator.dirichlet(np.full(len(names.classes), 0.5)).tolist()
        probabilities = dict(zip(names.classes, values, strict=True))
        answer = {"label": max(probabilities, key=probabilities.get), "probabilities": probabilities}
        answer |= quadrant_of(probabilities)
    if names.dimensions:
        answer["dimensions"] = {name: generator.uniform(*scale) for name, scale in names.dimensions.items()}
    return answer


def made_up_segments(seconds, names, seed=0, speakers=(), overlapping=False):
    """Segments of 0.2 to 8 s, with pauses, or some of them at once."""
    generator, segments, time = np.random.default_rng(seed), [], 0.7
    while time < seconds - 10:
        end = time + generator.uniform(0.2, 8.0)
        segment = {"start": time, "end": end, **made_up_answer(generator, names)}
        if speakers:
            segment["speaker"] = str(generator.choice(speakers))
        marks = ["short"] * (end - time < 0.5)
        marks += ["low probability"] * (max(segment.get("probabilities", {"": 1.0}).values()) < 0.5)
        segments.append({**segment, "uncertain": ", ".join(marks)})
        time = end + (generator.uniform(-2, 1) if overlapping else generator.uniform(0.1, 6))
    return sorted(segments, key=lambda segment: segment["start"])


def of_segments(segments):
    return {"label": None, "segments": segments, "windows": []}


def made_up_windows(seconds, names, silent=()):
    """Windows of 3 s every 1.5 s; between the two times of `silent` there is no speech."""
    generator, windows, start = np.random.default_rng(1), [], 0.0
    while True:
        answer = made_up_answer(generator, names)
        if silent:
            speech = not silent[0] <= start < silent[1]
            answer = {"speech": float(speech), **(answer if speech else dict.fromkeys(answer))}
        windows.append({"start": start, "end": min(start + 3.0, seconds), **answer})
        if start + 3.0 >= seconds:
            return windows
        start += 1.5


def summary(folder, result, names, **options):
    """The rows of CSV by over, part, channel, speaker, start, end and counted; the text."""
    write_summary(folder / "call.summary", "call.wav", "model", result, names, **options)
    assert (folder / "call.summary.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "call.summary.csv").read_text(encoding="utf-8").splitlines()))
    keys = ("over", "part", "channel", "speaker", "start", "end", "counted")
    by_place = {tuple(row[key] for key in keys): row for row in rows}
    assert len(by_place) == len(rows)
    return by_place, (folder / "call.summary.md").read_text(encoding="utf-8")


def plain(pieces, start, end, names):
    """What a row must hold, summed millisecond by millisecond where that is plainer than a formula.

    Pieces are (start, end, answer, uncertain).
    """
    shares, means, total, unsure, count = dict.fromkeys(names.classes, 0.0), {}, 0.0, 0.0, 0
    covered = np.zeros(round((end - start) * 1000), bool)
    for piece_start, piece_end, answer, uncertain in pieces:
        low, high = max(piece_start, start), min(piece_end, end)
        if high <= low:
            continue
        count, total, unsure = count + 1, total + high - low, unsure + uncertain * (high - low)
        covered[round((low - start) * 1000) : round((high - start) * 1000)] = True
        if names.classes:
            shares[answer["label"]] += high - low
        values = {f"probability_{name}": value for name, value in answer.get("probabilities", {}).items()}
        values |= {name: answer[name] for name in names.quadrant}
        values |= {f"dimension_{name}": value for name, value in answer.get("dimensions", {}).items()}
        for name, value in values.items():
            means[name] = means.get(name, 0.0) + value * (high - low)
    expected = {f"share_{name}": seconds / total for name, seconds in shares.items() if total}
    expected |= {name: value / total for name, value in means.items()}
    return {"speech_seconds": covered.sum() / 1000, "uncertain_seconds": unsure, "pieces": count, **expected}


def assert_row(row, expected):
    for name, value in expected.items():
        tolerance = 0.1 if name == "speech_seconds" else 1e-5
        assert float(row["segments" if name == "pieces" else name]) == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("names", [SIX, BOTH, DIMENSIONS, OWN], ids=["six", "both", "dimensions", "own"])
def test_numbers_are_those_of_a_plain_computation(tmp_path, names):
    """Two channels with speakers, also at once: whole, each minute, each channel, each speaker, with and without."""
    channels = {
        1: made_up_segments(200, names, 1, ["A", "B"], overlapping=True),
        2: made_up_segments(200, names, 2),
    }
    result = {"channels": [{"channel": number, **of_segments(each)} for number, each in channels.items()]}
    rows, _ = summary(tmp_path, result, names, seconds=200.0)
    pieces = {
        number: [(each["start"], each["end"], each, bool(each["uncertain"])) for each in segments]
        for number, segments in channels.items()
    }
    parts = {("recording", "", ""): [*pieces[1], *pieces[2]]}
    parts |= {("channel", str(number), ""): own for number, own in pieces.items()}
    parts |= {("speaker", "1", name): [each for each in pieces[1] if each[2]["speaker"] == name] for name in "AB"}
    parts |= {("speaker", "2", ""): pieces[2]}
    spans = [(0, 200), (0, 60), (60, 120), (120, 180), (180, 200)]
    assert len(rows) == len(parts) * len(spans) * 2
    for part, own in parts.items():
        for start, end in spans:
            over = "whole" if end - start == 200 else "minute"
            place = (over, *part, f"{start:.1f}", f"{end:.1f}")
            assert_row(rows[(*place, "all")], plain(own, start, end, names))
            certain = [each for each in own if not each[3]]
            assert_row(rows[(*place, "certain")], plain(certain, start, end, names))


def test_a_segment_over_two_minutes_counts_in_each(tmp_path):
    sure = {"probabilities": {"yes": 0.9, "no": 0.1}, "label": "yes", "uncertain": ""}
    unsure = {"probabilities": {"yes": 0.4, "no": 0.6}, "label": "no", "uncertain": "short"}
    segments = [{"start": 50.0, "end": 70.0, **sure}, {"start": 80.0, "end": 90.0, **unsure}]
    rows, text = summary(tmp_path, of_segments(segments), OWN, seconds=121.0)
    first, second, third = (
        rows[("minute", "recording", "", "", f"{start:.1f}", f"{end:.1f}", "all")]
        for start, end in ((0, 60), (60, 120), (120, 121))
    )
    assert (first["speech_seconds"], first["segments"], first["share_yes"]) == ("10.0", "1", "1.0")
    assert (second["speech_seconds"], second["segments"], second["uncertain_segments"]) == ("20.0", "2", "1")
    assert (second["share_yes"], second["probability_yes"], second["label"]) == ("0.5", "0.65", "yes")
    assert (third["speech_seconds"], third["segments"], third["label"], third["share_yes"]) == ("0.0", "0", "", "")
    assert "0:02:01 of audio, 0:00:30 (25 %) of it speech, in 2 segments." in text
    assert "1 of 2, 0:00:10" in text
    certain = rows[("minute", "recording", "", "", "60.0", "120.0", "certain")]
    assert (certain["probability_yes"], certain["segments"], certain["uncertain_seconds"]) == ("0.9", "1", "0.0")


def test_windows_stand_for_the_time_around_their_middle(tmp_path):
    """From 0 to 2.25, 3.75, 5.1 and 7.2 s: the last window, from 4.5 to 7.2 s, is shorter."""
    windows = made_up_windows(7.2, SIX)
    rows, text = summary(tmp_path, {"windows": windows}, SIX)
    row = rows[("whole", "recording", "", "", "0.0", "7.2", "all")]
    edges = [0, 2.25, 3.75, (4.5 + 5.85) / 2, 7.2]
    weights = np.diff(edges)
    assert len(windows) == len(weights)
    for name in SIX.classes:
        expected = weights @ [window["probabilities"][name] for window in windows] / 7.2
        assert float(row[f"probability_{name}"]) == pytest.approx(expected, abs=1e-5)
    assert row["speech_seconds"] == "" and " speech" not in text.split("## Parts")[0]
    unsure = weights @ [max(window["probabilities"].values()) < 0.5 for window in windows]
    assert float(row["uncertain_seconds"]) == pytest.approx(unsure, abs=1e-5)


def test_windows_without_speech_have_no_part(tmp_path):
    windows = made_up_windows(180, SIX, silent=(60, 120))
    rows, text = summary(tmp_path, {"windows": windows}, SIX)
    row = rows[("whole", "recording", "", "", "0.0", "180.0", "all")]
    heard = [window for window in windows if window["label"] is not None]
    assert row["windows"] == str(len(heard))
    assert float(row["speech_seconds"]) == pytest.approx(120.0, abs=1.5)
    assert rows[("minute", "recording", "", "", "0.0", "60.0", "all")]["windows"] != "0"
    assert float(rows[("minute", "recording", "", "", "60.0", "120.0", "all")]["speech_seconds"]) < 1.5
    assert "(67 %) of it speech" in text


def test_a_recording_without_speech_says_so(tmp_path):
    rows, text = summary(tmp_path, of_segments([]), SIX, seconds=75.0)
    assert "0:01:15 of audio. No speech was found in it." in text and "##" not in text
    assert {row["segments"] for row in rows.values()} == {"0"} and {row["label"] for row in rows.values()} == {""}
    windows = made_up_windows(20, DIMENSIONS, silent=(0, 30))
    assert "No speech was found" in summary(tmp_path, {"windows": windows}, DIMENSIONS)[1]


def test_a_silent_channel_has_its_rows_and_its_lane(tmp_path):
    result = {"channels": [{"channel": 1, **of_segments([])}, {"channel": 2, **of_segments(made_up_segments(70, SIX))}]}
    rows, text = summary(tmp_path, result, SIX, seconds=70.0)
    assert rows[("whole", "channel", "1", "", "0.0", "70.0", "all")]["speech_seconds"] == "0.0"
    assert "on 2 channels, each on its own" in text and "| channel 1 | all" in text
    with Image.open(tmp_path / "call.summary.png") as two:
        height = two.height
    summary(tmp_path, result["channels"][1], SIX, seconds=70.0)
    with Image.open(tmp_path / "call.summary.png") as one:
        assert one.height < height
    assert ("whole", "channel", "2", "", "0.0", "70.0", "all") not in summary(
        tmp_path, {"channels": result["channels"][1:]}, SIX
    )[0]


def test_the_text_says_how_sure_the_numbers_are(tmp_path):
    segments = of_segments(made_up_segments(100, SIX))
    rows, text = summary(tmp_path, segments, SIX, least=(0.35, 0.75))
    assert {row["calibrated"] for row in rows.values()} == {"no"}
    assert "are not calibrated" in text and "By model." in text and "utterances, found by speech detection" in text
    assert "shorter than 0.75 s or its label has a probability below 0.35" in text
    rows, text = summary(tmp_path, segments, SIX._replace(temperature=1.2345))
    assert "are calibrated: logits were divided by 1.234" in text and "not calibrated" not in text
    assert {row["calibrated"] for row in rows.values()} == {"yes"}
    _, text = summary(tmp_path, of_segments(made_up_segments(100, DIMENSIONS)), DIMENSIONS)
    assert "without probabilities" in text and "its label has" not in text and "## Share" not in text
    _, text = summary(tmp_path, {**segments, "warning": "truncated: 1.20 s"}, SIX)
    assert "- Warning: truncated: 1.20 s." in text


@pytest.mark.parametrize(
    ("hours", "heading", "rows"),
    [(0.9, "## Minute by minute", 54), (2.5, "## In steps of 5 minutes", 30), (10, "## In steps of 10 minutes", 60)],
)
def test_long_recordings_stay_readable(tmp_path, hours, heading, rows):
    """And the picture is as high as that of a short one, with a column for each row of the table."""
    result = {
        "channels": [
            {"channel": number, **of_segments(made_up_segments(3600 * hours, SIX, number))} for number in (1, 2)
        ]
    }
    found, text = summary(tmp_path, result, SIX, seconds=3600 * hours)
    assert heading in text
    assert text.split(heading)[1].count("| channel 1") == rows
    assert sum(key[:3] == ("minute", "channel", "1") and key[-1] == "all" for key in found) == math.ceil(60 * hours)
    with Image.open(tmp_path / "call.summary.png") as picture:
        assert picture.width < 2000 and picture.height < 1800


@pytest.mark.filterwarnings("error")
def test_names_with_markup_are_text(tmp_path):
    """Also many speakers and classes, of which the picture leaves some out."""
    names = Names(["=1+1", "<b>x</b>", "a|b", *(f"class {number} $x$" for number in range(9))])
    speakers = ["@SUM(A1)", "<img src=x>", "*new*\nline", *(f"speaker {number}" for number in range(20))]
    file = "=cmd|' /C calc'!A0 [x](y) `z`.wav"
    result = of_segments(made_up_segments(300, names, speakers=speakers))
    write_summary(tmp_path / "call.summary", file, "m_o_d", result, names)
    rows = list(csv.reader((tmp_path / "call.summary.csv").read_text(encoding="utf-8").splitlines()))
    cells = {cell for row in rows for cell in row if not cell.startswith("-0.")}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    text = (tmp_path / "call.summary.md").read_text(encoding="utf-8")
    assert "<b>" not in text.replace(r"\<", "") and "<img" not in text.replace(r"\<", "")
    assert text.startswith("# =cmd|' /C calc'!A0 \\[x\\](y) \\`z\\`.wav\n") and r"m\_o\_d" in text
    header = next(line for line in text.splitlines() if r"a\|b" in line)
    assert header.count("|") - header.count(r"\|") == len(names.classes) + 3


def test_files_appear_whole(tmp_path):
    summary(tmp_path, of_segments(made_up_segments(30, SIX)), SIX)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        f"call.summary.{end}" for end in ("csv", "md", "png")
    ]


def write_call(channels=2, seconds=70):
    """`call.wav`, and turns of two speakers, one on each channel, and one of both."""
    generator = np.random.default_rng(0)
    soundfile.write("call.wav", 0.1 * generator.standard_normal((seconds * 8_000, channels)), 8_000)
    turns = [
        "start,end,speaker,channel",
        "1,4,agent,1",
        "58,63,agent,1",
        "5,5.3,=caller,2",
        "20,30,=caller,2",
        "40,41,,",
    ]
    Path("turns.csv").write_text("\n".join(turns) + "\n")


def test_the_command_writes_summaries_and_lanes_of_both_channels(clips, classifier_folder, capsys):
    write_call()
    command = ["predict", classifier_folder, "call.wav", "--segments", "turns.csv", "--least-seconds", "0.4"]
    command += ["--summary", "summaries", "--timeline", "pictures"]
    each = [*command, "--channels", "each", "--output", "rows.jsonl"]
    assert main(each) == 0
    assert sorted(os.listdir("summaries")) == [f"call.wav.summary.{end}" for end in ("csv", "md", "png")]
    text = Path("summaries/call.wav.summary.md").read_text()
    assert text.startswith("# call.wav\n") and "0:01:10 of audio on 2 channels" in text
    assert (
        "in 6 segments" in text
        and "turns that were given" in text
        and "shorter than 0.4 s" in text
        and "=caller, channel 2" in text
    )
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    with open("summaries/call.wav.summary.csv", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if row["over"] == "whole" and row["counted"] == "all"]
    for part in whole:
        own = [row for row in rows if part["channel"] in ("", str(row["channel"]))]
        own = [row for row in own if part["part"] != "speaker" or row.get("speaker", "") == part["speaker"].lstrip("'")]
        weights = [row["end"] - row["start"] for row in own]
        assert float(part["arousal"]) == pytest.approx(
            np.average([row["arousal"] for row in own], weights=weights), abs=1e-5
        )
    with Image.open("pictures/call.wav.png") as two:
        height = two.height
    Path("summaries/call.wav.summary.png").unlink()
    assert main(each) == 0 and "nothing to do" in capsys.readouterr().err
    assert not Path("summaries/call.wav.summary.png").exists()  # as a picture, of a file that is done
    assert main(command) == 0
    with Image.open("pictures/call.wav.png") as one:
        assert one.height < height


def test_the_command_summarises_windows_of_a_calibrated_model(clips, tmp_path):
    folder = str(save_model_folder(make_classifier(num_hidden_layers=2, calibration_temperature=2.0), tmp_path / "hot"))
    assert main(["predict", folder, "clips", "--summary", "summaries"]) == 0
    texts = [Path(f"summaries/{name}.summary.md").read_text() for name in ("a.flac", "b.wav", "more/c.ogg")]
    assert all("calibrated: logits were divided by 2.000" in text for text in texts)
    assert "0:00:01 of audio, in 1 window." in texts[0] and "in 3 windows." in texts[1]


def test_a_summary_that_cannot_be_written_stops_nothing(clips, classifier_folder, capsys):
    too_long = f"{'b' * 246}.wav"  # with .summary.csv more than 255 bytes
    shutil.copy("clips/a.flac", too_long)
    command = ["predict", classifier_folder, too_long, "clips/a.flac", "--format", "jsonl"]
    assert main([*command, "--summary", "summaries"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and f"bad: {too_long}: no summary: " in err
    assert len(os.listdir("summaries/clips")) == 3
