"""The written report of an evaluation: `report.md`, with its tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from exhubert.reports import plots, tables
from exhubert.utils.files import write_text

LONGEST = 40  # lines of a table that are shown at once
MOST_PICTURES = 6
FEW_SPEAKERS = 5  # below, a test set says little about other speakers
PICTURES = ("uars.png", "heat_map.png", "curves_of_runs.png", "robustness.png")

UAR = """\
UAR is the recall averaged over the classes that occur among the references of a corpus; chance is one divided by their
number. The average counts each corpus once."""
BOLD = "The best on each corpus is bold."
SCORES = """\
In %, with 95 % bootstrap intervals in brackets: speakers are drawn, each with all clips, or single clips, as the last
column says. An interval that is a point, of clips all right or all wrong, says nothing. ECE is the expected calibration
error."""
RECALL = """\
In %; in brackets 95 % intervals; "-" where a corpus has no clip of the class. An interval that is a point, of clips all
right or all wrong, says nothing."""
AROUSAL_VALENCE = """\
UAR in % if only arousal (low, high) or only valence (negative, neutral, positive) of the six classes counts; in
brackets 95 % intervals."""
GROUPS = "UAR in % over the clips of all corpora that tell it; in brackets 95 % intervals."
COMPARISON = """\
By how many points the UAR of B is above (+) or below (-) that of A on the same clips, with the 95 % interval of the
difference. p is two-sided, of no difference, by the same bootstrap, and not corrected for the number of comparisons."""
HEAT_MAP = """\
UAR in % of each model (rows) on each corpus (columns). Frames mark the corpora that it was trained on, in its own run
or before that, as far as its recipe and card say."""
CURVES = "UAR on the validation split during training."
ROBUSTNESS = """\
UAR in % on the same clips under each condition; in brackets by how many points it is above (+) or below (-) that of
the clean clips."""
CALIBRATION = """\
Over the evaluated clips of all corpora: how often predictions of each confidence are right. ECE, the expected
calibration error, is how far confidence and accuracy are apart on average."""
TEMPERATURE = """\
Dividing the logits by the temperature changes the probabilities; the prediction stays, unless a clip of several windows
was a close call. ECE is in %."""


def write_report(
    directory: Path,
    systems: Mapping[str, Mapping[str, Any]],
    *,
    facts: Mapping[str, str] | None = None,
    folders: Mapping[str, str] | None = None,
    comparison: Mapping[str, Any] | None = None,
    curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] | None = None,
    trained_on: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes `report.md` and the pictures of all systems together; a section is there only where there is data for it.

    Args:
        directory: existing folder to write to: `report.md`, `uars.png`, and where there is data for them
            `heat_map.png`, `curves_of_runs.png` and `robustness.png`.
        systems: display name -> what is in its `results.json`; results of older versions may lack entries.
        facts: what else to say at the top, in this order: name -> value, such as date, protocol, window.
        folders: display name -> folder, relative to `directory`, with the system's own pictures: those of
            `confusion_<corpus>.png` and `reliability.png` that exist are shown.
        comparison: what is in `comparison.json`.
        curves: of each training run, corpus or `average` -> updates and validation UAR.
        trained_on: display name -> the corpora that the system was trained on, where that is known.

    Returns:
        The path of `report.md`.

    Raises:
        ValueError: if there is no system.
    """
    if not systems:
        raise ValueError("a report needs the results of at least one model")
    corpora = tables.corpora_of(systems)
    own = {name: Path(folder) for name, folder in (folders or {}).items()}
    on = corpora[0] if len(corpora) == 1 else f"{len(corpora)} corpora"
    parts = [f"# Evaluation of {tables.some(list(systems))} on {on}"]
    parts += ["## What was evaluated", tables.systems_table(systems, trained_on), _facts(systems, facts or {})]
    uars = {name: _values(results["corpora"]) for name, results in systems.items()}
    parts += _uars(directory, systems, uars)
    parts += _section("Scores on each corpus", SCORES, _folded(tables.scores_table(systems)))
    parts += _section("Recall of each class", RECALL, _folded(tables.recall_table(systems)))
    confusions = {name: [f"confusion_{corpus}.png" for corpus in corpora] for name in systems}
    parts += _section("Confusion matrices", "", *_own_pictures(directory, own, confusions))
    parts += _section("Arousal and valence", AROUSAL_VALENCE, _folded(tables.arousal_valence_table(systems)))
    for column in dict.fromkeys(column for results in systems.values() for column in results.get("groups", {})):
        parts += _section(f"By {column}", GROUPS, _folded(tables.group_table(systems, column)))
    if comparison:
        parts += _section("Comparison", COMPARISON, _folded(tables.comparison_table(comparison)))
    if trained_on and len(systems) > 1:
        plots.plot_heat_map(directory / "heat_map.png", uars, trained_on)
        parts += _section("Training and test corpora", HEAT_MAP, _picture("UAR", "heat_map.png"))
    if curves and any(curves.values()):  # a run that was never validated has none
        plots.plot_runs(directory / "curves_of_runs.png", curves)
        parts += _section("Training", CURVES, _picture("Validation UAR over updates", "curves_of_runs.png"))
    parts += _section("Robustness", ROBUSTNESS, *_robustness(directory, systems))
    reliability = _own_pictures(directory, own, {name: ["reliability.png"] for name in systems})
    table = tables.calibration_table(systems)
    parts += _section("Calibration", CALIBRATION, *([TEMPERATURE, table] if table else []), *reliability)
    path = directory / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _facts(systems: tables.Systems, facts: Mapping[str, str]) -> str:
    """What was the same for all systems, or else every value of it."""
    splits = dict.fromkeys(s["split"] for r in systems.values() for s in r["corpora"].values() if "split" in s)
    seeds = dict.fromkeys(str(results["seed"]) for results in systems.values() if "seed" in results)
    versions: dict[str, dict[str, None]] = {}
    for results in systems.values():
        for package, version in results.get("versions", {}).items():
            if version != "not installed":
                versions.setdefault(package, {})[version] = None
    packages = ", ".join(f"{package} {' or '.join(found)}" for package, found in versions.items())
    lines = {"split": ", ".join(splits), **facts, "seed": ", ".join(seeds), "versions": packages}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if value)


