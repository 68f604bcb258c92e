"""`train_hf.py`: recipes, the run folder, freezing, the average over corpora, resuming, wrong input.

python -m pytest tests/test_training.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, HubertConfig, HubertModel

import evaluate_hf
import train_hf
from conftest import HUBERT_KINDS, ROOT, SMALL, refused, write_corpus
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, prepare_input
from exhubert.convert.hubert import convert_hubert
from exhubert.evaluation.metrics import classification_scores
from exhubert.training.arguments import parse
from exhubert.training.collator import AudioCollator
from exhubert.training.run_folder import find_checkpoint

FAST = {"rounds": 4, "batch_size": 4, "training": {"learning_rate": 1.0e-3, "eval_steps": 4, "report_to": "none"}}


def recipe_in(directory: Path, **changes: object) -> str:
    """Writes a recipe over two small corpora and a small HuBERT of a folder, with changed keys."""
    values = {"model": str(directory / "hubert"), "corpora_root": str(directory), "corpora": ["first", "second"]}
    values |= {"output": str(directory / "run"), **FAST, **changes}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(directory / "recipe.yaml")


def write_ground(directory: Path) -> None:
    """Writes the corpora and the HuBERT."""
    write_corpus(directory / "first", speakers=("a", "b", "c", "d"))
    write_corpus(directory / "second", labels=("joy", "boredom"), speakers=("e", "f", "g"))
    torch.manual_seed(0)
    HubertModel(HubertConfig(**{**SMALL, **HUBERT_KINDS["large"]})).save_pretrained(directory / "hubert")


@pytest.fixture
def write_recipe(tmp_path):
    """See `recipe_in`; each test has files of its own."""
    write_ground(tmp_path)
    return lambda **changes: recipe_in(tmp_path, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished run, which is only looked at, in `run`."""
    directory = tmp_path_factory.mktemp("trained")
    write_ground(directory)
    assert train_hf.main([recipe_in(directory, window_seconds=0.6), "--report_to", "tensorboard"]) == 0
    return directory


def test_a_run_leaves_everything_that_a_run_folder_has(trained):
    run = trained / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "confusion_first.png",
        "confusion_second.png",
        "curves.json",
        "curves.png",
        "environment.json",
        "logs",
        "model",
        "predictions.parquet",
        "recipe.yaml",
        "reliability.png",
        "results.json",
    ]
    assert list((run / "logs").glob("events.out.tfevents.*"))

    results = json.loads((run / "results.json").read_text())
    described = {"model", "split", "window_seconds", "parameters", "classes"}
    assert set(results) == described | {"corpora", "average", "groups", "seed", "versions"}
    assert set(results["corpora"]) == {"first", "second"}
    first = results["corpora"]["first"]
    scores = ("uar", "accuracy", "macro_f1", "arousal_uar", "valence_uar", "recall")
    intervals = (f"{name}_interval" for name in scores)
    assert set(first) == {"split", "clips", "speakers", "interval_by", "ece", *scores, *intervals}
    assert (first["split"], first["clips"], first["speakers"]) == ("test", 6, 1)
    assert set(first["recall"]) == {"high/negative", "low/neutral", "low/negative"}
    assert results["average"]["uar"] == pytest.approx(np.mean([c["uar"] for c in results["corpora"].values()]))

    table = pandas.read_parquet(run / "predictions.parquet")
    about = ["corpus", "file_name", "start_seconds", "speaker", "sex", "language", "windows"]
    assert list(table)[:9] == [*about, "reference", "prediction"]
    probabilities = table[[name for name in table if name.startswith("probability_")]]
    assert probabilities.shape == (10, 6)
    assert np.allclose(probabilities.sum(axis=1), 1)
    rows = table[table["corpus"] == "first"]
    recalls = [(rows["prediction"][rows["reference"] == name] == name).mean() for name in set(rows["reference"])]
    assert first["uar"] == pytest.approx(np.mean(recalls))

    again = yaml.safe_load((run / "recipe.yaml").read_text())
    assert again["crop"] == "random"
    assert again["training"]["learning_rate"] == 1e-3
    assert again["training"]["max_grad_norm"] == 0  # no clipping, said by the recipe and not by Trainer
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__


