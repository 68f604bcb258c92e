"""Writes what an evaluation leaves behind: results.json, predictions, pictures."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas

from exhubert.reports.plots import plot_confusion

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "numpy",
    "soundfile",
    "soxr",
    "peft",
    "audiomentations",
)
UNFINISHED = ".unfinished"
RESULTS = "results.json"


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in ("exhubert", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_results(
    output: str, model: dict[str, Any], corpora: dict[str, Any], predictions: pandas.DataFrame, seed: int
) -> None:
    """Writes `results.json`, `predictions.parquet` and a confusion matrix for each corpus.

    Args:
        output: the run folder.
        model: the `model` and `parameters` entries of `results.json`.
        corpora: what `scores.score` returned.
        predictions: one row a clip.
        seed: of the run.
    """
    directory = Path(output)
    average = sum(scores["uar"] for scores in corpora.values()) / len(corpora)
    results = {**model, "corpora": corpora, "average": {"uar": average}, "seed": seed, "versions": versions()}
    columns = [str(name) for name in predictions.columns]
    class_names = [name.removeprefix("probability_") for name in columns if name.startswith("probability_")]
    unfinished = directory / f".predictions.parquet{UNFINISHED}"
    predictions.to_parquet(unfinished, index=False)
    unfinished.replace(directory / "predictions.parquet")
    for corpus, rows in predictions.groupby("corpus", sort=False):
        plot_confusion(
            directory / f"confusion_{corpus}.png",
            [class_names.index(name) for name in rows["reference"]],
            [class_names.index(name) for name in rows["prediction"]],
            class_names,
            f"{corpus}: UAR {100 * corpora[str(corpus)]['uar']:.1f} %",
        )
    write_text(directory / RESULTS, json.dumps(results, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its name and renames it."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
