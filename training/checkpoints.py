"""Checkpoints that are whole model folders: written beside their names and renamed, loaded strictly."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import math
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState

from exhubert.model_folder.load import read_config
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import misfit
from exhubert.training.lora import load_lora_parts, save_lora_parts
from exhubert.training.run_folder import whole_checkpoints
from exhubert.utils.command import NOT_UNPICKLED
from exhubert.utils.files import disk_errors, put_in_place

STATE_NUMBERS = ("epoch", "max_steps", "total_flos", "best_metric", "best_global_step")  # of a `TrainerState`, or None
OTHERS_FAULT = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)  # not the checkpoint's
IN_PARTS = (
    "is saved in parts (SHARDED_STATE_DICT), which torch reads by unpickling whatever they hold: that could run code, "
    "and is not done"
)


class CheckpointTrainer(Trainer):
    """A `Trainer` whose checkpoints are whole, or not there; its processes agree on every step of writing one.

    The collator's feature extractor goes into them. Of `Trainer`'s private methods, which take `*args` since they
    differ between releases, those are overridden that save or load without a public hook.
    """

    def any_process(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set on any process; all have to ask. Nobody waits for a GPU."""
        if self.args.world_size == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX, group=self.cpu_group)
        return together.bool().tolist()

    @functools.cached_property
    def cpu_group(self) -> Any:
        """The processes, as a group that talks about what is in the CPUs' memory; None if the default one does."""
        if torch.distributed.get_backend() == "gloo":
            return None
        patience = datetime.timedelta(seconds=self.args.ddp_timeout)
        return torch.distributed.new_group(backend="gloo", timeout=patience)

    def checkpoint_path(self, update: int) -> Path:
        """Where the checkpoint after so many updates lies."""
        return Path(self.args.output_dir) / f"checkpoint-{update}"

    @property
    def staging(self) -> Path:
        """Where checkpoints are written before they are renamed."""
        return Path(self.args.output_dir) / ".unfinished"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a model folder, and where it is that of a checkpoint (`_internal_call`) the parts of LoRA into it.

        All processes have to call it; one writes.
        """
        directory = Path(output_dir or self.args.output_dir)
        # Gathered by all processes where the model is spread over them.
        weights = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model)
            save_model_folder(model, directory, self.data_collator.extractor.window_seconds, weights)
            if _internal_call:
                save_lora_parts(model, directory, weights)

    # No public hook: `Trainer` writes a checkpoint under its final name, file after file.
    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Writes `checkpoint-N` into a hidden folder and renames it when all processes have written their parts."""
        target = self.checkpoint_path(self.state.global_step)
        unfinished = self.staging / target.name
        if self.state.best_global_step:
            best = self.checkpoint_path(self.state.best_global_step)
            if best == target or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self.state.stateful_callbacks = {}  # what early stopping has to know is in the log

        def write_model() -> None:
            self.store_flos()
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            self.save_model(str(unfinished), _internal_call=True)

        def write_states() -> None:  # no public way: what is in them is `Trainer`'s own business
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(unfinished))
                self._save_scaler(str(unfinished))
                self._save_rng_state(str(unfinished))

        def finish() -> None:
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / "trainer_state.json"))
                if target.exists():  # one that this run did not go on from
                    target.rename(self.staging / "replaced")
                put_in_place(unfinished, target)
                self.remove_old_checkpoints()

        for step in (write_model, write_states, finish):
            self.on_all_processes(step, target)

    def on_all_processes(self, step: Callable[[], None], target: Path) -> None:
        """Runs a step of saving; where it fails on one process, all raise OSError, and what it wrote is removed."""
        failure = None
        try:
            with disk_errors(target):
                step()
        except OSError as error:
            failure = error
        if self.any_process(failure is not None)[0]:
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)
            whole = whole_checkpoints(Path(self.args.output_dir))
            kept = f"; {whole[-1]} is whole, and --resume goes on from it" if whole else ""
            raise OSError(f"{failure or f'{target} could not be written by another process'}{kept}") from failure

    def remove_old_checkpoints(self) -> None:
        """Keeps `save_total_limit` checkpoints, among them the newest and the best."""
        newest_first = whole_checkpoints(Path(self.args.output_dir))[::-1]
        limit = self.args.save_total_limit or len(newest_first)
        kept = {newest_first[0]} | {path for path in newest_first if str(path) == self.state.best_model_checkpoint}
        self.staging.mkdir(exist_ok=True)
        for path in newest_first:
            if path not in kept and len(kept) < limit:
                kept.add(path)
            elif path not in kept:
                path.rename(self.staging / path.name)  # never half there under its name
        shutil.rmtree(self.staging, ignore_errors=True)

    # No public hook for the five below, of which the first two only warn of weights that do not fit.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with plain_errors(resume_from_checkpoint):
            if self.is_fsdp_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
            else:
                load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self, *args: Any, **kwargs: Any) -> None:
        with plain_errors(self.state.best_model_checkpoint):
            if self.is_fsdp_enabled:
                super()._load_best_model(*args, **kwargs)
            else:
                load_weights(self.model, self.state.best_model_checkpoint)

    # What these three raise does not name the checkpoint.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> None:
        with plain_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint, *args, **kwargs)
            rates = getattr(self.lr_scheduler, "base_lrs", None)
            groups = len(self.optimizer.param_groups) if self.optimizer is not None else 0
            if rates is not None and not (len(rates) == groups and all(type(rate) in (int, float) for rate in rates)):
                raise RuntimeError("its scheduler.pt is of another optimizer")

    def _load_rng_state(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> None:
        with plain_errors(checkpoint):
            super()._load_rng_state(checkpoint, *args, **kwargs)

    def _load_scaler(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> None:
        with plain_errors(checkpoint):
            super()._load_scaler(checkpoint, *args, **kwargs)


def load_weights(model: Any, checkpoint: str) -> None:
    """Loads a checkpoint's model, every weight of it, into one in memory.

    `Trainer` only warns of weights that do not fit: also of those of a whole model, such as an AST, that
    transformers saves under other names than it has in memory.

    Raises:
        RuntimeError: if weights are missing, left over, or of another shape.
        ValueError: if the checkpoint was trained with another `lora`.
    """
    read_config(checkpoint)  # refuses what would be fetched from the Hub
    source, report = type(model).from_pretrained(checkpoint, output_loading_info=True, dtype=torch.float32)
    weights = source.state_dict()
    # A layer with LoRA is `layer.base_layer` in the model and merged into `layer` in the checkpoint.
    names = {name: name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}
    missing = set(report["missing_keys"]) | (set(names.values()) - set(weights))
    unexpected = set(report["unexpected_keys"]) | (set(weights) - set(names.values()))
    if problem := misfit(missing, unexpected):
        raise RuntimeError(f"it {problem}")
    model.load_state_dict({name: weights[saved] for name, saved in names.items()}, strict=False)
    load_lora_parts(model, Path(checkpoint))


def check_checkpoint(checkpoint: Path, sharded: bool = False) -> None:
    """Raises ValueError for a checkpoint without all that `Trainer` would silently do without.

    So for one of the other layout: of a `sharded` training (FSDP) the optimizer's state has another form.
    """
    with plain_errors(checkpoint):
        names = {path.name for path in checkpoint.iterdir()}
        in_parts = sorted(path.parent.name for path in checkpoint.glob("*/.metadata"))
    if in_parts:
        raise ValueError(f"{checkpoint}: {in_parts[0]} {IN_PARTS}; start a new run with that checkpoint as `model`")
    of_sharded = bool(names & {"optimizer.bin", "optimizer_0"})
    if of_sharded != sharded and (of_sharded or "optimizer.pt" in names):
        saved, launcher = "one process, or by DDP", "python, torchrun, or accelerate launch with a file for DDP"
        if of_sharded:
            saved, launcher = "FSDP", "accelerate launch --config_file recipes/accelerate/fsdp2_8.yaml"
        raise ValueError(
            f"{checkpoint} is whole, and was saved by {saved}, whose states of the optimizer are laid out otherwise; "
            f"go on with the launcher that the run began with: {launcher}"
        )
    with plain_errors(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        entries = state.log_history if isinstance(state.log_history, list) else [None]
        step = type(state.global_step) is int and f"checkpoint-{state.global_step}" == checkpoint.name
        numbers = [getattr(state, name) for name in STATE_NUMBERS]
        numbered = all(number is None or (type(number) in (int, float) and math.isfinite(number)) for number in numbers)
        if not step or not numbered or not all(isinstance(entry, dict) for entry in entries):
            raise RuntimeError("its trainer_state.json is not as the run wrote it")
        for files in ("optimizer*", "scheduler.pt", "rng_state*.pth"):
            if not any(checkpoint.glob(files)):
                raise RuntimeError(f"it has no {files}")
        for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
            check_archive(path)


def check_archive(path: Path) -> None:
    """Looks at a file that torch wrote, without unpickling it.

    Raises:
        UnpicklingError: if it is none of torch's archives, but a bare pickle.
        RuntimeError: if it unfolds to more than it is, or its checksums are wrong.
    """
    if not zipfile.is_zipfile(path):
        raise pickle.UnpicklingError
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise RuntimeError(f"{path.name} holds what is compressed, which torch does not write")
        if damaged := archive.testzip():
            raise RuntimeError(f"{path.name} is damaged in {damaged}")


@contextlib.contextmanager
def plain_errors(checkpoint: str | Path | None) -> Iterator[None]:
    """Turns what loading raises into a ValueError that names the checkpoint, unless that has no part in it."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OTHERS_FAULT:
            raise
        text = NOT_UNPICKLED if isinstance(error, pickle.UnpicklingError) else str(error)
        lines = text.strip().splitlines() or [type(error).__name__]
        reason = lines[min(1, len(lines) - 1)].strip() if lines[0].startswith("Error(s) in loading") else lines[0]
        raise ValueError(
            f"{checkpoint} is damaged, or of another model ({reason}); resume with the model that the run began with, "
            "or move that folder away to go on from the checkpoint before it"
        ) from error
