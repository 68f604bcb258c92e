"""Segments: turns of speech against recordings whose turns are known, their rules, turns that others found, streams.

python -m pytest tests/test_segments.py
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from conftest import ROOT, make_classifier, run_without_package
from exhubert import ExHuBERTFeatureExtractor, segments_exhubert
from exhubert.audio_exhubert import WindowCutter, read_audio
from exhubert.benchmarks.speech_turns import CONDITIONS, recordings, score
from exhubert.inference.speech import Options, classify_files, open_pipeline
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.segments_exhubert import SpeechTurns, Turn

RATE = 16_000
EMODB = ("03a01Fa.flac", "03a02Fc.flac", "03a01Wa.flac")


@pytest.fixture(scope="module")
def classify():
    return ExHuBERTPipeline(model=make_classifier(), feature_extractor=ExHuBERTFeatureExtractor())


@pytest.fixture(scope="module")
def noise():
    """12.3 s, 16 kHz."""
    return 0.1 * np.random.default_rng(0).standard_normal(196_800).astype(np.float32)


@pytest.fixture(scope="session")
def spoken(shared):
    """Three clips of one utterance each, 16 kHz."""
    return [read_audio(shared / "corpora" / "emodb" / "audio" / name) for name in EMODB]


def with_pauses(clips: list[np.ndarray]) -> np.ndarray:
    """The clips with 1.5 s of silence before, between and after them."""
    silence = np.zeros(24_000, np.float32)
    return np.concatenate([silence, *(part for clip in clips for part in (clip, silence))])


def spans(segments: list[dict]) -> list[tuple[float, float]]:
    return [(segment["start"], segment["end"]) for segment in segments]


def agree(one: dict, other: dict) -> bool:
    """Whether two answers have the same probabilities."""
    return one["label"] == other["label"] and one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_turns_are_found_where_they_are(shared):
    """A small part of benchmarks/speech_turns.py, of speakers on whom no constant was chosen."""
    sums = {condition: np.zeros(3) for condition in CONDITIONS[:3]}
    for corpus in ("nemo", "ravdess_speech"):
        for condition, samples, truth in recordings(str(shared / "corpora" / corpus), half=1, count=1, clips=8):
            if condition in sums:
                sums[condition] += score(samples, truth)
    for condition, (speech, missed, false) in sums.items():
        assert missed < 0.05 * speech and false < 0.05 * speech, condition


FRAMES = 1 / 0.032  # in a second


def scripted(monkeypatch, scores: np.ndarray, samples: int) -> list[tuple[float, float]]:
    """The turns of audio whose frames are speech as likely as `scores` say."""

    class Detector:
        def push(self, chunk):
            return iter(scores)

        def end(self):
            return []

    monkeypatch.setattr(segments_exhubert, "SpeechDetector", Detector)
    turns: list[Turn] = []
    finder = SpeechTurns(3.0, None, turns)
    cuts = finder.push(np.arange(samples, dtype=np.float32)) + finder.end()
    assert [cut.span for cut in cuts if cut.last] == list(range(len(turns)))
    assert all(cut.samples[0] == cut.start for cut in cuts)
    return [(turn.start, turn.end) for turn in turns]


@pytest.mark.parametrize(
    ("speech", "turns"),
    [
        ([(40, 60)], [(1.248, 1.856)]),  # frame 40 begins at 1.28 s, frame 60 at 1.92 s
        ([(40, 60), (75, 90)], [(1.248, 2.816)]),  # 0.48 s are no pause
        ([(40, 60), (76, 90)], [(1.248, 1.856), (2.4, 2.816)]),
        ([(40, 47)], []),  # less than 0.25 s
        ([(15, 60)], [(0.0, 1.856)]),  # no pause before it
        ([(16, 60)], [(0.48, 1.856)]),
        ([(40, 110)], [(1.248, 4.0)]),  # none after it
    ],
)
def test_rules_of_turns(monkeypatch, speech, turns):
    scores = np.zeros(125)
    for begin, end in speech:
        scores[begin:end] = 0.2
        scores[begin] = 0.3
    assert scripted(monkeypatch, scores, 64_000) == turns


def test_long_turns_are_cut_where_speech_is_least_likely(monkeypatch):
    scores = np.ones(3125)  # 100 s
    scores[[300, 600, 1500]] = 0.4, 0.5, 0.3
    found = scripted(monkeypatch, scores, 1_600_000)
    assert found[0] == (0.0, 19.2) and found[-1][1] == 100.0  # frame 300 is in the first half
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(found))
    assert all(end - begin <= 30.0 for begin, end in found) and 48.0 in dict(found).values()


def test_a_clip_of_one_utterance_is_its_own_segment(classify, spoken):
    for clip in spoken:
        whole, cut = classify(clip), classify(clip, segments="speech")
        assert spans(cut["segments"]) == [(0.0, len(clip) / RATE)]
        assert agree(cut["segments"][0], whole) and agree(cut, whole)


def test_speech_does_not_depend_on_the_chunks_and_streams_say_the_same(classify, spoken):
    audio = with_pauses(spoken)
    whole = classify(audio, segments="speech")
    for position, clip, segment in zip((0, 1, 2), spoken, whole["segments"], strict=True):
        start = 1.5 * (position + 1) + sum(map(len, spoken[:position])) / RATE
        assert segment["start"] == pytest.approx(start, abs=0.2)
        assert segment["end"] == pytest.approx(start + len(clip) / RATE, abs=0.2)
        part = audio[round(segment["start"] * RATE) : round(segment["end"] * RATE)]
        assert agree(segment, classify(part))
    assert [window["segment"] for window in whole["windows"]] == [0, 1, 2]
    for size in (333, 16_000):
        heard = []

        def chunks(size=size, heard=heard):
            for begin in range(0, len(audio), size):
                heard.append(min(begin + size, len(audio)) / RATE)
                yield audio[begin : begin + size]

        for segment, expected in zip(classify.stream(chunks(), segments="speech"), whole["segments"], strict=True):
            assert spans([segment]) == spans([expected]) and agree(segment, expected)
            assert heard[-1] <= segment["end"] + 0.5 + 0.064 + 0.256 + size / RATE  # pause, overhang, block


def test_given_turns_are_clips_of_their_own(classify, noise):
    turns = [
        (5.0, 9.7),
        {"start": 1.0, "end": 20.0, "speaker": "B"},
        (1.0, 4.0, "A"),
        Turn(2.0, 2.25),
        (11.0, 11.00001),
    ]
    for windowing in ({}, {"window_seconds": 1.0, "hop_seconds": 2.5}):
        result = classify(noise, segments=iter(turns), embeddings=True, **windowing)
        assert spans(result["segments"]) == [(1, 4), (1, 12.3), (2, 2.25), (5, 9.7), (11, 11.00001)]
        assert [segment.get("speaker") for segment in result["segments"]] == ["A", "B", None, None, None]
        for number, segment in enumerate(result["segments"][:4]):
            begin, end = round(segment["start"] * RATE), round(segment["end"] * RATE)
            alone = classify(noise[begin:end], embeddings=True, **windowing)
            assert agree(segment, alone)
            assert np.allclose(segment["embedding"], alone["embedding"], atol=1e-5)
            windows = [window for window in result["windows"] if window["segment"] == number]
            assert [(w["start"], w["end"]) for w in windows] == [
                (pytest.approx(w["start"] + segment["start"]), pytest.approx(w["end"] + segment["start"]))
                for w in alone["windows"]
            ]
        mean = np.mean([list(window["probabilities"].values()) for window in result["windows"]], axis=0)
        assert list(result["probabilities"].values()) == pytest.approx(mean)
        chunks = [noise[begin : begin + 5_000] for begin in range(0, len(noise), 5_000)]
        streamed = sorted(classify.stream(chunks, segments=turns, **windowing), key=lambda each: each["start"])
        assert sorted(spans(streamed)) == spans(result["segments"])


def test_what_is_held_does_not_grow_with_turns(noise):
    begins = np.random.default_rng(0).integers(0, 180_000, 10_000).tolist()
    cutter = WindowCutter(3.0, 3.0, [(begin, begin + 1 + 7 * (begin % 9_000)) for begin in begins])
    last = set()
    for begin in range(0, len(noise), 1_600):
        last |= {cut.span for cut in cutter.push(noise[begin : begin + 1_600]) if cut.last}
        assert sum(map(len, cutter.audio.chunks)) <= 48_000
    assert last | {cut.span for cut in cutter.end() if cut.last} == set(range(10_000))


def test_uncertain_segments_are_marked(classify, noise):
    turns = [(0.0, 0.4), (1.0, 4.0)]
    top = [max(each["probabilities"].values()) for each in classify(noise, segments=turns)["segments"]]
    for least, seconds, marks in [
        (0.0, 0.5, ["short", ""]),
        (1.0, 0.5, ["short, low probability", "low probability"]),
        (min(top), 0.3, ["", ""]),
    ]:
        result = classify(noise, segments=turns, least_probability=least, least_seconds=seconds)
        assert [segment["uncertain"] for segment in result["segments"]] == marks
        assert [max(each["probabilities"].values()) for each in result["segments"]] == top


@pytest.mark.parametrize("samples", [np.zeros(64_000, np.float32), np.full(1, 0.5, np.float32)])
def test_where_nobody_speaks_nothing_is_said(classify, samples):
    nothing = dict.fromkeys(("label", "probabilities", "arousal", "valence"))
    assert classify(samples, segments="speech") == {**nothing, "segments": [], "windows": []}
    assert classify(samples, segments=[]) == {**nothing, "segments": [], "windows": []}
    assert not list(classify.stream([samples], segments="speech"))
    with pytest.raises(ValueError, match="empty"):
        classify(samples[:0], segments="speech")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "words"}, "segments is 'words'; it must be 'speech' or a list of turns"),
        ({"segments": 3}, "segments is 3"),
        ({"segments": [(2.0, 1.0)]}, r"a turn is from 2\.0 to 1\.0 s; it must end after it begins"),
        ({"segments": [(-1.0, 1.0)]}, r"a turn is from -1\.0 to 1\.0 s"),
        ({"segments": [(0.0, float("nan"))]}, "a turn is from 0.0 to nan s"),
        ({"segments": [("0", "1")]}, "a turn is from '0' to '1' s"),
        ({"segments": [(0.0,)]}, r"a turn is \(0\.0,\); start, end and maybe speaker and channel are needed"),
        ({"segments": [{"start": 0, "stop": 1}]}, "'stop': 1"),
        ({"segments": [(0.0, 1.0, 7)]}, "the turn at 0 s has the speaker 7; a name is needed"),
        ({"segments": [(0.0, 1.0, None, 0)]}, "the turn at 0 s has the channel 0; they count from 1"),
        ({"segments": [(0.0, 1.0), (12.3, 13.0)]}, r"a turn begins at 12\.3 s; the audio ends at 12\.30 s"),
        ({"least_seconds": -1}, "least_seconds is -1"),
        ({"least_probability": "half"}, "least_probability is 'half'"),
    ],
)
def test_bad_turns_are_refused(classify, noise, options, message):
    with pytest.raises(ValueError, match=message):
        classify(noise, **options)


def test_files_are_cut_by_turns_of_their_own(clips, classifier_folder):
    """b.wav is 5.2 s long; what is wrong with the turns of a file is that file's fault alone."""
    turns = {"clips/b.wav": [Turn(3.0, 4.0, "B"), Turn(0.0, 2.0, "A")], "-": [Turn(9.0, 9.5)]}
    options = Options(segments=lambda name: turns[name if name in turns else "-"])
    pipeline = open_pipeline(classifier_folder, options)
    seconds: list[float] = []
    (recording, result), (_, error) = classify_files(
        pipeline, ["clips/b.wav", "clips/a.flac"], options, on_progress=seconds.append
    )
    assert [segment["speaker"] for segment in result["segments"]] == ["A", "B"]
    assert agree(result["segments"][0], pipeline({"array": read_audio("clips/b.wav")[:32_000], "sampling_rate": RATE}))
    assert isinstance(error, ValueError) and "a turn begins at 9 s" in str(error)
    assert sum(seconds) == pytest.approx(recording.heard.seconds)
    with pytest.raises(ValueError, match="give one"):
        open_pipeline(classifier_folder, Options(vad=True, segments="speech"))


def test_a_folder_finds_speech_without_the_package(tmp_path, model_folder, spoken):
    np.save(tmp_path / "audio.npy", with_pauses(spoken[:2]))
    found = run_without_package(
        tmp_path,
        """
        import json, numpy
        from transformers import pipeline
        classify = pipeline("speech-emotion-recognition", model="model", trust_remote_code=True)
        audio = {"array": numpy.stack([numpy.load("audio.npy")] * 2), "sampling_rate": 16_000}
        print(json.dumps(classify(audio, segments="speech", channels="each")))
        """,
    )
    assert [len(channel["segments"]) for channel in found["channels"]] == [2, 2]
    assert (ROOT / "segments_exhubert.py").read_bytes() == (model_folder / "segments_exhubert.py").read_bytes()
