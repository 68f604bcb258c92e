"""Scores, bootstrap intervals and paired comparisons.

python -m pytest tests/test_scores.py
"""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
from scipy.special import softmax
from scipy.stats import norm, t
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.evaluation.bootstrap import interval, p_value, resample
from exhubert.evaluation.metrics import scores_of
from exhubert.evaluation.scores import average, compare, groups, score

ABC = ("a", "b", "c")


def make_predictions(corpus, references, speakers, class_names=ABC, skill=1.5, seed=0):
    """A table as `evaluate_hf.py` makes it, of a model whose logits prefer the right class by `skill`."""
    rng = np.random.default_rng(seed)
    labels = np.array([class_names.index(name) for name in references])
    logits = rng.normal(size=(len(labels), len(class_names))) + skill * np.eye(len(class_names))[labels]
    probabilities = softmax(logits, axis=1)
    return pandas.DataFrame(
        {
            "corpus": corpus,
            "file_name": [f"audio/{number}.wav" for number in range(len(labels))],
            "start_seconds": 0.0,
            "speaker": list(speakers),
            "sex": "",
            "language": "",
            "windows": 1,
            "reference": list(references),
            "prediction": [class_names[index] for index in probabilities.argmax(axis=1)],
            **{f"probability_{name}": probabilities[:, index] for index, name in enumerate(class_names)},
        }
    )


def two_corpora(class_names=ABC, **options):
    """60 clips of 6 speakers and 40 clips of 2; the second corpus lacks the last class."""
    many, few = [[f"0{1 + number % count}" for number in range(10 * count)] for count in (6, 4)]
    first = make_predictions(
        "first", [class_names[n % len(class_names)] for n in range(60)], many, class_names, **options
    )
    second = [class_names[n % (len(class_names) - 1)] for n in range(40)]
    return pandas.concat([first, make_predictions("second", second, few, class_names, **options)], ignore_index=True)


def plain(value):
    """Whether there is nothing in it but what JSON has."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(each) for key, each in value.items())
    if isinstance(value, list):
        return all(plain(each) for each in value)
    return value is None or type(value) in (str, int, float)


def test_scores_are_those_of_scikit_learn():
    table = two_corpora(SIX_CLASSES)
    results = score(table, SIX_CLASSES, "test")
    assert plain(results) and list(results) == ["first", "second"]
    for corpus, rows in table.groupby("corpus"):
        found, present = results[corpus], sorted(set(rows["reference"]))
        truth, answer = rows["reference"], rows["prediction"]
        assert found["uar"] == pytest.approx(recall_score(truth, answer, labels=present, average="macro"))
        assert found["accuracy"] == pytest.approx(accuracy_score(truth, answer))
        assert found["macro_f1"] == pytest.approx(f1_score(truth, answer, labels=present, average="macro"))
        recalls = recall_score(truth, answer, labels=present, average=None)
        assert found["recall"] == pytest.approx(dict(zip(present, recalls, strict=True)))
        assert list(found["recall_interval"]) == list(found["recall"])
        for name in ("uar", "accuracy", "macro_f1"):
            low, high = found[f"{name}_interval"]
            assert 0 <= low < found[name] < high <= 1
    assert "high/positive" not in results["second"]["recall"]
    assert "high/positive" in set(table["prediction"][table["corpus"] == "second"])  # predicted, yet it never occurs
    means = average(table, SIX_CLASSES)
    assert plain(means)
    for name in ("uar", "accuracy", "macro_f1", "ece", "arousal_uar", "valence_uar"):
        assert means[name] == pytest.approx(np.mean([found[name] for found in results.values()]))


def test_arousal_and_valence_add_the_probabilities_of_the_six_classes():
    table = two_corpora(SIX_CLASSES, skill=0.7)
    for corpus, rows in table.groupby("corpus"):
        found = score(table, list(reversed(SIX_CLASSES)), "test")[corpus]
        for place, dimension in enumerate(("arousal", "valence")):
            sums = pandas.DataFrame(index=rows.index)
            for value in {name.split("/")[place] for name in SIX_CLASSES}:
                sums[value] = sum(rows[f"probability_{n}"] for n in SIX_CLASSES if n.split("/")[place] == value)
            truth = [name.split("/")[place] for name in rows["reference"]]
            assert found[f"{dimension}_uar"] == pytest.approx(balanced_accuracy_score(truth, sums.idxmax(axis=1)))
            low, high = found[f"{dimension}_uar_interval"]
            assert low < found[f"{dimension}_uar"] < high
    assert "arousal_uar" not in score(two_corpora(), ABC, "test")["first"]
    assert "arousal_uar" not in average(two_corpora(), ABC)


def test_intervals_are_those_of_drawing_speakers_and_scoring_with_scikit_learn():
    """With percentiles further out than 2.5 and 97.5, as Student's t of the number of speakers asks for."""
    rng = np.random.default_rng(0)
    speakers = [f"{n % 12:02}" for n in range(120)]
    table = make_predictions("one", [ABC[n] for n in rng.integers(3, size=120)], speakers)
    clips_of = [np.flatnonzero(table["speaker"] == name) for name in sorted(set(speakers))]
    truth, answer = table["reference"].to_numpy(), table["prediction"].to_numpy()
    drawn = []
    for _ in range(600):
        clips = np.concatenate([clips_of[n] for n in rng.integers(12, size=12)])
        _, recalls, f1, _ = precision_recall_fscore_support(truth[clips], answer[clips], labels=ABC)
        drawn.append([recalls.mean(), (truth[clips] == answer[clips]).mean(), f1.mean(), *recalls])
    tail = norm.cdf(t.ppf(0.025, 11) * np.sqrt(12 / 11))
    expected = np.quantile(drawn, [tail, 1 - tail], axis=0).T
    found = score(table, ABC, "test")["one"]
    assert found["interval_by"] == "speaker"
    intervals = [found[f"{name}_interval"] for name in ("uar", "accuracy", "macro_f1")]
    assert np.array([*intervals, *found["recall_interval"].values()]) == pytest.approx(expected, abs=0.03)


