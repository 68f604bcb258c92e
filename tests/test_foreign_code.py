"""Code that a model brings runs only where it is allowed to by name, whatever stands on standard input.

python -m pytest tests/test_foreign_code.py
"""

from __future__ import annotations

import ast
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_layout import modules
from transformers import AutoConfig, HubertConfig, HubertForSequenceClassification

from conftest import HUBERT_KINDS, ROOT, SMALL, make_classifier, refused
from exhubert import evaluate_hf, pretrain_hf, train_hf
from exhubert.cli import SCRIPTS, main
from exhubert.model_folder import load_classifier, save_model_folder
from exhubert.utils.command import run_with_one_line_errors

CODE = """
from pathlib import Path
from transformers import HubertConfig, HubertForSequenceClassification

Path({marker!r}).touch()


class ForeignConfig(HubertConfig):
    model_type = "foreign"


class Foreign(HubertForSequenceClassification):
    config_class = ForeignConfig


class ForeignExtractor:
    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        Path({marker!r}).touch()
"""
COMMANDS = {  # each command that is given a model, as a user could give it
    "predict": "predict {model} -",
    "predict --backend": "predict {model} - --backend int8",
    "embed": "embed {model} - --output out.parquet",
    "embed --backend": "embed {model} - --output out.parquet --backend onnx",
    "evaluate": "--model {model} --corpora corpus --output out",
    "evaluate --backend": "--model {model} --corpora corpus --output out --backend onnx",
    "evaluate --calibrate": "--model {model} --corpora corpus --output out --calibrate",
    "train": "{recipe}",
    "train, expanded": "{recipe} --expand_copies 1",
    "train with adapters": "{recipe} --lora.rank 2",
    "pretrain": "{pretraining}",
    "pretrain on targets of": "{pretraining} --model base --targets features --target_model {model}",
    "exhubert train": "train {recipe}",
    "exhubert evaluate": "evaluate --model {model} --corpora corpus --output out",
    "exhubert pretrain": "pretrain {pretraining}",
    "convert onnx": "convert onnx {model} out",
    "convert hubert": "convert hubert {model} out",
    "convert published": "convert published {model} out",
    "convert contract": "convert contract {model} out",
    "push": "push {model} user/model --dry-run",
    "push, changed": "push {model} user/model --dry-run --allow-changed-code",
    "repair": "repair {model}",
    "verify": "verify {model}",
    "app": "app {model} --port 0",
}
WITHOUT_A_MODEL = {"corpora", "list", "show", "labels", "prepare", "check", "stats"}
MAINS = {"evaluate": evaluate_hf.main, "train": train_hf.main, "pretrain": pretrain_hf.main}
NAMED = ("predict", "embed", "evaluate", "train", "exhubert train", "exhubert evaluate", "convert onnx", "app")


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


def main_of(command: str):
    """The function that runs a command: that of a script, or of the command line."""
    return MAINS.get(command.replace(",", "").split()[0], main)


def arguments_of(command: str, model: Path, write_keys) -> list[str]:
    recipe = write_keys(model=str(model), corpora=["corpus"], rounds=1, expand_copies=0, training=TRAINING)
    keys = yaml.safe_load(Path(recipe).read_text()) | {"updates": 1, "targets": "mfcc", "clusters": 2}
    kept = {key: value for key, value in keys.items() if key not in ("rounds", "expand_copies")}
    Path("pretraining.yaml").write_text(yaml.safe_dump(kept))
    return COMMANDS[command].format(model=model, recipe=recipe, pretraining="pretraining.yaml").split()


def test_every_command_is_looked_at():
    """Of those that cli.py names; a new one that is given a model belongs into COMMANDS."""
    calls = [node for node in ast.walk(ast.parse((ROOT / "cli.py").read_text())) if isinstance(node, ast.Call)]
    named = {
        call.args[0].value
        for call in calls
        if getattr(call.func, "attr", "") == "add_parser" and isinstance(call.args[0], ast.Constant)
    }
    given = {word for line in COMMANDS.values() for word in line.split() if word in named}
    assert named - given == WITHOUT_A_MODEL
    assert {f"exhubert {name}" for name in SCRIPTS} | set(SCRIPTS) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_foreign_code_does_not_run(command, foreign, make_corpus, write_keys, capsys):
    make_corpus()
    HubertForSequenceClassification(HubertConfig(**SMALL, **HUBERT_KINDS["large"])).save_pretrained("base")
    if command == "verify":  # which looks and says
        assert main(["verify", str(foreign)]) == 1
    else:
        line = refused(capsys, main_of(command), *arguments_of(command, foreign, write_keys))
        if command in NAMED:
            assert "foreign needs code of its own" in line and "--trust-remote-code" in line
    assert not Path("marker").exists()


