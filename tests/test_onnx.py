"""ONNX: the same answers as torch's, in windows, embeddings and on corpora; int8; what does not export, is not there.

python -m pytest tests/test_onnx.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pandas
import pytest
import soundfile
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)

from conftest import ROOT, SMALL, refused, write_corpus
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.cli import entry_point, main
from exhubert.convert.onnx import BACKENDS, convert_onnx, model_for_backend
from exhubert.model_folder import (
    check_model_folder,
    load_classifier,
    load_pipeline,
    save_model_folder,
    verify_model_folder,
)
from exhubert.model_folder.card import STATED, is_edited, read_sections
from exhubert.model_folder.load import DTYPES
from exhubert.publish.push import push_model_folder

SAMPLES_OF_ONE_FRAME = 448  # with the CNN of SMALL


class UnsteadyConfig(HubertConfig):
    """Of a model that cannot be an ONNX graph, for the reason that `fault` names."""

    model_type = "unsteady"


class UnsteadyForSequenceClassification(HubertForSequenceClassification):
    config_class = UnsteadyConfig

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if self.config.fault == "random":
            outputs.logits = outputs.logits + torch.rand_like(outputs.logits)
        elif outputs.logits.sum() > 0:
            outputs.logits = -outputs.logits
        return outputs


AutoConfig.register("unsteady", UnsteadyConfig, exist_ok=True)
AutoModelForAudioClassification.register(UnsteadyConfig, UnsteadyForSequenceClassification, exist_ok=True)


def save(model, directory, **options):
    """Writes a model folder; the weights are moved away from where mistakes would not show."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return save_model_folder(model, directory, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def source(root):
    """An ExHuBERT with everything that shapes the graph: copies, gates, a weighted layer sum, weight norm."""
    torch.manual_seed(0)
    config = ExHuBERTConfig(**{**SMALL, "num_hidden_layers": 2}, gate_original_layers=True, use_weighted_layer_sum=True)
    config.calibration_temperature = 2.0
    return save(ExHuBERTForSequenceClassification(config), root / "model", window_seconds=1.0)


@pytest.fixture(scope="module")
def exported(root, source):
    return convert_onnx(source, root / "exported")


@pytest.fixture(scope="module")
def corpus(root):
    return write_corpus(root / "corpus", takes=1)


@pytest.fixture(scope="module")
def native(root):
    """A HuBERT with the corpus's classes."""
    torch.manual_seed(0)
    labels = {0: "anger", 1: "neutral", 2: "sadness"}
    config = HubertConfig(
        **{**SMALL, "num_hidden_layers": 1}, id2label=labels, label2id={name: index for index, name in labels.items()}
    )
    return save(HubertForSequenceClassification(config), root / "native", window_seconds=0.5)


@pytest.fixture(scope="module")
def quantised(root, native, corpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exhubert.convert.onnx.EXTERNAL_DATA_BYTES", 1000)
        return convert_onnx(native, root / "quantised", int8=True, corpora=[str(corpus)])


@pytest.fixture
def recording():
    """2.3 s of 16 kHz audio whose windows differ."""
    time = np.arange(36_800) / 16_000
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(time))
    return (np.sin(2 * np.pi * (100 + 400 * time) * time) * time + noise).astype(np.float32)


def test_the_pipeline_gives_the_same_probabilities_and_embeddings(source, exported, recording):
    torchs, ours = load_pipeline(str(source)), load_pipeline(str(exported))
    for embeddings in (False, True, 0, 1, "weighted"):
        expected, got = (each(recording, embeddings=embeddings) for each in (torchs, ours))
        assert len(got["windows"]) == 4
        for one, other in zip([expected, *expected["windows"]], [got, *got["windows"]], strict=True):
            assert one["label"] == other["label"]
            names, values = zip(*one["probabilities"].items(), strict=True)
            assert tuple(other["probabilities"]) == names
            np.testing.assert_allclose(list(other["probabilities"].values()), values, rtol=0, atol=1e-5)
            if embeddings is not False:
                np.testing.assert_allclose(other["embedding"], one["embedding"], rtol=0, atol=1e-5)
    streamed = [list(row["probabilities"].values()) for row in ours.stream(np.array_split(recording, 7))]
    offline = [list(row["probabilities"].values()) for row in got["windows"]]
    np.testing.assert_allclose(streamed, offline, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "samples"), [(1, SAMPLES_OF_ONE_FRAME), (1, 8001), (5, 3000), (2, 40_000)])
