"""Saved datasets and those of the Hub as corpora.

python -m pytest tests/test_read_datasets.py
"""

from __future__ import annotations

import datasets
import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict

from conftest import hertz, write_steps
from exhubert.audio_exhubert import ExHuBERTFeatureExtractor
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.training.collator import AudioCollator


@pytest.fixture
def parts(tmp_path) -> DatasetDict:
    """A dataset in two parts, with labels as classes; the file names are the same in both."""

    def part(name: str, offset: int) -> Dataset:
        paths = [tmp_path / "raw" / name / f"{number}.wav" for number in range(3)]
        for number, path in enumerate(paths):
            write_steps(path, offset + number)
        columns = {
            "recording": list(map(str, paths)),
            "emotion": [0, 1, 0],
            "speaker_id": [offset, offset, offset + 1],
            "note": ["a", "b", "c"],
        }
        dataset = Dataset.from_dict(columns).cast_column("emotion", ClassLabel(names=["anger", "joy"]))
        return dataset.cast_column("recording", Audio())

    return DatasetDict(train=part("train", 1), dev=part("dev", 4))


def test_a_saved_dataset_holds_its_audio_to_the_end(tmp_path, parts):
    parts.save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "raw").glob("*/*"):
        file.unlink()
    dataset = read_corpus(tmp_path / "saved")
    assert list(dataset["label"]) == ["anger", "joy", "anger"] * 2
    assert list(dataset["speaker"]) == ["1", "1", "2", "4", "4", "5"]
    assert list(dataset["split"]) == ["train"] * 3 + ["validation"] * 3
    assert list(dataset["file_name"])[2:4] == ["000002_2.wav", "000003_0.wav"]
    assert list(dataset["note"]) == list("abcabc")
    assert dataset.cache_files  # memory-mapped

    dataset = check_audio(dataset)
    assert len(check_audio(dataset, skip_bad=True)) == 6
    rows = [{**row, "labels": number} for number, row in enumerate(dataset)]
    batch = AudioCollator(ExHuBERTFeatureExtractor(1.0))([{**row, "crop": 1.0} for row in rows])
    assert [hertz(samples) for samples in batch["input_values"].numpy()] == [100, 200, 300, 400, 500, 600]
    assert batch["labels"].tolist() == list(range(6))
    assert [
        hertz(samples) for samples in AudioCollator(ExHuBERTFeatureExtractor(1.0))(rows)["input_values"].numpy()
    ] == [100] * 6


def test_what_was_read_can_be_saved_and_read_again(make_corpus, tmp_path):
    read = read_corpus(make_corpus())
    read.save_to_disk(tmp_path / "saved")
    again = read_corpus(tmp_path / "saved")
    for column in ("file_name", "label", "speaker", "language"):
        assert list(again[column]) == list(read[column])
    assert "split" not in again.column_names  # one part is the whole


def with_second_audio(part: Dataset) -> Dataset:
    return datasets.concatenate_datasets(
        [part, part.select_columns("recording").rename_column("recording", "second")], axis=1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.remove_columns("recording"), "one column of type Audio.*columns emotion, speaker_id"),
        (lambda part: part.remove_columns("emotion"), "no column label or emotion; it has speaker_id, note"),
        (with_second_audio, "one column of type Audio, or one called `audio`.*audio columns recording, second"),
        (lambda part: part.rename_column("note", "crop"), "the column name 'crop' is taken"),
        (lambda part: part.select([]), "has no rows"),
        (lambda part: part.remove_columns("emotion").add_column("label", ["", "b", "c"]), "0.wav' has no label"),
    ],
)
def test_bad_datasets_are_explained(tmp_path, parts, change, message):
    part = parts["train"].cast_column("recording", Audio(decode=False))
    change(part).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path / "saved")


def test_a_damaged_dataset_folder_is_named(tmp_path, parts):
    parts["train"].save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(ValueError, match="saved: the dataset cannot be read"):
        read_corpus(tmp_path / "saved")


def test_bad_audio_in_a_dataset_is_named_by_its_file(tmp_path, parts):
    (tmp_path / "raw" / "train" / "1.wav").write_text("not audio")
    parts["train"].save_to_disk(tmp_path / "saved")  # which copies the files as they are
    with pytest.raises(ValueError, match=r"^1\.wav: the audio does not decode"):
        check_audio(read_corpus(tmp_path / "saved"))


def test_a_hub_dataset_is_read_as_a_saved_one(monkeypatch, parts):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or parts)
    assert len(read_corpus("user/name")) == len(read_corpus("user/name:speech")) == 6
    assert asked == [("user/name", None), ("user/name", "speech")]


def test_a_hub_id_without_the_hub_is_a_plain_error(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="user/name is neither a folder nor a dataset that can be had from the Hub"):
        read_corpus("user/name")
