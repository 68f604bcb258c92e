"""The table, the claims and the pictures of `make replicate`, of whatever is finished: `make replicate-report`.

    python replication/report.py RUN [--export DIR] [--docs NAME]

RUN is a run folder, or a folder that `--export` wrote, which holds no weights and gives the same numbers. Everything is
printed, and written to `report.md` in a run folder. `--docs NAME` writes it between the marks `NAME` of
docs/replication.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.scores import compare, score_and_average
from exhubert.replication.finished import (
    CLIP,
    CLIPS,
    Found,
    Run,
    export,
    mean_and_spread,
    pooled,
    read_run,
    uar_of,
    with_probabilities,
)
from exhubert.replication.pictures import plot_bands
from exhubert.replication.plan import COLUMNS, PRETRAINING, ROOT, STAGE_1, WALL, Cell
from exhubert.reports.plots import plot_uars
from exhubert.reports.tables import AVERAGE, UNKNOWN, bracketed, p_text, parameter_count, percent, points
from exhubert.utils.command import run_with_one_line_errors
from exhubert.utils.files import write_text
from exhubert.utils.text import markdown_table

DOCUMENT = ROOT / "docs" / "replication.md"
MARGIN = 0.02  # UAR: as good is not worse by so much
PROBED = ("random", "pre-trained")  # as pretrain_hf.py calls what it probes


class Claim(NamedTuple):
    """What is said of two columns: that `better` has the higher UAR; with `as_good`, that `other` is not worse."""

    text: str
    better: str
    other: str
    as_good: bool = False


CLAIMS = (
    Claim("multi-corpus fine-tuning helps", "hubert_stage1", "hubert"),
    Claim("expansion with frozen originals helps over plain fine-tuning", "exhubert_stage1", "hubert_stage1"),
    Claim("expansion helps without stage 1, too", "exhubert", "hubert"),
    Claim("unfreezing the originals hurts", "exhubert_stage1", "non_frozen"),
    Claim("tripling the layers hurts", "exhubert_stage1", "xlarge"),
    Claim("LoRA with as many parameters is as good", "exhubert_stage1", "lora", as_good=True),
    Claim("copies are better than a frozen encoder's weighted sum", "exhubert_stage1", "weighted_sum"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or exported results")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the small files that all numbers follow from")
    parser.add_argument("--docs", metavar="NAME", help="put the report between the marks NAME in docs/replication.md")
    options = parser.parse_args(arguments)
    run = read_run(options.run)
    if options.export:
        export(run, options.export)
        print(f"{len(run.cells)} cells written to {options.export}", file=sys.stderr)
    if options.docs:
        write_into(DOCUMENT, options.docs, run)
    print(report_text(run) if (options.run / CLIPS).is_file() else write_report(options.run, run))
    return 0


def write_report(folder: Path, run: Run | None = None) -> str:
    """Writes `report.md` and its pictures into a run folder; returns the text."""
    run = read_run(folder) if run is None else run
    text = report_text(run, draw_pictures(run, folder))
    write_text(folder / "report.md", text)
    return text


def write_into(document: Path, name: str, run: Run) -> None:
    """Puts the report between a document's marks, its pictures beside the document.

    Raises:
        ValueError: if it has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    text = document.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{document}: no marks {begin.strip()} and {end.strip()} there")
    pictures = draw_pictures(run, document.parent, f"{document.stem}_{name}_")
    body = re.sub(r"^#", "##", report_text(run, pictures), flags=re.MULTILINE)
    before, after = text.split(begin)[0], text.split(end)[1]
    write_text(document, f"{before}{begin}\n{body}\n{end}{after}")


