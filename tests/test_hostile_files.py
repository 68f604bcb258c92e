"""Models, run folders and recipes that are not what they seem: one line that names the file, and nothing of it runs.

python -m pytest tests/test_hostile_files.py
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from conftest import refused
from exhubert import ExHuBERTConfig, evaluate_hf, train_hf
from exhubert.cli import main
from exhubert.corpora.labels import load_label_map
from exhubert.training.arguments import parse
from exhubert.utils.command import lost_processes, named_errors, run_with_one_line_errors

WRONG_FIELDS: dict[str, list[Any]] = {
    "num_hidden_layers": ["4", 10**9, 2.0, None, [4], -4],
    "hidden_size": ["32", 0, -1, 31, {}],
    "num_attention_heads": [0, "4", None],
    "conv_dim": ["16", 16, [16], [0, 0, 0], None],
    "conv_kernel": [[8], "8"],
    "conv_stride": [[0, 4, 5]],
    "id2label": ["anger", ["anger"], {"a": "anger"}],
    "num_labels": [10**9],
    "hidden_act": ["exec", 5],
    "architectures": [5],
    "dtype": ["float99"],
    "feat_extract_norm": ["none"],
    "quantization_config": [{"quant_method": "none"}],
    "calibration_temperature": ["hot"],
    "gate_original_layers": ["no"],
    "layerdrop": ["0"],
    "num_copies": [1.5],
    "model_type": [5, None, ["exhubert"]],
}


class Payload:
    """Would leave a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def tone(model_folder) -> str:
    path = str(model_folder.parent / "tone.wav")
    soundfile.write(path, 0.1 * np.sin(np.arange(8000) / 10), 16_000)
    return path


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_wrong_types_in_a_configuration(model_folder, tone, capsys, field):
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    for value in WRONG_FIELDS[field]:
        path.write_text(json.dumps(config | {field: value}))
        capsys.readouterr()
        if run_with_one_line_errors(lambda: main(["predict", str(model_folder), tone])):
            error = capsys.readouterr().err
            assert error.startswith(f"error: {model_folder}") and error.count("\n") == 1, (value, error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 2**20},
            "config.json is of a model of [0-9,]+ parameters; the weights there have [0-9,]+ bytes",
        ),
        ({"intermediate_size": 2**31 - 1}, "config.json is of a model of [0-9,]+ parameters"),
        ({"conv_dim": [2**20] * 3}, "config.json is of a model of [0-9,]+ parameters"),
        ({"num_hidden_layers": 9_998}, "config.json is of a model of 9,998 layers; the weights there have"),
        ({"conv_stride": [1, 1, 1]}, r"conv_stride is \[1, 1, 1\], whose product, .* is 1; at least 16 are needed"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the model cannot be loaded"),
    ],
)
def test_a_configuration_without_measure_is_refused_before_memory_is_taken(
    model_folder, tone, capsys, changes, message
):
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = torch.get_rng_state()
    line = refused(capsys, main, "predict", model_folder, tone)
    assert re.match(f"error: {model_folder}: (config.json: )?{message}", line), line
    assert "allocate" not in line
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_seconds": 1e9}, r"window_seconds is 1000000000.0; it must be from 0.1 to 600"),
        ({"window_seconds": "nan"}, "window_seconds is nan; it must be"),
        ({"window_seconds": -1}, "window_seconds is -1.0; it must be"),
        (
            {"window_seconds": None, "chunk_length": -1},
            "preprocessor_config.json is of windows of -1 s; from 0.1 to 600",
        ),
        (
            {"window_seconds": None, "feature_extractor_type": "WhisperFeatureExtractor"},
            "preprocessor_config.json is of a WhisperFeatureExtractor, which gives input_features; the model takes",
        ),
    ],
)
def test_a_feature_extractor_without_measure_or_of_another_model(model_folder, tone, capsys, changes, message):
    path = model_folder / "preprocessor_config.json"
    values = json.loads(path.read_text()) | {"feature_extractor_type": "Wav2Vec2FeatureExtractor"} | changes
    values.pop("auto_map")
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    line = refused(capsys, main, "predict", model_folder, tone)
    assert line.startswith(f"error: {model_folder}: ") and message in line


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '"text"', "5", "\0", ""])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_files_that_are_no_json_objects(model_folder, tone, capsys, name, text):
    (model_folder / name).write_text(text)
    line = refused(capsys, main, "predict", model_folder, tone)
    assert str(model_folder) in line and len(line) < 1000


