"""audformat databases as corpora: files, segments, tables that agree or do not, no pickles.

python -m pytest tests/test_audformat.py
"""

from __future__ import annotations

import sys

import pandas
import pytest

from conftest import hertz, write_steps
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.training.collator import AudioCollator


@pytest.fixture
def audformat():
    return pytest.importorskip("audformat", reason="needs audformat: pip install audformat")


def add_table(audformat, database, name, index, **columns) -> None:
    table = database[name] = audformat.Table(index)
    for column, values in columns.items():
        scheme = column if column in database.schemes else None
        table[column] = audformat.Column(scheme_id=scheme)
        table[column].set(values)


@pytest.fixture
def database(audformat):
    """Six files, two of each speaker, with emotions as letters and the speaker in a table of its own."""
    database = audformat.Database("mini")
    database.schemes["emotion"] = audformat.Scheme(labels={"W": "anger", "F": "joy"})
    database.schemes["speaker"] = audformat.Scheme("int", labels={number: {"sex": "female"} for number in (3, 8, 9)})
    files = audformat.filewise_index([f"wav/{number}.wav" for number in range(6)])
    add_table(audformat, database, "files", files, speaker=[3, 3, 8, 8, 9, 9])
    add_table(audformat, database, "emotion", files, emotion=list("WFWFWF"), confidence=[0.5] * 6)
    return database


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_an_audformat_database_of_files(audformat, database, tmp_path, form):
    files = database["files"].index
    for name, part in (("train", files[:2]), ("dev", files[2:4]), ("test", files[4:])):
        add_table(audformat, database, f"categories.{name}.gold", part, emotion=["F", "F"])  # `emotion` counts
    for file in files:
        write_steps(tmp_path / "db" / file, 1)
    database.save(tmp_path / "db", storage_format=form)
    dataset = check_audio(read_corpus(tmp_path / "db"))
    assert list(dataset["file_name"]) == list(files)
    assert list(dataset["label"]) == ["anger", "joy"] * 3
    assert list(dataset["speaker"]) == list("338899")
    assert list(dataset["split"]) == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert [float(value) for value in dataset["confidence"]] == [0.5] * 6
    assert "start_seconds" not in dataset.column_names


def test_an_audformat_database_of_segments(audformat, tmp_path):
    database = audformat.Database("talks")
    index = audformat.segmented_index(["a.wav", "a.wav", "b.wav"], ["0s", "1s", "2s"], ["1s", "2.5s", pandas.NaT])
    add_table(audformat, database, "turns", index, emotion=["anger", "joy", "fear"])
    add_table(audformat, database, "files", audformat.filewise_index(["a.wav", "b.wav"]), speaker=["x", "y"])
    database.save(tmp_path / "db")
    for name in "ab":
        write_steps(tmp_path / "db" / f"{name}.wav", 4)
    dataset = check_audio(read_corpus(tmp_path / "db"))
    assert list(dataset["speaker"]) == ["x", "x", "y"]
    assert list(dataset["start_seconds"]) == [0, 1, 2]
    assert list(dataset["duration_seconds"]) == [1, 1.5, None]
    batch = AudioCollator(ExHuBERTFeatureExtractor(1.0))([{**row, "labels": 0} for row in dataset])
    assert [hertz(samples) for samples in batch["input_values"].numpy()] == [100, 200, 300]


def test_audformat_tables_are_put_together_where_they_agree(audformat, tmp_path):
    database = audformat.Database("parts")
    for name, numbers in (("one.train", (0, 1)), ("two.test", (1, 2))):
        index = audformat.filewise_index([f"{number}.wav" for number in numbers])
        add_table(audformat, database, name, index, emotion=[f"word {number}" for number in numbers])
    with pytest.raises(ValueError, match=r"1\.wav is in the tables of two splits"):
        database.save(tmp_path / "db")
        read_corpus(tmp_path / "db")
    add_table(audformat, database, "two.test", audformat.filewise_index(["1.wav"]), emotion=["other"])
    database.save(tmp_path / "db")
    with pytest.raises(ValueError, match=r"one\.train, two\.test have different labels for 1\.wav \(word 1, other\)"):
        read_corpus(tmp_path / "db")
    add_table(audformat, database, "two.test", audformat.filewise_index(["2.wav"]), emotion=["other"])
    database.save(tmp_path / "db")
    dataset = read_corpus(tmp_path / "db")
    assert list(dataset["split"]) == ["train", "train", "test"]
    assert set(dataset["speaker"]) == {""}


def test_unclear_audformat_databases_name_the_choices(audformat, database, tmp_path):
    database.save(tmp_path / "db")
    text = (tmp_path / "db" / "db.yaml").read_text()
    for change, message in (
        (lambda text: "a: [", "is not YAML"),
        (lambda text: text + "\nx: !!python/object/apply:os.getcwd []", "is not YAML"),
        (lambda text: "name: x", "the database cannot be read"),
    ):
        (tmp_path / "db" / "db.yaml").write_text(change(text))
        with pytest.raises(ValueError, match=message):
            read_corpus(tmp_path / "db")
    add_table(audformat, database, "emotion", database["files"].index, mood=["W"] * 6)
    database.save(tmp_path / "db")
    with pytest.raises(ValueError, match=r"no table with .* `emotion`; it has emotion \(mood\); files \(spe"):
        read_corpus(tmp_path / "db")
    for column in ("first", "second"):
        database["emotion"][column] = audformat.Column(scheme_id="emotion")
        database["emotion"][column].set(list("WFWFWF"))
    database.save(tmp_path / "db")
    with pytest.raises(ValueError, match="table emotion has several columns of emotions: first, second"):
        read_corpus(tmp_path / "db")


def test_pickled_audformat_tables_are_not_read(database, tmp_path):
    database.save(tmp_path / "db", storage_format="pkl")
    with pytest.raises(ValueError, match=r"db\.[a-z]+\.pkl: pickles are not read; save the table as csv or parquet"):
        read_corpus(tmp_path / "db")


def test_without_audformat_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "audformat", None)
    (tmp_path / "db.yaml").write_text("name: x")
    with pytest.raises(ValueError, match=r"needs the library audformat: pip install audformat \(or exhubert\[audfo"):
        read_corpus(tmp_path)