def test_interval_holds_the_uar_and_shrinks_with_more_clips():
    widths = []
    for clips in (40, 400):
        found = score(make_predictions("one", list("ab") * (clips // 2), ["01"] * clips), ABC, "test")["one"]
        low, high = found["uar_interval"]
        assert 0 <= low < found["uar"] < high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_speakers_who_differ_make_the_interval_wider_than_clips_alone():
    """Half of the speakers are always recognised, the others never: what matters is which speakers were drawn."""
    table = make_predictions("one", list("ab") * 100, [f"{number // 20}" for number in range(200)])
    swapped = table["reference"].map({"a": "b", "b": "a"})
    table["prediction"] = table["reference"].where(table["speaker"].astype(int) % 2 == 0, swapped)
    by_speaker, by_clip = (
        np.diff(score(rows, ABC, "test")["one"]["uar_interval"]) for rows in (table, table.assign(speaker="01"))
    )
    assert by_speaker > 2 * by_clip


@pytest.mark.parametrize(
    ("speakers", "by", "known"),
    [
        ([f"{number % 5}" for number in range(30)], "speaker", 5),
        ([f"{number % 4}" for number in range(30)], "clip", 4),
        (["01"] * 30, "clip", 1),
        ([""] * 30, "clip", 0),
        ([f"{number % 5}" for number in range(20)] + [""] * 10, "speaker", 5),
        ([f"{number % 5}" for number in range(10)] + [""] * 20, "clip", 5),  # most may be one person's
        ([f"{number % 5}" for number in range(20)], "speaker", 5),
        (["01"], None, 1),
    ],
)
def test_what_is_drawn_and_that_it_is_said(speakers, by, known):
    table = make_predictions("one", [ABC[number % 3] for number in range(len(speakers))], speakers)
    found = score(table, ABC, "test")["one"]
    assert (found["interval_by"], found["speakers"], found["clips"]) == (by, known, len(speakers))
    for name in ("uar_interval", "accuracy_interval", "macro_f1_interval"):
        assert (found[name] is None) == (by is None)
    assert plain(found) and (found["uar"] is None) == (len(speakers) == 1)  # which is of a single class
    assert (average(table, ABC)["uar_interval"] is None) == (by is None)


@pytest.mark.parametrize("absent", ["a", "c"])
def test_a_class_that_never_occurs_counts_neither_in_the_uar_nor_in_its_interval(absent):
    present = [name for name in ABC if name != absent]
    table = make_predictions("one", present * 10, ["01"] * 20)
    found = score(table.assign(prediction=table["reference"]), ABC, "test")["one"]
    assert found["uar"] == 1 and found["uar_interval"] == [1, 1]
    assert list(found["recall"]) == list(found["recall_interval"]) == present


def test_a_class_of_a_single_speaker_has_a_recall_without_an_interval():
    table = make_predictions("one", list("ab") * 30 + ["c"] * 4, [f"{n // 10}" for n in range(60)] + ["0"] * 4)
    found = score(table, ABC, "test")["one"]
    assert found["recall_interval"]["c"] is None
    assert found["recall_interval"]["a"] and "c" in found["recall"]


@pytest.mark.parametrize("some_unknown", [False, True])
def test_intervals_do_not_depend_on_the_order_of_clips_nor_on_other_corpora(some_unknown):
    table = two_corpora()
    if some_unknown:
        table["speaker"] = [f"{number % 7}" if number % 3 else "" for number in range(100)]
    for other in (table, table.sample(frac=1, random_state=0), table[table["corpus"] == "second"]):
        expected, found = (score(each, ABC, "test")["second"] for each in (table, other))
        for name in ("uar_interval", "accuracy_interval", "macro_f1_interval", "recall_interval"):
            assert found[name] == expected[name]
    assert average(table, ABC) == average(table, ABC)


def test_groups_pool_corpora_and_leave_out_unknown_values():
    table = two_corpora()
    table["sex"] = ["female", "male"] * 50
    table.loc[:9, "sex"] = ""
    table["language"] = "de"
    found = groups(table, ABC)
    assert plain(found) and list(found) == ["sex"]  # a single language is nothing to compare
    assert list(found["sex"]) == ["female", "male"]
    for sex, values in found["sex"].items():
        rows = table[table["sex"] == sex]
        assert values["uar"] == pytest.approx(balanced_accuracy_score(rows["reference"], rows["prediction"]))
        assert values["corpora"] == ["first", "second"] and values["clips"] == len(rows) == 45
        assert values["speakers"] == 3 + 2  # 01 of one corpus is not 01 of the other
        assert values["interval_by"] == "speaker"
        assert values["uar_interval"][0] < values["uar"] < values["uar_interval"][1]


def test_average_over_corpora_varies_less_than_each():
    tables = [make_predictions(f"{n}", list("abc") * 40, [f"{n % 20}" for n in range(120)], seed=n) for n in range(4)]
    widths = [float(np.diff(score(table, ABC, "test")[f"{n}"]["uar_interval"])[0]) for n, table in enumerate(tables)]
    width = float(np.diff(average(pandas.concat(tables), ABC)["uar_interval"])[0])
    # Independent corpora: variances add, and 76 degrees of freedom ask for less than 19.
    assert width == pytest.approx(np.sqrt(np.square(widths).sum()) / 4, rel=0.12)


def test_comparison_of_models_on_the_same_clips():
    worse, better = two_corpora(skill=0.5), two_corpora(skill=2.5)
    found = compare({"worse": worse, "better": better.sample(frac=1, random_state=1), "same": worse}, ABC)
    assert plain(found) and [pair["models"] for pair in found["pairs"]] == [
        ["worse", "better"],
        ["worse", "same"],
        ["better", "same"],
    ]
    improved, same, worsened = found["pairs"]
    before, after = (score(table, ABC, "test") for table in (worse, better))
    for corpus, by in (("first", "speaker"), ("second", "clip")):
        values = improved["corpora"][corpus]
        assert values["difference"] == pytest.approx(after[corpus]["uar"] - before[corpus]["uar"])
        assert 0 < values["interval"][0] < values["difference"] < values["interval"][1]
        assert values["p"] < 0.05
        assert (values["interval_by"], values["clips"]) == (by, before[corpus]["clips"])
        assert same["corpora"][corpus]["interval"] == [0, 0] and same["corpora"][corpus]["p"] == 1
        assert worsened["corpora"][corpus]["difference"] == pytest.approx(-values["difference"])
    low, high = improved["average"]["interval"]
    expected = np.mean([values["difference"] for values in improved["corpora"].values()])
    assert improved["average"]["difference"] == pytest.approx(expected)
    assert 0 < low < expected < high
    assert improved["average"]["p"] < 0.05 and same["average"]["p"] == 1


def test_what_is_hard_for_both_models_does_not_blur_their_difference():
    """Half of the speakers are hardly recognised by either model; one model is a little better on all of them."""
    table = make_predictions("one", list("ab") * 200, [f"{number // 20}" for number in range(400)])
    wrong = table["reference"].map({"a": "b", "b": "a"})
    number, hard = table.index % 20, table.index // 20 % 2 == 0
    first = table.assign(prediction=table["reference"].where(number < np.where(hard, 2, 16), wrong))
    second = table.assign(prediction=table["reference"].where(number < np.where(hard, 4, 18), wrong))
    values = compare({"first": first, "second": second}, ABC)["pairs"][0]["corpora"]["one"]
    assert values["difference"] == pytest.approx(0.1)
    assert np.diff(values["interval"]) < 0.05 < np.diff(score(first, ABC, "test")["one"]["uar_interval"])


def test_a_clip_that_is_there_twice_is_matched_by_its_occurrence():
    table = make_predictions("one", list("abcabc"), [""] * 6).assign(file_name="same.wav")
    table.loc[3:, "start_seconds"] = 1.5
    found = compare({"x": table, "y": table.iloc[[3, 4, 5, 0, 1, 2]]}, ABC)["pairs"][0]["corpora"]["one"]
    assert (found["difference"], found["clips"]) == (0, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[table["corpus"] == "first"], "not scored on the same clips: second/audio/0.wav"),
        (lambda table: table.drop(index=[3]), "x and y were not scored on the same clips: first/audio/3.wav"),
        (lambda table: table.assign(start_seconds=1.0), "not scored on the same clips"),
        (lambda table: table.assign(reference="a"), "other references: first/audio/1.wav is b for one and a for"),
        (lambda table: table.rename(columns={"probability_c": "probability_d"}), "y has the classes a, b, d; expected"),
        (lambda table: table.assign(prediction="joy"), "'joy' is none of the classes a, b, c"),
        (lambda table: table[:0], "y has classified no clips"),
    ],
)
def test_models_that_cannot_be_compared(change, message):
    with pytest.raises(ValueError, match=message):
        compare({"x": two_corpora(), "y": change(two_corpora())}, ABC)


RECALLS = np.array([0.85, 0.6, 0.4, 0.7])
GAIN = 0.2


def simulated(sizes, clips_of_class, rng):
    """Clips of speakers of whom each is recognised as well as a beta distribution says, by two models.

    The true recalls of the first model are RECALLS; the second gets a share of its errors right, GAIN on average.

    Args:
        sizes: `(speakers,)`; a speaker has that many times the `clips_of_class`.
        clips_of_class: `(classes,)`.
        rng: a numpy generator.

    Returns:
        References, predictions of both models, speakers.
    """
    classes = len(RECALLS)
    recall = rng.beta(6 * RECALLS, 6 * (1 - RECALLS), size=(len(sizes), classes))
    gain = rng.beta(4 * GAIN, 4 * (1 - GAIN), size=len(sizes))
    speaker = np.repeat(np.arange(len(sizes)), np.asarray(sizes) * sum(clips_of_class))
    one = np.repeat(np.arange(classes), clips_of_class)
    references = np.concatenate([np.tile(one, size) for size in sizes])
    wrong = (references + rng.integers(1, classes, size=len(references))) % classes
    first = np.where(rng.random(len(references)) < recall[speaker, references], references, wrong)
    second = np.where(rng.random(len(references)) < gain[speaker], references, first)
    return references, [first, second], [str(number) for number in speaker]


@pytest.mark.parametrize(("speakers", "simulations"), [(20, 150), (30, 100), (50, 80)])
def test_intervals_hold_the_truth_as_often_as_they_say(speakers, simulations):
    rng = np.random.default_rng(speakers)
    held = []
    for seed in range(simulations):
        alike = simulated([1] * speakers, (6, 6, 6, 6), rng)
        unbalanced = simulated(rng.integers(1, 4, size=speakers), (10, 5, 2, 1), rng)
        for references, predictions, names in (alike, unbalanced):
            drawn = resample(references, predictions, names, len(RECALLS), seed)
            first, second = scores_of(drawn.matrices)["uar"]
            low, high = interval(first, drawn.units)
            truth = GAIN * (1 - RECALLS.mean())
            worse, better = interval(second - first, drawn.units)
            held.append([low <= RECALLS.mean() <= high, worse <= truth <= better])
    for coverage in np.mean(held, axis=0):
        assert 0.90 <= coverage <= 0.98


@pytest.mark.parametrize("units", [10, 20, 200])
def test_p_is_five_percent_where_the_interval_just_reaches_zero(units):
    samples = np.random.default_rng(0).gamma(4, size=2000)
    for limit in interval(samples, units):
        assert p_value(samples - limit, units) == pytest.approx(0.05, abs=0.004)
    assert p_value(samples + 1, units) < 0.05 < p_value(samples - np.median(samples), units)


def test_results_are_valid_json_without_special_numbers():
    table = two_corpora(SIX_CLASSES)
    results = {"corpora": score(table, SIX_CLASSES, "test"), "average": average(table, SIX_CLASSES)}
    assert json.loads(json.dumps(results, allow_nan=False)) == results
