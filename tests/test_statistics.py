"""Tables and durations of corpora.

python -m pytest tests/test_statistics.py
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from PIL import Image

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora import statistics
from exhubert.corpora.statistics import corpus_statistics, statistics_markdown, write_statistics


def edit(folder: Path, change) -> None:
    path = folder / "metadata.csv"
    change(pandas.read_csv(path, dtype=str)).to_csv(path, index=False)


def tables(text: str) -> dict[str, dict[str, dict[str, str]]]:
    """Heading -> first cell of a row -> header -> cell."""
    read: dict[str, dict[str, dict[str, str]]] = {}
    heading, header = "", []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("#"):
            heading, header = line.lstrip("# "), []
            read[heading] = {}
        elif line.startswith("|-"):
            continue
        elif line.startswith("|") and not header:
            header = cells
        elif line.startswith("|"):
            read[heading][cells[0]] = dict(zip(header[1:], cells[1:], strict=True))
    return read


def test_tables_of_made_up_corpora(make_corpus):
    """a: 24 clips, half of them 0.5 s and half 0.6 s. b: 18 clips that say they last an hour."""
    a = make_corpus("a", seconds=0.5, split=lambda row: ["train", "validation", "test"][row % 3])
    b = make_corpus("b", labels=("joy", "Zest", "zest"), speakers=("01", "02", "03"), duration_seconds=lambda _: "3600")
    edit(b, lambda table: table.drop(columns="language"))
    found = tables(write_statistics([a, b]))
    assert found["Corpora"] == {
        "a": {
            "clips": "24",
            "speakers": "4",
            "hours": "0.00",
            "median seconds": "0.55",
            "labels": "3",
            "splits": "3",
            "languages": "xx",
        },
        "b": {
            "clips": "18",
            "speakers": "3",
            "hours": "18.00",
            "median seconds": "3600.00",
            "labels": "2",
            "splits": "-",
            "languages": "-",
        },
        "total": {
            "clips": "42",
            "speakers": "7",  # 01 of one corpus is not 01 of another
            "hours": "18.00",
            "median seconds": "0.60",
            "labels": "5",
            "splits": "3",
            "languages": "xx",
        },
    }
    classes = {name: [row[kind] for kind in (*SIX_CLASSES, "no class")] for name, row in found["Six classes"].items()}
    assert classes == {
        "a": ["8", "8", "0", "8", "0", "0", "0"],
        "b": ["0", "0", "0", "0", "0", "6", "12"],
        "total": ["8", "8", "0", "8", "0", "6", "12"],
    }
    assert found["Languages"] == {
        "xx": {"corpora": "1", "clips": "24", "hours": "0.00"},
        "unknown": {"corpora": "1", "clips": "18", "hours": "18.00"},
        "total": {"corpora": "2", "clips": "42", "hours": "18.00"},
    }
    assert found["Splits"]["a"] == {"train": "8", "validation": "8", "test": "8", "no split": "0"}
    assert found["Splits"]["total"] == {"train": "8", "validation": "8", "test": "8", "no split": "18"}


def test_without_language_and_split_those_tables_are_left_out(make_corpus):
    folder = make_corpus()
    edit(folder, lambda table: table.drop(columns="language").assign(speaker=""))
    found = tables(write_statistics([folder]))
    assert list(found) == ["Corpora", "Six classes", "Labels"]
    assert found["Corpora"]["corpus"]["speakers"] == "-"
    assert found["Labels"]["corpus"] == {"clips of each of its labels": "anger 8, neutral 8, sadness 8"}
    assert "no class" not in found["Six classes"]["total"]


def test_durations_come_from_the_metadata_and_where_it_has_none_from_headers(make_corpus):
    given = ["2.5", "", "0", "nonsense"]
    folder = make_corpus(duration_seconds=lambda row: given[row] if row < 4 else "1")
    (folder / "audio/01_neutral_0.wav").write_text("not audio")  # the third clip
    clips = corpus_statistics([folder])
    assert clips["seconds"][:4].tolist() == pytest.approx([2.5, 0.7, np.nan, 0.7], nan_ok=True)
    assert clips["seconds"][4:].eq(1).all()
    assert "1 of 24 clips do not open; `exhubert corpora check` names them" in statistics_markdown(clips)


def test_own_label_file(make_corpus, tmp_path):
    (tmp_path / "own.yaml").write_text("zest: {arousal: low, valence: neutral}\n")
    clips = corpus_statistics([make_corpus(labels=("zest", "joy", "awful"))], tmp_path / "own.yaml")
    assert Counter(clips["six_class"]) == {"low/neutral": 8, "high/positive": 8, "": 8}


def test_files_are_written_whole(make_corpus, tmp_path):
    output = tmp_path / "new" / "statistics"
    text = write_statistics([make_corpus()], output)
    assert sorted(path.name for path in output.iterdir()) == ["durations.png", "statistics.md"]
    written = (output / "statistics.md").read_text(encoding="utf-8")
    assert written == f"{text}\n\n![Durations of the clips](durations.png)\n"
    assert min(Image.open(output / "durations.png").size) > 500


def test_mistakes_are_explained(make_corpus, tmp_path):
    folders = [make_corpus("one/same"), make_corpus("two/same")]
    with pytest.raises(ValueError, match=r"two/same: the name 'same' is taken; rename the folder"):
        corpus_statistics(folders)
    with pytest.raises(ValueError, match="the name 'total' is taken"):
        corpus_statistics([make_corpus("total")])
    with pytest.raises(ValueError, match="nowhere"):
        write_statistics([tmp_path / "nowhere"], tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the last picture; nothing is written."""
    figures = []
    monkeypatch.setattr(statistics, "save_figure", lambda figure, path: figures.append(figure))
    return lambda: figures[-1]


