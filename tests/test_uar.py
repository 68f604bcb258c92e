"""The UAR metric module: values, errors, batches, workers, card: `python -m pytest tests/test_uar.py`."""

from __future__ import annotations

import doctest
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import balanced_accuracy_score, recall_score

import exhubert.evaluation
from conftest import ROOT

FOLDER = Path(exhubert.evaluation.__file__).parent / "uar"


@pytest.fixture(scope="module")
def uar() -> evaluate.EvaluationModule:
    return evaluate.load(str(FOLDER))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(uar: evaluate.EvaluationModule, seed: int) -> None:
    generator = np.random.default_rng(seed)
    references = generator.choice([0, 1, 4], size=60, p=[0.7, 0.2, 0.1])  # 2, 3 and 5 are predicted, and not there
    predictions = generator.integers(0, 6, size=60)
    value = uar.compute(references=references, predictions=predictions)["uar"]
    present = np.unique(references)
    assert value == pytest.approx(recall_score(references, predictions, labels=present, average="macro"), abs=1e-12)
    assert value == pytest.approx(balanced_accuracy_score(references, predictions), abs=1e-12)
    assert value == pytest.approx(np.mean([(predictions[references == i] == i).mean() for i in present]), abs=1e-12)


def test_takes_lists_arrays_tensors_and_batches(uar: evaluate.EvaluationModule) -> None:
    references, predictions = [0, 0, 0, 1, 3], [0, 2, 1, 1, 3]
    expected = pytest.approx((1 / 3 + 1 + 1) / 3)
    for convert in (list, np.array, lambda values: np.array(values, dtype=np.int32), torch.tensor):
        assert uar.compute(references=convert(references), predictions=convert(predictions))["uar"] == expected
    for start in range(0, 5, 2):
        part = slice(start, start + 2)
        uar.add_batch(references=references[part], predictions=predictions[part])
    assert uar.compute()["uar"] == expected  # not the mean of the batches'
    both = evaluate.combine({"first": uar, "second": evaluate.load(str(FOLDER))})
    assert both.compute(references=references, predictions=predictions) == {
        "first_uar": expected,
        "second_uar": expected,
    }


def test_errors_say_what_is_wrong_and_leave_the_metric_usable(uar: evaluate.EvaluationModule) -> None:
    for references, predictions, message in (
        ([], [], "no references"),
        ([0, 1, 1], [0, 1], r"predictions \(2\) and references \(3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            uar.compute(references=references, predictions=predictions)
        assert uar.compute(references=[0, 0, 1], predictions=[0, 1, 1]) == {"uar": 0.75}


def test_two_workers_have_one_result(tmp_path: Path) -> None:
    parts = [([0, 0, 0], [0, 1, 1]), ([1, 2], [1, 0])]

    def work(process_id: int) -> dict[str, float] | None:
        metric = evaluate.load(
            str(FOLDER), num_process=2, process_id=process_id, experiment_id="two", cache_dir=str(tmp_path)
        )
        references, predictions = parts[process_id]
        return metric.compute(references=references, predictions=predictions)

    with ThreadPoolExecutor(2) as workers:
        assert list(workers.map(work, range(2))) == [{"uar": pytest.approx((1 / 3 + 1 + 0) / 3)}, None]


def test_examples_of_docstring_and_card_run(
    uar: evaluate.EvaluationModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # the path in them is seen from there
    docstring = doctest.testmod(sys.modules[type(uar).__module__])
    blocks = re.findall(r"^```python\n(.*?)^```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    card = doctest.DocTestRunner().run(example)
    assert (docstring.failed, card.failed) == (0, 0), capsys.readouterr().out
    assert docstring.attempted >= 4 and card.attempted >= 8


def test_card_has_its_metadata_and_the_modules_description_and_citation(uar: evaluate.EvaluationModule) -> None:
    card = ModelCard.load(FOLDER / "README.md", ignore_metadata_errors=False)
    assert card.data.to_dict()["title"] == "UAR" and card.data.tags == ["evaluate", "metric"]
    description = " ".join(uar.description.split())
    assert description.startswith(card.data.to_dict()["description"].removesuffix("."))
    assert uar.citation in card.text
