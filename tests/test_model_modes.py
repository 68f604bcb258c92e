"""The model in every mode: attention, checkpointing, compilation, export.

python -m pytest tests/test_model_modes.py
"""

from __future__ import annotations

import copy
import importlib.util
import shutil

import pytest
import torch
from transformers import HubertConfig, HubertModel

from conftest import SMALL
from exhubert import ExHuBERTForSequenceClassification, ExHuBERTModel, modeling_exhubert
from small_models import NO_DROPOUT, STANDARD_CNN, make_model


@pytest.mark.parametrize("num_copies", [0, 1, 2])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_eager_and_sdpa_attention_agree(samples, mask, kind, num_copies):
    check_that_it_computes_what_eager_computes("sdpa", samples, mask, kind, num_copies)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="on a CPU, flex attention is compiled with a C++ compiler")
@pytest.mark.skipif(" " in torch.__file__, reason="torch's compiler does not work where its path has a space")
def test_eager_and_flex_attention_agree(samples, mask):
    heads_of_32 = {"num_attention_heads": 1}
    check_that_it_computes_what_eager_computes("flex_attention", samples, mask, "large", 1, **heads_of_32)


def test_flex_attention_is_refused_where_torch_computes_it_wrongly(samples, monkeypatch):
    monkeypatch.setattr(modeling_exhubert, "HAS_AVX512", False)
    model = make_model(num_attention_heads=2)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r'heads of 16 values is wrong .* use attn_implementation="sdpa"'):
        model(samples)


@torch.inference_mode()
def check_that_it_computes_what_eager_computes(implementation, samples, mask, kind, num_copies, **changes):
    model = make_model(kind, num_copies, **changes)
    for attention_mask in (None, mask):
        model.set_attn_implementation("eager")
        expected = model(samples, attention_mask, output_hidden_states=True)
        model.set_attn_implementation(implementation)
        got = model(samples, attention_mask, output_hidden_states=True)
        assert model.hubert.config._attn_implementation == implementation
        assert torch.allclose(got.logits, expected.logits, atol=1e-5)
        for state, expected_state in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert torch.allclose(state[:, :14], expected_state[:, :14], atol=1e-5)  # both clips have 14 frames
        assert torch.equal(got.hidden_states[-1], model.hubert(samples, attention_mask).last_hidden_state)


@pytest.mark.skipif(bool(importlib.util.find_spec("flash_attn")), reason="flash_attn is installed")
def test_flash_attention_that_is_not_installed_is_asked_for_by_name(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match=r"FlashAttention2.*installed"):
        ExHuBERTForSequenceClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("num_copies", [0, 1, 2])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_attentions_of_every_layer(tmp_path, samples, kind, num_copies):
    make_model(kind, num_copies).save_pretrained(tmp_path)
    by_config = {"attn_implementation": "eager", "output_attentions": True}
    model = ExHuBERTForSequenceClassification.from_pretrained(tmp_path, **by_config).eval()
    with torch.inference_mode():
        for outputs in (model(samples), model.hubert(samples, output_attentions=True)):
            assert len(outputs.attentions) == 2 * (num_copies + 1)
            for attentions in outputs.attentions:
                assert attentions.shape == (2, 2, 24, 24)
                assert torch.allclose(attentions.sum(-1), torch.ones(2, 2, 24), atol=1e-5)
        assert model(samples, output_attentions=False).attentions is None
        assert torch.equal(model(samples, return_dict=False)[1][-1], model(samples).attentions[-1])


def test_attentions_that_the_implementation_does_not_give_are_refused(samples):
    message = "this model has 'sdpa': load it with attn_implementation=\"eager\" or call model.set_attn_implementation"
    for model in (make_model(), make_model(cls=ExHuBERTModel)):
        with pytest.raises(ValueError, match=message):
            model(samples, output_attentions=True)
        model.set_attn_implementation("eager")
        assert len(model(samples, output_attentions=True).attentions) == 4
    with pytest.raises(ValueError, match=message):
        make_model(output_attentions=True)(samples)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_the_last_hidden_state_comes_last(samples, kind, implementation):
    model = make_model(kind, cls=ExHuBERTModel, **NO_DROPOUT)
    model.set_attn_implementation(implementation)
    for checkpointing in (False, True):
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        outputs = model(samples, output_hidden_states=True)
        last, states = model(samples, output_hidden_states=True, return_dict=False)
        assert len(states) == len(outputs.hidden_states) == 5
        assert all(state.shape == (2, 24, 32) for state in states)
        assert all(torch.equal(state, same) for state, same in zip(states, outputs.hidden_states, strict=True))
        assert torch.equal(states[-1], last)
        assert torch.equal(last, outputs.last_hidden_state)


