"""Readers: corpus folders of every form as one kind of dataset, parts of files, and what is said of bad ones.

python -m pytest tests/test_readers.py
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pandas
import pytest

from conftest import hertz, write_steps
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor, read_audio
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.training.collator import AudioCollator


def edit(folder, change) -> None:
    """Rewrites metadata.csv by `change`, a function of its table."""
    path = folder / "metadata.csv"
    change(pandas.read_csv(path, dtype=str)).to_csv(path, index=False)


def drop(column):
    return lambda table: table.drop(columns=column)


def first(column, value):
    def change(table):
        table.loc[0, column] = value
        return table

    return change


def write_manifest(folder, text: str | bytes, name: str = "metadata.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_corpus_is_read_with_its_own_words(make_corpus):
    dataset = read_corpus(make_corpus())
    assert len(dataset) == 24
    assert dataset[0]["speaker"] == "01"  # not the number 1
    assert dataset[0]["language"] == "xx"
    assert dataset[0]["audio"]["bytes"] is None
    assert dataset[0]["audio"]["path"].endswith(dataset[0]["file_name"])


@pytest.mark.parametrize("form", ["jsonl", "parquet", "plain csv", "csv with a byte order mark"])
def test_other_forms_of_metadata_read_the_same(make_corpus, form):
    folder = make_corpus()
    expected = read_corpus(folder).to_list()
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    (folder / "metadata.csv").unlink()
    source = folder
    if form == "jsonl":
        table.to_json(folder / "metadata.jsonl", orient="records", lines=True)
    elif form == "parquet":
        table.to_parquet(folder / "metadata.parquet")
    elif form == "plain csv":
        source = folder / "mine.csv"
        table.rename(columns={"file_name": "path", "label": "emotion", "speaker": "spk"}).to_csv(source, index=False)
    else:
        table.to_csv(folder / "metadata.csv", index=False, encoding="utf-8-sig")
    assert [dict(sorted(row.items())) for row in read_corpus(source).to_list()] == [
        dict(sorted(row.items())) for row in expected
    ]


def test_a_plain_csv_needs_no_speakers(make_corpus):
    folder = make_corpus()
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    table[["file_name", "label"]].to_csv(folder / "mine.csv", index=False)
    assert set(read_corpus(folder / "mine.csv")["speaker"]) == {""}
    table[["file_name"]].to_csv(folder / "mine.csv", index=False)
    with pytest.raises(ValueError, match=r"mine\.csv: no column label or emotion; it has file_name"):
        read_corpus(folder / "mine.csv")
    with pytest.raises(ValueError, match=r"a folder or a file \.csv, \.tsv, \.jsonl or \.parquet is needed"):
        read_corpus(folder / "audio" / "01_anger_0.wav")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("speaker"), "no column 'speaker'; it has file_name, label, language"),
        (drop("label"), "no column 'label'"),
        (lambda table: table.iloc[:0], "has no rows"),
        (first("file_name", "../secret.wav"), r"row 1: file_name '\.\./secret\.wav' must be a path inside"),
        (first("file_name", "audio/../../secret.wav"), "must be a path inside"),
        (first("file_name", "/etc/passwd"), "must be a path inside"),
        (first("file_name", "C:\\secret.wav"), "must be a path inside"),
        (first("file_name", "\\\\host\\secret.wav"), "must be a path inside"),
        (first("file_name", "audio\\..\\..\\secret.wav"), "must be a path inside"),
        (first("file_name", "https://host/secret.wav"), "must be a path inside"),
        (first("file_name", ""), "must be a path inside"),
        (first("label", ""), "has no label"),
        (
            lambda table: pandas.concat([table, table.iloc[:1]]),
            r"01_anger_0\.wav stands there more than once, as 'anger'",
        ),
        (
            lambda table: pandas.concat([table, table.iloc[:1].assign(label="joy")]),
            r"01_anger_0\.wav stands there with two labels, 'anger' and 'joy'",
        ),
        (first("file_name", "./audio//01_anger_1.wav"), r"01_anger_1\.wav stands there more than once"),
        (lambda table: table.assign(labels="1"), "the column name 'labels' is taken"),
        (lambda table: table.assign(start_seconds="soon"), "needs a number, 0 or more, as start_seconds"),
        (lambda table: table.assign(start_seconds="-1"), "needs a number, 0 or more, as start_seconds"),
    ],
)
def test_bad_metadata_is_explained(make_corpus, change, message):
    folder = make_corpus()
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        read_corpus(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"", "cannot be read: No columns"),
        ("metadata.csv", "file_name,label,speaker\ncaf\xe9.wav,joy,1\n".encode("latin-1"), "not UTF-8 text.*0xe9"),
        ("metadata.csv", "file_name,label,speaker\na.wav,joy,1,2\n", "more fields than the first line"),
        (
            "metadata.csv",
            "file_name,label,speaker\na.wav,joy,1" + "," * 50_000,
            "50,003 columns; at most 10,000 are read",
        ),
        ("metadata.csv", "file_name,label,speaker" + "," * 50_000, "50,003 columns; at most 10,000 are read"),
        ("metadata.jsonl", "5", "no column .file_name."),
        ("metadata.jsonl", '["a"]\nnull', "cannot be read"),
        (
            "metadata.jsonl",
            '{"file_name": "a", "label": "x", "speaker": "1", "arousal": 1}\n'
            '{"file_name": "b", "label": "x", "speaker": "1", "arousal": "A"}',
            "a column holds values of several kinds",
        ),
        ("metadata.jsonl", '{"file_name": "caf\\udce9.wav", "label": "joy", "speaker": 1}', "cannot be written as"),
        ("metadata.jsonl", "{", "cannot be read"),
        ("metadata.parquet", b"PAR1 broken", "cannot be read"),
    ],
)
def test_broken_metadata_is_explained(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_corpus(write_manifest(tmp_path / "corpus", content, name))


def test_missing_folders_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere: no such corpus folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no metadata\.csv, metadata\.jsonl, metadata\.parquet, metadata\.tsv there"):
        read_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora").mkdir()
    with pytest.raises(ValueError, match="corpora/emodb: no such corpus folder"):  # not taken for a Hub id
        read_corpus("corpora/emodb")


def test_missing_audio_is_counted_when_audio_is_checked(make_corpus):
    folder = make_corpus()
    for take in (0, 1):
        (folder / "audio" / f"01_anger_{take}.wav").unlink()
    dataset = read_corpus(folder)
    for skip_bad in (False, True):
        with pytest.raises(ValueError, match=r"2 of 24 audio files are missing, first .*01_anger_0\.wav$"):
            check_audio(dataset, skip_bad)


def test_a_bad_audio_file_is_an_error_unless_skipping_was_asked_for(make_corpus, capsys):
    folder = make_corpus()
    bad = folder / "audio" / "01_anger_0.wav"
    bad.write_text("not audio")
    with pytest.raises(ValueError, match=r"01_anger_0\.wav: the audio does not decode"):
        check_audio(read_corpus(folder))
    kept = check_audio(read_corpus(folder), skip_bad=True)
    assert len(kept) == 23
    assert "01_anger_0.wav" in capsys.readouterr().out


def test_links_are_followed_and_circles_named(make_corpus, tmp_path):
    """`prepare` links audio to where the user unpacked a corpus."""
    folder = make_corpus()
    (folder / "audio").rename(tmp_path / "unpacked")
    (folder / "audio").symlink_to(tmp_path / "unpacked")
    dataset = read_corpus(folder)
    assert len(check_audio(dataset)) == 24
    clip = tmp_path / "unpacked" / "01_anger_0.wav"
    clip.unlink()
    clip.symlink_to(clip)
    with pytest.raises(ValueError, match=r"1 of 24 audio files are missing, first .*_0\.wav \(a link that leads nowhe"):
        check_audio(dataset)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="loop: the link leads nowhere or in a circle"):
        read_corpus(tmp_path / "loop")


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system refuses names that are not UTF-8")
def test_a_folder_whose_name_is_not_utf8_is_refused(make_corpus, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.rename(make_corpus(), odd)
    with pytest.raises(ValueError, match="the folder's name cannot be written as UTF-8"):
        read_corpus(os.fsdecode(odd))


def test_many_rows_are_read_without_touching_audio(tmp_path):
    rows = [f"audio/{number:06d}.flac,{('joy', 'anger')[number % 2]},{number % 500}" for number in range(150_000)]
    folder = write_manifest(tmp_path / "many", "\n".join(["file_name,label,speaker", *rows]))
    began = time.perf_counter()
    dataset = read_corpus(folder)
    assert time.perf_counter() - began < 10  # 0.7 s on two idle cores
    assert len(dataset) == 150_000
    assert dataset[149_999]["file_name"] == "audio/149999.flac"
    assert dataset.data.nbytes < 300 * 150_000


def test_parts_of_a_file_are_clips_of_their_own(tmp_path):
    write_steps(tmp_path / "talk" / "long.flac", 8)
    write_manifest(
        tmp_path / "talk",
        "file_name,label,speaker,start_seconds,duration_seconds\n"
        "long.flac,joy,1,2,1\nlong.flac,anger,2,3.0,4\nlong.flac,fear,3,7,\n",
    )
    dataset = check_audio(read_corpus(tmp_path / "talk"))
    assert [(row["start_seconds"], row["duration_seconds"]) for row in dataset] == [(2, 1), (3, 4), (7, None)]
    rows = [{**row, "labels": 0} for row in dataset]

    batch = AudioCollator(ExHuBERTFeatureExtractor(2.0))(rows)["input_values"].numpy()
    assert hertz(batch[0][:16_000]) == 300
    assert np.ptp(batch[0][16_000:]) == 0  # padding, not the next clip
    assert [hertz(batch[1][:16_000]), hertz(batch[1][16_000:])] == [400, 500]
    assert hertz(batch[2][:16_000]) == 800

    for crop, expected in ((0.0, [400, 500]), (0.5, [500, 600]), (1.0, [600, 700])):
        (samples,) = AudioCollator(ExHuBERTFeatureExtractor(2.0))([{**rows[1], "crop": crop}])["input_values"].numpy()
        assert [hertz(samples[:16_000]), hertz(samples[16_000:])] == expected
    short = AudioCollator(ExHuBERTFeatureExtractor(2.0))([{**rows[2], "crop": 0.7}])["input_values"].numpy()[0]
    assert np.ptp(short[16_000:]) == 0


def test_a_part_behind_the_end_of_its_file_is_refused(tmp_path):
    write_steps(tmp_path / "talk" / "long.flac", 1)
    write_manifest(tmp_path / "talk", "file_name,label,speaker,start_seconds\nlong.flac,joy,1,1.5\n")
    with pytest.raises(ValueError, match=r"long\.flac: a clip begins at 1\.5 s, but the file has 1\.00 s"):
        check_audio(read_corpus(tmp_path / "talk"))


def test_the_collator_reads_what_read_audio_reads(make_corpus):
    (row,) = read_corpus(make_corpus(seconds=1.5)).select([0])
    samples = AudioCollator(ExHuBERTFeatureExtractor(1.0))([{**row, "labels": 0, "crop": 1.0}])["input_values"][
        0
    ].numpy()
    expected = read_audio(row["audio"]["path"], 0.5, 1.0)
    assert np.corrcoef(samples, expected)[0, 1] > 0.9999
