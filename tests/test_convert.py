"""`exhubert convert hubert`: what it writes, what it says, what it refuses.

python -m pytest tests/test_convert.py
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import HubertForSequenceClassification

from conftest import HEADS, HUBERT_KINDS
from exhubert import ExHuBERTForSequenceClassification
from exhubert.cli import main, run_with_one_line_errors
from exhubert.convert import hubert
from exhubert.model_folder import check_model_folder


@pytest.mark.parametrize("kind", HUBERT_KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_hubert_converts_and_says_so(tmp_path, make_hubert, capsys, kind, head):
    source, target = make_hubert(kind, head), tmp_path / "expanded"
    assert main(["convert", "hubert", str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert "logits are bit-identical to the source's on 2 x 16000 samples (seed 0): largest difference 0.0" in said
    assert check_model_folder(target)
    model = ExHuBERTForSequenceClassification.from_pretrained(target)
    layers = HUBERT_KINDS[kind].get("num_hidden_layers", 3)
    assert (model.config.num_hidden_layers, model.config.num_copies) == (2 * layers, 1)


def test_two_copies_and_a_trained_head(tmp_path, make_hubert, samples):
    source, target = make_hubert("base", num_labels=4), tmp_path / "expanded"
    assert main(["convert", "hubert", str(source), str(target), "--num-copies", "2"]) == 0
    model = ExHuBERTForSequenceClassification.from_pretrained(target).eval()
    assert model.config.num_hidden_layers == 9
    reference = HubertForSequenceClassification.from_pretrained(source).eval()
    with torch.inference_mode():
        assert torch.equal(model(samples).logits, reference(samples).logits)


def test_a_conversion_that_changes_the_function_is_refused_and_leaves_nothing(tmp_path, make_hubert, monkeypatch):
    source = make_hubert()
    expand = ExHuBERTForSequenceClassification.from_hubert.__func__

    def wrong(cls, *arguments, **options):
        model = expand(cls, *arguments, **options)
        model.hubert.encoder.layers[1].zero_linear.bias.data += 1e-3
        return model

    monkeypatch.setattr(hubert.ExHuBERTForSequenceClassification, "from_hubert", classmethod(wrong))
    with pytest.raises(ValueError, match="logits differ from those of"):
        hubert.convert_hubert(str(source), tmp_path / "expanded")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert"]


def test_a_folder_that_is_there_is_not_overwritten(tmp_path, make_hubert, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    command = ["convert", "hubert", str(make_hubert()), str(tmp_path / "taken")]
    assert run_with_one_line_errors(lambda: main(command)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path / 'taken'} exists already; give a folder that does not, or delete it"
    )
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"


def test_a_folder_that_is_not_there_and_weights_that_are_cut_are_named(tmp_path, make_hubert, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_with_one_line_errors(lambda: main(["convert", "hubert", "nowhere", "expanded"])) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: no such folder, and no such model on the Hub")
    weights = make_hubert() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run_with_one_line_errors(lambda: main(["convert", "hubert", "hubert", "expanded"])) == 1
    assert "error: hubert: the weights cannot be read" in capsys.readouterr().err
    assert run_with_one_line_errors(lambda: main(["convert", "hubert", "hubert", "."])) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_with_one_line_errors(lambda: main(["convert", "hubert"])) == 1  # 2 would mean that some files were bad


@pytest.mark.parametrize("content", [None, '{"model_type": "wav2vec2"}', '{"model_type": "exhubert"}'])
def test_what_is_no_hubert_is_refused_in_one_line(tmp_path, capsys, content):
    source = tmp_path / "source"
    if content is not None:
        source.mkdir()
        (source / "config.json").write_text(content)
    command = ["convert", "hubert", str(source), str(tmp_path / "expanded")]
    assert run_with_one_line_errors(lambda: main(command)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert str(source) in message
    assert not (tmp_path / "expanded").exists()


def test_python_m_exhubert(tmp_path, make_hubert):
    command = ["convert", "hubert", str(make_hubert()), str(tmp_path / "expanded")]
    done = subprocess.run([sys.executable, "-m", "exhubert", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bit-identical" in done.stdout
