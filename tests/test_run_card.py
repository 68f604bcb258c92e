"""The card of a trained model: results, recipe and corpora; its metadata survives the Hub's classes, no path gets out.

python -m pytest tests/test_run_card.py
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, parse_eval_result_entries

from exhubert import ExHuBERTForSequenceClassification
from exhubert.convert.contract import convert_contract
from exhubert.convert.hubert import convert_hubert
from exhubert.convert.onnx import onnx_card
from exhubert.corpora.load import load_corpora
from exhubert.corpora.registry import find_corpus
from exhubert.model_folder import save_model_folder
from exhubert.model_folder.card import (
    add_section,
    is_edited,
    is_sealed,
    make_card,
    read_sections,
    source_metadata,
    write_card,
)
from exhubert.publish.run_card import calibration_section, corpus_facts, hub_card, run_facts, write_run_card

AWKWARD = 'my "corpus" | *[x](y)* <b>: #1'
SCORES = {
    **{"split": "test", "clips": 120, "speakers": 6, "interval_by": "speaker"},
    **{"uar": 0.71234, "uar_interval": [0.65, 0.7703], "accuracy": 0.7, "macro_f1": 0.69, "recall": {}},
}
GROUP = {"corpora": ["emodb", AWKWARD], "clips": 60, "speakers": 3, "uar": 0.7, "uar_interval": None}
RESULTS = {
    "model": "/home/anna/models/before",
    "parameters": {"total": 90_000, "trainable": 60_000},
    "corpora": {"emodb": SCORES, AWKWARD: {**SCORES, "uar": 0.5}},
    "average": {"uar": 0.606},
    "groups": {"sex": {"female": GROUP, "male": {**GROUP, "uar": 0.4}}},
    "seed": 0,
    "versions": {"torch": "2.6.0"},
}
RECIPE = {
    "model": "/home/anna/models/before",
    "expand_copies": 1,
    "freeze": ["feature_encoder", "originals"],
    "corpora_root": "/home/anna/corpora",
    "corpora": ["/home/anna/corpora/emodb", AWKWARD],
    "label_file": "C:\\Users\\anna\\words.yaml",
    "augmentation": [{"name": "AddBackgroundNoise", "sounds_path": "/home/anna/noise", "p": 0.5}],
    "protocol": "auto",
    "labels": "six",
    "clips_per_corpus": 500,
    "skip_bad_audio": True,
    "rounds": 300,
    "output": "/home/anna/run",
    "training": {
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "hub_token": "hf_secret",
        "run_name": "anna-1",
        "logging_dir": "/home/anna/logs",
        "lr_scheduler_kwargs": {"note": "anna"},
    },
}
CLIPS = {"train": 400, "validation": 60, "test": 75}
FACTS = {
    "emodb": {"key": "emodb", "clips": CLIPS, "speakers": 10, "languages": ["de"]},
    AWKWARD: {"key": AWKWARD, "clips": {**CLIPS, "train": 4000}, "speakers": 0, "languages": ["en-US", "English"]},
}


@pytest.fixture
def run(tmp_path, saved_model):
    """A finished run's folder, as training leaves it before it writes the card."""
    run = tmp_path / "run"
    shutil.copytree(saved_model, run / "model")
    (run / "results.json").write_text(json.dumps(RESULTS))
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (run / "environment.json").write_text(json.dumps({"corpora": FACTS}))
    for name in ("curves.png", "confusion_emodb.png", f"confusion_{AWKWARD}.png", "private.png"):
        (run / name).write_bytes(name.encode())
    return run


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def test_the_metadata_survives_the_hubs_classes(run):
    assert write_run_card(run)
    data = card_of(run / "model").data
    expected = [
        EvalResult(
            task_type="audio-classification",
            task_name="Speech Emotion Recognition",
            dataset_type=dataset,
            dataset_name=name,
            dataset_split="test",
            metric_type=metric,
            metric_name=title,
            metric_args={"average": "macro"} if metric == "f1" else None,
            metric_value=value,
        )
        for dataset, name, uar in (("emodb", "EMO-DB", 0.7123), ("my-corpus-x-y-b-1", AWKWARD, 0.5))
        for metric, title, value in (("uar", "UAR", uar), ("accuracy", "Accuracy", 0.7), ("f1", "Macro-F1", 0.69))
    ]
    assert data.eval_results == expected
    assert data.model_name == run.name  # the folder is called model
    assert data.pipeline_tag == "audio-classification"
    assert data.library_name == "transformers"
    assert data.metrics == ["uar", "accuracy", "f1"]
    assert data.language == ["de", "en"]  # the Hub takes nothing but codes
    assert data.datasets == ["emodb", "my-corpus-x-y-b-1"]
    assert {"speech-emotion-recognition", "exhubert"} <= set(data.tags)
    assert data.license is None and data.base_model is None  # nothing is known of /home/anna/models/before
    assert None not in yaml.safe_load((run / "model" / "README.md").read_text().split("---\n")[1]).values()


