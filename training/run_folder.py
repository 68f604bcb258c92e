"""The run folder: the recipe as resolved, the environment, checkpoints, results, pictures."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas
import yaml

from exhubert.reports.plots import plot_confusion, plot_curves

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "soundfile", "soxr")


def find_checkpoint(output: str, resume: bool) -> str | None:
    """Returns the checkpoint to go on from, or None for a new run; changes nothing.

    Raises:
        ValueError: if there is no checkpoint to resume from, or a new run would write into a folder that is in use.
    """
    directory = Path(output)
    # The trainer's state is written last, so a checkpoint that has it is whole.
    whole = [path.parent for path in directory.glob("checkpoints/checkpoint-*/trainer_state.json")]
    if resume and not whole:
        raise ValueError(f"{directory}: no checkpoint to resume from; start without --resume")
    if not resume and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        remedy = "give another `output`, delete it" + (", or add --resume" if whole else "")
        raise ValueError(f"{directory} is in use already; {remedy}")
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if resume else None


def write_settings(output: str, recipe: dict[str, Any], seed: int) -> None:
    """Writes `recipe.yaml` and `environment.json`."""
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    environment = {"versions": versions(), "seed": seed, "commit": _commit(), "platform": platform.platform()}
    _write(directory / "environment.json", json.dumps(environment, indent=2) + "\n")


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
        corpora: what `evaluation.score` returned.
        predictions: one row a clip.
        seed: of the run.
    """
    directory = Path(output)
    average = sum(scores["uar"] for scores in corpora.values()) / len(corpora)
    results = {**model, "corpora": corpora, "average": {"uar": average}, "seed": seed, "versions": versions()}
    columns = [str(name) for name in predictions.columns]
    class_names = [name.removeprefix("probability_") for name in columns if name.startswith("probability_")]
    unfinished = directory / ".predictions.parquet.unfinished"
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
    _write(directory / "results.json", json.dumps(results, indent=2) + "\n")


def write_curves(output: str, log_history: list[dict[str, Any]], title: str) -> None:
    """Writes `curves.png`: the validation UAR of each corpus, and their average, over the updates."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name.startswith("eval_") and name.endswith("_uar"):
                curves.setdefault(name[len("eval_") : -len("_uar")], []).append((entry["step"], value))
    if curves:
        plot_curves(Path(output) / "curves.png", curves, title)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        where = Path(__file__).parent
        return subprocess.run(command, cwd=where, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # not run from a git checkout
