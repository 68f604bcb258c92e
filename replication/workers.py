"""Jobs in processes of their own, several at a time, each forked from one that has imported everything already."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from exhubert.utils.command import quiet_transformers, run_with_one_line_errors

# Imported once, in the process that the others are forks of. It computes nothing, so no thread is lost in a fork.
PRELOADED = [
    *("exhubert.replication.cells", "exhubert.pretrain_hf", "exhubert.reports.plots", "sklearn.metrics", "peft"),
    *("transformers.models.hubert.modeling_hubert", "transformers.models.wav2vec2.feature_extraction_wav2vec2"),
]
PATIENCE_SECONDS = 120.0  # until a process that was told to end is killed


class Job(NamedTuple):
    """`function(*arguments)` returns an exit code; what it says goes to `log`; `needs` are jobs that come before."""

    name: str
    function: Callable[..., int]
    arguments: tuple[Any, ...]
    log: Path
    needs: tuple[str, ...] = ()


def run_jobs(jobs: Sequence[Job], workers: int, done: Callable[[Job, float], None], threads: int = 1) -> dict[str, str]:
    """Runs jobs in order, each as soon as a worker is free and what it needs is done.

    Args:
        jobs: what a job needs and is not among them counts as done.
        workers: how many processes at a time.
        done: called with each job that ended well, and its seconds.
        threads: of each process; 0 is as many as torch takes.

    Returns:
        The jobs that failed, or that need one that failed, and why.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when all processes have ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting = list(jobs)
    running: dict[Any, tuple[Job, Any, float]] = {}
    failed: dict[str, str] = {}

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while waiting or running:
            unfinished = {job.name for job in waiting} | {job.name for job, *_ in running.values()}
            for job in list(waiting):
                lost = [name for name in job.needs if name in failed]
                if lost:
                    failed[job.name] = f"{lost[0]} failed"
                    waiting.remove(job)
                elif len(running) < workers and not unfinished & set(job.needs):
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    process = context.Process(target=_enter, args=(job, threads))
                    process.start()
                    running[process.sentinel] = (job, process, time.monotonic())
                    waiting.remove(job)
            for sentinel in wait(list(running)):
                job, process, began = running.pop(sentinel)
                process.join()
                if process.exitcode == 0:
                    done(job, time.monotonic() - began)
                elif process.exitcode < 0:  # without a word
                    failed[job.name] = f"its process was ended by signal {-process.exitcode}"
                else:
                    failed[job.name] = _last_line(job.log) or f"ended with {process.exitcode}"
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join(PATIENCE_SECONDS)
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


def _enter(job: Job, threads: int) -> None:
    """The whole life of a job's process."""
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    gc.freeze()  # what was imported; accelerate looks for garbage after each training
    tqdm.set_lock(threading.RLock())  # its own, for processes, is left behind by one that is told to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads:
        torch.set_num_threads(threads)
    quiet_transformers()
    sys.exit(run_with_one_line_errors(lambda: job.function(*job.arguments)))


def _end_with_parent() -> None:
    """Ends this process, as SIGTERM does, when the command is gone that started it, were it killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
