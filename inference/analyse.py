"""What `exhubert predict` and `exhubert embed` share: a model, and one file after the other through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from exhubert.audio_exhubert import (
    SAMPLING_RATE,
    AudioFile,
    audio_name,
    extract_features,
    iter_audio,
    iter_windows,
    longest_input_seconds,
)
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.inference.speech import SHORTEST_SPEECH_SECONDS, speech_seconds
from exhubert.model_folder.load import load_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline

Spans = dict[tuple[float, float], float]  # start and end of each window in seconds, the share of speech in it


class Options(NamedTuple):
    """What the pipeline is called with, and whether windows without speech are left out."""

    window_seconds: float | None = None
    hop_seconds: float | None = None
    embeddings: bool | int | str = False
    vad: bool = False


def open_pipeline(model: str, options: Options) -> ExHuBERTPipeline:
    """Loads a model, and tries the options on a little silence: what they do not allow is no file's fault.

    Raises:
        ValueError: if it is no model folder, or does not allow an option.
        OSError: if there is no such model.
        ImportError: if speech detection is not installed.
    """
    silence = np.zeros(SAMPLING_RATE // 10, np.float32)
    if options.vad:
        speech_seconds(silence)
    pipeline = load_pipeline(model)
    window_seconds, hop_seconds, embeddings, _ = options
    list(pipeline.stream([silence], window_seconds=window_seconds, hop_seconds=hop_seconds, embeddings=embeddings))
    return pipeline


def class_names(pipeline: ExHuBERTPipeline) -> list[str]:
    """The model's classes in their order."""
    names = pipeline.model.config.id2label
    return [names[index] for index in sorted(names)]


def dimensions(pipeline: ExHuBERTPipeline) -> tuple[str, ...]:
    """Arousal and valence, where the classes have them."""
    return ("arousal", "valence") if set(class_names(pipeline)) == set(SIX_CLASSES) else ()


def analyse(
    pipeline: ExHuBERTPipeline, options: Options, audio: AudioFile, heard: Callable[[float], None]
) -> dict[str, Any]:
    """Returns what the pipeline returns for an audio file.

    With speech detection each window has `speech`, its share from 0 to 1. A window with less than a quarter of a
    second of it is not classified: its values are None, and have no part in the clip's, which are None where there is
    no speech at all. Nor is there an embedding.

    Args:
        pipeline: of `open_pipeline`.
        options: for it.
        audio: as `iter_audio` takes it.
        heard: called with the seconds that were decoded, many times in a file.

    Raises:
        ValueError, OSError: for audio that cannot be read.
    """
    spans: Spans = {}
    windows = _windows(pipeline, options, _counted(iter_audio(audio), heard), spans)
    first = list(itertools.islice(windows, 1))
    nothing = dict.fromkeys(("label", "probabilities", *dimensions(pipeline)))
    if spans and not first:
        result: dict[str, Any] = {**nothing, "windows": []}
    else:
        given = {"name": audio_name(audio), "windows": itertools.chain(first, windows)}
        result = pipeline.postprocess(pipeline.forward(given, embeddings=options.embeddings))
    if options.vad:
        classified = {(window["start"], window["end"]): window for window in result["windows"]}
        result["windows"] = [
            {"start": span[0], "end": span[1], **classified.get(span, nothing), "speech": share}
            for span, share in spans.items()
        ]
    return result


def _windows(
    pipeline: ExHuBERTPipeline, options: Options, chunks: Iterable[np.ndarray], spans: Spans
) -> Iterator[tuple[float, float, np.ndarray]]:
    """The windows as the pipeline makes them, but for those without speech."""
    extractor = pipeline.feature_extractor
    seconds = options.window_seconds or longest_input_seconds(extractor)
    for start, samples in iter_windows(chunks, seconds, options.hop_seconds):
        span = (start / SAMPLING_RATE, (start + len(samples)) / SAMPLING_RATE)
        if options.vad:
            speech = speech_seconds(samples)
            spans[span] = round(min(1.0, speech * SAMPLING_RATE / len(samples)), 3)
            if speech < SHORTEST_SPEECH_SECONDS:
                continue
        yield *span, extract_features(samples, extractor, options.window_seconds)


def _counted(chunks: Iterable[np.ndarray], heard: Callable[[float], None]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        heard(len(chunk) / SAMPLING_RATE)
        yield chunk
