"""Tables of results, as aligned markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Returns a markdown table; the columns whose numbers are in `left` are left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, strict=True)
        return " | ".join(c.ljust(w) if number in left else c.rjust(w) for number, (c, w) in enumerate(padded))

    rule = "|".join("-" * (w + 2) if number in left else "-" * (w + 1) + ":" for number, w in enumerate(widths))
    return "\n".join([f"| {line(header)} |", f"|{rule}|", *(f"| {line(row)} |" for row in rows)])


def uar_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the UAR in % of systems (columns) on corpora (rows), and their average; "-" where it is unknown."""
    corpora = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = []
    for corpus in corpora:
        values = [column.get(corpus) for column in columns.values()]
        rows.append([corpus, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    averages = [sum(c.values()) / len(c) if len(c) == len(corpora) else None for c in columns.values()]
    rows.append(["average", *("-" if value is None else f"{100 * value:.1f}" for value in averages)])
    return markdown_table(["UAR in %", *columns], rows)
