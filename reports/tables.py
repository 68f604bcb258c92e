"""Tables of results, as aligned markdown.

Where a table takes `systems`, these are display names with what is in the `results.json` of each. "-" stands for what
is not known; columns and rows of which nothing is known are left out, and so is the system's name if there is but one.
Where nothing at all is known, the table is an empty text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exhubert.utils.text import markdown_table

AVERAGE = "average"
FEW_SPEAKERS = 5  # below, there is too little to draw from, and a test set says little about other speakers
MOST_COLUMNS = 10  # corpora beside each other; more are below each other
UNKNOWN = "-"
KEYS = ("corpus", "system", "sex", "language", "A", "B", "dimension")  # columns that name a row
TEXTS = (
    "model",
    "trained on",
    "interval by",
    "in corpora",
    "fitted on",
    "scale",
)  # other columns of words, not numbers

Scores = Mapping[str, Any]
Systems = Mapping[str, Scores]


def uar_table(
    uars: Mapping[str, Mapping[str, float]],
    trainable: Mapping[str, int | None] | None = None,
    chance: Mapping[str, float | None] | None = None,
) -> str:
    """Returns the UAR in % of systems on corpora, with what the paper's Tables 1 and 2 have: best, average, parameters.

    Each system is a row; with more than ten corpora each is a column, as in the paper. The best on a corpus is bold,
    with all that are printed the same, if two or more are known. The average is over all corpora of the table, and
    unknown for a system that lacks one; a corpus of a single class, whose UAR is not defined, is left out of it.

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
        scored = [values for _, values in lines if any(value is not None for value in values[len(guessed) :])]
        lines.append((AVERAGE, [mean(column) for column in zip(*scored, strict=True)]))
    grid = [["UAR in %", *(["chance"] if guessed else []), *uars]]
    for name, values in lines:
        printed = [percent(value) for value in values]
        known = [text for text in printed[len(guessed) :] if text != UNKNOWN]
        if len(known) > 1 and (chance is None or values[0] is not None):
            best = max(known, key=float)
            printed[len(guessed) :] = [f"**{text}**" if text == best else text for text in printed[len(guessed) :]]
        grid.append([name, *printed])
    if trainable:
        counts = [parameter_count(trainable.get(name)) for name in uars]
        grid.append(["trainable", *([UNKNOWN] if guessed else []), *counts])
    if len(corpora) <= MOST_COLUMNS:
        grid = [list(row) for row in zip(*grid, strict=True)]
    return markdown_table(grid[0], grid[1:])


def systems_table(systems: Systems, trained_on: Mapping[str, Sequence[str]] | None = None) -> str:
    """Returns what was evaluated: the model of each system, its parameters, training corpora, clips and speakers."""
    rows = []
    for name, results in systems.items():
        clips, speakers = ([scores[key] for scores in results["corpora"].values()] for key in ("clips", "speakers"))
        rows.append(
            {
                "system": name,
                "model": results["model"],
                "trained on": some((trained_on or {}).get(name, [UNKNOWN])),
                "parameters": parameter_count(results["parameters"]["total"]),
                "trainable": parameter_count(results["parameters"]["trainable"]),
                "corpora": str(len(results["corpora"])),
                "clips": f"{sum(clips):,}",
                "speakers": f"{sum(speakers):,}" if all(speakers) else UNKNOWN,
            }
        )
    return _table(rows)


def scores_table(systems: Systems) -> str:
    """Returns UAR, accuracy, macro-F1 and calibration error on each corpus in %, with 95 % intervals, and its clips."""
    shown = {"UAR": "uar", "accuracy": "accuracy", "macro-F1": "macro_f1", "ECE": "ece"}
    return _corpus_table(systems, lambda scores: {**_with_intervals(scores, shown), **_size(scores)})


def recall_table(systems: Systems) -> str:
    """Returns the recall of each class on each corpus in %, with its 95 % interval."""
    names = dict.fromkeys(name for results in systems.values() for name in results["classes"])

    def cells(scores: Scores) -> dict[str, str]:
        recalls, intervals = scores.get("recall", {}), scores.get("recall_interval", {})
        return {name: bracketed(recalls.get(name), intervals.get(name), percent) for name in names}

    return _corpus_table(systems, cells)


def arousal_valence_table(systems: Systems) -> str:
    """Returns the UAR in % of arousal alone (two classes) and of valence alone (three), derived from the six."""
    shown = {"arousal": "arousal_uar", "valence": "valence_uar"}
    return _corpus_table(systems, lambda scores: _with_intervals(scores, shown))


def ccc_table(systems: Systems) -> str:
    """Returns the CCC of each dimension on each corpus and their mean, with 95 % intervals, and the annotated clips."""
    names = dict.fromkeys(name for results in systems.values() for name in results.get("dimensions", {}))

    def cells(scores: Scores) -> dict[str, str]:
        known = scores.get("dimensions", {})
        found = {name: _bracketed_value(known.get(name, {}), "ccc") for name in names}
        found["mean"] = _bracketed_value(scores, "ccc") if len(names) > 1 else UNKNOWN
        counted = [entry for entry in known.values() if "clips" in entry]  # an average has none
        return {**found, **_size(max(counted, key=lambda entry: entry["clips"]) if counted else {})}

    return _corpus_table(systems, cells)


