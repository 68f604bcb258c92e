"""What an attack came to: by kind of input how many were tried, read rightly, refused in one line, and failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from exhubert.utils.text import markdown_table

RIGHT, REFUSED, FAILED = "right", "refused", "failed"


@dataclass
class Tally:
    """The count of a kind of attack. A line of `failures` says how to make one again."""

    kind: str
    right: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def tried(self) -> int:
        return self.right + self.refused + self.failed

    def add(self, outcome: str, line: str = "") -> None:
        """Counts one more; `outcome` is `RIGHT`, `REFUSED` or `FAILED`, which needs a line."""
        if outcome == FAILED:
            self.failures.append(line)
        elif outcome == REFUSED:
            self.refused += 1
        else:
            self.right += 1


def table(tallies: Sequence[Tally]) -> str:
    """The tallies as a table in Markdown, with a row of sums."""
    rows = [(tally.kind, tally.tried, tally.right, tally.refused, tally.failed) for tally in tallies]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    return markdown_table(
        ("kind", "tried", "right", "refused in one line", "failed"),
        [(kind, *(f"{number:,}" for number in numbers)) for kind, *numbers in rows],
    )
