"""Audio files as people have them: under wrong names, with wrong lengths, cut off, beside what a Mac leaves.

python -m pytest tests/test_audio_as_found.py
"""

from __future__ import annotations

import csv
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import write_video
from exhubert.audio_exhubert import audio_seconds, iter_audio, prepare_input, read_audio
from exhubert.corpora.clip_facts import scan_clip
from exhubert.corpora.prepare import prepare_corpus
from exhubert.utils.files import is_audio
from faults.audio_fields import mended

RATE = 16_000
NOISE = 0.2 * np.random.default_rng(0).standard_normal(2 * RATE).clip(-3, 3)
SPEECH = 0.5 * np.sin(0.15 * np.arange(2 * RATE)).astype(np.float32)


def lengths(path: Path) -> list[float]:
    """What reading, reading from memory, timing and scanning say, in seconds."""
    samples = [len(read_audio(audio)) / RATE for audio in (path, io.BytesIO(path.read_bytes()))]
    return [*samples, audio_seconds(path), scan_clip(path).duration_seconds]


def warning_of(path: Path) -> str:
    """What reading says of a file; checking says the same."""
    said: list[str] = []
    list(iter_audio(path, on_warning=said.append))
    assert said == ([scan_clip(path).error] if said else [])
    return said[0] if said else ""


def wav(riff_bytes: int | None, data_bytes: int, after: bytes = b"", tags: bytes = b"") -> bytes:
    """A 16-bit file of `NOISE`, with the sizes that its header says."""
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, RATE, format="WAV")
    data = buffer.getvalue()
    size = len(data) - 8 if riff_bytes is None else riff_bytes
    return b"RIFF%sWAVE%s%sdata%s%s%s" % (
        *(struct.pack("<I", size), data[12:36], tags, struct.pack("<I", data_bytes), data[44:], after),
    )


# Lengths


@pytest.mark.parametrize("riff_bytes", [0, 36, None, 0xFFFFFFFF])
@pytest.mark.parametrize("tags", [b"", b"LIST\x05\0\0\0INFOx\0"])
def test_a_wav_that_says_nothing_of_its_length_is_read_to_its_end(tmp_path, riff_bytes, tags):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(riff_bytes, 0, tags=tags))
    assert lengths(path) == [2.0] * 4
    assert warning_of(path) == ""
    (tmp_path / "whole.wav").write_bytes(wav(None, 4 * RATE))
    for start, duration in ((0.0, None), (0.5, 1.0)):
        assert np.array_equal(read_audio(path, start, duration), read_audio(tmp_path / "whole.wav", start, duration))
    assert path.read_bytes() == wav(riff_bytes, 0, tags=tags)


@pytest.mark.parametrize("after", [b"", b"LIST\x04\0\0\0INFO", b"id3 \x02\0\0\0xx", b"\0"])
def test_an_empty_wav_stays_empty(tmp_path, after):
    (tmp_path / "a.wav").write_bytes(wav(None, 0)[:44] + after)
    with pytest.raises(ValueError, match="empty"):
        audio_seconds(tmp_path / "a.wav")
    assert scan_clip(tmp_path / "a.wav").error == "empty: no samples"


@pytest.mark.parametrize("claimed_seconds", [0, 3, 360_000])
def test_a_flac_is_as_long_as_what_is_in_it(tmp_path, claimed_seconds):
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE, RATE)
    data, whole = bytearray(path.read_bytes()), read_audio(path)
    claimed = claimed_seconds * RATE
    data[21:26] = ((data[21] >> 4) << 36 | claimed).to_bytes(5, "big")  # 36 bits
    path.write_bytes(data)
    assert lengths(path) == [2.0] * 4
    assert np.array_equal(read_audio(path), whole)
    assert scan_clip(path).content_hash
    promise = f"truncated: 2.00 s of the {claimed_seconds:.2f} s that its header promises"
    assert warning_of(path) == (promise if claimed else "")