def report_text(run: Run, pictures: Sequence[str] = ()) -> str:
    """The whole report, as markdown."""
    parts = [
        ("Replication", progress(run)),
        ("UAR on the corpus held out", uar_section(run)),
        ("Claims", claims_section(run)),
        ("Forgetting", forgetting_section(run)),
        ("Stage 1", stage_1_section(run)),
        ("Pre-training", pretraining_section(run)),
        ("Pictures", "\n\n".join(f"![{name}]({name})" for name in pictures)),
    ]
    return "\n\n".join(f"## {heading}\n\n{text}" for heading, text in parts if text)[1:] + "\n"


def progress(run: Run) -> str:
    """What is finished, and what it took."""
    columns, corpora = run.plan["columns"], run.plan["corpora"]
    total = run.plan["seeds"] * len(corpora) * (len(columns) + 1)
    cells = sum(seconds for name, seconds in run.seconds.items() if "/" in name)
    before = sum(run.seconds.get(name, 0.0) for name in PRETRAINING)
    lines = [
        f"{len(run.cells)} of {total} cells are finished ({run.plan['seeds']} seeds, {len(corpora)} corpora held out "
        f"in turn, stage 1 and {len(columns)} columns). They took {cells / 3600:.1f} h of process time on "
        f"{run.plan['device']}, {run.seconds.get(WALL, 0.0) / 3600:.1f} h by the clock"
        + (f" with {before / 60:.0f} min of pre-training." if before else ".")
    ]
    rows = []
    for name, facts in corpora.items():
        apart = "by speaker" if facts["speakers_apart"] else "by clip: its speakers are in all parts"
        classes = len(facts["classes"])
        rows.append([name, f"{facts['clips']:,}", str(facts["speakers"]), str(classes), percent(1 / classes), apart])
    header = ["corpus", "clips", "speakers", "classes", "chance, UAR in %", "folds"]
    return "\n\n".join([*lines, markdown_table(header, rows, left=(0, 5))])


def chance_of(run: Run) -> dict[str, float]:
    """The UAR of guessing on each corpus, and their mean."""
    chance = {name: 1 / len(facts["classes"]) for name, facts in run.plan["corpora"].items()}
    return chance | {AVERAGE: float(np.mean(list(chance.values())))}


def cells_of(run: Run, column: str, held_out: str | None = None) -> list[Found]:
    """A column's finished cells, by seed and corpus held out."""
    chosen = [cell for cell in run.cells if cell.column == column and held_out in (None, cell.held_out)]
    return [run.cells[cell] for cell in sorted(chosen)]


def column_scores(run: Run, column: str) -> dict[str, dict[str, Any]]:
    """Of each corpus held out, and on average where all are there: `uar`, `uar_interval`, `spread`, `clips`.

    `uar` is the mean over seeds and `spread` its 95 % t interval to either side; the interval is that of drawing
    speakers from the predictions of all seeds together, which has another centre.
    """
    corpora = list(run.plan["corpora"])
    found = cells_of(run, column)
    if not found:
        return {}
    scored, average = score_and_average(pooled(found), SIX_CLASSES, "test")
    uars = {each.cell: uar_of(each.test) for each in found}
    scores = {}
    for corpus in [name for name in corpora if name in scored]:
        mean, spread = mean_and_spread([uar for cell, uar in uars.items() if cell.held_out == corpus])
        entry = scored[corpus]
        scores[corpus] = {"uar": mean, "spread": spread, "uar_interval": entry["uar_interval"], "clips": entry["clips"]}
    if len(scores) == len(corpora):
        means = [scores[corpus]["uar"] for corpus in corpora]
        whole = [
            float(np.mean([uars[Cell(seed, corpus, column)] for corpus in corpora]))
            for seed in range(run.plan["seeds"])
            if all(Cell(seed, corpus, column) in uars for corpus in corpora)
        ]
        spread = mean_and_spread(whole)[1] if len(whole) > 1 else None
        scores[AVERAGE] = {"uar": float(np.mean(means)), "spread": spread, "uar_interval": average["uar_interval"]}
    return scores


