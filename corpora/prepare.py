"""From a corpus as it is distributed to a corpus folder: audio, labels, speakers, splits, durations and hashes."""

from __future__ import annotations

import csv
import os
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import soundfile
from tqdm.auto import tqdm

from exhubert.audio_exhubert import SAMPLING_RATE, read_audio
from exhubert.corpora.naming import SHOWN, VIDEO_SUFFIXES, Clips, Tree, list_tree, read_clips
from exhubert.corpora.registry import Corpus, corpus_or_none, find_corpus
from exhubert.corpora.scan import scan_clips
from exhubert.corpora.splits import SPLITS, assign_splits
from exhubert.model_folder import folder_beside

AUDIO_MODES = {
    "link": "symbolic links to the files where they are",
    "copy": "copies of the files",
    "flac": "16 kHz mono 16-bit FLAC",
}
FIRST_COLUMNS = ("file_name", "label", "speaker", "language", "split", "duration_seconds", "sex", "session")


def prepare_corpus(
    key: str,
    raw: str | os.PathLike[str],
    output: str | os.PathLike[str],
    audio: str = "link",
    table: str | os.PathLike[str] | None = None,
    protocol: str = "auto",
    fold: int | None = None,
    seed: int = 0,
) -> int:
    """Makes a corpus folder of a corpus as it is distributed, and says what was done.

    Args:
        key: key or alias in the registry; any name with `table`.
        raw: folder into which the corpus was unpacked, at any depth.
        output: folder to write; must not exist. It appears when it is complete.
        audio: one of `AUDIO_MODES`; what libsndfile cannot read (video, m4a, webm) becomes FLAC in any case.
        table: CSV file with file_name (relative to `raw`), label and speaker, used instead of the naming scheme.
        protocol: how to split; see `exhubert.corpora.splits`. `auto` takes an official split as it is.
        fold: which fold, from 1, for protocols that have folds.
        seed: of a split that is made here.

    Returns:
        How many clips were left out because something is wrong with them.

    Raises:
        ValueError: if the key is unknown, the tree does not follow the corpus's scheme, `output` exists, or the table
            is wrong.
    """
    corpus = find_corpus(key) if table is None else corpus_or_none(key)
    if corpus is not None and table is None and not corpus.scheme:
        raise ValueError(
            f"how {corpus.name}'s files are named is not established ({corpus.scheme_unknown}); give a table with "
            "file_name, label and speaker: --table labels.csv"
        )
    if audio not in AUDIO_MODES:
        raise ValueError(f"audio is {audio!r}; it must be {', '.join(AUDIO_MODES)}")
    if table is not None and not Path(table).is_file():
        raise ValueError(f"{table}: no such table; a CSV file with file_name, label and speaker is needed")
    output = Path(output)
    if os.path.lexists(output):
        raise ValueError(f"{output} exists; give another folder, or remove it")
    tree = list_tree(raw)
    if Path(os.path.abspath(raw)) in Path(os.path.abspath(output)).parents:
        raise ValueError(f"{output} is inside {raw}; give a folder outside the corpus")
    if table is None:
        assert corpus is not None
        clips = read_clips(corpus, tree)
    else:
        clips = _read_table(Path(table), tree, corpus)
    print(f"{corpus.name if corpus else key}: {len(clips.rows)} clips in {len(tree.audio)} audio files below {raw}")

    with folder_beside(output) as unfinished:
        rows = _place_audio(clips, tree, unfinished, audio)
        if rows:
            rows = _split(rows, clips, corpus.key if corpus else key, protocol, fold, seed)
            _write_metadata(unfinished / "metadata.csv", rows)
            (unfinished / "README.md").write_text(_readme(key, corpus, len(rows), protocol, fold), encoding="utf-8")
            os.rename(unfinished, output)
    for title, reasons in (("left out", clips.left_out), ("left out, please look", clips.bad)):
        for reason, paths in reasons.items():
            if paths:
                more = ", ..." if len(paths) > SHOWN else ""
                print(f"{title}: {len(paths)} {reason}: {', '.join(paths[:SHOWN])}{more}")
    if not rows:
        raise ValueError(f"{raw}: none of the clips can be used")
    hours = sum(float(row["duration_seconds"]) for row in rows) / 3600
    print(f"{output}: {_counts(rows)}, {hours:.2f} hours, {len({row['label'] for row in rows})} labels")
    for split in SPLITS:
        print(f"  {split}: {_counts([row for row in rows if row['split'] == split])}")
    return sum(map(len, clips.bad.values()))


