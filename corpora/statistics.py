"""What is in a set of corpora: durations (the paper's Figure 1), classes, languages, speakers, splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from datasets import Dataset

from exhubert.audio_exhubert import audio_seconds
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.durations import plot_durations
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.readers import SEGMENT_COLUMNS, locate_clip, read_corpus
from exhubert.corpora.registry import corpus_key
from exhubert.corpora.splits import SPLITS
from exhubert.utils.files import write_text
from exhubert.utils.text import markdown_table

TOTAL = "total"
ROWS_AT_ONCE = 256


def corpus_statistics(
    directories: Sequence[str | os.PathLike[str]], label_file: str | os.PathLike[str] | None = None
) -> pandas.DataFrame:
    """Reads the metadata of corpora, and the headers of the files whose duration it does not give.

    Args:
        directories: corpus folders, or whatever else `read_corpus` reads.
        label_file: a YAML file with further emotion words.

    Returns:
        One row a clip: `corpus` (the name of its folder), `label`, `six_class` (one of `SIX_CLASSES`, empty for a
        word that has none), `speaker`, `language`, `split` (all empty where unknown), `seconds` (NaN where the audio
        does not open).

    Raises:
        ValueError: if a folder cannot be read, or two have the same name.
    """
    tables: dict[str, pandas.DataFrame] = {}
    for directory in directories:
        name = Path(os.path.abspath(directory)).name.removesuffix(".csv")
        if name in tables or name == TOTAL:
            raise ValueError(f"{directory}: the name {name!r} is taken; rename the folder")
        tables[name] = _read_clips(directory, name, label_file)
    if not tables:
        raise ValueError("no corpus folder was named")
    return pandas.concat(tables.values(), ignore_index=True)


def statistics_markdown(clips: pandas.DataFrame) -> str:
    """Returns the tables of `corpus_statistics`'s clips: corpora, six classes, languages, splits."""
    parts = [
        "# Corpora",
        _corpora_table(clips),
        "## Six classes",
        _count_table(clips, "six_class", SIX_CLASSES, "no class"),
    ]
    parts += ["## Labels", _labels_table(clips)]
    if (clips["language"] != "").any():
        parts += ["## Languages", _languages_table(clips)]
    if (clips["split"] != "").any():
        parts += ["## Splits", _count_table(clips, "split", SPLITS, "no split")]
    unknown = int(clips["seconds"].isna().sum())
    if unknown:
        parts.append(f"{unknown:,} of {len(clips):,} clips do not open; `exhubert corpora check` names them.")
    return "\n\n".join(parts)


def write_statistics(
    directories: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    label_file: str | os.PathLike[str] | None = None,
) -> str:
    """Returns the tables as markdown; with `output`, a folder, also writes `statistics.md` and `durations.png` there.

    Raises:
        ValueError: as `corpus_statistics`.
    """
    clips = corpus_statistics(directories, label_file)
    text = statistics_markdown(clips)
    if output is not None:
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
        plot_durations(
            output / "durations.png", {name: part["seconds"].tolist() for name, part in _by(clips, "corpus")}
        )
        write_text(output / "statistics.md", f"{text}\n\n![Durations of the clips](durations.png)\n")
    return text


def _read_clips(
    directory: str | os.PathLike[str], corpus: str, label_file: str | os.PathLike[str] | None
) -> pandas.DataFrame:
    dataset = read_corpus(directory)
    key = corpus_key(dataset.unique("corpus") if "corpus" in dataset.column_names else [], corpus)
    wanted = ("label", "speaker", "language", "split", "duration_seconds")
    table = dataset.select_columns([name for name in wanted if name in dataset.column_names]).to_pandas()
    columns = {name: _words(table, name) for name in wanted[:4]}
    words = load_label_map(label_file, key)
    class_of = {label: _six_class(label, corpus, words) for label in set(columns["label"])}
    seconds = np.full(len(table), np.nan)
    if "duration_seconds" in table.columns:
        seconds = pandas.to_numeric(table["duration_seconds"], errors="coerce").to_numpy(dtype=float, copy=True)
    unknown = np.flatnonzero(~(seconds > 0))
    seconds[unknown] = _measure(dataset.select(unknown))
    classes = [class_of[label] for label in columns["label"]]
    return pandas.DataFrame({"corpus": corpus, **columns, "six_class": classes, "seconds": seconds})