def uar_section(run: Run) -> str:
    """The table: a row for each corpus held out, a column for each system."""
    columns = run.plan["columns"]
    scores = {column: column_scores(run, column) for column in columns}
    chance = chance_of(run)
    rows = []
    for corpus in (*run.plan["corpora"], AVERAGE):
        rows.append([corpus, percent(chance[corpus]), *(uar_text(scores[column].get(corpus)) for column in columns)])
    trainable = [{each.parameters["trainable"] for each in cells_of(run, column)} for column in columns]
    rows.append(["trainable", UNKNOWN, *(" / ".join(map(parameter_count, sorted(each))) for each in trainable)])
    note = (
        "UAR in %: the mean over seeds; in brackets the 95 % interval by speaker of the predictions of all seeds "
        "together (by clip where fewer than five speakers are known); after ± the 95 % t interval of the mean over "
        "seeds, each of which tests other speakers."
    )
    return f"{markdown_table(['held out', 'chance', *(COLUMNS[column].title for column in columns)], rows)}\n\n{note}"


def uar_text(scores: dict[str, Any] | None) -> str:
    """`50.0 [45.0, 55.0] ± 3.0`; what is not known is left out."""
    if scores is None:
        return ""
    spread = f" ± {percent(scores['spread'])}" if scores["spread"] is not None else ""
    return bracketed(scores["uar"], scores["uar_interval"], percent) + spread


def verdict(interval: Sequence[float] | None, as_good: bool = False) -> str:
    """What a difference's interval says of a claim: `held`, `did not hold` or `undecided`.

    That one is better holds where the interval is above zero, and does not where it is below; that the other is as good
    holds where the interval is below `MARGIN`, and does not where it is above that.
    """
    if interval is None:
        return "undecided"
    low, high = interval
    held, refuted = (high < MARGIN, low > MARGIN) if as_good else (low > 0, high < 0)
    return "held" if held else "did not hold" if refuted else "undecided"


def compared(run: Run, claim: Claim) -> dict[str, Any] | None:
    """The comparison of a claim on the cells that both columns have: as in comparison.json, and `seeds`.

    `seeds` has the difference of the average UAR of each seed that has all corpora. None without such cells.
    """
    chosen = [cell for cell in sorted(run.cells) if cell.column == claim.better]
    pairs = [(cell, other) for cell in chosen if (other := cell._replace(column=claim.other)) in run.cells]
    if not pairs:
        return None
    tables = {side: pooled([run.cells[pair[side]] for pair in pairs]) for side in (1, 0)}
    (found,) = compare({"other": tables[1], "better": tables[0]}, SIX_CLASSES)["pairs"]
    differences: dict[int, list[float]] = {}
    for one, two in pairs:
        difference = uar_of(run.cells[one].test) - uar_of(run.cells[two].test)
        differences.setdefault(one.seed, []).append(difference)
    whole = {seed: each for seed, each in differences.items() if len(each) == len(run.plan["corpora"])}
    return found | {"seeds": [float(np.mean(each)) for each in whole.values()]}


def difference_text(scores: dict[str, Any] | None, as_good: bool) -> str:
    """`+1.5 [+0.5, +2.5] held`."""
    return f"{change_text(scores)} {verdict(scores['interval'], as_good)}" if scores else ""


