"""The cache of a frozen CNN's output: what training computes from it, what it holds, who shares it, what is refused.

python -m pytest tests/test_frame_cache.py
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import train_hf
from conftest import refused, write_corpus
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, prepare_input, read_audio
from exhubert.corpora.readers import read_corpus
from exhubert.training import frame_cache
from exhubert.training.collator import AudioCollator
from exhubert.training.frame_cache import make_frame_cache, take_frames
from small_models import make_model, write_model

pytestmark = pytest.mark.usefixtures("blank_pictures")
RUN = {"rounds": 4, "batch_size": 4, "window_seconds": 0.8, "freeze": ["feature_encoder"]}
# With a small epsilon AdamW makes a step of any gradient, that of rounding alone, too.
TRAINING = {"learning_rate": 1.0e-3, "adam_epsilon": 1.0e-3, "eval_steps": 2, "report_to": "none", "use_cpu": True}
CPU = torch.device("cpu")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Of clips of 0.6 and 0.7 s."""
    return write_corpus(tmp_path / "corpus", labels=("anger", "sadness"), speakers=("a", "b", "c"))


@pytest.fixture
def write_run(tmp_path, corpus):
    def write(**changes: object) -> str:
        values = {"model": str(tmp_path / "model"), "corpora": [str(corpus)], **RUN, "training": TRAINING}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
        return str(tmp_path / "recipe.yaml")

    return write


def trained(recipe: str, output: Path, *options: str) -> dict[str, torch.Tensor]:
    assert train_hf.main([recipe, "--output", str(output), *options]) == 0
    return load_file(output / "model" / "model.safetensors")


def frame_model(**changes: object):
    model = make_model(**changes)
    take_frames(model)
    return model


def cached(folder: Path, corpus: Path, window_seconds: float = 0.5, model=None, **changes: object):
    """A small model's cache of a corpus, the model, and what was said."""
    model, lines = model or frame_model(**changes), []
    extractor = ExHuBERTFeatureExtractor(window_seconds)
    found = make_frame_cache(str(folder), model, extractor, [read_corpus(corpus)], CPU, lines.append)
    return found, model, " ".join(lines)


def computed(said: str) -> int:
    return int(re.search(r": (\d+) of \d+ clips are to be computed", said)[1])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hubert", {"expand_copies": 1, "freeze": ["feature_encoder", "originals"]}),
        ("hubert", {"weighted_layer_sum": True, "lora": {"rank": 2}, "freeze": []}),
        ("hubert", {"micro_batches": 2, "fast_path": False}),
        ("wav2vec2", {"freeze": ["base"]}),
    ],
)
def test_clips_within_the_window_train_as_without_a_cache(tmp_path, make_hubert, write_run, kind, changes):
    """SpecAugment, dropout and all; and the test, which hears audio, says the same of the models."""
    write_model(kind, tmp_path / "model", make_hubert)
    recipe = write_run(**changes)
    plain = trained(recipe, tmp_path / "plain")
    kept = trained(recipe, tmp_path / "kept", "--cnn_cache", str(tmp_path / "cache"))
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert plain.keys() == kept.keys()
    assert any(not torch.equal(start[name], plain[name]) for name in start.keys() & plain.keys()) or kind == "wav2vec2"
    for name, weight in plain.items():
        assert torch.allclose(kept[name], weight, rtol=0, atol=1e-5), name
    curves = [(tmp_path / run / "curves.json").read_text() for run in ("plain", "kept")]
    assert curves[0] == curves[1]


def test_of_clips_within_the_window_the_model_says_the_same(tmp_path, corpus):
    found, model, _ = cached(tmp_path / "cache", corpus, 0.8)
    rows = [{**row, "labels": 0, "crop": 0.3} for row in read_corpus(corpus)]
    extractor = ExHuBERTFeatureExtractor(0.8)
    audio = AudioCollator(extractor)(rows)["input_values"]
    loader = DataLoader(rows, batch_size=12, collate_fn=AudioCollator(extractor, cache=found), num_workers=1)
    (frames,) = (batch["input_values"] for batch in loader)
    assert audio.shape == (12, 12_800) and frames.shape == (12, 16, found.window_frames)
    with torch.no_grad():
        assert torch.allclose(model(frames).logits, model(audio).logits, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"input_values has shape \(12, 16, 39\); \(batch, samples\) is needed"):
        make_model()(frames)  # of a model that was not asked to take them


