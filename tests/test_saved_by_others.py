"""Folders and repos that transformers itself saves: whole, and loaded without the package.

python -m pytest tests/test_saved_by_others.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForAudioClassification, Trainer, TrainingArguments, pipeline

from conftest import LIBRARIES, WITHOUT_PACKAGE, Forks, make_classifier, refused, run_without_package
from exhubert import ExHuBERTFeatureExtractor, ExHuBERTForSequenceClassification, ExHuBERTModel
from exhubert.cli import main
from exhubert.configuration_exhubert import AUTO_MAP, CODE_FILES, CUSTOM_PIPELINES
from exhubert.model_folder import check_model_folder, load_pipeline, repair_model_folder
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from hub_stand_in import WRITER, HubStandIn


def not_there(folder: Path) -> set[str]:
    """The code files that a folder's configurations name, and that are not there."""
    named = set()
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            classes = [*values.get("auto_map", {}).values()]
            classes += [entry["impl"] for entry in values.get("custom_pipelines", {}).values()]
            named |= {f"{each.partition('.')[0]}.py" for each in classes}
    return {name for name in named if not (folder / name).is_file()}


def by_trainer(model, folder):
    arguments = TrainingArguments(str(folder.parent / "trainer"), max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    rows = [{"input_values": torch.randn(4000), "labels": 1}] * 8
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=ExHuBERTFeatureExtractor(2.0))
    trainer.train()
    trainer.save_model(str(folder))
    assert not not_there(folder.parent / "trainer" / "checkpoint-1")


SAVERS = {
    "model": lambda model, folder: model.save_pretrained(folder),
    "accelerate": lambda model, folder: Accelerator(cpu=True).unwrap_model(model).save_pretrained(folder),
    "pipeline": lambda model, folder: ExHuBERTPipeline(
        model=model, feature_extractor=ExHuBERTFeatureExtractor()
    ).save_pretrained(folder),
    "task": lambda model, folder: pipeline(
        "speech-emotion-recognition", model=model, feature_extractor=ExHuBERTFeatureExtractor()
    ).save_pretrained(folder),
    "trainer": by_trainer,
}


def test_whatever_saves_a_model_leaves_a_folder_that_loads_without_the_package(tmp_path, make_hubert):
    expected = {}
    audio = np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    np.save(tmp_path / "audio.npy", audio)
    for name, save in SAVERS.items():
        model = make_classifier()
        save(model, tmp_path / name)
        given = {"array": audio, "sampling_rate": 16_000}
        expected[name] = load_pipeline(str(tmp_path / name))(given)["probabilities"]
    ExHuBERTForSequenceClassification.from_hubert(make_hubert()).save_pretrained(tmp_path / "expanded")
    ExHuBERTModel.from_hubert(make_hubert()).save_pretrained(tmp_path / "base")
    for name in (*SAVERS, "expanded", "base"):
        folder = tmp_path / name
        assert not not_there(folder), name
        values = json.loads((folder / "config.json").read_text())
        assert (values["auto_map"], list(values["custom_pipelines"])) == (AUTO_MAP, list(CUSTOM_PIPELINES))
        assert {path.name for path in folder.glob("*.py")} == set(CODE_FILES)
    assert json.loads((tmp_path / "trainer" / "preprocessor_config.json").read_text())["window_seconds"] == 2.0

    script = f"""
    import json
    import numpy as np
    from transformers import AutoModel, AutoModelForAudioClassification, pipeline

    given = {{"array": np.load("audio.npy"), "sampling_rate": 16_000}}
    got = {{}}
    for name in {list(SAVERS)}:
        by_task = pipeline("speech-emotion-recognition", model=name, trust_remote_code=True)
        got[name] = by_task(given)["probabilities"]
        assert pipeline(model=name, trust_remote_code=True)(given)["probabilities"] == got[name]
        # Loaded code saves as whole a folder.
        by_task.model.save_pretrained(f"again/{{name}}")
        pipeline("speech-emotion-recognition", model=f"again/{{name}}", trust_remote_code=True)
    for name in ("expanded", "base"):
        AutoModel.from_pretrained(name, trust_remote_code=True)
    print(json.dumps(got))
    """
    got = run_without_package(tmp_path, script)
    for name, probabilities in expected.items():
        assert got[name] == pytest.approx(probabilities, abs=1e-6), name
        assert not not_there(tmp_path / "again" / name)
        assert json.loads((tmp_path / "again" / name / "config.json").read_text())["auto_map"] == AUTO_MAP