def claims_section(run: Run) -> str:
    """Each claim as a paired comparison; the words follow from the intervals."""
    corpora = list(run.plan["corpora"])
    lines = [(claim.text, f"{claim.better} - {claim.other}", compared(run, claim), claim.as_good) for claim in CLAIMS]
    if probe := last_probe(run):
        pair = next(each for each in probe["comparison"] if each["models"] == list(PROBED))
        lines.insert(0, ("pre-training helps (linear probe)", f"{PROBED[1]} - {PROBED[0]}", pair, False))
    rows = []
    for text, difference, found, as_good in lines:
        scores = dict.fromkeys(corpora) | (found["corpora"] if found else {})
        average = found[AVERAGE] if found and len(found["corpora"]) == len(corpora) else None
        rows.append(
            [
                text,
                difference,
                difference_text(average, as_good),
                p_text(average["p"]) if average else "",
                ", ".join(points(each) for each in found.get("seeds", [])) if found else "",
                *(difference_text(scores[corpus], as_good) for corpus in corpora),
            ]
        )
    note = (
        "Differences of UAR in points on the same clips of all seeds together, with 95 % intervals by speaker. `held`: "
        "the interval is above zero; `did not hold`: below; `undecided`: it reaches zero. As good is not worse by "
        f"{100 * MARGIN:.0f} points: it holds where the interval is below that. p is that of no difference, not "
        "corrected for the number of claims. An interval by speaker is for other speakers and these trainings; how far "
        "seeds are apart is in the column by seed."
    )
    header = ["claim", "difference", AVERAGE, "p", "average by seed", *corpora]
    return f"{markdown_table(header, rows, left=(0, 1))}\n\n{note}"


def forgetting_section(run: Run) -> str:
    """What stage 1's corpora lose by stage 2, for each column, by the same clips before and after."""
    corpora = list(run.plan["corpora"])
    rows = []
    for column in run.plan["columns"]:
        before: list[pandas.DataFrame] = []
        after: list[pandas.DataFrame] = []
        for found in cells_of(run, column):
            first = run.cells.get(found.cell._replace(column=STAGE_1))
            if first is not None and len(found.forgetting):
                key = ["corpus", *CLIP]
                kept = first.test.merge(found.forgetting[key], on=key)
                before, after = [*before, kept], [*after, found.forgetting]
        if not before:
            rows.append([COLUMNS[column].title, *[""] * (len(corpora) + 3)])
            continue
        tables = {name: with_probabilities(pandas.concat(each)) for name, each in (("b", before), ("a", after))}
        (pair,) = compare(tables, SIX_CLASSES)["pairs"]
        uars = {name: score_and_average(table, SIX_CLASSES, "test")[1]["uar"] for name, table in tables.items()}
        texts = [change_text(pair["corpora"].get(corpus)) for corpus in corpora]
        title = COLUMNS[column].title + ("" if COLUMNS[column].after_stage_1 else " (never trained on them)")
        rows.append([title, percent(uars["b"]), percent(uars["a"]), change_text(pair[AVERAGE]), *texts])
    note = (
        "UAR in % on the test speakers of the corpora that stage 1 trained on, by stage 1's model and by the column's "
        "after stage 2, whichever corpus was held out; changes in points, with 95 % intervals by speaker."
    )
    header = ["column", "stage 1", "after stage 2", "change", *corpora]
    return f"{markdown_table(header, rows)}\n\n{note}"


def change_text(scores: dict[str, Any] | None) -> str:
    """`-1.5 [-2.5, -0.5]`."""
    return bracketed(scores["difference"], scores["interval"], points) if scores else ""


def stage_1_section(run: Run) -> str:
    """How well stage 1 has learnt its corpora."""
    chance = chance_of(run)
    rows = []
    for held_out in run.plan["corpora"]:
        found = cells_of(run, STAGE_1, held_out)
        others = [name for name in run.plan["corpora"] if name != held_out]
        guessed = float(np.mean([chance[name] for name in others]))
        curves = [[uar for _, uar in each.curves[AVERAGE]] for each in found if AVERAGE in each.curves]
        summaries = [(curve[0], max(curve), curve[-1]) for curve in curves]
        validation = [percent(float(value)) for value in np.mean(summaries, axis=0)] if curves else [""] * 3
        tests = []
        for name in others:
            uars = [uar_of(each.test[each.test["corpus"] == name]) for each in found]
            tests.append(f"{name} {percent(float(np.mean(uars)))} ({percent(chance[name])})" if uars else name)
        rows.append([held_out, str(len(found)), percent(guessed), *validation, "; ".join(tests)])
    note = (
        "UAR in %, means over seeds: the average over the validation splits at the first evaluation, the best (whose "
        "weights are kept) and the last, and each corpus's test split with its chance."
    )
    header = ["held out", "seeds", "chance", "first", "best", "last", "test (chance)"]
    return f"{markdown_table(header, rows, left=(0, 6))}\n\n{note}"


