"""From audio to model input: decode, resample, cut, pad, normalise.

Everything that feeds the model goes through here: training, evaluation, pipeline and the feature extractor.
The published model was trained on 3 s of 16 kHz mono, cut or zero-padded, then normalised to zero mean and unit
variance with the padding included, without an attention mask.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from transformers import Wav2Vec2FeatureExtractor
from transformers.utils import logging

try:
    import soundfile
    import soxr
except (ImportError, OSError):  # only reading files needs them, the model does not; OSError: no libsndfile
    soundfile = soxr = None

logger = logging.get_logger(__name__)
AudioFile = str | os.PathLike[str] | BinaryIO
SAMPLING_RATE = 16_000  # Hz
WINDOW_SECONDS = 3.0
LONGEST_INPUT_SECONDS = 30.0  # of a model whose folder names no window
SHORTEST_INPUT_SECONDS = 0.1  # what is shorter is padded: a CNN needs some samples for its first frame
BLOCK_SECONDS = 30.0  # of a file are decoded at a time
BLOCK_VALUES = 2**22  # at most, all channels together
RATES = (1_000, 1_000_000)  # Hz
LARGEST_SAMPLE = 1e12  # full scale is 1, of floats that are integers 2**31; the square of more overflows
CHANNELS = ("mix", "each")
MOST_CHANNELS = 8  # of what is taken for one clip, not for so many clips of a few samples each

READ = "read are wav, flac, ogg, mp3 and what else libsndfile knows"
READ_BY_AV = "the sound of mp4, mov, m4a, 3gp, webm, mkv, mka, avi, aac, amr"
# Of what FFmpeg knows, the formats that lead to no other files or addresses.
AV_CONTAINERS = "mov,matroska,avi,aac,asf,mpegts,mpeg,flv,amr,wav,ogg,mp3"
MOV = "mov,mp4,m4a,3gp,3g2,mj2"
LENGTH_IN_HEADER = (MOV, "matroska,webm")  # in other containers FFmpeg estimates it
MOST_PLANES = 8  # of channels that do not take turns; of more PyAV reads memory that is not theirs
LENGTH_TOLERANCE_SECONDS = 0.5
TOLERATED_SECONDS = 0.01  # headers that are a few samples off are common, and the audio is whole
# libsndfile believes the size of the file, and only its log says that the header of a wav, au or aiff promised more.
PROMISED_BYTES = re.compile(r"(?:data|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)")
STREAMED_BYTES = 0x7FFF0000  # from here on a promise is a placeholder: what was written to a pipe
UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile says of a FLAC that was written to a pipe
LONGEST_OGG_PAGE = 65_307  # bytes
LONGEST_OGG_PACKET = 8192  # samples: of Vorbis 8192 at its own rate, of Opus 5760 at 48 kHz
LARGEST_FILE = 2**40  # bytes; where there is a limit it differs from file system to file system
TRAILING_BYTES = 4096  # tags after an MP3
MOST_CHUNKS = 1000  # of a WAV before its samples
# What an MP3 says of its length: the number of frames, mostly with that of bytes behind it.
XING = re.compile(rb"(?:Xing|Info)\0\0\0(?:[\x03\x07\x0b\x0f].{4}(.{4}))?|VBRI", re.DOTALL)
GIT_LFS = b"version https://git-lfs"
PREROLL_SECONDS = 0.5  # decoded before a part begins: AAC and Opus need what came before


def mono(audio: Any, name: str = "") -> np.ndarray:
    """Returns the samples of one channel, `(samples,)`, in their own dtype.

    Args:
        audio: an array, a tensor or a list: `(samples,)`, or with an axis for its one channel `(1, samples)`, as
            torchaudio gives it, or `(samples, 1)`, as soundfile does.
        name: of the audio, for errors.

    Raises:
        ValueError: for several channels, or another shape.
    """
    samples = np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio)
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        where = f"{name}: " if name else ""
        axis = int(samples.ndim == 2 and samples.shape[1] < samples.shape[0])
        remedy = f": {samples.shape[axis]} channels are averaged by audio.mean({axis})" if samples.ndim == 2 else ""
        raise ValueError(f"{where}audio of shape {samples.shape}; mono samples (samples,) are needed{remedy}")
    return samples


def planes(audio: Any, name: str = "") -> np.ndarray:
    """Returns the samples of every channel, `(channels, samples)`, in their own dtype.

    Args:
        audio: an array, a tensor or a list: `(samples,)`, `(channels, samples)` or `(samples, channels)`; the shorter
            axis is that of the channels.
        name: of the audio, for errors.

    Raises:
        ValueError: for another shape, or no samples.
    """
    samples = np.atleast_2d(np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio))
    where = f"{name}: " if name else ""
    if samples.ndim != 2:
        raise ValueError(f"{where}audio of shape {samples.shape}; (samples,) or (channels, samples) are needed")
    if not samples.size:
        raise ValueError(f"{where}the audio is empty (0 samples)")
    return samples.T if samples.shape[1] < samples.shape[0] else samples


def is_audible(samples: np.ndarray) -> np.ndarray:
    """Which samples can be computed with: no NaN, and none beyond `LARGEST_SAMPLE`."""
    return np.abs(samples) <= LARGEST_SAMPLE


def prepare_input(samples: np.ndarray, window_seconds: float | None = WINDOW_SECONDS) -> np.ndarray:
    """Turns samples into model input.

    Args:
        samples: 16 kHz mono, as `mono` takes it.
        window_seconds: the first `window_seconds` are kept and shorter audio is zero-padded at its end; None
            keeps the length as it is.

    Returns:
        float32 `(window_seconds * 16000,)`: zero mean and unit variance over all of it, padding included.

    Raises:
        ValueError: if `samples` is not one channel, is empty, or holds NaN, infinite or absurd values.
    """
    samples = mono(samples).astype(np.float32, copy=False)
    if not len(samples):
        raise ValueError("audio is empty (0 samples)")
    if not is_audible(samples).all():
        raise ValueError(f"audio holds NaN or infinite samples, or some beyond {LARGEST_SAMPLE:g}")
    if window_seconds is not None:
        window = round(window_seconds * SAMPLING_RATE)
        samples = samples[:window]
        samples = np.pad(samples, (0, window - len(samples)))
    # The formula of Wav2Vec2FeatureExtractor, so that its users get the same numbers.
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def extract_features(samples: np.ndarray, extractor: Any, window_seconds: float | None = None) -> np.ndarray:
    """Turns samples into the input of a model, as its feature extractor says.

    Args:
        samples: 16 kHz mono, `(samples,)`.
        extractor: the model's feature extractor. For a model of waveforms (any `Wav2Vec2FeatureExtractor`) and a
            window the result is that of `prepare_input`; others, `WhisperFeatureExtractor` for one, get the window
            unnormalised.
        window_seconds: the first `window_seconds` are kept, and shorter audio is zero-padded at its end. None takes
            the extractor's own `window_seconds`; where it names none, as other packages' do, the samples keep their
            length (at least 0.1 s), and are normalised if it says so.

    Returns:
        float32: `(window_seconds * 16000,)`, or `(mel bins, frames)` of the window padded to the 30 s of a Whisper.

    Raises:
        ValueError: as `prepare_input`, and for a window longer than a spectrogram model's input.
    """
    if window_seconds is None:
        window_seconds = getattr(extractor, "window_seconds", None)
    if (window_seconds or 0.0) > _spectrogram_seconds(extractor):
        longest = _spectrogram_seconds(extractor)
        raise ValueError(f"window_seconds is {window_seconds:g}; the input of this model is {longest:g} s")
    if window_seconds is None and 0 < len(samples) < SHORTEST_INPUT_SECONDS * SAMPLING_RATE:
        window_seconds = SHORTEST_INPUT_SECONDS
    normalised = prepare_input(samples, window_seconds)
    window = np.zeros_like(normalised)
    window[: len(samples)] = samples[: len(window)]
    if isinstance(extractor, Wav2Vec2FeatureExtractor):
        return normalised if window_seconds is not None or extractor.do_normalize else window
    features = extractor(window, sampling_rate=SAMPLING_RATE, return_tensors="np")
    return np.asarray(features[extractor.model_input_names[0]][0], dtype=np.float32)


def longest_input_seconds(extractor: Any) -> float:
    """How much audio a model hears at once, in seconds: its window; at most 30 s where the extractor names none."""
    window_seconds = getattr(extractor, "window_seconds", None)
    return float(window_seconds or min(LONGEST_INPUT_SECONDS, _spectrogram_seconds(extractor)))


def _spectrogram_seconds(extractor: Any) -> float:
    """How much audio a spectrogram holds, to which all audio is padded or cut: a Whisper's, an AST's; else no limit."""
    if hasattr(extractor, "chunk_length"):
        return float(extractor.chunk_length)
    if hasattr(extractor, "num_mel_bins") and getattr(extractor, "max_length", None):
        return float(extractor.max_length) / 100  # frames of 10 ms
    return math.inf


class Cut(NamedTuple):
    """A window, cut out of audio.

    Attributes:
        span: the number of its span.
        start: the number of its first sample in the audio.
        samples: `(samples,)`.
        last: whether it is known to be the last one of its span.
    """

    span: int
    start: int
    samples: np.ndarray
    last: bool


class LatestSamples:
    """The latest samples of one channel, called by their numbers in the audio; `total` have come."""

    def __init__(self) -> None:
        self.chunks: deque[np.ndarray] = deque()  # from the sample number `first` on
        self.first = self.total = 0

    def append(self, chunk: np.ndarray) -> None:
        """Takes the next samples, 16 kHz mono `(samples,)`."""
        self.chunks.append(chunk)
        self.total += len(chunk)

    def between(self, start: int, stop: int) -> np.ndarray:
        """Returns the samples from `start` to before `stop`, which must not be forgotten yet."""
        if len(self.chunks) > 1:
            self.chunks = deque([np.concatenate(self.chunks)])
        return self.chunks[0][start - self.first : stop - self.first]

    def forget(self, before: int) -> None:
        """Lets go of what is before a sample."""
        before = min(before, self.total)
        while self.chunks and self.first + len(self.chunks[0]) <= before:
            self.first += len(self.chunks.popleft())
        if self.first < before:
            self.chunks[0] = self.chunks[0][before - self.first :]
            self.first = before


class WindowCutter:
    """Cuts spans of one channel into overlapping windows, each as soon as its last sample is there.

    Window k of a span begins k hops after it. The last one is the first that reaches the end of the span, or of the
    audio, where it may be shorter; a span shorter than a window is one window. What is held is less than a window, and
    one chunk.

    Args:
        window_seconds: length of a window.
        hop_seconds: distance of two windows; half a window by default.
        spans: of each its first sample and the one after its last; all of the audio by default. They may overlap.
    """

    def __init__(
        self,
        window_seconds: float,
        hop_seconds: float | None = None,
        spans: Sequence[tuple[int, float]] = ((0, math.inf),),
    ) -> None:
        self.window = round(window_seconds * SAMPLING_RATE)
        self.hop_seconds = window_seconds / 2 if hop_seconds is None else hop_seconds
        self.spans = spans
        # Of each span its next window: where it ends, span, number, where it begins, where the one before ended.
        self.waiting: list[tuple[float, int, int, int, float]] = [
            (min(begin + self.window, end), span, 0, begin, begin) for span, (begin, end) in enumerate(spans)
        ]
        heapq.heapify(self.waiting)
        self.audio = LatestSamples()

    def push(self, chunk: np.ndarray) -> list[Cut]:
        """Takes the next samples, 16 kHz mono `(samples,)`; returns the windows that end in them."""
        self.audio.append(chunk)
        windows = []
        while self.waiting and self.waiting[0][0] <= self.audio.total:
            stop, span, count, start, _ = heapq.heappop(self.waiting)
            begin, end = self.spans[span]
            following = begin + round((count + 1) * self.hop_seconds * SAMPLING_RATE)
            last = stop >= end or following >= end
            if not last:
                after = (min(following + self.window, end), span, count + 1, following, stop)
                heapq.heappush(self.waiting, after)
            windows.append(Cut(span, start, self.audio.between(start, int(stop)), last))
        self.audio.forget(self.audio.total - self.window if self.waiting else self.audio.total)
        return windows

    def end(self) -> list[Cut]:
        """Returns the windows that the end of the audio cuts short."""
        total = self.audio.total
        self.spans = [(begin, min(end, total)) for begin, end in self.spans]
        left = (entry for entry in self.waiting if entry[3] < total and entry[4] < total)
        self.waiting = [(min(entry[0], total), *entry[1:]) for entry in left]
        heapq.heapify(self.waiting)
        return self.push(np.zeros(0, np.float32))


def iter_windows(
    chunks: Iterable[np.ndarray], window_seconds: float, hop_seconds: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts audio into overlapping windows, each as soon as its last sample is there; see `WindowCutter`.

    Args:
        chunks: 16 kHz mono `(samples,)` each, of any lengths: `[samples]` for audio that is all there.
        window_seconds, hop_seconds: as for `WindowCutter`.

    Yields:
        The number of the window's first sample, and its samples, at most `window_seconds * 16000`.
    """
    cutter = WindowCutter(window_seconds, hop_seconds)
    for cuts in itertools.chain(map(cutter.push, chunks), (cutter.end() for _ in range(1))):
        yield from ((cut.start, cut.samples) for cut in cuts)


