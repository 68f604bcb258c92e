"""Models with random weights and audio of noise, for measurements to which only sizes matter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import HubertConfig, HubertForSequenceClassification, PreTrainedModel

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.convert.checkpoint import on_meta, write_weights
from exhubert.model_folder import save_model_folder

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (80, 8, 5),
    "conv_stride": (16, 4, 5),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}


def write_random_hubert(directory: Path, **sizes: Any) -> Path:
    """Writes a HuBERT with a head for the six classes; `sizes` are fields of its configuration."""
    config = HubertConfig(**sizes, id2label=dict(enumerate(SIX_CLASSES)))
    return write_random_model(directory, HubertForSequenceClassification, config)


def write_random_model(directory: Path, model_class: type[PreTrainedModel], config: Any) -> Path:
    """Writes a model folder shard by shard, so that the model may be larger than memory; returns the folder."""
    model = on_meta(model_class, config)
    like = model.state_dict()
    torch.manual_seed(0)

    def random(name: str) -> torch.Tensor:
        return 0.02 * torch.randn(like[name].shape) + ("norm.weight" in name)

    return save_model_folder(model, directory, write_weights=partial(write_weights, like=like, read=random))


def write_noise(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> Path:
    """Writes bursts of a second, each of another loudness; returns the path."""
    generator = np.random.default_rng(0)
    left = round(seconds * rate)
    with soundfile.SoundFile(path, "w", rate, channels) as file:
        while left > 0:
            burst = generator.standard_normal((min(rate, left), channels), dtype=np.float32)
            file.write(generator.uniform(0.001, 0.1) * burst)
            left -= rate
    return path
