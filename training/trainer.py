"""`Trainer` with round-robin batches, an average over corpora, and checkpoints that are whole model folders.

What an interrupted run needs to end as the undisturbed one does is `Trainer`'s own work: it keeps model, optimizer,
scheduler, random state and log, and skips the batches that were done by their indices, without decoding them. Added
here: a checkpoint is written beside its name and renamed; it loads strictly; signals, NaN losses and failed writes
are agreed on by all processes; an evaluation draws no random numbers, and one that was cut short is made up for.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset as TorchDataset
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback

from exhubert.evaluation.metrics import average_metrics, compute_metrics, only_logits
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import misfit
from exhubert.training.collator import AudioCollator
from exhubert.training.interruption import Interrupted, Signals
from exhubert.training.lora import load_lora_parts, save_lora_parts
from exhubert.training.round_robin import Draw, RoundRobinSampler
from exhubert.training.run_folder import disk_errors, whole_checkpoints
from exhubert.utils.text import first_line

AVERAGE = "eval_average_uar"
LOST_PROCESS = ("Connection", "gloo", "NCCL", "Timed out")  # in the errors of collectives
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, SafetensorError, pickle.UnpicklingError)
NAMED_FILES = 3  # of a batch whose loss is not finite, for each corpus


class RoundRobinTrainer(Trainer):
    """Trains on the sampler's order, which it does not shuffle again.

    Args:
        sampler: the order of the training samples; `train_dataset` is indexed by its draws.
        collator: makes batches; its window goes into the checkpoints' feature extractor.
        log_directory: where TensorBoard's files go, if `report_to` names it.
        kwargs: as for `Trainer`, by name. `eval_dataset` is a dict of one dataset a corpus.
    """

    def __init__(self, sampler: RoundRobinSampler, collator: AudioCollator, log_directory: Path, **kwargs: Any) -> None:
        super().__init__(
            data_collator=collator, compute_metrics=compute_metrics, preprocess_logits_for_metrics=only_logits, **kwargs
        )
        collator.draws = True  # so that a batch can be named
        if self.is_fsdp_enabled:  # FSDP2 asks for them, and transformers' audio models raise
            self.model.get_input_embeddings = lambda: None
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
        self.signals = Signals()
        self.ending = False  # on all processes, after the update in hand
        self.began_at = 0  # updates that this start found done
        self.losses: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the update in hand, each with its draws
        self.update_files = ""  # of the last update, to be named if its weights turn out bad
        self.add_callback(_Safeguards(self))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; leaves no progress bar behind when it fails.

        Raises:
            Interrupted: after a signal, when a checkpoint is saved; only while `signals` is entered.
            ValueError: if the loss or a weight is not finite, or the checkpoint is damaged or another model's.
            OSError: if a checkpoint cannot be written, or another process is gone.
        """
        if self.args.should_save:  # what killed runs have left
            shutil.rmtree(self._staging, ignore_errors=True)
        if resume_from_checkpoint is not None:
            _check_checkpoint(Path(resume_from_checkpoint))
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            if self.any_process(self.signals.received)[0]:  # during the last save
                raise self.interrupted()
            return result
        except _StoppedEarly:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            return None
        except _EvaluationCutShort:
            if self.state.global_step > self.began_at:  # else it is the checkpoint that the run went on from
                self._save_checkpoint(self.model_wrapped, None)
            raise self.interrupted() from None
        except RuntimeError as error:
            if self.args.world_size > 1 and any(word in str(error) for word in LOST_PROCESS):
                reason = first_line(error)
                raise ConnectionError(f"another process of this run is gone, or does not answer ({reason})") from error
            raise
        finally:
            self.is_in_train = False
            if self.progress is not None:
                self.progress.close()

    # Updates and evaluations

    def _get_train_sampler(self, train_dataset: TorchDataset | None = None) -> RoundRobinSampler:
        return self.sampler

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Trainer.training_step`; remembers the loss of the draws."""
        draws = inputs.pop("draws")
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses.append((loss, draws))
        return loss

    def check_update(self) -> None:
        """Before an update, raises ValueError on all processes if the loss of one is not finite; asks for signals."""
        bad = [(loss, draws) for loss, draws in self.losses if not torch.isfinite(loss)]
        self.update_files = self._files([draws for _, draws in bad or self.losses])
        self.losses = []
        not_finite, self.ending = self.any_process(bool(bad), self.signals.received)
        if not_finite:
            found = self._of_all_processes((float(bad[0][0]), self.update_files) if bad else None)
            files = "; ".join(files for _, files in found)
            raise self._not_finite(f"the loss is {found[0][0]}", self.state.global_step + 1, files)

    def _not_finite(self, what: str, update: int, files: str) -> ValueError:
        whole = whole_checkpoints(Path(self.args.output_dir))
        kept = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
        return ValueError(f"{what} at update {update}, on clips of {files}; {kept}")

    def _files(self, batches: list[torch.Tensor]) -> str:
        """The corpora of some draws, `(batch, 3)` each, with their first files."""
        draws = [Draw(*draw) for batch in batches for draw in batch.tolist()]
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
        """As `Trainer.evaluate`; over several corpora it adds the averages, by whose UAR the best model is chosen.

        It draws no random numbers that training would have drawn, so what follows does not depend on when it is.
        """
        logged = len(self.state.log_history)
        try:
            with torch.random.fork_rng(devices=[]):
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except _EvaluationCutShort:
            del self.state.log_history[logged:]
            raise
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            average = average_metrics(metrics, list(dataset), metric_key_prefix)
            self.log(average)
            metrics.update(average)
            if self.control.should_training_stop and self.args.save_strategy != "no":
                self.control.should_save = True  # where early stopping ends the run
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best = super()._determine_best_metric(metrics, trial)
        if best and self.args.load_best_model_at_end:
            self.control.should_save = True  # also where `save_steps` is more than `eval_steps`
        return best

    def begin(self) -> None:
        """Sets right what a checkpoint cannot know: where it lies now, and how often to log, evaluate and save."""
        self.began_at = self.state.global_step
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.state.best_global_step is not None and self.args.load_best_model_at_end:
            best = self._path(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
            if not best.is_dir():
                self.state.best_metric = self.state.best_global_step = None
                if self.is_world_process_zero():
                    print(f"{best}, the best checkpoint so far, is gone; the best of what follows counts")
        if self._evaluation_is_due():
            metrics = self._evaluate(None, None)
            if self._determine_best_metric(metrics, None):
                self.state.best_model_checkpoint = str(self._path(self.state.global_step))
        self._count_evaluations()

    def _evaluation_is_due(self) -> bool:
        """Whether the checkpoint was saved in the middle of an evaluation."""
        state = self.state
        scheduled = state.global_step % state.eval_steps == 0 or state.global_step == state.max_steps
        done = any(AVERAGE in entry and entry["step"] == state.global_step for entry in state.log_history)
        wanted = self.args.eval_strategy == "steps" and state.global_step >= max(1, self.args.eval_delay)
        return wanted and scheduled and not done

    def _count_evaluations(self) -> None:
        """Sets the counter of early stopping to what the log says; ends a run that had been stopped."""
        uars = [entry[AVERAGE] for entry in self.state.log_history if AVERAGE in entry]
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and uars:
                callback.early_stopping_patience_counter = len(uars) - 1 - uars.index(max(uars))
                if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                    raise _StoppedEarly

    # Processes and signals

    def any_process(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any process; all have to ask."""
        if self.args.world_size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32, device=self.args.device)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        return together.bool().tolist()

    def _of_all_processes(self, value: Any) -> list[Any]:
        values = [value]
        if self.args.world_size > 1:
            values = [None] * self.args.world_size
            torch.distributed.all_gather_object(values, value)
        return [value for value in values if value is not None]

    def in_step(self, more: bool) -> bool:
        """Whether any process has more to classify; raises Interrupted on all of them when a signal has come."""
        more, stop = self.any_process(more, self.signals.received)
        if stop:
            raise self.interrupted()
        return more

    def interrupted(self) -> Interrupted:
        """What to raise when all is saved; saves where nothing was to be saved before."""
        where = self._path(self.state.global_step)
        if not where.is_dir():
            self._save_checkpoint(self.model_wrapped, None)
        return Interrupted(f"update {self.state.global_step} of {self.state.max_steps} is saved in {where}")

    # Checkpoints

    @property
    def _staging(self) -> Path:
        return Path(self.args.output_dir) / ".unfinished"

    def _path(self, update: int) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{update}"

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Writes `checkpoint-N` into a hidden folder and renames it when all processes have written their parts."""
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        finite = torch.stack([torch.isfinite(_local(weight)).all() for weight in weights]).all()
        if self.any_process(not finite)[0]:
            raise self._not_finite("weights have become NaN or infinite", self.state.global_step, self.update_files)
        target = self._path(self.state.global_step)
        unfinished = self._staging / target.name
        if self.state.best_global_step:
            best = self._path(self.state.best_global_step)
            if best == target or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.state.stateful_callbacks = {}  # what early stopping has to know is in the log

        def write_model() -> None:
            self.store_flos()
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.save_model(str(unfinished), _internal_call=True)

        def write_states() -> None:
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(unfinished))
                self._save_scaler(str(unfinished))
                self._save_rng_state(str(unfinished))

        def put_in_place() -> None:
            if not self.args.should_save:
                return
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
            if target.exists():  # one that this run did not go on from
                target.rename(self._staging / "replaced")
            unfinished.rename(target)
            self._remove_old_checkpoints()
            shutil.rmtree(self._staging, ignore_errors=True)

        for step in (write_model, write_states, put_in_place):
            self._on_all_processes(step, target)

    def _on_all_processes(self, step: Callable[[], None], target: Path) -> None:
        """Runs a step of saving; where it fails on one process, all end, and what it wrote is removed."""
        failure = None
        try:
            with disk_errors(target):
                step()
        except OSError as error:
            failure = error
        if self.any_process(failure is not None)[0]:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            whole = whole_checkpoints(Path(self.args.output_dir))
            kept = f"; {whole[-1]} is whole, and --resume goes on from it" if whole else ""
            raise OSError(f"{failure or f'{target} could not be written by another process'}{kept}") from failure

    def _remove_old_checkpoints(self) -> None:
        """Keeps `save_total_limit` checkpoints, among them the newest and the best."""
        newest_first = whole_checkpoints(Path(self.args.output_dir))[::-1]
        limit = self.args.save_total_limit or len(newest_first)
        kept = {newest_first[0]} | {path for path in newest_first if str(path) == self.state.best_model_checkpoint}
        for path in newest_first:
            if path not in kept and len(kept) < limit:
                kept.add(path)
            elif path not in kept:
                path.rename(self._staging / path.name)  # never half there under its name

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # one process writes
            return
        directory = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        save_model_folder(model, directory, self.data_collator.window_seconds, state_dict)
        save_lora_parts(model, directory, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with _plain_errors(resume_from_checkpoint):
            if self.is_fsdp_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        with _plain_errors(best):
            if self.is_fsdp_enabled:
                super()._load_best_model()
            else:
                self._load_weights(best)

    def _load_weights(self, checkpoint: str) -> None:
        """Loads a checkpoint's model, every weight of it.

        `Trainer` only warns of weights that do not fit: also of those of a whole model, such as an AST, that
        transformers saves under other names than it has in memory.
        """
        source, report = type(self.model).from_pretrained(checkpoint, output_loading_info=True, dtype=torch.float32)
        weights = source.state_dict()
        # A layer with LoRA is `layer.base_layer` in the model and merged into `layer` in the checkpoint.
        names = {name: name.replace(".base_layer.", ".") for name in self.model.state_dict() if ".lora_" not in name}
        lacking = set(report["missing_keys"]) | (set(names.values()) - set(weights))
        unknown = set(report["unexpected_keys"]) | (set(weights) - set(names.values()))
        if problem := misfit(lacking, unknown):
            raise RuntimeError(f"it {problem}")
        self.model.load_state_dict({name: weights[saved] for name, saved in names.items()}, strict=False)
        load_lora_parts(self.model, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _plain_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _plain_errors(checkpoint):
            super()._load_rng_state(checkpoint)


class _StoppedEarly(Exception):
    """The checkpoint is that of a run that early stopping had ended."""


class _EvaluationCutShort(Exception):
    """A signal came during an evaluation."""


class _Safeguards(TrainerCallback):
    """Calls the trainer back where it has to look after something; the last of the callbacks."""

    def __init__(self, trainer: RoundRobinTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ending:
            control.should_save, control.should_evaluate = True, False
        if control.should_save or control.should_evaluate:
            control.should_log = True  # or the losses since the last log would be lost on resuming

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ending:
            raise self.trainer.interrupted()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.any_process(self.trainer.signals.received)[0]:
            raise _EvaluationCutShort


@contextlib.contextmanager
def _plain_errors(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns what loading raises into a ValueError that names the checkpoint."""
    try:
        yield
    except UNREADABLE as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[min(1, len(lines) - 1)].strip() if lines[0].startswith("Error(s) in loading") else lines[0]
        raise ValueError(
            f"{checkpoint} is damaged, or of another model ({reason}); resume with the model that the run began with, "
            "or delete that folder to go on from the checkpoint before it"
        ) from error


def _check_checkpoint(checkpoint: Path) -> None:
    """Raises ValueError for a checkpoint without all that `Trainer` would silently do without."""
    with _plain_errors(checkpoint):
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for files in ("optimizer*", "scheduler.pt", "rng_state*.pth"):
            if not any(checkpoint.glob(files)):
                raise RuntimeError(f"it has no {files}")


def _local(weight: torch.Tensor) -> torch.Tensor:
    """This process's part of a weight, where each has one (FSDP)."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


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
            update = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
            batches = state.global_step * update // self.sampler.batch_size
            round_, position = divmod(batches - 1, len(self.corpora))
            one_corpus = update == self.sampler.batch_size and not self.sampler.proportional
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