def test_the_text_says_what_the_run_was(run):
    write_run_card(run)
    text = " ".join(card_of(run / "model").text.split())
    assert "4 encoder layers: 2 original ones, each followed by a copy" in text
    assert "71.2 [65.0, 77.0]" in text
    assert "| 3 | high/negative | high | negative | anger |" in text
    assert "400 / 60 / 75" in text and "4,000 / 60 / 75" in text
    assert "| male | emodb, my" in text
    assert "acted (emodb); of unknown kind" in text
    assert "CC0-1.0" in text and "A database of German emotional speech" in text
    assert "| learning_rate | 1e-05 |" in text
    assert "python evaluate_hf.py --model model --corpora emodb" in text
    assert "--protocol auto --clips_per_corpus 500 --label_file words.yaml --skip_bad_audio --output" in text
    assert "3 s of 16 kHz mono (48,000 samples)" in text
    for needed in ("Article 5(1)(f)", "Annex III, point 1(c)", "Article 50(3)", "not legal advice", "2406.10275"):
        assert needed in text
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card_of(run / "model").text, re.DOTALL)[1])
    assert shown["corpora"] == ["emodb", AWKWARD]
    assert shown["training"] == {"learning_rate": 1e-5, "lr_scheduler_type": "constant"}


def test_no_path_token_or_name_gets_out(run):
    write_run_card(run)
    for card in ((run / "model" / "README.md").read_text(), hub_card(run / "model", "lab/ser")):
        assert not re.search(r"hf_secret|anna|/home|Users|logging_dir", card)
        assert str(run.parent) not in card


def test_names_with_special_signs_break_neither_table_nor_link(run):
    write_run_card(run)
    text = card_of(run / "model").text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert "<b>" not in re.sub(r"```.*?```|\\<b\\>", "", text, flags=re.DOTALL)
    links = re.findall(r"^!\[.*\]\((\S+)\)$", text, flags=re.MULTILINE)
    assert links[:2] == ["curves.png", "confusion_emodb.png"] and len(links) == 3
    pictures = {path.name for path in (run / "model").glob("*.png")}
    assert pictures == {"curves.png", "confusion_emodb.png", f"confusion_{AWKWARD}.png"}


def test_the_hubs_benchmarks_get_results_in_its_newer_form(run, monkeypatch):
    write_run_card(run)
    assert not (run / "model" / ".eval_results").exists()
    hub = {"dataset": "lab/EMO-DB", "task": "six_classes"}
    benchmark = replace(find_corpus("emodb"), hub=hub)
    monkeypatch.setattr("exhubert.publish.run_card.corpus_or_none", {"emodb": benchmark}.get)
    write_run_card(run, RESULTS | {"corpora": {"emodb": SCORES | {"uar": None}}})
    assert not (run / "model" / ".eval_results").exists()  # nothing is measured on one class
    write_run_card(run)
    (file,) = (run / "model" / ".eval_results").iterdir()
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    notes = "UAR of the test split; protocol auto, six classes"
    assert entries == [EvalResultEntry("lab/EMO-DB", "six_classes", 0.7123, notes=notes)]
    assert file.name == "emodb.yaml"


def test_corpora_of_one_name_in_the_registry_stay_two(saved_model):
    results = {**RESULTS, "corpora": {"emodb": SCORES, "emo-db": {**SCORES, "uar": 0.1}}}
    data = make_card(saved_model, **run_facts(saved_model, {}, results, RECIPE, FACTS)).data
    assert [(r.dataset_type, r.metric_value) for r in data.eval_results if r.metric_type == "uar"] == [
        ("emodb", 0.7123),
        ("emodb-2", 0.1),
    ]
    index = data.to_dict()["model-index"]
    assert len(index[0]["results"]) == 2  # the Hub's class joins what has the same dataset


def test_a_licence_passes_from_model_to_model(tmp_path, make_hubert):
    hubert = make_hubert(head="none")
    (hubert / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\nbase_model: lab/speech\n---\n")
    convert_hubert(hubert, tmp_path / "expanded")
    card = card_of(tmp_path / "expanded")
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-sa-4.0", ["lab/speech"])
    assert "does not allow commercial use" in card.text and "under the same licence" in card.text
    assert "## Not trained yet" in card.text
    assert "datasets" not in card.data.to_dict()

    run = tmp_path / "run"  # as training saves it
    save_model_folder(ExHuBERTForSequenceClassification.from_pretrained(tmp_path / "expanded"), run / "model")
    for name, content in (("results", RESULTS), ("environment", {"corpora": FACTS})):
        (run / f"{name}.json").write_text(json.dumps(content))
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "model": str(tmp_path / "expanded")}))
    assert write_run_card(run)
    trained = card_of(run / "model")
    assert write_run_card(run)
    assert card_of(run / "model").content == trained.content
    assert trained.data.base_model_relation == "finetune"
    assert "## Not trained yet" not in trained.text

    convert_contract(run / "model", tmp_path / "plain")
    data = card_of(tmp_path / "plain").data
    assert (data.license, data.base_model) == ("cc-by-nc-sa-4.0", ["lab/speech"])
    assert data.datasets == ["emodb", "my-corpus-x-y-b-1"] and data.language == ["de", "en"]

    known, recipe = source_metadata(str(run / "model")), {**RECIPE, "model": str(run / "model"), "corpora": ["ravdess"]}
    facts = run_facts(tmp_path / "plain", known, RESULTS, recipe, {"ravdess": FACTS["emodb"] | {"key": "ravdess"}})
    next_run = make_card(tmp_path / "plain", **facts)
    assert next_run.data.datasets == ["emodb", "my-corpus-x-y-b-1", "ravdess"]
    assert "had been trained on emodb (licence: CC0-1.0), my-corpus-x-y-b-1 (licence: unknown)" in next_run.text


