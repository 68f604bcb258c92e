"""Splits: official, speaker-independent, by file, folds and named protocols; and what refuses to be one.

python -m pytest tests/test_splits.py
"""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import Dataset

from exhubert.corpora.registry import load_registry
from exhubert.corpora.splits import SPLITS, assign_splits, overlap, protocol_labels, split_corpus, split_speakers


def rows(speakers: int = 10, labels: tuple[str, ...] = ("anger", "neutral", "sadness"), takes: int = 2) -> dict:
    """The columns of a corpus, `speakers` x `labels` x `takes`."""
    cells = [
        {"file_name": f"{speaker:02d}_{label}_{take}.wav", "label": label, "speaker": f"{speaker:02d}"}
        for speaker in range(speakers)
        for label in labels
        for take in range(takes)
    ]
    return {name: [row[name] for row in cells] for name in cells[0]}


def parts(columns: dict, assigned: list[str], column: str = "speaker") -> list[set[str]]:
    return [{value for value, own in zip(columns[column], assigned, strict=True) if own == split} for split in SPLITS]


def test_nobody_is_in_two_parts():
    columns = rows(20)
    train, validation, test = parts(columns, assign_splits(columns, "corpus"))
    assert [len(train), len(validation), len(test)] == [14, 3, 3]
    assert len(train | validation | test) == 20


def test_the_split_does_not_depend_on_the_order_of_rows():
    columns = rows()
    split_of = dict(zip(columns["file_name"], assign_splits(columns, "corpus"), strict=True))
    backwards = {name: values[::-1] for name, values in columns.items()}
    assert dict(zip(backwards["file_name"], assign_splits(backwards, "corpus"), strict=True)) == split_of
    other_seed = assign_splits(columns, "corpus", seed=1)
    assert dict(zip(columns["file_name"], other_seed, strict=True)) != split_of


def test_the_split_is_the_same_on_every_machine():
    """Pinned: a change here moves clips between the parts of everybody's corpora."""
    columns = rows(12)
    assert parts(columns, assign_splits(columns, "corpus"))[1:] == [{"10", "11"}, {"03", "05"}]
    assert assign_splits(columns, "corpus", "speaker_balanced") == assign_splits(columns, "corpus")
    # The rule before, by which published splits can be named.
    assert parts(columns, assign_splits(columns, "corpus", "speakers"))[1:] == [{"04", "10"}, {"06", "11"}]
    columns["speaker"] = [""] * len(columns["speaker"])
    by_file = parts(columns, assign_splits(columns, "corpus"), "file_name")
    assert sorted(by_file[2])[:3] == ["01_anger_1.wav", "03_sadness_0.wav", "04_neutral_0.wav"]


