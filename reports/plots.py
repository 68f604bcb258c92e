"""Pictures of results. Each function writes one to `path`, as PNG, and returns the figure. UARs are from 0 to 1."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from sklearn.metrics import confusion_matrix

from exhubert.reports.tables import AVERAGE, some
from exhubert.utils.figures import (
    DISTINCT_COLOURS,
    add_legend,
    legend_width,
    line_style,
    new_figure,
    save_figure,
    wrapped,
)

MOST_PANELS = 9
TALLEST = 9.0  # inches; what is taller is set in up to three columns
BLUE, VERMILION, GREY = DISTINCT_COLOURS[0], DISTINCT_COLOURS[5], DISTINCT_COLOURS[-1]


def plot_confusion(
    path: Path, references: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], title: str
) -> Figure:
    """Writes a confusion matrix: rows are the references' classes, in % of the row; counts below."""
    present = sorted({*references, *predictions})
    counts = confusion_matrix(references, predictions, labels=range(len(class_names)))[np.ix_(present, present)]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = new_figure(1.2 + 0.9 * len(present), 1.0 + 0.8 * len(present), title)
    axes = figure.add_subplot()
    names = [class_names[index] for index in present]
    rows = zip(shares, counts, strict=True)
    texts = [[f"{100 * share:.0f} %\n{count}" for share, count in zip(*row, strict=True)] for row in rows]
    _draw_cells(axes, shares, texts)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="reference")
    save_figure(figure, path)
    return figure