@pytest.mark.parametrize("name", ["results.json", "recipe.yaml", "environment.json", "model/config.json"])
def test_a_broken_file_of_a_run_is_named(run, name):
    (run / name).write_text("{a: [")
    with pytest.raises(ValueError, match=rf"{name} is not (JSON|YAML) \("):
        write_run_card(run)


def test_a_card_edited_by_hand_is_left_as_it_is(run):
    card = run / "model" / "README.md"
    assert not is_edited(card)
    card.write_text(card.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    assert is_edited(card)
    edited = card.read_text()
    assert not write_run_card(run)
    save_model_folder(ExHuBERTForSequenceClassification.from_pretrained(run / "model"), run / "model")
    assert card.read_text() == edited
    assert source_metadata(str(run / "model")) == {"license": "mit"}  # and it counts
    assert not write_run_card(run, sections={"Synthetic speech": "Made up."})
    card.write_text("# Mine\n")
    assert not write_run_card(run)
    card.unlink()
    assert write_run_card(run)


def test_on_the_hub_the_card_names_the_hubs_model(run):
    write_run_card(run)
    here = (run / "model" / "README.md").read_text()
    card = hub_card(run / "model", "lab/ser-de")
    assert (run / "model" / "README.md").read_text() == here
    assert '\nmodel = "lab/ser-de"  #' in card
    assert "\n# ser-de\n" in card and "--model lab/ser-de --corpora" in card
    assert ModelCard(card).data.model_name == "ser-de"
    (run / "model" / "README.md").write_text(card)
    assert not is_edited(run / "model" / "README.md")
    (run / "model" / "README.md").write_text(here)
    moved = run.rename(run.with_name("moved"))
    assert "\n# ser-de\n" in hub_card(moved / "model", "lab/ser-de")


def test_a_model_called_by_a_number_is_renamed_on_the_hub(run):
    (run / "model").rename(run / "2024")
    write_card(run / "2024", **run_facts(run / "2024", {}, RESULTS, RECIPE, FACTS))
    assert card_of(run / "2024").data.model_name == "2024"
    assert ModelCard(hub_card(run / "2024", "lab/1e5")).data.model_name == "1e5"


def test_the_card_is_written_before_the_results_which_end_a_run(run):
    (run / "results.json").unlink()
    assert write_run_card(run, RESULTS)
    assert len(card_of(run / "model").data.eval_results) == 6


def test_a_temperature_is_in_the_card_if_there_is_one(run):
    found = {"temperature": 1.61803, "split": "validation", "clips": 1200, "ece_before": 0.123, "ece_after": 0.0456}
    write_run_card(run)
    add_section(run / "model", "Calibration", calibration_section(found))
    text = " ".join(card_of(run / "model").text.split())
    assert "a temperature of 1.618" in text and "1,200 clips of the validation split" in text
    assert "from 12.3 % to 4.6 %" in text
    assert len(card_of(run / "model").data.eval_results) == 6 and not is_edited(run / "model" / "README.md")


def test_sections_are_handed_in_and_go_with_the_next_card(run):
    write_run_card(run, sections={"Synthetic speech": "Made up."})
    assert "\n\n## Synthetic speech\n\nMade up.\n\n## Input\n" in card_of(run / "model").text
    write_run_card(run)
    assert "Made up." not in card_of(run / "model").text


def test_an_export_keeps_results_and_training_and_loses_the_code_that_loads_torchs_model(run):
    write_run_card(run)
    before = read_sections((run / "model" / "README.md").read_text())
    card = onnx_card(str(run / "model"), int8=False, found=["Compared."], table="")
    sections = read_sections(card)
    assert [*sections] == ["", "ONNX", *[*before][2:]] and is_sealed(card)
    assert [sections[title] for title in ("", "Results", "Training")] == [
        before[title] for title in ("", "Results", "Training")
    ]


def test_facts_of_corpora_are_counted_from_their_tables(make_corpus):
    table = make_corpus("emo_db", language=lambda row: ("de", "en")[row % 2])
    corpora, _ = load_corpora([str(table)])
    (name, facts), *rest = corpus_facts(corpora).items()
    assert (name, rest) == ("emo_db", [])
    assert sum(facts["clips"].values()) == 24
    assert facts == {"key": "emo_db", "clips": facts["clips"], "speakers": 4, "languages": ["de", "en"]}
