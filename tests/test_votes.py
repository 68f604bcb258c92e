"""Soft labels: what raters' votes mean, and what they make the targets of training.

python -m pytest tests/test_votes.py
"""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.labels import load_label_map
from exhubert.corpora.load import count_votes, load_corpora
from exhubert.training.losses import vote_targets

ROWS = {
    "file_name": ["a", "b", "c", "d"],
    "label": ["anger", "neutral", "joy", "sadness"],
    "votes_anger": ["3", "0", "", "1.5"],
    "votes_Happiness": ["1", "0", "", "1.5"],
    "votes_neutral": [0.0, 2.0, float("nan"), None],
    "votes_other": ["4", "1", "5", ""],
}


def counted(rows, words=None, classes=6):
    return count_votes(Dataset.from_dict(rows), "voted", "voted", "auto", words or load_label_map(), classes)


def test_votes_count_for_the_classes_of_their_words(capsys):
    expected = np.zeros((4, 6))
    expected[0, [3, 5]] = 3, 1  # anger, happiness; "other" names no class
    expected[1, 1] = 2
    expected[3, [3, 5]] = 1.5
    assert counted(ROWS).tolist() == expected.tolist()
    assert capsys.readouterr().out == "corpus 'voted': votes for other name no class\n"
    assert counted(ROWS, {"anger": 0, "happiness": 1}, 2)[0].tolist() == [3, 1]  # the corpus's own words


@pytest.mark.parametrize("count", ["many", "-1", "inf"])
def test_a_count_that_is_no_number(count):
    message = f"corpus 'voted': votes_anger of a is '{count}'; a number of raters, 0 or more, is needed"
    with pytest.raises(ValueError, match=message):
        counted({"file_name": ["a"], "label": ["anger"], "votes_anger": [count]})


def test_votes_become_targets():
    voted = Dataset.from_dict({"labels": [3, 1, 5, 0], "class_votes": counted(ROWS).tolist()})
    plain = Dataset.from_dict({"labels": [2], "class_votes": [[0.0] * 6]})
    (targets, own), notes = vote_targets({"voted": voted, "plain": plain}, SIX_CLASSES)
    assert targets.dtype == np.float32
    expected = np.zeros((4, 6))
    expected[0, [3, 5]] = 0.75, 0.25
    expected[1, 1] = 1
    expected[2, 5] = 1  # nobody voted for a class: its label
    expected[3, [3, 5]] = 0.5
    assert targets.tolist() == expected.tolist()
    assert own.tolist() == [[0, 0, 1, 0, 0, 0]]
    assert notes[0] == "corpus 'voted': 3 of 4 training clips have raters' votes"
    with pytest.raises(ValueError, match="soft_labels is set, but no clip of plain has votes"):
        vote_targets({"plain": plain}, SIX_CLASSES)


def test_a_word_means_the_same_as_a_label_and_as_a_vote(make_corpus, tmp_path):
    """What `anxiety` is in GEMEP the column `corpus` says, whatever the folder is called."""
    columns = {"corpus": lambda row: "gemep", "votes_anxiety": lambda row: "1"}
    make_corpus("mine", labels=("anxiety", "joy"), **columns)
    corpora, names = load_corpora(["mine"], str(tmp_path), soft_labels=True)
    clips = [clip for part in corpora["mine"].values() for clip in part if "anxiety" in clip["file_name"]]
    assert {names[clip["labels"]] for clip in clips} == {"low/negative"}
    assert {names[int(np.argmax(clip["class_votes"]))] for clip in clips} == {"low/negative"}


def test_votes_are_read_for_soft_labels_alone(make_corpus, tmp_path):
    make_corpus("bad", votes_anger=lambda row: "many")
    corpora, _ = load_corpora(["bad"], str(tmp_path))
    assert "class_votes" not in corpora["bad"]["train"].column_names
    with pytest.raises(ValueError, match="is 'many'; a number of raters"):
        load_corpora(["bad"], str(tmp_path), soft_labels=True)
