"""The audio files that a command is given, and how they are gone through: on after bad ones, with progress."""

from __future__ import annotations

import codecs
import contextlib
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import soundfile
from tqdm import tqdm

from exhubert.audio_exhubert import AudioFile, audio_name
from exhubert.inference.processes import ALONE, Team
from exhubert.utils.command import progress_bar
from exhubert.utils.files import AUDIO_SUFFIXES, VIDEO_SUFFIXES, is_audio, visible_files
from exhubert.utils.text import as_text, printable

STANDARD_INPUT = "-"


def find_audio(arguments: Sequence[str], files_from: str | None = None) -> list[str]:
    """Returns the files that are meant, each once, those of a folder or glob in the order of their names.

    Args:
        arguments: files, which need not exist; folders, for all audio files below them that are not hidden (`._name`,
            which Macs leave, is) and not behind a linked folder; globs, with `**` for any depth, of which folders
            without audio are no part; `-`.
        files_from: a file that lists further ones, or `-`: a name a line, or each ended by a null byte.

    Raises:
        ValueError: if there is no audio in a folder, a glob matches no file and no folder with audio, a list is empty,
            or standard input is to be two things.
        OSError: if a folder cannot be listed.
    """
    if [*arguments, files_from].count(STANDARD_INPUT) > 1:
        raise ValueError("standard input, `-`, can be one file or one list of files, and is given twice")
    found: dict[str, str] = {}
    for name in () if files_from is None else listed_files(files_from):
        found.setdefault(os.path.abspath(name), name)
    for argument in arguments:
        if not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            missing = "no file matches this pattern, and no folder with audio files"
        else:
            matches = [argument]
            suffixes = " ".join(suffix[1:] for suffix in (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES))
            missing = f"no audio files in this folder ({suffixes})"
        names = []
        for match in matches:
            names += sorted(filter(is_audio, map(str, visible_files(match)))) if os.path.isdir(match) else [match]
        if not names:
            raise ValueError(f"{argument}: {missing}")
        for name in names:
            found.setdefault(name if name == STANDARD_INPUT else os.path.abspath(name), name)
    if not found:
        raise ValueError(f"{files_from}: the list of files is empty")
    return list(found.values())


def listed_files(name: str) -> list[str]:
    """The names in a list of files, which may be standard input: `find ... |` and `find ... -print0 |`."""
    if name == STANDARD_INPUT:
        content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    else:
        content = Path(name).read_bytes()
    content = content.removeprefix(codecs.BOM_UTF8)
    names = [os.fsdecode(each) for each in (content.split(b"\0") if b"\0" in content else content.splitlines()) if each]
    return [os.path.join(".", each) if each == STANDARD_INPUT else each for each in names]


@contextlib.contextmanager
def standard_input() -> Iterator[BinaryIO]:
    """Yields what standard input holds, kept on disk meanwhile, for it cannot be rewound."""
    if sys.stdin is None:  # `<&-`
        raise ValueError("standard input is closed")
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        yield file


def output_file(name: str | Path) -> Path:
    """Returns the file that an output is written to, behind all links, which stay.

    Raises:
        ValueError: if there is something that is no regular file: a folder, pipe or device.
    """
    if os.path.exists(name) and not os.path.isfile(name):
        raise ValueError(f"{name} exists, and is no regular file; give another --output")
    return Path(os.path.realpath(name))


def process_files(
    files: Sequence[str],
    process: Callable[[Sequence[str], Callable[[float], None]], Generator[tuple[Any, Any], None, None]],
    write: Callable[[str, Any, str], str],
    skipped: int = 0,
    processes: Team = ALONE,
) -> int:
    """Processes files; lists the bad ones at the end, all on standard error.

    Args:
        files: what `find_audio` returned.
        process: takes files and a function to call with the seconds of audio that have been read; yields for each file
            its `Recording`, and its result or the error that makes it a bad one.
        write: takes the file's name, and its result, or None and what is wrong; returns what is wrong, also something
            that went wrong only there.
        skipped: files that were done by an earlier run.
        processes: each takes its share of the files, and the first one speaks for all.

    Returns:
        The exit code, the same in all processes: 0; 2 if some files are bad; 1 if nothing could be done.
    """
    bad: list[tuple[int, str]] = []
    done = mixed = 0
    seconds, begin = 0.0, time.perf_counter()

    def speed() -> str:
        return f"{seconds / max(time.perf_counter() - begin, 1e-9):.1f} times real time"

    mine = files[processes.rank :: processes.size]
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress_bar(total=len(mine), unit="file", disable=not processes.leads))

        def on_progress(more: float) -> None:
            nonlocal seconds
            seconds += more
            bar.set_postfix_str(f"{len(bad)} bad, {speed()}", refresh=False)
            bar.update(0)

        results = stack.enter_context(contextlib.closing(process(mine, on_progress)))
        for number, (name, (recording, result)) in enumerate(zip(mine, results, strict=True)):
            problem = ""
            if isinstance(result, Exception):
                problem = as_text(str(result).removeprefix(f"{audio_name(recording.audio)}: "))
            else:
                done += 1
                mixed += recording.channels > 1
            with tqdm.external_write_mode():  # rows on the terminal do not run into the bar
                problem = write(name, None if problem else result, problem)
            if problem:
                bad.append((processes.rank + number * processes.size, f"{name}: {problem}"))
            bar.update()
    everyones = processes.gathered((bad, done, seconds, mixed))
    bad = sorted(each for found, *_ in everyones for each in found)
    done, seconds, mixed = (sum(column) for column in list(zip(*everyones, strict=True))[1:])
    if processes.leads:
        elapsed = time.perf_counter() - begin
        for _, line in bad:
            print(f"bad: {printable(line)}", file=sys.stderr)
        if skipped and not files:
            were = "file was" if skipped == 1 else "files were"
            print(f"nothing to do: {skipped:,} {were} done before", file=sys.stderr)
        else:
            count = f"{len(files):,} files" if len(files) != 1 else "1 file"
            before = f" ({skipped:,} more were done before)" if skipped else ""
            audio = f"{timedelta(seconds=round(seconds))} of audio in {elapsed:.1f} s, {speed()}"
            print(f"{count}{before}, {len(bad):,} bad; {audio}", file=sys.stderr)
        if mixed:
            print(f"note: {mixed:,} of them have several channels, which were averaged", file=sys.stderr)
    if not bad:
        return 0
    return 2 if done + skipped else 1


def channels_of(audio: AudioFile) -> int:
    """How many channels a file has, as far as its header says so to libsndfile; else 1."""
    try:
        if not isinstance(audio, str | os.PathLike):
            audio.seek(0)
        return int(soundfile.info(audio).channels)
    except (OSError, RuntimeError, ValueError):
        return 1