def last_probe(run: Run) -> dict[str, Any]:
    """The linear probes of the last iteration of the pre-training; empty where there is none."""
    return run.pretraining.get(PRETRAINING[-1], {}).get("probe") or {}


def pretraining_section(run: Run) -> str:
    """How well each iteration predicts its targets, and what linear probes find in the random start and after each."""
    if not run.pretraining:
        return ""
    rows = []
    for name, results in run.pretraining.items():
        targets, found = results["targets"], results["validation"]
        accuracy = f"{percent(found['accuracy_masked'])} / {percent(found['accuracy_unmasked'])}"
        clusters = [str(targets["clusters"]), f"{targets['perplexity']:.0f}", f"{targets['stability']:.2f}"]
        rows.append([name, *clusters, f"{found['loss']:.2f}", accuracy])
    header = ["iteration", "clusters", "perplexity", "stability", "loss", "accuracy in %, masked / unmasked"]
    parts = [markdown_table(header, rows)]
    probes = {name: results["probe"] for name, results in run.pretraining.items() if results.get("probe")}
    if probes:
        first = next(iter(probes.values()))
        systems = {"random start": first["systems"][PROBED[0]]}
        systems |= {name: probe["systems"][PROBED[1]] for name, probe in probes.items()}
        corpora = list(systems["random start"])
        table = [
            [
                name,
                percent(first["chance"].get(name)),
                *(bracketed(scores[name]["uar"], scores[name]["uar_interval"], percent) for scores in systems.values()),
            ]
            for name in corpora
        ]
        parts.append(markdown_table(["linear probe", "chance", *systems], table))
        parts.append(
            "UAR in % of a linear classifier on mean hidden states, on speakers that it did not train on (of a corpus "
            "with fewer than three speakers: on other clips)."
        )
    return "\n\n".join(parts)


def draw_pictures(run: Run, folder: Path, prefix: str = "") -> list[str]:
    """Writes the pictures that there is something for; returns their names."""
    chance, corpora, columns = chance_of(run), list(run.plan["corpora"]), run.plan["columns"]
    titles = {column: COLUMNS[column].title for column in columns}
    scores = {titles[column]: each for column in columns if (each := column_scores(run, column))}
    drawn = []
    if scores:
        drawn.append(f"{prefix}uar.png")
        plot_uars(folder / drawn[-1], scores, chance)
    panels = {}
    for held_out in corpora:
        lines = {
            titles[column]: [each.curves[held_out] for each in cells_of(run, column, held_out) if each.curves]
            for column in columns
        }
        if any(lines.values()):
            panels[held_out] = lines
    if panels:
        drawn.append(f"{prefix}curves.png")
        plot_bands(folder / drawn[-1], panels, chance, "stage 2, on the corpus held out")
    panels, guessed = {}, {}
    for held_out in corpora:
        found = [each for each in cells_of(run, STAGE_1, held_out) if each.curves]
        others = [name for name in corpora if name != held_out]
        if found:
            panel = f"without {held_out}"
            panels[panel] = {name: [each.curves[name] for each in found] for name in (AVERAGE, *others)}
            guessed[panel] = float(np.mean([chance[name] for name in others]))
    if panels:
        drawn.append(f"{prefix}stage1.png")
        plot_bands(folder / drawn[-1], panels, guessed, "stage 1, with the average chance of its corpora")
    return drawn


if __name__ == "__main__":
    sys.exit(run_with_one_line_errors(main))
