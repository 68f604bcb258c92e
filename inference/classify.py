"""What `exhubert predict` and `exhubert embed` share: a model, and a file through it, with speech detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exhubert.audio_exhubert import SAMPLING_RATE, AudioFile
from exhubert.inference.speech import SHORTEST_SPEECH_SECONDS, speech_seconds
from exhubert.model_folder.load import load_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline


def open_pipeline(model: str, vad: bool, **options: Any) -> ExHuBERTPipeline:
    """Loads a model, and tries the options on a little silence: what they do not allow is no file's fault.

    Args:
        model: folder or Hub id.
        vad: whether speech detection will be needed.
        options: `window_seconds`, `hop_seconds` and `embeddings`, as the pipeline takes them.

    Raises:
        ValueError: if it is no model folder, or does not allow an option.
        OSError: if there is no such model.
        ImportError: if speech detection is not installed.
    """
    silence = np.zeros(SAMPLING_RATE // 10, np.float32)
    if vad:
        speech_seconds(silence)
    pipeline = load_pipeline(model)
    list(pipeline.stream([silence], **options))
    return pipeline


def classify_file(
    pipeline: ExHuBERTPipeline, audio: AudioFile, on_progress: Callable[[float], None], vad: bool, **options: Any
) -> dict[str, Any]:
    """Returns what the pipeline returns for an audio file.

    With speech detection each window has `speech`, its share from 0 to 1. A window with less than a quarter of a
    second of it is not classified: its values are None, and have no part in the clip's, which are None where there is
    no speech at all. Nor is there an embedding.

    Args:
        pipeline: of `open_pipeline`, as `vad` and `options` are.
        audio: as `iter_audio` takes it.
        on_progress: called with the seconds that were decoded, many times in a file.
        vad, options: see `open_pipeline`.

    Raises:
        ValueError, OSError: for audio that cannot be read.
    """
    shares = []

    def has_speech(samples: np.ndarray) -> bool:
        seconds = speech_seconds(samples)
        shares.append(round(min(1.0, seconds * SAMPLING_RATE / len(samples)), 3))
        return seconds >= SHORTEST_SPEECH_SECONDS

    result = pipeline(audio, keep=has_speech if vad else None, on_progress=on_progress, **options)
    if vad:
        for window, share in zip(result["windows"], shares, strict=True):
            window["speech"] = share
    return result
