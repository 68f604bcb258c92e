"""Decodes audio files from beginning to end and says what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import soundfile

from exhubert.audio_exhubert import (
    SAMPLING_RATE,
    AudioFile,
    audio_name,
    decode_blocks,
    is_audible,
    open_sound,
    read_audio,
    shortfall,
)
from exhubert.utils.command import progress_bar

BLOCK_BYTES = 2**20  # decoded at a time, whatever the length of the file
FULL_SCALE = 32767 / 32768  # the largest 16-bit sample


class ClipFacts(NamedTuple):
    """What decoding an audio file showed; see `scan_clip`."""

    duration_seconds: float = 0.0
    sampling_rate: int = 0  # Hz, as stored
    channels: int = 0
    peak: float = (
        0.0  # of full scale; above 1 where floats or lossy codecs exceed it; what is not `finite` is not counted
    )
    full_scale_samples: int = 0  # at or beyond the largest 16-bit sample, over all channels
    finite: bool = True  # no NaN, no infinity, nothing absurd (`is_audible`)
    content_hash: str = ""
    error: str = ""


def scan_clip(audio: AudioFile) -> ClipFacts:
    """Decodes one audio file, a path or a binary file, block by block.

    `content_hash` is blake2b (16 bytes, hexadecimal) of the sampling rate, the number of channels, and the decoded
    samples as interleaved little-endian float32. float32 holds samples of up to 24 bits exactly, so a wav, a flac
    and a float wav of the same samples agree; no file name, tag or encoder has a part in it.

    `error` is empty where all is well. Else it begins with `missing:`; `empty:` (no samples); `truncated:` (the
    header promises more than there is, or an ogg has no end; the facts hold for what is there);
    `does not decode:`, with the decoder's words. Files with samples that decode have a hash, no others. It never
    raises for a bad file.

    What PyAV reads (mp4, m4a, webm, ...) is decoded in one piece, and the facts are those of the 16 kHz mono that
    `read_audio` delivers.
    """
    if isinstance(audio, str | os.PathLike):
        if not os.path.isfile(audio):
            why = "a link that leads nowhere" if os.path.islink(audio) else "no such file"
            return ClipFacts(error=f"missing: {why}")
        if not os.path.getsize(audio):
            return ClipFacts(error="empty: the file has 0 bytes")
    try:
        with open_sound(audio) as (sound, promised):
            if sound is not None:
                if sound.seekable():  # as reading does, and a decoder begins anew
                    sound.seek(0)
                blocks = decode_blocks(sound, BLOCK_BYTES // (4 * sound.channels) or 1)
                return _facts(blocks, sound.samplerate, sound.channels, promised)
        return _facts([read_audio(audio)[:, None]], SAMPLING_RATE, 1)
    except soundfile.LibsndfileError as error:
        return ClipFacts(error=f"does not decode: {error.error_string}")
    except (ValueError, OSError) as error:
        return ClipFacts(error=f"does not decode: {str(error).removeprefix(f'{audio_name(audio)}: ')}")


def scan_clips(files: Sequence[AudioFile]) -> list[ClipFacts]:
    """Decodes files in parallel; returns their facts in their order.

    Threads, as libsndfile and numpy work outside Python's lock: on 2 cores processes were no more than 15 % faster,
    and each would first import everything anew.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scanned = pool.map(scan_clip, files)
        return list(progress_bar(scanned, total=len(files), desc="decoding", unit="clip"))


def _facts(blocks: Iterable[np.ndarray], rate: int, channels: int, promised_frames: float = 0.0) -> ClipFacts:
    """The facts of decoded blocks, float32 `(frames, channels)`."""
    frames, peak, full_scale_samples, finite, error = 0, 0.0, 0, True, ""
    content = hashlib.blake2b(f"{rate} Hz, {channels} channels".encode(), digest_size=16)
    try:
        for block in blocks:
            block = block + np.float32(0)  # a float file may hold -0.0, an integer file cannot
            content.update(block.astype("<f4", copy=False).data)
            frames += len(block)
            if not is_audible(np.array((block.min(), block.max()))).all():
                finite = False
                block = np.where(is_audible(block), block, np.float32(0))
            loudest = max(-float(block.min()), float(block.max()))
            peak = max(peak, loudest)
            if loudest >= FULL_SCALE:
                full_scale_samples += int(np.count_nonzero(np.abs(block) >= FULL_SCALE))
    except soundfile.LibsndfileError as stop:
        error = f"does not decode: after {frames / rate:.2f} s: {stop.error_string}"
    digest = content.hexdigest() if frames and not error else ""
    if not error:
        error = shortfall(frames, rate, promised_frames) if frames else "empty: no samples"
    return ClipFacts(frames / rate, rate, channels, peak, full_scale_samples, finite, digest, error)
