"""What a scan finds in one audio file.

python -m pytest tests/test_clip_facts.py
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import write_video
from exhubert.corpora import clip_facts
from exhubert.corpora.clip_facts import scan_clip, scan_clips

RATE = 16_000


NOISE = 0.2 * np.random.default_rng(0).standard_normal(RATE).clip(-3, 3)


def test_facts_of_a_clip(tmp_path):
    samples = np.stack([NOISE, np.zeros(RATE)], axis=1)
    samples[100:112, 0] = 1.5  # is clipped to full scale
    samples[500, 1] = -0.75
    soundfile.write(tmp_path / "a.wav", samples[:, 0], 8000)
    soundfile.write(tmp_path / "b.flac", samples, RATE)
    mono, stereo = scan_clips([tmp_path / "a.wav", tmp_path / "b.flac"])
    assert mono[:6] == (2.0, 8000, 1, pytest.approx(1, abs=1e-4), 12, True)
    assert stereo[:6] == (1.0, RATE, 2, pytest.approx(1, abs=1e-4), 12, True)
    assert mono.error == stereo.error == ""


def test_the_hash_is_of_the_samples_not_of_the_file(tmp_path):
    kinds = [("wav", "PCM_16"), ("flac", "PCM_16"), ("aiff", "PCM_24"), ("wav", "FLOAT"), ("wav", "DOUBLE")]
    samples = (32768 * NOISE).astype(np.int16)
    for number, (ending, subtype) in enumerate(kinds):
        whole = samples if subtype == "PCM_16" else samples / 32768
        soundfile.write(tmp_path / f"{number}.{ending}", whole, RATE, subtype)
    first, *others = [clip.content_hash for clip in scan_clips(sorted(tmp_path.iterdir()))]
    assert len(others) == 4
    assert set(others) == {first}
    samples[-1] += 1
    different = [(samples, RATE), (samples[:-1], RATE), (samples, 8000), (samples.reshape(-1, 2), RATE)]
    for number, (changed, rate) in enumerate(different):
        soundfile.write(tmp_path / f"{number}.wav", changed, rate, "PCM_16")
    assert len({first, *(scan_clip(tmp_path / f"{number}.wav").content_hash for number in range(4))}) == 5


def test_long_files_are_decoded_in_blocks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", np.stack([NOISE, -NOISE], axis=1), RATE)
    whole = scan_clip(tmp_path / "a.flac")
    monkeypatch.setattr(clip_facts, "BLOCK_BYTES", 8000)  # 1,000 frames
    assert scan_clip(tmp_path / "a.flac") == whole


def test_sound_of_a_video_and_what_is_said_without_its_reader(tmp_path, monkeypatch):
    write_video(tmp_path / "a.m4a", NOISE)
    clip = scan_clip(tmp_path / "a.m4a")
    assert clip[1:3] == (RATE, 1)
    assert clip.duration_seconds == pytest.approx(1, abs=0.15)
    assert clip.error == ""
    monkeypatch.setitem(sys.modules, "av", None)
    without = scan_clip(tmp_path / "a.m4a")
    assert without.error.startswith("does not decode: the audio does not decode (Format not recognised.); read are wav")


def shortened(ending: str, share: float, **how: str):
    def write(path: Path) -> None:
        soundfile.write(path, NOISE, RATE, format=ending, **how)
        path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])

    return write


def flipped_bits(path: Path) -> None:
    soundfile.write(path, NOISE, RATE, format="flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\x5a" * 200
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda path: None, "missing: no such file"),
        (lambda path: path.mkdir(), "missing: no such file"),
        (lambda path: path.symlink_to("nowhere.wav"), "missing: a link that leads nowhere"),
        (lambda path: path.symlink_to(path.name), "missing: a link that leads nowhere"),
        (lambda path: path.touch(), "empty: the file has 0 bytes"),
        (lambda path: soundfile.write(path, NOISE[:0], RATE), "empty: no samples"),
        (lambda path: path.write_text("not audio"), "does not decode: "),
        (shortened("wav", 0.6), "truncated: 0.60 s of the 1.00 s that its header promises"),
        (shortened("aiff", 0.6), "truncated: 0.60 s of the 1.00 s"),
        (shortened("au", 0.6), "truncated: 0.60 s of the 1.00 s"),
        (shortened("mp3", 0.6), "truncated: 0.5"),
        (shortened("flac", 0.6), "does not decode: after 0."),
        (flipped_bits, "does not decode: after 0."),
    ],
)
def test_bad_files_have_an_error_and_raise_nothing(tmp_path, write, error):
    write(tmp_path / "a.wav")
    clip = scan_clip(tmp_path / "a.wav")
    assert clip.error.startswith(error)
    assert bool(clip.content_hash) == error.startswith("truncated")


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x7FFFFFFF, 2 * RATE + 44])
def test_headers_of_streamed_or_slightly_wrong_wavs_are_no_error(tmp_path, promised):
    soundfile.write(tmp_path / "a.wav", NOISE, RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", promised)
    (tmp_path / "a.wav").write_bytes(data)
    assert scan_clip(tmp_path / "a.wav")[0::7] == (1.0, "")
