"""The loss of training: cross entropy, where asked for with label smoothing, class weights and the raters' votes.

That of dimensions, beside it or alone, is in dimensions.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional

from exhubert.corpora.load import VOTES
from exhubert.training.arguments import Recipe
from exhubert.training.dimensions import DimensionLoss


class ClassificationLoss:
    """`Trainer`'s `compute_loss_func`: the loss of an update, the same for every class of model.

    It is the sum over the clips of `-sum_c weight[c] * target[c] * log p[c]`, divided by the number of clips in the
    update; `p` is the softmax of the logits and `target` is 1 for the clip's class, or the classes' shares of its
    votes. With label smoothing s it is `(1 - s) * target + s / classes`. The divisor is the number of clips, not the
    sum of their weights, so that the parts of a batch (`micro_batches`, processes) add up to the whole batch's
    gradient.

    Args:
        class_names: in the order of the logits.
        label_smoothing: 0 to below 1.
        class_weights: of the classes; None for 1.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        label_smoothing: float = 0.0,
        class_weights: np.ndarray | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.label_smoothing = label_smoothing
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Returns the share of these clips in the loss of an update.

        Args:
            outputs: the model's, with `logits` `(batch, classes)`.
            labels: class indices `(batch,)` or targets `(batch, classes)`; -100 where a clip has no class.
            num_items_in_batch: entries of `labels` in the whole update, over its micro-batches and processes, that are
                not -100; None if these are all.
        """
        logits = (outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]).float()
        if labels.is_floating_point():
            labels = labels.clamp(min=0)  # without the marks of clips without a class
        if self.class_weights is not None:  # sent once, not with each batch
            self.class_weights = self.class_weights.to(logits.device)
        total = functional.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch) * labels[0].numel()

    def __str__(self) -> str:
        parts = ["cross entropy"]
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing:g}")
        if self.class_weights is not None:
            pairs = zip(self.class_names, self.class_weights.tolist(), strict=True)
            parts.append("class weights " + ", ".join(f"{name} {weight:.2f}" for name, weight in pairs))
        return "; ".join(parts)


def build_loss(
    recipe: Recipe, label_smoothing: float, train: Mapping[str, Dataset], class_names: Sequence[str]
) -> tuple[ClassificationLoss | DimensionLoss, list[np.ndarray] | None, list[str]]:
    """Returns the loss of a recipe, the classes' shares of each corpus's clips where these are trained, and notices.

    Raises:
        ValueError: if the votes cannot be used; see `vote_targets`.
    """
    targets, notices = vote_targets(train, class_names) if recipe.soft_labels else (None, [])
    weights = None
    if recipe.class_weights == "balanced":
        learned = targets or [np.asarray(dataset["labels"][:]) for dataset in train.values()]
        weights = balanced_weights(learned, len(class_names), recipe.sampling == "proportional")
    loss: Any = ClassificationLoss(class_names, label_smoothing, weights) if class_names else None
    if recipe.targets:
        loss = DimensionLoss(recipe.dimension_loss, recipe.dimension_weight, loss)
    return loss, targets, [*notices, f"loss: {loss}"]


def balanced_weights(targets: Sequence[np.ndarray], classes: int, proportional: bool = False) -> np.ndarray:
    """Returns class weights `(classes,)` with which every class has the same part in the loss of training.

    `1 / (classes that occur * share of the class)`, as scikit-learn's "balanced". The shares are those of the batches:
    the mean over the corpora of a class's share in each, since round-robin draws as much from a small corpus as from
    a large one; with proportional sampling the share in all clips together. A class that does not occur weighs 1.

    Args:
        targets: of each corpus's training clips: class indices `(clips,)` or shares `(clips, classes)`, -100 where a
            clip has no class.
        classes: how many there are.
        proportional: whether `sampling` is that.
    """
    labelled = [each[each.reshape(len(each), -1)[:, 0] >= 0] for each in targets]
    counts = np.stack([np.bincount(t, minlength=classes) if t.ndim == 1 else t.sum(axis=0) for t in labelled])
    of_corpora = counts if proportional else counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = of_corpora.sum(axis=0) / of_corpora.sum()
    occurs = shares > 0
    return np.where(occurs, 1 / (occurs.sum() * np.where(occurs, shares, 1)), 1.0)


def vote_targets(corpora: Mapping[str, Dataset], class_names: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """Returns what the clips of each corpus are to be classified as, by the votes of its raters.

    A clip without votes for a class has its label alone. The clips are as `load_corpora` gives them, with the class
    index in `labels` and the votes for each class in `class_votes`.

    Returns:
        For each corpus float32 `(clips, classes)`, each row's sum 1, or all -100 where a clip has no class; and a line
        for each corpus that says how many of its clips have votes.

    Raises:
        ValueError: if no corpus has votes.
    """
    targets, notes, voted = [], [], 0
    for name, dataset in corpora.items():
        votes = np.asarray(dataset["class_votes"][:])
        totals = votes.sum(axis=1, keepdims=True)
        labels = np.asarray(dataset["labels"][:])[:, None]
        own = np.where(labels < 0, -100, np.arange(len(class_names)) == labels)
        targets.append(np.where(totals > 0, votes / np.maximum(totals, 1e-12), own).astype(np.float32))
        count = int((totals > 0).sum())
        voted += count
        notes.append(f"corpus {name!r}: {count} of {len(dataset)} training clips have raters' votes")
    if not voted:
        raise ValueError(
            f"soft_labels is set, but no clip of {', '.join(corpora)} has votes; metadata.csv has them in columns "
            f"{VOTES}<word>, e.g. {VOTES}anger"
        )
    return targets, notes
