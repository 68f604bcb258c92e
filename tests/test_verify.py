"""`exhubert verify`: code against the package's, weights against the card's, pickles named; nothing of it runs.

python -m pytest tests/test_verify.py
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertConfig, HubertForSequenceClassification

from conftest import HUBERT_KINDS, SMALL, make_classifier, make_onnx, refused, split_weights, write_corpus
from exhubert import __version__, train_hf
from exhubert.cli import main
from exhubert.configuration_exhubert import CODE_FILES
from exhubert.model_folder import repair_model_folder, save_model_folder, verify_model_folder
from exhubert.model_folder.card import CARD, is_sealed, stated_weights, with_weights, write_card
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig, Wav2Vec2EmotionForSequenceClassification
from exhubert.utils.files import sha256_of


def wrong(folder: Path) -> list[str]:
    """What is not as it should be, as `status file`."""
    return [f"{found.status} {found.file}" for found in verify_model_folder(folder) if found.status != "same"]


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_that_this_package_wrote(model_folder, capsys):
    found = verify_model_folder(model_folder)
    assert {(each.status, each.file) for each in found} == {
        ("same", name) for name in (*CODE_FILES, "model.safetensors")
    }
    assert main(["verify", str(model_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"same       audio_exhubert.py: the code of exhubert {__version__}"
    digest = sha256_of(model_folder / "model.safetensors")
    assert lines[len(CODE_FILES) :] == [
        f"same       model.safetensors: SHA-256 {digest}, as README.md states",
        f"{model_folder}: all is as it should be",
    ]


def test_whatever_writes_a_folder_states_its_weights(tmp_path, make_hubert, model_folder):
    """Conversions, other models, an emotion model with code of its own, a card that is written later."""
    assert main(["convert", "hubert", str(make_hubert()), str(tmp_path / "expanded")]) == 0
    assert main(["convert", "contract", str(tmp_path / "expanded"), str(tmp_path / "contracted")]) == 0
    plain = HubertForSequenceClassification(HubertConfig(**SMALL, **HUBERT_KINDS["large"]))
    save_model_folder(plain, tmp_path / "plain")
    config = Wav2Vec2EmotionConfig(**SMALL, **HUBERT_KINDS["large"])
    save_model_folder(Wav2Vec2EmotionForSequenceClassification(config), tmp_path / "emotion")
    for name in ("expanded", "contracted", "plain", "emotion"):
        assert wrong(tmp_path / name) == [], name
        assert stated_weights(tmp_path / name / CARD)[0] == __version__
    (model_folder / CARD).unlink()
    assert wrong(model_folder) == ["unstated model.safetensors"]
    repair_model_folder(model_folder)
    assert wrong(model_folder) == []


def test_shards(model_folder):
    split_weights(model_folder)
    (model_folder / CARD).unlink()
    write_card(model_folder)
    assert wrong(model_folder) == []
    first = "model-00001-of-00002.safetensors"
    weights = load_file(model_folder / first)
    save_file(dict(list(weights.items())[1:]), model_folder / first)
    (unreadable,) = [found for found in verify_model_folder(model_folder) if found.status != "same"]
    assert unreadable[:2] == ("unreadable", first) and f"it lacks {next(iter(weights))}" in unreadable.note
    (model_folder / first).unlink()
    assert wrong(model_folder) == [f"missing {first}"]


def test_an_onnx_model(model_folder):
    make_onnx(model_folder)
    change_json(model_folder / "config.json", custom_pipelines=None)  # as an export leaves it
    card = (model_folder / CARD).read_text()
    (model_folder / CARD).write_text(with_weights(card, model_folder))
    assert is_sealed((model_folder / CARD).read_text())
    assert list(stated_weights(model_folder / CARD)[1]) == ["model.onnx"]
    assert wrong(model_folder) == []
    (model_folder / "model.onnx").write_bytes(b"another")
    assert wrong(model_folder) == ["differs model.onnx"]


def test_code_that_is_not_this_packages(model_folder, capsys):
    with (model_folder / "modeling_exhubert.py").open("a") as file:
        file.write("\n")
    (model_folder / "pipeline_exhubert.py").unlink()
    (model_folder / "below").mkdir()
    for name in ("helper.py", "below/extension.SO"):
        (model_folder / name).write_bytes(b"code")
    auto_map = {"AutoTokenizer": ["mine.Slow", None], "AutoModel": "user/other--file.Class"}
    change_json(model_folder / "preprocessor_config.json", auto_map=auto_map)
    expected = [
        "foreign preprocessor_config.json",
        "unknown below/extension.SO",
        "unknown helper.py",
        "missing mine.py",
    ]
    expected += ["differs modeling_exhubert.py", "missing pipeline_exhubert.py"]
    assert wrong(model_folder) == expected
    assert main(["verify", str(model_folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    where = "takes AutoModel from another repo (user/other--file.Class)"
    assert lines[0] == f"foreign    preprocessor_config.json: {where}"
    assert "pipeline_exhubert.py: config.json needs it" in "\n".join(lines)
    assert lines[-1] == f"{model_folder}: 6 of {len(CODE_FILES) + 5} are not as they should be"


def test_code_that_one_of_ours_needs(model_folder):
    """Nothing names audio_exhubert.py but the pipeline that imports it."""
    (model_folder / "audio_exhubert.py").unlink()
    (model_folder / "preprocessor_config.json").unlink()
    assert wrong(model_folder) == ["missing audio_exhubert.py"]


def test_another_release_is_named(model_folder):
    (model_folder / "modeling_exhubert.py").write_text("# of another release\n")
    card = (model_folder / CARD).read_text()
    (model_folder / CARD).write_text(card.replace(f"version: {__version__}", "version: 0.0.9"))
    (found,) = [found for found in verify_model_folder(model_folder) if found.status != "same"]
    assert found[:2] == ("differs", "modeling_exhubert.py") and "exhubert 0.0.9 wrote it" in found.note


def test_other_weights(model_folder, capsys):
    weights = model_folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    stated = sha256_of(weights)
    whole[-1] ^= 1
    weights.write_bytes(whole)
    assert main(["verify", str(model_folder)]) == 1
    line = f"differs    model.safetensors: its SHA-256 is {sha256_of(weights)}, and README.md states {stated}"
    assert line in capsys.readouterr().out.splitlines()
    line = refused(capsys, main, "push", model_folder, "user/model", "--dry-run")
    assert "README.md states another SHA-256 of model.safetensors" in line and "take `exhubert:`" in line
    card = (model_folder / CARD).read_text()
    (model_folder / CARD).write_text(re.sub(r"exhubert:\n( .*\n)+", "", card))
    assert main(["push", str(model_folder), "user/model", "--dry-run"]) == 0
    for header in (b"\xff" * 8, whole[:20], b""):
        weights.write_bytes(header)
        assert wrong(model_folder) == ["unreadable model.safetensors"]
    weights.unlink()
    assert wrong(model_folder) == ["missing model.safetensors"]


def test_pickles_are_named(model_folder):
    for name in ("training_args.bin", "pytorch_model.bin", "below/old.PKL", "optimizer.pt"):
        (model_folder / name).parent.mkdir(exist_ok=True)
        (model_folder / name).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    names = ["optimizer.pt", "pytorch_model.bin", "training_args.bin", "below/old.PKL"]
    assert wrong(model_folder) == [f"pickle {name}" for name in names]


def test_a_checkpoint_and_the_model_of_a_training(tmp_path, make_hubert, write_keys, monkeypatch, capsys):
    """With LoRA, whose parts lie beside the weights."""
    pytest.importorskip("peft", reason="adapters need peft")
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    training = {"report_to": "none", "use_cpu": True, "save_steps": 1}
    keys = {"model": str(make_hubert()), "corpora": ["corpus"], "rounds": 1, "window_seconds": 0.5, "lora": {"rank": 2}}
    assert train_hf.main([write_keys(training=training, **keys)]) == 0
    assert wrong(tmp_path / "run" / "model") == []
    states = ["lora.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"]
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    assert wrong(checkpoint) == [f"state {name}" for name in states]
    assert main(["verify", str(checkpoint)]) == 0


def test_a_hostile_folder_is_read_and_nothing_of_it_runs(model_folder, capsys, monkeypatch):
    """Names that lead elsewhere, tables that are none, pipes, a card that grows when it is read."""
    monkeypatch.chdir(model_folder.parent)
    marker = model_folder.parent / "marker"
    (model_folder / "modeling_exhubert.py").write_text(f"open({str(marker)!r}, 'w')")
    (model_folder / "sitecustomize.py").write_text(f"open({str(marker)!r}, 'w')")
    change_json(model_folder / "config.json", auto_map={"AutoConfig": "../../etc/passwd.Class", "AutoModel": {"a": 5}})
    (model_folder / "tokenizer_config.json").write_text('{"auto_map": 5}')
    (model_folder / "special.json").write_text("[" * 100_000)
    os.mkfifo(model_folder / "pipe.json")
    (model_folder / "lost.py").symlink_to("nowhere")
    bomb = "\n".join(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 12))
    (model_folder / CARD).write_text(
        f"---\na0: &a0 [x]\n{bomb}\nexhubert: {{version: *a11, sha256: {{x: *a11}}}}\n---\n"
    )
    before = set(sys.modules)
    assert main(["verify", str(model_folder)]) == 1
    assert not marker.exists() and not {name for name in set(sys.modules) - before if "etc" in name}
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 1000
    said = [tuple(line.split(":")[0].split()) for line in lines[:-1] if not line.startswith("same")]
    assert ("unreadable", "pipe.json") in said and ("unreadable", "lost.py") in said
    assert ("missing", "../../etc/passwd.py") in said or ("missing", ".py") in said
    for name in ("tokenizer_config.json", "special.json"):
        assert ("unreadable", name) in said
    assert ("unknown", "sitecustomize.py") in said and ("unstated", "model.safetensors") in said


def test_what_is_no_folder(tmp_path, capsys):
    line = refused(capsys, main, "verify", tmp_path / "nothing")
    assert "no such folder" in line


def test_a_model_of_the_hubs_cache(tmp_path, monkeypatch):
    """Whose snapshots are links to what was downloaded."""
    folder = save_model_folder(make_classifier(), tmp_path / "model")
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    asked = []

    def snapshot_download(name: str, revision: str | None) -> str:
        asked.append((name, revision))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("exhubert.model_folder.verify.snapshot_download", snapshot_download)
    assert main(["verify", "user/model", "--revision", "v1"]) == 0
    assert asked == [("user/model", "v1")]


def test_the_state_of_the_random_generators_does_not_change(model_folder):
    before = torch.get_rng_state()
    verify_model_folder(model_folder)
    assert torch.equal(torch.get_rng_state(), before)
