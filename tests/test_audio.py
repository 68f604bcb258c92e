"""From audio files to model input: decoding, resampling, windows, normalisation, the feature extractor; also video.

python -m pytest tests/test_audio.py
"""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pytest
import soundfile
import soxr
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from exhubert import ExHuBERTFeatureExtractor
from exhubert.audio_exhubert import (
    audio_seconds,
    extract_features,
    iter_audio,
    iter_windows,
    longest_input_seconds,
    prepare_input,
    read_audio,
    resample_chunks,
)


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("seconds", [1.0, 3.0, 4.0])
def test_input_is_what_the_published_models_feature_extractor_makes(seconds):
    """Cut or zero-pad to 3 s, then normalise over all of it: the model card's preprocessing."""
    published = Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16_000, do_normalize=True)
    samples = tone(seconds)
    expected = published(samples, sampling_rate=16_000, padding="max_length", max_length=48_000, truncation=True)
    assert "attention_mask" not in expected
    got = prepare_input(samples)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected["input_values"][0])
    assert np.array_equal(ExHuBERTFeatureExtractor()(samples)["input_values"][0], got)


def test_padding_counts_in_the_normalisation():
    got = prepare_input(tone(1.0))
    assert got.std() == pytest.approx(1.0, abs=1e-4)
    assert got[:16_000].std() == pytest.approx(3**0.5, abs=0.01)


def test_silence_is_no_error_and_gives_finite_input():
    assert np.array_equal(prepare_input(np.zeros(100)), np.zeros(48_000))


def test_explicit_arguments_of_the_feature_extractor_win():
    extractor = ExHuBERTFeatureExtractor(window_seconds=2.0)
    assert len(extractor(tone(1.0))["input_values"][0]) == 32_000
    assert len(extractor(tone(1.0), padding=False)["input_values"][0]) == 16_000
    assert len(extractor(tone(1.0), padding="max_length", max_length=20_000)["input_values"][0]) == 20_000
    with pytest.raises(ValueError, match="sampling rate of 16000"):
        extractor(tone(1.0), sampling_rate=8000)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (44_100, 2), (48_000, 8)])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate, channels, suffix):
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.repeat(tone(1.0, rate)[:, None], channels, axis=1), rate)
    got = read_audio(path)
    assert got.shape == (16_000,)
    assert np.abs(got[500:-500] - tone(1.0)[500:-500]).max() < 0.01
    assert audio_seconds(path) == pytest.approx(1.0)


def test_a_part_is_read_by_seeking(tmp_path):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 32_000), 16_000, subtype="FLOAT")
    whole = read_audio(path)
    assert np.array_equal(read_audio(path, 0.5, 1.0), whole[8000:24_000])
    assert np.array_equal(read_audio(path, 1.5, 1.0), whole[24_000:])


def test_resampling_keeps_the_pitch():
    got = np.concatenate(list(resample_chunks([tone(1.0, 22_050)], 22_050, "a tone")))
    assert np.abs(np.fft.rfft(got)).argmax() == 440


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("no audio"), "does not decode"),
        (lambda path: path.write_bytes(b""), "does not decode"),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "empty"),
        (lambda path: soundfile.write(path, np.full(100, np.nan), 16_000, subtype="FLOAT"), r"NaN.* at 0\.00 s"),
    ],
    ids=["text", "nothing", "no samples", "NaN"],
)
def test_bad_files_are_named(tmp_path, write, message):
    path = tmp_path / "bad.wav"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("clip.wav", 16_000, 1, "PCM_16"),
        ("clip.wav", 8_000, 1, "GSM610"),  # cannot be sought in
        ("clip.wav", 96_000, 8, "FLOAT"),
        ("clip.flac", 44_100, 2, "PCM_24"),
        ("clip.ogg", 48_000, 2, "VORBIS"),
        ("clip.mp3", 16_000, 1, "MPEG_LAYER_III"),
        ("clip.mp3", 44_100, 2, "MPEG_LAYER_III"),
        ("clip.webm", 48_000, 1, None),
        ("clip.m4a", 44_100, 1, None),
    ],
)
def test_blocks_of_a_file_join_to_the_whole_bit_for_bit(tmp_path, name, rate, channels, subtype):
    path = tmp_path / name
    samples = tone(2.3, rate) + 0.1 * np.random.default_rng(0).standard_normal(round(2.3 * rate), dtype=np.float32)
    if subtype is None:
        write_av(path, {"clip.webm": "libopus", "clip.m4a": "aac"}[name], samples, rate)
        whole = read_audio(path)
    else:
        soundfile.write(path, np.repeat(samples[:, None], channels, axis=1), rate, subtype)
        whole = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
        if rate != 16_000:
            whole = soxr.resample(whole, rate, 16_000, quality="VHQ")
    for audio in (path, io.BytesIO(path.read_bytes())):
        np.testing.assert_allclose(read_audio(audio), whole, rtol=0, atol=1e-6)  # MP3's last bit, after seeking
        for block_seconds in (0.1, 30.0):
            chunks = list(iter_audio(audio, block_seconds))
            assert max(map(len, chunks)) < 16_000 * (block_seconds + 0.2)
            assert np.array_equal(np.concatenate(chunks), read_audio(audio))