def plot_runs(path: Path, runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Writes the validation UAR of several runs over updates, a line for each run (the form of the paper's Figure 3).

    Args:
        runs: name of the run -> corpus or `average` -> updates and UAR, from 0 to 1. Each corpus is a panel; of more
            than nine only the average is drawn, if it is there. A run with the name `average` is drawn in black.
    """
    panels = sorted({name: None for curves in runs.values() for name in curves}, key=lambda name: name == AVERAGE)
    if len(panels) > MOST_PANELS and AVERAGE in panels:
        panels = [AVERAGE]
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = (6.0, 4.0) if len(panels) == 1 else (3.4 * columns, 2.6 * rows)
    figure = new_figure(width + legend_width(list(runs)), height)
    every = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    handles = {}
    for number, (run, curves) in enumerate(runs.items()):
        for panel, axes in zip(panels, every, strict=False):
            if panel in curves:
                steps, uars = np.transpose(curves[panel])
                style = {"color": "black", "marker": "o", "linewidth": 2.5} if run == AVERAGE else line_style(number)
                (handles[run],) = axes.plot(steps, 100 * uars, markersize=4, **style)
    for panel, axes in zip(panels, every, strict=False):
        axes.set_title(wrapped(panel, 60 if len(panels) == 1 else 36), fontsize=10)
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("updates", fontsize=10)
    figure.supylabel("validation UAR in %", fontsize=10)
    add_legend(figure, list(handles.values()), list(handles))
    save_figure(figure, path)
    return figure


def plot_uars(
    path: Path, systems: Mapping[str, Mapping[str, Mapping[str, Any]]], chance: Mapping[str, float | None]
) -> Figure:
    """Writes the UAR of systems on corpora as points with their 95 % intervals, and chance as a line.

    Args:
        systems: display name -> corpus -> `uar` and `uar_interval`, from 0 to 1.
        chance: corpus -> UAR of guessing.
    """
    corpora = list(dict.fromkeys(corpus for scores in systems.values() for corpus in scores))
    row_height = max(0.4, 0.14 * len(systems) + 0.12)
    columns = min(3, math.ceil(len(corpora) * row_height / TALLEST))
    rows = math.ceil(len(corpora) / columns)
    names = ["chance", *systems]
    figure = new_figure(5 * columns + legend_width(names), rows * row_height + 0.8)
    every = figure.subplots(1, columns, squeeze=False, sharex=True).flatten()
    step = 0.8 / len(systems)
    handles: dict[str, Any] = {}
    for place, corpus in enumerate(corpora):
        axes, row = every[place // rows], place % rows
        axes.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04 if row % 2 else 0.0, linewidth=0)
        guessed = chance.get(corpus)
        if guessed is not None:
            handles["chance"] = axes.vlines(100 * guessed, row - 0.45, row + 0.45, "black", "dashed", linewidth=1)
        for number, (name, scores) in enumerate(systems.items()):
            if scores.get(corpus, {}).get("uar") is None:
                continue
            y, style = row - 0.4 + (number + 0.5) * step, line_style(number)
            interval = scores[corpus].get("uar_interval")
            if interval:
                axes.hlines(y, 100 * interval[0], 100 * interval[1], style["color"], linewidth=1.5)
            (handles[name],) = axes.plot(100 * scores[corpus]["uar"], y, linestyle="", markersize=5, **style)
    for number, axes in enumerate(every):
        shown = corpora[number * rows : (number + 1) * rows]
        axes.set_yticks(range(len(shown)), [wrapped(corpus) for corpus in shown], fontsize=9)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.supxlabel("UAR in %, with 95 % interval", fontsize=10)
    shown = [name for name in names if name in handles]
    add_legend(figure, [handles[name] for name in shown], shown)
    save_figure(figure, path)
    return figure


def plot_heat_map(
    path: Path, uars: Mapping[str, Mapping[str, float]], trained_on: Mapping[str, Collection[str]]
) -> Figure:
    """Writes the UAR in % of runs (rows) on test corpora (columns); a frame is where the run has trained on the corpus.

    Args:
        uars: name of the run -> test corpus -> UAR, from 0 to 1.
        trained_on: name of the run -> its training corpora, where they are known.
    """
    corpora = list(dict.fromkeys(corpus for known in uars.values() for corpus in known))
    values = np.array([[known.get(corpus) for corpus in corpora] for known in uars.values()], dtype=float)
    labels = []
    for name in uars:
        training = some(list(trained_on[name]), 2) if name in trained_on else "unknown corpora"
        labels.append(f"{wrapped(name, 40)}\n{wrapped(f'trained on {training}', 40)}")
    tests = [wrapped(corpus) for corpus in corpora]
    row_height = 0.2 + 0.16 * max(label.count("\n") + 1 for label in labels)
    beside, below = (max(map(len, "\n".join(names).splitlines())) for names in (labels, tests))
    figure = new_figure(0.5 * len(corpora) + 0.075 * beside + 0.4, row_height * len(uars) + 0.075 * below + 0.9)
    axes = figure.add_subplot()
    _draw_cells(axes, values, [["-" if np.isnan(uar) else f"{100 * uar:.1f}" for uar in row] for row in values])
    for row, name in enumerate(uars):
        for column in [column for column, corpus in enumerate(corpora) if corpus in trained_on.get(name, ())]:
            corner = (column - 0.46, row - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=VERMILION, linewidth=1.8))
    axes.set_xticks(range(len(corpora)), tests, rotation=90, fontsize=9)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlabel("UAR in % on each test corpus")
    frame = Patch(fill=False, edgecolor=VERMILION, linewidth=1.8, label="the run was trained on this corpus")
    figure.legend(handles=[frame], loc="outside upper left", fontsize=8)
    save_figure(figure, path)
    return figure


def plot_robustness(path: Path, uars: Mapping[str, Mapping[str, float]], chance: float | None = None) -> Figure:
    """Writes the UAR of systems under conditions: from clean through the noises as a line, the others as points.

    Args:
        uars: display name -> condition -> UAR, from 0 to 1; names of noises end in "dB".
        chance: UAR of guessing.
    """
    conditions = list(dict.fromkeys(condition for known in uars.values() for condition in known))
    names = [*uars, "chance"]
    figure = new_figure(1.0 * len(conditions) + 1 + legend_width(names), 4)
    axes = figure.add_subplot()
    for number, (name, known) in enumerate(uars.items()):
        shift = 0.5 * ((number + 0.5) / len(uars) - 0.5)  # so that no point hides another
        on_line = [condition for condition in known if condition == "clean" or re.search(r"\d dB$", condition)]
        for part, style in ((on_line, "-"), ([condition for condition in known if condition not in on_line], "")):
            places = [conditions.index(condition) + shift for condition in part]
            label = name if style else None
            values = [100 * known[condition] for condition in part]
            axes.plot(places, values, linestyle=style, markersize=5, linewidth=1.2, label=label, **line_style(number))
    if chance is not None:
        axes.axhline(100 * chance, color="black", linestyle="dashed", linewidth=1, label="chance")
    axes.set_xticks(range(len(conditions)), [wrapped(condition, 12) for condition in conditions], fontsize=9)
    axes.set(xlim=(-0.5, len(conditions) - 0.5), ylabel="UAR in %, average over corpora")
    axes.grid(axis="y", alpha=0.3)
    add_legend(figure, *axes.get_legend_handles_labels())
    save_figure(figure, path)
    return figure


def plot_reliability(path: Path, panels: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Figure:
    """Writes how often predictions of each confidence are right, and how many clips have it; ECE in the title.

    `panels` has, by a name, bins as `evaluation.calibration.reliability` makes them.
    """
    figure = new_figure(4.2 * len(panels), 5.2, title)
    every = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
    for (name, panel), (upper, lower) in zip(panels.items(), every.T, strict=True):
        accuracy, confidence, low, high = (
            100 * np.array([each[key] for each in panel]) for key in ("accuracy", "confidence", "low", "high")
        )
        clips = np.array([each["clips"] for each in panel])
        error = float(np.abs(accuracy - confidence) @ clips / clips.sum())
        upper.bar(low, accuracy, high - low, align="edge", color=BLUE, edgecolor="white", label="accuracy")
        upper.plot(confidence, confidence, "_", color=VERMILION, markersize=9, markeredgewidth=2.5, label="confidence")
        upper.plot([0, 100], [0, 100], color=GREY, linestyle="dashed", label="calibrated")
        upper.set_title(f"{name}{': ' if name else ''}ECE {error:.1f} %", fontsize=10)
        lower.bar(low, clips, high - low, align="edge", color=GREY, edgecolor="white")
        lower.set_xlabel("confidence in %")
    every[0, 0].set(ylabel="accuracy in %", xlim=(0, 100), ylim=(0, 100))
    figure.legend(*every[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    every[1, 0].set_ylabel("clips")
    save_figure(figure, path)
    return figure


def _draw_cells(axes: Axes, shares: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Shares `(rows, columns)` as cells of blue, each with its text."""
    axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.7 else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)
