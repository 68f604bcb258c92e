"""Reads a corpus, in whichever form a user has it, into a `datasets.Dataset`.

Only metadata is read here: audio is looked at by `check_audio` and decoded when a batch is made. What a row keeps is
in Arrow: a few hundred bytes a clip; the audio of `datasets` folders and Hub datasets stays memory-mapped on disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.compute
from datasets import Audio, ClassLabel, Dataset, DatasetDict
from datasets.exceptions import DatasetsError
from huggingface_hub import snapshot_download

from exhubert.audio_exhubert import AudioFile, audio_seconds, read_audio
from exhubert.corpora.audformat_reader import read_audformat
from exhubert.corpora.metadata import (
    COLUMN_NAMES,
    DIMENSIONS,
    METADATA_READERS,
    SEGMENT_COLUMNS,
    find_metadata,
    judged,
    read_metadata,
    shown_columns,
)
from exhubert.corpora.registry import no_such_folder
from exhubert.corpora.splits import SPLIT_NAMES, SPLITS
from exhubert.utils.command import progress_bar
from exhubert.utils.text import first_line

HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?(/(?P<part>[\w.-]+))?")
CLIPS_AT_ONCE = 256


def read_corpus(source: str | os.PathLike[str], labelled: bool = True, targets: Sequence[str] = ()) -> Dataset:
    """Reads a corpus's metadata; the audio files need not be there yet.

    Args:
        source: a corpus folder with `metadata.csv` (or .tsv, .jsonl, .parquet); a plain file of these forms, with
            paths relative to its folder; a folder that `datasets` saved; an audformat database; or the id of a Hub
            dataset, `user/name` or `user/name:config`, with `/part` for one part of it. A plain file's and a dataset's
            columns may be called as in `COLUMN_NAMES`.
        labelled: whether labels are needed; if not, those of a folder's table are not looked at, nor is one without
            speakers refused.
        targets: columns of numbers that are wanted, for which a clip need not have a label, nor a table the column.

    Returns:
        One row a clip: `audio` (undecoded: path, or bytes where a dataset holds them), `file_name` (relative),
        `label` (the corpus's own word; empty where a clip has numbers alone), `speaker` (a string; empty where it is
        unknown), and the other columns as they stand; from a dataset's parts or an audformat database's split tables
        `split`. A clip that is part of a file has `start_seconds` and `duration_seconds` (null: to the end).

    Raises:
        ValueError: for whatever is wrong with the source; says what was found.
    """
    path = Path(source)
    table = table_of_files(path, needed=("file_name",) if targets else ("file_name", "label"))
    if table is not None:
        origin, rows, root = table
        if targets and "label" not in rows.columns:
            rows = rows.assign(label="")
        if not labelled:
            rows = rows.assign(label="unlabelled", **({} if "speaker" in rows.columns else {"speaker": ""}))
        return _dataset_of(origin, rows, root, targets)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            try:
                return _dataset_of_parts(path, datasets.load_from_disk(str(path)), targets)
            except IndexError as error:  # it has no files of rows
                raise ValueError(f"{path} has no rows") from error
            except (OSError, pyarrow.ArrowException, KeyError, TypeError) as error:
                raise ValueError(f"{path}: the dataset cannot be read: {first_line(error)}") from error
        raise ValueError(
            f"{path}: no {', '.join(METADATA_READERS)} there; a corpus folder has one of these, or is a folder that "
            "`datasets` saved, or an audformat database (db.yaml)"
        )
    if path.is_symlink():
        raise ValueError(f"{path}: the link leads nowhere or in a circle")
    hub_id = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if hub_id is None or path.parent.is_dir():
        raise ValueError(no_such_folder(path))
    name, config, part = hub_id["name"], hub_id["config"], hub_id["part"]
    try:
        # A corpus folder is taken as it is: `datasets` would need torchcodec for the audio files beside a table.
        with contextlib.suppress(OSError):  # what is wrong `datasets` says, which also has a cache of its own
            tables = Path(snapshot_download(name, repo_type="dataset", allow_patterns=[*METADATA_READERS]))
            if config is None and part is None and find_metadata(tables) is not None:
                return read_corpus(snapshot_download(name, repo_type="dataset"), labelled, targets)
        loaded = datasets.load_dataset(name, config, **({"split": part} if part else {}))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(
            f"{name} is neither a folder nor a dataset that can be had from the Hub: {first_line(error)}"
        ) from error
    return _dataset_of_parts(str(source), loaded, targets)


def table_of_files(
    path: Path, needed: Sequence[str] = ("file_name", "label")
) -> tuple[Path, pandas.DataFrame, Path] | None:
    """Returns the table of a corpus of files, as it stands, the file that it is in, and the folder that it is of.

    None where `path` is no such corpus: no folder with metadata, no plain table, no audformat database. Of a plain
    table the columns `needed` must be there.

    Raises:
        ValueError: as `read_corpus`.
    """
    if path.is_file():
        table = read_metadata(path)
        table = table.rename(columns=_found_columns(path, list(table.columns), shown_columns(table), needed))
        if "speaker" not in table.columns:
            table["speaker"] = ""
        return path, table, path.parent
    if path.is_dir() and (metadata := find_metadata(path)) is not None:
        return metadata, read_metadata(metadata), path
    if (path / "db.yaml").is_file():
        return path / "db.yaml", read_audformat(path), path
    return None


def locate_clip(row: Mapping[str, Any]) -> tuple[AudioFile, float, float | None]:
    """Returns a row's audio, a path or a binary file, and where in it the clip is: start and duration in seconds.

    A duration of None means: to the end of the file.
    """
    audio: AudioFile = row["audio"]["path"]
    if row["audio"].get("bytes") is not None:
        audio = io.BytesIO(row["audio"]["bytes"])
        audio.name = row["file_name"]  # for messages
    start, duration = (row.get(column) for column in SEGMENT_COLUMNS)
    if start is None or start != start:
        return audio, 0.0, None
    return audio, start, None if duration is None or duration != duration else duration


def check_audio(dataset: Dataset, skip_bad: bool = False) -> Dataset:
    """Looks at every clip's audio before training begins.

    Without `skip_bad` only headers are read, and a bad file is an error. With it, every clip is decoded from
    beginning to end, and those whose audio is bad are left out, each named. Missing files are an error in any case.

    Raises:
        ValueError: for missing files, says how many and the first; for the first bad file, without `skip_bad`.
    """

    def problem_of(row: Mapping[str, Any]) -> Exception | None:
        audio, start, duration = locate_clip(row)
        try:
            if skip_bad:
                read_audio(audio, start, duration)
            elif start >= (seconds := audio_seconds(audio)):
                raise ValueError(f"{row['file_name']}: a clip begins at {start} s, but the file has {seconds:.2f} s")
        except (ValueError, OSError) as error:
            if isinstance(audio, str) and os.path.islink(audio) and not os.path.exists(audio):
                return FileNotFoundError(f"{audio} (a link that leads nowhere or in a circle)")
            return error.with_traceback(None)  # which would keep the clip's bytes
        return None

    problems: list[Exception | None] = []
    bar = progress_bar(total=len(dataset), desc="decoding", unit="clip", disable=not skip_bad)
    with ThreadPoolExecutor() as pool, bar:
        for rows in rows_at_once(dataset):
            problems += pool.map(problem_of, rows)
            bar.update(len(rows))
    missing = [problem for problem in problems if isinstance(problem, FileNotFoundError)]
    if missing:
        first = str(missing[0]).removesuffix(": no such audio file")
        raise ValueError(f"{len(missing)} of {len(dataset)} audio files are missing, first {first}")
    bad = [problem for problem in problems if problem is not None]
    if bad and not skip_bad:
        raise ValueError(f"{bad[0]}; repair it, or set skip_bad_audio to leave such clips out") from bad[0]
    if not bad:
        return dataset
    for problem in bad:
        print(f"skipped: {problem}")
    return dataset.select([index for index, problem in enumerate(problems) if problem is None])


def rows_at_once(dataset: Dataset) -> Iterator[list[dict[str, Any]]]:
    """Yields what `locate_clip` needs of the rows, some at a time: they may hold their audio."""
    columns = [name for name in ("audio", "file_name", *SEGMENT_COLUMNS) if name in dataset.column_names]
    # In Arrow, for the Python form makes an object of every value of the batch, one by one.
    narrow = dataset.select_columns(columns).with_format("arrow")
    for batch in narrow.iter(CLIPS_AT_ONCE):
        yield batch.to_pylist()


def _dataset_of(origin: Path, table: pandas.DataFrame, root: Path, targets: Sequence[str]) -> Dataset:
    """A table of files below `root`, judged."""
    table = judged(origin, table, targets=targets)
    try:
        # As objects, of which Arrow makes its plain strings: `datasets` cannot turn large ones into audio.
        table["audio"] = (os.path.join(root, "") + table["file_name"]).astype(object)
        return Dataset.from_pandas(table, preserve_index=False).cast_column("audio", Audio(decode=False))
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(root)!r}: the folder's name cannot be written as UTF-8; rename it") from error
    except (pyarrow.ArrowException, OverflowError, TypeError) as error:
        what = "a column holds values of several kinds, or some that no table holds"
        raise ValueError(f"{origin}: {what} ({' '.join(map(str, error.args))})") from error


def _dataset_of_parts(origin: str | Path, loaded: Dataset | DatasetDict, targets: Sequence[str]) -> Dataset:
    """A dataset, or the parts of one, with the audio left where it is: in memory-mapped files."""
    parts = loaded if isinstance(loaded, DatasetDict) else {"": loaded}
    parts = {name: part for name, part in parts.items() if len(part)}
    if not parts:
        raise ValueError(f"{origin} has no rows")
    splits = [SPLIT_NAMES.get(name.lower(), name.lower()) for name in parts]
    if len(parts) > 1 and not set(splits) <= set(SPLITS):
        remedy = "name those that are wanted as corpora of their own"
        corpora = " ".join(f"{origin}/{name}" for name in parts)
        raise ValueError(f"{origin}: its parts are not {', '.join(SPLITS)}; {remedy}: {corpora}")
    try:
        dataset = datasets.concatenate_datasets(list(parts.values()))
    except ValueError as error:
        raise ValueError(f"{origin}: its parts {', '.join(parts)} have different columns") from error
    audio = [name for name, feature in dataset.features.items() if isinstance(feature, Audio)]
    if len(audio) != 1 and "audio" not in audio:
        found = f"audio columns {', '.join(audio)}" if audio else f"columns {', '.join(dataset.column_names)}"
        raise ValueError(f"{origin}: one column of type Audio, or one called `audio`, is needed; it has the {found}")
    column = "audio" if "audio" in audio else audio[0]
    others = [name for name in dataset.column_names if name != column]
    renamed = _found_columns(origin, others, ", ".join(others), needed=() if targets else ("label",)) | (
        {} if column == "audio" else {column: "audio"}
    )
    dataset = dataset.cast_column(column, Audio(decode=False)).rename_columns(renamed)

    def stored(name: str) -> pyarrow.ChunkedArray:
        """As it lies on disk."""
        return dataset.select_columns(name).with_format("arrow")[:].column(name)

    table = pandas.DataFrame({"speaker": ""}, index=range(len(dataset)))
    if targets and "label" not in dataset.column_names:
        table["label"] = ""
    for name in {*COLUMN_NAMES, *SEGMENT_COLUMNS, *DIMENSIONS, *targets} & set(dataset.column_names):
        values, feature = stored(name).to_pandas(), dataset.features[name]
        table[name] = values.map(dict(enumerate(feature.names))) if isinstance(feature, ClassLabel) else values
    if len(parts) > 1:  # one part is the whole
        table["split"] = np.repeat(splits, [len(part) for part in parts.values()])
    if "file_name" not in table.columns:
        paths = pyarrow.compute.struct_field(stored("audio"), "path").to_pandas()
        names = paths.fillna("").str.replace("\\", "/").str.rsplit("/", n=1).str[-1]
        if not (names.all() and names.is_unique):  # they do not tell the rows apart
            names = [f"{row:06d}_{name}" if name else f"{row:06d}" for row, name in enumerate(names)]
        table["file_name"] = names
    rest = dataset.remove_columns([name for name in table.columns if name in dataset.column_names])
    table = judged(origin, table, [name for name in rest.column_names if name != "audio"], targets)
    return datasets.concatenate_datasets([Dataset.from_pandas(table, preserve_index=False), rest], axis=1)


def _found_columns(origin: str | Path, columns: Sequence[str], shown: str, needed: Sequence[str]) -> dict[str, str]:
    """The columns that are called otherwise, with the names that we give them; `shown` is for messages."""
    renamed = {}
    for name, known in COLUMN_NAMES.items():
        found = next((column for column in known if column in columns), None)
        if found is None and name in needed:
            raise ValueError(f"{origin}: no column {' or '.join(known)}; it has {shown}")
        if found is not None and found != name and (name in needed or name != "file_name"):
            renamed[found] = name
    return renamed
