"""Corpora loaded: labels, speaker-independent splits, and what is said about bad ones.

python -m pytest tests/test_corpora.py
"""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.load import load_corpora
from exhubert.corpora.registry import find_corpus


def edit(folder, change) -> None:
    """Rewrites metadata.csv by `change`, a function of its table."""
    path = folder / "metadata.csv"
    change(pandas.read_csv(path, dtype=str)).to_csv(path, index=False)


def test_class_of_the_words_on_the_published_models_card():
    words = load_label_map()
    examples = ["disgust", "neutral", "kind", "anger", "surprise", "joy"]
    assert [words[word] for word in examples] == list(range(6))


def test_own_label_file_adds_and_overrides(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("smug: {arousal: low, valence: positive}\nDisgust: {arousal: high, valence: negative}\n")
    words = load_label_map(own)
    assert SIX_CLASSES[words["smug"]] == "low/positive"
    assert SIX_CLASSES[words["disgust"]] == "high/negative"
    assert SIX_CLASSES[words["disgusted"]] == "high/negative"  # an alias goes with its word
    own.write_text("joy: {arousal: low, valence: positive}\n")  # an alias of happiness, placed elsewhere
    assert [SIX_CLASSES[load_label_map(own)[word]] for word in ("joy", "happy")] == ["low/positive", "high/positive"]
    own.write_text("smug: {arousal: middling, valence: positive}\n")
    with pytest.raises(ValueError, match="'smug' is middling/positive; arousal must be low or high"):
        load_label_map(own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smug: low/negative", "a table `word:"),
        ("smug: {arousal: low", "is not YAML"),
        ("smug: {arousal: low, valence: positive, aliases: proud}", "aliases of 'smug' are 'proud'; a list"),
        (
            "smug: {arousal: low, valence: positive, corpra: {}}",
            "'smug' has the unknown field 'corpra'; there are alias",
        ),
        ("smug: {arousal: low, valence: positive, corpora: {emodb: high}}", "`corpora` of 'smug' is .*a table `key:"),
    ],
)
def test_bad_label_files_are_explained(tmp_path, text, message):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_label_map(own)


def test_an_unknown_label_is_named_with_the_nearest_and_the_remedy():
    with pytest.raises(ValueError, match=r"corpus 'emo': label 'hapiness' \(2 clips\).*'happiness'.*label_file"):
        map_labels(["anger", "hapiness", "hapiness"], "emo", load_label_map())


@pytest.mark.parametrize(
    ("corpus", "code", "place"),
    [
        *((None, code, "high/negative") for code in ("ang", "FRU", "fea")),
        *((None, code, "low/negative") for code in ("SAD", "dis")),
        *((None, code, "high/positive") for code in ("hap", "exc")),
        *((None, code, place) for code, place in (("NEU", "low/neutral"), ("sur", "high/neutral"))),
        *((corpus, code, None) for corpus in (None, "iemocap") for code in ("oth", "xxx", "other")),
        ("ravdess", "05", "high/negative"),
        ("baved", "1", "low/neutral"),
        ("baved", "0", None),
        ("emodb", "W", "high/negative"),
        ("emofilm", "dis", "low/negative"),
        ("msp_improv", "X", None),
    ],
)
def test_codes_are_known_or_known_to_be_unknown(corpus, code, place):
    (index,) = map_labels([code], "corpus", load_label_map(corpus=corpus))
    assert (None if index is None else SIX_CLASSES[index]) == place


def test_what_a_code_of_a_corpus_means_wins_and_the_users_file_over_it(tmp_path):
    assert find_corpus("emofilm").label_codes["dis"] == "contempt"
    own = tmp_path / "own.yaml"
    own.write_text("contempt: {arousal: high, valence: neutral}\n")
    assert SIX_CLASSES[load_label_map(own, "emofilm")["dis"]] == "high/neutral"
    assert SIX_CLASSES[load_label_map(own)["dis"]] == "low/negative"
    own.write_text("dis: {arousal: high, valence: neutral}\n")
    assert SIX_CLASSES[load_label_map(own, "emofilm")["dis"]] == "high/neutral"


