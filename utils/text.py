"""Text for people: tables, names and errors."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Returns a markdown table; the columns whose numbers are in `left` are left-aligned, the others right-aligned."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = zip(row, widths, strict=True)
        return " | ".join(c.ljust(w) if number in left else c.rjust(w) for number, (c, w) in enumerate(padded))

    rule = "|".join("-" * (w + 2) if number in left else "-" * (w + 1) + ":" for number, w in enumerate(widths))
    return "\n".join([f"| {line(cells[0])} |", f"|{rule}|", *(f"| {line(row)} |" for row in cells[1:])])


def printable(text: str) -> str:
    """Text for a terminal: line ends, control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def in_one_line(text: str) -> str:
    """Text without line ends and tabs, which become spaces, one after another as one, nor other control characters."""
    return "".join(c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cs"))


def spreadsheet_cell(text: str) -> str:
    """Text for a cell of CSV: what a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_text(name: str) -> str:
    """A file's name as Unicode: bytes in it that are not UTF-8 become `\\udcXX`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an error's text; of one without text its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: object, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The known name that is most like `name`; None if none is as like as `cutoff`, from 0 to 1."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)), None)
