"""What makes batches: crops, augmentation, each model's input, the same in any worker, in bounded memory.

python -m pytest tests/test_collator.py
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch.utils.data import BatchSampler, DataLoader
from transformers import WhisperConfig

from exhubert import ExHuBERTConfig
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, prepare_input, read_audio
from exhubert.corpora.load import load_corpora
from exhubert.model_folder.load import make_feature_extractor
from exhubert.training.arguments import Recipe, parse
from exhubert.training.augmentation import Augmentation
from exhubert.training.collator import AudioCollator
from exhubert.training.round_robin import Draw, MultiCorpus, RoundRobinSampler


@pytest.fixture
def ramp(tmp_path):
    """A file of 10 s whose samples say when they are: 0.09 for each second."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 160_000), 16_000, subtype="FLOAT")
    return {"audio": {"path": str(path), "bytes": None}, "labels": 1, "file_name": "ramp.wav"}


def test_a_random_crop_stays_inside_its_segment(ramp):
    segment = {**ramp, "start_seconds": 4.0, "duration_seconds": 2.5}
    dataset = MultiCorpus([[ramp, segment]], seed=3)
    heard = {0: [], 1: []}
    collator = AudioCollator(ExHuBERTFeatureExtractor(1.0))
    for pass_ in range(40):
        for clip in heard:
            samples = collator.samples(dataset[Draw(0, pass_, clip)])
            heard[clip] += [samples[0] / 0.09, samples[-1] / 0.09]
            assert len(samples) == 16_000
    assert 0 <= min(heard[0]) < 1 and 9 < max(heard[0]) <= 10.001
    assert 3.999 <= min(heard[1]) < 4.3 and 6.2 < max(heard[1]) <= 6.501


def test_augmentation_is_off_without_a_word_and_in_evaluation(ramp):
    plain = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop="start")([ramp])["input_values"][0]
    loud = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop="start", augment=lambda samples, seed: samples * 0 + seed)
    assert np.allclose(loud([ramp])["input_values"][0], plain)
    assert np.allclose(plain, prepare_input(read_audio(ramp["audio"]["path"], 0.0, 1.0), 1.0))
    assert Recipe().augmentation == []


NOISE = [{"name": "AddGaussianSNR", "p": 0.5, "min_snr_db": 5.0, "max_snr_db": 20.0}, {"name": "Gain", "p": 0.5}]


def test_augmentation_follows_from_the_seed_alone():
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    samples = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    augment = Augmentation(NOISE)
    random.seed(5)
    np.random.seed(5)
    first = [augment(samples, seed) for seed in range(20)]
    again = [Augmentation(NOISE)(samples, seed) for seed in reversed(range(20))][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 10
    assert any(np.array_equal(one, samples) for one in first)  # neither transform, at p = 0.5
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            [{"name": "AddGausianSNR"}],
            "no transform 'AddGausianSNR' in audiomentations; the nearest is 'AddGaussianSNR'",
        ),
        ([{"p": 0.5}], "a transform without a `name`"),
        ([{"name": "Gain", "min_gain": 1}], "Gain has no parameter 'min_gain'; the nearest is 'min_gain_db'"),
        ([{"name": "Gain", "p": 2.0}], "Gain with .* fails"),
        ([{"name": "AddBackgroundNoise", "sounds_path": "/nowhere", "p": 0.1}], "AddBackgroundNoise with .* fails"),
        ([{"name": "Lambda"}], "no transform 'Lambda'"),
    ],
)
def test_augmentation_that_cannot_be(write_keys, transforms, message):
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    with pytest.raises(ValueError, match=message):
        parse([write_keys(augmentation=transforms)])


def test_augmentation_on_the_command_line(write_keys):
    pytest.importorskip("audiomentations", reason="the extra `augment`")
    given = ["--augmentation", "{name: Gain, p: 1}", "{name: PolarityInversion}"]
    assert parse([write_keys(), *given])[0].augmentation == [{"name": "Gain", "p": 1}, {"name": "PolarityInversion"}]
    assert parse([write_keys(augmentation=NOISE), "--augmentation", "[]"])[0].augmentation == []


def test_augmentation_without_the_library_names_the_extra(monkeypatch, write_keys):
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(ValueError, match=r"needs the library audiomentations: .*exhubert\[augment\]"):
        parse([write_keys(augmentation=NOISE)])


def test_a_collator_gives_each_model_its_input(ramp):
    config = WhisperConfig(num_mel_bins=80, max_source_positions=1500)
    batch = AudioCollator(make_feature_extractor(config, 1.0))([ramp])
    assert batch["input_features"].shape == (1, 80, 3000)
    assert "input_values" not in batch


