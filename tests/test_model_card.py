"""The card that any model folder has: its code runs, its licence follows from the source, its sections stay whole.

python -m pytest tests/test_model_card.py
"""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from transformers import WhisperConfig, WhisperForAudioClassification

from conftest import ROOT, run_without_package
from exhubert import ExHuBERTForSequenceClassification
from exhubert.convert.contract import convert_contract
from exhubert.convert.hubert import convert_hubert
from exhubert.model_folder import save_model_folder
from exhubert.model_folder.card import LICENCES, add_section, is_edited, read_sections, source_metadata
from exhubert.publish.run_card import hub_card


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def python_of(folder):
    card = (folder / "README.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)


def test_the_code_of_the_cards_runs_where_the_folder_is(tmp_path, saved_model):
    model = ExHuBERTForSequenceClassification.from_pretrained(saved_model)
    model.hubert.encoder.layers[1].zero_linear.weight.data += 0.1  # trained: contracted, it has no head
    save_model_folder(model, tmp_path / "dis model")
    convert_contract(tmp_path / "dis model", tmp_path / "plain")
    blocks = [python_of(tmp_path / name) for name in ("dis model", "plain")]
    assert [len(block) for block in blocks] == [1, 1]
    got = run_without_package(
        tmp_path,
        f"""
        import json
        exec({blocks[0][0]!r})
        exec({blocks[1][0]!r})
        print(json.dumps({{"classes": list(result["probabilities"]), "shape": list(states.shape)}}))
        """,
    )
    assert got == {"classes": list(model.config.id2label.values()), "shape": [1, 149, 32]}
    assert card_of(tmp_path / "plain").data.pipeline_tag == "feature-extraction"


def test_classes_of_any_name_are_listed(tmp_path, saved_model):
    model = ExHuBERTForSequenceClassification.from_pretrained(saved_model)
    model.config.id2label = dict(enumerate(["joy | *fun*", "ärger: [0]", "a_b", "c", "d", "e"]))
    rows = card_of(save_model_folder(model, tmp_path / "native")).text.splitlines()
    names = [row.split(" | ", 1)[1].strip(" |") for row in rows if re.match(r"\| +\d", row)]
    assert names == [r"joy \| \*fun\*", r"ärger: \[0\]", "a_b", "c", "d", "e"]


def test_what_a_spectrogram_model_hears_is_said(tmp_path):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_ffn_dim": 16}
    config = WhisperConfig(**sizes, encoder_attention_heads=2, num_labels=3)
    text = card_of(save_model_folder(WhisperForAudioClassification(config), tmp_path / "whisper")).text
    assert "made a spectrogram by `WhisperFeatureExtractor`" in text
    assert "`WhisperForAudioClassification`" in text and "copy of itself" not in text


def write_source(folder, card=None):
    folder.mkdir(parents=True)
    if card is not None:
        (folder / "README.md").write_text(card)
    return str(folder)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (None, {}),
        ("No metadata.", {}),
        ("---\nlicense: [unclosed\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
        (
            "---\nlicense: cc-by-nc-4.0\nbase_model: lab/speech\ndatasets: libri\nlanguage: en\n---\n",
            {"license": "cc-by-nc-4.0", "base_model": ["lab/speech"]},  # of pre-training: not handed down
        ),
        (
            "---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\nbase_model: /home/anna/hubert\n---\n",
            {"license": "other", "license_name": "ours"},
        ),
        ("---\nlicense: 3\nbase_model: {a: b}\n---\n", {}),
    ],
)
def test_a_local_source_hands_down_what_its_card_says(tmp_path, card, expected):
    assert source_metadata(write_source(tmp_path / "source", card)) == expected


def test_a_model_of_the_hub_is_the_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hubert = "facebook/hubert-large-ls960-ft"
    assert source_metadata(hubert) == {"license": "apache-2.0", "base_model": [hubert]}
    assert source_metadata("runs/model") == {}  # a folder that is gone, as likely as not
    assert source_metadata("") == {}
    write_source(tmp_path / "models--lab--ser" / "snapshots" / "1234")
    assert source_metadata("lab/ser") == {"base_model": ["lab/ser"]}
    write_source(tmp_path / "models--lab--ser" / "snapshots" / "5678", "---\nlicense: mit\nlanguage: en\n---\n")
    assert source_metadata("lab/ser") == {"license": "mit", "base_model": ["lab/ser"]}