def commands_on(model: Path, tone: str, write_keys) -> dict[str, tuple[Any, list[str]]]:
    recipe = write_keys(model=str(model), corpora=[str(model.parent / "corpus")], rounds=1)
    corpus = str(model.parent / "corpus")
    return {
        "predict": (main, ["predict", str(model), tone]),
        "embed": (main, ["embed", str(model), tone, "--output", f"{model}.parquet"]),
        "onnx": (main, ["convert", "onnx", str(model), f"{model}.onnx"]),
        "contract": (main, ["convert", "contract", str(model), f"{model}.hubert"]),
        "evaluate": (evaluate_hf.main, ["--model", str(model), "--corpora", corpus, "--output", f"{model}.out"]),
        "train": (train_hf.main, [recipe]),
        "hubert": (main, ["convert", "hubert", str(model), f"{model}.expanded"]),
        "published": (main, ["convert", "published", str(model), f"{model}.taken_over"]),
        "repair": (main, ["repair", str(model)]),
        "push": (main, ["push", str(model), "user/model", "--dry-run"]),
    }


READERS = ["predict", "embed", "onnx", "contract", "evaluate", "train", "hubert", "published"]


@pytest.mark.parametrize("command", [*READERS, "repair", "push"])  # the last two read no pickle
def test_a_pickle_with_a_payload_does_not_run(
    model_folder, tone, make_corpus, make_hubert, write_keys, capsys, monkeypatch, command
):
    """In the three forms that torch reads."""
    make_corpus()
    monkeypatch.chdir(model_folder.parent)
    model = make_hubert() if command in ("hubert", "published") else model_folder
    (model / "model.safetensors").unlink()
    run, arguments = commands_on(model, tone, write_keys)[command]
    content = {"weight": Payload(model.parent / "marker")}
    for form in ("zip", "before 1.6", "plain"):
        if form == "plain":
            (model / "pytorch_model.bin").write_bytes(pickle.dumps(content, 2))
        else:
            torch.save(content, model / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
        line = refused(capsys, run, *arguments)
        assert not (model.parent / "marker").exists()
        assert str(model) in line and ("could run code: not loaded" in line) == (command in READERS)


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_an_adapter_that_is_a_pickle_does_not_run(
    model_folder, tone, make_corpus, write_keys, capsys, monkeypatch, command
):
    """transformers puts adapters on the model where peft is installed; of safetensors alone, or it says what it was."""
    pytest.importorskip("peft", reason="transformers follows adapter_config.json where peft is installed")
    make_corpus()
    monkeypatch.chdir(model_folder.parent)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(model_folder), "target_modules": ["q_proj"]}
    (model_folder / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({"weight": Payload(model_folder.parent / "marker")}, model_folder / "adapter_model.bin")
    run, arguments = commands_on(model_folder, tone, write_keys)[command]
    line = refused(capsys, run, *arguments)
    assert not (model_folder.parent / "marker").exists()
    assert str(model_folder) in line and "not foreseen" not in line


def test_weights_that_do_not_fit_their_configuration(model_folder, tone, capsys):
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 128}))
    line = refused(capsys, main, "predict", model_folder, tone)
    assert f"{model_folder}: the weights are not those of its config.json" in line
    assert "feed_forward" in line and "another shape" in line


@pytest.mark.parametrize("kind", ["contract", "hubert"])
def test_a_conversion_names_the_configuration_as_well(model_folder, make_hubert, tmp_path, capsys, kind):
    source = model_folder if kind == "contract" else make_hubert()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": "32"}))
    line = refused(capsys, main, "convert", kind, source, tmp_path / "out")
    assert line.startswith(f"error: {source}: config.json cannot be used (") and "hidden_size" in line


