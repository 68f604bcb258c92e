"""The synthetic corpora of the demo: folder contract, same seed same bytes, caching, audible rules.

pytest tests/test_synthetic_speech.py
"""

import csv
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

SCRIPT = Path(__file__).parents[1] / "demo" / "synthetic_speech.py"
SPEC = importlib.util.spec_from_file_location("synthetic_speech", SCRIPT)
synthetic_speech = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = synthetic_speech  # dataclasses look their module up
SPEC.loader.exec_module(synthetic_speech)

CLIPS = 48  # one or two of every speaker and label


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    return synthetic_speech.make_corpora(tmp_path_factory.mktemp("corpora"), CLIPS)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def median_pitch(samples: np.ndarray) -> float:
    """Median F0 in Hz over the loud 40 ms frames, from the peak of the autocorrelation."""
    size, pitches = 640, []
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start : start + size]
        if np.std(frame) > 0.5 * np.std(samples):
            spectrum = np.abs(np.fft.rfft(frame * np.hanning(size), 2 * size)) ** 2
            lags = np.fft.irfft(spectrum)[16_000 // 400 : 16_000 // 60]
            pitches.append(16_000 / (16_000 // 400 + np.argmax(lags)))
    return float(np.median(pitches))


def spectral_centroid(samples: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(power @ np.fft.rfftfreq(len(samples), 1 / 16_000) / power.sum())


def mean_of(measure, folder: Path, label: str, speaker: str) -> float:
    chosen = [row for row in rows(folder) if (row["label"], row["speaker"]) == (label, speaker)]
    return float(np.mean([measure(soundfile.read(folder / row["file_name"])[0]) for row in chosen]))


@pytest.mark.parametrize("corpus", synthetic_speech.CORPORA, ids=lambda corpus: corpus.name)
def test_folder_contract(corpora, corpus):
    folder = corpora[synthetic_speech.CORPORA.index(corpus)]
    table = rows(folder)
    assert folder.name == corpus.name
    assert list(table[0]) == ["file_name", "label", "speaker", "language"]
    assert len(table) == CLIPS
    assert {row["file_name"] for row in table} == {f"audio/{p.name}" for p in (folder / "audio").iterdir()}
    assert {row["language"] for row in table} == {corpus.language}
    assert len({row["speaker"] for row in table}) == len(corpus.variants)
    per_label = Counter(row["label"] for row in table)
    assert set(per_label) == set(corpus.labels) <= set(synthetic_speech.RULES)
    assert max(per_label.values()) - min(per_label.values()) <= 1
    assert len({(row["speaker"], row["label"]) for row in table}) == len(corpus.variants) * len(corpus.labels)
    for row in table:
        info = soundfile.info(folder / row["file_name"])
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 0.6 < info.duration < 4.5
    assert "synthetic" in (folder / "README.md").read_text(encoding="utf-8")


def test_most_clips_last_one_to_three_and_a_half_seconds(corpora):
    seconds = [soundfile.info(wav).duration for folder in corpora for wav in (folder / "audio").iterdir()]
    assert np.mean([1.0 <= value <= 3.5 for value in seconds]) > 0.9


def test_speakers_are_in_one_corpus_only(corpora):
    speakers = [{row["speaker"] for row in rows(folder)} for folder in corpora]
    assert len(set.union(*speakers)) == sum(map(len, speakers))
    variants = [variant for corpus in synthetic_speech.CORPORA for variant in corpus.variants]
    assert len(set(variants)) == len(variants)


def test_same_seed_same_bytes_in_this_process_and_a_fresh_one(corpora, tmp_path):
    expected = contents(corpora[0].parent)
    synthetic_speech.make_corpora(tmp_path / "here", CLIPS)
    assert contents(tmp_path / "here") == expected
    command = [sys.executable, str(SCRIPT), str(tmp_path / "fresh"), "--clips-per-corpus", str(CLIPS)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert contents(tmp_path / "fresh") == expected
    assert printed.splitlines()[0] == (
        f"{tmp_path / 'fresh' / 'synthetic_english'}: {CLIPS} clips, 8 speakers, "
        "labels neutral, happiness, sadness, anger, fear"
    )


def test_complete_folder_is_kept_and_other_parameters_remake_it(corpora, tmp_path):
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    shutil.copytree(corpora[0].parent, tmp_path, dirs_exist_ok=True)
    before, audio = stamps(), contents(tmp_path)
    folders = synthetic_speech.make_corpora(tmp_path, CLIPS)
    assert [folder.name for folder in folders] == [folder.name for folder in corpora]
    assert stamps() == before
    synthetic_speech.make_corpora(tmp_path, CLIPS, seed=1)
    after = contents(tmp_path)
    assert after.keys() == audio.keys()
    assert all(after[name] != audio[name] for name in audio if name.endswith(".wav"))
    assert len(list(tmp_path.iterdir())) == 3


def test_remaking_one_corpus_gives_the_same_bytes(corpora, tmp_path):
    shutil.copytree(corpora[0].parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / corpora[1].name)
    synthetic_speech.make_corpora(tmp_path, CLIPS)
    assert contents(tmp_path) == contents(corpora[0].parent)


@pytest.mark.parametrize("complete_before", [False, True])
def test_an_interrupted_run_leaves_no_half_folder(corpora, tmp_path, monkeypatch, complete_before):
    if complete_before:
        shutil.copytree(corpora[0].parent, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    write, calls = soundfile.write, []

    def failing_write(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 10:
            raise OSError("disk full")
        write(*arguments, **options)

    monkeypatch.setattr(synthetic_speech.soundfile, "write", failing_write)
    with pytest.raises(OSError, match="disk full"):
        synthetic_speech.make_corpora(tmp_path, CLIPS, seed=1)
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == (3 if complete_before else 0)


def test_the_rules_can_be_heard(corpora):
    for folder in corpora:
        speakers = sorted({row["speaker"] for row in rows(folder)})

        def of(measure, label, folder=folder, speakers=speakers):
            return np.array([mean_of(measure, folder, label, speaker) for speaker in speakers])

        assert all(of(spectral_centroid, "anger") > 2 * of(spectral_centroid, "sadness"))
        assert of(len, "sadness").mean() > 1.4 * of(len, "anger").mean()
        assert of(median_pitch, "anger").mean() > 1.2 * of(median_pitch, "sadness").mean()
        assert of(median_pitch, "happiness").mean() > 1.2 * of(median_pitch, "neutral").mean()


def test_every_voice_and_language_sounds_different():
    espeak = synthetic_speech._Espeak()
    corpora = synthetic_speech.CORPORA
    voices = [f"{corpus.voice}+{variant}" for corpus in corpora for variant in corpus.variants]
    voices += ["de+m1", "pl+m1", "de+f1"]
    spoken = {voice: espeak.say("Information", voice, synthetic_speech.Prosody()) for voice in voices}
    assert len({samples.tobytes() for samples in spoken.values()}) == len(voices)
    assert median_pitch(spoken["de+f1"]) > 1.4 * median_pitch(spoken["de+m1"])


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("de+nobody", r"eSpeak NG has no voice 'de\+nobody'"),
        ("xx+m1", r"eSpeak NG cannot load the language of 'xx\+m1'"),
    ],
)
def test_a_voice_that_does_not_exist_is_named(voice, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        synthetic_speech._Espeak().say("Information", voice, synthetic_speech.Prosody())


def test_no_audio_is_an_error():
    with pytest.raises(RuntimeError, match="gave no audio for ''"):
        synthetic_speech._Espeak().say("", "de+m1", synthetic_speech.Prosody())


def test_too_few_clips_say_how_many_are_needed(tmp_path):
    with pytest.raises(ValueError, match=r"3 clips cannot cover .* give 48 or more"):
        synthetic_speech.make_corpora(tmp_path, 3)


def test_a_folder_of_someone_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "synthetic_english").mkdir()
    with pytest.raises(SystemExit) as stopped:
        synthetic_speech.main([str(tmp_path)])
    assert stopped.value.code == 1
    assert "is not ours to replace" in capsys.readouterr().err
    assert os.listdir(tmp_path / "synthetic_english") == []


def test_without_espeak_the_remedy_is_named(tmp_path, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'exhubert\[demo\]'"):
        synthetic_speech.make_corpora(tmp_path)
    assert list(tmp_path.iterdir()) == []
