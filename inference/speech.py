"""Files through a model, if asked for without silence and noise: speech detection by silero-vad (the extra `vad`)."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from exhubert.audio_exhubert import CHANNELS, SAMPLING_RATE, AudioFile, audio_name, iter_audio
from exhubert.evaluation.engine import classify_clips
from exhubert.inference.audio_files import STANDARD_INPUT, channels_of, standard_input
from exhubert.model_folder.load import load_for_answers, precision_note
from exhubert.pipeline_exhubert import Answers, ExHuBERTPipeline, Heard, Window, make_windows
from exhubert.segments_exhubert import (
    CONTEXT,
    FRAME,
    SHORTEST_SPEECH_SECONDS,
    THRESHOLD,
    Turn,
    as_segments,
    load_detector,
)


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


class Options(NamedTuple):
    """How files are heard and answered; see `docs/inference.md`.

    Attributes:
        window_seconds, hop_seconds: length and distance of windows; the model's and half a window by default.
        vad: leave out windows without speech.
        device, dtype: as `choose_device` takes them.
        batch_size: windows in a forward, at most.
        exact: do without a faster forward, whose logits may be 1e-5 off.
        trust_remote_code: whether code that the model brings may run.
        segments: None, "speech", turns, or a function that takes the name of a file and returns its turns; as for the
            pipeline, instead of `vad`.
        channels, least_probability, least_seconds: as for the pipeline.
    """

    window_seconds: float | None = None
    hop_seconds: float | None = None
    vad: bool = False
    device: str | None = None
    dtype: str = "float32"
    batch_size: int = 8
    exact: bool = False
    trust_remote_code: bool = False
    segments: str | Sequence[Turn] | Callable[[str], Sequence[Turn]] | None = None
    channels: str = "mix"
    least_probability: float = 0.5
    least_seconds: float = 0.5


def open_pipeline(model: str, options: Options, embeddings: bool | int | str = False) -> ExHuBERTPipeline:
    """Loads a model, and tries the options on a little silence: what they do not allow is no file's fault.

    Args:
        model: folder or Hub id.
        options: see `Options`.
        embeddings: as the pipeline takes it.

    Raises:
        ValueError: if it is no model folder, or does not allow an option.
        OSError: if there is no such model.
        ImportError: if speech detection is needed and not installed.
    """
    if options.batch_size < 1:
        raise ValueError(f"batch_size is {options.batch_size}; it must be above 0")
    if options.vad and options.segments is not None:
        raise ValueError("vad leaves windows without speech out, segments are classified instead of windows; give one")
    if options.channels not in CHANNELS:
        raise ValueError(f"channels is {options.channels!r}; it must be {' or '.join(CHANNELS)}")
    if not (options.segments is None or callable(options.segments)):
        as_segments(options.segments)
    silence = np.zeros(SAMPLING_RATE // 10, np.float32)
    if options.vad:
        speech_seconds(silence)
    how = (options.device, options.dtype, options.exact, options.trust_remote_code)
    classifier, extractor = load_for_answers(model, *how)
    pipeline = ExHuBERTPipeline(model=classifier, feature_extractor=extractor, device=classifier.device)
    trained = getattr(extractor, "window_seconds", None)
    if trained and (options.window_seconds or 0) > trained:
        longer = f"is longer than the {trained:g} s that the model was trained on"
        print(f"note: --window {options.window_seconds:g} {longer}", file=sys.stderr)
    if note := precision_note(classifier.device, options.dtype):
        print(note, file=sys.stderr)
    windows: dict[str, Any] = {"window_seconds": options.window_seconds, "hop_seconds": options.hop_seconds}
    try:
        list(pipeline.stream([silence], embeddings=embeddings, **windows))
    except ValueError as error:
        if not str(error).startswith("the stream: "):  # an option
            raise
        raise ValueError(f"{model} does not run, not even on silence ({error}); is its config.json whole?") from error
    return pipeline


class Recording:
    """An audio file on its way through the model.

    Attributes:
        audio: its name, or the file.
        warnings: what is wrong with it although it can be read.
        speech: with `vad` the share of it in each window.
        channels: how many of it were averaged.
        heard: what else it is.
    """

    def __init__(self, audio: AudioFile) -> None:
        self.audio = audio
        self.warnings: list[str] = []
        self.speech: list[float] = []
        self.channels = 1
        self.heard = Heard()

    def windows(self, pipeline: ExHuBERTPipeline, options: Options, number: int) -> Iterator[Window]:
        """Reads the file and cuts it; see `make_windows`."""
        segments = options.segments
        if callable(segments):
            segments = segments(audio_name(self.audio) if isinstance(self.audio, str) else STANDARD_INPUT)
        chunks = iter_audio(self.audio, on_warning=self.warnings.append, channels=options.channels)
        yield from make_windows(
            chunks,
            pipeline.feature_extractor,
            options.window_seconds,
            options.hop_seconds,
            keep=self.has_speech if options.vad else None,
            clip=number,
            segments=None if segments is None else as_segments(segments),
            channels=options.channels,
            heard=self.heard,
        )
        if options.channels == "mix":
            self.channels = channels_of(self.audio)

    def has_speech(self, samples: np.ndarray) -> bool:
        """Whether there is a quarter of a second of speech in a window."""
        seconds = speech_seconds(samples)
        self.speech.append(round(min(1.0, seconds * SAMPLING_RATE / len(samples)), 3))
        return seconds >= SHORTEST_SPEECH_SECONDS

    def result(self, pipeline: ExHuBERTPipeline, answers: Answers, options: Options) -> dict[str, Any]:
        """What the pipeline returns for the file, and with speech detection the share of `speech` in each window.

        Raises:
            ValueError, OSError: for audio that cannot be read, or that the model does not answer.
        """
        answers.check(self.heard.seconds)
        outputs = {"answers": answers, "warning": "".join(self.warnings), "heard": self.heard}
        result = pipeline.postprocess(outputs, options.least_probability, options.least_seconds)
        windows = [iter(each["windows"]) for each in result.get("channels", [result])]
        for window, share in zip(answers.windows.values(), self.speech, strict=False):
            next(windows[window.channel])["speech"] = share
        return result


Classified = Generator[tuple[Recording, Any], None, None]  # of each file what it is, or the error that makes it bad


def classify_files(
    pipeline: ExHuBERTPipeline,
    files: Iterable[str],
    options: Options,
    embeddings: bool | int | str = False,
    on_progress: Callable[[float], None] | None = None,
) -> Classified:
    """Classifies audio files, many windows at once; yields what is said of each, or why nothing is, in their order.

    With speech detection a window with less than a quarter of a second of it is not classified: its values are None,
    and have no part in the file's, which are None where there is no speech at all. Nor is there an embedding.

    Args:
        pipeline: of `open_pipeline`.
        files: names, or `-` for what is on standard input, which is read when all before it are done.
        options, embeddings: those of `open_pipeline`.
        on_progress: called with the seconds of audio that were read.
    """
    for is_input, names in itertools.groupby(files, STANDARD_INPUT.__eq__):
        under_way: deque[Recording] = deque()

        def clips(
            audio: Iterable[AudioFile], under_way: deque[Recording] = under_way
        ) -> Iterator[tuple[str, Iterator[Window]]]:
            for number, each in enumerate(audio):
                under_way.append(Recording(each))
                yield audio_name(each), under_way[-1].windows(pipeline, options, number)

        with contextlib.ExitStack() as stack:
            audio: Iterable[AudioFile] = names
            if is_input:
                try:
                    audio = [stack.enter_context(standard_input())]
                except (ValueError, OSError) as error:
                    yield Recording(STANDARD_INPUT), error
                    continue
            parts = (pipeline.model, pipeline.feature_extractor, clips(audio))
            for answers in classify_clips(*parts, options.batch_size, embeddings=embeddings, on_progress=on_progress):
                recording = under_way.popleft()
                result: dict[str, Any] | Exception
                try:
                    result = recording.result(pipeline, answers, options)
                    if on_progress is not None:  # after the last turn of speech, say
                        on_progress(recording.heard.seconds - answers.seconds)
                except (ValueError, OSError) as error:
                    result = error
                yield recording, result