def audio_seconds(audio: AudioFile) -> float:
    """Returns how much of an audio file decodes, in seconds; raises as `read_audio`.

    That is what the header says; where it says nothing, or more than there is, the file is decoded. That of mp4, mov,
    webm and mkv is believed.
    """
    with open_sound(audio) as (sound, _):
        if sound is not None:
            if not sound.frames:
                raise ValueError(f"{audio_name(audio)}: the audio file is empty (0 samples)")
            with contextlib.suppress(soundfile.LibsndfileError):
                if has_last_sample(sound):  # a header may lie
                    return float(sound.frames / sound.samplerate)
        else:
            with _av_open(audio) as (container, stream):
                seconds = 0.0
                if stream.duration:
                    seconds = float(stream.duration * stream.time_base)
                # Of several streams Matroska says only the longest one's length.
                elif container.duration and len(container.streams) == 1:
                    seconds = (container.duration - (container.start_time or 0)) / 1e6
                # No codec takes less than a byte a second.
                if container.format.name in LENGTH_IN_HEADER and 0.0 < seconds <= container.size:
                    return seconds
    return sum(map(len, iter_audio(audio))) / SAMPLING_RATE


def read_audio(audio: AudioFile, start_seconds: float = 0.0, duration_seconds: float | None = None) -> np.ndarray:
    """Reads a file, or a part of it by seeking, as 16 kHz mono.

    Args:
        audio: path or binary file of anything that libsndfile decodes (wav, flac, ogg, mp3, ...), any rate, any
            number of channels; where the library av is installed also of the sound, its first stream, of mp4, mov,
            m4a, webm, mkv, avi, aac and more. What is in the file counts, not its name.
        start_seconds: where to begin, counted from the first sample.
        duration_seconds: how much to read; None reads to the end.

    Returns:
        float32 `(samples,)` at 16 kHz, channels averaged.

    Raises:
        ValueError: if the file does not decode, has no sound, is empty, or holds NaN or infinite samples; names the
            file. A wav, ogg or mp3 that is cut off is read as far as it goes; flac and video are not.
        FileNotFoundError: if there is no such file.
    """
    return np.concatenate(list(iter_audio(audio, BLOCK_SECONDS, start_seconds, duration_seconds)))