def test_speakers_are_chosen_so_that_labels_are_spread():
    """Four of twelve speakers never speak in fear: held out together they would leave a split without it."""
    columns = rows(12, ("anger", "neutral", "fear"), 1)
    kept = [
        index
        for index, (speaker, label) in enumerate(zip(columns["speaker"], columns["label"], strict=True))
        if label != "fear" or int(speaker) < 8
    ]
    columns = {name: [values[index] for index in kept] for name, values in columns.items()}
    found = Counter(zip(assign_splits(columns, "corpus"), columns["label"], strict=True))
    assert all(found[split, "fear"] for split in SPLITS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        ((13, 49, 58), (13, 49)),  # of three speakers
        ((150, *[9] * 27, 7), range(57, 64)),  # of 29; by number of speakers alone a part would have 36 clips
        ((40, 40, *[4] * 80), (60,)),
    ],
)
def test_parts_have_their_share_of_clips_and_labels_and_the_largest_speaker_trains(sizes, held_out, seed):
    speakers = [f"{number:02d}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = [("anger", "anger", "joy", "fear")[clip % 4] for clip in range(len(speakers))]
    columns = {"file_name": [f"{clip}.wav" for clip in range(len(speakers))], "label": labels, "speaker": speakers}
    assigned = assign_splits(columns, "corpus", seed=seed)
    assert overlap(assigned, speakers, [""] * len(speakers)) is None
    assert assigned[speakers.index(f"{sizes.index(max(sizes)):02d}")] == "train"
    counts = Counter(assigned)
    assert {counts["validation"], counts["test"]} <= set(held_out)
    if len(sizes) > 3:
        for (split, label), count in Counter(zip(assigned, labels, strict=True)).items():
            share = 0.7 if split == "train" else 0.15
            assert count == pytest.approx(share * labels.count(label), abs=6), (split, label)


@pytest.mark.parametrize(("speakers", "said"), [(7, ""), (2, "2 speaker(s) known"), (0, "no speaker(s) known")])
def test_folds_are_by_speaker_where_there_are_enough_and_each_clip_is_tested_once(capsys, speakers, said):
    columns = rows(speakers or 1, takes=10)
    if not speakers:
        columns["speaker"] = [""] * len(columns["file_name"])
    folds = [assign_splits(columns, "corpus", "folds:3", fold) for fold in (1, 2, 3)]
    assert said in capsys.readouterr().out
    for clip in zip(*folds, strict=True):
        assert sorted(clip) == sorted(SPLITS)
    for assigned in folds:
        tested = [label for label, split in zip(columns["label"], assigned, strict=True) if split == "test"]
        assert set(Counter(tested)) == set(columns["label"])
        if speakers >= 3:
            assert assigned == assign_splits(columns, "corpus", "speaker_folds:3", folds.index(assigned) + 1)
    with pytest.raises(ValueError, match="fold is 4; the protocol 'folds:3' has the folds 1 to 3"):
        assign_splits(columns, "corpus", "folds:3", 4)
    with pytest.raises(ValueError, match=f"1000 folds of {len(columns['file_name'])} clips; give fewer"):
        assign_splits(columns, "corpus", "folds:1000", 1)


def test_one_dominant_speaker_stays_in_train():
    speakers = ["much"] * 80 + ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert split_speakers(speakers, ["anger"] * len(speakers), "corpus")["much"] == "train"


def test_identical_audio_stays_together():
    columns = rows(6)
    columns["content_hash"] = [f"hash {name}" for name in columns["file_name"]]
    columns["content_hash"][0] = columns["content_hash"][-1] = "the same"  # of the first and the last speaker
    for protocol, fold in (("auto", None), ("files", None), ("speaker_folds:3", 1), ("leave_one_speaker_out", 2)):
        assigned = assign_splits(columns, "corpus", protocol, fold)
        assert assigned[0] == assigned[-1], protocol
    split_apart = ["train"] * 30 + ["validation"] * 3 + ["test"] * 3
    assert overlap(split_apart, [""] * 36, columns["content_hash"]) == (
        "1 of 35 recordings (identical audio) are in more than one part, e.g. the same"
    )


def test_with_two_speakers_or_none_the_split_is_by_file_and_says_so(capsys):
    columns = rows(2, takes=10)
    assigned = assign_splits(columns, "corpus")
    assert [len(part) for part in parts(columns, assigned, "file_name")] == [48, 6, 6]
    assert "2 speaker(s) known; 10 % + 10 % of the clips" in capsys.readouterr().out
    assert assign_splits({**columns, "split": assigned}, "corpus") == assigned  # as `prepare` has written it
    assign_splits({**columns, "speaker": [""] * 60}, "corpus")
    assert "no speaker(s) known; 10 % + 10 %" in capsys.readouterr().out
    for protocol in ("speakers", "speaker_balanced"):
        with pytest.raises(ValueError, match=r"has 2 speaker\(s\) \(00, 01\).*at least 3"):
            assign_splits(columns, "corpus", protocol)
    with pytest.raises(ValueError, match="1 of 60 clips have no speaker"):
        assign_splits({**columns, "speaker": ["", *columns["speaker"][1:]]}, "corpus")


def test_a_corpus_own_split_is_kept_unless_it_shares_speakers(capsys):
    columns = rows(6)
    by_speaker = [SPLITS[int(speaker) % 3] for speaker in columns["speaker"]]
    assert assign_splits({**columns, "split": by_speaker}, "corpus") == by_speaker
    by_row = [SPLITS[row % 3] for row in range(len(by_speaker))]
    with pytest.raises(ValueError, match=r"6 of 6 speakers are in more than one part, e\.g\. 00.*`protocol: official`"):
        assign_splits({**columns, "split": by_row}, "corpus")
    assert assign_splits({**columns, "split": by_row}, "corpus", "official") == by_row
    assert "6 of 6 speakers" in capsys.readouterr().out
    assert (
        overlap(assign_splits({**columns, "split": by_row}, "corpus", "speakers"), columns["speaker"], [""] * 36)
        is None
    )
    with pytest.raises(ValueError, match="split 'eval' in the metadata; it must be train, validation, test"):
        assign_splits({**columns, "split": ["eval"] * 36}, "corpus")


def test_an_official_split_without_validation_gets_one_from_train(capsys):
    columns = rows(8)
    own = ["test" if speaker in ("00", "01") else "train" for speaker in columns["speaker"]]
    assigned = assign_splits({**columns, "split": own}, "corpus")
    train, validation, test = parts(columns, assigned)
    assert test == {"00", "01"}
    assert len(validation) == 1 and len(train) == 5 and not train & validation
    assert "no validation part; it is taken from train" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["leave_one_speaker_out", "speaker_folds:4", "session_folds", "speaker_folds"])
