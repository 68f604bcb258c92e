"""Scores of dimensions: CCC, Pearson, RMSE, their intervals and comparisons; evaluation, report and cards of them.

python -m pytest tests/test_dimension_scores.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from test_scores import plain

import evaluate_hf
from conftest import HUBERT_KINDS, SMALL, write_corpus
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.audio_exhubert import prepare_input, read_audio
from exhubert.cli import run_with_one_line_errors
from exhubert.evaluation.bootstrap import resample_values
from exhubert.evaluation.dimensions import dimension_metrics, scores_of_sums, value_scores
from exhubert.evaluation.results import dimension_text, make_results, write_predictions
from exhubert.evaluation.scores import compare, groups, score_and_average
from exhubert.model_folder import save_model_folder
from exhubert.model_folder.card import make_card
from exhubert.publish.run_card import results_tables, run_facts
from exhubert.reports import plots
from exhubert.reports.report import write_report

SCALES = {"arousal": [1, 7], "dominance": [1, 7], "valence": [1, 7]}
KINDS = ("reference", "predicted")


def values_table(corpus="corpus", clips=60, speakers=6, skill=0.7, seed=0, scales=SCALES, constant=False):
    """A table as `evaluate_hf.py` makes it; references are the same for all seeds, and not all clips have dominance."""
    truth, rng = np.random.default_rng(1), np.random.default_rng(seed)
    table = {
        **{"corpus": corpus, "file_name": [f"audio/{number}.wav" for number in range(clips)], "start_seconds": 0.0},
        **{"speaker": [f"{number % speakers}" if speakers else "" for number in range(clips)]},
        **{"sex": [("female", "male")[number % 2] for number in range(clips)], "language": "", "windows": 1},
    }
    for name, (low, high) in scales.items():
        references = truth.uniform(0, 1, clips)
        if name == "dominance":
            references[::7] = np.nan
        predictions = np.where(constant, 0.5, skill * np.nan_to_num(references) + rng.normal(0, 0.2, clips))
        table[f"reference_{name}"] = low + (high - low) * references
        table[f"predicted_{name}"] = low + (high - low) * predictions
    return pandas.DataFrame(table)


def ccc_of(truth, answers):
    """Lin's formula, with the moments of the sample."""
    between = 2 * np.mean((truth - truth.mean()) * (answers - answers.mean()))
    return between / (truth.var() + answers.var() + (truth.mean() - answers.mean()) ** 2)


@pytest.mark.parametrize(("offset", "gain"), [(0.0, 1.0), (0.0, -0.4), (1e4, 1.0), (0.0, 1e-4)])
def test_scores_are_those_of_the_formulas(offset, gain):
    rng = np.random.default_rng(0)
    truth = offset + rng.normal(size=200)
    answers = offset + gain * (truth - offset) + rng.normal(0, 0.5, 200)
    expected = {
        "ccc": ccc_of(truth, answers),
        "pearson": np.corrcoef(truth, answers)[0, 1],
        "rmse": np.sqrt(np.mean((truth - answers) ** 2)),
    }
    assert value_scores(truth, answers) == pytest.approx(expected, abs=1e-9)
    missing = np.append(truth, np.nan), np.append(answers, 3.0)  # a clip without a reference
    assert value_scores(*missing) == pytest.approx(expected, abs=1e-9)
    x, y = truth - truth.mean(), answers - truth.mean()
    sums = np.array([np.ones(200), x, y, x * x, y * y, x * y, (x - y) ** 2]).sum(axis=1)
    assert {name: float(value) for name, value in scores_of_sums(sums).items()} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("truth", "answers", "expected"),
    [
        ([0.1, 0.1, 0.1], [0.1, 0.5, 0.2], {"ccc": None, "pearson": None, "rmse": 0.238}),
        ([0.1, 0.5, 0.2], [0.3, 0.3, 0.3], {"ccc": 0.0, "pearson": None, "rmse": 0.173}),
        ([0.3, 0.3, 0.3], [0.3, 0.3, 0.3], {"ccc": None, "pearson": None, "rmse": 0.0}),
        ([0.4], [0.5], {"ccc": None, "pearson": None, "rmse": 0.1}),
        ([np.nan, 0.4], [0.5, 0.5], {"ccc": None, "pearson": None, "rmse": 0.1}),
        ([np.nan, np.nan], [0.5, 0.5], {"ccc": None, "pearson": None, "rmse": None}),
    ],
)
def test_what_is_not_defined_is_none_and_never_nan(truth, answers, expected):
    assert value_scores(truth, answers) == pytest.approx(expected, abs=1e-3)
    rows = values_table(clips=len(truth), scales={"arousal": [0, 1]})
    rows = rows.assign(reference_arousal=truth, predicted_arousal=answers)
    corpora, average = score_and_average(rows, [], "test")
    assert plain(corpora) and plain(average) and "NaN" not in json.dumps([corpora, average])
    assert average["ccc"] == expected["ccc"] and average.get("without_ccc", []) == (
        ["corpus"] if expected["ccc"] is None else []
    )
    known = dimension_metrics(np.transpose([truth]), np.transpose([answers]), ["arousal"])
    assert known == ({} if expected["ccc"] is None else {"ccc_arousal": 0.0, "ccc": 0.0})


