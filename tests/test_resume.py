"""A run that is killed, interrupted or hits an error: what is left, and that it goes on as if nothing had happened.

python -m pytest tests/test_resume.py

A life of a run is a process of its own, forked from a server that has imported everything, so that it may be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import ASTConfig, ASTForAudioClassification, HubertConfig, HubertModel

import train_hf
from conftest import HUBERT_KINDS, ROOT, SMALL, write_corpus
from exhubert.training import checkpoints
from exhubert.training.collator import AudioCollator
from exhubert.training.interruption import SAME_PRESS_SECONDS, Signals
from exhubert.training.trainer import RoundRobinTrainer
from exhubert.utils.command import quiet_transformers, run_with_one_line_errors

PATIENCE_SECONDS = 240  # for a life that takes two on an idle machine
UPDATES = 12
WORKERS = "--dataloader_num_workers"
NOT_COMPARED = ("_runtime", "_per_second", "epoch")  # the clock's, and the share of all rounds


class Life(NamedTuple):
    code: int
    output: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two corpora, a small HuBERT with dropout and SpecAugment, and a recipe of twelve updates, saved every second."""
    directory = tmp_path_factory.mktemp("resume")
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
        "training": {"learning_rate": 5.0e-3, "eval_steps": 2, "report_to": "none", "use_cpu": True},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def server():
    """A process with everything imported, to be forked."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), before]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_resume"])
    yield context
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def live(folder, server) -> Callable[..., Life]:
    """Runs lives of a run to their end: `live(output, *options, hook=None)`; several, of one run, as its processes."""

    def start(output: Path, options: Sequence[str], hook: Any, environment: dict[str, str], log: Path) -> Any:
        arguments = [str(folder / "recipe.yaml"), "--output", str(output), *options]
        life = server.Process(target=_live, args=(arguments, str(log), hook, environment))
        life.start()
        return life

    def run(output: Path, *options: str, hook: Any = None, processes: int = 1) -> Life:
        logs = [output.parent / f"{output.name}-{rank}.log" for rank in range(processes)]
        for log in logs:
            log.unlink(missing_ok=True)
        port = str(_free_port())
        lives = []
        for rank in range(processes):
            environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            lives.append(start(output, options, hook, environment if processes > 1 else {}, logs[rank]))
        for life in lives:
            life.join(PATIENCE_SECONDS)
        stuck = [life for life in lives if life.exitcode is None]
        for life in stuck:
            life.kill()
        text = "".join(log.read_text() for log in logs)
        assert not stuck, text
        codes = {life.exitcode for life in lives}
        return Life(codes.pop() if len(codes) == 1 else -1, text)

    return run


def _live(arguments: list[str], log: str, hook: Any, environment: dict[str, str]) -> None:
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


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def undisturbed(folder, live) -> Path:
    run = folder / "undisturbed"
    done = live(run, hook=(count_moments,))
    assert done.code == 0, done.output
    return run


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


# What is done to a life from within; `hook=(function, argument, ...)`.


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

    def heard(event: str, args: tuple[Any, ...]) -> None:
        on_disk = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
        if on_disk and os.getpid() == process and str(args[0]).startswith(run):
            moment()

    sys.addaudithook(heard)
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


def signal_in_update(arguments: list[str], update: int, number: int, group: bool = False, rank: str = "") -> None:
    """Sends a signal, to the process or to its group, when the gradients of an update are there."""
    check_update = RoundRobinTrainer.check_update

    def signalled(self: RoundRobinTrainer) -> None:
        if self.state.global_step == update - 1 and os.environ.get("RANK", "") == rank:
            (os.killpg if group else os.kill)(os.getpid(), number)
        check_update(self)

    RoundRobinTrainer.check_update = signalled


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
        updates = self.state.global_step + 1

    def spoilt(self: AudioCollator, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(self, rows)
        for number, row in enumerate(rows):
            if "crop" in row and row["file_name"] in names and updates >= update - 2:  # batches are made ahead
                batch["input_values"][number] = float("nan")
        return batch

    AudioCollator.__call__, RoundRobinTrainer.check_update = spoilt, counted


# Going on


WHOLE = pytest.mark.heavy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "wanted"), [("0", 3), pytest.param("0", 10, marks=WHOLE), pytest.param("2", 10, marks=WHOLE)]
)
def test_kills_leave_no_trace(folder, live, undisturbed, workers, wanted):
    """Kill -9 at random moments of its life, also of saving and of writing results, resumed each time."""
    generator = np.random.default_rng(int(workers))
    name = f"killed-{workers}-{wanted}"
    moments = int(Path(f"{undisturbed}-moments").read_text())
    assert moments > 100
    kills = ended = 0
    while kills < wanted or not ended:
        run = folder / f"{name}-{ended}"
        resume = ["--resume"] if run.exists() else []
        # Of a life that goes on from halfway, moments of the whole would often be after its end.
        fatal = int(generator.integers(1, moments // 2)) if kills < wanted else 0
        life = live(run, *resume, WORKERS, workers, hook=(count_moments, fatal))
        assert life.code in (0, -signal.SIGKILL), life.output
        if life.code == 0:
            assert_same_end(run, undisturbed)
            ended += 1
        else:
            kills += 1


@pytest.mark.parametrize(("updates", "update"), [(1, "batch"), (2, "round")])
def test_what_was_learned_from_is_not_decoded_again(folder, live, monkeypatch, tmp_path, updates, update):
    """The samples of a resumed run are those that the first one had not drawn, by the batch and by the round."""
    options = ["--update", update, "--rounds", "3", "--eval_steps", "1", "--save_total_limit", "9"]
    recipe = [str(folder / "recipe.yaml"), "--output", str(tmp_path / "run"), *options]
    drawn: list[tuple[int, ...]] = []
    collate = AudioCollator.__call__

    def recorded(self: AudioCollator, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        drawn.extend(tuple(row["draw"]) for row in rows if "crop" in row)
        return collate(self, rows)

    monkeypatch.setattr(AudioCollator, "__call__", recorded)
    assert train_hf.main(recipe) == 0
    whole, drawn[:] = list(drawn), []
    assert len(whole) == 3 * 2 * 4
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        if int(path.name.split("-")[1]) > 1:
            path.rename(tmp_path / path.name)
    (tmp_path / "run" / "results.json").unlink()
    assert train_hf.main([*recipe, "--resume"]) == 0
    assert drawn == whole[4 * updates :]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_update_in_hand(folder, live, undisturbed, number):
    """Between two scheduled saves; SIGINT, as Ctrl-C does, to the whole group with its data workers."""
    run = folder / f"signal-{number}"
    workers = "2" if number == signal.SIGINT else "0"
    life = live(run, WORKERS, workers, hook=(signal_in_update, 5, number, number == signal.SIGINT))
    assert life.code == 3, life.output
    said = life.output.strip().splitlines()[-1]
    where = run / "checkpoints" / "checkpoint-5"
    assert said == f"interrupted: update 5 of 12 is saved in {where}; to go on, give the same command with --resume"
    life = live(run, "--resume")
    assert life.code == 0, life.output
    assert f"going on from {where}" in life.output
    assert_same_end(run, undisturbed, log=False)
    again = live(run, "--resume")
    assert again.code == 0
    assert f"the run in {run} is complete; with more `rounds` it would go on" in again.output


def test_a_signal_during_evaluation_does_not_wait_for_its_end(folder, live, undisturbed):
    """The evaluation that was cut short is made up for; so is one that is cut short while it is made up for."""
    run = folder / "evaluation"
    for options, corpus in (([], "second"), (["--resume"], "first")):
        life = live(run, *options, hook=(signal_in_evaluation, 4, corpus))
        assert life.code == 3, life.output
        assert "update 4 of 12 is saved" in life.output
        state = json.loads((run / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
        assert not [entry for entry in state["log_history"] if entry["step"] == 4 and "loss" not in entry]
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)


def test_a_signal_during_the_final_test(folder, live, undisturbed):
    run = folder / "test"
    life = live(run, hook=(signal_in_test,))
    assert life.code == 3, life.output
    assert not (run / "results.json").exists()
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)


def test_a_second_ctrl_c_ends_at_once():
    """But not the copy of the first that a launcher passes on."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received
        time.sleep(SAME_PRESS_SECONDS + 0.1)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kind", ["lora", "ast"])