def bars(figure) -> dict[float, float]:
    """Left edge of each bar -> height of the stack."""
    heights: dict[float, float] = defaultdict(float)
    for bar in figure.axes[0].patches:
        heights[round(bar.get_x(), 3)] += bar.get_height()
    return {edge: height for edge, height in heights.items() if height}


def test_the_picture_counts_every_clip_once(drawn):
    durations = {"a": [0.0, 0.1, 0.25, 5.99, 6.0, 700.0], "b": [0.1, np.nan]}
    statistics.plot_durations(Path("unused.png"), durations)
    assert bars(drawn()) == {0.0: 3, 0.25: 1, 5.75: 1, 6.5: 2}
    axes = drawn().axes[0]
    assert axes.get_title() == "Durations in 2 corpora: 7 clips, 0.2 hours, the longest 700.0 s"
    assert axes.get_xticklabels()[-1].get_text() == "6 or\nmore"
    assert [text.get_text() for text in axes.texts] == ["2"]


@pytest.mark.parametrize(("corpora", "entries"), [(1, 0), (9, 9), (10, 9), (43, 9)])
def test_the_legend_stays_short(drawn, corpora, entries):
    durations = {f"corpus {number}": np.linspace(1, 8, 10 * (number + 1)) for number in range(corpora)}
    statistics.plot_durations(Path("unused.png"), durations)
    names = [text.get_text() for legend in drawn().legends for text in legend.get_texts()]
    assert len(names) == entries
    assert sum(bars(drawn()).values()) == sum(map(len, durations.values()))
    if corpora == 43:
        assert {"corpus 42 (430)", "35 other corpora (6,300)"} <= set(names)


def test_pictures_of_nothing_and_of_long_clips_only(tmp_path):
    statistics.plot_durations(tmp_path / "nothing.png", {"a": [np.nan]})
    statistics.plot_durations(tmp_path / "long.png", {"a": [60.0] * 5})
    assert len(list(tmp_path.iterdir())) == 2


def test_real_corpora_are_counted_right(shared, tmp_path):
    """Counted again from the files, by other means."""
    names = ("emodb", "nemo")
    found = tables(write_statistics([shared / "corpora" / name for name in names], tmp_path))
    every = []
    for name in names:
        folder = shared / "corpora" / name
        with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        seconds = [soundfile.info(folder / row["file_name"]).duration for row in rows]
        every += seconds
        speakers, labels = ({row[column] for row in rows} for column in ("speaker", "label"))
        line = found["Corpora"][name]
        assert [line["clips"], line["speakers"], line["labels"]] == [str(len(x)) for x in (rows, speakers, labels)]
        assert line["hours"] == f"{sum(seconds) / 3600:.2f}"
        assert line["median seconds"] == f"{np.median(seconds):.2f}"
        happy = sum(row["label"] == "happiness" for row in rows)
        assert found["Six classes"][name]["high/positive"] == str(happy)
        assert sum(map(int, found["Six classes"][name].values())) == len(rows)
        assert found["Languages"][rows[0]["language"]]["clips"] == str(len(rows))
    assert found["Corpora"]["total"]["clips"] == f"{len(every):,}"
    assert found["Corpora"]["total"]["hours"] == f"{sum(every) / 3600:.2f}"
    assert "Splits" not in found


def test_dimensions_are_counted_on_their_scales(make_corpus, tmp_path, drawn):
    """Of 24 clips one has neither label nor arousal."""
    iemocap = make_corpus(
        "iemocap", arousal=lambda row: "" if not row else str(1 + row % 5), valence=lambda row: str(1 + row / 23)
    )
    edit(iemocap, lambda table: table.assign(label=table["label"].where(table.index > 0, "")))
    own = make_corpus("own", arousal=lambda row: str(row))
    text = write_statistics([iemocap, own, make_corpus("none")], tmp_path)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| arousal " in line]
    assert rows == [
        ["iemocap", "arousal", "1 to 5", "23", "3.00", "1.35", "1.00", "2.00", "3.00", "4.00", "5.00"],
        ["own", "arousal", "not known", "24", "11.50", "6.92", "0.00", "5.75", "11.50", "17.25", "23.00"],
    ]
    assert "| iemocap | valence   | 1 to 5 " in text
    found = tables(text)
    assert found["Labels"]["iemocap"] == {"clips of each of its labels": "neutral 8, sadness 8, anger 7, (none) 1"}
    assert found["Corpora"]["iemocap"]["labels"] == "3"
    arousal, valence = drawn().axes
    assert [arousal.get_title(), valence.get_title(), valence.get_xlim()] == ["arousal", "valence", (1.0, 5.0)]
    assert arousal.get_xlabel() == "low to high end of each one's scale"
    counted = [patch.get_data().values.sum() for patch in (*arousal.patches, *valence.patches)]
    assert counted == pytest.approx([100, 100, 100])
    assert "dimensions.png" in (tmp_path / "statistics.md").read_text()
    assert not statistics.plot_dimensions(tmp_path / "nothing.png", corpus_statistics([tmp_path / "none"]))
