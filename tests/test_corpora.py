"""Corpus folders: reading, labels, speaker-independent splits, and what is said about bad ones.

python -m pytest tests/test_corpora.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas
import pytest

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.load import load_corpora
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.corpora.splits import split_corpus, split_speakers


def edit(folder, change) -> None:
    """Rewrites metadata.csv by `change`, a function of its table."""
    path = folder / "metadata.csv"
    change(pandas.read_csv(path, dtype=str)).to_csv(path, index=False)


def test_a_corpus_is_read_with_its_own_words(make_corpus):
    dataset = read_corpus(make_corpus())
    assert len(dataset) == 24
    assert dataset[0]["speaker"] == "01"  # not the number 1
    assert dataset[0]["language"] == "xx"
    assert dataset[0]["audio"]["bytes"] is None
    assert dataset[0]["audio"]["path"].endswith(dataset[0]["file_name"])


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_other_forms_of_metadata_read_the_same(make_corpus, form):
    folder = make_corpus()
    expected = read_corpus(folder)
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    if form == "jsonl":
        (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_dict("records")))
    else:
        table.to_parquet(folder / "metadata.parquet")
    (folder / "metadata.csv").unlink()
    assert read_corpus(folder).to_list() == expected.to_list()


def test_splits_share_no_speaker_and_no_clip(make_corpus):
    speakers = [f"{number:02d}" for number in range(20)]
    dataset = read_corpus(make_corpus(speakers=speakers, takes=1))
    splits = split_corpus(dataset, "corpus")
    seen = [set(part["speaker"]) for part in splits.values()]
    assert [len(part) for part in seen] == [14, 3, 3]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert sum(len(part) for part in splits.values()) == len(dataset)


def test_the_split_does_not_depend_on_the_order_of_rows(make_corpus):
    dataset = read_corpus(make_corpus())
    shuffled = dataset.shuffle(seed=3)
    for split, part in split_corpus(dataset, "corpus").items():
        assert sorted(part["file_name"]) == sorted(split_corpus(shuffled, "corpus")[split]["file_name"])


def test_speakers_are_chosen_so_that_labels_are_spread():
    """Two of six speakers never speak in fear: held out together they would leave a split without it."""
    speakers, labels = [], []
    for number in range(12):
        for label in ("anger", "neutral", *(["fear"] if number < 8 else [])):
            speakers.append(f"s{number}")
            labels.append(label)
    of_speaker = split_speakers(speakers, labels, "corpus")
    found = Counter((of_speaker[s], label) for s, label in zip(speakers, labels, strict=True))
    assert all(found[split, "fear"] for split in ("train", "validation", "test"))


def test_one_dominant_speaker_stays_in_train():
    speakers = ["much"] * 80 + ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    of_speaker = split_speakers(speakers, ["anger"] * len(speakers), "corpus")
    assert of_speaker["much"] == "train"


def test_the_corpus_own_split_is_kept(make_corpus):
    order = ("train", "validation", "test")
    folder = make_corpus(split=lambda row: order[row % 3])
    splits = split_corpus(read_corpus(folder), "corpus")
    assert {split: len(part) for split, part in splits.items()} == {split: 8 for split in order}
    edit(folder, lambda table: table.assign(split=table["split"].replace("test", "eval")))
    with pytest.raises(ValueError, match="split 'eval' in the metadata; it must be train, validation, test"):
        split_corpus(read_corpus(folder), "corpus")


def test_without_speakers_the_split_is_by_file_and_says_so(make_corpus, capsys):
    folder = make_corpus(takes=5)
    edit(folder, lambda table: table.assign(speaker=""))
    splits = split_corpus(read_corpus(folder), "corpus")
    assert [len(part) for part in splits.values()] == [48, 6, 6]
    assert "no speakers known; 10 % + 10 %" in capsys.readouterr().out


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


def drop(column):
    return lambda table: table.drop(columns=column)


def first(column, value):
    def change(table):
        table.loc[0, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("speaker"), "no column 'speaker'; it has file_name, label, language"),
        (drop("label"), "no column 'label'"),
        (lambda table: table.iloc[:0], "has no rows"),
        (first("file_name", "../secret.wav"), r"row 1: file_name '\.\./secret\.wav' must be a path inside"),
        (first("file_name", "/etc/passwd"), "must be a path inside"),
        (first("file_name", "C:\\secret.wav"), "must be a path inside"),
        (first("file_name", "audio/gone.wav"), r"1 of 24 audio files are missing, first audio/gone\.wav"),
        (first("label", ""), "has no label"),
        (first("speaker", ""), "1 of 24 clips have no speaker"),
        (lambda table: pandas.concat([table, table.iloc[:1]]), "more than once"),
        (lambda table: table.assign(labels="1"), "the column name 'labels' is taken"),
    ],
)
def test_bad_metadata_is_explained(make_corpus, change, message):
    folder = make_corpus()
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        read_corpus(folder)


def test_names_of_corpora_must_differ(make_corpus):
    with pytest.raises(ValueError, match="the name 'same' is taken"):
        load_corpora([str(make_corpus("one/same")), str(make_corpus("two/same"))])
    with pytest.raises(ValueError, match="the name 'average' is taken"):
        load_corpora([str(make_corpus("average"))])


def test_a_corpus_own_split_that_shares_speakers_is_said(make_corpus, capsys):
    order = ("train", "validation", "test")
    split_corpus(read_corpus(make_corpus(split=lambda row: order[row % 3])), "corpus")
    assert "4 of 4 speakers are in more than one part" in capsys.readouterr().out


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such corpus folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no metadata\.csv, metadata\.jsonl, metadata\.parquet there"):
        read_corpus(tmp_path)


def test_two_speakers_are_too_few(make_corpus):
    with pytest.raises(ValueError, match=r"has 2 speaker\(s\) \(01, 02\).*at least 3"):
        load_corpora([str(make_corpus(speakers=("01", "02")))])


def test_a_bad_audio_file_is_an_error_unless_skipping_was_asked_for(make_corpus, capsys):
    folder = make_corpus()
    bad = folder / "audio" / "01_anger_0.wav"
    bad.write_text("not audio")
    with pytest.raises(ValueError, match=r"01_anger_0\.wav: the audio does not decode"):
        check_audio(read_corpus(folder))
    kept = check_audio(read_corpus(folder), skip_bad=True)
    assert len(kept) == 23
    assert "01_anger_0.wav" in capsys.readouterr().out


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
