"""Segments of a recording: turns that somebody else found, and turns of speech, found while the audio comes in.

Speech is what the model of silero-vad takes for it, in frames of 32 ms; `SpeechTurns` says what makes a turn of them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from .audio_exhubert import SAMPLING_RATE, Cut, LatestSamples, iter_windows

SPEECH = "speech"  # instead of turns: those that `SpeechTurns` finds
FRAME = 512  # samples; what the detector judges at once
CONTEXT = 64  # samples before a frame that it hears as well
BLOCK = 8  # frames that go through it together: always the same ones, so that no answer depends on the chunks
THRESHOLD = 0.3  # silero's own is 0.5, at which it misses more of shouted speech
HYSTERESIS = 0.15  # silero's own: what began as speech is no longer speech below THRESHOLD - HYSTERESIS
SHORTEST_SPEECH_SECONDS = 0.25  # silero's own: less than that is no turn
PAUSE_SECONDS = 0.5  # what is shorter is no pause
LEAD_SECONDS = 0.032  # of a turn before its first frame of speech
OVERHANG_SECONDS = 0.064  # of its last frames of speech are after it: the detector hears on for a while
LONGEST_TURN_SECONDS = 30.0
PAUSE, LEAD, OVERHANG, LONGEST_TURN = (
    round(seconds * SAMPLING_RATE) for seconds in (PAUSE_SECONDS, LEAD_SECONDS, OVERHANG_SECONDS, LONGEST_TURN_SECONDS)
)


class Turn(NamedTuple):
    """A part of a recording, in which somebody speaks.

    Attributes:
        start, end: in seconds.
        speaker: who, if that is known.
        channel: the one that it is heard on, from 1; None for every channel.
    """

    start: float
    end: float
    speaker: str | None = None
    channel: int | None = None


def as_segments(segments: str | Iterable[Any]) -> str | list[Turn]:
    """Checks what is to be cut into segments; returns turns sorted by their start.

    Args:
        segments: "speech", which needs what finds it; or turns, each a `Turn`, `(start, end)`, `(start, end, speaker)`
            or a dict with these names.

    Raises:
        ValueError: for anything else, names it.
        ImportError: if speech detection needs something that is not installed.
    """
    if segments == SPEECH:
        load_detector()
        return SPEECH
    if isinstance(segments, str) or not isinstance(segments, Iterable):
        raise ValueError(f"segments is {segments!r}; it must be 'speech' or a list of turns")
    checked: list[Turn] = []
    for each in segments:
        try:
            turn = Turn(**each) if isinstance(each, Mapping) else Turn(*each)
        except TypeError as error:
            raise ValueError(f"a turn is {each!r}; start, end and maybe speaker and channel are needed") from error
        start, end, speaker, channel = turn
        if not (isinstance(start, Real) and isinstance(end, Real) and 0 <= start < end < math.inf):
            raise ValueError(f"a turn is from {start!r} to {end!r} s; it must end after it begins, at 0 s or later")
        if not isinstance(speaker, str | None):
            raise ValueError(f"the turn at {start:g} s has the speaker {speaker!r}; a name is needed, or None")
        if not (channel is None or (isinstance(channel, Integral) and channel >= 1)):
            raise ValueError(f"the turn at {start:g} s has the channel {channel!r}; they count from 1, None is any")
        checked.append(Turn(float(start), float(end), speaker, channel and int(channel)))
    return sorted(checked, key=lambda turn: turn[:2])


def samples_of(turn: Turn) -> tuple[int, int]:
    """The first sample of a turn and the one after its last, at 16 kHz: at least one."""
    start = round(turn.start * SAMPLING_RATE)
    return start, max(start + 1, round(turn.end * SAMPLING_RATE))


def cut_turns(turns: Sequence[Turn], seconds: float) -> list[Turn]:
    """Cuts turns to the length of the audio; raises ValueError for one that begins after it."""
    for turn in turns:
        if samples_of(turn)[0] >= round(seconds * SAMPLING_RATE):
            raise ValueError(f"a turn begins at {turn.start:g} s; the audio ends at {seconds:.2f} s")
    return [turn._replace(end=min(turn.end, seconds)) for turn in turns]


@functools.cache
def load_detector() -> Any:
    """The detector as an onnxruntime session on one core; raises ImportError if something for it is not installed."""
    # Its file alone: importing silero_vad would set torch to one thread, for the classifier as well.
    package = importlib.util.find_spec("silero_vad")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it tells Microsoft of its use, from the import on
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    if package is None or package.origin is None or onnxruntime is None:
        raise ImportError("speech detection needs silero-vad and onnxruntime: pip install silero-vad onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = os.path.join(os.path.dirname(package.origin), "data", "silero_vad_16k_sequence.onnx")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class SpeechDetector:
    """Says of each frame how likely it is speech, while the audio comes in; whatever the chunks, the answer is one."""

    def __init__(self) -> None:
        self.session = load_detector()
        self.state = [np.zeros((1, 1, 128), np.float32)] * 2
        self.held = np.zeros(CONTEXT, np.float32)  # what the next frame hears, its context first

    def push(self, samples: np.ndarray) -> Iterable[float]:
        """Takes the next samples, 16 kHz mono `(samples,)`; yields the probabilities of the frames that are known."""
        self.held = np.concatenate([self.held, samples])
        while len(self.held) >= CONTEXT + BLOCK * FRAME:
            yield from self._judge(self.held[: CONTEXT + BLOCK * FRAME])
            self.held = self.held[BLOCK * FRAME :]

    def end(self) -> Iterable[float]:
        """Yields those of the last frames, of which the very last may be filled up with zeros."""
        left = len(self.held) - CONTEXT
        if left:
            yield from self._judge(np.pad(self.held, (0, -left % FRAME)))

    def _judge(self, samples: np.ndarray) -> list[float]:
        frames = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + FRAME)[::FRAME]
        inputs = {"input": np.ascontiguousarray(frames), "h": self.state[0], "c": self.state[1]}
        probabilities, *self.state = self.session.run(["speech_probs", "hn", "cn"], inputs)
        return list(map(float, probabilities))


class SpeechTurns:
    """Finds the turns of speech in one channel while the audio comes in, and cuts each into windows.

    Speech begins in a frame that is THRESHOLD likely, and ends before one that is less than THRESHOLD - HYSTERESIS. A
    turn ends where no speech follows for PAUSE_SECONDS. It has at least SHORTEST_SPEECH_SECONDS of speech; it begins
    LEAD_SECONDS before the first frame of it, and ends OVERHANG_SECONDS before the end of the last one. But a shorter
    pause than PAUSE_SECONDS is none at the beginning and the end of the audio either, so that a clip of one utterance
    is one turn, all of it. What would be longer than LONGEST_TURN_SECONDS is cut in its second half, where speech is
    least likely. What is held is a turn, and one chunk.

    Args:
        window_seconds, hop_seconds: of the windows, as for `WindowCutter`.
        turns: the list that those that are found are added to.
    """

    def __init__(self, window_seconds: float, hop_seconds: float | None, turns: list[Turn]) -> None:
        self.turns = turns
        self.windowing = window_seconds, hop_seconds
        self.detector = SpeechDetector()
        self.audio = LatestSamples()
        self.speaking = False
        self.frame = 0  # the next one
        # Of the turn that is under way: its first sample, how likely each of its frames is speech, and which are.
        self.start: int | None = None
        self.scores: list[float] = []
        self.spoken: list[bool] = []
        self.last = 0  # the frame after its last one of speech

    def push(self, chunk: np.ndarray) -> list[Cut]:
        """Takes the next samples, 16 kHz mono `(samples,)`; returns the windows of the turns that ended in them."""
        self.audio.append(chunk)
        cuts = [cut for score in self.detector.push(chunk) for cut in self._judge(score)]
        self.audio.forget(self._padded() if self.start is None else self.start)
        return cuts

    def end(self) -> list[Cut]:
        """Returns the windows of the turns that the end of the audio ends."""
        cuts = [cut for score in self.detector.end() for cut in self._judge(score)]
        if self.start is not None:
            at_the_end = self.audio.total - self.last * FRAME < PAUSE
            cuts += self._ended(self.audio.total if at_the_end else self.last * FRAME - OVERHANG)
        return cuts

    def _padded(self) -> int:
        """The first sample of a turn whose speech begins in the next frame."""
        sample = self.frame * FRAME
        return 0 if sample < PAUSE else sample - LEAD

    def _judge(self, score: float) -> list[Cut]:
        self.speaking = score >= (THRESHOLD - HYSTERESIS if self.speaking else THRESHOLD)
        if self.start is None and self.speaking:
            self.start, self.scores, self.spoken = self._padded(), [], []
        self.frame += 1
        if self.start is None:
            return []
        self.scores.append(score)
        self.spoken.append(self.speaking)
        if self.speaking:
            self.last = self.frame
            if self.frame * FRAME + PAUSE - self.start <= LONGEST_TURN:
                return []
            half = len(self.scores) // 2
            least = half + int(np.argmin(self.scores[half:]))
            stop = (self.frame - len(self.scores) + least) * FRAME
            after = stop, self.scores[least:], self.spoken[least:]
            self.spoken = self.spoken[:least]
            cuts = self._ended(stop)
            self.start, self.scores, self.spoken = after
            return cuts
        return self._ended(self.last * FRAME - OVERHANG) if (self.frame - self.last) * FRAME >= PAUSE else []

    def _ended(self, stop: int) -> list[Cut]:
        """The windows of the turn that is under way, which ends before a sample."""
        start, self.start = self.start, None
        if start is None or sum(self.spoken) * FRAME < SHORTEST_SPEECH_SECONDS * SAMPLING_RATE:
            return []
        number = len(self.turns)
        self.turns.append(Turn(start / SAMPLING_RATE, stop / SAMPLING_RATE))
        windows = list(iter_windows([self.audio.between(start, stop)], *self.windowing))
        return [
            Cut(number, start + begin, samples, count == len(windows))
            for count, (begin, samples) in enumerate(windows, start=1)
        ]
