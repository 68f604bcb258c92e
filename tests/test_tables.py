"""Tables as people save them, datasets of several corpora, and `check` on all that is read.

python -m pytest tests/test_tables.py
"""

from __future__ import annotations

import datasets
import pandas
import pytest
from datasets import Audio, Dataset, DatasetDict
from test_prepare import prepare, read_rows

from conftest import refused
from exhubert.cli import main
from exhubert.corpora.check import find_all
from exhubert.corpora.load import load_corpora
from exhubert.corpora.readers import read_corpus
from exhubert.corpora.splits import SPLITS


@pytest.mark.parametrize(
    ("separator", "first", "encoding"),
    [
        (";", "", "utf-8"),
        (";", "sep=;\r\n", "utf-8-sig"),
        ("^", "sep=^\n", "utf-8"),
        ("\t", "", "utf-16"),  # Excel's "Unicode text"
        ("|", "", "utf-8"),
        (",", "", "utf-8-sig"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "mine.tsv"])
def test_tables_are_read_whatever_separates_their_columns(make_corpus, name, separator, first, encoding):
    folder = make_corpus(note=lambda row: "a, b | c;\td")
    expected = read_corpus(folder).to_list()
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    (folder / "metadata.csv").unlink()
    text = first + table.to_csv(index=False, sep=separator)
    (folder / name).write_bytes(text.encode(encoding))
    source = folder if name.startswith("metadata") else folder / name
    assert read_corpus(source).to_list() == expected
    assert find_all(source)[0].empty
    assert list(load_corpora([str(source)])[0]) == ["corpus" if source == folder else "mine"]


def test_seconds_may_have_a_decimal_comma_where_commas_do_not_separate(make_corpus):
    folder = make_corpus(start_seconds=lambda row: "0,25", duration_seconds=lambda row: "0,125")
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    table.to_csv(folder / "metadata.csv", index=False, sep=";")
    assert set(read_corpus(folder)["start_seconds"]) == {0.25}
    table.to_csv(folder / "metadata.csv", index=False)
    with pytest.raises(ValueError, match="needs a number, 0 or more, as start_seconds"):
        read_corpus(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file_name:label:speaker\na.wav:joy:1\n",
            "(it seems to be separated by ':'; commas, semicolons, tabs and | are",
        ),
        ("name;text\na.wav;joy\n", "it has name, text (it seems to be separated by ';')"),
        ("name\na.wav\n", "it has name"),
    ],
)
def test_a_table_without_its_columns_says_how_it_seems_to_be_separated(tmp_path, capsys, text, message):
    for name, source in (("metadata.csv", tmp_path), ("mine.csv", tmp_path / "mine.csv")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError) as error:
            read_corpus(source)
        assert message in str(error.value)
        assert message in refused(capsys, main, "corpora", "check", source)


def test_backslashes_separate_folders_for_check_and_training_alike(make_corpus):
    folder = make_corpus()
    text = (folder / "metadata.csv").read_text()
    for written in ("audio\\", ".\\audio\\"):
        (folder / "metadata.csv").write_text(text.replace("audio/", written))
        assert find_all(folder)[0].empty
        assert sum(map(len, load_corpora([str(folder)])[0]["corpus"].values())) == 24


def test_prepare_takes_such_a_table(make_corpus, tmp_path):
    folder = make_corpus("raw")
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    table.to_csv(tmp_path / "labels.csv", index=False, sep=";", encoding="utf-16")
    assert prepare("mine", folder, tmp_path / "out", "--table", tmp_path / "labels.csv") == 0
    assert len(read_rows(tmp_path / "out")) == 24


def dataset_of(folder) -> Dataset:
    """A corpus with its audio in it."""
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    audio = [{"bytes": (folder / name).read_bytes(), "path": name} for name in table["file_name"]]
    columns = {"audio": audio, "label": list(table["label"]), "speaker": list(table["speaker"])}
    return Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))


def test_parts_that_are_corpora_are_asked_for(make_corpus, tmp_path, monkeypatch):
    part = dataset_of(make_corpus())
    DatasetDict({"cafe": part, "crema_d": part}).save_to_disk(tmp_path / "cameo")
    with pytest.raises(ValueError) as error:
        read_corpus(tmp_path / "cameo")
    assert str(error.value).endswith(
        "its parts are not train, validation, test; name those that are wanted as corpora of their own: "
        f"{tmp_path}/cameo/cafe {tmp_path}/cameo/crema_d"
    )
    corpora, _ = load_corpora([str(tmp_path / "cameo" / name) for name in ("cafe", "crema_d")])
    assert list(corpora) == ["cafe", "crema_d"]

    def on_the_hub(name, config, split=None):
        parts = DatasetDict({"cafe": part, "train": part})
        return parts[split] if split else parts

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", on_the_hub)
    with pytest.raises(ValueError, match=r"of their own: user/name:all/cafe user/name:all/train$"):
        read_corpus("user/name:all")
    assert len(read_corpus("user/name:all/cafe")) == len(read_corpus("user/name/cafe")) == 24
    assert list(load_corpora(["user/name/cafe"])[0]) == ["cafe"]


def test_parts_with_other_names_of_splits_are_splits(make_corpus, tmp_path):
    part = dataset_of(make_corpus())
    parts = {
        "Training": part.select(range(12)),
        "dev": part.select(range(12, 18)),
        "testing": part.select(range(18, 24)),
    }
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    splits = load_corpora([str(tmp_path / "saved")])[0]["saved"]
    assert [len(splits[split]) for split in SPLITS] == [12, 6, 6]


def test_check_takes_plain_tables_and_datasets_with_their_audio(make_corpus, tmp_path):
    folder = make_corpus()
    bad = folder / "audio/01_anger_0.wav"
    bad.write_bytes(b"no audio")
    dataset_of(folder).save_to_disk(tmp_path / "saved")
    table = pandas.read_csv(folder / "metadata.csv", dtype=str).rename(
        columns={"file_name": "path", "label": "emotion"}
    )
    table.drop(columns="speaker").to_csv(folder / "mine.csv", index=False)
    for source in (folder / "mine.csv", tmp_path / "saved"):
        findings, clips = find_all(source)
        assert list(findings["problem"]) == ["does not decode"]
        assert findings["file_name"].item().endswith(bad.name)
        assert len(clips) == 24


def test_check_takes_audformat(make_corpus):
    audformat = pytest.importorskip("audformat", reason="needs audformat: pip install audformat")
    folder = make_corpus("database")
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    (folder / "metadata.csv").unlink()
    database = audformat.Database("mini")
    database["emotion"] = audformat.Table(audformat.filewise_index(list(table["file_name"])))
    for column in ("emotion", "speaker"):
        database["emotion"][column] = audformat.Column()
        database["emotion"][column].set(list(table["label" if column == "emotion" else column]))
    database.save(folder)
    assert find_all(folder)[0].empty
    (folder / table["file_name"][0]).unlink()
    assert list(find_all(folder)[0]["problem"]) == ["missing"]
    assert main(["corpora", "check", str(folder)]) == 2
