"""`exhubert predict` and `exhubert embed`: formats, bad files, going on after a stop, speech detection, pictures.

python -m pytest tests/test_predict.py
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import soundfile
import torch

from conftest import SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.audio_exhubert import iter_windows, read_audio
from exhubert.cli import main, run_with_one_line_errors
from exhubert.inference.speech import speech_seconds
from exhubert.inference.timeline import plot_timeline
from exhubert.model_folder import load_pipeline, save_model_folder


def make_model(directory, **changes):
    torch.manual_seed(0)
    values = {**SMALL, "num_hidden_layers": 2, "num_copies": 1, "use_weighted_layer_sum": True, **changes}
    model = ExHuBERTForSequenceClassification(ExHuBERTConfig(**values))
    for parameter in model.parameters():  # so that windows differ in their classes
        parameter.data += 0.2 * torch.randn_like(parameter)
    return str(save_model_folder(model, directory))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("inference") / "model")


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A working folder with audio of several kinds and lengths in `clips`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "more" / ".hidden").mkdir(parents=True)
    write("clips/b.wav", 5.2)
    write("clips/a.flac", 1.0, 8000)
    write("clips/more/c.ogg", 3.0, 48_000)
    write("clips/more/.hidden/d.wav", 1.0)
    write("clips/._b.wav", 1.0)
    (tmp_path / "clips" / "notes.txt").write_text("no audio")
    return tmp_path


def write(path, seconds, rate=16_000):
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    soundfile.write(path, (0.3 + 0.2 * np.sin(time)) * np.sin(2 * np.pi * 100 * time**2) + 0.02 * noise, rate)


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_rows_hold_what_the_pipeline_returns(clips, model, capsys):
    assert main(["predict", model, "clips", "--format", "jsonl"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["file"] for row in rows] == ["clips/a.flac", "clips/b.wav", "clips/more/c.ogg"]
    pipeline = load_pipeline(model)
    for row in rows:
        assert row == {"file": row["file"], **pipeline(row["file"])}
    assert list(rows[0]) == ["file", "label", "probabilities", "arousal", "valence", "windows"]
    assert [(window["start"], window["end"]) for window in rows[1]["windows"]] == [(0, 3), (1.5, 4.5), (3, 5.2)]

    assert main(["predict", model, "clips/b.wav", "--format", "jsonl", "--window", "2", "--hop", "2"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row == {"file": "clips/b.wav", **pipeline("clips/b.wav", window_seconds=2.0, hop_seconds=2.0)}


def test_csv_and_table_say_the_same(clips, model, capsys):
    results = {}
    for style in ("jsonl", "csv", "table"):
        assert main(["predict", model, "clips", "--format", style]) == 0
        results[style] = capsys.readouterr().out
    lines = results["table"].splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["file", "label", "probability", "arousal", "valence", "seconds"]
    table = list(csv.DictReader(results["csv"].splitlines()))
    for row, of_csv, line in zip(rows_of(results["jsonl"]), table, lines[1:], strict=True):
        values = {f"probability_{name}": value for name, value in row["probabilities"].items()}
        values |= {"arousal": row["arousal"], "valence": row["valence"], "seconds": row["windows"][-1]["end"]}
        assert {name: float(of_csv.pop(name)) for name in values} == values
        assert of_csv == {"file": row["file"], "label": row["label"], "error": ""}
        largest, seconds = max(row["probabilities"].values()), values["seconds"]
        shown = [f"{largest:.3f}", f"{row['arousal']:+.2f}", f"{row['valence']:+.2f}", f"{seconds:.2f}"]
        assert line.split() == [row["file"], row["label"], *shown]


def test_classes_of_ones_own_have_no_arousal(clips, tmp_path, capsys):
    own = make_model(tmp_path / "own", id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    assert main(["predict", own, "clips/a.flac", "--format", "csv", "--timeline", "pictures"]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header == "file,label,probability_yes,probability_no,seconds,error"
    assert (tmp_path / "pictures" / "a.flac.png").is_file()


def test_globs_and_the_same_file_twice(clips, model, capsys):
    shutil.copy("clips/a.flac", "clips/[a].flac")  # a name that reads like a pattern
    os.mkdir("clips/no.ogg")  # matches as well
    arguments = ["clips/**/*.[ow][ga]*", "./clips/b.wav", os.path.abspath("clips/b.wav"), "clips/[a].flac"]
    assert main(["predict", model, *arguments, "--format", "jsonl"]) == 0
    files = [row["file"] for row in rows_of(capsys.readouterr().out)]
    assert files == ["clips/b.wav", "clips/more/c.ogg", "clips/[a].flac"]


def write_bad_files():
    with open("clips/text.wav", "w") as file:
        file.write("no audio")
    open("clips/empty.wav", "w").close()
    soundfile.write("clips/nan.wav", np.full(100, np.nan), 16_000, subtype="FLOAT")
    with open("clips/a.flac", "rb") as whole, open("clips/cut.flac", "wb") as cut:
        cut.write(whole.read()[:3000])


def test_bad_files_are_listed_and_the_others_done(clips, model, capsys):
    write_bad_files()
    soundfile.write("clips/zero.wav", np.zeros(1000), 16_000)
    assert main(["predict", model, "clips", "gone.wav", "--format", "jsonl"]) == 2
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


def test_nothing_but_bad_files_is_a_failure(clips, model, capsys):
    write_bad_files()
    assert main(["predict", model, "clips/text.wav", "gone.wav"]) == 1
    assert main(["embed", model, "clips/text.wav", "gone.wav", "--output", "out.npz"]) == 1
    assert not os.path.exists("out.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "MODEL", "empty"], "empty: no audio files in this folder"),
        (["predict", "MODEL", "clips/*.mp3"], "clips/*.mp3: no file matches"),
        (["predict", "MODEL", "empt*"], "empt*: no file matches"),
        (["predict", "MODEL", "clips/b.wav", "empty"], "empty: no audio files in this folder"),
        (["predict", "clips", "clips"], "clips"),
        (["predict", "gone", "clips"], "gone: no such folder"),
        (["predict", "MODEL", "clips", "--window", "0"], "window_seconds is 0.0"),
        (["predict", "MODEL", "clips", "--hop", "nan"], "hop_seconds is nan"),
        (["predict", "MODEL", "clips", "--output", "out.txt"], "out.txt: rows are written to .jsonl or .csv"),
        (["predict", "MODEL", "clips", "--output", "out.jsonl", "--format", "table"], "out.jsonl: rows"),
        (["predict", "MODEL", "clips", "--output", "clips/notes.txt/out.csv"], "notes.txt"),
        (["predict", "MODEL", "clips", "--timeline", "clips/notes.txt"], "notes.txt"),
        (["embed", "MODEL", "clips", "--output", "out.csv"], "out.csv: embeddings are written to .parquet or .npz"),
        (["embed", "MODEL", "clips", "--output", "out.npz", "--layer", "5"], "hidden states 0 to 2"),
        (["embed", "MODEL", "clips", "--output", "out.npz", "--layer", "-1"], "'-1'; it must be last, weighted or"),
        (["embed", "MODEL", "clips", "--output", "out.npz", "--layer", "top"], "'top'; it must be last, weighted or"),
        (["embed", "MODEL", "clips", "--output", "clips/notes.txt/out.npz"], "notes.txt"),
    ],
)
def test_mistakes_end_in_one_line(clips, model, capsys, arguments, message):
    os.mkdir("empty")
    given = [model if argument == "MODEL" else argument for argument in arguments]
    assert run_with_one_line_errors(lambda: main(given)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not [name for name in os.listdir() if "out" in name]


@pytest.mark.parametrize("style", ["jsonl", "csv"])
def test_a_run_that_was_stopped_goes_on(clips, model, capsys, style):
    write_bad_files()
    shutil.copy("clips/b.wav", 'clips/"quoted",\n.wav')
    shutil.copy("clips/b.wav", "clips/carriage\rreturn.wav")
    assert main(["predict", model, "clips", "--output", f"whole.{style}"]) == 2
    out = f"runs/out.{style}"
    assert main(["predict", model, "clips/a.flac", "clips/text.wav", "clips/b.wav", "--output", out]) == 2
    with open(out, "rb+") as file:  # killed within a row
        file.truncate(file.seek(0, os.SEEK_END) - 20)
    capsys.readouterr()
    assert main(["predict", model, "clips", "./clips/a.flac", "--output", out]) == 2
    assert "8 files (1 more were done before), 4 bad" in capsys.readouterr().err
    with open(f"whole.{style}", newline="\n") as whole, open(out, newline="\n") as resumed:
        assert "\r" not in whole.read().replace('"clips/carriage\rreturn.wav"', "")
        whole.seek(0)
        assert sorted(resumed.read().split("\n")) == sorted(whole.read().split("\n"))

    for name in ("text.wav", "empty.wav", "nan.wav", "cut.flac"):  # bad files are tried again
        shutil.copy("clips/a.flac", f"clips/{name}")
    assert main(["predict", model, "clips", "--output", out]) == 0
    assert "4 files (5 more were done before), 0 bad" in capsys.readouterr().err
    with open(out) as file:
        assert "no audio" not in file.read()
    assert sorted(os.listdir("runs")) == [f"out.{style}", f"out.{style}.settings.json"]


def test_rows_of_other_settings_are_not_mixed(clips, model, tmp_path):
    command = ["predict", model, "clips/a.flac", "--output", "out.jsonl"]
    assert main(command) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    for changed in (["--hop", "1"], ["--vad"], ["--format", "csv"]):
        with pytest.raises(ValueError, match="give another --output"):
            main([*command, *changed])
    assert main([*command, "--window", "3"]) == 0  # what it was
    copied = shutil.copytree(model, tmp_path / "retrained")
    with pytest.raises(ValueError, match="begun with model"):
        main(["predict", str(copied), "clips/b.wav", "--output", "out.jsonl"])
    assert (tmp_path / "out.jsonl").read_bytes() == before
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"mine\.csv exists"):
        main(["predict", model, "clips/a.flac", "--output", "mine.csv"])
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"


def test_relative_names_of_another_working_directory_are_not_taken_for_done(clips, model, tmp_path, monkeypatch):
    output = str(tmp_path / "out.jsonl")
    assert main(["predict", model, "clips/a.flac", "--output", output]) == 0
    shutil.copytree("clips", "other/clips")
    monkeypatch.chdir("other")
    with pytest.raises(ValueError, match="begun with working_directory"):
        main(["predict", model, "clips/a.flac", "--output", output])


def test_links_stay_and_what_is_no_file_is_refused(clips, model):
    os.mkdir("elsewhere")
    for command in (
        ["predict", model, "clips/a.flac", "--output", "csv"],
        ["embed", model, "clips", "--output", "npz"],
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
    assert sorted(os.listdir("elsewhere")) == ["real.csv", "real.csv.settings.json", "real.npz"]


def test_a_model_that_was_trained_further_is_another(clips, tmp_path):
    name = make_model(tmp_path / "own")
    assert main(["predict", name, "clips/a.flac", "--output", "out.csv"]) == 0
    make_model(tmp_path / "own", num_hidden_layers=4)
    with pytest.raises(ValueError, match="model_version"):
        main(["predict", name, "clips/b.wav", "--output", "out.csv"])


def test_standard_input_in_a_pipe(clips, model):
    command = [sys.executable, "-m", "exhubert", "predict", model, "-", "clips/b.wav", "--format", "jsonl"]
    with open("clips/b.wav", "rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    piped, named = rows_of(done.stdout)
    assert piped == {**named, "file": "-"}
    assert done.stderr.startswith("2 files, 0 bad; 0:00:10 of audio in ")


def test_standard_input_that_is_closed_is_a_bad_file(clips, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    assert main(["predict", model, "-", "clips/a.flac"]) == 2
    assert "bad: -: standard input is closed\n" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses names that are not UTF-8")
def test_names_that_are_not_utf8(clips, model, capsys):
    name = os.fsdecode(b"clips/caf\xe9\n$1$.wav")
    shutil.copy("clips/a.flac", name)
    written = "clips/caf\\udce9\n$1$.wav"
    command = ["predict", model, name, "--output", "out.jsonl", "--timeline", "pictures"]
    assert main(command) == 0
    with open("out.jsonl", encoding="utf-8") as file:
        assert [row["file"] for row in rows_of(file.read())] == [written]
    assert os.listdir("pictures") == [os.fsdecode(b"caf\xe9\n$1$.wav.png")]
    assert main(command) == 0
    assert "0 files (1 more were done before), 0 bad" in capsys.readouterr().err
    assert main(["predict", model, name]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(r"clips/caf\udce9\n$1$.wav  ")
    for output in ("out.parquet", "out.npz"):
        assert main(["embed", model, name, "--output", output]) == 0
    assert pandas.read_parquet("out.parquet")["file"].tolist() == np.load("out.npz")["files"].tolist() == [written]


def test_pictures_are_in_folders_as_the_files_are(clips, model, tmp_path):
    shutil.copy("clips/a.flac", "clips/more/a.flac")
    assert main(["predict", model, "clips", "--timeline", "pictures"]) == 0
    written = sorted(
        path.relative_to(tmp_path / "pictures").as_posix() for path in (tmp_path / "pictures").rglob("*.*")
    )
    assert written == ["a.flac.png", "b.wav.png", "more/a.flac.png", "more/c.ogg.png"]


def test_a_picture_that_cannot_be_written_stops_nothing(clips, model, capsys):
    long, too_long = f"{'a' * 236}.wav", f"{'b' * 251}.wav"  # 255 bytes are the most, with .png too
    for name in (long, too_long, "c.wav"):
        shutil.copy("clips/a.flac", name)
    command = ["predict", model, "--format", "jsonl", "--timeline", "pictures"]
    assert main([*command, long, too_long, "c.wav"]) == 2
    out, err = capsys.readouterr()
    assert [row["file"] for row in rows_of(out) if "label" in row] == [long, too_long, "c.wav"]
    assert f"bad: {too_long}: no picture: " in err
    assert sorted(os.listdir("pictures")) == [f"{long}.png", "c.wav.png"]
    assert main([*command, too_long]) == 2  # the row is there


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 4799])
def test_pictures_of_one_window_and_of_two_hours_with_pauses(tmp_path, count):
    heard = {"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}}
    windows = [{"start": 1.5 * k, "end": 1.5 * k + 3, **heard} for k in range(count)]
    for window in windows[600:1400]:
        window |= {"label": None, "probabilities": None}
    plot_timeline(tmp_path / "new" / "clip.png", "$clip 1.wav", windows, ["yes", "no"])
    assert (tmp_path / "new" / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_without_matplotlib(clips, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        main(["predict", model, "clips", "--timeline", "pictures"])


def test_embeddings_are_the_pipelines(clips, model):
    pipeline = load_pipeline(model)
    for layer, asked in (("last", True), ("2", 2), ("weighted", "weighted")):
        expected = {name: pipeline(f"clips/{name}", embeddings=asked) for name in ("a.flac", "b.wav")}
        command = ["embed", model, "clips/a.flac", "clips/b.wav", "--layer", layer]
        assert main([*command, "--output", "out.parquet"]) == 0
        table = pandas.read_parquet("out.parquet")
        assert list(table) == ["file", "start", "end", "embedding"]
        assert table["file"].tolist() == ["clips/a.flac", "clips/b.wav"]
        assert table["end"].tolist() == [1.0, 5.2]
        of_clips = np.stack([result["embedding"] for result in expected.values()])
        assert np.stack(table["embedding"]).dtype == np.float32
        assert np.array_equal(np.stack(table["embedding"]), of_clips)

        assert main([*command, "--output", "out.npz", "--per", "window"]) == 0
        with np.load("out.npz") as arrays:
            of_windows = [window["embedding"] for result in expected.values() for window in result["windows"]]
            assert np.array_equal(arrays["embeddings"], np.stack(of_windows))
            assert arrays["files"].tolist() == ["clips/a.flac", *["clips/b.wav"] * 3]
            assert arrays["starts"].tolist() == [0, 0, 1.5, 3]
            assert arrays["ends"].tolist() == [1, 3, 4.5, 5.2]


def test_embeddings_of_the_good_files(clips, model, capsys):
    write_bad_files()
    assert main(["embed", model, "clips", "--output", "out.parquet", "--per", "window"]) == 2
    assert "bad: clips/nan.wav" in capsys.readouterr().err
    assert pandas.read_parquet("out.parquet")["file"].value_counts().to_dict() == {
        **{"clips/a.flac": 1, "clips/b.wav": 3, "clips/more/c.ogg": 1}
    }
    assert sorted(os.listdir()) == ["clips", "out.parquet"]


def test_silence_and_noise_are_not_classified(clips, model, capsys):
    soundfile.write("zero.wav", np.zeros(80_000), 16_000)
    soundfile.write("noise.wav", 0.1 * np.random.default_rng(0).standard_normal(100), 16_000)
    command = ["predict", model, "zero.wav", "noise.wav", "clips/b.wav", "--vad"]
    assert main([*command, "--format", "jsonl", "--timeline", "pictures"]) == 0
    for row, ends in zip(rows_of(capsys.readouterr().out), ([3, 4.5, 5], [0.00625], [3, 4.5, 5.2]), strict=True):
        nothing = {"label": None, "probabilities": None, "arousal": None, "valence": None}
        assert {name: row[name] for name in nothing} == nothing
        assert [window["end"] for window in row["windows"]] == ends
        assert all({name: window[name] for name in nothing} == nothing for window in row["windows"])
    assert main(command) == 0
    assert capsys.readouterr().out.count("no speech") == 3
    assert main([*command, "--format", "csv"]) == 0
    assert [row["label"] for row in csv.DictReader(capsys.readouterr().out.splitlines())] == ["", "", ""]
    assert main(["embed", *command[1:], "--output", "out.npz"]) == 1
    assert "bad: zero.wav: there is no speech in it" in capsys.readouterr().err


@pytest.fixture
def spoken(shared):
    """Four seconds of speech, 16 kHz."""
    files = [shared / "corpora" / "emodb" / "audio" / name for name in ("03a01Fa.flac", "03a02Fc.flac", "03a01Wa.flac")]
    return np.concatenate([read_audio(file) for file in files])[:64_000]


def test_windows_of_speech_alone_make_the_answer(clips, model, spoken, capsys):
    """Speech from 9 to 13 s of 24: the windows from 7.5 to 12 s hear it."""
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(24 * 16_000)
    quiet[9 * 16_000 : 13 * 16_000] += spoken
    soundfile.write("pauses.wav", quiet, 16_000)
    assert main(["predict", model, "pauses.wav", "--format", "jsonl", "--vad"]) == 0
    (row,) = rows_of(capsys.readouterr().out)
    heard = [window["start"] for window in row["windows"] if window["label"] is not None]
    assert heard == [7.5, 9.0, 10.5, 12.0]
    assert row["windows"][6]["speech"] > 0.8 > 0.0 == row["windows"][0]["speech"]
    every = {window["start"]: window for window in load_pipeline(model)("pauses.wav", embeddings=True)["windows"]}
    assert len(every) == len(row["windows"])
    for window in row["windows"]:
        if window["start"] in heard:
            assert window["probabilities"] == pytest.approx(every[window["start"]]["probabilities"], abs=1e-6)
    for name, value in row["probabilities"].items():
        assert value == pytest.approx(np.mean([every[start]["probabilities"][name] for start in heard]), abs=1e-6)

    assert main(["embed", model, "pauses.wav", "--output", "out.npz", "--vad", "--per", "window"]) == 0
    assert np.load("out.npz")["starts"].tolist() == heard
    assert main(["embed", model, "pauses.wav", "--output", "out.npz", "--vad"]) == 0
    expected = np.mean([every[start]["embedding"] for start in heard], axis=0)
    assert np.allclose(np.load("out.npz")["embeddings"], expected, atol=1e-6)


def test_the_detector_is_sileros_and_leaves_torchs_threads_alone(spoken):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        heard = [(window, speech_seconds(window)) for _, window in iter_windows([spoken[:60_001]], 2.0)]
        assert torch.get_num_threads() == threads + 1
        from silero_vad import load_silero_vad

        silero = load_silero_vad(sequence=True)
    finally:
        torch.set_num_threads(threads)
    for window, seconds in heard:
        assert seconds == pytest.approx(0.032 * (silero.audio_forward(window) >= 0.3).sum())
