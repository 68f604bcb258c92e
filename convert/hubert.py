"""HuBERT checkpoint to ExHuBERT model folder: the same function, with copies that can learn."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.model_folder import check_model_folder, save_model_folder
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification

CHECK_SAMPLES = 16_000
CHECK_CLIPS = 2
CHECK_SEED = 0


def convert_hubert(source: str, destination: str | os.PathLike[str], num_copies: int = 1) -> Path:
    """Expands a HuBERT checkpoint, proves that the expanded model computes the same, and writes its model folder.

    The folder is written beside `destination`, loaded from there, compared with the source on seeded input, and
    renamed only if all logits are equal bit for bit.

    Args:
        source: Hub id or folder of a `HubertModel`, `HubertForCTC` or `HubertForSequenceClassification`.
        destination: the model folder; must not exist, or be empty.
        num_copies: copies of each encoder layer.

    Raises:
        ValueError: if the source is no HuBERT, the destination is taken, or the logits differ.
    """
    destination = Path(os.path.abspath(destination))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists already; give a folder that does not, or delete it")
    unchecked = destination.with_name(f".{destination.name}.unchecked-{os.getpid()}") / destination.name
    try:
        model = ExHuBERTForSequenceClassification.from_hubert(source, num_copies)
        print(f"{source}: {model.config.num_hidden_layers // (num_copies + 1)} encoder layers expanded to ", end="")
        print(f"{model.config.num_hidden_layers}, {model.num_parameters():,} parameters")
        save_model_folder(model, unchecked)
        del model
        _check(source, check_model_folder(unchecked))
        if destination.exists():
            destination.rmdir()
        unchecked.rename(destination)
    finally:
        shutil.rmtree(unchecked.parent, ignore_errors=True)
    print(f"written to {destination}")
    return destination


def _check(source: str, converted: Path) -> None:
    model = ExHuBERTForSequenceClassification.from_pretrained(converted)
    generator = torch.Generator().manual_seed(CHECK_SEED)
    samples = torch.randn(CHECK_CLIPS, CHECK_SAMPLES, generator=generator).to(model.dtype)
    with torch.inference_mode():
        expanded = model(samples).logits
        reference = _reference(source, model)(samples).logits
    difference = (expanded.float() - reference.float()).abs().max().item()
    what = f"on {CHECK_CLIPS} x {CHECK_SAMPLES} samples (seed {CHECK_SEED})"
    if not torch.equal(expanded, reference):
        raise ValueError(f"the expanded model's logits differ from those of {source} by up to {difference:.3g} {what}")
    print(f"logits are bit-identical to the source's {what}: largest difference {difference}")


def _reference(source: str, model: ExHuBERTForSequenceClassification) -> torch.nn.Module:
    """The source as transformers runs it, with the expanded model's head where it has none of its own."""
    if model.config.use_weighted_layer_sum:
        # From 5.16 on transformers' own weighted sum is over other states than it was trained with.
        return ExHuBERTForSequenceClassification.from_hubert(source, num_copies=0)
    config = HubertConfig.from_pretrained(source)
    config.id2label, config.label2id = model.config.id2label, model.config.label2id
    reference, report = HubertForSequenceClassification.from_pretrained(source, config=config, output_loading_info=True)
    if any(key.startswith(("projector.", "classifier.")) for key in report["missing_keys"]):
        reference.projector.load_state_dict(model.projector.state_dict())
        reference.classifier.load_state_dict(model.classifier.state_dict())
    return reference.eval()
