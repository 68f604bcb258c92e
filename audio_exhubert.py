"""From audio to model input: decode, resample, cut, pad, normalise.

Everything that feeds the model goes through here: training, evaluation, pipeline and the feature extractor.
The published model was trained on 3 s of 16 kHz mono, cut or zero-padded, then normalised to zero mean and unit
variance with the padding included, without an attention mask.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, BinaryIO

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
RATES = (1_000, 1_000_000)  # Hz
MOST_CHANNELS = 8  # of what is taken for one clip, not for so many clips of a few samples each

FORMATS = (
    "read are wav, flac, ogg, mp3 and what else libsndfile knows; `pip install av` (or exhubert[video]) adds the "
    "sound of mp4, mov, m4a, webm, mkv, avi and aac"
)
# Of what FFmpeg knows, the formats that lead to no other files or addresses.
AV_CONTAINERS = "mov,matroska,avi,aac,asf,mpegts,mpeg,flv,amr,wav"
LENGTH_IN_HEADER = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # in other containers FFmpeg estimates it
LENGTH_TOLERANCE_SECONDS = 0.5
UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile says of a FLAC that was written to a pipe
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


def prepare_input(samples: np.ndarray, window_seconds: float | None = WINDOW_SECONDS) -> np.ndarray:
    """Turns samples into model input.

    Args:
        samples: 16 kHz mono, as `mono` takes it.
        window_seconds: the first `window_seconds` are kept and shorter audio is zero-padded at its end; None
            keeps the length as it is.

    Returns:
        float32 `(window_seconds * 16000,)`: zero mean and unit variance over all of it, padding included.

    Raises:
        ValueError: if `samples` is not one channel, is empty, or holds NaN or infinite values.
    """
    samples = mono(samples).astype(np.float32, copy=False)
    if not len(samples):
        raise ValueError("audio is empty (0 samples)")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinite samples")
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


def iter_windows(
    chunks: Iterable[np.ndarray], window_seconds: float, hop_seconds: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts audio into overlapping windows, each as soon as its last sample is there.

    Window k begins at `k * hop_seconds`. The last one is the first that reaches the end of the audio, where it may be
    shorter; audio shorter than a window is one window.

    Args:
        chunks: 16 kHz mono `(samples,)` each, of any lengths: `[samples]` for audio that is all there.
        window_seconds: length of a window.
        hop_seconds: distance of two windows; half a window by default.

    Yields:
        The number of the window's first sample, and its samples, at most `window_seconds * 16000`.
    """
    window = round(window_seconds * SAMPLING_RATE)
    hop_seconds = window_seconds / 2 if hop_seconds is None else hop_seconds
    held: list[np.ndarray] = []  # from the sample number `first` on
    first = total = start = end = count = 0
    for chunk in chunks:
        total += len(chunk)
        if total <= start:  # between two windows
            held, first = [], total
            continue
        held.append(chunk)
        if total < start + window:
            continue
        samples = np.concatenate(held)
        while start + window <= total:
            yield start, samples[start - first : start - first + window]
            end, count = start + window, count + 1
            start = round(count * hop_seconds * SAMPLING_RATE)
        samples, first = samples[start - first :], min(start, total)
        held = [samples]
    if start < total and end < total:
        yield start, np.concatenate(held)[start - first :]