def _measure(dataset: Dataset) -> list[float]:
    """Durations in seconds from the headers of the files, some at a time: the rows may hold their audio."""
    columns = [name for name in ("audio", "file_name", *SEGMENT_COLUMNS) if name in dataset.column_names]
    seconds: list[float] = []
    with ThreadPoolExecutor() as pool:
        for batch in dataset.select_columns(columns).iter(ROWS_AT_ONCE):
            seconds += pool.map(
                _seconds, [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            )
    return seconds


def _seconds(row: Mapping[str, Any]) -> float:
    audio, start, duration = locate_clip(row)
    try:
        return duration or audio_seconds(audio) - start
    except (ValueError, OSError):
        return float("nan")


def _words(table: pandas.DataFrame, column: str) -> list[str]:
    if column not in table.columns:
        return [""] * len(table)
    return ["" if value is None or value != value else str(value).strip() for value in table[column]]


def _six_class(label: str, corpus: str, words: Mapping[str, int | None]) -> str:
    try:
        number = map_labels([label], corpus, words)[0]
    except ValueError:
        return ""
    return "" if number is None else SIX_CLASSES[number]


def _by(clips: pandas.DataFrame, column: str) -> list[tuple[str, pandas.DataFrame]]:
    """The clips of each value of a column, in order of appearance."""
    return [(str(value), part) for value, part in clips.groupby(column, sort=False)]


def _speakers(clips: pandas.DataFrame) -> int:
    """How many known speakers; names are compared within a corpus only."""
    known = clips.loc[clips["speaker"] != "", ["corpus", "speaker"]]
    return len(known.drop_duplicates())


def _hours(clips: pandas.DataFrame) -> str:
    return f"{clips['seconds'].sum() / 3600:.2f}"


def _corpora_table(clips: pandas.DataFrame) -> str:
    rows = []
    for name, part in [*_by(clips, "corpus"), (TOTAL, clips)]:
        speakers, splits, median = _speakers(part), set(part["split"]) - {""}, part["seconds"].median()
        languages = sorted(set(part["language"]) - {""})
        cells = [f"{len(part):,}", f"{speakers:,}" if speakers else "-", _hours(part)]
        cells += ["-" if np.isnan(median) else f"{median:.2f}", str(part["label"].str.lower().nunique())]
        cells += [str(len(splits) or "-"), ", ".join(languages) or "-"]
        rows.append([name, *cells])
    header = ["corpus", "clips", "speakers", "hours", "median seconds", "labels", "splits", "languages"]
    return markdown_table(header, rows, left=(0, 7))


def _count_table(clips: pandas.DataFrame, column: str, values: Sequence[str], otherwise: str) -> str:
    """Clips by corpus and value of a column; the column `otherwise` appears where it is needed."""
    others = ~clips[column].isin(values)
    header = ["corpus", *values, *([otherwise] if others.any() else [])]
    rows = []
    for name, part in [*_by(clips, "corpus"), (TOTAL, clips)]:
        counts = [int((part[column] == value).sum()) for value in values]
        counts += [len(part) - sum(counts)] if others.any() else []
        rows.append([name, *(f"{count:,}" for count in counts)])
    return markdown_table(header, rows)


def _labels_table(clips: pandas.DataFrame) -> str:
    rows = []
    for corpus, part in _by(clips, "corpus"):
        counts = part["label"].value_counts()
        rows.append([corpus, ", ".join(f"{label} {count:,}" for label, count in counts.items())])
    return markdown_table(["corpus", "clips of each of its labels"], rows, left=(0, 1))


def _languages_table(clips: pandas.DataFrame) -> str:
    rows = []
    for language, part in [*sorted(_by(clips, "language"), key=lambda item: -len(item[1])), (TOTAL, clips)]:
        rows.append([language or "unknown", str(part["corpus"].nunique()), f"{len(part):,}", _hours(part)])
    return markdown_table(["language", "corpora", "clips", "hours"], rows)