@pytest.mark.parametrize("layers", [10**9, "48", 48.0, True])
def test_a_configuration_has_a_whole_number_of_layers(layers):
    with pytest.raises(
        ValueError, match=f"num_hidden_layers is {layers!r}; it must be a whole number above 0, at most"
    ):
        ExHuBERTConfig(num_hidden_layers=layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": float("inf")}, "rounds is 'inf'; a whole number is needed"),
        ({"rounds": 10**30}, "rounds is 1000000000000000000000000000000; it must be above 0, and at most"),
        ({"window_seconds": float("inf")}, "window_seconds is inf; it must be above 0, and at most"),
        ({"expand_copies": 10**30}, "expand_copies is .*; it must be 0 or more, and at most"),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate is nan; a finite number is needed"),
        ({"training": {"eval_steps": float("inf")}}, "eval_steps is inf; a finite number is needed"),
        ({"training": {"neftune_noise_alpha": 5}}, "neftune_noise_alpha cannot be used here: it adds noise"),
        ({"training": {"parallelism_config": "x"}}, "parallelism_config invalid ParallelismConfig value: 'x'"),
        ({"training": {"report_to": "wandb"}}, "report_to names 'wandb', which is not installed"),
        ({"training": {"save_steps": 1e30}}, r"save_steps is 1e\+30; at most"),
    ],
)
def test_recipes_without_measure(write_keys, changes, message):
    with pytest.raises(ValueError, match=message):
        parse([write_keys(**changes)])


@pytest.mark.parametrize(
    "changes",
    [
        {"fold": "x"},
        {"sampling": "1"},
        {"training": {"data_seed": 0.5}},
        {"training": {"lr_scheduler_type": ["linear"]}},
    ],
)
def test_what_is_wrong_in_a_recipe_names_the_recipe(write_keys, changes):
    recipe = write_keys(**changes)
    name = next(iter(changes.get("training", changes)))
    with pytest.raises(ValueError, match=rf"^{recipe}: {name}"):
        parse([recipe])


def test_a_whole_number_of_thousands_of_digits(tmp_path, write_keys):
    recipe = Path(write_keys())
    recipe.write_text(f"{recipe.read_text()}fold: 0x{'f' * 5000}\n")
    with pytest.raises(ValueError, match=rf"^{recipe}: "):
        parse([str(recipe)])


@pytest.mark.parametrize("brackets", [1200, 100_000])  # of so many libyaml's parser ends the process
def test_yaml_of_brackets(tmp_path, brackets):
    (tmp_path / "some.yaml").write_text("model: m\nlora: " + "[" * brackets)
    for read in (lambda path: parse([path]), lambda path: load_label_map(path)):
        with pytest.raises(ValueError, match=r"some\.yaml is not YAML"):
            read(str(tmp_path / "some.yaml"))


def test_a_full_disk_in_the_middle_of_a_corpus(tmp_path, make_corpus, capsys, monkeypatch):
    def write(path: Path, *_: object, **__: object) -> None:
        Path(path).touch()
        raise soundfile.LibsndfileError(2)  # "System error." is all that libsndfile says of it

    corpus = make_corpus()
    monkeypatch.setattr("exhubert.corpora.prepare.soundfile.write", write)
    options = ["--audio", "flac", "--table", corpus / "metadata.csv"]
    line = refused(capsys, main, "corpora", "prepare", "mine", corpus, tmp_path / "out", *options)
    assert re.search(r"\.flac could not be written, \d+ MiB are free there", line)
    assert not (tmp_path / "out").exists()


def test_what_nobody_has_foreseen_is_one_line_as_well(capsys, monkeypatch):
    def fail() -> int:
        return {}["missing"]

    monkeypatch.delenv("EXHUBERT_TRACEBACK", raising=False)
    assert run_with_one_line_errors(fail) == 1
    assert capsys.readouterr().err.startswith("error: KeyError: 'missing' (not foreseen")
    with (
        pytest.raises(ValueError, match=r"a.json \(KeyError: 'missing'\); get it anew"),
        named_errors("a.json", "get it anew"),
    ):
        fail()
    monkeypatch.setenv("EXHUBERT_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run_with_one_line_errors(fail)


def test_an_error_line_is_fit_for_a_terminal(capsys, monkeypatch):
    def fail() -> int:
        raise ValueError("begin \x1b[2J " + "x" * 100_000 + " end")

    monkeypatch.delenv("EXHUBERT_TRACEBACK", raising=False)
    assert run_with_one_line_errors(fail) == 1
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.isprintable() and len(line) < 2100
    assert line.startswith(r"error: begin \x1b[2J xxx") and line.endswith("xxx end")


def test_the_death_of_another_process_is_foreseen():
    """gloo and NCCL raise RuntimeError; of one process that has another reason."""
    text = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:27859: Connection reset by peer."
    with pytest.raises(ConnectionError, match="another process of this run is gone"), lost_processes(2):
        raise RuntimeError(text)
    for count, other in ((1, text), (2, "size mismatch")):
        with pytest.raises(RuntimeError, match=re.escape(other)), lost_processes(count):
            raise RuntimeError(other)
