"""The model in half precision, and where the processor computes that wrongly.

python -m pytest tests/test_model_precision.py
"""

from __future__ import annotations

import pytest
import torch

from exhubert import modeling_exhubert
from small_models import NO_DROPOUT, WIDE, make_model


@pytest.fixture
def samples(samples):
    return samples[:, :2400]


@pytest.fixture
def mask(samples):
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 1500:] = 0
    return mask


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_half_precision_is_close_to_single(samples, mask, kind, dtype, tolerance):
    model = make_model(kind, use_weighted_layer_sum=True, **WIDE)
    with torch.inference_mode():
        expected = model(samples, mask).logits
        got = model.to(dtype)(samples.to(dtype), mask).logits
    assert got.dtype == dtype
    assert (got.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_refused_where_the_processor_computes_a_convolution_wrongly(samples, monkeypatch, autocast):
    tried = []

    def narrow_ones_are_wrong(*sizes):
        tried.append(sizes)
        return 1.1 if sizes[:2] == (16, 16) else 0.003

    monkeypatch.setattr(modeling_exhubert, "bfloat16_error", narrow_ones_are_wrong)
    model = make_model()
    model(samples)
    assert not tried  # float32
    samples = samples if autocast else samples.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match="ONEDNN_MAX_CPU_ISA"):
        (model if autocast else model.bfloat16())(samples)
    wide = make_model("large", 1, **WIDE).bfloat16()
    for _ in range(2):
        wide(samples.bfloat16())
    assert tried[-1] == (1024, 1024, 128, 1, 16)
    assert len(tried) == 2 + 8  # once for each convolution


def test_how_far_bfloat16_is_from_float32_here():
    for sizes in ((512, 512, 3, 2, 1), (1024, 1024, 128, 1, 16)):
        assert 0 < modeling_exhubert.bfloat16_error(*sizes) < 0.01


def test_training_under_autocast_is_close_to_single_precision(samples, mask):
    model = make_model(**NO_DROPOUT, **WIDE).train()
    model.freeze_og_encoder()

    def step(enabled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(samples, mask, labels=torch.tensor([0, 1])).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected_loss, expected = step(enabled=False)
    loss, got = step(enabled=True)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert any(".layers.1." in name for name in got)
    assert got.keys() == expected.keys()
    flat, expected_flat = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (got, expected))
    assert torch.nn.functional.cosine_similarity(flat, expected_flat, dim=0) > 0.99
