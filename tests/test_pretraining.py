"""`pretrain_hf.py`: masks, loss, targets, a run and what it leaves, probes, wrong input.

python -m pytest tests/test_pretraining.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from scipy.fft import dct
from transformers import HubertConfig, HubertModel, WhisperConfig
from unlabelled import recipe_in, write_talk

import pretrain_hf
import train_hf
from conftest import refused, write_corpus
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, prepare_input
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.training.audio_pool import LONGEST_CLIP_SECONDS, hold_out, read_pool
from exhubert.training.masked_prediction import (
    HubertForMaskedPrediction,
    MaskedPredictionCollator,
    clip_statistics,
    count_hits,
    load_encoder,
    make_model,
    masked_prediction_loss,
    read_start,
)
from exhubert.training.pretraining_recipe import PretrainingRecipe, parse_pretraining
from exhubert.training.round_robin import Draw, MultiCorpus
from exhubert.training.targets import find_targets, frame_count, hidden_states_of, load_targets, mfcc_with_deltas
from small_models import LARGE, STANDARD_CNN

FRAME = 320  # samples
WINDOW = 1.0  # seconds
MASKS = {"mask_share": 0.08, "mask_length": 4}


def masked_config(**changes: object) -> ExHuBERTConfig:
    recipe = PretrainingRecipe(window_seconds=WINDOW, clusters=8, **MASKS)
    return make_model(recipe, HubertConfig(**{**LARGE, **changes}), None).config


def write_clips(folder: Path, seconds: list[float]) -> Path:
    """Writes 16 kHz clips whose samples say where they lie: sample n is n / 100,000."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(seconds):
        ramp = np.arange(round(16_000 * length)) / 100_000
        soundfile.write(folder / f"{number}.wav", ramp, 16_000, subtype="FLOAT")
    return folder


@pytest.fixture
def rows(tmp_path):
    """Training rows of clips shorter and longer than the window, each in several passes; targets are frame numbers."""
    config = masked_config()
    pool = read_pool([str(write_clips(tmp_path / "clips", [0.4, 0.73, 1.0, 2.5, 3.21]))])
    samples = np.round(16_000 * pool.table["duration_seconds"].to_numpy()).astype(int)
    targets = [np.arange(frame_count(count, config), dtype=np.int16) for count in samples]
    data = MultiCorpus([pool], 7, [targets])
    return config, [data[Draw(0, pass_, clip)] for pass_ in range(40) for clip in range(len(pool))]


def collate(config: ExHuBERTConfig, rows: list) -> dict:
    return MaskedPredictionCollator(ExHuBERTFeatureExtractor(WINDOW), config)(rows)


def test_masks_are_those_of_a_plain_reference(rows):
    """Starts are drawn without replacement, a share of the frames, rounded at random; spans may overlap."""
    config, rows = rows
    batch = collate(config, rows)
    begun = frames_in_all = 0
    for row, mask in zip(rows, batch["mask_time_indices"].numpy(), strict=True):
        frames = min(len(row["target"]), frame_count(16_000, config))
        draw = np.random.RandomState(row["time_mask_seed"])
        spans = max(2, int(MASKS["mask_share"] * frames + draw.rand(1).item()))
        starts = draw.choice(np.arange(frames - MASKS["mask_length"] + 1), spans, replace=False)
        expected = np.zeros(len(mask), dtype=bool)
        for start in starts:
            expected[start : start + MASKS["mask_length"]] = True
        assert (mask == expected).all()
        assert not mask[frames:].any()  # padding
        if frames > 40:
            begun, frames_in_all = begun + spans, frames_in_all + frames
    assert begun / frames_in_all == pytest.approx(MASKS["mask_share"], rel=0.05)


def test_a_batch_is_a_pure_function_of_seed_pass_and_clip(rows):
    config, rows = rows
    whole = collate(config, rows[:10])
    np.random.seed(3)
    for number, row in enumerate(rows[:10]):
        alone = collate(config, [row])
        for name in ("input_values", "mask_time_indices", "labels", "unmasked_labels"):
            assert torch.equal(alone[name][0], whole[name][number])
    masks = whole["mask_time_indices"]
    assert not torch.equal(masks[3], masks[8])  # the same clip in another pass


