"""HuBERT checkpoint to ExHuBERT model folder: the same function, with copies that can learn."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.convert.checkpoint import Checkpoint, as_trained, check_same_function, on_meta, write_weights
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import HEAD, ExHuBERTForSequenceClassification, expanded_weight, hubert_name
from exhubert.utils.files import whole_folder

UNTRAINED = {
    "Not trained yet": "The classification head is new: what it answers means nothing before the model was trained."
}  # a section of the card


def convert_hubert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    num_copies: int = 1,
    revision: str | None = None,
) -> Path:
    """Expands a HuBERT checkpoint, proves that the expanded model computes the same, and writes its model folder.

    Weights go from file to file and keep their dtypes; neither model is ever whole in memory. The folder is written
    beside `destination`, computed from there, compared with the source on seeded input, and renamed only if all
    logits are equal bit for bit. A source without a classification head gets a new one, the same on every run.

    Args:
        source: Hub id or folder of a `HubertModel`, `HubertForCTC` (its head is left out) or
            `HubertForSequenceClassification` (head, labels and layer weights are kept).
        destination: the model folder; must not exist, or be empty.
        num_copies: copies of each encoder layer.
        revision: of the Hub repo.

    Raises:
        OSError: if the source is neither a folder nor to be had from the Hub.
        ValueError: if it is no HuBERT, the destination is taken, or the logits differ.
    """
    with whole_folder(destination) as unfinished:
        checkpoint = Checkpoint(source, revision)
        hubert_config = read_hubert_config(checkpoint)
        config = ExHuBERTConfig.from_hubert_config(hubert_config, num_copies)
        hubert_config.id2label, hubert_config.label2id = config.id2label, config.label2id
        hubert = on_meta(HubertForSequenceClassification, hubert_config)
        model = on_meta(ExHuBERTForSequenceClassification, config)

        new = checkpoint.fit(hubert)
        config.dtype = checkpoint.dtype
        print(f"{source}: {hubert_config.num_hidden_layers} encoder layers expanded to ", end="")
        print(f"{config.num_hidden_layers}, {model.num_parameters():,} parameters")
        if checkpoint.left_out:
            print(f"left out: {', '.join(checkpoint.left_out)}")
        new_head = any(name.startswith(HEAD) for name in new)
        if new_head:
            print(f"it has no classification head: a new one, for {config.num_labels} classes")

        def expanded(name: str) -> torch.Tensor:
            return expanded_weight(name, like[name].shape, like[name].dtype, num_copies, checkpoint.read)

        like = {}
        for name, tensor in model.state_dict().items():
            kept = checkpoint.like.get(hubert_name(name, num_copies) or "")
            dtype = checkpoint.dtype if kept is None else kept.dtype
            like[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
        save_model_folder(
            model,
            unfinished,
            checkpoint.window_seconds,
            write_weights=partial(write_weights, like=like, read=expanded),
            source=checkpoint.source,
            sections=UNTRAINED if new_head else None,
        )
        check_same_function("the source's", (as_trained(hubert), checkpoint.read), (model, Checkpoint(unfinished).read))
    print(f"written to {os.path.realpath(destination)}")
    return Path(destination)


def read_hubert_config(checkpoint: Checkpoint) -> HubertConfig:
    """Returns the checkpoint's configuration; raises ValueError if it is not a HuBERT's."""
    model_type = checkpoint.config.get("model_type")
    if model_type != "hubert":
        remedy = ": it is expanded already" if model_type == ExHuBERTConfig.model_type else ""
        raise ValueError(f"{checkpoint.source}: model_type is {model_type!r}, not 'hubert'{remedy}")
    return checkpoint.make_config(HubertConfig)
