"""Models that recipes name: loading, other families, freezing, parts, LoRA, and folders that load anywhere.

python -m pytest tests/test_training_models.py
"""

from __future__ import annotations

import json
import pickle
import re
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    HubertConfig,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import evaluate_hf
import train_hf
from conftest import ROOT, run_without_package
from exhubert import SIX_CLASSES
from exhubert.audio_exhubert import extract_features, prepare_input
from exhubert.model_folder import load_classifier, save_model_folder
from exhubert.model_folder.load import make_feature_extractor
from exhubert.training.arguments import Recipe
from exhubert.training.lora import load_lora_parts, save_lora_parts
from exhubert.training.models import load_model, parts_table
from small_models import write_model

pytestmark = pytest.mark.usefixtures("blank_pictures")
SIX = list(SIX_CLASSES)


@pytest.fixture
def make_model(tmp_path, make_hubert):
    """See `write_model`."""
    return lambda kind, name="source": write_model(kind, tmp_path / name, make_hubert)


def model_input(config, window_seconds: float = 3.0):
    """The name of a model's input, and what makes it of samples."""
    extractor = make_feature_extractor(config, window_seconds)
    return extractor.model_input_names[0], partial(extract_features, extractor=extractor)


# Loading -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_has_its_copies_needs_no_second_expansion(make_model):
    """A transfer recipe takes a converted published checkpoint as well as a stage-1 folder."""
    model, new = load_model(Recipe(model=str(make_model("exhubert")), expand_copies=1, freeze=["originals"]), SIX)
    assert (type(model).__name__, model.config.num_hidden_layers, new) == ("ExHuBERTForSequenceClassification", 6, [])


@pytest.mark.parametrize("kind", ["hubert", "exhubert"])
def test_the_non_frozen_model_starts_as_the_one_without_gates(make_model, samples, kind):
    source = str(make_model(kind))
    torch.manual_seed(0)
    gated, new = load_model(Recipe(model=source, expand_copies=1, gate_original_layers=True), SIX)
    torch.manual_seed(0)
    plain, _ = load_model(Recipe(model=source, expand_copies=1), SIX)
    gates = [parameter for name, parameter in gated.named_parameters() if ".identity_linear." in name]
    assert len(gates) == 6
    assert all(parameter.requires_grad for parameter in gates)
    assert not any("identity" in name for name in new)
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "identity" not in k})
    with torch.inference_mode():
        assert torch.equal(gated.eval()(samples).logits, plain.eval()(samples).logits)


def test_half_precision_checkpoints_train_in_float32(make_model):
    """openai/whisper-large-v3 is stored in float16, in which an update of 1e-5 is lost."""
    folder = make_model("whisper")
    WhisperForConditionalGeneration.from_pretrained(folder).half().save_pretrained(folder)
    model, _ = load_model(Recipe(model=str(folder)), SIX)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["hubert", "exhubert", "whisper", "xls-r", "wavlm", "emotion", "bert"])
