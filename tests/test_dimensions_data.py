"""Arousal, valence, dominance and other numbers of clips, read on their scales, and what is said about bad ones.

python -m pytest tests/test_dimensions_data.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from test_prepare import TREES, prepare, write_tree

import evaluate_hf
import train_hf
from conftest import ROOT
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.dimensions import shown_scales
from exhubert.corpora.load import load_corpora

ON_1_TO_5 = {"arousal": [1, 5], "valence": [1, 5]}


def edit(folder: Path, change) -> None:
    """Rewrites metadata.csv by `change`, a function of its table."""
    path = folder / "metadata.csv"
    change(pandas.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def five(row: int) -> str:
    """Numbers from 1 to 5."""
    return f"{1 + row % 5}"


def numbers_of(corpora, name: str = "corpus") -> dict[str, list[list[float]]]:
    """The column `dimensions` by file name."""
    return {row["file_name"]: row["dimensions"] for part in corpora[name].values() for row in part}


def test_numbers_come_from_their_scale_to_0_and_1(make_corpus):
    folder = make_corpus(arousal=five, valence=lambda row: "" if row == 3 else five(row + 1))
    edit(folder, lambda table: table.assign(arousal=table["arousal"].where(table.index != 4, "NaN")))
    corpora, names = load_corpora([str(folder)], targets=("arousal", "valence"), scales=ON_1_TO_5)
    rows = pandas.read_csv(folder / "metadata.csv")
    wanted = (rows[["arousal", "valence"]].to_numpy(dtype=float) - 1) / 4
    found = numbers_of(corpora)
    np.testing.assert_array_equal([found[name] for name in rows["file_name"]], wanted)
    assert np.isnan(wanted).sum() == 2
    assert len(names) == 6
    for part in corpora["corpus"].values():
        assert set(part["labels"]) <= set(range(6))


def test_the_registry_has_scales_and_a_recipe_may_say_otherwise(make_corpus, capsys):
    """By the corpus's own entry in `scales`, else by the one for all, else by the registry."""
    folder = make_corpus("iemocap", arousal=five, valence=five)
    own = make_corpus("own", arousal=five)
    both = [str(folder), str(own)]

    def highest(scales) -> list[float]:
        corpora, _ = load_corpora(both, targets=("arousal",), scales=scales)
        return [max(max(numbers) for numbers in numbers_of(corpora, name).values()) for name in ("iemocap", "own")]

    assert highest({"own": {"arousal": [0, 10]}}) == [1.0, 0.5]
    assert "is read on" not in capsys.readouterr().out
    assert highest({"arousal": [1, 9]}) == [0.5, 0.5]
    said = "corpus 'iemocap': arousal is read on 1 to 9, as `scales` says; the registry has 1 to 5"
    assert said in capsys.readouterr().out
    assert highest({"USC-IEMOCAP": {"arousal": [1, 17]}, "arousal": [1, 9]}) == [0.25, 0.5]


def test_a_model_shows_the_scale_of_its_corpora(make_corpus):
    folders = [str(make_corpus("iemocap", arousal=five, valence=five)), str(make_corpus("msp_podcast", arousal=five))]
    targets = ("arousal", "valence")
    corpora, _ = load_corpora(folders, targets=targets)
    assert shown_scales(corpora, targets, {}) == {"arousal": [0.0, 1.0], "valence": [1.0, 5.0]}
    assert shown_scales(corpora, targets, {"arousal": [1, 7]})["arousal"] == [1.0, 7.0]


def test_a_corpus_without_a_dimension_has_none_beside_one_that_has_it(make_corpus):
    folders = [str(make_corpus("iemocap", arousal=five, valence=five)), str(make_corpus("emodb"))]
    corpora, _ = load_corpora(folders, targets=("valence", "arousal"))
    assert np.isnan([*numbers_of(corpora, "emodb").values()]).all()
    assert not np.isnan([*numbers_of(corpora, "iemocap").values()]).any()