def test_what_is_wrong_further_on_is_named_with_its_time(tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, tone(40.0), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    chunks = iter_audio(path)
    assert len(next(chunks)) == 480_000
    with pytest.raises(ValueError, match=r"clip\.flac: the audio does not decode after 30 s"):
        next(chunks)
    samples = tone(3.0)
    samples[40_000] = np.inf
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, "FLOAT")
    for read in (lambda path: list(iter_audio(path, 1.0)), lambda path: read_audio(path, 1.0)):
        with pytest.raises(ValueError, match=r"clip\.wav: the audio holds NaN or infinite samples at 2\.50 s"):
            read(tmp_path / "clip.wav")


def test_a_flac_without_its_length_is_read(tmp_path):
    """As a program writes it that cannot go back to the header: into a pipe."""
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(1.0), 16_000)
    whole, data = read_audio(path), bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of the number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert np.array_equal(read_audio(path), whole)
    assert audio_seconds(path) == 1.0


@pytest.mark.parametrize(
    ("window_seconds", "hop_seconds"), [(1.0, None), (1.0, 0.3), (0.5, 0.50003), (0.25, 1.0), (4.0, None)]
)
@pytest.mark.parametrize("length", [1, 16_000, 16_001, 40_000, 64_000])
def test_windows_do_not_depend_on_the_chunks(length, window_seconds, hop_seconds):
    samples = np.arange(length, dtype=np.float32)
    window, hop = round(window_seconds * 16_000), (hop_seconds or window_seconds / 2) * 16_000
    expected = [(0, samples[:window])]
    while expected[-1][0] + window < length and round(len(expected) * hop) < length:
        start = round(len(expected) * hop)
        expected.append((start, samples[start : start + window]))
    for size in (7, 480, 4_000, 10**6):
        chunks = [samples[:0], *(samples[begin : begin + size] for begin in range(0, length, size))]
        got = list(iter_windows(chunks, window_seconds, hop_seconds))
        assert [start for start, _ in got] == [start for start, _ in expected]
        assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(got, expected, strict=True))
    assert not list(iter_windows([], window_seconds, hop_seconds))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float64])
def test_integers_are_scaled_by_their_range(dtype):
    samples = tone(0.1)
    if np.dtype(dtype).kind in "iu":
        half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        stored = np.round(samples * half + (half if np.dtype(dtype).kind == "u" else 0)).astype(dtype)
    else:
        stored = samples.astype(dtype)
    [got] = resample_chunks([stored], 16_000, "clip")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, samples, atol={1: 5e-3, 2: 2e-4}.get(np.dtype(dtype).itemsize, 1e-7))


def test_a_spectrograms_length_limits_the_window():
    whisper, plain = WhisperFeatureExtractor(), Wav2Vec2FeatureExtractor()
    assert longest_input_seconds(whisper) == 30.0
    with pytest.raises(ValueError, match="window_seconds is 31; the input of this model is 30 s"):
        extract_features(tone(1.0), whisper, 31.0)
    assert len(extract_features(tone(40.0), plain, 31.0)) == 31 * 16_000
    assert len(extract_features(tone(0.5), plain)) == 8_000
    assert len(extract_features(tone(0.001), plain)) == 1_600  # a CNN's first frame needs some samples


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav: no such audio file"):
        read_audio(tmp_path / "gone.wav")


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 100)), np.array([0.0, np.inf])])
def test_bad_samples_are_refused(samples):
    with pytest.raises(ValueError, match="audio"):
        prepare_input(samples)


def test_a_binary_file_reads_as_its_path_does_and_more_than_once(tmp_path):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(1.0), 16_000)
    file = io.BytesIO(path.read_bytes())
    assert audio_seconds(file) == 1.0
    for _ in range(2):
        assert np.array_equal(read_audio(file, 0.25, 0.5), read_audio(path, 0.25, 0.5))


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses names that are not UTF-8")
@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_names_that_are_not_utf8_are_read(tmp_path, suffix):
    plain = tmp_path / f"plain.{suffix}"
    if suffix == "wav":
        soundfile.write(plain, tone(1.0), 16_000)
    else:
        write_av(plain, "aac", tone(1.0))
    odd = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9." + suffix.encode()))
    os.rename(plain, odd)
    assert len(read_audio(odd)) == pytest.approx(16_000, abs=2048)


def write_av(path, codec: str, samples: np.ndarray, rate: int = 16_000, channels: int = 1, video_seconds: float = 0):
    """Writes samples, and pictures if asked for, by the library av, into what the file is called after."""
    av = pytest.importorskip("av", reason="needs av: pip install av")
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w") as container:
        if codec:
            stream = container.add_stream(codec, rate=rate, layout=layout)
        if video_seconds:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 32
            video.pix_fmt = "yuv420p"
            for number in range(round(10 * video_seconds)):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, np.uint8), format="rgb24")
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode())
        if codec:
            convert = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
            for begin in range(0, len(samples), 4096):
                block = np.tile(samples[begin : begin + 4096], (channels, 1))
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate, begin
                for part in convert.resample(frame):
                    container.mux(stream.encode(part))
            container.mux(stream.encode())
    return path


