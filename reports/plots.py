"""Pictures of results. Each function writes one to `path`, as PNG, and returns the figure. UARs are from 0 to 1."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter
from sklearn.metrics import confusion_matrix

from exhubert.reports.tables import AVERAGE, some, value_text
from exhubert.utils.figures import (
    DISTINCT_COLOURS,
    add_legend,
    curve_style,
    legend_width,
    line_style,
    new_figure,
    save_figure,
    wrapped,
)

MOST_PANELS = 9
TALLEST = 9.0  # inches; what is taller is set in up to three columns
DENSITY_BINS = 100  # along each axis, in which clips are counted
PLANE_CELLS = 8  # along each axis
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


def plot_curves(
    path: Path,
    uars: Mapping[str, Sequence[tuple[int, float]]],
    losses: Mapping[str, Sequence[tuple[int, float]]],
    chance: Mapping[str, float],
    chosen: int | None,
    title: str,
    cccs: Mapping[str, Sequence[tuple[int, float]]] = MappingProxyType({}),
) -> Figure:
    """Writes how one training went: the validation UAR and CCC of each corpus, those that there are, and the losses.

    Args:
        path: the PNG file.
        uars: corpus or `average` -> updates and UAR, from 0 to 1.
        losses: corpus, for its validation loss, or `training` -> updates and loss.
        chance: corpus -> UAR of guessing on its validation split.
        chosen: the update whose weights were kept, if it was chosen by its scores.
        title: of the picture.
        cccs: as `uars`, the mean CCC of the dimensions.
    """
    curves = list(dict.fromkeys([*uars, *cccs]))
    names = [*curves, "training loss", "chance, of each corpus", "chosen checkpoint"]
    shares = {"validation UAR in %": {name: [(step, 100 * uar) for step, uar in each] for name, each in uars.items()}}
    panels = {label: scores for label, scores in (shares | {"validation CCC": cccs}).items() if scores}
    figure = new_figure(5 + 5 * len(panels) + legend_width(names), 4.2, title)
    *scored, right = figure.subplots(1, len(panels) + 1, sharex=True)
    handles: dict[str, Any] = {}
    for number, name in enumerate(curves):
        style = curve_style(number, len(curves))
        if name == AVERAGE:
            style |= {"color": "black", "linestyle": "solid", "linewidth": 2.2, "zorder": 3}
        for axes, scores in zip(scored, panels.values(), strict=True):
            if name in scores:
                (handles[name],) = axes.plot(*np.transpose(scores[name]), **style)
        if name in losses:
            right.plot(*np.transpose(losses[name]), **style)
    if losses.get("training"):
        (handles["training loss"],) = right.plot(*np.transpose(losses["training"]), color=GREY, linewidth=1.2)
    for value in sorted(set(chance.values())) if uars else ():
        handles["chance, of each corpus"] = scored[0].axhline(
            100 * value, color="black", linestyle="dashed", linewidth=1
        )
    for axes, (label, scores) in zip(scored, panels.items(), strict=True):
        lowest = min(0.0, *(value for points in scores.values() for _, value in points))
        axes.set(ylabel=label, ylim=(0, 100) if scores is not cccs else (lowest, 1))
    for axes in (*scored, right):
        if chosen is not None:
            handles["chosen checkpoint"] = axes.axvline(chosen, color=VERMILION, linestyle="dotted", linewidth=1.5)
        axes.set_xlabel("updates")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    right.set_ylabel("loss, of training and validation")
    right.set_ylim(0, 1.05 * max((value for points in losses.values() for _, value in points), default=1.0))
    shown = [name for name in names if name in handles]
    add_legend(figure, [handles[name] for name in shown], shown)
    save_figure(figure, path)
    return figure


def plot_pretraining(path: Path, log_history: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Writes how a pre-training went: accuracy on masked and unmasked frames on the left, the losses on the right.

    Args:
        path: the PNG file.
        log_history: `Trainer`'s, with `loss`, `accuracy_masked` and `accuracy_unmasked`; of validation after `eval_`.
        title: of the picture.
    """
    figure = new_figure(12, 4.2, title)
    left, right = figure.subplots(1, 2, sharex=True)
    handles: dict[str, Any] = {}
    for prefix, part, line in (("", "training", "dotted"), ("eval_", "validation", "solid")):
        for which, axes, colour in (
            ("accuracy_masked", left, BLUE),
            ("accuracy_unmasked", left, VERMILION),
            ("loss", right, BLUE),
        ):
            points = [(entry["step"], entry[prefix + which]) for entry in log_history if prefix + which in entry]
            if points:
                steps, values = np.transpose(points)
                name = f"{which.replace('accuracy_', '')} frames, {part}" if axes is left else f"loss, {part}"
                (handles[name],) = axes.plot(steps, values * (100 if axes is left else 1), color=colour, linestyle=line)
    for axes, label in ((left, "frames predicted right, in %"), (right, "loss")):
        axes.set(xlabel="updates", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    add_legend(figure, list(handles.values()), list(handles))
    save_figure(figure, path)
    return figure


def plot_runs(
    path: Path,
    runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    chance: Mapping[str, float | None] | None = None,
) -> Figure:
    """Writes the validation UAR of several runs over updates, a line for each run (the form of the paper's Figure 3).

    Args:
        path: the PNG file.
        runs: name of the run -> corpus or `average` -> updates and UAR, from 0 to 1. Each corpus is a panel; of more
            than nine only the average is drawn, if it is there.
        chance: corpus or `average` -> UAR of guessing.
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
                (handles[run],) = axes.plot(steps, 100 * uars, **curve_style(number, len(runs)))
    for panel, axes in zip(panels, every, strict=False):
        guessed = (chance or {}).get(panel)
        if guessed is not None:
            handles["chance"] = axes.axhline(100 * guessed, color="black", linestyle="dashed", linewidth=1)
        axes.set_title(wrapped(panel, 60 if len(panels) == 1 else 36), fontsize=10)
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 100)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
        systems: display name -> corpus -> `uar` and `uar_interval`, from 0 to 1, and `clips`.
        chance: corpus -> UAR of guessing.
    """
    corpora = list(dict.fromkeys(corpus for scores in systems.values() for corpus in scores))
    known = [item for scores in systems.values() for item in scores.items() if "clips" in item[1]]
    clips = {corpus: f" ({scores['clips']:,} clips)" for corpus, scores in known}
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
        axes.set_yticks(
            range(len(shown)), [wrapped(f"{corpus}{clips.get(corpus, '')}") for corpus in shown], fontsize=9
        )
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


def plot_robustness(
    path: Path, systems: Mapping[str, Mapping[str, Mapping[str, Any]]], chance: float | None = None, title: str = ""
) -> Figure:
    """Writes the UAR of systems under conditions with 95 % intervals; clean and the noises are joined by a line.

    A point is hollow where its interval and that of the clean clips overlap: the difference may be chance.

    Args:
        path: the PNG file.
        systems: display name -> condition -> `uar` and `uar_interval`, from 0 to 1; names of noises end in "dB".
        chance: UAR of guessing.
        title: of the picture.
    """
    conditions = list(dict.fromkeys(condition for known in systems.values() for condition in known))
    hollow = "hollow: its interval overlaps the clean one"
    names = [*systems, "chance", hollow]
    figure = new_figure(1.0 * len(conditions) + 1 + legend_width(names), 4, title)
    axes = figure.add_subplot()
    for number, (name, known) in enumerate(systems.items()):
        shift = 0.5 * ((number + 0.5) / len(systems) - 0.5)  # so that no point hides another
        style, clean = line_style(number), known.get("clean", {}).get("uar_interval")
        for condition, scores in known.items():
            place, interval = conditions.index(condition) + shift, scores.get("uar_interval")
            if interval:
                axes.vlines(place, 100 * interval[0], 100 * interval[1], style["color"], linewidth=1.5)
            same = condition != "clean" and clean and interval and interval[1] >= clean[0] and interval[0] <= clean[1]
            fill = "white" if same else style["color"]
            axes.plot(place, 100 * scores["uar"], linestyle="", markersize=6, zorder=3, markerfacecolor=fill, **style)
        line = [condition for condition in known if condition == "clean" or re.search(r"\d dB$", condition)]
        values = [100 * known[condition]["uar"] for condition in line]
        axes.plot([conditions.index(each) + shift for each in line], values, linewidth=1.2, color=style["color"])
        axes.plot([], [], markersize=6, linewidth=1.2, label=name, **style)
    if chance is not None:
        axes.axhline(100 * chance, color="black", linestyle="dashed", linewidth=1, label="chance")
    axes.plot([], [], linestyle="", marker="o", color="black", markerfacecolor="white", label=hollow)
    axes.set_xticks(range(len(conditions)), [wrapped(condition, 12) for condition in conditions], fontsize=9)
    axes.set(xlim=(-0.5, len(conditions) - 0.5), ylim=(0, 100), ylabel="UAR in %, with 95 % interval")
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


def plot_dimensions(
    path: Path,
    panels: Mapping[str, np.ndarray],
    scales: Mapping[str, Sequence[float]],
    cccs: Mapping[str, float | None],
    title: str,
) -> Figure:
    """Writes predictions against references, a panel for each dimension, coloured by how dense the clips are.

    The dashed line is where predictions equal the references; the CCC stands above each panel.

    Args:
        path: the PNG file.
        panels: dimension -> `(clips, 2)`, reference and prediction of the clips that have both, on its scale.
        scales: dimension -> lowest and highest value of its scale; what is outside widens the axes.
        cccs: dimension -> CCC, or None where it is not defined.
        title: of the picture.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.6 * columns + 0.9, 3.7 * rows + 0.4, title)
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    shown = None
    for axes, (name, points) in zip(every, panels.items(), strict=False):
        low, high = limits(scales[name], points)
        axes.plot([low, high], [low, high], color="black", linestyle="dashed", linewidth=1, zorder=3)
        shown = _draw_density(axes, points, (low, high), (low, high))
        ccc = cccs[name]
        heading = f"{name}: CCC {'not defined' if ccc is None else value_text(ccc)}"
        axes.set_title(wrapped(heading, 36), fontsize=10)
        axes.set(xlabel="reference", ylabel="predicted")
    _add_density_bar(figure, shown, list(every))
    save_figure(figure, path)
    return figure


def plot_plane(
    path: Path, references: np.ndarray, predictions: np.ndarray, scales: Mapping[str, Sequence[float]], title: str
) -> Figure:
    """Writes references, predictions and how they differ over the plane of valence and arousal.

    The arrows of the third panel go from the mean reference of the clips of a cell to their mean prediction; cells are
    eighths of the scales, and those of a single clip have none where others have more.

    Args:
        path: the PNG file.
        references, predictions: `(clips, 2)`, valence and arousal, on their scales.
        scales: dimension -> lowest and highest value of its scale; what is outside widens the axes.
        title: of the picture.
    """
    across, up = (
        limits(scales[name], np.stack([references[:, number], predictions[:, number]]))
        for number, name in enumerate(("valence", "arousal"))
    )
    figure = new_figure(12.2, 4.5, title)
    every = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, points, heading in zip(every, (references, predictions), ("reference", "predicted"), strict=False):
        shown = _draw_density(axes, points, across, up)
        axes.set_title(heading, fontsize=10)
    middles = [np.mean(scales[name]) for name in ("valence", "arousal")]
    cells = [
        np.clip(np.floor(PLANE_CELLS * (references[:, n] - low) / (high - low)), 0, PLANE_CELLS - 1).astype(int)
        for n, (low, high) in enumerate(scales[name] for name in ("valence", "arousal"))
    ]
    _, cell, counts = np.unique(PLANE_CELLS * cells[0] + cells[1], return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), 4))
    np.add.at(means, cell, np.hstack([references, predictions]))
    means = (means / counts[:, None])[counts >= min(2, counts.max())]
    every[2].quiver(
        *means[:, :2].T,
        *(means[:, 2:] - means[:, :2]).T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=BLUE,
        width=0.006,
    )
    every[2].plot(*means[:, :2].T, "o", color=BLUE, markersize=3)
    every[2].set_title("from reference to prediction, mean of each cell", fontsize=10)
    for axes in every:
        axes.axvline(middles[0], color="black", linewidth=0.6, alpha=0.5, zorder=0)
        axes.axhline(middles[1], color="black", linewidth=0.6, alpha=0.5, zorder=0)
        axes.set(xlabel="valence", xlim=across, ylim=up)
        axes.set_box_aspect(1)
    every[0].set_ylabel("arousal")
    _add_density_bar(figure, shown, list(every))
    save_figure(figure, path)
    return figure


def limits(scale: Sequence[float], values: np.ndarray) -> tuple[float, float]:
    """A scale, widened for what is outside of it, with a margin."""
    low, high = min(scale[0], float(values.min())), max(scale[1], float(values.max()))
    margin = 0.02 * (high - low)
    return low - margin, high + margin


def _draw_density(axes: Axes, points: np.ndarray, across: tuple[float, float], up: tuple[float, float]) -> Any:
    """Points `(clips, 2)`, each coloured by how many are near it, beside the densest; the densest lie on top."""
    bins = [np.linspace(*ends, DENSITY_BINS + 1) for ends in (across, up)]
    counts, *edges = np.histogram2d(points[:, 0], points[:, 1], bins=bins)
    density = gaussian_filter(counts, sigma=DENSITY_BINS / 40, mode="constant")
    places = [
        np.clip(np.searchsorted(each, column, side="right") - 1, 0, DENSITY_BINS - 1)
        for each, column in zip(edges, points.T, strict=True)
    ]
    near = density[tuple(places)]
    order = near.argsort(kind="stable")
    size = float(np.clip(4000 / len(points), 5, 16))
    colours = near[order] / near.max()
    x, y = points[order].T
    shown = axes.scatter(x, y, c=colours, s=size, cmap="viridis", vmin=0, vmax=1, linewidths=0)
    axes.set(xlim=across, ylim=up)
    axes.set_box_aspect(1)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return shown


def _add_density_bar(figure: Figure, shown: Any, every: list[Axes]) -> None:
    figure.colorbar(shown, ax=every, label="density, of the densest", fraction=0.03, pad=0.02)


def _draw_cells(axes: Axes, shares: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Shares `(rows, columns)` as cells of blue, each with its text."""
    axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.7 else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=8)