def test_no_trainable_parameter_is_left_without_a_gradient(make_model, kind):
    """Processes would wait for it. The checkpoint's LayerDrop, which leaves layers out, is 0.9 for XLS-R."""
    model, _ = load_model(Recipe(model=str(make_model(kind))), SIX)
    name, make = model_input(model.config, 0.5)
    batch = torch.from_numpy(np.stack([make(np.random.default_rng(seed).standard_normal(8000)) for seed in (0, 1)]))
    model.train()(**{name: batch}, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_published_layout_is_not_taken_for_a_hubert(make_model):
    """transformers would drop its gates without a word."""
    folder = make_model("hubert")
    weights = load_file(folder / "model.safetensors")
    weights["hubert.encoder.layers.0.gate_bb_linear.weight"] = torch.eye(32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the published ExHuBERT's layout, use `exhubert convert published`"):
        load_model(Recipe(model=str(folder)), SIX)


@pytest.mark.parametrize("kind", ["whisper", "whisper v3", "xls-r", "wav2vec2", "wavlm", "bert"])
def test_the_encoder_comes_from_the_checkpoint(make_model, kind):
    """Only the head is new, whatever the class that wrote the checkpoint."""
    folder = make_model(kind)
    model, new = load_model(Recipe(model=str(folder)), SIX)
    assert new
    assert all(name.startswith(("projector.", "classifier.")) for name in new)
    stored = {
        name.split("encoder.", 1)[1]: value
        for name, value in load_file(folder / "model.safetensors").items()
        if "encoder.layers.0." in name and "decoder" not in name
    }
    own = {name.split("encoder.", 1)[1]: value for name, value in model.state_dict().items() if "encoder." in name}
    assert stored
    assert all(torch.equal(own[name], value) for name, value in stored.items())


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2"])
def test_other_models_train_save_and_are_evaluated(tmp_path, make_model, make_corpus, kind):
    corpus, run = make_corpus(takes=1, speakers=("a", "b", "c")), tmp_path / "run"
    arguments = ["--model", str(make_model(kind)), "--corpora", str(corpus), "--output", str(run)]
    fast = ["--rounds", "2", "--batch_size", "2", "--window_seconds", "0.5", "--report_to", "none"]
    train_hf.main([str(ROOT / "recipes" / "stage1.yaml"), *arguments, *fast])
    before = load_file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert torch.isfinite(torch.stack([value.float().sum() for value in before.values()])).all()
    model, new = load_classifier(str(run / "model"))
    assert (new, model.config.model_type) == ([], kind)


def test_whisper_is_evaluated_on_what_it_was_trained_on(tmp_path, make_model, make_corpus):
    corpus, run = make_corpus(takes=1, speakers=("a", "b", "c")), tmp_path / "run"
    arguments = ["--model", str(make_model("whisper v3")), "--corpora", str(corpus), "--output", str(run)]
    fast = ["--rounds", "1", "--batch_size", "2", "--window_seconds", "0.5", "--report_to", "none"]
    train_hf.main([str(ROOT / "recipes" / "selection" / "whisper_large_v3.yaml"), *arguments, *fast])
    evaluate_hf.main(["--model", str(run / "model"), "--corpora", str(corpus), "--output", str(tmp_path / "scores")])
    trained = json.loads((run / "results.json").read_text())["corpora"]
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["corpora"] == trained


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("wav2vec2", {"expand_copies": 1}, "expand_copies is 1, but .* is a 'wav2vec2' model; give a plain HuBERT"),
        ("emotion", {"expand_copies": 1}, "expand_copies is 1, but .* is a 'wav2vec2' model"),
        ("exhubert", {"expand_copies": 2}, "expand_copies is 2, but .* is an ExHuBERT with 1 copies"),
        ("hubert", {"gate_original_layers": True}, "gate_original_layers is for an expanded model"),
        ("whisper", {"freeze": ["feature_encoder"]}, "freeze names 'feature_encoder', which WhisperForAudio"),
        ("wavlm", {"freeze": ["originals"]}, "freeze names 'originals', which WavLMForSequenceClassification"),
        ("emotion", {"weighted_layer_sum": True}, "weighted_layer_sum is something that Wav2Vec2Emotion"),
        ("ast", {"weighted_layer_sum": True}, "weighted_layer_sum is something that AST"),
        ("wavlm", {"lora": {"rank": 2}}, "lora cannot reach WavLM's attention projections"),
        ("hubert", {"lora": {"target_modules": ["qproj"]}}, r"target_modules \['qproj'\] are no layers of Hubert"),
    ],
)
def test_what_a_model_lacks_is_said(make_model, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(Recipe(model=str(make_model(kind)), **changes), SIX)


# Freezing and parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hubert", "exhubert", "whisper", "wav2vec2", "wavlm", "emotion", "ast", "bert"])
@pytest.mark.parametrize("freeze", [[], ["base"]])
def test_the_table_of_parts_adds_up(make_model, kind, freeze):
    model, _ = load_model(Recipe(model=str(make_model(kind)), freeze=freeze), SIX)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in parts_table(model).splitlines()[2:]]
    *parts, everything = [(part, int(a.replace(",", "")), int(b.replace(",", ""))) for part, a, b in rows]
    assert everything == ("all", model.num_parameters(), model.num_parameters(only_trainable=True))
    assert sum(part[1] for part in parts) == everything[1]
    assert sum(part[2] for part in parts) == everything[2]
    if freeze:
        assert {part for part, _, trainable in parts if trainable} == {"head"}


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "wav2vec2", "emotion"])
def test_a_frozen_base_is_computed_without_a_graph(make_model, kind):
    """Else a frozen encoder costs the memory of a trained one."""
    model, _ = load_model(Recipe(model=str(make_model(kind)), freeze=["base"]), SIX)
    seen = []
    model.get_submodule(model.base_model_prefix).register_forward_hook(lambda *call: seen.append(call[-1][0]))
    model.train()(torch.randn(2, 8000))
    assert not seen[0].requires_grad