def test_targets_line_up_with_the_samples_of_a_crop(rows):
    """A frame's target is its number in the clip, and a sample says where it lies in it."""
    config, rows = rows
    batch = collate(config, rows)
    collator = MaskedPredictionCollator(ExHuBERTFeatureExtractor(WINDOW), config)
    begins = set()
    for number, row in enumerate(rows):
        samples, targets = collator.cut(row)
        (first,) = np.round(samples[:1] * 100_000).astype(int)
        assert first == FRAME * int(targets[0])
        assert len(targets) == frame_count(len(samples), config)
        begins.add((row["file_name"], first))
        labels, others = batch["labels"][number], batch["unmasked_labels"][number]
        together = torch.where(labels >= 0, labels, others)
        assert together[: len(targets)].tolist() == targets.tolist()
        assert ((labels >= 0) == batch["mask_time_indices"][number])[: len(targets)].all()
        assert (together[len(targets) :] == -100).all()  # padding has no loss, and is not counted
        padded = np.pad(samples, (0, 16_000 - len(samples)))
        assert np.array_equal(batch["input_values"][number], prepare_input(padded, None))  # as fine-tuning hears it
    assert len(begins) > 60  # crops differ


def kaldi_mfcc(frame: np.ndarray) -> np.ndarray:
    """Kaldi's formula for one window of 400 samples at 16 kHz: 23 mel bands, 13 coefficients, lifter 22, C0."""
    frame = frame - frame.mean()
    frame = np.append(frame[0] * (1 - 0.97), frame[1:] - 0.97 * frame[:-1])
    frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frame, 512)) ** 2

    def mel(hertz):
        return 1127 * np.log(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(20), mel(8000), 25)
    bins = mel(np.arange(256) * 16_000 / 512)
    bands = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        weights = np.clip(np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)), 0, None)
        bands.append(np.log(max(weights @ power[:256], np.finfo(np.float32).eps)))
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    return dct(bands, norm="ortho")[:13] * lifter


@pytest.mark.parametrize(("cnn", "offset"), [({}, 24), (STANDARD_CNN, 0)])
def test_mfcc_are_kaldis_in_the_middle_of_each_frame(cnn, offset):
    """The small CNN sees 448 samples a frame, HuBERT's own 400."""
    config = HubertConfig(**{**LARGE, **cnn})
    time = np.arange(9000) / 16_000
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(time))
    samples = (0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + noise).astype(np.float32)
    got = mfcc_with_deltas(samples, config)
    frames = HubertModel(config).feature_extractor(torch.zeros(1, len(samples))).shape[2]
    assert got.shape == (frames, 39)
    assert got.dtype == np.float32
    expected = np.stack([kaldi_mfcc(samples[offset + FRAME * t :][:400].astype(float)) for t in range(frames)])
    assert np.allclose(got[:, :13], expected, atol=2e-3)
    for column in (13, 26):  # regression over five frames, the ends repeated
        padded = np.pad(got[:, column - 13 : column], ((2, 2), (0, 0)), mode="edge")
        slopes = sum(shift * padded[2 + shift : frames + 2 + shift] for shift in range(-2, 3)) / 10
        assert np.allclose(got[:, column : column + 13], slopes, atol=1e-4)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_features_are_the_hidden_states_of_the_whole_normalised_clip(make_hubert, kind):
    folder = str(make_hubert(kind=kind, head="none"))
    samples = np.random.default_rng(0).normal(0.2, 0.3, 20_000).astype(np.float32)
    got = hidden_states_of(load_encoder(folder), 2)(samples)
    normalised = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
    with torch.no_grad():
        states = HubertModel.from_pretrained(folder).eval()(normalised, output_hidden_states=True).hidden_states
    assert np.allclose(got, states[2][0], atol=1e-4)


