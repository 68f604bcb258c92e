"""The feature extractor and the pipeline on arrays: channels, batches, what is empty, and what is said.

python -m pytest tests/test_feature_extractor.py
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import transformers

from conftest import make_classifier
from exhubert import ExHuBERTFeatureExtractor
from exhubert.audio_exhubert import prepare_input
from exhubert.pipeline_exhubert import ExHuBERTPipeline

CLIP = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
ONE_CLIP = {
    "array": CLIP,
    "(1, samples), as torchaudio loads": CLIP[None],
    "(samples, 1), as soundfile reads": CLIP[:, None],
    "tensor": torch.from_numpy(CLIP),
    "tensor (1, samples)": torch.from_numpy(CLIP)[None],
    "tensor (samples, 1)": torch.from_numpy(CLIP)[:, None],
    "tensor with a graph": torch.from_numpy(CLIP).requires_grad_(),
    "list": CLIP.tolist(),
    "list of lists of one sample": CLIP[:, None].tolist(),
}
EMPTY = [np.zeros(0), np.zeros((1, 0)), torch.zeros(0), []]
STEREO = [np.zeros((16_000, 2)), torch.zeros(16_000, 2), np.zeros((16_000, 2)).tolist()]


@pytest.fixture(scope="module")
def classify():
    return ExHuBERTPipeline(model=make_classifier(), feature_extractor=ExHuBERTFeatureExtractor())


@pytest.mark.parametrize("audio", ONE_CLIP.values(), ids=ONE_CLIP)
def test_one_channel_is_one_clip_whatever_its_axes(classify, audio):
    extract = ExHuBERTFeatureExtractor()
    (got,) = extract(audio, sampling_rate=16_000)["input_values"]
    assert np.array_equal(got, prepare_input(audio))
    assert np.array_equal(got, prepare_input(CLIP))
    given = {"array": audio, "sampling_rate": 16_000}
    assert classify(given)["probabilities"] == classify({"array": CLIP, "sampling_rate": 16_000})["probabilities"]


@pytest.mark.parametrize(
    "batch",
    [np.stack([CLIP, -CLIP, CLIP]), torch.from_numpy(np.stack([CLIP, -CLIP, CLIP])), [CLIP, -CLIP, CLIP.tolist()]],
)
def test_several_clips_stay_several(batch):
    got = ExHuBERTFeatureExtractor()(batch, sampling_rate=16_000)["input_values"]
    assert np.array_equal(got, [prepare_input(CLIP), prepare_input(-CLIP), prepare_input(CLIP)])
    mixed = ExHuBERTFeatureExtractor()([CLIP[None], torch.from_numpy(CLIP[:, None])], sampling_rate=16_000)
    assert np.shape(mixed["input_values"]) == (2, 48_000)


@pytest.mark.parametrize("audio", STEREO)
def test_several_channels_are_refused_with_the_remedy(classify, audio):
    message = r"audio of shape \(16000, 2\); mono .* needed: 2 channels are averaged by audio\.mean\(1\)"
    for take in (
        lambda: ExHuBERTFeatureExtractor()(audio, sampling_rate=16_000),
        lambda: ExHuBERTFeatureExtractor()([audio], sampling_rate=16_000),
        lambda: prepare_input(audio),
        lambda: classify({"array": audio, "sampling_rate": 16_000}),
    ):
        with pytest.raises(ValueError, match=message):
            take()
    with pytest.raises(ValueError, match=r"2 channels are averaged by audio\.mean\(0\)"):
        prepare_input(np.transpose(audio))


@pytest.mark.parametrize("audio", EMPTY)
def test_what_is_empty_is_refused(classify, audio):
    for take in (
        lambda: ExHuBERTFeatureExtractor()(audio, sampling_rate=16_000),
        lambda: prepare_input(audio),
        lambda: classify({"array": audio, "sampling_rate": 16_000}),
    ):
        with pytest.raises(ValueError, match=r"empty \(0 samples\)"):
            take()


@pytest.fixture
def warned(monkeypatch):
    """What transformers' loggers warn of."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    ours = [logging.getLogger(f"exhubert.{name}") for name in ("audio_exhubert", "pipeline_exhubert")]
    for each in ours:
        each.addHandler(handler)
    type(logger).warning_once.cache_clear()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()  # commands in this process have silenced them
    yield said
    transformers.logging.set_verbosity(before)
    for each in (logger, *ours):
        each.removeHandler(handler)


def test_audio_without_its_rate_is_warned_of_as_transformers_does(classify, warned):
    ExHuBERTFeatureExtractor()(CLIP)
    assert any("It is strongly recommended to pass the `sampling_rate` argument" in text for text in warned)
    classify({"array": CLIP, "sampling_rate": 16_000})
    assert not any("taken for 16 kHz" in text for text in warned)
    for _ in range(2):
        classify(CLIP)
    assert sum("an array without its sampling rate is taken for 16 kHz" in text for text in warned) == 1


def test_audio_that_is_cut_to_the_window_is_told_of_once(warned):
    extract = ExHuBERTFeatureExtractor()
    for audio in (CLIP, np.tile(CLIP, 60), np.tile(CLIP, 60)):
        extract(audio, sampling_rate=16_000)
    (text,) = warned
    assert "of 60.0 s of audio the first 3 s are taken; pipeline('speech-emotion-recognition')" in text