def iter_audio(
    audio: AudioFile,
    block_seconds: float = BLOCK_SECONDS,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    on_warning: Callable[[str], None] | None = None,
    channels: str = "mix",
) -> Iterator[np.ndarray]:
    """Reads what `read_audio` reads in chunks, in memory that does not grow with the length of the file.

    Args:
        audio, start_seconds, duration_seconds: as in `read_audio`.
        block_seconds: how much of the file is decoded at a time, at most; less of many channels.
        on_warning: called at the end of a file that is cut off, with the words of `shortfall`.
        channels: "mix" averages them, "each" keeps every one.

    Yields:
        float32 at 16 kHz, of any length: `(samples,)`, which joined are what `read_audio` returns, bit for bit; with
        "each" `(channels, samples)`.

    Raises:
        ValueError, FileNotFoundError: as `read_audio`; for what is wrong further on in the file, when it gets there.
    """
    with open_sound(audio) as (sound, promised):
        if sound is None:
            blocks = _av_blocks(audio, start_seconds, duration_seconds)
        else:
            blocks = _sound_blocks(audio, sound, start_seconds, duration_seconds, block_seconds, promised, on_warning)
        first, rate = next(blocks, (None, 0))
        if first is None:
            raise ValueError(f"{audio_name(audio)}: no audio at {start_seconds} s (the file is empty or ends before)")
        chunks: Iterator[np.ndarray] = itertools.chain([first], (block for block, _ in blocks))
        if channels == "mix":
            chunks = map(_mixed, chunks)
        yield from resample_chunks(chunks, rate, audio_name(audio), start_seconds, channels)


