"""Configuration and model: block expansion, freezing, loss, what is kept on save and load.

python -m pytest tests/test_model.py
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertForSequenceClassification, HubertModel

from conftest import HUBERT_KINDS, SMALL
from exhubert import SIX_CLASSES, ExHuBERTConfig, ExHuBERTForSequenceClassification, ExHuBERTModel
from exhubert.modeling_exhubert import hubert_name


@pytest.mark.parametrize("num_copies", [0, 1, 2])
@pytest.mark.parametrize("gate_original_layers", [False, True])
@pytest.mark.parametrize("kind", HUBERT_KINDS)
def test_expansion_is_bit_identical(make_hubert, samples, kind, num_copies, gate_original_layers):
    folder = make_hubert(kind)
    source = HubertForSequenceClassification.from_pretrained(folder).eval()
    model = ExHuBERTForSequenceClassification.from_hubert(folder, num_copies, gate_original_layers)
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 5000:] = 0
    with torch.inference_mode():
        assert torch.equal(model(samples).logits, source(samples).logits)
        assert torch.equal(model(samples, mask).logits, source(samples, mask).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_expansion_keeps_the_dtype_and_is_bit_identical_in_it(make_hubert, samples, dtype):
    folder = make_hubert()
    source = HubertForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    model = ExHuBERTForSequenceClassification.from_hubert(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.inference_mode():
        assert torch.equal(model(samples.to(dtype)).logits, source(samples.to(dtype)).logits)


@pytest.mark.parametrize("kind", HUBERT_KINDS)
def test_base_model_expands_to_the_same_hidden_states(make_hubert, samples, kind):
    folder = make_hubert(kind, head="none")
    source = HubertModel.from_pretrained(folder).eval()
    model = ExHuBERTModel.from_hubert(folder)
    with torch.inference_mode():
        expected, got = source(samples, output_hidden_states=True), model(samples, output_hidden_states=True)
    assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
    assert len(got.hidden_states) == 2 * source.config.num_hidden_layers + 1
    # The last state of a stable-layer-norm HuBERT is before or after its norm, as the release has it.
    for layer, state in enumerate(expected.hidden_states[:-1]):
        assert torch.equal(got.hidden_states[2 * layer], state)
    assert torch.equal(got.hidden_states[-1], got.last_hidden_state)


@pytest.mark.parametrize("num_copies", [1, 2])
def test_weighted_layer_sum_keeps_its_function(make_hubert, samples, num_copies):
    folder = make_hubert("base", use_weighted_layer_sum=True)
    source = HubertForSequenceClassification.from_pretrained(folder).eval()
    model = ExHuBERTForSequenceClassification.from_hubert(folder, num_copies)
    with torch.inference_mode():
        assert torch.equal(model(samples).logits, source(samples).logits)


def test_head_and_labels_of_a_classifier_are_kept(make_hubert):
    names = {0: "calm", 1: "loud", 2: "odd"}
    folder = make_hubert(id2label=names, label2id={name: index for index, name in names.items()})
    model = ExHuBERTForSequenceClassification.from_hubert(folder)
    assert model.config.id2label == names
    other = ExHuBERTForSequenceClassification.from_hubert(folder, num_labels=5)
    assert other.classifier.out_features == other.config.num_labels == 5


@pytest.mark.parametrize("head", ["none", "ctc"])
def test_a_source_without_classifier_gets_the_six_classes(make_hubert, head):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(head=head))
    assert tuple(model.config.id2label[index] for index in range(6)) == SIX_CLASSES


def test_new_linear_layers_start_at_zero_and_identity_also_when_a_checkpoint_lacks_them(tmp_path, make_hubert):
    def check(model):
        for index, layer in enumerate(model.hubert.encoder.layers):
            linear = layer.zero_linear if index % 2 else layer.identity_linear
            start = torch.zeros(32, 32) if index % 2 else torch.eye(32)
            assert torch.equal(linear.weight, start)
            assert torch.equal(linear.bias, torch.zeros(32))

    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(), gate_original_layers=True)
    check(model)
    check(ExHuBERTForSequenceClassification(model.config))
    model.save_pretrained(tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "_linear" not in name}
    save_file(kept, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    check(ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "lacking"))


@pytest.mark.parametrize(
    ("changes", "freeze_originals", "trainable"),
    [
        ({"num_hidden_layers": 24, "num_copies": 0}, False, 311_492_486),
        ({}, True, 336_682_886),
        ({"gate_original_layers": True}, False, 664_182_662),
        ({"num_hidden_layers": 72, "num_copies": 2}, True, 664_182_662),
    ],
    ids=["HuBERT Large", "ExHuBERT", "ExHuBERT non-frozen", "ExHuBERT XLarge"],
)
def test_trainable_parameters_of_the_published_sizes(changes, freeze_originals, trainable):
    """The paper's Table 2, in full digits; nothing is allocated."""
    with torch.device("meta"):
        model = ExHuBERTForSequenceClassification(ExHuBERTConfig(**changes))
    model.freeze_feature_encoder()
    if freeze_originals:
        model.freeze_og_encoder()
    assert model.num_parameters(only_trainable=True) == trainable


