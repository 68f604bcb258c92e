"""The model of a recipe: loaded with a head for the classes, expanded, frozen; and the table of its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel

from exhubert.configuration_exhubert import REGRESSION, ExHuBERTConfig
from exhubert.model_folder.load import load_classifier, loading, read_config
from exhubert.modeling_exhubert import DIMENSION_HEAD, HEAD, ExHuBERTForSequenceClassification
from exhubert.training.arguments import Recipe
from exhubert.training.lora import Lora, add_lora
from exhubert.utils.text import markdown_table

PARTS = ("CNN feature encoder", "feature projection", "original layers", "copies", "other encoder", "LoRA", "head")


def load_model(
    recipe: Recipe,
    class_names: list[str],
    trust_remote_code: bool = False,
    dimensions: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> tuple[PreTrainedModel, list[str]]:
    """Loads the recipe's model with a head for classes, dimensions or both, expands it if asked to, freezes its parts.

    Its weights are float32, whatever the checkpoint's are: in half precision updates of 1e-5 would be lost.

    Args:
        recipe: what is trained on what.
        class_names: in class order; none of a model of dimensions alone.
        trust_remote_code: whether code that the model brings may run.
        dimensions: with their scales, in the order of their names.

    Returns:
        The model, and the names of the weights that its checkpoint does not have.

    Raises:
        ValueError: if it does not exist, is no audio model, cannot be expanded, or lacks a part that is to be frozen.
    """
    source = read_config(recipe.model, trust_remote_code)
    if "onnx" in source:
        raise ValueError(
            f"{recipe.model} is an ONNX model, which cannot be trained; train the one it was exported from"
        )
    kind = source.get("model_type")
    ours = kind == ExHuBERTConfig.model_type
    alone, both = not class_names, bool(class_names and dimensions)
    names = list(dimensions) if alone else class_names
    options: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "dtype": torch.float32,
    }
    other_kind = alone != (source.get("problem_type") == REGRESSION)  # classes are to be dimensions, or the reverse
    if alone or other_kind:
        options["problem_type"] = REGRESSION if alone else None
    num_copies = copies_of(recipe, source, both)
    # Of a sum over layers transformers' HuBERT has another meaning from 5.16 on; ours has one on every release.
    plain = kind == "hubert" and (recipe.expand_copies or recipe.weighted_layer_sum or both)
    if plain or (ours and recipe.expand_copies and not num_copies):
        if other_kind and not alone:
            options["problem_type"] = "single_label_classification"  # None would be the HuBERT's
        with loading(recipe.model, "the model cannot be loaded"):
            model = ExHuBERTForSequenceClassification.from_hubert(
                *(recipe.model, recipe.expand_copies, recipe.gate_original_layers),
                dimensions=dict(dimensions),
                **options,
            )
        has_head = any("ForSequenceClassification" in name for name in source.get("architectures") or ())
        new = [] if has_head and len(source.get("id2label", "01")) == len(names) else ["the classification head"]
    else:
        options |= {"dimensions": dict(dimensions)} if ours and (dimensions or source.get("dimensions")) else {}
        options |= {"ignore_mismatched_sizes": True}
        options |= {"gate_original_layers": True} if recipe.gate_original_layers else {}
        model, new = load_classifier(recipe.model, trust_remote_code, **options)
        new = [name for name in new if ".identity_linear." not in name]  # these start as the identity
        if dimensions or hasattr(model.config, "dimensions"):
            model.config.dimensions = {name: list(scale) for name, scale in dimensions.items()}
    new = [*start_anew(model, source, names, new, other_kind), *new]
    if recipe.weighted_layer_sum and not hasattr(model, "layer_weights"):
        new = [*new, "layer_weights"]
    prepare(model, recipe)
    return model, new


def copies_of(recipe: Recipe, source: Mapping[str, Any], both: bool) -> int:
    """Returns how many copies of each layer the recipe's model has, by its configuration `source`.

    Raises:
        ValueError: if it cannot be expanded as the recipe says, or not have the two heads that it is to have (`both`).
    """
    kind = source.get("model_type")
    ours = kind == ExHuBERTConfig.model_type
    with loading(recipe.model, "config.json cannot be used"):
        num_copies = ExHuBERTConfig.from_dict(dict(source)).num_copies if ours else 0
    if recipe.expand_copies and not (kind == "hubert" or (ours and num_copies in (0, recipe.expand_copies))):
        has = f"an ExHuBERT with {num_copies} copies of each layer" if ours else f"a {kind!r} model"
        raise ValueError(
            f"expand_copies is {recipe.expand_copies}, but {recipe.model} is {has}; give a plain HuBERT"
            + (", such as `exhubert convert contract` makes of it" if ours else "")
        )
    if recipe.gate_original_layers and not (num_copies or recipe.expand_copies):
        raise ValueError("gate_original_layers is for an expanded model; give `expand_copies: 1` as well")
    if both and not (ours or kind == "hubert"):
        raise ValueError(
            f"targets beside labels are for a HuBERT or ExHuBERT, and {recipe.model} is a {kind!r} model; train them "
            "alone (labels: none), or leave them out"
        )
    return num_copies


def start_anew(
    model: PreTrainedModel, source: Mapping[str, Any], names: list[str], new: list[str], other_kind: bool
) -> list[str]:
    """Starts the layers anew that were trained for other outputs; returns the names of their weights.

    Args:
        model: as loaded.
        source: the configuration that it was loaded with.
        names: what its logits are.
        new: the weights that are new as it is.
        other_kind: whether what were classes are to be dimensions, or the reverse.
    """
    known = source.get("id2label") or {}
    listed = [str(known[index]) for index in sorted(known, key=int)]
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in listed)  # such heads are taken for ours
    layers = []
    if all(name.startswith(DIMENSION_HEAD) for name in new) and listed != names and (other_kind or not unnamed):
        layers.append("classifier.out_proj" if hasattr(model.classifier, "out_proj") else "classifier")
    has_head = hasattr(model, "dimension_head") and not any(name.startswith(DIMENSION_HEAD) for name in new)
    if has_head and sorted(source.get("dimensions") or ()) != list(model.config.dimensions):
        layers.append("dimension_head")
    for layer in layers:
        output = model.get_submodule(layer)
        torch.nn.init.normal_(output.weight, std=getattr(model.config, "initializer_range", 0.02))
        torch.nn.init.zeros_(output.bias)
    return [f"{layer}.{name}" for layer in layers for name in ("bias", "weight")]


def prepare(model: PreTrainedModel, recipe: Recipe) -> None:
    """Gives a loaded model the recipe's weighted layer sum and LoRA, and freezes its parts.

    LayerDrop is switched off: a skipped layer has no gradient, which several processes do not stand. The temperature
    of a calibrated model goes, for it is that of the weights before.

    Raises:
        ValueError: if the model does not have what the recipe names.
    """
    if getattr(model.config, "layerdrop", 0):
        model.config.layerdrop = 0.0
    if hasattr(model.config, "calibration_temperature"):
        model.config.calibration_temperature = 1.0
    if recipe.weighted_layer_sum and not hasattr(model, "layer_weights"):
        if not hasattr(model, "projector") or not hasattr(model.config, "use_weighted_layer_sum"):
            raise ValueError(f"weighted_layer_sum is something that {type(model).__name__} does not have")
        model.config.use_weighted_layer_sum = True  # transformers' classes know it; all weights are alike at first
        states = model.config.num_hidden_layers + 1
        model.layer_weights = torch.nn.Parameter(torch.full((states,), 1.0 / states))
    # What training computes nothing with is frozen: several processes wait for the gradient of all that is trainable.
    masked = getattr(model.base_model, "masked_spec_embed", None)
    if masked is not None and not (model.config.apply_spec_augment and model.config.mask_time_prob > 0):
        masked.requires_grad_(False)
    # Of a pre-norm encoder transformers sums the states before the final norm, from 5.16 on; ours has its own meaning.
    normed = (
        getattr(model.config, "do_stable_layer_norm", False) and model.config.model_type != ExHuBERTConfig.model_type
    )
    if normed and getattr(model.config, "use_weighted_layer_sum", False):
        model.base_model.encoder.layer_norm.requires_grad_(False)
    for part in recipe.freeze:
        if part == "base":  # all but the head
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name.startswith(HEAD))
        method = "freeze_og_encoder" if part == "originals" else "freeze_feature_encoder"
        if hasattr(model, method):
            getattr(model, method)()  # of a frozen base, too: else its output would be computed with a graph
        elif part != "base":
            kind = f"{type(model).__name__} does not have (model_type {model.config.model_type!r})"
            raise ValueError(f"freeze names {part!r}, which {kind}; leave it out of freeze")
    if recipe.lora:
        add_lora(model, Lora(**recipe.lora))


def parts_table(model: PreTrainedModel) -> str:
    """Returns a table of a model's parts, those it has, with their total and trainable parameters, and the sums."""
    copies = getattr(model.config, "num_copies", 0)
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        count = counts[part_of(name, copies)]
        count[0] += parameter.numel()
        count[1] += parameter.numel() if parameter.requires_grad else 0
    rows = {part: count for part, count in counts.items() if count[0]}
    rows["all"] = [model.num_parameters(), model.num_parameters(only_trainable=True)]
    cells = [[part, *(f"{number:,}" for number in count)] for part, count in rows.items()]
    return markdown_table(["part", "parameters", "trainable"], cells)


def part_of(name: str, num_copies: int) -> str:
    """Which of `PARTS` a parameter of this name belongs to, in a model with so many copies of each layer."""
    if name.startswith(HEAD):
        return "head"
    if ".lora_" in name:
        return "LoRA"
    layer = re.search(r"\.layers?\.(\d+)\.", name)
    if layer:
        return "copies" if int(layer[1]) % (num_copies + 1) else "original layers"
    if ".feature_extractor." in name:
        return "CNN feature encoder"
    return "feature projection" if ".feature_projection." in name else "other encoder"
