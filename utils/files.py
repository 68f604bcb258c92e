"""Files and folders that are written whole or not at all, and the audio files below a folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from exhubert.utils.text import first_line

# In the order of preference, where a folder holds the same clip in several forms.
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".aiff", ".aif", ".au", ".sph", ".caf", ".w64"),
    *(".ogg", ".oga", ".opus", ".mp3"),
)
VIDEO_SUFFIXES = (  # read by PyAV
    *(".m4a", ".aac", ".amr", ".3gp", ".mka", ".wma"),
    *(".webm", ".mp4", ".avi", ".mkv", ".mov", ".flv", ".mpg"),
)
UNFINISHED = ".unfinished"
# Ten times as fast, where PyYAML has libyaml, which ends the process on thousands of brackets: for our own files alone.
LOADER_OF_OWN_FILES: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
LONGEST_NAME = 240  # bytes, of which file systems take 255
SYNCED_AT_ONCE = 16
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, or a limit is reached
UNSYNCED = (  # what disks say that sync no folders
    *(errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM),
)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a hidden name beside `path`; what is written there becomes `path` if the block ends without an error.

    What was at `path` is replaced at once, or stays; see `put_in_place`. The folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _hidden(path)
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def put_in_place(unfinished: Path, target: Path) -> None:
    """Gives a file, or a folder, its name when all of it is on the disk; returns when the name is there as well.

    So what has its name is whole, also after the machine has lost its power. A file takes the place of another at once,
    a folder that of an empty one.
    """
    if not unfinished.is_symlink():
        flush(unfinished)
    try:
        os.replace(unfinished, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copied = _hidden(target)  # on the file system of the target, which is in a mount point
        shutil.move(unfinished, copied)
        put_in_place(copied, target)
        return
    _sync(target.parent)


def flush(path: str | os.PathLike[str]) -> None:
    """Returns when a file is on the disk, or a folder with all that is in it, but for what its links lead to."""
    if not os.path.isdir(path):
        _sync(path)
        return
    folders, files = [], []
    for place, _, names in os.walk(path):
        folders.append(place)
        files += [os.path.join(place, name) for name in names]
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:  # a disk takes many at once in the time of one
        list(pool.map(_sync, (file for file in files if not os.path.islink(file))))
    for folder in folders:
        _sync(folder)


def _sync(path: str | os.PathLike[str]) -> None:
    """Returns when a file, or the list of names that a folder is, is on the disk, where the system can tell."""
    windows = os.name == "nt"
    if windows and os.path.isdir(path):  # which cannot be opened there
        return
    try:
        opened = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _hidden(path: Path) -> Path:
    """The name beside `path` under which it is written."""
    name = os.fsdecode(os.fsencode(f".{path.name}")[:LONGEST_NAME])
    return path.with_name(f"{name}{UNFINISHED}")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_table(path: str | os.PathLike[str], kind: str = "", loader: Any = yaml.SafeLoader) -> dict[str, Any]:
    """Reads a file of `key: value`: YAML where it is called `.yaml`, else JSON, unless `kind` says which.

    YAML makes plain values, none of the Python objects that it may name; `loader` reads it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else; the file is named.
    """
    path = Path(path)
    kind = kind or ("YAML" if path.suffix == ".yaml" else "JSON")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=loader) if kind == "YAML" else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not {kind} ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a table `key: value` in {kind}")
    return values


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns what writers of weights and audio raise, each its own, into an OSError that says how much room there is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        room = shutil.disk_usage(next(path for path in (target, *target.parents) if path.exists())).free // 2**20
        raise OSError(f"{target} could not be written, {room} MiB are free there: {first_line(error)}") from error


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
    """Holds the right to write an output, which one process has at a time; one that dies loses it.

    The lock is a hidden file beside `path`, which names the process, and goes when the block ends.

    Raises:
        ValueError: if another process has it, which is named; unless we `wait`.
    """
    path = Path(os.path.realpath(path))
    inside = path.is_dir() and not os.access(path.parent, os.W_OK)  # a mount point
    folder = path if inside else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    name = os.fsdecode(os.fsencode(f".{path.name}")[: LONGEST_NAME - 10])
    file = folder / f"{name}.lock{UNFINISHED}"
    lock = FileLock(file)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        owner = file.read_text(encoding="utf-8") if file.is_file() else ""
        raise ValueError(
            f"{path} is being written by {owner or 'another process'}; wait until that has ended, or give another name"
        ) from None
    try:
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: nobody else has it then
        lock.release()


@contextlib.contextmanager
def whole_folder(directory: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder that becomes `directory` if the block ends without an error.

    It has `directory`'s name, in a hidden folder beside it. What runs that were killed on this machine have left there
    is removed, also where `directory` is taken. An empty folder that is there already is filled, as it may be a mount
    point or have access rights of its own.

    Args:
        directory: the target.
        replace: whether a folder that holds something may be there: files of the same names are replaced, each at once
            and `config.json` last, and the others stay.

    Raises:
        ValueError: if `directory` is there already, and is not an empty folder (but see `replace`), or another process
            writes it.
    """
    directory = Path(os.path.realpath(directory))

    def check_free() -> None:
        if directory.exists() and not (directory.is_dir() and (replace or not any(directory.iterdir()))):
            remove_leftovers(directory)  # of a run that was killed when the folder had its name
            raise ValueError(f"{directory} exists already; give a folder that does not, or delete it")

    check_free()
    with locked(directory):
        _sweep(directory)
        beside = _beside(directory, os.getpid())
        shutil.rmtree(beside, ignore_errors=True)
        unfinished = beside / directory.name
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            check_free()  # what knows of no lock may have been faster
            if directory.is_dir():
                for path in sorted(unfinished.iterdir(), key=lambda path: path.name == "config.json"):
                    put_in_place(path, directory / path.name)
            else:
                put_in_place(unfinished, directory)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes what processes of this machine that were killed have left beside an output, unless one is writing it."""
    path = Path(os.path.realpath(path))
    with contextlib.suppress(OSError, ValueError), locked(path):
        _sweep(path)


def _sweep(directory: Path) -> None:
    """Removes the hidden folders beside `directory` whose processes are gone."""
    prefix = _beside(directory, "").name
    for left in directory.parent.glob(f"{glob.escape(prefix)}*"):
        if not _runs(left.name[len(prefix) :]):
            shutil.rmtree(left, ignore_errors=True)


def _beside(directory: Path, process: int | str) -> Path:
    """The hidden folder in which a process writes `directory`."""
    return directory.with_name(f".{directory.name}{UNFINISHED}-{socket.gethostname()}-{process}")


def _runs(process: str) -> bool:
    """Whether a process of this machine is alive."""
    if os.name != "posix" or not process.isdigit():  # elsewhere `os.kill` would end it
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def visible_files(folder: str | os.PathLike[str], follow_links: bool = False) -> Iterator[Path]:
    """Yields the files below a folder in the order of their names, but for what is hidden (`._name`, which Macs leave).

    Args:
        folder: where to look.
        follow_links: whether linked folders are searched too, each folder once.

    Raises:
        OSError: if a folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise error

    seen = set()
    for place, subfolders, names in os.walk(folder, onerror=stop, followlinks=follow_links):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name)


def is_audio(name: str | os.PathLike[str]) -> bool:
    """Whether a file is called as audio, or video, which may have sound, is."""
    return os.fspath(name).lower().endswith((*AUDIO_SUFFIXES, *VIDEO_SUFFIXES))