def test_a_resolved_recipe_is_a_recipe(tmp_path, trained):
    recipe, training, _ = parse([str(trained / "run" / "recipe.yaml"), "--output", str(tmp_path / "other")])
    assert (recipe.rounds, training.max_steps, training.learning_rate) == (4, 8, 1e-3)


def test_checkpoints_and_model_are_model_folders(trained, samples):
    for folder in (trained / "run" / "model", *(trained / "run" / "checkpoints").iterdir()):
        model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
        assert model.config.id2label[5] == "high/positive"
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        assert extractor(samples[0].numpy(), sampling_rate=16_000)["input_values"][0].shape == (9600,)


def test_the_predictions_are_those_of_the_saved_model(trained):
    """The best model was loaded, saved and evaluated, on the input that the feature extractor makes."""
    row = pandas.read_parquet(trained / "run" / "predictions.parquet").query("windows == 1").iloc[0]
    model = AutoModelForAudioClassification.from_pretrained(trained / "run" / "model").eval()
    samples, _ = soundfile.read(trained / row["corpus"] / row["file_name"], dtype="float32")
    with torch.inference_mode():
        logits = model(torch.from_numpy(prepare_input(samples, 0.6))[None]).logits
    expected = [row[f"probability_{model.config.id2label[index]}"] for index in range(6)]
    assert torch.allclose(logits.softmax(-1)[0], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_stage_2_leaves_the_originals_bit_identical(tmp_path, write_recipe):
    train_hf.main([write_recipe(output=str(tmp_path / "stage1"), rounds=2)])
    convert_hubert(str(tmp_path / "stage1" / "model"), tmp_path / "expanded")
    train_hf.main(
        [
            write_recipe(model=str(tmp_path / "expanded"), freeze=["feature_encoder", "originals"]),
            *("--corpora", "second", "--rounds", "6", "--load_best_model_at_end", "false"),
        ]
    )
    before = load_file(tmp_path / "expanded" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in before.items():
        layer = int(name.split(".layers.")[1].split(".")[0]) if ".encoder.layers." in name else None
        if name.startswith("hubert.feature_extractor.") or (layer is not None and layer % 2 == 0):
            assert torch.equal(tensor, after[name]), name
        elif layer is not None and "k_proj.bias" not in name:  # a key bias shifts all scores alike: no gradient
            assert not torch.equal(tensor, after[name]), name


def test_a_hubert_is_expanded_on_load(tmp_path, write_recipe):
    train_hf.main([write_recipe(expand_copies=1, freeze=["originals"], rounds=1)])
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "run" / "model")
    assert (type(model).__name__, model.config.num_hidden_layers) == ("ExHuBERTForSequenceClassification", 6)


def test_a_head_for_other_classes_of_the_same_number_starts_anew(tmp_path, write_recipe, capsys):
    assert train_hf.main([write_recipe(labels="native", corpora=["first"])]) == 0
    capsys.readouterr()
    changes = {"model": str(tmp_path / "run/model"), "labels": "native", "freeze": ["base"]}
    assert train_hf.main([write_recipe(corpora=["first"], output=str(tmp_path / "same"), **changes)]) == 0
    assert "newly initialised" not in capsys.readouterr().out
    for name, label in (("anger", "awe"), ("neutral", "zest"), ("sadness", "pity")):
        table = pandas.read_csv(tmp_path / "first/metadata.csv", dtype=str)
        table["label"] = table["label"].replace(name, label)
        table.to_csv(tmp_path / "first/metadata.csv", index=False)
    assert train_hf.main([write_recipe(corpora=["first"], output=str(tmp_path / "other"), **changes)]) == 0
    assert "has no such weights: classifier.bias, classifier.weight" in capsys.readouterr().out


def test_models_that_return_hidden_states_are_evaluated(tmp_path, write_recipe, make_hubert):
    hubert = make_hubert(head="none", name="talkative", output_hidden_states=True)
    assert train_hf.main([write_recipe(model=str(hubert), rounds=1)]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    arguments = ["--model", str(tmp_path / "run/model"), "--corpora", str(tmp_path / "first")]
    assert evaluate_hf.main([*arguments, "--output", str(tmp_path / "scores")]) == 0
    again = json.loads((tmp_path / "scores/results.json").read_text())
    assert again["corpora"]["first"]["uar"] == results["corpora"]["first"]["uar"]


def test_training_learns(tmp_path, write_recipe, make_corpus):
    """Tones of one octave's distance are told apart after some updates, by speakers that training did not see."""
    make_corpus("tones", speakers=[f"s{number}" for number in range(12)], takes=3)
    recipe = write_recipe(corpora=["tones"], rounds=200, window_seconds=0.6, crop="start")
    train_hf.main([recipe, "--batch_size", "12", "--eval_steps", "50"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["average"]["uar"] > 0.8


def test_a_run_is_not_overwritten(tmp_path, trained):
    recipe = str(trained / "run" / "recipe.yaml")
    with pytest.raises(ValueError, match=r"run is in use already; give another `output`, or add --resume"):
        train_hf.main([recipe])
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train_hf.main([recipe, "--output", str(tmp_path / "other"), "--resume"])


def test_a_run_that_was_killed_before_its_recipe_was_written_is_no_run(tmp_path):
    for name in ("checkpoints", "logs/events"):
        (tmp_path / "run" / name).mkdir(parents=True)
    for resume in (False, True):
        assert find_checkpoint(str(tmp_path / "run"), resume, {}) is None
    (tmp_path / "run" / "checkpoints" / "checkpoint-1").mkdir()
    for resume, message in ((False, "is in use already"), (True, "no checkpoint to resume from")):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(str(tmp_path / "run"), resume, {})


def test_evaluation_alone_gives_the_runs_own_results(tmp_path, trained):
    """In the window that the model folder names."""
    corpora = [str(trained / name) for name in ("first", "second")]
    model = str(trained / "run" / "model")
    assert evaluate_hf.main(["--model", model, "--corpora", *corpora, "--output", str(tmp_path / "evaluation")]) == 0
    folders = (trained / "run", tmp_path / "evaluation")
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert results[0]["corpora"] == results[1]["corpora"]
    tables = [pandas.read_parquet(folder / "predictions.parquet") for folder in folders]
    columns = [name for name in tables[0] if name.startswith("probability_")]
    assert np.allclose(tables[0][columns], tables[1][columns], atol=1e-6)


def test_evaluation_of_several_models_and_its_refusals(tmp_path, capsys, trained, make_hubert):
    given = ["--corpora", str(trained / "first"), "--output"]
    models = [str(trained / "run" / "model"), str(next((trained / "run" / "checkpoints").iterdir()))]
    assert evaluate_hf.main(["--model", *models, *given, str(tmp_path / "both")]) == 0
    assert len(list((tmp_path / "both").glob("*/results.json"))) == 2
    assert models[0] in capsys.readouterr().out
    with pytest.raises(ValueError, match="is a training's run folder"):
        evaluate_hf.main(["--model", models[0], *given, str(trained / "run")])
    with pytest.raises(ValueError, match=r"has no trained classifier: it lacks classifier\.bias \(4 such weights\)"):
        evaluate_hf.main(["--model", str(make_hubert(head="none")), *given, str(tmp_path / "none")])


def test_uar_is_over_the_classes_that_occur():
    scores = classification_scores([0, 0, 0, 3], [0, 0, 3, 5], [str(index) for index in range(6)])
    assert scores["uar"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["recall"] == {"0": pytest.approx(2 / 3), "3": 0.0}
    assert scores["accuracy"] == 0.5


def test_crops_of_long_clips(tmp_path):
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.linspace(0, 0.9, 32_000), 16_000, subtype="FLOAT")
    row = {"audio": {"path": str(path)}, "labels": 1}
    ramp = soundfile.read(path, dtype="float32")[0]
    for crop, start in (("start", 0), ("center", 8000), ("random", 12_000)):
        batch = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop=crop)([{**row, "crop": 0.75}])
        assert np.allclose(batch["input_values"][0], prepare_input(ramp[start : start + 16_000], 1.0), atol=1e-4), crop
    evaluated = AudioCollator(ExHuBERTFeatureExtractor(1.0), crop="random")([row])
    assert np.allclose(evaluated["input_values"][0], prepare_input(ramp[:16_000], 1.0), atol=1e-4)


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_parses(tmp_path, recipe):
    given = ["--model", "m", "--corpora", "c", "--output", str(tmp_path)]
    parsed, training, _ = parse([str(ROOT / "recipes" / recipe), *given])
    assert training.max_steps == parsed.rounds
    paper = not recipe.startswith("demo_")
    assert training.lr_scheduler_type == ("constant" if paper else "linear")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"batchsize": 4}, [], "unknown key 'batchsize'; the nearest is 'batch_size'"),
        (
            {"training": {"learn_rate": 1}},
            [],
            "unknown key below `training` 'learn_rate'; the nearest is 'learning_rate'",
        ),
        ({}, ["--round", "3"], "unknown option 'round'; the nearest is 'rounds'"),
        ({}, ["--rounds", "many"], "rounds is 'many'; a whole number is needed"),
        ({"rounds": "many"}, [], "rounds is 'many'; a whole number is needed"),
        ({"rounds": 0}, [], "rounds is 0; it must be above 0"),
        ({"rounds": None}, [], "rounds is null; give a value, or leave the key out"),
        ({"freeze": None}, [], r"freeze is \[None\]; a list of words is needed"),
        ({"clips_per_corpus": 5.5}, [], "clips_per_corpus is '5.5'; a whole number is needed"),
        ({"corpora": [1, 2]}, [], r"corpora is \[1, 2\]; a list of words is needed"),
        ({"window_seconds": 0.01}, [], "window_seconds is 0.01; at least 0.25 are needed"),
        ({"training": ["learning_rate"]}, [], r"`training` is \['learning_rate'\]; a table"),
        ({"training": {"learning_rate": None}}, [], "learning_rate is null; give a value"),
        ({"training": {"seed": "abc"}}, [], "seed is 'abc'; a whole number is needed"),
        ({"training": {"eval_steps": "ten"}}, [], "eval_steps"),
        ({"crop": "middle"}, [], "crop is 'middle'; it must be random or start or center"),
        ({"freeze": ["cnn"]}, [], "freeze names 'cnn'; the parts are feature_encoder, originals, base"),
        ({"corpora": []}, [], "the recipe needs `corpora`"),
        ({"training": {"max_steps": 5}}, [], "max_steps follows from the recipe; set `rounds` instead"),
        ({}, ["--gradient_accumulation_steps", "3"], "gradient_accumulation_steps follows from the recipe; set"),
        ({"corpora": ["first", "third"]}, [], "third: no such corpus folder"),
        (
            {"freeze": ["originals"]},
            [],
            "freeze names 'originals', which HubertForSequenceClassification does not have",
        ),
    ],
)
def test_wrong_recipes_end_in_one_line(capsys, trained, tmp_path, changes, options, message):
    """Nothing is written."""
    (tmp_path / "recipe.yaml").write_text(Path(recipe_in(trained, output=str(tmp_path / "run"), **changes)).read_text())
    line = refused(capsys, train_hf.main, tmp_path / "recipe.yaml", *options)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_bad_file_is_named_in_one_line_or_skipped(tmp_path, capsys, write_recipe):
    recipe = write_recipe()
    path = next((tmp_path / "first" / "audio").glob("*.wav"))
    path.write_bytes(path.read_bytes()[:30])
    assert f"{path.name}: the audio does not decode" in refused(capsys, train_hf.main, recipe)
    assert train_hf.main([recipe, "--skip_bad_audio"]) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_audio_that_turns_out_bad_during_training_is_named_in_one_line(tmp_path, capsys, write_recipe, workers):
    """Its header is fine, so the look before training does not find it."""
    for path in (tmp_path / "second" / "audio").glob("*.wav"):
        soundfile.write(path, np.full(8000, np.nan), 16_000, subtype="FLOAT")
    line = refused(capsys, train_hf.main, write_recipe(), "--dataloader_num_workers", workers)
    assert line.endswith(".wav: the audio holds NaN or infinite samples at 0.00 s")
