"""`make replicate`: the grid on tiny corpora, stopped and gone on with; its report; what is refused at the start.

python -m pytest tests/test_replication.py
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from test_recipes import PUBLISHED_LARGE, TABLE_2, full_size
from transformers import HubertConfig, HubertModel

from conftest import HUBERT_KINDS, ROOT, SMALL, refused, write_corpus
from exhubert import SIX_CLASSES
from exhubert.modeling_exhubert import frame_samples
from exhubert.replication import plan, report, run, workers
from exhubert.replication.finished import Found, Run, export, read_run
from exhubert.replication.workers import Job, run_jobs
from exhubert.training.arguments import parse
from exhubert.training.masked_prediction import read_start
from exhubert.training.pretraining_recipe import parse_pretraining

COLUMNS = ("exhubert_stage1", "lora")
SHORT = "rounds: 2, batch_size: 2, window_seconds: 0.5, per_device_eval_batch_size: 32, eval_steps: 2"


class Interrupting(io.StringIO):
    """What is said; once `word` is, this process gets SIGTERM."""

    def __init__(self, word: str | None = None) -> None:
        super().__init__()
        self.word = word

    def write(self, text: str) -> int:
        if self.word is not None and self.word in text:
            self.word = None
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


def replicate(folder: Path, *options: str, interrupt_at: str | None = None) -> tuple[int, str]:
    """Runs the command in `folder`; returns its exit code and what it said."""
    given = ["--corpora", str(folder / "corpora"), "--run", str(folder / "run"), "--start", str(folder / "hubert")]
    given += ["--settings", str(folder / "settings.yaml"), "--seeds", "2", "--columns", *COLUMNS, "--workers", "2"]
    with contextlib.redirect_stdout(Interrupting(interrupt_at)) as said:
        code = run.main([*given, *options])
    return code, said.getvalue()


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, list[tuple[int, str]], dict[str, int]]:
    """A folder in which the grid was trained, in two goes; what each said; when the first one's cells were finished."""
    folder = tmp_path_factory.mktemp("grid")
    write_corpus(folder / "corpora" / "aa", speakers=("1", "2", "3", "4", "5", "6"))
    write_corpus(folder / "corpora" / "bb", labels=("anger", "joy"))
    write_corpus(folder / "corpora" / "nobody", takes=3, speaker=lambda row: "")
    torch.manual_seed(0)
    HubertModel(HubertConfig(**SMALL, **HUBERT_KINDS["large"])).save_pretrained(folder / "hubert")
    (folder / "settings.yaml").write_text(f"stage1: {{{SHORT}}}\nstage2: {{{SHORT}}}\n")
    with pytest.MonkeyPatch.context() as patch:
        # Forks of this process, which has imported everything; and blank pictures.
        fork = multiprocessing.get_context("fork")
        patch.setattr(multiprocessing, "get_context", lambda method: fork)
        patch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).touch())
        goes = [replicate(folder, interrupt_at="[5/18]")]
        times = {str(path): path.stat().st_mtime_ns for path in folder.glob("run/seed*/*/*/cell.json")}
        goes.append(replicate(folder))
    return folder, goes, times


@pytest.mark.slow
def test_a_stopped_grid_goes_on_and_does_no_finished_cell_again(grid):
    folder, ((stopped, first), (code, second)), times = grid
    assert (stopped, code) == (3, 0)
    assert "interrupted; the same command goes on" in first
    assert 5 <= len(times) < 18
    assert f"{len(times)} of 18 cells are finished" in second
    assert {name: Path(name).stat().st_mtime_ns for name in times} == times
    assert len(list(folder.glob("run/seed*/*/*/cell.json"))) == 18
    assert re.search(r"\[18/18\] seed\d/\w+/\w+: UAR \w+ \d+\.\d; \d+ s; about 0 min left", second)


@pytest.mark.slow
def test_cells_keep_results_and_no_weights(grid):
    folder, *_ = grid
    for cell in folder.glob("run/seed*/*/*/"):
        assert {"results.json", "predictions.parquet", "curves.json", "recipe.yaml"} <= set(os.listdir(cell))
        assert not list(cell.rglob("*.safetensors"))


