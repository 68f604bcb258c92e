"""Expanded model back to the plain HuBERT inside it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from transformers import HubertConfig, HubertForSequenceClassification, HubertModel, PreTrainedModel

from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
from exhubert.configuration_exhubert import REGRESSION, ExHuBERTConfig
from exhubert.convert.checkpoint import (
    Checkpoint,
    Read,
    as_trained,
    check_same_function,
    is_at_start,
    on_meta,
    write_weights,
)
from exhubert.convert.hubert import UNTRAINED
from exhubert.model_folder.card import CARD, read_sections, source_metadata, write_card
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import HEAD, LEFT_OUT, ExHuBERTForSequenceClassification, hubert_name
from exhubert.utils.files import whole_folder


def convert_contract(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], revision: str | None = None
) -> Path:
    """Writes the plain HuBERT inside an expanded model: its original layers, without the copies.

    Where the copies add nothing yet, it is the HuBERT that was expanded, bit for bit, and has the expanded model's
    head: the HuBERT's own, or the new one if it had none. Where they were trained, it is a `HubertModel`: the
    originals, which stage 2 freezes, with what lies outside the encoder layers as training left it, and without the
    head, which has learnt on what the copies add. LayerDrop, which expansion switches off, stays off.

    Args:
        source: Hub id or folder of an ExHuBERT.
        destination: the HuBERT's folder; must not exist, or be empty.
        revision: of the Hub repo.

    Raises:
        OSError: if the source is neither a folder nor to be had from the Hub.
        ValueError: if it is no ExHuBERT, its originals end in linear layers that are not the identity, the
            destination is taken, or the HuBERT does not compute what the originals do.
    """
    with whole_folder(destination) as unfinished:
        checkpoint = Checkpoint(source, revision)
        model_type = checkpoint.config.get("model_type")
        if model_type != ExHuBERTConfig.model_type:
            raise ValueError(f"{source}: model_type is {model_type!r}; only an 'exhubert' model can be contracted")
        config = checkpoint.make_config(ExHuBERTConfig)
        model = on_meta(ExHuBERTForSequenceClassification, config)
        lacks_head = any(name.startswith(HEAD) for name in checkpoint.fit(model))
        for name in checkpoint.like:
            if "identity_linear." in name and not is_at_start(checkpoint, name):
                raise ValueError(f"{source}: {name} is not the identity, and a HuBERT has no place for it")
        of_copies = (name for name in checkpoint.like if ".zero_linear." in name)
        trained = next((name for name in of_copies if not is_at_start(checkpoint, name)), None)
        if not trained and "layer_weights" in checkpoint.like:
            weights = checkpoint.read("layer_weights")
            copies = torch.arange(len(weights)) % (config.num_copies + 1) > 0
            trained = None if (weights[copies] <= LEFT_OUT / 2).all() else "layer_weights"

        hubert_config = contracted(config)
        hubert_class = HubertModel if trained or lacks_head else HubertForSequenceClassification
        hubert = on_meta(hubert_class, hubert_config)
        prefix = "hubert." if hubert_class is HubertModel else ""
        like, read = originals_of(checkpoint, model, hubert, prefix)
        hubert_config.dtype = checkpoint.dtype
        print(f"{source}: {config.num_hidden_layers} encoder layers contracted to {hubert_config.num_hidden_layers}")
        if hubert_class is HubertModel:
            print(f"left out: the head, as {trained} was trained" if trained else "it has no classification head")
            hubert_config.architectures = [hubert_class.__name__]
            hubert_config.save_pretrained(unfinished)
            ExHuBERTFeatureExtractor(window_seconds=checkpoint.window_seconds).save_pretrained(unfinished)
            write_weights(unfinished, like, read)
            write_card(unfinished, known=source_metadata(checkpoint.source))
        else:
            print("the copies add nothing yet: the head is kept")
            card = checkpoint.directory / CARD
            said = read_sections(card.read_text(encoding="utf-8")) if card.is_file() else {}
            save_model_folder(
                hubert,
                unfinished,
                checkpoint.window_seconds,
                write_weights=partial(write_weights, like=like, read=read),
                source=checkpoint.source,
                sections=UNTRAINED if said.keys() & UNTRAINED.keys() else None,
            )

        def silenced(name: str) -> torch.Tensor:
            tensor = checkpoint.read(name)
            return torch.zeros_like(tensor) if ".zero_linear." in name else tensor

        reference = (model.hubert, lambda name: silenced(f"hubert.{name}")) if prefix else (model, silenced)
        written = Checkpoint(unfinished)
        of = "the source's without what its copies add" if trained else "the source's"
        check_same_function(of, reference, (as_trained(hubert), lambda name: written.read(prefix + name)))
    print(f"written to {os.path.realpath(destination)}")
    return Path(destination)


def contracted(config: ExHuBERTConfig) -> HubertConfig:
    """Returns the configuration of the HuBERT in an expanded model; says what it has no place for."""
    values = config.to_dict()
    ours = ("num_copies", "gate_original_layers", "custom_pipelines")
    for name in (*ours, "model_type", "architectures", "auto_map", "transformers_version", "num_labels"):
        values.pop(name, None)
    if config.problem_type != REGRESSION and values.pop("dimensions"):
        names = ", ".join(config.dimensions)
        print(f"left out: the head of {names}; a HuBERT answers classes or dimensions, not both")
    values["num_hidden_layers"] //= config.num_copies + 1
    return HubertConfig(**values)


def originals_of(
    checkpoint: Checkpoint, model: PreTrainedModel, hubert: PreTrainedModel, prefix: str
) -> tuple[dict[str, torch.Tensor], Read]:
    """Returns the weights of the HuBERT in an expanded model, on the meta device, and what reads one by its name.

    Args:
        checkpoint: of the expanded model.
        model, hubert: both models, on the meta device.
        prefix: of the HuBERT's names in those of the expanded model.
    """
    num_copies = model.config.num_copies
    originals: dict[str, str] = {}
    for name in model.state_dict():
        originals.setdefault(hubert_name(name, num_copies) or "", name)  # copies follow their original

    def read(name: str) -> torch.Tensor:
        tensor = checkpoint.read(originals[prefix + name])
        return tensor[:: num_copies + 1].clone() if name == "layer_weights" else tensor

    like = {
        name: torch.empty_like(tensor, dtype=checkpoint.like[originals[prefix + name]].dtype)
        for name, tensor in hubert.state_dict().items()
    }
    return like, read
