"""Tables and pictures of what speed.py measured."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exhubert.benchmarks.contestants import Load
from exhubert.utils.figures import curve_style, new_figure, save_figure
from exhubert.utils.files import write_text
from exhubert.utils.text import markdown_table

Row = Mapping[str, Any]
# Of a load, what is shown: its key, and what it is called.
LOADS = {"batch": "clips", "seconds": "of seconds", "files": "files", "originals": "originals", "copies": "copies each"}
STANDARD = asdict(Load())
PICTURE = "speed.png"


def write_report(directory: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Writes `speed.json`, `speed.md` and `speed.png`; returns the markdown.

    Args:
        directory: of the report.
        facts: on the machine and the run.
        rows: what was found, one for each contestant and load, as `speed.row` makes them.
    """
    write_text(directory / "speed.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    text = "# Speed\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()) + "\n"
    for title in dict.fromkeys(row["table"] for row in rows):
        of_table = [row for row in rows if row["table"] == title]
        text += f"\n## {title[0].upper()}{title[1:]}\n\n{table(of_table)}\n"
        best = [row["best_flops_per_second"] for row in of_table if "best_flops_per_second" in row]
        if best:
            text += f"\nProducts of 2048 cubed, in the same run: {max(best) / 1e9:,.0f} GFLOP/s.\n"
    if plot(directory / PICTURE, rows):
        text += f"\n![time against what it depends on]({PICTURE})\n"
    write_text(directory / "speed.md", text)
    return text


def table(rows: Sequence[Row]) -> str:
    """Markdown of one table; columns that no row fills are left out."""
    varied = [key for key in LOADS if len({row["load"][key] for row in rows} | {STANDARD[key]}) > 1]
    columns: dict[str, list[str]] = {"": [row["name"] for row in rows]}
    for key in varied:
        columns[LOADS[key]] = ["" if row["load"][key] is None else f"{row['load'][key]:g}" for row in rows]
    columns["seconds"] = [f"{row['seconds']:.3f}" if "seconds" in row else row["missing"] for row in rows]
    columns["lowest to highest"] = [
        f"{min(row['turns']):.3f} to {max(row['turns']):.3f}" if len(row.get("turns", ())) > 1 else "" for row in rows
    ]
    columns["GFLOP"] = filled(rows, "flops", lambda value, _: f"{value / 1e9:,.1f}")
    columns["GFLOP/s"] = filled(rows, "flops", lambda value, row: f"{value / row['seconds'] / 1e9:,.0f}")
    columns["x floor"] = filled(rows, "times_floor", lambda value, _: f"{value:.2f}")
    columns["x plain path's speed"] = filled(rows, "times_plain", lambda value, _: f"{value:.2f}")
    columns["windows a second"] = filled(rows, "windows", lambda value, row: f"{value / row['seconds']:,.1f}")
    columns["peak memory"] = filled(rows, "peak_bytes", lambda value, _: f"{value / 2**30:.2f} GiB")
    columns["peak on the GPU"] = filled(rows, "gpu_bytes", lambda value, _: f"{value / 2**30:.2f} GiB")
    kept = {name: cells for name, cells in columns.items() if not name or any(cells)}
    return markdown_table([*kept], [*zip(*kept.values(), strict=True)])


def filled(rows: Sequence[Row], key: str, cell: Any) -> list[str]:
    """The cells of a column: of the value and its row, empty where there is no such value."""
    return [cell(row[key], row) if row.get(key) else "" for row in rows]


def plot(path: Path, rows: Sequence[Row]) -> bool:
    """Draws seconds against whatever a table's loads vary; returns whether there was anything to draw."""
    panels = [
        (title, key, family)
        for title in dict.fromkeys(row["table"] for row in rows)
        for key in LOADS
        for family in families([row for row in rows if row["table"] == title and "seconds" in row], key)
    ]
    if not panels:
        return False
    figure = new_figure(4.5 * min(3, len(panels)), 3.6 * -(-len(panels) // 3))
    grid = figure.subplots(-(-len(panels) // 3), min(3, len(panels)), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, key, varied) in zip(grid.flat, panels, strict=False):
        names = [*dict.fromkeys(row["name"] for row in varied)]
        for number, name in enumerate(names):
            points = sorted((row["load"][key], row["seconds"]) for row in varied if row["name"] == name)
            axes.plot(*zip(*points, strict=True), label=name, **curve_style(number, len(names)))
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(LOADS[key])
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=6)
    save_figure(figure, path)
    return True


def families(rows: Sequence[Row], key: str) -> list[list[Row]]:
    """Rows whose loads differ in nothing but `key`, and have more than one value of that."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["load"][key] is not None:
            found[tuple(value for name, value in row["load"].items() if name != key)].append(row)
    return [family for family in found.values() if len({row["load"][key] for row in family}) > 1]