@pytest.mark.slow
def test_a_cell_tests_its_fold_of_the_corpus_held_out_and_forgetting_on_the_others(grid):
    folder, *_ = grid
    for column in COLUMNS:
        tests = [pandas.read_parquet(folder / f"run/seed{seed}/aa/{column}/predictions.parquet") for seed in (0, 1)]
        assert not set(tests[0]["speaker"]) & set(tests[1]["speaker"])
        assert [set(test["corpus"]) for test in tests] == [{"aa"}] * 2
        cell = folder / "run" / "seed1" / "aa" / column
        forgetting = pandas.read_parquet(cell / "forgetting.parquet")
        stage_1 = pandas.read_parquet(cell.parent / "stage1" / "predictions.parquet")
        names = ["corpus", "file_name", "reference"]
        pandas.testing.assert_frame_equal(forgetting[names], stage_1[names])


@pytest.mark.slow
def test_lora_trains_as_many_parameters_as_the_copies(grid):
    folder, *_ = grid
    copies, lora = (
        json.loads((folder / f"run/seed0/aa/{column}/results.json").read_text())["parameters"]["trainable"]
        for column in COLUMNS
    )
    assert abs(lora / copies - 1) < 0.03


@pytest.mark.slow
def test_the_table_has_the_numbers_that_follow_from_the_predictions(grid):
    folder, *_ = grid
    rows = {line.split("|")[1].strip(): line.split("|")[3:] for line in section(folder, "UAR on the corpus held out")}
    averages = []
    for column, title in enumerate(COLUMNS):
        means = []
        for corpus in ("aa", "bb", "nobody"):
            uars = []
            for seed in (0, 1):
                table = pandas.read_parquet(folder / f"run/seed{seed}/{corpus}/{title}/predictions.parquet")
                right = table["reference"] == table["prediction"]
                uars.append(right.groupby(table["reference"]).mean().mean())
            means.append(np.mean(uars))
            half_width = 12.70620 * np.std(uars, ddof=1) / np.sqrt(2)  # Student's t of two values
            assert re.fullmatch(
                rf"{100 * means[-1]:.1f} \[\d+\.\d, \d+\.\d\] ± {100 * half_width:.1f}", rows[corpus][column].strip()
            )
        averages.append(np.mean(means))
        assert rows["average"][column].split()[0] == f"{100 * averages[-1]:.1f}"
    chances = [line.split("|")[2].strip() for line in section(folder, "UAR on the corpus held out")[2:6]]
    assert chances == ["33.3", "50.0", "33.3", "38.9"]


@pytest.mark.slow
def test_forgetting_is_the_difference_to_stage_1_on_the_same_clips(grid):
    folder, *_ = grid
    (row,) = [line for line in section(folder, "Forgetting") if line.startswith("| LoRA")]
    changes = []
    for corpus in ("aa", "bb", "nobody"):
        tables = {"stage1/predictions": [], "lora/forgetting": []}
        for name, parts in tables.items():
            for path in sorted(folder.glob(f"run/seed*/*/{name}.parquet")):
                table = pandas.read_parquet(path)
                parts.append(table[table["corpus"] == corpus])
        before, after = (pandas.concat(parts) for parts in tables.values())
        assert len(before) == len(after) > 0
        uars = [
            (table["reference"] == table["prediction"]).groupby(table["reference"]).mean().mean()
            for table in (before, after)
        ]
        changes.append(uars[1] - uars[0])
    assert float(row.split("|")[4].split()[0]) == pytest.approx(100 * np.mean(changes), abs=0.051)


@pytest.mark.slow
def test_exported_files_hold_no_names_of_clips_and_give_the_same_report(grid, tmp_path):
    folder, *_ = grid
    original = read_run(folder / "run")
    export(original, tmp_path / "exported")
    assert report.report_text(read_run(tmp_path / "exported")) == report.report_text(original)
    assert "wav" not in "".join(path.read_text() for path in (tmp_path / "exported").iterdir())
    some = {cell: found for cell, found in original.cells.items() if cell.held_out == "aa"}
    export(Run(original.plan, some, {}, {}), tmp_path / "exported")
    assert read_run(tmp_path / "exported").cells.keys() == some.keys()
    with pytest.raises(ValueError, match="run is a run folder; give another one to export to"):
        export(original, folder / "run")


