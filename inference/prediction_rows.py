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
# What rows depend on with segments or channels alone; else it is not in the settings.
NO_SEGMENTS = {"segments": None, "channels": "mix", "least_probability": None, "least_seconds": None}


class Layout(NamedTuple):
    """How rows are written."""

    style: str  # one of FORMATS
    class_names: Sequence[str]  # in class order; none of a model of dimensions alone
    quadrant: Sequence[str]  # arousal and valence, where the model's classes have them
    widest: int = 0  # length of the longest file name, for the table
    per: str = "clip"  # or window, in csv and jsonl, or segment: a row for each
    dimensions: Mapping[str, Sequence[float]] = {}  # the scale of each, where the model has them
    each: bool = False  # whether channels were heard each on its own
    segments: bool = False  # whether there are any
    speakers: bool = False  # whether they may have a speaker

    def header(self) -> str:
        """The first line, of csv and table."""
        if self.style == "csv":
            return _csv_line([*self._place(), *self._columns(None), *self._remarks(), "warning", "error"])
        if self.style == "table":
            return self._aligned("file", {name: name for name in self._place()}, "label", self._numbers())
        return ""

    def line(self, row: Mapping[str, Any], seconds: float | None = None) -> str:
        """The lines of a file: `file`, and `error` or what the pipeline returns.

        In csv and table one column, `seconds`, stands for the windows: how long the file is, or if None where the last
        window ends. The table has no line for an error. In csv no cell begins as a formula does: a file `=a.wav` is
        `./=a.wav` there, the same file. Where a file has several rows, of windows, segments or channels, each has the
        number of all in the column `counted`; a file without a segment has one row, without values.
        """
        file = file_cell(row["file"]) if self.style == "csv" else row["file"]
        if "error" in row:
            if self.style == "csv":
                empty = [None] * (len(self._place()) + len(self._columns(None)) + len(self._remarks()))
                return _csv_line([file, *empty, spreadsheet_cell(row["error"])])
            return json.dumps(row, ensure_ascii=False) + "\n" if self.style == "jsonl" else ""
        heard = row["channels"] if self.each else [row]
        parts = [(each, part) for each in heard for part in ([each] if self.per == "clip" else each[f"{self.per}s"])]
        lines = []
        for channel, part in parts or [({}, {})]:
            place = {**part, "file": file, "channel": channel.get("channel"), self.counted: len(parts)}
            end = part["windows"][-1]["end"] if part.get("windows") else None
            more = {"seconds": end if seconds is None else seconds, "warning": row.get("warning")}
            lines.append(self._line({name: place.get(name) for name in self._place()}, part, more))
        return "".join(lines)

    @property
    def counted(self) -> str:
        """The column that says how many rows a file has; empty where that is one."""
        return {"window": "windows", "segment": "segments"}.get(self.per, "channels" if self.each else "")

    def _place(self) -> list[str]:
        """The columns before the answer."""
        times = [] if self.per == "clip" else ["start", "end"]
        number = ["segment"] if self.per == "window" and self.segments else []
        speaker = ["speaker"] if self.per == "segment" and self.speakers else []
        place = ["file", *(["channel"] if self.each else []), self.counted, *number, *times, *speaker]
        return [name for name in place if name]

    def _remarks(self) -> list[str]:
        """The column behind the answer."""
        return {"clip": ["seconds"], "window": []}.get(self.per, ["uncertain"])

    def _columns(self, answer: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a clip, window or segment has in flat rows, by column; without an answer None in each."""
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

    def _line(self, place: Mapping[str, Any], part: Mapping[str, Any], more: Mapping[str, Any]) -> str:
        """A row: what was heard in a part, a clip, window or segment, behind its place; `more` are its remarks."""
        columns = self._columns(part)
        if self.style == "csv":
            texts = {"label": columns.get("label"), "speaker": place.get("speaker")}
            values = {**place, **columns, **{name: spreadsheet_cell(text) for name, text in texts.items() if text}}
            cells = [values[name] for name in (*place, *columns)]
            return _csv_line([*cells, *({**part, **more}.get(name) for name in self._remarks()), more["warning"], None])
        if self.style == "jsonl":
            given = {name: value for name, value in place.items() if value is not None}
            flat = {**columns, **{name: part[name] for name in ("uncertain", "speech") if name in part}}
            values = {**given, **({**part, **given} if self.per == "clip" else flat)}
            values |= {"warning": more["warning"]} if more["warning"] else {}
            return json.dumps(values, ensure_ascii=False) + "\n"
        return self._table_line(place, part, more, columns)

    def _table_line(
        self, place: Mapping[str, Any], part: Mapping[str, Any], more: Mapping[str, Any], columns: Mapping[str, Any]
    ) -> str:
        """A row of the table: of the probabilities the label's alone."""
        silent = None in columns.values()
        numbers = []
        if not silent:
            numbers = [f"{max(part['probabilities'].values()):.3f}"] if self.class_names else []
            numbers += [f"{part[name]:+.2f}" for name in self.quadrant]
            for name, (low, high) in self.dimensions.items():  # to about a hundredth of the scale
                numbers.append(f"{part['dimensions'][name]:.{max(0, 2 - int(math.log10(high - low)))}f}")
        ends = [] if self.per == "segment" else [f"{more['seconds'] or 0:.2f}"]
        numbers += [""] * (len(self._numbers()) - len(ends) - len(numbers))
        times = {name: f"{place[name]:.2f}" for name in ("start", "end") if place.get(name) is not None}
        label = columns.get("label") or SILENT
        line = self._aligned(printable(place["file"]), {**place, **times}, label, [*numbers, *ends])
        remarks = [SILENT] if silent and not self.class_names else []
        remarks += [f"uncertain: {part['uncertain']}"] if self.per == "segment" and part.get("uncertain") else []
        remarks += [more["warning"]] if more["warning"] else []
        return "  ".join([line[:-1], *remarks]) + "\n"

    def _numbers(self) -> list[str]:
        """The names of the table's columns of numbers: of a dimension with its scale, as `arousal[1,7]`."""
        scales = [f"{name}[{low:g},{high:g}]" for name, (low, high) in self.dimensions.items()]
        seconds = [] if self.per == "segment" else ["seconds"]
        return [*(["probability", *self.quadrant] if self.class_names else []), *scales, *seconds]

    def _aligned(self, file: str, place: Mapping[str, Any], label: str, numbers: list[str]) -> str:
        wide = max(map(len, [*self.class_names, SILENT]))
        labels = [f"{label:{wide}}"] if self.class_names else []
        columns = zip(self._numbers(), numbers, strict=True)
        aligned = (f"{number:>{max(8, len(name))}}" for name, number in columns)
        where = []
        for name, width in (("channel", ">7"), ("start", ">8"), ("end", ">8"), ("speaker", "12")):
            if name in place:
                where.append(f"{'' if place[name] is None else printable(str(place[name])):{width}}")
        return "  ".join([f"{file:{max(self.widest, 4)}}", *where, *labels, *aligned]) + "\n"


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

    It does not with an error, if it was standard input, or where a stop cut off some of its rows; `with_errors`
    yields those as well.
    """
    for name, found in itertools.groupby(read_rows(path, layout), key=lambda row: row.file):
        rows = list(found)
        whole = rows[-1].error == "" and len(rows) >= rows[-1].of and name != STANDARD_INPUT
        if whole or with_errors:
            yield os.path.abspath(name), [row.line for row in rows]


def check_settings(path: Path | str, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if an output was begun with other settings."""
    # Which older releases did not have, or are not there where they mean nothing.
    unsaid: dict[str, Any] = {"per": "clip", "dtype": "float32", "dimensions": {}, **NO_SEGMENTS}
    earlier = {**unsaid, **earlier}
    for name, value in {**NO_SEGMENTS, **settings}.items():
        if earlier.get(name) != value:
            was = f"{path} was begun with {name} {earlier.get(name)!r}, now it is {value!r}"
            raise ValueError(f"{was}; give another --output, or delete it")


class Row(NamedTuple):
    """A row that was read again."""

    file: str
    error: str
    of: int  # rows that the file has
    line: str


def read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    """Yields the rows of a file; raises ValueError where a line is none of ours."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # a carriage return may be part of a name
            lines: Iterable[str] = (line for line in file if line.endswith("\n"))
            if layout.style == "jsonl":
                for line in lines:
                    row = json.loads(line)
                    yield Row(row["file"], row.get("error", ""), row.get(layout.counted, 1), line)
            else:
                reader = csv.reader(lines)
                columns = len(next(reader, []))
                header = next(csv.reader([layout.header()]))
                without = len(header) - columns  # older releases did not write the warning
                for values in reader:
                    if len(values) == columns:  # less: cut off within a quoted name
                        count = int(values[header.index(layout.counted)] or 1) if layout.counted else 1
                        line = _csv_line([*values[:-1], *[None] * without, values[-1]])
                        yield Row(values[0], values[-1], count, line)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: a line there is no row of predictions ({error}); give another --output") from error


def file_cell(name: str) -> str:
    """A file's name for a cell of CSV: `./=a.wav`, the same file, where `=a.wav` would be a formula."""
    return os.path.join(".", name) if name != STANDARD_INPUT and spreadsheet_cell(name) != name else name


def _csv_line(values: Iterable[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(values)  # its own line end: with another, Python 3.11 quotes no carriage return
    return buffer.getvalue()[:-2] + "\n"
