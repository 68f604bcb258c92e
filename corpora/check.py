"""Looks for what is wrong with a corpus folder before anybody trains on it."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas

from exhubert.audio_exhubert import SAMPLING_RATE
from exhubert.corpora.clip_facts import ClipFacts, scan_clips
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.metadata import (
    ERROR,
    METADATA_READERS,
    OUTSIDE,
    SEGMENT_COLUMNS,
    WARNING,
    Finding,
    clean,
    find_metadata,
    find_problems,
    read_metadata,
)
from exhubert.corpora.registry import corpus_key
from exhubert.corpora.splits import SPLIT_NAMES, SPLITS
from exhubert.utils.files import is_audio, visible_files, whole_file
from exhubert.utils.text import printable

SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 60.0
SILENT_PEAK = 0.001  # -60 dBFS; RAVDESS has speech that peaks at 0.009
CLIPPED_SAMPLES = 10  # at full scale; a few are a normalised peak
EXAMPLES = 3


class Row(NamedTuple):
    """A row of the metadata whose path lies inside the folder."""

    file_name: str  # normalised, with forward slashes
    label: str
    split: str
    start_seconds: float | None  # where in the file the clip begins; None: it is the whole file
    duration_seconds: float | None  # None: to the end of the file


def report_check(findings: pandas.DataFrame) -> str:
    """Returns the findings as text for a terminal: each problem with its number and the first few, errors first."""
    if findings.empty:
        return "nothing found"
    counts = findings.value_counts(["severity", "problem"])
    kinds = sorted(counts.index, key=lambda kind: (kind[0] != ERROR, -counts[kind]))
    count_width = max(len(f"{count:,}") for count in counts)
    indent = " " * (count_width + 11)
    lines = []
    for severity, problem in kinds:
        of_kind = findings[(findings["severity"] == severity) & (findings["problem"] == problem)]
        lines.append(f"{severity:7}  {len(of_kind):>{count_width},}  {problem}")
        names, details = (list(of_kind[column].head(EXAMPLES)) for column in ("file_name", "detail"))
        width = max(map(len, names))
        lines += [f"{indent}{name:{width}}  {detail}".rstrip() for name, detail in zip(names, details, strict=True)]
        if len(of_kind) > EXAMPLES:
            lines.append(f"{indent}... and {len(of_kind) - EXAMPLES:,} more")
    return "\n".join(lines)


def write_findings(findings: pandas.DataFrame, output: str | os.PathLike[str]) -> None:
    """Writes all findings to a CSV file, whole or not at all."""
    with whole_file(output) as unfinished:
        findings.to_csv(unfinished, index=False)


def run_check(
    directory: str | os.PathLike[str],
    shortest_seconds: float = SHORTEST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
    output: str | os.PathLike[str] | None = None,
    label_file: str | os.PathLike[str] | None = None,
) -> int:
    """Checks a corpus folder and prints what was found; returns the exit code, 2 for any error, else 0.

    Args:
        directory, shortest_seconds, longest_seconds: see `find_all`.
        output: a CSV file for all findings.
        label_file: see `find_all`.

    Raises:
        ValueError: as `find_all`.
    """
    start = time.perf_counter()
    findings, clips = find_all(directory, shortest_seconds, longest_seconds, label_file)
    elapsed = time.perf_counter() - start
    print(report_check(findings))
    if output is not None:
        write_findings(findings, output)
        print(f"all findings: {output}")
    errors = int((findings["severity"] == ERROR).sum())
    seconds = sum(clip.duration_seconds for clip in clips.values())
    print(
        f"{len(clips):,} files, {seconds / 3600:.2f} hours: {_counted(errors, ERROR)}, "
        f"{_counted(len(findings) - errors, WARNING)}; "
        f"{elapsed:.1f} s, {seconds / elapsed:,.0f} times real time"
    )
    return 2 if errors else 0


def find_all(
    directory: str | os.PathLike[str],
    shortest_seconds: float = SHORTEST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
    label_file: str | os.PathLike[str] | None = None,
) -> tuple[pandas.DataFrame, dict[str, ClipFacts]]:
    """Checks the metadata and decodes every file of a corpus folder (see docs/corpora.md).

    Links to folders inside the corpus folder are not searched for files without a row.

    Args:
        directory: the folder with `metadata.csv` (or .jsonl, .parquet).
        shortest_seconds: shorter clips are found.
        longest_seconds: longer clips are found.
        label_file: a YAML file with further emotion words.

    Returns:
        One row a finding, with the columns of `Finding`; and the facts of every file by its name.

    Raises:
        ValueError: if there is no such folder, or its metadata cannot be read, is empty, or has no `file_name`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such corpus folder")
    path = find_metadata(directory)
    if path is None:
        raise ValueError(f"{directory}: no {', '.join(METADATA_READERS)} there; a corpus folder has one of these")
    table = read_metadata(path)
    if "file_name" not in table.columns:
        raise ValueError(f"{path}: no column 'file_name'; it has {', '.join(map(str, table.columns))}")
    findings = list(find_problems(path.name, table))
    table = clean(table)
    corpus = Path(os.path.abspath(directory)).name
    label_map = load_label_map(label_file, corpus_key(sorted(set(_column(table, "corpus"))), corpus))
    rows = _rows(table)
    names = list(dict.fromkeys(row.file_name for row in rows))
    clips = dict(zip(names, scan_clips([directory / name for name in names]), strict=True))
    usual_rate = _usual_rate(clips)
    for name, clip in clips.items():
        findings += _check_audio(name, clip, usual_rate)
    for row in {(row.file_name, *row[3:]): row for row in rows}.values():
        findings += _check_length(row, clips[row.file_name], shortest_seconds, longest_seconds)
    findings += _check_copies(rows, clips)
    findings += _check_columns(path.name, table)
    findings += _check_labels(rows, corpus, label_map)
    there = (path.relative_to(directory).as_posix() for path in visible_files(directory) if is_audio(path))
    findings += [Finding(name, WARNING, "audio that no row names", "") for name in there if name not in clips]
    shown = [Finding(*map(printable, finding)) for finding in findings]
    return pandas.DataFrame(shown, columns=list(Finding._fields), dtype=str), clips


