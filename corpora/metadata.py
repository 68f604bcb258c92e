"""A corpus's table of clips: read, and judged, in one place.

`read_corpus` refuses a table for the first error that is found here; `exhubert corpora check` lists all of them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas

from exhubert.utils.text import first_line

METADATA_READERS: dict[str, Callable[[Path], pandas.DataFrame]] = {
    "metadata.csv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False),
    "metadata.jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    "metadata.parquet": pandas.read_parquet,
}
NEEDED_COLUMNS = ("file_name", "label", "speaker")
RESERVED_COLUMNS = {"audio", "labels", "crop"}  # added on the way to the model
SEGMENT_COLUMNS = ("start_seconds", "duration_seconds")
# Absolute, with a drive or an address before it, or out of the folder; also as Windows writes them.
OUTSIDE = r"^[/\\]|^[^/\\]*:|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00"
INDIRECT = r"//|(?:^|/)\./|\\"  # the same file by another name
ERROR, WARNING = "error", "warning"


class Finding(NamedTuple):
    """One thing that is wrong. With an error training stops or learns something false; a warning is to be looked at."""

    file_name: str
    severity: str  # error | warning
    problem: str  # a few words, the same for every file that has it
    detail: str


def find_metadata(directory: Path) -> Path | None:
    """Returns the metadata file of a corpus folder, or None."""
    return next((directory / name for name in METADATA_READERS if (directory / name).is_file()), None)


def read_metadata(path: Path) -> pandas.DataFrame:
    """Reads a table of clips as it stands.

    Raises:
        ValueError: if it is none, cannot be read, or has no rows.
    """
    reader = METADATA_READERS.get(f"metadata{path.suffix.lower()}")
    if reader is None:
        raise ValueError(f"{path}: a folder or a file .csv, .jsonl or .parquet is needed")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path} is not UTF-8 text (byte 0x{byte:02x} in it is not); save it as UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error.object!r} cannot be written as UTF-8; rename the file") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(table.index, pandas.RangeIndex):
        raise ValueError(f"{path}: there are rows with more fields than the first line has columns")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    return table


def clean(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a table with needed columns as text, file names with `/` and in their shortest form, times as numbers.

    A time that is none is NaN. All columns at once: a corpus may have some 100,000 rows.
    """
    table = table.copy(deep=False)
    for column in {*NEEDED_COLUMNS, "split"} & set(table.columns):
        table[column] = text_of(table[column])
    if "file_name" in table.columns:
        names = table["file_name"]
        indirect = names.str.contains(INDIRECT) & ~names.str.contains(OUTSIDE)
        if indirect.any():
            table["file_name"] = names.where(~indirect, names.str.replace("\\", "/").map(posixpath.normpath))
    if "start_seconds" in table.columns:  # else `duration_seconds` is that of the file
        for column in set(SEGMENT_COLUMNS) & set(table.columns):
            numbers = pandas.to_numeric(table[column], errors="coerce").astype(float)
            table[column] = numbers.where((numbers >= 0) & np.isfinite(numbers))
    return table


def judged(origin: str | Path, table: pandas.DataFrame, others: Sequence[str] = ()) -> pandas.DataFrame:
    """Returns the table in clean form; ValueError for the first error that `find_problems` finds in it."""
    for finding in find_problems(str(origin), table, others):
        raise ValueError(f"{origin}{', ' if finding.detail.startswith('row ') else ': '}{finding.detail}")
    return clean(table)


def find_problems(name: str, table: pandas.DataFrame, others: Sequence[str] = ()) -> Iterator[Finding]:
    """Yields the errors of a table of clips: of whole columns, of rows, then clips that stand in a row above.

    Args:
        name: of the table, for what concerns a whole column.
        table: as it was read.
        others: further columns that its clips have.
    """
    columns = list(map(str, table.columns))
    for column in NEEDED_COLUMNS:
        if column not in columns:
            yield Finding(name, ERROR, "missing column", f"no column {column!r}; it has {', '.join(columns)}")
    for column in sorted(RESERVED_COLUMNS & {*columns, *others}):
        yield Finding(name, ERROR, "column name that is taken", f"the column name {column!r} is taken; rename it")
    if "file_name" not in columns:
        return
    cleaned = clean(table)
    given = text_of(table["file_name"])

    def rows(wrong: pandas.Series, problem: str, why: str) -> Iterator[Finding]:
        for row in np.flatnonzero(wrong):
            yield Finding(given.iloc[row], ERROR, problem, f"row {row + 1}: file_name {given.iloc[row]!r} {why}")

    outside = (given == "") | given.str.contains(OUTSIDE)
    yield from rows(outside, "path outside the folder", "must be a path inside the corpus folder")
    if "label" in columns:
        yield from rows((cleaned["label"] == "") & ~outside, "no label", "has no label")
    same = ["file_name"]
    if "start_seconds" in columns:
        for column in [column for column in SEGMENT_COLUMNS if column in columns]:
            wrong = cleaned[column].isna() & (text_of(table[column]) != "") & ~outside
            yield from rows(wrong, "bad start or duration", f"needs a number, 0 or more, as {column}")
            same.append(column)
    clips = cleaned[~outside].assign(**{column: "" for column in ("label", "split") if column not in columns})
    clips = clips[[*same, "label", "split"]]
    again = clips.duplicated(same)
    first = clips[clips.duplicated(same, keep=False)].groupby(same, sort=False, dropna=False)[["label", "split"]]
    pairs = clips.join(first.transform("first"), rsuffix="_before")[again]
    wanted = ["file_name", "label", "label_before", "split", "split_before"]
    repeated = []
    for clip, label, label_before, split, split_before in pairs[wanted].itertuples(index=False):
        differ = bool(label and label_before) and label.casefold() != label_before.casefold()
        how = f"with two labels, {label_before!r} and {label!r}" if differ else f"more than once, as {label!r}"
        problem = "file in two rows with two labels" if differ else "file in two rows"
        repeated.append(Finding(clip, ERROR, problem, f"{clip} stands there {how}"))
        if split and split_before and split != split_before:
            detail = f"{clip} stands there in {split_before} and in {split}"
            repeated.append(Finding(clip, ERROR, "identical audio in two splits", detail))
    yield from sorted(repeated, key=lambda finding: finding.problem != "file in two rows with two labels")


def text_of(values: pandas.Series) -> pandas.Series:
    """As stripped text, empty where there is nothing."""
    return values.astype(object).where(values.notna(), "").map(str).str.strip()
