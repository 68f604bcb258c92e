"""The fast path on the CPU, compiled layers, and forwards that never wait for a device.

python -m pytest tests/test_fast_path.py
"""

from __future__ import annotations

import copy

import pytest
import torch

from exhubert import ExHuBERTForSequenceClassification, fast_path_exhubert, modeling_exhubert
from small_models import make_model

LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    "changes", [{}, {"conv_bias": False}, {"hidden_act": "relu", "feat_extract_activation": "relu"}]
)
@pytest.mark.parametrize("kind", ["base", "large"])
@torch.inference_mode()
def test_the_fast_path_computes_the_same(samples, mask, kind, changes):
    model = make_model(kind, **changes)
    for attention_mask in (None, mask):
        exact = model(samples, attention_mask, output_hidden_states=True)
        model.set_fast_path()
        fast = model(samples, attention_mask, output_hidden_states=True)
        assert torch.allclose(fast.logits, exact.logits, rtol=0, atol=1e-5)
        for state, exact_state in zip(fast.hidden_states, exact.hidden_states, strict=True):
            assert torch.allclose(state, exact_state, rtol=1e-5, atol=1e-5)
        model.set_fast_path(False)
        assert torch.equal(model(samples, attention_mask).logits, exact.logits)


def test_all_that_trains_gets_the_same_gradients(samples):
    model = make_model()
    model.freeze_og_encoder()
    gradients = []
    for enabled in (False, True):
        model.set_fast_path(enabled)
        model.zero_grad()
        model(samples, labels=LABELS).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert "hubert.feature_extractor.conv_layers.0.conv.weight" in gradients[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("frozen", [None, "conv_layers.0", ""])
def test_whatever_needs_a_gradient_of_the_cnn_gets_it(samples, frozen):
    """Also the samples, and a CNN of which a part is frozen."""
    model = make_model()
    for name, weight in model.hubert.feature_extractor.named_parameters():
        weight.requires_grad_(frozen is None or not name.startswith(frozen))
    found = []
    for enabled in (False, True):
        model.set_fast_path(enabled)
        for needed in (True, False):
            model.zero_grad()
            given = samples.clone().requires_grad_(needed)
            model(given, labels=LABELS).loss.backward()
            weights = model.hubert.feature_extractor.parameters()
            found.append([each.grad for each in (given, *weights)])
    assert found[0][0].abs().max() > 0
    for plain, fast in zip(found[0] + found[1], found[2] + found[3], strict=True):
        assert (plain is None) == (fast is None)
        assert plain is None or torch.allclose(plain, fast, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_samples_need_not_lie_together(samples):
    model = make_model()
    model.set_fast_path()
    apart = torch.stack([samples, samples], dim=2)
    for given in (apart[:, :, 0], apart.permute(2, 1, 0)[0].t(), samples[:1].expand(2, -1)):
        assert torch.equal(model(given).logits, model(given.contiguous()).logits)


@torch.inference_mode()
def test_adapters_within_the_cnn_are_not_passed_by(samples):
    class Doubled(torch.nn.Module):
        """A convolution with something around it, as peft makes them; its weight alone says not all."""

        def __init__(self, conv):
            super().__init__()
            self.conv, self.weight, self.bias = conv, conv.weight, conv.bias
            self.kernel_size, self.stride, self.in_channels = conv.kernel_size, conv.stride, conv.in_channels

        def forward(self, values):
            return 2 * self.conv(values)

    model = make_model()
    layer = model.hubert.feature_extractor.conv_layers[1]
    layer.conv = Doubled(layer.conv)
    expected = model(samples).logits
    model.set_fast_path()
    assert torch.allclose(model(samples).logits, expected, rtol=0, atol=1e-5)


def test_gradients_of_gradients_are_refused():
    """They would be zero."""
    linear = torch.nn.Linear(8, 4)
    linear.__class__ = fast_path_exhubert.FastLinear
    values = torch.randn(3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(linear(values).square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("kind", ["base", "large"])
def test_layers_that_are_computed_twice_drop_the_same(samples, kind):
    """Under gradient checkpointing, whose gradients are those without it, bit for bit."""
    gradients = []
    for twice in (False, True):
        model = make_model(kind, hidden_dropout=0.2, attention_dropout=0.2, activation_dropout=0.2, mask_time_prob=0.0)
        model.set_fast_path()
        if twice:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        model.train()(samples, labels=LABELS).loss.backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert all(torch.equal(once, again) for once, again in zip(*gradients, strict=True))


def test_the_fast_path_is_not_saved(samples, tmp_path):
    model = make_model()
    expected = model(samples).logits
    model.set_fast_path()
    model.save_pretrained(tmp_path)
    loaded = ExHuBERTForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(samples).logits, expected)
    assert "fast" not in (tmp_path / "config.json").read_text()


def test_elsewhere_than_in_float32_on_the_cpu_nothing_changes(samples):
    model = make_model().double()
    expected = model(samples.double()).logits
    model.set_fast_path()
    assert torch.equal(model(samples.double()).logits, expected)
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(samples).logits
        model.set_fast_path()
        assert torch.equal(model(samples).logits, expected)


def test_dropout_of_the_fast_path_keeps_what_it_should():
    torch.manual_seed(0)
    values = torch.ones(1000, 1001)
    dropped = fast_path_exhubert.FastDropout(0.1)(values)
    kept = dropped != 0
    # Of four decisions that come from one random number, each is made as often, and for itself.
    shares = kept.view(-1)[:1_000_000].view(-1, 4).double()
    assert torch.allclose(shares.mean(dim=0), torch.full((4,), 0.9, dtype=torch.double), atol=0.002)
    assert torch.corrcoef(shares.T).fill_diagonal_(0).abs().max() < 0.01
    assert dropped[kept].unique().item() == pytest.approx(1 / 0.9, rel=1e-4)
    assert torch.equal(fast_path_exhubert.FastDropout(0.1).eval()(values), values)
    assert not fast_path_exhubert.FastDropout(1.0)(values).any()


def test_gradients_of_the_fast_paths_functions_are_right():
    query, key, value = (torch.randn(2, 2, 5, 3, dtype=torch.double, requires_grad=True) for _ in range(3))

    def attend(*inputs):
        torch.manual_seed(0)
        return fast_path_exhubert._AttentionWithDropout.apply(*inputs, 0.5, 0.3)

    def drop(values):
        torch.manual_seed(0)
        return fast_path_exhubert._Dropout.apply(values, 0.3)

    assert torch.autograd.gradcheck(attend, (query, key, value))
    assert torch.autograd.gradcheck(drop, (query,))
    torch.manual_seed(0)
    kept, scale = fast_path_exhubert._draw_kept(torch.Size((2, 2, 5, 5)), 0.3)
    shares = torch.softmax(0.5 * query @ key.transpose(2, 3), dim=-1) * kept * scale
    assert torch.allclose(attend(query, key, value), shares @ value)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_training_on_the_fast_path_is_the_same_on_average(monkeypatch, kind):
    """And it is that path: on any release of transformers what it replaces is there."""
    taken, shares = [], fast_path_exhubert._attention_shares
    monkeypatch.setattr(fast_path_exhubert, "_attention_shares", lambda *args: taken.append(1) or shares(*args))
    model = make_model(kind, attention_dropout=0.3).train()
    attention = model.hubert.encoder.layers[0].attention
    states = torch.randn(2, 12, model.config.hidden_size)
    means = []
    for enabled in (False, True):
        model.set_fast_path(enabled)
        means.append(torch.stack([attention(states)[0].detach() for _ in range(2000)]).mean(dim=0))
    assert torch.allclose(*means, atol=0.05 * means[0].std().item())
    assert len(taken) == 2000
    kinds = {type(module) for module in model.modules()}
    assert {*modeling_exhubert.FAST_PATH.values()} - kinds == {modeling_exhubert.FastIdentityLinear}
    assert not {*modeling_exhubert.FAST_PATH} & kinds


def test_training_on_the_fast_path_repeats_from_its_seed(samples):
    model = make_model().train()
    model.freeze_feature_encoder()
    model.set_fast_path()
    time_mask = torch.zeros(model(samples, output_hidden_states=True).hidden_states[0].shape[:2], dtype=torch.bool)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(samples, labels=LABELS, mask_time_indices=time_mask).loss.item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", ["base", "large"])
def test_a_training_update_never_waits_for_the_device(kind):
    """On the meta device, which has no values to read."""
    model = make_model(kind, mask_feature_prob=0.1, mask_feature_length=4, hidden_dropout=0.1).to("meta").train()
    model.freeze_og_encoder()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    samples, labels = torch.empty(2, 4000, device="meta"), torch.empty(2, dtype=torch.long, device="meta")
    masked = torch.empty(2, 12, dtype=torch.bool, device="meta")
    for time_mask in (masked, None):  # drawn on the CPU
        model(samples, labels=labels, mask_time_indices=time_mask).loss.backward()
    optimizer.step()
    with torch.inference_mode():
        model.eval()(samples)


def test_masked_frames_are_replaced_as_hubert_does_it(samples):
    model = make_model().train()
    states = torch.randn(2, 14, model.config.hidden_size)
    time_mask = torch.rand(2, 14) < 0.5
    expected = states.clone()
    expected[time_mask] = model.hubert.masked_spec_embed
    assert torch.equal(model.hubert._mask_hidden_states(states, time_mask), expected)
    with pytest.raises(
        ValueError, match=r"mask_time_indices is torch.bool of shape \(2, 3\); .* \(2, 24\), a frame each"
    ):
        model(samples, mask_time_indices=time_mask[:, :3])


@pytest.mark.parametrize("changes", [{}, {"gate_original_layers": True}])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_compiled_layers_share_their_graphs(samples, kind, changes):
    """Six layers, two graphs; none is broken, or `fullgraph` would raise."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(kind, num_hidden_layers=6, **changes)
    compiled = copy.deepcopy(model)
    compiled.compile_layers(backend="eager", fullgraph=True)
    for output_hidden_states in (False, True):
        got = compiled(samples, labels=LABELS, output_hidden_states=output_hidden_states)
        expected = model(samples, labels=LABELS, output_hidden_states=output_hidden_states)
        assert torch.equal(got.logits, expected.logits)
    assert len(got.hidden_states) == 7
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    got.loss.backward()
    expected.loss.backward()
    for (name, parameter), expected_parameter in zip(compiled.named_parameters(), model.parameters(), strict=True):
        assert (parameter.grad is None) == (expected_parameter.grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, expected_parameter.grad), name


def test_a_deep_copy_of_compiled_layers_computes_with_its_own_weights(samples):
    torch._dynamo.reset()
    model = make_model()
    model.compile_layers(backend="eager")
    copied = copy.deepcopy(model)
    with torch.inference_mode():
        expected = model(samples).logits
        for weight in copied.hubert.encoder.layers.parameters():
            weight.zero_()
        assert not torch.equal(copied(samples).logits, expected)
        assert torch.equal(model(samples).logits, expected)


@torch.inference_mode()
def test_compiled_layers_take_more_shapes_than_are_compiled(samples):
    torch._dynamo.reset()
    model = make_model()
    compiled = copy.deepcopy(model)
    compiled.compile_layers(backend="eager")
    for clips in (*range(1, 8), 1):
        given = samples[:1].expand(clips, -1)
        assert torch.equal(compiled(given).logits, model(given).logits)
