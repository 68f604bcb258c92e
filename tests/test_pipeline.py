"""The pipeline: audio of any kind and length in windows, embeddings, streams, bounded memory, bad input.

python -m pytest tests/test_pipeline.py
"""

from __future__ import annotations

import io
import itertools
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertForSequenceClassification, Wav2Vec2FeatureExtractor

from conftest import SMALL, make_classifier, write_video
from exhubert import SIX_CLASSES, ExHuBERTFeatureExtractor, ExHuBERTForSequenceClassification
from exhubert.audio_exhubert import prepare_input, read_audio
from exhubert.model_folder import load_pipeline, save_model_folder
from exhubert.pipeline_exhubert import WINDOWS_PER_FORWARD, ExHuBERTPipeline, batch_windows, make_windows


@pytest.fixture(scope="module")
def model():
    return make_classifier()


@pytest.fixture(scope="module")
def classify(model):
    return ExHuBERTPipeline(model=model, feature_extractor=ExHuBERTFeatureExtractor())


def speech(seconds: float, rate: int = 16_000, channels: int = 0) -> np.ndarray:
    """A tone whose pitch and loudness change, so that each window is another; float32 `(samples[, channels])`."""
    time = np.arange(round(seconds * rate)) / rate
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    tone = (0.3 + 0.2 * np.sin(time)) * np.sin(2 * np.pi * (150 + 20 * time) * time) + noise
    tone = tone.astype(np.float32)
    return np.repeat(tone[:, None], channels, axis=1) if channels else tone


def expected(model, samples: np.ndarray, window: int = 48_000, hop: int = 24_000) -> list[tuple[float, float, list]]:
    """Start, end and probabilities of each window, one at a time."""
    starts = [0]
    while starts[-1] + window < len(samples):
        starts.append(starts[-1] + hop)
    results = []
    for start in starts:
        part = samples[start : start + window]
        with torch.inference_mode():
            logits = model(torch.from_numpy(prepare_input(part, window / 16_000))[None]).logits[0]
        results.append((start / 16_000, (start + len(part)) / 16_000, logits.softmax(-1).tolist()))
    return results


def same(windows: list[dict], reference: list, tolerance: float = 1e-5) -> bool:
    """Whether window dicts are as `expected`, or other window dicts, say."""
    rows = [(row["start"], row["end"], list(row["probabilities"].values())) for row in windows]
    if reference and isinstance(reference[0], dict):
        reference = [(row["start"], row["end"], list(row["probabilities"].values())) for row in reference]
    spans = [row[:2] for row in rows] == [row[:2] for row in reference]
    return spans and np.allclose([row[2] for row in rows], [row[2] for row in reference], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype", "seconds"),
    [
        ("mono.wav", 16_000, 1, "PCM_16", 40.0),
        ("low.wav", 8_000, 2, "PCM_U8", 1.0),
        ("high.wav", 96_000, 8, "PCM_24", 4.2),
        ("float.wav", 48_000, 1, "FLOAT", 3.0),
        ("clip.flac", 44_100, 2, "PCM_24", 4.2),
        ("clip.ogg", 48_000, 6, "VORBIS", 4.2),
        ("clip.mp3", 22_050, 2, "MPEG_LAYER_III", 31.0),
        ("clip.m4a", 44_100, 1, None, 4.2),
        ("clip.webm", 48_000, 1, None, 4.2),
    ],
)
def test_files_of_any_format_and_length(tmp_path, model, classify, name, rate, channels, subtype, seconds):
    if subtype is None:
        write_video(tmp_path / name, speech(seconds, rate), rate)
    else:
        soundfile.write(tmp_path / name, speech(seconds, rate, channels), rate, subtype)
    result = classify(str(tmp_path / name))
    assert result["windows"][-1]["end"] == pytest.approx(seconds, abs=0.15)  # codecs pad
    assert same(result["windows"], expected(model, read_audio(tmp_path / name)))
    mean = np.mean([list(row["probabilities"].values()) for row in result["windows"]], axis=0)
    assert list(result["probabilities"].values()) == pytest.approx(mean)
    assert list(result["probabilities"]) == list(SIX_CLASSES)
    assert result["label"] == SIX_CLASSES[int(np.argmax(mean))]


def test_every_kind_of_input_gives_the_same_answer(tmp_path, classify):
    path = tmp_path / "clip.wav"
    soundfile.write(path, speech(4.2, 22_050), 22_050)
    array = soundfile.read(path, dtype="int16")[0]
    result = classify(path)
    data = path.read_bytes()
    with path.open("rb") as file:
        kinds = [str(path), data, bytearray(data), io.BytesIO(data), file, {"array": array, "sampling_rate": 22_050}]
        kinds += [{"raw": torch.from_numpy(array / np.float32(32_768)), "sampling_rate": 22_050}, read_audio(path)]
        assert classify(kinds) == [result] * len(kinds)
    for lazy in ((each for each in [path, data]), map(str, [path, path])):
        results = iter(classify(lazy))
        assert next(results) == result  # one at a time
        assert list(results) == [result]
    assert classify([]) == []


