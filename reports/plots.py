"""Pictures of results (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

# Okabe and Ito's, which colour-blind readers can tell apart; grey is the last.
DISTINCT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999")


def plot_confusion(
    path: Path, references: Sequence[int], predictions: Sequence[int], class_names: Sequence[str], title: str
) -> None:
    """Writes a confusion matrix: rows are the references' classes, in % of the row; counts below."""
    present = sorted({*references, *predictions})
    shares = confusion_matrix(references, predictions, labels=present, normalize="true")
    counts = confusion_matrix(references, predictions, labels=present)
    figure = _figure(1.2 + 0.9 * len(present), 1.0 + 0.8 * len(present))
    axes = figure.add_subplot()
    names = [class_names[index] for index in present]
    display = ConfusionMatrixDisplay(100 * shares, display_labels=names)
    display.plot(ax=axes, include_values=False, cmap="Blues", colorbar=False, xticks_rotation=45)
    display.im_.set_clim(0, 100)
    for row in range(len(present)):
        for column in range(len(present)):
            text = f"{100 * shares[row, column]:.0f} %\n{counts[row, column]}"
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("reference")
    axes.set_title(title)
    _save(figure, path)


def plot_curves(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Writes validation UAR over updates (the form of the paper's Figure 3); `average` is drawn in black."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        style = {"color": "black", "linewidth": 2.5} if name == "average" else {"linewidth": 1.5}
        axes.plot([step for step, _ in points], [100 * uar for _, uar in points], marker="o", label=name, **style)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation UAR in %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    _save(figure, path)


def plot_durations(
    path: Path, durations: Mapping[str, Sequence[float]], longest_seconds: float = 6.0, bin_seconds: float = 0.25
) -> None:
    """Writes a histogram of clip durations, stacked by corpus (the form of the paper's Figure 1).

    Args:
        path: the PNG file.
        durations: of each corpus, the durations of its clips in seconds, NaN where unknown; of more than nine
            corpora the smaller ones are drawn as one.
        longest_seconds: the last bar, set apart, has everything from here on, and its number on top; where it is
            much the highest it is cut off.
        bin_seconds: width of the other bars.
    """
    known = {name: np.asarray(seconds, dtype=float) for name, seconds in durations.items()}
    known = {name: seconds[np.isfinite(seconds)] for name, seconds in known.items()}
    parts = sorted(known.items(), key=lambda part: -len(part[1]))
    if len(parts) > len(DISTINCT_COLOURS):
        rest = parts[len(DISTINCT_COLOURS) - 1 :]
        together = np.concatenate([seconds for _, seconds in rest])
        parts = [*parts[: -len(rest)], (f"{len(rest)} other corpora", together)]
    edges = np.linspace(0.0, longest_seconds, round(longest_seconds / bin_seconds) + 1)
    starts = np.append(edges[:-1], longest_seconds + 2 * bin_seconds)
    figure = _figure(9, 4.5)
    axes = figure.add_subplot()
    heights = np.zeros(len(starts))
    for (name, seconds), colour in zip(parts, DISTINCT_COLOURS, strict=False):
        within = seconds < longest_seconds
        counts = np.append(np.histogram(seconds[within], edges)[0], np.count_nonzero(~within))
        label = f"{name} ({len(seconds):,})"
        axes.bar(starts, counts, bin_seconds, heights, align="edge", color=colour, label=label)
        heights += counts
    top = 1.1 * max(1.0, min(heights.max(), 1.5 * heights[:-1].max() or heights.max()))
    middle, longer = starts[-1] + bin_seconds / 2, int(heights[-1])
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    number = f"{longer:,}" if longer < top else f"{longer:,} ↑"
    axes.text(middle, min(longer, 0.94 * top) + 0.01 * top, number, ha="center", va="bottom", fontsize=8, bbox=box)
    axes.set_xlim(0, starts[-1] + 2 * bin_seconds)
    axes.set_ylim(0, top)
    whole = np.arange(0, longest_seconds + 1e-9)
    axes.set_xticks([*whole, middle], [*(f"{second:g}" for second in whole), f"{longest_seconds:g} or\nmore"])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    every = np.concatenate([np.zeros(0), *known.values()])
    names = next(iter(known)) if len(known) == 1 else f"{len(known)} corpora"
    longest = f", the longest {every.max():.1f} s" if len(every) else ""
    axes.set_title(f"Durations in {names}: {len(every):,} clips, {every.sum() / 3600:,.1f} hours{longest}", fontsize=10)
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"clips in each {bin_seconds:g} s")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(known) > 1:  # in the order in which they are stacked
        figure.legend(title="corpus (clips)", fontsize=8, loc="outside right upper", reverse=True)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot, which keeps every figure and picks a screen backend.
    figure = Figure(figsize=(max(4.0, width), max(3.5, height)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, dpi=150, format="png")
    unfinished.replace(path)