def _uars(directory: Path, systems: tables.Systems, uars: Mapping[str, Mapping[str, float]]) -> list[str]:
    chance = tables.chances(systems)
    points = {name: dict(results["corpora"]) for name, results in systems.items()}
    guesses = dict(chance)
    if len(chance) > 1:
        for name, results in tables.with_all_corpora(systems).items():
            points[name][tables.AVERAGE] = results[tables.AVERAGE]
        guesses[tables.AVERAGE] = tables.mean(list(chance.values()))
    plots.plot_uars(directory / "uars.png", points, guesses)
    trainable = {name: results.get("parameters", {}).get("trainable") for name, results in systems.items()}
    table = tables.uar_table(uars, trainable, chance)
    text = f"{UAR} {BOLD}" if len(systems) > 1 else UAR
    return _section("UAR", text, table, _picture("UAR on each corpus", "uars.png"), _cautions(systems))


def _robustness(directory: Path, systems: tables.Systems) -> list[str]:
    uars = {}
    for name, results in tables.with_all_corpora(systems).items():
        tested = {condition: each.get(tables.AVERAGE, {}) for condition, each in results.get("robustness", {}).items()}
        uars[name] = _values(tested)
    uars = {name: known for name, known in uars.items() if known}
    table = _folded(tables.robustness_table(systems))
    if not uars:
        return [table]
    plots.plot_robustness(directory / "robustness.png", uars, tables.mean(list(tables.chances(systems).values())))
    return [_picture("Average UAR under each condition", "robustness.png"), table]


def _cautions(systems: tables.Systems) -> str:
    """What a reader of the intervals and averages should know about the corpora."""
    few, by_clip, lacking = {}, {}, {}
    classes = {name: tables.class_names(results) for name, results in systems.items()}
    different = {name: f"{name} ({', '.join(known)})" for name, known in classes.items()}
    if len(set(map(frozenset, classes.values()))) == 1:
        different = {}
    for results in systems.values():
        for corpus, scores in results["corpora"].items():
            if 0 < scores.get("speakers", 0) < FEW_SPEAKERS:
                few[corpus] = f"{corpus} ({scores['speakers']})"
            if scores.get("interval_by") == "clip":
                by_clip[corpus] = corpus if scores.get("speakers") else f"{corpus} (speakers unknown)"
            absent = [name for name in tables.class_names(results) if name not in scores.get("recall", {})]
            if absent:
                said = f"{corpus} ({', '.join(absent)})"
                lacking[said] = said
    lines = [
        ("Different classes", different, "UARs of different classes cannot be compared."),
        (f"Fewer than {FEW_SPEAKERS} speakers", few, "Such scores say little about other speakers."),
        ("Intervals by clip", by_clip, "They leave out how much speakers differ."),
        ("No clip of a class", lacking, "UAR is over the other classes."),
    ]
    return "\n".join(f"- **{what}**: {', '.join(found.values())}. {so}" for what, found, so in lines if found)


def _own_pictures(directory: Path, folders: Mapping[str, Path], files: Mapping[str, Sequence[str]]) -> list[str]:
    """The pictures that are there, under the name of each system if there are several."""
    parts = []
    for name, folder in folders.items():
        found = [folder / file for file in files.get(name, ()) if (directory / folder / file).is_file()]
        if found:
            pictures = "\n".join(_picture(f"{name}, {path.stem}", path.as_posix()) for path in found)
            heading = [f"### {name}"] if len(files) > 1 else []
            parts += [*heading, _fold(pictures) if len(found) > MOST_PICTURES else pictures]
    return parts


def _section(heading: str, text: str, *parts: str) -> list[str]:
    return [f"## {heading}", text, *parts] if any(parts) else []


def _folded(table: str) -> str:
    return _fold(table) if table.count("\n") > LONGEST else table


def _fold(text: str) -> str:
    return f"<details><summary>show</summary>\n\n{text}\n\n</details>"


def _picture(alternative: str, path: str) -> str:
    return f"![{alternative.replace('[', '(').replace(']', ')')}]({quote(path)})"


def _values(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: each["uar"] for name, each in scores.items() if "uar" in each}
