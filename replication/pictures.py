"""Pictures of the replication. Each function writes one to `path`, as PNG. UARs are from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from exhubert.reports.tables import AVERAGE
from exhubert.utils.figures import add_legend, curve_style, legend_width, new_figure, save_figure, wrapped

Curve = Sequence[tuple[int, float]]


def plot_bands(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[Curve]]], chance: Mapping[str, float], title: str = ""
) -> None:
    """Writes validation UAR over updates: lines are means over seeds, bands reach from the lowest seed to the highest.

    Args:
        path: the PNG file.
        panels: name of the panel -> of the line -> a curve for each seed.
        chance: name of the panel -> UAR of guessing.
        title: of the picture.
    """
    lines = list(dict.fromkeys(line for curves in panels.values() for line in curves))
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.8 * columns + legend_width([*lines, "chance"]), 3.0 * rows, title)
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    handles = {}
    for axes, (panel, curves) in zip(every, panels.items(), strict=False):
        for number, line in enumerate(lines):
            seeds = [dict(curve) for curve in curves.get(line, ())]
            steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
            if not steps:
                continue
            values = 100 * np.array([[seed[step] for step in steps] for seed in seeds])
            style = curve_style(number, len(lines)) | {"linewidth": 1.6}
            if line == AVERAGE:
                style |= {"color": "black", "linewidth": 2.2, "zorder": 3}
            (handles[line],) = axes.plot(steps, values.mean(axis=0), **style)
            axes.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.12, linewidth=0
            )
        handles["chance"] = axes.axhline(100 * chance[panel], color="black", linestyle="dashed", linewidth=1)
        axes.set_title(wrapped(panel, 40), fontsize=10)
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("updates", fontsize=10)
    figure.supylabel("validation UAR in %", fontsize=10)
    shown = [name for name in (*lines, "chance") if name in handles]
    add_legend(figure, [handles[name] for name in shown], shown)
    save_figure(figure, path)