@pytest.mark.slow
def test_the_report_of_some_cells_leaves_blanks(grid):
    folder, *_ = grid
    whole = read_run(folder / "run")
    some = {cell: found for cell, found in whole.cells.items() if cell.column != "lora" and cell.held_out == "aa"}
    text = report.report_text(Run(whole.plan, some, {}, {}))
    assert "4 of 18 cells are finished" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| bb ") and "50.0 |  " in line]
    assert row.split("|")[3].strip() == row.split("|")[4].strip() == ""
    assert report.report_text(Run(whole.plan, {}, {}, {})).count("undecided") == 1  # in the note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rounds: 3", "rounds or early_stopping are others than in that run"),
        ("learning_rate: 0.5", "learning_rate is 0.5, but the run in"),
    ],
)
def test_finished_cells_of_other_settings_are_refused(grid, capsys, tmp_path, change, message):
    folder, *_ = grid
    (tmp_path / "settings.yaml").write_text(f"stage1: {{{SHORT}}}\nstage2: {{{SHORT}}}\nlora: {{{change}}}\n")
    options = ["--corpora", folder / "corpora", "--run", folder / "run", "--start", folder / "hubert", "--seeds", "2"]
    line = refused(capsys, run.main, *options, "--settings", tmp_path / "settings.yaml", "--columns", *COLUMNS)
    assert line.startswith("error: seed0/aa/lora: ")
    assert message in line
    assert "to do it again, or give another RUN" in line


@pytest.mark.slow
def test_a_run_of_other_clips_is_refused(grid, capsys, tmp_path):
    folder, *_ = grid
    for name in ("aa", "bb", "cc"):
        write_corpus(tmp_path / name)
    line = refused(capsys, run.main, "--corpora", tmp_path, "--run", folder / "run", "--start", folder / "hubert")
    assert "was begun with other corpora; give another RUN" in line


