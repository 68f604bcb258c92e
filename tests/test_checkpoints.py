"""What a run cannot go on from, and losses and weights that are no numbers: each ends in one line.

python -m pytest tests/test_checkpoints.py
"""

from __future__ import annotations

import errno
import re
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import HubertConfig, HubertModel

import train_hf
from conftest import HUBERT_KINDS, SMALL, refused, write_corpus
from exhubert.training.checkpoints import plain_errors
from exhubert.training.collator import AudioCollator
from exhubert.training.run_folder import check_recipe
from exhubert.training.trainer import RoundRobinTrainer
from lives import signal_in_update, spoil_clips, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    write_run(directory)
    return directory


@pytest.fixture(autouse=True)
def unpatched(monkeypatch):
    """What hooks do to classes is undone."""
    for kind, name in ((RoundRobinTrainer, "check_update"), (AudioCollator, "__call__")):
        monkeypatch.setattr(kind, name, getattr(kind, name))


@pytest.fixture(scope="module")
def interrupted(folder) -> Path:
    """A run that was interrupted after its third update."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RoundRobinTrainer, "check_update", RoundRobinTrainer.check_update)
        signal_in_update([], 3, signal.SIGTERM)
        run = folder / "interrupted"
        assert train_hf.main([str(folder / "recipe.yaml"), "--output", str(run)]) == train_hf.INTERRUPTED
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


def test_a_run_from_before_there_was_a_fast_path_goes_on_without(folder, interrupted, tmp_path):
    copy_of(interrupted, tmp_path)
    settings = yaml.safe_load((tmp_path / "copy" / "recipe.yaml").read_text())
    assert settings.pop("fast_path") is True
    (tmp_path / "copy" / "recipe.yaml").write_text(yaml.safe_dump(settings))
    check_recipe(tmp_path / "copy", {**settings, "fast_path": False})
    with pytest.raises(ValueError, match=r"fast_path is True, but the run in .* began with False"):
        check_recipe(tmp_path / "copy", {**settings, "fast_path": True})


def test_corpora_with_other_clips_are_refused(folder, interrupted, tmp_path):
    lines = (folder / "first" / "metadata.csv").read_text().splitlines()
    write_corpus(tmp_path / "first")
    (tmp_path / "first" / "metadata.csv").write_text("\n".join(lines[:-1]))
    recipe = [str(folder / "recipe.yaml"), "--output", str(interrupted), "--resume"]
    entries = ["--corpora", str(tmp_path / "first"), "second"]
    with pytest.raises(ValueError, match=r"'first': its \w+ clips or their labels are others .* \(\d+ clips.* then"):
        train_hf.main([*recipe, *entries])


def copy_of(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
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


NAMES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
DAMAGED = [(name, damage) for name in NAMES for damage in ("truncated", "gone", "other")]


@pytest.mark.parametrize(("name", "damage"), [case for case in DAMAGED if case != ("trainer_state.json", "gone")])
def test_a_damaged_checkpoint_is_a_plain_error(folder, interrupted, tmp_path, capsys, name, damage):
    checkpoint = copy_of(interrupted, tmp_path)
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not what it should be")
    if damage == "gone":
        (checkpoint / name).unlink()
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "copy", "--resume")
    assert line.startswith(f"error: {checkpoint} is damaged, or of another model")


def rewritten(path: Path, change: Callable[[str, bytes], tuple[bytes, int]]) -> None:
    """Writes an archive's records anew; `change` returns the content and the compression of each."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, *change(name, content))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_bomb_in_a_checkpoint_is_not_unfolded(folder, interrupted, tmp_path, capsys, name):
    checkpoint = copy_of(interrupted, tmp_path)
    rewritten(checkpoint / name, lambda record, content: (content + bytes(10**6), zipfile.ZIP_DEFLATED))
    assert (checkpoint / name).stat().st_size < 10**6
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "copy", "--resume")
    assert f"{checkpoint} is damaged" in line and f"{name} holds what is compressed" in line


