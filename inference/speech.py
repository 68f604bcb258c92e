"""Files through a model, if asked for without silence and noise: speech detection by silero-vad (the extra `vad`)."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from exhubert.audio_exhubert import SAMPLING_RATE, AudioFile
from exhubert.model_folder.load import load_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline

FRAME = 512  # samples; what the detector judges at once
CONTEXT = 64  # samples before a frame that it hears as well
THRESHOLD = 0.3  # silero's own is 0.5, at which it misses more of shouted speech
SHORTEST_SPEECH_SECONDS = 0.25  # silero's own: less than that in a window is no speech


def speech_seconds(samples: np.ndarray) -> float:
    """Returns how much of a window is speech, in seconds, a multiple of 0.032.

    The detector hears each window anew, so the answer depends on nothing before it: it is the same for a file and
    for a stream.

    Args:
        samples: 16 kHz mono `(samples,)`, finite.

    Raises:
        ImportError: if silero-vad or onnxruntime is not installed.
    """
    samples = np.asarray(samples, dtype=np.float32)
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    zeros = np.zeros((1, 1, 128), np.float32)
    detector = load_detector()
    (probabilities,) = detector.run(["speech_probs"], {"input": np.ascontiguousarray(frames), "h": zeros, "c": zeros})
    return int((probabilities >= THRESHOLD).sum()) * FRAME / SAMPLING_RATE


@functools.cache
def load_detector() -> Any:
    """The detector as an onnxruntime session on one core."""
    # Its file alone: importing silero_vad would set torch to one thread, for the classifier as well.
    package = importlib.util.find_spec("silero_vad")
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    if package is None or package.origin is None or onnxruntime is None:
        raise ImportError("speech detection needs silero-vad and onnxruntime: pip install silero-vad onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_pipeline(model: str, vad: bool, trust_remote_code: bool = False, **options: Any) -> ExHuBERTPipeline:
    """Loads a model, and tries the options on a little silence: what they do not allow is no file's fault.

    Args:
        model: folder or Hub id.
        vad: whether speech detection will be needed.
        trust_remote_code: whether code that the model brings may run.
        options: `window_seconds`, `hop_seconds` and `embeddings`, as the pipeline takes them.

    Raises:
        ValueError: if it is no model folder, or does not allow an option.
        OSError: if there is no such model.
        ImportError: if speech detection is not installed.
    """
    silence = np.zeros(SAMPLING_RATE // 10, np.float32)
    if vad:
        speech_seconds(silence)
    pipeline = load_pipeline(model, trust_remote_code)
    trained = getattr(pipeline.feature_extractor, "window_seconds", None)
    if trained and (options.get("window_seconds") or 0) > trained:
        longer = f"is longer than the {trained:g} s that the model was trained on"
        print(f"note: --window {options['window_seconds']:g} {longer}", file=sys.stderr)
    try:
        list(pipeline.stream([silence], **options))
    except ValueError as error:
        if not str(error).startswith("the stream: "):  # an option
            raise
        raise ValueError(f"{model} does not run, not even on silence ({error}); is its config.json whole?") from error
    return pipeline


def classify_file(
    pipeline: ExHuBERTPipeline, audio: AudioFile, on_progress: Callable[[float], None], vad: bool, **options: Any
) -> dict[str, Any]:
    """Returns what the pipeline returns for an audio file.

    With speech detection each window has `speech`, its share from 0 to 1. A window with less than a quarter of a
    second of it is not classified: its values are None, and have no part in the clip's, which are None where there is
    no speech at all. Nor is there an embedding.

    `vad` and `options` are those of `open_pipeline`; `on_progress` is called with the seconds that were decoded, many
    times in a file.

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