@pytest.mark.slow
def test_what_push_to_hub_sends_loads_by_revision_without_the_package(tmp_path):
    """Model, feature extractor and pipeline of the package; then the model as its repo's own code pushes it again."""
    make_classifier().save_pretrained(tmp_path / "model")
    push = """
    import sys
    from huggingface_hub import HfApi
    from exhubert import ExHuBERTFeatureExtractor, ExHuBERTForSequenceClassification
    from exhubert.pipeline_exhubert import ExHuBERTPipeline

    model = ExHuBERTForSequenceClassification.from_pretrained("model")
    model.push_to_hub("user/alone")
    extractor = ExHuBERTFeatureExtractor(2.0)
    extractor.push_to_hub("user/alone")
    ExHuBERTPipeline(model=model, feature_extractor=extractor).push_to_hub("user/together")
    """
    load = """
    import torch
    from huggingface_hub import HfApi
    from transformers import AutoModelForAudioClassification, pipeline

    logits = []
    for name in ("user/alone", "user/together", "user/again"):
        if name == "user/again":
            model.push_to_hub(name)
        revision = HfApi().model_info(name).sha
        classify = pipeline("speech-emotion-recognition", model=name, revision=revision, trust_remote_code=True)
        if name != "user/again":
            assert classify.feature_extractor.window_seconds == 2.0
        model = classify.model
        logits.append(model(torch.ones(1, 8000)).logits)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    """
    with HubStandIn(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "cache", WRITER) | {"TRANSFORMERS_VERBOSITY": "error"}
        with Forks(LIBRARIES, environment) as forks:
            for script in (push, WITHOUT_PACKAGE + textwrap.dedent(load)):
                done = forks(script, folder=tmp_path)
                assert done.returncode == 0, done.stderr
        assert set(CODE_FILES) <= set(hub.files("user/again"))


@pytest.mark.slow
def test_repair_makes_a_loadable_folder_whole(tmp_path, capsys, make_hubert, model_folder):
    plain = tmp_path / "plain"  # another class, which does not carry our code
    model = AutoModelForAudioClassification.from_pretrained(make_hubert())
    model.config.custom_pipelines = CUSTOM_PIPELINES
    model.save_pretrained(plain)
    assert not_there(plain) == {"pipeline_exhubert.py"}
    line = refused(capsys, main, "push", plain, "user/model", "--dry-run")
    assert "it lacks preprocessor_config.json" in line and f"`exhubert repair {plain}` adds it" in line
    assert main(["repair", str(plain)]) == 0
    said = capsys.readouterr().out
    assert "preprocessor_config.json" in said and "its window is taken to be 3 s" in said
    assert check_model_folder(plain) and not not_there(plain)
    assert repair_model_folder(plain) == []
    assert run_without_package(
        tmp_path,
        """
        import json, torch
        from transformers import pipeline
        classify = pipeline("speech-emotion-recognition", model="plain", trust_remote_code=True)
        print(json.dumps(classify({"array": torch.ones(8000).numpy(), "sampling_rate": 16_000})["label"]))
        """,
    )

    config = json.loads((model_folder / "config.json").read_text())
    before = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    for name in ("auto_map", "custom_pipelines"):
        del config[name]
    (model_folder / "config.json").write_text(json.dumps(config))
    for name in ("audio_exhubert.py", "pipeline_exhubert.py"):
        (model_folder / name).unlink()
    assert repair_model_folder(model_folder) == ["audio_exhubert.py", "config.json", "pipeline_exhubert.py"]
    assert {path.name: path.read_bytes() for path in model_folder.iterdir()} == before

    config["custom_pipelines"] = {"mine": {"impl": "mine.Pipeline"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    assert repair_model_folder(model_folder) == ["config.json"]
    assert set(json.loads((model_folder / "config.json").read_text())["custom_pipelines"]) == {
        "mine",
        *CUSTOM_PIPELINES,
    }
    (model_folder / "README.md").unlink()
    line = refused(capsys, main, "push", model_folder, "user/model", "--dry-run")
    assert f"it lacks README.md; `exhubert repair {model_folder}` adds README.md" in line

    (model_folder / "model.safetensors").unlink()
    assert "lacks config.json or weights" in refused(capsys, main, "repair", model_folder)
