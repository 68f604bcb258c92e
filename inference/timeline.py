"""Arousal, valence and class over the time of a recording, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.ticker import MultipleLocator

from exhubert.utils.figures import DISTINCT_COLOURS, new_figure, save_figure
from exhubert.utils.text import printable

MOST_WINDOWS = 200  # of more, means over some are drawn: lines that a reader can follow
TICK_SECONDS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
MOST_TICKS = 12
COLOURS = (DISTINCT_COLOURS[5], DISTINCT_COLOURS[0])
NO_SPEECH = "#D0D0D0"
LONGEST_TITLE = 100


def plot_timeline(
    path: Path,
    title: str,
    windows: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    quadrant: Sequence[str] = (),
) -> None:
    """Writes the picture of one recording.

    Above are arousal and valence, below the probabilities of the classes with a line at the likeliest. Each window
    stands around its middle, for as long as windows are apart. Of more than 200 windows the means over some are
    drawn, in 200 columns. Where there is no speech is grey.

    Args:
        path: the PNG file.
        title: of the picture; of a long one the end.
        windows: as the pipeline returns them, at least one; `label` is None where there is no speech.
        class_names: in class order.
        quadrant: arousal and valence, if the windows have them.

    Raises:
        OSError: if the file cannot be written.
    """
    edges, means = columns_of(windows, class_names, quadrant)
    classes, silent, widths = len(class_names), np.isnan(means[:, 0]), np.diff(edges)
    heights = [2.0] * bool(quadrant) + [0.33 * classes]
    figure = new_figure(10, 1.4 + sum(heights))
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]

    drawn = panels[-1].pcolormesh(edges, np.arange(classes + 1), means[:, :classes].T, cmap="Blues", vmin=0, vmax=1)
    if not silent.all():
        likeliest = np.where(silent, -1, means[:, :classes].argmax(axis=1))
        first = np.flatnonzero(np.diff(likeliest, prepend=-2))  # of neighbours that are equal: one line for them
        last = np.append(first[1:], len(likeliest))
        lines = np.stack([likeliest[first] + 0.5, edges[first], edges[last]])[:, likeliest[first] >= 0]
        # White around black is seen on every blue.
        outline = [patheffects.withStroke(linewidth=4, foreground="white")]
        style = {"color": "black", "linewidth": 1.8, "path_effects": outline}
        panels[-1].hlines(*lines, **style, label="likeliest class")
        for number, (name, colour) in enumerate(zip(quadrant, COLOURS, strict=False), start=classes):
            panels[0].stairs(means[:, number], edges, baseline=None, color=colour, linewidth=1.5, label=name)
    panels[-1].set_ylim(0, classes)
    panels[-1].set_yticks(np.arange(classes) + 0.5, class_names, parse_math=False)
    figure.colorbar(drawn, ax=panels[-1], label="probability", fraction=0.05, pad=0.01)
    if quadrant:
        panels[0].set_ylim(-1.05, 1.05)
        panels[0].axhline(0, color="black", linewidth=0.5)
    for panel in panels if silent.any() else ():
        low, high = panel.get_ylim()
        panel.bar(edges[:-1][silent], high - low, widths[silent], low, align="edge", color=NO_SPEECH, label="no speech")
    shown = {name: line for panel in panels for line, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    outside = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": len(shown)}
    panels[0].legend(shown.values(), shown.keys(), **outside, frameon=False, borderpad=0)

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


def columns_of(
    windows: Sequence[Mapping[str, Any]], class_names: Sequence[str], quadrant: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Edges `(columns + 1,)` in seconds, and values `(columns, classes + quadrant)`, NaN where there is no speech."""
    values = np.full((len(windows), len(class_names) + len(quadrant)), np.nan)
    for row, window in zip(values, windows, strict=True):
        if window["label"] is not None:
            row[:] = [window["probabilities"][name] for name in class_names] + [window[name] for name in quadrant]
    middles = np.array([(window["start"] + window["end"]) / 2 for window in windows])
    edges = np.array([windows[0]["start"], *(middles[:-1] + middles[1:]) / 2, windows[-1]["end"]])
    bounds = np.linspace(0, len(windows), min(len(windows), MOST_WINDOWS) + 1).round().astype(int)
    parts = np.split(np.ma.masked_invalid(values), bounds[1:-1])
    return edges[bounds], np.array([np.ma.mean(part, axis=0).filled(np.nan) for part in parts])
