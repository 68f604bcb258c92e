"""Lives of a run, each a process of its own that may be killed, and what is done to them from within.

Not a test: test_resume.py, test_resume_processes.py and test_checkpoints.py take from it what they share. The processes
are forked from a server that has imported everything.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

import train_hf
from conftest import HUBERT_KINDS, ROOT, SMALL, free_port, write_corpus
from exhubert.training import checkpoints
from exhubert.training.collator import AudioCollator
from exhubert.training.trainer import RoundRobinTrainer
from exhubert.utils.command import quiet_transformers, run_with_one_line_errors

PATIENCE_SECONDS = 240  # for a life that takes two on an idle machine
UPDATES = 12
NOT_COMPARED = ("_runtime", "_per_second", "data_wait", "epoch")  # the clock's, and the share of all rounds


class Life(NamedTuple):
    code: int
    output: str


def write_run(directory: Path) -> Path:
    """Writes two corpora, a small HuBERT with dropout and SpecAugment, and a recipe of twelve updates.

    Every second update is evaluated and saved. Returns the recipe's path.
    """
    write_corpus(directory / "first")
    write_corpus(directory / "second", labels=("joy", "boredom"), speakers=("e", "f", "g"))
    torch.manual_seed(0)
    HubertModel(HubertConfig(**{**SMALL, **HUBERT_KINDS["large"]})).save_pretrained(directory / "hubert")
    recipe = {
        "model": str(directory / "hubert"),
        "corpora_root": str(directory),
        "corpora": ["first", "second"],
        "rounds": UPDATES // 2,
        "batch_size": 4,
        "window_seconds": 0.5,
        "training": {"learning_rate": 5.0e-3, "eval_steps": 2, "save_steps": 2, "report_to": "none", "use_cpu": True},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return directory / "recipe.yaml"


class Lives:
    """Runs lives of a recipe's runs to their end: `lives(output, *options, hook=None)`.

    A hook is `(function, argument, ...)`, run first in the life; several `processes` are those of one run.
    """

    def __init__(self, recipe: Path, server: Any) -> None:
        self.recipe = recipe
        self.server = server

    def __call__(self, output: Path, *options: str, hook: Any = None, processes: int = 1) -> Life:
        arguments = [str(self.recipe), "--output", str(output), *options]
        logs = [output.parent / f"{output.name}-{rank}.log" for rank in range(processes)]
        port = str(free_port())
        lives = []
        for rank, log in enumerate(logs):
            log.unlink(missing_ok=True)
            environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            given = (arguments, str(log), hook, environment if processes > 1 else {})
            lives.append(self.server.Process(target=live, args=given))
            lives[-1].start()
        for life in lives:
            life.join(PATIENCE_SECONDS)
        stuck = [life for life in lives if life.exitcode is None]
        for life in stuck:
            life.kill()
        text = "".join(log.read_text() for log in logs)
        assert not stuck, text
        codes = {life.exitcode for life in lives}
        return Life(codes.pop() if len(codes) == 1 else -1, text)


@contextmanager
def lives_of_a_run(directory: Path) -> Iterator[Lives]:
    """Writes what a run needs and yields its lives."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), before]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lives"])
    yield Lives(write_run(directory), context)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def live(arguments: list[str], log: str, hook: Any, environment: dict[str, str]) -> None:
    """What such a process does."""
    gc.freeze()  # accelerate collects what is left of a training, of which all that the server holds is none
    multiprocessing.set_start_method("fork", force=True)
    os.setpgrp()
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    quiet_transformers()
    if hook is not None:
        hook[0](arguments, *hook[1:])
    code = run_with_one_line_errors(lambda: train_hf.main(arguments))
    sys.stdout.flush()
    sys.exit(code)


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[dict[str, Any]]]:
    """All weights and states at the end, the results, and the log."""
    tensors = {}
    for directory in (run / "model", run / "checkpoints" / f"checkpoint-{UPDATES}"):
        weights = load_file(directory / "model.safetensors")
        tensors |= {f"{directory.name} {name}": tensor for name, tensor in weights.items()}
    optimizer = torch.load(run / "checkpoints" / f"checkpoint-{UPDATES}" / "optimizer.pt", weights_only=True)
    for number, state in optimizer["state"].items():
        tensors |= {f"optimizer {number} {name}": tensor for name, tensor in state.items()}
    results = json.loads((run / "results.json").read_text())
    state = json.loads((run / "checkpoints" / f"checkpoint-{UPDATES}" / "trainer_state.json").read_text())
    history = [
        {name: value for name, value in entry.items() if not name.endswith(NOT_COMPARED)}
        for entry in state["log_history"]
    ]
    kept = {name: state[name] for name in ("best_metric", "best_global_step", "global_step")}
    return tensors, {**results, **kept}, history


def assert_same_end(run: Path, undisturbed: Path, log: bool = True) -> None:
    """Weights, states, results and log are equal, bit for bit, and nothing unfinished is left."""
    tensors, results, history = outcome(run)
    expected_tensors, expected_results, expected_history = outcome(undisturbed)
    assert tensors.keys() == expected_tensors.keys()
    differing = [name for name, tensor in expected_tensors.items() if not torch.equal(tensor, tensors[name])]
    assert not differing
    assert results == expected_results
    if not log:  # an interruption logs the losses since the last log
        history, expected_history = ([e for e in log if "loss" not in e] for log in (history, expected_history))
    assert history == expected_history
    assert not list(run.rglob(".*"))