def test_resamples_are_speakers_drawn_with_all_their_clips():
    table = values_table(clips=90, speakers=9)
    truth, answers = (table[[f"{kind}_{name}" for name in SCALES]].to_numpy() for kind in KINDS)
    drawn = resample_values(truth, [answers], table["speaker"].tolist(), seed=5)
    found = scores_of_sums(drawn.sums[0])
    times = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=20)
    for number, drawn_times in enumerate(times):
        rows = np.repeat(np.arange(90), drawn_times[table["speaker"].astype(int)])
        for dimension in range(3):
            known = rows[np.isfinite(truth[rows, dimension])]
            x, y = truth[known, dimension], answers[known, dimension]
            assert found["ccc"][number, dimension] == pytest.approx(ccc_of(x, y), abs=1e-9)
            assert found["pearson"][number, dimension] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
            assert found["rmse"][number, dimension] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-9)
    entry = score_and_average(table, [], "test")[0]["corpus"]
    for name, each in entry["dimensions"].items():
        assert each["ccc_interval"][0] < each["ccc"] < each["ccc_interval"][1]
        assert each["speakers"] == 9 and each["clips"] == (77 if name == "dominance" else 90)
    assert entry["ccc"] == pytest.approx(np.mean([found["ccc"] for found in entry["dimensions"].values()]))


@pytest.mark.parametrize(("speakers", "by"), [(6, "speaker"), (4, "clip"), (0, "clip")])
def test_few_speakers_make_clips_the_unit(speakers, by):
    corpora, _ = score_and_average(values_table(speakers=speakers), [], "test")
    assert corpora["corpus"]["interval_by"] == by and corpora["corpus"]["speakers"] == speakers
    assert {entry["interval_by"] for entry in corpora["corpus"]["dimensions"].values()} == {by}


def test_intervals_do_not_depend_on_the_order_of_clips_nor_on_other_corpora():
    table = values_table()
    alone = score_and_average(table, [], "test")[0]["corpus"]
    both = pandas.concat([values_table("other", 20), table.sample(frac=1, random_state=0)], ignore_index=True)
    corpora, average = score_and_average(both, [], "test")
    for name, entry in corpora["corpus"]["dimensions"].items():
        for score, value in entry.items():
            assert value == pytest.approx(alone["dimensions"][name][score]), (name, score)
    assert average["ccc"] == pytest.approx(np.mean([corpora[name]["ccc"] for name in corpora]))
    low, high = average["ccc_interval"]
    assert low < average["ccc"] < high


