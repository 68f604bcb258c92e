"""`evaluate_hf.py`: numbers, windows, batches, processes, other packages' models, calibration, robustness, refusals.

python -m pytest tests/test_evaluate.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

import evaluate_hf
from conftest import HUBERT_KINDS, ROOT, SMALL, forks_with_package, free_port, write_corpus
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.audio_exhubert import prepare_input, read_audio
from exhubert.cli import run_with_one_line_errors
from exhubert.evaluation.degradations import CONDITIONS
from exhubert.model_folder import load_pipeline, save_model_folder

CLIPS = 6  # of each speaker: three labels, twice
PARTS = ["train", "train", "validation", "test", "test", "test", "test", "test"]  # of the speakers
LABELS = ("anger", "neutral", "sadness")


def spoil(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that answer differently to different clips."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with two models and two corpora, one of clips shorter and one of clips longer than their 0.8 s."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = ExHuBERTConfig(**{**SMALL, **HUBERT_KINDS["large"], "num_hidden_layers": 2})
    for name, seconds in (("short", 0.5), ("long", 1.1)):
        write_corpus(
            folder / name,
            speakers=[f"{number}" for number in range(len(PARTS))],
            seconds=seconds,
            split=lambda row: PARTS[row // CLIPS],
            sex=lambda row: ("female", "male")[row // CLIPS % 2],
            language=lambda row: ("de", "en")[row // CLIPS % 2],
        )
    heard = [prepare_input(read_audio(path), 0.8) for path in sorted((folder / "long" / "audio").glob("*.wav"))]
    for seed, name in enumerate(("a", "b")):
        model = spoil(ExHuBERTForSequenceClassification(config), seed)
        with torch.no_grad():  # so that clips differ in their class, which they would not with random weights
            logits = model(torch.from_numpy(np.stack(heard))).logits
            scale = 1 / logits.std(dim=0).mean()
            model.classifier.weight *= scale
            model.classifier.bias.copy_(scale * (model.classifier.bias - logits.mean(dim=0)))
            model.classifier.bias[[0, 1, 3]] += 2  # the classes that occur
        save_model_folder(model, folder / name, window_seconds=0.8)
    return folder


def command(place: Path, output: Path, *options: str, models: tuple[str, ...] = ("a",)) -> list[str]:
    """The options that evaluate models of the place on both corpora."""
    corpora = [str(place / name) for name in ("short", "long")]
    return [
        "--model",
        *(str(place / name) for name in models),
        "--corpora",
        *corpora,
        "--output",
        str(output),
        *options,
    ]


def probabilities(folder: Path) -> np.ndarray:
    table = pandas.read_parquet(folder / "predictions.parquet")
    return table[[name for name in table if name.startswith("probability_")]].to_numpy()


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """Both models on both corpora, with everything on request."""
    names = ("--names", "model A", "model B")
    assert evaluate_hf.main(command(place, place / "whole", "--robustness", *names, models=("a", "b"))) == 0
    return place / "whole"


def test_numbers_are_scikit_learns(whole):
    results = json.loads((whole / "model_A" / "results.json").read_text())
    table = pandas.read_parquet(whole / "model_A" / "predictions.parquet")
    assert len(table) == 2 * 5 * CLIPS
    for corpus, rows in table.groupby("corpus"):
        got = results["corpora"][corpus]
        present = sorted(set(rows["reference"]))
        both = (rows["reference"], rows["prediction"])
        recalls = recall_score(*both, labels=present, average=None, zero_division=0)
        assert got["uar"] == pytest.approx(recalls.mean(), abs=1e-12)
        assert got["recall"] == pytest.approx(dict(zip(present, recalls, strict=True)))
        assert got["accuracy"] == pytest.approx(accuracy_score(*both))
        assert got["macro_f1"] == pytest.approx(f1_score(*both, labels=present, average="macro", zero_division=0))
        assert (got["clips"], got["speakers"], got["interval_by"]) == (30, 5, "speaker")
        assert got["uar_interval"][0] <= got["uar"] <= got["uar_interval"][1]
        high = rows[[name for name in rows if name.startswith("probability_high")]].sum(axis=1) > 0.5
        arousal = recall_score(rows["reference"].str.startswith("high"), high, average="macro")
        assert got["arousal_uar"] == pytest.approx(arousal)
    uars = [scores["uar"] for scores in results["corpora"].values()]
    assert results["average"]["uar"] == pytest.approx(np.mean(uars))
    for column, values in (("sex", {"female", "male"}), ("language", {"de", "en"})):
        assert set(results["groups"][column]) == values
        for value, got in results["groups"][column].items():
            rows = table[table[column] == value]
            present = sorted(set(rows["reference"]))
            uar = recall_score(rows["reference"], rows["prediction"], labels=present, average="macro")
            assert got["uar"] == pytest.approx(uar)


def test_the_report_shows_every_number_and_picture(whole):
    report = (whole / "report.md").read_text()
    results = {name: json.loads((whole / name / "results.json").read_text()) for name in ("model_A", "model_B")}
    for scores in results.values():
        for value in (*scores["corpora"].values(), scores["average"]):
            assert f"{100 * value['uar']:.1f}" in report
    for condition in CONDITIONS:
        assert condition in report
    pictures = [part.split(")")[0] for part in report.split("](")[1:]]
    assert {"model_A/confusion_short.png", "model_B/reliability.png"} <= set(pictures)
    for picture in pictures:
        assert (whole / picture).is_file(), picture
    (pair,) = json.loads((whole / "comparison.json").read_text())["pairs"]
    difference = results["model_B"]["average"]["uar"] - results["model_A"]["average"]["uar"]
    assert pair["models"] == ["model A", "model B"]
    assert pair["average"]["difference"] == pytest.approx(difference)


def test_robustness_begins_with_the_clean_clips_and_noise_changes_answers(whole):
    results = json.loads((whole / "model_A" / "results.json").read_text())
    assert list(results["robustness"]) == ["clean", *CONDITIONS]
    assert results["robustness"]["clean"]["average"]["uar"] == results["average"]["uar"]
    assert len({json.dumps(scores["corpora"]) for scores in results["robustness"].values()}) > 1


# What a launcher does: the same script twice, each told its number.
TWO_PROCESSES = """
import os, runpy, sys

