"""Audio files of strangers: damaged, lying or made to harm. Each is read rightly, or refused in one line.

Real clips, or synthetic ones where there are none, are written in each format that the package reads; each input is one
of these changed in its header's fields, or damaged in its bytes, or a bomb made for this.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile

import audio_bombs
import mutations
from audio_fields import mended, numbers_of, value_of, with_value
from conftest import make_classifier
from exhubert.audio_exhubert import SAMPLING_RATE, audio_seconds, iter_audio, read_audio
from exhubert.cli import main
from exhubert.corpora.clip_facts import scan_clip
from exhubert.model_folder import save_model_folder
from tally import FAILED, REFUSED, Tally
from workers import Trial, Verdict, attempt, by_command, run_trials

CLIP_SECONDS = 1.2
LONG_SECONDS = 300.0  # longer audio is read in blocks alone
SECONDS_APART = 0.5  # that the length may be off which a header tells
COMMAND_EVERY, FILES_A_COMMAND = 20, 12  # so many inputs go through the commands as well, together
CORPORA = ("emodb", "ravdess_speech", "cremad", "nemo")

WRITTEN_BY_SOUNDFILE = (
    *(("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE")),
    *(("WAV", "ALAW"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610")),
    *(("WAV", "MPEG_LAYER_III"), ("WAVEX", "PCM_16"), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16")),
    *(("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    *(("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("CAF", "ALAC_16")),
    *(("NIST", "PCM_16"), ("VOC", "PCM_16"), ("SVX", "PCM_16"), ("PAF", "PCM_24"), ("IRCAM", "FLOAT")),
    *(("PVF", "PCM_16"), ("MAT4", "FLOAT"), ("MAT5", "FLOAT"), ("HTK", "PCM_16"), ("XI", "DPCM_16")),
    *(("SDS", "PCM_16"), ("AVR", "PCM_16"), ("MPC2K", "PCM_16"), ("WVE", "ALAW")),
)
WRITTEN_BY_AV = (  # suffix, codec, rate
    *((".m4a", "aac", 16_000), (".mp4", "aac", 16_000), (".mov", "pcm_s16le", 16_000), (".m4a", "alac", 16_000)),
    *((".webm", "libopus", 48_000), (".mka", "pcm_s16le", 16_000), (".avi", "pcm_s16le", 16_000)),
    *((".avi", "libmp3lame", 16_000), (".aac", "aac", 16_000), (".amr", "libopencore_amrnb", 8_000)),
    *((".wma", "wmav2", 44_100), (".flv", "aac", 44_100), (".mpg", "mp2", 16_000), (".wav", "g726", 8_000)),
)
# The formats that the issue is about come as often as all others together.
COMMON = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".avi")


LENGTH_BELIEVED = (".m4a", ".mp4", ".mov", ".webm", ".mka")


class Source(NamedTuple):
    suffix: str
    data: bytes


def attack(count: int, seed: int, directory: Path, keep: Path | None = None) -> list[Tally]:
    """Tries so many audio files.

    Args:
        count: of files; one in 20 goes through `exhubert predict` and `exhubert corpora check` as well.
        seed: of what is drawn.
        directory: an empty folder to work in.
        keep: where inputs that failed are kept.
    """
    write_sources(directory)
    save_model_folder(make_classifier(num_hidden_layers=2), directory / "model")
    tallies: dict[str, Tally] = {}
    for trial, verdict in run_trials(trials_of(count, seed), directory, keep=keep):
        line = f"{trial.function} {trial.number}, seed {trial.seed}: {verdict.detail}"
        tallies.setdefault(trial.kind, Tally(trial.kind)).add(verdict.outcome, line)
    return [tallies[kind] for kind in sorted(tallies)]


def trials_of(count: int, seed: int) -> Iterator[Trial]:
    for number in range(count):
        yield Trial(f"audio: {MAKERS[number % len(MAKERS)][0]}", "hostile_audio:try_file", number, seed)
    for number in range(0, count, COMMAND_EVERY * FILES_A_COMMAND):
        yield Trial("audio: by the commands", "hostile_audio:try_commands", number, seed, 60.0)


# Sources


def write_sources(directory: Path) -> None:
    """Writes clips in every format; real ones, where there are any."""
    sources = []
    for number, samples in enumerate(clips()):
        for format, subtype in WRITTEN_BY_SOUNDFILE[number % 2 :: 2] + WRITTEN_BY_SOUNDFILE[:1]:
            sources += written_by_soundfile(samples, format, subtype)
        for suffix, codec, rate in WRITTEN_BY_AV[number % 2 :: 2]:
            sources.append(Source(suffix, written_by_av(samples, suffix, codec, rate)))
    (directory / "sources").write_bytes(pickle.dumps(sources))


def clips() -> list[np.ndarray]:
    """Some clips `(samples, channels)` of 16 kHz, one or two channels: of the real corpora, else made up."""
    shared = Path(os.environ.get("EXHUBERT_SHARED", "")) / "corpora"
    files = [next(iter(sorted((shared / name / "audio").glob("*.*"))), None) for name in CORPORA]
    found = [read_audio(file)[: round(CLIP_SECONDS * SAMPLING_RATE)] for file in files if file is not None]
    if not found:
        print(f"no corpora in {shared} (EXHUBERT_SHARED): the clips are synthetic")
        time = np.arange(round(CLIP_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
        noise = np.random.default_rng(0).standard_normal(len(time))
        found = [(0.4 * np.sin(800 * pitch * time**2) + 0.02 * noise).astype(np.float32) for pitch in (1, 2, 3, 4)]
    return [np.stack([clip] * (1 + number % 2), axis=1) for number, clip in enumerate(found)]


def written_by_soundfile(samples: np.ndarray, format: str, subtype: str) -> list[Source]:
    """A file of that format, of a WAV the big-endian form too; one channel where the format takes no more."""
    sources = []
    for endian in ("FILE", "BIG") if (format, subtype) == ("WAV", "PCM_16") else ("FILE",):
        for channels in (samples, samples[:, :1]):
            buffer = io.BytesIO()
            try:
                soundfile.write(buffer, channels, SAMPLING_RATE, subtype, endian, format)
            except soundfile.LibsndfileError:
                continue
            suffix = {"WAVEX": ".wav", "RF64": ".wav", "NIST": ".sph"}.get(format, f".{format.lower()}")
            sources.append(Source(".opus" if subtype == "OPUS" else suffix, buffer.getvalue()))
            break
    return sources


def written_by_av(samples: np.ndarray, suffix: str, codec: str, rate: int) -> bytes:
    """The first channel in a container that FFmpeg writes."""
    buffer = io.BytesIO()
    formats = {".m4a": "ipod", ".mka": "matroska", ".aac": "adts", ".wma": "asf", ".mpg": "mpeg"}
    with av.open(buffer, "w", format=formats.get(suffix, suffix[1:])) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if codec == "wmav2":  # which takes not every rate
            stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray((32767 * samples[None, :, 0]).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLING_RATE
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size or None)
        frames = [*resampler.resample(frame), *resampler.resample(None)]
        for packet in [packet for each in [*frames, None] for packet in stream.encode(each)]:
            container.mux(packet)
    return buffer.getvalue()


@functools.cache
def sources_in(directory: Path) -> dict[str, list[Source]]:
    """The sources by their suffixes."""
    sources: dict[str, list[Source]] = {}
    for source in pickle.loads((directory / "sources").read_bytes()):  # written by ourselves
        sources.setdefault(source.suffix, []).append(source)
    return sources


# Inputs


def fields(number: random.Random, source: Source) -> bytes:
    """One to three numbers of the header changed, and the checksums made right again."""
    data = source.data
    places = numbers_of(data)
    for _ in range(number.choice((1, 1, 1, 2, 3))):
        field = number.choice(places)
        if field.place + field.width <= len(data):
            data = with_value(data, field, mutations.changed_number(number, field.width, value_of(data, field)))
    return mended(data)


def damage(number: random.Random, source: Source) -> bytes:
    data = mutations.damaged(number, source.data)
    return mended(data) if number.randrange(2) else data


def harmless(number: random.Random, source: Source) -> bytes:
    """What must change no sample: something behind or before the audio, or in a field that nobody needs."""
    data, junk = source.data, number.randbytes(2 * number.randrange(1, 500))
    if source.suffix == ".wav" and data[:4] == b"RIFF" and b"data" in data:
        kind, place = number.randrange(4), data.index(b"data")
        if kind == 0:
            return data + audio_bombs.chunk(b"junk", junk)
        if kind == 1:
            return data[:place] + audio_bombs.chunk(b"LIST", b"INFO" + junk) + data[place:]
        if kind == 2:
            return data[:4] + struct.pack("<I", number.choice((0, 36, 2**31, 2**32 - 1))) + data[8:]
        return data[:28] + number.randbytes(4) + data[32:]  # bytes a second
    if source.suffix == ".flac":
        padding = b"\x01" + len(junk).to_bytes(3, "big") + junk
        kind = number.randrange(3)
        if kind == 0:
            return data[:42] + padding + data[42:]
        # The sizes of frames, the checksum of all samples
        return data[:12] + number.randbytes(6) + data[18:] if kind == 1 else data[:26] + bytes(16) + data[42:]
    if source.suffix == ".mp3":
        return (
            audio_bombs.id3(len(junk), bytes(len(junk))) + data if number.randrange(2) else data + b"TAG" + bytes(125)
        )
    if source.suffix in (".m4a", ".mp4", ".mov"):
        return data + audio_bombs.box(b"free", junk)
    return data


MAKERS: tuple[tuple[str, Callable[[random.Random, Source], bytes]], ...] = (
    *(("fields of headers", fields), ("damage", damage)) * 4,
    *(("bombs", None), ("harmless changes", harmless)),
)


def make_input(number: int, seed: int, directory: Path) -> tuple[str, bytes, Source | None]:
    """An input's suffix and bytes, and the file that it must be read as, where there is one."""
    _, maker = MAKERS[number % len(MAKERS)]
    drawn = random.Random(f"{seed} audio {number}")
    if maker is None:
        bomb = audio_bombs.BOMBS[number // len(MAKERS) % len(audio_bombs.BOMBS)]
        return *bomb(drawn), None
    sources = sources_in(directory)
    source = drawn.choice(sources[drawn.choice(COMMON if drawn.randrange(3) else [*sources])])
    return source.suffix, maker(drawn, source), source if maker is harmless else None


# Judgement


def try_file(number: int, seed: int, folder: Path) -> Verdict:
    """Reads an input in all ways."""
    suffix, data, source = make_input(number, seed, folder.parents[1])
    path = folder / f"{number}{suffix}"
    path.write_bytes(data)
    verdict = attempt(folder, [path], lambda: problem_of(path, None if source is None else source.data))
    if source is not None and verdict.outcome == REFUSED:
        return Verdict(FAILED, f"what changes no sample is refused: {verdict.detail}")
    return verdict


def problem_of(path: Path, same_as: bytes | None = None) -> str:
    """Reads a file in every way that there is; returns what is wrong with what was read.

    Raises:
        ValueError, OSError: where reading is refused.
    """
    seconds: float | str = refusal_or(lambda: audio_seconds(path))
    facts = scan_clip(path)
    bad = facts.error and not facts.error.startswith("truncated")
    if isinstance(seconds, float) and seconds > LONG_SECONDS:
        count = sum(len(checked(block)) for block in iter_audio(path, 5.0))
        return "" if abs(count / SAMPLING_RATE - seconds) < SECONDS_APART else f"{seconds} s, and {count} samples"
    try:
        whole = checked(read_audio(path))
    except (ValueError, OSError) as error:
        if not bad and facts.finite:
            return f"`corpora check` passes it, and reading does not: {error}"
        again = refusal_or(lambda: [*iter_audio(path, 0.3)])
        if not isinstance(again, str) or str(path) not in again:
            return f"in blocks: {again!r:.100}; as a whole: {error}"
        raise
    if bad or not facts.finite:
        return f"`corpora check` refuses it, and reading does not: {facts.error or 'not finite'}"
    if isinstance(seconds, str):
        return f"{len(whole)} samples are read, and of its length it is said: {seconds}"
    lengths = {"scan_clip": facts.duration_seconds}
    if not facts.error and path.suffix not in LENGTH_BELIEVED:
        lengths["audio_seconds"] = seconds
    for name, length in lengths.items():
        if abs(length - len(whole) / SAMPLING_RATE) > SECONDS_APART:
            return f"{name} says {length} s, and {len(whole) / SAMPLING_RATE} s are read"
    if not np.array_equal(np.concatenate([*iter_audio(path, 0.3)]), whole):
        return "in other blocks it is read otherwise"
    if not np.array_equal(read_audio(io.BytesIO(path.read_bytes())), whole):
        return "from memory it is read otherwise"
    part = refusal_or(lambda: read_audio(path, seconds / 3, 0.2))
    if not isinstance(part, str) and len(checked(part)) > 0.2 * SAMPLING_RATE + 1:
        return f"{len(part)} samples are 0.2 s of it"
    if same_as is not None and not np.array_equal(read_audio(io.BytesIO(same_as)), whole):
        return "it is read otherwise than before the change"
    return ""


def refusal_or(read: Callable[[], Any]) -> Any:
    """What it returns, or the text of its refusal."""
    try:
        return read()
    except (ValueError, OSError) as error:
        return f"refused: {error}"


def checked(samples: np.ndarray) -> np.ndarray:
    assert samples.ndim == 1 and samples.dtype == np.float32 and np.isfinite(samples).all(), "not as promised"
    return samples


def try_commands(number: int, seed: int, folder: Path) -> Verdict:
    """Gives several inputs to `exhubert predict` and, as a corpus, to `exhubert corpora check`."""
    directory, names = folder.parents[1], []
    for each in range(number, number + COMMAND_EVERY * FILES_A_COMMAND, COMMAND_EVERY):
        suffix, data, _ = make_input(each + each // COMMAND_EVERY % len(MAKERS), seed, directory)
        names.append(f"{each}{suffix}")
        (folder / names[-1]).write_bytes(data)
    rows = "".join(f"{name},anger,{name}\n" for name in names)
    (folder / "metadata.csv").write_text(f"file_name,label,speaker\n{rows}")

    def run() -> str:
        files = [folder / name for name in names]
        code, out, err = by_command(main, "predict", directory / "model", *files, "--format", "jsonl")
        bad = [line for line in err.splitlines() if line.startswith("bad: ")]
        if len(out.splitlines()) != len(names) or code != (1 if len(bad) == len(names) else 2 if bad else 0):
            return f"predict: code {code}, {len(out.splitlines())} rows of {len(names)}, {len(bad)} bad"
        if not all(any(name in line for name in names) for line in bad):
            return f"predict: lines that name no file: {bad}"
        code, out, _ = by_command(main, "corpora", "check", folder)
        return "" if f"{len(names)} files" in out and code in (0, 2) else f"corpora check: code {code}, {out[-300:]!r}"

    return attempt(folder, [folder], run)