@pytest.mark.parametrize("frozen", [False, True], ids=["nothing frozen", "CNN and originals frozen"])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_gradient_checkpointing_gives_the_same_gradients(samples, mask, kind, frozen):
    model = make_model(kind, **NO_DROPOUT).train()
    if frozen:
        model.freeze_og_encoder()
        model.freeze_feature_encoder()

    def step():
        model.zero_grad()
        outputs = model(samples, mask, labels=torch.tensor([0, 1]), output_hidden_states=True)
        outputs.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return gradients, outputs.hidden_states

    expected, expected_states = step()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    model.hubert.encoder.layers[1].attention.q_proj.register_forward_hook(count)
    for use_reentrant in (False, True):
        calls = 0
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        got, states = step()
        assert calls == 2  # forward, and again in the backward pass
        assert got.keys() == expected.keys()
        for name, gradient in got.items():
            assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name
        assert all(torch.equal(state, same) for state, same in zip(states, expected_states, strict=True))


def lengths_and_masks():
    """Inputs `(batch, samples)` of other sizes than the one that is traced, two frames being the shortest."""
    for batch, length in ((2, 720), (5, 4321), (3, 16_000)):
        inputs = torch.randn(batch, length, generator=torch.Generator().manual_seed(length))
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[-1, length - 240 :] = 0
        yield inputs, mask


def check_traced(traced, model, masked, **options):
    for inputs, mask in lengths_and_masks():
        given = {"input_values": inputs, **({"attention_mask": mask} if masked else {}), **options}
        with torch.no_grad():
            expected, got = model(**given), traced(**given)
        assert (got.logits - expected.logits).abs().max() < 1e-5
        for state, expected_state in zip(got.hidden_states or (), expected.hidden_states or (), strict=True):
            assert (state - expected_state).abs().max() < 1e-4


@pytest.fixture(scope="module")
def compiles_whole():
    """Whether this release's own HuBERT compiles without a graph break; 5.0 to 5.10 log inside their forward."""
    model = HubertModel(HubertConfig(**SMALL)).eval()
    torch._dynamo.reset()
    try:
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 8000))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "masked", "weighted", "output_hidden_states"),
    [
        pytest.param("base", False, False, True, marks=pytest.mark.heavy, id="post-norm, hidden states"),
        pytest.param("large", True, True, False, id="pre-norm, mask, weighted sum"),
    ],
)
def test_compiled_it_computes_the_same(compiles_whole, kind, masked, weighted, output_hidden_states):
    model = make_model(kind, **STANDARD_CNN, use_weighted_layer_sum=weighted)
    torch._dynamo.reset()
    # A copy, so that nothing has run when it is traced.
    compiled = torch.compile(copy.deepcopy(model), fullgraph=compiles_whole, dynamic=True, backend="eager")
    check_traced(compiled, model, masked, output_hidden_states=output_hidden_states)


@pytest.mark.parametrize(
    ("kind", "masked", "weighted"),
    [
        pytest.param("base", False, False, marks=pytest.mark.heavy, id="post-norm"),
        pytest.param("base", True, True, id="post-norm, mask, weighted sum"),
        pytest.param("large", True, False, marks=pytest.mark.heavy, id="pre-norm, mask"),
        pytest.param("large", False, True, id="pre-norm, weighted sum"),
    ],
)
def test_exported_it_computes_the_same(kind, masked, weighted):
    model = make_model(kind, **STANDARD_CNN, use_weighted_layer_sum=weighted)
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("samples", min=720, max=480_000)}
    given = {"input_values": torch.randn(4, 8000)}
    if masked:
        given["attention_mask"] = torch.ones(4, 8000, dtype=torch.long)
    exported = torch.export.export(
        copy.deepcopy(model),
        (),
        {**given, "output_hidden_states": True},
        dynamic_shapes={**dict.fromkeys(given, shape), "output_hidden_states": None},
        strict=False,
    )
    check_traced(exported.module(), model, masked, output_hidden_states=True)
