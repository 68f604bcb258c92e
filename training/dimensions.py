"""Training on dimensions, continuous values such as arousal: their losses, their metrics, what is said beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from transformers import EvalPrediction

from exhubert.evaluation.dimensions import dimension_metrics
from exhubert.evaluation.metrics import compute_metrics

SMALLEST_DEVIATION = 1e-3  # of a scale: a standard deviation of targets below it is none, and CCC not defined


class Truth(NamedTuple):
    """What the clips of a batch are to be answered with.

    Attributes:
        labels: class indices `(batch,)` or the classes' shares `(batch, classes)`, -100 where a clip has none.
        dimensions: targets on 0 to 1 `(batch, dimensions)`, NaN where a clip has none.
        parts: how many such batches of this process make an update, over which and over the processes losses are added
            up; where they are averaged over the processes, divided by the number of these.
    """

    labels: torch.Tensor
    dimensions: torch.Tensor
    parts: float


def ccc_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns 1 - CCC, the mean over the dimensions of which the targets differ; 0 where none's do.

    A dimension has no CCC, and is left out, where fewer than two clips have a target or all targets are equal (their
    standard deviation is below a thousandth of the scale). Equal predictions have a CCC of 0. No gradient is NaN.

    Args:
        predictions: `(clips, dimensions)`.
        targets: `(clips, dimensions)`, NaN where a clip has none.
    """
    known = torch.isfinite(targets)
    count = known.sum(dim=0).clamp(min=1)
    means, deviations, variances = [], [], []
    for values in (predictions, targets):
        means.append(torch.where(known, values, 0.0).sum(dim=0) / count)
        deviations.append(torch.where(known, values - means[-1], 0.0))
        variances.append(deviations[-1].square().sum(dim=0) / count)
    differ = variances[1] > SMALLEST_DEVIATION**2
    spread = variances[0] + variances[1] + (means[0] - means[1]).square()
    ccc = 2 * (deviations[0] * deviations[1]).sum(dim=0) / count / torch.where(differ, spread, 1.0)
    return torch.where(differ, 1 - ccc, 0.0).sum() / differ.sum().clamp(min=1)


def mse_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the squared error on 0 to 1, the mean over all clips and dimensions, 0 where a clip has no target.

    Args:
        predictions, targets: as in `ccc_loss`.
    """
    return torch.where(torch.isfinite(targets), predictions - targets, 0.0).square().sum() / targets.numel()


class DimensionLoss:
    """`Trainer`'s `compute_loss_func` of a model that answers dimensions: `class loss + weight * dimension loss`.

    CCC is that of the clips which all processes compute at the same time: of a batch, or with `micro_batches` of each
    part of it, over which the mean is taken. The mean squared error of parts adds up to that of the batch.

    Args:
        kind: ccc or mse.
        weight: of the dimensions' loss.
        class_loss: of a model that has classes as well.
    """

    def __init__(self, kind: str, weight: float = 1.0, class_loss: Any = None) -> None:
        self.kind = kind
        self.weight = weight
        self.class_loss = class_loss

    def __call__(self, outputs: Any, truth: Truth, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the share of these clips in the loss of an update.

        Args:
            outputs: the model's: `dimensions` beside classes, else `logits`, `(batch, dimensions)`.
            truth: of these clips.
            num_items_in_batch: entries of `labels` in the whole update that are not -100; None if these are all.
        """
        name, place = ("logits", 0) if self.class_loss is None else ("dimensions", -1)
        predictions = (outputs[name] if isinstance(outputs, Mapping) else outputs[place]).float()
        processes = PartialState().num_processes
        if self.kind == "ccc":
            loss = ccc_loss(*of_all_processes(predictions, truth.dimensions))
            # Its gradient is that of this process's clips; the value is all processes', which are to add up to it.
            loss = loss - (1 - 1 / processes) * loss.detach()
        else:
            loss = mse_loss(predictions, truth.dimensions) / processes
        loss = self.weight / truth.parts * loss
        if self.class_loss is None:
            return loss
        known = truth.labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return self.class_loss(outputs, truth.labels, torch.as_tensor(known).clamp(min=1)) + loss

    def __str__(self) -> str:
        own = {"ccc": "1 - CCC", "mse": "squared error"}[self.kind] + " of dimensions"
        own = own if self.weight == 1 else f"{self.weight:g} x {own}"
        return own if self.class_loss is None else f"{self.class_loss}; plus {own}"


def of_all_processes(predictions: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the predictions and targets of all processes, in order; a gradient goes to this one's alone."""
    state = PartialState()
    if state.num_processes == 1:
        return predictions, targets
    parts = list(gather(torch.cat([predictions.detach(), targets], dim=1)).chunk(state.num_processes))
    parts[state.process_index] = torch.cat([predictions, targets], dim=1)
    everyones = torch.cat(parts)
    return everyones[:, : targets.shape[1]], everyones[:, targets.shape[1] :]


def logits_and_dimensions(logits: Any, labels: Any) -> Any:
    """Of a model with classes and dimensions, the logits and the dimensions alone; for `Trainer`, see `only_logits`."""
    return logits[0], logits[-1]


def metrics_of(prediction: EvalPrediction, dimensions: Sequence[str]) -> dict[str, float]:
    """`Trainer`'s metrics of one corpus: those of `compute_metrics`, of a model with classes, and `dimension_metrics`.

    Args:
        prediction: `predictions` are the logits and the dimensions, or the dimensions alone; `label_ids` the classes,
            -100 where a clip has none, and the targets.
        dimensions: their names, in the order of the outputs.
    """
    labels, targets = prediction.label_ids
    if not isinstance(prediction.predictions, tuple):
        return dimension_metrics(targets, prediction.predictions, dimensions)
    logits, answers = prediction.predictions
    known = labels != -100
    of_classes = compute_metrics(EvalPrediction(logits[known], labels[known])) if known.any() else {}
    return of_classes | dimension_metrics(targets, answers, dimensions)


def dimension_notices(
    corpora: Mapping[str, Mapping[str, Dataset]], dimensions: Sequence[str], metric: str | None = None
) -> list[str]:
    """Returns a line for each corpus that says how many of its training clips have a target.

    Raises:
        ValueError: if `metric`, by which the best model would be chosen, is not defined on the validation splits.
    """
    notices, defined, with_classes = [], set(), False
    for corpus, splits in corpora.items() if dimensions else ():
        clips = len(splits["train"])
        counts = np.isfinite(np.array(splits["train"]["dimensions"][:], dtype=float)).sum(axis=0)
        have = [f"{count:,} have {name}" for name, count in zip(dimensions, counts, strict=True) if count]
        what = f"of {clips:,} training clips {', '.join(have)}" if have else "no targets; it trains classes alone"
        notices.append(f"corpus {corpus!r}: {what}")
        with_classes |= len(set(splits["validation"]["labels"][:]) - {-100}) > 1
        validation = np.array(splits["validation"]["dimensions"][:], dtype=float)
        for name, values in zip(dimensions, validation.T, strict=True):
            if len(set(values[np.isfinite(values)])) > 1:
                scores = ("ccc", f"ccc_{name}")
                defined |= {f"{which}_{score}" for which in (corpus, "average") for score in scores}
    defined |= {"average_score"} if with_classes and "average_ccc" in defined else set()
    name = (metric or "").removeprefix("eval_")
    if ("_ccc" in name or name == "average_score") and name not in defined:
        raise ValueError(
            f"the best model cannot be chosen by {name}: on these validation splits it is not defined; they need clips "
            "with different targets" + (", and of two classes or more" if name == "average_score" else "")
        )
    return notices
