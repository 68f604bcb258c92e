"""`exhubert predict`: formats, which files, bad files, going on after a stop, pictures.

python -m pytest tests/test_predict.py
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from PIL import Image

from conftest import alike, make_classifier, refused, write_bad_files
from exhubert.cli import main
from exhubert.inference import timeline
from exhubert.inference.timeline import plot_timeline
from exhubert.model_folder import load_pipeline, save_model_folder


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_rows_hold_what_the_pipeline_returns(clips, classifier_folder, capsys):
    assert main(["predict", classifier_folder, "clips", "--format", "jsonl"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["file"] for row in rows] == ["clips/a.flac", "clips/b.wav", "clips/more/c.ogg"]
    pipeline = load_pipeline(classifier_folder)
    for row in rows:
        assert alike(row, {"file": row["file"], **pipeline(row["file"])})
    assert list(rows[0]) == ["file", "label", "probabilities", "arousal", "valence", "windows"]
    assert [(window["start"], window["end"]) for window in rows[1]["windows"]] == [(0, 3), (1.5, 4.5), (3, 5.2)]

    assert main(["predict", classifier_folder, "clips/b.wav", "--format", "jsonl", "--window", "2", "--hop", "2"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert alike(row, {"file": "clips/b.wav", **pipeline("clips/b.wav", window_seconds=2.0, hop_seconds=2.0)})


def test_csv_and_table_say_the_same(clips, classifier_folder, capsys):
    results = {}
    for style in ("jsonl", "csv", "table"):
        assert main(["predict", classifier_folder, "clips", "--format", style]) == 0
        results[style] = capsys.readouterr().out
    lines = results["table"].splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["file", "label", "probability", "arousal", "valence", "seconds"]
    table = list(csv.DictReader(results["csv"].splitlines()))
    for row, of_csv, line in zip(rows_of(results["jsonl"]), table, lines[1:], strict=True):
        values = {f"probability_{name}": value for name, value in row["probabilities"].items()}
        values |= {"arousal": row["arousal"], "valence": row["valence"], "seconds": row["windows"][-1]["end"]}
        assert {name: float(of_csv.pop(name)) for name in values} == values
        assert of_csv == {"file": row["file"], "label": row["label"], "warning": "", "error": ""}
        largest, seconds = max(row["probabilities"].values()), values["seconds"]
        shown = [f"{largest:.3f}", f"{row['arousal']:+.2f}", f"{row['valence']:+.2f}", f"{seconds:.2f}"]
        assert line.split() == [row["file"], row["label"], *shown]


def test_a_row_says_that_its_file_is_cut_off(clips, classifier_folder, capsys):
    with open("clips/cut.wav", "wb") as cut, open("clips/b.wav", "rb") as whole:
        cut.write(whole.read()[:-32_000])
    warning = load_pipeline(classifier_folder)("clips/cut.wav")["warning"]
    assert warning == "truncated: 4.20 s of the 5.20 s that its header promises"
    said = {}
    for style in ("jsonl", "csv", "table"):
        assert main(["predict", classifier_folder, "clips/b.wav", "clips/cut.wav", "--format", style]) == 0
        said[style] = capsys.readouterr().out
    whole, cut = rows_of(said["jsonl"])
    assert "warning" not in whole
    assert cut["warning"] == warning
    assert [row["warning"] for row in csv.DictReader(said["csv"].splitlines())] == ["", warning]
    assert [warning in line for line in said["table"].splitlines()] == [False, False, True]


def test_csv_of_an_older_release_has_no_warnings_and_goes_on(clips, classifier_folder):
    assert main(["predict", classifier_folder, "clips/a.flac", "--output", "out.csv"]) == 0
    table = pandas.read_csv("out.csv")
    table.drop(columns="warning").to_csv("out.csv", index=False)
    assert main(["predict", classifier_folder, "clips", "--output", "out.csv"]) == 0
    assert main(["predict", classifier_folder, "clips", "--output", "whole.csv"]) == 0
    pandas.testing.assert_frame_equal(pandas.read_csv("out.csv"), pandas.read_csv("whole.csv"))


def test_classes_of_ones_own_have_no_arousal(clips, tmp_path, capsys):
    own = make_classifier(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    assert (
        main(
            [
                "predict",
                str(save_model_folder(own, tmp_path / "own")),
                "clips/a.flac",
                "--format",
                "csv",
                "--timeline",
                "pictures",
            ]
        )
        == 0
    )
    header = capsys.readouterr().out.splitlines()[0]
    assert header == "file,label,probability_yes,probability_no,seconds,warning,error"
    assert (tmp_path / "pictures" / "a.flac.png").is_file()


def test_globs_and_the_same_file_twice(clips, classifier_folder, capsys):
    shutil.copy("clips/a.flac", "clips/[a].flac")  # a name that reads like a pattern
    os.mkdir("clips/no.ogg")  # matches as well
    arguments = ["clips/**/*.[ow][ga]*", "./clips/b.wav", os.path.abspath("clips/b.wav"), "clips/[a].flac"]
    assert main(["predict", classifier_folder, *arguments, "--format", "jsonl"]) == 0
    files = [row["file"] for row in rows_of(capsys.readouterr().out)]
    assert files == ["clips/b.wav", "clips/more/c.ogg", "clips/[a].flac"]


def test_bad_files_are_listed_and_the_others_done(clips, classifier_folder, capsys):
    write_bad_files()
    soundfile.write("clips/zero.wav", np.zeros(1000), 16_000)
    assert main(["predict", classifier_folder, "clips", "gone.wav", "--format", "jsonl"]) == 2
    out, err = capsys.readouterr()
    errors = {row["file"]: row["error"] for row in rows_of(out) if "error" in row}
    assert set(errors) == {*(f"clips/{name}" for name in ("text.wav", "empty.wav", "nan.wav", "cut.flac")), "gone.wav"}
    assert [row["file"] for row in rows_of(out) if "label" in row] == [
        *("clips/a.flac", "clips/b.wav", "clips/more/c.ogg", "clips/zero.wav")
    ]
    assert errors["gone.wav"] == "no such audio file"
    assert "NaN" in errors["clips/nan.wav"]
    *bad, last = err.splitlines()
    assert bad == [f"bad: {name}: {error}" for name, error in errors.items()]
    assert last.startswith("9 files, 5 bad; 0:00:09 of audio in ")
    assert last.endswith(" times real time")


def test_nothing_but_bad_files_is_a_failure(clips, classifier_folder, capsys):
    write_bad_files()
    assert main(["predict", classifier_folder, "clips/text.wav", "gone.wav"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "empty"], "empty: no audio files in this folder"),
        (["MODEL", "clips/*.mp3"], "clips/*.mp3: no file matches"),
        (["MODEL", "empt*"], "empt*: no file matches"),
        (["MODEL", "clips/b.wav", "empty"], "empty: no audio files in this folder"),
        (["clips", "clips"], "clips"),
        (["gone", "clips"], "gone: no such folder"),
        (["MODEL", "clips", "--window", "0"], "window_seconds is 0.0"),
        (["MODEL", "clips", "--hop", "nan"], "hop_seconds is nan"),
        (["MODEL", "clips", "--output", "out.txt"], "out.txt: rows are written to .jsonl or .csv"),
        (["MODEL", "clips", "--output", "out.jsonl", "--format", "table"], "out.jsonl: rows"),
        (["MODEL", "clips", "--output", "clips/notes.txt/out.csv"], "notes.txt"),
        (["MODEL", "clips", "--timeline", "clips/notes.txt"], "notes.txt"),
    ],
)
def test_mistakes_end_in_one_line(clips, classifier_folder, capsys, arguments, message):
    os.mkdir("empty")
    given = [classifier_folder if argument == "MODEL" else argument for argument in arguments]
    assert message in refused(capsys, main, "predict", *given)
    assert not [name for name in os.listdir() if "out" in name]


@pytest.mark.parametrize("style", ["jsonl", "csv"])
def test_a_run_that_was_stopped_goes_on(clips, classifier_folder, capsys, style):
    write_bad_files()
    shutil.copy("clips/b.wav", 'clips/"quoted",\n.wav')
    shutil.copy("clips/b.wav", "clips/carriage\rreturn.wav")
    assert main(["predict", classifier_folder, "clips", "--output", f"whole.{style}"]) == 2
    out = f"runs/out.{style}"
    assert main(["predict", classifier_folder, "clips/a.flac", "clips/text.wav", "clips/b.wav", "--output", out]) == 2
    with open(out, "rb+") as file:  # killed within a row
        file.truncate(file.seek(0, os.SEEK_END) - 20)
    capsys.readouterr()
    assert main(["predict", classifier_folder, "clips", "./clips/a.flac", "--output", out]) == 2
    assert "8 files (1 more were done before), 4 bad" in capsys.readouterr().err
    with open(f"whole.{style}", newline="\n") as whole, open(out, newline="\n") as resumed:
        assert "\r" not in whole.read().replace('"clips/carriage\rreturn.wav"', "")
        whole.seek(0)
        assert alike(sorted(resumed.read().split("\n")), sorted(whole.read().split("\n")))

    for name in ("text.wav", "empty.wav", "nan.wav", "cut.flac"):  # bad files are tried again
        shutil.copy("clips/a.flac", f"clips/{name}")
    assert main(["predict", classifier_folder, "clips", "--output", out]) == 0
    assert "4 files (5 more were done before), 0 bad" in capsys.readouterr().err
    with open(out) as file:
        assert "no audio" not in file.read()
    assert sorted(os.listdir("runs")) == [f"out.{style}", f"out.{style}.settings.json"]


def test_rows_of_other_settings_are_not_mixed(clips, classifier_folder, tmp_path):
    command = ["predict", classifier_folder, "clips/a.flac", "--output", "out.jsonl"]
    assert main(command) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    for changed in (["--hop", "1"], ["--vad"], ["--format", "csv"]):
        with pytest.raises(ValueError, match="give another --output"):
            main([*command, *changed])
    assert main([*command, "--window", "3"]) == 0  # what it was
    copied = shutil.copytree(classifier_folder, tmp_path / "retrained")
    with pytest.raises(ValueError, match="begun with model"):
        main(["predict", str(copied), "clips/b.wav", "--output", "out.jsonl"])
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"mine\.csv exists"):
        main(["predict", classifier_folder, "clips/a.flac", "--output", "mine.csv"])
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


def test_relative_names_of_another_working_directory_are_not_taken_for_done(
    clips, classifier_folder, tmp_path, monkeypatch
):
    output = str(tmp_path / "out.jsonl")
    assert main(["predict", classifier_folder, "clips/a.flac", "--output", output]) == 0
    shutil.copytree("clips", "other/clips")
    monkeypatch.chdir("other")
    with pytest.raises(ValueError, match="begun with working_directory"):
        main(["predict", classifier_folder, "clips/a.flac", "--output", output])


def test_links_stay_and_what_is_no_file_is_refused(clips, classifier_folder):
    os.mkdir("elsewhere")
    for command in (
        ["predict", classifier_folder, "clips/a.flac", "--output", "csv"],
        ["embed", classifier_folder, "clips", "--output", "parquet"],
    ):
        *start, suffix = command
        os.mkfifo(f"pipe.{suffix}")
        os.symlink(f"pipe.{suffix}", f"to_pipe.{suffix}")
        for name in (f"pipe.{suffix}", f"to_pipe.{suffix}"):
            with pytest.raises(ValueError, match=rf"{name} exists, and is no regular file"):
                main([*start, name])
        assert os.path.islink(f"to_pipe.{suffix}")
        os.symlink(f"elsewhere/real.{suffix}", f"link.{suffix}")
        for _ in range(2):
            assert main([*start, f"link.{suffix}"]) == 0
        assert os.path.islink(f"link.{suffix}")
    assert sorted(os.listdir("elsewhere")) == ["real.csv", "real.csv.settings.json", "real.parquet"]


def test_a_model_that_was_trained_further_is_another(clips, tmp_path):
    name = str(save_model_folder(make_classifier(num_hidden_layers=2), tmp_path / "own"))
    assert main(["predict", name, "clips/a.flac", "--output", "out.csv"]) == 0
    save_model_folder(make_classifier(), tmp_path / "own")
    with pytest.raises(ValueError, match="model_version"):
        main(["predict", name, "clips/b.wav", "--output", "out.csv"])


def test_standard_input_in_a_pipe(clips, classifier_folder, capsys, monkeypatch):
    with subprocess.Popen(["cat", "clips/b.wav"], stdout=subprocess.PIPE, text=True) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe.stdout)
        assert main(["predict", classifier_folder, "-", "clips/b.wav", "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    piped, named = rows_of(out)
    assert piped == {**named, "file": "-"}
    assert err.startswith("2 files, 0 bad; 0:00:10 of audio in ")


def test_standard_input_that_is_closed_is_a_bad_file(clips, classifier_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    assert main(["predict", classifier_folder, "-", "clips/a.flac"]) == 2
    assert "bad: -: standard input is closed\n" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses names that are not UTF-8")
def test_names_that_are_not_utf8(clips, classifier_folder, capsys):
    name = os.fsdecode(b"clips/caf\xe9\n$1$.wav")
    shutil.copy("clips/a.flac", name)
    written = "clips/caf\\udce9\n$1$.wav"
    command = ["predict", classifier_folder, name, "--output", "out.jsonl", "--timeline", "pictures"]
    assert main(command) == 0
    with open("out.jsonl", encoding="utf-8") as file:
        assert [row["file"] for row in rows_of(file.read())] == [written]
    assert os.listdir("pictures") == [os.fsdecode(b"caf\xe9\n$1$.wav.png")]
    assert main(command) == 0
    assert capsys.readouterr().err.endswith("\nnothing to do: 1 file was done before\n")
    assert main(["predict", classifier_folder, name]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(r"clips/caf\udce9\n$1$.wav  ")
    assert main(["embed", classifier_folder, name, "--output", "out.parquet"]) == 0
    assert pandas.read_parquet("out.parquet")["file"].tolist() == [written]


def test_pictures_are_in_folders_as_the_files_are(clips, classifier_folder, tmp_path):
    shutil.copy("clips/a.flac", "clips/more/a.flac")
    assert main(["predict", classifier_folder, "clips", "--timeline", "pictures"]) == 0
    written = sorted(
        path.relative_to(tmp_path / "pictures").as_posix() for path in (tmp_path / "pictures").rglob("*.*")
    )
    assert written == ["a.flac.png", "b.wav.png", "more/a.flac.png", "more/c.ogg.png"]


def test_a_picture_that_cannot_be_written_stops_nothing(clips, classifier_folder, capsys):
    long, too_long = f"{'a' * 236}.wav", f"{'b' * 251}.wav"  # 255 bytes are the most, with .png too
    for name in (long, too_long, "c.wav"):
        shutil.copy("clips/a.flac", name)
    command = ["predict", classifier_folder, "--format", "jsonl", "--timeline", "pictures"]
    assert main([*command, long, too_long, "c.wav"]) == 2
    out, err = capsys.readouterr()
    assert [row["file"] for row in rows_of(out) if "label" in row] == [long, too_long, "c.wav"]
    assert f"bad: {too_long}: no picture: " in err
    assert sorted(os.listdir("pictures")) == [f"{long}.png", "c.wav.png"]
    assert main([*command, too_long]) == 2  # the row is there


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_ends_the_run_and_the_next_one_makes_the_picture(
    clips, classifier_folder, capsys, monkeypatch, number
):
    """Else the file would have its row, and never its picture."""
    command = ["predict", classifier_folder, "clips/a.flac", "clips/b.wav", "--timeline", "pictures"]
    command += ["--output", "out.jsonl"]
    plot_lanes = timeline.plot_lanes

    def fail(path, name, *values):
        if "b.wav" in name:
            raise OSError(number, os.strerror(number))
        plot_lanes(path, name, *values)

    with monkeypatch.context() as patched:
        patched.setattr(timeline, "plot_lanes", fail)
        line = refused(capsys, main, *command)
    assert f"clips/b.wav: no picture: {os.strerror(number)}" in line
    assert len(Path("out.jsonl").read_text().splitlines()) == 1
    assert main(command) == 0
    assert sorted(os.listdir("pictures")) == ["a.flac.png", "b.wav.png"]
    assert len(Path("out.jsonl").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 4799])
def test_pictures_of_one_window_and_of_two_hours_with_pauses(tmp_path, count):
    heard = {"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}}
    windows = [{"start": 1.5 * k, "end": 1.5 * k + 3, **heard} for k in range(count)]
    for window in windows[600:1400]:
        window |= {"label": None, "probabilities": None}
    plot_timeline(tmp_path / "new" / "clip.png", "$clip 1.wav", windows, ["yes", "no"])
    assert (tmp_path / "new" / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_without_matplotlib(clips, classifier_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for option in ("--timeline", "--summary"):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            main(["predict", classifier_folder, "clips", option, "pictures"])


def test_no_cell_of_csv_is_a_formula(clips, model_folder, monkeypatch):
    """And the files of such rows count as done."""
    names = ["=HYPERLINK(1)", "+1", "-2", "@SUM"]
    config = model_folder / "config.json"
    values = json.loads(config.read_text())
    labels = {str(index): f"={index}" for index in range(6)}
    config.write_text(json.dumps(values | {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}))
    monkeypatch.chdir("clips")
    for name in names:
        shutil.copy("a.flac", f"{name}.flac")
    Path("=text.wav").write_text("no audio")
    command = ["predict", str(model_folder), "[=+@-]*", "--output", "../rows.csv"]
    assert main(command) == 2
    rows = list(csv.reader(Path("../rows.csv").read_text().splitlines()))
    assert sorted(row[0] for row in rows[1:]) == sorted([*(f"./{name}.flac" for name in names), "./=text.wav"])
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    Path("=text.wav").unlink()
    assert main(command) == 0
    assert list(csv.reader(Path("../rows.csv").read_text().splitlines())) == [
        row for row in rows if row[0] != "./=text.wav"
    ]


def test_the_line_of_the_likeliest_class_is_seen_on_every_colour(tmp_path):
    sure = {"label": "yes", "probabilities": {"yes": 1.0, "no": 0.0}}
    windows = [{"start": float(k), "end": k + 2.0, **sure} for k in range(4)]
    plot_timeline(tmp_path / "clip.png", "clip", windows, ["yes", "no"])
    with Image.open(tmp_path / "clip.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    column = pixels[:, pixels.shape[1] // 2]  # from top to bottom through the cells
    dark_blue = np.flatnonzero((column[:, 2] > column[:, 0] + 60) & (column[:, 2] < 140))
    black = np.flatnonzero(column.sum(axis=1) < 60)
    line = black[(black > dark_blue[0]) & (black < dark_blue[-1])]
    assert len(line)
    assert all(column[end].sum() > 600 for end in (line[0] - 3, line[-1] + 3))  # white beside it


def test_going_on_keeps_rows_of_classes_with_commas(clips, model_folder):
    config = model_folder / "config.json"
    labels = {str(index): f"class {index}, or so" for index in range(6)}
    values = json.loads(config.read_text()) | {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    config.write_text(json.dumps(values))
    command = ["predict", str(model_folder), "clips", "--output", "rows.csv"]
    assert main(command) == 0
    rows = Path("rows.csv").read_text()
    for _ in range(2):
        assert main(command) == 0
        assert Path("rows.csv").read_text() == rows
