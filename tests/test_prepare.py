"""From a corpus as it is distributed to a corpus folder, for every naming scheme of the registry.

python -m pytest tests/test_prepare.py
"""

from __future__ import annotations

import csv
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from conftest import ROOT, write_video
from exhubert.audio_exhubert import read_audio
from exhubert.cli import main, run_with_one_line_errors
from exhubert.corpora import registry
from exhubert.corpora.distribution import VIDEO_SUFFIXES
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.load import load_corpora
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.corpora.splits import assign_splits, overlap, split_corpus

TREES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "tests/trees").glob("*.yaml")}


def tone(name: str, seconds: float = 0.4, rate: int = 16_000) -> np.ndarray:
    """A short tone, another one for each name."""
    pitch = 100 + zlib.crc32(name.encode()) % 4000
    return 0.3 * np.sin(2 * np.pi * pitch / rate * np.arange(round(seconds * rate)))


def write_tree(root: Path, audio: list[str], texts: dict[str, str] | None = None) -> Path:
    for name in audio:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith(VIDEO_SUFFIXES):
            write_video(root / name, tone(name))
        else:
            soundfile.write(root / name, tone(name), 16_000)
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def prepare(*arguments: object) -> int:
    return run_with_one_line_errors(lambda: main(["corpora", "prepare", *map(str, arguments)]))


