"""Segments and channels on the command line: rows, going on after a stop, files of segments, embeddings, mistakes.

python -m pytest tests/test_predict_segments.py
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from conftest import alike, refused
from exhubert.audio_exhubert import read_audio
from exhubert.cli import main
from exhubert.inference.turn_files import read_turns
from exhubert.model_folder import load_pipeline

TURNS = [  # file, start, end, speaker, channel
    ("call.wav", 0.5, 4.25, "anna", 1),
    ("call.wav", 4.0, 6.0, "=ben", 2),
    ("call.wav", 6.5, 7.0, None, None),
    ("b.wav", 0.0, 5.2, None, None),
]


@pytest.fixture
def call(clips):
    """A call of two voices in a working folder with other clips, and its turns; returns its samples."""
    time = np.arange(8 * 16_000) / 16_000
    noise = 0.05 * np.random.default_rng(1).standard_normal((len(time), 2))
    samples = noise + 0.3 * np.sin(2 * np.pi * np.stack([90 * time**1.5, 400 + 30 * time**2], axis=1))
    soundfile.write("clips/call.wav", samples, 16_000, subtype="PCM_16")
    write_turns("turns.csv", TURNS)
    soundfile.write("silence.wav", np.zeros((16_000, 2)), 16_000)
    return soundfile.read("clips/call.wav", dtype="float32")[0]


def write_turns(path, turns):
    table = pandas.DataFrame(turns, columns=["file", "start", "end", "speaker", "channel"])
    table.to_csv(path, index=False)


def printed(capsys, *arguments):
    assert main(["predict", *arguments]) == 0
    return capsys.readouterr().out


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def flat(answer):
    probabilities = {f"probability_{name}": value for name, value in answer["probabilities"].items()}
    return {"label": answer["label"], **probabilities, "arousal": answer["arousal"], "valence": answer["valence"]}


@pytest.mark.parametrize("channels", ["mix", "each"])
def test_a_row_of_a_segment_is_what_a_clip_of_its_own_has(call, classifier_folder, capsys, channels):
    command = [classifier_folder, "clips/b.wav", "clips/call.wav", "--segments", "turns.csv", "--channels", channels]
    b, *rows = rows_of(printed(capsys, *command, "--format", "jsonl"))
    pipeline = load_pipeline(classifier_folder)
    assert (b["file"], b["segments"], b["start"], b["end"]) == ("clips/b.wav", 1, 0, 5.2)
    assert alike({name: b[name] for name in flat(pipeline("clips/b.wav"))}, flat(pipeline("clips/b.wav")))
    expected = []
    for channel in (1, 2) if channels == "each" else (None,):
        for _, start, end, speaker, of_channel in TURNS[:3]:
            if channel in (None, of_channel) or of_channel is None:
                heard = call.mean(axis=1) if channel is None else call[:, channel - 1]
                part = pipeline(heard[round(start * 16_000) : round(end * 16_000)])
                place = {"file": "clips/call.wav"} | ({} if channel is None else {"channel": channel})
                place |= {"segments": 3 if channel is None else 4, "start": start, "end": end}
                place |= {"speaker": speaker} if speaker else {}
                uncertain = "low probability" if max(part["probabilities"].values()) < 0.5 else ""
                expected.append({**place, **flat(part), "uncertain": uncertain})
    assert [list(row) for row in rows] == [list(row) for row in expected]
    assert alike(rows, expected)


def test_each_channel_of_a_call_has_the_utterances_of_its_own_speaker(shared, clips, classifier_folder, capsys):
    """Four clips of two speakers, in turn, a second apart."""
    audio = shared / "corpora" / "emodb" / "audio"
    spoken = [read_audio(audio / f"{name}.flac") for name in ("03a01Fa", "08a01Fd", "03a02Fc", "08a02Ac")]
    call, spans, start = np.zeros((30 * 16_000, 2), np.float32), {1: [], 2: []}, 16_000
    for number, samples in enumerate(spoken):
        call[start : start + len(samples), number % 2] = samples
        spans[number % 2 + 1].append((start / 16_000, (start + len(samples)) / 16_000))
        start += len(samples) + 16_000
    soundfile.write("call.wav", call[:start], 16_000)
    command = [classifier_folder, "call.wav", "--segments", "speech", "--channels", "each", "--format", "jsonl"]
    rows = rows_of(printed(capsys, *command))
    found = {channel: [(row["start"], row["end"]) for row in rows if row["channel"] == channel] for channel in spans}
    for channel, times in spans.items():  # the clips begin and end with silence of their own
        for (start, end), (first, last) in zip(found[channel], times, strict=True):
            assert first - 0.15 < start < end < last + 0.15
            assert end - start > 0.6 * (last - first)
    assert all(row["segments"] == 4 for row in rows)


def test_csv_and_table_say_the_same(call, classifier_folder, capsys):
    command = [classifier_folder, "clips/call.wav", "silence.wav", "--segments", "turns.csv", "--channels", "each"]
    write_turns("turns.csv", [*TURNS, ("silence.wav", 0.25, 0.5, "anna", 2)])
    command += ["--least-probability", "0", "--least-seconds", "0.75"]
    rows = rows_of(printed(capsys, *command, "--format", "jsonl"))
    text = printed(capsys, *command, "--format", "csv")
    table = list(csv.DictReader(text.splitlines()))
    place = ["file", "channel", "segments", "start", "end", "speaker"]
    assert list(table[0])[:7] == [*place, "label"] and list(table[0])[-3:] == ["uncertain", "warning", "error"]
    for row, of_csv in zip(rows, table, strict=True):
        shown = {**row, "speaker": "'=ben" if row.get("speaker") == "=ben" else row.get("speaker", "")}
        assert of_csv == {**{name: str(value) for name, value in shown.items()}, "warning": "", "error": ""}
    assert [row["uncertain"] for row in rows] == ["", "short", "", "short", "short"]
    header, *lines = printed(capsys, *command, "--format", "table").splitlines()
    assert header.split() == [
        *("file", "channel", "start", "end", "speaker", "label", "probability", "arousal", "valence")
    ]
    assert lines[0].split()[:6] == ["clips/call.wav", "1", "0.50", "4.25", "anna", rows[0]["label"]]
    assert [line.endswith("uncertain: short") for line in lines] == [False, True, False, True, True]


@pytest.mark.parametrize("segments", [None, "turns.csv"])
def test_clips_and_windows_of_channels(call, classifier_folder, capsys, segments):
    command = [classifier_folder, "clips/call.wav", "clips/b.wav", "--channels", "each"]
    command += [] if segments is None else ["--segments", segments]
    pipeline = load_pipeline(classifier_folder)
    rows = rows_of(printed(capsys, *command, "--per", "clip", "--format", "jsonl"))
    assert [(row["file"], row["channel"], row["channels"]) for row in rows] == [
        *(("clips/call.wav", 1, 2), ("clips/call.wav", 2, 2), ("clips/b.wav", 1, 1)),
    ]
    turns = None if segments is None else [turn[1:] for turn in TURNS[:3]]
    for row, result in zip(rows, pipeline("clips/call.wav", channels="each", segments=turns)["channels"], strict=False):
        assert alike({name: row[name] for name in result}, result)
    of_csv = list(csv.DictReader(printed(capsys, *command, "--per", "clip", "--format", "csv").splitlines()))
    assert list(of_csv[0])[:4] == ["file", "channel", "channels", "label"]
    assert [float(row["seconds"]) for row in of_csv] == [8, 8, 5.2]
    windows = rows_of(printed(capsys, *command, "--per", "window", "--format", "jsonl"))
    expected = [(row["channel"], window["start"]) for row in rows for window in row["windows"]]
    assert [(row["channel"], row["start"]) for row in windows] == expected
    assert windows[0]["windows"] == sum(len(row["windows"]) for row in rows[:2])
    assert [row.get("segment") for row in windows] == [each.get("segment") for row in rows for each in row["windows"]]
    header = printed(capsys, *command, "--per", "window", "--format", "csv").splitlines()[0]
    segment = "" if segments is None else "segment,"
    assert header.startswith(f"file,channel,windows,{segment}start,end,label,")


@pytest.mark.parametrize("per", ["segment", "window", "clip"])
@pytest.mark.parametrize("style", ["jsonl", "csv"])
def test_a_file_in_which_nobody_speaks_has_a_row_and_is_done(call, classifier_folder, capsys, style, per):
    command = ["predict", classifier_folder, "silence.wav", "--segments", "speech", "--per", per]
    assert main([*command, "--output", f"out.{style}"]) == 0
    text = Path(f"out.{style}").read_text()
    (row,) = rows_of(text) if style == "jsonl" else csv.DictReader(text.splitlines())
    assert row["label"] in (None, "")
    if per != "clip":
        assert str(row[f"{per}s"]) == "0"
    elif style == "csv":
        assert row["seconds"] == "1.0"
    assert main([*command, "--output", f"out.{style}"]) == 0
    assert capsys.readouterr().err.endswith("nothing to do: 1 file was done before\n")
    assert Path(f"out.{style}").read_text() == text


def test_the_table_says_where_nobody_speaks(call, classifier_folder, capsys):
    command = [classifier_folder, "silence.wav", "--segments", "speech"]
    for channels in ("mix", "each"):
        _, line = printed(capsys, *command, "--channels", channels).splitlines()
        assert line.split() == ["silence.wav", "no", "speech"]
        lines = printed(capsys, *command, "--channels", channels, "--per", "clip").splitlines()[1:]
        assert [line.split()[-3:] for line in lines] == [["no", "speech", "1.00"]] * (2 if channels == "each" else 1)


@pytest.mark.parametrize("style", ["jsonl", "csv"])
@pytest.mark.parametrize("per", ["segment", "clip"])
def test_a_run_that_was_stopped_goes_on_by_whole_files(call, classifier_folder, capsys, style, per):
    shutil.copy("clips/call.wav", "clips/second.wav")
    write_turns("turns.csv", [*TURNS, *(("second.wav", *turn[1:]) for turn in TURNS[:3])])
    files = ["clips/call.wav", "clips/second.wav", "clips/b.wav"]
    command = ["predict", classifier_folder, *files, "--segments", "turns.csv", "--channels", "each", "--per", per]
    assert main([*command, "--output", f"whole.{style}"]) == 0
    whole = Path(f"whole.{style}").read_text()
    assert main([*command, "--output", f"out.{style}"]) == 0
    lines = whole.splitlines(keepends=True)
    Path(f"out.{style}").write_text("".join(lines[:-2]))  # killed before the last row of the second file
    capsys.readouterr()
    assert main([*command, "--output", f"out.{style}"]) == 0
    assert "2 files (1 more were done before), 0 bad" in capsys.readouterr().err
    assert alike(Path(f"out.{style}").read_text(), whole)


def test_rows_of_other_segments_or_channels_are_not_mixed(call, classifier_folder):
    command = ["predict", classifier_folder, "clips/b.wav", "--per", "clip", "--output", "out.csv"]
    assert main(command) == 0
    settings = json.loads(Path("out.csv.settings.json").read_text())
    assert not {"segments", "channels", "least_probability", "least_seconds"} & set(settings)  # as it was
    with pytest.raises(ValueError, match="begun with channels 'mix', now it is 'each'"):
        main([*command, "--channels", "each"])
    with pytest.raises(ValueError, match=r"begun with segments None, now it is 'turns \w{16}'"):
        main([*command, "--segments", "turns.csv"])
    command = [*command[:-1], "turns.csv.out.csv", "--segments", "turns.csv"]
    assert main(command) == 0
    with pytest.raises(ValueError, match=r"begun with least_seconds 0\.5, now it is 2\.0"):
        main([*command, "--least-seconds", "2"])
    with pytest.raises(ValueError, match=r"begun with segments 'turns \w{16}', now it is None"):
        main(command[:-2])
    write_turns("turns.csv", [("b.wav", 1.0, 2.0, None, None)])
    with pytest.raises(ValueError, match=r"begun with segments 'turns \w{16}', now it is 'turns \w{16}'"):
        main(command)


def test_what_is_wrong_with_the_turns_of_one_file_is_its_row(call, classifier_folder, capsys):
    for name in ("beyond", "channel", "damaged"):
        shutil.copy("clips/call.wav", f"clips/{name}.wav")
    os.mkdir("turns")
    Path("turns/call.txt").write_text("1.0\t2.0\tanna\n7.5\t9.0\tben\n")
    Path("turns/beyond.rttm").write_text("SPEAKER beyond 1 9.0 1.0 <NA> <NA> anna <NA> <NA>\n")
    Path("turns/channel.csv").write_text("start,end,channel\n0,1,3\n")
    Path("turns/damaged.TextGrid").write_text("no grid")
    command = ["predict", classifier_folder, "clips/*.wav", "--segments", "turns", "--format", "jsonl"]
    assert main([*command, "--channels", "each"]) == 2
    rows = rows_of(capsys.readouterr().out)
    errors = {row["file"]: row["error"] for row in rows if "error" in row}
    assert {name.removeprefix("clips/").removesuffix(".wav") for name in errors} == {
        *("b", "beyond", "channel", "damaged"),
    }
    assert errors["clips/b.wav"] == "there are no turns for it in turns"
    assert "9 s" in errors["clips/beyond.wav"] and "8.00 s" in errors["clips/beyond.wav"]
    assert "channel 3" in errors["clips/channel.wav"]
    assert errors["clips/damaged.wav"].startswith("turns/damaged.TextGrid, line 1: ")
    assert [row["end"] for row in rows if "error" not in row] == [2.0, 8.0, 2.0, 8.0]  # cut where the audio ends
    assert main(["predict", classifier_folder, "clips/channel.wav", "--segments", "turns"]) == 0  # averaged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segments", "speech", "--vad"], "--vad leaves out windows without speech, --segments"),
        (["--per", "segment"], "rows of segments need --segments"),
        (["--segment-files", "out"], "--segment-files needs --segments"),
        (["--segments", "speech", "--segment-format", "srt"], "needs --segment-files"),
        (["--least-seconds", "1"], "--least-seconds says which segments are uncertain, and needs --segments"),
        (["--segments", "speech", "--least-probability", "50"], "--least-probability is 50; it must be from 0 to 1"),
        (["--segments", "speech", "--least-seconds", "nan"], "--least-seconds is nan; it must be 0 or more"),
        (["--segments", "speech", "--per", "window"], "rows of windows are written as jsonl or csv"),
        (["--segments", "gone.csv"], "gone.csv: no such file of turns"),
        (["--segments", "speach"], "speach: segments are `speech`, a file of turns (.rttm, "),
        (["clips/a.flac", "--segments", "labels.txt"], "labels.txt does not say whose turns it has"),
        (["--segments", "empty.rttm"], "empty.rttm: there are no turns in it"),
        (["--segments", "bad.csv"], "bad.csv, line 2: the end is 'x', and no number"),
        (["--segments", "clips"], "clips has no turns of the audio files; for clips/b.wav there could be b.rttm"),
        (["--segments", "speech", "--segment-files", "labels.txt"], "labels.txt"),
    ],
)
def test_mistakes_end_in_one_line(call, classifier_folder, capsys, arguments, message):
    Path("labels.txt").write_text("0\t1\n")
    Path("empty.rttm").touch()
    Path("bad.csv").write_text("start,end\n0,x\n")
    assert message in refused(capsys, main, "predict", classifier_folder, "clips/b.wav", *arguments)
    if not {"--segment-files", "--segment-format", "window"} & set(arguments):
        command = ["embed", classifier_folder, "clips/b.wav", *arguments, "--output", "out.parquet"]
        assert message in refused(capsys, main, *command)
    assert not [name for name in os.listdir() if "out" in name]


def test_files_of_segments_lie_as_the_recordings_do(call, classifier_folder, capsys):
    shutil.copy("clips/call.wav", "clips/more/call2.wav")
    write_turns("turns.csv", [*TURNS, ("call2.wav", 1, 2, "anna", 1)])
    command = ["predict", classifier_folder, "clips/call.wav", "clips/more/call2.wav", "--segments", "turns.csv"]
    assert main([*command, "--segment-files", "files", "--output", "out.csv"]) == 0
    assert sorted(map(str, Path("files").rglob("*.*"))) == ["files/call.wav.vtt", "files/more/call2.wav.vtt"]
    formats = ["srt", "textgrid", "audacity", "elan", "csv"]
    assert main([*command, "--channels", "each", "--segment-files", "each", "--segment-format", *formats]) == 0
    assert len(list(Path("each").rglob("*.*"))) == 10
    times = {(turn.start, turn.end) for turn in read_turns("each/call.wav.csv")["clips/call.wav"]}
    assert times == {turn[1:3] for turn in TURNS[:3]}
    assert "xmax = 8 \n" in Path("each/call.wav.TextGrid").read_text()


def test_a_file_of_segments_that_cannot_be_written_stops_nothing(call, classifier_folder, capsys):
    os.makedirs("files/call.wav.vtt")
    command = ["predict", classifier_folder, "clips/call.wav", "clips/b.wav", "--segments", "turns.csv"]
    assert main([*command, "--segment-files", "files", "--format", "jsonl"]) == 2
    out, err = capsys.readouterr()
    assert len(rows_of(out)) == 4
    assert "bad: clips/call.wav: no file of segments: " in err
    assert Path("files/b.wav.vtt").is_file()


def test_embeddings_of_segments_and_channels(call, classifier_folder, capsys):
    command = ["embed", classifier_folder, "clips/call.wav", "clips/b.wav", "--segments", "turns.csv"]
    assert main([*command, "--channels", "each", "--output", "out.parquet"]) == 0
    table = pandas.read_parquet("out.parquet")
    assert list(table) == ["file", "channel", "start", "end", "speaker", "uncertain", "embedding"]
    assert table["channel"].tolist() == [1, 1, 2, 2, 1]
    assert table["speaker"].fillna("").tolist() == ["anna", "", "=ben", "", ""]
    part = load_pipeline(classifier_folder)(call[8_000 : round(4.25 * 16_000), 0], embeddings=True)
    np.testing.assert_allclose(table["embedding"][0], part["embedding"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="begun with channels 'each', now it is 'mix'"):
        main([*command, "--output", "out.parquet"])
    assert main([*command, "--per", "clip", "--output", "clips.parquet"]) == 0
    table = pandas.read_parquet("clips.parquet")
    assert list(table) == ["file", "start", "end", "embedding"]
    assert table["end"].tolist() == [8, 5.2]
    assert main([*command, "--per", "clip", "--output", "clips.parquet"]) == 0
    assert capsys.readouterr().err.endswith("nothing to do: 2 files were done before\n")
    assert main(["embed", classifier_folder, "silence.wav", "--segments", "speech", "--output", "none.parquet"]) == 1
    assert "bad: silence.wav: there is no speech in it" in capsys.readouterr().err
