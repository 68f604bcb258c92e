"""Dimensions in configuration and model: beside classes, alone, saved, expanded, of audEERING's model.

python -m pytest tests/test_dimensions.py
"""

from __future__ import annotations

import json

import pytest
import torch

from conftest import SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.configuration_exhubert import SIX_CLASSES, class_names_of_config, dimensions_of_config
from exhubert.convert.contract import convert_contract
from exhubert.model_folder import load_trained, save_model_folder
from exhubert.modeling_exhubert import HEAD
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionForSequenceClassification
from small_models import make_model, write_emotion

SCALES = {"valence": [1, 7], "arousal": [-1, 1]}
AUDIO = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answers(model, audio=AUDIO):
    return model(audio)


def same_classes(model, other):
    """Gives `other` the weights that it shares with `model`."""
    weights = other.state_dict() | model.state_dict()
    other.load_state_dict({name: weights[name] for name in other.state_dict()})
    return other


def test_a_model_of_classes_alone_has_no_dimensions():
    model = make_model()
    result = answers(model)
    assert list(result) == ["logits"] and result.dimensions is None
    assert class_names_of_config(model.config) == list(SIX_CLASSES) and dimensions_of_config(model.config) == {}
    assert not any(name.startswith("dimension_head") for name in model.state_dict())


def test_a_second_head_leaves_the_classes_as_they_were_bit_for_bit():
    model = make_model()
    both = same_classes(model, make_model(dimensions=SCALES))
    assert torch.equal(answers(both).logits, answers(model).logits)
    assert answers(both).dimensions.shape == (2, 2)
    names = both.state_dict().keys() - model.state_dict().keys()
    assert names == {"dimension_head.weight", "dimension_head.bias"}  # two small matrices: 2 * (16 + 1) numbers
    assert both.num_parameters() - model.num_parameters() == 2 * (SMALL["classifier_proj_size"] + 1)
    labels = torch.tensor([0, 5])
    assert torch.equal(both(AUDIO, labels=labels).loss, model(AUDIO, labels=labels).loss)
    as_tuple = both(AUDIO, labels=labels, output_hidden_states=True, return_dict=False)
    assert [type(part) for part in as_tuple] == [torch.Tensor, torch.Tensor, tuple, torch.Tensor]


def test_the_order_of_outputs_survives_saving(tmp_path):
    """transformers sorts the keys of config.json, so another order than the names' would name outputs wrongly."""
    model = make_model(dimensions=SCALES)
    assert list(dimensions_of_config(model.config)) == ["arousal", "valence"]
    save_model_folder(model, tmp_path / "both")
    values = json.loads((tmp_path / "both" / "config.json").read_text())
    assert dimensions_of_config(values) == {"arousal": [-1, 1], "valence": [1, 7]}
    assert class_names_of_config(values) == list(SIX_CLASSES)
    loaded, _ = load_trained(str(tmp_path / "both"))
    assert torch.equal(answers(loaded).dimensions, answers(model).dimensions)
    assert torch.equal(answers(loaded).logits, answers(model).logits)


def test_dimensions_alone_are_the_logits_of_a_regression(tmp_path):
    order = {0: "valence", 1: "arousal"}  # which id2label keeps
    model = make_model(dimensions=SCALES, problem_type="regression", id2label=order)
    assert dimensions_of_config(model.config) == {"valence": [1, 7], "arousal": [-1, 1]}
    assert list(dimensions_of_config(model.config)) == ["valence", "arousal"]
    assert class_names_of_config(model.config) == [] and model.config.num_labels == 2
    targets = torch.rand(2, 2)
    result = model(AUDIO, labels=targets)
    assert torch.allclose(result.loss, ((result.logits - targets) ** 2).mean())
    assert result.dimensions is None and result.logits.shape == (2, 2)
    save_model_folder(model, tmp_path / "alone")
    loaded, _ = load_trained(str(tmp_path / "alone"))
    assert dimensions_of_config(loaded.config) == dimensions_of_config(model.config)
    assert torch.equal(answers(loaded).logits, answers(model).logits)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dimensions": ["arousal"]}, "a table of names and scales"),
        ({"dimensions": {"": [0, 1]}}, "a table of names and scales"),
        ({"dimensions": {"arousal": 7}}, "the scale of 'arousal' is 7"),
        ({"dimensions": {"arousal": [1, 2, 3]}}, "the scale of 'arousal' is"),
        ({"dimensions": {"arousal": [True, 7]}}, "the scale of 'arousal' is"),
        ({"dimensions": {"arousal": [1, float("nan")]}}, "the scale of 'arousal' is"),
        ({"dimensions": {"arousal": [7, 1]}}, "must be above the first"),
        ({"dimensions": {"high/positive": [0, 1]}}, "'high/positive', which is a class"),
        (
            {"dimensions": {"arousal": [0, 1]}, "problem_type": "regression", "id2label": {0: "anger"}},
            "id2label names anger",
        ),
    ],
)
def test_wrong_dimensions_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        ExHuBERTConfig(**fields)