def test_clips_without_a_class_train_dimensions(make_corpus, capsys):
    """Of 24 clips 8 have no label and 4 a word that names no emotion; one of the 8 has no arousal either."""

    def without_labels(table: pandas.DataFrame) -> pandas.DataFrame:
        table.loc[::3, "label"] = ""
        return table.assign(arousal=table["arousal"].where(table.index != 0, ""), valence="3")

    folder = make_corpus(labels=("anger", "other", "joy"), arousal=five)
    edit(folder, without_labels)
    classes, _ = load_corpora([str(folder)])
    assert sum(len(part) for part in classes["corpus"].values()) == 12
    said = capsys.readouterr().out
    assert "12 of 24 clips are left out, 8 without a label; 4 as their labels name no emotion: other" in said

    scales = {"arousal": [1, 5]}
    both, _ = load_corpora([str(folder)], targets=["arousal"], scales=scales)
    rows = [row for part in both["corpus"].values() for row in part]
    assert (len(rows), sum(row["labels"] == -100 for row in rows)) == (23, 11)
    said = capsys.readouterr().out
    assert "corpus 'corpus': 1 of 24 clips are left out, 1 without a label\n" in said
    assert "11 of 24 clips train dimensions alone, 7 without a label; 4 as their" in said

    alone, names = load_corpora([str(folder)], labels="none", targets=["arousal"], scales=scales)
    rows = [row for part in alone["corpus"].values() for row in part]
    assert (len(rows), {row["labels"] for row in rows}, names) == (23, {-100}, [])
    assert not np.isnan([row["dimensions"] for row in rows]).any()
    # Nobody moves to another split with what is trained.
    speakers = [
        {split: set(part["speaker"]) for split, part in loaded["corpus"].items()} for loaded in (classes, both, alone)
    ]
    assert speakers[0] == speakers[1] == speakers[2]


def test_a_table_of_numbers_needs_no_label(make_corpus):
    folder = make_corpus(loudness=five)
    table = pandas.read_csv(folder / "metadata.csv").drop(columns="label")
    table.to_csv(folder / "loud.csv", index=False)
    (folder / "metadata.csv").unlink()
    given = {"labels": "none", "targets": ["loudness"], "scales": {"loudness": [1, 5]}}
    corpora, _ = load_corpora([str(folder / "loud.csv")], **given)
    assert len(numbers_of(corpora, "loud")) == 24
    with pytest.raises(ValueError, match=r"no clip of these corpora has a label; .*`labels: none`"):
        load_corpora([str(folder / "loud.csv")], **given | {"labels": "six"})
    of_both = given | {"labels": list(SIX_CLASSES), "needed": ("test",)}  # a model of both is tested on it
    corpora, _ = load_corpora([str(folder / "loud.csv")], **of_both)
    assert set(corpora["loud"]["test"]["labels"]) == {-100}


REMEDY = r"`scales: \{own: \{arousal: \[<low>, <high>\]\}\}`"


@pytest.mark.parametrize(
    ("column", "given", "message"),
    [
        (
            {"arousal": five},
            {"targets": ["arousl"], "scales": {}},
            "no corpus has numbers in a column 'arousl'; the nearest is 'arousal'",
        ),
        (
            {"arousal": lambda row: "high" if row == 5 else five(row)},
            {},
            "corpus 'own': arousal of audio/01_sadness_1.wav is 'high', which is no number; correct it",
        ),
        (
            {"arousal": lambda row: "9" if row == 5 else five(row)},
            {},
            f"corpus 'own': arousal of audio/01_sadness_1.wav is 9, outside its scale, 1 to 5; .* {REMEDY}",
        ),
        ({"arousal": lambda row: "inf"}, {}, "arousal of audio/01_anger_0.wav is inf, outside its scale, 1 to 5"),
        ({"arousal": lambda row: "3"}, {}, "corpus 'own': arousal is 3 in all 24 clips that have it; .*leave it out"),
        (
            {"arousal": five},
            {"scales": {}},
            f"corpus 'own': the scale of arousal is not known, its numbers are 1 to 5; say it in the recipe, {REMEDY}",
        ),
        (
            {},
            {"targets": ["arousal", "valence"]},
            "corpus 'own' has no arousal or valence, and cannot train dimensions; values are never invented from class "
            "words; leave `targets` out, or add such annotations",
        ),
        ({"arousal": lambda row: ""}, {}, "corpus 'own' has no arousal, and cannot train dimensions; values are never"),
        ({"arousal": five}, {"scales": {"arousal": [5, 1]}}, r"scales: arousal is \[5, 1\]; two numbers are needed"),
        ({"arousal": five}, {"scales": {"arousal": "1 to 5"}}, "scales: arousal is '1 to 5'; two numbers are needed"),
        ({"arousal": five}, {"scales": {"arousl": [1, 5]}}, "scales: 'arousl' is none of the targets, arousal"),
        (
            {"arousal": five},
            {"scales": {"owm": {"arousal": [1, 5]}}},
            "scales: 'owm' is no corpus; there are own",
        ),
    ],
)
def test_bad_numbers_are_named_with_the_remedy(make_corpus, column, given, message):
    folder = str(make_corpus("own", **column))
    with pytest.raises(ValueError, match=message) as raised:
        load_corpora([folder], **{"targets": ["arousal"], "scales": {"arousal": [1, 5]}, **given})
    assert "\n" not in str(raised.value)


