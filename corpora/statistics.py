"""What is in a set of corpora: durations (the paper's Figure 1), classes, dimensions, languages, speakers, splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from exhubert.audio_exhubert import audio_seconds
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.dimensions import dimension_columns, read_numbers, registered_scale, shown
from exhubert.corpora.labels import load_label_map, plain_word
from exhubert.corpora.metadata import text_of
from exhubert.corpora.readers import locate_clip, read_corpus, rows_at_once
from exhubert.corpora.registry import corpus_key, folder_name
from exhubert.corpora.splits import SPLITS
from exhubert.utils.figures import (
    DASHES,
    DISTINCT_COLOURS,
    LINE_COLOURS,
    add_legend,
    legend_width,
    line_style,
    new_figure,
    save_figure,
)
from exhubert.utils.files import write_text
from exhubert.utils.text import markdown_table

TOTAL = "total"
LONGEST_SECONDS = 6.0  # the last bar of the histogram has everything from here on
BIN_SECONDS = 0.25  # width of its other bars
DIMENSION_BINS = 24  # of a scale, from end to end; of 1 to 7 four in each unit, of 1 to 5 six
SCALES = "scales"  # in the `attrs` of a table of clips: the scale of a corpus's dimension, None where it is not known


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
        does not open), and each numeric annotation that one of the corpora has, NaN where a clip has none. Their scales
        are in `attrs["scales"]`, by corpus and annotation.

    Raises:
        ValueError: if a folder cannot be read, or two have the same name.
    """

    def seconds_of(row: Mapping[str, Any]) -> float:
        audio, start, duration = locate_clip(row)
        try:
            return duration or audio_seconds(audio) - start
        except (ValueError, OSError):
            return float("nan")

    tables: dict[str, pandas.DataFrame] = {}
    scales: dict[tuple[str, str], tuple[float, float] | None] = {}
    for directory in directories:
        name = folder_name(directory)
        if name in tables or name == TOTAL:
            raise ValueError(f"{directory}: the name {name!r} is taken; rename the folder")
        dataset = read_corpus(directory)
        key = corpus_key(dataset.unique("corpus") if "corpus" in dataset.column_names else [], name)
        dimensions = dimension_columns(dataset.column_names, key)
        wanted = ("label", "speaker", "language", "split", "duration_seconds", *dimensions)
        table = dataset.select_columns([column for column in wanted if column in dataset.column_names]).to_pandas()
        clips = pandas.DataFrame({"corpus": name}, index=table.index)
        for column in wanted[:4]:
            clips[column] = text_of(table[column]) if column in table.columns else ""
        classes = load_label_map(label_file, key)
        six = {word: SIX_CLASSES[index] for word, index in classes.items() if index is not None}
        clips["six_class"] = clips["label"].map(plain_word).map(lambda word, six=six: six.get(word, ""))
        seconds = np.full(len(table), np.nan)
        if "duration_seconds" in table.columns:
            seconds = pandas.to_numeric(table["duration_seconds"], errors="coerce").to_numpy(dtype=float, copy=True)
        unknown = np.flatnonzero(~(seconds > 0))
        measured: list[float] = []
        with ThreadPoolExecutor() as pool:
            for rows in rows_at_once(dataset.select(unknown)):
                measured += pool.map(seconds_of, rows)
        seconds[unknown] = measured
        tables[name] = clips.assign(seconds=seconds, **{each: read_numbers(table[each])[0] for each in dimensions})
        scales |= {(name, each): registered_scale(each, key) for each in dimensions}
    if not tables:
        raise ValueError("no corpus folder was named")
    every = pandas.concat(tables.values(), ignore_index=True)
    every.attrs[SCALES] = scales
    return every


