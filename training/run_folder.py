"""The run folder: the recipe as resolved, the environment, checkpoints, results, pictures."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import TrainingArguments

from exhubert.evaluation.results import CURVES, RESULTS
from exhubert.reports.plots import plot_curves
from exhubert.training.arguments import Recipe
from exhubert.utils.files import UNFINISHED, read_table, write_text
from exhubert.utils.versions import versions

SETTINGS, ENVIRONMENT = "recipe.yaml", "environment.json"
CCC_CURVES = "curves_ccc.json"

# What may differ when a run goes on, since the weights do not follow from it; all else is held to what it began with.
# (The corpora are compared by name and by their clips, wherever they lie and however they came to be chosen.)
FREE = (
    *("output", "corpora_root", "corpora", "label_file", "skip_bad_audio"),
    *("micro_batches", "rounds", "updates", "early_stopping", "save_minutes", "probe_corpora"),
)
FREE_TRAINING = (  # beginnings of names
    *("logging_", "log_", "report_to", "run_name", "disable_tqdm", "hub_", "push_to_hub", "eval_", "per_device_eval_"),
    *("save_", "load_best_model_at_end", "dataloader_", "ddp_", "gradient_checkpointing"),
    *("activation_checkpointing", "project", "trackio_"),
)
ANEW = "put a copy of it there, or start a new run with the newest checkpoint as `model`"
NEW_RUN = "other settings need a new run (`output`), which can start from a checkpoint of this one (`model`)"


def find_checkpoint(output: str, resume: bool, recipe: dict[str, Any], kind: Any = Recipe) -> str | None:
    """Returns the checkpoint to go on from, or None to start from the beginning; changes nothing.

    A run that was killed before its first checkpoint starts from the beginning. Of the `recipe`, as resolved, of the
    dataclass `kind`, only its length (`rounds`) may have grown, and what does not shape the weights may differ.

    Raises:
        ValueError: if there is no run to resume, its recipe was another, or a new run would write into a folder that
            is in use.
    """
    directory = Path(output)
    whole = whole_checkpoints(directory / "checkpoints")
    # What a run leaves that was killed before it had written its first file, the recipe, is no use of the folder.
    used = directory.exists() and (
        not directory.is_dir()
        or any(
            not path.name.endswith(UNFINISHED)
            and path.name != "logs"
            and (path.name != "checkpoints" or any(path.iterdir()))
            for path in directory.iterdir()
        )
    )
    if not resume and used:
        remedy = "give another `output`" + (", or add --resume" if (directory / SETTINGS).is_file() else "")
        raise ValueError(f"{directory} is in use already; {remedy}")
    if resume and (not directory.is_dir() or (used and not (directory / SETTINGS).is_file())):
        raise ValueError(f"{directory}: no checkpoint to resume from; start without --resume")
    if resume and (whole or (directory / RESULTS).is_file()):
        check_recipe(directory, recipe, kind)
    return str(whole[-1]) if resume and whole else None


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last; each was renamed into place when it was whole."""
    found = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    numbered = [path for path in found if path.name.split("-")[1].isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.split("-")[1]))


def is_complete(output: str, recipe: dict[str, Any], kind: Any = Recipe) -> bool:
    """Whether the run has its results and neither more rounds, another early stopping nor probes are asked for."""
    directory = Path(output)
    if not (directory / RESULTS).is_file():
        return False
    began = read_settings(directory, kind)
    return all(began.get(name) == recipe.get(name) for name in (kind.LENGTH, "early_stopping", "probe_corpora"))


def read_settings(directory: Path, kind: Any = Recipe) -> dict[str, Any]:
    """The resolved recipe that a run began with; raises ValueError if it is none any more."""
    began = read_table(directory / SETTINGS)
    for name, type_ in {"corpora": list, "training": dict, kind.LENGTH: int}.items():
        if not isinstance(began.get(name), type_):
            raise ValueError(
                f"{directory / SETTINGS} is not as the run wrote it: {name} is {began.get(name)!r}; {ANEW}"
            )
    return began


def clips_of(corpora: dict[str, dict[str, Dataset]]) -> dict[str, dict[str, str]]:
    """A line for each corpus and split, that changes with its clips, their order and their classes."""
    described: dict[str, dict[str, str]] = {}
    for name, splits in corpora.items():
        described[name] = {}
        for split, dataset in splits.items():
            digest = hashlib.sha256()
            values = dataset["dimensions"][:] if "dimensions" in dataset.column_names else [None] * len(dataset)
            for file_name, label, numbers in zip(dataset["file_name"][:], dataset["labels"][:], values, strict=True):
                truth = label if numbers is None else [label, *numbers]
                digest.update(f"{file_name}\t{truth}\n".encode())
            described[name][split] = f"{len(dataset)} clips, sha256 {digest.hexdigest()[:16]}"
    return described