def test_folds_test_every_clip_once(protocol):
    columns = rows(8)
    columns["session"] = [str(int(speaker) // 2) for speaker in columns["speaker"]]
    folds = {"leave_one_speaker_out": 8, "speaker_folds:4": 4, "session_folds": 4, "speaker_folds": 5}[protocol]
    tested: list[str] = []
    for fold in range(1, folds + 1):
        assigned = assign_splits(columns, "corpus", protocol, fold)
        assert overlap(assigned, columns["speaker"], [""] * len(assigned)) is None
        assert all(parts(columns, assigned))
        tested += [name for name, split in zip(columns["file_name"], assigned, strict=True) if split == "test"]
    assert sorted(tested) == sorted(columns["file_name"])
    with pytest.raises(ValueError, match=f"fold is {folds + 1}; .* has the folds 1 to {folds}"):
        assign_splits(columns, "corpus", protocol, folds + 1)


def test_speaker_folds_are_even():
    columns = rows(9, takes=3)
    sizes = Counter(assign_splits(columns, "corpus", "speaker_folds:3", fold).count("test") for fold in (1, 2, 3))
    assert sizes == {27: 3}


def test_iemocap_four_classes_leave_one_session_out():
    labels = ("anger", "happiness", "excitement", "neutral", "sadness", "frustration")
    columns = rows(10, labels, 1)
    columns["session"] = [str(int(speaker) // 2 + 1) for speaker in columns["speaker"]]
    columns["label"] = protocol_labels(columns["label"], "iemocap", "four_classes")
    dataset = Dataset.from_dict(columns).filter(lambda row: row["label"])
    splits = split_corpus(dataset, "iemocap", "four_classes", fold=5)
    assert {split: set(part["session"]) for split, part in splits.items()} == {
        "train": {"2", "3", "4"},
        "validation": {"1"},
        "test": {"5"},
    }
    assert Counter(splits["test"]["label"]) == {"anger": 2, "happiness": 4, "neutral": 2, "sadness": 2}


def test_a_named_protocol_of_fixed_speakers():
    columns = rows(1)
    columns = {name: values * 10 for name, values in columns.items()}
    columns["speaker"] = [f"{speaker:02d}" for speaker in (3, *range(8, 17)) for _ in range(6)]
    _, validation, test = parts(columns, assign_splits(columns, "EMO-DB", "autrainer"))
    assert (validation, test) == ({"13", "14"}, {"15", "16"})
    with pytest.raises(ValueError, match="knows no speaker '99'"):
        assign_splits({**columns, "speaker": ["99"] * 60}, "emodb", "autrainer")


@pytest.mark.parametrize("key", sorted(load_registry()))
def test_the_protocols_of_the_registry_share_no_speaker_if_they_say_so(key):
    for name, protocol in load_registry()[key].protocols.items():
        groups = protocol.get("splits", {}).values() if "splits" in protocol else protocol.get("folds", [])
        if isinstance(groups, str):
            continue
        speakers = [speaker for group in groups for speaker in group]
        assert len(speakers) == len(set(speakers)), name