def statistics_markdown(clips: pandas.DataFrame) -> str:
    """Returns the tables of `corpus_statistics`'s clips: corpora, six classes, labels, dimensions, languages,
    splits.
    """
    by_corpus = [(str(name), part) for name, part in clips.groupby("corpus", sort=False)]
    with_total = [*by_corpus, (TOTAL, clips)]

    def count_table(column: str, values: Sequence[str], otherwise: str) -> str:
        """Clips by corpus and value of a column; the column `otherwise` appears where it is needed."""
        others = (~clips[column].isin(values)).any()
        rows = []
        for name, part in with_total:
            counts = [int((part[column] == value).sum()) for value in values]
            counts += [len(part) - sum(counts)] if others else []
            rows.append([name, *(f"{count:,}" for count in counts)])
        return markdown_table(["corpus", *values, *([otherwise] if others else [])], rows)

    rows, labels, languages = [], [], []
    for name, part in with_total:
        # Speakers' names are compared within a corpus only.
        speakers = len(part.loc[part["speaker"] != "", ["corpus", "speaker"]].drop_duplicates())
        median, splits = part["seconds"].median(), part["split"].replace("", np.nan).nunique()
        cells = [f"{len(part):,}", f"{speakers:,}" if speakers else "-", f"{part['seconds'].sum() / 3600:.2f}"]
        cells += ["-" if np.isnan(median) else f"{median:.2f}", str(len(set(part["label"].str.lower()) - {""}))]
        cells += [str(splits or "-"), ", ".join(sorted(set(part["language"]) - {""})) or "-"]
        rows.append([name, *cells])
    header = ["corpus", "clips", "speakers", "hours", "median seconds", "labels", "splits", "languages"]
    parts = ["# Corpora", markdown_table(header, rows, left=(0, 7))]
    parts += ["## Six classes", count_table("six_class", SIX_CLASSES, "no class")]
    for name, part in by_corpus:
        counts = part["label"].replace("", "(none)").value_counts()
        labels.append([name, ", ".join(f"{label} {count:,}" for label, count in counts.items())])
    parts += ["## Labels", markdown_table(["corpus", "clips of each of its labels"], labels, left=(0, 1))]
    parts += _dimensions_markdown(clips)
    if (clips["language"] != "").any():
        by_language = sorted(clips.groupby("language", sort=False), key=lambda item: -len(item[1]))
        for language, part in [*by_language, (TOTAL, clips)]:
            hours = f"{part['seconds'].sum() / 3600:.2f}"
            languages.append([str(language) or "unknown", str(part["corpus"].nunique()), f"{len(part):,}", hours])
        parts += ["## Languages", markdown_table(["language", "corpora", "clips", "hours"], languages)]
    if (clips["split"] != "").any():
        parts += ["## Splits", count_table("split", SPLITS, "no split")]
    unknown = int(clips["seconds"].isna().sum())
    if unknown:
        parts.append(f"{unknown:,} of {len(clips):,} clips do not open; `exhubert corpora check` names them.")
    return "\n\n".join(parts)


def _dimensions_markdown(clips: pandas.DataFrame) -> list[str]:
    """A heading and a table of the numeric annotations of each corpus; nothing where there are none."""
    rows = []
    for (corpus, dimension), scale in clips.attrs.get(SCALES, {}).items():
        numbers = clips.loc[clips["corpus"] == corpus, dimension].dropna()
        if len(numbers):
            low, lower, median, upper, high = (f"{value:.2f}" for value in numbers.quantile([0, 0.25, 0.5, 0.75, 1]))
            spread = [f"{numbers.mean():.2f}", f"{numbers.std(ddof=0):.2f}", low, lower, median, upper, high]
            rows.append([corpus, dimension, shown(scale) if scale else "not known", f"{len(numbers):,}", *spread])
    header = [
        "corpus",
        "dimension",
        "scale",
        "clips",
        "mean",
        "deviation",
        "lowest",
        "25 %",
        "median",
        "75 %",
        "highest",
    ]
    return ["## Dimensions", markdown_table(header, rows, left=(0, 1, 2))] if rows else []


def write_statistics(
    directories: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    label_file: str | os.PathLike[str] | None = None,
) -> str:
    """Returns the tables as markdown; with `output`, a folder, also writes `statistics.md`, `durations.png`, and
    where there are numeric annotations `dimensions.png` there.

    Raises:
        ValueError: as `corpus_statistics`.
    """
    clips = corpus_statistics(directories, label_file)
    text = statistics_markdown(clips)
    if output is not None:
        output = Path(output)
        durations = {str(name): part["seconds"].tolist() for name, part in clips.groupby("corpus", sort=False)}
        plot_durations(output / "durations.png", durations)
        pictures = "![Durations of the clips](durations.png)\n"
        if plot_dimensions(output / "dimensions.png", clips):
            pictures += "\n![Distributions of the dimensions](dimensions.png)\n"
        write_text(output / "statistics.md", f"{text}\n\n{pictures}")
    return text


