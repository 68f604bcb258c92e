"""Rows of predictions as table, jsonl or csv, and going on with a file of rows that an earlier run began."""

from __future__ import annotations

import contextlib
import csv
import heapq
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from exhubert.inference.audio_files import STANDARD_INPUT, output_file
from exhubert.inference.processes import parts_of
from exhubert.utils.files import flush, locked, read_table, whole_file, write_text
from exhubert.utils.text import as_text, printable, spreadsheet_cell

FORMATS = ("table", "jsonl", "csv")
SILENT = "no speech"  # in the table


class Layout(NamedTuple):
    """How rows are written."""

    style: str  # one of FORMATS
    class_names: Sequence[str]  # in class order; none of a model of dimensions alone
    quadrant: Sequence[str]  # arousal and valence, where the model's classes have them
    widest: int = 0  # length of the longest file name, for the table
    per: str = "clip"  # or window: a row for each, in csv and jsonl
    dimensions: Mapping[str, Sequence[float]] = {}  # the scale of each, where the model has them

    def header(self) -> str:
        """The first line, of csv and table."""
        if self.style == "csv":
            of_place = ["file", "windows", "start", "end"] if self.per == "window" else ["file"]
            seconds = [] if self.per == "window" else ["seconds"]
            return _csv_line([*of_place, *self._columns(None), *seconds, "warning", "error"])
        return self._aligned("file", "label", self._numbers()) if self.style == "table" else ""

    def line(self, row: Mapping[str, Any]) -> str:
        """The line of a row: `file`, and `error` or what the pipeline returns.

        In csv and table one column, `seconds`, stands for the windows. The table has no line for an error. In csv no
        cell begins as a formula does: a file `=a.wav` is `./=a.wav` there, the same file. Of rows of windows these are
        the lines of all, each with the number of the file's `windows`.
        """
        file = row["file"]
        if self.style == "csv" and file != STANDARD_INPUT and spreadsheet_cell(file) != file:
            file = os.path.join(".", file)
        if self.per == "window" and "error" not in row:
            return "".join(self._window_line({**row, "file": file}, window) for window in row["windows"])
        if self.style == "jsonl":
            return json.dumps(row, ensure_ascii=False) + "\n"
        if "error" in row:
            empty = [None] * (len(self._columns(None)) + (4 if self.per == "window" else 2))
            return _csv_line([file, *empty, spreadsheet_cell(row["error"])]) if self.style == "csv" else ""
        columns, seconds = self._columns(row), row["windows"][-1]["end"]
        if self.style == "csv":
            return _csv_line([file, *self._cells(columns), seconds, row.get("warning"), None])
        silent = None in columns.values()
        numbers = []
        if not silent:
            numbers = [f"{max(row['probabilities'].values()):.3f}"] if self.class_names else []
            numbers += [f"{row[name]:+.2f}" for name in self.quadrant]
            for name, (low, high) in self.dimensions.items():  # to about a hundredth of the scale
                numbers.append(f"{row['dimensions'][name]:.{max(0, 2 - int(math.log10(high - low)))}f}")
        numbers += [""] * (len(self._numbers()) - 1 - len(numbers))
        label = columns.get("label") or SILENT
        line = self._aligned(printable(file), label, [*numbers, f"{seconds:.2f}"])
        remarks = [SILENT] if silent and not self.class_names else []
        remarks += [row["warning"]] if "warning" in row else []
        return "  ".join([line[:-1], *remarks]) + "\n"

    def _columns(self, answer: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a clip or window has in flat rows, by column; without speech, or without an answer, None in each."""
        names = ["label", *(f"probability_{name}" for name in self.class_names), *self.quadrant]
        names = [*(names if self.class_names else []), *(f"dimension_{name}" for name in self.dimensions)]
        answer = answer or {}
        values = []
        if answer.get("probabilities"):
            probabilities = [answer["probabilities"][name] for name in self.class_names]
            values = [answer["label"], *probabilities, *(answer[name] for name in self.quadrant)]
        if answer.get("dimensions"):
            values += [answer["dimensions"][name] for name in self.dimensions]
        return dict(zip(names, values, strict=True)) if values else dict.fromkeys(names)

    def _cells(self, columns: Mapping[str, Any]) -> list[Any]:
        """As csv has them."""
        return [spreadsheet_cell(value or "") if name == "label" else value for name, value in columns.items()]

    def _window_line(self, row: Mapping[str, Any], window: Mapping[str, Any]) -> str:
        place = {"file": row["file"], "windows": len(row["windows"]), "start": window["start"], "end": window["end"]}
        columns = self._columns(window)
        if self.style == "csv":
            return _csv_line([*place.values(), *self._cells(columns), row.get("warning"), None])
        more = {"speech": window["speech"]} if "speech" in window else {}
        more |= {"warning": row["warning"]} if "warning" in row else {}
        return json.dumps({**place, **columns, **more}, ensure_ascii=False) + "\n"

    def _numbers(self) -> list[str]:
        """The names of the table's columns of numbers: of a dimension with its scale, as `arousal[1,7]`."""
        scales = [f"{name}[{low:g},{high:g}]" for name, (low, high) in self.dimensions.items()]
        return [*(["probability", *self.quadrant] if self.class_names else []), *scales, "seconds"]

    def _aligned(self, file: str, label: str, numbers: list[str]) -> str:
        wide = max(map(len, [*self.class_names, SILENT]))
        labels = [f"{label:{wide}}"] if self.class_names else []
        columns = zip(self._numbers(), numbers, strict=True)
        aligned = (f"{number:>{max(8, len(name))}}" for name, number in columns)
        return "  ".join([f"{file:{max(self.widest, 4)}}", *labels, *aligned]) + "\n"


@contextlib.contextmanager
def open_rows(
    path: Path, layout: Layout, settings: Mapping[str, Any], files: Sequence[str]
) -> Iterator[tuple[TextIO, list[str]]]:
    """Opens a file of rows to add to it, with its header.

    What an earlier run left there stays, but for rows with an error and a last line that was not written to its end.
    `settings`, what the rows depend on, are kept beside the file, in `<name>.settings.json`. What several processes
    leave in parts (see `parts_of`) comes into the file in the end, in the order of `files`.

    Yields:
        The file, and those of `files` that have no row yet.

    Raises:
        ValueError: if there is a file which was begun with other settings, or is none of ours,
            or something that is no regular file, or another process adds to it.
        OSError: if it cannot be written.
    """
    path = output_file(path)
    with locked(path):
        beside = path.with_name(f"{path.name}.settings.json")
        begun, earlier = path.exists() and path.stat().st_size > 0, parts_of(path)
        if begun or earlier:
            if not beside.is_file():
                raise ValueError(f"{path} exists, and no {beside.name} beside it; give another --output, or delete it")
            check_settings(path, read_table(beside), settings)
        else:
            write_text(beside, json.dumps(settings, indent=2) + "\n")
        done = set()
        with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(layout.header())
            for name, lines in whole_rows(path, layout) if begun else ():
                file.writelines(lines)
                done.add(name)
        with_rows = done | {name for part in earlier for name, _ in whole_rows(part, layout)}
        paths = [os.path.abspath(as_text(name)) for name in files]
        place = {name: number for number, name in enumerate(paths)}
        with path.open("a", encoding="utf-8", newline="") as file:
            yield file, [name for name, each in zip(files, paths, strict=True) if each not in with_rows]
            parts = parts_of(path)
            rows = [whole_rows(part, layout, with_errors=part not in earlier) for part in parts]
            for name, lines in heapq.merge(*rows, key=lambda found: place.get(found[0], -1)):
                if name not in done:  # as they are where a run was killed before its parts were gone
                    file.writelines(lines)
        flush(path)
        for part in parts:
            part.unlink()


def whole_rows(path: Path, layout: Layout, with_errors: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yields the absolute path of each audio file that counts as done, with its rows, as lines.

    It does not with an error, if it was standard input, or where a stop cut off some of its windows; `with_errors`
    yields those as well.
    """
    for name, found in itertools.groupby(read_rows(path, layout), key=lambda row: row.file):
        rows = list(found)
        whole = rows[-1].error == "" and len(rows) >= rows[-1].windows and name != STANDARD_INPUT
        if whole or with_errors:
            yield os.path.abspath(name), [row.line for row in rows]


def check_settings(path: Path | str, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if an output was begun with other settings."""
    earlier = {"per": "clip", "dtype": "float32", "dimensions": {}, **earlier}  # which older releases did not have
    for name, value in settings.items():
        if earlier.get(name) != value:
            was = f"{path} was begun with {name} {earlier.get(name)!r}, now it is {value!r}"
            raise ValueError(f"{was}; give another --output, or delete it")


class Row(NamedTuple):
    """A row that was read again."""

    file: str
    error: str
    windows: int  # rows that the file has
    line: str


def read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    """Yields the rows of a file; raises ValueError where a line is none of ours."""
    of_windows = layout.per == "window"
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # a carriage return may be part of a name
            lines: Iterable[str] = (line for line in file if line.endswith("\n"))
            if layout.style == "jsonl":
                for line in lines:
                    row = json.loads(line)
                    yield Row(row["file"], row.get("error", ""), row.get("windows", 1) if of_windows else 1, line)
            else:
                reader = csv.reader(lines)
                columns = len(next(reader, []))
                # Older releases did not write the warning.
                without = len(next(csv.reader([layout.header()]))) - columns
                for values in reader:
                    if len(values) == columns:  # less: cut off within a quoted name
                        windows = int(values[1] or 1) if of_windows else 1
                        line = _csv_line([*values[:-1], *[None] * without, values[-1]])
                        yield Row(values[0], values[-1], windows, line)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: a line there is no row of predictions ({error}); give another --output") from error


def _csv_line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)  # its own line end: with another, Python 3.11 quotes no carriage return
    return buffer.getvalue()[:-2] + "\n"
