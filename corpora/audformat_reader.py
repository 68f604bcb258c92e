"""Reads an audformat database, as audEERING publishes corpora; of the library only what needs no pickle."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas

from exhubert.corpora.splits import SPLIT_NAMES
from exhubert.utils.files import read_table
from exhubert.utils.text import first_line


def read_audformat(directory: Path) -> pandas.DataFrame:
    """Returns the clips of an audformat database with `file_name`, `label`, `speaker`, and `split` where it has one.

    Raises:
        ValueError: if the library audformat is not installed, the database cannot be read, or its tables disagree.
    """
    try:
        import audformat
    except ImportError as error:
        raise ValueError(
            f"{directory} is an audformat database; reading it needs the library audformat: pip install audformat "
            "(or exhubert[audformat])"
        ) from error
    header = directory / "db.yaml"
    read_table(header, "YAML")  # audformat's own loader would also make Python objects that the file names
    # audformat prefers tables as pickles, which can run code when they are read.
    for pickle in directory.glob("db.*.pkl"):
        if not any(pickle.with_suffix(form).exists() for form in (".csv", ".parquet")):
            raise ValueError(f"{pickle}: pickles are not read; save the table as csv or parquet")
    with tempfile.TemporaryDirectory() as copy:
        try:
            for file in (header, *directory.glob("db.*.csv"), *directory.glob("db.*.parquet")):
                shutil.copy(file, copy)
            database = audformat.Database.load(copy, load_data=True)
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = first_line(error).replace(copy, str(directory))
            raise ValueError(f"{directory}: the database cannot be read: {reason}") from error
    return _emotion_table(directory, audformat, database)


def _emotion_table(directory: Path, audformat: Any, database: Any) -> pandas.DataFrame:
    """One row a file or segment, of the table `emotion`, else of all tables with a column or scheme `emotion`."""
    labelled = {}
    for name in database.tables:
        columns = database[name].columns
        found = [key for key in columns if key == "emotion" or columns[key].scheme_id == "emotion"]
        if len(found) > 1 and "emotion" not in found:
            raise ValueError(f"{directory}: table {name} has several columns of emotions: {', '.join(found)}")
        if found:
            labelled[name] = "emotion" if "emotion" in found else found[0]
    if not labelled:
        tables = "; ".join(f"{name} ({', '.join(database[name].columns)})" for name in database.tables)
        raise ValueError(f"{directory}: no table with a column or scheme `emotion`; it has {tables or 'no tables'}")
    if "emotion" in labelled:
        labelled = {"emotion": labelled["emotion"]}

    segmented = audformat.utils.to_segmented_index
    frames = []
    for name, column in labelled.items():
        frame = segmented(database[name].get())
        scheme = database.schemes.get(database[name].columns[column].scheme_id)
        values = frame.pop(column).astype(object)
        if scheme is not None and isinstance(scheme.labels, dict):  # e.g. {W: anger}
            values = values.replace({key: word for key, word in scheme.labels.items() if isinstance(word, str)})
        frames.append(frame.assign(label=values))
    rows = pandas.concat(frames)
    # A clip may be in several tables, if they agree on it.
    twice = rows.index.duplicated(keep=False)
    disagree = rows[twice].groupby(level=[0, 1, 2], dropna=False)["label"].nunique() > 1
    if disagree.any():
        file = disagree.index[disagree][0][0]
        words = rows.loc[[file], "label"].unique()
        raise ValueError(
            f"{directory}: the tables {', '.join(labelled)} have different labels for {file} "
            f"({', '.join(map(str, words))}); one called `emotion` would be taken alone"
        )
    rows = rows[~rows.index.duplicated()]
    try:
        speakers = segmented(database.get("speaker"))
    except (ValueError, TypeError) as error:
        reason = first_line(error).rstrip(":")
        raise ValueError(f"{directory}: the tables do not agree on the speakers ({reason})") from error
    rows["speaker"] = _of_clips(rows.index, speakers, "speaker")
    found = []
    for name in database.tables:
        header = database.splits.get(database[name].split_id)
        for part in [header.type] if header else name.split("."):
            if part in ("train", "dev", "test"):
                of_part = segmented(database[name].get()).index
                found.append(pandas.DataFrame({"split": SPLIT_NAMES.get(part, part)}, index=of_part))
    if found:  # a header or its name assigns a table to a split
        table = pandas.concat(found)
        table = table[~table.reset_index().duplicated().to_numpy()]
        repeated = table.index[table.index.duplicated()]
        if len(repeated):
            raise ValueError(f"{directory}: {repeated[0][0]} is in the tables of two splits")
        split = _of_clips(rows.index, table, "split")
        if without := int((split == "").sum()):
            print(f"{directory}: its split leaves {without} of {len(rows)} clips out, so it is not used")
        else:
            rows["split"] = split
    start, end = (rows.index.get_level_values(level).total_seconds() for level in ("start", "end"))
    if (start > 0).any() or end.notna().any():
        rows["start_seconds"], rows["duration_seconds"] = start, end - start
    rows.insert(0, "file_name", rows.index.get_level_values("file").astype(object))
    for name in rows.columns:  # categories, dates and durations as text
        if rows[name].dtype.kind not in "biuf":
            rows[name] = rows[name].astype(object).map(str, na_action="ignore")
    return rows.reset_index(drop=True)


def _of_clips(clips: pandas.MultiIndex, table: pandas.DataFrame, column: str) -> pandas.Series:
    """Each clip's value in a table of clips or of whole files, empty where it has none."""
    values = table[column].astype(object).dropna()
    own = values.reindex(clips)
    of_file = values[values.index.get_level_values("end").isna()].groupby(level="file").first()
    by_file = of_file.reindex(clips.get_level_values("file")).set_axis(clips)
    return own.where(own.notna(), by_file).fillna("")