def test_a_model_that_is_not_saved_as_it_is_in_memory(folder, live, kind):
    """LoRA is merged into the weights of a checkpoint; transformers renames those of an AST as it saves them."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ASTForAudioClassification(ASTConfig(**small, max_length=64, num_mel_bins=16)).save_pretrained(folder / "ast")
    options = ["--lora", "{rank: 2}"] if kind == "lora" else ["--model", str(folder / "ast")]
    whole, halves = folder / f"{kind}-whole", folder / f"{kind}-halves"
    done = live(whole, *options)
    assert done.code == 0, done.output
    assert live(halves, *options, hook=(signal_in_update, 5, signal.SIGTERM)).code == 3
    life = live(halves, *options, "--resume")
    assert life.code == 0, life.output
    assert_same_end(halves, whole, log=False)


@pytest.mark.parametrize("written", ["model.safetensors", "optimizer.pt"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(folder, live, undisturbed, written):
    run = folder / f"save-{written}"
    life = live(run, hook=(die_in_save, 6, written))
    assert life.code == -signal.SIGKILL, life.output
    assert sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))[-1] == "checkpoint-4"
    assert list((run / "checkpoints").rglob(f".unfinished/checkpoint-6/{written}"))
    life = live(run, "--resume")
    assert "going on from" in life.output
    assert_same_end(run, undisturbed)


def test_a_run_killed_before_its_first_checkpoint_starts_again(folder, live, undisturbed):
    run = folder / "early"
    assert live(run, hook=(signal_in_update, 1, signal.SIGKILL)).code == -signal.SIGKILL
    assert "is in use already" in live(run).output
    life = live(run, "--resume")
    assert "there is no checkpoint yet: starting from the beginning" in life.output
    assert_same_end(run, undisturbed)


def test_more_rounds_go_on_with_a_complete_run(folder, live, undisturbed):
    """And end as a run that was to have them from the start does."""
    run = folder / "longer"
    assert live(run, "--rounds", "3").code == 0
    life = live(run, "--resume")
    assert life.code == 0, life.output
    assert_same_end(run, undisturbed, log=False)
    life = live(run, "--resume", "--rounds", "3")
    assert f"rounds is 3, but the run in {run} is of 6; give more" in life.output


def test_a_run_folder_can_be_moved_and_how_it_is_watched_be_changed(folder, live, undisturbed):
    """Best so far goes along; logging, evaluating and saving more often does not change a weight."""
    assert live(folder / "here", hook=(signal_in_update, 7, signal.SIGTERM)).code == 3
    (folder / "here").rename(folder / "there")
    options = ["--eval_steps", "1", "--logging_steps", "3", WORKERS, "1", "--per_device_eval_batch_size", "3"]
    life = live(folder / "there", "--resume", *options, "--load_best_model_at_end", "false")
    assert life.code == 0, life.output
    expected, _, _ = outcome(undisturbed)
    tensors, _, history = outcome(folder / "there")
    assert all(torch.equal(expected[name], tensors[name]) for name in expected if not name.startswith("model "))
    assert [entry["step"] for entry in history if "eval_average_uar" in entry] == [2, 4, 6, *range(7, 13)]


def test_early_stopping_goes_on_counting(folder, live):
    """A run that is stopped after two evaluations without progress, interrupted after the first and at its end."""
    options = ["--early_stopping", "2", "--learning_rate", "1e-9"]  # the first evaluation is the best
    whole = folder / "stopped"
    assert live(whole, *options).code == 0
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-6"]
    halves = folder / "stopped-halves"
    assert live(halves, *options, hook=(signal_in_update, 5, signal.SIGTERM)).code == 3
    assert live(halves, *options, "--resume", hook=(signal_in_test,)).code == 3
    life = live(halves, *options, "--resume")
    assert life.code == 0
    assert sorted(path.name for path in (halves / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-6"]
    names = ("average", "corpora")
    results = [json.loads((run / "results.json").read_text()) for run in (whole, halves)]
    assert [results[0][name] for name in names] == [results[1][name] for name in names]


# Refusals


@pytest.fixture(scope="module")
def interrupted(folder, live) -> Path:
    """A run that was interrupted after its third update."""
    run = folder / "interrupted"
    life = live(run, hook=(signal_in_update, 3, signal.SIGTERM))
    assert life.code == 3, life.output
    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "8"], "batch_size is 8, but the run in {run} began with 4; other settings need a new run"),
        (["--seed", "1"], "seed is 1, but the run in {run} began with 0"),
        (["--corpora", "first"], "corpora is ['first'], but the run in {run} began with ['first', 'second']"),
        (["--update", "round"], "update is 'round', but the run in {run} began with 'batch'"),
        (["--freeze", "base"], "freeze is ['base'], but the run in {run} began with []"),
        (["--learning_rate", "0.1"], "learning_rate is 0.1, but the run in {run} began with 0.005"),
        (["--weight_decay", "0"], "weight_decay is 0.0, but the run in {run} began with 0.01"),
        (["--clips_per_corpus", "9"], "clips_per_corpus is 9, but the run in {run} began with None"),
    ],
)
def test_a_recipe_that_differs_in_what_matters_is_refused(folder, interrupted, options, message):
    recipe = [str(folder / "recipe.yaml"), "--output", str(interrupted), *options, "--resume"]
    with pytest.raises(ValueError) as error:
        train_hf.main(recipe)
    assert message.format(run=interrupted) in str(error.value)


def test_corpora_with_other_clips_are_refused(folder, interrupted, tmp_path):
    lines = (folder / "first" / "metadata.csv").read_text().splitlines()
    write_corpus(tmp_path / "first")
    (tmp_path / "first" / "metadata.csv").write_text("\n".join(lines[:-1]))
    recipe = [str(folder / "recipe.yaml"), "--output", str(interrupted), "--resume"]
    entries = ["--corpora", str(tmp_path / "first"), "second"]
    with pytest.raises(ValueError, match=r"'first': its \w+ clips or their labels are others .* \(\d+ clips.* then"):
        train_hf.main([*recipe, *entries])


def copy_of(run: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", run, tmp_path / "copy"], check=True)
    return tmp_path / "copy" / "checkpoints" / "checkpoint-3"


@pytest.mark.parametrize("change", [{"hidden_size": 16}, {"num_hidden_layers": 2}, {"num_hidden_layers": 4}])
def test_a_checkpoint_of_another_architecture_is_refused(folder, interrupted, tmp_path, change):
    """The model of the same name has become another one."""
    checkpoint = copy_of(interrupted, tmp_path)
    HubertModel(HubertConfig(**{**SMALL, **HUBERT_KINDS["large"], **change})).save_pretrained(tmp_path / "hubert")
    settings = yaml.safe_load((tmp_path / "copy" / "recipe.yaml").read_text())
    settings["model"] = str(tmp_path / "hubert")
    (tmp_path / "copy" / "recipe.yaml").write_text(yaml.safe_dump(settings))
    recipe = [str(folder / "recipe.yaml"), "--model", str(tmp_path / "hubert"), "--resume"]
    with pytest.raises(ValueError, match=f"{checkpoint} is damaged, or of another model .*(size mismatch|lacks|has)"):
        train_hf.main([*recipe, "--output", str(tmp_path / "copy")])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["truncated", "gone", "other"])
def test_a_damaged_checkpoint_is_a_plain_error(folder, interrupted, tmp_path, capsys, name, damage):
    checkpoint = copy_of(interrupted, tmp_path)
    path = checkpoint / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"not what it should be")
    recipe = [str(folder / "recipe.yaml"), "--output", str(tmp_path / "copy"), "--resume"]
    code = run_with_one_line_errors(lambda: train_hf.main(recipe))
    if (name, damage) == ("trainer_state.json", "gone"):  # no checkpoint then; the one before it is taken
        assert code == 0
        return
    assert code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"error: {checkpoint} is damaged, or of another model")


def test_states_are_loaded_without_running_what_is_in_them(folder, interrupted, tmp_path):
    """A pickle in the place of the random states that would write a file."""
    checkpoint = copy_of(interrupted, tmp_path)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("rng_state.pth", "optimizer.pt", "scheduler.pt"):
        torch.save({"python": Trap()}, checkpoint / name)
        with pytest.raises(ValueError, match="is damaged"):
            train_hf.main([str(folder / "recipe.yaml"), "--output", str(tmp_path / "copy"), "--resume"])
    assert not (tmp_path / "sprung").exists()


# Losses that are no numbers


def test_a_nan_loss_names_update_corpus_and_files(folder, live):
    names = [f"audio/{speaker}_joy_{take}.wav" for speaker in "efg" for take in range(2)]
    run = folder / "nan"
    life = live(run, hook=(spoil_clips, names, 6))
    assert life.code == 1
    line = life.output.strip().splitlines()[-1]
    checkpoint = run / "checkpoints" / "checkpoint-4"
    assert line.startswith("error: the loss is nan at update 6, on clips of second: audio/")
    assert line.endswith(f" and 1 more; the last good checkpoint is {checkpoint}")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_no_checkpoint_has_weights_that_are_no_numbers(folder, live):
    """The loss of the update is fine; what it makes of the weights is not, and the next loss comes after the save."""
    run = folder / "overflow"
    life = live(run, "--learning_rate", "1e39", "--eval_steps", "1")
    assert life.code == 1
    line = life.output.strip().splitlines()[-1]
    assert line.startswith("error: weights have become NaN or infinite at update 1, on clips of first: audio/")
    assert line.endswith("there is no checkpoint yet")
    assert not list((run / "checkpoints").rglob("*.safetensors"))


# A full disk


@pytest.mark.parametrize("size", [100_000, 300_000])
def test_a_full_disk_ends_in_one_line(folder, live, undisturbed, size):
    """Neither the weights nor, with more room, the optimizer's state can be written; the rest is in place."""
    weights = (undisturbed / "model" / "model.safetensors").stat().st_size
    states = (undisturbed / "checkpoints" / f"checkpoint-{UPDATES}" / "optimizer.pt").stat().st_size
    assert 100_000 < weights < 300_000 < states
    run = folder / f"full-{size}"
    life = live(run, hook=(limit_file_size, 6, size))
    assert life.code == 1
    line = life.output.strip().splitlines()[-1]
    target, kept = (run / "checkpoints" / f"checkpoint-{update}" for update in (6, 4))
    assert line.startswith(f"error: {target} could not be written, ")
    assert line.endswith(f"; {kept} is whole, and --resume goes on from it")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert live(run, "--resume").code == 0
    assert_same_end(run, undisturbed)


