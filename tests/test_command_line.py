"""The command `exhubert` itself: what is installed, its version, options in both spellings, progress.

python -m pytest tests/test_command_line.py
"""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import PurePath

import pytest

import exhubert
from conftest import ROOT, refused
from exhubert.cli import main
from exhubert.training.arguments import find_recipe, parse, read_recipe
from exhubert.utils.command import with_hyphens


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