def _column(table: pandas.DataFrame, name: str) -> list[str]:
    return list(table[name]) if name in table.columns else [""] * len(table)


def _rows(table: pandas.DataFrame) -> list[Row]:
    """The rows whose files may be opened."""
    inside = table[(table["file_name"] != "") & ~table["file_name"].str.contains(OUTSIDE)]
    segments = "start_seconds" in table.columns  # else `duration_seconds` is that of the file
    rows = []
    columns = (_column(inside, name) for name in ("file_name", "label", "split", *SEGMENT_COLUMNS))
    for name, label, split, *times in zip(*columns, strict=True):
        start, duration = (None if not segments or time == "" or time != time else float(time) for time in times)
        rows.append(Row(name, label, split, start, None if start is None else duration))
    return rows


def _check_audio(name: str, clip: ClipFacts, usual_rate: int) -> Iterator[Finding]:
    if clip.error:
        problem, _, detail = clip.error.partition(": ")
        yield Finding(name, ERROR, problem, detail)
        return
    seconds = f"{clip.duration_seconds:.2f} s"
    if not clip.finite:
        yield Finding(name, ERROR, "NaN or infinite samples", seconds)
    elif clip.peak < SILENT_PEAK:
        yield Finding(name, ERROR, "silent", f"{seconds}, peak {clip.peak:.5f} of full scale")
    if clip.full_scale_samples > CLIPPED_SAMPLES:
        yield Finding(name, WARNING, "clipped", f"{clip.full_scale_samples} samples at full scale in {seconds}")
    if clip.sampling_rate < SAMPLING_RATE:
        detail = f"{clip.sampling_rate} Hz; the model hears {SAMPLING_RATE} Hz"
        yield Finding(name, WARNING, "low sampling rate", detail)
    elif clip.sampling_rate != usual_rate:
        detail = f"{clip.sampling_rate} Hz; the corpus's usual one is {usual_rate} Hz"
        yield Finding(name, WARNING, "other sampling rate", detail)


