"""What is no whole model, or no name of a repo, is refused before anything is asked of the Hub; a dry run asks nothing.

python -m pytest tests/test_push_refused.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import SHARDS, make_onnx, refused, split_weights
from exhubert.cli import main
from exhubert.publish import hub
from exhubert.publish.push import push_model_folder


def test_a_dry_run_needs_no_token_and_asks_nothing_of_the_hub(model_folder, capsys, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", None)
    assert push_model_folder(model_folder, "user/model", private=True, dry_run=True) is None
    output = capsys.readouterr().out
    assert "/user/model, branch main, private" in output
    assert all(path.name in output for path in model_folder.iterdir())


def spoil(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def make_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = torch.nan
    save_file(weights, folder / "model.safetensors")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def lose_a_shard(folder: Path) -> None:
    split_weights(folder)
    (folder / SHARDS[1]).unlink()


def name_a_shard_oddly(folder: Path) -> None:
    split_weights(folder)
    (folder / SHARDS[1]).rename(folder / "part_b.safetensors")
    (folder / SHARDS[2]).write_text((folder / SHARDS[2]).read_text().replace(SHARDS[1], "part_b.safetensors"))


def name_own_code(folder: Path) -> None:
    (folder / "tokenization_mine.py").write_text("")
    spoil(folder, auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})


def change_the_code(folder: Path) -> None:
    with (folder / "modeling_exhubert.py").open("a") as file:
        file.write("import os\n")


def take_classes_from_elsewhere(folder: Path) -> None:
    spoil(folder, auto_map={"AutoModel": "other/repo--modeling_exhubert.ExHuBERTModel"}, custom_pipelines={})


def take_a_pipeline_from_elsewhere(folder: Path) -> None:
    spoil(folder, custom_pipelines={"speech-emotion-recognition": {"impl": "other/repo--pipeline.Other"}})


CHANGED_CODE = {
    change_the_code: "modeling_exhubert.py differs from this package's",
    take_classes_from_elsewhere: "config.json takes AutoModel from another repo (other/repo--modeling_exhubert.Ex",
    take_a_pipeline_from_elsewhere: "config.json takes speech-emotion-recognition from another repo (other/repo--pipe",
}


@pytest.mark.parametrize("change", CHANGED_CODE)
def test_changed_code_goes_to_the_hub_only_where_that_is_allowed(model_folder, capsys, change):
    change(model_folder)
    with pytest.raises(ValueError, match=f"{re.escape(CHANGED_CODE[change])}.*--allow-changed-code"):
        push_model_folder(model_folder, "user/model", dry_run=True)
    assert push_model_folder(model_folder, "user/model", dry_run=True, allow_changed_code=True) is None
    assert f"code that is not this package's:\n  {CHANGED_CODE[change]}" in capsys.readouterr().out


def link_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "README.md").unlink(), "it lacks README.md"),
        (lambda folder: (folder / "audio_exhubert.py").unlink(), "it lacks audio_exhubert.py"),
        (lambda folder: spoil(folder, auto_map={"AutoModel": "modeling_mine.Mine"}), "it lacks modeling_mine.py"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "x.safetensors"), "it lacks model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (make_nan, "classifier.bias has values that are not numbers"),
        (cut, r"model.safetensors: the weights cannot be read \(.*is the file whole"),
        (lose_a_shard, "it lacks model-00002-of-00002.safetensors"),
        (name_a_shard_oddly, "the model needs part_b.safetensors, which a push leaves out"),
        (name_own_code, "the model needs tokenization_mine.py, which a push leaves out"),
        (link_the_weights, "the model needs model.safetensors, which a push leaves out: links"),
        (lambda folder: make_onnx(folder, b"\0model.onnx.data"), "it lacks model.onnx.data"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(model_folder, harm, message):
    harm(model_folder)
    with pytest.raises(ValueError, match=message):
        push_model_folder(model_folder, "user/model", dry_run=True)


@pytest.mark.parametrize(
    ("repo_id", "revision", "message"),
    [
        ("model", None, "'model' is no name of a repo; it is user/model"),
        ("datasets/user/model", None, "is no name of a repo"),
        ("user/my model", None, "alphanumeric"),
        ("user/model", "a" * 40, "is a commit; a model is pushed to a branch"),
    ],
)
def test_names_that_cannot_be_are_refused(model_folder, repo_id, revision, message):
    with pytest.raises(ValueError, match=message):
        push_model_folder(model_folder, repo_id, revision=revision, dry_run=True)


NO_TABLES = [
    ({"auto_map": 5}, "config.json: auto_map is '5'; a table is needed"),
    ({"auto_map": {"AutoModel": 5}}, "config.json: AutoModel is '5'; module.Class is needed"),
    ({"auto_map": {"AutoModel": [{}]}}, "config.json: AutoModel is '{}'; module.Class is needed"),
    ({"custom_pipelines": ["x"]}, "custom_pipelines is \"['x']\"; a table is needed"),
    ({"custom_pipelines": {"task": {"impl": 5}}}, "config.json: task is '5'; module.Class is needed"),
    ({"weight_map": 5}, "weight_map is '5'; a table of weights and files is needed"),
    ({"weight_map": {"weight": 5}}, "a table of weights and files is needed"),
]


@pytest.mark.parametrize(("changes", "message"), NO_TABLES)
def test_tables_that_are_none(model_folder, capsys, changes, message):
    file = "config.json"
    if "weight_map" in changes:
        split_weights(model_folder)
        file = SHARDS[2]
    values = json.loads((model_folder / file).read_text())
    (model_folder / file).write_text(json.dumps(values | changes))
    assert message in refused(capsys, main, "push", model_folder, "user/model", "--dry-run")
    if file == "config.json":  # repair does not look at weights
        assert message in refused(capsys, main, "repair", model_folder)
    else:
        assert message in refused(capsys, main, "convert", "contract", model_folder, model_folder.parent / "out")


def test_repair_names_a_configuration_that_cannot_be_used(model_folder, capsys):
    spoil(model_folder, num_hidden_layers="x")
    line = refused(capsys, main, "repair", model_folder)
    assert f"{model_folder}: config.json cannot be used (num_hidden_layers is 'x'" in line
