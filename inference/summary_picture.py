"""The picture of a summary: classes by part and over time, arousal, valence and dimensions over time, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from exhubert.inference.summary import MINUTE, Line, Names, lanes_of, part_name, uncertain_share
from exhubert.inference.timeline import add_title, time_axis
from exhubert.utils.figures import DASHES, LINE_COLOURS, class_style, new_figure, save_figure, shortened, wrapped
from exhubert.utils.text import printable

MOST_CLASSES = 9  # of more the rarer ones are drawn as one
MOST_PARTS = 16  # bars; of more those with the most speech
MOST_LANES = 8  # channels over time
MOST_LINES = 6  # of arousal and others in one panel
REST = {"facecolor": "#DDDDDD", "hatch": "", "edgecolor": "black", "linewidth": 0.5}
LABELLED = 0.07  # a part of a bar that is smaller has no number


def plot_summary(
    path: Path, title: str, whole: Sequence[Line], steps: Sequence[Line], names: Names, searched: bool
) -> None:
    """Writes the picture of a summary.

    Above, of a model with classes, a bar for each part (the recording, channels, speakers): the share of time of each
    class on the left, the mean probabilities on the right. Below for each channel, step by step, the shares of time
    again, as high as the share of speech is. Then arousal, valence, dimensions and what is uncertain, a line for each
    channel, or for each speaker where there is one channel.

    Args:
        path: the PNG file.
        title: of the picture.
        whole, steps: the summary's lines over all of the recording and over steps.
        names: what the model answers.
        searched: whether it is known where there is speech.

    Raises:
        OSError: if the file cannot be written.
    """
    parts, lanes = parts_shown(whole), lanes_of(whole)[:MOST_LANES]
    of_speakers = [line for line in parts if line.part == "speaker"] if len(lanes) == 1 else []
    lines = (of_speakers or lanes)[:MOST_LINES]
    kept = kept_classes(whole[0], names)
    drawn = drawn_values(names, searched)
    heights = [0.5 + 0.28 * len(parts), *[1.3] * len(lanes)] if kept else []
    heights += [1.3] * len(drawn)
    figure = new_figure(11, 1.2 + sum(heights) + 0.2 * len(heights))
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    legend: list[tuple[str, Any]] = []  # names and what is drawn; a speaker may be called as a class is
    if kept:
        draw_bars([figure.add_subplot(grid[0, side]) for side in (0, 1)], parts, kept, names)
        shown = [*(names.classes[number] for number in kept), f"{len(names.classes) - len(kept)} other classes"]
        styles = [style for _, style in classes_of(whole[0].shares[None], kept)]
        legend = [(name, Patch(**style)) for name, style in zip(shown, styles, strict=False)]
        if (more := len([line for line in whole if line.counted == "all"]) - len(parts)) > 0:
            figure.axes[0].set_xlabel(f"{more} more are in the table", fontsize=8)
    panels: list[Any] = []
    for row in range(bool(kept), len(heights)):
        panels.append(figure.add_subplot(grid[row, :], sharex=panels[0] if panels else None))
        panels[-1].tick_params(labelbottom=row + 1 == len(heights))
    for panel, lane in zip(panels, lanes if kept else (), strict=False):
        draw_lane(panel, steps_of(steps, lane), kept)
        panel.set_ylabel(f"{part_name(lane)}\n% of time" if len(lanes) > 1 else "% of time", fontsize=9)
    of_lines: dict[str, Any] = {}
    for panel, (name, value, scale) in zip(panels[-len(drawn) :], drawn, strict=True):
        of_lines |= draw_values(panel, {part_name(line): steps_of(steps, line) for line in lines}, value, scale)
        panel.set_ylabel(name, fontsize=9, parse_math=False)
    legend += of_lines.items() if len(lines) > 1 else []
    if legend:
        labels = [wrapped(shortened(printable(name), 60), 28) for name, _ in legend]
        figure.legend([drawing for _, drawing in legend], labels, loc="outside right upper", fontsize=8)
    add_title(figure, title)
    step = round((steps[0].end - steps[0].start) / MINUTE)
    time_axis(panels[-1], whole[0].end, f"in steps of {step} minutes" if step > 1 else "")
    save_figure(figure, path)


def drawn_values(names: Names, searched: bool) -> list[tuple[str, Callable[[Line], float], Sequence[float]]]:
    """What has a panel over time: its name, how a line is asked for it, its scale."""
    values: list[tuple[str, Sequence[float]]] = [(name, (-1.0, 1.0)) for name in names.quadrant]
    for name, (low, high) in names.dimensions.items():  # one may be called as one of the classes' is
        values.append((f"{shortened(printable(name), 18)}\n[{low:g}, {high:g}]", (low, high)))
    drawn: list[tuple[str, Callable[[Line], float], Sequence[float]]] = [
        (name, lambda line, place=place: line.means[place], scale)  # type: ignore[misc]
        for place, (name, scale) in enumerate(values, len(names.classes))
    ]
    of = "speech" if searched else "time"
    return [*drawn, (f"uncertain,\n% of {of}", lambda line: 100 * uncertain_share(line), (0.0, 100.0))]


def parts_shown(whole: Sequence[Line]) -> list[Line]:
    """What has a bar: the recording, its channels, the speakers who speak most."""
    every = [line for line in whole if line.counted == "all"]
    speakers = sorted((line for line in every if line.part == "speaker"), key=lambda line: -line.speech)
    return [*(line for line in every if line.part != "speaker"), *speakers][:MOST_PARTS]


def kept_classes(whole: Line, names: Names) -> list[int]:
    """The places of the classes that are drawn: all, or the most frequent of many."""
    classes = len(names.classes)
    if classes <= MOST_CLASSES or not whole.pieces:
        return list(range(min(classes, MOST_CLASSES)))
    return sorted(np.argsort(-whole.shares, kind="stable")[: MOST_CLASSES - 1].tolist())


def steps_of(steps: Sequence[Line], part: Line) -> list[Line]:
    """The lines of the same part, step by step."""
    return [line for line in steps if line[:3] == part[:3] and line.counted == part.counted]


def draw_bars(panels: Sequence[Any], parts: Sequence[Line], kept: Sequence[int], names: Names) -> None:
    """Draws two stacked bars for each part, beside each other, with their numbers in %."""
    calibrated = "calibrated" if names.calibrated else "not calibrated"
    values = {
        "Share of time with each class, in %": [line.shares for line in parts],
        f"Mean probability ({calibrated}), in %": [line.means[: len(names.classes)] for line in parts],
    }
    for panel, (title, rows) in zip(panels, values.items(), strict=True):
        left = np.zeros(len(parts))
        for widths, style in classes_of(np.nan_to_num(np.array(rows)), kept):
            panel.barh(range(len(parts)), widths, 0.75, left, **style)
            for row in np.flatnonzero(widths >= LABELLED):
                text = f"{100 * widths[row]:.0f}"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
                panel.text(left[row] + widths[row] / 2, row, text, ha="center", va="center", fontsize=8, bbox=box)
            left += widths
        panel.set_xlim(0, 1)
        panel.set_ylim(len(parts) - 0.5, -0.5)
        panel.set_xticks([])
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_yticks(
            range(len(parts)),
            [shortened(printable(part_name(line)), 24) for line in parts],
            fontsize=8,
            parse_math=False,
        )
    panels[1].set_yticks([])


def draw_lane(panel: Any, steps: Sequence[Line], kept: Sequence[int]) -> None:
    """Draws the shares of classes step by step, stacked as high as there is speech."""
    edges = np.array([*(line.start for line in steps), steps[-1].end])
    speech = np.array([line.speech for line in steps]) / np.diff(edges)
    shares = 100 * speech[:, None] * np.nan_to_num(np.array([line.shares for line in steps]))
    bottom = np.zeros(len(steps))
    for heights, style in classes_of(shares, kept):
        panel.bar(edges[:-1], heights, np.diff(edges), bottom, align="edge", **style)
        bottom += heights
    panel.set_ylim(0, 100)
    if not speech.any():
        say_no_speech(panel)


def classes_of(values: np.ndarray, kept: Sequence[int]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yields the columns of `(rows, classes)` that are drawn, each with its style; last the sum of the others."""
    some = len(kept) < values.shape[1]
    for place, number in enumerate(kept):
        yield values[:, number], class_style(place if some else number)
    if some:
        yield np.delete(values, kept, axis=1).sum(axis=1), REST


def draw_values(
    panel: Any, parts: Mapping[str, Sequence[Line]], value: Callable[[Line], float], scale: Sequence[float]
) -> dict[str, Any]:
    """Draws one value of each part, step by step, with the middle of its scale; returns what the legend needs."""
    low, high = scale
    handles = {}
    panel.axhline((low + high) / 2, color="black", linewidth=0.5)
    for number, (name, steps) in enumerate(parts.items()):
        values = np.array([value(line) for line in steps])
        if not np.isnan(values).all():
            edges = [*(line.start for line in steps), steps[-1].end]
            style = {"color": LINE_COLOURS[number], "linestyle": DASHES[number % len(DASHES)]}
            drawn = panel.stairs(values, edges, baseline=None, linewidth=1.8, **style)
            handles[name] = drawn
            low, high = min(low, np.nanmin(values)), max(high, np.nanmax(values))
    margin = 0.025 * (high - low)
    panel.set_ylim(low - margin, high + margin)
    if not handles:
        say_no_speech(panel)
    return handles


def say_no_speech(panel: Any) -> None:
    panel.text(
        0.5, 0.5, "no speech", transform=panel.transAxes, ha="center", va="center", fontsize=9, backgroundcolor="w"
    )
