"""`exhubert convert published`: every stored number of the published code, every layout of its checkpoints, refusals.

python -m pytest tests/test_published.py
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import SMALL, run_without_package
from exhubert import SIX_CLASSES, ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.cli import main
from exhubert.convert.published import convert_published

LOGITS, HIDDEN_STATES = 5e-6, 5e-5


def difference(got, expected):
    return (torch.as_tensor(got) - expected).abs().max().item()


@pytest.fixture
def make_published(tmp_path):
    """Writes a checkpoint as the published code does, of a model of ours with random weights; returns both."""

    def make(trained_gates=False, **changes):
        torch.manual_seed(0)
        config = ExHuBERTConfig(**{**SMALL, "num_hidden_layers": 6, "gate_original_layers": True, **changes})
        model = ExHuBERTForSequenceClassification(config).eval()
        for name, parameter in model.named_parameters():
            if trained_gates or "identity_linear" not in name:
                parameter.data += 0.02 * torch.randn_like(parameter)
        weights = {re.sub(r"(identity|zero)_linear", "gate_bb_linear", k): v for k, v in model.state_dict().items()}
        folder = tmp_path / "published"
        folder.mkdir()
        values = {**config.to_dict(), "model_type": "hubert", "architectures": None, "layerdrop": 0.1, **changes}
        values["id2label"] = {index: f"LABEL_{index}" for index in range(6)}  # whatever the head was
        values["label2id"] = {f"LABEL_{index}": index for index in range(6)}
        for name in ("num_copies", "gate_original_layers"):
            del values[name]
        (folder / "config.json").write_text(json.dumps(values))
        torch.save(weights, folder / "pytorch_model.bin")
        return folder, model

    return make


@pytest.mark.parametrize("checkpoint", ["a", "b"])
def test_it_computes_what_the_published_code_computed(tmp_path, shared, capsys, checkpoint):
    """Logits with and without a mask, and every hidden state, here and where the package is not installed."""
    folder = shared / "published" / checkpoint
    assert main(["convert", "published", str(folder), str(tmp_path / "ex")]) == 0
    said = capsys.readouterr().out
    identity = {"a": "each exactly the identity, dropped", "b": "kept, as hubert.encoder.layers.0.gate_bb_linear."}
    assert f"linear layers of the originals: {identity[checkpoint]}" in said
    expected = load_file(folder / "fixture.safetensors")
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]

    model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").eval()
    assert (model.config.num_hidden_layers, model.config.num_copies) == (layers, 1)
    assert model.config.gate_original_layers == (checkpoint == "b")
    assert tuple(model.config.id2label.values()) == SIX_CLASSES
    mask = expected["attention_mask"].long()
    with torch.inference_mode():
        got = model(expected["input_values"], output_hidden_states=True)
        masked = model(expected["input_values"], attention_mask=mask)
        last = model.hubert(expected["input_values"], attention_mask=mask).last_hidden_state
        features = model.extract_features(expected["input_values"], output_hidden_states=True, labels=None)
    assert difference(features, expected["last_hidden_state"]) < HIDDEN_STATES
    assert difference(got.logits, expected["logits"]) < LOGITS
    assert difference(masked.logits, expected["logits_masked"]) < LOGITS
    assert difference(last, expected["last_hidden_state_masked"]) < HIDDEN_STATES
    assert len(got.hidden_states) == layers + 1
    for index, state in enumerate(got.hidden_states):
        assert difference(state, expected[f"hidden_states.{index}"]) < HIDDEN_STATES, index
    assert difference(got.hidden_states[-1], expected["last_hidden_state"]) < HIDDEN_STATES

    elsewhere = run_without_package(
        tmp_path,
        f"""
        import json, torch
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoModelForAudioClassification
        fixture = load_file({str(folder / "fixture.safetensors")!r})
        model = AutoModelForAudioClassification.from_pretrained("ex", trust_remote_code=True).eval()
        with torch.inference_mode():
            got = model(fixture["input_values"], output_hidden_states=True)
            masked = model(fixture["input_values"], attention_mask=fixture["attention_mask"].long())
            base = AutoModel.from_pretrained("ex", trust_remote_code=True).eval()
            last = base(fixture["input_values"], attention_mask=fixture["attention_mask"].long()).last_hidden_state
        states = [state.tolist() for state in got.hidden_states]
        print(json.dumps([got.logits.tolist(), masked.logits.tolist(), states, last.tolist()]))
        """,
    )
    assert difference(elsewhere[0], expected["logits"]) < LOGITS
    assert difference(elsewhere[1], expected["logits_masked"]) < LOGITS
    assert difference(elsewhere[3], expected["last_hidden_state_masked"]) < HIDDEN_STATES
    for index, state in enumerate(elsewhere[2]):
        assert difference(state, expected[f"hidden_states.{index}"]) < HIDDEN_STATES, index


# The published class's own methods, with the order of their arguments.
METHODS = {
    "extract_features": ["input_values", "attention_mask", "kwargs"],  # the others changed nothing
    "forward": [
        *("input_values", "attention_mask", "output_attentions", "output_hidden_states", "return_dict", "labels"),
        *("mask_time_indices", "kwargs"),  # the first is ours
    ],
    "freeze_base_model": [],
    "freeze_feature_encoder": [],
    "freeze_og_encoder": [],
    "print_trainable_parameters": [],
}


def test_the_published_models_methods_are_there(make_hubert, capsys, samples):
    for name, arguments in METHODS.items():
        method = inspect.signature(getattr(ExHuBERTForSequenceClassification, name))
        assert list(method.parameters)[1:] == arguments, name
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert("base", use_weighted_layer_sum=True))
    model.freeze_base_model()
    capsys.readouterr()
    model.print_trainable_parameters()
    trained, total = model.num_parameters(only_trainable=True), model.num_parameters()
    line = f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.2f}\n"
    assert capsys.readouterr().out == line
    with torch.inference_mode():
        states = model.hubert(samples, output_hidden_states=True).hidden_states
        shares = model.layer_weights.softmax(dim=0)
        weighted = sum(share * state for share, state in zip(shares, states, strict=True))
        assert torch.allclose(model.extract_features(samples), weighted, atol=1e-6)


def test_a_configuration_that_says_post_norm_was_run_as_pre_norm_all_the_same(tmp_path, shared):
    folder = shutil.copytree(shared / "published" / "a", tmp_path / "published")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "do_stable_layer_norm": False}))
    convert_published(folder, tmp_path / "ex")
    expected = load_file(folder / "fixture.safetensors")
    model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").eval()
    with torch.inference_mode():
        assert difference(model(expected["input_values"]).logits, expected["logits"]) < LOGITS


def published_forward(weights, config, samples, mask=None):
    """Logits and hidden states by the published model's definition, in plain torch; `weights` by its names."""
    functional, eps = nn.functional, config["layer_norm_eps"]

    def linear(states, name):
        return functional.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(states, name):
        return functional.layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    h = samples[:, None]
    for index, stride in enumerate(config["conv_stride"]):
        name = f"hubert.feature_extractor.conv_layers.{index}"
        h = functional.conv1d(h, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], stride)
        h = functional.gelu(norm(h.transpose(1, 2), f"{name}.layer_norm").transpose(1, 2))
    h = linear(norm(h.transpose(1, 2), "hubert.feature_projection.layer_norm"), "hubert.feature_projection.projection")
    batch, frames, size = h.shape
    lengths = torch.full((batch,), samples.shape[1]) if mask is None else mask.sum(-1)
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        lengths = (lengths - kernel) // stride + 1
    valid = torch.arange(frames) < lengths[:, None]
    h = h * valid[..., None]

    name, kernel = "hubert.encoder.pos_conv_embed.conv", config["num_conv_pos_embeddings"]
    length, direction = (weights[f"{name}.parametrizations.weight.original{index}"] for index in (0, 1))
    weight = direction * length / direction.pow(2).sum((0, 1), keepdim=True).sqrt()
    groups = config["num_conv_pos_embedding_groups"]
    positions = functional.conv1d(h.transpose(1, 2), weight, weights[f"{name}.bias"], 1, kernel // 2, groups=groups)
    h = h + functional.gelu(positions[:, :, :frames]).transpose(1, 2)

    states = [h]
    heads = config["num_attention_heads"]
    for index in range(config["num_hidden_layers"]):
        name = f"hubert.encoder.layers.{index}"
        normed = norm(h, f"{name}.layer_norm")
        query, key, value = (
            linear(normed, f"{name}.attention.{part}_proj").view(batch, frames, heads, -1).transpose(1, 2)
            for part in "qkv"
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(size // heads)
        scores = scores.masked_fill(~valid[:, None, None], float("-inf")).softmax(-1)
        out = h + linear((scores @ value).transpose(1, 2).reshape(h.shape), f"{name}.attention.out_proj")
        inner = functional.gelu(
            linear(norm(out, f"{name}.final_layer_norm"), f"{name}.feed_forward.intermediate_dense")
        )
        out = linear(out + linear(inner, f"{name}.feed_forward.output_dense"), f"{name}.gate_bb_linear")
        h = h + out if index % 2 else out  # past the copy, the original's output
        states.append(h)
    states[-1] = norm(h, "hubert.encoder.layer_norm")
    h = states[-1]
    if config["use_weighted_layer_sum"]:
        h = sum(share * state for share, state in zip(weights["layer_weights"].softmax(-1), states, strict=True))
    h = linear(h, "projector") * valid[..., None]
    return linear(h.sum(1) / lengths[:, None], "classifier"), states


@pytest.mark.parametrize("trained_gates", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{"use_weighted_layer_sum": True}, {"hidden_size": 48, "num_hidden_layers": 4, "num_conv_pos_embeddings": 15}],
    ids=["weighted layer sum", "other sizes"],
)
def test_other_sizes_and_a_weighted_layer_sum(tmp_path, make_published, samples, trained_gates, changes):
    folder, model = make_published(trained_gates, **changes)
    convert_published(folder, tmp_path / "ex")
    converted = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").eval()
    assert any("identity_linear" in name for name in converted.state_dict()) == trained_gates
    assert converted.config.layerdrop == 0
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    config = json.loads((folder / "config.json").read_text())
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 5000:] = 0
    for attention_mask in (None, mask):
        logits, states = published_forward(weights, config, samples, attention_mask)
        with torch.inference_mode():
            got = converted(samples, attention_mask, output_hidden_states=True)
        assert difference(got.logits, logits) < LOGITS
        lengths = (24, 24) if attention_mask is None else (24, 14)
        for state, expected in zip(got.hidden_states, states, strict=True):
            for row, length in enumerate(lengths):
                assert difference(state[row, :length], expected[row, :length]) < HIDDEN_STATES
    with torch.inference_mode():
        assert torch.equal(converted(samples).logits, model(samples).logits)


def test_the_plain_definition_gives_the_published_numbers(shared):
    """What the test above trusts."""
    for folder in sorted((shared / "published").glob("*/")):
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        config = json.loads((folder / "config.json").read_text())
        expected = load_file(folder / "fixture.safetensors")
        logits, states = published_forward(weights, config, expected["input_values"])
        assert difference(logits, expected["logits"]) < LOGITS
        for index, state in enumerate(states):
            assert difference(state, expected[f"hidden_states.{index}"]) < HIDDEN_STATES
        masked, _ = published_forward(weights, config, expected["input_values"], expected["attention_mask"].long())
        assert difference(masked, expected["logits_masked"]) < LOGITS


def test_old_names_of_weight_norm_and_safetensors(tmp_path, make_published, samples):
    folder, model = make_published()
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    (folder / "pytorch_model.bin").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    convert_published(folder, tmp_path / "ex")
    converted = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").eval()
    with torch.inference_mode():
        assert torch.equal(converted(samples).logits, model(samples).logits)


def test_a_head_of_another_size_is_what_counts_not_the_number_in_the_configuration(tmp_path, make_published, samples):
    folder, model = make_published(num_labels=4)
    convert_published(folder, tmp_path / "ex")
    converted = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "ex").eval()
    assert converted.config.id2label == {index: f"LABEL_{index}" for index in range(4)}
    with torch.inference_mode():
        assert torch.equal(converted(samples).logits, model(samples).logits)