@pytest.mark.parametrize("piece_seconds", [60.0, 0.2])
def test_a_longer_clip_is_cropped_in_frames(tmp_path, corpus, monkeypatch, piece_seconds):
    """Its frames are those of the whole clip, normalised over the clip, though it went through the CNN in pieces."""
    monkeypatch.setattr(frame_cache, "PIECE_SECONDS", piece_seconds)
    found, model, _ = cached(tmp_path / "cache", corpus)
    row = {**next(row for row in read_corpus(corpus) if row["file_name"].endswith("_1.wav")), "labels": 0}
    with torch.no_grad():
        whole = model.hubert.feature_extractor(
            torch.from_numpy(prepare_input(read_audio(row["audio"]["path"]), None)[None])
        )
    window, spare = found.window_frames, whole.shape[2] - found.window_frames
    assert spare > 5
    for crop, place, first in (
        ("random", 0.0, 0),
        ("random", 0.999, spare),
        ("random", 0.5, (spare + 1) // 2),
        ("center", 0.9, (spare + 1) // 2),
        ("start", 0.9, 0),
        ("random", None, 0),  # validation
    ):
        collator = AudioCollator(ExHuBERTFeatureExtractor(0.5), crop, cache=found)
        batch = collator([row if place is None else {**row, "crop": place}])
        assert torch.allclose(batch["input_values"], whole[:, :, first : first + window], rtol=0, atol=1e-6)


def test_a_part_of_a_file_is_a_clip_of_its_own(tmp_path, corpus):
    parts = write_corpus(
        tmp_path / "parts",
        ("anger",),
        ("a",),
        start_seconds=lambda row: str(0.1 * row),
        duration_seconds=lambda row: "0.3",
    )
    found, _, said = cached(tmp_path / "cache", parts)
    assert computed(said) == 2
    rows = list(read_corpus(parts))
    expected = AudioCollator(ExHuBERTFeatureExtractor(0.5))([{**row, "labels": 0} for row in rows])["input_values"]
    model = make_model()
    with torch.no_grad():
        expected = model.hubert.feature_extractor(expected).transpose(1, 2).numpy()
    assert np.allclose(np.stack([found.crop(row, 0.5) for row in rows]), expected, rtol=0, atol=1e-5)


def test_clips_are_known_by_what_is_in_them(tmp_path, corpus):
    """Not by their names or places; another CNN, or window, has a cache of its own in the same folder."""
    folder = tmp_path / "cache"
    assert computed(cached(folder, corpus)[2]) == 12
    moved = Path(shutil.copytree(corpus, tmp_path / "elsewhere"))
    first, second = sorted((moved / "audio").glob("*.wav"))[:2]
    first.rename(moved / "swap")
    second.rename(first)
    (moved / "swap").rename(second)
    assert computed(cached(folder, moved)[2]) == 0
    samples, rate = soundfile.read(first)
    soundfile.write(first, samples[::-1], rate)
    assert computed(cached(folder, moved)[2]) == 1
    assert computed(cached(folder, corpus, 0.6)[2]) == 12
    assert computed(cached(folder, corpus, conv_bias=False)[2]) == 12
    assert computed(cached(folder, corpus, hidden_size=16)[2]) == 12  # drawn otherwise from the same seed
    assert computed(cached(folder, corpus)[2]) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_files_are_made_anew(tmp_path, corpus, damage):
    found, _, _ = cached(tmp_path / "cache", corpus)
    row = read_corpus(corpus)[0]
    expected = found.crop(row, 0.5)
    (path,) = (tmp_path / "cache").glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-1])
    found, _, said = cached(tmp_path / "cache", corpus)
    assert f"{path} is damaged" in said and computed(said) == 12
    assert np.array_equal(found.crop(row, 0.5), expected)
    assert computed(cached(tmp_path / "cache", corpus)[2]) == 0


