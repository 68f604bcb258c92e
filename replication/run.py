"""The paper's claims tried on any three or more corpora, with seeds and intervals: `make replicate`.

    python replication/run.py [--corpora DIR...] [--run DIR] [--device cpu|cuda] [--workers N]

A small HuBERT is pre-trained on all audio without its labels (or `--start` names one). Then, for each seed and each
corpus held out, stage 1 trains it round-robin on the other corpora, and every column of the table trains on the
held-out one. What is finished is kept: the same command goes on where it was stopped. docs/replication.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU does not take it

from exhubert.evaluation.results import RESULTS
from exhubert.model_folder.load import choose_device
from exhubert.replication import cells
from exhubert.replication.plan import (
    COLUMNS,
    PRETRAINING,
    ROOT,
    SECONDS,
    WALL,
    Cell,
    Plan,
    corpus_folders,
    forget_weights,
    look_at_corpora,
    read_settings,
    with_start,
    write_plan,
)
from exhubert.replication.report import write_report
from exhubert.replication.workers import Job, run_jobs
from exhubert.training.interruption import INTERRUPTED
from exhubert.utils.command import quiet_transformers, run_with_one_line_errors
from exhubert.utils.files import locked, read_table, write_text

OWN_CORPORA = ("corpora_large/crema_d", "corpora_large/nemo", "corpora/emodb", "corpora/ravdess_speech")


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks, pre-trains, trains the grid, reports. Returns the exit code: 2 if a cell failed, 3 after a signal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--corpora", type=Path, nargs="+", help="corpus folders, or folders of them; three corpora or more")
    add("--run", type=Path, default=Path("runs/replication"), help="folder for everything (default: runs/replication)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add("--workers", type=int, help="cells at a time (default: one for each core; with cuda 1)")
    add("--seeds", type=int, default=3, help="with three, every clip is tested once (default: 3)")
    add("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="(default: all)")
    add("--start", help="a HuBERT, folder or Hub id, instead of pre-training")
    add("--recipes", type=Path, default=ROOT / "recipes" / "replication", help="folder of the recipes")
    add("--settings", type=Path, help="YAML file, stage: {key: value}, whose keys win over the recipes'")
    add("--label-file", help="YAML file with further emotion words")
    options = parser.parse_args(arguments)
    for name in ("workers", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be above 0")
    choose_device(options.device)
    plan = Plan(
        run=options.run.resolve(),
        corpora=corpus_folders(options.corpora or own_corpora()),
        columns=tuple(column for column in COLUMNS if column in options.columns),
        seeds=options.seeds,
        start="",
        recipes=options.recipes.resolve(),
        settings=read_settings(options.settings or default_settings(options.device)),
        device=options.device,
        label_file=options.label_file,
    )
    if options.start:
        start = str(Path(options.start).resolve()) if Path(options.start).exists() else options.start
        plan = with_start(plan, start)
    print(f"corpora: {', '.join(plan.corpora)}", flush=True)
    facts = look_at_corpora(plan.corpora, plan.label_file)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or (cores if plan.device == "cpu" else 1)
    with locked(plan.run):
        plan.run.mkdir(parents=True, exist_ok=True)
        write_plan(plan, facts)
        try:
            failed = run(plan, facts, workers)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on")
            return INTERRUPTED
        write_report(plan.run)
        print(f"table, claims and pictures: {plan.run / 'report.md'}")
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 2 if failed else 0


def own_corpora() -> list[Path]:
    """The project's own corpora; ValueError where they are not there."""
    shared = Path(os.environ.get("EXHUBERT_SHARED", ROOT.parent / "shared")).resolve()
    missing = [name for name in OWN_CORPORA if not (shared / name).is_dir()]
    if missing:
        raise ValueError(
            f"{shared / missing[0]} is not there; give CORPORA=DIR, a folder of three corpus folders or more, or the "
            "place of corpora/ and corpora_large/ in EXHUBERT_SHARED"
        )
    return [shared / name for name in OWN_CORPORA]


def default_settings(device: str) -> Path | None:
    """What a GPU changes: a larger model, more steps."""
    return Path(__file__).with_name("cuda.yaml") if device == "cuda" else None


def run(plan: Plan, facts: dict, workers: int) -> dict[str, str]:
    """Pre-trains where no start was given, then trains what is not finished. Returns what failed, and why."""
    seconds: dict[str, float] = read_table(plan.run / SECONDS) if (plan.run / SECONDS).is_file() else {}
    began = time.monotonic()

    def note(name: str, taken: float) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[name] = seconds.get(name, 0.0) + taken
        seconds[WALL] = seconds.get(WALL, 0.0) + now - began
        began = now
        write_text(plan.run / SECONDS, json.dumps(seconds, indent=2) + "\n")

    threads = 1 if plan.device == "cpu" else 0
    if not plan.start:
        for name in PRETRAINING:
            whole = (plan.run / name / RESULTS).is_file()  # then it only says so, or that its recipe was another

            def pretrained(job: Job, taken: float, whole: bool = whole) -> None:
                if not whole:
                    note(job.name, taken)
                    print(f"{job.name}: {taken:.0f} s", flush=True)

            job = Job(name, cells.pretrain, (plan, name), plan.run / f"{name}.log")
            # Nothing else runs: it has all cores.
            failed = run_jobs([job], 1, pretrained, threads=workers if plan.device == "cpu" else 0)
            if failed:
                return failed
        plan = with_start(plan, str(plan.run / PRETRAINING[-1] / "model"))
        write_plan(plan, facts)

    waiting = [cell for cell in plan.cells() if not plan.is_finished(cell)]
    for cell in list(waiting):  # a stage 1 whose model went when its columns were done, before there was another column
        first = plan.stage_1_of(cell)
        if first is not None and first not in waiting and not (plan.folder(first) / "model").is_dir():
            shutil.rmtree(plan.folder(first))
            waiting.append(first)
    waiting = [cell for cell in plan.cells() if cell in set(waiting)]
    total = len(list(plan.cells()))
    print(f"{total - len(waiting)} of {total} cells are finished; {workers} at a time", flush=True)
    left = {cell.name: cell for cell in waiting}

    def finished(job: Job, taken: float) -> None:
        note(job.name, taken)
        cell = left.pop(job.name)
        uars = read_table(plan.folder(cell) / RESULTS)["corpora"]
        text = ", ".join(f"{name} {100 * scores['uar']:.1f}" for name, scores in uars.items())
        remaining = time_left(list(left.values()), seconds, workers)
        number = total - len(left)
        print(f"[{number}/{total}] {cell.name}: UAR {text}; {taken:.0f} s; about {remaining} left", flush=True)
        forget_weights(plan)

    jobs = [
        Job(
            cell.name,
            cells.run_cell,
            (plan, cell),
            plan.folder(cell).with_suffix(".log"),
            (first.name,) if (first := plan.stage_1_of(cell)) else (),
        )
        for cell in waiting
    ]
    return run_jobs(jobs, workers, finished, threads)


def time_left(waiting: Sequence[Cell], seconds: dict[str, float], workers: int) -> str:
    """How long the cells will take, by those of the same column that are done; others count as the mean."""
    done = {name: taken for name, taken in seconds.items() if "/" in name}

    def expected(cell: Cell) -> float:
        same = [taken for name, taken in done.items() if name.endswith(f"/{cell.column}")] or list(done.values())
        return sum(same) / len(same)

    minutes = sum(map(expected, waiting)) / min(workers, max(1, len(waiting))) / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
