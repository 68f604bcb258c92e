"""What `exhubert predict` is given and says of it: lists of files, rows of windows, long windows, channels.

python -m pytest tests/test_predict_input.py
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import numpy as np
import pandas
import pytest
import soundfile

from conftest import alike, refused
from exhubert.cli import main


def give(monkeypatch, content: bytes) -> None:
    """Makes bytes the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_files_come_from_a_list(clips, classifier_folder, capsys, monkeypatch, end):
    names = ["clips/b.wav", "clips/a.flac", "clips/b.wav"]
    (clips / "list.txt").write_text("".join(f"{name}{end}" for name in names))
    give(monkeypatch, (clips / "list.txt").read_bytes())
    for source in ("list.txt", "-"):
        assert main(["predict", classifier_folder, "clips/more", "--files-from", source, "--format", "jsonl"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["file"] for row in rows] == ["clips/b.wav", "clips/a.flac", "clips/more/c.ogg"]
    assert main(["embed", classifier_folder, "--files-from", "list.txt", "--output", "out.parquet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "-"], "standard input, `-`, can be one file or one list of files"),
        (["-", "--files-from", "-"], "standard input, `-`, can be one file or one list of files"),
        (["--files-from", os.devnull], "/dev/null: the list of files is empty"),
        (["--files-from", "gone.txt"], "gone.txt"),
        (["clips", "--per", "window"], "rows of windows are written as jsonl or csv"),
    ],
)
def test_mistakes_end_in_one_line(clips, classifier_folder, capsys, arguments, message):
    assert message in refused(capsys, main, "predict", classifier_folder, *arguments)


def test_a_row_a_window(clips, classifier_folder, capsys):
    command = ["predict", classifier_folder, "clips", "gone.wav", "--per", "window", "--format"]
    assert main(["predict", classifier_folder, "clips", "--format", "jsonl"]) == 0
    clip_rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "jsonl"]) == 2
    *rows, bad = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert bad == {"file": "gone.wav", "error": "no such audio file"}
    expected = []
    for clip in clip_rows:
        for window in clip["windows"]:
            flat = {f"probability_{name}": value for name, value in window.pop("probabilities").items()}
            expected.append({"file": clip["file"], "windows": len(clip["windows"]), **window, **flat})
    assert rows == expected and len(rows) == 5
    assert main([*command, "csv"]) == 2
    *of_csv, bad = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [{name: str(value) for name, value in row.items()} | {"warning": "", "error": ""} for row in rows] == of_csv
    assert (bad["file"], bad["label"], bad["error"]) == ("gone.wav", "", "no such audio file")


@pytest.mark.parametrize("style", ["jsonl", "csv"])
def test_rows_of_windows_go_on_by_whole_files(clips, classifier_folder, capsys, style):
    command = ["predict", classifier_folder, "clips", "--per", "window", "--output"]
    assert main([*command, f"whole.{style}"]) == 0
    assert main([*command, f"out.{style}"]) == 0
    lines = (clips / f"out.{style}").read_text().splitlines(keepends=True)
    (clips / f"out.{style}").write_text("".join(lines[:-3]))  # killed after the second of the three windows of b.wav
    capsys.readouterr()
    assert main([*command, f"out.{style}"]) == 0
    assert "2 files (1 more were done before), 0 bad" in capsys.readouterr().err
    assert alike((clips / f"out.{style}").read_text(), (clips / f"whole.{style}").read_text())
    with pytest.raises(ValueError, match="begun with per 'window', now it is 'clip'"):
        main(["predict", classifier_folder, "clips", "--output", f"out.{style}"])


def test_long_windows_and_averaged_channels_are_said_once(clips, classifier_folder, capsys):
    for number in range(2):
        soundfile.write(f"clips/stereo{number}.wav", np.full((16_000, 2), 0.1), 16_000)
    assert main(["predict", classifier_folder, "clips", "--window", "4"]) == 0
    said = capsys.readouterr().err
    assert said.count("note: --window 4 is longer than the 3 s that the model was trained on\n") == 1
    assert said.count("note: 2 of them have several channels, which were averaged\n") == 1
    os.remove("clips/stereo0.wav")
    os.remove("clips/stereo1.wav")
    assert main(["predict", classifier_folder, "clips", "--window", "3"]) == 0
    assert "note:" not in capsys.readouterr().err


def test_embeddings_of_standard_input_are_those_of_the_last_recording(clips, classifier_folder, monkeypatch):
    command = ["embed", classifier_folder, "--output", "out.parquet"]
    for file in ("clips/a.flac", "clips/b.wav"):
        give(monkeypatch, (clips / file).read_bytes())
        assert main([*command, "-", "clips/a.flac"]) == 0
    rows = pandas.read_parquet("out.parquet").set_index("file")
    assert rows["end"].to_dict() == {"clips/a.flac": 1.0, "-": pytest.approx(5.2)}


def test_a_list_of_windows_notepad_and_a_dash_in_it(clips, classifier_folder, capsys):
    (clips / "list.txt").write_bytes("\ufeffclips/a.flac\r\n-\r\n".encode())
    assert main(["predict", classifier_folder, "--files-from", "list.txt", "--format", "jsonl"]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == ["clips/a.flac", "./-"]
