"""Tries inputs in processes of their own, so that a crash, a hang or a bomb costs one input and is seen as what it is.

A worker is forked from a process that has imported everything. It tries one input after the other, each in a folder of
its own, and says what became of it; the parent ends a worker that is silent for too long.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from exhubert.utils.command import LONGEST_LINE, UNFORESEEN, error_line, one_line, run_with_one_line_errors
from tally import FAILED, REFUSED, RIGHT

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 10.0  # of an input
MEMORY_BYTES = 400 * 2**20  # above what the worker had before
ADDRESS_BYTES = 8 * 2**30  # that a worker may ask for beyond its own: a bomb shall not take the machine along
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What changes the disk, with the number of its paths, and what leads out of the process.
CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1}
LEADS_OUT = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
LOADED = ("hostile_audio", "hostile_texts")  # by the process that workers are forked from


class Trial(NamedTuple):
    """`function`, `module:name` of this folder, is called with the number, the seed and an empty folder."""

    kind: str
    function: str
    number: int
    seed: int
    patience_seconds: float = PATIENCE_SECONDS


class Verdict(NamedTuple):
    outcome: str  # RIGHT, REFUSED, FAILED
    detail: str = ""


class Watch:
    """Hears what this process writes outside of a folder, and what it starts or calls, while it has one."""

    def __init__(self) -> None:
        self.folder, self.heard = "", []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        paths: tuple[Any, ...] = arguments[: CHANGES.get(event, 0)]
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            paths = arguments[:1]
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike):
                place = os.path.realpath(os.fsdecode(path))
                if not place.startswith((self.folder, "/dev/null", "/proc/self/")):
                    self.heard.append(f"{event} of {place}")
        known = event == "subprocess.Popen" and list(arguments[1])[:1] in (
            ["git"],
            ["uname"],
        )  # a run says its versions
        if event in LEADS_OUT and not known:
            self.heard.append(f"{event} {arguments!r:.200}")


WATCH = Watch()


def attempt(folder: Path, names: Iterable[object], read: Callable[[], str], may_write: bool = False) -> Verdict:
    """Reads an input and judges what comes of it.

    Args:
        folder: what is written beside it, with TMPDIR in it, is a failure.
        names: any of which a refusal has to hold.
        read: returns what is wrong with what was read, nothing where all is right; raises as the package does.
        may_write: whether files may be left in the folder.
    """
    before, memory = listing(folder), in_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    WATCH.heard, WATCH.folder = [], str(folder.resolve())
    try:
        problem = read()
        verdict = Verdict(FAILED, problem) if problem else Verdict(RIGHT)
    except (ValueError, OSError) as error:
        verdict = judged_refusal(error_line(error), names)
        if out_of_memory(error):
            verdict = Verdict(FAILED, f"it asked for memory without measure: {one_line(error)}")
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        verdict = Verdict(FAILED, f"{type(error).__name__} in {place.filename}:{place.lineno}: {one_line(error)}")
    finally:
        WATCH.folder = ""
    taken = in_memory("VmHWM") - memory
    left = sorted(listing(folder) ^ before)
    if WATCH.heard:
        return Verdict(FAILED, f"it reached outside: {WATCH.heard[0]}; {verdict.detail}")
    if taken > MEMORY_BYTES:
        return Verdict(FAILED, f"it took {taken / 2**20:,.0f} MB; {verdict.detail}")
    if left and not may_write:
        return Verdict(FAILED, f"it left or changed {left[0][0]}; {verdict.detail}")
    return verdict


def judged_refusal(line: str, names: Iterable[object]) -> Verdict:
    """Whether a line is as a refusal should be."""
    if not any(str(name) in line for name in names):
        return Verdict(FAILED, f"a refusal that does not name the file: {line}")
    if len(line) > LONGEST_LINE or not line.isprintable():
        return Verdict(FAILED, f"a refusal of {len(line)} characters, or with some that are not printable: {line!r}")
    return Verdict(REFUSED, line)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or the first that led to it, says that there is no memory."""
    while error.__cause__ is not None:
        error = error.__cause__
    if type(error).__module__.startswith("av."):  # FFmpeg says so of claims beyond its own bounds
        return False
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error)