def test_clusters_change_where_the_sound_does(tmp_path):
    """From a low tone to a high one, at a known sample of each clip; the frames around it see both."""
    config, changes = masked_config(), [8_000, 12_345, 16_000, 20_001]
    (tmp_path / "clips").mkdir()
    noise = np.random.default_rng(0)
    for number, change in enumerate(changes):
        pitch = np.where(np.arange(24_000) < change, 200, 3000)
        tone = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.001 * noise.standard_normal(24_000)
        soundfile.write(tmp_path / "clips" / f"{number}.wav", tone, 16_000)
    pool = read_pool([str(tmp_path / "clips")])

    def features(samples):
        return mfcc_with_deltas(samples, config)[:, :13]

    targets = find_targets(pool, np.ones(4, dtype=bool), features, 2, 4, config, 0)
    assert targets.facts["left_out"] == 0
    assert targets.facts["stability"] > 0.9
    for change, found in zip(changes, targets.of_clips, strict=True):
        before, after = (change - 448) // FRAME, -(-change // FRAME)  # the last frame before it, the first one after
        assert len(set(found[: before + 1])) == len(set(found[after:])) == 1
        assert found[0] != found[-1]


def test_the_loss_is_that_of_a_plain_reference_for_one_and_two_parts(rows):
    config, rows = rows
    torch.manual_seed(0)
    model = HubertForMaskedPrediction(config).eval()
    batch = collate(config, rows[:6])
    labels = batch["labels"] % 8  # clusters, and -100 % 8 is 4
    labels[batch["labels"] < 0] = -100
    states = model.hubert(batch["input_values"], mask_time_indices=batch["mask_time_indices"]).last_hidden_state
    projected = (states @ model.final_proj.weight.T + model.final_proj.bias).detach().double().numpy()
    embeddings = model.label_embeddings.detach().double().numpy()
    lengths = np.linalg.norm(projected, axis=-1)[..., None] * np.linalg.norm(embeddings, axis=-1)
    logits = projected @ embeddings.T / lengths / 0.1
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    masked = [tuple(place) for place in np.argwhere(labels.numpy() >= 0)]
    expected = -np.mean([math.log(shares[(*place, labels[place])]) for place in masked])
    gradient = np.zeros_like(shares)
    for place in masked:
        gradient[place] = shares[place] / len(masked)
        gradient[(*place, int(labels[place]))] -= 1 / len(masked)

    outputs = model(batch["input_values"], batch["mask_time_indices"])["logits"].detach()
    assert np.allclose(outputs, logits, atol=1e-4)
    for parts in (1, 2):
        given = outputs.clone().requires_grad_()
        losses = [
            masked_prediction_loss({"logits": part}, of_part, torch.tensor(len(masked)))
            for part, of_part in zip(given.chunk(parts), labels.chunk(parts), strict=True)
        ]
        sum(losses).backward()
        assert sum(losses).item() == pytest.approx(expected, abs=1e-5)
        assert np.allclose(given.grad, gradient, atol=1e-6)
    assert float(masked_prediction_loss({"logits": outputs}, labels)) == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished run, which is only looked at, in `run`."""
    directory = write_talk(tmp_path_factory.mktemp("trained"), clips=24)
    training = {"learning_rate": 1.0e-2, "report_to": "none", "use_cpu": True, "logging_steps": 10, "eval_steps": 20}
    training["warmup_steps"] = 10
    recipe = recipe_in(directory, updates=60, batch_size=8, training=training)
    assert pretrain_hf.main([recipe]) == 0
    return directory


def test_a_run_learns_and_leaves_what_it_says(trained):
    state = json.loads((trained / "run/checkpoints/checkpoint-60/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "loss" in entry]
    seen = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert [entry["step"] for entry in seen] == [20, 40, 60]
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert seen[-1]["eval_loss"] < seen[0]["eval_loss"]
    assert logged[-1]["accuracy_masked"] > 3 / 6  # chance is a sixth
    assert logged[-1]["accuracy_unmasked"] > 3 / 6
    results = json.loads((trained / "run" / "results.json").read_text())
    assert results["validation"]["accuracy_masked"] == pytest.approx(seen[-1]["eval_accuracy_masked"])
    assert 1 < results["targets"]["perplexity"] <= 6
    assert 0 < results["targets"]["stability"] <= 1
    assert results["audio"] == {"clips": 24, "hours": pytest.approx(206_800 / 16_000 / 3600), "validation_clips": 1}
    names = {path.name for path in (trained / "run").iterdir()}
    assert names >= {
        "recipe.yaml",
        "environment.json",
        "checkpoints",
        "model",
        "curves.png",
        "results.json",
        "targets.npz",
    }


def test_the_result_is_an_ordinary_hubert(trained, tmp_path):
    folder = trained / "run" / "model"
    model, report = HubertModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("hubert", ["HubertModel"])
    assert config["mask_time_prob"] == HubertConfig().mask_time_prob  # of fine-tuning, not the recipe's
    assert (folder / "README.md").is_file() and (folder / "preprocessor_config.json").is_file()
    checkpoint = HubertForMaskedPrediction.from_pretrained(trained / "run/checkpoints/checkpoint-60").eval()
    samples = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(samples).last_hidden_state, checkpoint.hubert(samples).last_hidden_state)

    corpus = write_corpus(tmp_path / "corpus")
    options = ["--model", folder, "--expand_copies", "1", "--corpora", corpus, "--output", tmp_path / "tuned"]
    tuning = {"rounds": 1, "batch_size": 2, "window_seconds": 0.5, "training": {"report_to": "none", "use_cpu": True}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(tuning), encoding="utf-8")
    assert train_hf.main([str(tmp_path / "tune.yaml"), *map(str, options)]) == 0


def test_a_second_iteration_predicts_clusters_of_the_first_models_features(trained, tmp_path, capsys):
    first = trained / "run" / "model"
    recipe = recipe_in(write_talk(tmp_path), targets="features", target_model=str(first), target_layer=2)
    given = [recipe, "--freeze", "feature_encoder", "--model", str(first), "--updates", "2"]
    assert pretrain_hf.main(given) == 0
    assert f"clustering hidden_states[2] of {first}" in capsys.readouterr().out
    before, after = (HubertModel.from_pretrained(each).state_dict() for each in (first, tmp_path / "run" / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("feature_extractor.") for name in changed)
    assert "masked_spec_embed" in changed
    settings = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert settings["target_model"] == str(first)
    facts = load_targets(tmp_path / "run" / "targets.npz", "another key")
    assert facts is None


def test_a_trained_hubert_goes_on_with_clusters_of_its_own_features(tmp_path, make_hubert):
    """Of one without a vector for masked frames, which the result does not have either; probed against both starts."""
    start = str(make_hubert(head="none", mask_time_prob=0.0, layerdrop=0.1))
    write_corpus(tmp_path / "acted")
    recipe = recipe_in(tmp_path, model=start, corpora=["acted"], targets="features", target_layer=1, updates=1)
    assert pretrain_hf.main([recipe, "--probe_corpora", "acted"]) == 0
    model, report = HubertModel.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not any(report.values())
    assert (model.config.mask_time_prob, model.config.layerdrop) == (0.0, 0.1)
    assert "masked_spec_embed" not in model.state_dict()
    found = json.loads((tmp_path / "run" / "results.json").read_text())["probe"]
    assert [pair["models"] for pair in found["comparison"]] == [
        ["random", "start"],
        ["random", "pre-trained"],
        ["start", "pre-trained"],
    ]


@pytest.mark.parametrize("name", ["first", "second", "continued"])
def test_every_recipe_trains_at_tiny_size(trained, tmp_path, name):
    recipe_in(write_talk(tmp_path))
    start = trained / "run" / "model" if name == "continued" else tmp_path / "shape.yaml"
    given = ["--model", start, "--corpora", tmp_path / "talk", "--output", tmp_path / "run", "--clusters", 4]
    given += ["--updates", 1, "--batch_size", 2, "--window_seconds", 0.6, "--report_to", "none", "--use_cpu"]
    if name != "first":
        given += ["--target_model", trained / "run" / "model", "--target_layer", 2]
    assert pretrain_hf.main([str(each) for each in (f"pretraining/{name}.yaml", *given)]) == 0
    settings = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    optimiser = {"adam_beta2": 0.98, "weight_decay": 0.01, "lr_scheduler_type": "linear", "warmup_steps": 0.08}
    assert settings["training"].items() >= optimiser.items()
    assert settings["training"]["learning_rate"] == (5.0e-5 if name == "continued" else 5.0e-4)
    assert settings["targets"] == ("mfcc" if name == "first" else "features")


def test_the_shipped_shape_is_hubert_base():
    recipe, _, _ = parse_pretraining(["pretraining/first.yaml", "--use_cpu"])
    config, random = read_start(recipe)
    with torch.device("meta"):
        assert HubertModel(config).num_parameters() == 94_371_712  # as facebook/hubert-base-ls960
    assert random


def test_an_update_waits_for_no_value_of_a_gpu():
    """On the meta device, where there are none."""
    model = HubertForMaskedPrediction(masked_config()).train().to("meta")
    with torch.device("meta"):
        labels = torch.zeros(2, 24, dtype=torch.long)
        logits = model(torch.zeros(2, 8000), labels == 1)["logits"]
        masked_prediction_loss({"logits": logits}, labels, torch.tensor(9)).backward()
        assert count_hits(logits, labels, labels).shape == (2, 4)
        assert clip_statistics((logits,), (labels, labels)).shape == (2, 5 + 2 * 8)


def test_probes_compare_the_model_with_random_weights(trained, tmp_path, capsys):
    """Of a finished run, too; clips of every speaker are tested once."""
    write_corpus(tmp_path / "acted", speakers=tuple("abcdef"))
    recipe = recipe_in(write_talk(tmp_path), updates=1)
    assert pretrain_hf.main([recipe]) == 0
    assert pretrain_hf.main([recipe, "--resume", "--probe_corpora", "acted"]) == 0
    assert "| acted  |   33.3 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "results.json").read_text())["probe"]
    assert found["protocols"] == {"acted": "speaker_folds:3"}
    for system in ("random", "pre-trained"):
        scores = found["systems"][system]["acted"]
        assert (scores["clips"], scores["speakers"], scores["interval_by"]) == (36, 6, "speaker")
        low, high = scores["uar_interval"]
        assert low <= scores["uar"] <= high
        assert len(found["choices"][system]["acted"]) == 3
    (pair,) = found["comparison"]
    assert pair["models"] == ["random", "pre-trained"]
    difference = found["systems"]["pre-trained"]["acted"]["uar"] - found["systems"]["random"]["acted"]["uar"]
    assert pair["corpora"]["acted"]["difference"] == pytest.approx(difference)
    assert (tmp_path / "run" / "probe.png").is_file()


def test_long_recordings_are_cut_and_whole_speakers_held_out(tmp_path):
    pool = read_pool([str(write_clips(tmp_path / "long", [40.0, 2.0]))])
    assert pool.table["duration_seconds"].tolist() == pytest.approx([40 / 3] * 3 + [2.0])
    assert pool.table["start_seconds"].tolist() == pytest.approx([0, 40 / 3, 80 / 3, 0])
    assert pool.table["duration_seconds"].max() <= LONGEST_CLIP_SECONDS
    held = hold_out(pool)
    assert held.sum() in (1, 3)  # all parts of a file
    write_corpus(tmp_path / "acted", speakers=tuple("abcdefghijkl"))
    (tmp_path / "acted" / "metadata.csv").write_text(
        "\n".join(
            ",".join(line.split(",")[::2])  # file_name and speaker, no labels
            for line in (tmp_path / "acted" / "metadata.csv").read_text().splitlines()
        )
    )
    pool = read_pool(["acted"], str(tmp_path))
    speakers = pool.table["speaker"].to_numpy()
    held = hold_out(pool)
    assert len(pool) == 72 and held.sum() == 6
    assert not set(speakers[held]) & set(speakers[~held])
    assert hold_out(pool.select(range(72))).tolist() == held.tolist()


def test_clips_that_cannot_be_used_are_left_out_and_counted(tmp_path, capsys):
    recipe = recipe_in(write_talk(tmp_path), updates=1)
    soundfile.write(tmp_path / "talk" / "a_short.wav", np.full(900, 0.1), 16_000)
    soundfile.write(tmp_path / "talk" / "b_silent.wav", np.zeros(16_000), 16_000)
    assert pretrain_hf.main([recipe]) == 0
    said = capsys.readouterr().out
    assert "left out: 2 of 14 clips; the first: talk/a_short.wav has 0.06 s, less than one masked span" in said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["targets"]["left_out"] == 2


def spoil_audio(directory: Path, samples: np.ndarray) -> None:
    for path in (directory / "talk").rglob("*.flac"):
        soundfile.write(path, samples, 16_000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--clusters", "600"], "clusters is 600, and the clips have 4"),
        (["--clusters", "1"], "clusters is 1; it must be from 2 to 32,767"),
        (["--clustres", "5"], "unknown option 'clustres'; the nearest is 'clusters'"),
        (["--rounds", "5"], "unknown option 'rounds'"),
        (["--max_steps", "5"], "max_steps follows from the recipe; set `updates` instead"),
        (["--mask_length", "50"], "mask_length is 50, but the window of 0.6 s has 29 frames; give a shorter"),
        (["--mask_share", "0"], "mask_share is 0.0; it must be above 0, and at most 1"),
        (["--targets", "features"], "targets are features, and `model` has none yet; give target_model"),
        (["--target_model", "x"], "target_model is 'x', but targets are mfcc; set `targets: features`"),
        (["--model", "nowhere.yaml"], "model: nowhere.yaml: no such file"),
        (["--model", "nowhere/hubert"], "nowhere/hubert: no such folder"),
        (["--freeze", "originals"], "freeze names 'originals'; the parts are feature_encoder"),
        (["--corpora", "empty"], "empty: no audio files in this folder"),
        (["--corpora", "missing"], "missing: no such corpus folder"),
        (["--load_best_model_at_end", "true"], "load_best_model_at_end has no use in pre-training; leave it out"),
        (["--probe_corpora", "talk"], "talk: no metadata.csv"),
        (["--probe_corpora", "angry"], "corpus 'angry': all training clips of a probe are of one class"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, capsys, options, expected):
    recipe = recipe_in(write_talk(tmp_path))
    (tmp_path / "empty").mkdir()
    write_corpus(tmp_path / "angry", labels=("anger",))
    assert expected in refused(capsys, pretrain_hf.main, recipe, *options)


def test_audio_and_models_that_are_refused_in_one_line(tmp_path, capsys, make_hubert):
    recipe = recipe_in(write_talk(tmp_path))
    WhisperConfig().save_pretrained(tmp_path / "whisper")
    line = refused(capsys, pretrain_hf.main, recipe, "--model", tmp_path / "whisper")
    assert line.endswith("whisper: model_type is 'whisper'; pre-training needs a 'hubert'")
    other = make_hubert(head="none", conv_stride=(8, 4, 5))
    given = ["--targets", "features", "--target_model", other, "--target_layer"]
    assert "makes frames of 264 samples every 160, and" in refused(capsys, pretrain_hf.main, recipe, *given, 1)
    assert "target_layer is 9;" in refused(capsys, pretrain_hf.main, recipe, *given, 9)
    (tmp_path / "bad.yaml").write_text("hiden_size: 32", encoding="utf-8")
    line = refused(capsys, pretrain_hf.main, recipe, "--model", tmp_path / "bad.yaml")
    assert line.endswith("HubertConfig has no field 'hiden_size'; the nearest is 'hidden_size'")
    spoil_audio(tmp_path, np.zeros(16_000))
    assert "none of 11 clips can be used: talk/" in refused(capsys, pretrain_hf.main, recipe)
    (tmp_path / "talk" / "broken.wav").write_text("no audio")
    line = refused(capsys, pretrain_hf.main, recipe, "--output", tmp_path / "other")
    assert "broken.wav" in line and line.endswith("set skip_bad_audio to leave such clips out")
    one = write_clips(tmp_path / "one", [1.0])
    assert "at least two audio files" in refused(capsys, pretrain_hf.main, recipe, "--corpora", one, "--output", "new")
