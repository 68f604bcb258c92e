"""What tests run in every process: `train_hf.py`, with a record of what each process saw; and what they run it on.

python tests/distributed_run.py FOLDER, or with a launcher

FOLDER/jobs.json says what is run; the record of process 1 of 2 is FOLDER/1-of-2.pt.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import HubertConfig, HubertForSequenceClassification, TrainerCallback

import train_hf
from conftest import HUBERT_KINDS, ROOT, SMALL, write_corpus
from exhubert.training.arguments import parse

SIZES = {"five": (3, 3), "twelve": (2, 8), "thirty": (2, 17)}  # labels and takes, four more than the training clips
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
STILL |= {"final_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}


def write_hubert(folder: Path, **changes: Any) -> Path:
    """Writes a small HuBERT with six classes."""
    torch.manual_seed(0)
    settings = {**SMALL, **HUBERT_KINDS["large"], "num_labels": 6, **changes}
    HubertForSequenceClassification(HubertConfig(**settings)).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, **training: Any) -> Path:
    """Writes three corpora with 5, 12 and 30 training clips, a HuBERT without randomness and a recipe for them."""
    for name, (labels, takes) in SIZES.items():
        # Of two labels one clip each is for validation and one for test.
        splits = {0: "validation", takes: "validation", 1: "test", takes + 1: "test"}

        def split(row: int, splits: Mapping[int, str] = splits) -> str:
            return splits.get(row, "train")

        emotions = ("anger", "neutral", "sadness")[:labels]
        columns = {"split": split, "speaker": split, "arousal": lambda row: str(row % 7)}
        write_corpus(folder / name, labels=emotions, speakers=("x",), takes=takes, **columns)
    recipe = {
        "model": str(write_hubert(folder / "hubert", **STILL)),
        "corpora_root": str(folder),
        "corpora": list(SIZES),
        "batch_size": 8,
        "window_seconds": 0.5,
        "training": {"learning_rate": 1.0e-3, "eval_steps": 1000, "report_to": "none", "load_best_model_at_end": False}
        | training,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def launch(
    folder: Path, jobs: Mapping[int, Mapping[str, Any]], launcher: Sequence[str] = ()
) -> dict[int, list[dict[str, Any]]]:
    """Does jobs in several processes.

    Args:
        folder: is made, for jobs and records.
        jobs: for each number of processes `runs`, what `train_and_record` is given, and maybe `steps`, what
            `steps_under_ddp` is given; by name.
        launcher: the module of a launcher with its options but for the number of processes (a GPU for each needs one);
            without it the processes are forks, which saves the imports of each: of this process, or, where autograd's
            device threads forbid that, of one that runs this file.

    Returns:
        For each number of processes what each of them recorded: `runs` and `without_gradient`.
    """
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    if not launcher and not torch.cuda.is_available():
        main(folder)
    else:
        start(folder, jobs if launcher else [0], launcher)
    return {
        processes: [torch.load(folder / f"{rank}-of-{processes}.pt", weights_only=True) for rank in range(processes)]
        for processes in jobs
    }


def start(folder: Path, numbers: Iterable[int], launcher: Sequence[str]) -> None:
    """Runs this file with each number of processes, by a launcher if there is one."""
    for processes in numbers:
        launched = ["-m", *launcher, str(processes)] if launcher else []
        command = [sys.executable, *launched, __file__, str(folder)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
        first = [line for line in done.stderr.splitlines() if "rank0" in line] or done.stderr.splitlines()
        assert done.returncode == 0, "\n".join(first[-40:])


def environment() -> dict[str, str]:
    """The environment of processes that tests start. Narrow convolutions are wrong in bfloat16 with AMX."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    right = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    return {**right, **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node")


