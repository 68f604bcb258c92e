"""The recipe of a pre-training, as YAML, each key also an option of the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from exhubert.training.arguments import (
    DERIVED,
    FIELDS,
    TRAINING_DEFAULTS,
    check_batch_size,
    check_fields,
    check_values,
    make_parser,
    make_training_arguments,
    named_recipe,
    read_arguments,
)

MOST_CLUSTERS = 2**15 - 1  # a frame's target is kept in 16 bits
LABEL_NAMES = ["labels", "unmasked_labels"]


@dataclass
class PretrainingRecipe:
    """What is pre-trained on what. The values here are the defaults of a recipe that does not name the key."""

    LENGTH: ClassVar[str] = "updates"  # the key that says how long it trains

    model: str = ""  # HuBERT to go on from, id or folder; or a .yaml file of HubertConfig's fields: random weights
    freeze: list[str] = field(default_factory=list)  # feature_encoder: stays as it is
    corpora_root: str = "."  # folder that the names in `corpora` are looked up in
    corpora: list[str] = field(default_factory=list)  # corpus folders, or any folders of audio files; no labels needed
    skip_bad_audio: bool = False  # leave out clips whose audio does not decode
    clips_per_corpus: int | None = None  # use a random part of each corpus
    window_seconds: float = 3.0  # length of the model's input in seconds
    targets: str = "mfcc"  # mfcc or features: what the clusters to be predicted are made of
    clusters: int = 100  # how many there are
    target_model: str | None = None  # HuBERT whose features are clustered; null: `model`
    target_layer: int = 6  # which entry of its hidden_states
    mask_share: float = 0.08  # share of the frames at which a masked span begins
    mask_length: int = 10  # frames of a span
    updates: int = 100000  # how many
    batch_size: int = 32  # clips per update, over all processes
    micro_batches: int = 1  # parts a process computes its batch in, to save memory
    fast_path: bool = True  # in float32 on the CPU, take the faster way of computing
    save_minutes: float = 15.0  # minutes between checkpoints; 0 or save_steps: by updates
    probe_corpora: list[str] = field(default_factory=list)  # labelled corpus folders, for linear probes at the end
    label_file: str | None = None  # YAML file with further emotion words, for the probes
    output: str = ""  # run folder

    def check(self) -> None:
        """Raises ValueError for a value that is not among the legal ones."""
        positive = ("updates", "batch_size", "micro_batches", "window_seconds", "clips_per_corpus", "mask_length")
        choices = {"targets": ("mfcc", "features")}
        check_values(self, choices, ("feature_encoder",), positive, ("save_minutes", "target_layer"))
        if not 0 < self.mask_share <= 1:
            raise ValueError(f"mask_share is {self.mask_share}; it must be above 0, and at most 1")
        if not 2 <= self.clusters <= MOST_CLUSTERS:
            raise ValueError(f"clusters is {self.clusters}; it must be from 2 to {MOST_CLUSTERS:,}")
        if self.target_model and self.targets == "mfcc":
            raise ValueError(f"target_model is {self.target_model!r}, but targets are mfcc; set `targets: features`")


def parse_pretraining(
    arguments: Sequence[str] | None = None, prog: str = "pretrain_hf.py"
) -> tuple[PretrainingRecipe, TrainingArguments, argparse.Namespace]:
    """Reads `RECIPE [--key value ...] [--resume]`; as `arguments.parse`, for pre-training."""
    command = make_parser(PretrainingRecipe, prog, "Pre-trains a HuBERT on audio without labels.")
    recipe, training, known = read_arguments(PretrainingRecipe, command, arguments)
    updates = {
        "max_steps": "`updates`",
        "num_train_epochs": "`updates`",
        "gradient_accumulation_steps": "`micro_batches`",
    }
    with named_recipe(known.recipe):
        check_fields(training, DERIVED | updates)
        for name in ("push_to_hub", "load_best_model_at_end", "metric_for_best_model", "label_smoothing_factor"):
            if training.get(name):
                raise ValueError(f"{name} has no use in pre-training; leave it out")
        if "ACCELERATE_USE_FSDP" in os.environ:
            raise ValueError("FSDP cannot be used in pre-training; launch it as DDP, by torchrun or accelerate launch")
        check_batch_size(recipe)
        values: dict[str, Any] = TRAINING_DEFAULTS | FIELDS["pretraining"] | training | {"label_names": LABEL_NAMES}
        return recipe, make_training_arguments(recipe, training, values, recipe.updates), known
