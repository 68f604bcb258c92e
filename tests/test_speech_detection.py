"""Speech detection, `--vad`: what is left out, what is left, and that the detector is silero's.

python -m pytest tests/test_speech_detection.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch

from exhubert.audio_exhubert import iter_windows, read_audio
from exhubert.cli import main
from exhubert.inference.speech import speech_seconds
from exhubert.model_folder import load_pipeline

NOTHING = {"label": None, "probabilities": None, "arousal": None, "valence": None}


def test_silence_and_noise_are_not_classified(clips, classifier_folder, capsys):
    soundfile.write("zero.wav", np.zeros(80_000), 16_000)
    soundfile.write("noise.wav", 0.1 * np.random.default_rng(0).standard_normal(100), 16_000)
    command = ["predict", classifier_folder, "zero.wav", "noise.wav", "clips/b.wav", "--vad"]
    assert main([*command, "--format", "jsonl", "--timeline", "pictures"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, ends in zip(rows, ([3, 4.5, 5], [0.00625], [3, 4.5, 5.2]), strict=True):
        assert {name: row[name] for name in NOTHING} == NOTHING
        assert [window["end"] for window in row["windows"]] == ends
        assert all({name: window[name] for name in NOTHING} == NOTHING for window in row["windows"])
    assert main(command) == 0
    assert capsys.readouterr().out.count("no speech") == 3
    assert main([*command, "--format", "csv"]) == 0
    assert [row["label"] for row in csv.DictReader(capsys.readouterr().out.splitlines())] == ["", "", ""]
    assert main(["embed", *command[1:], "--output", "out.parquet"]) == 1
    assert "bad: zero.wav: there is no speech in it" in capsys.readouterr().err


@pytest.fixture
def spoken(shared):
    """Four seconds of speech, 16 kHz."""
    files = [shared / "corpora" / "emodb" / "audio" / name for name in ("03a01Fa.flac", "03a02Fc.flac", "03a01Wa.flac")]
    return np.concatenate([read_audio(file) for file in files])[:64_000]


def test_windows_of_speech_alone_make_the_answer(clips, classifier_folder, spoken, capsys):
    """Speech from 9 to 13 s of 24: the windows from 7.5 to 12 s hear it."""
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(24 * 16_000)
    quiet[9 * 16_000 : 13 * 16_000] += spoken
    soundfile.write("pauses.wav", quiet, 16_000)
    assert main(["predict", classifier_folder, "pauses.wav", "--format", "jsonl", "--vad"]) == 0
    row = json.loads(capsys.readouterr().out)
    heard = [window["start"] for window in row["windows"] if window["label"] is not None]
    assert heard == [7.5, 9.0, 10.5, 12.0]
    assert row["windows"][6]["speech"] > 0.8 > 0.0 == row["windows"][0]["speech"]
    every = {
        window["start"]: window for window in load_pipeline(classifier_folder)("pauses.wav", embeddings=True)["windows"]
    }
    assert len(every) == len(row["windows"])
    for window in row["windows"]:
        if window["start"] in heard:
            assert window["probabilities"] == pytest.approx(every[window["start"]]["probabilities"], abs=1e-6)
    for name, value in row["probabilities"].items():
        assert value == pytest.approx(np.mean([every[start]["probabilities"][name] for start in heard]), abs=1e-6)

    command = ["embed", classifier_folder, "pauses.wav", "--output", "out.parquet", "--vad"]
    assert main([*command, "--per", "window"]) == 0
    assert pandas.read_parquet("out.parquet")["start"].tolist() == heard
    Path("out.parquet").unlink()
    assert main(command) == 0
    (embedding,) = pandas.read_parquet("out.parquet")["embedding"]
    assert np.allclose(embedding, np.mean([every[start]["embedding"] for start in heard], axis=0), atol=1e-6)


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