class Recorded(Dataset):
    """A training set that keeps the draws it was asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.draws: list[tuple[int, ...]] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, draw: tuple[int, ...]) -> Any:
        self.draws.append(tuple(draw))
        return self.dataset[draw]


class Recorder(TrainerCallback):
    """Keeps the gradients that each update was made with; ends a run after `stop_after` updates, once it is saved."""

    def __init__(self, stop_after: int | None) -> None:
        self.stop_after = stop_after
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert all(weight.grad is not None for weight in trainable.values())
        self.gradients.append({name: whole(weight.grad) for name, weight in trainable.items()})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_after:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_after:
            raise EndOfTraining


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; FSDP's tensors are put together, by all processes."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


class EndOfTraining(Exception):
    """Training was left: nothing after it is tested here."""


def train_and_record(
    arguments: Sequence[str],
    processes: int,
    stop_after: int | None = None,
    to_the_end: bool = False,
    script: str = "train_hf",
) -> dict[str, Any]:
    """Trains with `train_hf.py` as one of `processes`, and leaves it after the training.

    Args:
        arguments: of the command line.
        processes: how many there must be.
        stop_after: leave it after so many updates, with a checkpoint.
        to_the_end: do not leave it.
        script: another one, that builds its trainer likewise.

    Returns:
        `draws`: the (corpus, pass, clip) that this process trained on, in order; `losses` of the updates;
        `gradients` of the updates and the `weights` in the end, by the parameter's name; `seed` of random numbers.
    """
    module = importlib.import_module(script)
    build, trainers, recorder = module.build_trainer, [], Recorder(stop_after)

    def build_and_record(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        trainer.train_dataset = Recorded(trainer.train_dataset)
        trainer.add_callback(recorder)
        train = trainer.train

        def train_and_stop(*args: Any, **kwargs: Any) -> Any:
            train(*args, **kwargs)
            raise EndOfTraining

        trainer.train = train if to_the_end else train_and_stop
        trainers.append(trainer)
        return trainer

    with mock.patch.object(module, "build_trainer", build_and_record), contextlib.suppress(EndOfTraining):
        module.main([*arguments, "--logging_steps", "1"])
    trainer = trainers[0]
    check_world_size(processes)
    assert trainer.args.world_size == trainer.accelerator.num_processes == processes
    if "ACCELERATE_USE_FSDP" in os.environ:
        assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
        assert policy is None or policy.reduce_dtype == torch.float32
    elif processes > 1:
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        assert not trainer.model_wrapped.find_unused_parameters
        assert trainer.model_wrapped.gradient_as_bucket_view
    return {
        "draws": trainer.train_dataset.draws,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradients": recorder.gradients,
        "seed": torch.initial_seed(),
        "weights": {name: whole(weight) for name, weight in trainer.model.named_parameters()},
    }


def check_world_size(processes: int) -> None:
    """Asserts that there are as many processes as were asked for, and that they hear each other."""
    started = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    assert started == processes, f"{started} processes, not {processes}"
    if processes > 1:
        ranks: list[Any] = [None] * processes
        torch.distributed.all_gather_object(ranks, torch.distributed.get_rank())
        assert ranks == list(range(processes))


def steps_under_ddp(arguments: Sequence[str]) -> list[str]:
    """Takes two steps of a recipe's model under DDP, with other input in each process.

    DDP itself raises in the second one if a parameter got no gradient in the first in one of the processes.

    Returns:
        The trainable parameters without a gradient.
    """
    recipe, training, _ = parse(arguments)
    model, _ = train_hf.load_model(recipe, ["low/negative", "low/neutral"])
    assert training.ddp_find_unused_parameters is False
    model = DistributedDataParallel(model.train(), find_unused_parameters=False)
    torch.manual_seed(torch.distributed.get_rank())
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(2, 4000), labels=torch.tensor([0, 1])).loss.backward()
    return [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


def keep_fsdp_on_cpu() -> None:
    """Makes accelerate use FSDP, which it leaves out without a word where the processes have no GPU."""
    initialise = AcceleratorState.__init__

    def with_fsdp(state: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        initialise(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
            if state.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_fsdp


def work(rank: int, processes: int, jobs: Mapping[str, Any], folder: Path) -> None:
    """Does the jobs for so many processes as one of them and writes its record."""
    runs = {name: train_and_record(processes=processes, **run) for name, run in jobs["runs"].items()}
    without_gradient = {name: steps_under_ddp(arguments) for name, arguments in jobs.get("steps", {}).items()}
    check_world_size(processes)
    torch.save({"runs": runs, "without_gradient": without_gradient}, folder / f"{rank}-of-{processes}.pt")
    torch.distributed.destroy_process_group()


def work_forked(rank: int, processes: int, port: int, jobs: Mapping[str, Any], folder: Path) -> None:
    """As `work`, with the environment that torchrun gives a process; nothing is left of what was trained before."""
    torch.set_num_threads(1)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, processes, jobs, folder)


def main(folder: Path) -> None:
    """Does FOLDER/jobs.json: as the process that a launcher started, or in processes forked for each number of them."""
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    if "WORLD_SIZE" in os.environ:
        if "ACCELERATE_USE_FSDP" in os.environ:
            keep_fsdp_on_cpu()
        processes = int(os.environ["WORLD_SIZE"])
        work(int(os.environ["RANK"]), processes, jobs[str(processes)], folder)
        return
    for processes, given in jobs.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (int(processes), port, given, folder)
        torch.multiprocessing.start_processes(work_forked, arguments, nprocs=int(processes), start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