def test_the_interval_of_a_dimension_counts_the_speakers_that_have_it():
    table = values_table(clips=60, speakers=6)
    table.loc[table["speaker"] != "0", "reference_dominance"] = np.nan
    truth, answers = (table[[f"{kind}_{name}" for name in SCALES]] for kind in KINDS)
    drawn = resample_values(truth, [answers], table["speaker"].tolist())
    assert drawn.by == "speaker" and drawn.units == 6 and drawn.units_of_dimension.tolist() == [6, 1, 6]
    entry = score_and_average(table, [], "test")[0]["corpus"]["dimensions"]["dominance"]
    own = score_and_average(table[table["speaker"] == "0"], [], "test")[0]["corpus"]["dimensions"]["dominance"]
    assert entry["ccc"] == pytest.approx(own["ccc"]) and entry["ccc_interval"] is None


def with_classes(table, every=4):
    """The same clips of a model that has two classes as well; every fourth clip has none."""
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=len(table))
    names = np.array(["a", "b"])
    references = names[rng.integers(2, size=len(table))].astype(object)
    references[::every] = ""
    found = {"reference": references, "prediction": names[(probability < 0.5).astype(int)]}
    return table.assign(**found, probability_a=probability, probability_b=1 - probability)


def test_a_model_of_both_has_both_and_clips_without_a_class_count_for_dimensions_alone():
    table = with_classes(values_table())
    corpora, average = score_and_average(table, ["a", "b"], "test")
    entry = corpora["corpus"]
    assert entry["clips"] == 45 and entry["dimensions"]["arousal"]["clips"] == 60
    labelled = table[table["reference"] != ""].drop(columns=[f"{k}_{n}" for k in KINDS for n in SCALES])
    without, _ = score_and_average(labelled, ["a", "b"], "test")
    assert entry["uar"] == without["corpus"]["uar"] and {"uar", "ccc"} <= average.keys()
    assert {"uar", "ccc", "dimensions"} <= groups(table, ["a", "b"])["sex"]["female"].keys()
    alone = score_and_average(table.assign(reference=""), ["a", "b"], "test")
    assert alone[0]["corpus"]["uar"] is None and alone[0]["corpus"]["ccc"] == entry["ccc"] and plain(alone[0])


def test_a_model_of_both_is_reported_on_clips_without_a_class(tmp_path):
    table = with_classes(values_table()).assign(reference="")
    systems = {"m": described(table, ["a", "b"])}
    write_predictions(tmp_path, systems["m"], table, "m")
    assert {path.name for path in tmp_path.glob("*.png")} == {"dimensions_corpus.png", "plane_corpus.png"}
    text = write_report(tmp_path, systems).read_text(encoding="utf-8")
    assert "- **Clips of one class only**: corpus (no class). " in text and "CCC" in text


def test_comparison_of_models_on_the_same_clips_and_on_other_scales():
    good, bad = values_table(skill=0.9, clips=300, speakers=20), values_table(skill=0.3, clips=300, speakers=20, seed=1)
    units = {name: [0, 1] for name in SCALES}
    same = values_table(skill=0.9, clips=300, speakers=20, scales=units)
    tables = {"bad": bad, "good": good, "same": same}
    pairs = compare(tables, [], {"bad": SCALES, "good": SCALES, "same": units})["pairs"]
    assert plain(pairs[0]) and [pair["models"] for pair in pairs] == [
        ["bad", "good"],
        ["bad", "same"],
        ["good", "same"],
    ]
    found = pairs[0]["ccc"]["corpora"]["corpus"]
    for name, entry in found["dimensions"].items():
        truth, answers = (good[[f"{kind}_{name}"]].to_numpy()[:, 0] for kind in KINDS)
        known = np.isfinite(truth)
        before = bad[f"predicted_{name}"].to_numpy()[known]
        expected = ccc_of(truth[known], answers[known]) - ccc_of(truth[known], before)
        assert entry["difference"] == pytest.approx(expected, abs=1e-9) and entry["difference"] > 0.2
        assert entry["interval"][0] > 0 and entry["p"] < 0.01
    assert pairs[1]["ccc"]["corpora"]["corpus"]["interval"] == pytest.approx(found["interval"], abs=1e-9)
    assert pairs[2]["ccc"]["average"]["difference"] == pytest.approx(0, abs=1e-9)