def test_loading_gives_dimensions_to_a_model_of_classes(tmp_path, recwarn):
    model = make_model()
    save_model_folder(model, tmp_path / "classes")
    both = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "classes", dimensions=SCALES).eval()
    assert torch.equal(answers(both).logits, answers(model).logits)
    assert torch.isfinite(answers(both).dimensions).all()
    with pytest.raises(ValueError, match="must be above the first"):
        ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "classes", dimensions={"arousal": [2, 1]})
    alone = ExHuBERTForSequenceClassification.from_pretrained(
        tmp_path / "classes", dimensions=SCALES, problem_type="regression", ignore_mismatched_sizes=True
    )
    assert class_names_of_config(alone.config) == [] and answers(alone).logits.shape == (2, 2)


@pytest.mark.parametrize("copies", [0, 1])
def test_a_hubert_is_expanded_with_both_heads(make_hubert, copies):
    folder = make_hubert(head="classifier")
    classes = ExHuBERTForSequenceClassification.from_hubert(folder, copies)
    both = ExHuBERTForSequenceClassification.from_hubert(folder, copies, dimensions=SCALES)
    assert torch.equal(answers(both).logits, answers(classes).logits)
    assert class_names_of_config(both.config) == class_names_of_config(classes.config)
    assert both.dimension_head.weight.abs().max() > 0 and not both.dimension_head.bias.any()
    alone = ExHuBERTForSequenceClassification.from_hubert(folder, copies, dimensions=SCALES, problem_type="regression")
    assert class_names_of_config(alone.config) == [] and answers(alone).logits.shape == (2, 2)


def test_both_heads_stay_when_a_model_without_copies_is_expanded(tmp_path):
    """Stage 1 trains a HuBERT with both heads; stage 2 expands it."""
    model = make_model(num_copies=0, dimensions=SCALES)
    save_model_folder(model, tmp_path / "stage1")
    expanded = ExHuBERTForSequenceClassification.from_hubert(tmp_path / "stage1")
    assert expanded.config.num_copies == 1 and expanded.config.dimensions == model.config.dimensions
    before, after = answers(model), answers(expanded)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.dimensions, before.dimensions)


def test_a_contracted_hubert_answers_classes_or_dimensions(tmp_path, make_hubert, capsys):
    """A HuBERT of transformers has one head: that of dimensions beside classes is left out, and said."""
    hubert = make_hubert(head="classifier")
    for name, fields in (("both", {}), ("alone", {"problem_type": "regression"})):
        model = ExHuBERTForSequenceClassification.from_hubert(hubert, dimensions=SCALES, **fields)
        save_model_folder(model, tmp_path / name)
        convert_contract(tmp_path / name, tmp_path / f"{name} contracted")
        contracted, _ = load_trained(str(tmp_path / f"{name} contracted"))
        assert torch.allclose(answers(contracted).logits, answers(model).logits, atol=1e-6)
        assert dimensions_of_config(contracted.config) == ({} if name == "both" else dimensions_of_config(model.config))
        assert ("left out: the head of arousal, valence" in capsys.readouterr().out) == (name == "both")


def test_the_head_of_dimensions_is_part_of_the_head():
    model = make_model(dimensions=SCALES)
    model.freeze_base_model()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(HEAD)}
    assert {"dimension_head.weight", "dimension_head.bias"} < trained
    exact = answers(model).dimensions
    model.set_fast_path()
    assert torch.allclose(answers(model).dimensions, exact, atol=1e-5)


def test_audeerings_model_keeps_its_three_outputs(tmp_path):
    model, _ = load_trained(str(write_emotion(tmp_path / "audeering")))
    assert class_names_of_config(model.config) == []
    assert dimensions_of_config(model.config) == {"arousal": [0, 1], "dominance": [0, 1], "valence": [0, 1]}
    published = json.loads((tmp_path / "audeering" / "config.json").read_text())
    assert dimensions_of_config(published) == dimensions_of_config(model.config)
    targets = torch.rand(2, 3)
    result = model(AUDIO, labels=targets)
    assert torch.allclose(result.loss, ((result.logits - targets) ** 2).mean())
    # With classes it is what it was before: a model of these, with the cross entropy for a loss.
    classes = Wav2Vec2EmotionForSequenceClassification.from_pretrained(
        tmp_path / "audeering", id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}
    ).eval()
    assert class_names_of_config(classes.config) == ["a", "b", "c"] and dimensions_of_config(classes.config) == {}
    loss = classes(AUDIO, labels=torch.tensor([0, 2])).loss
    assert torch.equal(loss, torch.nn.functional.cross_entropy(classes(AUDIO).logits, torch.tensor([0, 2])))
