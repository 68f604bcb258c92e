"""Code that a model brings runs only where it is allowed to by name, whatever stands on standard input.

python -m pytest tests/test_foreign_code.py
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, HubertConfig, HubertForSequenceClassification

from conftest import HUBERT_KINDS, SMALL, refused
from exhubert import evaluate_hf, train_hf
from exhubert.cli import main
from exhubert.model_folder import load_classifier
from exhubert.utils.command import run_with_one_line_errors

CODE = """
from pathlib import Path
from transformers import HubertConfig, HubertForSequenceClassification

Path({marker!r}).touch()


class ForeignConfig(HubertConfig):
    model_type = "foreign"


class Foreign(HubertForSequenceClassification):
    config_class = ForeignConfig
"""
COMMANDS = {
    "predict": "predict {model} -",
    "embed": "embed {model} - --output out.parquet",
    "evaluate": "--model {model} --corpora corpus --output out",
    "train": "{recipe}",
    "convert onnx": "convert onnx {model} out",
    "convert hubert": "convert hubert {model} out",
    "convert published": "convert published {model} out",
    "convert contract": "convert contract {model} out",
    "push": "push {model} user/model --dry-run",
}
MAINS = {"evaluate": evaluate_hf.main, "train": train_hf.main}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose code leaves a file `marker`; the working folder is the one that it lies in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 99)))
    torch.manual_seed(0)
    HubertForSequenceClassification(HubertConfig(**SMALL, **HUBERT_KINDS["large"])).save_pretrained("foreign")
    Path("foreign/foreign_code.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    path = Path("foreign/config.json")
    names = {"AutoConfig": "ForeignConfig", "AutoModelForAudioClassification": "Foreign"}
    auto_map = {auto: f"foreign_code.{name}" for auto, name in names.items()}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "foreign", "auto_map": auto_map}))
    return tmp_path / "foreign"


def arguments_of(command: str, model: Path, write_keys) -> list[str]:
    recipe = write_keys(model=str(model), corpora=["corpus"], rounds=1, expand_copies=0)
    return COMMANDS[command].format(model=model, recipe=recipe).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_foreign_code_does_not_run(command, foreign, make_corpus, write_keys, capsys):
    make_corpus()
    line = refused(capsys, MAINS.get(command, main), *arguments_of(command, foreign, write_keys))
    assert not Path("marker").exists()
    if command in ("predict", "embed", "evaluate", "train", "convert onnx"):
        assert "foreign needs code of its own" in line and "--trust-remote-code" in line


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_foreign_code_runs_where_it_is_trusted(command, foreign, make_corpus, write_keys):
    make_corpus(labels=("LABEL_0", "LABEL_1"))
    arguments = [*arguments_of(command, foreign, write_keys), "--trust-remote-code"]
    run_with_one_line_errors(lambda: MAINS.get(command, main)(arguments))
    assert Path("marker").exists()


KERNELS = ("kernels-community/flash-attn2", "flash_attention_2", {"": "user/kernel"}, {"audio": "user/kernel"})


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "push"])
def test_kernels_of_the_hub_are_not_fetched(command, model_folder, make_corpus, write_keys, capsys, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    make_corpus()
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    for kernel in KERNELS if command == "predict" else KERNELS[:1]:
        path.write_text(json.dumps(config | {"attn_implementation": kernel}))
        line = refused(capsys, MAINS.get(command, main), *arguments_of(command, model_folder, write_keys))
        assert "config.json: attn_implementation is" in line


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_the_base_model_of_an_adapter_is_looked_at_too(
    command, model_folder, make_corpus, write_keys, capsys, monkeypatch
):
    """transformers loads it in the place of the folder's own model, where peft is installed."""
    pytest.importorskip("peft", reason="transformers follows adapter_config.json where peft is installed")
    monkeypatch.chdir(model_folder.parent)
    make_corpus()
    base = Path(shutil.copytree(model_folder, "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"attn_implementation": KERNELS[0]}))
    (model_folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    line = refused(capsys, MAINS.get(command, main), *arguments_of(command, model_folder, write_keys))
    assert "base, which" in line and "adapter_config.json names: config.json: attn_implementation is" in line
    (model_folder / "adapter_config.json").write_text("{")
    line = refused(capsys, MAINS.get(command, main), *arguments_of(command, model_folder, write_keys))
    assert "adapter_config.json is not JSON" in line


def test_a_folder_with_our_code_loads_with_the_package(model_folder):
    for trust in (False, True):
        assert type(load_classifier(str(model_folder), trust)[0]).__module__ == "exhubert.modeling_exhubert"
    assert type(AutoConfig.from_pretrained(model_folder)).__module__ == "exhubert.configuration_exhubert"
