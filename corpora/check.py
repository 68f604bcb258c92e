"""Looks for what is wrong with a corpus folder before anybody trains on it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from exhubert.audio_exhubert import SAMPLING_RATE
from exhubert.corpora.clip_facts import ClipFacts, scan_clips
from exhubert.corpora.dimensions import column_problems, dimension_columns, registered_scale
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.metadata import (
    ERROR,
    OUTSIDE,
    SEGMENT_COLUMNS,
    WARNING,
    Finding,
    clean,
    find_metadata,
    find_problems,
    shown_columns,
)
from exhubert.corpora.readers import locate_clip, read_corpus, rows_at_once, table_of_files
from exhubert.corpora.registry import corpus_key, folder_name
from exhubert.corpora.splits import SPLIT_NAMES, SPLITS
from exhubert.utils.files import is_audio, visible_files, whole_file
from exhubert.utils.text import printable, spreadsheet_cell

SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 60.0
SILENT_PEAK = 0.001  # -60 dBFS; RAVDESS has speech that peaks at 0.009
CLIPPED_SAMPLES = 10  # at full scale; a few are a normalised peak
EXAMPLES = 3


def run_check(
    directory: str | os.PathLike[str],
    shortest_seconds: float = SHORTEST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
    output: str | os.PathLike[str] | None = None,
    label_file: str | os.PathLike[str] | None = None,
) -> int:
    """Checks a corpus and prints what was found; returns the exit code, 2 for any error, else 0.

    Args:
        directory, shortest_seconds, longest_seconds, label_file: see `find_all`.
        output: a CSV file for all findings.

    Raises:
        ValueError: as `find_all`.
    """
    start = time.perf_counter()
    findings, clips = find_all(directory, shortest_seconds, longest_seconds, label_file)
    elapsed = time.perf_counter() - start
    counts = findings.value_counts(["severity", "problem"])
    count_width = max((len(f"{count:,}") for count in counts), default=0)
    indent = " " * (count_width + 11)
    # Each problem with its number and the first few, errors first.
    for severity, problem in sorted(counts.index, key=lambda kind: (kind[0] != ERROR, -counts[kind])):
        of_kind = findings[(findings["severity"] == severity) & (findings["problem"] == problem)]
        print(f"{severity:7}  {len(of_kind):>{count_width},}  {problem}")
        names, details = (list(of_kind[column].head(EXAMPLES)) for column in ("file_name", "detail"))
        width = max(map(len, names))
        for name, detail in zip(names, details, strict=True):
            print(f"{indent}{name:{width}}  {detail}".rstrip())
        if len(of_kind) > EXAMPLES:
            print(f"{indent}... and {len(of_kind) - EXAMPLES:,} more")
    if findings.empty:
        print("nothing found")
    if output is not None:
        with whole_file(output) as unfinished:
            findings.map(lambda cell: spreadsheet_cell(cell) if isinstance(cell, str) else cell).to_csv(
                unfinished, index=False
            )
        print(f"all findings: {output}")
    errors = int((findings["severity"] == ERROR).sum())
    numbers = {ERROR: errors, WARNING: len(findings) - errors}
    counted = ", ".join(f"{number:,} {noun}{'' if number == 1 else 's'}" for noun, number in numbers.items())
    seconds = sum(clip.duration_seconds for clip in clips.values())
    speed = f"{elapsed:.1f} s, {seconds / elapsed:,.0f} times real time"
    print(f"{len(clips):,} files, {seconds / 3600:.2f} hours: {counted}; {speed}")
    return 2 if errors else 0


def find_all(
    directory: str | os.PathLike[str],
    shortest_seconds: float = SHORTEST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
    label_file: str | os.PathLike[str] | None = None,
) -> tuple[pandas.DataFrame, dict[str, ClipFacts]]:
    """Checks the metadata and decodes every file of a corpus (see docs/corpora.md).

    A corpus folder is also searched for files without a row, but not links to folders in it.

    Args:
        directory: a corpus folder, or whatever else `read_corpus` reads.
        shortest_seconds: shorter clips are found.
        longest_seconds: longer clips are found.
        label_file: a YAML file with further emotion words.

    Returns:
        One row a finding, with the columns of `Finding`; and the facts of every file by its name.

    Raises:
        ValueError: if there is no such corpus, or its metadata cannot be read, is empty, or has no `file_name`.
    """
    of_files, dataset, corpus = table_of_files(Path(directory)), None, folder_name(directory)
    if of_files is None:
        dataset = read_corpus(directory)  # which refuses what is wrong with its table
        key = corpus_key(dataset.unique("corpus") if "corpus" in dataset.column_names else [], corpus)
        wanted = {"file_name", "label", "speaker", "split", "partition", "corpus", *SEGMENT_COLUMNS}
        wanted |= set(dimension_columns(dataset.column_names, key))
        table = dataset.select_columns([name for name in dataset.column_names if name in wanted]).to_pandas()
        path = root = Path(directory)
    else:
        path, table, root = of_files
    if "file_name" not in table.columns:
        raise ValueError(f"{path}: no column 'file_name'; it has {shown_columns(table)}")
    findings = list(find_problems(path.name, table))
    table = clean(table)
    absent: dict[str, Any] = dict.fromkeys(("label", "speaker", "split", "corpus", "partition"), "")
    absent |= dict.fromkeys(SEGMENT_COLUMNS, np.nan)
    table = table.assign(**{name: value for name, value in absent.items() if name not in table.columns})
    # Without a start `duration_seconds` is that of the file.
    durations = pandas.to_numeric(table["duration_seconds"].where(table["start_seconds"].notna()))
    table = table.assign(start_seconds=table["start_seconds"].fillna(0.0), duration_seconds=durations.fillna(np.inf))
    key = corpus_key(sorted(set(table["corpus"])), corpus)
    label_map = load_label_map(label_file, key)
    rows = table[(table["file_name"] != "") & ~table["file_name"].str.contains(OUTSIDE)]
    names = list(rows["file_name"].unique() if dataset is None else rows["file_name"])
    facts = scan_clips([root / name for name in names]) if dataset is None else []
    for batch in rows_at_once(dataset) if dataset is not None else ():  # they may hold their audio
        facts += scan_clips([locate_clip(row)[0] for row in batch])
    clips = dict(zip(names, facts, strict=True))
    findings += _check_clips(rows, clips, shortest_seconds, longest_seconds)
    findings += _check_columns(path.name, table)
    findings += _check_numbers(path.name, table, key)
    for label, named in rows[rows["label"] != ""].groupby("label", sort=False)["file_name"]:
        try:
            map_labels([str(label)] * len(named), corpus, label_map)
        except ValueError as error:
            findings.append(Finding(named.iloc[0], WARNING, "unknown label", str(error)))
    if find_metadata(Path(directory)):
        there = (path.relative_to(directory).as_posix() for path in visible_files(Path(directory)) if is_audio(path))
        findings += [Finding(name, WARNING, "audio that no row names", "") for name in there if name not in clips]
    shown = [Finding(*map(printable, finding)) for finding in findings]
    return pandas.DataFrame(shown, columns=list(Finding._fields), dtype=str), clips


def _check_clips(
    rows: pandas.DataFrame, clips: Mapping[str, ClipFacts], shortest_seconds: float, longest_seconds: float
) -> Iterator[Finding]:
    """What is wrong with whole files; clips that are too short or too long; those with the audio of one before."""
    rates = Counter(clip.sampling_rate for clip in clips.values() if clip.sampling_rate)
    for name, clip in clips.items():
        if clip.error:
            problem, _, detail = clip.error.partition(": ")
            yield Finding(name, ERROR, problem, detail)
            continue
        seconds = f"{clip.duration_seconds:.2f} s"
        if not clip.finite:
            yield Finding(name, ERROR, "NaN or infinite samples", seconds)
        elif clip.peak < SILENT_PEAK:
            yield Finding(name, ERROR, "silent", f"{seconds}, peak {clip.peak:.5f} of full scale")
        if clip.full_scale_samples > CLIPPED_SAMPLES:
            yield Finding(name, WARNING, "clipped", f"{clip.full_scale_samples} samples at full scale in {seconds}")
        usual_rate = rates.most_common(1)[0][0]
        if clip.sampling_rate < SAMPLING_RATE:
            detail = f"{clip.sampling_rate} Hz; the model hears {SAMPLING_RATE} Hz"
            yield Finding(name, WARNING, "low sampling rate", detail)
        elif clip.sampling_rate != usual_rate:
            detail = f"{clip.sampling_rate} Hz; the corpus's usual one is {usual_rate} Hz"
            yield Finding(name, WARNING, "other sampling rate", detail)

    # A clip that stands in two rows is found in the metadata.
    once: list[Any] = list(rows.drop_duplicates(["file_name", *SEGMENT_COLUMNS]).itertuples())
    for row in once:
        clip = clips[row.file_name]
        seconds = min(clip.duration_seconds - row.start_seconds, row.duration_seconds)
        if clip.error:
            continue
        if seconds <= 0:
            detail = f"it begins at {row.start_seconds:.2f} s of {clip.duration_seconds:.2f} s"
            yield Finding(row.file_name, ERROR, "clip without samples", detail)
        elif seconds < shortest_seconds:
            yield Finding(row.file_name, WARNING, "too short", f"{seconds:.3f} s; below {shortest_seconds:g} s")
        elif seconds > longest_seconds:
            yield Finding(row.file_name, WARNING, "too long", f"{seconds:.2f} s; above {longest_seconds:g} s")

    first_with_audio: dict[tuple[str, float, float], Any] = {}
    for row in once:
        content = clips[row.file_name].content_hash
        first = first_with_audio.setdefault((content, row.start_seconds, row.duration_seconds), row)
        if first is row or not content:
            continue
        said, of_first = (
            f"label {each.label!r}" + (f", split {each.split!r}" if each.split else "") for each in (row, first)
        )
        detail = f"{said}; the same as {first.file_name}, {of_first}"
        if row.label and first.label and row.label.casefold() != first.label.casefold():
            yield Finding(row.file_name, ERROR, "duplicate audio with two labels", detail)
        else:
            yield Finding(row.file_name, WARNING, "duplicate audio", detail)
        if row.split and first.split and row.split != first.split:
            yield Finding(row.file_name, ERROR, "identical audio in two splits", detail)


def _check_numbers(metadata_name: str, table: pandas.DataFrame, key: str) -> Iterator[Finding]:
    """What would keep numeric annotations from being trained on."""
    for column in dimension_columns(list(table.columns), key):
        for row, kind, detail in column_problems(list(table[column]), registered_scale(column, key)):
            name = metadata_name if row is None else table["file_name"].iloc[row]
            yield Finding(name, WARNING, kind, f"{column} {detail}")


def _check_columns(metadata_name: str, table: pandas.DataFrame) -> Iterator[Finding]:
    """What concerns a whole column that is there: the speakers and the split."""
    speakers, splits = list(table["speaker"]), list(table["split"])
    unknown = speakers.count("")
    if any(speakers) and unknown:
        detail = f"{unknown:,} of {len(speakers):,} rows have none; no split by speaker can be made"
        yield Finding(metadata_name, WARNING, "speaker in some rows only", detail)
    if not any(splits):
        return
    table = table[(table["split"] != "") | (table["partition"] == "")]  # the others are in none on purpose
    for split, count in Counter(table["split"]).items():
        if SPLIT_NAMES.get(split.lower(), split.lower()) not in SPLITS:
            detail = f"{split!r} in {count:,} rows; it must be {', '.join(SPLITS)}"
            yield Finding(metadata_name, ERROR, "unknown split", detail)
    parts = table[table["speaker"] != ""].groupby("speaker", sort=False)["split"].unique()
    shared = parts[parts.map(len) > 1]
    if len(shared):
        first = f"{shared.index[0]} ({', '.join(sorted(shared.iloc[0]))})"
        detail = f"{len(shared):,} of {len(parts):,} speakers, e.g. {first}"
        yield Finding(metadata_name, WARNING, "speakers in two splits", detail)