def test_the_weighted_sum_trains_its_weights_and_the_head_alone(make_model, samples):
    model, new = load_model(Recipe(model=str(make_model("hubert")), weighted_layer_sum=True, freeze=["base"]), SIX)
    model.train()(samples, labels=torch.tensor([0, 1])).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"layer_weights", "projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}
    assert model.layer_weights.shape == (4,)
    assert model.layer_weights.grad.abs().sum() > 0
    assert "layer_weights" in new


# Input ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [1.0, 3.0, 5.0])
def test_whispers_input_is_its_own_of_the_window_padded_to_30_s(mel_bins, seconds):
    name, make = model_input(WhisperConfig(num_mel_bins=mel_bins), 3.0)
    samples = np.random.default_rng(0).standard_normal(round(16_000 * seconds)).astype(np.float32)
    expected = WhisperFeatureExtractor(feature_size=mel_bins)(samples[:48_000], sampling_rate=16_000)
    assert name == "input_features"
    assert make(samples).shape == (mel_bins, 3000)
    assert np.array_equal(make(samples), expected["input_features"][0])


def test_waveform_models_get_the_normalised_window(samples):
    name, make = model_input(WavLMConfig(), 0.25)
    assert name == "input_values"
    assert np.array_equal(make(samples[0].numpy()), prepare_input(samples[0].numpy(), 0.25))


@pytest.mark.parametrize("kind", ["whisper", "ast", "bert", "wavlm"])
def test_what_the_input_makes_the_model_takes(make_model, kind):
    """Also when a worker process made it."""
    model, _ = load_model(Recipe(model=str(make_model(kind))), SIX)
    name, make = pickle.loads(pickle.dumps(model_input(model.config, 0.5)))
    batch = torch.from_numpy(np.stack([make(np.random.default_rng(0).standard_normal(5000))] * 2))
    loss = model.train()(**{name: batch}, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert batch.dtype == torch.float32
    assert torch.isfinite(loss)


def test_a_window_beyond_whispers_input_is_refused():
    with pytest.raises(ValueError, match=r"window_seconds is 31; the input of this whisper is 30 s"):
        model_input(WhisperConfig(), 31)


def test_bad_samples_are_refused_for_every_model():
    for config in (WhisperConfig(), HubertConfig()):
        with pytest.raises(ValueError, match="NaN or infinite"):
            model_input(config)[1](np.full(100, np.nan))


# W2V2 Emotion --------------------------------------------------------------------------------------------------------


def test_w2v2_emotion_keeps_its_dense_layer_and_answers_as_published(make_model, samples):
    """The published usage: mean over the frames, dense, tanh, output."""
    folder = make_model("emotion")
    stored = load_file(folder / "model.safetensors")
    model, new = load_model(Recipe(model=str(folder), freeze=["feature_encoder"]), SIX)
    assert new == ["classifier.out_proj.bias", "classifier.out_proj.weight"]
    assert model.config.problem_type is None
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items() if name not in new)
    with torch.inference_mode():
        pooled = model.eval().wav2vec2(samples).last_hidden_state.mean(dim=1)
        dense = torch.tanh(
            nn.functional.linear(pooled, stored["classifier.dense.weight"], stored["classifier.dense.bias"])
        )
        assert torch.allclose(model(samples).logits, model.classifier.out_proj(dense), atol=1e-6)


def test_another_pooling_is_refused(make_model):
    folder = make_model("emotion")
    values = json.loads((folder / "config.json").read_text()) | {"pooling_mode": "max"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="pooling_mode is 'max'"):
        load_model(Recipe(model=str(folder)), SIX)


# LoRA ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(make_model):
    """A HuBERT with LoRA that is past its start, at which LoRA adds nothing."""
    pytest.importorskip("peft")
    model, _ = load_model(Recipe(model=str(make_model("hubert")), lora={"rank": 2, "alpha": 8.0}), SIX)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_lora_trains_the_attention_projections_and_the_head(adapted, samples):
    adapted.train()(samples, labels=torch.tensor([0, 1])).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    head = {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}
    adapters = trained - head
    assert head < trained
    assert len(adapters) == 3 * 4 * 2  # layers, projections, factors
    assert all(re.search(r"\.attention\.(q|k|v|out)_proj\.lora_[AB]\.", name) for name in adapters)