def test_pictures_and_the_document_are_written(grid_free_run, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- small: begin -->\nold\n<!-- small: end -->\nafter\n")
    report.write_into(document, "small", grid_free_run)
    text = document.read_text()
    assert text.startswith("before\n<!-- small: begin -->\n\n## Replication\n")
    assert text.endswith("<!-- small: end -->\nafter\n")
    assert "\nold\n" not in text
    for name in re.findall(r"\]\((.+\.png)\)", text):
        assert (tmp_path / name).stat().st_size > 10_000
    with pytest.raises(ValueError, match="no marks <!-- large: begin --> and <!-- large: end -->"):
        report.write_into(document, "large", grid_free_run)


def section(folder: Path, heading: str) -> list[str]:
    """The table below a heading of the run's report."""
    text = (folder / "run" / "report.md").read_text()
    assert text.startswith("# Replication\n\n18 of 18 cells are finished (2 seeds, 3 corpora held out in turn")
    lines = text.split(f"## {heading}\n\n")[1].splitlines()
    return [line for line in lines[: lines.index("")] if line.startswith("|")]


def made_up(accuracies: dict[str, float], seeds: int = 3, corpora: tuple[str, ...] = ("x", "y")) -> Run:
    """A run whose columns were right in so many cases, on eight speakers a corpus and seed."""
    cells = {}
    for seed in range(seeds):
        for corpus in corpora:
            for column, accuracy in accuracies.items():
                rows = []
                for number in range(160):
                    reference = SIX_CLASSES[number % 2]
                    right = np.random.default_rng([seed, number]).random() < accuracy
                    prediction = reference if right else SIX_CLASSES[1 - number % 2]
                    clip = {"corpus": corpus, "speaker": f"{seed} {number // 20}", "file_name": f"{seed} {number}"}
                    rows.append(clip | {"start_seconds": 0.0, "reference": reference, "prediction": prediction})
                cell = plan.Cell(seed, corpus, column)
                curves = {corpus: [(1, 0.5), (2, accuracy)]}
                table = pandas.DataFrame(rows)
                cells[cell] = Found(cell, {"total": 10, "trainable": 5}, curves, 1.0, {}, table, table.iloc[:0])
    facts = {"clips": 480, "speakers": 24, "classes": list(SIX_CLASSES[:2]), "speakers_apart": True}
    known = {"corpora": dict.fromkeys(corpora, facts), "seeds": seeds, "columns": list(accuracies), "device": "cpu"}
    return Run(known, cells, {}, {})


@pytest.fixture
def grid_free_run() -> Run:
    return made_up({"hubert": 0.5, "hubert_stage1": 0.9})


@pytest.mark.parametrize(
    ("other", "better", "word", "as_good"),
    [
        (0.5, 0.8, "held", "did not hold"),
        (0.8, 0.5, "did not hold", "held"),
        (0.8, 0.8, "undecided", "held"),
        (0.79, 0.81, "held", "undecided"),  # by few points, but on the same clips
    ],
)
def test_the_words_of_claims_follow_from_the_intervals(other, better, word, as_good):
    found = made_up({"hubert_stage1": other, "exhubert_stage1": better})
    claim = report.Claim("text", "exhubert_stage1", "hubert_stage1")
    scores = report.compared(found, claim)
    low, high = scores["average"]["interval"]
    assert low <= scores["average"]["difference"] <= high
    assert scores["average"]["difference"] == pytest.approx(better - other, abs=0.05)
    assert len(scores["seeds"]) == 3
    assert report.verdict([low, high]) == word
    assert report.verdict([low, high], as_good=True) == as_good
    difference = f"{claim.better} - {claim.other}"
    (line,) = [each for each in report.claims_section(found).splitlines() if difference in each]
    assert line.split("|")[3].strip().endswith(word)


def test_pre_training_is_judged_by_its_last_probe():
    found = made_up({"hubert": 0.5})
    for name, gain in (("pretrain_1", -0.1), ("pretrain_2", 0.1)):
        scores = {"difference": gain, "interval": [gain - 0.05, gain + 0.05], "p": 0.001}
        pair = {"models": ["random", "pre-trained"], "corpora": {"x": scores, "y": scores}, "average": scores}
        systems = {
            system: {key: {"uar": uar, "uar_interval": [uar - 0.1, uar + 0.1]} for key in ("x", "y", "average")}
            for system, uar in (("random", 0.4), ("pre-trained", 0.4 + gain))
        }
        found.pretraining[name] = {
            "targets": {"clusters": 100, "perplexity": 90.0, "stability": 0.5},
            "validation": {"loss": 2.0, "accuracy_masked": 0.3, "accuracy_unmasked": 0.6},
            "probe": {"systems": systems, "chance": {"x": 0.5, "y": 0.5}, "comparison": [pair]},
        }
    text = report.report_text(found)
    (row,) = [line for line in text.splitlines() if line.startswith("| pre-training helps")]
    assert row.count("+10.0 [+5.0, +15.0] held") == 3
    (row,) = [line for line in text.splitlines() if line.startswith("| average") and "30.0 [20.0, 40.0]" in line]
    assert [cell.split()[0] for cell in row.split("|")[3:6]] == ["40.0", "30.0", "50.0"]


@pytest.mark.parametrize(
    ("interval", "word", "as_good"),
    [
        ([0.001, 0.01], "held", "held"),
        ([-0.001, 0.01], "undecided", "held"),
        ([-0.03, -0.01], "did not hold", "held"),
        ([-0.01, 0.03], "undecided", "undecided"),
        ([0.03, 0.05], "held", "did not hold"),
        ([-0.05, 0.05], "undecided", "undecided"),
        (None, "undecided", "undecided"),
    ],
)
def test_verdicts(interval, word, as_good):
    assert report.verdict(interval) == word
    assert report.verdict(interval, as_good=True) == as_good


def test_the_columns_are_the_papers_at_full_size():
    """Their recipes give, with HuBERT Large, the parameters of Table 2; LoRA's rank gives as many as the copies."""
    folder = ROOT / "recipes" / "replication"
    given = ["--model", "hubert", "--corpora", "c", "--output", "unused"]
    recipes = {column: parse([str(folder / f"{column}.yaml"), *given])[0] for column in ("stage1", *plan.COLUMNS)}
    for column, name in (
        ("hubert", "hubert_ls960"),
        ("hubert_stage1", "hubert_emoset"),
        ("exhubert", "exhubert_ls960"),
        ("exhubert_stage1", "exhubert_emoset"),
        ("non_frozen", "exhubert_non_frozen"),
        ("xlarge", "exhubert_xlarge"),
    ):
        assert full_size(recipes[column]).num_parameters(only_trainable=True) == TABLE_2[f"transfer/{name}.yaml"][1]
    rank = plan.lora_rank(HubertConfig(**PUBLISHED_LARGE), recipes["exhubert_stage1"], recipes["lora"])
    recipes["lora"].lora["rank"] = rank
    lora = full_size(recipes["lora"]).num_parameters(only_trainable=True)
    assert abs(lora / TABLE_2["transfer/exhubert_emoset.yaml"][1] - 1) < 0.001
    assert recipes["weighted_sum"].freeze == ["base"]


def test_a_job_that_fails_is_named_with_its_last_line_and_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PRELOADED", ["exhubert.replication.workers"])  # these need no more
    names = ("first", "bad", "after bad", "last")
    arguments = {"first": ("0",), "bad": ("no number",), "after bad": ("0",), "last": ("0",)}
    needs = {"after bad": ("bad",), "last": ("first", "not among them")}
    jobs = [Job(name, int, arguments[name], tmp_path / f"{name}.log", needs.get(name, ())) for name in names]
    jobs.append(Job("killed", os.abort, (), tmp_path / "killed.log"))
    done = []
    failed = run_jobs(jobs, 1, lambda job, seconds: done.append(job.name))
    assert done == ["first", "last"]
    assert failed == {
        "bad": "error: invalid literal for int() with base 10: 'no number'",
        "after bad": "bad failed",
        "killed": "its process was ended by signal 6",
    }


def test_a_linked_corpus_has_the_name_of_the_link(tmp_path):
    for name in ("a", "b", "elsewhere"):
        write_corpus(tmp_path / name, takes=1)
    (tmp_path / "corpora").mkdir()
    for name, target in (("a", "a"), ("b, with [odd] name=ä", "b"), ("c", "elsewhere")):
        (tmp_path / "corpora" / name).symlink_to(tmp_path / target)
    found = plan.corpus_folders([tmp_path / "corpora"])
    assert list(found) == ["a", "b, with [odd] name=ä", "c"]
    assert list(plan.look_at_corpora(found)) == list(found)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_run_on_each_device_can_be_read(tmp_path, device):
    """All commands of the grid; on a GPU a larger model, whose masked spans are as long, and more steps."""
    corpora = {name: tmp_path / name for name in "abc"}
    settings = plan.read_settings(run.default_settings(device))
    recipes, run_folder = ROOT / "recipes" / "replication", tmp_path / "run"
    grid = plan.Plan(run_folder, corpora, tuple(plan.COLUMNS), 1, "hubert", recipes, settings)
    grid = replace(grid, label_file="words.yaml", lora_rank=4)
    for cell in grid.cells():
        recipe, training, _ = parse(grid.command(cell))
        assert (recipe.label_file, training.bf16) == ("words.yaml", device == "cuda")
    for name, layer in zip(plan.PRETRAINING, (None, 2 if device == "cpu" else 6), strict=True):
        recipe, training, _ = parse_pretraining(grid.pretraining_command(name))
        config, _ = read_start(recipe)
        last = name == plan.PRETRAINING[-1]
        assert recipe.probe_corpora == [str(folder) for folder in corpora.values() if last]
        assert (recipe.label_file, training.bf16) == ("words.yaml" if last else None, device == "cuda")
        assert layer is None or (recipe.target_layer, config.num_hidden_layers) == (layer, 2 * layer)
        assert recipe.mask_length * frame_samples(config)[1] == pytest.approx(0.2 * 16_000)


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (None, "2 corpus folder(s) in"),
        ({"labels": ("anger", "zzz")}, "corpus 'c': label 'zzz' (8 clips) has no arousal and valence"),
        ({"labels": ("anger",)}, "corpus 'c': all clips of its train part in fold 1 of 3 are high/negative; leave it"),
        ({"speaker": lambda row: "1" * (row % 2)}, "corpus 'c': 12 of 24 clips have no speaker; fill them in"),
        ({"file_name": lambda row: f"{row}.wav"}, "audio files are missing, first"),
    ],
)
def test_unusable_corpora_are_refused_before_anything_is_computed(tmp_path, capsys, third, message):
    for name, options in {"a": {}, "b": {}, "c": third}.items():
        if options is not None:
            write_corpus(tmp_path / "corpora" / name, **options)
    line = refused(capsys, run.main, "--corpora", tmp_path / "corpora", "--run", tmp_path / "run")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_corpora_that_are_not_there_are_named_with_the_remedy(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EXHUBERT_SHARED", str(tmp_path))
    line = refused(capsys, run.main)
    assert line.startswith(f"error: {tmp_path}/corpora_large/crema_d is not there; give CORPORA=DIR")
    line = refused(capsys, run.main, "--corpora", tmp_path / "nowhere")
    assert line.endswith("nowhere: no such folder of corpora; give CORPORA=DIR, a folder of corpus folders")
    line = refused(capsys, run.main, "--corpora", tmp_path)
    assert line.endswith("no corpus folder there, which has a metadata.csv (docs/corpora.md)")


def test_settings_of_an_unknown_part_are_refused(tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text("stage3: {rounds: 2}\n")
    for name in ("a", "b", "c"):
        write_corpus(tmp_path / "corpora" / name, takes=1)
    line = refused(capsys, run.main, "--corpora", tmp_path / "corpora", "--settings", tmp_path / "settings.yaml")
    assert "unknown part 'stage3'; the nearest is 'stage" in line