def _mixed(block: np.ndarray) -> np.ndarray:
    """The mean of all channels; of absurd samples it is infinite, and refused later on."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: np.ndarray = block.mean(axis=0)
    return mean


def resample_chunks(
    chunks: Iterable[Any], sampling_rate: float, name: str, start_seconds: float = 0.0, channels: str = "mix"
) -> Iterator[np.ndarray]:
    """Makes 16 kHz float32 of audio that comes in chunks (soxr, very high quality).

    The result does not depend on where the chunks are cut. What comes out lags 0.06 to 0.11 s behind what goes in at
    rates from 8 to 96 kHz, and not at all at 16 kHz.

    Args:
        chunks: `(samples,)` each, of any lengths: floating point, or integers of 8, 16 or 32 bits, which are divided
            by their range (int16 by 32,768; uint8 is centred at 128).
        sampling_rate: of the chunks, in Hz.
        name: of the audio, for errors.
        start_seconds: the time of the first sample, for errors.
        channels: "each" for chunks `(channels, samples)`.

    Yields:
        float32 `(samples,)` or `(channels, samples)`, newly allocated: a caller may use the memory of its chunks again.

    Raises:
        ValueError: at once, if `sampling_rate` is no rate of audio; when it gets there, for a chunk of another shape or
            type, or that holds NaN or infinite samples, with its time.
    """
    check_rate(sampling_rate, name)
    rate = float(sampling_rate)
    if rate != SAMPLING_RATE:
        _require_audio_libraries()
    return _resampled(chunks, rate, name, start_seconds, channels)


def check_rate(sampling_rate: Any, name: str) -> None:
    """Raises ValueError, which begins with `name`, for what is no rate of audio in Hz."""
    if not (isinstance(sampling_rate, Real) and RATES[0] <= sampling_rate <= RATES[1]):
        raise ValueError(f"{name}: sampling_rate is {sampling_rate!r}; it must be from {RATES[0]} to {RATES[1]} Hz")


def _resampled(
    chunks: Iterable[Any], rate: float, name: str, start_seconds: float, channels: str
) -> Iterator[np.ndarray]:
    resampler = None
    count = several = 0
    for chunk in chunks:
        samples = mono(chunk, name) if channels == "mix" else np.asarray(chunk)
        if samples.dtype.kind != "f":
            if samples.dtype.kind not in "iu" or samples.dtype.itemsize > 4:
                types = "floating point, or integers of 8, 16 or 32 bits,"
                raise ValueError(f"{name}: samples of type {samples.dtype}; {types} are needed")
            samples = _scaled(samples)
        samples = np.array(samples, dtype=np.float32, order="C")
        audible = is_audible(samples)
        if not audible.all():
            seconds = start_seconds + (count + int(np.atleast_2d(audible).all(axis=0).argmin())) / rate
            what = f"samples beyond {LARGEST_SAMPLE:g}" if np.isfinite(samples).all() else "NaN or infinite samples"
            raise ValueError(f"{name}: the audio holds {what} at {seconds:.2f} s")
        number = len(np.atleast_2d(samples))
        if number != (several or number):
            at = f"at {start_seconds + count / rate:.2f} s"
            raise ValueError(f"{name}: the number of channels changes from {several} to {number} {at}")
        several = number
        count += samples.shape[-1]
        if rate == SAMPLING_RATE:
            yield samples
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(rate, SAMPLING_RATE, several, dtype="float32", quality="VHQ")
            nothing = samples[..., :0].T
        yield np.ascontiguousarray(resampler.resample_chunk(np.ascontiguousarray(samples.T)).T)
    if resampler is not None:
        yield np.ascontiguousarray(resampler.resample_chunk(nothing, last=True).T)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Integers, divided by their range: float64 from -1 to 1."""
    limits = np.iinfo(samples.dtype)
    half = (int(limits.max) - int(limits.min) + 1) / 2
    return (samples.astype(np.float64) - (limits.max - half + 1)) / half


