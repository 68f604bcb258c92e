"""The written report of an evaluation: `report.md`, with its tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from exhubert.reports import plots, tables
from exhubert.utils.files import write_text

LONGEST = 40  # lines of a table that are shown at once
MOST_PICTURES = 6
PICTURES = ("uars.png", "heat_map.png", "curves_of_runs.png", "robustness.png")
TEXTS = yaml.safe_load(Path(__file__).with_name("sections.yaml").read_text(encoding="utf-8"))


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
        systems: display name -> what is in its `results.json`.
        facts: what else to say at the top, in this order: name -> value, such as date, protocol, window.
        folders: display name -> folder, relative to `directory`, with the system's own pictures: those of
            `confusion_<corpus>.png`, `dimensions_<corpus>.png`, `plane_<corpus>.png` and `reliability.png` that exist
            are shown.
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
    on = corpora[0] if len(corpora) == 1 else f"{len(corpora)} corpora"
    parts = [f"# Evaluation of {tables.some(list(systems))} on {on}"]
    packages = (item for results in systems.values() for item in results["versions"].items())
    every = {  # what differs between the systems is said with all its values
        "split": [scores["split"] for results in systems.values() for scores in results["corpora"].values()],
        **{name: [value] for name, value in (facts or {}).items()},
        "seed": [str(results["seed"]) for results in systems.values()],
        "versions": [f"{package} {version}" for package, version in packages if version != "not installed"],
    }
    about = "\n".join(f"- {name}: {', '.join(dict.fromkeys(values))}" for name, values in every.items())
    parts += ["## What was evaluated", tables.systems_table(systems, trained_on), about]
    classifying = {name: results for name, results in systems.items() if results["classes"]}
    uars = {n: {c: scores["uar"] for c, scores in results["corpora"].items()} for n, results in classifying.items()}
    if classifying:
        parts += section("UAR", *uars_and_cautions(directory, classifying, uars))
        parts += section("Scores on each corpus", folded(tables.scores_table(classifying)))
        parts += section("Recall of each class", folded(tables.recall_table(classifying)))
        confusions = [f"confusion_{corpus}.png" for corpus in corpora]
        parts += section("Confusion matrices", *own_pictures(directory, folders or {}, confusions))
        parts += section("Arousal and valence", folded(tables.arousal_valence_table(classifying)))
    valued = {name: results for name, results in systems.items() if results.get("dimensions")}
    parts += section("Dimensions", *dimension_parts(directory, valued, folders or {}))
    for column in dict.fromkeys(column for results in systems.values() for column in results["groups"]):
        said = [TEXTS[f"By {column}"]] if classifying else []
        said += [TEXTS["groups of dimensions"]] if valued else []
        parts += [f"## By {column}", *said, folded(tables.group_table(systems, column))]
    if comparison:
        parts += section("Comparison", folded(tables.comparison_table(comparison)))
        parts += section("Comparison of dimensions", folded(tables.ccc_comparison_table(comparison)))
    if trained_on and len(classifying) > 1:
        plots.plot_heat_map(directory / "heat_map.png", uars, trained_on)
        parts += section("Training and test corpora", picture_link("UAR", "heat_map.png"))
    if curves and any(curves.values()):  # a run that was never validated has none
        guesses = tables.chances(classifying)
        if guesses:
            guesses[tables.AVERAGE] = tables.mean(list(guesses.values()))
        plots.plot_runs(directory / "curves_of_runs.png", curves, guesses)
        parts += section("Training", picture_link("Validation UAR over updates", "curves_of_runs.png"))
    robustness = robustness_parts(directory, classifying, on) if classifying else []
    parts += section("Robustness", *robustness)
    parts += section("Robustness of dimensions", folded(tables.robustness_table(valued, "ccc")) if valued else "")
    reliability = own_pictures(directory, folders or {}, ["reliability.png"])
    table = tables.calibration_table(systems)
    parts += section("Calibration", *([TEXTS["temperature"], table] if table else []), *reliability)
    path = directory / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def robustness_parts(directory: Path, systems: tables.Systems, on: str) -> list[str]:
    """A picture of the average UAR under each condition, with the table; of systems whose averages are defined."""
    averages = {
        name: {condition: scores[tables.AVERAGE] for condition, scores in results["robustness"].items()}
        for name, results in tables.with_all_corpora(systems).items()
        if results.get("robustness")
    }
    defined = {name: known for name, known in averages.items() if all(s["uar"] is not None for s in known.values())}
    picture = ""
    if defined:
        chance = tables.mean(list(tables.chances(systems).values()))
        clips = max(sum(scores["clips"] for scores in results["corpora"].values()) for results in systems.values())
        plots.plot_robustness(directory / "robustness.png", defined, chance, f"average over {on}, {clips:,} clips")
        picture = picture_link("Average UAR under each condition", "robustness.png")
    return [picture, folded(tables.robustness_table(systems))]


def dimension_parts(directory: Path, systems: tables.Systems, folders: Mapping[str, str]) -> list[str]:
    """CCCs, what a reader of them should know, the other scores, and the pictures of each system."""
    if not systems:
        return []
    few, by_clip, without, missing = {}, {}, {}, {}
    for results in systems.values():
        for corpus, scores in results["corpora"].items():
            for name, entry in scores["dimensions"].items():
                of_corpus = f"{corpus} ({name})"
                if not entry["clips"]:
                    missing[of_corpus] = of_corpus
                elif entry["ccc"] is None:
                    without[of_corpus] = of_corpus
                if 0 < entry["speakers"] < tables.FEW_SPEAKERS:
                    few[corpus] = f"{corpus} ({entry['speakers']})"
                if entry["interval_by"] == "clip":
                    by_clip[corpus] = corpus if entry["speakers"] else f"{corpus} (speakers unknown)"
    notes = caution_lines(
        (f"Fewer than {tables.FEW_SPEAKERS} speakers", few, "Such scores say little about other speakers."),
        ("Intervals by clip", by_clip, "They leave out how much speakers differ."),
        ("Not annotated", missing, "Averages are over the other corpora."),
        ("All values equal, or one clip", without, "CCC is not defined there; averages are over the other corpora."),
    )
    corpora = tables.corpora_of(systems)
    files = [f"{picture}_{corpus}.png" for corpus in corpora for picture in ("dimensions", "plane")]
    detail = folded(tables.dimension_table(systems))
    return [tables.ccc_table(systems), notes, detail, *own_pictures(directory, folders, files)]


def uars_and_cautions(directory: Path, systems: tables.Systems, uars: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The UARs as table and picture, and what a reader of them should know about the corpora."""
    chance = tables.chances(systems)
    points = {name: dict(results["corpora"]) for name, results in systems.items()}
    guesses = dict(chance)
    if len(chance) > 1:
        for name, results in tables.with_all_corpora(systems).items():
            points[name][tables.AVERAGE] = results[tables.AVERAGE]
        guesses[tables.AVERAGE] = tables.mean(list(chance.values()))
    plots.plot_uars(directory / "uars.png", points, guesses)
    trainable = {name: results["parameters"]["trainable"] for name, results in systems.items()}
    table = tables.uar_table(uars, trainable, chance)
    return [
        TEXTS["bold"] if len(systems) > 1 else "",
        table,
        picture_link("UAR on each corpus", "uars.png"),
        cautions(systems),
    ]