def test_freezing(make_hubert):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(), num_copies=2)
    model.freeze_og_encoder()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("hubert.encoder.layers.0.", "hubert.encoder.layers.3.", "hubert.encoder.layers.6."))
    }
    model.freeze_feature_encoder()
    assert not any(p.requires_grad for p in model.hubert.feature_extractor.parameters())
    model.freeze_base_model()
    trainable = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"projector", "classifier"}


def test_an_update_moves_copies_and_leaves_originals(make_hubert, samples):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert())
    model.freeze_og_encoder()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # in the first update only the ZLLs move: behind a zero layer the copies get no gradient
        loss = model.train()(samples, labels=torch.tensor([0, 1])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        original = ".layers." in name and int(name.split(".layers.")[1].split(".")[0]) % 2 == 0
        if original and "encoder" in name:
            assert torch.equal(parameter, before[name]), name
        elif ".encoder.layers." in name and name.endswith(("zero_linear.weight", "q_proj.weight")):
            assert not torch.equal(parameter, before[name]), name


def test_loss_is_cross_entropy_of_the_labels_or_the_squared_error(make_hubert, samples):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(head="none"))
    labels = torch.tensor([3, 5])
    output = model(samples, labels=labels)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())
    assert model(samples).loss is None
    model.config.problem_type = "regression"
    targets = torch.rand(2, 6)
    assert model(samples, labels=targets).loss.item() == pytest.approx(((output.logits - targets) ** 2).mean().item())
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="problem_type is 'multi_label_classification'"):
        model(samples, labels=targets)


def test_own_head_survives_save_and_load(tmp_path, make_hubert, samples):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(), num_labels=2)
    model.save_pretrained(tmp_path / "saved")
    loaded = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        assert torch.equal(loaded(samples).logits, model(samples).logits)
    assert loaded.config.num_labels == 2


def test_config_is_not_changed_by_expansion():
    source = HubertConfig(num_labels=4)
    before = source.to_dict()
    config = ExHuBERTConfig.from_hubert_config(source, num_copies=2)
    assert source.to_dict() == before
    assert (config.num_hidden_layers, config.layerdrop, config.num_labels) == (36, 0.0, 4)
    given = config.to_dict()
    with torch.device("meta"):
        ExHuBERTForSequenceClassification(config)
    assert config.to_dict() == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 47}, "num_hidden_layers is 47.*multiple of 2"),
        ({"num_copies": -1}, "num_copies is -1"),
        ({"layerdrop": 0.1}, "layerdrop is 0.1; it must be 0"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ExHuBERTConfig(**changes)


def test_a_plain_hubert_is_not_loaded_into_scrambled_layers(make_hubert):
    with pytest.raises(ValueError, match="use `from_hubert`"):
        ExHuBERTForSequenceClassification.from_pretrained(make_hubert())
    config = ExHuBERTConfig.from_hubert_config(HubertConfig.from_pretrained(make_hubert()))
    for cls in (ExHuBERTForSequenceClassification, ExHuBERTModel):
        with pytest.raises(ValueError, match="use `from_hubert`"):
            cls.from_pretrained(make_hubert(), config=config)
    model = ExHuBERTForSequenceClassification(config)
    model.save_pretrained(make_hubert().parent / "expanded")
    assert ExHuBERTForSequenceClassification.from_pretrained(make_hubert().parent / "expanded", config=config)


def test_an_expanded_model_is_not_expanded_again(tmp_path, make_hubert):
    ExHuBERTForSequenceClassification.from_hubert(make_hubert()).save_pretrained(tmp_path / "expanded")
    with pytest.raises(ValueError, match="expanded already"):
        ExHuBERTForSequenceClassification.from_hubert(tmp_path / "expanded")


def test_a_checkpoint_that_is_no_hubert_is_refused_by_its_first_key(make_hubert):
    folder = make_hubert()
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "hubert.encoder.layers.0.gate_bb_linear.bias": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"has unknown hubert\.encoder\.layers\.0\.gate_bb_linear\.bias"):
        ExHuBERTForSequenceClassification.from_hubert(folder)
    weights.pop("hubert.encoder.layers.1.attention.q_proj.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks hubert\.encoder\.layers\.1\.attention\.q_proj\.weight"):
        ExHuBERTForSequenceClassification.from_hubert(folder)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(1, 100), "has 100 samples; at least 448"),
        (torch.zeros(0, 8000), r"shape \(0, 8000\)"),
        (torch.zeros(8000), r"shape \(8000,\)"),
        (torch.zeros(1, 8000, dtype=torch.int16), "is torch.int16"),
        (torch.full((1, 8000), float("nan")), "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(make_hubert, inputs, message):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert())
    with pytest.raises(ValueError, match=message):
        model(inputs)


def test_a_mask_of_another_shape_is_refused(make_hubert, samples):
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert())
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 7000\)"):
        model(samples, attention_mask=torch.ones(2, 7000))