def test_the_mask_of_time_follows_from_the_draw_alone(ramp):
    """Not from the batch, nor from everybody's random numbers, which go on as before; evaluation has none."""
    config = ExHuBERTConfig(mask_time_prob=0.3, mask_time_length=5)
    collator = AudioCollator(ExHuBERTFeatureExtractor(1.0), time_mask=config)
    rows = [MultiCorpus([[ramp]])[Draw(0, pass_, 0)] for pass_ in range(6)]
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    together = collator(rows)["mask_time_indices"]
    assert np.random.random() == expected
    apart = [collator([row])["mask_time_indices"] for row in reversed(rows)][::-1]
    assert torch.equal(together, torch.cat(apart))
    assert (together.dtype, tuple(together.shape)) == (torch.bool, (6, 49))  # as many frames as HuBERT makes of 1 s
    assert len({mask.numpy().tobytes() for mask in together}) == 6
    assert 0.1 < together.float().mean() < 0.4
    assert "mask_time_indices" not in collator([ramp])
    assert "mask_time_indices" not in AudioCollator(ExHuBERTFeatureExtractor(1.0))(rows)


@pytest.mark.parametrize("augmented", [False, True])
def test_workers_make_the_same_batches(make_corpus, augmented):
    """Crops and augmentation do not depend on which process makes a batch, nor on what it made before."""
    if augmented:
        pytest.importorskip("audiomentations", reason="the extra `augment`")
    data = load_corpora([str(make_corpus("corpus"))])[0]["corpus"]["train"]
    collator = AudioCollator(ExHuBERTFeatureExtractor(0.3), augment=Augmentation(NOISE) if augmented else None)
    sampler = RoundRobinSampler([len(data)], 4, rounds=6)
    batches = {}
    for workers in (0, 2):
        loader = DataLoader(
            MultiCorpus([data]),
            batch_sampler=BatchSampler(sampler, 4, drop_last=False),
            collate_fn=collator,
            num_workers=workers,
        )
        batches[workers] = list(loader)
    assert len(batches[0]) == 6
    for alone, shared in zip(batches[0], batches[2], strict=True):
        assert set(alone) == {"input_values", "labels", "draws"}
        assert alone["draws"] == shared["draws"]
        assert all(torch.equal(alone[key], shared[key]) for key in ("input_values", "labels"))
    assert [draw for batch in batches[0] for draw in batch["draws"]] == list(sampler)


MEMORY = """
    import contextlib, ctypes, gc, json, sys
    import psutil
    from pathlib import Path
    from transformers import AutoModelForAudioClassification, TrainerCallback
    from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
    from exhubert.corpora.load import load_corpora
    from exhubert.training.arguments import parse
    from exhubert.training.collator import AudioCollator
    from exhubert.training.losses import ClassificationLoss
    from exhubert.training.round_robin import MultiCorpus, RoundRobinSampler
    from exhubert.training.trainer import RoundRobinTrainer

    def used():
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {"rss": psutil.Process().memory_info().rss, "objects": sys.getallocatedblocks()}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                self.early = used()

    recipe, training, _ = parse(sys.argv[1:])
    corpora, names = load_corpora(recipe.corpora)
    (splits,) = corpora.values()
    trainer = RoundRobinTrainer(
        sampler=RoundRobinSampler([len(splits["train"])], recipe.batch_size, recipe.rounds),
        collator=AudioCollator(ExHuBERTFeatureExtractor(recipe.window_seconds)),
        log_directory=Path(recipe.output),
        model=AutoModelForAudioClassification.from_pretrained(recipe.model),
        args=training,
        train_dataset=MultiCorpus([splits["train"]]),
        eval_dataset={"none": splits["validation"]},
        compute_loss_func=ClassificationLoss(names),
        callbacks=[watch := Watch()],
    )
    trainer.train()
    print(json.dumps({"clips": len(splits["train"]), "early": watch.early, "late": used()}))
"""


@pytest.mark.heavy
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path, make_hubert, rows=20_000, rounds=30):
    """20,000 rows are a table of some MB in Arrow and a permutation; a Python object a clip would be counted."""
    model, found = make_hubert(num_labels=6), {}
    for many in (200, rows):
        folder = tmp_path / f"clips{many}"
        folder.mkdir()
        soundfile.write(folder / "long.wav", np.zeros(16_000 * 41), 16_000)
        splits = ["validation", "test", *["train"] * 8]
        lines = [
            f"long.wav,{row * 0.002:.3f},0.3,{('anger', 'neutral')[row % 2]},s{row % 10},{splits[row % 10]}"
            for row in range(many)
        ]
        header = "file_name,start_seconds,duration_seconds,label,speaker,split"
        (folder / "metadata.csv").write_text("\n".join([header, *lines]))
        recipe = {"model": str(model), "corpora": [str(folder)], "output": str(tmp_path / "run"), "rounds": rounds}
        recipe |= {"batch_size": 4, "window_seconds": 0.3}
        recipe["training"] = {"report_to": "none", "disable_tqdm": True, "eval_strategy": "no", "save_strategy": "no"}
        recipe["training"] |= {"load_best_model_at_end": False}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[many] = json.loads(done.stdout.splitlines()[-1])
    assert (found[200]["clips"], found[rows]["clips"]) == (160, rows * 8 // 10)
    assert found[rows]["late"]["objects"] - found[200]["late"]["objects"] < rows / 5
    assert found[rows]["late"]["rss"] - found[200]["late"]["rss"] < 30e6
    assert found[rows]["late"]["rss"] - found[rows]["early"]["rss"] < 5e6
