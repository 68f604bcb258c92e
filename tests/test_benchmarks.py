"""The benchmarks: what is counted is what is computed; the tables say what was measured and what could not be.

python -m pytest tests/test_benchmarks.py
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertForSequenceClassification

from conftest import HUBERT_KINDS, SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.benchmarks.arithmetic import (
    COPIES,
    FEATURE_ENCODER,
    ORIGINALS,
    forward_products,
    total_flops,
    training_products,
)

FREEZERS = {FEATURE_ENCODER: "freeze_feature_encoder", ORIGINALS: "freeze_og_encoder"}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"num_copies": 0}, [FEATURE_ENCODER]),
        ({"num_copies": 2}, [FEATURE_ENCODER, ORIGINALS]),
        ({"num_copies": 2, "gate_original_layers": True}, [FEATURE_ENCODER]),
        ({"num_copies": 0, **HUBERT_KINDS["base"], "num_conv_pos_embeddings": 15}, [FEATURE_ENCODER]),
    ],
)
def test_the_counted_operations_are_those_that_torch_computes(changes, frozen, training):
    options = {"attn_implementation": "eager", "mask_time_prob": 0.0}
    if training:  # where torch counts the gradients of a grouped convolution as if it had one group
        options["num_conv_pos_embedding_groups"] = 1
    config = ExHuBERTConfig(**{**SMALL, **options, **changes})
    model = ExHuBERTForSequenceClassification(config).train()
    for part in frozen:
        getattr(model, FREEZERS[part])()
    clips = torch.randn(2, 8000)
    counted = training_products(config, 2, 0.5, frozen) if training else forward_products(config, 2, 0.5)
    with FlopCounterMode(display=False) as counter:
        loss = model(clips, labels=torch.tensor([0, 1])).loss
        if training:
            loss.backward()
    assert total_flops(counted) == counter.get_total_flops()
