"""A corpus's table of clips: read, and judged, in one place.

`read_corpus` refuses a table for the first error that is found here; `exhubert corpora check` lists all of them.
"""

from __future__ import annotations

import codecs
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from exhubert.utils.text import first_line

NEEDED_COLUMNS = ("file_name", "label", "speaker")
# What the needed columns are called where the user chose the names; the first that is there counts.
COLUMN_NAMES = {
    "file_name": ("file_name", "file", "path", "filename", "audio"),
    "label": ("label", "emotion"),
    "speaker": ("speaker", "speaker_id", "spk"),
}
RESERVED_COLUMNS = {"audio", "labels", "crop"}  # added on the way to the model
SEGMENT_COLUMNS = ("start_seconds", "duration_seconds")
DIMENSIONS = ("arousal", "valence", "dominance")  # a clip that has one of them may be without a label
SEPARATORS = ",;\t|"
MOST_COLUMNS = 10_000
SEEMS = "separator"  # what separates a table's columns, in its `attrs`
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel's "Unicode text" begins
# Absolute, with a drive or an address before it, or out of the folder; also as Windows writes them.
OUTSIDE = r"^[/\\]|^[^/\\]*:|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00"
INDIRECT = r"//|(?:^|/)\./|\\"  # the same file by another name
ERROR, WARNING = "error", "warning"


def read_separated(path: Path) -> pandas.DataFrame:
    """Reads a table as text, in UTF-8 or UTF-16, whose columns are separated by any of `SEPARATORS`.

    The separator is that of a first line `sep=;`, as Excel writes it, or the one by which the header has most of the
    names that are looked for. Seconds may have a decimal comma where columns are not separated by commas.
    """
    with path.open("rb") as begin:
        encoding = "utf-16" if begin.read(2) in UTF_16 else "utf-8-sig"
    with path.open(encoding=encoding) as file:
        number, line = next(((n, line) for n, line in enumerate(file, start=1) if line.strip()), (0, ""))
    header = line.strip("\r\n")
    if (columns := max(map(header.count, SEPARATORS)) + 1) > MOST_COLUMNS:
        raise ValueError(f"its first line has {columns:,} columns; at most {MOST_COLUMNS:,} are read")
    given = re.fullmatch(r"\"?sep=(.)\"?[,;\t|]*", header, re.IGNORECASE)  # a sheet saved again is filled up
    known = {name for names in COLUMN_NAMES.values() for name in names}

    def names_found(separator: str) -> tuple[int, int]:
        fields = [field.strip(' "').lower() for field in header.split(separator)]
        return sum(field in known for field in fields), len(fields)

    separator = given[1] if given else max(SEPARATORS, key=names_found)
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": encoding, "sep": separator}
    table = pandas.read_csv(path, skiprows=number if given else 0, **options)
    if separator != ",":
        for column in set(SEGMENT_COLUMNS) & set(table.columns):
            table[column] = table[column].str.replace(r"^\s*(\d+),(\d+)\s*$", r"\1.\2", regex=True)
    if len(table.columns) == 1:  # it may be another one
        others = Counter(character for character in header if not (character.isalnum() or character in "_-./\\\"'"))
        separator = next((character for character, _ in others.most_common(1)), "")
    table.attrs[SEEMS] = separator
    return table


def shown_columns(table: pandas.DataFrame) -> str:
    """The names of a table's columns, and where it was read as text how they seem to be separated."""
    seems, names = table.attrs.get(SEEMS), ", ".join(map(str, table.columns))
    if not seems:
        return names
    others = "" if seems in SEPARATORS else "; commas, semicolons, tabs and | are read"
    return f"{names} (it seems to be separated by {seems!r}{others})"


METADATA_READERS: dict[str, Callable[[Path], pandas.DataFrame]] = {
    "metadata.csv": read_separated,
    "metadata.jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    "metadata.parquet": pandas.read_parquet,
    "metadata.tsv": read_separated,
}


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
        raise ValueError(f"{path}: a folder or a file .csv, .tsv, .jsonl or .parquet is needed")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        byte, form = error.object[error.start], error.encoding.upper().removesuffix("-SIG")
        raise ValueError(f"{path} is not {form} text (byte 0x{byte:02x} in it is not); save it as UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error.object!r} cannot be written as UTF-8; rename the file") from error
    except Exception as error:  # of another kind for each form, and each damage
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


def judged(
    origin: str | Path, table: pandas.DataFrame, others: Sequence[str] = (), targets: Sequence[str] = ()
) -> pandas.DataFrame:
    """Returns the table in clean form; ValueError for the first error that `find_problems` finds in it."""
    for finding in find_problems(str(origin), table, others, targets):
        raise ValueError(f"{origin}{', ' if finding.detail.startswith('row ') else ': '}{finding.detail}")
    return clean(table)


def find_problems(
    name: str, table: pandas.DataFrame, others: Sequence[str] = (), targets: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yields the errors of a table of clips: of whole columns, of rows, then clips that stand in a row above.

    Args:
        name: of the table, for what concerns a whole column.
        table: as it was read.
        others: further columns that its clips have.
        targets: columns besides `DIMENSIONS` in one of which a clip without a label must have something.
    """
    columns = list(map(str, table.columns))
    for column in NEEDED_COLUMNS:
        if column not in columns:
            yield Finding(name, ERROR, "missing column", f"no column {column!r}; it has {shown_columns(table)}")
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
        rated = unlabelled_but_rated(cleaned, targets)
        yield from rows((cleaned["label"] == "") & ~rated & ~outside, "no label", "has no label")
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


def unlabelled_but_rated(table: pandas.DataFrame, targets: Sequence[str] = ()) -> pandas.Series:
    """Which rows have no label, but something in one of `DIMENSIONS` or `targets`."""
    rated = pandas.Series(False, index=table.index)
    for column in {*DIMENSIONS, *targets} & set(table.columns):
        rated |= ~text_of(table[column]).str.lower().isin(("", "nan"))
    return rated & (table["label"] == "")


def text_of(values: pandas.Series) -> pandas.Series:
    """As stripped text, empty where there is nothing."""
    return values.astype(object).where(values.notna(), "").map(str).str.strip()
