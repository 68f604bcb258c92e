"""From samples to what a model takes: the normalised waveform, or the spectrogram of a Whisper, AST or BERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from exhubert.audio_exhubert import WINDOW_SECONDS, extract_features
from exhubert.model_folder.load import make_feature_extractor

ModelInput = Callable[[np.ndarray], np.ndarray]


def model_input(config: PretrainedConfig, window_seconds: float = WINDOW_SECONDS) -> tuple[str, ModelInput]:
    """Returns how a model takes audio.

    Args:
        config: of the model.
        window_seconds: length of the window in seconds; longer audio is cut to it, shorter is zero-padded.

    Returns:
        The name of the model's input (`input_values` or `input_features`), and a function, which can be sent to
        worker processes, from 16 kHz mono samples `(samples,)` to the float32 input of one clip: the waveform
        `(window_seconds * 16000,)`, or `(mel bins, frames)` for a Whisper, whose input is padded to its 30 s.

    Raises:
        ValueError: if the window is longer than the model's input.
    """
    extractor: Any = make_feature_extractor(config, window_seconds)
    make = partial(extract_features, extractor=extractor, window_seconds=window_seconds)
    return extractor.model_input_names[0], make