def test_a_checkpoints_parts_make_the_same_model_again(tmp_path, make_model, adapted, samples):
    """Bit for bit, which the merged weights alone could not."""
    folder = save_model_folder(adapted, tmp_path / "checkpoint")
    save_lora_parts(adapted, folder)
    again, _ = load_model(Recipe(model=str(tmp_path / "source"), lora={"rank": 2, "alpha": 8.0}), SIX)
    again.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    load_lora_parts(again, folder)
    expected = adapted.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    other, _ = load_model(Recipe(model=str(tmp_path / "source"), lora={"rank": 4}), SIX)
    with pytest.raises(ValueError, match="was trained with another `lora`"):
        load_lora_parts(other, folder)


def test_a_lora_run_is_resumed_exactly(tmp_path, make_model, make_corpus):
    pytest.importorskip("peft")
    corpus, source = make_corpus(takes=1, speakers=("a", "b", "c")), make_model("hubert")
    recipe = [str(ROOT / "recipes" / "baselines" / "lora.yaml"), "--model", str(source), "--corpora", str(corpus)]
    fast = ["--rounds", "4", "--batch_size", "2", "--window_seconds", "0.5", "--report_to", "none"]
    fixed = ["--eval_steps", "2", "--save_steps", "2", "--load_best_model_at_end", "false", "--learning_rate", "0.01"]
    for run in ("whole", "halves"):
        train_hf.main([*recipe, *fast, *fixed, "--output", str(tmp_path / run)])
    (tmp_path / "halves" / "checkpoints" / "checkpoint-4").rename(tmp_path / "gone")
    (tmp_path / "halves" / "model" / "model.safetensors").unlink()
    (tmp_path / "halves" / "results.json").unlink()
    train_hf.main([*recipe, *fast, *fixed, "--output", str(tmp_path / "halves"), "--resume"])
    expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    got = load_file(tmp_path / "halves" / "model" / "model.safetensors")
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_lora_without_peft_says_what_to_install(make_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="lora needs peft: pip install peft"):
        load_model(Recipe(model=str(make_model("hubert")), lora={"rank": 2}), SIX)


# Folders -------------------------------------------------------------------------------------------------------------


def test_folders_load_without_the_package_and_without_peft(tmp_path, make_model, adapted, samples):
    """A Whisper with its own feature extractor, W2V2 Emotion with its head, LoRA merged into the weights."""
    whisper, _ = load_model(Recipe(model=str(make_model("whisper", "tiny"))), SIX)
    emotion, _ = load_model(Recipe(model=str(make_model("emotion", "audeering"))), SIX)
    save_model_folder(whisper.eval(), tmp_path / "whisper", window_seconds=0.5)
    save_model_folder(emotion.eval(), tmp_path / "emotion", window_seconds=0.5)
    lora = load_file(save_model_folder(adapted, tmp_path / "lora") / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in lora)
    assert any(".lora_" in name for name in adapted.state_dict()), "saving changed the model"
    again, new = load_classifier(str(tmp_path / "emotion"))
    assert new == []
    noise = 0.1 * np.random.default_rng(0).standard_normal(20_000)
    soundfile.write(tmp_path / "clip.wav", noise, 16_000, subtype="FLOAT")
    got = run_without_package(
        tmp_path,
        """
        import json, sys, torch
        sys.modules["peft"] = None  # not to be had
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
        samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
        got = {}
        for name in ("lora", "emotion"):
            model = AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True).eval()
            got[name] = model(samples).logits.tolist()
            extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)
            got[name + " input"] = len(extractor(samples[0].numpy())["input_values"][0])
        classify = pipeline("speech-emotion-recognition", model="whisper", trust_remote_code=True)
        got["extractor"] = type(AutoFeatureExtractor.from_pretrained("whisper")).__name__
        print(json.dumps({**got, "windows": classify("clip.wav")["windows"]}))
        """,
    )
    with torch.inference_mode():
        assert torch.equal(again.eval()(samples).logits, emotion(samples).logits)
        assert torch.equal(torch.tensor(got["emotion"]), emotion(samples).logits)
        assert torch.allclose(torch.tensor(got["lora"]), adapted(samples).logits, atol=1e-5)
        _, make = model_input(whisper.config, 0.5)
        clip = soundfile.read(tmp_path / "clip.wav", dtype="float32")[0]
        expected = whisper(torch.from_numpy(make(clip[4000:]))[None]).logits.softmax(-1)[0]
    assert (got["emotion input"], got["lora input"], got["extractor"]) == (8000, 48_000, "WhisperFeatureExtractor")
    assert [window["start"] for window in got["windows"]] == [0.0, 0.25, 0.5, 0.75]
    assert list(got["windows"][1]["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