def test_models_are_compared_on_the_clips_that_have_what_both_answer():
    """A model of both has clips without a class, and some without a value, which others do not have."""
    table = with_classes(values_table(clips=120, speakers=12))
    table.loc[1:3, [f"reference_{name}" for name in SCALES]] = np.nan
    values = [f"{kind}_{name}" for kind in KINDS for name in SCALES]
    classes = table[table["reference"] != ""].drop(columns=values)
    (pair,) = compare({"both": table, "classes": classes}, ["a", "b"])["pairs"]
    assert pair["corpora"]["corpus"]["clips"] == 90 and pair["average"]["difference"] == 0
    alone = table.drop(index=[1, 2, 3], columns=["reference", "prediction", "probability_a", "probability_b"])
    (pair,) = compare({"both": table, "alone": alone}, [], {"both": SCALES, "alone": SCALES})["pairs"]
    assert pair["ccc"]["corpora"]["corpus"]["clips"] == 117 and pair["ccc"]["average"]["difference"] == 0


def test_models_of_other_clips_or_references_are_not_compared():
    table, scales = values_table(), {"a": SCALES, "b": SCALES}
    with pytest.raises(ValueError, match="a and b were not scored on the same clips: corpus/audio/"):
        compare({"a": table, "b": table[:-1]}, [], scales)
    other = table.assign(reference_valence=table["reference_valence"].where(table.index != 7, 2.0))
    with pytest.raises(ValueError, match=r"other references: corpus/audio/7.wav is .* for one and"):
        compare({"a": table, "b": other}, [], scales)


def described(table, class_names=()):
    model = {"model": "m", "split": "test", "parameters": {"total": 9, "trainable": 9}}
    return make_results(model, table, class_names, dimensions=SCALES)


def headings(path: Path) -> list[str]:
    return re.findall("^## (.*)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_report_of_dimensions_alone_speaks_of_no_classes(tmp_path):
    tables = {"a": values_table(speakers=3), "b": values_table(seed=2, speakers=3)}
    systems = {name: described(table) for name, table in tables.items()}
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name, systems[name], table, name)
    comparison = compare(tables, [], {"a": SCALES, "b": SCALES})
    path = write_report(tmp_path, systems, folders={"a": "a", "b": "b"}, comparison=comparison)
    assert headings(path) == ["What was evaluated", "Dimensions", "By sex", "Comparison of dimensions"]
    text = path.read_text(encoding="utf-8")
    assert "UAR" not in text and "- **Fewer than 5 speakers**: corpus (3). " in text
    entry = systems["a"]["corpora"]["corpus"]["dimensions"]["arousal"]
    assert f"{entry['ccc']:.3f} [{entry['ccc_interval'][0]:.3f}, {entry['ccc_interval'][1]:.3f}]" in text
    assert f"{entry['rmse']:.3f} [" in text and "1 to 7" in text
    shown = [tmp_path / target for target in re.findall(r"\]\(([^)]+)\)", text)]
    assert len(shown) == 4 and all(picture.is_file() for picture in shown)
    assert not list(tmp_path.glob("*/confusion_*")) and not (tmp_path / "uars.png").exists()
    assert dimension_text(systems["a"]["corpora"]["corpus"]).startswith(
        f"{systems['a']['average']['ccc']:.3f} (arousal "
    )


def test_pictures_have_a_panel_for_each_dimension_with_its_ccc_and_what_is_outside_the_scale(tmp_path):
    table = values_table()
    panels = {name: table[[f"reference_{name}", f"predicted_{name}"]].dropna().to_numpy().copy() for name in SCALES}
    panels["arousal"][0] = 2.0, 9.5
    figure = plots.plot_dimensions(tmp_path / "d.png", panels, SCALES, dict.fromkeys(SCALES, 0.5), "title")
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == [f"{name}: CCC 0.500" for name in SCALES]
    assert figure.axes[0].get_ylim()[1] > 9.5 and figure.axes[0].get_xlim() == figure.axes[0].get_ylim()
    one = plots.plot_dimensions(
        tmp_path / "e.png", {"arousal": panels["arousal"][:1]}, SCALES, {"arousal": None}, "one"
    )
    assert one.axes[0].get_title() == "arousal: CCC not defined"
    plots.plot_plane(tmp_path / "p.png", panels["arousal"], panels["valence"], SCALES, "title")
    plots.plot_plane(tmp_path / "q.png", panels["arousal"][:1], panels["valence"][:1], SCALES, "one clip")


