"""Channels that are heard each on its own: from files of any kind and from arrays, decoded once, in bounded memory.

python -m pytest tests/test_channels.py
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import alike, make_classifier
from exhubert import ExHuBERTFeatureExtractor, audio_exhubert
from exhubert.audio_exhubert import BLOCK_VALUES, iter_audio, read_audio
from exhubert.inference.speech import Options, classify_files, open_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline


@pytest.fixture(scope="module")
def classify():
    return ExHuBERTPipeline(model=make_classifier(), feature_extractor=ExHuBERTFeatureExtractor())


def sound(seconds: float, rate: int, channels: int) -> np.ndarray:
    """Another tone in noise in each channel; float32 `(samples, channels)`."""
    time = np.arange(round(seconds * rate))[:, None] / rate
    noise = np.random.default_rng(0).standard_normal((len(time), channels))
    return (0.2 * np.sin(2 * np.pi * 200 * (1 + np.arange(channels)) * time) + 0.02 * noise).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("mono.wav", 8_000, 1, "PCM_16"),
        ("call.wav", 8_000, 2, "ULAW"),
        ("call.flac", 16_000, 2, "PCM_16"),
        ("many.wav", 44_100, 64, "FLOAT"),
        ("call.m4a", 44_100, 2, None),
    ],
)
def test_each_channel_gets_what_its_own_file_would(tmp_path, monkeypatch, classify, name, rate, channels, subtype):
    samples = sound(3.7, rate, channels)
    path = tmp_path / name
    if subtype is None:
        av = pytest.importorskip("av", reason="needs av: pip install av")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        soundfile.write(path, samples, rate, subtype)
    opened = []
    monkeypatch.setattr(
        audio_exhubert, "open_sound", lambda audio, real=audio_exhubert.open_sound: opened.append(audio) or real(audio)
    )
    result = classify(path, channels="each", hop_seconds=1.0)
    assert opened == [path] and result.keys() == {"channels"}
    assert [each.pop("channel") for each in result["channels"]] == list(range(1, channels + 1))
    parts = np.concatenate(list(iter_audio(path, channels="each")), axis=1)
    np.testing.assert_allclose(parts.mean(axis=0), read_audio(path), atol=1e-6)
    for number in {0, channels - 1}:
        alone = classify({"array": parts[number], "sampling_rate": 16_000}, hop_seconds=1.0)
        assert alike(result["channels"][number], alone)
        if subtype is not None:  # the samples themselves, of one channel alone
            soundfile.write(
                tmp_path / "alone.wav", soundfile.read(path)[0][:, number] if channels > 1 else samples, rate
            )
            heard = read_audio(tmp_path / "alone.wav")
            np.testing.assert_allclose(parts[number], heard, atol=1e-4)


def test_blocks_are_bounded_in_samples_too(tmp_path, monkeypatch):
    path = tmp_path / "many.wav"
    soundfile.write(path, sound(1.0, 16_000, 64), 16_000, "FLOAT")
    whole = list(iter_audio(path, channels="each"))
    monkeypatch.setattr(audio_exhubert, "BLOCK_VALUES", 64_000)
    parts = list(iter_audio(path, channels="each"))
    assert len(whole) == 1 and whole[0].size <= BLOCK_VALUES and len(parts) == 16
    assert np.array_equal(np.concatenate(parts, axis=1), whole[0])
    assert np.array_equal(read_audio(path), np.concatenate(list(iter_audio(path, 0.01))))


def test_arrays_may_have_channels(classify):
    samples = sound(4.0, 16_000, 2)
    one = classify({"array": samples, "sampling_rate": 16_000}, channels="each")
    for same in (samples.T, samples.T.tolist(), np.float64(samples)):
        assert alike(classify({"array": same, "sampling_rate": 16_000}, channels="each"), one)
    alone = [classify({"array": row, "sampling_rate": 16_000}) for row in samples.T]
    assert alike(one, {"channels": [{"channel": number, **each} for number, each in enumerate(alone, start=1)]})
    assert alike(classify(samples[:, 0], channels="each"), {"channels": [{"channel": 1, **alone[0]}]})
    low = {"array": sound(1.0, 8_000, 3), "sampling_rate": 8_000}
    assert len(classify(low, channels="each")["channels"]) == 3
    for bad in (np.zeros((2, 2, 100)), np.zeros((2, 0)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"audio of shape|empty"):
            classify(bad, channels="each")
    with pytest.raises(ValueError, match="2 channels are averaged by"):
        classify(samples)
    with pytest.raises(ValueError, match="channels is 'left'; it must be 'mix' or 'each'"):
        classify(samples, channels="left")
    with pytest.raises(ValueError, match="a stream is mono"):
        classify.stream([samples[:, 0]], channels="each")
    samples[20_000, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinite samples at 1\.25 s"):
        classify(samples, channels="each")


def test_turns_may_name_their_channel(classify):
    samples = sound(6.0, 16_000, 2)
    turns = [(0.5, 2.0, "agent", 1), (3.0, 5.0, "customer", 2), (1.0, 2.0)]
    first, second = classify(samples, segments=turns, channels="each")["channels"]
    assert [(each["start"], each.get("speaker")) for each in first["segments"]] == [(0.5, "agent"), (1.0, None)]
    assert [(each["start"], each.get("speaker")) for each in second["segments"]] == [(1.0, None), (3.0, "customer")]
    assert len(classify(samples[:, 0], segments=turns)["segments"]) == 3  # one channel is the mix of all
    silent = classify(samples, segments=turns[:1], channels="each")["channels"][1]
    assert silent["segments"] == silent["windows"] == [] and silent["label"] is None
    with pytest.raises(ValueError, match="the turn at 3 s is on channel 2; there is 1"):
        classify(samples[:, 0], segments=turns, channels="each")


def test_each_channel_of_a_call_has_the_turns_of_its_own_speaker(classify, shared, tmp_path):
    """Two speakers who take turns, and at times speak at once."""
    names = (("03a01Fa.flac", "03a01Wa.flac"), ("08a01Na.flac", "08a02Ac.flac"))
    starts = ((1.0, 6.0), (2.0, 9.0))  # seconds
    call = np.zeros((13 * 16_000, 2), np.float32)
    for channel in (0, 1):
        for name, start in zip(names[channel], starts[channel], strict=True):
            clip = read_audio(shared / "corpora" / "emodb" / "audio" / name)
            call[round(start * 16_000) :][: len(clip), channel] = clip
    soundfile.write(tmp_path / "call.wav", call, 16_000, "FLOAT")
    found = classify(tmp_path / "call.wav", segments="speech", channels="each")["channels"]
    for channel in (0, 1):
        segments = found[channel]["segments"]
        assert [segment["start"] for segment in segments] == pytest.approx(starts[channel], abs=0.25)
        for segment in segments:
            begin, end = (round(segment[name] * 16_000) for name in ("start", "end"))
            assert alike(segment["probabilities"], classify(call[begin:end, channel])["probabilities"])


def test_files_of_two_channels_among_others(clips, classifier_folder):
    soundfile.write("call.wav", sound(5.0, 8_000, 2), 8_000)
    options = Options(channels="each", segments=[(0.0, 1.0), (0.5, 3.5)])
    pipeline = open_pipeline(classifier_folder, options)
    answered = list(classify_files(pipeline, ["call.wav", "clips/b.wav", "gone.wav"], options))
    for (recording, result), channels in zip(answered, (2, 1), strict=False):
        assert len(result["channels"]) == channels and recording.channels == 1  # none were averaged
        assert alike(result, pipeline(recording.audio, segments=options.segments, channels="each"))
    assert isinstance(answered[2][1], FileNotFoundError)
    with pytest.raises(ValueError, match="channels is 'both'"):
        open_pipeline(classifier_folder, Options(channels="both"))
    read = io.BytesIO(Path("call.wav").read_bytes())
    assert alike(pipeline(read, channels="each"), pipeline("call.wav", channels="each"))
