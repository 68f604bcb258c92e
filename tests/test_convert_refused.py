"""What `exhubert convert` refuses, in one line: damaged checkpoints, other architectures, folders that are there.

python -m pytest tests/test_convert_refused.py
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from exhubert.cli import main, run_with_one_line_errors
from exhubert.convert.hubert import convert_hubert


def test_a_folder_that_is_there_is_not_overwritten(tmp_path, make_hubert, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    for kind in ("hubert", "published", "contract"):
        command = ["convert", kind, str(make_hubert()), str(tmp_path / "taken")]
        assert run_with_one_line_errors(lambda command=command: main(command)) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"error: {tmp_path / 'taken'} exists already; give a folder that does not, or delete it"
        )
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path, make_hubert, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("hubert", "published", "contract"):
        assert run_with_one_line_errors(lambda kind=kind: main(["convert", kind, "nowhere", "expanded"])) == 1
        assert capsys.readouterr().err.startswith(
            "error: nowhere: no such folder or cached model, and the Hub could not be asked"
        )
    assert run_with_one_line_errors(lambda: main(["convert", "hubert"])) == 1  # 2 would mean that some files were bad


class Evil:
    """What a pickle may hold."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


def lacking_a_shard(folder, file, weights):
    file.unlink()
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(content):
    def damage(folder, file, weights):
        file.unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return damage


def changed(**tensors):
    def damage(folder, file, weights):
        changes = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        kept = {name: tensor for name, tensor in {**weights, **changes}.items() if tensor is not None}
        save_file(kept, file, {"format": "pt"})

    return damage


GATE = torch.zeros(32)


DAMAGE = {
    "cut weights": (lambda _, file, __: file.write_bytes(file.read_bytes()[:1000]), r"safetensors: the weights cannot"),
    "cut pickle": (
        lambda folder, file, _: file.replace(folder / "pytorch_model.bin") and None,
        r"pytorch_model\.bin is no file of tensors alone, and what else a pickle holds could run code: not loaded",
    ),
    "pickle that runs code": (pickled({"a": Evil()}), "could run code: not loaded"),
    "pickle of something else": (pickled({"model": {"a": GATE}}), "something else than tensors by name; a state dict"),
    "no weights": (lambda _, file, __: file.unlink(), r"holds no weights: neither model\.safetensors nor pytorch_"),
    "no shard": (lacking_a_shard, r"lacks model-00001-of-00001\.safetensors, which model\.safetensors\.index\.json"),
    "no configuration": (lambda folder, *_: (folder / "config.json").unlink(), r"no checkpoint: it lacks config\.json"),
    "broken configuration": (lambda folder, *_: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "unknown weight": (
        changed(hubert__extra=GATE),
        r"is no HubertForSequenceClassification of its configuration: it has unknown hubert\.extra",
    ),
    "published layout": (
        changed(**{"hubert.encoder.layers.0.gate_bb_linear.bias": GATE}),
        r"gate_bb_linear\.bias .*: it is the published ExHuBERT's layout, use `exhubert convert published`",
    ),
    "missing weight": (
        changed(**{"hubert.encoder.layers.1.attention.q_proj.weight": None}),
        r"HubertForSequenceClassification .* it lacks hubert\.encoder\.layers\.1\.attention\.q_proj\.weight",
    ),
    "half a head": (changed(projector__weight=None), r"lacks projector\.weight"),
    "other shape": (
        changed(classifier__bias=torch.zeros(9)),
        r"has another shape of classifier\.bias, \(9,\) instead of \(2,\)",
    ),
    "one weight twice": (
        changed(encoder__layer_norm__bias=GATE),
        r"holds the same weight twice: encoder\.layer_norm\.bias and hubert\.encoder\.layer_norm\.bias",
    ),
    "weights that are not numbers": (
        changed(classifier__bias=torch.full((2,), float("nan"))),
        r"the source's logits are not finite on 2 x 16000 samples \(seed 0\): its weights are damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line_that_names_what_is_wrong(tmp_path, make_hubert, capsys, case):
    damage, message = DAMAGE[case]
    source = make_hubert()
    file = source / "model.safetensors"
    damage(source, file, load_file(file))
    assert run_with_one_line_errors(lambda: main(["convert", "hubert", str(source), str(tmp_path / "expanded")])) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert"]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("hubert", {"model_type": "wav2vec2"}, "model_type is 'wav2vec2', not 'hubert'"),
        ("hubert", {"model_type": "exhubert"}, "not 'hubert': it is expanded already"),
        ("contract", {"model_type": "hubert"}, "'hubert'; only an 'exhubert' model can be contracted"),
    ],
)
def test_another_architecture_is_refused(tmp_path, make_hubert, kind, content, message):
    source = make_hubert()
    (source / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        main(["convert", kind, str(source), str(tmp_path / "expanded")])
    assert not (tmp_path / "expanded").exists()


def test_a_name_that_leads_out_of_the_folder_is_not_followed(tmp_path, make_hubert):
    source = make_hubert()
    (source / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"classifier.bias": "../secret.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks secret\.safetensors"):
        convert_hubert(str(source), tmp_path / "expanded")
