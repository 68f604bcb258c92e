"""`pipeline("speech-emotion-recognition")`: classifies audio of any length in windows, whole or while it comes in.

The model saw windows of 3 s in training, so longer audio is cut into overlapping windows; the clip's
probabilities are the mean over its windows. Audio is decoded, cut and classified piece by piece: what is held in
memory does not grow with the length of a file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .audio_exhubert import (
    SAMPLING_RATE,
    SHORTEST_INPUT_SECONDS,
    audio_name,
    extract_features,
    iter_audio,
    iter_windows,
    longest_input_seconds,
    resample_chunks,
)
from .configuration_exhubert import SIX_CLASSES

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
SAMPLES_AT_A_TIME = 2**20  # of an array
SHORTEST = {"window_seconds": SHORTEST_INPUT_SECONDS, "hop_seconds": 0.01}
INPUTS = "a path, the bytes of a file, a binary file, mono 16 kHz samples, or a dict of 'array' and 'sampling_rate'"

Window = tuple[float, float, np.ndarray]  # start and end in seconds, the model's input


class ExHuBERTPipeline(Pipeline):
    """Speech emotion recognition on audio of any length.

    An input is a path, the bytes of a file, a binary file, or mono samples `(samples,)`: an array at 16 kHz, or a dict
    of `array` and `sampling_rate`. Integers are scaled by their range. A list of inputs gives a list, a generator of
    inputs an iterable that takes one at a time.

    Call arguments:
        window_seconds: length of a window, at least 0.1; the model folder's window (3 s) by default.
        hop_seconds: distance of two windows, at least 0.01; half a window by default.
        embeddings: what to embed each window by: True is the model's last hidden state, a number that entry of its
            `hidden_states` (0: what its first layer gets; -1: as True), "weighted" the sum of all of them by the
            learned weights of a model with `use_weighted_layer_sum`. An embedding is the mean over the frames, padding
            included, as the model's own pooling. False, the default, leaves embeddings out.

    Returns, for each input, a dict:
        label: class name.
        probabilities: class name to mean probability over the windows.
        arousal, valence: P(high) - P(low) and P(positive) - P(negative), from -1 to 1; only if the model's classes are
            the six of the published model.
        embedding: float32 `(hidden_size,)`, the mean over the windows; only with `embeddings`.
        windows: a list of dicts of `start` and `end` in seconds, and the same for each window. The last one ends with
            the audio, and may be shorter than the others; it is padded for the model.

    Raises:
        ValueError: for audio that does not decode, is empty, or holds NaN; names the file, and the time where there is
            one. For arguments that the model or the audio does not allow.
        FileNotFoundError: if there is no such file.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Classifies one input, or each of a list or generator.

        `batch_size` and `num_workers` have no effect: the windows of each input are batched.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):
            inputs = (each for each in inputs)  # `map` and its like are generators to the base class, too
        return super().__call__(inputs, **{**kwargs, "batch_size": 1, "num_workers": 0})

    def stream(self, chunks: Iterable[Any], sampling_rate: float = SAMPLING_RATE, **kwargs: Any) -> Iterator[Any]:
        """Classifies audio while it comes in, from a microphone or a socket.

        A window's result comes as soon as its last sample is there: `window_seconds` after its first sample, and the
        time of one forward; at another rate than 16 kHz 0.06 to 0.11 s more. Memory does not grow with the length of
        the stream. The results are those of the same samples in one array.

        Args:
            chunks: mono samples `(samples,)` each, of any lengths: floating point, or integers of 8, 16 or 32 bits,
                which are scaled by their range.
            sampling_rate: of the chunks, in Hz.
            kwargs: `window_seconds`, `hop_seconds`, `embeddings`, as in a call.

        Yields:
            The dicts that a call has in `windows`; none for a stream without samples.

        Raises:
            ValueError: at once for a wrong argument; when it gets there, for a chunk of another shape or type, or that
                holds NaN or infinite samples, with its time.
        """
        windowing, forward, _ = self._sanitize_parameters(**kwargs)
        windows = self._windows(
            resample_chunks(chunks, sampling_rate, "the stream"), **{**self._preprocess_params, **windowing}
        )
        forward = {**self._forward_params, **forward}
        results = (self.forward({"name": "the stream", "windows": [window]}, **forward) for window in windows)
        return (self.postprocess(result)["windows"][0] for result in results)

    def _sanitize_parameters(
        self,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        embeddings: bool | int | str | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            known = "window_seconds, hop_seconds, embeddings"
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; known: {known}")
        options = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, int | float) or not SHORTEST[name] <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; it must be at least {SHORTEST[name]} s")
        if embeddings is None:
            return given, {}, {}
        if embeddings != "weighted" and not isinstance(embeddings, int):
            raise ValueError(f"embeddings is {embeddings!r}; it must be True, False, a layer's number or 'weighted'")
        return given, {"embeddings": embeddings}, {}

    def preprocess(
        self, inputs: Any, window_seconds: float | None = None, hop_seconds: float | None = None
    ) -> dict[str, Any]:
        """Returns what `forward` takes: the audio's `name`, for errors, and `windows`, made when they are asked for.

        Each is its start and end in seconds and the model's input, as `extract_features` makes it.
        """
        name, chunks = _open(inputs)
        return {"name": name, "windows": self._windows(chunks, window_seconds, hop_seconds)}

    def _windows(
        self, chunks: Iterable[np.ndarray], window_seconds: float | None = None, hop_seconds: float | None = None
    ) -> Iterator[Window]:
        seconds = longest_input_seconds(self.feature_extractor) if window_seconds is None else window_seconds
        for start, samples in iter_windows(chunks, seconds, hop_seconds):
            features = extract_features(samples, self.feature_extractor, window_seconds)
            yield start / SAMPLING_RATE, (start + len(samples)) / SAMPLING_RATE, features

    def _forward(self, model_inputs: dict[str, Any], embeddings: bool | int | str = False) -> dict[str, Any]:
        name, spans, probabilities, embedded = model_inputs["name"], [], [], []
        for batch in _batches(model_inputs["windows"]):
            inputs = torch.from_numpy(np.stack([features for _, _, features in batch]))
            try:
                options = {} if embeddings is False else {"output_hidden_states": True}
                outputs = self.model(inputs.to(self.model.device, self.model.dtype), **options)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{name}: from {batch[0][0]:.2f} s to {batch[-1][1]:.2f} s: {error}") from error
            for (start, end, _), finite in zip(batch, outputs.logits.isfinite().all(dim=-1).tolist(), strict=True):
                if not finite:
                    raise ValueError(f"{name}: the model's answer from {start:.2f} s to {end:.2f} s is not finite")
                spans.append((start, end))
            # What `evaluate_hf.py --calibrate` found; a model that was not calibrated has none.
            logits = outputs.logits.float() / getattr(self.model.config, "calibration_temperature", 1.0)
            probabilities.append(logits.softmax(dim=-1).cpu())
            if embeddings is not False:
                embedded.append(self._embed(outputs.hidden_states, embeddings).float().cpu())
        if not spans:
            raise ValueError(f"{name}: the audio is empty (0 samples)")
        result = {"spans": spans, "probabilities": torch.cat(probabilities)}
        return {**result, "embeddings": torch.cat(embedded)} if embedded else result

    def _embed(self, states: Any, embeddings: bool | int | str) -> torch.Tensor:
        """Mean over the frames of the states that `embeddings` says, `(windows, hidden_size)`."""
        if states is None:
            raise ValueError("this model was exported without hidden states, which embeddings need")
        if isinstance(embeddings, str):
            weights = getattr(self.model, "layer_weights", None)
            if weights is None:
                raise ValueError("embeddings is 'weighted', but this model has no weighted layer sum; give a number")
            means = torch.stack([state.mean(dim=1) for state in states])
            return torch.tensordot(weights.softmax(dim=-1), means, dims=1)
        index = -1 if embeddings is True else embeddings
        if not -len(states) <= index < len(states):
            raise ValueError(f"embeddings is {index}; this model has the hidden states 0 to {len(states) - 1}")
        return states[index].mean(dim=1)

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Names classes and averages over the windows."""
        columns = [model_outputs[name] for name in ("probabilities", "embeddings") if name in model_outputs]
        windows = [
            {"start": start, "end": end, **self._named(*row)}
            for (start, end), *row in zip(model_outputs["spans"], *columns, strict=True)
        ]
        return {**self._named(*(column.mean(dim=0) for column in columns)), "windows": windows}

    def _named(self, probabilities: torch.Tensor, embedding: torch.Tensor | None = None) -> dict[str, Any]:
        names = self.model.config.id2label
        values = {names[index]: value for index, value in enumerate(probabilities.tolist())}
        result = {"label": names[int(probabilities.argmax())], "probabilities": values}
        if values.keys() == set(SIX_CLASSES):
            result["arousal"] = _share(values, "high") - _share(values, "low")
            result["valence"] = _share(values, "positive") - _share(values, "negative")
        return result if embedding is None else {**result, "embedding": embedding.numpy()}


def _share(probabilities: dict[str, float], word: str) -> float:
    return sum(value for name, value in probabilities.items() if word in name.split("/"))


def _batches(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Some windows at a time, all of one shape: of a model without a window of its own the last may be shorter."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == WINDOWS_PER_FORWARD or window[2].shape != batch[0][2].shape):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _open(inputs: Any) -> tuple[str, Iterator[np.ndarray]]:
    """What errors call an input, and its 16 kHz mono samples in chunks."""
    if isinstance(inputs, bytes | bytearray | memoryview):
        inputs = io.BytesIO(inputs)
    if isinstance(inputs, str | os.PathLike) or hasattr(inputs, "read"):
        return audio_name(inputs), iter_audio(inputs)
    rate = SAMPLING_RATE
    if isinstance(inputs, dict):
        if "sampling_rate" not in inputs or not ({"array", "raw"} & inputs.keys()):
            raise ValueError(f"a dict of {sorted(inputs)}; 'array' and 'sampling_rate' are needed")
        rate = inputs["sampling_rate"]
        inputs = inputs["array"] if "array" in inputs else inputs["raw"]
    if not (isinstance(inputs, list) or hasattr(inputs, "__array__")):
        raise ValueError(f"a {type(inputs).__name__} is no audio; give {INPUTS}")
    name, samples = "audio given as an array", np.asarray(inputs)
    if samples.ndim != 1:
        raise ValueError(f"{name}: audio of shape {samples.shape}; mono samples (samples,) are needed")
    parts = (samples[begin : begin + SAMPLES_AT_A_TIME] for begin in range(0, len(samples), SAMPLES_AT_A_TIME))
    return name, resample_chunks(parts, rate, name)