def test_windows_and_hop_are_arguments_and_a_batch_size_does_no_harm(model, classify):
    samples = speech(4.2)
    two = classify([samples] * 2, window_seconds=1.0, hop_seconds=0.7, batch_size=2, num_workers=2)
    assert same(two[0]["windows"], expected(model, samples, 16_000, 11_200))
    assert two[0] == two[1]
    assert len(classify(samples, hop_seconds=10.0)["windows"]) == 1
    always = ExHuBERTPipeline(model=model, feature_extractor=ExHuBERTFeatureExtractor(), hop_seconds=1.0)
    assert [window["start"] for window in always(samples)["windows"]] == [0.0, 1.0, 2.0]
    assert [window["start"] for window in always.stream([samples])] == [0.0, 1.0, 2.0]
    assert [window["start"] for window in always(samples, hop_seconds=2.0)["windows"]] == [0.0, 2.0]


def test_arousal_and_valence(model, classify):
    result = classify(speech(4.2))
    for row in (result, *result["windows"]):
        low_negative, _, low_positive, high_negative, _, high_positive = row["probabilities"].values()
        high = sum(value for name, value in row["probabilities"].items() if name.startswith("high"))
        assert row["arousal"] == pytest.approx(high - (1 - high), abs=1e-6)
        assert row["valence"] == pytest.approx(low_positive + high_positive - low_negative - high_negative, abs=1e-6)
    other = make_classifier(id2label=dict(enumerate(["calm", "high/negative"])))
    result = ExHuBERTPipeline(model=other, feature_extractor=ExHuBERTFeatureExtractor())(speech(1.0))
    assert set(result) == {"label", "probabilities", "windows"}


def test_the_calibrated_temperature_divides_the_logits(model, classify):
    samples = speech(1.0)
    hot = make_classifier(calibration_temperature=2.0)
    probabilities = ExHuBERTPipeline(model=hot, feature_extractor=ExHuBERTFeatureExtractor())(samples)["probabilities"]
    with torch.inference_mode():
        logits = model(torch.from_numpy(prepare_input(samples))[None]).logits[0]
    assert list(probabilities.values()) == pytest.approx((logits / 2).softmax(-1).tolist(), abs=1e-6)


def test_embeddings(model, classify):
    samples = speech(7.0)
    inputs = np.stack([prepare_input(samples[start : start + 48_000]) for start in (0, 24_000, 48_000, 72_000)])
    with torch.inference_mode():
        states = model.hubert(torch.from_numpy(inputs), output_hidden_states=True)
    for embeddings, state in ((True, states.last_hidden_state), (0, states.hidden_states[0]), (3, states[1][3])):
        result = classify(samples, embeddings=embeddings)
        got = np.stack([window["embedding"] for window in result["windows"]])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, state.mean(dim=1).numpy(), atol=1e-5)
        np.testing.assert_allclose(result["embedding"], got.mean(axis=0), atol=1e-6)
        streamed = [window["embedding"] for window in classify.stream([samples], embeddings=embeddings)]
        np.testing.assert_allclose(streamed, got, atol=1e-5)
    assert "embedding" not in classify(samples, embeddings=False)
    for wrong, message in ((5, "hidden states 0 to 4"), ("weighted", "no weighted layer sum"), ("last", "'last'")):
        with pytest.raises(ValueError, match=message):
            classify(samples, embeddings=wrong)


def test_the_weighted_embedding_is_what_the_head_is_fed():
    model = make_classifier(use_weighted_layer_sum=True)
    model.layer_weights.data = torch.tensor([0.1, 1.0, -1e4, 0.5, 2.0])
    classify = ExHuBERTPipeline(model=model, feature_extractor=ExHuBERTFeatureExtractor())
    embedding = classify(speech(3.0), embeddings="weighted")["embedding"]
    with torch.inference_mode():  # the head is linear, but for the mean
        logits = model.classifier(model.projector(torch.from_numpy(embedding)))
        whole = model(torch.from_numpy(prepare_input(speech(3.0)))[None]).logits[0]
    np.testing.assert_allclose(logits, whole, atol=1e-5)


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100, 48_000])
def test_a_stream_gives_what_the_whole_gives(classify, rate):
    samples = (32_767 * speech(6.3, rate)).astype(np.int16)
    whole = classify({"array": samples, "sampling_rate": rate})["windows"]
    assert len(whole) == 4
    sizes = [37, 160, 4096, 10**6]
    for size in [1, *sizes] if rate == 8_000 else sizes:
        chunks = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
        assert same(list(classify.stream(chunks, rate)), whole, 1e-6)
    uneven = [samples[:5], samples[:0], samples[5:100_000], samples[:0], samples[100_000:]]
    assert same(list(classify.stream(uneven, rate)), whole, 1e-6)
    floats = samples.astype(np.float64) / 32_768
    assert same(list(classify.stream([floats], rate)), whole, 1e-6)