def count_moments(arguments: list[str], fatal: int | None = None) -> None:
    """Counts the moments at which a file of the run is opened, renamed or removed, a folder made, and the updates.

    Args:
        arguments: of the run.
        fatal: number of the moment at which the process kills itself, as kill -9 does; None writes their number.
    """
    run = arguments[arguments.index("--output") + 1]
    process = os.getpid()
    moments = 0

    def moment() -> None:
        nonlocal moments
        moments += 1
        if moments == fatal:
            os.kill(process, signal.SIGKILL)

    hear_changes(run, moment)
    check_update = RoundRobinTrainer.check_update

    def counted(self: RoundRobinTrainer) -> None:
        moment()
        check_update(self)

    RoundRobinTrainer.check_update = counted
    if fatal is None:
        main = train_hf.main

        def and_write(given: list[str]) -> int:
            code = main(given)
            Path(f"{run}-moments").write_text(str(moments))
            return code

        train_hf.main = and_write


def hear_changes(place: str, moment: Callable[[], None]) -> None:
    """Calls `moment` when this process is about to open, rename or remove a file below a place, or make a folder."""
    process = os.getpid()

    def heard(event: str, args: tuple[Any, ...]) -> None:
        on_disk = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
        if on_disk and os.getpid() == process and str(args[0]).startswith(place):
            moment()

    sys.addaudithook(heard)


def signal_in_update(arguments: list[str], update: int, number: int, group: bool = False, rank: str = "") -> None:
    """Sends a signal, to the process or to its group, when an update is done."""
    check_update = RoundRobinTrainer.check_update

    def signalled(self: RoundRobinTrainer) -> None:
        if self.state.global_step == update and os.environ.get("RANK", "") == rank:
            (os.killpg if group else os.kill)(os.getpid(), number)
        check_update(self)

    RoundRobinTrainer.check_update = signalled


def kill_a_worker(arguments: list[str], update: int) -> None:
    """Ends a data worker, as a system without memory does, when an update is done."""
    check_update = RoundRobinTrainer.check_update

    def killed(self: RoundRobinTrainer) -> None:
        if self.state.global_step == update:
            multiprocessing.active_children()[0].kill()
        check_update(self)

    RoundRobinTrainer.check_update = killed


def signal_in_evaluation(arguments: list[str], update: int, corpus: str) -> None:
    """Sends SIGTERM when the evaluation of a corpus begins."""
    evaluate = RoundRobinTrainer.evaluate

    def signalled(self: RoundRobinTrainer, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.state.global_step == update and eval_dataset == corpus:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, eval_dataset, *args, **kwargs)

    RoundRobinTrainer.evaluate = signalled


def signal_in_test(arguments: list[str]) -> None:
    classify = train_hf.classify

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return classify(*args, **kwargs)

    train_hf.classify = signalled


def die_in_save(arguments: list[str], update: int, written: str) -> None:
    """Kills the process while a checkpoint is written, when a file of it has just begun."""
    writer = {"model.safetensors": "save_model_folder", "optimizer.pt": "torch.save"}[written]

    def half(*args: Any, **kwargs: Any) -> None:
        Path(args[1], written).write_bytes(b"half") if writer != "torch.save" else Path(args[1]).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    save = RoundRobinTrainer._save_checkpoint

    def saving(self: RoundRobinTrainer, *args: Any) -> None:
        if self.state.global_step == update:
            if writer == "torch.save":
                torch.save = half
            else:
                save_model_folder = checkpoints.save_model_folder

                def and_die(model: Any, directory: Path, *rest: Any) -> None:
                    save_model_folder(model, directory, *rest)
                    half(model, directory)

                checkpoints.save_model_folder = and_die
        save(self, *args)

    RoundRobinTrainer._save_checkpoint = saving


def die_after_save(arguments: list[str], update: int) -> None:
    """Kills the process when a checkpoint has its name, before older ones are removed."""
    remove = RoundRobinTrainer.remove_old_checkpoints

    def die(self: RoundRobinTrainer) -> None:
        if self.state.global_step == update:
            os.kill(os.getpid(), signal.SIGKILL)
        remove(self)

    RoundRobinTrainer.remove_old_checkpoints = die


def limit_file_size(arguments: list[str], update: int, size: int) -> None:
    """From the save of an update on no file may be larger than `size` bytes."""
    save = RoundRobinTrainer._save_checkpoint

    def limited(self: RoundRobinTrainer, *args: Any) -> None:
        if self.state.global_step == update:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        save(self, *args)

    RoundRobinTrainer._save_checkpoint = limited


def spoil_clips(arguments: list[str], names: Sequence[str], update: int = 1) -> None:
    """The samples of some clips of training are not numbers from an update on."""
    collate, check_update = AudioCollator.__call__, RoundRobinTrainer.check_update
    updates = 0

    def counted(self: RoundRobinTrainer) -> None:
        nonlocal updates
        check_update(self)
        updates = self.state.global_step

    def spoilt(self: AudioCollator, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(self, rows)
        for number, row in enumerate(rows):
            if "crop" in row and row["file_name"] in names and updates >= update - 2:  # batches are made ahead
                batch["input_values"][number] = float("nan")
        return batch

    AudioCollator.__call__, RoundRobinTrainer.check_update = spoilt, counted