def _check_length(row: Row, clip: ClipFacts, shortest_seconds: float, longest_seconds: float) -> Iterator[Finding]:
    if clip.error:
        return
    start = row.start_seconds or 0.0
    rest = clip.duration_seconds - start
    seconds = rest if row.duration_seconds is None else min(rest, row.duration_seconds)
    if seconds <= 0:
        detail = f"it begins at {start:.2f} s of {clip.duration_seconds:.2f} s"
        yield Finding(row.file_name, ERROR, "clip without samples", detail)
    elif seconds < shortest_seconds:
        yield Finding(row.file_name, WARNING, "too short", f"{seconds:.3f} s; below {shortest_seconds:g} s")
    elif seconds > longest_seconds:
        yield Finding(row.file_name, WARNING, "too long", f"{seconds:.2f} s; above {longest_seconds:g} s")


def _usual_rate(clips: Mapping[str, ClipFacts]) -> int:
    rates = Counter(clip.sampling_rate for clip in clips.values() if clip.sampling_rate)
    return rates.most_common(1)[0][0] if rates else 0


def _check_copies(rows: Sequence[Row], clips: Mapping[str, ClipFacts]) -> Iterator[Finding]:
    """Files with the same audio, each compared with the first of its kind."""
    first_with_name: dict[tuple, Row] = {}
    first_with_audio: dict[tuple, Row] = {}
    for row in rows:
        part = row[3:]
        if first_with_name.setdefault((row.file_name, part), row) is not row:
            continue  # found in the metadata
        content = clips[row.file_name].content_hash
        first = first_with_audio.setdefault((content, part), row) if content else row
        if first is not row:
            detail = f"{_named(row)}; the same as {first.file_name}, {_named(first)}"
            yield from _compare(row, first, "duplicate audio", detail)


def _named(row: Row) -> str:
    return f"label {row.label!r}, split {row.split!r}" if row.split else f"label {row.label!r}"


def _compare(row: Row, first: Row, problem: str, detail: str) -> Iterator[Finding]:
    if row.label and first.label and row.label.casefold() != first.label.casefold():
        yield Finding(row.file_name, ERROR, f"{problem} with two labels", detail)
    else:
        yield Finding(row.file_name, WARNING, problem, detail)
    if row.split and first.split and row.split != first.split:
        yield Finding(row.file_name, ERROR, "identical audio in two splits", detail)


def _check_columns(metadata_name: str, table: pandas.DataFrame) -> Iterator[Finding]:
    """What concerns a whole column that is there: the speakers and the split."""
    speakers, splits = _column(table, "speaker"), _column(table, "split")
    unknown = speakers.count("")
    if any(speakers) and unknown:
        detail = f"{unknown:,} of {len(speakers):,} rows have none; no split by speaker can be made"
        yield Finding(metadata_name, WARNING, "speaker in some rows only", detail)
    if not any(splits):
        return
    for split, count in Counter(splits).items():
        if SPLIT_NAMES.get(split.lower(), split.lower()) not in SPLITS:
            detail = f"{split!r} in {count:,} rows; it must be {', '.join(SPLITS)}"
            yield Finding(metadata_name, ERROR, "unknown split", detail)
    parts = defaultdict(set)
    for speaker, split in zip(speakers, splits, strict=True):
        parts[speaker].add(split)
    shared = [speaker for speaker in parts if speaker and len(parts[speaker]) > 1]
    if shared:
        known = len(parts) - ("" in parts)
        detail = f"{len(shared):,} of {known:,} speakers, e.g. {shared[0]} ({', '.join(sorted(parts[shared[0]]))})"
        yield Finding(metadata_name, WARNING, "speakers in two splits", detail)


def _check_labels(rows: Sequence[Row], corpus: str, label_map: Mapping[str, int | None]) -> Iterator[Finding]:
    """One finding for each word that has no class."""
    words = defaultdict(list)
    for row in rows:
        if row.label:
            words[row.label].append(row.file_name)
    for label, names in words.items():
        try:
            map_labels([label] * len(names), corpus, label_map)
        except ValueError as error:
            yield Finding(names[0], WARNING, "unknown label", str(error))


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
