"""Corpora of which little is left: a single class, over which UAR is not defined, or a part of the clips.

python -m pytest tests/test_one_class.py
"""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
import numpy as np
import pandas
import pytest
import yaml
from test_prepare import write_tree
from test_scores import make_predictions, plain
from transformers import EvalPrediction, HubertConfig, HubertModel

import evaluate_hf
import exhubert.evaluation
import train_hf
from conftest import HUBERT_KINDS, SMALL, refused, write_corpus
from exhubert.cli import main
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.metrics import average_metrics, compute_metrics, scores_of
from exhubert.evaluation.scores import average, compare, score

SIX = list(SIX_CLASSES)


def predictions(seed: int = 0) -> pandas.DataFrame:
    """A corpus of two classes, and one of a single class of which two thirds are right."""
    speakers = [f"{number % 6}" for number in range(30)]
    whole = make_predictions("whole", ["low/neutral", "high/negative"] * 15, speakers, SIX, seed=seed)
    alone = make_predictions("alone", ["low/neutral"] * 30, speakers, SIX, seed=seed + 1)
    alone["prediction"] = ["low/neutral", "low/neutral", "high/negative"] * 10
    return pandas.concat([whole, alone], ignore_index=True)


def test_the_metric_refuses_one_class_and_leaves_out_what_has_none():
    uar = evaluate.load(str(Path(exhubert.evaluation.__file__).parent / "uar"))
    with pytest.raises(ValueError, match="all 3 references are of the class 2; a UAR over one class is not defined"):
        uar.compute(references=[2, 2, -100, 2], predictions=[2, 2, 2, 0])
    with pytest.raises(ValueError, match="no references"):
        uar.compute(references=[-100], predictions=[1])
    assert uar.compute(references=[0, -100, 0, 1, -100], predictions=[0, 1, 1, 1, -100]) == {"uar": 0.75}
    logits = np.eye(3)[[0, 1, 1, 1]]
    assert compute_metrics(EvalPrediction(logits, np.array([0, -100, 0, 1])))["uar"] == 0.75


def test_scores_of_one_class_are_none_and_count_in_no_average():
    scores = scores_of(np.array([[[3.0, 1.0], [0.0, 0.0]], [[3.0, 1.0], [0.0, 2.0]]]))
    assert np.isnan(scores["uar"]).tolist() == np.isnan(scores["macro_f1"]).tolist() == [True, False]
    table = predictions()
    found, means = score(table, SIX, "test"), average(table, SIX)
    assert plain(found) and plain(means)
    whole = score(table[table["corpus"] == "whole"], SIX, "test")["whole"]
    for name in ("uar", "uar_interval", "macro_f1", "arousal_uar", "valence_uar", "valence_uar_interval"):
        assert found["alone"][name] is None and found["whole"][name] == pytest.approx(whole[name])
    assert found["alone"]["accuracy"] == found["alone"]["recall"]["low/neutral"] == pytest.approx(2 / 3)
    for name in ("uar", "macro_f1", "arousal_uar"):
        assert means[name] == found["whole"][name]
    assert means["accuracy"] == pytest.approx((found["whole"]["accuracy"] + 2 / 3) / 2)
    assert means["without_uar"] == ["alone"]
    assert means["uar_interval"] == pytest.approx(found["whole"]["uar_interval"])
    nothing = average(table[table["corpus"] == "alone"], SIX)
    assert (nothing["uar"], nothing["uar_interval"]) == (None, None)


def test_models_are_not_compared_on_one_class():
    (pair,) = compare({"a": predictions(), "b": predictions(2)}, SIX)["pairs"]
    alone, whole = pair["corpora"]["alone"], pair["corpora"]["whole"]
    assert (alone["difference"], alone["interval"], alone["p"]) == (None, None, None)
    assert pair["average"]["difference"] == whole["difference"] and pair["average"]["p"] == whole["p"]
    only = {name: table[table["corpus"] == "alone"] for name, table in (("a", predictions()), ("b", predictions(2)))}
    assert compare(only, SIX)["pairs"][0]["average"] == {"difference": None, "interval": None, "p": None}