def known_type(model: Path, **changes: object) -> None:
    """A HuBERT's folder as transformers knows it, but for what is changed."""
    path = model / "config.json"
    values = json.loads(path.read_text()) | {"model_type": "hubert"} | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def with_foreign_extractor(model: Path) -> None:
    known_type(model, auto_map=None)
    values = {"auto_map": {"AutoFeatureExtractor": "foreign_code.ForeignExtractor"}, "sampling_rate": 16_000}
    (model / "preprocessor_config.json").write_text(json.dumps(values))


def with_foreign_pipeline(model: Path) -> None:
    known_type(model, auto_map=None, custom_pipelines={"speech-emotion-recognition": {"impl": "foreign_code.Foreign"}})


def with_foreign_base(model: Path) -> None:
    """Where peft is installed, transformers loads the model that an adapter names."""
    shutil.copytree(model, "foreign_base")
    known_type(model, auto_map=None)
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "foreign_base"}))


def with_our_name(model: Path) -> None:
    """It says that it is ours, and brings other code under the names of our files."""
    shutil.rmtree(model)
    save_model_folder(make_classifier(), model)
    for path in model.glob("*.py"):
        path.write_text(f"from pathlib import Path\nPath({str(model.parent / 'marker')!r}).touch()\n")


DISGUISES = [known_type, with_foreign_extractor, with_foreign_pipeline, with_foreign_base, with_our_name]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_foreign_code_in_disguise_does_not_run(disguise, foreign, make_corpus, write_keys, capsys):
    """In folders that load without it, or need not: whatever comes of the command, the code does not run."""
    make_corpus()
    disguise(foreign)
    for command in ("predict", "evaluate", "train", "repair", "push", "verify"):
        run = functools.partial(main_of(command), arguments_of(command, foreign, write_keys))
        assert run_with_one_line_errors(run) in (0, 1)
        assert not Path("marker").exists(), command
        assert "not foreseen" not in capsys.readouterr().err, command


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_foreign_code_runs_where_it_is_trusted(command, foreign, make_corpus, write_keys):
    make_corpus(labels=("LABEL_0", "LABEL_1"))
    arguments = [*arguments_of(command, foreign, write_keys), "--trust-remote-code"]
    run_with_one_line_errors(lambda: main_of(command)(arguments))
    assert Path("marker").exists()


TRAINING = {"report_to": "none", "use_cpu": True}
KERNELS = ("kernels-community/flash-attn2", "flash_attention_2", {"": "user/kernel"}, {"audio": "user/kernel"})


@pytest.mark.parametrize(
    "command", [*NAMED[:4], "app", "pretrain", "convert onnx", "convert hubert", "convert contract"]
)
def test_kernels_of_the_hub_are_not_fetched(command, model_folder, make_corpus, write_keys, capsys, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    make_corpus()
    path = model_folder / "config.json"
    config = json.loads(path.read_text())
    for kernel in KERNELS if command == "predict" else KERNELS[:1]:
        path.write_text(json.dumps(config | {"attn_implementation": kernel}))
        line = refused(capsys, main_of(command), *arguments_of(command, model_folder, write_keys))
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
    line = refused(capsys, main_of(command), *arguments_of(command, model_folder, write_keys))
    assert "base, which" in line and "adapter_config.json names: config.json: attn_implementation is" in line
    (model_folder / "adapter_config.json").write_text("{")
    line = refused(capsys, main_of(command), *arguments_of(command, model_folder, write_keys))
    assert "adapter_config.json is not JSON" in line


def test_a_folder_with_our_code_loads_with_the_package(model_folder):
    for trust in (False, True):
        assert type(load_classifier(str(model_folder), trust)[0]).__module__ == "exhubert.modeling_exhubert"
    assert type(AutoConfig.from_pretrained(model_folder)).__module__ == "exhubert.configuration_exhubert"


def calls_of_the_package() -> list[tuple[str, ast.Call]]:
    return [(name, node) for name, tree in modules().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_what_can_run_code_is_always_told_whether_it_may():
    """Else transformers asks on the terminal, and takes a `y` on standard input for consent."""
    for name, call in calls_of_the_package():
        function = ast.unparse(call.func)
        if function.endswith(".from_pretrained") and function.startswith("Auto") and not name.startswith("benchmarks/"):
            assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, f"{name}: {ast.unparse(call)}"


def test_nothing_unpickles_evaluates_or_fetches_code():
    never = r"(pickle\.loads?|marshal\..*|joblib\..*|dill\..*|torch\.hub\..*|pandas\.read_pickle|eval|exec|os\.system)"
    for name, call in calls_of_the_package():
        function, text = ast.unparse(call.func), f"{name}: {ast.unparse(call)}"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert not re.fullmatch(never, function), text
        if function == "torch.load":
            assert given.get("weights_only") == "True", text
        if function in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", text
        if function == "yaml.load":
            assert given.get("Loader") in ("loader", "yaml.SafeLoader"), text