def test_a_corpus_without_numbers_is_none_for_dimensions_alone(make_corpus):
    folders = [str(make_corpus("iemocap", arousal=five)), str(make_corpus("emodb"))]
    with pytest.raises(
        ValueError, match=r"corpus 'emodb' has no arousal, .* never invented .* leave it out of `corpora`"
    ):
        load_corpora(folders, labels="none", targets=["arousal"])
    with pytest.raises(ValueError, match="no corpus has numbers in a column 'zest'; values are never"):
        load_corpora(folders, targets=["arousal", "zest"])
    # A model of classes and dimensions is tested on corpora that have classes alone.
    corpora, _ = load_corpora(folders[1:], targets=["arousal"], needed=("test",))
    assert np.isnan(corpora["emodb"]["test"]["dimensions"][:]).all()
    # A model of more dimensions than a corpus has is tested on those, also where the numbers are equal.
    own = str(make_corpus("own", arousal=five, valence=lambda row: "3"))
    given = {"labels": "none", "targets": ["arousal", "dominance", "valence"], "scales": ON_1_TO_5}
    corpora, _ = load_corpora([own], **given, needed=("test",))
    known = np.isfinite(corpora["own"]["test"]["dimensions"][:])
    assert known.all(axis=0).tolist() == [True, False, True] and not known[:, 1].any()
    with pytest.raises(ValueError, match="corpus 'emodb': no clip has arousal or dominance or valence"):
        load_corpora([own, folders[1]], **given, needed=("test",))


@pytest.fixture
def msp_podcast(tmp_path) -> Path:
    """MSP-Podcast as it is distributed, with made-up audio and labels."""
    tree = TREES["msp_podcast"]
    return write_tree(tmp_path / "raw", [*tree["audio"], *tree["left_out"]], tree["texts"])


def stems(part) -> list[str]:
    """The clips of a split, without what is the same in all their names."""
    return sorted(name.rpartition("PODCAST_")[2].removesuffix(".wav") for name in part["file_name"])


