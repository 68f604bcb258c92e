"""`Trainer` with round-robin batches, an average over corpora, and checkpoints that are model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback

from exhubert.model_folder import save_model_folder
from exhubert.training.collator import AudioCollator
from exhubert.training.metrics import compute_metrics
from exhubert.training.round_robin import RoundRobinSampler


class RoundRobinTrainer(Trainer):
    """Trains on the sampler's order, which it does not shuffle again.

    Args:
        sampler: the order of the training samples; `train_dataset` is indexed by its draws.
        collator: makes batches; its window goes into the checkpoints' feature extractor.
        log_directory: where TensorBoard's files go, if `report_to` names it.
        kwargs: as for `Trainer`, by name. `eval_dataset` is a dict of one dataset a corpus.
    """

    def __init__(self, sampler: RoundRobinSampler, collator: AudioCollator, log_directory: Path, **kwargs: Any) -> None:
        super().__init__(data_collator=collator, compute_metrics=compute_metrics, **kwargs)
        self.sampler = sampler
        # A HuBERT's forward takes **kwargs, which `Trainer` reads as "divides its own loss"; no model here does.
        self.model_accepts_loss_kwargs = False
        self.progress: RoundProgress | None = None
        if self.pop_callback(ProgressCallback):
            self.progress = RoundProgress(list(kwargs["eval_dataset"]), sampler)
            self.add_callback(self.progress)
        if self.pop_callback(TensorBoardCallback) and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter

            self.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(log_directory))))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; leaves no progress bar behind when it fails."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.progress is not None:
                self.progress.close()

    def _get_train_sampler(self, train_dataset: TorchDataset | None = None) -> RoundRobinSampler:
        return self.sampler

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`; over several corpora it adds `eval_average_uar`, by which the best model is chosen."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            uars = [metrics[f"{metric_key_prefix}_{corpus}_uar"] for corpus in dataset]
            average = {f"{metric_key_prefix}_average_uar": sum(uars) / len(uars)}
            self.log(average)
            metrics.update(average)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # one process writes
            return
        directory = Path(output_dir or self.args.output_dir)
        # Written last by `Trainer`, so that a checkpoint that has it is whole.
        (directory / "trainer_state.json").unlink(missing_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        save_model_folder(model, directory, self.data_collator.window_seconds, state_dict)
        torch.save(self.args, directory / "training_args.bin")


class RoundProgress(ProgressCallback):
    """The progress bar names round, corpus, loss and UAR; each evaluation leaves one line."""

    def __init__(self, corpora: list[str], sampler: RoundRobinSampler) -> None:
        super().__init__()
        self.corpora = corpora
        self.sampler = sampler
        self.last: dict[str, float] = {}
        self.training_bar: Any
        self.prediction_bar: Any

    def close(self) -> None:
        """Ends the bars' lines, so that what is said next has one of its own."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()
        self.prediction_bar = self.training_bar = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            batches = state.global_step * args.gradient_accumulation_steps
            round_, position = divmod(batches - 1, len(self.corpora))
            one_corpus = args.gradient_accumulation_steps == 1 and not self.sampler.proportional
            where = f", {self.corpora[position]}" if one_corpus else ""
            self.training_bar.set_description(f"round {round_ + 1}{where}", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None:
            return
        uars = {name[len("eval_") : -len("_uar")]: value for name, value in (logs or {}).items() if "_uar" in name}
        if uars:
            self.last.update(uars)
        elif logs and "loss" in logs:
            self.last["loss"] = logs["loss"]
        shown = {name: self.last[name] for name in ("loss", "average") if name in self.last}
        self.training_bar.set_postfix({"UAR" if name == "average" else name: f"{v:.3f}" for name, v in shown.items()})
        if "average" in uars:
            scores = ", ".join(f"{name} {100 * self.last[name]:.1f}" for name in (*self.corpora, "average"))
            self.training_bar.write(f"update {state.global_step}: validation UAR in %: {scores}")