def test_half_a_head_is_refused_and_not_completed_at_random(make_hubert):
    file = make_hubert(use_weighted_layer_sum=True) / "model.safetensors"
    weights = load_file(file)
    del weights["layer_weights"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="it lacks layer_weights"):
        ExHuBERTForSequenceClassification.from_hubert(file.parent)


def test_a_new_head_is_saved_with_its_sizes_and_the_config_is_left_alone(tmp_path, samples):
    config = ExHuBERTConfig(**{**SMALL, "num_hidden_layers": 2})
    model = ExHuBERTForSequenceClassification(config).eval()
    model.projector = torch.nn.Linear(32, 24)
    model.classifier = torch.nn.Linear(24, 9)
    model.save_pretrained(tmp_path / "saved")
    assert (config.num_labels, config.classifier_proj_size) == (6, 16)
    assert model.config is model.hubert.config is config
    loaded = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        assert torch.equal(loaded(samples).logits, model(samples).logits)


def test_a_head_that_no_configuration_describes_is_saved_with_a_warning(tmp_path):
    model = ExHuBERTForSequenceClassification(ExHuBERTConfig(**{**SMALL, "num_hidden_layers": 2}))
    model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 6))
    with pytest.warns(UserWarning, match="the head is more than two nn.Linear"):
        model.save_pretrained(tmp_path / "saved")
    assert "classifier.1.weight" in load_file(tmp_path / "saved" / "model.safetensors")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_layer_weights_of_an_expanded_model_train(make_hubert, samples, optimizer):
    """Those that are left out stay so, and are no infinity of which an optimiser makes NaN."""
    model = ExHuBERTForSequenceClassification.from_hubert(make_hubert(use_weighted_layer_sum=True))
    before = model.layer_weights.detach().clone()
    steps = optimizer(model.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(3):
        steps.zero_grad()
        model.train()(samples, labels=torch.tensor([0, 1])).loss.backward()
        steps.step()
    shares = model.layer_weights.softmax(-1)
    assert (shares[::2] > 0.01).all()
    assert not torch.equal(model.layer_weights[::2], before[::2])
    assert not shares[1::2].any()
    assert model.eval()(samples).logits.isfinite().all()


def test_a_model_over_several_devices_is_refused(make_hubert):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    devices = {"hubert.encoder": "meta", "hubert": "cpu", "projector": "cpu", "classifier": "cpu"}
    with pytest.raises(
        ValueError, match="from_hubert cannot spread a model over devices: use `exhubert convert hubert`"
    ):
        ExHuBERTForSequenceClassification.from_hubert(make_hubert(), device_map=devices)


def test_names_of_expanded_weights():
    names = {
        "hubert.encoder.layers.6.attention.q_proj.weight": "hubert.encoder.layers.3.attention.q_proj.weight",
        "hubert.encoder.layers.7.attention.q_proj.weight": "hubert.encoder.layers.3.attention.q_proj.weight",
        "encoder.layers.11.zero_linear.bias": None,
        "encoder.layers.10.identity_linear.weight": None,
        "encoder.layer_norm.bias": "encoder.layer_norm.bias",
    }
    assert {name: hubert_name(name, num_copies=1) for name in names} == names
