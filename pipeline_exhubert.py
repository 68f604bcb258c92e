"""`pipeline("speech-emotion-recognition")`: classifies audio of any length in windows, whole or while it comes in.

The model saw windows of 3 s in training, so longer audio is cut into overlapping windows; the clip's
probabilities are the mean over its windows. Audio is decoded, cut and classified piece by piece: what is held in
memory does not grow with the length of a file.

From audio to logits is one way for all of the package: `make_windows`, `batch_windows`, `answer_batch`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import logging

from .audio_exhubert import (
    SAMPLING_RATE,
    SHORTEST_INPUT_SECONDS,
    ExHuBERTFeatureExtractor,
    audio_name,
    extract_features,
    iter_audio,
    iter_windows,
    longest_input_seconds,
    mono,
    resample_chunks,
)
from .configuration_exhubert import (
    QUADRANT,
    SIX_CLASSES,
    ExHuBERTConfig,
    class_names_of_config,
    dimensions_of_config,
)

logger = logging.get_logger(__name__)
WINDOWS_PER_FORWARD = 8
LONGEST_WAIT = 64  # windows that come while one waits for others of its shape
SAMPLES_AT_A_TIME = 2**20  # of an array
SHORTEST = {"window_seconds": SHORTEST_INPUT_SECONDS, "hop_seconds": 0.01}
INPUTS = "a path, the bytes of a file, a binary file, mono 16 kHz samples, or a dict of 'array' and 'sampling_rate'"


class Row(NamedTuple):
    """What a model says of a window: float32, on the CPU.

    Attributes:
        logits: `(classes,)`; of a model of dimensions alone `(dimensions,)`.
        dimensions: `(dimensions,)`, each on 0..1; None where the model has none.
        embedding: `(hidden_size,)`; None where it was not asked for.
    """

    logits: torch.Tensor
    dimensions: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


class Window(NamedTuple):
    """A piece of a clip, as the model gets it.

    Attributes:
        clip: the number of its clip.
        number: of the window in its clip, from 0.
        start, end: in seconds.
        features: the model's input, as `extract_features` makes it; None for a window that is not to be classified.
    """

    clip: int
    number: int
    start: float
    end: float
    features: np.ndarray | None


def make_windows(
    chunks: Iterable[np.ndarray],
    extractor: Any,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    keep: Callable[[np.ndarray], bool] | None = None,
    on_progress: Callable[[float], None] | None = None,
    clip: int = 0,
) -> Iterator[Window]:
    """Cuts a clip into windows, each as soon as its last sample is there.

    Args:
        chunks: 16 kHz mono float32 `(samples,)` each, of any lengths.
        extractor: the model's feature extractor.
        window_seconds: length of a window; None is the model's own.
        hop_seconds: distance of two windows; half a window by default.
        keep: takes the samples of a window; where it says no, the window has no features.
        on_progress: called with the seconds of each chunk.
        clip: the number of the clip.

    Raises:
        ValueError: as `extract_features`; whatever reading the chunks raises.
    """

    def reported() -> Iterator[np.ndarray]:
        for chunk in chunks:
            if on_progress is not None:
                on_progress(len(chunk) / SAMPLING_RATE)
            yield chunk

    seconds = longest_input_seconds(extractor) if window_seconds is None else window_seconds
    for index, (start, samples) in enumerate(iter_windows(reported(), seconds, hop_seconds)):
        kept = keep is None or keep(samples)
        features = extract_features(samples, extractor, window_seconds) if kept else None
        yield Window(clip, index, start / SAMPLING_RATE, (start + len(samples)) / SAMPLING_RATE, features)


def batch_windows(windows: Iterable[Window | None], batch_size: int, masked: bool = False) -> Iterator[list[Window]]:
    """Collects windows of any number of clips in batches, so that no result depends on what else is in its batch.

    Those of a batch have one shape; a model without a window of its own gets shorter ones at the end of a clip. One
    waits for the next 64 windows at most (or `batch_size`), so what is held does not grow with their number, nor how
    late a result is.
    Windows without features are left out.

    Args:
        windows: of `make_windows`. None among them lets none wait for what follows.
        batch_size: windows in a batch, at most.
        masked: whether an attention mask will tell shorter windows from their padding; then any make a batch, in order.

    Yields:
        Batches; for each None one more, an empty one, after those that waited.
    """
    waiting: dict[Any, tuple[int, list[Window]]] = {}  # by shape, the oldest first: when its first came, and all
    for count, window in enumerate(windows):
        if window is None:
            yield from (batch for _, batch in waiting.values())
            waiting.clear()
            yield []
            continue
        if window.features is not None:
            shape = None if masked else window.features.shape
            _, batch = waiting.setdefault(shape, (count, []))
            batch.append(window)
            if len(batch) == batch_size:
                yield waiting.pop(shape)[1]
        oldest = next(iter(waiting), None)
        if waiting and count - waiting[oldest][0] >= max(LONGEST_WAIT, batch_size):
            yield waiting.pop(oldest)[1]
    yield from (batch for _, batch in waiting.values())


def run_batch(model: Any, extractor: Any, batch: Sequence[Window], masked: bool = False, **options: Any) -> Any:
    """Classifies a batch of `batch_windows`.

    Args:
        model: an audio-classification model; gets the batch on its own device and in its own type.
        extractor: its feature extractor.
        batch: one window or more.
        masked: as for `batch_windows`.
        options: for the model, such as `output_hidden_states`.

    Returns:
        What the model returns: `logits` `(batch, classes)`, and what `options` ask for.
    """
    features = [window.features for window in batch if window.features is not None]
    inputs = {}
    if masked:
        longest = max(map(len, features))
        mask = np.stack([np.arange(longest) < len(each) for each in features])
        inputs["attention_mask"] = torch.from_numpy(mask).long().to(model.device)
        features = [np.pad(each, (0, longest - len(each))) for each in features]
    inputs[extractor.model_input_names[0]] = torch.from_numpy(np.stack(features)).to(model.device, model.dtype)
    return model(**inputs, **options)


def answer_batch(
    model: Any, extractor: Any, batch: Sequence[Window], masked: bool = False, embeddings: bool | int | str = False
) -> list[Row]:
    """Classifies a batch as `run_batch`, and embeds it.

    Args:
        model, extractor, batch, masked: as for `run_batch`.
        embeddings: as the pipeline takes it.

    Returns:
        A row for each window.

    Raises:
        ValueError, RuntimeError: if the model does not take the batch.
        OptionError: if it has no such hidden state.
    """
    outputs = run_batch(
        model, extractor, batch, masked, **({"output_hidden_states": True} if embeddings is not False else {})
    )
    dimensions = getattr(outputs, "dimensions", None)
    if dimensions is None and dimensions_of_config(model.config):
        dimensions = outputs.logits
    means = None
    if embeddings is not False:
        means = mean_states(outputs.hidden_states, embeddings, getattr(model, "layer_weights", None))
    columns = (outputs.logits, dimensions, means)
    of_windows = [[None] * len(batch) if column is None else column.float().cpu() for column in columns]
    return [Row(*row) for row in zip(*of_windows, strict=True)]


class OptionError(ValueError):
    """An option that the model does not allow, whatever the audio."""


def mean_states(states: Any, embeddings: bool | int | str, layer_weights: torch.Tensor | None) -> torch.Tensor:
    """The mean over the frames of the hidden states that `embeddings` says, `(windows, hidden_size)`."""
    if states is None:
        raise OptionError("this model was exported without hidden states, which embeddings need")
    if isinstance(embeddings, str):
        if layer_weights is None:
            raise OptionError("embeddings is 'weighted', but this model has no weighted layer sum; give a number")
        means = torch.stack([state.mean(dim=1) for state in states])
        return torch.tensordot(layer_weights.softmax(dim=-1), means, dims=1)
    index = -1 if embeddings is True else embeddings
    if not -len(states) <= index < len(states):
        raise OptionError(f"embeddings is {index}; this model has the hidden states 0 to {len(states) - 1}")
    return states[index].mean(dim=1)


class Answers:
    """What a model says of one clip, collected window by window.

    Attributes:
        name: of the clip, for errors.
        spans: start and end of each window in seconds, by its number.
        rows: of each window that was classified its row of `answer_batch`, by its number.
        awaited: how many windows are still to be classified.
        error: why the clip has no answer, or None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.spans: dict[int, tuple[float, float]] = {}
        self.rows: dict[int, Row] = {}
        self.awaited = 0
        self.error: Exception | None = None

    @property
    def seconds(self) -> float:
        """Where its last window ends."""
        return next(reversed(self.spans.values()))[1] if self.spans else 0.0

    @property
    def whole(self) -> bool:
        """Whether no window waits for the model, or there will be no answer anyway."""
        return self.error is not None or self.awaited == 0

    def noted(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Yields the windows of the clip, and remembers them."""
        for window in windows:
            self.spans[window.number] = window.start, window.end
            self.awaited += window.features is not None
            yield window

    def add(self, window: Window, row: Row | Exception) -> None:
        """Takes what a model said of a window, or why it did not."""
        self.awaited -= 1
        span = f"from {window.start:.2f} s to {window.end:.2f} s"
        if isinstance(row, Exception):
            self.error = self.error or ValueError(f"{self.name}: {span}: {row}")
        elif not all(values.isfinite().all() for values in (row.logits, row.dimensions) if values is not None):
            self.error = self.error or ValueError(f"{self.name}: the model's answer {span} is not finite")
        else:
            self.rows[window.number] = row

    def check(self) -> None:
        """Raises the error; ValueError for a clip without windows."""
        if self.error is not None:
            raise self.error
        if not self.spans:
            raise ValueError(f"{self.name}: the audio is empty (0 samples)")


def on_scale(values: Any, dimensions: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Turns what a model says of dimensions, on 0..1, into their own scales.

    Args:
        values: an array or tensor `(..., dimensions)`.
        dimensions: the scale `[low, high]` of each, as in the model's configuration.

    Returns:
        float64, of the same shape. A value outside 0..1 is outside its scale, and NaN stays NaN.
    """
    low, high = np.array(list(dimensions.values()), np.float64).reshape(-1, 2).T
    return low + np.asarray(values, np.float64) * (high - low)


def quadrant_of(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Arousal and valence, P(high) - P(low) and P(positive) - P(negative), of the six classes; nothing of others."""
    if probabilities.keys() != set(SIX_CLASSES):
        return {}

    def share(word: str) -> float:
        return sum(value for name, value in probabilities.items() if word in name.split("/"))

    return dict(zip(QUADRANT, (share("high") - share("low"), share("positive") - share("negative")), strict=True))


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
        keep: a function that takes the samples of a window, float32 at 16 kHz, and says whether it is to be classified
            (whether there is speech in it, say). The others' values are None, without an embedding, and have no part in
            the clip's, which are None where no window is kept.
        on_progress: a function that is called with the seconds of audio that were decoded, many times in a file.

    Returns, for each input, a dict:
        label: class name. This and `probabilities` only if the model has classes.
        probabilities: class name to mean probability over the windows.
        arousal, valence: P(high) - P(low) and P(positive) - P(negative), from -1 to 1; only if the model's classes are
            the six of the published model.
        dimensions: name to mean over the windows, on the dimension's own scale (`dimensions` of the pipeline), which
            an answer may leave; only if the model has dimensions. Its arousal and valence are what the model was
            trained to say, and nothing that follows from the classes.
        embedding: float32 `(hidden_size,)`, the mean over the windows; only with `embeddings`.
        warning: what is wrong with a file that was classified as far as it goes; only if something is.
        windows: a list of dicts of `start` and `end` in seconds, and the same for each window. The last one ends with
            the audio, and may be shorter than the others; it is padded for the model.

    Raises:
        ValueError: for audio that does not decode, is empty, or holds NaN; names the file, and the time where there is
            one. For arguments that the model or the audio does not allow.
        FileNotFoundError: if there is no such file.
    """

    feature_extractor: Any
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = None  # where there is none
    _load_tokenizer = False
    modelcard = None  # which transformers 5.0 asks for when it saves a pipeline

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.feature_extractor is None:  # a model that was saved without one
            folder, file = self.model.config.name_or_path, "preprocessor_config.json"
            if self.model.config.model_type != ExHuBERTConfig.model_type or os.path.isfile(os.path.join(folder, file)):
                raise ValueError(f"{folder}: the feature extractor, {file}, is missing or cannot be read")
            self.feature_extractor = ExHuBERTFeatureExtractor()

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
            kwargs: `window_seconds`, `hop_seconds`, `embeddings`, `keep`, `on_progress`, as in a call.

        Yields:
            The dicts that a call has in `windows`; none for a stream without samples.

        Raises:
            ValueError: at once for a wrong argument; when it gets there, for a chunk of another shape or type, or that
                holds NaN or infinite samples, with its time.
        """
        windowing, forward, _ = self._sanitize_parameters(**kwargs)
        chunks = resample_chunks(chunks, sampling_rate, "the stream")
        windows = make_windows(chunks, self.feature_extractor, **{**self._preprocess_params, **windowing})
        forward = {**self._forward_params, **forward}
        results = (
            self.forward({"name": "the stream", "windows": iter([window]), "warning": str}, **forward)
            for window in windows
        )
        return (self.postprocess(result)["windows"][0] for result in results)

    def _sanitize_parameters(
        self,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        embeddings: bool | int | str | None = None,
        keep: Callable[[np.ndarray], bool] | None = None,
        on_progress: Callable[[float], None] | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            known = "window_seconds, hop_seconds, embeddings, keep, on_progress"
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; known: {known}")
        for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
            number = value is None or (isinstance(value, int | float) and SHORTEST[name] <= value < float("inf"))
            if not number:
                raise ValueError(f"{name} is {value!r}; it must be at least {SHORTEST[name]} s")
        if embeddings is not None and embeddings != "weighted" and not isinstance(embeddings, int):
            raise ValueError(f"embeddings is {embeddings!r}; it must be True, False, a layer's number or 'weighted'")
        windowing: dict[str, Any] = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
        windowing |= {"keep": keep, "on_progress": on_progress}
        given = {name: value for name, value in windowing.items() if value is not None}
        return given, {} if embeddings is None else {"embeddings": embeddings}, {}

    def preprocess(self, inputs: Any, **windowing: Any) -> dict[str, Any]:
        """Returns what `forward` takes.

        These are the audio's `name`, for errors; `windows`, made when they are asked for; and `warning`, a function
        that says after the last one what is wrong with the file.
        """
        warnings: list[str] = []
        if isinstance(inputs, bytes | bytearray | memoryview):
            inputs = io.BytesIO(inputs)
        if isinstance(inputs, str | os.PathLike) or hasattr(inputs, "read"):
            name, chunks = audio_name(inputs), iter_audio(inputs, on_warning=warnings.append)
        else:
            name = "audio given as an array"
            if isinstance(inputs, dict):
                if "sampling_rate" not in inputs or not ({"array", "raw"} & inputs.keys()):
                    raise ValueError(f"a dict of {sorted(inputs)}; 'array' and 'sampling_rate' are needed")
                rate = inputs["sampling_rate"]
                inputs = inputs["array"] if "array" in inputs else inputs["raw"]
            else:
                rate, given = SAMPLING_RATE, "an array without its sampling rate is taken for 16 kHz"
                logger.warning_once(f"{given}; to be sure, give a dict of 'array' and 'sampling_rate'")
            if not (isinstance(inputs, list) or hasattr(inputs, "__array__")):
                raise ValueError(f"a {type(inputs).__name__} is no audio; give {INPUTS}")
            samples = mono(inputs, name)
            parts = (samples[begin : begin + SAMPLES_AT_A_TIME] for begin in range(0, len(samples), SAMPLES_AT_A_TIME))
            chunks = resample_chunks(parts, rate, name)
        windows = make_windows(chunks, self.feature_extractor, **windowing)
        return {"name": name, "windows": windows, "warning": lambda: "".join(warnings)}

    def _forward(self, model_inputs: dict[str, Any], embeddings: bool | int | str = False) -> dict[str, Any]:
        answers = Answers(model_inputs["name"])
        for batch in batch_windows(answers.noted(model_inputs["windows"]), WINDOWS_PER_FORWARD):
            try:
                rows: Sequence[Any] = answer_batch(self.model, self.feature_extractor, batch, embeddings=embeddings)
            except OptionError:
                raise
            except (ValueError, RuntimeError) as error:
                rows = [error] * len(batch)
            for window, row in zip(batch, rows, strict=True):
                answers.add(window, row)
            answers.check()
        answers.check()
        return {"answers": answers, "warning": model_inputs["warning"]()}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, Any]:
        """Names classes and averages over the windows; `answers` and `warning` are the clip's."""
        answers = model_outputs["answers"]
        numbers = sorted(answers.rows)
        of_windows = zip(*(answers.rows[number] for number in numbers), strict=True)
        columns = {
            name: torch.stack(values)
            for name, values in zip(("probabilities", "dimensions", "embedding"), of_windows, strict=False)
            if values[0] is not None
        }
        if not self.class_names:
            columns.pop("probabilities", None)
        elif columns:
            # What `evaluate_hf.py --calibrate` found; a model that was not calibrated has none.
            temperature = getattr(self.model.config, "calibration_temperature", 1.0)
            columns["probabilities"] = (columns["probabilities"] / temperature).softmax(dim=-1)
        classified = {
            number: self._named(**{name: values[row] for name, values in columns.items()})
            for row, number in enumerate(numbers)
        }
        of_classes = ("label", "probabilities", *self.quadrant) if self.class_names else ()
        nothing = dict.fromkeys((*of_classes, *(["dimensions"] if self.dimensions else [])))
        windows = [
            {"start": start, "end": end, **classified.get(number, nothing)}
            for number, (start, end) in answers.spans.items()
        ]
        clip = self._named(**{name: values.mean(dim=0) for name, values in columns.items()}) if columns else nothing
        warning = {"warning": model_outputs["warning"]} if model_outputs["warning"] else {}
        return {**clip, **warning, "windows": windows}

    def _named(
        self,
        probabilities: torch.Tensor | None = None,
        dimensions: torch.Tensor | None = None,
        embedding: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if probabilities is not None:
            values = dict(zip(self.class_names, probabilities.tolist(), strict=True))
            label = self.class_names[int(probabilities.argmax())]
            result = {"label": label, "probabilities": values, **quadrant_of(values)}
        if dimensions is not None:
            shown = on_scale(dimensions, self.dimensions).tolist()
            result["dimensions"] = dict(zip(self.dimensions, shown, strict=True))
        return result if embedding is None else {**result, "embedding": embedding.numpy()}

    @property
    def class_names(self) -> list[str]:
        """The model's classes in their order; none of a model of dimensions alone."""
        return class_names_of_config(self.model.config)

    @property
    def dimensions(self) -> dict[str, list[float]]:
        """The model's dimensions in their order, each with the scale `[low, high]` that answers are on."""
        return dimensions_of_config(self.model.config)

    @property
    def quadrant(self) -> tuple[str, ...]:
        """What results have beside the classes: `arousal` and `valence` where these are the six, else nothing."""
        return QUADRANT if set(self.class_names) == set(SIX_CLASSES) else ()
