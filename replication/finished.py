"""The finished cells of a run, or of the files that were exported of one: both give the same numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.metrics import classification_scores
from exhubert.evaluation.predictions import PROBABILITY
from exhubert.evaluation.results import CURVES, RESULTS
from exhubert.evaluation.scores import score
from exhubert.replication.cells import FORGETTING
from exhubert.replication.plan import FINISHED, PLAN, PRETRAINING, SECONDS, Cell
from exhubert.utils.files import read_table, write_text

CLIPS = "clips.json"
CLIP = ["speaker", "file_name", "start_seconds"]
COLUMNS_KEPT = ["corpus", *CLIP, "reference", "prediction"]
NOT_TESTED = "-"


@dataclass
class Found:
    """A finished cell.

    Attributes:
        cell: which one.
        parameters: `total` and `trainable`.
        curves: corpus or `average` -> updates and validation UAR, from 0 to 1.
        seconds: what it took; 0 where that is not known.
        made_by: versions, commit, platform.
        test: one row a clip of the test split: `corpus, speaker, file_name, start_seconds, reference, prediction`.
        forgetting: the same of stage 1's corpora after stage 2; empty for stage 1 itself.
    """

    cell: Cell
    parameters: dict[str, int]
    curves: dict[str, list[tuple[int, float]]]
    seconds: float
    made_by: dict[str, Any]
    test: pandas.DataFrame
    forgetting: pandas.DataFrame


@dataclass
class Run:
    """What is known of a run: its plan, the finished cells by name, the seconds of each, and of its pre-training."""

    plan: dict[str, Any]
    cells: dict[Cell, Found]
    seconds: dict[str, float]
    pretraining: dict[str, dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Reads a run folder, or a folder of exported results; what is not finished is left out.

    Raises:
        ValueError: if it is neither.
    """
    if not (folder / PLAN).is_file():
        raise ValueError(f"{folder}: no {PLAN} there; give the folder that `make replicate` wrote, or exported results")
    plan = read_table(folder / PLAN)
    seconds = read_table(folder / SECONDS) if (folder / SECONDS).is_file() else {}
    paths = {name: folder / name / RESULTS for name in PRETRAINING}
    paths |= {name: folder / f"{name}.json" for name in PRETRAINING if (folder / CLIPS).is_file()}
    pretraining = {name: read_table(path) for name, path in paths.items() if path.is_file()}
    if (folder / CLIPS).is_file():
        cells = _read_exported(folder)
    else:
        cells = {}
        for path in sorted(folder.glob(f"seed*/*/*/{FINISHED}")):
            found = _read_cell(path.parent, seconds)
            cells[found.cell] = found
    return Run(plan, cells, seconds, pretraining)


def _read_cell(folder: Path, seconds: dict[str, float]) -> Found:
    mark = read_table(folder / FINISHED)
    cell = Cell(mark["seed"], mark["held_out"], mark["column"])
    forgetting = folder / f"{FORGETTING}.parquet"
    test = pandas.read_parquet(folder / "predictions.parquet", columns=COLUMNS_KEPT)
    return Found(
        cell,
        read_table(folder / RESULTS)["parameters"],
        read_table(folder / CURVES) if (folder / CURVES).is_file() else {},
        seconds.get(cell.name, 0.0),
        {name: mark.get(name) for name in ("versions", "commit", "platform")},
        test,
        pandas.read_parquet(forgetting, columns=COLUMNS_KEPT) if forgetting.is_file() else test.iloc[:0],
    )