def test_a_missing_mask_vector_gets_a_start_of_its_own(tmp_path, make_published):
    folder, _ = make_published()
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["hubert.masked_spec_embed"]
    torch.save(weights, folder / "pytorch_model.bin")
    convert_published(folder, tmp_path / "ex")
    vector = load_file(tmp_path / "ex" / "model.safetensors")["hubert.masked_spec_embed"]
    assert 0 <= vector.min() < 0.2 < 0.8 < vector.max() <= 1


def without(name):
    return lambda weights: {key: tensor for key, tensor in weights.items() if key != name}


def renamed(old, new):
    return lambda weights: {key.replace(old, new): tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("hubert.encoder.layers.3.gate_bb_linear.bias"),
            r"is not a checkpoint of the published ExHuBERT: it lacks hubert\.encoder\.layers\.3\.gate_bb_linear\.bias",
        ),
        (without("classifier.bias"), r"it lacks classifier\.bias"),
        (renamed("classifier", "lm_head"), r"it lacks classifier\.weight"),
        (lambda weights: {**weights, "lm_head.bias": torch.zeros(32)}, r"it has lm_head\.bias"),
        (lambda weights: {**weights, "hubert.extra": torch.zeros(32)}, r"has unknown hubert\.extra"),
        (renamed("layers.5.", "layers.6."), r"it lacks hubert\.encoder\.layers\.5\.attention\.k_proj\.weight"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_by_its_first_key(tmp_path, make_published, change, message):
    folder, _ = make_published()
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(change(weights), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert_published(folder, tmp_path / "ex")
    assert not (tmp_path / "ex").exists()


def test_a_plain_hubert_is_refused(tmp_path, make_hubert):
    with pytest.raises(ValueError, match="num_hidden_layers is 3; originals and their copies make an even number"):
        convert_published(make_hubert(), tmp_path / "ex")
    plain = make_hubert(name="plain", num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"it lacks hubert\.encoder\.layers\.0\.gate_bb_linear\.weight"):
        convert_published(plain, tmp_path / "ex")


def test_the_published_layout_is_not_taken_for_a_hubert(make_published):
    folder, _ = make_published()
    with pytest.raises(ValueError, match="published ExHuBERT's layout, use `exhubert convert published`"):
        ExHuBERTForSequenceClassification.from_hubert(folder)
