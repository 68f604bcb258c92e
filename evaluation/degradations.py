"""Conditions under which an evaluation is repeated to see how robust a model is: noise, telephone, codec.

All take and return 16 kHz mono, float32 `(samples,)`, of the same length and without delay. They are pure functions of
the samples and, where they are random, of a key, so that batches, processes and runs change nothing.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import soxr
from scipy.signal import fftconvolve, firwin

from exhubert.audio_exhubert import SAMPLING_RATE

FRAME_SAMPLES = 320  # 20 ms
ACTIVE_DB = 30.0  # below the loudest frame: quieter frames are pauses
# The long-term average spectrum of the speech of men and women in twelve languages: centres (Hz) and levels (dB) of
# third-octave bands (Byrne et al. 1994, "An international comparison of long-term average speech spectra", Journal of
# the Acoustical Society of America 96(4), Table II).
SPEECH_BANDS = 1000 * 10 ** (np.arange(-12, 10) / 10)
SPEECH_LEVELS = np.array(
    (
        *(38.6, 43.5, 54.4, 57.7, 56.8, 60.2, 60.3, 59.0),  # 63 to 315 Hz
        *(62.1, 62.1, 60.5, 56.8, 53.7, 53.0, 52.0),  # 400 to 1600 Hz
        *(48.7, 48.1, 46.8, 45.6, 44.5, 44.3, 43.7),  # 2000 to 8000 Hz
    )
)
TELEPHONE_RATE = 8_000  # Hz
TELEPHONE_BAND = (300.0, 3400.0)  # Hz, 6 dB down
TELEPHONE_TAPS = 255  # 50 dB down within 60 Hz of the band
OPUS_LEVEL = 0.992  # libsndfile's compression level, from 0 (256 kbit/s a channel) to 1 (6 kbit/s)


def add_noise(samples: np.ndarray, key: str, snr_db: float) -> np.ndarray:
    """Adds speech-shaped noise: Gaussian noise with the long-term average spectrum of speech, the same for all clips.

    The signal-to-noise ratio is that of the clip's active speech (the mean power of its frames of 20 ms that are at
    most 30 dB below the loudest one), so that pauses before, in and after the speech do not change what a condition
    means. What noise a recording has itself counts as signal. Silence stays as it is.

    The key seeds the noise, which is the same at each ratio. What is returned is not clipped, may exceed 1.
    """
    signal = np.asarray(samples, dtype=np.float64)
    frames = np.array_split(signal**2, max(1, len(signal) // FRAME_SAMPLES))
    powers = np.array([frame.mean() for frame in frames])
    active = powers[powers >= powers.max() * 10 ** (-ACTIVE_DB / 10)].mean()

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(len(signal)))
    densities = SPEECH_LEVELS - 10 * np.log10(SPEECH_BANDS)  # a band's width grows with its centre
    frequencies = np.fft.rfftfreq(len(signal), 1 / SAMPLING_RATE)
    spectrum *= 10 ** (np.interp(frequencies, SPEECH_BANDS, densities) / 20)
    noise = np.fft.irfft(spectrum, len(signal))
    noise *= np.sqrt(active * 10 ** (-snr_db / 10) / np.mean(noise**2))
    return (signal + noise).astype(np.float32)


def telephone(samples: np.ndarray) -> np.ndarray:
    """A narrow-band line: 300 to 3400 Hz at 8 kHz, clipped at 1, quantised as ITU-T G.711 mu-law; the level stays."""
    narrow = soxr.resample(np.asarray(samples, dtype=np.float32), SAMPLING_RATE, TELEPHONE_RATE, quality="VHQ")
    band_pass = firwin(TELEPHONE_TAPS, TELEPHONE_BAND, pass_zero=False, fs=TELEPHONE_RATE)
    line = _round_trip(fftconvolve(narrow, band_pass, mode="same"), TELEPHONE_RATE, format="WAV", subtype="ULAW")
    wide = soxr.resample(line, TELEPHONE_RATE, SAMPLING_RATE, quality="VHQ")[: len(samples)]
    return np.pad(wide, (0, len(samples) - len(wide)))


def opus(samples: np.ndarray) -> np.ndarray:
    """Encodes and decodes by Opus at a target of 8 kbit/s; clipped at 1.

    Opus is free to vary its rate: measured without the Ogg container, 200 clips of acted speech (CREMA-D, EMO-DB,
    nEMO, RAVDESS) took 4.4 to 8.0 and on average 6.9 kbit/s. Most of what is above 4 kHz is lost. libsndfile makes up
    for the codec's delay.
    """
    return _round_trip(samples, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)


def _round_trip(samples: np.ndarray, rate: int, **encoding: Any) -> np.ndarray:
    """Writes and reads an audio file in memory."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1.0, 1.0).astype(np.float32), rate, **encoding)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


CONDITIONS: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
    **{f"noise {snr_db} dB": functools.partial(add_noise, snr_db=snr_db) for snr_db in (20, 10, 5, 0)},
    "telephone": lambda samples, key: telephone(samples),
    "opus 8 kbit/s": lambda samples, key: opus(samples),
}


def degrade(samples: np.ndarray, condition: str, key: str) -> np.ndarray:
    """Returns a clip as it would be under a condition.

    Args:
        samples: 16 kHz mono, `(samples,)`, at least one: the whole clip, before it is cut into windows.
        condition: one of `CONDITIONS`.
        key: names the clip, for example its corpus and file name; other keys give other noise.

    Returns:
        float32 `(samples,)`.

    Raises:
        ValueError: for an unknown condition.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"no condition {condition!r}; there are: {', '.join(CONDITIONS)}")
    return CONDITIONS[condition](samples, key)
