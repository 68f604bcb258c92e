"""From audio to model input: decode, resample, cut, pad, normalise.

Everything that feeds the model goes through here: training, evaluation, pipeline and the feature extractor.
The published model was trained on 3 s of 16 kHz mono, cut or zero-padded, then normalised to zero mean and unit
variance with the padding included, without an attention mask.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
from transformers import Wav2Vec2FeatureExtractor

try:
    import soundfile
    import soxr
except (ImportError, OSError):  # only reading files needs them, the model does not; OSError: no libsndfile
    soundfile = soxr = None

AudioFile = str | os.PathLike[str] | BinaryIO
SAMPLING_RATE = 16_000  # Hz
WINDOW_SECONDS = 3.0


def prepare_input(samples: np.ndarray, window_seconds: float | None = WINDOW_SECONDS) -> np.ndarray:
    """Turns samples into model input.

    Args:
        samples: 16 kHz mono, `(samples,)`.
        window_seconds: the first `window_seconds` are kept and shorter audio is zero-padded at its end; None
            keeps the length as it is.

    Returns:
        float32 `(window_seconds * 16000,)`: zero mean and unit variance over all of it, padding included.

    Raises:
        ValueError: if `samples` is not one-dimensional, is empty, or holds NaN or infinite values.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"audio of shape {samples.shape}; mono samples (samples,) are needed, at least one")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinite samples")
    if window_seconds is not None:
        window = round(window_seconds * SAMPLING_RATE)
        samples = samples[:window]
        samples = np.pad(samples, (0, window - len(samples)))
    # The formula of Wav2Vec2FeatureExtractor, so that its users get the same numbers.
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def audio_seconds(audio: AudioFile) -> float:
    """Returns the length of an audio file in seconds, from its header; raises as `read_audio`."""
    with _open(audio) as file:
        if not file.frames:
            raise ValueError(f"{_name(audio)}: the audio file is empty (0 samples)")
        return file.frames / file.samplerate


def read_audio(audio: AudioFile, start_seconds: float = 0.0, duration_seconds: float | None = None) -> np.ndarray:
    """Reads a file, or a part of it by seeking, as 16 kHz mono.

    Args:
        audio: path or binary file of anything that libsndfile decodes (wav, flac, ogg, mp3, ...), any rate, any
            number of channels.
        start_seconds: where to begin.
        duration_seconds: how much to read; None reads to the end.

    Returns:
        float32 `(samples,)` at 16 kHz, channels averaged.

    Raises:
        ValueError: if the file does not decode, is empty, or holds NaN or infinite samples; names the file.
        FileNotFoundError: if there is no such file.
    """
    with _open(audio) as file:
        rate = file.samplerate
        try:
            file.seek(min(round(start_seconds * rate), file.frames))
            frames = -1 if duration_seconds is None else round(duration_seconds * rate)
            samples = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{_name(audio)}: the audio does not decode ({error})") from error
    if not len(samples):
        raise ValueError(f"{_name(audio)}: no audio at {start_seconds} s (the file is empty or ends before)")
    if not np.isfinite(samples).all():
        raise ValueError(f"{_name(audio)}: the audio holds NaN or infinite samples")
    return resample(samples, rate)


def resample(samples: np.ndarray, sampling_rate: float) -> np.ndarray:
    """Resamples mono `(samples,)` from `sampling_rate` Hz to 16 kHz, as float32 (soxr, very high quality)."""
    if sampling_rate == SAMPLING_RATE:
        return np.asarray(samples, dtype=np.float32)
    _require_audio_libraries()
    return soxr.resample(np.asarray(samples, dtype=np.float32), sampling_rate, SAMPLING_RATE, quality="VHQ")


def _open(audio: AudioFile) -> Any:
    _require_audio_libraries()
    if not hasattr(audio, "read") and not os.path.isfile(audio):
        raise FileNotFoundError(f"{_name(audio)}: no such audio file")
    try:
        return soundfile.SoundFile(audio)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, which say no rate
        raise ValueError(f"{_name(audio)}: the audio does not decode ({error})") from error


def _name(audio: AudioFile) -> str:
    return os.fspath(audio) if isinstance(audio, str | os.PathLike) else "audio given as bytes"


def _require_audio_libraries() -> None:
    if soundfile is None:
        raise ImportError("reading and resampling audio needs soundfile and soxr: pip install soundfile soxr")


class ExHuBERTFeatureExtractor(Wav2Vec2FeatureExtractor):
    """`Wav2Vec2FeatureExtractor` whose defaults are the published model's input.

    A bare `feature_extractor(samples)` cuts or zero-pads to `window_seconds` and then normalises, without an
    attention mask: the numbers of `prepare_input`. Explicit arguments win.

    Args:
        window_seconds: length of the input in seconds.
        kwargs: the other fields of `Wav2Vec2FeatureExtractor`.
    """

    def __init__(self, window_seconds: float = WINDOW_SECONDS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window_seconds = window_seconds

    def __call__(self, raw_speech: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Wav2Vec2FeatureExtractor.__call__`, with `padding`, `truncation` and `max_length` set to the window."""
        if not args and "padding" not in kwargs and "max_length" not in kwargs:
            window = round(self.window_seconds * self.sampling_rate)
            kwargs = {"padding": "max_length", "max_length": window, "truncation": True, **kwargs}
        kwargs.setdefault("sampling_rate", self.sampling_rate)
        return super().__call__(raw_speech, *args, **kwargs)


ExHuBERTFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