def by_command(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
    """Runs a command in this process, as a shell would.

    Returns:
        Its exit code, standard output and standard error.

    Raises:
        ValueError: with its line, if it ends in one.
        RuntimeError: if it ends in a traceback, or a line that was not foreseen.
    """
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run_with_one_line_errors(lambda: main([str(argument) for argument in arguments]))
    lines = err.getvalue().splitlines()
    if code == 1 and lines and lines[-1].startswith("error: "):
        kind = RuntimeError if UNFORESEEN in lines[-1] else ValueError
        raise kind(lines[-1].removeprefix("error: "))
    return code, out.getvalue(), err.getvalue()


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """All that is below a folder, by name, size and time."""
    found = set()
    for path in folder.rglob("*"):
        status = path.lstat()
        found.add((str(path.relative_to(folder)), status.st_size * path.is_file(), status.st_mtime_ns * path.is_file()))
    return found


def in_memory(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its highest, `VmSize` that it has asked for."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# The two sides


def serve(connection: Any, folder: Path, log: str) -> None:
    """What a worker does: tries what it is sent until there is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    size = in_memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_BYTES, size + ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    sys.dont_write_bytecode = True
    sys.addaudithook(WATCH)
    for name in ("input", "tmp"):
        (folder / name).mkdir(parents=True)
    tempfile.tempdir = str(folder / "input")  # what is left there is seen
    os.environ["TMPDIR"] = tempfile.tempdir
    os.chdir(folder / "tmp")
    while (trial := connection.recv()) is not None:
        shutil.rmtree(folder / "input", ignore_errors=True)
        (folder / "input").mkdir()
        module, _, name = trial.function.partition(":")
        faulthandler.dump_traceback_later(0.9 * trial.patience_seconds)
        try:
            verdict = getattr(importlib.import_module(module), name)(trial.number, trial.seed, folder / "input")
        except BaseException as error:  # of the suite's own
            verdict = Verdict(FAILED, f"the suite itself: {''.join(traceback.format_exception(error))[-600:]!r}")
        faulthandler.cancel_dump_traceback_later()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        connection.send(verdict)


class Worker:
    """The parent's side of a worker, and what it has in hand."""

    def __init__(self, context: Any, folder: Path) -> None:
        self.context, self.folder, self.trial = context, folder, None
        self.start()

    def start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.connection, theirs = self.context.Pipe()
        self.log = f"{self.folder}.log"
        self.process = self.context.Process(target=serve, args=(theirs, self.folder, self.log), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, trial: Trial | None) -> None:
        self.trial = trial
        self.since = time.monotonic()
        self.connection.send(trial)

    def verdict(self) -> Verdict | None:
        """What became of the input in hand, if that is known; a worker that died or hangs is started anew."""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            name = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return Verdict(FAILED, f"the process ended: {name}")
        if time.monotonic() - self.since < self.trial.patience_seconds:
            return None
        self.process.kill()
        self.process.join()
        text = Path(self.log).read_text(errors="replace").splitlines()
        stack = " < ".join(line.strip() for line in text if line.startswith("  File"))
        return Verdict(FAILED, f"no end within {self.trial.patience_seconds:g} s: {stack[:600]}")


def run_trials(
    trials: Iterable[Trial], directory: Path, workers: int = 0, keep: Path | None = None
) -> Iterator[tuple[Trial, Verdict]]:
    """Tries inputs in several workers; yields what became of each, as it comes.

    Args:
        trials: what is tried.
        directory: where workers have their folders; it exists.
        workers: how many; 0 is one a core.
        keep: a folder for the inputs that failed.
    """
    with environment(PYTHONPATH=[TESTS.parents[1], TESTS, TESTS / "faults"], HF_HOME=[directory / "home"]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*LOADED])
        crew = [Worker(context, directory / f"worker-{n}") for n in range(workers or len(os.sched_getaffinity(0)))]
        given = iter(trials)
        for worker in crew:
            if (trial := next(given, None)) is not None:
                worker.give(trial)
        while busy := [worker for worker in crew if worker.trial is not None]:
            wait([worker.connection for worker in busy], 0.5)
            for worker in busy:
                if (verdict := worker.verdict()) is None:
                    continue
                done = worker.trial
                if verdict.outcome == FAILED and keep is not None:
                    place = keep / f"{done.kind} {done.number} seed {done.seed}".replace("/", "-").replace(" ", "_")
                    shutil.copytree(worker.folder / "input", place, symlinks=True, dirs_exist_ok=True)
                if not worker.process.is_alive():
                    worker.start()
                worker.trial = None
                if (trial := next(given, None)) is not None:
                    worker.give(trial)
                yield done, verdict
        for worker in crew:
            worker.give(None)
            worker.process.join()


@contextlib.contextmanager
def environment(**changes: list[Path]) -> Iterator[None]:
    """Paths put before what the environment has, for the process that workers are forked from."""
    before = {name: os.environ.get(name) for name in changes}
    for name, paths in changes.items():
        kept = [before[name]] if before[name] and name == "PYTHONPATH" else []
        os.environ[name] = os.pathsep.join([*map(str, paths), *kept])
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
