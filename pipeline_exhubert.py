"""`pipeline("speech-emotion-recognition")`: classifies audio of any length in windows, whole or while it comes in.

The model saw windows of 3 s in training, so longer audio is cut into overlapping windows; the clip's
probabilities are the mean over its windows. Audio is decoded, cut and classified piece by piece: what is held in
memory does not grow with the length of a file.

From audio to logits is one way for all of the package: `make_windows`, `batch_windows`, `answer_batch`.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Pipeline
from transformers.utils import logging

from .audio_exhubert import (
    CHANNELS,
    SAMPLING_RATE,
    SHORTEST_INPUT_SECONDS,
    Cut,
    ExHuBERTFeatureExtractor,
    WindowCutter,
    audio_name,
    extract_features,
    iter_audio,
    longest_input_seconds,
    mono,
    planes,
    resample_chunks,
)
from .configuration_exhubert import (
    QUADRANT,
    SIX_CLASSES,
    ExHuBERTConfig,
    class_names_of_config,
    dimensions_of_config,
)
from .segments_exhubert import SPEECH, SpeechTurns, Turn, as_segments, cut_turns, samples_of

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
        channel: the number of its channel, from 0.
        segment: the number of its segment in the channel, from 0.
        last: whether it is known to be the last one of its segment.
    """

    clip: int
    number: int
    start: float
    end: float
    features: np.ndarray | None
    channel: int = 0
    segment: int = 0
    last: bool = False


class Heard:
    """What a clip turns out to be while it is cut into windows.

    Attributes:
        seconds: how much of it was heard.
        channels: how many it has, where each was heard on its own; 0 where they were averaged.
        turns: of each channel its segments, in the order of their starts; None where it was not cut into segments.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.channels = 0
        self.turns: list[list[Turn]] | None = None


def make_windows(
    chunks: Iterable[np.ndarray],
    extractor: Any,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    keep: Callable[[np.ndarray], bool] | None = None,
    on_progress: Callable[[float], None] | None = None,
    clip: int = 0,
    segments: str | Sequence[Turn] | None = None,
    channels: str = "mix",
    heard: Heard | None = None,
) -> Iterator[Window]:
    """Cuts a clip into windows, each as soon as its last sample is there, or its turn of speech is over.

    Args:
        chunks: 16 kHz float32 of any lengths, `(samples,)` each; with "each" `(channels, samples)`.
        extractor: the model's feature extractor.
        window_seconds: length of a window; None is the model's own.
        hop_seconds: distance of two windows; half a window by default.
        keep: takes the samples of a window; where it says no, the window has no features.
        on_progress: called with the seconds of each chunk.
        clip: the number of the clip.
        segments: "speech", or turns as `as_turns` returns them: each is cut as a clip of its own.
        channels: "each" cuts every channel on its own.
        heard: is told what the clip is.

    Raises:
        ValueError: as `extract_features`; for a turn that begins after the end, or is on a channel that is not there;
            whatever reading the chunks raises.
        ImportError: if speech detection is not installed.
    """
    heard = Heard() if heard is None else heard
    seconds = longest_input_seconds(extractor) if window_seconds is None else window_seconds
    cutters: list[WindowCutter | SpeechTurns] = []
    numbers, total = itertools.count(), 0

    def made(cuts: Iterable[Cut], channel: int) -> Iterator[Window]:
        for segment, start, samples, last in cuts:
            kept = keep is None or keep(samples)
            features = extract_features(samples, extractor, window_seconds) if kept else None
            span = start / SAMPLING_RATE, (start + len(samples)) / SAMPLING_RATE
            yield Window(clip, next(numbers), *span, features, channel, segment, last)

    for chunk in chunks:
        if on_progress is not None:
            on_progress(chunk.shape[-1] / SAMPLING_RATE)
        total += chunk.shape[-1]
        heard.seconds = total / SAMPLING_RATE
        rows = np.atleast_2d(chunk)
        if not cutters:
            heard.channels = len(rows) if channels == "each" else 0
            heard.turns = _turns_of_channels(segments, heard.channels)
            for channel in range(len(rows)):
                if heard.turns is None:
                    cutters.append(WindowCutter(seconds, hop_seconds))
                elif segments == SPEECH:
                    cutters.append(SpeechTurns(seconds, hop_seconds, heard.turns[channel]))
                else:
                    cutters.append(WindowCutter(seconds, hop_seconds, list(map(samples_of, heard.turns[channel]))))
        for channel, (cutter, row) in enumerate(zip(cutters, rows, strict=True)):
            yield from made(cutter.push(row), channel)
    at_the_end = [cutter.end() for cutter in cutters]
    if heard.turns is not None:
        heard.turns = [cut_turns(turns, heard.seconds) for turns in heard.turns]
    for channel, cuts in enumerate(at_the_end):
        yield from made(cuts, channel)


def _turns_of_channels(segments: str | Sequence[Turn] | None, channels: int) -> list[list[Turn]] | None:
    """The turns of each channel, of which none is known of speech yet; `channels` is 0 for one that is mixed."""
    if segments is None:
        return None
    if isinstance(segments, str):
        return [[] for _ in range(max(1, channels))]
    if not channels:
        return [list(segments)]
    for turn in segments:
        if (turn.channel or 1) > channels:
            there = "is 1" if channels == 1 else f"are {channels}"
            raise ValueError(f"the turn at {turn.start:g} s is on channel {turn.channel}; there {there}")
    return [[turn for turn in segments if turn.channel in (None, channel)] for channel in range(1, channels + 1)]


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
        windows: each without its features, by its number.
        rows: of each window that was classified its row of `answer_batch`, by its number.
        awaited: how many windows are still to be classified.
        error: why the clip has no answer, or None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.windows: dict[int, Window] = {}
        self.rows: dict[int, Row] = {}
        self.awaited = 0
        self.error: Exception | None = None

    @property
    def seconds(self) -> float:
        """Where its last window ends."""
        return next(reversed(self.windows.values())).end if self.windows else 0.0

    @property
    def whole(self) -> bool:
        """Whether no window waits for the model, or there will be no answer anyway."""
        return self.error is not None or self.awaited == 0

    def noted(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Yields the windows of the clip, and remembers them."""
        for window in windows:
            self.windows[window.number] = window._replace(features=None)
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

    def check(self, seconds: float = 0.0) -> None:
        """Raises the error; ValueError for a clip without windows, if it is not known to have some seconds."""
        if self.error is not None:
            raise self.error
        if not self.windows and not seconds:
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