@pytest.mark.parametrize("label", ["05", "smug", "bor"])
def test_a_hint_leaves_the_value_open(label):
    with pytest.raises(ValueError) as six:
        map_labels([label], "mine", load_label_map())
    assert f"`{label}: {{arousal: <low or high>, valence: <negative, neutral or positive>}}`" in str(six.value)
    names = ["joy", "anger"]
    with pytest.raises(ValueError) as native:
        map_labels([label], "mine", {name: index for index, name in enumerate(names)}, names)
    assert f"`{label}: <class>` (null leaves such clips out)" in str(native.value)
    assert ("nearest" in str(six.value)) == (label == "bor")


def test_an_own_exception_alone_keeps_the_shipped_place(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("disgust: {corpora: {emo_db: {arousal: high, valence: negative}}}\n")  # an alias of emodb
    places = [SIX_CLASSES[load_label_map(own, corpus)["disgust"]] for corpus in (None, "EMO-DB", "ravdess")]
    assert places == ["low/negative", "high/negative", "low/negative"]


def test_the_classes_of_a_protocol_need_native_labels(make_corpus):
    order = ("train", "validation", "test")
    folder = make_corpus(
        "aibo", labels=("anger", "neutral"), speakers=("1", "2", "3"), split=lambda row: order[row // 4]
    )
    with pytest.raises(ValueError, match=r"has classes of its own \(idle, negative\); train with `labels: native`"):
        load_corpora([str(folder)], protocol="is09_two_classes")
    assert load_corpora([str(folder)], labels="native", protocol="is09_two_classes")[1] == ["idle", "negative"]


def test_native_labels_are_the_corpora_own(make_corpus):
    folders = [make_corpus("a", labels=("anger", "zest")), make_corpus("b", labels=("awe", "Anger"))]
    corpora, names = load_corpora([str(folder) for folder in folders], labels="native")
    assert names == ["anger", "awe", "zest"]
    for splits in corpora.values():
        for row in splits["train"]:
            assert names[row["labels"]] == row["label"].lower()


def test_a_part_of_a_corpus_is_always_the_same_part(make_corpus):
    folder = str(make_corpus(takes=6))
    whole, part = (load_corpora([folder], clips_per_corpus=clips)[0]["corpus"] for clips in (None, 36))
    assert {split: len(rows) for split, rows in part.items()} == {"train": 18, "validation": 9, "test": 9}
    for split, rows in part.items():  # nobody moves from one split to another
        assert set(rows["file_name"]) < set(whole[split]["file_name"])
    edit(Path(folder), lambda table: table.sample(frac=1, random_state=1))
    again = load_corpora([folder], clips_per_corpus=36)[0]["corpus"]
    assert sorted(again["test"]["file_name"]) == sorted(part["test"]["file_name"])


def test_names_of_corpora_must_differ(make_corpus):
    with pytest.raises(ValueError, match="the name 'same' is taken"):
        load_corpora([str(make_corpus("one/same")), str(make_corpus("two/same"))])
    with pytest.raises(ValueError, match="the name 'average' is taken"):
        load_corpora([str(make_corpus("average"))])


def test_protocol_and_fold_choose_the_parts(make_corpus):
    folder = str(make_corpus(speakers=("01", "02", "03", "04", "05")))
    tested = []
    for fold in range(1, 6):
        splits = load_corpora([folder], protocol="leave_one_speaker_out", fold=fold)[0]["corpus"]
        tested += splits["test"].unique("speaker")
    assert sorted(tested) == ["01", "02", "03", "04", "05"]


def test_a_protocol_renames_labels_and_leaves_out_others(make_corpus):
    words = ("anger", "excitement", "happiness", "fear")
    folder = make_corpus("iemocap", labels=words, session=lambda row: str(1 + row // 8))
    corpora, names = load_corpora([str(folder)], labels="native", protocol="four_classes", fold=1)
    assert names == ["anger", "happiness"]
    assert len(corpora["iemocap"]["test"]) == 6


@pytest.mark.parametrize(
    ("name", "clips", "test_speakers"),
    [("emodb", 535, 2), ("ravdess_speech", 1440, 4), ("cremad", 725, 1), ("nemo", 719, 1)],
)
def test_real_corpora_load(shared, name, clips, test_speakers):
    corpora, _ = load_corpora([name], str(shared / "corpora"))
    splits = corpora[name]
    assert sum(len(part) for part in splits.values()) == clips
    assert len(set(splits["test"]["speaker"])) == test_speakers
    speakers = [set(part["speaker"]) for part in splits.values()]
    assert sum(len(part) for part in speakers) == len(set.union(*speakers))
    assert all(set(part["labels"]) == set(splits["train"]["labels"]) for part in splits.values())
