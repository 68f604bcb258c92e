"""The trainer of masked prediction: what differs from fine-tuning is what is measured, and on one pool of clips."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset

from exhubert.training.audio_pool import AudioPool
from exhubert.training.masked_prediction import (
    clip_statistics,
    count_hits,
    masked_prediction_loss,
    validation_metrics,
)
from exhubert.training.round_robin import Draw, MultiCorpus
from exhubert.training.trainer import RoundRobinTrainer

POOL = "audio"  # what the one corpus of a pre-training is called


class ValidationPool(TorchDataset):
    """Validation clips with their targets; the crop and the masks of a clip are always the same.

    Args:
        pool: the clips.
        seed: of crops and masks.
        targets: of each clip, `(frames,)`.
    """

    def __init__(self, pool: AudioPool, seed: int, targets: list[Any]) -> None:
        self.clips = MultiCorpus([pool], seed, [targets])

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip: int) -> dict[str, Any]:
        row = self.clips[Draw(0, 0, clip)]
        del row["draw"]  # which marks a training row
        return row


class PretrainingTrainer(RoundRobinTrainer):
    """Trains a `HubertForMaskedPrediction`; logs how many masked and unmasked frames are predicted right.

    Args:
        kwargs: as for `RoundRobinTrainer`; `eval_dataset` is `{POOL: ValidationPool(...)}`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            compute_metrics=validation_metrics,
            preprocess_logits_for_metrics=clip_statistics,
            compute_loss_func=masked_prediction_loss,
            decisive="loss",
            **kwargs,
        )
        # Since the last log, on the device: masked frames that were predicted right, all of them, unmasked ones.
        self.hits: torch.Tensor | None = None

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """As `Trainer.compute_loss`; counts the frames that are predicted right, and reads nothing from the device."""
        masked, unmasked = inputs["labels"], inputs.pop("unmasked_labels")
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if model.training:
            hits = count_hits(outputs["logits"].detach(), masked, unmasked).sum(dim=0)
            self.hits = hits if self.hits is None else self.hits + hits
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `RoundRobinTrainer.log`; beside a loss stand the accuracies since the last one."""
        if "loss" in logs and self.hits is not None:
            masked_hits, masked, unmasked_hits, unmasked = self.accelerator.reduce(self.hits, "sum").tolist()
            logs["accuracy_masked"] = masked_hits / max(1, masked)
            logs["accuracy_unmasked"] = unmasked_hits / max(1, unmasked)
            self.hits = None
        super().log(logs, *args, **kwargs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `RoundRobinTrainer.evaluate`, on the validation clips; says what was found."""
        metrics = super().evaluate(POOL, ignore_keys, metric_key_prefix)
        bar = self.progress.training_bar if self.progress is not None else None
        if bar is not None:
            masked, unmasked = (
                100 * metrics[f"{metric_key_prefix}_accuracy_{which}"] for which in ("masked", "unmasked")
            )
            loss = metrics[f"{metric_key_prefix}_loss"]
            bar.write(
                f"update {self.state.global_step}: validation loss {loss:.3f}, "
                f"accuracy in % on masked frames {masked:.1f}, on unmasked ones {unmasked:.1f}"
            )
        return metrics
