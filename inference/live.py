"""`exhubert predict --live`: what the default microphone hears, a row for each window or turn of speech as it ends."""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any

import numpy as np

from exhubert.inference.audio_files import output_file
from exhubert.inference.predict import checked_options, row_style
from exhubert.inference.prediction_rows import Layout
from exhubert.inference.speech import SHORTEST_SPEECH_SECONDS, Options, open_pipeline, speech_seconds
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.utils.files import locked
from exhubert.utils.text import printable

BLOCK_SECONDS = 0.05  # of sound that the device gives at a time
MOST_BLOCKS = 1200  # that wait for the model: a minute
NOT_INSTALLED = "--live needs sounddevice (the extra `live`): pip install sounddevice"
NO_PORTAUDIO = "--live needs PortAudio, which is not installed; on Debian and Ubuntu: apt install libportaudio2"


def run_live(
    model: str,
    style: str | None = None,
    output: str | None = None,
    per: str | None = None,
    audio: Sequence[str] = (),
    files_from: str | None = None,
    timeline: str | None = None,
    summary: str | None = None,
    segment_files: str | None = None,
    segment_format: Sequence[str] | None = None,
    **options: Any,
) -> int:
    """Prints a row for each window of the microphone, or adds it to a file, until ctrl-c; returns the exit code.

    Args:
        model: as for `run_predict`.
        style: table, jsonl or csv, as for `run_predict`; rows have `start` and `end` in seconds, and no file.
        output: a .jsonl or .csv file, which must not be there.
        per: "window"; "segment" with segments.
        audio, files_from, timeline, summary, segment_files, segment_format: those of `run_predict`, which are refused.
        options: those of `Options`; `segments` may be "speech", with a row for each turn.

    Returns:
        0: ctrl-c is how it ends.

    Raises:
        ValueError: if an argument is wrong.
        OSError: if there is no such model, no microphone, or it gives no more sound, or the output cannot be written.
        ImportError: if sounddevice, or what speech detection needs, is not installed.
    """
    given = {"audio files": audio, "--files-from": files_from, "--timeline": timeline, "--summary": summary}
    given |= {"--segment-files": segment_files, "--segment-format": segment_format}
    for name, value in given.items():
        if value:
            raise ValueError(f"--live hears the microphone, and has no {name}")
    unit, heard = checked_options(per, options)
    unit = "segment" if unit == "segment" else "window"
    if per not in (None, unit) or heard.segments not in (None, "speech") or heard.channels != "mix":
        raise ValueError("--live has a row for each window, or with --segments speech for each segment, of one channel")
    style = row_style(style, output, "segment")
    sounddevice = find_sounddevice()
    pipeline = open_pipeline(model, heard)
    layout = Layout(style, pipeline.class_names, pipeline.quadrant, 0, unit, pipeline.dimensions, live=True)
    with contextlib.ExitStack() as stack:
        rows = sys.stdout
        if output is not None:
            path = output_file(output)
            stack.enter_context(locked(path))
            if path.exists() and path.stat().st_size:
                raise ValueError(f"{output} exists; what is heard now is another recording: give another --output")
            rows = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        stopped = stack.enter_context(until_interrupted())
        microphone = stack.enter_context(Microphone(sounddevice, stopped))
        said = f"{printable(microphone.name)} at {microphone.rate:,.0f} Hz"
        print(f"listening to {said}; ctrl-c ends", file=sys.stderr, flush=True)
        rows.write(layout.header())
        rows.flush()
        for answer in answers_of(microphone, pipeline, heard):
            rows.write(layout.line({"file": "", f"{unit}s": [answer]}))
            rows.flush()
        print(f"{timedelta(seconds=round(microphone.seconds))} heard", file=sys.stderr)
        if not stopped.is_set():
            raise OSError(f"{microphone.name} gives no more sound; is it still connected?")
    return 0


def find_sounddevice() -> ModuleType:
    """The library; raises ImportError where it is not installed, OSError where PortAudio is not."""
    try:
        import sounddevice
    except ImportError as error:
        raise ImportError(NOT_INSTALLED) from error
    except OSError as error:  # it looks for PortAudio when it is imported
        raise OSError(NO_PORTAUDIO) from error
    module: ModuleType = sounddevice
    return module