def make_model(seed: int, heard: list[np.ndarray] | None = None, **options):
    config = ExHuBERTConfig(**{**SMALL, **HUBERT_KINDS["large"], "num_hidden_layers": 2}, **options)
    torch.manual_seed(seed)
    model = ExHuBERTForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Models of dimensions alone, of both and of classes alone, and an annotated corpus and one without."""
    folder = tmp_path_factory.mktemp("dimensions")
    rng = np.random.default_rng(0)
    drawn = {name: np.round(rng.uniform(1, 7, 48), 2) for name in SCALES}
    parts = ["train", "train", "validation", "test", "test", "test", "test", "test"]
    options = {"speakers": [str(number) for number in range(8)], "split": lambda row: parts[row // 6]}
    rated = {name: (lambda row, of=name: "" if row % 7 == 0 else f"{drawn[of][row]}") for name in SCALES}
    write_corpus(folder / "rated", seconds=0.9, **options, **rated)
    write_corpus(folder / "unrated", **options)
    alone = {"dimensions": SCALES, "problem_type": "regression"}
    units = {"dimensions": {name: [0, 1] for name in ("arousal", "valence")}, "problem_type": "regression"}
    for seed, (name, kind) in enumerate(
        {"alone": alone, "units": units, "both": {"dimensions": SCALES}, "classes": {}}.items()
    ):
        save_model_folder(make_model(seed, **kind), folder / name, window_seconds=0.8)
    return folder


def command(place: Path, output: Path, models: tuple[str, ...], corpora: tuple[str, ...], *options: str) -> list[str]:
    names = [str(place / name) for name in models]
    scales = ("--scales", "{arousal: [1, 7], dominance: [1, 7], valence: [1, 7]}")
    folders = [str(place / name) for name in corpora]
    return ["--model", *names, "--names", *models, "--corpora", *folders, "--output", str(output), *scales, *options]


def test_models_of_dimensions_alone_are_evaluated_and_compared_across_scales(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_hf, "CONDITIONS", ("noise 0 dB",))
    assert evaluate_hf.main(command(place, tmp_path, ("alone", "units"), ("rated",), "--robustness")) == 0
    printed = capsys.readouterr().out
    assert "| rated" in printed and "UAR" not in printed
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert results["classes"] == [] and results["dimensions"] == SCALES and "uar" not in results["average"]
    assert results["robustness"]["noise 0 dB"]["average"].keys() == {"ccc", "ccc_interval"}
    table = pandas.read_parquet(tmp_path / "alone" / "predictions.parquet")
    assert "prediction" not in table and len(table) == 26  # without those that have no reference
    # A clip's value is the mean over its windows, on the scale; references are those of metadata.csv.
    model = ExHuBERTForSequenceClassification.from_pretrained(place / "alone").eval()
    metadata = pandas.read_csv(place / "rated" / "metadata.csv").set_index("file_name")
    row = table.iloc[3]
    samples = read_audio(place / "rated" / row["file_name"])
    assert row["windows"] == 2
    windows = [prepare_input(piece, 0.8) for piece in (samples[:12_800], samples[6_400:])]
    with torch.no_grad():
        raw = model(torch.from_numpy(np.stack(windows))).logits.double().mean(dim=0).numpy()
    assert row[[f"predicted_{name}" for name in SCALES]].tolist() == pytest.approx((1 + 6 * raw).tolist(), abs=1e-4)
    expected = metadata.loc[table["file_name"], list(SCALES)].to_numpy()
    found = table[[f"reference_{name}" for name in SCALES]].to_numpy(dtype=float)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    pair = json.loads((tmp_path / "comparison.json").read_text())["pairs"][0]
    assert "corpora" not in pair and pair["ccc"]["average"]["dimensions"].keys() == {"arousal", "valence"}
    assert "Robustness of dimensions" in headings(tmp_path / "report.md")


def test_a_model_of_both_beside_one_of_classes(place, tmp_path):
    assert evaluate_hf.main(command(place, tmp_path, ("both", "classes"), ("rated", "unrated"), "--calibrate")) == 0
    results = json.loads((tmp_path / "both" / "results.json").read_text())
    assert results["corpora"]["unrated"]["ccc"] is None and results["average"]["without_ccc"] == ["unrated"]
    rated = pandas.read_parquet(tmp_path / "both" / "predictions.parquet").query("corpus == 'rated'")
    right = (rated["prediction"] == rated["reference"])[rated["reference"] != ""]
    assert results["corpora"]["rated"]["uar"] == pytest.approx(right.groupby(rated["reference"]).mean().mean())
    pairs = [rated[[f"reference_{name}", f"predicted_{name}"]].dropna().to_numpy(float).T for name in SCALES]
    cccs = [2 * np.cov(a, b, ddof=0)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2) for a, b in pairs]
    assert results["corpora"]["rated"]["ccc"] == pytest.approx(np.mean(cccs))
    assert results["calibration"]["clips"] == 12
    pair = json.loads((tmp_path / "comparison.json").read_text())["pairs"][0]
    assert "ccc" not in pair and set(pair["corpora"]) == {"rated", "unrated"}
    of_classes = json.loads((tmp_path / "classes" / "results.json").read_text())
    assert "dimensions" not in of_classes and "ccc" not in of_classes["corpora"]["rated"]
    assert {"UAR", "Dimensions", "Arousal and valence"} <= set(headings(tmp_path / "report.md"))
    assert "- **Not annotated**: unrated (arousal), " in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("models", "corpora", "options", "message"),
    [
        (("alone",), ("rated",), ("--calibrate",), "alone has no classes, whose probabilities --calibrate fits"),
        (("alone",), ("unrated",), (), "values are never invented from class words"),
        (("alone",), ("rated",), ("--scales", "[1, 7]"), "--scales is [1, 7]; a table such as"),
        (("alone",), ("rated",), ("--scales", "{arousal: [1, 2], valence: [1, 7]}"), "outside its scale, 1 to 2"),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(place, tmp_path, capsys, models, corpora, options, message):
    arguments = command(place, tmp_path / "out", models, corpora, *options)
    assert run_with_one_line_errors(lambda: evaluate_hf.main(arguments)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_the_card_has_scale_and_meaning_and_metrics_of_regression(place, tmp_path):
    alone, both, classes = (str(make_card(place / name)) for name in ("alone", "both", "classes"))
    assert "## Dimensions" in alone and "## Classes" not in alone and 'print(result["dimensions"])' in alone
    assert 'result["label"]' not in alone and "| arousal   | 1 (calm, passive)" in alone
    assert "## Dimensions" in both and "## Classes" in both and 'print(result["label"])' in both
    assert "imension" not in classes
    results = described(pandas.concat([values_table(), values_table("one", 1)], ignore_index=True))
    recipe = {"labels": "none", "targets": list(SCALES), "dimension_loss": "ccc", "protocol": "auto"}
    recipe["scales"] = {"arousal": [1, 7]}
    facts = run_facts(place / "alone", {}, results, {**recipe, "training": {}}, {})
    text = str(make_card(place / "alone", **facts))
    metrics = [(each.metric_type, each.metric_name, each.metric_value) for each in facts["metadata"]["eval_results"]]
    entry = results["corpora"]["corpus"]["dimensions"]["valence"]
    assert ("ccc", "CCC of valence", round(entry["ccc"], 4)) in metrics
    assert {each.task_type for each in facts["metadata"]["eval_results"]} == {"audio-classification"}
    assert facts["metadata"]["metrics"] == ["ccc", "pearsonr", "rmse"]
    assert "| dimension_loss" in text and "UAR" not in text and "concordance correlation" in text
    assert "--scales '{\"arousal\": [1, 7]}'" in text
    assert len(results_tables(results)) == 2 and "NaN" not in text and " nan" not in text
