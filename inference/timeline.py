"""Dimensions, arousal, valence and class over the time of a recording, as PNG."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.ticker import MultipleLocator

from exhubert.configuration_exhubert import QUADRANT
from exhubert.inference.summary import (
    Names,
    channels_of_result,
    joined,
    kind_of,
    overlaps,
    values_of,
    window_edges,
)
from exhubert.utils.figures import DISTINCT_COLOURS, new_figure, save_figure, shortened, wrapped
from exhubert.utils.text import printable

MOST_WINDOWS = 200  # of more, means over some are drawn: lines that a reader can follow
TICK_SECONDS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
MOST_TICKS = 12
COLOURS = tuple(DISTINCT_COLOURS[number] for number in (5, 0, 2, 3, 1, 4))  # arousal's, valence's, those of others
NO_SPEECH = "#D0D0D0"
SURE = {"facecolor": "#404040", "edgecolor": "#404040", "linewidth": 0.3}
UNSURE = {"facecolor": "white", "edgecolor": "#404040", "linewidth": 0.5, "hatch": "/////"}
LINE_WIDTHS = (3.0, 1.2, 2.1)  # of lines, too short there for dashes: they differ without colour as well
MOST_LANES = 16
MOST_SPEAKERS = 6  # rows in a lane; of more those who speak least are one
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 180, 300, 600, 900, 1800, 3600)  # seconds
LONGEST_TITLE = 100


def plot_timeline(
    path: Path,
    title: str,
    windows: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    quadrant: Sequence[str] = (),
    dimensions: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Writes the picture of one recording's windows, at least one; see `plot_lanes`."""
    plot_lanes(path, title, {"windows": windows}, class_names, quadrant, dimensions)