def audio_seconds(audio: AudioFile) -> float:
    """Returns the length of an audio file in seconds, from its header where that says it; raises as `read_audio`."""
    sound = _open(audio)
    if sound is not None:
        with sound:
            if not sound.frames:
                raise ValueError(f"{audio_name(audio)}: the audio file is empty (0 samples)")
            if sound.frames < UNKNOWN_FRAMES:
                return sound.frames / sound.samplerate
        return sum(map(len, iter_audio(audio))) / SAMPLING_RATE
    with _av_open(audio) as (container, stream):
        # Of raw AAC FFmpeg guesses the length, and of several streams Matroska says only the longest one's.
        if stream.duration and container.format.name != "aac":
            return float(stream.duration * stream.time_base)
        if container.duration and len(container.streams) == 1 and container.format.name != "aac":
            return (container.duration - (container.start_time or 0)) / 1e6
        times = [
            (packet.pts * packet.time_base, (packet.pts + (packet.duration or 0)) * packet.time_base)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        if not times:
            raise ValueError(f"{audio_name(audio)}: the audio file is empty (0 samples)")
        return float(times[-1][1] - times[0][0])


def read_audio(audio: AudioFile, start_seconds: float = 0.0, duration_seconds: float | None = None) -> np.ndarray:
    """Reads a file, or a part of it by seeking, as 16 kHz mono.

    Args:
        audio: path or binary file of anything that libsndfile decodes (wav, flac, ogg, mp3, ...), any rate, any
            number of channels; where the library av is installed also of the sound, its first stream, of mp4, mov,
            m4a, webm, mkv, avi, aac and more.
        start_seconds: where to begin, counted from the first sample.
        duration_seconds: how much to read; None reads to the end.

    Returns:
        float32 `(samples,)` at 16 kHz, channels averaged.

    Raises:
        ValueError: if the file does not decode, has no sound, is empty, is cut off, or holds NaN or infinite
            samples; names the file.
        FileNotFoundError: if there is no such file.
    """
    return np.concatenate(list(iter_audio(audio, BLOCK_SECONDS, start_seconds, duration_seconds)))


def iter_audio(
    audio: AudioFile,
    block_seconds: float = BLOCK_SECONDS,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Iterator[np.ndarray]:
    """Reads what `read_audio` reads in chunks, in memory that does not grow with the length of the file.

    Args:
        audio, start_seconds, duration_seconds: as in `read_audio`.
        block_seconds: how much of the file is decoded at a time, at most.

    Yields:
        float32 `(samples,)` at 16 kHz, of any length; joined they are what `read_audio` returns, bit for bit.

    Raises:
        ValueError, FileNotFoundError: as `read_audio`; for what is wrong further on in the file, when it gets there.
    """
    sound = _open(audio)
    if sound is None:
        blocks = _av_blocks(audio, start_seconds, duration_seconds)
    else:
        blocks = _sound_blocks(audio, sound, start_seconds, duration_seconds, block_seconds)
    first, rate = next(blocks, (None, 0))
    if first is None:
        raise ValueError(f"{audio_name(audio)}: no audio at {start_seconds} s (the file is empty or ends before)")
    chunks = itertools.chain([first], (block for block, _ in blocks))
    yield from resample_chunks(chunks, rate, audio_name(audio), start_seconds)


def resample_chunks(
    chunks: Iterable[Any], sampling_rate: float, name: str, start_seconds: float = 0.0
) -> Iterator[np.ndarray]:
    """Makes 16 kHz float32 of mono audio that comes in chunks (soxr, very high quality).

    The result does not depend on where the chunks are cut. What comes out lags 0.06 to 0.11 s behind what goes in at
    rates from 8 to 96 kHz, and not at all at 16 kHz.

    Args:
        chunks: `(samples,)` each, of any lengths: floating point, or integers of 8, 16 or 32 bits, which are divided
            by their range (int16 by 32,768; uint8 is centred at 128).
        sampling_rate: of the chunks, in Hz.
        name: of the audio, for errors.
        start_seconds: the time of the first sample, for errors.

    Yields:
        float32 `(samples,)`, newly allocated: a caller may use the memory of its chunks again.

    Raises:
        ValueError: at once, if `sampling_rate` is no rate of audio; when it gets there, for a chunk of another shape or
            type, or that holds NaN or infinite samples, with its time.
    """
    if not (isinstance(sampling_rate, Real) and RATES[0] <= sampling_rate <= RATES[1]):
        raise ValueError(f"{name}: sampling_rate is {sampling_rate!r}; it must be from {RATES[0]} to {RATES[1]} Hz")
    rate = float(sampling_rate)
    if rate != SAMPLING_RATE:
        _require_audio_libraries()
    return _resampled(chunks, rate, name, start_seconds)


def _resampled(chunks: Iterable[Any], rate: float, name: str, start_seconds: float) -> Iterator[np.ndarray]:
    resampler = None
    if rate != SAMPLING_RATE:
        resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="VHQ")
    count = 0
    for chunk in chunks:
        samples = mono(chunk, name)
        if samples.dtype.kind != "f":
            if samples.dtype.kind not in "iu" or samples.dtype.itemsize > 4:
                types = "floating point, or integers of 8, 16 or 32 bits,"
                raise ValueError(f"{name}: samples of type {samples.dtype}; {types} are needed")
            samples = _scaled(samples)
        samples = np.array(samples, dtype=np.float32)
        finite = np.isfinite(samples)
        if not finite.all():
            seconds = start_seconds + (count + int(finite.argmin())) / rate
            raise ValueError(f"{name}: the audio holds NaN or infinite samples at {seconds:.2f} s")
        count += len(samples)
        yield samples if resampler is None else resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Integers, divided by their range: float64 from -1 to 1."""
    limits = np.iinfo(samples.dtype)
    half = (int(limits.max) - int(limits.min) + 1) / 2
    return (samples.astype(np.float64) - (limits.max - half + 1)) / half


def _sound_blocks(
    audio: AudioFile, sound: Any, start_seconds: float, duration_seconds: float | None, block_seconds: float
) -> Iterator[tuple[np.ndarray, int]]:
    """A part of what libsndfile decodes: blocks of mono `(samples,)`, and their rate."""
    with sound:
        rate = sound.samplerate
        begin = min(round(start_seconds * rate), sound.frames)
        end = sound.frames if duration_seconds is None else min(begin + round(duration_seconds * rate), sound.frames)
        block, position = max(1, round(block_seconds * rate)), begin
        try:
            if begin or sound.seekable():
                sound.seek(begin)
            # Else soundfile would seek to where it is after each block, and blocks of MP3 would not join.
            sound.seekable = lambda: False
            while len(samples := sound.read(min(block, end - position), dtype="float32", always_2d=True)):
                yield samples.mean(axis=1), rate
                position += len(samples)
        except soundfile.LibsndfileError as error:
            problem = f"the audio does not decode after {position / rate:g} s ({error.error_string})"
            raise ValueError(f"{audio_name(audio)}: {problem}") from error


def _open(audio: AudioFile) -> Any:
    """The file as a `soundfile.SoundFile`; None where libsndfile does not know the format but av is there to try."""
    _require_audio_libraries()
    if isinstance(audio, str | os.PathLike):
        if not os.path.isfile(audio):
            raise FileNotFoundError(f"{audio_name(audio)}: no such audio file")
        # soundfile encodes a str itself, which fails for a name that is not UTF-8.
        file: Any = os.fsencode(audio) if os.name == "posix" else audio
    else:
        if not audio.seekable() or isinstance(audio.read(0), str):
            raise ValueError(f"{audio_name(audio)}: a binary file that can be rewound is needed; or give its bytes")
        audio.seek(0)
        file = audio
    try:
        return soundfile.SoundFile(file)
    except TypeError as error:  # raw samples, which say no rate
        raise ValueError(f"{audio_name(audio)}: the audio does not decode ({error})") from error
    except soundfile.LibsndfileError as error:
        problem = f"{audio_name(audio)}: the audio does not decode ({error.error_string})"
        with contextlib.nullcontext(file) if hasattr(file, "read") else open(file, "rb") as opened:
            opened.seek(0)
            pointer = opened.read(len(GIT_LFS)) == GIT_LFS
        if pointer:
            problem = f"{audio_name(audio)}: no audio but a Git LFS pointer; fetch it by `git lfs pull`"
            raise ValueError(problem) from error
        # Unrecognised format, unsupported encoding, a Mac's `._` file beside it: all else is a broken file.
        if error.code not in (1, 4) and "resource fork" not in error.error_string:
            raise ValueError(problem) from error
        if _av() is None:
            raise ValueError(f"{problem}; {FORMATS}") from error
        return None


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
            # Not by name: FFmpeg takes some names for addresses.
            file: Any = stack.enter_context(open(audio, "rb"))
        else:
            file = audio
            file.seek(0)
        try:
            container = stack.enter_context(av.open(file, options={"format_whitelist": AV_CONTAINERS}))
            if not container.streams.audio:
                raise ValueError(f"{audio_name(audio)}: there is no sound in this file")
            yield container, container.streams.audio[0]
        except av.FFmpegError as error:
            raise ValueError(f"{audio_name(audio)}: the audio does not decode ({error.strerror})") from error


def _av_blocks(
    audio: AudioFile, start_seconds: float, duration_seconds: float | None, seek: bool = True
) -> Iterator[tuple[np.ndarray, int]]:
    """A part of the first audio stream: blocks of mono `(samples,)`, and their rate."""
    seek = seek and start_seconds > PREROLL_SECONDS
    with _av_open(audio) as (container, stream):
        frames = _av_frames(audio, container, stream)
        frame = next(frames, None)
        position = 0.0  # of the frame's first sample, in seconds after the stream's first sample
        if seek and frame is not None and frame.time is not None:
            origin = frame.time
            container.seek(round((origin + start_seconds - PREROLL_SECONDS) / stream.time_base), stream=stream)
            frames = _av_frames(audio, container, stream)
            frame = next(frames, None)
            position = math.inf if frame is None or frame.time is None else frame.time - origin
        if seek and position > start_seconds:  # it led nowhere, or too far
            yield from _av_blocks(audio, start_seconds, duration_seconds, seek=False)
            return
        if frame is None:
            return
        rate = frame.sample_rate
        skipped = round((start_seconds - position) * rate)
        wanted = math.inf if duration_seconds is None else skipped + round(duration_seconds * rate)
        count = 0
        for part in itertools.chain([frame], frames):
            if part.sample_rate != rate:
                name = audio_name(audio)
                raise ValueError(f"{name}: the sampling rate changes from {rate} to {part.sample_rate} Hz")
            if count + part.samples > skipped:
                samples = part.to_ndarray()
                if not part.format.is_planar:
                    samples = samples.reshape(part.samples, -1).T
                if samples.dtype.kind != "f":
                    samples = _scaled(samples)
                mono = samples.mean(axis=0).astype(np.float32)
                yield mono[max(0, skipped - count) : int(min(part.samples, wanted - count))], rate
            count += part.samples
            if count >= wanted:
                return


def _av_frames(audio: AudioFile, container: Any, stream: Any) -> Iterator[Any]:
    """Decodes to the end of the file, which must be where its header says."""
    end = 0.0  # in seconds, of all streams: the sound may be shorter than the picture
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            if packet.is_corrupt:
                raise ValueError(f"{audio_name(audio)}: the file is damaged or cut off at {end:.1f} s")
            yield from packet.decode()
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
