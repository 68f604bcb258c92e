"""Tables of results, as aligned markdown.

Where a table takes `systems`, these are display names with what is in the `results.json` of each. "-" stands for what
is not known; columns and rows of which nothing is known are left out, and so is the system's name if there is but one.
Where nothing at all is known, the table is an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.utils.text import markdown_table

AVERAGE = "average"
MOST_COLUMNS = 10  # corpora beside each other; more are below each other
UNKNOWN = "-"
TEXTS = ("model", "trained on", "interval by", "in corpora", "fitted on")  # columns of words, not numbers

Scores = Mapping[str, Any]
Systems = Mapping[str, Scores]
Columns = dict[str, Callable[[Scores], str]]
Rows = dict[tuple[str, ...], Scores]


def uar_table(
    uars: Mapping[str, Mapping[str, float]],
    trainable: Mapping[str, int | None] | None = None,
    chance: Mapping[str, float | None] | None = None,
) -> str:
    """Returns the UAR in % of systems on corpora, with what the paper's Tables 1 and 2 have: best, average, parameters.

    Each system is a row; with more than ten corpora each is a column, as in the paper. The best on a corpus is bold,
    with all that are printed the same, if two or more are known. The average is over all corpora of the table, and
    unknown for a system that lacks one.

    Args:
        uars: display name -> corpus -> UAR, from 0 to 1.
        trainable: display name -> number of trainable parameters.
        chance: corpus -> UAR of guessing, which is printed first and never bold. None where the systems have different
            classes there, so that none is the best.
    """
    corpora = list(dict.fromkeys(name for known in uars.values() for name in known))
    guessed = [] if chance is None else [chance]
    lines = [(corpus, [known.get(corpus) for known in (*guessed, *uars.values())]) for corpus in corpora]
    if len(corpora) > 1:
        lines.append((AVERAGE, [mean(column) for column in zip(*(values for _, values in lines), strict=True)]))
    grid = [["UAR in %", *(["chance"] if guessed else []), *uars]]
    for name, values in lines:
        comparable = chance is None or values[0] is not None
        shown = _best_in_bold(values[len(guessed) :]) if comparable else list(map(percent, values[1:]))
        grid.append([name, *map(percent, values[: len(guessed)]), *shown])
    if trainable:
        counts = [parameter_count(trainable.get(name)) for name in uars]
        grid.append(["trainable", *([UNKNOWN] if guessed else []), *counts])
    if len(corpora) <= MOST_COLUMNS:
        grid = [list(row) for row in zip(*grid, strict=True)]
    return markdown_table(grid[0], grid[1:])


def systems_table(systems: Systems, trained_on: Mapping[str, Sequence[str]] | None = None) -> str:
    """Returns what was evaluated: the model of each system, its parameters, training corpora, clips and speakers."""
    rows: Rows = {(name,): {**results, "trained on": (trained_on or {}).get(name)} for name, results in systems.items()}

    def total(results: Scores, name: str) -> str:
        counts = [scores.get(name) for scores in results["corpora"].values()]
        return f"{sum(counts):,}" if all(counts) else UNKNOWN

    columns: Columns = {
        "model": lambda results: str(results.get("model", UNKNOWN)),
        "trained on": lambda results: some(results["trained on"] or [UNKNOWN]),
        "parameters": lambda results: parameter_count(results.get("parameters", {}).get("total")),
        "trainable": lambda results: parameter_count(results.get("parameters", {}).get("trainable")),
        "corpora": lambda results: str(len(results["corpora"])),
        "clips": partial(total, name="clips"),
        "speakers": partial(total, name="speakers"),
    }
    return _table(["system"], rows, columns)


def scores_table(systems: Systems) -> str:
    """Returns UAR, accuracy, macro-F1 and calibration error on each corpus in %, with 95 % intervals, and its clips."""
    columns: Columns = {
        "UAR": partial(_with_interval, name="uar"),
        "accuracy": partial(_with_interval, name="accuracy"),
        "macro-F1": partial(_with_interval, name="macro_f1"),
        "ECE": lambda scores: percent(scores.get("ece")),
        **SIZE,
    }
    return _table(["corpus", "system"], _by_corpus(systems), columns)


def recall_table(systems: Systems) -> str:
    """Returns the recall of each class on each corpus in %, with its 95 % interval."""

    def cell(scores: Scores, name: str) -> str:
        recall, interval = (scores.get(key, {}).get(name) for key in ("recall", "recall_interval"))
        return _bracketed(recall, interval, percent)

    names = dict.fromkeys(name for results in systems.values() for name in class_names(results))
    columns: Columns = {name: partial(cell, name=name) for name in names}
    return _table(["corpus", "system"], _by_corpus(systems), columns)


def arousal_valence_table(systems: Systems) -> str:
    """Returns the UAR in % of arousal alone (two classes) and of valence alone (three), derived from the six."""
    columns: Columns = {name: partial(_with_interval, name=f"{name}_uar") for name in ("arousal", "valence")}
    return _table(["corpus", "system"], _by_corpus(systems), columns)


def group_table(systems: Systems, column: str) -> str:
    """Returns the UAR in % in each group of a column, `sex` or `language`, pooled over the corpora that have it."""
    groups = {name: results.get("groups", {}).get(column, {}) for name, results in systems.items()}
    values = dict.fromkeys(value for known in groups.values() for value in known)
    rows: Rows = {(value, name): known.get(value, {}) for value in values for name, known in groups.items()}
    columns: Columns = {
        "UAR": partial(_with_interval, name="uar"),
        **SIZE,
        "in corpora": lambda scores: some(scores.get("corpora", [UNKNOWN])),
    }
    return _table([column, "system"], rows, columns)


def robustness_table(systems: Systems) -> str:
    """Returns the UAR in % under each condition, and in brackets by how many points that differs from `clean`."""
    rows: Rows = {}
    for corpus, name in _by_corpus(systems):
        tested = systems[name].get("robustness", {}).items()
        found = {
            key: each.get(AVERAGE, {}) if corpus == AVERAGE else each["corpora"].get(corpus, {}) for key, each in tested
        }
        rows[corpus, name] = {condition: scores.get("uar") for condition, scores in found.items()}

    def cell(uars: Scores, condition: str) -> str:
        value, clean = uars.get(condition), uars.get("clean")
        if condition == "clean" or value is None or clean is None:
            return percent(value)
        return f"{percent(value)} ({points(value - clean)})"

    conditions = dict.fromkeys(condition for uars in rows.values() for condition in uars)
    columns: Columns = {condition: partial(cell, condition=condition) for condition in conditions}
    return _table(["corpus", "system"], rows, columns)


def calibration_table(systems: Systems) -> str:
    """Returns the temperature of each system, and its expected calibration error in % without and with it."""
    columns: Columns = {
        "temperature": lambda scores: f"{scores['temperature']:.2f}",
        "fitted on": lambda scores: f"{scores['split']}, {scores['clips']:,} clips",
        "ECE without": lambda scores: percent(scores.get("ece_before")),
        "ECE with": lambda scores: percent(scores.get("ece_after")),
    }
    rows: Rows = {(name,): results["calibration"] for name, results in systems.items() if results.get("calibration")}
    return _table(["system"], rows, columns)


def comparison_table(comparison: Scores) -> str:
    """Returns by how many points the UAR of B is above (+) or below (-) that of A on the same clips, and how surely."""
    rows: Rows = {}
    for pair in comparison["pairs"]:
        scores = pair["corpora"]
        if len(scores) > 1 and pair.get(AVERAGE):
            scores = {**scores, AVERAGE: pair[AVERAGE]}
        rows.update({(*pair["models"], corpus): values for corpus, values in scores.items()})
    columns: Columns = {
        "B - A in points": lambda scores: _bracketed(scores.get("difference"), scores.get("interval"), points),
        "p": lambda scores: p_value(scores.get("p")),
        "clips": SIZE["clips"],
        "interval by": SIZE["interval by"],
    }
    return _table(["A", "B", "corpus"], rows, columns)


def percent(share: float | None) -> str:
    """`0.5` -> `50.0`."""
    return UNKNOWN if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """The difference of two shares in percentage points, with its sign: `-0.05` -> `-5.0`."""
    return UNKNOWN if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"  # never -0.0


def p_value(p: float | None) -> str:
    """Three digits, and below what they can say that it is so."""
    return UNKNOWN if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def parameter_count(count: int | None) -> str:
    """As the paper's Table 2 prints it, `311.49 M`; all digits below 100,000."""
    return UNKNOWN if count is None else f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The names, or the first of them and how many more there are."""
    return ", ".join(names) if len(names) <= most + 1 else f"{', '.join(names[:most])} and {len(names) - most} more"


def class_names(results: Scores) -> Sequence[str]:
    """The classes of a system, in order; of older results the six, or else those that occur in its corpora."""
    if "classes" in results:
        return list(results["classes"])
    found = dict.fromkeys(name for scores in results["corpora"].values() for name in scores.get("recall", {}))
    return SIX_CLASSES if found.keys() <= set(SIX_CLASSES) else list(found)


def corpora_of(systems: Systems) -> list[str]:
    """The corpora on which one system or more were evaluated."""
    return list(dict.fromkeys(corpus for results in systems.values() for corpus in results["corpora"]))


def with_all_corpora(systems: Systems) -> Systems:
    """The systems whose averages can be compared."""
    return {name: results for name, results in systems.items() if results["corpora"].keys() >= set(corpora_of(systems))}


def chances(systems: Systems) -> dict[str, float | None]:
    """The UAR of guessing on each corpus: one by the number of classes that occur; None where systems differ in it."""
    counts: dict[str, set[int]] = {}
    for results in systems.values():
        for corpus, scores in results["corpora"].items():
            counts.setdefault(corpus, set()).add(len(scores.get("recall", {})))
    return {corpus: 1 / max(found) if len(found) == 1 and max(found) else None for corpus, found in counts.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _best_in_bold(values: Sequence[float | None]) -> list[str]:
    printed = [percent(value) for value in values]
    known = [text for text in printed if text != UNKNOWN]
    best = max(known, key=float) if len(known) > 1 else None
    return [f"**{text}**" if text == best else text for text in printed]


def _bracketed(value: float | None, interval: Sequence[float] | None, text: Callable[[float | None], str]) -> str:
    return f"{text(value)} [{text(interval[0])}, {text(interval[1])}]" if interval else text(value)


def _with_interval(scores: Scores, name: str) -> str:
    return _bracketed(scores.get(name), scores.get(f"{name}_interval"), percent)


SIZE: Columns = {
    "clips": lambda scores: f"{scores['clips']:,}" if "clips" in scores else UNKNOWN,
    "speakers": lambda scores: f"{scores['speakers']:,}" if scores.get("speakers") else UNKNOWN,
    "interval by": lambda scores: scores.get("interval_by") or UNKNOWN,
}


def _by_corpus(systems: Systems) -> Rows:
    """(corpus, system) -> scores; at the end the averages of the systems that have all corpora."""
    corpora = corpora_of(systems)
    rows: Rows = {}
    for corpus in corpora:
        rows.update({(corpus, n): r["corpora"][corpus] for n, r in systems.items() if corpus in r["corpora"]})
    if len(corpora) > 1:
        rows.update({(AVERAGE, name): results.get(AVERAGE, {}) for name, results in with_all_corpora(systems).items()})
    return rows


def _table(keys: Sequence[str], rows: Rows, columns: Columns) -> str:
    """A table of what is known; `keys` name the parts of the rows' keys, which stand first."""
    header = [*keys, *columns]
    cells = [[*key, *(text(scores) for text in columns.values())] for key, scores in rows.items()]
    known = [row for row in cells if any(cell != UNKNOWN for cell in row[len(keys) :])]
    if not known:
        return ""
    shown = [number for number in range(len(header)) if any(row[number] != UNKNOWN for row in known)]
    if "system" in keys[1:] and len({row[1] for row in cells}) == 1:
        shown.remove(1)
    left = [place for place, number in enumerate(shown) if number < len(keys) or header[number] in TEXTS]
    return markdown_table([header[number] for number in shown], [[row[n] for n in shown] for row in known], left)
