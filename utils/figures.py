"""What all pictures share: colours, an empty figure, legends, writing it."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from exhubert.utils.files import whole_file

# Okabe and Ito's, which colour-blind readers can tell apart; grey is the last.
DISTINCT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999")
LINE_COLOURS = tuple(colour for colour in DISTINCT_COLOURS if colour not in ("#F0E442", "#000000"))  # yellow is faint
MARKERS = "osD^vP"
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
HATCHES = ("", "///", "...", "\\\\\\", "xx", "---", "|||", "ooo", "+++")  # so that areas differ without colour, too
LEGEND_ROWS = 20


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of so many inches, at least 4 by 3.5; without pyplot, which keeps each and picks a screen."""
    figure = Figure(figsize=(max(4.0, width), max(3.5, height)), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(wrapped(title, int(11 * figure.get_figwidth())), fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all; what matplotlib's font lacks, as Chinese, are boxes in it."""
    with whole_file(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(unfinished, dpi=150, format="png")


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of a line or point: the first 42 differ."""
    return {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def curve_style(number: int, of: int) -> dict[str, Any]:
    """As `line_style`, for `of` lines that may hide each other: later ones are thinner and dashed, so both are seen."""
    width = min(3.6, 1.4 + 0.7 * (of - 1 - number))
    return {**line_style(number), "linestyle": DASHES[number % len(DASHES)], "linewidth": width, "markersize": 4}


def class_style(number: int) -> dict[str, Any]:
    """Colour and hatch of the area of a class, by its place: the first nine differ in both."""
    colour = DISTINCT_COLOURS[number % len(DISTINCT_COLOURS)]
    hatch_colour = "white" if colour == "#000000" else "black"
    hatch = HATCHES[number % len(HATCHES)]
    return {"facecolor": colour, "hatch": hatch, "hatchcolor": hatch_colour, "edgecolor": "black", "linewidth": 0.5}


def shortened(text: str, characters: int) -> str:
    """The beginning of a long name."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def wrapped(text: str, characters: int = 32) -> str:
    """A long name in several lines, as matplotlib prints it as it is."""
    return "\n".join(textwrap.wrap(text, characters)).replace("$", r"\$")


def legend_width(names: Sequence[str]) -> float:
    """How many inches a legend beside the axes takes."""
    longest = max((len(line) for name in names for line in wrapped(name).splitlines()), default=0)
    return math.ceil(len(names) / LEGEND_ROWS) * (0.5 + 0.07 * longest)


def add_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend beside the axes, where it hides nothing."""
    columns = math.ceil(len(names) / LEGEND_ROWS)
    figure.legend(handles, [wrapped(name) for name in names], fontsize=8, loc="outside right upper", ncols=columns)
