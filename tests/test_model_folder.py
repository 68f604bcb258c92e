"""A model folder loads where the package is not installed, is whole or not there, and carries the repo's own code.

python -m pytest tests/test_model_folder.py
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertForSequenceClassification

from conftest import ROOT, SMALL, run_without_package
from exhubert import ExHuBERTForSequenceClassification
from exhubert.model_folder import CODE_FILES, check_model_folder, save_model_folder

# Run in one process for all tests, as torch and transformers take seconds to import; `samples` are the fixture's.
ELSEWHERE = """
import json, pathlib, soundfile, soxr, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
model = AutoModelForAudioClassification.from_pretrained("ex", trust_remote_code=True).eval()
model.freeze_og_encoder()
extractor = AutoFeatureExtractor.from_pretrained("ex", trust_remote_code=True)
base = AutoModel.from_pretrained("ex", trust_remote_code=True).eval()
got = {
    "module": type(model).__module__.split(".")[0],
    "logits": model(samples).logits.tolist(),
    "labels": model.config.id2label,
    "states": list(base(samples).last_hidden_state.shape),
    "input": list(extractor(samples[0].numpy(), return_tensors="pt")["input_values"].shape),
}
model.set_fast_path()
with torch.inference_mode():
    got |= {"fast": model(samples).logits.tolist(), "fast module": type(model.classifier).__module__.split(".")[-1]}
model.set_fast_path(False)

ours = pipeline("speech-emotion-recognition", model="ex", trust_remote_code=True)
stock = pipeline("audio-classification", model="ex", trust_remote_code=True, top_k=6)
plain = pipeline("speech-emotion-recognition", model="plain", trust_remote_code=True)
clip, rate = soundfile.read("clip.wav", dtype="float32")
clip = soxr.resample(clip.mean(axis=1), rate, 16_000, quality="VHQ")
got |= {
    "path": ours("clip.wav"),
    "bytes": ours(open("clip.wav", "rb").read()),
    "array": ours({"array": clip, "sampling_rate": 16_000}),
    "stream": [row["embedding"].tolist() for row in ours.stream(clip.reshape(7, -1), embeddings=True)],
    "stock": {row["label"]: row["score"] for row in stock(clip)},
    "plain": plain("clip.wav", window_seconds=2.0, hop_seconds=2.0),
}

model.classifier = torch.nn.Linear(16, 3)
model.config.num_labels = 3
model.save_pretrained("again")
again = AutoModelForAudioClassification.from_pretrained("again", trust_remote_code=True)
got |= {"out": again.classifier.out_features, "files": [path.name for path in pathlib.Path("again").iterdir()]}
print(json.dumps(got))
"""


@pytest.fixture
def folder(tmp_path, saved_model):
    return shutil.copytree(saved_model, tmp_path / "ex")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, saved_model):
    """What one process without the package makes of an ExHuBERT, a plain HuBERT and 4.2 s of stereo at 22,050 Hz."""
    place = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(saved_model, place / "ex")
    torch.manual_seed(0)
    plain = save_model_folder(HubertForSequenceClassification(HubertConfig(**SMALL)), place / "plain")
    assert check_model_folder(plain) == plain
    soundfile.write(place / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal((92_610, 2)), 22_050)
    return run_without_package(place, ELSEWHERE, fresh=True)


def test_it_loads_in_a_process_without_the_package(elsewhere, saved_model, samples):
    assert elsewhere["module"] == "transformers_modules"
    assert elsewhere["labels"]["3"] == "high/negative"
    assert elsewhere["input"] == [1, 48_000]
    assert elsewhere["states"] == [2, 24, 32]
    model = ExHuBERTForSequenceClassification.from_pretrained(saved_model).eval()
    with torch.inference_mode():
        assert torch.equal(torch.tensor(elsewhere["logits"]), model(samples).logits)
        model.set_fast_path()
        assert torch.equal(torch.tensor(elsewhere["fast"]), model(samples).logits)
    assert elsewhere["fast module"] == "fast_path_exhubert"


def test_both_pipelines_work_without_the_package(elsewhere):
    windows = elsewhere["path"]["windows"]
    assert [(window["start"], window["end"]) for window in windows] == [(0.0, 3.0), (1.5, pytest.approx(4.2))]
    mean = {name: np.mean([w["probabilities"][name] for w in windows]) for name in windows[0]["probabilities"]}
    assert elsewhere["path"]["probabilities"] == pytest.approx(mean)
    assert elsewhere["path"]["label"] == max(mean, key=mean.get)
    assert elsewhere["bytes"] == elsewhere["path"]
    assert elsewhere["array"]["probabilities"] == pytest.approx(elsewhere["path"]["probabilities"], abs=1e-6)
    assert np.shape(elsewhere["stream"]) == (2, 32)
    assert elsewhere["stock"] == pytest.approx(windows[0]["probabilities"], abs=1e-5)  # it hears the first window


def test_a_plain_hubert_is_a_model_folder_too(elsewhere):
    assert [window["start"] for window in elsewhere["plain"]["windows"]] == [0.0, 2.0, 4.0]


def test_a_folder_loaded_from_a_folder_saves_as_a_whole_again(elsewhere):
    assert elsewhere["out"] == 3
    assert {*CODE_FILES, "model.safetensors"} <= set(elsewhere["files"])


def test_the_code_in_the_folder_is_the_code_of_the_repo(folder):
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_exhubert.ExHuBERTConfig",
        "AutoModel": "modeling_exhubert.ExHuBERTModel",
        "AutoModelForAudioClassification": "modeling_exhubert.ExHuBERTForSequenceClassification",
    }


def test_a_failure_while_writing_leaves_what_was_there(tmp_path, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = ExHuBERTForSequenceClassification.from_pretrained(folder)
    model.classifier.bias.data += 1

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model_folder(model, folder)
    with pytest.raises(OSError, match="disk full"):
        save_model_folder(model, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ex"]


def test_a_folder_of_something_else_is_left_alone(tmp_path, folder):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    model = ExHuBERTForSequenceClassification.from_pretrained(folder)
    with pytest.raises(ValueError, match="thesis exists and is no model folder"):
        save_model_folder(model, tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]


def test_a_model_folder_is_replaced_with_its_shards(tmp_path, folder, samples):
    model = ExHuBERTForSequenceClassification.from_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    model.classifier.bias.data += 1
    save_model_folder(model, tmp_path / "sharded")
    assert [path.name for path in (tmp_path / "sharded").glob("*.safetensors*")] == ["model.safetensors"]
    loaded = ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "sharded").eval()
    with torch.inference_mode():
        assert torch.equal(loaded(samples).logits, model(samples).logits)


def test_what_a_folder_lacks_is_named(tmp_path, folder):
    (folder / "audio_exhubert.py").unlink()
    with pytest.raises(ValueError, match=r"is not a model folder: it lacks audio_exhubert\.py"):
        check_model_folder(folder)
    with pytest.raises(ValueError, match="no such model folder"):
        check_model_folder(tmp_path / "nothing")