def dimension_table(systems: Systems) -> str:
    """Returns CCC, Pearson's correlation and RMSE of each dimension on each corpus, with 95 % intervals, and its clips.

    The RMSE is in the units of the dimension's scale, which is given.
    """
    shown = {"CCC": "ccc", "Pearson": "pearson", "RMSE": "rmse"}
    rows = []
    for corpus, name, scores in _corpus_rows(systems):
        for dimension, entry in scores.get("dimensions", {}).items():
            low, high = systems[name]["dimensions"][dimension]
            cells = {column: _bracketed_value(entry, metric) for column, metric in shown.items()}
            keys = {"corpus": corpus, "dimension": dimension, "system": name}
            rows.append({**keys, **cells, "scale": f"{low:g} to {high:g}", **_size(entry)})
    return _table(rows)


def group_table(systems: Systems, column: str) -> str:
    """Returns the UAR in % in each group of a column, `sex` or `language`, pooled over the corpora that have it.

    Beside it stands the CCC, the mean over the dimensions.
    """
    groups = {name: results["groups"].get(column, {}) for name, results in systems.items()}
    rows = []
    for value in dict.fromkeys(value for known in groups.values() for value in known):
        for name, known in groups.items():
            scores = known.get(value, {})
            cells = {**_with_intervals(scores, {"UAR": "uar"}), "CCC": _bracketed_value(scores, "ccc"), **_size(scores)}
            corpora = some(scores.get("corpora", [UNKNOWN]))
            rows.append({column: value, "system": name, **cells, "in corpora": corpora})
    return _table(rows)


def robustness_table(systems: Systems, metric: str = "uar") -> str:
    """Returns the UAR in %, or the CCC, under each condition, and in brackets by how much that differs from `clean`."""
    tested = robustness_of(systems, metric)
    text, change = (percent, points) if metric == "uar" else (value_text, difference_text)
    conditions = dict.fromkeys(condition for results in tested.values() for condition in results[AVERAGE])

    def cells(values: Scores) -> dict[str, str]:
        known = {name: value for name, value in values.items() if name != "clean" and value is not None}
        differences = {name: f" ({change(value - values['clean'])})" for name, value in known.items()}
        return {name: text(values.get(name)) + differences.get(name, "") for name in conditions}

    return _corpus_table(tested, cells)


def calibration_table(systems: Systems) -> str:
    """Returns the temperature of each system, and its expected calibration error in % without and with it."""
    fitted = {name: results["calibration"] for name, results in systems.items() if "calibration" in results}
    return _table(
        [
            {
                "system": name,
                "temperature": f"{scores['temperature']:.2f}",
                "fitted on": f"{scores['split']}, {scores['clips']:,} clips",
                "ECE without": percent(scores["ece_before"]),
                "ECE with": percent(scores["ece_after"]),
            }
            for name, scores in fitted.items()
        ]
    )


def comparison_table(comparison: Scores) -> str:
    """Returns by how many points the UAR of B is above (+) or below (-) that of A on the same clips, and how surely."""
    rows = []
    for pair in comparison["pairs"]:
        a, b = pair["models"]
        for corpus, scores in _with_average(pair).items():
            cells = {
                "B - A in points": bracketed(scores["difference"], scores["interval"], points),
                "p": p_text(scores["p"]),
                "clips": _size(scores)["clips"],
                "interval by": _size(scores)["interval by"],
            }
            rows.append({"A": a, "B": b, "corpus": corpus, **cells})
    return _table(rows)


def ccc_comparison_table(comparison: Scores) -> str:
    """Returns by how much the CCC of B is above (+) or below (-) that of A on the same clips, and how surely."""
    rows = []
    for pair in comparison["pairs"]:
        a, b = pair["models"]
        for corpus, scores in _with_average(pair.get("ccc", {})).items():
            of_all = {"mean": scores} if len(scores["dimensions"]) > 1 else {}
            for dimension, found in {**scores["dimensions"], **of_all}.items():
                cells = {
                    "B - A": bracketed(found["difference"], found["interval"], difference_text),
                    "p": p_text(found["p"]),
                    "clips": _size(scores)["clips"],
                    "interval by": _size(scores)["interval by"],
                }
                rows.append({"A": a, "B": b, "corpus": corpus, "dimension": dimension, **cells})
    return _table(rows)


def value_text(value: float | None) -> str:
    """A CCC, or what else is on no scale of shares: `0.5` -> `0.500`."""
    return UNKNOWN if value is None else f"{round(value, 3) + 0.0:.3f}"  # never -0.000


def difference_text(difference: float | None) -> str:
    """A difference of such values, with its sign."""
    return UNKNOWN if difference is None else f"{round(difference, 3) + 0.0:+.3f}"