def test_msp_podcast_is_prepared_with_its_parts(msp_podcast, tmp_path, capsys):
    assert prepare("msp_podcast", msp_podcast, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "left out: 2 without an emotion label and numbers, in the corpus's part Test3" in said
    assert "in no split of this protocol: Test2 (2 clips)" in said
    assert "without a label, but with numbers, so for dimensions alone: 4 clips" in said

    targets = ("arousal", "valence", "dominance")
    alone, _ = load_corpora([str(tmp_path / "out")], labels="none", targets=targets)
    assert stems(alone["out"]["test"]) == ["1023_0235", "1023_0236_0002", "1023_0240"]
    first = next(row for row in alone["out"]["train"] if row["file_name"].endswith("0001_0008.wav"))
    assert first["dimensions"] == pytest.approx([1.8 / 6, 2.6 / 6, 2.2 / 6])
    assert len(alone["out"]["train"]) == 6
    classes, _ = load_corpora([str(tmp_path / "out")])
    assert stems(classes["out"]["test"]) == ["1023_0235", "1023_0236_0002"]
    assert len(classes["out"]["train"]) == 4
    with pytest.raises(ValueError, match="no clip of its Test3 is there; its labels are not public"):
        load_corpora([str(tmp_path / "out")], protocol="test3")


def test_the_second_test_set_of_msp_podcast_is_a_protocol(msp_podcast, tmp_path, capsys):
    """For a folder that is prepared with it, and for one that is not."""
    assert prepare("msp_podcast", msp_podcast, tmp_path / "msp_podcast") == 0
    assert prepare("msp_podcast", msp_podcast, tmp_path / "second", "--protocol", "test2") == 0
    assert "in no split of this protocol: Test1 (3 clips)" in capsys.readouterr().out
    for folder, protocol in (("msp_podcast", "test2"), ("second", "auto"), ("second", "official")):
        given = {"labels": "none", "targets": ["arousal"], "protocol": protocol}
        corpora, _ = load_corpora([str(tmp_path / folder)], **given)
        assert stems(corpora[folder]["test"]) == ["2001_0001", "2001_0002"]
        assert len(corpora[folder]["train"]) == 6
    # A split of its own has none of the clips that may not train.
    given = {"labels": "none", "targets": ["arousal"], "protocol": "files"}
    corpora, _ = load_corpora([str(tmp_path / "msp_podcast")], **given)
    assert not [name for part in corpora["msp_podcast"].values() for name in stems(part) if name.startswith("2001")]
    assert prepare("msp_podcast", msp_podcast, tmp_path / "third", "--protocol", "test3") == 1
    assert "no clip of its Test3 is there; its labels are not public" in capsys.readouterr().err


def test_numbers_outside_the_scale_are_left_empty_when_a_corpus_is_prepared(tmp_path, capsys):
    tree = TREES["iemocap"]
    raw = write_tree(tmp_path / "raw", list(tree["audio"]), tree["texts"])
    assert prepare("iemocap", raw, tmp_path / "iemocap", "--protocol", "speaker_balanced") == 0
    said = capsys.readouterr().out
    assert "left empty: 1 of dominance, which is 1 to 5: Session1" in said
    corpora, names = load_corpora([str(tmp_path / "iemocap")], targets=["dominance", "valence"])
    rows = [row for part in corpora["iemocap"].values() for row in part]
    assert (len(rows), sum(row["labels"] == -100 for row in rows), len(names)) == (11, 2, 6)
    assert sum(np.isnan(row["dimensions"][0]) for row in rows) == 1


def test_msp_podcast_trains_both_heads_and_is_evaluated_on_its_second_test_set(
    msp_podcast, tmp_path, make_hubert, capsys
):
    corpus, run = tmp_path / "msp_podcast", tmp_path / "run"
    assert prepare("msp_podcast", msp_podcast, corpus) == 0
    given = ["--model", str(make_hubert(head="ctc")), "--corpora", str(corpus), "--output", str(run)]
    tiny = ["--rounds", "2", "--batch_size", "4", "--window_seconds", "0.4", "--eval_steps", "2"]
    silent = ["--report_to", "none", "--disable_tqdm", "true"]
    assert train_hf.main([str(ROOT / "recipes/dimensions/stage2.yaml"), *given, *tiny, *silent]) == 0
    said = capsys.readouterr().out
    assert "of 6 training clips 6 have arousal, 6 have dominance, 6 have valence" in said
    found = json.loads((run / "results.json").read_text())["corpora"]["msp_podcast"]
    assert found["dimensions"]["arousal"]["clips"] == 3  # one of them has no class

    second = [
        "--model",
        str(run / "model"),
        "--corpora",
        str(corpus),
        "--protocol",
        "test2",
        "--output",
        str(tmp_path / "second"),
    ]
    assert evaluate_hf.main(second) == 0
    results = json.loads((tmp_path / "second/results.json").read_text())
    (found,) = [model["corpora"]["msp_podcast"] for model in (results if isinstance(results, list) else [results])]
    assert found["dimensions"]["valence"]["clips"] == 2
