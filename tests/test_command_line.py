"""The command `exhubert` itself: what is installed, its version, options in both spellings, progress.

python -m pytest tests/test_command_line.py
"""

from __future__ import annotations

import configparser
import csv
import io
import re
import sys
from pathlib import PurePath
from types import SimpleNamespace

import pytest
from transformers.utils import logging

import exhubert
from conftest import ROOT, refused
from exhubert import ExHuBERTForSequenceClassification, ExHuBERTModel
from exhubert.cli import main
from exhubert.training.arguments import Recipe, find_recipe, parse, read_recipe
from exhubert.training.callbacks import RoundProgress
from exhubert.training.pretraining_recipe import PretrainingRecipe
from exhubert.utils.command import progress_bar, with_hyphens


def test_the_wheel_carries_every_recipe():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = [pattern.strip() for pattern in setup["options.package_data"]["exhubert"].split(",")]
    recipes = [path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml")]
    assert len(recipes) > 20
    assert not [path for path in recipes if not any(PurePath(path).match(pattern) for pattern in patterns)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version"], [f"exhubert {exhubert.__version__}"]),
        (["--help"], ["train", "evaluate"]),
        (["pretrain", "--help"], ["exhubert pretrain RECIPE", "  model ", "share of the frames at which", "updates"]),
        (["pretrain", "--help"], ["such as pretraining/first.yaml"]),
        (["train", "--help"], ["exhubert train RECIPE", "expand_copies", "copies of each encoder layer", "rounds"]),
        (["evaluate", "--help"], ["exhubert evaluate", "--skip-bad-audio"]),
    ],
)
def test_what_the_command_says_of_itself(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert not [text for text in said if text not in out]


def test_recipes_of_the_package_go_by_their_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("stage1.yaml", "recipes/stage1.yaml"):
        assert find_recipe(name) == ROOT / "recipes" / "stage1.yaml"
    assert read_recipe(find_recipe("transfer/exhubert_xlarge.yaml"))["expand_copies"] == 2
    assert "nearest to it is stage2.yaml" in refused(capsys, main, "train", "stage2.yml")
    (tmp_path / "stage1.yaml").write_text("model: mine")
    assert read_recipe(find_recipe("stage1.yaml")) == {"model": "mine"}  # the user's own comes first


@pytest.mark.parametrize("name", ["nothing.yaml", "first.yaml", "stage3.yaml", "hubert_base.yaml", "gpu_1.yaml"])
@pytest.mark.parametrize(("command", "kind"), [("train", Recipe), ("pretrain", PretrainingRecipe)])
def test_of_a_missing_recipe_the_nearest_of_its_own_kind_is_named(tmp_path, monkeypatch, capsys, command, kind, name):
    """No recipe of the other kind, no table of HubertConfig and no launcher's settings: they would be refused next."""
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, main, command, name)
    said, suggested = line.split("; the package's own nearest to it is ")
    assert said.endswith(f"{name}: no such recipe file")
    assert read_recipe(ROOT / "recipes" / suggested, kind=kind)  # raises for one of another kind


def test_training_without_its_extra_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "exhubert.train_hf", raising=False)
    assert "exhubert train needs accelerate, which the extra `train` installs" in refused(capsys, main, "train", "x")


def test_options_are_taken_with_hyphens_and_underscores(write_keys, capsys):
    given = ["--label_file=a_b.yaml", "--batch_size", "x_y", "-", "--", "--a_b"]
    assert with_hyphens(given) == ["--label-file=a_b.yaml", "--batch-size", "x_y", "-", "--", "--a_b"]
    for option in ("--clips_per_corpus", "--clips-per-corpus"):
        assert parse([write_keys(), option, "7"])[0].clips_per_corpus == 7
        arguments = ["--model", "gone", "--corpora", "gone", "--output", ".", option, "7", "--batch_size", "0"]
        assert "batch_size is 0" in refused(capsys, main, "evaluate", *arguments)
    assert main(["corpora", "labels", "--label-file", str(ROOT / "corpora" / "labels.yaml")]) == 0
    assert main(["corpora", "labels", "--label_file", str(ROOT / "corpora" / "labels.yaml")]) == 0