def _read_table(path: Path, tree: Tree, corpus: Corpus | None) -> Clips:
    """The rows of a user's table, whose files are below the tree's root."""
    from exhubert.corpora.readers import read_corpus

    columns = read_corpus(path).remove_columns("audio").to_dict()
    clips = Clips()
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, map(_text, values), strict=True))
        name = unicodedata.normalize("NFC", row.pop("file_name").replace("\\", "/").removeprefix("./"))
        if name not in tree.audio:
            clips.bad[f"in {path.name}, but not below {tree.root}"].append(name)
            continue
        if corpus is not None and len(corpus.languages) == 1 and not row.get("language"):
            row["language"] = corpus.languages[0]
        clips.rows.append({"path": name, **row})
    rows = {row["path"] for row in clips.rows}
    clips.left_out[f"not in {path.name}"] = [name for name in tree.audio if name not in rows]
    if not clips.rows:
        named = next(iter(clips.bad.values()))[:SHOWN]
        found = list(tree.audio)[:SHOWN]
        raise ValueError(
            f"{path}: none of its files is below {tree.root}; it names {', '.join(named)}, there is {', '.join(found)}"
        )
    return clips


def _place_audio(clips: Clips, tree: Tree, folder: Path, audio: str) -> list[dict[str, str]]:
    """Puts the audio below `folder`/audio and returns the rows of the clips that decode; the others become bad."""

    shared = os.path.commonpath([os.path.dirname(row["path"]) for row in clips.rows]) if clips.rows else ""

    def place(row: dict[str, str]) -> str | ValueError:
        source = tree.audio[row["path"]].resolve()
        convert = audio == "flac" or source.suffix.lower() in VIDEO_SUFFIXES
        name = PurePosixPath("audio", os.path.relpath(row["path"], shared or "."))
        name = name.with_suffix(".flac") if convert else name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if convert:
            try:
                samples = read_audio(source)
            except ValueError as error:  # of this clip alone
                return error
            soundfile.write(target, samples, SAMPLING_RATE, subtype="PCM_16")
        elif audio == "copy":
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source)
        return str(name)

    with ThreadPoolExecutor() as pool:
        placed = list(tqdm(pool.map(place, clips.rows), total=len(clips.rows), desc=audio, unit="clip"))
    files = [folder / name if isinstance(name, str) else None for name in placed]
    facts = dict(zip(filter(None, files), scan_clips(list(filter(None, files))), strict=True))
    rows = []
    for row, name, file in zip(clips.rows, placed, files, strict=True):
        fact = facts[file] if file else None
        # What is cut off is kept, as training reads what is there; `exhubert corpora check` names it.
        if fact is None or (fact.error and not fact.error.startswith("truncated")):
            clips.bad[_reason(str(name) if fact is None else str(fact.error))].append(row["path"])
            if file:
                file.unlink()
            continue
        cells = {column: value for column, value in row.items() if column != "path"}
        measured = {"duration_seconds": f"{fact.duration_seconds:.4f}", "content_hash": fact.content_hash}
        rows.append({"file_name": str(name), **cells, **measured})
    return rows


def _split(
    rows: list[dict[str, str]], clips: Clips, key: str, protocol: str, fold: int | None, seed: int
) -> list[dict[str, str]]:
    """Fills `split`; clips that an official split does not name are left out where it is used."""
    if protocol in ("auto", "official") and any(row.get("split") for row in rows):
        protocol = "official"
        clips.left_out["not in the official split"] += [row["file_name"] for row in rows if not row.get("split")]
        rows = [row for row in rows if row.get("split")]
    names = ("file_name", "label", "speaker", "split", "session", "content_hash")
    columns = {name: [row.get(name, "") for row in rows] for name in names}
    splits = assign_splits(columns, key, protocol, fold, seed)
    return [row | {"split": split} for row, split in zip(rows, splits, strict=True)]


def _write_metadata(path: Path, rows: list[dict[str, str]]) -> None:
    found = list(dict.fromkeys(column for row in rows for column in row))
    first = [column for column in FIRST_COLUMNS if column in found or column == "speaker"]
    no_votes = {column: "0" for column in found if column.startswith("votes_")}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*first, *(column for column in found if column not in first)], restval="")
        writer.writeheader()
        writer.writerows(no_votes | row for row in rows)


def _counts(rows: list[dict[str, str]]) -> str:
    speakers = {row["speaker"] for row in rows if row.get("speaker")}
    return f"{len(rows)} clips, {len(speakers) or 'unknown'} speakers"


def _readme(key: str, corpus: Corpus | None, clips: int, protocol: str, fold: int | None) -> str:
    """What the folder holds, for people."""
    lines = [f"# {corpus.name if corpus else key}", ""]
    if corpus is not None:
        lines += [corpus.citation, "", f"Licence: {corpus.licence}. Access: {corpus.access}.", ""]
    which = f"protocol `{protocol}`" + (f", fold {fold}" if fold else "")
    lines += [
        f"{clips} clips, prepared by ExHuBERT for Transformers; split by {which}. `content_hash` is of the",
        "decoded samples. The audio keeps its owner's licence.",
        "",
    ]
    return "\n".join(lines)


def _reason(error: str) -> str:
    """An error's text without the file that it begins with, so that equal ones are counted together."""
    return error.partition(": ")[2] or error


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)