def plot_dimensions(path: Path, clips: pandas.DataFrame) -> bool:
    """Writes histograms of the numeric annotations, one panel each, with a line for each corpus; false if none has any.

    An axis has the units of the scale where all corpora in the panel share it; else it is from the low end to the high
    end of each one's own. Where a scale is not known, the ends are the lowest and highest number.

    Args:
        path: the PNG file.
        clips: as `corpus_statistics` returns them.
    """
    found: dict[str, dict[str, tuple[np.ndarray, tuple[float, float]]]] = {}
    for (corpus, dimension), scale in clips.attrs.get(SCALES, {}).items():
        numbers = clips.loc[clips["corpus"] == corpus, dimension].dropna().to_numpy()
        if len(numbers):
            ends = scale or (float(numbers.min()), max(float(numbers.max()), float(numbers.min()) + 1e-9))
            found.setdefault(dimension, {})[corpus] = (numbers, ends)
    if not found:
        return False
    names = list(dict.fromkeys(corpus for panel in found.values() for corpus in panel))
    figure = new_figure(4 * len(found) + legend_width(names), 3.5)
    handles: dict[str, Any] = {}
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (dimension, of_corpus) in zip(panels, found.items(), strict=True):
        scales = {ends for _, ends in of_corpus.values()}
        low, high = next(iter(scales)) if len(scales) == 1 else (0.0, 1.0)
        for corpus, (numbers, ends) in of_corpus.items():
            share = (numbers - ends[0]) / (ends[1] - ends[0])
            counts, edges = np.histogram(share, DIMENSION_BINS, (0.0, 1.0))
            style = {key: value for key, value in line_style(names.index(corpus)).items() if key != "marker"}
            dash = DASHES[names.index(corpus) // len(LINE_COLOURS) % len(DASHES)]
            handles[corpus] = axes.stairs(
                100 * counts / len(numbers), low + (high - low) * edges, linestyle=dash, **style
            )
        axes.set_title(dimension, fontsize=10)
        axes.set_xlabel(f"scale of {shown((low, high))}" if len(scales) == 1 else "low to high end of each one's scale")
        axes.set_xlim(low, high)
        axes.set_ylim(0)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("% of the clips")
    add_legend(figure, [handles[name] for name in names], names)
    save_figure(figure, path)
    return True


def plot_durations(path: Path, durations: Mapping[str, Sequence[float]]) -> None:
    """Writes a histogram of clip durations, stacked by corpus (the form of the paper's Figure 1).

    The last bar, set apart, has everything from 6 s on, and its number on top; where it is much the highest it is cut
    off.

    Args:
        path: the PNG file.
        durations: of each corpus, the durations of its clips in seconds, NaN where unknown; of more than nine
            corpora the smaller ones are drawn as one.
    """
    known = {name: np.asarray(seconds, dtype=float) for name, seconds in durations.items()}
    known = {name: seconds[np.isfinite(seconds)] for name, seconds in known.items()}
    parts = sorted(known.items(), key=lambda part: -len(part[1]))
    if len(parts) > len(DISTINCT_COLOURS):
        rest = parts[len(DISTINCT_COLOURS) - 1 :]
        together = np.concatenate([seconds for _, seconds in rest])
        parts = [*parts[: -len(rest)], (f"{len(rest)} other corpora", together)]
    edges = np.linspace(0.0, LONGEST_SECONDS, round(LONGEST_SECONDS / BIN_SECONDS) + 1)
    starts = np.append(edges[:-1], LONGEST_SECONDS + 2 * BIN_SECONDS)
    figure = new_figure(9, 4.5)
    axes = figure.add_subplot()
    heights = np.zeros(len(starts))
    for (name, seconds), colour in zip(parts, DISTINCT_COLOURS, strict=False):
        within = seconds < LONGEST_SECONDS
        counts = np.append(np.histogram(seconds[within], edges)[0], np.count_nonzero(~within))
        label = f"{name} ({len(seconds):,})"
        axes.bar(starts, counts, BIN_SECONDS, heights, align="edge", color=colour, label=label)
        heights += counts
    top = 1.1 * max(1.0, min(heights.max(), 1.5 * heights[:-1].max() or heights.max()))
    middle, longer = starts[-1] + BIN_SECONDS / 2, int(heights[-1])
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    number = f"{longer:,}" if longer < top else f"{longer:,} ↑"
    axes.text(middle, min(longer, 0.94 * top) + 0.01 * top, number, ha="center", va="bottom", fontsize=8, bbox=box)
    axes.set_xlim(0, starts[-1] + 2 * BIN_SECONDS)
    axes.set_ylim(0, top)
    whole = np.arange(0, LONGEST_SECONDS + 1e-9)
    axes.set_xticks([*whole, middle], [*(f"{second:g}" for second in whole), f"{LONGEST_SECONDS:g} or\nmore"])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    every = np.concatenate([np.zeros(0), *known.values()])
    names = next(iter(known)) if len(known) == 1 else f"{len(known)} corpora"
    longest = f", the longest {every.max():.1f} s" if len(every) else ""
    axes.set_title(f"Durations in {names}: {len(every):,} clips, {every.sum() / 3600:,.1f} hours{longest}", fontsize=10)
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"clips in each {BIN_SECONDS:g} s")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(known) > 1:  # in the order in which they are stacked
        figure.legend(title="corpus (clips)", fontsize=8, loc="outside right upper", reverse=True)
    save_figure(figure, path)
