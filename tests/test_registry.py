"""The registry of corpora, the emotion words that it needs, and the commands that show both.

python -m pytest tests/test_registry.py
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
import yaml

from exhubert.cli import main, run_with_one_line_errors
from exhubert.corpora import registry
from exhubert.corpora.labels import LABEL_FILE, load_label_map, map_labels
from exhubert.corpora.load import load_corpora
from exhubert.corpora.registry import find_corpus, load_registry, read_entry

# The model card's list of EmoSet++, and the paper's six unseen corpora (section 4.2).
EMOSET_PLUS_PLUS = """
ABC, AD, BES, CASIA, CVE, Crema-D, DES, DEMoS, EA-ACT, EA-BMW, EA-WSJ, EMO-DB, EmoFilm, EmotiW-2014, EMOVO, eNTERFACE,
ESD, EU-EmoSS, EU-EV, FAU Aibo, GEMEP, GVESS, IEMOCAP, MES, MESD, MELD, PPMMK, RAVDESS, SAVEE, ShEMO, SmartKom, SIMIS,
SUSAS, SUBSECO, TESS, TurkishEmo, Urdu
"""
UNSEEN = ["AESI", "ASVP-ESD", "JL-Corpus", "MLEnd", "SyntAct", "VIVAE"]


def exhubert(*arguments: str) -> int:
    return run_with_one_line_errors(lambda: main(["corpora", *arguments]))


def test_every_corpus_of_the_paper_is_there_once():
    keys = [find_corpus(name).key for name in EMOSET_PLUS_PLUS.split(",")]
    assert len(set(keys)) == 37
    parts = Counter(find_corpus(name).part for name in EMOSET_PLUS_PLUS.split(","))
    assert parts == {"emoset": 26, "emoset++": 11}
    assert {find_corpus(name).part for name in UNSEEN} == {"unseen"}
    all_parts = Counter(corpus.part for corpus in load_registry().values())
    assert (all_parts["emoset"], all_parts["emoset++"], all_parts["unseen"]) == (26, 11, 6)


@pytest.mark.parametrize("key", sorted(load_registry()))
def test_every_label_of_a_corpus_has_its_place(key):
    corpus = load_registry()[key]
    map_labels(
        [label for label in corpus.labels if label not in UNPLACED.get(key, ())], key, load_label_map(corpus=key)
    )


# Words that name no place on the plane; whoever trains on these corpora gives one (label_file) or uses own classes.
UNPLACED: dict[str, tuple[str, ...]] = {}


@pytest.mark.parametrize("key", sorted(load_registry()))
def test_an_entry_says_where_its_facts_are_from(key):
    corpus = load_registry()[key]
    assert corpus.sources
    assert corpus.citation and corpus.access and corpus.licence and corpus.languages
    if corpus.licence == "unknown":
        assert "licence" in corpus.unverified
    for name, protocol in corpus.protocols.items():
        if isinstance(protocol.get("labels"), dict):
            assert set(protocol["labels"]) <= set(corpus.labels), name


@pytest.mark.parametrize("name", ["emo_db", "EMO-DB", "Berlin EmoDB", "emodb"])
def test_aliases_and_spellings_find_the_corpus(name):
    assert find_corpus(name).key == "emodb"


def test_show_names_the_dataset_on_the_hub(capsys):
    assert exhubert("show", "nemo") == 0
    assert re.search(r"^on the Hub +amu-cai/nEMO$", capsys.readouterr().out, re.MULTILINE)


def test_an_unknown_key_names_the_nearest(capsys):
    assert exhubert("show", "ravdes") == 1
    assert "no corpus 'ravdes' in the registry; the nearest is 'ravdess'" in capsys.readouterr().err


def test_list_filters(capsys):
    assert exhubert("list") == 0
    whole = capsys.readouterr().out
    assert all(f"| {key} " in whole for key in load_registry())
    assert exhubert("list", "--language", "it", "--kind", "acted") == 0
    italian = re.findall(r"^\| (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert {"emovo", "emofilm"} < set(italian)
    assert "demos" not in italian or "acted" in find_corpus("demos").kind
    assert exhubert("list", "--part", "emoset++") == 0
    assert "37 corpora" in capsys.readouterr().out
    assert exhubert("list", "--licence", "cc0") == 0
    assert "| emodb " in capsys.readouterr().out
    assert exhubert("list", "--kind", "sung") == 1
    assert "'sung' is none of acted, elicited, natural, synthetic" in capsys.readouterr().err
    assert exhubert("list", "--language", "tlh") == 1
    assert "no corpus has language 'tlh'; languages are given by their codes: " in capsys.readouterr().err
    assert exhubert("list", "--licence", "CC BY-NC", "--language", "pl") == 0
    assert "| nemo " in capsys.readouterr().out
    assert exhubert("list", "--licence", "beerware") == 1
    assert capsys.readouterr().err == "error: no corpus has licence 'beerware'\n"


def test_show_says_what_is_not_confirmed(capsys):
    for key, corpus in load_registry().items():
        assert exhubert("show", key) == 0
        said = capsys.readouterr().out
        assert said.startswith(corpus.name)
        assert ("* not confirmed by a source at hand" in said) == bool(corpus.unverified)
        assert ("--table labels.csv" in said) == (not corpus.scheme)


def test_labels_lists_every_word_and_the_disputed_ones(capsys, tmp_path):
    assert exhubert("labels") == 0
    said = capsys.readouterr().out
    entries = yaml.safe_load(LABEL_FILE.read_text(encoding="utf-8"))
    assert f"{len(entries)} words" in said
    for word, entry in entries.items():
        assert re.search(rf"^{re.escape(word)}{'[*]' if entry.get('disputed') else ' '}", said, re.MULTILINE), word
        assert entry["source"]
        assert entry.get("note") or not entry.get("disputed")
    own = tmp_path / "own.yaml"
    own.write_text("smug: {arousal: low, valence: positive}\ndisgust: {arousal: high, valence: negative}\n")
    assert exhubert("labels", "--label-file", str(own)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^smug +2 low/positive ", said, re.MULTILINE)
    assert re.search(r"^disgust\* +3 high/negative ", said, re.MULTILINE)
    assert exhubert("labels", "--corpus", "emovo") == 0
    assert "\nsadness " in f"\n{capsys.readouterr().out}"


def test_words_that_name_no_emotion_are_left_out_of_the_six_classes(make_corpus, capsys):
    folder = str(make_corpus("mlend", labels=("excited", "question", "bored")))
    corpora, _ = load_corpora([folder])
    assert sum(len(part) for part in corpora["mlend"].values()) == 16
    assert (
        "corpus 'mlend': 8 of 24 clips are left out, their labels name no emotion: question" in capsys.readouterr().out
    )
    _, native = load_corpora([folder], labels="native")
    assert native == ["bored", "excited", "question"]


def test_underscores_and_composed_accents_do_not_matter():
    words = load_label_map()
    assert map_labels(["Cold_Anger", "cole\u0300re"], "corpus", words) == [words["cold anger"], words["colère"]]


def test_what_a_word_means_in_a_corpus_wins_there(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("zest: {arousal: high, valence: positive, corpora: {emodb: {arousal: low, valence: neutral}}}\n")
    assert load_label_map(own)["zest"] == 5
    assert load_label_map(own, "EMO-DB")["zest"] == 1
    assert load_label_map(own, "ravdess")["zest"] == 5


ENTRY = """
name: Test
part: none
citation: a paper
languages: [de]
kind: acted
licence: CC0-1.0
access: somewhere
labels: [anger]
sources: [a source]
unverified: []
scheme:
  {source: a source, example: aA.wav, clips: 'a(?P<speaker>.)', columns: {label: {of: "{speaker}", table: {A: anger}}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: Test", "name: Test\ncolour: red", "unknown field 'colour'"),
        ("name: Test", "", "missing 1 required positional argument: 'name'"),
        ("part: none", "part: some", "part is 'some'; it must be one of emoset, "),
        ("kind: acted", "kind: sung", "kind is 'sung'"),
        ("unverified: []", "unverified: [colour]", "unverified names 'colour'"),
        ("scheme:", "scheme_unknown: why\nscheme:", "either a scheme, or `scheme_unknown`"),
        ("'a(?P<speaker>.)'", "'a(?P<speaker>.'", "is no regular expression"),
        ("{A: anger}", "{01: anger}", "quote 1: 'anger' in the table of 'label'"),
        ("clips:", "clip:", "scheme has the unknown field 'clip'"),
    ],
)
def test_a_data_file_is_read_strictly(tmp_path, old, new, message):
    path = tmp_path / "test.yaml"
    path.write_text(ENTRY)
    assert read_entry(path).name == "Test"
    path.write_text(ENTRY.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_entry(path)


def test_an_alias_belongs_to_one_corpus(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(ENTRY + "aliases: [same]\n")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="the alias 'same' is one's"):
        load_registry.__wrapped__()
