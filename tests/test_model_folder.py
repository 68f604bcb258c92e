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
from transformers import HubertForSequenceClassification

from conftest import ROOT, run_without_package
from exhubert import ExHuBERTForSequenceClassification
from exhubert.model_folder import CODE_FILES, check_model_folder, save_model_folder


@pytest.fixture
def folder(tmp_path, make_hubert):
    return save_model_folder(ExHuBERTForSequenceClassification.from_hubert(make_hubert(head="none")), tmp_path / "ex")


@pytest.fixture
def recording(tmp_path):
    """A clip of 4.2 s at 22,050 Hz, stereo."""
    path = tmp_path / "clip.wav"
    noise = np.random.default_rng(0).standard_normal((92_610, 2))
    soundfile.write(path, 0.1 * noise, 22_050)
    return path


def test_it_loads_in_a_process_without_the_package(tmp_path, folder, samples):
    got = run_without_package(
        tmp_path,
        """
        import json, torch
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
        model = AutoModelForAudioClassification.from_pretrained("ex", trust_remote_code=True).eval()
        extractor = AutoFeatureExtractor.from_pretrained("ex", trust_remote_code=True)
        samples = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
        model.freeze_og_encoder()
        base = AutoModel.from_pretrained("ex", trust_remote_code=True).eval()
        print(json.dumps({
            "module": type(model).__module__.split(".")[0],
            "logits": model(samples).logits.tolist(),
            "labels": model.config.id2label,
            "states": list(base(samples).last_hidden_state.shape),
            "input": list(extractor(samples[0].numpy(), return_tensors="pt")["input_values"].shape),
        }))
        """,
    )
    assert got["module"] == "transformers_modules"
    assert got["labels"]["3"] == "high/negative"
    assert got["input"] == [1, 48_000]
    assert got["states"] == [2, 24, 32]
    model = ExHuBERTForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert torch.equal(torch.tensor(got["logits"]), model(samples).logits)


def test_both_pipelines_work_without_the_package(tmp_path, folder, recording):
    got = run_without_package(
        tmp_path,
        f"""
        import json, soundfile, soxr
        from transformers import pipeline
        ours = pipeline("speech-emotion-recognition", model="ex", trust_remote_code=True)
        stock = pipeline("audio-classification", model="ex", trust_remote_code=True, top_k=6)
        samples, rate = soundfile.read({str(recording)!r}, dtype="float32")
        samples = soxr.resample(samples.mean(axis=1), rate, 16_000, quality="VHQ")
        print(json.dumps({{
            "path": ours({str(recording)!r}),
            "bytes": ours(open({str(recording)!r}, "rb").read()),
            "array": ours({{"array": samples, "sampling_rate": 16_000}}),
            "stream": [row["embedding"].tolist() for row in ours.stream(samples.reshape(7, -1), embeddings=True)],
            "stock": {{row["label"]: row["score"] for row in stock(samples)}},
        }}))
        """,
    )
    windows = got["path"]["windows"]
    assert [(window["start"], window["end"]) for window in windows] == [(0.0, 3.0), (1.5, pytest.approx(4.2))]
    mean = {name: np.mean([w["probabilities"][name] for w in windows]) for name in windows[0]["probabilities"]}
    assert got["path"]["probabilities"] == pytest.approx(mean)
    assert got["path"]["label"] == max(mean, key=mean.get)
    assert got["bytes"] == got["path"]
    assert got["array"]["probabilities"] == pytest.approx(got["path"]["probabilities"], abs=1e-6)
    assert np.shape(got["stream"]) == (2, 32)
    assert got["stock"] == pytest.approx(windows[0]["probabilities"], abs=1e-5)  # it hears the first window


def test_the_code_in_the_folder_is_the_code_of_the_repo(folder):
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_exhubert.ExHuBERTConfig",
        "AutoModel": "modeling_exhubert.ExHuBERTModel",
        "AutoModelForAudioClassification": "modeling_exhubert.ExHuBERTForSequenceClassification",
    }


def test_a_folder_loaded_from_a_folder_saves_as_a_whole_again(tmp_path, folder):
    got = run_without_package(
        tmp_path,
        """
        import json, pathlib
        from transformers import AutoModelForAudioClassification
        model = AutoModelForAudioClassification.from_pretrained("ex", trust_remote_code=True)
        model.classifier = __import__("torch").nn.Linear(16, 3)
        model.config.num_labels = 3
        model.save_pretrained("again")
        again = AutoModelForAudioClassification.from_pretrained("again", trust_remote_code=True)
        files = [path.name for path in pathlib.Path("again").iterdir()]
        print(json.dumps({"out": again.classifier.out_features, "files": files}))
        """,
    )
    assert got["out"] == 3
    assert {"configuration_exhubert.py", "modeling_exhubert.py", "model.safetensors"} <= set(got["files"])


def test_a_plain_hubert_is_a_model_folder_too(tmp_path, make_hubert, recording):
    hubert = HubertForSequenceClassification.from_pretrained(make_hubert())
    folder = save_model_folder(hubert, tmp_path / "plain")
    assert check_model_folder(folder) == folder
    got = run_without_package(
        tmp_path,
        f"""
        import json
        from transformers import pipeline
        ours = pipeline("speech-emotion-recognition", model="plain", trust_remote_code=True)
        print(json.dumps(ours({str(recording)!r}, window_seconds=2.0, hop_seconds=2.0)))
        """,
    )
    assert [window["start"] for window in got["windows"]] == [0.0, 2.0, 4.0]


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ex", "hubert"]


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
