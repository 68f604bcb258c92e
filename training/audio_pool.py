"""The audio of a pre-training: any folders, as one pool of clips, of which a part is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from datasets import Audio, Dataset
from torch.utils.data import Dataset as TorchDataset

from exhubert.audio_exhubert import audio_seconds
from exhubert.corpora.load import find_source, random_part
from exhubert.corpora.readers import check_audio, locate_clip, read_corpus, rows_at_once, table_of_files
from exhubert.corpora.registry import folder_name
from exhubert.utils.files import is_audio, visible_files

LONGEST_CLIP_SECONDS = 15.0  # longer recordings are cut into equal parts; HuBERT's own crops have 15.6 s
VALIDATION_SHARE = 0.05
FEWEST_SPEAKERS = 10  # of a corpus whose validation clips are those of whole speakers


class AudioPool(TorchDataset):
    """Clips of several corpora: files, or parts of long ones.

    Args:
        corpora: the rows of each corpus, by its name, with `audio`.
        table: a row a clip: `corpus`, `row`, `file_name` (with the corpus before it), `speaker` (likewise, empty where
            it is unknown), `start_seconds`, `duration_seconds`.
    """

    def __init__(self, corpora: Mapping[str, Dataset], table: pandas.DataFrame) -> None:
        self.corpora = corpora
        self.table = table.reset_index(drop=True)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """A clip as `locate_clip` takes it, with its `file_name`."""
        names = ("file_name", "start_seconds", "duration_seconds")
        corpus, row, *values = (self.table[name].iat[clip] for name in ("corpus", "row", *names))
        return {"audio": self.corpora[str(corpus)][row]["audio"], **dict(zip(names, values, strict=True))}

    def select(self, clips: Sequence[int] | np.ndarray) -> AudioPool:
        """The pool of some of the clips."""
        return AudioPool(self.corpora, self.table.iloc[np.asarray(clips, dtype=int)])

    @property
    def hours(self) -> float:
        return float(self.table["duration_seconds"].sum() / 3600)

    def digest(self) -> str:
        """A line that changes with the clips and their order."""
        columns = self.table[["file_name", "start_seconds", "duration_seconds"]]
        text = columns.to_csv(index=False, float_format="%.3f")
        return f"{len(self)} clips, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read_pool(
    entries: Sequence[str], root: str = ".", skip_bad_audio: bool = False, clips_per_corpus: int | None = None
) -> AudioPool:
    """Reads corpora, or folders of audio files, as one pool.

    Args:
        entries: corpus folders, below `root` or as paths of their own, or whatever else `read_corpus` reads, labelled
            or not; of a folder without metadata all audio files below it are taken.
        root: where `entries` are looked for first.
        skip_bad_audio: leave out files whose audio does not decode.
        clips_per_corpus: use so many clips of each corpus, chosen at random but always the same.

    Raises:
        ValueError: for anything wrong with a corpus; names it.
    """
    corpora: dict[str, Dataset] = {}
    tables = []
    for entry in entries:
        source = find_source(entry, root)
        name = folder_name(source)
        if name in corpora:
            raise ValueError(f"{source}: the name {name!r} is taken; rename the folder")
        dataset = read_any_audio(source)
        if clips_per_corpus is not None and clips_per_corpus < len(dataset):
            dataset = random_part(dataset, clips_per_corpus)
        dataset = check_audio(dataset, skip_bad_audio)
        if not len(dataset):
            raise ValueError(f"{source}: no clips with good audio")
        tables.append(clip_table(name, dataset))
        corpora[name] = dataset.select_columns("audio")
    return AudioPool(corpora, pandas.concat(tables, ignore_index=True))


def read_any_audio(source: str | Path) -> Dataset:
    """Returns the rows of a corpus, labelled or not, or of a folder of audio files: `audio`, `file_name`, `speaker`."""
    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not folder.is_dir() or saved or table_of_files(folder) is not None:
        return read_corpus(source, labelled=False)
    files = [path for path in visible_files(folder) if is_audio(path)]
    if not files:
        raise ValueError(f"{folder}: no audio files in this folder")
    columns = {
        "audio": [str(path) for path in files],
        "file_name": [path.relative_to(folder).as_posix() for path in files],
        "speaker": [""] * len(files),
    }
    return Dataset.from_dict(columns).cast_column("audio", Audio(decode=False))


def clip_table(corpus: str, dataset: Dataset) -> pandas.DataFrame:
    """The clips of a corpus, as `AudioPool` has them; long ones in parts."""

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        audio, start, duration = locate_clip(row)
        return start, audio_seconds(audio) - start if duration is None else duration

    places: list[tuple[float, float]] = []
    with ThreadPoolExecutor() as pool:
        for some in rows_at_once(dataset):
            places += pool.map(place, some)
    starts, seconds = np.array(places).T
    parts = np.maximum(1, np.ceil(seconds / LONGEST_CLIP_SECONDS - 1e-9)).astype(int)
    rows = np.repeat(np.arange(len(dataset)), parts)
    part = np.concatenate([np.arange(count) for count in parts])
    speakers = [f"{corpus}/{speaker}" if speaker else "" for speaker in dataset["speaker"][:]]
    return pandas.DataFrame(
        {
            "corpus": corpus,
            "row": rows,
            "file_name": [f"{corpus}/{name}" for name in np.array(dataset["file_name"][:])[rows]],
            "speaker": np.array(speakers)[rows],
            "start_seconds": starts[rows] + part * (seconds / parts)[rows],
            "duration_seconds": (seconds / parts)[rows],
        }
    )


def hold_out(pool: AudioPool) -> np.ndarray:
    """Returns which clips are for validation, boolean `(clips,)`: about 5 % of each corpus, at least one file of all.

    They are those of whole speakers where a corpus has at least ten and all are known, else of whole files. Which ones
    follows from their names alone.

    Raises:
        ValueError: if there is only one file.
    """
    held = np.zeros(len(pool), dtype=bool)
    first: tuple[str, Any] = ("", -1)
    for _, rows in pool.table.groupby("corpus", sort=False):
        speakers = rows["speaker"]
        by_speaker = (speakers != "").all() and speakers.nunique() >= FEWEST_SPEAKERS
        groups = rows.groupby("speaker" if by_speaker else "file_name", sort=False).indices
        wanted, found = round(VALIDATION_SHARE * len(rows)), 0
        ordered = sorted((hashlib.sha256(str(name).encode()).hexdigest(), name) for name in groups)
        first = max(first, (ordered[0][0], rows.index[groups[ordered[0][1]]]), key=lambda each: each[0])
        for _, name in ordered:
            if found >= wanted or len(groups) == 1:
                break
            held[rows.index[groups[name]]] = True
            found += len(groups[name])
    if not held.any():
        held[first[1]] = True
    if held.all():
        raise ValueError("pre-training needs at least two audio files, one of which is held out for validation")
    return held