def test_training_averages_what_is_defined():
    one = compute_metrics(EvalPrediction(np.eye(2)[[0, 1]], np.array([0, 0])))
    assert one == {"accuracy": 0.5}
    metrics = {"eval_a_uar": 0.25, "eval_a_accuracy": 0.25, "eval_a_macro_f1": 0.5, "eval_b_accuracy": 0.75}
    assert average_metrics(metrics, ["a", "b"]) == {
        **{"eval_average_uar": 0.25, "eval_average_accuracy": 0.5, "eval_average_macro_f1": 0.5}
    }


def test_training_evaluation_and_card_say_that_there_is_no_uar(tmp_path, capsys):
    write_corpus(tmp_path / "whole")
    write_corpus(tmp_path / "baved", labels=("low", "neutral", "high"))  # levels, two of which are no emotion
    HubertModel(HubertConfig(**{**SMALL, **HUBERT_KINDS["large"]})).save_pretrained(tmp_path / "hubert")
    recipe = {"model": str(tmp_path / "hubert"), "corpora": [str(tmp_path / "baved")], "output": str(tmp_path / "run")}
    recipe |= {"rounds": 2, "batch_size": 4, "window_seconds": 0.6, "training": {"report_to": "none", "eval_steps": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    line = refused(capsys, train_hf.main, tmp_path / "recipe.yaml")
    assert "'baved': all 2 clips of its validation split are low/neutral; UAR over one class is not defined" in line
    assert "the best model cannot be chosen by average_uar; give corpora whose" in line

    both = ["--corpora", str(tmp_path / "whole"), str(tmp_path / "baved")]
    assert train_hf.main([str(tmp_path / "recipe.yaml"), *both]) == 0
    said = capsys.readouterr().out
    assert "corpus 'baved': 16 of 24 clips are left out, their labels name no emotion: low, high" in said
    assert "'baved': all 2 clips of its test split are low/neutral; UAR over one class is not defined" in said
    assert "test UAR on baved: not defined, all clips are low/neutral (2 clips)" in said
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["corpora"]["baved"]["uar"] is None
    assert list(json.loads((tmp_path / "run/curves.json").read_text())) == ["whole"]
    card = (tmp_path / "run/model/README.md").read_text()
    assert "**All clips of baved are of one class**: UAR and macro-F1 are not defined there" in card
    assert card.count("type: uar") == 1  # of `whole` alone

    command = ["--model", str(tmp_path / "run/model"), "--output", str(tmp_path / "evaluation"), "--robustness"]
    assert evaluate_hf.main([*command, *both]) == 0
    said = capsys.readouterr().out
    assert "UAR on baved: not defined, all clips are low/neutral; it counts in no average" in said
    report = (tmp_path / "evaluation/report.md").read_text()
    assert "**Clips of one class only**: baved (low/neutral). UAR is not defined there" in report
    assert "| average |" in report and "nan" not in report
    assert evaluate_hf.main([*command, "--corpora", str(tmp_path / "baved")]) == 2


def test_prepare_that_leaves_out_much_says_so_and_ends_in_2(tmp_path, capsys):
    good = [f"wav/03a0{number}Fa.wav" for number in range(1, 8)]
    bad = [f"wav/other{number}.wav" for number in range(3)]
    for name, files, code in (("most", [*good, *bad[:2]], 0), ("part", [*good, *bad], 2)):
        raw = write_tree(tmp_path / name, files)
        assert (
            main(["corpora", "prepare", "emodb", str(raw), str(tmp_path / f"{name}.out"), "--protocol", "files"])
            == code
        )
        said = capsys.readouterr().out
        assert ("3 of 10 audio files (30%) did not become clips; if they belong to the corpus" in said) == (code == 2)