@contextlib.contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """Yields what the first ctrl-c sets while the block runs; a second one interrupts."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def answers_of(microphone: Microphone, pipeline: ExHuBERTPipeline, options: Options) -> Iterator[dict[str, Any]]:
    """Yields what the pipeline's `stream` does, with times from the start; where sound was lost it begins anew."""
    given: dict[str, Any] = {"window_seconds": options.window_seconds, "hop_seconds": options.hop_seconds}
    if options.segments is not None:
        given |= {"segments": options.segments, "least_probability": options.least_probability}
        given["least_seconds"] = options.least_seconds
    if options.vad:
        given["keep"] = lambda samples: speech_seconds(samples) >= SHORTEST_SPEECH_SECONDS
    while not microphone.ended:
        begin = microphone.seconds
        for answer in pipeline.stream(microphone.blocks(), sampling_rate=microphone.rate, **given):
            yield {**answer, "start": begin + answer["start"], "end": begin + answer["end"]}


class Microphone:
    """The default input device; it is open, and heard, from here until the end of the `with` block.

    Its sound waits for the model for a minute at most. What comes when there is no room is lost, until there is room
    for half a minute; that is said on standard error, with the time.

    Args:
        sounddevice: the library.
        stopped: is set when no more is to be heard than what waits.

    Attributes:
        name: of the device.
        rate: its own sampling rate, in Hz.
        seconds: how much of the time since the start has been handed on or was lost.
        ended: whether all has been handed on.

    Raises:
        OSError: if there is no such device, or it cannot be opened.
    """

    def __init__(self, sounddevice: ModuleType, stopped: threading.Event) -> None:
        self.stopped = stopped
        self.ended = False
        self.frames = 0
        self.lost = 0  # frames since the last block that waits
        self.overruns = 0  # of the device's own, of which it does not say how much they are
        self.full = False
        self.waiting: queue.Queue[tuple[int, int, np.ndarray]] = queue.Queue(MOST_BLOCKS)
        self.held: list[np.ndarray] = []  # the first block after a loss
        try:
            device = sounddevice.query_devices(kind="input")
            self.name, self.rate = str(device["name"]), float(device["default_samplerate"])
            self.stream = sounddevice.InputStream(
                samplerate=self.rate,
                blocksize=round(BLOCK_SECONDS * self.rate),
                channels=1,
                dtype="float32",
                callback=self._take,
            )
            self.stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise OSError(f"no microphone can be opened: {' '.join(str(error).split())}") from error

    def __enter__(self) -> Microphone:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields mono blocks `(samples,)` as they come in, float32; ends where sound was lost, to be called again."""
        for block in self.held:
            self.frames += len(block)
            yield block
        self.held = []
        while True:
            try:
                lost, overruns, block = self.waiting.get(timeout=BLOCK_SECONDS)
            except queue.Empty:
                if self.stopped.is_set() or not self.stream.active:
                    self._say(self.lost, self.overruns)
                    self.ended = True
                    return
                continue
            self._say(lost, overruns)
            if lost:
                self.held = [block]
                return
            self.frames += len(block)
            yield block

    def _take(self, block: np.ndarray, frames: int, _: object, status: Any) -> None:
        """Called by the device's thread."""
        if self.stopped.is_set():
            return
        self.overruns += bool(status.input_overflow)
        self.full = self.waiting.full() or (self.full and self.waiting.qsize() > MOST_BLOCKS // 2)
        if self.full:
            self.lost += frames
            return
        self.waiting.put_nowait((self.lost, self.overruns, block[:, 0].copy()))
        self.lost = self.overruns = 0

    def _say(self, lost: int, overruns: int) -> None:
        at = f"at {self.seconds:.2f} s"
        if overruns:
            print(f"note: {at} the device lost sound itself (input overflow)", file=sys.stderr, flush=True)
        if lost:
            slower = "the model is slower than the sound comes in"
            print(f"note: {at} {lost / self.rate:.2f} s of sound were lost: {slower}", file=sys.stderr, flush=True)
            self.frames += lost
