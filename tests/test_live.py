"""`exhubert predict --live`: rows of a microphone, of which a file that plays takes the place.

python -m pytest tests/test_live.py
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from conftest import alike, refused
from exhubert.audio_exhubert import read_audio
from exhubert.cli import main
from exhubert.inference import live
from exhubert.inference.speech import Options
from exhubert.model_folder import load_pipeline


class FakeSound:
    """A sounddevice whose microphone plays a file, and ends with ctrl-c, or as a device that is pulled out.

    Args:
        file: what it plays.
        speed: how much faster than real time; None is as fast as it goes.
        unplugged: whether the end is no ctrl-c.
        overflow: the number of the block before which the device says that it lost some itself.
        wait: the number of a block, and what it waits for.
    """

    class PortAudioError(Exception):
        pass

    def __init__(self, file, speed=None, unplugged=False, overflow=None, wait=(None, None)):
        self.wait, self.waited = wait, False
        self.file, self.speed, self.unplugged, self.overflow = file, speed, unplugged, overflow
        self.opened, self.closed = [], 0

    def query_devices(self, kind):
        assert kind == "input"
        return {"name": "a fake\nmicrophone", "default_samplerate": float(soundfile.info(self.file).samplerate)}

    def InputStream(self, samplerate, blocksize, channels, dtype, callback):  # noqa: N802
        self.opened.append((samplerate, channels, dtype))
        stream = SimpleNamespace(active=True)

        def play():
            for number, block in enumerate(soundfile.blocks(self.file, blocksize, dtype=dtype, always_2d=True)):
                if number == self.wait[0]:
                    self.waited = self.wait[1].wait(60)
                callback(block, len(block), None, SimpleNamespace(input_overflow=number == self.overflow))
                block[:] = np.nan  # the device's own memory, which it uses again
                if self.speed:
                    time.sleep(len(block) / samplerate / self.speed)
            stream.active = False
            if not self.unplugged:
                os.kill(os.getpid(), signal.SIGINT)

        def close():
            self.closed += 1
            thread.join()

        thread = threading.Thread(target=play, daemon=True)
        stream.start, stream.close = thread.start, close
        return stream


@pytest.fixture
def plays(clips, monkeypatch):
    """Makes a file what the microphone hears."""

    def play(file="clips/b.wav", **how):
        sound = FakeSound(file, **how)
        monkeypatch.setitem(sys.modules, "sounddevice", sound)
        return sound

    return play


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("file", ["clips/b.wav", "clips/more/c.ogg", "clips/a.flac"])
def test_rows_are_the_windows_of_the_file(plays, classifier_folder, capsys, file):
    """At 8, 16 and 48 kHz; the last window, which ctrl-c cuts off, too."""
    sound = plays(file)
    assert main(["predict", classifier_folder, "--live", "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    rows = rows_of(out)
    expected = load_pipeline(classifier_folder)(file)["windows"]
    assert [(row["start"], row["end"]) for row in rows] == [(each["start"], each["end"]) for each in expected]
    for row, window in zip(rows, expected, strict=True):
        probabilities = {f"probability_{name}": value for name, value in window["probabilities"].items()}
        named = {name: window[name] for name in ("start", "end", "label", "arousal", "valence")}
        assert row.keys() == {*named, *probabilities}
        assert all(row[name] == pytest.approx(value, abs=1e-5) for name, value in {**named, **probabilities}.items())
    first, last = err.splitlines()
    rate = soundfile.info(file).samplerate
    assert first == f"listening to a fake\\nmicrophone at {rate:,} Hz; ctrl-c ends" and last.endswith(" heard")
    assert sound.opened == [(rate, 1, "float32")] and sound.closed == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_table_and_csv_say_the_same(plays, classifier_folder, capsys):
    command = ["predict", classifier_folder, "--live", "--window", "2", "--hop", "2"]
    texts = {}
    for style in ("jsonl", "csv", "table"):
        plays()
        assert main([*command, "--format", style]) == 0
        texts[style] = capsys.readouterr().out
    rows, table = rows_of(texts["jsonl"]), list(csv.DictReader(texts["csv"].splitlines()))
    assert [(row["start"], row["end"]) for row in rows] == [(0, 2), (2, 4), (4, 5.2)]
    header, *lines = texts["table"].splitlines()
    assert header.split() == ["start", "end", "label", "probability", "arousal", "valence"]
    for row, of_csv, line in zip(rows, table, lines, strict=True):
        assert {name: str(value) for name, value in row.items()} == {name: of_csv[name] for name in row}
        largest = max(value for name, value in row.items() if name.startswith("probability_"))
        numbers = [f"{largest:.3f}", f"{row['arousal']:+.2f}", f"{row['valence']:+.2f}"]
        assert line.split() == [f"{row['start']:.2f}", f"{row['end']:.2f}", row["label"], *numbers]


def test_turns_of_speech_have_a_row_each(plays, classifier_folder, shared, capsys):
    pytest.importorskip("onnxruntime")
    spoken = [read_audio(shared / "corpora" / "emodb" / "audio" / name) for name in ("03a01Fa.flac", "03a02Fc.flac")]
    quiet = np.zeros(32_000, np.float32)
    soundfile.write("talk.wav", np.concatenate([quiet, spoken[0], quiet, spoken[1], quiet]), 16_000)
    plays("talk.wav")
    limits = ["--least-probability", "0.99", "--least-seconds", "1.0"]
    assert main(["predict", classifier_folder, "--live", "--segments", "speech", *limits, "--format", "jsonl"]) == 0
    rows = rows_of(capsys.readouterr().out)
    expected = load_pipeline(classifier_folder)("talk.wav", segments="speech", least_probability=0.99)["segments"]
    assert [(row["start"], row["end"], row["label"], row["uncertain"]) for row in rows] == [
        (each["start"], each["end"], each["label"], "low probability") for each in expected
    ]
    assert len(rows) == 2
    plays("talk.wav")
    assert main(["predict", classifier_folder, "--live", "--segments", "speech", *limits]) == 0
    assert capsys.readouterr().out.count("uncertain: low probability") == 2
    plays("talk.wav")
    assert main(["predict", classifier_folder, "--live", "--vad", "--window", "1"]) == 0
    assert "no speech" in capsys.readouterr().out


def test_in_real_time_rows_are_there_before_the_end(plays, classifier_folder, monkeypatch):
    """Two seconds that take two seconds; at 1 s the sound waits for a row of the first half second."""
    soundfile.write("two.wav", read_audio("clips/b.wav")[:32_000], 16_000)
    first_row = threading.Event()
    sound = plays("two.wav", speed=1.0, wait=(20, first_row))
    rows = []

    class Terminal:
        def write(self, text):
            rows.extend(rows_of(text))

        def flush(self):
            if rows:
                first_row.set()

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["predict", classifier_folder, "--live", "--format", "jsonl", "--window", "0.5", "--hop", "0.5"]) == 0
    assert [row["end"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert sound.waited


def test_output_is_a_new_file(plays, classifier_folder, capsys):
    command = ["predict", classifier_folder, "--live", "--output", "out/rows.csv"]
    plays()
    assert main(command) == 0
    rows = list(csv.DictReader(Path("out/rows.csv").read_text().splitlines()))
    assert len(rows) == 3 and capsys.readouterr().out == ""
    assert "give another --output" in refused(capsys, main, *command)
    assert len(Path("out/rows.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["clips"], "--live hears the microphone, and has no audio files"),
        (["--timeline", "pictures"], "has no --timeline"),
        (["--summary", "summaries"], "has no --summary"),
        (["--files-from", "list"], "has no --files-from"),
        (["--segments", "turns.csv"], "or with --segments speech"),
        (["--channels", "each"], "of one channel"),
        (["--per", "clip"], "a row for each window"),
        (["--vad", "--segments", "speech"], "give one of them"),
        (["--output", "rows.txt"], ".jsonl or .csv"),
        (["--hop", "0"], "hop_seconds is 0.0"),
    ],
)
def test_what_does_not_go_together_ends_in_one_line(plays, classifier_folder, capsys, more, message):
    sound = plays()
    audio, options = (more, []) if more == ["clips"] else ([], more)
    assert message in refused(capsys, main, "predict", classifier_folder, *audio, "--live", *options)
    assert not sound.opened and not Path("rows.txt").exists()


def test_without_a_microphone_or_what_it_needs_it_is_one_line(plays, classifier_folder, capsys, monkeypatch):
    command = ["predict", classifier_folder, "--live"]

    def no_device(kind):
        raise FakeSound.PortAudioError("Error querying device -1")

    monkeypatch.setattr(plays(), "query_devices", no_device)
    assert refused(capsys, main, *command) == "error: no microphone can be opened: Error querying device -1"
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # not installed
    assert "pip install sounddevice" in refused(capsys, main, *command)
    monkeypatch.delitem(sys.modules, "sounddevice")
    folder = Path("stand_in")
    folder.mkdir()
    (folder / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(folder))
    assert "apt install libportaudio2" in refused(capsys, main, *command)


def test_a_device_that_is_pulled_out_ends_with_the_last_window(plays, classifier_folder, capsys):
    plays(unplugged=True)
    command = ["predict", classifier_folder, "--live", "--output", "rows.jsonl"]
    assert "gives no more sound; is it still connected?" in refused(capsys, main, *command)
    assert [row["end"] for row in rows_of(Path("rows.jsonl").read_text())] == [3, 4.5, 5.2]


def test_what_is_lost_is_said_and_times_stay_true(plays, classifier_folder, capsys, monkeypatch):
    """A queue of four blocks, to a model that takes none of them before all have come."""
    plays(overflow=1, unplugged=True)
    monkeypatch.setattr(live, "MOST_BLOCKS", 4)
    stopped = threading.Event()
    with live.Microphone(sys.modules["sounddevice"], stopped) as microphone:
        while microphone.stream.active:  # until all has been played
            time.sleep(0.01)
    assert microphone.waiting.qsize() == 4 and microphone.lost == (104 - 4) * 800
    callback_status = SimpleNamespace(input_overflow=False)
    pipeline = load_pipeline(classifier_folder)
    options = Options(window_seconds=0.15, hop_seconds=0.15)
    answers = live.answers_of(microphone, pipeline, options)
    first = next(answers)  # takes three of the four, so there is room again
    tone = np.sin(np.arange(800) / 10, dtype=np.float32)[:, None]
    microphone._take(tone, 800, None, callback_status)
    stopped.set()
    rest = list(answers)
    times = [(round(each["start"], 3), round(each["end"], 3)) for each in (first, *rest)]
    assert times == [(0, 0.15), (0.15, 0.2), (5.2, 5.25)]
    alone = list(pipeline.stream([tone[:, 0]], window_seconds=0.15))
    assert alike(rest[-1]["probabilities"], alone[0]["probabilities"])
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("note: at 0.05 s the device lost sound itself")
    assert err[1].startswith("note: at 0.20 s 5.00 s of sound were lost")


def test_a_second_ctrl_c_does_not_wait_for_the_model(plays, classifier_folder, capsys, monkeypatch):
    plays()
    passed = []

    def answers(*_):
        for number in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            passed.append(number)
            yield {}

    monkeypatch.setattr(live, "answers_of", answers)
    monkeypatch.setattr(live.Layout, "line", lambda *_: "")
    with pytest.raises(KeyboardInterrupt):
        main(["predict", classifier_folder, "--live"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
