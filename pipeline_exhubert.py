"""`pipeline("speech-emotion-recognition")`: classifies audio of any length in windows.

The model saw windows of 3 s in training, so longer audio is cut into overlapping windows; the clip's
probabilities are the mean over its windows.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .audio_exhubert import (
    SAMPLING_RATE,
    extract_features,
    iter_windows,
    longest_input_seconds,
    read_audio,
    resample,
)

PIPELINE_TASK = "speech-emotion-recognition"
# What `config.json` says, for `transformers.pipeline` to find the class.
CUSTOM_PIPELINES = {
    PIPELINE_TASK: {
        "impl": "pipeline_exhubert.ExHuBERTPipeline",
        "pt": ["AutoModelForAudioClassification"],
        "tf": [],
        "type": "audio",
    }
}
WINDOWS_PER_FORWARD = 8


class ExHuBERTPipeline(Pipeline):
    """Speech emotion recognition on a path, the bytes of a file, 16 kHz samples, or `{"array", "sampling_rate"}`.

    Call arguments:
        window_seconds: length of a window; the model folder's window (3 s) by default.
        hop_seconds: distance of two windows; half a window by default.

    Returns, for each input, a dict: `label`, `probabilities` (class name to mean probability over the windows)
    and `windows`, a list of `start` and `end` in seconds, `label`, `probabilities`.

    Raises:
        ValueError: for audio that does not decode, is empty, or holds NaN, or a window or hop that is not positive.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Classifies one input, or each of a list or generator; `batch_size` has no effect, windows are batched."""
        return super().__call__(inputs, **{**kwargs, "batch_size": 1})

    def _sanitize_parameters(
        self, window_seconds: float | None = None, hop_seconds: float | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; known: window_seconds, hop_seconds")
        options = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        return given, {}, {}

    def preprocess(
        self, inputs: Any, window_seconds: float | None = None, hop_seconds: float | None = None
    ) -> dict[str, Any]:
        """Returns the model's input of the windows, `(windows, ...)`, with their `spans` in seconds."""
        samples = _samples(inputs)
        seconds = longest_input_seconds(self.feature_extractor) if window_seconds is None else window_seconds
        windows, spans = [], []
        for start, window in iter_windows([samples], seconds, hop_seconds):
            windows.append(extract_features(window, self.feature_extractor, window_seconds))
            spans.append((start / SAMPLING_RATE, (start + len(window)) / SAMPLING_RATE))
        if not windows:
            raise ValueError("audio of shape (0,), with no samples; mono samples (samples,) are needed")
        return {"windows": torch.from_numpy(np.stack(windows)), "spans": spans}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        batches = model_inputs["windows"].to(self.model.dtype).split(WINDOWS_PER_FORWARD)
        logits = torch.cat([self.model(batch).logits for batch in batches])
        # What `evaluate_hf.py --calibrate` found; a model that was not calibrated has none.
        logits = logits.float() / getattr(self.model.config, "calibration_temperature", 1.0)
        return {"probabilities": logits.softmax(dim=-1), "spans": model_inputs["spans"]}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Names classes and averages over the windows."""
        probabilities = model_outputs["probabilities"]
        windows = [
            {"start": start, "end": end, **self._named(row)}
            for (start, end), row in zip(model_outputs["spans"], probabilities, strict=True)
        ]
        return {**self._named(probabilities.mean(dim=0)), "windows": windows}

    def _named(self, probabilities: torch.Tensor) -> dict[str, Any]:
        names = self.model.config.id2label
        return {
            "label": names[int(probabilities.argmax())],
            "probabilities": {names[index]: value for index, value in enumerate(probabilities.tolist())},
        }


def _samples(inputs: Any) -> np.ndarray:
    """16 kHz mono samples of whatever the pipeline takes."""
    if isinstance(inputs, str | os.PathLike):
        return read_audio(inputs)
    if isinstance(inputs, bytes):
        return read_audio(io.BytesIO(inputs))
    if isinstance(inputs, dict):
        if "sampling_rate" not in inputs or not ({"array", "raw"} & inputs.keys()):
            raise ValueError(f"a dict of {sorted(inputs)}; 'array' and 'sampling_rate' are needed")
        samples = np.asarray(inputs["array"] if "array" in inputs else inputs["raw"])
        if samples.ndim != 1:
            raise ValueError(f"audio of shape {samples.shape}; mono samples (samples,) are needed")
        return resample(samples, inputs["sampling_rate"])
    return np.asarray(inputs, dtype=np.float32)