processes = []
for rank in "01":
    if (process := os.fork()) == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        sys.argv[:1] = []
        runpy.run_path(sys.argv[0], run_name="__main__")
    processes.append(process)
assert not any([os.waitpid(process, 0)[1] for process in processes])
"""


def test_batch_sizes_and_processes_change_nothing(place, tmp_path, whole):
    expected = probabilities(whole / "model_A")
    results = json.loads((whole / "model_A" / "results.json").read_text())
    given = [str(ROOT / "evaluate_hf.py"), *command(place, tmp_path / "two")]
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    done = forks_with_package()(TWO_PROCESSES, *given, folder=tmp_path, **where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    for size in ("1", "7"):
        assert evaluate_hf.main(command(place, tmp_path / size, "--batch_size", size)) == 0
    for name in ("two", "1", "7"):
        assert np.abs(probabilities(tmp_path / name) - expected).max() < 1e-5
        again = json.loads((tmp_path / name / "results.json").read_text())
        for corpus, scores in results["corpora"].items():
            for score in ("uar", "uar_interval", "accuracy", "macro_f1", "recall", "arousal_uar"):
                assert again["corpora"][corpus][score] == scores[score]


def test_long_clips_are_answered_as_by_the_pipeline(place, whole):
    table = pandas.read_parquet(whole / "model_A" / "predictions.parquet")
    classify = load_pipeline(str(place / "a"))
    row = table[table["corpus"] == "long"].iloc[0]
    answer = classify(str(place / "long" / row["file_name"]))
    assert row["windows"] == len(answer["windows"]) > 1
    for name, value in answer["probabilities"].items():
        assert row[f"probability_{name}"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_another_packages_model_hears_whole_clips_through_its_own_extractor(place, tmp_path, kind):
    """A model that takes a mask is padded, one that does not is not: both answer as transformers does clip by clip."""
    config = Wav2Vec2Config(**SMALL, **HUBERT_KINDS[kind], num_labels=3, id2label=dict(enumerate(LABELS)))
    model = spoil(Wav2Vec2ForSequenceClassification(config), 0)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=kind == "large", return_attention_mask=kind == "large")
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "wav2vec2")
    given = ["--model", str(tmp_path / "wav2vec2"), "--corpora", str(place / "long"), "--output", str(tmp_path / "out")]
    assert evaluate_hf.main([*given, "--batch_size", "4"]) == 0
    table = pandas.read_parquet(tmp_path / "out" / "predictions.parquet")
    got = probabilities(tmp_path / "out")
    for number in (0, 7, 29):
        samples, rate = soundfile.read(place / "long" / table["file_name"][number], dtype="float32")
        with torch.inference_mode():
            logits = model(**extractor(samples, sampling_rate=rate, return_tensors="pt")).logits
        assert np.abs(got[number] - logits.softmax(dim=-1)[0].numpy()).max() < 1e-5


def test_the_temperature_is_saved_and_the_pipeline_uses_it(place, tmp_path):
    model = ExHuBERTForSequenceClassification.from_pretrained(place / "a")
    model.classifier.weight.data *= 20  # surer than it can be
    save_model_folder(model, tmp_path / "sure", window_seconds=0.8)
    given = ["--model", str(tmp_path / "sure"), "--corpora", str(place / "long"), "--output"]
    assert evaluate_hf.main([*given, str(tmp_path / "before")]) == 0
    assert evaluate_hf.main([*given, str(tmp_path / "fitted"), "--calibrate"]) == 0
    assert evaluate_hf.main([*given, str(tmp_path / "after")]) == 0
    results = {
        name: json.loads((tmp_path / name / "results.json").read_text()) for name in ("before", "fitted", "after")
    }
    calibration = results["fitted"]["calibration"]
    assert calibration["temperature"] > 1
    assert calibration["ece_before"] == pytest.approx(results["before"]["average"]["ece"])
    assert calibration["ece_after"] == pytest.approx(results["after"]["average"]["ece"])
    assert calibration["ece_after"] < calibration["ece_before"]
    assert np.array_equal(probabilities(tmp_path / "fitted"), probabilities(tmp_path / "after"))
    classify = load_pipeline(str(tmp_path / "sure"))
    assert classify.model.config.calibration_temperature == calibration["temperature"]
    row = pandas.read_parquet(tmp_path / "after" / "predictions.parquet").iloc[0]
    answer = classify(str(place / "long" / row["file_name"]))
    for name, value in answer["probabilities"].items():
        assert row[f"probability_{name}"] == pytest.approx(value, abs=1e-5)


def test_few_clips_one_speaker_and_an_absent_class_are_scored_and_said(place, tmp_path):
    """Nine clips of one speaker, without one of the classes that the model knows: intervals are by clip."""
    write_corpus(tmp_path / "one", labels=("anger", "sadness"), speakers=("x", "y", "z"), takes=2)
    given = ["--model", str(place / "a"), "--corpora", str(tmp_path / "one"), "--output", str(tmp_path / "out")]
    assert evaluate_hf.main(given) == 0
    (scores,) = json.loads((tmp_path / "out" / "results.json").read_text())["corpora"].values()
    assert (scores["clips"], scores["speakers"], scores["interval_by"]) == (4, 1, "clip")
    assert set(scores["recall"]) == {"high/negative", "low/negative"}
    assert "by clip" in (tmp_path / "out" / "report.md").read_text()


def test_a_corpus_may_have_a_test_split_alone(place, tmp_path):
    write_corpus(tmp_path / "unseen", split=lambda row: "test")
    given = ["--model", str(place / "a"), "--corpora", str(tmp_path / "unseen"), "--output", str(tmp_path / "out")]
    assert evaluate_hf.main(given) == 0
    assert len(pandas.read_parquet(tmp_path / "out" / "predictions.parquet")) == 24
    with pytest.raises(ValueError, match="corpus 'unseen': no clips in its validation split"):
        evaluate_hf.main([*given, "--calibrate"])


def test_classes_are_matched_by_name(place, tmp_path, whole):
    """The six in another order score the same; other classes are said to be others, and a file says which they are."""
    model = ExHuBERTForSequenceClassification.from_pretrained(place / "a")
    names = list(model.config.id2label.values())[::-1]
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    for parameter in model.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    save_model_folder(model, tmp_path / "turned", window_seconds=0.8)
    given = ["--corpora", str(place / "long"), "--output", str(tmp_path / "out"), "--model"]
    assert evaluate_hf.main([*given, str(tmp_path / "turned")]) == 0
    folders = (tmp_path / "out", whole / "model_A")
    got, expected = (json.loads((folder / "results.json").read_text())["corpora"]["long"] for folder in folders)
    assert got["recall"] == pytest.approx(expected["recall"])

    model.config.id2label = dict(enumerate(("ang", "neu", "sad", "hap", "dis", "fea")))
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    save_model_folder(model, tmp_path / "words", window_seconds=0.8)
    with pytest.raises(
        ValueError, match=r"label 'anger' \(16 clips\) is no class of the model, which has ang, neu, sad"
    ):
        evaluate_hf.main([*given, str(tmp_path / "words")])
    (tmp_path / "words.yaml").write_text("anger: ang\nneutral: neu\nsadness: null\n")
    assert evaluate_hf.main([*given, str(tmp_path / "words"), "--label_file", str(tmp_path / "words.yaml")]) == 0
    table = pandas.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert set(table["reference"]) == {"ang", "neu"}


def test_parameters_are_the_models_own(place, tmp_path):
    """A results.json beside a model counts only if it is that of the run that made the model."""
    shutil.copytree(place / "a", tmp_path / "model")
    (tmp_path / "results.json").write_text(json.dumps({"parameters": {"total": 7, "trainable": 3}}))
    (tmp_path / "recipe.yaml").write_text("name: soup\n")  # nor is this a recipe
    (tmp_path / "environment.json").write_text("{}")
    given = ["--model", str(tmp_path / "model"), "--corpora", str(place / "long"), "--output", str(tmp_path / "out")]
    assert evaluate_hf.main(given) == 0
    model = ExHuBERTForSequenceClassification.from_pretrained(place / "a")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["parameters"] == {"total": model.num_parameters(), "trainable": model.num_parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "0"], "batch_size is 0; it must be above 0"),
        (["--names", "one", "two"], "2 --names for 1 models; give one each"),
        (["--calibrate", "--split", "validation"], "--calibrate fits on the validation split; evaluate another one"),
        (["--output", "metadata.csv"], "metadata.csv is a file; give --output a folder"),
        (["--split", "tests"], "invalid choice: 'tests'"),
    ],
)
def test_wrong_options_end_in_one_line(place, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(place / "long")
    assert run_with_one_line_errors(lambda: evaluate_hf.main(command(place, tmp_path / "out", *options))) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_model_whose_answer_is_not_finite_is_named(place, tmp_path):
    model = ExHuBERTForSequenceClassification.from_pretrained(place / "a")
    model.classifier.bias.data[0] = float("nan")
    save_model_folder(model, tmp_path / "broken", window_seconds=0.8)
    given = ["--model", str(tmp_path / "broken"), "--corpora", str(place / "long"), "--output", str(tmp_path / "out")]
    with pytest.raises(
        ValueError, match=r"long: audio/3_anger_0.wav: the model's answer from 0.00 s to 0.80 s is not finite"
    ):
        evaluate_hf.main(given)
