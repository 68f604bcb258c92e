"""LoRA through `peft`, inside the model, so that what is saved can be the plain model.

Checkpoints and final model are model folders with LoRA merged into the weights, which load without `peft`. What a
merged weight was made of cannot be got back exactly, so a checkpoint has the parts as well, in `lora.safetensors`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from exhubert.modeling_exhubert import HEAD
from exhubert.utils.files import whole_file

PARTS_FILE = "lora.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass
class Lora:
    """What a recipe's `lora` may say: the adapters' `rank`, `alpha` and `dropout`, and the layers that get one.

    `alpha / rank` scales what is added to a layer; the dropout is on its input; `target_modules` are the last names of
    layers, by default the attention's projections.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: list(ATTENTION))

    def check(self) -> None:
        """Raises ValueError for a value that is not among the legal ones."""
        for name in ("rank", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"lora: {name} is {getattr(self, name)}; it must be above 0")
        if not self.target_modules:
            raise ValueError(f"lora: target_modules is empty; name layers, e.g. {', '.join(ATTENTION)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora: dropout is {self.dropout}; it must be from 0 to below 1")


def add_lora(model: PreTrainedModel, lora: Lora) -> None:
    """Puts LoRA on linear layers of the encoder of `model`; of the rest only the head stays trainable, in full.

    Raises:
        ValueError: if peft is not installed, or the model has no such layers, or does not call them.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora needs peft: pip install peft") from error

    if model.config.model_type == "wavlm" and set(lora.target_modules) & set(ATTENTION):
        raise ValueError(
            "lora cannot reach WavLM's attention projections, whose weights its forward reads past them; give "
            "target_modules: [intermediate_dense, output_dense]"
        )
    names = [
        name for name, _ in model.named_modules() if ".layer" in name and name.split(".")[-1] in lora.target_modules
    ]
    if not names:
        raise ValueError(f"lora's target_modules {lora.target_modules} are no layers of {type(model).__name__}")
    settings: dict[str, Any] = {"lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": names}
    inject_adapter_in_model(LoraConfig(r=lora.rank, **settings), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(HEAD))
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()  # or its output would be computed with a graph


def save_lora_parts(model: torch.nn.Module, directory: Path, weights: dict[str, Any] | None = None) -> None:
    """Writes what a checkpoint needs beside its merged weights; without LoRA nothing.

    Where training is sharded, `weights` are the whole ones, which `model.state_dict()` is not.
    """
    weights = model.state_dict() if weights is None else weights
    parts = {name: tensor.contiguous() for name, tensor in weights.items() if is_lora_part(name)}
    if parts:
        with whole_file(directory / PARTS_FILE) as unfinished:
            save_file(parts, unfinished)


def load_lora_parts(model: torch.nn.Module, directory: Path) -> None:
    """Puts the parts of a checkpoint into a model that has the checkpoint's other weights; without LoRA nothing.

    Raises:
        ValueError: if the checkpoint's LoRA is another than the model's.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if is_lora_part(name)}
    path = directory / PARTS_FILE
    parts = load_file(path) if path.is_file() else {}
    if wanted != {name: tensor.shape for name, tensor in parts.items()}:
        raise ValueError(f"{directory} was trained with another `lora`, or without it; resume with the run's recipe")
    model.load_state_dict(parts, strict=False)


def is_lora_part(name: str) -> bool:
    """Whether a weight of this name is what a merged one was made of."""
    return ".lora_" in name or name.endswith(".base_layer.weight")
