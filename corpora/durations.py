"""The picture of how long the clips of corpora are (PNG)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exhubert.utils.figures import DISTINCT_COLOURS, new_figure, save_figure


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
    figure = new_figure(9, 4.5)
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
    save_figure(figure, path)