def test_two_runs_at_once_compute_each_clip_once(tmp_path, corpus, monkeypatch):
    clips, compute, found = [], frame_cache.compute, []

    def counted(*arguments):
        for key, frames in compute(*arguments):
            clips.append(key)
            yield key, frames

    monkeypatch.setattr(frame_cache, "compute", counted)

    def run(model) -> None:
        found.append(cached(tmp_path / "cache", corpus, model=model)[0])

    runs = [threading.Thread(target=run, args=(frame_model(),)) for _ in range(2)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert len(clips) == len(set(clips)) == 12
    row = read_corpus(corpus)[3]
    assert np.array_equal(*(each.crop(row, 0.5) for each in found))


def test_a_killed_run_leaves_whole_files_only(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(frame_cache, "FILE_BYTES", 1)  # a file for each clip

    def killed() -> None:
        torch.set_num_threads(1)  # as OpenMP's do not survive a fork
        written = []

        def save(tensors, path, *arguments):
            save_file(tensors, path, *arguments)
            written.append(path)
            if len(written) == 4:
                os.truncate(path, 100)
                os.kill(os.getpid(), signal.SIGKILL)

        frame_cache.save_file = save
        cached(tmp_path / "cache", corpus)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").glob("*/.*.safetensors*"))) == 1
    found, _, said = cached(tmp_path / "cache", corpus)
    assert computed(said) == 9
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 12
    assert not list((tmp_path / "cache").glob("*/.*"))
    whole, _, _ = cached(tmp_path / "other", corpus)
    for row in read_corpus(corpus):
        assert np.array_equal(found.crop(row, 0.5), whole.crop(row, 0.5))


def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, capsys, make_hubert, write_run):
    """With crops of longer clips, and the cache in another place."""
    write_model("hubert", tmp_path / "model", make_hubert)
    recipe = write_run(expand_copies=1, window_seconds=0.5)
    cache = ("--cnn_cache", str(tmp_path / "cache"))
    undisturbed = trained(recipe, tmp_path / "undisturbed", *cache)
    trained(recipe, tmp_path / "resumed", *cache, "--rounds", "2")
    (tmp_path / "cache").rename(tmp_path / "moved")
    again = [recipe, "--output", str(tmp_path / "resumed"), "--resume"]
    line = refused(capsys, train_hf.main, *again)
    assert "cnn_cache is 'not in use', but the run in" in line and "began with 'in use'" in line
    resumed = trained(recipe, tmp_path / "resumed", "--resume", "--cnn_cache", str(tmp_path / "moved"))
    assert "0 of 8 clips are to be computed" in capsys.readouterr().out
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (None, {"freeze": []}, "add feature_encoder to freeze, or leave cnn_cache out"),
        (None, {"freeze": ["originals"]}, "add feature_encoder to freeze, or leave cnn_cache out"),
        (None, {"augmentation": [{"name": "Gain"}]}, "augmentation changes them; leave one of them out"),
        ("whisper", {"freeze": ["base"]}, "WhisperForAudioClassification (model_type 'whisper') has no CNN feature en"),
        ("ast", {"freeze": ["base"]}, "(model_type 'audio-spectrogram-transformer') has no CNN feature encoder"),
        ("bert", {"freeze": ["base"]}, "(model_type 'wav2vec2-bert') has no CNN feature encoder"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, capsys, make_hubert, write_run, kind, changes, message):
    if kind:
        write_model(kind, tmp_path / "model", make_hubert)
    if "augmentation" in changes:
        pytest.importorskip("audiomentations", reason="the extra `augment`")
    recipe = write_run(**{"window_seconds": 0.5, **changes})
    line = refused(capsys, train_hf.main, recipe, "--output", tmp_path / "run", "--cnn_cache", tmp_path / "cache")
    assert message in line
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_what_is_wrong_with_folder_disk_or_audio_ends_in_one_line(
    tmp_path, capsys, monkeypatch, corpus, make_hubert, write_run
):
    write_model("hubert", tmp_path / "model", make_hubert)
    run = [write_run(), "--output", tmp_path / "run", "--cnn_cache"]
    assert "could not be written" in refused(capsys, train_hf.main, *run, tmp_path / "recipe.yaml")
    path = next((corpus / "audio").glob("*.wav"))
    content = path.read_bytes()
    soundfile.write(path, np.full(8000, np.nan), 16_000, subtype="FLOAT")
    assert f"{path.name}: the audio holds NaN or infinite" in refused(capsys, train_hf.main, *run, tmp_path / "cache")
    path.write_bytes(content)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 25_000_000, 25_000_000))
    monkeypatch.setattr(frame_cache, "FLOAT32_BYTES", 40_000)
    line = refused(capsys, train_hf.main, *run, tmp_path / "cache")
    assert re.search(r"cnn_cache: .*cache.* needs 0.\d+ GB more, and 0.025 GB are free there; make room", line)
    assert not (tmp_path / "run").exists()
