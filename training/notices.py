"""What a user should know before a run takes hours: where it goes on, how it was launched, if its disk is enough."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

SMALLEST_SHARE = 4  # clips of a batch, below which a process waits for the others more than it computes
FLOAT32_BYTES = 4
ADAMW_BYTES = 8  # of the two means of each trainable parameter


def resume_notices(checkpoint: str | None, resume: bool, processes: int) -> list[str]:
    """Says from where a run goes on, and whether as many processes saved that as there are now."""
    if not checkpoint:
        return ["there is no checkpoint yet: starting from the beginning"] if resume else []
    notices = [f"going on from {checkpoint}"]
    before = max(1, len(list(Path(checkpoint).glob("rng_state_*.pth"))))  # one for each of several processes
    if before != processes:
        notices.append(
            f"it was saved by {before} processes: the batches stay as they were, dropout's random numbers do not"
        )
    return notices


def launch_notices(recipe: Any, training: TrainingArguments) -> list[str]:
    """Names what a launcher did otherwise than was meant, and what makes a run slower than it need be."""
    notices = []
    # accelerate's launcher of one process leaves these, the first only where several processes were asked for.
    asked_for_more = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    if asked_for_more and "WORLD_SIZE" not in os.environ:
        notices.append(
            "accelerate launch was asked for several processes and has started one: without a GPU it starts them by "
            "--config_file recipes/accelerate/cpu_2.yaml"
        )
    share = recipe.batch_size // training.world_size
    if training.world_size > 1 and share < SMALLEST_SHARE:
        notices.append(
            f"each of the {training.world_size} processes has {share} of a batch's {recipe.batch_size} clips: fewer "
            "processes, or a larger batch_size, may be faster (docs/launching.md)"
        )
    if training.device.type == "cuda" and not (training.bf16 or training.fp16 or training.tf32):
        notices.append("the GPU computes in float32; --bf16, or --tf32 true, makes better use of it")
    return notices


def check_disk(output: str, training: TrainingArguments, parameters: Mapping[str, int]) -> str:
    """Returns a line that says how much of the disk the checkpoints take at most.

    That is so many as are kept, the best one among them, and the one that is being written.

    Args:
        output: the run folder; what checkpoints it has already counts as free.
        parameters: `total` and `trainable` ones.

    Raises:
        ValueError: if they do not fit.
    """
    weights = FLOAT32_BYTES * parameters["total"]
    states = ADAMW_BYTES * parameters["trainable"] if str(training.optim.value).startswith("adamw_torch") else 0
    checkpoint = weights * (2 if "ACCELERATE_USE_FSDP" in os.environ else 1) + states
    kept, stay = training.save_total_limit, ""
    if training.save_strategy == "no":
        text, needed = "the model", weights
    else:
        if not kept:
            kept, stay = 1, ", and all of them stay (save_total_limit)"
        at_once = max(kept, 2 if training.load_best_model_at_end else 1) + 1
        text, needed = f"up to {at_once} checkpoints at once of {checkpoint / 1e9:.3g} GB", at_once * checkpoint
    run = Path(output)
    disk = shutil.disk_usage(next(path for path in (run, *run.absolute().parents) if path.exists()))
    there = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
    if disk.total and needed > disk.free + there:  # some network disks say that they have 0 bytes
        raise ValueError(
            f"{output} needs {needed / 1e9:.3g} GB ({text}), and {disk.free / 1e9:.3g} GB are free there; "
            "make room, or give another `output`"
        )
    return f"disk: {text}{stay}, {needed / 1e9:.3g} GB; {disk.free / 1e9:,.3g} GB are free"
