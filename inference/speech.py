"""Speech detection, so that silence and noise are not classified (silero-vad, of the extra `vad`)."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from exhubert.audio_exhubert import SAMPLING_RATE

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
    detector = _detector()
    (probabilities,) = detector.run(["speech_probs"], {"input": np.ascontiguousarray(frames), "h": zeros, "c": zeros})
    return int((probabilities >= THRESHOLD).sum()) * FRAME / SAMPLING_RATE


@functools.cache
def _detector() -> Any:
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