def _segment(turn: Turn, values: Mapping[str, Any], least_probability: float, least_seconds: float) -> dict[str, Any]:
    """What results say of a segment."""
    doubts = ["short"] if turn.end - turn.start < least_seconds else []
    if values.get("probabilities") and max(values["probabilities"].values()) < least_probability:
        doubts.append("low probability")
    speaker = {} if turn.speaker is None else {"speaker": turn.speaker}
    return {"start": turn.start, "end": turn.end, **speaker, **values, "uncertain": ", ".join(doubts)}


class ExHuBERTPipeline(Pipeline):
    """Speech emotion recognition on audio of any length.

    An input is a path, the bytes of a file, a binary file, or mono samples `(samples,)`: an array at 16 kHz, or a dict
    of `array` and `sampling_rate`. Integers are scaled by their range. A list of inputs gives a list, a generator of
    inputs an iterable that takes one at a time. With `channels="each"` samples may be `(channels, samples)` or
    `(samples, channels)`; the shorter axis is that of the channels.

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
        segments: "speech" finds turns of speech and classifies each as a clip of its own (see `SpeechTurns`); turns
            that something else found are a list of `Turn`, `(start, end)`, `(start, end, speaker)`, in seconds, or
            dicts of these. They may overlap, and are cut to the length of the audio. None, the default, classifies all.
        channels: "mix", the default, averages them; "each" hears every one on its own.
        least_probability: of its class (0.5); less makes a segment uncertain.
        least_seconds: of a segment (0.5); less makes it uncertain.

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
            the audio, and may be shorter than the others; it is padded for the model. With segments each has also the
            number of its `segment`.
        segments: only with `segments`; a list of dicts by their start, of `start` and `end`, `speaker` where the turn
            has one, the same values, which are the mean over the windows of the segment, and `uncertain`: "", "short",
            "low probability" or "short, low probability".

    With `channels="each"` the dict has `channels`, a list of the same for each, with the number of its `channel`, from
    1; and `warning`, if there is one. The turns of a channel are those that name it, or none. Where nobody speaks,
    `segments` and `windows` are empty, and the values None.

    Raises:
        ValueError: for audio that does not decode, is empty, or holds NaN; names the file, and the time where there is
            one. For arguments that the model or the audio does not allow.
        FileNotFoundError: if there is no such file.
        ImportError: if speech detection needs something that is not installed.
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
            kwargs: all but `channels`, as in a call.

        Yields:
            The dicts that a call has in `windows`; with `segments` those that it has there, each as soon as its end is
            known. None for a stream without samples.

        Raises:
            ValueError: at once for a wrong argument; when it gets there, for a chunk of another shape or type, or that
                holds NaN or infinite samples, with its time.
        """
        if kwargs.get("channels", "mix") != "mix":
            raise ValueError("a stream is mono; make one of each channel")
        windowing, forward, limits = self._sanitize_parameters(**kwargs)
        windowing = {**self._preprocess_params, **windowing, "channels": "mix"}
        forward, limits = {**self._forward_params, **forward}, {**self._postprocess_params, **limits}
        heard = Heard()
        chunks = resample_chunks(chunks, sampling_rate, "the stream")
        windows = make_windows(chunks, self.feature_extractor, heard=heard, **windowing)

        def answered(window: Window) -> dict[str, Any]:
            inputs = {"name": "the stream", "windows": iter([window]), "warning": str, "heard": Heard()}
            outputs: dict[str, Any] = self.forward(inputs, **forward)
            return outputs

        def segments() -> Iterator[dict[str, Any]]:
            under_way: dict[int, dict[str, Any]] = {}

            def result(number: int) -> dict[str, Any]:
                outputs = under_way.pop(number)
                outputs["heard"].turns = heard.turns and [heard.turns[0][number : number + 1]]
                segment: dict[str, Any] = self.postprocess(outputs, **limits)["segments"][0]
                return segment

            for window in windows:
                outputs = answered(window._replace(segment=0))
                answers = under_way.setdefault(window.segment, outputs)["answers"]
                answers.windows |= outputs["answers"].windows
                answers.rows |= outputs["answers"].rows
                if window.last:
                    yield result(window.segment)
            yield from map(result, sorted(under_way))

        if windowing.get("segments") is not None:
            return segments()
        return (self.postprocess(answered(window), **limits)["windows"][0] for window in windows)

    def _sanitize_parameters(
        self,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        embeddings: bool | int | str | None = None,
        keep: Callable[[np.ndarray], bool] | None = None,
        on_progress: Callable[[float], None] | None = None,
        segments: str | Iterable[Any] | None = None,
        channels: str | None = None,
        least_probability: float | None = None,
        least_seconds: float | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            known = "window_seconds, hop_seconds, embeddings, keep, on_progress, segments, channels"
            known += ", least_probability, least_seconds"
            raise ValueError(f"unknown argument {next(iter(kwargs))!r}; known: {known}")
        for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
            number = value is None or (isinstance(value, int | float) and SHORTEST[name] <= value < float("inf"))
            if not number:
                raise ValueError(f"{name} is {value!r}; it must be at least {SHORTEST[name]} s")
        if embeddings is not None and embeddings != "weighted" and not isinstance(embeddings, int):
            raise ValueError(f"embeddings is {embeddings!r}; it must be True, False, a layer's number or 'weighted'")
        if channels not in (None, *CHANNELS):
            raise ValueError(f"channels is {channels!r}; it must be {' or '.join(map(repr, CHANNELS))}")
        limits = {"least_probability": least_probability, "least_seconds": least_seconds}
        for name, value in limits.items():
            if not (value is None or (isinstance(value, int | float) and 0 <= value < float("inf"))):
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 on")
        windowing: dict[str, Any] = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
        windowing |= {"keep": keep, "on_progress": on_progress, "channels": channels}
        windowing["segments"] = None if segments is None else as_segments(segments)

        def given(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if value is not None}

        return given(windowing), given({"embeddings": embeddings}), given(limits)

    def preprocess(self, inputs: Any, **windowing: Any) -> dict[str, Any]:
        """Returns what `forward` takes.

        These are the audio's `name`, for errors; `windows`, made when they are asked for; and `warning`, a function
        that says after the last one what is wrong with the file, as `heard` says what else it is.
        """
        channels = windowing.get("channels", "mix")
        warnings: list[str] = []
        if isinstance(inputs, bytes | bytearray | memoryview):
            inputs = io.BytesIO(inputs)
        if isinstance(inputs, str | os.PathLike) or hasattr(inputs, "read"):
            name, chunks = audio_name(inputs), iter_audio(inputs, on_warning=warnings.append, channels=channels)
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
            samples = mono(inputs, name) if channels == "mix" else planes(inputs, name)
            step = max(1, SAMPLES_AT_A_TIME // len(np.atleast_2d(samples)))
            parts = (samples[..., begin : begin + step] for begin in range(0, samples.shape[-1], step))
            chunks = resample_chunks(parts, rate, name, channels=channels)
        heard = Heard()
        windows = make_windows(chunks, self.feature_extractor, heard=heard, **windowing)
        return {"name": name, "windows": windows, "warning": lambda: "".join(warnings), "heard": heard}

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
        heard = model_inputs["heard"]
        answers.check(heard.seconds)
        return {"answers": answers, "warning": model_inputs["warning"](), "heard": heard}

    def postprocess(
        self, model_outputs: dict[str, Any], least_probability: float = 0.5, least_seconds: float = 0.5
    ) -> dict[str, Any]:
        """Names classes and averages over the windows; `answers`, `warning` and `heard` are the clip's."""
        answers, heard = model_outputs["answers"], model_outputs.get("heard") or Heard()
        values_of = self._averages(answers.rows)
        of_channels: list[list[Window]] = [[] for _ in range(max(1, heard.channels))]
        for window in answers.windows.values():
            of_channels[window.channel].append(window)
        warning = {"warning": model_outputs["warning"]} if model_outputs["warning"] else {}
        results = []
        for channel, windows in enumerate(of_channels):
            parts: dict[str, Any] = {}
            if heard.turns is not None:
                windows.sort(key=lambda window: (window.segment, window.number))
                of_segments: list[list[Window]] = [[] for _ in heard.turns[channel]]
                for window in windows:
                    of_segments[window.segment].append(window)
                parts["segments"] = [
                    _segment(turn, values_of(of_segment), least_probability, least_seconds)
                    for turn, of_segment in zip(heard.turns[channel], of_segments, strict=True)
                ]
            parts["windows"] = [
                {"start": window.start, "end": window.end}
                | ({} if heard.turns is None else {"segment": window.segment})
                | values_of([window])
                for window in windows
            ]
            if not heard.channels:
                return {**values_of(windows), **warning, **parts}
            results.append({"channel": channel + 1, **values_of(windows), **parts})
        return {"channels": results, **warning}

    def _averages(self, rows: Mapping[int, Row]) -> Callable[[Sequence[Window]], dict[str, Any]]:
        """A function that says what the model does of some windows; of each its row, by its number."""
        place = {number: row for row, number in enumerate(sorted(rows))}
        columns = {
            name: torch.stack(values)
            for name, values in zip(
                ("probabilities", "dimensions", "embedding"),
                zip(*(rows[number] for number in place), strict=True),
                strict=False,
            )
            if values[0] is not None
        }
        if not self.class_names:
            columns.pop("probabilities", None)
        elif columns:
            # What `evaluate_hf.py --calibrate` found; a model that was not calibrated has none.
            temperature = getattr(self.model.config, "calibration_temperature", 1.0)
            columns["probabilities"] = (columns["probabilities"] / temperature).softmax(dim=-1)
        of_classes = ("label", "probabilities", *self.quadrant) if self.class_names else ()
        nothing = dict.fromkeys((*of_classes, *(["dimensions"] if self.dimensions else [])))

        def values_of(windows: Sequence[Window]) -> dict[str, Any]:
            numbers = [place[window.number] for window in windows if window.number in place]
            if not numbers:
                return dict(nothing)
            if len(numbers) == 1:
                return self._named(**{name: values[numbers[0]] for name, values in columns.items()})
            return self._named(**{name: values[numbers].mean(dim=0) for name, values in columns.items()})

        return values_of

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