def read_rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return {row["file_name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("key", sorted(TREES))
def test_a_corpus_is_prepared_from_its_real_names(key, tmp_path, capsys):
    tree = TREES[key]
    raw = write_tree(tmp_path / "raw", [*tree["audio"], *tree.get("left_out", [])], tree.get("texts"))
    official = any("split" in cells for cells in tree["audio"].values())
    code = prepare(key, raw, tmp_path / "out", *([] if official else ["--protocol", "files"]))
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    rows = read_rows(tmp_path / "out")
    found = {name.rpartition(".")[0]: row for name, row in rows.items()}
    above = os.path.commonpath([os.path.dirname(name) for name in tree["audio"]]) or "."
    wanted = {
        f"audio/{os.path.relpath(name, above)}".rpartition(".")[0]: cells for name, cells in tree["audio"].items()
    }
    assert sorted(found) == sorted(wanted)
    for name, cells in wanted.items():
        assert {column: found[name].get(column) for column in cells} == cells, name
    corpus = registry.find_corpus(key)
    taken = "official" if official else "files"  # the first, by `auto`
    assert f"split by protocol `{taken}`" in (tmp_path / "out" / "README.md").read_text()
    labels = [row["label"] for row in rows.values() if row["label"]]
    assert set(labels) <= set(corpus.labels)
    map_labels(labels, key, load_label_map(corpus=key))  # every word has its place
    dataset = read_corpus(tmp_path / "out")
    assert all(Path(audio["path"]).is_file() for audio in dataset["audio"])


def test_every_scheme_has_a_tree_with_its_example():
    with_scheme = {key: corpus for key, corpus in registry.load_registry().items() if corpus.scheme}
    assert set(TREES) == set(with_scheme)
    for key, corpus in with_scheme.items():
        assert any(name.endswith(corpus.scheme["example"]) for name in TREES[key]["audio"]), key


EMODB = ["wav/03a01Fa.wav", "wav/03a02Nc.wav", "wav/08a01Wb.wav", "wav/09a01La.wav", "wav/10b02Ta.wav"]


def test_audio_is_linked_copied_or_converted(tmp_path):
    raw = tmp_path / "raw"
    write_tree(raw, EMODB)
    stereo = np.stack([tone("left", rate=44_100), 0.5 * tone("right", rate=44_100)], axis=1)
    soundfile.write(raw / EMODB[0], stereo, 44_100)
    for mode in ("link", "copy", "flac"):
        assert prepare("emodb", raw, tmp_path / mode, "--audio", mode) == 0
    linked, copied, converted = (tmp_path / mode / "audio/03a01Fa" for mode in ("link", "copy", "flac"))
    assert linked.with_suffix(".wav").is_symlink()
    assert not copied.with_suffix(".wav").is_symlink()
    assert copied.with_suffix(".wav").read_bytes() == (raw / EMODB[0]).read_bytes()
    info = soundfile.info(converted.with_suffix(".flac"))
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
    samples, _ = soundfile.read(converted.with_suffix(".flac"), dtype="float32")
    np.testing.assert_allclose(samples, read_audio(raw / EMODB[0]), atol=1 / 32768)
    durations = [read_rows(tmp_path / mode).popitem()[1]["duration_seconds"] for mode in ("link", "flac")]
    assert durations == ["0.4000", "0.4000"]


def test_copies_and_other_forms_of_a_clip_are_left_out(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", EMODB)
    (raw / "again/wav").mkdir(parents=True)
    for name in EMODB:
        (raw / "again" / name).write_bytes((raw / name).read_bytes())  # as in Kaggle's TESS
    soundfile.write(raw / "wav/03a01Fa.flac", tone("other"), 16_000)
    (raw / "__MACOSX").mkdir()
    (raw / "__MACOSX/03a01Fa.wav").write_bytes(b"not audio")
    assert prepare("emodb", raw, tmp_path / "out") == 0
    assert sorted(read_rows(tmp_path / "out")) == sorted(f"audio/{name}" for name in EMODB)
    assert not list((tmp_path / "out/audio/again").rglob("*.wav"))
    said = capsys.readouterr().out
    assert "left out: 5 copies of a clip that is there: again/wav/03a01Fa.wav" in said
    assert "left out: 1 other forms of a clip that is there: wav/03a01Fa.flac" in said


def test_bad_clips_are_named_and_the_others_prepared(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", [*EMODB, "wav/11a01Fa.wav", "wav/12a01Fa.wav"])
    (raw / "wav/11a01Fa.wav").write_text("text renamed to wav")
    (raw / "wav/12a01Fa.wav").write_bytes(b"")
    assert prepare("emodb", raw, tmp_path / "out") == 2
    assert len(read_rows(tmp_path / "out")) == 5
    said = capsys.readouterr().out
    assert "wav/11a01Fa.wav" in said
    assert "the file has 0 bytes: wav/12a01Fa.wav" in said
    assert not (tmp_path / "out/audio/11a01Fa.wav").is_symlink()


def test_a_tree_of_another_corpus_says_what_was_expected_and_found(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", [f"{name}.wav" for name in "abcd"])
    assert prepare("EMO-DB", raw, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "expected names such as wav/03a01Fa.wav, found a.wav, b.wav, c.wav." in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["raw"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emobd", "raw", "out"], "no corpus 'emobd' in the registry; the nearest is 'emodb'"),
        (["emodb", "nowhere", "out"], "nowhere: no such folder"),
        (["emodb", "empty", "out"], "empty: no audio there; files that end in wav"),
        (["emodb", "raw", "raw"], "raw exists; give another folder"),
        (["emodb", "raw", "raw/out"], "raw/out is inside raw; give a folder outside the corpus"),
        (["abc", "raw", "out"], "is not established .*--table labels.csv"),
        (["emodb", "raw", "out", "--protocol", "fold"], "no protocol 'fold'; there are auto, .*, autrainer"),
        (["emodb", "raw", "out", "--protocol", "speaker_folds:4"], "fold is None; .* has the folds 1 to 4"),
        (["emodb", "raw", "out", "--protocol", "speaker_folds"], "5 folds of 4 speakers; give fewer"),
        (["emodb", "raw", "out", "--fold", "1"], "the protocol 'auto' has no folds"),
        (["", "raw", "out"], "no corpus '' in the registry .`exhubert"),
        (["emodb", "inside/raw", "raw/out"], "raw/out is inside inside/raw; give a folder outside"),
        (["meld", "meld", "out"], "no file train_sent_emo.csv there, which MELD needs beside its audio"),
        (["own", "raw", "out", "--table", "split.csv"], "split 'eval' in the metadata"),
        (["own", "raw", "out", "--table", "traversal.csv"], r"'\.\./x\.wav' must be a path inside"),
        (["own", "raw", "out", "--table", "absolute.csv"], "'/etc/passwd.wav' must be a path inside"),
        (["own", "raw", "out", "--table", "twice.csv"], "wav/03a01Fa.wav .*(anger|joy).*(joy|anger)"),
        (["own", "raw", "out", "--table", "other.csv"], "none of its files is below raw; it names else.wav"),
        (["own", "raw", "out", "--table", "nothing.csv"], "no rows"),
        (["own", "raw", "out", "--table", "no/where.csv"], "no/where.csv: no such table"),
    ],
)
def test_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_tree(Path("raw"), EMODB)
    Path("empty").mkdir()
    Path("inside").symlink_to(".")
    write_tree(Path("meld"), [next(iter(TREES["meld"]["audio"]))])
    for name, rows in {
        "traversal": "../x.wav,joy,1",
        "absolute": "/etc/passwd.wav,joy,1",
        "twice": "wav/03a01Fa.wav,joy,1\nwav/03a01Fa.wav,anger,1",
        "other": "else.wav,joy,1",
        "nothing": "",
        "split": "wav/03a01Fa.wav,joy,1,eval",
    }.items():
        Path(f"{name}.csv").write_text(f"file_name,label,speaker{',split' * (name == 'split')}\n{rows}\n")
    before = sorted(os.listdir())
    assert prepare(*arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert re.search(message, said[-1])
    assert sorted(os.listdir()) == before


def test_a_table_prepares_any_corpus(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", EMODB)
    (tmp_path / "labels.csv").write_text(
        "file,emotion,speaker\n" + "".join(f"{name},joy,s{name[4:6]}\n" for name in EMODB)
    )
    assert prepare("mine", raw, tmp_path / "out", "--table", tmp_path / "labels.csv") == 0
    rows = read_rows(tmp_path / "out")
    assert {row["label"] for row in rows.values()} == {"joy"}
    assert {row["speaker"] for row in rows.values()} == {"s03", "s08", "s09", "s10"}


def test_words_without_a_class_are_named(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", EMODB)
    words = ["joy", "whisper", "whisper", "blorp", "joy"]
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{name},{word}\n" for name, word in zip(EMODB, words, strict=True))
    )
    assert prepare("mine", raw, tmp_path / "out", "--table", tmp_path / "labels.csv", "--protocol", "files") == 0
    said = capsys.readouterr().out
    assert "no class of the six, left out in training with them: 'whisper' (2 clips)\n" in said
    assert "unknown words, to be placed in a `label_file`: 'blorp' (1 clips)\n" in said


def test_parts_of_a_file_stay_clips_of_their_own(tmp_path):
    raw = write_tree(tmp_path / "raw", EMODB)
    table = "file_name,label,speaker,start_seconds,duration_seconds\n"
    table += "".join(f"{name},joy,{name[4:6]},{start},0.1\n" for name in EMODB for start in (0.0, 0.2))
    (tmp_path / "labels.csv").write_text(table)
    assert prepare("mine", raw, tmp_path / "out", "--table", tmp_path / "labels.csv", "--audio", "copy") == 0
    dataset = read_corpus(tmp_path / "out")
    assert len(dataset) == 10
    assert set(dataset["duration_seconds"]) == {0.1}
    assert len(check_audio(dataset)) == 10


def test_two_forms_in_a_table_do_not_become_one_file(tmp_path):
    raw = write_tree(tmp_path / "raw", ["a.wav", "b.wav", "c.wav", "a.ogg"])
    (tmp_path / "labels.csv").write_text("file,label\na.wav,joy\na.ogg,sadness\nb.wav,joy\nc.wav,joy\n")
    arguments = ["--table", tmp_path / "labels.csv", "--audio", "flac", "--protocol", "files"]
    assert prepare("mine", raw, tmp_path / "out", *arguments) == 0
    rows = read_rows(tmp_path / "out")
    assert {name: row["label"] for name, row in rows.items() if name.startswith("audio/a.")} == {
        "audio/a.flac": "sadness",
        "audio/a.wav.flac": "joy",
    }
    assert len({row["content_hash"] for row in rows.values()}) == 4


def test_a_macs_stub_beside_a_video_and_git_lfs_pointers(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", list(TREES["meld"]["audio"]), TREES["meld"]["texts"])
    videos = sorted(raw.rglob("*.mp4"))
    for video in videos:
        video.with_name(f"._{video.name}").write_bytes(bytes.fromhex("00051607 00020000") + bytes(204))
    assert prepare("meld", raw, tmp_path / "meld") == 0, capsys.readouterr().out
    assert len(read_rows(tmp_path / "meld")) == len(TREES["meld"]["audio"])
    write_tree(tmp_path / "lfs", EMODB)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "lfs" / EMODB[0]).write_text(pointer)
    assert prepare("emodb", tmp_path / "lfs", tmp_path / "out") == 2
    assert "Git LFS pointer; fetch it by `git lfs pull`: wav/03a01Fa.wav" in capsys.readouterr().out


def test_two_editions_of_the_same_clips_are_one(tmp_path, capsys):
    official = [f"AudioData/{speaker}/{take}.wav" for speaker in ("DC", "JE", "JK", "KL") for take in ("a01", "sa02")]
    raw = write_tree(tmp_path / "raw", official)
    (raw / "ALL").mkdir()
    for name in official:
        _, speaker, take = name.split("/")
        (raw / "ALL" / f"{speaker}_{take}").write_bytes((raw / name).read_bytes())
    assert prepare("savee", raw, tmp_path / "out") == 0
    assert len(read_rows(tmp_path / "out")) == 8
    assert "left out: 8 copies of a clip that is there" in capsys.readouterr().out


def test_a_protocol_with_own_labels_is_prepared_with_them(tmp_path, capsys):
    raw = write_tree(tmp_path / "raw", list(TREES["iemocap"]["audio"]), TREES["iemocap"]["texts"])
    assert prepare("iemocap", raw, tmp_path / "iemocap", "--protocol", "four_classes", "--fold", "1") == 0
    rows = read_rows(tmp_path / "iemocap").values()
    assert {row["label"] for row in rows} <= {"neutral", "anger", "sadness", "happiness"}
    assert {row["session"] for row in rows if row["split"] == "test"} == {"1"}
    assert "not in the protocol" in capsys.readouterr().out


def test_votes_are_empty_where_nobody_voted(tmp_path):
    raw = write_tree(tmp_path / "raw", list(TREES["iemocap"]["audio"]), TREES["iemocap"]["texts"])
    assert prepare("iemocap", raw, tmp_path / "iemocap", "--protocol", "files") == 0
    votes = {Path(name).stem: row["votes_neutral"] for name, row in read_rows(tmp_path / "iemocap").items()}
    assert votes["Ses01F_impro01_F000"] == "2"
    assert votes["Ses01F_impro01_M013"] == "0"  # one vote, for another word
    assert votes["Ses02F_impro05_M019"] == ""


def test_a_renamed_folder_is_still_the_corpus(tmp_path):
    raw = write_tree(tmp_path / "raw", list(TREES["vivae"]["audio"]))
    assert prepare("vivae", raw, tmp_path / "other name", "--protocol", "files") == 0
    corpora, _ = load_corpora([str(tmp_path / "other name")])
    words = load_label_map(corpus="vivae")
    assert words["pleasure"] != load_label_map()["pleasure"]
    for part in corpora["other name"].values():
        assert [words[label] for label in part["label"]] == part["labels"][:]


def test_links_that_lead_back_and_names_that_are_not_utf8(tmp_path):
    raw = write_tree(tmp_path / "raw", EMODB)
    (raw / "wav/loop").symlink_to(raw)
    (raw / "self").symlink_to(raw / "self")
    odd = os.fsencode(raw) + b"/Col\xe8re"
    os.mkdir(odd)
    os.rename(raw / "wav/10b02Ta.wav", odd + b"/10b02Ta.wav")
    assert prepare("emodb", raw, tmp_path / "out") == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 5
    assert "audio/Colère/10b02Ta.wav" in rows  # Latin-1, as some programs unpack it
    assert len(check_audio(read_corpus(tmp_path / "out"))) == 5


def test_an_official_split_that_shares_speakers_is_taken_when_asked_for(tmp_path, capsys):
    texts = {name: re.sub("Ross|Phoebe|Rachel", "Joey", text) for name, text in TREES["meld"]["texts"].items()}
    raw = write_tree(tmp_path / "raw", list(TREES["meld"]["audio"]), texts)
    folder = tmp_path / "meld"
    assert prepare("meld", raw, folder) == 0
    assert "1 of 5 speakers are in more than one part, e.g. Joey" in capsys.readouterr().out
    dataset = read_corpus(folder)
    with pytest.raises(ValueError, match="`protocol: official` takes it as it is"):
        split_corpus(dataset, "meld")
    official = split_corpus(dataset, "meld", "official")
    for split, part in official.items():
        assert set(part["split"]) == {split}


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    raw = write_tree(tmp_path / "raw", EMODB)

    def interrupted(paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("exhubert.corpora.prepare.scan_clips", interrupted)
    assert prepare("emodb", raw, tmp_path / "out") == 130
    assert os.listdir(tmp_path) == ["raw"]


# Test speakers by `speakers`, and by `speaker_balanced`, which `auto` takes, with seed 0: the same on every machine.
TEST_SPEAKERS = {
    "emodb": (["10", "14"], ["11", "12"]),
    "cremad": (["1006"], ["1007"]),
    "nemo": (["KD0"], ["KD0"]),
    "ravdess_speech": (["11", "12", "15", "23"], ["13", "15", "16", "23"]),
}


@pytest.mark.parametrize(
    ("name", "key"), [("emodb", "emodb"), ("cremad", "crema_d"), ("nemo", "nemo"), ("ravdess_speech", "ravdess")]
)
def test_real_corpora_are_prepared(shared, tmp_path, name, key):
    source = shared / "corpora" / name
    assert prepare(key, source, tmp_path / "out", "--protocol", "speakers") == 0
    rows = {Path(file).name: row for file, row in read_rows(tmp_path / "out").items()}
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        given = {Path(row["file_name"]).name: row for row in csv.DictReader(file)}
    with (source / "metadata_extra.csv").open(newline="", encoding="utf-8") as file:
        extra = {Path(row["file_name"]).name: row for row in csv.DictReader(file)}
    assert {file: row["speaker"] for file, row in rows.items()} == {file: row["speaker"] for file, row in given.items()}
    assert {file: row["sex"] for file, row in rows.items()} == {file: row["gender"] for file, row in extra.items()}
    words = load_label_map(corpus=key)
    for file, row in rows.items():
        assert words[row["label"]] == words[given[file]["label"]]
        assert abs(float(row["duration_seconds"]) - float(extra[file]["duration_s"])) < 1e-3
    names = ("split", "speaker", "content_hash", "label", "file_name")
    columns = {column: [row[column] for row in rows.values()] for column in names}
    assert overlap(columns["split"], columns["speaker"], columns["content_hash"]) is None
    auto = assign_splits({column: columns[column] for column in names if column != "split"}, key)
    tested = [
        sorted({speaker for speaker, split in zip(columns["speaker"], splits, strict=True) if split == "test"})
        for splits in (columns["split"], auto)
    ]
    assert tuple(tested) == TEST_SPEAKERS[name]
