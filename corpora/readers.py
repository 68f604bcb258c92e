"""Reads a corpus folder into a `datasets.Dataset`; audio is decoded when a batch is made, not here."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import pandas
from datasets import Audio, Dataset
from tqdm.auto import tqdm

from exhubert.audio_exhubert import audio_seconds, read_audio

METADATA_READERS: dict[str, Callable[[Path], pandas.DataFrame]] = {
    "metadata.csv": lambda path: pandas.read_csv(path, dtype=str, keep_default_na=False),
    "metadata.jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
    "metadata.parquet": pandas.read_parquet,
}
NEEDED_COLUMNS = ("file_name", "label", "speaker")
RESERVED_COLUMNS = {"audio", "labels", "crop"}  # added on the way to the model


def read_corpus(directory: str | os.PathLike[str]) -> Dataset:
    """Reads `metadata.csv` (or .jsonl, .parquet) of a corpus folder.

    Returns:
        One row a clip: `audio` (path, undecoded), `file_name` (relative), `label` (the corpus's own word),
        `speaker` (a string; empty where it is unknown), and the metadata's other columns as they stand.

    Raises:
        ValueError: if the folder, a needed column, a label or an audio file is missing, or a path leaves the
            folder; names what was found.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such corpus folder")
    path = next((directory / name for name in METADATA_READERS if (directory / name).is_file()), None)
    if path is None:
        raise ValueError(f"{directory}: no {', '.join(METADATA_READERS)} there; a corpus folder has one of these")
    try:
        table = METADATA_READERS[path.name](path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    for column in NEEDED_COLUMNS:
        if column not in table.columns:
            raise ValueError(f"{path}: no column {column!r}; it has {', '.join(map(str, table.columns))}")
    for column in RESERVED_COLUMNS & set(table.columns):
        raise ValueError(f"{path}: the column name {column!r} is taken; rename it")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    for column in NEEDED_COLUMNS:
        table[column] = [_text(value) for value in table[column]]
    _check_rows(path, table)
    dataset = Dataset.from_pandas(table, preserve_index=False)
    paths = [str(directory / name) for name in table["file_name"]]
    return dataset.add_column("audio", paths).cast_column("audio", Audio(decode=False))


def check_audio(dataset: Dataset, skip_bad: bool = False) -> Dataset:
    """Looks at every clip's audio before training begins.

    Without `skip_bad` only headers are read, and the first bad file is an error. With it, every file is decoded
    from beginning to end, and clips whose audio is bad are left out, each named.

    Raises:
        ValueError, FileNotFoundError: for the first bad file, without `skip_bad`.
    """
    paths = [audio["path"] for audio in dataset["audio"]]
    if not skip_bad:
        with ThreadPoolExecutor() as pool:
            try:
                list(pool.map(audio_seconds, paths))
            except ValueError as error:
                raise ValueError(f"{error}; repair it, or set skip_bad_audio to leave such clips out") from error
        return dataset
    with ThreadPoolExecutor() as pool:
        problems = list(tqdm(pool.map(_problem, paths), total=len(paths), desc="decoding", unit="clip"))
    for problem in filter(None, problems):
        print(f"skipped: {problem}")
    return dataset.select([index for index, problem in enumerate(problems) if problem is None])


def _problem(path: str) -> str | None:
    try:
        read_audio(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()


def _check_rows(path: Path, table: pandas.DataFrame) -> None:
    for row, (name, label) in enumerate(zip(table["file_name"], table["label"], strict=True), start=1):
        parts = PurePosixPath(name.replace("\\", "/"))
        if not name or parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
            raise ValueError(f"{path}, row {row}: file_name {name!r} must be a path inside the corpus folder")
        if not label:
            raise ValueError(f"{path}, row {row}: {name} has no label")
    repeated = table["file_name"][table["file_name"].duplicated()]
    if len(repeated):
        raise ValueError(f"{path}: {repeated.iloc[0]} stands there more than once ({len(repeated)} such rows)")
    missing = [name for name in table["file_name"] if not (path.parent / name).is_file()]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of {len(table)} audio files are missing, first {missing[0]}")
    known = sum(bool(speaker) for speaker in table["speaker"])
    if 0 < known < len(table):
        raise ValueError(
            f"{path}: {len(table) - known} of {len(table)} clips have no speaker; fill them in, or leave all empty"
        )
