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
from exhubert.utils.figures import DISTINCT_COLOURS, new_figure, save_figure, wrapped
from exhubert.utils.text import printable

MOST_WINDOWS = 200  # of more, means over some are drawn: lines that a reader can follow
TICK_SECONDS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
MOST_TICKS = 12
COLOURS = tuple(DISTINCT_COLOURS[number] for number in (5, 0, 2, 3, 1, 4))  # arousal's, valence's, those of others
NO_SPEECH = "#D0D0D0"
LONGEST_TITLE = 100


def plot_timeline(
    path: Path,
    title: str,
    windows: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    quadrant: Sequence[str] = (),
    dimensions: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Writes the picture of one recording.

    Above are the dimensions, those of one scale together, and arousal and valence of the classes; below the
    probabilities of the classes with a line at the likeliest. Each window stands around its middle, for as long as
    windows are apart. Of more than 200 windows the means over some are drawn, in 200 columns. Where there is no speech
    is grey.

    Args:
        path: the PNG file.
        title: of the picture; of a long one the end.
        windows: as the pipeline returns them, at least one; where there is no speech what they say is None.
        class_names: in class order; none of a model of dimensions alone.
        quadrant: arousal and valence, if the windows have them of their classes.
        dimensions: the scale of each, if the windows have them.

    Raises:
        OSError: if the file cannot be written.
    """
    dimensions = dimensions or {}
    edges, means = columns_of(windows, class_names, quadrant, list(dimensions))
    classes, silent, widths = len(class_names), np.isnan(means[:, 0]), np.diff(edges)
    columns = iter(means[:, classes:].T)
    of_classes = {name: next(columns) for name in quadrant}
    by_scale: dict[Sequence[float], dict[str, np.ndarray]] = {}  # dimensions by their scale
    for name, (low, high) in dimensions.items():
        by_scale.setdefault((low, high), {})[name] = next(columns)
    of_lines = [*by_scale.items(), *([((-1.0, 1.0), of_classes)] if quadrant else [])]
    heights = [2.0] * len(of_lines) + [0.33 * classes] * bool(classes)
    figure = new_figure(10, 1.4 + sum(heights))
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]

    if classes:
        drawn = draw_classes(panels[-1], edges, means[:, :classes], class_names)
        # Beside legends an axes of its own, which does not stand behind the widest of them.
        beside = {"cax": panels[-1].inset_axes((1.01, 0, 0.015, 1))} if dimensions else {"ax": panels[-1]}
        figure.colorbar(drawn, **beside, label="probability", fraction=0.05, pad=0.01)
    colours = dict(zip(dict.fromkeys([*QUADRANT, *dimensions]), itertools.cycle(COLOURS), strict=False))
    for panel, (scale, lines) in zip(panels, of_lines, strict=False):
        draw_lines(panel, edges, lines, scale, colours)
    for panel in panels if silent.any() else ():
        low, high = panel.get_ylim()
        panel.bar(edges[:-1][silent], high - low, widths[silent], low, align="edge", color=NO_SPEECH, label="no speech")
    shown = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    outside = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(shown), "frameon": False, "borderpad": 0}
    if not dimensions:
        panels[0].legend(shown.values(), shown.keys(), **outside)
    else:  # a legend for each, as lines of two may have one name
        for panel, (_, lines) in zip(panels, of_lines, strict=False):
            what = "of the classes" if lines is of_classes else "dimensions"
            panel.legend(title=what, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, alignment="left")
        if classes:
            panels[-1].legend(**outside)

    title = printable(title)
    short = title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}"
    figure.suptitle(short, x=0.01, ha="left", fontsize=10, parse_math=False)
    tick = next((seconds for seconds in TICK_SECONDS if edges[-1] <= MOST_TICKS * seconds), TICK_SECONDS[-1])
    unit = "seconds" if tick < 15 else "minutes:seconds" if edges[-1] < 3600 else "hours:minutes"

    def clock(seconds: float, _: object) -> str:
        larger, smaller = divmod(round(seconds if unit == "minutes:seconds" else seconds / 60), 60)
        return f"{seconds:g}" if unit == "seconds" else f"{larger}:{smaller:02}"

    panels[-1].set_xlim(0, edges[-1])
    panels[-1].xaxis.set_major_locator(MultipleLocator(tick))
    panels[-1].xaxis.set_major_formatter(clock)
    together = len(windows) / len(means)
    panels[-1].set_xlabel(unit if together == 1 else f"{unit} (each step is the mean of about {together:.0f} windows)")
    save_figure(figure, path)


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
    for name, values in lines.items():
        if not np.isnan(values).all():
            panel.stairs(values, edges, baseline=None, color=colours[name], linewidth=1.5, label=wrapped(name))
            low, high = min(low, np.nanmin(values)), max(high, np.nanmax(values))
    margin = 0.025 * (high - low)
    panel.set_ylim(low - margin, high + margin)


def columns_of(
    windows: Sequence[Mapping[str, Any]], class_names: Sequence[str], quadrant: Sequence[str], dimensions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Edges `(columns + 1,)` in seconds, values `(columns, classes + quadrant + dimensions)`, NaN without speech."""
    values = np.full((len(windows), len(class_names) + len(quadrant) + len(dimensions)), np.nan)
    for row, window in zip(values, windows, strict=True):
        if window["probabilities" if class_names else "dimensions"] is not None:
            row[:] = [
                *(window["probabilities"][name] for name in class_names),
                *(window[name] for name in quadrant),
                *(window["dimensions"][name] for name in dimensions),
            ]
    middles = np.array([(window["start"] + window["end"]) / 2 for window in windows])
    edges = np.array([windows[0]["start"], *(middles[:-1] + middles[1:]) / 2, windows[-1]["end"]])
    bounds = np.linspace(0, len(windows), min(len(windows), MOST_WINDOWS) + 1).round().astype(int)
    parts = np.split(np.ma.masked_invalid(values), bounds[1:-1])
    return edges[bounds], np.array([np.ma.mean(part, axis=0).filled(np.nan) for part in parts])
