"""What has its name is on the disk: files and folders are flushed before they are renamed, and their folder after it.

python -m pytest tests/test_flushed.py
"""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest
from test_layout import modules

from conftest import write_corpus
from exhubert import train_hf
from exhubert.cli import main
from exhubert.utils import files
from exhubert.utils.files import put_in_place, whole_file, whole_folder, write_text

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads what is synced from /proc")


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, ...]]:
    """`("sync", path)` and `("name", from, to)`, in their order; at a renaming all that gets a name must be synced."""
    seen: list[tuple[str, ...]] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(opened: int) -> None:
        fsync(opened)
        seen.append(("sync", os.readlink(f"/proc/self/fd/{opened}")))

    def record_name(source: Path, target: Path) -> None:
        source, target = Path(source).absolute(), Path(target).absolute()
        synced = {event[1] for event in seen if event[0] == "sync"}
        assert str(source) in synced or source.is_symlink()
        assert not [path for path in source.rglob("*") if not path.is_symlink() and str(path) not in synced]
        replace(source, target)
        seen.append(("name", str(source), str(target)))

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_name)
    return seen


def test_a_file(tmp_path, events):
    write_text(tmp_path / "new" / "a.txt", "text")
    folder, unfinished = tmp_path / "new", tmp_path / "new" / ".a.txt.unfinished"
    expected = [("sync", unfinished), ("name", unfinished, folder / "a.txt"), ("sync", folder)]
    assert events == [tuple(map(str, event)) for event in expected]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder(tmp_path, events, there):
    folder = tmp_path / "folder"
    if there:  # an empty one, which may be a mount point
        folder.mkdir()
    with whole_folder(folder) as unfinished:
        (unfinished / "below").mkdir()
        for name in ("config.json", "below/a", "z"):
            (unfinished / name).write_text(name)
        (unfinished / "link").symlink_to("/dev/full")  # is no file of ours to flush
    named = [event[2] for event in events if event[0] == "name"]
    names = ["below", "link", "z", "config.json"]
    assert named == ([str(folder / name) for name in names] if there else [str(folder)])
    assert events[-1] == ("sync", str(folder if there else tmp_path))
    assert sorted(os.listdir(folder)) == sorted(names)


def test_a_target_on_another_file_system(tmp_path, monkeypatch):
    """As where it is a mount point: copied beside its name first, so that it is there at once or not at all."""
    replace, seen = os.replace, []

    def across(source: Path, target: Path) -> None:
        seen.append((Path(source).parent.name, Path(source).name))
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    (tmp_path / "mount").mkdir()
    with whole_folder(tmp_path / "mount") as unfinished:
        (unfinished / "a").write_text("text")
    assert seen[-1] == ("mount", ".a.unfinished")
    assert os.listdir(tmp_path / "mount") == ["a"] and (tmp_path / "mount" / "a").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_does_not_get_onto_the_disk_gets_no_name(tmp_path, monkeypatch, number):
    def fail(opened: int) -> None:
        raise OSError(number, os.strerror(number))

    write_text(tmp_path / "a.txt", "before")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '.*a\.txt\.unfinished'"):
        write_text(tmp_path / "a.txt", "after")
    with pytest.raises(OSError, match=os.strerror(number)), whole_folder(tmp_path / "folder") as unfinished:
        (unfinished / "b").touch()
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


def test_disks_that_sync_no_folders_are_written_to_all_the_same(tmp_path, monkeypatch):
    def only_files(opened: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{opened}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", only_files)
    with whole_folder(tmp_path / "folder") as unfinished, whole_file(unfinished / "a") as file:
        file.touch()
    assert os.listdir(tmp_path / "folder") == ["a"]


def test_windows_opens_no_folders_and_syncs_files_that_it_may_write(tmp_path, monkeypatch):
    opened = []
    open_ = os.open
    monkeypatch.setattr(files.os, "open", lambda path, flags: opened.append((str(path), flags)) or open_(path, flags))
    (tmp_path / "a").write_text("text")
    monkeypatch.setattr(files.os, "name", "nt")
    try:
        put_in_place(tmp_path / "a", tmp_path / "b")
    finally:
        monkeypatch.undo()
    assert opened == [(str(tmp_path / "a"), os.O_RDWR)]


def test_all_that_a_training_leaves(tmp_path, make_hubert, write_keys, events, monkeypatch):
    """Checkpoints, the model, results, pictures: everything but the logs had been flushed when it got its name."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    training = {"report_to": "none", "use_cpu": True, "save_steps": 1, "save_total_limit": 1}
    recipe = write_keys(model=str(make_hubert()), corpora=["corpus"], rounds=2, window_seconds=0.5, training=training)
    assert train_hf.main([recipe]) == 0
    named = {Path(event[2]) for event in events if event[0] == "name"}
    run = tmp_path / "run"
    assert {run / "checkpoints" / f"checkpoint-{number}" for number in (1, 2)} < named
    left = [path for path in run.rglob("*") if path.is_file() and run / "logs" not in path.parents]
    assert len(left) > 20
    assert not [path for path in left if not named & {path, *path.parents}]
    for number, event in enumerate(events):
        if event[0] == "name":
            assert ("sync", str(Path(event[2]).parent)) in events[number:]


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_rows_are_on_the_disk_when_a_command_ends(model_folder, events, command):
    tone = next((write_corpus(model_folder.parent / "corpus") / "audio").iterdir())
    output = model_folder.parent / {"predict": "out.csv", "embed": "out.parquet"}[command]
    assert main([command, str(model_folder), str(tone), "--output", str(output)]) == 0
    written = [event for event in events if event[1:] == (str(output),) or event[-1] == str(output)]
    assert (
        written[-1]
        == {
            "predict": ("sync", str(output)),
            "embed": ("name", str(output.with_name(".out.parquet.unfinished")), str(output)),
        }[command]
    )


def test_nothing_else_renames():
    """A name that means "whole" is given by `put_in_place` alone; what goes into a hidden folder is on its way out."""
    found = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner, called = ast.unparse(node.func.value), node.func.attr
                to_a_name = (
                    len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Dict | ast.DictComp)
                )
                renames = called in ("rename", "replace") and (owner == "os" or to_a_name)
                if renames or (owner, called) in (("shutil", "move"), ("os", "renames")):
                    found.append((name, ast.unparse(node)))
    ours = [("utils/files.py", "os.replace(unfinished, target)"), ("utils/files.py", "shutil.move(unfinished, copied)")]
    away = [(name, call) for name, call in found if "(self.staging / " in call]
    assert sorted(found) == sorted(ours + away) and len(away) == 2