def test_any_batch_size_and_length(source, exported, batch, samples):
    model, same = load_classifier(str(source))[0].eval(), load_classifier(str(exported))[0].eval()
    inputs = torch.randn(batch, samples, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = (each(input_values=inputs, output_hidden_states=True) for each in (model, same))
    for one, other in zip((expected.logits, *expected.hidden_states), (got.logits, *got.hidden_states), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    assert same(inputs).hidden_states is None
    assert same.num_parameters() == model.num_parameters()
    assert same.num_parameters(only_trainable=True) == 0


def test_the_folder_holds_what_is_needed_and_no_more(source, exported):
    names = {path.name for path in check_model_folder(exported).iterdir()}
    assert names == {
        "README.md",
        "audio_exhubert.py",
        "config.json",
        "configuration_exhubert.py",
        "model.onnx",
        "preprocessor_config.json",
    }
    config = json.loads((exported / "config.json").read_text())
    assert config["calibration_temperature"] == 2.0
    assert config["auto_map"] == {"AutoConfig": "configuration_exhubert.ExHuBERTConfig"}
    assert "custom_pipelines" not in config
    assert AutoFeatureExtractor.from_pretrained(exported).window_seconds == 1.0
    card = (exported / "README.md").read_text()
    of_source = (source / "README.md").read_text()
    sections, before = read_sections(card), read_sections(of_source)
    assert (
        [*sections] == ["", "ONNX", *[*before][2:]] and "Use" not in sections and not is_edited(exported / "README.md")
    )
    assert STATED.sub("", sections[""]) == STATED.sub("", before[""]) and sections["Classes"] == before["Classes"]
    assert "float32 on made-up audio" in sections["ONNX"]
    assert "trust_remote_code" not in card  # what loads torch's model is not this folder's


def test_the_card_states_the_weights(exported, quantised):
    for folder, count in ((exported, 3), (quantised, 3)):  # two code files, or none and the weights in two
        found = verify_model_folder(folder)
        assert {each.status for each in found} == {"same"} and len(found) == count


def test_no_path_of_this_machine_is_in_the_graph(exported, quantised):
    """The exporter notes with each operator where in the source it comes from."""
    for folder in (exported, quantised):
        assert str(Path(torch.__file__).parents[2]).encode() not in (folder / "model.onnx").read_bytes()
        assert b'File "' not in (folder / "model.onnx").read_bytes()


def test_the_folder_can_be_pushed(exported, capsys):
    push_model_folder(exported, "user/model", dry_run=True)
    assert "  model.onnx\n" in capsys.readouterr().out


def test_int8_quantises_matrices_alone_and_answers_alike(native, quantised):
    model, same = load_classifier(str(native))[0].eval(), load_classifier(str(quantised))[0]
    inputs = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = model(inputs).logits, same(inputs, output_hidden_states=True)
    assert 0 < (got.logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert got.hidden_states[1].shape == (3, 24, 32)
    assert torch.equal(got.logits[1:2], same(inputs[1:2]).logits)  # whatever else is in the batch

    graph = onnx.load(quantised / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    layers, projections = 1, 2
    assert kinds.count("MatMulInteger") == 6 * layers + projections
    assert kinds.count("MatMul") == 2 * layers + 1  # attention's own, and the classifier
    assert kinds.count("Conv") == len(SMALL["conv_dim"]) + 1
    assert "ConvInteger" not in kinds
    integers = [
        weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2
    ]
    assert len(integers) == kinds.count("MatMulInteger")
    assert all(abs(onnx.numpy_helper.to_array(weight).astype(int)).max() <= 64 for weight in integers)


def test_large_weights_lie_beside_the_graph(quantised):
    graph = onnx.load(quantised / "model.onnx", load_external_data=False).graph
    beside = [weight for weight in graph.initializer if onnx.external_data_helper.uses_external_data(weight)]
    assert {entry.value for weight in beside for entry in weight.external_data if entry.key == "location"} == {
        "model.onnx.data"
    }
    assert not [path for path in quantised.parent.iterdir() if path.name.startswith(".")]


def test_the_check_on_a_corpus_is_in_the_card(quantised):
    card = read_sections((quantised / "README.md").read_text())["ONNX"]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")]
    header, _, (name, clips, same, *uars, difference), everything = rows
    assert header[:5] == ["corpus", "clips", "same class", "UAR torch", "UAR ONNX"]
    assert (name, clips, same) == ("corpus", "3", "100.00 %")
    assert uars[0] == uars[1]
    assert 0 < float(difference) < 0.5
    assert everything[1:] == rows[2][1:]
    assert "int8 takes" in card


def test_a_model_of_spectrograms(root):
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 150}
    config = WhisperConfig(**sizes, **heads, num_mel_bins=16, classifier_proj_size=8, num_labels=3)
    model = save(WhisperForAudioClassification(config), root / "whisper", window_seconds=2.0)
    same = load_classifier(str(convert_onnx(model, root / "whisper-onnx")))[0]
    features = torch.randn(2, 16, 300, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_classifier(str(model))[0].eval()(input_features=features).logits
    torch.testing.assert_close(same(input_features=features).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("random", "is another function than torch's: float32 on made-up audio"),
        ("branch", "this UnsteadyForSequenceClassification does not export to ONNX"),
    ],
)
def test_another_function_is_not_written(tmp_path, capsys, monkeypatch, fault, message):
    config = UnsteadyConfig(**{**SMALL, "num_hidden_layers": 1}, fault=fault)
    save(UnsteadyForSequenceClassification(config), tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["exhubert", "convert", "onnx", str(tmp_path / "model"), str(tmp_path / "out")])
    capsys.readouterr()
    assert entry_point() == 1
    error = capsys.readouterr().err  # the exporter's own complaints are not in it
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["model"]


def test_what_cannot_be_exported_is_said_at_once(tmp_path, capsys, exported, make_hubert):
    for source, destination, message in (
        ("nowhere", "out", "nowhere: no such folder or cached model, and the Hub could not be asked for one"),
        (tmp_path, "out", "is no model folder"),
        (make_hubert(head="none", name="headless"), "out", "has no trained classifier: it lacks"),
        (exported, "out", "is an ONNX model already"),
        (make_hubert(), exported, "exists already"),
    ):
        assert message in refused(capsys, main, "convert", "onnx", source, tmp_path / destination)
    assert not (tmp_path / "out").exists()


def test_broken_folders(tmp_path, exported):
    folder = shutil.copytree(exported, tmp_path / "copy")
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"model\.onnx: the ONNX model cannot be loaded .*failed"):
        load_classifier(str(folder))
    file.unlink()
    with pytest.raises(ValueError, match=r"is no ONNX model folder: it lacks model\.onnx"):
        load_classifier(str(folder))
    shutil.copy(exported / "model.onnx", folder)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"copy is no model folder: it lacks config\.json"):
        load_classifier(str(folder))


def test_input_that_the_model_does_not_take(exported):
    model = load_classifier(str(exported))[0]
    for inputs, message in (
        (torch.zeros(1, SAMPLES_OF_ONE_FRAME - 1), r"does not take input_values of shape \(1, 447\)"),
        (torch.zeros(0, 8000), r"input_values has shape \(0, 8000\)"),
        (torch.zeros(8000), r"does not take input_values of shape \(8000,\)"),
        (torch.full((1, 8000), torch.nan), "holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            model(inputs)
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(torch.zeros(1, 8000), attention_mask=torch.ones(1, 8000))


def test_without_onnxruntime_the_remedy_is_named(tmp_path, monkeypatch, source, exported):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"exhubert\[onnx\]"):
        load_classifier(str(exported))
    with pytest.raises(ImportError, match=r"exporting to ONNX needs onnxruntime: pip install .* \(or exhubert\[onnx\]"):
        convert_onnx(source, tmp_path / "out")


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_a_backend_is_exported_once_for_each_version_of_a_model(
    root, native, tmp_path, monkeypatch, capsys, recording, command
):
    monkeypatch.setattr("exhubert.convert.onnx.HF_HOME", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "speech.wav", recording, 16_000)
    model = shutil.copytree(native, tmp_path / "model")
    options = ["--format", "jsonl"] if command == "predict" else ["--output", str(tmp_path / "rows.parquet")]
    line = [command, str(model), str(tmp_path / "speech.wav"), *options]

    def rows(backend):
        (tmp_path / "rows.parquet").unlink(missing_ok=True)
        assert main([*line, "--backend", backend]) == 0
        printed = capsys.readouterr()
        if command == "predict":
            (row,) = map(json.loads, printed.out.splitlines())  # of what is exported nothing is among the rows
            return list(row["probabilities"].values()), printed.err
        (embedding,) = pandas.read_parquet(tmp_path / "rows.parquet")["embedding"]
        return embedding, printed.err

    expected, said = rows("torch")
    assert "is exported" not in said and not (tmp_path / "cache").exists()
    exact, said = rows("onnx")
    assert "is exported, which takes some minutes, once" in said
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-5)
    again, said = rows("onnx")
    assert np.array_equal(again, exact) and "is exported" not in said
    if command == "predict":
        rough, _ = rows("int8")
        assert 1e-5 < abs(np.subtract(rough, expected)).max() < 0.05
        config = model / "config.json"
        config.write_text(config.read_text().replace('"anger"', '"fury"'))  # another version
        assert "is exported" in rows("onnx")[1]
        assert len([*(tmp_path / "cache" / "exhubert").iterdir()]) == 3


def test_of_processes_that_need_the_same_export_one_makes_it(tmp_path, monkeypatch, native):
    made = []

    def export(source, destination, int8, **options):
        made.append(source)
        time.sleep(0.2)
        Path(destination).mkdir()

    monkeypatch.setattr("exhubert.convert.onnx.HF_HOME", str(tmp_path))
    monkeypatch.setattr("exhubert.convert.onnx.convert_onnx", export)
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(model_for_backend, [str(native)] * 3, ["int8"] * 3))
    assert len(made) == 1 and len(set(folders)) == 1
    assert os.listdir(tmp_path / "exhubert") == [Path(folders[0]).name]


