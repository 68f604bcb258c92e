"""`Trainer` with round-robin batches, an average over corpora, and an end, after a signal, that loses nothing.

What an interrupted run needs to end as the undisturbed one does is `Trainer`'s own work: it keeps model, optimizer,
scheduler, random state and log, and skips the batches that were done by their indices, without decoding them. Added
here: signals, saves by time and NaN losses are agreed on by all processes; an evaluation draws no random numbers, and
one that was cut short is made up for. No update waits for the GPU, unless a number is shown or checked. Its checkpoints
are those of checkpoints.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import ProgressCallback
from transformers.integrations import TensorBoardCallback

from exhubert.evaluation.metrics import average_metrics, compute_metrics, only_logits
from exhubert.training.callbacks import EarlyStopping, RoundProgress, Safeguards
from exhubert.training.checkpoints import IN_PARTS, CheckpointTrainer, check_checkpoint
from exhubert.training.dimensions import Truth, logits_and_dimensions, metrics_of
from exhubert.training.interruption import EvaluationCutShort, Interrupted, Signals
from exhubert.training.round_robin import CorpusSampler, Draw, RoundRobinSampler, ValidationClips
from exhubert.training.run_folder import whole_checkpoints
from exhubert.utils.command import lost_processes

NAMED_FILES = 3  # of a batch whose loss is not finite, for each corpus
CHECKED_TOGETHER = 10  # losses of so many updates are looked at together, at most


class StoppedEarly(Exception):
    """The checkpoint is that of a run that early stopping had ended."""


class RoundRobinTrainer(CheckpointTrainer):
    """Trains on the sampler's order, which it does not shuffle again.

    Args:
        sampler: the order of the training samples; `train_dataset` is indexed by its draws.
        collator: makes batches; its feature extractor goes into the checkpoints.
        log_directory: where TensorBoard's files go, if `report_to` names it.
        save_minutes: how long it may be until the next checkpoint; 0 if only updates and evaluations decide.
        decisive: the last score that an evaluation of all corpora logs, by which early stopping goes.
        dimensions: the names of those that the model answers, in order.
        kwargs: as for `Trainer`, by name. `eval_dataset` is a dict of one dataset a corpus.
    """

    def __init__(
        self,
        sampler: RoundRobinSampler,
        collator: Any,
        log_directory: Path,
        save_minutes: float = 0.0,
        decisive: str = "average_uar",
        dimensions: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        metrics: dict[str, Any] = {"compute_metrics": compute_metrics, "preprocess_logits_for_metrics": only_logits}
        if dimensions:
            metrics["compute_metrics"] = partial(metrics_of, dimensions=dimensions)
            both = decisive == "average_score"
            metrics["preprocess_logits_for_metrics"] = logits_and_dimensions if both else only_logits
        super().__init__(data_collator=collator, **(metrics | kwargs))
        if self.is_fsdp_enabled:
            self.model.get_input_embeddings = lambda: None  # FSDP2 asks for them, and transformers' audio models raise
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.state_dict_type.name != "FULL_STATE_DICT":
                raise ValueError(f"FSDP: the optimizer {IN_PARTS}; give fsdp_state_dict_type: FULL_STATE_DICT")
            if plugin.mixed_precision_policy is not None:  # as DDP adds up gradients: in half precision small ones go
                plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        self.sampler = sampler
        self.whole_evaluation, self.dimensions = f"eval_{decisive}", dimensions
        # A HuBERT's forward takes **kwargs, which `Trainer` reads as "divides its own loss"; no model here does.
        self.model_accepts_loss_kwargs = False
        self.progress: RoundProgress | None = None
        if self.pop_callback(ProgressCallback):
            self.progress = RoundProgress(list(kwargs["eval_dataset"]), sampler)
            self.add_callback(self.progress)
        if self.pop_callback(TensorBoardCallback) and self.is_world_process_zero():
            from torch.utils.tensorboard import SummaryWriter

            self.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(log_directory))))
        self.validation_loader: Any = None
        self.signals = Signals()
        self.ending = False  # on all processes, after the update in hand
        self.save_seconds, self.saved_at = 60 * save_minutes, time.monotonic()
        # Of the updates whose losses were not looked at: the number, the loss and the draws of each part.
        self.unchecked: list[tuple[int, torch.Tensor, list[Draw]]] = []
        self.last_draws: list[Draw] = []
        # Since the start and at the last log: how long updates took, and how much of that went by until data was there.
        self.update_seconds = self.wait_seconds = 0.0
        self.logged_seconds = (0.0, 0.0)
        self.add_callback(Safeguards(self))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; leaves no progress bar behind when it fails.

        Raises:
            Interrupted: after a signal, when a checkpoint is saved; only while `signals` is entered.
            ValueError: if the loss or a weight is not finite, or the checkpoint is damaged or another model's.
            OSError: if a checkpoint cannot be written, or another process is gone.
        """
        if self.args.should_save:  # what killed runs have left
            shutil.rmtree(self.staging, ignore_errors=True)
        if resume_from_checkpoint is not None:
            check_checkpoint(Path(resume_from_checkpoint), self.is_fsdp_enabled)
        try:
            with lost_processes(self.args.world_size):
                result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            if self.any_process(self.signals.received)[0]:  # during the last save
                raise self.interrupted()
            return result
        except StoppedEarly:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            return None
        except EvaluationCutShort:
            raise self.interrupted() from None
        finally:
            self.is_in_train = False
            if self.progress is not None:
                self.progress.close()

    # The public `get_train_dataloader` would have to repeat all of the loader's options, which differ between releases.
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> RoundRobinSampler:
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if isinstance(eval_dataset, ValidationClips):
            return CorpusSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`; of the corpora, which go by their names, one loader gives the batches."""
        self._eval_dataloaders: dict[str, DataLoader] = {}  # where `Trainer` finds one dataset's loader for another
        if not isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        if self.validation_loader is None:
            self.validation_loader = super().get_eval_dataloader(ValidationClips(self.eval_dataset))
        self.validation_loader.dataset.shown = eval_dataset
        return self.validation_loader

    # Before transformers 5 `_wrap_model` sets the options of DDP, later ones keep what it finds.
    def _wrap_model(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._wrap_model(*args, **kwargs)
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # else DDP keeps the gradients twice
        return model

    # Where gradients are not clipped some releases clip them to infinity, to log the norm.
    def _get_grad_norm(self, *args: Any, grad_norm: Any = None, **kwargs: Any) -> Any:
        return grad_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: `Trainer` would count the model's parameters with every batch, for a sum that nobody reads."""
        return 0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.get_batch_samples`, the beginning of an update; takes the time."""
        self.update_began = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.wait_seconds += time.perf_counter() - self.update_began
        return batches

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.compute_loss`; with dimensions the loss gets a `Truth`, for `Trainer` knows `labels` alone."""
        if "dimension_targets" in inputs:
            parts = self.args.gradient_accumulation_steps if model.training else 1
            # `Trainer` averages losses over processes where it does not know of how many clips they are.
            added_up = self.args.average_tokens_across_devices and kwargs.get("num_items_in_batch") is not None
            parts = parts if added_up else parts / self.args.world_size
            inputs["labels"] = Truth(inputs["labels"], inputs.pop("dimension_targets"), parts)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Trainer.training_step`; remembers the loss of the draws, which it does not read."""
        draws = inputs.pop("draws")
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.unchecked.append((self.state.global_step + 1, loss, draws))
        return loss

    def check_update(self) -> None:
        """After an update, agrees with the other processes on ending and on saving, and on that losses are finite.

        Reading a loss waits for the GPU: they are looked at together, where the next value is read anyway (a log, an
        evaluation, a checkpoint), or after `CHECKED_TOGETHER` updates.

        Raises:
            ValueError: on all processes, if a loss of one was not finite; names the first such update.
        """
        control, now = self.control, time.monotonic()
        overdue = 0 < self.save_seconds <= now - self.saved_at
        self.ending, by_time = self.any_process(self.signals.received, overdue)
        control.should_save |= self.ending or by_time
        control.should_evaluate &= not self.ending
        # A save or an evaluation is logged, or the losses since the last log would be lost on resuming.
        control.should_log |= control.should_save or control.should_evaluate
        if control.should_log or control.should_training_stop or self.state.global_step % CHECKED_TOGETHER == 0:
            self.check_losses()
        self.update_seconds += time.perf_counter() - self.update_began

    def check_losses(self) -> None:
        """Raises ValueError on all processes if a loss since the last look was not finite."""
        finite = torch.isfinite(torch.stack([loss for _, loss, _ in self.unchecked])).tolist()
        bad = [part for part, fine in zip(self.unchecked, finite, strict=True) if not fine]
        last = self.unchecked[-1][0]
        self.last_draws = [draw for update, _, draws in self.unchecked if update == last for draw in draws]
        self.unchecked = []
        if self.any_process(bool(bad))[0]:
            first = bad[0][0] if bad else None
            draws = [draw for update, _, draws in bad if update == first for draw in draws]
            found = gather_object([(first, float(bad[0][1]), self.clips_text(draws))] if bad else [])
            update, loss, _ = min(found)
            clips = "; ".join(clips for number, _, clips in found if number == update)
            raise self.not_finite(f"the loss is {loss}", update, clips)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; beside a loss stands the share of the time in which updates waited for data."""
        if "loss" in logs:
            logs["data_wait"] = round(self.data_wait(*self.logged_seconds), 3)
            self.logged_seconds = self.update_seconds, self.wait_seconds
        super().log(logs, *args, **kwargs)

    def data_wait(self, update_seconds: float = 0.0, wait_seconds: float = 0.0) -> float:
        """The share, 0 to 1, of this process's updates in which it waited for data, after what is given."""
        return (self.wait_seconds - wait_seconds) / max(self.update_seconds - update_seconds, 1e-9)

    # No public hook comes before a checkpoint is written.
    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As `CheckpointTrainer._save_checkpoint`, but of weights that are finite."""
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Of a weight that is spread over processes (FSDP) each looks at its own part.
        parts = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights]
        if self.any_process(not torch.stack([torch.isfinite(part).all() for part in parts]).all())[0]:
            clips = self.clips_text(self.last_draws)
            raise self.not_finite("weights have become NaN or infinite", self.state.global_step, clips)
        super()._save_checkpoint(*args, **kwargs)
        self.saved_at = time.monotonic()

    def not_finite(self, what: str, update: int, clips: str) -> ValueError:
        """The error that ends a run of which something is no number."""
        whole = whole_checkpoints(Path(self.args.output_dir))
        kept = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
        return ValueError(f"{what} at update {update}, on clips of {clips}; {kept}")

    def clips_text(self, draws: list[Draw]) -> str:
        """The corpora of what was drawn, with the first files of each."""
        corpora = list(self.eval_dataset)
        parts = []
        for corpus in sorted({draw.corpus for draw in draws}):
            rows = self.train_dataset.corpora[corpus]
            names = [rows[draw.clip]["file_name"] for draw in draws if draw.corpus == corpus]
            more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
            parts.append(f"{corpora[corpus]}: {', '.join(names[:NAMED_FILES])}{more}")
        return "; ".join(parts)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As `Trainer.evaluate`; over several corpora it adds the averages, by which the best model is chosen.

        It draws no random numbers that training would have drawn, so what follows does not depend on when it is.
        """
        logged = len(self.state.log_history)
        try:
            with torch.random.fork_rng(devices=[]):
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except EvaluationCutShort:
            del self.state.log_history[logged:]
            raise
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            average = average_metrics(metrics, list(dataset), metric_key_prefix, self.dimensions)
            self.log(average)
            metrics.update(average)
            save = self.control.should_training_stop and self.args.save_strategy != "no"  # stopped early
            if self.args.load_best_model_at_end and not save:
                best = self.state.best_metric
                value = metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"]
                save = best is None or (value > best if self.args.greater_is_better else value < best)
            if save:
                self.control.should_save = True  # also where `save_steps` is more than `eval_steps`
        return metrics

    def begin(self) -> None:
        """Sets right what a checkpoint cannot know: where it lies now, and how often to log, evaluate and save."""
        state = self.state
        self.saved_at, self.unchecked = time.monotonic(), []
        state.compute_steps(self.args, state.max_steps)
        if state.best_global_step is not None and self.args.load_best_model_at_end:
            best = self.checkpoint_path(state.best_global_step)
            state.best_model_checkpoint = str(best) if best.is_dir() else None
            if not best.is_dir():
                state.best_metric = state.best_global_step = None
                if self.is_world_process_zero():
                    print(f"{best}, the best checkpoint so far, is gone; the best of what follows counts")
        evaluated = {entry["step"] for entry in state.log_history if self.whole_evaluation in entry}
        scheduled = state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps
        wanted = self.args.eval_strategy == "steps" and state.global_step >= max(1, self.args.eval_delay)
        if wanted and scheduled and state.global_step not in evaluated:
            # The checkpoint was saved in the middle of an evaluation. `Trainer` has no public way to do what follows
            # from one: the steps of a schedule that goes by it, and the best one so far.
            metrics = self._evaluate(None, None)
            if self._determine_best_metric(metrics, None):
                state.best_model_checkpoint = str(self.checkpoint_path(state.global_step))
        if state.global_step and self.args.should_save:  # a run that was killed may not have come to it
            self.remove_old_checkpoints()
        scores = [entry[self.whole_evaluation] for entry in state.log_history if self.whole_evaluation in entry]
        stopping = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStopping)]
        if scores and any(callback.count(scores) for callback in stopping):
            raise StoppedEarly

    def in_step(self, more: bool) -> bool:
        """Whether any process has more to classify; raises Interrupted on all of them when a signal has come."""
        more, stop = self.any_process(more, self.signals.received)
        if stop:
            raise self.interrupted()
        return more

    def interrupted(self) -> Interrupted:
        """What to raise when all is saved; saves where nothing was to be saved before."""
        where = self.checkpoint_path(self.state.global_step)
        if where not in whole_checkpoints(where.parent):
            self._save_checkpoint()
        return Interrupted(f"update {self.state.global_step} of {self.state.max_steps} is saved in {where}")
