"""What is done in a process of its own: pre-training, and a cell of the grid with what was forgotten."""

from __future__ import annotations

import json
from pathlib import Path

from exhubert import train_hf
from exhubert.corpora.load import load_corpora
from exhubert.evaluation.predictions import classify, predictions_table
from exhubert.evaluation.results import RESULTS, make_results
from exhubert.model_folder.load import load_for_answers
from exhubert.replication.plan import FINISHED, PROTOCOL, STAGE_1, Cell, Plan, remove_weights
from exhubert.training.arguments import parse
from exhubert.training.run_folder import ENVIRONMENT, SETTINGS
from exhubert.utils.files import read_table, whole_file, write_text

FORGETTING = "forgetting"  # .json and .parquet: the stage-1 corpora after stage 2
BATCH = 32


def pretrain(plan: Plan, name: str) -> int:
    """Runs, or goes on with, one iteration of the pre-training. Returns the exit code."""
    from exhubert.pretrain_hf import main

    return main([*plan.pretraining_command(name), *resume(plan.run / name)])


def run_cell(plan: Plan, cell: Cell) -> int:
    """Trains, or goes on; tests what was forgotten; deletes the weights that nobody needs. Returns the exit code."""
    folder = plan.folder(cell)
    if not (folder / RESULTS).is_file() or not (folder / "model").is_dir():
        code = train_hf.main([*plan.command(cell), *resume(folder)])
        if code:
            return code
    if cell.column != STAGE_1:
        test_forgetting(plan, cell)
    environment = read_table(folder / ENVIRONMENT)
    known = {name: environment.get(name) for name in ("versions", "commit", "platform")}
    write_text(folder / FINISHED, json.dumps(cell._asdict() | {"fold": cell.fold, **known}, indent=2) + "\n")
    remove_weights(folder, ("checkpoints",) if cell.column == STAGE_1 else ("checkpoints", "model"))
    return 0


def resume(folder: Path) -> list[str]:
    """The option by which a begun run goes on."""
    return ["--resume"] if (folder / SETTINGS).is_file() else []


def test_forgetting(plan: Plan, cell: Cell) -> None:
    """Evaluates a cell's model on the test clips of stage 1, of the same fold."""
    folder = plan.folder(cell)
    stage_1, *_ = parse(plan.command(cell._replace(column=STAGE_1)))
    model, extractor = load_for_answers(str(folder / "model"), plan.device)
    class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    corpora, _ = load_corpora(
        plan.others(cell.held_out),
        labels=class_names,
        label_file=plan.label_file,
        clips_per_corpus=stage_1.clips_per_corpus,
        protocol=PROTOCOL,
        fold=cell.fold,
        needed=("test",),
    )
    tests = {name: splits["test"] for name, splits in corpora.items()}
    predictions = predictions_table(tests, class_names, classify(model, extractor, tests, BATCH))
    with whole_file(folder / f"{FORGETTING}.parquet") as unfinished:
        predictions.to_parquet(unfinished, index=False)
    results = make_results({"model": cell.name, "split": "test"}, predictions, class_names, cell.seed)
    write_text(folder / f"{FORGETTING}.json", json.dumps(results, indent=2) + "\n")