def export(run: Run, target: Path) -> None:
    """Writes what all numbers follow from into small files: without weights, and without the names of clips.

    `clips.json` has, by fold and corpus, each speaker's number of clips and all references, a digit each; a cell's file
    has its predictions in the same order, `-` for a clip that was not tested. What was exported there before goes: its
    predictions may be of other clips.

    Raises:
        ValueError: if `target` is a run folder.
    """
    if (target / PLAN).is_file() and not (target / CLIPS).is_file():
        raise ValueError(f"{target} is a run folder; give another one to export to")
    digit = {name: str(number) for number, name in enumerate(SIX_CLASSES)}
    parts: dict[tuple[str, str], list[pandas.DataFrame]] = {}
    for found in run.cells.values():
        for corpus, rows in pandas.concat([found.test, found.forgetting]).groupby("corpus"):
            parts.setdefault((f"fold {found.cell.fold}", str(corpus)), []).append(rows[[*CLIP, "reference"]])
    clips = {
        key: pandas.concat(rows).drop_duplicates(CLIP).sort_values(CLIP).set_index(CLIP)
        for key, rows in sorted(parts.items())
    }
    described: dict[str, dict[str, Any]] = {}
    for (fold, corpus), rows in clips.items():
        speakers = rows.groupby("speaker", sort=False).size()
        described.setdefault(fold, {})[corpus] = {
            "speakers": [[str(speaker), int(count)] for speaker, count in speakers.items()],
            "references": "".join(rows["reference"].map(digit)),
        }

    def digits(table: pandas.DataFrame, fold: int) -> dict[str, str]:
        rows_of = {}
        for corpus, rows in table.groupby("corpus", sort=False):
            tested = rows.set_index(CLIP)["prediction"].map(digit)
            every = tested.reindex(clips[f"fold {fold}", str(corpus)].index).fillna(NOT_TESTED)
            rows_of[str(corpus)] = "".join(every)
        return rows_of

    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob("seed*.json"):
        left.unlink()
    write_text(target / CLIPS, _by_key(described))
    write_text(target / PLAN, _by_key(run.plan))
    write_text(target / SECONDS, _by_key(run.seconds))
    for name, results in run.pretraining.items():
        write_text(target / f"{name}.json", _by_key(results | {"model": Path(results["model"]).name}))  # no place
    for cell, found in run.cells.items():
        values = cell._asdict() | {
            "fold": cell.fold,
            "parameters": found.parameters,
            "seconds": round(found.seconds, 1),
        }
        values |= {"scores": _scores(found.test), "forgetting": _scores(found.forgetting), "curves": found.curves}
        values |= {"test_predictions": digits(found.test, cell.fold)}
        values |= {"forgetting_predictions": digits(found.forgetting, cell.fold), **found.made_by}
        write_text(target / f"{cell.name.replace('/', '_')}.json", _by_key(values))


def _by_key(values: dict[str, Any]) -> str:
    """JSON with a line for each key, so that many files of a hundred numbers stay short."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _scores(table: pandas.DataFrame) -> dict[str, Any]:
    """UAR with its interval, and recalls, by corpus; for whoever reads the file."""
    if table.empty:
        return {}
    kept = ("clips", "speakers", "uar", "uar_interval", "interval_by", "recall")
    scored = score(with_probabilities(table), SIX_CLASSES, "test")
    return {corpus: {name: entry[name] for name in kept} for corpus, entry in scored.items()}


def _read_exported(folder: Path) -> dict[Cell, Found]:
    clips: dict[str, Any] = read_table(folder / CLIPS)
    tables: dict[tuple[str, str], pandas.DataFrame] = {}
    for fold, corpora in clips.items():
        for corpus, known in corpora.items():
            speakers = [speaker for speaker, count in known["speakers"] for _ in range(count)]
            rows = {"corpus": corpus, "speaker": speakers, "start_seconds": 0.0}
            rows["reference"] = [SIX_CLASSES[int(each)] for each in known["references"]]
            table = pandas.DataFrame(rows)
            tables[fold, corpus] = table.assign(file_name=[f"{fold}, {number}" for number in table.index])

    def predicted(cell: Cell, digits: dict[str, str]) -> pandas.DataFrame:
        parts = [pandas.DataFrame(columns=COLUMNS_KEPT)][: not digits]
        for corpus, row in digits.items():
            tested = [number for number, each in enumerate(row) if each != NOT_TESTED]
            names = [SIX_CLASSES[int(row[number])] for number in tested]
            parts.append(tables[f"fold {cell.fold}", corpus].iloc[tested].assign(prediction=names))
        return pandas.concat(parts, ignore_index=True)

    cells = {}
    for path in sorted(folder.glob("seed*.json")):
        values: dict[str, Any] = read_table(path)
        cell = Cell(values["seed"], values["held_out"], values["column"])
        test, forgetting = (predicted(cell, values[f"{name}_predictions"]) for name in ("test", FORGETTING))
        made_by = {name: values.get(name) for name in ("versions", "commit", "platform")}
        found = (values["parameters"], values["curves"], values["seconds"], made_by, test, forgetting)
        cells[cell] = Found(cell, *found)
    return cells


def with_probabilities(table: pandas.DataFrame) -> pandas.DataFrame:
    """The table with the columns by which `evaluation.scores` knows the classes; only their names count here."""
    return table.assign(**{PROBABILITY + name: (table["prediction"] == name).astype(float) for name in SIX_CLASSES})


def uar_of(table: pandas.DataFrame) -> float:
    """The UAR of a table's predictions, from 0 to 1; NaN where a single class occurs."""
    numbers = {name: number for number, name in enumerate(SIX_CLASSES)}
    references, predictions = (table[column].map(numbers).to_numpy() for column in ("reference", "prediction"))
    uar = classification_scores(references, predictions, SIX_CLASSES)["uar"]
    return float("nan") if uar is None else uar


def pooled(found: Sequence[Found]) -> pandas.DataFrame:
    """The test predictions of several cells: of one column, each clip once where the cells are three seeds."""
    return with_probabilities(pandas.concat([each.test for each in found], ignore_index=True))


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and how far the 95 % t interval of it reaches; None for the latter of a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return float(np.mean(values)), None
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * error)