def test_backends_and_types_are_those_of_all_commands_and_no_onnx_model_has_one(tmp_path, capsys, exported, native):
    assert "is an ONNX model, which onnxruntime runs as it is: leave --backend out" in refused(
        capsys, main, "predict", exported, tmp_path, "--backend", "int8"
    )
    given = ["predict", native, tmp_path, "--backend", "int8"]
    for options in (["--dtype", "bfloat16"], ["--device", "cuda"]):  # before anything is exported
        assert "--backend int8 computes in float32 on the CPU alone" in refused(capsys, main, *given, *options)
    for command in ("predict", "embed", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert f"--backend {{{','.join(BACKENDS)}}}" in said and f"--dtype {{{','.join(DTYPES)}}}" in said


def test_an_evaluation_says_what_computed_its_numbers(tmp_path, monkeypatch, native, corpus):
    monkeypatch.setattr("exhubert.convert.onnx.HF_HOME", str(tmp_path))
    options = ["--model", str(native), "--corpora", str(corpus), "--output", str(tmp_path / "results")]
    assert main(["evaluate", *options, "--backend", "onnx"]) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["model"], results["backend"]) == (str(native), "onnx")


def test_onnxruntime_tells_nobody_of_its_use(tmp_path):
    """Else it writes who it is into the folder for temporary files, when it is imported."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT.parent)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    code = "from exhubert.segments_exhubert import load_detector; load_detector()"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob(".ses"))
