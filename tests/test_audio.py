"""From audio files to model input: decoding, resampling, windows, normalisation, the feature extractor.

python -m pytest tests/test_audio.py
"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from transformers import Wav2Vec2FeatureExtractor

from exhubert import ExHuBERTFeatureExtractor
from exhubert.audio_exhubert import audio_seconds, prepare_input, read_audio, resample


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("seconds", [1.0, 3.0, 4.0])
def test_input_is_what_the_published_models_feature_extractor_makes(seconds):
    """Cut or zero-pad to 3 s, then normalise over all of it: the model card's preprocessing."""
    published = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, do_normalize=True)
    samples = tone(seconds)
    expected = published(samples, sampling_rate=16_000, padding="max_length", max_length=48_000, truncation=True)
    assert "attention_mask" not in expected
    got = prepare_input(samples)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected["input_values"][0])
    assert np.array_equal(ExHuBERTFeatureExtractor()(samples)["input_values"][0], got)


def test_padding_counts_in_the_normalisation():
    got = prepare_input(tone(1.0))
    assert got.std() == pytest.approx(1.0, abs=1e-4)
    assert got[:16_000].std() == pytest.approx(3**0.5, abs=0.01)


def test_silence_is_no_error_and_gives_finite_input():
    assert np.array_equal(prepare_input(np.zeros(100)), np.zeros(48_000))


def test_explicit_arguments_of_the_feature_extractor_win():
    extractor = ExHuBERTFeatureExtractor(window_seconds=2.0)
    assert len(extractor(tone(1.0))["input_values"][0]) == 32_000
    assert len(extractor(tone(1.0), padding=False)["input_values"][0]) == 16_000
    assert len(extractor(tone(1.0), padding="max_length", max_length=20_000)["input_values"][0]) == 20_000
    with pytest.raises(ValueError, match="sampling rate of 16000"):
        extractor(tone(1.0), sampling_rate=8000)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (44_100, 2), (48_000, 8)])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate, channels, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.repeat(tone(1.0, rate)[:, None], channels, axis=1), rate)
    got = read_audio(path)
    assert got.shape == (16_000,)
    assert np.abs(got[500:-500] - tone(1.0)[500:-500]).max() < 0.01
    assert audio_seconds(path) == pytest.approx(1.0)


def test_a_part_is_read_by_seeking(tmp_path):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 32_000), 16_000, subtype="FLOAT")
    whole = read_audio(path)
    assert np.array_equal(read_audio(path, 0.5, 1.0), whole[8000:24_000])
    assert np.array_equal(read_audio(path, 1.5, 1.0), whole[24_000:])


def test_resampling_keeps_the_pitch():
    got = resample(tone(1.0, 22_050), 22_050)
    assert np.abs(np.fft.rfft(got)).argmax() == 440


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no audio"), "does not decode"),
        (lambda path: path.write_bytes(b""), "does not decode"),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "empty"),
        (lambda path: soundfile.write(path, np.full(100, np.nan), 16_000, subtype="FLOAT"), "NaN"),
    ],
    ids=["text", "nothing", "no samples", "NaN"],
)
def test_bad_files_are_named(tmp_path, write, message):
    path = tmp_path / "bad.wav"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav: no such audio file"):
        read_audio(tmp_path / "gone.wav")


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.inf])])
def test_bad_samples_are_refused(samples):
    with pytest.raises(ValueError, match="audio"):
        prepare_input(samples)