def cautions(systems: tables.Systems) -> str:
    """What a reader of the intervals and averages should know about the corpora."""
    few, by_clip, lacking, alone = {}, {}, {}, {}
    classes = {name: results["classes"] for name, results in systems.items()}
    alike = len(set(map(frozenset, classes.values()))) == 1
    different = {} if alike else {name: f"{name} ({', '.join(known)})" for name, known in classes.items()}
    for results in systems.values():
        for corpus, scores in results["corpora"].items():
            if 0 < scores["speakers"] < tables.FEW_SPEAKERS:
                few[corpus] = f"{corpus} ({scores['speakers']})"
            if scores["interval_by"] == "clip":
                by_clip[corpus] = corpus if scores["speakers"] else f"{corpus} (speakers unknown)"
            absent = [name for name in results["classes"] if name not in scores["recall"]]
            if scores["uar"] is None:
                alone[corpus] = f"{corpus} ({', '.join(scores['recall']) or 'no class'})"
            elif absent:
                said = f"{corpus} ({', '.join(absent)})"
                lacking[said] = said
    return caution_lines(
        ("Different classes", different, "UARs of different classes cannot be compared."),
        (f"Fewer than {tables.FEW_SPEAKERS} speakers", few, "Such scores say little about other speakers."),
        ("Intervals by clip", by_clip, "They leave out how much speakers differ."),
        ("No clip of a class", lacking, "UAR is over the other classes."),
        ("Clips of one class only", alone, "UAR is not defined there; averages are over the other corpora."),
    )


def caution_lines(*lines: tuple[str, Mapping[str, str], str]) -> str:
    """A list of what was found where, and what follows; of what was found nowhere nothing."""
    return "\n".join(f"- **{what}**: {', '.join(found.values())}. {so}" for what, found, so in lines if found)


def own_pictures(directory: Path, folders: Mapping[str, str], files: Sequence[str]) -> list[str]:
    """The pictures that are there, under the name of each system if there are several."""
    parts = []
    for name, folder in folders.items():
        found = [Path(folder, file) for file in files if (directory / folder / file).is_file()]
        pictures = "\n".join(picture_link(f"{name}, {path.stem}", path.as_posix()) for path in found)
        if found:
            heading = [f"### {name}"] if len(folders) > 1 else []
            parts += [*heading, folded(pictures, MOST_PICTURES - 1)]
    return parts


def section(heading: str, *parts: str) -> list[str]:
    """A section, where it has parts."""
    return [f"## {heading}", TEXTS.get(heading, ""), *parts] if any(parts) else []


def folded(text: str, most_lines: int = LONGEST) -> str:
    """A text of more lines than that becomes one to unfold."""
    return f"<details><summary>show</summary>\n\n{text}\n\n</details>" if text.count("\n") > most_lines else text


def picture_link(alternative: str, path: str) -> str:
    """A picture, in markdown."""
    return f"![{alternative.replace('[', '(').replace(']', ')')}]({quote(path)})"