# Several processes


@pytest.mark.slow
def test_all_processes_end_at_the_same_update_and_another_number_goes_on(folder, live):
    """The signal reaches only one of two. One process goes on, with a notice; two again, bit for bit."""
    whole, halves = folder / "two", folder / "two-halves"
    assert live(whole, processes=2).code == 0
    life = live(halves, hook=(signal_in_update, 5, signal.SIGTERM, False, "1"), processes=2)
    assert life.code == 3, life.output
    assert "on 2 processes" in life.output
    assert life.output.count("interrupted: update 5 of 12 is saved") == 1
    subprocess.run(["cp", "-r", halves, folder / "two-then-one"], check=True)
    life = live(halves, "--resume", processes=2)
    assert life.code == 0, life.output
    assert_same_end(halves, whole, log=False)
    life = live(folder / "two-then-one", "--resume")
    assert life.code == 0, life.output
    assert "it was saved by 2 processes: the batches stay as they were" in life.output


@pytest.mark.slow
def test_a_nan_loss_of_one_process_stops_all(folder, live):
    """The gradient's mean over processes would spoil the weights of both."""
    names = ["audio/e_joy_0.wav"]  # in one of the two shares at a time
    run = folder / "two-nan"
    life = live(run, hook=(spoil_clips, names), processes=2)
    assert life.code == 1, life.output
    assert life.output.count("error: the loss is nan at update 2, on clips of second: audio/") == 2
    assert "audio/e_joy_0.wav" in life.output


@pytest.mark.slow
def test_the_death_of_one_process_ends_the_others(folder, live):
    """Without a launcher to end them: the survivor sees that the connection is gone."""
    life = live(folder / "death", hook=(signal_in_update, 3, signal.SIGKILL, False, "1"), processes=2)
    assert life.code == -1
    assert life.output.count("error: another process of this run is gone, or does not answer") == 1


@pytest.mark.slow
def test_torchrun_ends_with_an_error_when_one_process_dies(folder):
    script = folder / "dies.py"
    script.write_text(
        "import signal, sys, test_resume, train_hf\n"
        "test_resume.signal_in_update([], 3, signal.SIGKILL, False, '1')\n"
        "sys.exit(train_hf.main())\n"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(_free_port()), str(script), str(folder / "recipe.yaml")]
    done = subprocess.run(
        [*command, "--output", str(folder / "torchrun")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode != 0
    assert "on 2 processes" in done.stdout
    assert "SIGKILL" in done.stderr