def sweep(seconds: float, rate: int) -> np.ndarray:
    """A tone that rises from 200 Hz by 60 Hz a second: its pitch tells the time."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 30 * time) * time)).astype(np.float32)


# name, codec, rate, channels, with pictures; the formats of phones, browsers and video corpora
AV_FORMATS = [
    ("clip.mp4", "aac", 44_100, 2, True),
    ("clip.m4a", "aac", 16_000, 1, False),
    ("clip.mov", "aac", 48_000, 1, True),
    ("clip.webm", "libopus", 48_000, 1, False),
    ("clip.mkv", "aac", 44_100, 1, True),
    ("clip.avi", "pcm_s16le", 48_000, 2, True),
    ("clip2.avi", "libmp3lame", 44_100, 1, True),
    ("clip.aac", "aac", 16_000, 1, False),
]


@pytest.mark.parametrize(("name", "codec", "rate", "channels", "pictures"), AV_FORMATS)
def test_sound_of_video_and_compressed_files(tmp_path, name, codec, rate, channels, pictures):
    """As long as what was written, at its pitch; a part is what it is in the whole."""
    path = write_av(tmp_path / name, codec, sweep(6.0, rate), rate, channels, video_seconds=7.0 if pictures else 0)
    whole = read_audio(path)
    assert whole.dtype == np.float32
    assert len(whole) / 16_000 == pytest.approx(6.0, abs=0.13)  # AAC's two blocks of padding
    assert audio_seconds(path) == pytest.approx(6.0, abs=0.13)
    for start in (0.2, 0.9, 3.0, 4.9):
        part = read_audio(path, start, 1.0)
        assert len(part) == 16_000
        begin = round(start * 16_000)
        lags = range(-32, 33)  # the pitch makes a lag of a few samples visible
        errors = [np.abs(part[100:-100] - whole[begin + lag + 100 : begin + lag + 15_900]).mean() for lag in lags]
        assert abs(lags[int(np.argmin(errors))]) <= 16  # 1 ms: what Matroska rounds to
        pitch = np.abs(np.fft.rfft(part * np.hanning(16_000))).argmax()
        assert pitch == pytest.approx(200 + 60 * (start + 0.5), abs=25)
    with pytest.raises(ValueError, match="no audio at 60 s"):
        read_audio(path, 60, 1.0)
    assert np.array_equal(read_audio(io.BytesIO(path.read_bytes()), 3.0, 1.0), read_audio(path, 3.0, 1.0))


def test_a_stream_that_begins_late_is_counted_from_its_own_beginning(tmp_path):
    """Where the picture comes first, second 0 is still the first sound, as in a file of the sound alone."""
    av = pytest.importorskip("av", reason="needs av: pip install av")
    path = write_av(tmp_path / "early.mkv", "pcm_s16le", sweep(4.0, 16_000), video_seconds=4.0)
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.mkv"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.pts is not None:
                if packet.stream.type == "audio":
                    packet.pts += 500  # ms
                    packet.dts += 500
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    assert np.array_equal(read_audio(tmp_path / "late.mkv"), read_audio(path))
    assert np.array_equal(read_audio(tmp_path / "late.mkv", 2.0, 1.0), read_audio(path)[32_000:48_000])


def test_a_video_without_sound_is_named(tmp_path):
    path = write_av(tmp_path / "mute.mp4", "", sweep(1.0, 16_000), video_seconds=1.0)
    for read in (read_audio, audio_seconds):
        with pytest.raises(ValueError, match=r"mute\.mp4: there is no sound in this file"):
            read(path)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("cut.mp4", "aac", "does not decode"),  # its index was at its end
        ("cut.mkv", "pcm_s16le", r"the file is cut off: it ends at \d\.\d s of 4\.0 s"),
        ("cut.avi", "pcm_s16le", r"the file is damaged or cut off at \d\.\d s"),
    ],
)
def test_a_cut_off_video_is_named(tmp_path, name, codec, message):
    path = write_av(tmp_path / name, codec, sweep(4.0, 16_000), video_seconds=4.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_without_av_the_error_says_what_is_read_and_what_to_install(tmp_path, monkeypatch):
    path = write_av(tmp_path / "clip.mp4", "aac", tone(0.5))
    monkeypatch.setitem(sys.modules, "av", None)
    for read in (read_audio, audio_seconds):
        with pytest.raises(ValueError, match=r"clip\.mp4.*wav, flac, ogg, mp3.*pip install av.*exhubert\[video\].*mp4"):
            read(path)


def test_a_playlist_called_video_leads_nowhere(tmp_path):
    """FFmpeg would open what the list names."""
    pytest.importorskip("av", reason="needs av: pip install av")
    soundfile.write(tmp_path / "secret.wav", tone(0.5), 16_000)
    for name, text in (
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"),
        ("list.avi", "ffconcat version 1.0\nfile secret.wav\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="does not decode"):
            read_audio(tmp_path / name)
