"""Scanning audio files, and what `check` finds in a corpus folder.

python -m pytest tests/test_check.py
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from conftest import write_video
from exhubert.corpora import clip_facts
from exhubert.corpora.check import find_all, run_check
from exhubert.corpora.clip_facts import scan_clip, scan_clips

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


def test_facts_of_a_clip(tmp_path):
    samples = np.stack([NOISE, np.zeros(RATE)], axis=1)
    samples[100:112, 0] = 1.5  # is clipped to full scale
    samples[500, 1] = -0.75
    soundfile.write(tmp_path / "a.wav", samples[:, 0], 8000)
    soundfile.write(tmp_path / "b.flac", samples, RATE)
    mono, stereo = scan_clips([tmp_path / "a.wav", tmp_path / "b.flac"])
    assert mono[:6] == (2.0, 8000, 1, pytest.approx(1, abs=1e-4), 12, True)
    assert stereo[:6] == (1.0, RATE, 2, pytest.approx(1, abs=1e-4), 12, True)
    assert mono.error == stereo.error == ""


def test_the_hash_is_of_the_samples_not_of_the_file(tmp_path):
    kinds = [("wav", "PCM_16"), ("flac", "PCM_16"), ("aiff", "PCM_24"), ("wav", "FLOAT"), ("wav", "DOUBLE")]
    samples = (32768 * NOISE).astype(np.int16)
    for number, (ending, subtype) in enumerate(kinds):
        whole = samples if subtype == "PCM_16" else samples / 32768
        soundfile.write(tmp_path / f"{number}.{ending}", whole, RATE, subtype)
    first, *others = [clip.content_hash for clip in scan_clips(sorted(tmp_path.iterdir()))]
    assert len(others) == 4
    assert set(others) == {first}
    samples[-1] += 1
    different = [(samples, RATE), (samples[:-1], RATE), (samples, 8000), (samples.reshape(-1, 2), RATE)]
    for number, (changed, rate) in enumerate(different):
        soundfile.write(tmp_path / f"{number}.wav", changed, rate, "PCM_16")
    assert len({first, *(scan_clip(tmp_path / f"{number}.wav").content_hash for number in range(4))}) == 5


def test_long_files_are_decoded_in_blocks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", np.stack([NOISE, -NOISE], axis=1), RATE)
    whole = scan_clip(tmp_path / "a.flac")
    monkeypatch.setattr(clip_facts, "BLOCK_BYTES", 8000)  # 1,000 frames
    assert scan_clip(tmp_path / "a.flac") == whole


def test_sound_of_a_video_and_what_is_said_without_its_reader(tmp_path, monkeypatch):
    write_video(tmp_path / "a.m4a", NOISE)
    clip = scan_clip(tmp_path / "a.m4a")
    assert clip[1:3] == (RATE, 1)
    assert clip.duration_seconds == pytest.approx(1, abs=0.15)
    assert clip.error == ""
    monkeypatch.setitem(sys.modules, "av", None)
    without = scan_clip(tmp_path / "a.m4a")
    assert without.error.startswith("does not decode: the audio does not decode (Format not recognised.); read are wav")


def shortened(ending: str, share: float, **how: str):
    def write(path: Path) -> None:
        soundfile.write(path, NOISE, RATE, format=ending, **how)
        path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])

    return write


def flipped_bits(path: Path) -> None:
    soundfile.write(path, NOISE, RATE, format="flac")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\x5a" * 200
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda path: None, "missing: no such file"),
        (lambda path: path.mkdir(), "missing: no such file"),
        (lambda path: path.symlink_to("nowhere.wav"), "missing: a link that leads nowhere"),
        (lambda path: path.symlink_to(path.name), "missing: a link that leads nowhere"),
        (lambda path: path.touch(), "empty: the file has 0 bytes"),
        (lambda path: soundfile.write(path, NOISE[:0], RATE), "empty: no samples"),
        (lambda path: path.write_text("not audio"), "does not decode: "),
        (shortened("wav", 0.6), "truncated: 0.60 s of the 1.00 s that its header promises"),
        (shortened("aiff", 0.6), "truncated: 0.60 s of the 1.00 s"),
        (shortened("au", 0.6), "truncated: 0.60 s of the 1.00 s"),
        (shortened("mp3", 0.6), "truncated: 0.5"),
        (shortened("flac", 0.6), "does not decode: after 0."),
        (flipped_bits, "does not decode: after 0."),
    ],
)
def test_bad_files_have_an_error_and_raise_nothing(tmp_path, write, error):
    write(tmp_path / "a.wav")
    clip = scan_clip(tmp_path / "a.wav")
    assert clip.error.startswith(error)
    assert bool(clip.content_hash) == error.startswith("truncated")


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x7FFFFFFF, 2 * RATE + 44])
def test_headers_of_streamed_or_slightly_wrong_wavs_are_no_error(tmp_path, promised):
    soundfile.write(tmp_path / "a.wav", NOISE, RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", promised)
    (tmp_path / "a.wav").write_bytes(data)
    assert scan_clip(tmp_path / "a.wav")[0::7] == (1.0, "")


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
    shortened("wav", 0.5)(corpus / "audio/02_anger_1.wav")
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
