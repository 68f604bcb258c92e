"""What `check` finds in a corpus folder, and how it is told.

python -m pytest tests/test_check.py
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from exhubert.corpora.check import find_all, run_check

RATE = 16_000
NOISE = 0.2 * np.random.default_rng(0).standard_normal(RATE).clip(-3, 3)
FIRST = "audio/01_anger_0.wav"


@pytest.fixture
def corpus(make_corpus) -> Path:
    """24 good clips of 4 speakers and 3 labels."""
    return make_corpus(seconds=0.2)


def edit(folder: Path, change) -> None:
    """Rewrites metadata.csv by `change`, which alters its table in place or returns another."""
    path = folder / "metadata.csv"
    table = pandas.read_csv(path, dtype=str)
    changed = change(table)
    (table if changed is None else changed).to_csv(path, index=False)


def put(row: int, **cells: str):
    def change(table):
        for column, value in cells.items():
            table.loc[row, column] = value

    return change


def found(folder: Path, **options) -> list[tuple[str, str, str]]:
    """(severity, problem, file name) of every finding."""
    findings, _ = find_all(folder, **options)
    assert findings["severity"].isin(["error", "warning"]).all()
    return list(zip(findings["severity"], findings["problem"], findings["file_name"], strict=True))


def detail(folder: Path) -> str:
    return find_all(folder)[0]["detail"].item()


# One file


# A corpus


def test_nothing_is_found_in_a_good_corpus(corpus, capsys):
    assert found(corpus) == []
    assert run_check(corpus) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == "nothing found"
    assert last.startswith("24 files, 0.00 hours: 0 errors, 0 warnings; ")
    assert last.endswith(" times real time")


def clipped(count: int) -> np.ndarray:
    return np.where(np.arange(RATE) < count, 1.0, NOISE)


def edited(index: int, value: float) -> np.ndarray:
    samples = NOISE.copy()
    samples[index] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (np.zeros(RATE), RATE, ("error", "silent")),
        (0.004 * NOISE / abs(NOISE).max(), RATE, None),  # very quiet speech
        (0.0008 * NOISE / abs(NOISE).max(), RATE, ("error", "silent")),
        (edited(70, np.nan), RATE, ("error", "NaN or infinite samples")),
        (edited(70, -np.inf), RATE, ("error", "NaN or infinite samples")),
        (clipped(10), RATE, None),
        (clipped(11), RATE, ("warning", "clipped")),
        (-clipped(11), RATE, ("warning", "clipped")),
        (NOISE[:1500], RATE, ("warning", "too short")),
        (np.tile(NOISE, 61), RATE, ("warning", "too long")),
        (NOISE, 8_000, ("warning", "low sampling rate")),
        (NOISE, 44_100, ("warning", "other sampling rate")),
    ],
)
def test_bad_audio_is_found(corpus, samples, rate, expected):
    soundfile.write(corpus / FIRST, samples, rate, "FLOAT")
    assert found(corpus) == ([(*expected, FIRST)] if expected else [])


def test_files_that_do_not_decode_are_errors(corpus):
    (corpus / "audio/01_anger_0.wav").unlink()
    (corpus / "audio/01_anger_1.wav").write_text("not audio")
    (corpus / "audio/02_anger_0.wav").write_bytes(b"")
    whole = (corpus / "audio/02_anger_1.wav").read_bytes()
    (corpus / "audio/02_anger_1.wav").write_bytes(whole[: len(whole) // 2])
    assert found(corpus) == [
        ("error", "missing", "audio/01_anger_0.wav"),
        ("error", "does not decode", "audio/01_anger_1.wav"),
        ("error", "empty", "audio/02_anger_0.wav"),
        ("error", "truncated", "audio/02_anger_1.wav"),
    ]
    assert run_check(corpus) == 2


def test_limits_of_length_can_be_set(corpus):
    assert {problem for _, problem, _ in found(corpus, shortest_seconds=0.25)} == {"too short"}
    assert len(found(corpus, longest_seconds=0.25)) == 12  # every second take


@pytest.mark.parametrize(
    ("other", "severity", "problem"),
    [
        ("01_anger_1", "warning", "duplicate audio"),
        ("02_neutral_0", "error", "duplicate audio with two labels"),
    ],
)
def test_duplicate_audio_is_found_whatever_the_container(corpus, other, severity, problem):
    samples, rate = soundfile.read(corpus / FIRST, dtype="int16")
    (corpus / f"audio/{other}.wav").unlink()
    soundfile.write(corpus / f"audio/{other}.flac", samples, rate)
    edit(corpus, lambda table: table.replace(f"audio/{other}.wav", f"audio/{other}.flac"))
    assert found(corpus) == [(severity, problem, f"audio/{other}.flac")]
    label = other.split("_")[1]
    assert detail(corpus) == f"label '{label}'; the same as {FIRST}, label 'anger'"


def test_speakers_and_audio_in_two_splits(make_corpus):
    """Speakers 01 and 02 train, 03 validation, 04 test; then one clip of 01 becomes a copy of one of 04."""
    folder = make_corpus(seconds=0.2, split=lambda row: ["train", "train", "validation", "test"][row // 6])
    assert found(folder) == []
    shutil.copy(folder / FIRST, folder / "audio/04_anger_0.wav")
    assert found(folder) == [
        ("warning", "duplicate audio", "audio/04_anger_0.wav"),
        ("error", "identical audio in two splits", "audio/04_anger_0.wav"),
    ]
    (folder / "audio/04_anger_0.wav").unlink()
    edit(folder, lambda table: table[table["file_name"] != "audio/04_anger_0.wav"])
    edit(folder, put(0, split="test"))
    assert found(folder) == [("warning", "speakers in two splits", "metadata.csv")]
    assert detail(folder) == "1 of 4 speakers, e.g. 01 (test, train)"


def without(column: str):
    return lambda table: table.drop(columns=column)


def again(**cells: str):
    """Repeats the first row with other cells."""
    return lambda table: pandas.concat([table, table.iloc[:1].assign(**cells)])


@pytest.mark.parametrize(
    ("change", "severity", "problem", "name", "text"),
    [
        (put(0, label=""), "error", "no label", FIRST, "row 1"),
        (put(3, label="smug"), "warning", "unknown label", "audio/01_neutral_1.wav", "'smug' (1 clips) has no arousal"),
        (put(0, speaker=""), "warning", "speaker in some rows only", "metadata.csv", "1 of 24 rows"),
        (again(), "error", "file in two rows", FIRST, "stands there more than once, as 'anger'"),
        (again(file_name="audio/./01_anger_0.wav"), "error", "file in two rows", FIRST, "more than once, as 'anger'"),
        (again(label="fear"), "error", "file in two rows with two labels", FIRST, "two labels, 'anger' and 'fear'"),
        (without("label"), "error", "missing column", "metadata.csv", "no column 'label'; it has file_name, speaker"),
        (without("speaker"), "error", "missing column", "metadata.csv", "'speaker'"),
        (lambda table: table.assign(labels="1"), "error", "column name that is taken", "metadata.csv", "'labels'"),
        (
            lambda table: table.assign(split="half"),
            "error",
            "unknown split",
            "metadata.csv",
            "'half' in 24 rows; it must",
        ),
    ],
)
def test_bad_metadata_is_found(corpus, change, severity, problem, name, text):
    edit(corpus, change)
    assert found(corpus) == [(severity, problem, name)]
    assert text in detail(corpus)


@pytest.mark.parametrize(
    "name", ["../secret.wav", "/etc/passwd", "C:\\secret.wav", "audio/../../b.wav", "..\\b.wav", ""]
)
def test_paths_outside_the_folder_are_errors_and_not_opened(corpus, name):
    soundfile.write(corpus.parent / "secret.wav", NOISE, RATE)
    edit(corpus, put(0, file_name=name))
    assert found(corpus) == [
        ("error", "path outside the folder", name),
        ("warning", "audio that no row names", FIRST),
    ]


def test_everything_is_listed_not_only_the_first(corpus):
    edit(corpus, lambda table: table.assign(label=[""] * 3 + ["smug"] * 4 + list(table["label"][7:])))
    assert [problem for _, problem, _ in found(corpus)] == ["no label"] * 3 + ["unknown label"]


def test_own_labels_are_known(corpus, tmp_path):
    (tmp_path / "own.yaml").write_text("smug: {arousal: low, valence: positive}\n")
    edit(corpus, put(0, label="Smug"))
    assert found(corpus, label_file=tmp_path / "own.yaml") == []


def test_audio_without_a_row_is_found_and_links_do_not_lead_astray(corpus):
    soundfile.write(corpus / "extra.FLAC", NOISE, RATE, format="flac")
    soundfile.write(corpus / "audio/.hidden.wav", NOISE, RATE)
    (corpus / "audio/notes.txt").write_text("no audio")
    (corpus / "audio/round").symlink_to(corpus, target_is_directory=True)
    (corpus / "audio/loop.wav").symlink_to("loop.wav")
    Path(os.fsdecode(bytes(corpus) + b"/caf\xe9.wav")).touch()
    assert [(problem, name) for _, problem, name in found(corpus)] == [
        ("audio that no row names", "caf\\udce9.wav"),
        ("audio that no row names", "extra.FLAC"),
        ("audio that no row names", "audio/loop.wav"),
    ]


def test_a_folder_of_links_is_checked_like_its_files(corpus, tmp_path):
    linked = tmp_path / "linked"
    (linked / "audio").mkdir(parents=True)
    shutil.copy(corpus / "metadata.csv", linked)
    for path in (corpus / "audio").iterdir():
        (linked / "audio" / path.name).symlink_to(path)
    assert found(linked) == []


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_other_forms_of_metadata_are_checked_as_well(corpus, form):
    table = pandas.read_csv(corpus / "metadata.csv", dtype=str)
    table.loc[0, "label"] = None
    table.loc[1, "file_name"] = "audio/gêne.wav"
    if form == "jsonl":
        (corpus / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_dict("records")))
    else:
        table.to_parquet(corpus / "metadata.parquet")
    (corpus / "metadata.csv").unlink()
    problems = ["no label", "missing", "audio that no row names"]
    assert [problem for _, problem, _ in found(corpus)] == problems


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "file_name,label,speaker\na.wav,fâché,1\n".encode("latin-1"), "not UTF-8 text .* save it as"),
        ("metadata.csv", b"file_name,label,speaker\n", "has no rows"),
        ("metadata.csv", b"", "cannot be read: No columns"),
        ("metadata.csv", b"path,label\na.wav,anger\n", "no column 'file_name'; it has path, label"),
        ("metadata.csv", b"file_name,label\na.wav,anger,1\nb.wav,fear,1\n", "more fields than the first line"),
        ("metadata.jsonl", b"", "has no rows"),
        (
            "metadata.jsonl",
            b'{"file_name": "caf\\udce9.wav", "label": "anger"}',
            "cannot be written as UTF-8; rename the file",
        ),
        ("metadata.jsonl", b"{", "cannot be read"),
        ("metadata.parquet", b"PAR", "cannot be read"),
        ("other.csv", b"", "no metadata.csv, metadata.jsonl, metadata.parquet, metadata.tsv there"),
    ],
)
def test_metadata_that_cannot_be_read_is_a_plain_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_all(tmp_path)


def test_a_missing_folder_is_a_plain_error(tmp_path):
    with pytest.raises(ValueError, match="no such corpus folder"):
        find_all(tmp_path / "nowhere")


def test_the_report_groups_by_problem_and_the_csv_has_all(corpus, tmp_path, capsys):
    for take in range(2):
        for speaker in ("01", "02"):
            soundfile.write(corpus / f"audio/{speaker}_anger_{take}.wav", clipped(20) * (1 - 0.001 * take), RATE)
    soundfile.write(corpus / "audio/03_anger_0.wav", np.zeros(RATE), RATE)
    soundfile.write(corpus / "audio/03_sadness_0.wav", NOISE, RATE)
    for number in range(5):
        soundfile.write(corpus / f"extra_{number}.wav", NOISE, RATE)
    assert run_check(corpus, output=tmp_path / "new/findings.csv") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-2] == [
        "error    1  silent",
        "            audio/03_anger_0.wav  1.00 s, peak 0.00000 of full scale",
        "warning  5  audio that no row names",
        "            extra_0.wav",
        "            extra_1.wav",
        "            extra_2.wav",
        "            ... and 2 more",
        "warning  2  clipped",
        "            audio/01_anger_0.wav  20 samples at full scale in 1.00 s",
        "            audio/02_anger_0.wav  20 samples at full scale in 1.00 s",
        "warning  2  duplicate audio",
        "            audio/02_anger_0.wav  label 'anger'; the same as audio/01_anger_0.wav, label 'anger'",
        "            audio/02_anger_1.wav  label 'anger'; the same as audio/01_anger_1.wav, label 'anger'",
    ]
    assert lines[-1].startswith("24 files, 0.00 hours: 1 error, 9 warnings; ")
    table = pandas.read_csv(tmp_path / "new/findings.csv", keep_default_na=False)
    assert list(table.columns) == ["file_name", "severity", "problem", "detail"]
    assert len(table) == 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["findings.csv"]


# Real recordings


def test_ravdess_has_one_pair_of_copies_and_its_quiet_clips_are_not_silent(shared):
    assert found(shared / "corpora/ravdess_speech") == [
        ("warning", "duplicate audio", "audio/03-01-03-01-02-02-07.flac")
    ]


def test_crema_d_copies_with_other_labels_and_silence(shared, tmp_path):
    """The whole corpus has three such pairs, of which one is there, and a silent file."""
    folder = tmp_path / "crema_d"
    shutil.copytree(shared / "corpora/cremad", folder, copy_function=os.symlink)
    for link in (folder, *folder.rglob("*")):
        if link.is_dir():
            link.chmod(0o755)
    made = {"1013_WSI_DIS_XX": "1013_WSI_SAD_XX", "1017_IWW_ANG_XX": "1017_IWW_FEA_XX"}
    table = pandas.read_csv(folder / "metadata.csv", dtype=str)
    rows = [table.iloc[index : index + 1] for index in (0, 1)]
    for (name, copy), row, label in zip(made.items(), rows, ("sadness", "fear"), strict=True):
        source = (folder / row["file_name"].item()).resolve()
        (folder / f"audio/{name}.flac").symlink_to(source)
        samples, rate = soundfile.read(source, dtype="int16")
        soundfile.write(folder / f"audio/{copy}.wav", samples, rate)
        table = pandas.concat([table, row.assign(file_name=f"audio/{name}.flac")])
        table = pandas.concat([table, row.assign(file_name=f"audio/{copy}.wav", label=label)])
    soundfile.write(folder / "audio/1076_MTI_SAD_XX.wav", np.zeros(40_000), RATE)
    table = pandas.concat([table, rows[0].assign(file_name="audio/1076_MTI_SAD_XX.wav", label="sadness")])
    (folder / "metadata.csv").unlink()
    table.to_csv(folder / "metadata.csv", index=False)
    errors = [(problem, name) for severity, problem, name in found(folder) if severity == "error"]
    assert errors == [
        ("silent", "audio/1076_MTI_SAD_XX.wav"),
        ("duplicate audio with two labels", "audio/1006_TIE_NEU_XX.flac"),
        ("duplicate audio with two labels", "audio/1013_WSI_SAD_XX.wav"),
        ("duplicate audio with two labels", "audio/1017_IWW_FEA_XX.wav"),
    ]


@pytest.mark.parametrize("name", ["emodb", "nemo"])
def test_nothing_is_found_in_the_other_real_corpora(shared, name):
    assert found(shared / "corpora" / name) == []


@pytest.mark.parametrize(
    ("column", "cells", "expected", "said"),
    [
        ("arousal", {3: "6.5"}, ("number outside the scale", 3), "arousal is 6.5, outside its scale, 1 to 5"),
        ("valence", {0: "high"}, ("text in a numeric column", 0), "valence is 'high', which is no number"),
        (
            "dominance",
            dict.fromkeys(range(24), "3"),
            ("the same number in all clips", None),
            "dominance is 3 in all 24 clips",
        ),
        ("arousal", {0: "", 1: "nan"}, None, ""),
    ],
)
def test_numbers_that_cannot_be_trained_on_are_warned_of(make_corpus, capsys, column, cells, expected, said):
    """On the registry's scale; a corpus that it does not know has none."""
    for name in ("iemocap", "own"):
        corpus = make_corpus(name, seconds=0.2, **{column: lambda row: cells.get(row, str(1 + row % 5))})
        findings, _ = find_all(corpus)
        if not expected or (name == "own" and "scale" in expected[0]):
            assert findings.empty
            continue
        problem, row = expected
        file = "metadata.csv" if row is None else pandas.read_csv(corpus / "metadata.csv")["file_name"][row]
        assert found(corpus) == [("warning", problem, file)]
        assert said in findings["detail"].item()
        assert run_check(corpus) == 0


def test_clips_with_numbers_need_no_label_and_those_of_another_part_no_split(make_corpus):
    order = ("train", "validation", "test", "test")
    corpus = make_corpus(
        seconds=0.2, split=lambda row: order[row // 6], arousal=lambda row: str(row), partition=lambda _: ""
    )
    edit(corpus, put(0, label=""))
    assert found(corpus) == []
    edit(corpus, put(1, label="", arousal=""))
    assert found(corpus) == [("error", "no label", "audio/01_anger_1.wav")]
    edit(corpus, put(1, label="anger", split="", partition="Test2"))
    assert found(corpus) == []
    edit(corpus, lambda table: table.fillna("").assign(partition=""))
    assert {problem for _, problem, _ in found(corpus)} == {"unknown split", "speakers in two splits"}
