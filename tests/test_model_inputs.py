"""Masks and labels that the model takes, and what it refuses.

python -m pytest tests/test_model_inputs.py
"""

from __future__ import annotations

import json

import pytest
import torch

from conftest import SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification, ExHuBERTModel
from small_models import STANDARD_CNN, make_model


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        (399, "attention_mask marks 399 samples of clip 1; at least 400 are needed"),
        (0, "attention_mask marks 0 samples of clip 1"),
    ],
)
def test_masks_that_leave_no_frame_are_refused(marked, message):
    model = make_model(**STANDARD_CNN)
    mask = torch.ones(3, 1000, dtype=torch.long)
    mask[1, marked:] = 0
    with pytest.raises(ValueError, match=message):
        model(torch.randn(3, 1000), mask)
    mask[1, :400] = 1
    assert model(torch.randn(3, 1000), mask).logits.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 1], "attention_mask has a 1 after a 0; padding must be at the end of a clip"),
        ([1, 2, 0], "attention_mask holds other values than 1, for samples, and 0, for padding"),
    ],
)
def test_masks_of_other_forms_are_refused(samples, values, message):
    mask = torch.tensor(values).repeat_interleave(2000).expand(2, -1)
    with pytest.raises(ValueError, match=message):
        make_model()(samples[:, :6000], mask)


def test_a_boolean_mask_is_the_same_mask(samples, mask):
    model = make_model()
    assert torch.equal(model(samples, mask.bool()).logits, model(samples, mask).logits)


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        (None, torch.tensor([0, 6]), r"labels holds 6; the classes are 0 to 5"),
        (None, torch.tensor([-1, 0]), r"labels holds -1; the classes are 0 to 5"),
        (None, torch.tensor([0, 1, 2]), r"labels has shape \(3,\); .* \(2,\)"),
        (None, torch.tensor([[0, 1]]), r"labels has shape \(1, 2\); .* \(2,\)"),
        (
            None,
            torch.tensor([0.0, 1.0]),
            r"labels is torch.float32; class indices are needed, or problem_type='regression'",
        ),
        ("regression", torch.zeros(2), r"labels has shape \(2,\); .* \(2, 6\)"),
        ("regression", torch.zeros(6, 2), r"labels has shape \(6, 2\); .* \(2, 6\)"),
    ],
)
def test_bad_labels_are_refused(samples, problem, labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(problem_type=problem)(samples, labels=labels)


def test_labels_of_other_integer_types_and_of_one_output(samples):
    model = make_model()
    outputs = model(samples, labels=torch.tensor([-100, 5], dtype=torch.int32))
    assert torch.equal(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits[1:], torch.tensor([5])))
    assert torch.equal(model(samples, labels=torch.tensor([5, 5], dtype=torch.uint8)).logits, outputs.logits)
    model = make_model(problem_type="regression", num_labels=1)
    outputs = model(samples, labels=torch.tensor([0.5, 1.0]))
    assert torch.allclose(outputs.loss, ((outputs.logits[:, 0] - torch.tensor([0.5, 1.0])) ** 2).mean())


@pytest.mark.parametrize("problem", ["single_label_classification", "regression"])
def test_the_configuration_is_left_as_it_is(samples, problem):
    values = {**SMALL, "num_hidden_layers": 2, "problem_type": problem, "use_weighted_layer_sum": True}
    config = ExHuBERTConfig(**values)
    given = json.dumps(config.to_dict(), default=str)
    model = ExHuBERTForSequenceClassification(config)
    model.freeze_og_encoder()
    model.freeze_feature_encoder()
    targets = torch.rand(2, 6) if problem == "regression" else torch.tensor([0, 1])
    model.train()(samples, labels=targets, output_hidden_states=True, return_dict=False)[0].backward()
    model.freeze_base_model()
    assert model.config is config
    assert json.dumps(config.to_dict(), default=str) == given


def test_labels_of_a_column_train_as_labels_of_a_row(samples):
    model = make_model()
    labels = torch.tensor([3, -100])
    assert torch.equal(model(samples, labels=labels[:, None]).loss, model(samples, labels=labels).loss)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 2\)"):
        model(samples, labels=labels[:, None].expand(2, 2))


@pytest.mark.parametrize("model_class", [ExHuBERTModel, ExHuBERTForSequenceClassification])
def test_keywords_that_clients_pass_are_taken_and_others_named(samples, model_class):
    model = make_model(cls=model_class)
    given = {"input_ids": None, "inputs_embeds": None, "num_items_in_batch": torch.tensor(2)}
    assert torch.equal(model(samples, **given)[0], model(samples)[0])
    with pytest.raises(TypeError, match="input_ids is given; a model of audio takes input_values"):
        model(samples, input_ids=samples)
    with pytest.raises(TypeError, match="unexpected keyword argument 'atention_mask'"):
        model(samples, atention_mask=None)


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "FEATURE_EXTRACTION"])
def test_pefts_task_types_take_audio(samples, task_type):
    peft = pytest.importorskip("peft", reason="peft is in the extra `train`")
    base = task_type == "FEATURE_EXTRACTION"
    model = make_model(cls=ExHuBERTModel if base else ExHuBERTForSequenceClassification)
    expected = model(samples)[0]
    lora = peft.LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"])
    wrapped = peft.get_peft_model(model, lora).eval()
    assert torch.equal(wrapped(input_values=samples)[0], expected)
    if not base:
        wrapped(input_values=samples, labels=torch.tensor([0, 1])).loss.backward()
        assert any(weight.grad is not None for name, weight in wrapped.named_parameters() if "lora_" in name)