def plot_lanes(
    path: Path,
    title: str,
    result: Mapping[str, Any],
    class_names: Sequence[str],
    quadrant: Sequence[str] = (),
    dimensions: Mapping[str, Sequence[float]] | None = None,
    seconds: float | None = None,
) -> None:
    """Writes the picture of a recording, with a lane for each channel that was heard on its own.

    On top of a lane are the dimensions, those of one scale together, and arousal and valence of the classes; below the
    probabilities of the classes with a line at the likeliest. Each window stands around its middle, for as long as
    windows are apart. Of more than 200 windows the means over some are drawn, in 200 columns. Where there is no speech
    is grey.

    With segments there is above it a row for each speaker, or one for all, in which uncertain segments are hatched; a
    segment stands for its own time. Where segments overlap, their mean is drawn. Of more than 200 segments in a channel
    the means over equal steps are drawn, and in the rows how much of each step is speech.

    Args:
        path: the PNG file.
        title: of the picture; of a long one the end.
        result: as the pipeline returns it; where there is no speech what it says is None.
        class_names: in class order; none of a model of dimensions alone.
        quadrant: arousal and valence, if the result has them of its classes.
        dimensions: the scale of each, if the result has them.
        seconds: how long the recording is; by default it ends with its last segment or window.

    Raises:
        OSError: if the file cannot be written.
    """
    names, kind = Names(class_names, quadrant, dimensions or {}), kind_of(result)
    every = channels_of_result(result)
    lanes = [(each.get("channel"), each[kind]) for each in every[:MOST_LANES]]
    seconds = max([seconds or 0.0, *(piece["end"] for _, found in lanes for piece in found)]) or 1.0
    most = max(len(found) for _, found in lanes)
    step = None if kind == "windows" or most <= MOST_WINDOWS else step_of(seconds)
    scales = scales_of(names)
    colours = dict(zip(dict.fromkeys([*QUADRANT, *names.dimensions]), itertools.cycle(COLOURS), strict=False))

    high, of_class = (1.4, 0.26) if len(lanes) > 1 else (2.0, 0.33)
    values_below = [*[high] * len(scales), *[of_class * len(class_names)] * bool(class_names)]
    speakers = [[0.2 + 0.2 * len(speaker_rows(found))] if kind == "segments" else [] for _, found in lanes]
    heights = [[*strip, *values_below] for strip in speakers]
    figure = new_figure(10, 1.2 + sum(map(sum, heights)) + 0.15 * sum(map(len, heights)))
    ratios = list(itertools.chain(*heights))
    panels = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    left = list(panels)
    for (channel, found), of_lane in zip(lanes, heights, strict=True):
        own, left = left[: len(of_lane)], left[len(of_lane) :]
        if channel is not None and len(every) > 1:
            own[0].set_title(f"channel {channel}", loc="left", fontsize=10, fontweight="bold")
        if kind == "segments":
            edges, values = segment_columns(found, names, seconds, step)
            draw_speakers(own.pop(0), found, edges if step else None)
        else:
            edges, values = window_columns(found, names)
        draw_panels(figure, own, edges, values, names, scales, colours)
    shown = {name: drawn for panel in panels for drawn, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    cut = f", channels 1 to {len(lanes)} of {len(every)}" if len(lanes) < len(every) else ""
    add_title(figure, title + cut)
    remark = f"each step is the mean over {step:g} s" if step else ""
    if kind == "windows" and most > MOST_WINDOWS:
        remark = f"each step is the mean of about {most / MOST_WINDOWS:.0f} windows"
    time_axis(panels[-1], seconds, remark)
    save_figure(figure, path)


def scales_of(names: Names) -> list[tuple[str, Sequence[float], list[int]]]:
    """The panels of lines: what is written beside it, the scale, and the places of its values."""
    first = len(names.classes) + len(names.quadrant)
    by_scale: dict[tuple[float, ...], list[int]] = {}
    for place, scale in enumerate(names.dimensions.values(), first):
        by_scale.setdefault(tuple(scale), []).append(place)
    panels: list[tuple[str, Sequence[float], list[int]]] = [
        ("dimensions", scale, places) for scale, places in by_scale.items()
    ]
    if names.quadrant:
        of_classes = "of the classes" if panels else ""
        panels.append((of_classes, (-1.0, 1.0), list(range(len(names.classes), first))))
    return panels


def draw_panels(
    figure: Any,
    panels: Sequence[Any],
    edges: np.ndarray,
    values: np.ndarray,
    names: Names,
    scales: Sequence[tuple[str, Sequence[float], Sequence[int]]],
    colours: Mapping[str, str],
) -> None:
    """Draws lines and classes of a lane, values `(columns, values)`, and what is silent in grey."""
    silent = np.isnan(values).all(axis=1)
    for panel, (label, scale, places) in zip(panels, scales, strict=False):
        lines = {names.values[place]: values[:, place] for place in places}
        draw_lines(panel, edges, lines, scale, colours)
        panel.set_ylabel(label, fontsize=9)
    if names.classes:
        drawn = draw_classes(panels[-1], edges, values[:, : len(names.classes)], names.classes)
        figure.colorbar(drawn, ax=panels[-1], label="probability", fraction=0.05, pad=0.01)
    for panel in panels if silent.any() else ():
        draw_silence(panel, edges, silent)


def draw_silence(panel: Any, edges: np.ndarray, silent: np.ndarray) -> None:
    """Makes grey what nobody speaks in; `silent` is `(columns,)`."""
    low, high = panel.get_ylim()
    widths = np.diff(edges)[silent]
    panel.bar(edges[:-1][silent], high - low, widths, low, align="edge", color=NO_SPEECH, label="no speech")


def draw_speakers(panel: Any, segments: Sequence[Mapping[str, Any]], edges: np.ndarray | None) -> None:
    """Draws who speaks when, a row for each; with `edges` how much of each column that is."""
    rows = speaker_rows(segments)
    for row, (_, own) in enumerate(rows):
        starts, ends = (np.array([each[key] for each in own], float) for key in ("start", "end"))
        uncertain = np.array([bool(each["uncertain"]) for each in own], bool)
        bottom = np.full(1 if edges is None else len(edges) - 1, row + 0.1)
        for name, style, chosen in (("speech", SURE, ~uncertain), ("uncertain", UNSURE, uncertain)):
            if not chosen.any():
                continue
            if edges is None:
                panel.bar(starts[chosen], 0.8, (ends - starts)[chosen], row + 0.1, align="edge", **style, label=name)
                continue
            spans = joined(starts[chosen], ends[chosen])
            shares = np.array([overlaps(*spans, *each).sum() for each in itertools.pairwise(edges)]) / np.diff(edges)
            panel.bar(edges[:-1], 0.8 * shares, np.diff(edges), bottom, align="edge", **style, label=name)
            bottom = bottom + 0.8 * shares
    panel.set_ylim(0, len(rows))
    shown = [shortened(printable(name), 20) for name, _ in rows]
    panel.set_yticks(np.arange(len(rows)) + 0.5, shown, fontsize=8, parse_math=False)


def speaker_rows(segments: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The segments of each speaker, in the order in which they begin; of many the others together; else all."""
    by_speaker: dict[str, list[Mapping[str, Any]]] = {}
    for segment in segments:
        by_speaker.setdefault(segment.get("speaker") or "speech", []).append(segment)
    if len(by_speaker) > MOST_SPEAKERS:
        seconds = {name: sum(each["end"] - each["start"] for each in own) for name, own in by_speaker.items()}
        kept = sorted(by_speaker, key=lambda name: -seconds[name])[: MOST_SPEAKERS - 1]
        others = [segment for segment in segments if (segment.get("speaker") or "speech") not in kept]
        by_speaker = {name: own for name, own in by_speaker.items() if name in kept}
        by_speaker[f"{len(seconds) - len(kept)} others"] = others
    return list(reversed(by_speaker.items())) or [("speech", [])]


def step_of(seconds: float) -> float:
    """The length of the steps that a long recording is drawn in."""
    return next((step for step in STEPS if seconds <= MOST_WINDOWS * step), STEPS[-1])


def segment_columns(
    segments: Sequence[Mapping[str, Any]], names: Names, seconds: float, step: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Edges `(columns + 1,)` in seconds and values `(columns, values)`, NaN where nobody speaks.

    Without a `step` edges are where segments begin and end. The values of a column are the mean of the segments in it,
    weighted by time.
    """
    values = values_of(segments, names)
    starts, ends = (np.array([each[key] for each in segments], float) for key in ("start", "end"))
    edges = (
        np.unique([0.0, *starts, *ends, seconds]) if step is None else np.array([*np.arange(0, seconds, step), seconds])
    )
    means = np.full((len(edges) - 1, values.shape[1]), np.nan)
    for row, (low, high) in zip(means, itertools.pairwise(edges), strict=True):
        weights = overlaps(starts, ends, low, high)
        if weights.any():
            row[:] = weights @ values / weights.sum()
    return edges, means


def add_title(figure: Any, title: str) -> None:
    """Writes a recording's name above its picture; of a long one the end."""
    title = printable(title)
    short = title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}"
    figure.suptitle(short, x=0.01, ha="left", fontsize=10, parse_math=False)


def time_axis(panel: Any, seconds: float, remark: str = "") -> None:
    """Makes the x axis that of a recording of so many seconds, with a remark beside the unit."""
    tick = next((each for each in TICK_SECONDS if seconds <= MOST_TICKS * each), TICK_SECONDS[-1])
    unit = "seconds" if tick < 15 else "minutes:seconds" if seconds < 3600 else "hours:minutes"

    def clock(at: float, _: object) -> str:
        larger, smaller = divmod(round(at if unit == "minutes:seconds" else at / 60), 60)
        return f"{at:g}" if unit == "seconds" else f"{larger}:{smaller:02}"

    panel.set_xlim(0, seconds)
    panel.xaxis.set_major_locator(MultipleLocator(tick))
    panel.xaxis.set_major_formatter(clock)
    panel.set_xlabel(f"{unit} ({remark})" if remark else unit)


def draw_classes(panel: Any, edges: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> Any:
    """Draws probabilities `(columns, classes)`, NaN without speech, as colours, and the likeliest as a line."""
    classes, silent = len(class_names), np.isnan(probabilities[:, 0])
    drawn = panel.pcolormesh(edges, np.arange(classes + 1), probabilities.T, cmap="Blues", vmin=0, vmax=1)
    if not silent.all():
        likeliest = np.where(silent, -1, probabilities.argmax(axis=1))
        first = np.flatnonzero(np.diff(likeliest, prepend=-2))  # of neighbours that are equal: one line for them
        last = np.append(first[1:], len(likeliest))
        lines = np.stack([likeliest[first] + 0.5, edges[first], edges[last]])[:, likeliest[first] >= 0]
        # White around black is seen on every blue.
        outline = [patheffects.withStroke(linewidth=4, foreground="white")]
        style = {"color": "black", "linewidth": 1.8, "path_effects": outline}
        panel.hlines(*lines, **style, label="likeliest class")
    panel.set_ylim(0, classes)
    panel.set_yticks(np.arange(classes) + 0.5, class_names, parse_math=False)
    return drawn


def draw_lines(
    panel: Any,
    edges: np.ndarray,
    lines: Mapping[str, np.ndarray],
    scale: Sequence[float],
    colours: Mapping[str, str],
) -> None:
    """Draws values `(columns,)` on a scale, which they may leave, NaN where there is no speech, and its middle."""
    low, high = scale
    panel.axhline((low + high) / 2, color="black", linewidth=0.5)
    for width, (name, values) in zip(itertools.cycle(LINE_WIDTHS), lines.items(), strict=False):
        if not np.isnan(values).all():
            panel.stairs(values, edges, baseline=None, color=colours[name], linewidth=width, label=wrapped(name))
            low, high = min(low, np.nanmin(values)), max(high, np.nanmax(values))
    margin = 0.025 * (high - low)
    panel.set_ylim(low - margin, high + margin)


def window_columns(windows: Sequence[Mapping[str, Any]], names: Names) -> tuple[np.ndarray, np.ndarray]:
    """Edges `(columns + 1,)` in seconds and values `(columns, values)`, NaN without speech."""
    values = values_of(windows, names)
    edges = window_edges(*(np.array([window[key] for window in windows], float) for key in ("start", "end")))
    bounds = np.linspace(0, len(windows), min(len(windows), MOST_WINDOWS) + 1).round().astype(int)
    parts = np.split(np.ma.masked_invalid(values), bounds[1:-1])
    return edges[bounds], np.array([np.ma.mean(part, axis=0).filled(np.nan) for part in parts])