def check_clips(output: str, clips: dict[str, dict[str, str]]) -> None:
    """Raises ValueError if the corpora have other clips than those that the run began with."""
    path = Path(output) / ENVIRONMENT
    known: Any = read_table(path).get("clips")
    whole = isinstance(known, dict) and known.keys() == clips.keys()
    if not whole or any(
        not isinstance(known[name], dict) or known[name].keys() != clips[name].keys() for name in clips
    ):
        raise ValueError(f"{path} is not as the run wrote it: its `clips` are of other corpora and splits; {ANEW}")
    for name, splits in known.items():
        for split, began in splits.items():
            if clips[name][split] != began:
                raise ValueError(
                    f"corpus {name!r}: its {split} clips or their labels are others than those that the run in "
                    f"{output} began with ({clips[name][split]}; then {began}); {NEW_RUN}"
                )


def write_settings(
    output: str, recipe: dict[str, Any], clips: dict[str, dict[str, str]], seed: int, corpora: dict[str, Any]
) -> None:
    """Writes `recipe.yaml` and `environment.json`; from now on the run is not complete."""
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS).unlink(missing_ok=True)
    try:
        where, command = Path(__file__).parent, ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=where, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not run from a git checkout
    environment: dict[str, Any] = {"versions": versions(), "seed": seed, "commit": commit}
    environment["platform"] = platform.platform()
    # The recipe comes first: a folder that has it is known as a run's.
    write_text(directory / SETTINGS, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    environment |= {"corpora": corpora, "clips": clips}
    write_text(directory / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")


def write_curves(
    output: str, log_history: list[dict[str, Any]], clips: dict[str, Dataset], chosen: int | None = None
) -> None:
    """Writes `curves.png` and `curves.json`: the validation UAR of each corpus, and their average, over the updates.

    `clips` are those of the validation splits; `chosen` is the update whose weights were kept for their scores. The
    picture has the losses as well, and that of a model with dimensions their mean CCC, which is in `curves_ccc.json`.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    cccs: dict[str, list[tuple[int, float]]] = {}
    losses: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name.startswith("eval_") and name.endswith(("_uar", "_ccc")):
                scores = curves if name.endswith("_uar") else cccs
                scores.setdefault(name[len("eval_") : -len("_uar")], []).append((entry["step"], value))
            elif name == "loss" or (name.startswith("eval_") and name.endswith("_loss")):
                losses.setdefault(name[len("eval_") : -len("_loss")] or "training", []).append((entry["step"], value))
    for scores, file in ((curves, CURVES), (cccs, CCC_CURVES)):
        if len(scores) == 2:  # one corpus, whose curve the average would hide
            scores.pop("average", None)
        if scores:
            write_text(Path(output) / file, json.dumps(scores) + "\n")
    if curves or cccs:
        classes = {name: len(set(dataset["labels"][:]) - {-100}) for name, dataset in clips.items()}
        chance = {name: 1 / count for name, count in classes.items() if count}
        title = f"{Path(output).name}: validation on {sum(map(len, clips.values())):,} clips"
        plot_curves(Path(output) / "curves.png", curves, losses, chance, chosen, title, cccs)


def check_recipe(directory: Path, recipe: dict[str, Any], kind: Any = Recipe) -> None:
    """Raises ValueError if a resolved recipe differs, in what shapes the weights, from that a run began with."""
    began = {"fast_path": False} | read_settings(directory, kind)  # of a run from before there was that key
    shaping = []
    for given in (recipe, began):
        values = {name: given.get(name, default) for name, default in vars(kind()).items() if name not in FREE}
        values["corpora"] = [Path(entry).name for entry in given["corpora"]]
        if "cnn_cache" in values:
            values["cnn_cache"] = "in use" if values["cnn_cache"] else "not in use"  # wherever it lies
        if given.get("targets") and given.get("dimension_loss") == "ccc":  # which is that of a part of a batch
            values["micro_batches"] = given["micro_batches"]
        for spec in fields(TrainingArguments):
            if not spec.name.startswith(FREE_TRAINING):
                values[spec.name] = given["training"].get(spec.name, spec.default)
        shaping.append(values)
    for name, now in shaping[0].items():
        then = shaping[1][name]
        if now != then:
            raise ValueError(f"{name} is {now!r}, but the run in {directory} began with {then!r}; {NEW_RUN}")
    length = kind.LENGTH
    if recipe[length] < began[length]:
        raise ValueError(f"{length} is {recipe[length]}, but the run in {directory} is of {began[length]}; give more")