def percent(share: float | None) -> str:
    """`0.5` -> `50.0`."""
    return UNKNOWN if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """The difference of two shares in percentage points, with its sign: `-0.05` -> `-5.0`."""
    return UNKNOWN if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"  # never -0.0


def bracketed(value: float | None, interval: Sequence[float] | None, text: Callable[[float | None], str]) -> str:
    """`50.0 [45.0, 55.0]`, where there is an interval; `text` is `percent` or `points`."""
    return f"{text(value)} [{text(interval[0])}, {text(interval[1])}]" if interval else text(value)


def p_text(p: float | None) -> str:
    """`0.012`, or `< 0.001`."""
    return UNKNOWN if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def parameter_count(count: int | None) -> str:
    """As the paper's Table 2 prints it, `311.49 M`; all digits below 100,000."""
    return UNKNOWN if count is None else f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count:,}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The names, or the first of them and how many more there are."""
    return ", ".join(names) if len(names) <= most + 1 else f"{', '.join(names[:most])} and {len(names) - most} more"


def corpora_of(systems: Systems) -> list[str]:
    """The corpora on which one system or more were evaluated."""
    return list(dict.fromkeys(corpus for results in systems.values() for corpus in results["corpora"]))


def with_all_corpora(systems: Systems) -> Systems:
    """The systems whose averages can be compared."""
    return {name: results for name, results in systems.items() if results["corpora"].keys() >= set(corpora_of(systems))}


def robustness_of(systems: Systems, metric: str = "uar") -> Systems:
    """The UAR or CCC by condition, on each corpus and on average, of each system; empty where it was not tested."""
    return {
        name: {
            "corpora": {
                corpus: {condition: each["corpora"][corpus].get(metric) for condition, each in tested.items()}
                for corpus in results["corpora"]
            },
            AVERAGE: {condition: each[AVERAGE].get(metric) for condition, each in tested.items()},
        }
        for name, results in systems.items()
        for tested in [results.get("robustness", {})]
    }


def chances(systems: Systems) -> dict[str, float | None]:
    """The UAR of guessing on each corpus: one by the number of classes that occur; None where systems differ in it.

    A corpus of a single class, on which UAR is not defined, is left out.
    """
    guesses = {}
    for corpus in corpora_of(systems):
        counts = {len(r["corpora"][corpus]["recall"]) for r in systems.values() if corpus in r["corpora"]}
        if max(counts) > 1:
            guesses[corpus] = 1 / max(counts) if len(counts) == 1 else None
    return guesses


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is, or if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _bracketed_value(scores: Scores, name: str) -> str:
    return bracketed(scores.get(name), scores.get(f"{name}_interval"), value_text)


def _with_average(pair: Scores) -> dict[str, Scores]:
    """The differences on each corpus of a pair, and on average if there are several; nothing of what has none."""
    corpora = pair.get("corpora", {})
    return {**corpora, **({AVERAGE: pair[AVERAGE]} if len(corpora) > 1 else {})}


def _with_intervals(scores: Scores, names: Mapping[str, str]) -> dict[str, str]:
    """Scores in % by column, which is a name in `scores`."""
    return {
        column: bracketed(scores.get(name), scores.get(f"{name}_interval"), percent) for column, name in names.items()
    }


def _size(scores: Scores) -> dict[str, str]:
    """How many clips and speakers there are, and what was drawn for intervals; an average has none of these."""
    return {
        "clips": f"{scores['clips']:,}" if "clips" in scores else UNKNOWN,
        "speakers": f"{scores['speakers']:,}" if scores.get("speakers") else UNKNOWN,
        "interval by": scores.get("interval_by") or UNKNOWN,
    }


def _corpus_table(systems: Systems, cells: Callable[[Scores], Mapping[str, str]]) -> str:
    """A row for each corpus and system; at the end the averages of the systems that have all corpora."""
    rows = _corpus_rows(systems)
    return _table([{"corpus": corpus, "system": name, **cells(scores)} for corpus, name, scores in rows])


def _corpus_rows(systems: Systems) -> list[tuple[str, str, Scores]]:
    """Corpus or `average`, system and scores of the rows of a table."""
    corpora = corpora_of(systems)
    rows = [(c, name, r["corpora"][c]) for c in corpora for name, r in systems.items() if c in r["corpora"]]
    if len(corpora) > 1:
        rows += [(AVERAGE, name, results[AVERAGE]) for name, results in with_all_corpora(systems).items()]
    return rows


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of what is known; the rows have the same columns, of which those in KEYS name the row."""
    known = [row for row in rows if any(cell != UNKNOWN for name, cell in row.items() if name not in KEYS)]
    if not known:
        return ""
    columns = [name for name in known[0] if any(row[name] != UNKNOWN for row in known)]
    if columns[0] != "system" and len({row.get("system") for row in rows}) == 1:
        columns = [name for name in columns if name != "system"]
    left = [place for place, name in enumerate(columns) if name in (*KEYS, *TEXTS)]
    return markdown_table(columns, [[row[name] for name in columns] for row in known], left)