def test_every_model_that_a_recipe_starts_from_has_its_licence():
    recipes = [yaml.safe_load(path.read_text()) for path in (ROOT / "recipes").rglob("*.yaml")]
    models = {recipe.get("model", "") for recipe in recipes}
    folders = {"runs/model", "models/w2v2_robust_12", "pretraining/hubert_base.yaml"}  # no ids of the Hub
    assert {model for model in models if re.fullmatch(r"[\w-]+/[\w.-]+", model)} - folders <= set(LICENCES)


def test_without_a_known_licence_none_is_claimed(saved_model):
    card = card_of(saved_model)
    assert card.data.license is None
    assert "No licence is known for the weights" in card.text


def test_sections_are_handed_in_when_a_folder_is_written(tmp_path, saved_model):
    model = ExHuBERTForSequenceClassification.from_pretrained(saved_model)
    folder = save_model_folder(model, tmp_path / "model", sections={"One": "First.", "Two": "Second."})
    assert "\n\n## One\n\nFirst.\n\n## Two\n\nSecond.\n\n## Input\n" in card_of(folder).text
    assert not is_edited(folder / "README.md")


@pytest.mark.parametrize("edited", [False, True])
def test_a_section_is_added_once_and_whether_a_person_wrote_the_card_stays(model_folder, edited):
    card = model_folder / "README.md"
    if edited:
        mine = "## Mine\n\n~~~\n## ONNX [1]\n~~~\n\n````md\n```\n## Input\n````\n\n## Input\n"
        card.write_text(card.read_text().replace("\n## Input\n", f"\n{mine}"))
    before = card.read_text().split("<!--")[0]
    add_section(model_folder, "ONNX [1]", "First.")
    add_section(model_folder, "ONNX [1]", "Logits differ by 1e-6.\n")
    added = "\n## ONNX [1]\n\nLogits differ by 1e-6.\n\n## Input\n"
    assert card.read_text().count(added) == 1 and is_edited(card) == edited
    assert card.read_text().split("<!--")[0] == added.join(before.rsplit("\n## Input\n", 1))
    card.unlink()
    add_section(model_folder, "ONNX [1]", "First.")
    assert not card.exists()  # a folder of others', without a card


def test_a_card_is_read_to_the_letter():
    text = "---\n# a comment\n---\n\n# Name\n\n## One  \nA\n```\n## code\n```\n## Two\n\n## One\r\nB"
    sections = read_sections(text)
    assert list(sections) == ["", "One", "Two"]
    assert "".join(sections.values()) == text


def test_a_new_head_is_said_to_be_new_after_contraction_too(tmp_path, make_hubert):
    convert_hubert(make_hubert(head="none"), tmp_path / "expanded")
    convert_contract(tmp_path / "expanded", tmp_path / "contracted")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("expanded", "contracted")]
    said = [read_sections(card)["Not trained yet"] for card in cards]
    assert said[0] == said[1] and "means nothing before the model was trained" in said[0]
    assert not is_edited(tmp_path / "contracted" / "README.md")


def test_a_folder_whose_name_says_nothing_is_called_by_its_architecture(tmp_path, model_folder):
    card = (model_folder / "README.md").read_text()
    assert "\n# ExHuBERT\n" in card and 'model = "model"  #' in card
    assert "first 3 s of a recording only, and needs the program `ffmpeg`" in " ".join(card.split())
    assert "\n# mine\n" in hub_card(model_folder, "lab/mine")
    model = ExHuBERTForSequenceClassification.from_pretrained(model_folder)
    for name, title in (("checkpoint-500", "ExHuBERT"), ("own name", "own name")):
        folder = save_model_folder(model, tmp_path / name)
        assert f"\n# {title}\n" in (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("# ExHuBERT", "# My title"))
    assert "\n# My title\n" in hub_card(folder, "lab/mine")  # a person's own