def two_hours(monkeypatch, terminal=False):
    """A stream in the place of standard error, and a step every 20 s of a clock that tqdm reads."""
    clock = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)

    def steps():
        for step in range(1, 361):
            clock[0] += 20
            yield step

    return stream, steps()


def bar_of(monkeypatch, terminal):
    """What a bar over two hours leaves on standard error."""
    stream, steps = two_hours(monkeypatch, terminal)
    with progress_bar(desc="decoding", total=360) as bar:
        for _ in steps:
            bar.update()
    return stream.getvalue()


def test_in_a_log_a_bar_is_a_line_a_minute(monkeypatch):
    log = bar_of(monkeypatch, terminal=False)
    assert "\r" not in log
    assert len(log.splitlines()) == 120
    assert all(re.match(r"decoding: +\d+%\|", line) for line in log.splitlines())
    assert bar_of(monkeypatch, terminal=True).count("\r") > 300


def test_in_a_log_the_bar_of_a_training_is_a_line_a_minute(monkeypatch):
    """As `Trainer` calls it: after each update, and with the losses, which are logged more often."""
    stream, steps = two_hours(monkeypatch)
    args = SimpleNamespace(train_batch_size=4, world_size=1, gradient_accumulation_steps=1)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=360, global_step=0)
    progress = RoundProgress(["emodb", "ravdess"], SimpleNamespace(batch_size=4, proportional=False))
    progress.on_train_begin(args, state, None)
    for state.global_step in steps:
        progress.on_step_end(args, state, None)
        progress.on_log(args, state, None, {"loss": 1 / state.global_step})
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) in (119, 120)
    assert all(re.match(r"round \d+, (emodb|ravdess): +\d+%\|.*loss=0", line) for line in lines[1:])


def test_a_short_bar_leaves_no_line_in_a_log(capsys):
    assert list(progress_bar(range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_every_bar_follows_the_rule():
    code = [path for path in ROOT.rglob("*.py") if "tests" not in path.parts]
    code = [path for path in code if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    assert [path.name for path in code if re.search(r"\btqdm\(", path.read_text(encoding="utf-8"))] == ["command.py"]


def test_label_words_fit_a_terminal_and_go_to_csv(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for options in ([], ["--corpus", "emodb"]):
        assert main(["corpora", "labels", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("anger                3 high/negative (card, ") for line in lines)
    assert main(["corpora", "labels", "--format", "csv"]) == 0
    rows = {row["word"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["anger"]["class"] == "3" and "zorn" in rows["anger"]["aliases"].split(", ")
    assert (rows["calm"]["disputed"], rows["calm"]["arousal"]) == ("yes", "low")


def test_names_that_lead_nowhere_have_a_remedy(tmp_path, monkeypatch, capsys, model_folder):
    monkeypatch.chdir(tmp_path)
    assert "the Hub could not be asked" in refused(capsys, main, "predict", "gone/model", "x.wav")
    (tmp_path / "run").mkdir()
    model_folder.rename(tmp_path / "run" / "model")
    assert "the run's model is in run/model" in refused(capsys, main, "predict", "run", "x.wav")
    assert "`exhubert corpora prepare emodb RAW_DIR " in refused(capsys, main, "corpora", "check", "emodb")


@pytest.mark.parametrize("head", ["none", "ctc", "classifier"])
def test_loading_says_nothing_of_what_is_meant(make_hubert, tmp_path, capsys, head):
    source = make_hubert(head=head)
    logging.enable_propagation()
    model = ExHuBERTForSequenceClassification.from_hubert(source)
    model.save_pretrained(tmp_path / "saved")
    ExHuBERTModel.from_pretrained(tmp_path / "saved")
    ExHuBERTModel.from_hubert(source)
    assert "LOAD REPORT" not in capsys.readouterr().err
