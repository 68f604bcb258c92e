"""What goes wrong around a run: a full disk, a folder that may not be written to, the death of a data worker or of one
of several processes, and two runs with one output.

Each ends in one line, or is killed, and the same command again ends with what an undisturbed life leaves. The full disk
is a small tmpfs where this process may mount one (in a name space of its own, so that nothing stays mounted), and a
limit on the size of files; the folder is read-only by a mount, and by its mode, which lives as root then heed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from conftest import ROOT
from distributed_run import environment
from exhubert.utils.command import UNFORESEEN
from hub_stand_in import HubStandIn
from kills import (
    OURS,
    PATIENCE_SECONDS,
    REDRAWS,
    WORKS,
    Ended,
    Lives,
    Problem,
    Trial,
    Undisturbed,
    Work,
    difference,
    listing,
    state_of,
    undisturbed_life,
    write_inputs,
)
from tally import FAILED, REFUSED, Tally

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
AMPLE = "4g"
LAUNCHERS_PATIENCE_SECONDS = 15.0  # until the survivors of a process that died are ended, as torchrun does
TWO = Work("train, two processes", f"{WORKS[0].arguments}", resumed=True, processes=2)
ALONE = [work for work in WORKS if work.processes == 1 and work.kind != "push"]
WITH_WORKERS = [work for work in WORKS if "workers" in work.kind]
KINDS = {
    "full disk": ALONE,
    # Not of data workers: the memory that they share has a file's size too, and torch waits for what does not come.
    "limited file size": [work for work in ALONE if work not in WITH_WORKERS],
    "read-only disk": ALONE,
    "folder of others": ALONE,
    "a data worker dies": WITH_WORKERS * 3,
    "a process of two dies": [TWO, *(work for work in WORKS if work.processes == 2)] * 2,
    "two runs with one output": ALONE,
    "torchrun loses a process": [TWO],
}


def attack(count: int, seed: int, directory: Path, keep: Path | None = None) -> list[Tally]:
    """Tries so many faults, of all kinds and works in turn; see `kills.attack`."""
    everything = [(kind, work) for kind, works in KINDS.items() for work in works]
    if not Path(OURS).is_dir():
        everything = [(kind, work) for kind, work in everything if OURS not in work.arguments]
    mounts = own_mounts()
    if not mounts:
        everything = [(kind, work) for kind, work in everything if kind not in ("full disk", "read-only disk")]
    tallies = {kind: Tally(kind) for kind, _ in everything}
    undisturbed: dict[str, Undisturbed] = {}
    (directory / "disk").mkdir()
    with HubStandIn(directory / "hub") as hub, Lives(directory, hub) as lives:
        write_inputs(directory / "inputs")  # meanwhile the server of lives imports
        for number in range(count):
            kind, work = everything[number * max(1, len(everything) // count) % len(everything)]
            if work.kind not in undisturbed:
                undisturbed[work.kind] = undisturbed_life(lives, work)
            trial = Fault(lives, work, kind, undisturbed[work.kind], Counter(), None)
            with mounted(directory / "disk") if mounts else contextlib.nullcontext():
                try:
                    verdict = trial.tried(np.random.default_rng([seed, number]))
                except Problem as problem:
                    verdict = (FAILED, f"number {number}, seed {seed}, {work.kind}: {problem}")
                    print(f"{kind}: {verdict[1]}", file=sys.stderr, flush=True)
                    if keep is not None:
                        shutil.copytree(directory / "disk", keep / f"disks-{number}", symlinks=True)
                if verdict is not None:
                    tallies[kind].add(*verdict)
                shutil.rmtree(directory / "disk" / "trial", ignore_errors=True)
    return list(tallies.values())


class Fault(Trial):
    """A life that meets what `way` says, and the life after it."""

    def tried(self, generator: np.random.Generator) -> tuple[str, str] | None:
        """As `Trial`'s own call."""
        faults = {
            "full disk": self.full,
            "limited file size": self.full,
            "read-only disk": self.read_only,
            "folder of others": self.read_only,
            "a data worker dies": self.dying,
            "a process of two dies": self.dying,
            "two runs with one output": self.two,
            "torchrun loses a process": self.torchrun,
        }
        place = self.lives.new_place("disk/trial")
        for draw in range(REDRAWS):
            ended = faults[self.way](place, generator, draw)
            self.check_whole(place)
            if any(ended.codes):
                outcome = self.again(place, ended)
                return (REFUSED, "") if 1 in ended.codes else outcome
            place = self.lives.new_place("disk/trial")
        return None

    def refused(self, ended: Ended) -> Ended:
        """Raises Problem unless a life went through, or ended in one line that was foreseen."""
        if ended.codes != [0] and not (ended.codes == [1] and ended.in_a_line and UNFORESEEN not in ended.lines[0]):
            raise Problem(f"it ended with {ended.codes}: {ended.output[-1500:]!r}")
        return ended

    def full(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """A disk, or a file, that takes a part of what the undisturbed life left."""
        share = generator.uniform(0.02, 0.95) / 2**draw
        if self.way == "limited file size":
            return self.refused(self.lives(self.work, place, file_bytes=int(share * max(self.undisturbed.file_bytes))))
        pages = sum(-(-size // 4096) for size in self.undisturbed.file_bytes)
        remount(place.parent, f"size={4096 * (2 + int(share * pages))}")
        ended = self.lives(self.work, place)
        remount(place.parent, f"size={AMPLE}")
        return self.refused(ended)

    def read_only(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """A folder in which nothing can be written, half of the time after a life that was killed there."""
        if generator.random() < 0.5:
            self.killed_at(place, generator.uniform(0, self.undisturbed.seconds))
        before = listing(place)
        if self.way == "read-only disk":
            remount(place.parent, "ro")
            ended = self.lives(self.work, place, again=True)
            remount(place.parent, "rw")
        else:
            for path in (place, *place.rglob("*")):
                path.chmod(0o555 if path.is_dir() else 0o444)
            ended = self.lives(self.work, place, again=True, **{"as others": True})
            for path in (place, *place.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
        if listing(place) != before:
            raise Problem(f"something was written: {listing(place) ^ before}")
        return self.refused(ended)

    def dying(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """A data worker, or one of two processes, gets a kill -9; the others have to see it."""
        moment, died = generator.uniform(0.1, 0.9) * self.undisturbed.seconds, float("inf")
        victim = int(generator.integers(2))

        def wait(seconds: float) -> bool:
            nonlocal died
            if seconds >= moment and died == float("inf"):
                victims = [psutil.Process(self.lives.processes[victim])] if self.work.processes > 1 else []
                if not victims:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victims = psutil.Process(self.lives.processes[0]).children()
                if victims:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victims[0].kill()
                    died = seconds
            return self.work.processes > 1 and seconds > died + LAUNCHERS_PATIENCE_SECONDS

        ended = self.lives(self.work, place, wait=wait)
        if self.work.processes == 1:  # torch raises wherever the run is, and may log where in itself that was
            return self.refused(ended._replace(output=ended.output.replace("Traceback", "")))
        if sorted(ended.codes) not in ([-signal.SIGKILL] * 2, [-signal.SIGKILL, 1], [-signal.SIGKILL, 0], [0, 0]):
            raise Problem(f"they ended with {ended.codes}: {ended.output[-1500:]!r}")
        if 1 in ended.codes and (not ended.in_a_line or UNFORESEEN in "".join(ended.lines)):
            raise Problem(f"the survivor ended in more than a line: {ended.output[-1500:]!r}")
        return ended

    def two(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """Two at once: one does all, and the other is told which process does."""
        ended = self.lives(self.work._replace(processes=2), place, apart=True)
        if any(ended.codes):  # they met: else one had ended before the other began
            if sorted(ended.codes) != [0, 1] or not ended.in_a_line:
                raise Problem(f"two at once ended with {ended.codes}: {ended.output[-1500:]!r}")
            loser = ended.codes.index(1)
            told = f"is being written by process {self.lives.processes[1 - loser]} on"
            if not any(text in ended.lines[loser] for text in (told, "in use already", "exists")):
                raise Problem(f"the other one was told: {ended.lines[loser]}")
        if problem := difference(state_of(self.work, self.lives, place), self.undisturbed.state, self.work):
            raise Problem(f"of two at once {problem}")
        return ended

    def torchrun(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """The real launcher, in processes that import everything anew."""
        names = {"inputs": self.lives.directory / "inputs", "place": place}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = [str(ROOT / "train_hf.py"), *(part.format(**names) for part in self.work.arguments.split()[1:])]
        given = environment() | {"TMPDIR": str(self.lives.directory / "tmp")}
        with subprocess.Popen([*launcher, *script], env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            begin, victims = time.monotonic(), list[psutil.Process]()
            while run.poll() is None and not list(place.glob("run/checkpoints/checkpoint-*")):
                time.sleep(0.05)
                if time.monotonic() > begin + PATIENCE_SECONDS:
                    run.kill()
            if run.poll() is None:
                victims = psutil.Process(run.pid).children()
                victims[int(generator.integers(len(victims)))].kill()
            try:
                output = run.communicate(timeout=PATIENCE_SECONDS)[0].decode()
            except subprocess.TimeoutExpired:
                run.kill()
                raise Problem("torchrun goes on without a process that died") from None
        left = [each for each in victims if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        if run.returncode == 0 or not victims or left or "SIGKILL" not in output:
            raise Problem(f"torchrun ended with {run.returncode}, {len(left)} processes left: {output[-1500:]!r}")
        return Ended([run.returncode], output, [""])


def own_mounts() -> bool:
    """Makes what this process mounts its own, and gone with it; returns whether it may mount."""
    libc = ctypes.CDLL(None)
    if os.geteuid() != 0 or libc.unshare(CLONE_NEWNS):
        return False
    return not libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    """A disk in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={AMPLE}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