def test_such_files_become_clips_of_a_corpus(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, name in enumerate(["03a01Fa", "08a01Wb", "09a01La"]):
        soundfile.write(raw / f"{name}.flac", NOISE[number:], RATE)
        data = bytearray((raw / f"{name}.flac").read_bytes())
        data[21:26] = ((data[21] >> 4) << 36).to_bytes(5, "big")
        (raw / f"{name}.flac").write_bytes(data)
    (raw / "10b02Ta.wav").write_bytes(wav(0, 0))
    assert prepare_corpus("emodb", raw, tmp_path / "out", protocol="files") == 0
    with (tmp_path / "out" / "metadata.csv").open() as file:
        assert [row["duration_seconds"][:3] for row in csv.DictReader(file)] == ["2.0", "1.9", "1.9", "2.0"]


@pytest.mark.parametrize("how", ["without its length", "two in a row"])
def test_an_mp3_that_is_longer_than_it_says_is_read_whole(tmp_path, monkeypatch, how):
    """libsndfile reads as far as the first frame says, or lets it guess."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.concatenate([NOISE, 0 * NOISE, 0 * NOISE, 2 * NOISE]), RATE)
    data = path.read_bytes()
    # The first frame holds the length, no sound.
    path.write_bytes(2 * data if how == "two in a row" else data[data.index(data[:2], 4) :])
    seconds = 16.0 if how == "two in a row" else 8.0
    assert soundfile.info(path).duration < seconds - 2
    pytest.importorskip("av", reason="needs av: pip install av")
    assert lengths(path) == pytest.approx([seconds] * 4, abs=0.2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"a\.mp3: .*longer than it says.*pip install av"):
        read_audio(path)


# Cut off


def cut(suffix: str, share: float, **how: str):
    def write(path: Path) -> Path:
        path = path.with_suffix(suffix)
        soundfile.write(path, NOISE, RATE, **how)
        path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
        return path

    return write


@pytest.mark.parametrize(
    ("write", "warning"),
    [
        (cut(".wav", 0.6), "truncated: 1.20 s of the 2.00 s that its header promises"),
        (cut(".aiff", 0.6), "truncated: 1.20 s of the 2.00 s that its header promises"),
        (cut(".mp3", 0.6), "truncated: 1."),
        (cut(".ogg", 0.6, subtype="VORBIS"), "truncated: "),
        (cut(".ogg", 0.99, subtype="VORBIS"), "truncated: "),  # within the last page
        (cut(".opus", 0.6, format="OGG", subtype="OPUS"), "truncated: "),
        (cut(".wav", 1.0), ""),
        (cut(".mp3", 1.0), ""),
        (cut(".ogg", 1.0, subtype="VORBIS"), ""),
        (cut(".opus", 1.0, format="OGG", subtype="OPUS"), ""),
    ],
)
def test_what_is_cut_off_is_read_as_far_as_it_goes_and_named(tmp_path, write, warning):
    path = write(tmp_path / "a")
    assert warning_of(path).startswith(warning) if warning else warning_of(path) == ""
    assert (max(lengths(path)) < 2) == bool(warning)
    assert lengths(path) == pytest.approx([lengths(path)[0]] * 4, abs=1e-3)
    part: list[str] = []
    list(iter_audio(path, 30.0, 0.0, 0.1, on_warning=part.append))
    assert part == []  # nothing is missing of what was asked for


# Names and formats


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.3gp", "a.mka", "a.webm", "a.aac", "a.mpg"])
@pytest.mark.parametrize("suffix", [".mp3", ".wav", ""])
def test_what_is_in_a_file_counts_and_not_its_name(tmp_path, capfd, name, suffix):
    write_video(tmp_path / name, SPEECH, 48_000 if name == "a.webm" else RATE, "mp2" if name == "a.mpg" else "")
    whole = read_audio(tmp_path / name)
    assert is_audio(name)
    other = tmp_path / f"other{suffix}"
    os.rename(tmp_path / name, other)
    assert np.array_equal(read_audio(other), whole)
    assert scan_clip(other).error == ""
    assert len(whole) / RATE == pytest.approx(audio_seconds(other), abs=0.15)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "before"),
    [("a.mp3", bytes(600)), ("a.aac", b"ID3\4\0\0\0\0\1\0" + bytes(128))],
)
def test_what_stands_before_the_sound_is_skipped(tmp_path, name, before):
    pytest.importorskip("av", reason="needs av: pip install av")
    path = tmp_path / name
    if name == "a.mp3":
        soundfile.write(path, SPEECH, RATE)
    else:
        write_video(path, SPEECH)
    path.write_bytes(before + path.read_bytes())
    assert lengths(path) == pytest.approx([2.0] * 4, abs=0.2)


@pytest.mark.parametrize(("codec", "rate"), [("g722", RATE), ("g726", 8000)])
def test_wavs_of_telephones_are_read(tmp_path, codec, rate):
    write_video(tmp_path / "a.wav", SPEECH, rate, codec)
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(len(SPEECH) * RATE / rate, abs=10)


def test_amr_is_read(tmp_path):
    pytest.importorskip("av", reason="needs av: pip install av")
    (tmp_path / "a.amr").write_bytes(b"#!AMR\n" + 50 * (b"\x3c" + bytes(31)))  # frames of 20 ms at 12.2 kbit/s
    assert is_audio("a.AMR")
    assert lengths(tmp_path / "a.amr") == pytest.approx([1.0] * 4, abs=0.03)


def test_what_is_not_read_says_what_is(tmp_path, monkeypatch):
    (tmp_path / "a.mp3").write_bytes(b"wvpk" + bytes(1000))
    read = r"a\.mp3: .* \(Format not recognised\.\); read are wav, flac, ogg, mp3 .*, and the sound of mp4, .*amr$"
    pytest.importorskip("av", reason="needs av: pip install av")
    with pytest.raises(ValueError, match=read):
        read_audio(tmp_path / "a.mp3")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"read are wav.*pip install av"):
        read_audio(tmp_path / "a.mp3")


def test_a_damaged_wav_keeps_libsndfiles_words(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(None, 4 * RATE)[:20] + bytes(100))
    with pytest.raises(ValueError, match=r"a\.wav: the audio does not decode \(.*fmt.*\)$"):
        read_audio(tmp_path / "a.wav")


# Beside Macs, and nothing


@pytest.mark.parametrize("name", ["voice.m4a", "voice.mp4", "voice.webm", "voice.wav"])
def test_what_macs_leave_beside_a_file_does_not_matter(tmp_path, name):
    if name.endswith("wav"):
        soundfile.write(tmp_path / name, NOISE, RATE)
    else:
        write_video(tmp_path / name, SPEECH, 48_000 if name.endswith("webm") else RATE)
    whole = read_audio(tmp_path / name)
    entries = struct.pack(">IIIIII", 9, 50, 3760, 2, 3810, 286)  # what the Finder knows, with attributes; resources
    double = struct.pack(">II16xH", 0x00051607, 0x00020000, 2) + entries + bytes(34) + b"ATTR"
    (tmp_path / f"._{name}").write_bytes(double.ljust(4096, b"\0"))
    assert np.array_equal(read_audio(tmp_path / name), whole)
    assert scan_clip(tmp_path / name).error == ""


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "mov", "aac", "mp3", "wav", "flac", "ogg", "webm", "avi"])
@pytest.mark.parametrize("size", [0, 1, 9, 40])
def test_files_of_nothing_are_named_and_nothing_else_is_printed(tmp_path, capfd, suffix, size):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(bytes(size))
    for read in (read_audio, audio_seconds):
        with pytest.raises(ValueError, match=rf"a\.{suffix}: the audio does not decode") as error:
            read(path)
    assert size or "0 bytes" in str(error.value)
    assert scan_clip(path).error.startswith("does not decode" if size else "empty: the file has 0 bytes")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_tags_in_latin_1_do_not_matter(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_video(path, SPEECH, title="Gefühl")
    data = path.read_bytes()
    assert "Gefühl".encode() in data
    path.write_bytes(data.replace("Gefühl".encode(), "Gefüühl".encode("latin-1")))
    assert len(read_audio(path)) == pytest.approx(2 * RATE, abs=2048)


# Made to harm; many more of these are tried by tests/faults


def refused_everywhere(path: Path, message: str) -> None:
    """Reading refuses a file, and so does checking."""
    for audio in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(ValueError, match=message):
            read_audio(audio)
    facts = scan_clip(path)
    assert facts.error or not facts.finite


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_checking_refuses_the_rates_that_reading_refuses(tmp_path, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(None, 4 * RATE)[:24] + struct.pack("<I", rate) + wav(None, 4 * RATE)[28:])
    refused_everywhere(path, f"sampling_rate is {rate}; it must be from 1000")
    with pytest.raises(ValueError, match="sampling_rate is"):
        audio_seconds(path)


@pytest.mark.parametrize(("sample", "rate", "channels"), [(3e38, RATE, 2), (3e38, 8000, 1), (1e25, RATE, 1)])
@pytest.mark.filterwarnings("error")
def test_samples_that_overflow_are_refused(tmp_path, sample, rate, channels):
    """In the mean of channels, in the filter of the resampler, in the variance of a window."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full((RATE, channels), sample, np.float32), rate, subtype="FLOAT")
    refused_everywhere(
        path, r"a\.wav|bytes.*: the audio holds (NaN or infinite samples|samples beyond 1e\+12) at 0.00 s"
    )
    with pytest.raises(ValueError, match="beyond 1e"):
        prepare_input(np.full(RATE, sample, np.float32))


def test_floats_as_large_as_integers_are_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", NOISE * 2**31, RATE, subtype="FLOAT")
    assert np.abs(read_audio(tmp_path / "a.wav")).max() > 1e9
    assert scan_clip(tmp_path / "a.wav").finite


def test_an_ogg_whose_times_jump_is_not_filled_with_what_is_in_memory(tmp_path):
    """libsndfile would return samples that it has not written."""
    pytest.importorskip("av", reason="needs av: pip install av")
    path = tmp_path / "a.opus"
    soundfile.write(path, NOISE, RATE, format="OGG", subtype="OPUS")
    data = bytearray(path.read_bytes())
    pages = [place for place in range(len(data)) if data[place : place + 4] == b"OggS"]
    data[pages[2] + 6 : pages[2] + 14] = struct.pack("<q", 2**32)
    path.write_bytes(mended(bytes(data)))
    assert soundfile.info(path).frames > 10**18
    assert np.abs(read_audio(path)).max() < 2
    assert audio_seconds(path) < 3


def test_an_ogg_that_does_not_begin_to_decode_is_refused(tmp_path):
    """libsndfile would end the process in a seek."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, NOISE, RATE, subtype="VORBIS")
    data = bytearray(path.read_bytes())
    setup = data.index(b"\x05vorbis")
    data[setup + 426 : setup + 428] = b"\xbc\xbb"
    path.write_bytes(mended(bytes(data)))
    assert soundfile.info(path).frames == len(NOISE)
    refused_everywhere(path, "does not decode")


def test_channels_beyond_those_that_pyav_holds_are_refused(tmp_path):
    """PyAV would end the process."""
    av = pytest.importorskip("av", reason="needs av: pip install av")
    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("wavpack", rate=RATE, layout="hexadecagonal")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16 * RATE), np.int16), format="s16", layout="hexadecagonal")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    refused_everywhere(path, "the audio has 16 channels; at most 8 are read in this format")


def test_samples_that_pyav_does_not_convert_are_named(tmp_path):
    pytest.importorskip("av", reason="needs av: pip install av")
    data = bytearray(wav(None, 4 * RATE))
    data[32:36] = struct.pack("<HH", 8, 64)
    (tmp_path / "a.wav").write_bytes(data)
    refused_everywhere(tmp_path / "a.wav", r"(a\.wav|bytes): the audio does not decode")


def test_a_length_that_no_codec_has_is_not_believed(tmp_path):
    write_video(tmp_path / "a.webm", SPEECH, 48_000)
    data = (tmp_path / "a.webm").read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # Duration, of 8 bytes
    (tmp_path / "a.webm").write_bytes(data[:place] + struct.pack(">d", 1e15) + data[place + 8 :])
    with pytest.raises(ValueError, match=r"a\.webm: the file is cut off"):
        audio_seconds(tmp_path / "a.webm")