def test_a_single_bit_of_the_optimizers_state_is_noticed(folder, interrupted, tmp_path, capsys):
    checkpoint = copy_of(interrupted, tmp_path)
    data = bytearray((checkpoint / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(data)
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "copy", "--resume")
    assert f"{checkpoint} is damaged" in line and "optimizer.pt is damaged in " in line


def test_a_checkpoint_of_another_update_than_its_name_says(folder, interrupted, tmp_path, capsys):
    path = copy_of(interrupted, tmp_path) / "trainer_state.json"
    path.write_text(path.read_text().replace('"global_step": 3', '"global_step": 2'))
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "copy", "--resume")
    assert "trainer_state.json is not as the run wrote it" in line


HOSTILE = {
    "scaler.pt": ("no pickle", "{checkpoint} is damaged"),
    "trainer_state.json": (
        '{"global_step": "3"}',
        "{checkpoint} is damaged, .*trainer_state.json is not as the run wrote",
    ),
    "../../environment.json": ("[[[", "environment.json is not JSON"),
    "../../environment.json ": ("[]", "environment.json is not a table `key: value` in JSON"),
    "../../environment.json  ": ('{"clips": {"first": 5}}', "environment.json is not as the run wrote it"),
    "../../recipe.yaml": ("a: [", "recipe.yaml is not YAML"),
    "../../recipe.yaml ": ("a: b", "recipe.yaml is not as the run wrote it: corpora is None; put a copy of it there"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_a_run_that_were_changed_are_a_plain_error(folder, interrupted, tmp_path, capsys, name):
    text, message = HOSTILE[name]
    checkpoint = copy_of(interrupted, tmp_path)
    (checkpoint.parent / "checkpoint-abc").mkdir()
    (checkpoint.parent / "checkpoint-abc" / "trainer_state.json").touch()
    (checkpoint / name.strip()).write_text(text)
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "copy", "--resume")
    assert re.search(message.format(checkpoint=checkpoint), line), line
    assert "delete" not in line


def test_a_checkpoint_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    with pytest.raises(PermissionError), plain_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_without_its_last_file_a_checkpoint_is_none(folder, interrupted, tmp_path, capsys):
    """The one before it is taken."""
    (copy_of(interrupted, tmp_path) / "trainer_state.json").unlink()
    assert train_hf.main([str(folder / "recipe.yaml"), "--output", str(tmp_path / "copy"), "--resume"]) == 0
    assert "checkpoint-2" in capsys.readouterr().out.split("going on from ")[1].splitlines()[0]


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


def test_a_nan_loss_names_update_corpus_and_files(folder, tmp_path, capsys):
    spoil_clips([], [f"audio/{speaker}_joy_{take}.wav" for speaker in "efg" for take in range(2)], 6)
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert line.startswith("error: the loss is nan at update 6, on clips of second: audio/")
    assert line.endswith(f" and 1 more; the last good checkpoint is {checkpoints / 'checkpoint-4'}")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_loss_that_is_looked_at_later_is_named_by_its_own_update(folder, tmp_path, capsys):
    """Where nothing is logged, evaluated or saved, ten losses are read together; those that follow a NaN are NaN."""
    spoil_clips([], [f"audio/{speaker}_joy_{take}.wav" for speaker in "efg" for take in range(2)], 6)
    never = [
        "--eval_strategy",
        "no",
        "--load_best_model_at_end",
        "false",
        "--save_steps",
        "99",
        "--logging_steps",
        "99",
    ]
    seen = []
    check_losses = RoundRobinTrainer.check_losses

    def counted(self: RoundRobinTrainer) -> None:
        seen.append(self.state.global_step)
        check_losses(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RoundRobinTrainer, "check_losses", counted)
        line = refused(capsys, train_hf.main, folder / "recipe.yaml", "--output", tmp_path / "run", *never)
    assert seen == [10]
    assert line.startswith("error: the loss is nan at update 6, on clips of second: audio/")
    assert line.endswith("there is no checkpoint yet")


def test_no_checkpoint_has_weights_that_are_no_numbers(folder, tmp_path, capsys):
    """The loss of the update is fine; what it makes of the weights is not, and the next loss comes after the save."""
    options = ["--output", tmp_path / "run", "--learning_rate", "1e39", "--eval_steps", "1"]
    line = refused(capsys, train_hf.main, folder / "recipe.yaml", *options)
    assert line.startswith("error: weights have become NaN or infinite at update 1, on clips of first: audio/")
    assert line.endswith("there is no checkpoint yet")
    assert not list((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
