"""Pictures of results (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix


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


def _figure(width: float, height: float) -> Figure:
    # Without pyplot, which keeps every figure and picks a screen backend.
    figure = Figure(figsize=(max(4.0, width), max(3.5, height)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    figure.savefig(unfinished, dpi=150, format="png")
    unfinished.replace(path)