def test_a_microphones_buffer_may_be_used_again(classify):
    samples = speech(4.2)

    def microphone():
        buffer = np.zeros(1_000, np.float32)
        for begin in range(0, len(samples), 1_000):
            part = samples[begin : begin + 1_000]
            buffer[: len(part)] = part
            yield buffer[: len(part)]

    assert same(list(classify.stream(microphone())), classify(samples)["windows"], 1e-6)


@pytest.mark.parametrize(("rate", "delay"), [(16_000, 0.0), (8_000, 0.115), (44_100, 0.09), (96_000, 0.08)])
def test_a_window_comes_as_soon_as_its_last_sample_is_there(classify, rate, delay):
    """From a stream that never ends."""
    sent = 0.0

    def microphone():
        nonlocal sent
        for _ in itertools.count():
            sent += 0.02
            yield np.zeros(rate // 50, np.float32)

    for number, window in enumerate(itertools.islice(classify.stream(microphone(), rate), 4)):
        assert window["end"] == 3.0 + 1.5 * number
        assert window["end"] - 1e-6 <= sent <= window["end"] + delay + 0.02 + 1e-6


def test_memory_does_not_grow_with_the_length(tmp_path, classify):
    """An hour at 16 kHz is 230 MB of samples."""
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
        minute = speech(60.0, 8_000)
        for _ in range(60):
            file.write(minute)

    second = np.zeros(16_000, np.float32)
    classify(path, hop_seconds=3_600)  # what is allocated once
    for classify_hour in (
        lambda: classify(path, hop_seconds=240),
        lambda: list(classify.stream(itertools.repeat(second, 3_600), hop_seconds=240)),
    ):
        tracemalloc.start()
        classify_hour()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30e6


def test_windows_that_are_not_kept_have_no_part_in_the_answer(classify):
    samples = speech(7.5)
    seconds = []
    every = classify(samples, hop_seconds=3.0, embeddings=True)["windows"]
    kept = classify(
        samples, hop_seconds=3.0, embeddings=True, keep=lambda window: len(window) < 48_000, on_progress=seconds.append
    )
    assert kept["probabilities"] == pytest.approx(every[-1]["probabilities"], abs=1e-6)
    nothing = {"label": None, "probabilities": None, "arousal": None, "valence": None}
    assert kept["windows"][:2] == [{"start": start, "end": start + 3, **nothing} for start in (0, 3)]
    assert kept["windows"][2]["probabilities"] == kept["probabilities"]
    assert sum(seconds) == 7.5
    none = classify(samples, embeddings=True, keep=lambda window: False)
    assert {**none, "windows": len(none["windows"])} == {**nothing, "windows": 4}
    assert [window["label"] for window in classify.stream([samples], keep=lambda window: False)] == [None] * 4


def test_batches_are_of_one_shape_and_few_windows_wait():
    extractor = Wav2Vec2FeatureExtractor()
    made = 0

    def windows():
        nonlocal made
        for clip in range(1_000):
            for window in make_windows([np.ones(1_600 + clip % 500, np.float32)], extractor, clip=clip):
                made += 1
                yield window

    given = 0
    for batch in batch_windows(windows(), 4):
        given += len(batch)
        assert len({window.features.shape for window in batch}) == 1
        assert made - given < 4 * 64
    assert given == made == 1_000
    assert [len(batch) for batch in batch_windows(windows(), 300, masked=True)] == [300, 300, 300, 100]


def test_digital_silence_is_classified_as_it_is(model, classify):
    result = classify(np.zeros(64_000, np.float32))
    with torch.inference_mode():
        logits = model(torch.zeros(1, 48_000)).logits[0]
    assert list(result["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)


def damaged(path, *, bad: str):
    """Writes a clip of 40 s with something wrong."""
    samples = speech(40.0)
    if bad == "nan":
        samples[35 * 16_000] = np.nan
        soundfile.write(path, samples, 16_000, "FLOAT", format="WAV")
    elif bad == "cut":
        soundfile.write(path, samples, 16_000, format="FLAC")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    elif bad == "empty":
        soundfile.write(path, np.zeros(0), 16_000, format="WAV")
    else:
        path.write_text("no audio")
    return path


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nan", r"clip\.wav: the audio holds NaN or infinite samples at 35\.00 s"),
        ("cut", r"clip\.wav: the audio does not decode after 30 s"),
        ("empty", r"clip\.wav: no audio"),
        ("text", r"clip\.wav: the audio does not decode"),
    ],
)
def test_a_bad_file_is_named_with_the_time(tmp_path, classify, bad, message):
    path = damaged(tmp_path / "clip.wav", bad=bad)
    with pytest.raises(ValueError, match=message):
        classify(path)
    with pytest.raises(ValueError, match=message), path.open("rb") as file:
        classify(file)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (np.zeros(0, np.float32), {}, "empty"),
        (np.zeros((2, 16_000), np.float32), {}, r"shape \(2, 16000\); mono"),
        ({"raw": np.zeros(16_000)}, {}, r"\['raw'\]; 'array' and 'sampling_rate'"),
        ({"array": np.zeros(9), "sampling_rate": "8 kHz"}, {}, "sampling_rate is '8 kHz'"),
        (np.zeros(16_000, np.int64), {}, "type int64"),
        (("clip.wav", 16_000), {}, "a tuple is no audio; give a path"),
        (None, {}, "a NoneType is no audio"),
        (b"no audio", {}, "audio given as bytes: the audio does not decode"),
        (io.StringIO("no audio"), {}, "a binary file that can be rewound"),
        (np.zeros(16_000, np.float32), {"hop_seconds": 0}, "hop_seconds is 0"),
        (np.zeros(16_000, np.float32), {"window_seconds": float("nan")}, "window_seconds is nan"),
        (np.zeros(16_000, np.float32), {"hop": 1}, "unknown argument 'hop'"),
    ],
)
def test_bad_input_is_explained(classify, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        classify(inputs, **options)


@pytest.mark.parametrize(
    ("chunk", "options", "message"),
    [
        (np.zeros((480, 2), np.float32), {}, r"the stream: audio of shape \(480, 2\); mono"),
        (np.array([0.0, np.nan]), {}, r"the stream: the audio holds NaN or infinite samples at 2\.00 s"),
        (b"\0\0", {}, r"the stream: audio of shape \(\)"),
        (np.zeros(2), {"sampling_rate": 0}, "sampling_rate is 0"),
        (np.zeros(2), {"sampling_rate": 16}, "sampling_rate is 16; it must be from 1000"),
        (np.zeros(2), {"hop_seconds": -1}, "hop_seconds is -1"),
    ],
)
def test_a_bad_stream_is_explained(classify, chunk, options, message):
    with pytest.raises(ValueError, match=message):
        list(classify.stream([np.zeros(31_999), chunk], **options))


def test_what_the_model_cannot_answer_is_named_with_the_time(tmp_path):
    model = make_classifier()
    classify = ExHuBERTPipeline(model=model, feature_extractor=ExHuBERTFeatureExtractor())
    soundfile.write(tmp_path / "clip.wav", speech(20.0), 16_000)
    model.classifier.bias.data[2] = torch.inf
    with pytest.raises(ValueError, match=r"clip\.wav: the model's answer from 0\.00 s to 3\.00 s is not finite"):
        classify(tmp_path / "clip.wav")
    model.config.conv_kernel = (10_000, 8, 5)  # more samples than a window of half a second has
    with pytest.raises(ValueError, match=r"clip\.wav: from 0\.00 s to 0\.50 s: input_values has 8000 samples"):
        classify(tmp_path / "clip.wav", window_seconds=0.5)


@pytest.fixture
def others(tmp_path):
    """A model of another package: a plain HuBERT whose feature extractor names no window."""
    torch.manual_seed(0)
    model = HubertForSequenceClassification(HubertConfig(**SMALL, num_labels=3)).eval()
    model.save_pretrained(tmp_path / "other")
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_models_without_a_window_hear_30_seconds_at_once(others):
    classify = load_pipeline(str(others))
    samples = speech(40.0)
    windows = classify(samples)["windows"]
    assert [(row["start"], row["end"]) for row in windows] == [(0.0, 30.0), (15.0, 40.0)]
    with torch.inference_mode():
        tail = classify.model(torch.from_numpy(prepare_input(samples[15 * 16_000 :], None))[None]).logits[0]
    assert list(windows[1]["probabilities"].values()) == pytest.approx(tail.softmax(-1).tolist(), abs=1e-5)
    assert classify(samples[:50])["windows"][0]["end"] == 50 / 16_000  # fewer samples than a frame takes


def test_load_pipeline(tmp_path, model, classify, others):
    save_model_folder(model, tmp_path / "ex", window_seconds=2.0)
    loaded = load_pipeline(str(tmp_path / "ex"))
    samples = speech(2.0 + WINDOWS_PER_FORWARD)
    assert same(loaded(samples)["windows"], classify(samples, window_seconds=2.0)["windows"])
    ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").hubert.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match="headless has no trained classifier"):
        load_pipeline(str(tmp_path / "headless"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises((OSError, ValueError), match="nothing"):
        load_pipeline(str(tmp_path / "nothing"))
