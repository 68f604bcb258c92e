"""Decodes audio files from beginning to end and says what is in them."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm.auto import tqdm

from exhubert.audio_exhubert import SAMPLING_RATE, AudioFile, audio_name, read_audio

BLOCK_BYTES = 2**20  # decoded at a time, whatever the length of the file
FULL_SCALE = 32767 / 32768  # the largest 16-bit sample
TOLERATED_SECONDS = 0.01  # headers that are a few samples off are common, and the audio is whole
# libsndfile believes the size of the file, and only its log says that the header of a wav, au or aiff promised more.
PROMISED_BYTES = re.compile(r"(?:data|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)")
STREAMED_BYTES = 0x7FFF0000  # from here on a promise is a placeholder: what was written to a pipe


class ClipFacts(NamedTuple):
    """What decoding an audio file showed; see `scan_clip`."""

    duration_seconds: float = 0.0
    sampling_rate: int = 0  # Hz, as stored
    channels: int = 0
    peak: float = 0.0  # of full scale; above 1 where floats or lossy codecs exceed it; NaN and infinity are not counted
    full_scale_samples: int = 0  # at or beyond the largest 16-bit sample, over all channels
    finite: bool = True  # no NaN, no infinity
    content_hash: str = ""
    error: str = ""


def scan_clip(path: AudioFile) -> ClipFacts:
    """Decodes one audio file, a path or a binary file with a name, block by block.

    `content_hash` is blake2b (16 bytes, hexadecimal) of the sampling rate, the number of channels, and the decoded
    samples as interleaved little-endian float32. float32 holds samples of up to 24 bits exactly, so a wav, a flac
    and a float wav of the same samples agree; no file name, tag or encoder has a part in it.

    `error` is empty where all is well. Else it begins with `missing:`; `empty:` (no samples); `truncated:` (the
    header promises more than there is; the facts hold for what is there; ogg and w64 promise nothing);
    `does not decode:`, with the decoder's words. Files with samples that decode have a hash, no others. It never
    raises for a bad file.

    What libsndfile does not know (mp4, m4a, webm, ...) is decoded by `read_audio`, where the library av is installed:
    in one piece, and the facts are those of the 16 kHz mono that it delivers.
    """
    source: Any = path
    if isinstance(path, str | os.PathLike):
        if not os.path.isfile(path):
            why = "a link that leads nowhere" if os.path.islink(path) else "no such file"
            return ClipFacts(error=f"missing: {why}")
        if not os.path.getsize(path):
            return ClipFacts(error="empty: the file has 0 bytes")
        source = os.fsencode(path) if os.name == "posix" else path
    try:
        file = soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: raw samples, which say no rate
        try:
            if source is path and not isinstance(path, str | os.PathLike):
                path.seek(0)
            samples = read_audio(path)
        except (ValueError, OSError) as error:
            return ClipFacts(error=f"does not decode: {str(error).removeprefix(f'{audio_name(path)}: ')}")
        return _facts([samples[:, None]], SAMPLING_RATE, 1, len(samples))
    with file:
        found = PROMISED_BYTES.search(file.extra_info) if file.format != "FLAC" else None
        promised, there = map(int, found.groups()) if found else (0, 0)
        frames = file.frames if not there or promised >= STREAMED_BYTES else file.frames * promised // there
        length = BLOCK_BYTES // (4 * file.channels) or 1
        blocks = (file.read(length, dtype="float32", always_2d=True) for _ in itertools.count())
        return _facts(itertools.takewhile(len, blocks), file.samplerate, file.channels, frames)


def scan_clips(paths: Sequence[AudioFile]) -> list[ClipFacts]:
    """Decodes files in parallel; returns their facts in the order of `paths`.

    Threads, as libsndfile and numpy work outside Python's lock: on 2 cores processes were no more than 15 % faster,
    and each would first import everything anew.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scanned = pool.map(scan_clip, paths)
        return list(tqdm(scanned, total=len(paths), desc="decoding", unit="clip"))


def _facts(blocks: Iterable[np.ndarray], rate: int, channels: int, promised_frames: int) -> ClipFacts:
    """The facts of decoded blocks, float32 `(frames, channels)`."""
    frames, peak, full_scale_samples, finite, error = 0, 0.0, 0, True, ""
    content = hashlib.blake2b(f"{rate} Hz, {channels} channels".encode(), digest_size=16)
    try:
        for block in blocks:
            block = block + np.float32(0)  # a float file may hold -0.0, an integer file cannot
            content.update(block.astype("<f4", copy=False).data)
            frames += len(block)
            if not np.isfinite((block.min(), block.max())).all():
                finite = False
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            loudest = max(-float(block.min()), float(block.max()))
            peak = max(peak, loudest)
            if loudest >= FULL_SCALE:
                full_scale_samples += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))
    except soundfile.LibsndfileError as stop:
        error = f"does not decode: after {frames / rate:.2f} s: {stop.error_string}"
    digest = content.hexdigest() if frames and not error else ""
    if not error and not frames:
        error = "empty: no samples"
    elif not error and promised_frames - frames > TOLERATED_SECONDS * rate:
        error = f"truncated: {frames / rate:.2f} s of the {promised_frames / rate:.2f} s that its header promises"
    return ClipFacts(frames / rate, rate, channels, peak, full_scale_samples, finite, digest, error)