def _sound_blocks(
    audio: AudioFile,
    sound: Any,
    start_seconds: float,
    duration_seconds: float | None,
    block_seconds: float,
    promised: float,
    on_warning: Callable[[str], None] | None,
) -> Iterator[tuple[np.ndarray, int]]:
    """A part of what libsndfile decodes: blocks `(channels, samples)`, and their rate."""
    rate = sound.samplerate
    begin = min(round(start_seconds * rate), sound.frames)
    end = sound.frames if duration_seconds is None else min(begin + round(duration_seconds * rate), sound.frames)
    position = begin
    try:
        if begin or sound.seekable():
            sound.seek(begin)
        most = max(1, min(round(block_seconds * rate), BLOCK_VALUES // sound.channels))
        for samples in decode_blocks(sound, most, end - begin):
            yield samples.T, rate
            position += len(samples)
    except soundfile.LibsndfileError as error:
        problem = f"the audio does not decode after {position / rate:g} s ({error.error_string})"
        raise ValueError(f"{audio_name(audio)}: {problem}") from error
    if duration_seconds is None and on_warning and (warning := shortfall(position, rate, promised)):
        on_warning(warning)


def decode_blocks(sound: Any, block_frames: int, frames: int | None = None) -> Iterator[np.ndarray]:
    """Decodes a `soundfile.SoundFile` from where it stands.

    Args:
        sound: the file.
        block_frames: length of a block.
        frames: how many are wanted; else as many as the header says.

    Yields:
        float32 `(frames, channels)`.
    """
    # Else soundfile would seek to where it is after each block: blocks of MP3 would not join, and after the last one
    # of a FLAC that does not know its length that is an error.
    sound.seekable = lambda: False
    frames = sound.frames if frames is None else frames
    while frames and len(block := sound.read(min(block_frames, frames), dtype="float32", always_2d=True)):
        yield block
        frames -= len(block)


def has_last_sample(sound: Any) -> bool:
    """Whether the last sample that the header promises decodes; the file stands behind it then."""
    sound.seek(sound.frames - 1)
    try:
        return len(sound.read(1)) > 0
    except ValueError:  # it stands beyond the end
        return False


def shortfall(frames: int, rate: int, promised: float) -> str:
    """What is to be said of a file of which `frames` decode, and `promised` should (see `open_sound`); or nothing."""
    if promised - frames <= TOLERATED_SECONDS * rate:
        return ""
    if promised == math.inf:
        return f"truncated: {frames / rate:.2f} s, without the end that an ogg file has"
    return f"truncated: {frames / rate:.2f} s of the {promised / rate:.2f} s that its header promises"


@contextlib.contextmanager
def open_sound(audio: AudioFile) -> Iterator[tuple[Any, float]]:
    """Opens an audio file for libsndfile, by what is in it and not by its name.

    A WAV that says that it holds nothing although it does, as a recorder that died leaves it, is read to its end.

    Yields:
        A `soundfile.SoundFile`, or None where PyAV is to read the file; and how many samples its header promises: 0
        where it says nothing, infinity for an ogg that has no end.

    Raises:
        ValueError: if neither can; FileNotFoundError: if there is no such file.
    """
    _require_audio_libraries()
    name, sound, promised = audio_name(audio), None, 0.0
    with contextlib.ExitStack() as stack:
        if isinstance(audio, str | os.PathLike):
            if not os.path.isfile(audio):
                raise FileNotFoundError(f"{name}: no such audio file")
            file: Any = stack.enter_context(open(audio, "rb", buffering=0))
        else:
            if not audio.seekable() or isinstance(audio.read(0), str):
                raise ValueError(f"{name}: a binary file that can be rewound is needed; or give its bytes")
            file = audio
        file.seek(0)
        head = file.read(len(GIT_LFS))
        if not head:
            raise ValueError(f"{name}: the audio does not decode (the file has 0 bytes)")
        if head == GIT_LFS:
            raise ValueError(f"{name}: no audio but a Git LFS pointer; fetch it by `git lfs pull`")
        try:
            place = _unwritten_size(file)
            # Not by its name, by which libsndfile takes AAC for MP3, and reads a Mac's `._` file beside it; by its
            # number, as a file in Python is slower to read, but on Windows, where each C library has its own numbers.
            numbered = file is not audio and not place and os.name == "posix"
            file = _View(file, place) if place else file
            file.seek(0)
            sound = stack.enter_context(soundfile.SoundFile(file.fileno() if numbered else file, closefd=False))
            promised = _promised_frames(file, sound)
            problem, unknown = ("an mp3 that is longer than it says", False) if promised < 0 else ("", False)
            if sound.format == "OGG" and not problem and sound.frames:
                problem = _ogg_problem(file, sound)
        except soundfile.LibsndfileError as error:
            problem, unknown = error.error_string, error.code in (1, 4)
        if problem:
            problem = f"{name}: the audio does not decode ({problem})"
            if _av() is None:
                raise ValueError(f"{problem}; {READ}; `pip install av` (or exhubert[video]) adds {READ_BY_AV}")
            try:
                with _av_open(audio):
                    sound = None
            except ValueError as error:
                if error.__cause__ is None:  # there is no sound in it
                    raise
                raise ValueError(f"{problem}; {READ}, and {READ_BY_AV}" if unknown else problem) from error
        if sound is not None:
            check_rate(sound.samplerate, name)
        yield sound, promised


def _unwritten_size(file: Any) -> int:
    """Where a WAV says that it has 0 bytes of samples although some follow; else 0."""
    place, end = 12, file.seek(0, os.SEEK_END)
    file.seek(0)
    if not re.match(rb"RIFF....WAVE", file.read(12), re.DOTALL):
        return 0
    for _ in range(MOST_CHUNKS):
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"data":
            # What follows may be a chunk of its own: LIST, id3, ...
            chunk = head[8:12].strip().isalnum() and place + 16 + int.from_bytes(head[12:16], "little") <= end
            return 0 if size or chunk or place + 8 >= end else place + 4
        place += 8 + size + size % 2
    return 0


def _ogg_problem(file: Any, sound: Any) -> str:
    """Why libsndfile must not read an ogg: where times jump it takes for samples what is in memory; or nothing."""
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    times: dict[bytes, int] = {}  # of each stream, in samples: where its last page ended
    place, jump = 0, sound.frames / sound.samplerate > size  # no codec takes less than a byte a second
    while not jump and place + 27 <= size:
        file.seek(place)
        head = file.read(27 + 255)
        if head[:4] != b"OggS":
            break  # libogg looks for the next page; what it finds has times that go on
        lengths = head[27 : 27 + head[26]]
        time, packets = int.from_bytes(head[6:14], "little", signed=True), 1 + sum(length < 255 for length in lengths)
        before = times.get(head[14:18], 0)
        if head[5] & 2:  # a stream begins
            time = 0
        elif before and time >= 0:  # before it, all times are possible: a stream that was cut out
            jump = not 0 <= time - before <= packets * LONGEST_OGG_PACKET
        times[head[14:18]] = max(time, before) if not head[5] & 2 else 0
        place += 27 + len(lengths) + sum(lengths)
    file.seek(position)
    if jump:
        return "an ogg with a gap, or of another length than its own"
    begun = len(sound.read(1)) > 0  # a decoder that could not begin would end the process in a seek
    sound.seek(0)
    return "" if begun else "an ogg of which nothing decodes"


class _View:
    """A binary file without its name, by which FFmpeg would guess; 4 bytes of it can read as "to the end"."""

    def __init__(self, file: Any, to_the_end: int = 0) -> None:
        self.file, self.to_the_end = file, to_the_end
        self.tell = file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; -1, an error, for a place that no file has, where damaged headers lead."""
        try:
            return int(self.file.seek(offset, whence)) if offset < LARGEST_FILE else -1
        except (OSError, ValueError):
            return -1

    def read(self, count: int = -1) -> bytes:
        begin = self.to_the_end - self.tell()
        data = bytearray(self.file.read(count))
        if self.to_the_end and begin > -4:
            size = data[max(begin, 0) : begin + 4]
            data[max(begin, 0) : begin + 4] = b"\xff" * len(size)
        return bytes(data)


def _promised_frames(file: Any, sound: Any) -> float:
    """As `open_sound` yields it; -1 for an MP3 of which libsndfile would read only a part."""
    if sound.format == "FLAC":
        return float(sound.frames) if sound.frames < UNKNOWN_FRAMES else 0.0
    if sound.format not in ("OGG", "MP3"):
        found = PROMISED_BYTES.search(sound.extra_info)
        stated, there = map(int, found.groups()) if found else (0, 0)
        return float(sound.frames * stated / there if there and stated < STREAMED_BYTES else sound.frames)
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    if sound.format == "OGG":
        file.seek(max(0, size - 2 * LONGEST_OGG_PAGE))
        tail = file.read()
        file.seek(position)
        page = tail[tail.rfind(b"OggS") :]
        whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return float(sound.frames) if whole and page[5] & 4 else math.inf
    file.seek(0)
    head = file.read(10)
    begin = 0
    if head[:3] == b"ID3":
        begin = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(begin)
    said = XING.search(file.read(1024))
    file.seek(position)
    if said is None:  # libsndfile guesses by the first frame
        has_last_sample(sound)
        end = file.tell()
        sound.seek(0)
    else:
        end = begin + int.from_bytes(said[1], "big") if said[1] else size
    longer = size - end > max(TRAILING_BYTES, size / 10)
    return -1.0 if longer else sound.frames * float(said is not None)


def _av() -> Any:
    """The library av, or None; imported when first needed, for it brings all of FFmpeg."""
    try:
        import av

        return av
    except (ImportError, OSError):
        return None


@contextlib.contextmanager
def _av_open(audio: AudioFile) -> Iterator[tuple[Any, Any]]:
    """The av container of a file and its first audio stream; what FFmpeg cannot read becomes a ValueError."""
    av = _av()
    with contextlib.ExitStack() as stack:
        if isinstance(audio, str | os.PathLike):
            file: Any = stack.enter_context(open(audio, "rb"))
        else:
            file = audio
            file.seek(0)
        try:
            options = {"format_whitelist": AV_CONTAINERS}
            # Tags are often in Latin-1, and of no use here.
            opened = av.open(_View(file), options=options, metadata_errors="replace")
            container = stack.enter_context(opened)
            if not container.streams.audio:
                raise ValueError(f"{audio_name(audio)}: there is no sound in this file")
            yield container, container.streams.audio[0]
        except av.FFmpegError as error:
            raise ValueError(f"{audio_name(audio)}: the audio does not decode ({error.strerror})") from error


def _av_blocks(
    audio: AudioFile, start_seconds: float, duration_seconds: float | None, seek: bool = True
) -> Iterator[tuple[np.ndarray, int]]:
    """A part of the first audio stream: blocks `(channels, samples)`, and their rate."""
    seek = seek and start_seconds > PREROLL_SECONDS
    with _av_open(audio) as (container, stream):
        frames = _av_frames(audio, container, stream)
        frame = next(frames, None)
        position = 0.0  # of the frame's first sample, in seconds after the stream's first sample
        if seek and frame is not None and frame.time is not None:
            origin = frame.time
            container.seek(round((origin + start_seconds - PREROLL_SECONDS) / stream.time_base), stream=stream)
            frames = _av_frames(audio, container, stream, whole=False)
            frame = next(frames, None)
            position = math.inf if frame is None or frame.time is None else frame.time - origin
        if seek and position > start_seconds:  # it led nowhere, or too far
            yield from _av_blocks(audio, start_seconds, duration_seconds, seek=False)
            return
        if frame is None:
            return
        rate, name = frame.sample_rate, audio_name(audio)
        skipped = round((start_seconds - position) * rate)
        wanted = math.inf if duration_seconds is None else skipped + round(duration_seconds * rate)
        count = 0
        for part in itertools.chain([frame], frames):
            if part.sample_rate != rate:
                raise ValueError(f"{name}: the sampling rate changes from {rate} to {part.sample_rate} Hz")
            if part.format.is_planar and part.layout.nb_channels > MOST_PLANES:
                most = f"at most {MOST_PLANES} are read in this format"
                raise ValueError(f"{name}: the audio has {part.layout.nb_channels} channels; {most}")
            if count + part.samples > skipped:
                try:
                    samples = part.to_ndarray()
                except ValueError as error:  # samples of 64 bits
                    raise ValueError(f"{name}: the audio does not decode ({error})") from error
                if not part.format.is_planar:
                    samples = samples.reshape(part.samples, -1).T
                if samples.dtype.kind != "f":
                    samples = _scaled(samples)
                yield samples[:, max(0, skipped - count) : int(min(part.samples, wanted - count))], rate
            count += part.samples
            if count >= wanted:
                return


def _av_frames(audio: AudioFile, container: Any, stream: Any, whole: bool = True) -> Iterator[Any]:
    """Decodes to the end of the file, which must be where its header says; so must that of a track read as a whole."""
    end = 0.0  # in seconds, of all streams: the sound may be shorter than the picture
    decoded = 0.0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            if packet.is_corrupt:
                raise ValueError(f"{audio_name(audio)}: the file is damaged or cut off at {end:.1f} s")
            for frame in packet.decode():
                decoded += frame.samples / max(frame.sample_rate, 1)
                yield frame
    track = float((stream.duration or 0) * stream.time_base) if whole and container.format.name == MOV else 0.0
    if decoded < track - LENGTH_TOLERANCE_SECONDS:
        raise ValueError(f"{audio_name(audio)}: the file is damaged: {decoded:.1f} s of {track:.1f} s decode")
    stated = (container.duration or 0) / 1e6 if container.format.name in LENGTH_IN_HEADER else 0.0
    if 0.0 < end < stated - LENGTH_TOLERANCE_SECONDS:
        raise ValueError(f"{audio_name(audio)}: the file is cut off: it ends at {end:.1f} s of {stated:.1f} s")


def audio_name(audio: AudioFile) -> str:
    """Returns what errors call a file: its path, or "audio given as bytes"."""
    if isinstance(audio, str | os.PathLike):
        return os.fspath(audio)
    return str(getattr(audio, "name", "audio given as bytes"))


def _require_audio_libraries() -> None:
    if soundfile is None:
        raise ImportError("reading and resampling audio needs soundfile and soxr: pip install soundfile soxr")


class ExHuBERTFeatureExtractor(Wav2Vec2FeatureExtractor):
    """`Wav2Vec2FeatureExtractor` whose defaults are the published model's input.

    A bare `feature_extractor(samples)` cuts or zero-pads to `window_seconds` and then normalises, without an
    attention mask: the numbers of `prepare_input`. Explicit arguments win.

    Args:
        window_seconds: length of the input in seconds.
        kwargs: the other fields of `Wav2Vec2FeatureExtractor`.
    """

    def __init__(self, window_seconds: float = WINDOW_SECONDS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.window_seconds = window_seconds

    def __call__(self, raw_speech: Any, *args: Any, **kwargs: Any) -> Any:
        """As `Wav2Vec2FeatureExtractor.__call__`, with `padding`, `truncation` and `max_length` set to the window.

        Args:
            raw_speech: a clip `(samples,)`, `(1, samples)` or `(samples, 1)`: array, tensor or list; or several: a list
                of clips, or an array `(clips, samples)`.

        Raises:
            ValueError: for a clip of several channels, or without samples.
        """
        first = raw_speech[0] if isinstance(raw_speech, list) and raw_speech else None
        if isinstance(first, list | tuple) and len(first) <= MOST_CHANNELS < len(raw_speech):
            raw_speech = np.asarray(raw_speech, dtype=np.float32)  # samples, each a list of channels
        if isinstance(raw_speech, np.ndarray) or hasattr(raw_speech, "detach"):
            count, length = raw_speech.shape if raw_speech.ndim == 2 else (1, 1)
            several = count > 1 and not length <= MOST_CHANNELS < count
            clips = list(map(mono, raw_speech)) if several else [mono(raw_speech)]
        elif len(raw_speech) and np.ndim(raw_speech[0]):
            clips = [mono(clip) for clip in raw_speech]
        else:
            clips = [np.asarray(raw_speech, dtype=np.float32)]
        if not all(map(len, clips)):
            raise ValueError("audio is empty (0 samples)")
        if not args and "padding" not in kwargs and "max_length" not in kwargs:
            window = round(self.window_seconds * self.sampling_rate)
            kwargs = {"padding": "max_length", "max_length": window, "truncation": True, **kwargs}
            longest = max(map(len, clips))
            if longest > window and kwargs["truncation"]:
                what = f"of {longest / self.sampling_rate:.1f} s of audio the first {self.window_seconds:g} s are taken"
                logger.warning_once(f"{what}; pipeline('speech-emotion-recognition') classifies all of it, in windows")
        return super().__call__(clips, *args, **kwargs)


ExHuBERTFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
