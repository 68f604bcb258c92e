"""From a corpus as it is distributed to a corpus folder: audio, labels, speakers, splits, durations and hashes."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile

from exhubert.audio_exhubert import SAMPLING_RATE, read_audio
from exhubert.corpora.clip_facts import scan_clips
from exhubert.corpora.distribution import SHOWN, Clips, Tree, list_tree, read_clips
from exhubert.corpora.labels import words_without_class
from exhubert.corpora.readers import read_corpus
from exhubert.corpora.registry import Corpus, corpus_or_none, find_corpus
from exhubert.corpora.splits import SPLIT_COLUMNS, SPLITS, assign_splits, protocol_labels, protocol_taken
from exhubert.utils.command import progress_bar
from exhubert.utils.files import NO_ROOM, VIDEO_SUFFIXES, disk_errors, remove_leftovers, whole_folder

MOST_MISSED = 0.3  # of the audio; IEMOCAP's clips without a majority are 25 %
AUDIO_MODES = ("link", "copy", "flac")
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
        audio: link (symbolic links to the files where they are), copy, or flac (16 kHz mono 16-bit); what libsndfile
            cannot read (video, m4a, webm) becomes FLAC in any case.
        table: CSV file with file_name (relative to `raw`), label and speaker, used instead of the naming scheme.
        protocol: how to split, and which labels; see docs/corpora.md. `auto` takes an official split as it is.
        fold: which fold, from 1, for protocols that have folds.
        seed: of a split that is made here.

    Returns:
        The exit code: 2 if clips were left out as something is wrong with them, or 30 % of the audio as unknown.

    Raises:
        ValueError: for an unknown key, a tree or table that is not as it should be, or an `output` that exists.
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
        remove_leftovers(output)
        raise ValueError(f"{output} exists; give another folder, or remove it")
    tree = list_tree(raw)
    if Path(os.path.realpath(raw)) in Path(os.path.realpath(output)).parents:
        raise ValueError(f"{output} is inside {raw}; give a folder outside the corpus")
    clips = read_clips(find_corpus(key), tree) if table is None else _read_table(Path(table), tree, corpus)
    name = corpus.key if corpus else key
    renamed = protocol_labels([row["label"] for row in clips.rows], name, protocol)
    labelled = list(zip(clips.rows, renamed, strict=True))
    clips.left_out["not in the protocol"] = [row["path"] for row, label in labelled if label is None]
    clips.rows = [row | {"label": label} for row, label in labelled if label is not None]
    with contextlib.redirect_stdout(io.StringIO()):  # what is wrong with a split is found before the work is done
        _split([{**row, "file_name": row["path"]} for row in clips.rows], Clips(), name, protocol, fold, seed)
    print(f"{corpus.name if corpus else key}: {len(clips.rows)} clips in {len(tree.audio)} audio files below {raw}")

    with whole_folder(output) as unfinished:
        try:
            rows = _place_audio(clips, tree, unfinished, audio, copies=table is not None)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise OSError(f"{output}: no space left on its disk; nothing was written") from error
            raise
        if rows:
            rows, protocol = _split(rows, clips, name, protocol, fold, seed)
            rows = [{**row, "corpus": name} for row in rows]
        clips.print_left_out()
        if not rows:
            raise ValueError(f"{raw}: none of the clips can be used")
        _write_texts(unfinished, rows, key, corpus, protocol, fold)
    _print_summary(output, rows, name)
    missed, named = len(clips.missed), len(clips.missed | {row["path"] for row in clips.rows})
    if many := missed >= MOST_MISSED * named:
        share = f"{missed:,} of {named:,} audio files ({missed / named:.0%})"
        print(f"{share} did not become clips; if they belong to the corpus, give a table of them: --table labels.csv")
    return 2 if many or any(clips.bad.values()) else 0


def _print_summary(output: Path, rows: list[dict[str, str]], name: str) -> None:
    """Prints how much there is, in all and in each split, and what has no class or no label."""
    hours, labels = sum(float(row["duration_seconds"]) for row in rows) / 3600, {row["label"] for row in rows} - {""}
    for split in ("", *SPLITS):
        part = [row for row in rows if split in ("", row["split"])]
        counts = f"{len(part)} clips, {len({row.get('speaker') for row in part} - {'', None}) or 'unknown'} speakers"
        print(f"  {split}: {counts}" if split else f"{output}: {counts}, {hours:.2f} hours, {len(labels)} labels")
    others = Counter(row.get("partition", "") for row in rows if not row["split"])
    if others:
        parts = ", ".join(f"{partition} ({count} clips)" for partition, count in sorted(others.items()))
        print(f"  in no split of this protocol: {parts}")
    if unlabelled := sum(not row["label"] for row in rows):
        print(f"without a label, but with numbers, so for dimensions alone: {unlabelled} clips")
    print(words_without_class([row["label"] for row in rows], name), end="")


def _read_table(path: Path, tree: Tree, corpus: Corpus | None) -> Clips:
    """The rows of a user's table, whose files are below the tree's root."""
    clips = Clips()
    for values in read_corpus(path).remove_columns("audio").to_list():
        row = {column: "" if value is None or value != value else str(value) for column, value in values.items()}
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


def _place_audio(clips: Clips, tree: Tree, folder: Path, audio: str, copies: bool) -> list[dict[str, str]]:
    """Puts the audio below `folder`/audio and returns the rows of the clips that decode; the others become bad.

    Without `copies` one of several clips with equal audio and cells in different folders, as some editions have them,
    is kept.
    """
    clips.rows.sort(key=lambda row: row["path"])
    shared = os.path.commonpath([os.path.dirname(row["path"]) for row in clips.rows]) if clips.rows else ""

    targets: dict[str, Path] = {}  # by the path in the tree: parts of a file share one
    for row in clips.rows:
        name = Path("audio", os.path.relpath(row["path"], shared or "."))
        if audio == "flac" or name.suffix.lower() in VIDEO_SUFFIXES:
            flac = name.with_suffix(".flac")
            name = name.with_name(f"{name.name}.flac") if flac in targets.values() else flac
        targets.setdefault(row["path"], name)

    def place(path: str) -> str:
        """Returns what is wrong, or nothing."""
        source, target = tree.audio[path].resolve(), folder / targets[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if audio == "flac" or source.suffix.lower() in VIDEO_SUFFIXES:
                samples = read_audio(source)
                with disk_errors(target):
                    soundfile.write(target, samples, SAMPLING_RATE, subtype="PCM_16")
            elif audio == "copy":
                shutil.copyfile(source, target)
            else:
                target.symlink_to(source)
        except (ValueError, PermissionError) as error:  # of this clip alone
            return str(error)
        return ""

    with ThreadPoolExecutor() as pool:
        placed = progress_bar(pool.map(place, targets), total=len(targets), desc=audio, unit="clip")
        problems = dict(zip(targets, placed, strict=True))
    good = [path for path, problem in problems.items() if not problem]
    facts = dict(zip(good, scan_clips([folder / targets[path] for path in good]), strict=True))
    rows = []
    for row in clips.rows:
        fact = facts.get(row["path"])
        problem = problems[row["path"]] if fact is None else fact.error
        # What is cut off is kept, as training reads what is there; `exhubert corpora check` names it.
        if fact is None or (problem and not problem.startswith("truncated")):
            # Counted by the reason, without the file that it may begin with.
            clips.bad[problem.partition(": ")[2] or problem].append(row["path"])
            (folder / targets[row["path"]]).unlink(missing_ok=True)
            continue
        cells = {column: value for column, value in row.items() if column != "path"}
        if not cells.get("start_seconds"):
            cells["duration_seconds"] = f"{fact.duration_seconds:.4f}"
        rows.append({"file_name": targets[row["path"]].as_posix(), **cells, "content_hash": fact.content_hash})
    if copies:
        return rows
    first_of: dict[object, dict[str, str]] = {}
    kept = []
    for row in sorted(rows, key=lambda row: (row["file_name"].count("/"), row["file_name"])):
        equal = frozenset((column, value) for column, value in row.items() if column != "file_name")
        first = first_of.setdefault(equal, row)
        if first is row or os.path.dirname(first["file_name"]) == os.path.dirname(row["file_name"]):
            kept.append(row)
        else:
            clips.left_out["copies of a clip that is there"].append(row["file_name"].removeprefix("audio/"))
            (folder / row["file_name"]).unlink()
    return sorted(kept, key=lambda row: row["file_name"])


def _split(
    rows: list[dict[str, str]], clips: Clips, key: str, protocol: str, fold: int | None, seed: int
) -> tuple[list[dict[str, str]], str]:
    """Fills `split`, and says by which protocol; clips that an official split does not name are left out of it.

    Not so where the corpus has them in a part of their own, which another protocol may take.
    """
    if protocol in ("auto", "official") and any(row.get("split") for row in rows):
        protocol = "official"
        named = [bool(row.get("split") or row.get("partition")) for row in rows]
        clips.left_out["not in the official split"] += [
            row["file_name"] for row, here in zip(rows, named, strict=True) if not here
        ]
        rows = [row for row, here in zip(rows, named, strict=True) if here]
    columns = {name: [row.get(name, "") for row in rows] for name in SPLIT_COLUMNS}
    splits = assign_splits(columns, key, protocol, fold, seed)
    return [row | {"split": split} for row, split in zip(rows, splits, strict=True)], protocol_taken(columns, protocol)


def _write_texts(
    folder: Path, rows: list[dict[str, str]], key: str, corpus: Corpus | None, protocol: str, fold: int | None
) -> None:
    """Writes metadata.csv, and in README.md what the folder holds, for people."""
    found = list(dict.fromkeys(column for row in rows for column in row))
    first = [column for column in FIRST_COLUMNS if column in found or column == "speaker"]
    votes = [column for column in found if column.startswith("votes_")]
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*first, *(column for column in found if column not in first)], restval="")
        writer.writeheader()
        for row in rows:
            voted = any(column in row for column in votes)
            writer.writerow(dict.fromkeys(votes, "0" if voted else "") | row)
    about = f"{corpus.citation}\n\nLicence: {corpus.licence}. Access: {corpus.access}.\n\n" if corpus else ""
    which = f"protocol `{protocol}`" + (f", fold {fold}" if fold else "")
    readme = f"""# {corpus.name if corpus else key}

{about}{len(rows)} clips, prepared by ExHuBERT for Transformers; split by {which}. `content_hash` is of the
decoded samples. The audio keeps its owner's licence.
"""
    (folder / "README.md").write_text(readme, encoding="utf-8")
