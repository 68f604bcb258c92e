"""Noise, telephone and codec conditions of an evaluation: `python -m pytest tests/test_degradations.py`."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import correlate, periodogram

from exhubert.evaluation.degradations import CONDITIONS, degrade

RATE = 16_000


def syllables(seconds: float = 2.0, pitch: float = 140.0) -> np.ndarray:
    """Four syllables a second of a voice with falling harmonics, `(samples,)`."""
    time = np.arange(round(RATE * seconds)) / RATE
    voice = sum(np.sin(2 * np.pi * pitch * k * time + k**2) / k for k in range(1, 40))
    return (0.1 * voice * np.sin(4 * np.pi * time) ** 2).astype(np.float32)


def level(samples: np.ndarray, low: float, high: float) -> float:
    """Level of a band in dB."""
    frequencies, density = periodogram(samples, RATE)
    return float(10 * np.log10(density[(frequencies >= low) & (frequencies < high)].sum()))


def ratio_db(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(signal.astype(np.float64) ** 2) / np.mean(noise.astype(np.float64) ** 2)))


@pytest.mark.parametrize("snr_db", [20, 10, 5, 0])
@pytest.mark.parametrize("pause", [0.0, 3.0])
def test_noise_reaches_its_ratio_to_the_speech_whatever_the_pauses(snr_db: int, pause: float) -> None:
    speech = (0.2 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)).astype(np.float32)
    clip = np.pad(speech, round(pause / 2 * RATE))
    noise = degrade(clip, f"noise {snr_db} dB", "a") - clip
    assert ratio_db(speech, noise) == pytest.approx(snr_db, abs=0.1)


def test_noise_has_the_spectrum_of_speech_and_not_of_the_clip() -> None:
    for pitch in (100.0, 3000.0):
        clip = syllables(10.0, pitch)
        noise = degrade(clip, "noise 0 dB", "a") - clip
        # Octaves of the published third-octave levels: 62.1, 62.1, 60.5 around 500 Hz, 46.8, 45.6, 44.5 around 4 kHz.
        assert level(noise, 355, 710) - level(noise, 2800, 5600) == pytest.approx(66.4 - 50.5, abs=1.0)
        assert level(noise, 355, 710) - level(noise, 0, 70) > 20


def test_noise_follows_the_key_alone() -> None:
    clip = syllables()
    first = degrade(clip, "noise 5 dB", "corpus/a.wav")
    np.testing.assert_array_equal(degrade(clip, "noise 5 dB", "corpus/a.wav"), first)
    noise, other = first - clip, degrade(clip, "noise 5 dB", "corpus/b.wav") - clip
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1
    louder = degrade(clip, "noise 0 dB", "corpus/a.wav") - clip  # so that conditions differ in level alone
    np.testing.assert_allclose(louder, noise * 10 ** (5 / 20), atol=1e-5)


def test_telephone_keeps_its_band_and_removes_the_rest() -> None:
    clip = (0.1 * np.random.default_rng(0).standard_normal(4 * RATE)).astype(np.float32)
    line = degrade(clip, "telephone", "a")
    assert level(line, 400, 3300) == pytest.approx(level(clip, 400, 3300), abs=0.2)
    for low, high in ((0, 230), (3500, 4000), (4200, 8000)):
        assert level(line, low, high) < level(clip, low, high) - 30


@pytest.mark.parametrize("amplitude", [0.003, 0.5])
def test_telephone_quantises_by_mu_law_without_delay_or_change_of_level(amplitude: float) -> None:
    clip = (amplitude * np.sin(2 * np.pi * 1017 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    inner = slice(1000, -1000)
    error = (degrade(clip, "telephone", "a") - clip)[inner]
    # mu-law's 8 bits give about 38 dB to loud sounds and less to quiet ones; 8 linear bits would give 0.003 nothing.
    assert (20 if amplitude < 0.1 else 33) < ratio_db(clip[inner], error) < 45


def test_opus_loses_detail_and_neither_time_nor_level() -> None:
    clip = syllables()
    decoded = degrade(clip, "opus 8 kbit/s", "a")
    assert abs(int(np.argmax(correlate(decoded, clip, method="fft"))) - (len(clip) - 1)) <= 1
    assert 0.8 < np.corrcoef(clip, decoded)[0, 1] < 0.999
    assert level(decoded, 100, 3000) == pytest.approx(level(clip, 100, 3000), abs=2)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_length_and_type_stay_and_hard_clips_pass(condition: str) -> None:
    for seconds in (0.05, 1.0, 3.7, 1.00007):
        clip = syllables(seconds)
        result = degrade(clip, condition, "a")
        assert result.shape == clip.shape and result.dtype == np.float32 and np.isfinite(result).all()
        assert not np.array_equal(result, clip)
    silence = np.zeros(RATE, dtype=np.float32)
    assert np.abs(degrade(silence, condition, "a")).max() <= 2**-15
    overdriven = (1.5 * np.sin(2 * np.pi * 1017 * np.arange(RATE) / RATE)).astype(np.float32)
    assert np.corrcoef(overdriven, degrade(overdriven, condition, "a"))[0, 1] > 0.65  # a wrap-around turns the sign
    assert np.isfinite(degrade(clip[:1], condition, "a")).all()


def test_unknown_condition_names_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"'noise 3 dB'; there are: noise 20 dB, .*telephone, opus 8 kbit/s"):
        degrade(syllables(), "noise 3 dB", "a")
