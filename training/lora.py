"""LoRA through `peft`, inside the model, so that what is saved can be the plain model.

Checkpoints and final model are model folders with LoRA merged into the weights, which load without `peft`. What a
merged weight was made of cannot be got back exactly, so a checkpoint has the parts as well, in `lora.safetensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from exhubert.modeling_exhubert import HEAD
from exhubert.utils.files import whole_file

PARTS_FILE = "lora.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def add_lora(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    target_modules: Sequence[str] = ATTENTION,
) -> None:
    """Puts LoRA on linear layers of the encoder; of the rest only the head stays trainable, in full.

    Args:
        model: is changed.
        rank, alpha, dropout: `alpha / rank` scales what is added to a layer; dropout is on its input.
        target_modules: last names of the layers; by default the attention's projections.

    Raises:
        ValueError: if peft is not installed, or the model has no such layers, or does not call them.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora needs peft: pip install peft") from error

    if model.config.model_type == "wavlm" and set(target_modules) & set(ATTENTION):
        raise ValueError(
            "lora cannot reach WavLM's attention projections, whose weights its forward reads past them; give "
            "target_modules: [intermediate_dense, output_dense]"
        )
    names = [name for name, _ in model.named_modules() if ".layer" in name and name.split(".")[-1] in target_modules]
    if not names:
        raise ValueError(f"lora's target_modules {list(target_modules)} are no layers of {type(model).__name__}")
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": names}
    inject_adapter_in_model(LoraConfig(**settings), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(HEAD))
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # or its output would be computed with a graph


def save_lora_parts(model: torch.nn.Module, directory: Path, weights: dict[str, Any] | None = None) -> None:
    """Writes what a checkpoint needs beside its merged weights; without LoRA nothing.

    Args:
        model: any model.
        directory: the checkpoint.
        weights: where they are not `model.state_dict()` (sharded training).
    """
    weights = model.state_dict() if weights is None else weights
    parts = {name: tensor.contiguous() for name, tensor in weights.items() if _is_part(name)}
    if parts:
        with whole_file(directory / PARTS_FILE) as unfinished:
            save_file(parts, unfinished)


def load_lora_parts(model: torch.nn.Module, directory: Path) -> None:
    """Puts the parts of a checkpoint into a model that has the checkpoint's other weights; without LoRA nothing.

    Raises:
        ValueError: if the checkpoint's LoRA is another than the model's.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_part(name)}
    path = directory / PARTS_FILE
    parts = load_file(path) if path.is_file() else {}
    if wanted != {name: tensor.shape for name, tensor in parts.items()}:
        raise ValueError(f"{directory} was trained with another `lora`, or without it; resume with the run's recipe")
    model.load_state_dict(parts, strict=False)


def _is_part(name: str) -> bool:
    return ".lora_" in name or name.endswith(".base_layer.weight")
