"""Tables, pictures and the written report.

python -m pytest tests/test_reports.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.reports import plots, tables
from exhubert.reports.report import write_report

ROBUSTNESS = {
    condition: {"corpora": {"emodb": {"uar": uar}, "nemo": {"uar": uar}}, "average": {"uar": uar}}
    for condition, uar in (("clean", 0.5), ("noise 10 dB", 0.375), ("telephone", 0.5))
}
COMPARISON = {
    "pairs": [
        {
            "models": ["before", "after"],
            "corpora": {
                "emodb": {
                    "difference": 0.05,
                    "interval": [-0.01, 0.11],
                    "interval_by": "speaker",
                    "p": 0.12,
                    "clips": 100,
                },
                "nemo": {"difference": -0.0001, "interval": None, "interval_by": "clip", "p": 0.0002, "clips": 7},
            },
            "average": {"difference": 0.025, "interval": [-0.005, 0.055], "p": None},
        }
    ]
}
BINS = [
    {"low": 0.5, "high": 0.75, "clips": 30, "confidence": 0.6, "accuracy": 0.5},
    {"low": 0.75, "high": 1.0, "clips": 10, "confidence": 0.9, "accuracy": 0.7},
]


def results(uar: float = 0.5, corpora: tuple[str, ...] = ("emodb",), **more: object) -> dict[str, Any]:
    """What `results.json` holds, as far as the tests need it."""
    scores = {
        "split": "test",
        "clips": 1200,
        "speakers": 10,
        "uar": uar,
        "uar_interval": [uar - 0.1, uar + 0.1],
        "interval_by": "speaker",
        "accuracy": 0.6,
        "macro_f1": 0.4,
        "recall": {name: uar for name in ("low/neutral", "high/negative")},
    }
    every = {name: dict(scores) for name in corpora}
    parameters = {"total": 950_000, "trainable": 950_000}
    model = {"model": "runs/model", "parameters": parameters, "corpora": every, "average": {"uar": uar}}
    described = {"classes": list(SIX_CLASSES), "groups": {}, "seed": 0}
    return {**model, **described, "versions": {"torch": "2.9", "peft": "not installed"}, **more}


def lines(table: str) -> list[str]:
    """The cells of each line, without padding and rule."""
    return [line for line in re.sub(r" +", " ", table).splitlines() if not line.startswith("|-")]


def test_table_of_systems_and_corpora():
    uars = {"before": {"emodb": 0.25}, "after": {"emodb": 0.5, "nemo": 0.625}}
    table = tables.uar_table(uars, {"before": 311_492_486, "after": None}, {"emodb": 0.25, "nemo": 0.2})
    assert table.splitlines() == [
        "| UAR in % |    emodb | nemo | average | trainable |",
        "|----------|---------:|-----:|--------:|----------:|",
        "| chance   |     25.0 | 20.0 |    22.5 |         - |",
        "| before   |     25.0 |    - |       - |  311.49 M |",
        "| after    | **50.0** | 62.5 |    56.2 |         - |",
    ]


def test_all_that_print_as_the_best_are_bold_and_a_single_system_is_not():
    uars = {"a": {"x": 0.7004, "y": 0.1}, "b": {"x": 0.6996, "y": 0.2}, "c": {"x": 0.699, "y": 0.2}}
    assert lines(tables.uar_table(uars))[1:] == [
        "| a | **70.0** | 10.0 | 40.0 |",
        "| b | **70.0** | **20.0** | **45.0** |",
        "| c | 69.9 | **20.0** | **45.0** |",
    ]
    assert lines(tables.uar_table({"a": {"x": 0.7}}, chance={"x": 0.9}))[1:] == ["| chance | 90.0 |", "| a | 70.0 |"]


def test_many_corpora_stand_below_each_other():
    uars = {"a": {f"c{number}": 0.5 for number in range(37)}, "b": {f"c{number}": 0.25 for number in range(37)}}
    table = lines(tables.uar_table(uars, {"a": 1_000, "b": 2_000_000}))
    assert table[:2] == ["| UAR in % | a | b |", "| c0 | **50.0** | 25.0 |"]
    assert table[-2:] == ["| average | **50.0** | 25.0 |", "| trainable | 1,000 | 2.00 M |"]
    assert len(table) == 1 + 37 + 2


def test_a_name_with_a_bar_breaks_no_table():
    table = tables.uar_table({"a|b\nc": {"x|y": 0.5}, "d": {"x|y": 0.25}})
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("count", "text"),
    [(311_492_486, "311.49 M"), (950_000, "0.95 M"), (99_999, "99,999"), (0, "0"), (None, "-")],
)
def test_parameter_counts_read_as_in_the_paper(count, text):
    assert tables.parameter_count(count) == text


def test_scores_with_intervals_and_without():
    one = results(0.25, ("emodb", "nemo"))
    for scores in one["corpora"].values():  # of a single clip each
        scores.update(clips=1, speakers=0, uar_interval=None, interval_by=None)
    assert lines(tables.scores_table({"one": one})) == [
        "| corpus | UAR | accuracy | macro-F1 | clips |",
        "| emodb | 25.0 | 60.0 | 40.0 | 1 |",
        "| nemo | 25.0 | 60.0 | 40.0 | 1 |",
        "| average | 25.0 | - | - | - |",
    ]
    assert lines(tables.scores_table({"one": one, "other": results()})) == [
        "| corpus | system | UAR | accuracy | macro-F1 | clips | speakers | interval by |",
        "| emodb | one | 25.0 | 60.0 | 40.0 | 1 | - | - |",
        "| emodb | other | 50.0 [40.0, 60.0] | 60.0 | 40.0 | 1,200 | 10 | speaker |",
        "| nemo | one | 25.0 | 60.0 | 40.0 | 1 | - | - |",
        "| average | one | 25.0 | - | - | - | - | - |",  # the other lacks a corpus
    ]


def test_recall_is_in_the_order_of_the_classes():
    both = results(corpora=("emodb", "nemo"))
    both["corpora"]["nemo"]["recall"] = {"low/negative": 1.0, "low/neutral": 0.0}
    both["corpora"]["nemo"]["recall_interval"] = {"low/negative": [0.9, 1.0], "low/neutral": None}
    assert lines(tables.recall_table({"model": both})) == [
        "| corpus | low/negative | low/neutral | high/negative |",
        "| emodb | - | 50.0 | 50.0 |",
        "| nemo | 100.0 [90.0, 100.0] | 0.0 | - |",
    ]


def test_the_other_tables():
    group = {"corpora": ["emodb"], "clips": 9, "speakers": 0, "uar": 0.5, "uar_interval": None, "interval_by": "clip"}
    model = results(groups={"sex": {"female": group, "male": {**group, "uar": 0.75}}}, robustness=ROBUSTNESS)
    model["corpora"]["emodb"].update(arousal_uar=0.8, arousal_uar_interval=[0.7, 0.9], valence_uar=0.4)
    model["calibration"] = {
        "temperature": 1.5,
        "split": "validation",
        "clips": 30,
        "ece_before": 0.12,
        "ece_after": 0.034,
    }
    systems = {"model": model}
    assert lines(tables.group_table(systems, "sex"))[1:] == [
        "| female | 50.0 | 9 | clip | emodb |",
        "| male | 75.0 | 9 | clip | emodb |",
    ]
    assert lines(tables.arousal_valence_table(systems))[1:] == ["| emodb | 80.0 [70.0, 90.0] | 40.0 |"]
    assert lines(tables.robustness_table(systems)) == [
        "| corpus | clean | noise 10 dB | telephone |",
        "| emodb | 50.0 | 37.5 (-12.5) | 50.0 (+0.0) |",
    ]
    assert lines(tables.calibration_table(systems))[1:] == ["| model | 1.50 | validation, 30 clips | 12.0 | 3.4 |"]
    assert lines(tables.comparison_table(COMPARISON)) == [
        "| A | B | corpus | B - A in points | p | clips | interval by |",
        "| before | after | emodb | +5.0 [-1.0, +11.0] | 0.120 | 100 | speaker |",
        "| before | after | nemo | +0.0 | < 0.001 | 7 | clip |",
        "| before | after | average | +2.5 [-0.5, +5.5] | - | - | - |",
    ]
    for table in (tables.arousal_valence_table, tables.robustness_table, tables.calibration_table):
        assert table({"model": results()}) == ""


def test_chance_is_by_the_classes_that_occur():
    other = results(corpora=("emodb", "nemo"))
    other["corpora"]["nemo"]["recall"] = {"anger": 0.5}
    assert tables.chances({"a": results(), "b": other}) == {"emodb": 0.5}  # a single class has no UAR
    other["corpora"]["emodb"]["recall"] = {"anger": 0.5, "joy": 0.5, "neutral": 0.5}
    assert tables.chances({"a": results(), "b": other})["emodb"] is None


def is_picture(path: Path) -> bool:
    """Something is drawn there."""
    with Image.open(path) as picture:
        return picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 10


def test_pictures_are_written(tmp_path):
    points = [(1, 0.2), (2, 0.4)]
    plots.plot_confusion(tmp_path / "c.png", [0, 0, 1, 2], [0, 1, 1, 1], ["a", "b", "c"], "title")
    plots.plot_runs(tmp_path / "r.png", {"one": {"emodb": points}, "two": {"emodb": points, "nemo": points}})
    plots.plot_reliability(tmp_path / "e.png", {"without": BINS, "with": BINS}, "title")
    assert all(is_picture(path) for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3


def test_curves_of_a_training_have_chance_the_chosen_checkpoint_and_losses(tmp_path):
    points = [(1, 0.2), (2, 0.4)]
    losses = {"emodb": [(1, 1.5), (2, 1.0)], "training": [(1, 1.8)]}
    uars = dict.fromkeys(("emodb", "nemo", "average"), points)
    figure = plots.plot_curves(tmp_path / "c.png", uars, losses, {"emodb": 0.25, "nemo": 0.5}, 2, "run: 9 clips")
    left, right = figure.axes
    assert left.get_ylim() == (0, 100)
    level = [list(line.get_ydata()) for line in left.lines]
    assert [25, 25] in level and [50, 50] in level
    assert all([2, 2] in [list(line.get_xdata()) for line in axes.lines] for axes in (left, right))
    assert [list(line.get_ydata()) for line in right.lines[:2]] == [[1.5, 1.0], [1.8]]
    one, other = left.lines[:2]  # at the same place
    assert one.get_linewidth() > other.get_linewidth() and one.get_linestyle() != other.get_linestyle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["emodb", "nemo", "average", "training loss", "chance, of each corpus", "chosen checkpoint"]
    assert figure.get_suptitle() == "run: 9 clips" and is_picture(tmp_path / "c.png")


def test_a_condition_whose_interval_overlaps_the_clean_one_is_hollow(tmp_path):
    values = {"clean": (0.5, 0.45, 0.55), "noise 5 dB": (0.3, 0.25, 0.35), "telephone": (0.45, 0.4, 0.5)}
    scores = {name: {"uar": uar, "uar_interval": [low, high]} for name, (uar, low, high) in values.items()}
    figure = plots.plot_robustness(tmp_path / "n.png", {"one": scores}, 0.25, "9 clips")
    (axes,) = figure.axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, False, True]
    intervals = [segment[:, 1].tolist() for drawn in axes.collections for segment in drawn.get_segments()]
    assert np.allclose(intervals, [[45, 55], [25, 35], [40, 50]])
    assert axes.get_ylim() == (0, 100) and figure.get_suptitle() == "9 clips"
    assert is_picture(tmp_path / "n.png")


def test_curves_of_many_corpora_show_the_average_alone(tmp_path):
    points = {name: [(1, 0.2), (2, 0.4)] for name in (*(f"c{number}" for number in range(37)), "average")}
    figure = plots.plot_runs(tmp_path / "r.png", {"one": points, "two": points})
    assert [axes.get_title() for axes in figure.axes] == ["average"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_the_heat_map_frames_what_was_trained_on(tmp_path):
    uars = {"stage 1": {"emodb": 0.9, "nemo": 0.3}, "stage 2": {"nemo": 0.625}}
    figure = plots.plot_heat_map(tmp_path / "h.png", uars, {"stage 1": ["emodb", "cremad"]})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["emodb", "nemo"]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["stage 1\ntrained on emodb, cremad", "stage 2\ntrained on unknown corpora"]
    assert [[round(corner) for corner in frame.get_center()] for frame in axes.patches] == [[0, 0]]
    cells = {(round(x), round(y)): text for text in axes.texts for x, y in [text.get_position()]}
    assert {place: text.get_text() for place, text in cells.items()} == {
        (0, 0): "90.0",
        (1, 0): "30.0",
        (0, 1): "-",
        (1, 1): "62.5",
    }
    assert [cells[place].get_color() for place in ((0, 0), (1, 0))] == ["white", "black"]  # on dark, on light blue
    assert is_picture(tmp_path / "h.png")


@pytest.mark.parametrize(("corpora", "systems", "panels"), [(1, 1, 1), (4, 20, 2), (37, 2, 2)])
def test_points_of_all_systems_find_room(corpora, systems, panels, tmp_path):
    names = [f"the corpus with the long name number {number}" for number in range(corpora)]
    scores = {"uar": 0.5, "uar_interval": [0.4, 0.6]}
    points = {f"ExHuBERT Large Non-Frozen, EmoSet++, run {n}": dict.fromkeys(names, scores) for n in range(systems)}
    figure = plots.plot_uars(tmp_path / "u.png", points, dict.fromkeys(names, 0.25))
    assert is_picture(tmp_path / "u.png")
    assert len(figure.axes) == panels
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [legend.get_window_extent() for legend in figure.legends]
    assert not any(one.padded(-2).overlaps(two) for number, one in enumerate(boxes) for two in boxes[:number])
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    shown = sum(len(axes.get_yticklabels()) for axes in figure.axes)
    assert shown == corpora


def test_clip_counts_stand_beside_the_corpora(tmp_path):
    scores = {"uar": 0.5, "uar_interval": [0.4, 0.6]}
    points = {"one": {"emodb": {**scores, "clips": 1234}, "average": scores}}
    (axes,) = plots.plot_uars(tmp_path / "u.png", points, {}).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["emodb (1,234 clips)", "average"]


def test_the_reliability_plot_says_the_calibration_error(tmp_path):
    figure = plots.plot_reliability(tmp_path / "r.png", {"": BINS}, "model")
    assert [axes.get_title() for axes in figure.axes] == ["ECE 12.5 %", ""]  # (3 * 10 + 1 * 20) / 4
    assert [bar.get_height() for bar in figure.axes[0].patches] == [50.0, 70.0]


def links(report: Path) -> list[str]:
    return [unquote(target) for target in re.findall(r"\]\(([^)]+)\)", report.read_text(encoding="utf-8"))]


def test_the_report_of_one_model_has_no_section_without_data(tmp_path):
    path = write_report(tmp_path, {"model": results()}, curves={"model": {}})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Evaluation of model on emodb\n")
    assert re.findall("^## (.*)", text, flags=re.MULTILINE) == [
        "What was evaluated",
        "UAR",
        "Scores on each corpus",
        "Recall of each class",
    ]
    assert links(path) == ["uars.png"]
    assert "bold" not in text and "- versions: torch 2.9\n" in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.md", "uars.png"]


def test_the_report_of_several_models_links_what_is_there(tmp_path):
    corpora = ("emodb", "nemo")
    systems = {name: results(uar, corpora, robustness=ROBUSTNESS) for name, uar in (("before", 0.5), ("after", 0.25))}
    folders = {"before": "0 before (1)", "after": "1_after"}
    for folder in folders.values():
        (tmp_path / folder).mkdir()
        for name in ("confusion_emodb.png", "reliability.png"):
            plots.plot_runs(tmp_path / folder / name, {"a": {name: [(0, 0.0)]}})
    points = {"nemo": [(1, 0.2), (2, 0.4)]}
    path = write_report(
        tmp_path,
        systems,
        facts={"date": "2024-09-01"},
        folders=folders,
        comparison=COMPARISON,
        curves={"before": points, "after": points},
        trained_on={"before": ["emodb"]},
    )
    found = links(path)
    assert len(found) == 4 + 4
    assert all(is_picture(tmp_path / target) for target in found)
    text = path.read_text(encoding="utf-8")
    assert "- date: 2024-09-01\n" in text
    for heading in ("Comparison", "Training and test corpora", "Training", "Robustness", "Calibration"):
        assert f"\n## {heading}\n" in text
    assert "| before" in text and "| **50.0** |" in text


def test_the_report_warns_where_numbers_rest_on_little(tmp_path):
    model = results(corpora=("emodb", "nemo", "cremad"))
    model["corpora"]["emodb"].update(speakers=2, interval_by="clip")
    model["corpora"]["nemo"].update(speakers=0, interval_by="clip")
    model["corpora"]["cremad"]["recall"] = dict.fromkeys(SIX_CLASSES, 0.5)
    text = write_report(tmp_path, {"model": model}).read_text(encoding="utf-8")
    absent = "low/negative, low/positive, high/neutral, high/positive"
    assert "- **Fewer than 5 speakers**: emodb (2). " in text
    assert "- **Intervals by clip**: emodb, nemo (speakers unknown). " in text
    assert f"- **No clip of a class**: emodb ({absent}), nemo ({absent}). " in text


def test_long_tables_are_folded(tmp_path):
    path = write_report(tmp_path, {"model": results(corpora=tuple(f"c{number}" for number in range(45)))})
    assert path.read_text(encoding="utf-8").count("<details>") == 2  # scores, recall


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the results of at least one model"):
        write_report(tmp_path, {})
    assert not list(tmp_path.iterdir())
