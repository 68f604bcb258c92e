"""Several processes that a launcher started for one command: one of them leads, and each has a share of the files."""

from __future__ import annotations

import contextlib
import glob
import io
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from exhubert.utils.command import lost_processes

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)  # for the others' shares; a process that dies is the launcher's to see


class Team(NamedTuple):
    """The processes of one command; process 0 leads: it alone holds locks and says what there is to say."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def from_leader(self, function: Callable[[], T]) -> T:
        """Returns to every process what process 0's call returns; what that raises, process 0 alone raises.

        Raises:
            SystemExit: in the others, where process 0 could not go on.
        """
        if self.size == 1:
            return function()
        import torch.distributed as distributed

        outcome: list[Any] = [False, None]
        try:
            if self.leads:
                outcome = [True, function()]
        finally:
            distributed.broadcast_object_list(outcome, src=0)
        if not outcome[0]:
            raise SystemExit(1)
        result: T = outcome[1]
        return result

    def leader_first(self, function: Callable[[], T]) -> T:
        """Calls a function in process 0, and then, without a word on standard error, in the others."""
        results: list[T] = []
        self.from_leader(lambda: results.append(function()))
        if not self.leads:
            with contextlib.redirect_stderr(io.StringIO()):
                results.append(function())
        return results[0]

    def gathered(self, value: T) -> list[T]:
        """Returns every process's value to all of them, when all have come here."""
        if self.size == 1:
            return [value]
        import torch.distributed as distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


ALONE = Team()


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """Yields the processes that torchrun or accelerate started for this command; one, where there is no launcher."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    import torch.distributed as distributed

    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        with lost_processes(size):
            yield Team(distributed.get_rank(), size)
            # Where one leaves with exit code 2, torchrun ends the others, also one that still writes.
            distributed.barrier()
    finally:
        distributed.destroy_process_group()


def parts_of(output: Path) -> list[Path]:
    """The files beside an output that hold what several processes found, each its own, in the order of their numbers.

    They are there until their rows are in the output; those of a run that was killed, until the next one has ended.
    """
    pattern = f"{glob.escape(output.name)}.unfinished-[0-9]*"
    return sorted(output.parent.glob(pattern), key=lambda part: int(part.name.rpartition("-")[2]))


def new_part(output: Path, others: list[Path], rank: int) -> Path:
    """The name of one more of them, for a process of this run."""
    last = int(others[-1].name.rpartition("-")[2]) if others else -1
    return output.with_name(f"{output.name}.unfinished-{last + 1 + rank}")
