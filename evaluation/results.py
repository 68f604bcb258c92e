"""Writes what an evaluation leaves behind: results.json, predictions, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from exhubert.evaluation.calibration import reliability
from exhubert.evaluation.predictions import class_names_of, confidences
from exhubert.evaluation.scores import groups, score_and_average
from exhubert.reports.plots import plot_confusion, plot_reliability
from exhubert.utils.files import whole_file, write_text
from exhubert.utils.versions import versions

RESULTS, CURVES = "results.json", "curves.json"


def make_results(
    described: dict[str, Any], predictions: pandas.DataFrame, class_names: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Returns what is in `results.json`: what `described` says of model and split, scores, `seed` and `versions`."""
    corpora, average = score_and_average(predictions, class_names, described["split"])
    return {
        **described,
        "classes": list(class_names),
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
    kept = ("uar", "uar_interval", "interval_by")
    found = {}
    for condition, table in predictions.items():
        corpora, average = score_and_average(table, class_names, split)
        found[condition] = {
            "corpora": {corpus: {name: scores[name] for name in kept} for corpus, scores in corpora.items()},
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
    """Writes `predictions.parquet`, `reliability.png` and a confusion matrix for each corpus.

    An older `results.json`, which belongs to others, is removed. `name` is the model's, for the pictures; `results` are
    those of `make_results`; `uncalibrated` are the predictions without the temperature, where one was fitted.
    """
    (directory / RESULTS).unlink(missing_ok=True)
    for picture in directory.glob("confusion_*.png"):
        picture.unlink()
    class_names = class_names_of(predictions)
    with whole_file(directory / "predictions.parquet") as unfinished:
        predictions.to_parquet(unfinished, index=False)
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


def uar_text(scores: Mapping[str, Any]) -> str:
    """A corpus's UAR in %; where a single class occurs, that it is not defined and which class that is."""
    if scores["uar"] is None:
        return f"not defined, all clips are {next(iter(scores['recall']))}"
    return f"{100 * scores['uar']:.1f} %"


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, which comes last: it marks what lies beside it as complete."""
    write_text(directory / RESULTS, json.dumps(results, indent=2) + "\n")
