"""Writes what an evaluation leaves behind: results.json, predictions, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from exhubert.evaluation.calibration import reliability
from exhubert.evaluation.predictions import (
    PREDICTED,
    REFERENCE,
    class_names_of,
    confidences,
    dimension_names_of,
)
from exhubert.evaluation.scores import groups, score_and_average
from exhubert.reports.plots import plot_confusion, plot_dimensions, plot_plane, plot_reliability
from exhubert.reports.tables import value_text
from exhubert.utils.files import whole_file, write_text
from exhubert.utils.versions import versions

RESULTS, CURVES = "results.json", "curves.json"


def make_results(
    described: dict[str, Any],
    predictions: pandas.DataFrame,
    class_names: Sequence[str],
    seed: int = 0,
    dimensions: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Returns what is in `results.json`: what `described` says of model and split, scores, `seed` and `versions`.

    `class_names` and `dimensions`, the scale that the values of each are on, are those of the model, which has one of
    them or both.
    """
    corpora, average = score_and_average(predictions, class_names, described["split"])
    return {
        **described,
        "classes": list(class_names),
        **({"dimensions": {name: list(scale) for name, scale in dimensions.items()}} if dimensions else {}),
        "corpora": corpora,
        "average": average,
        "groups": groups(predictions, class_names),
        "seed": seed,
        "versions": versions(),
    }


def robustness(
    predictions: Mapping[str, pandas.DataFrame], class_names: Sequence[str], split: str
) -> dict[str, dict[str, Any]]:
    """Returns the `robustness` entry of `results.json` from the predictions under each condition."""
    kept = ("uar", "uar_interval", "interval_by", "ccc", "ccc_interval")
    found = {}
    for condition, table in predictions.items():
        corpora, average = score_and_average(table, class_names, split)
        found[condition] = {
            "corpora": {
                corpus: {name: scores[name] for name in kept if name in scores} for corpus, scores in corpora.items()
            },
            "average": {name: value for name, value in average.items() if name in kept},
        }
    return found


def write_predictions(
    directory: Path,
    results: dict[str, Any],
    predictions: pandas.DataFrame,
    name: str,
    uncalibrated: pandas.DataFrame | None = None,
) -> None:
    """Writes `predictions.parquet` and pictures.

    These are, of classes, `reliability.png` and a confusion matrix for each corpus; of dimensions for each corpus that
    is annotated `dimensions_<corpus>.png`, and `plane_<corpus>.png` of arousal and valence.

    An older `results.json`, which belongs to others, is removed. `name` is the model's, for the pictures; `results` are
    those of `make_results`; `uncalibrated` are the predictions without the temperature, where one was fitted.
    """
    (directory / RESULTS).unlink(missing_ok=True)
    for kind in ("confusion_*", "dimensions_*", "plane_*", "reliability"):
        for picture in directory.glob(f"{kind}.png"):
            picture.unlink()
    class_names = class_names_of(predictions)
    with whole_file(directory / "predictions.parquet") as unfinished:
        predictions.to_parquet(unfinished, index=False)
    _plot_dimensions(directory, results, predictions, name)
    if not class_names:
        return
    predictions = predictions[predictions["reference"] != ""]
    if predictions.empty:  # clips that have values alone
        return
    for corpus, rows in predictions.groupby("corpus", sort=False):
        plot_confusion(
            directory / f"confusion_{corpus}.png",
            [class_names.index(name) for name in rows["reference"]],
            [class_names.index(name) for name in rows["prediction"]],
            class_names,
            f"{name} on {corpus}: UAR {uar_text(results['corpora'][str(corpus)])} of {len(rows):,} clips",
        )
    panels = {"": predictions}
    if uncalibrated is not None:
        temperature = results["calibration"]["temperature"]
        panels = {"without scaling": uncalibrated, f"temperature {temperature:.2f}": predictions}
    bins = {panel: reliability(*confidences(table)) for panel, table in panels.items()}
    plot_reliability(directory / "reliability.png", bins, f"{name}, {len(predictions):,} clips")


def _plot_dimensions(directory: Path, results: Mapping[str, Any], predictions: pandas.DataFrame, name: str) -> None:
    """The pictures of dimensions, of the corpora that are annotated."""
    for corpus, rows in predictions.groupby("corpus", sort=False):
        points = {each: rows[[REFERENCE + each, PREDICTED + each]].dropna() for each in dimension_names_of(predictions)}
        points = {each: values for each, values in points.items() if len(values)}
        if not points:
            continue
        clips = max(map(len, points.values()))
        title = f"{name} on {corpus}, {clips:,} clips"
        scores = results["corpora"][str(corpus)]["dimensions"]
        panels = {each: values.to_numpy(dtype=float) for each, values in points.items()}
        cccs = {each: scores[each]["ccc"] for each in panels}
        plot_dimensions(directory / f"dimensions_{corpus}.png", panels, results["dimensions"], cccs, title)
        if {"arousal", "valence"} <= points.keys():
            both = rows[[start + each for start in (REFERENCE, PREDICTED) for each in ("valence", "arousal")]].dropna()
            if len(both):
                values = both.to_numpy(dtype=float).reshape(-1, 2, 2)
                title = f"{name} on {corpus}, {len(values):,} clips"
                plot_plane(directory / f"plane_{corpus}.png", values[:, 0], values[:, 1], results["dimensions"], title)


def dimension_text(scores: Mapping[str, Any]) -> str:
    """The mean CCC of a corpus, and that of each dimension: `0.512 (arousal 0.612, valence 0.412)`."""
    cccs = {name: entry["ccc"] for name, entry in scores["dimensions"].items()}
    each = ", ".join(f"{name} {'not defined' if ccc is None else value_text(ccc)}" for name, ccc in cccs.items())
    return f"{'not defined' if scores['ccc'] is None else value_text(scores['ccc'])} ({each})"


def uar_text(scores: Mapping[str, Any]) -> str:
    """A corpus's UAR in %; where fewer than two classes occur, that it is not defined and which class that is."""
    if scores["uar"] is None and not scores["recall"]:
        return "not defined, no clip has a class"
    if scores["uar"] is None:
        return f"not defined, all clips are {next(iter(scores['recall']))}"
    return f"{100 * scores['uar']:.1f} %"


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, which comes last: it marks what lies beside it as complete."""
    write_text(directory / RESULTS, json.dumps(results, indent=2) + "\n")
