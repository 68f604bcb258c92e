"""From a corpus as it is distributed to rows: file names by the scheme of the registry, joined to its text files."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from exhubert.corpora.metadata import DIMENSIONS
from exhubert.corpora.registry import Corpus, patterns_of
from exhubert.utils.files import AUDIO_SUFFIXES, VIDEO_SUFFIXES, is_audio, visible_files

STANDARD_COLUMNS = ("speaker", "sex", "session", "language", "split", "text", "intensity", "take")
SHOWN = 3  # examples in messages
NOT_ON_PURPOSE = ("names outside the scheme", "in no table of labels")
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclass
class Tree:
    """The files below a folder: relative path, readable and with `/`, to the path on disk."""

    root: Path
    audio: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)


@dataclass
class Clips:
    """The rows of a corpus, and what was left out.

    Each row has `path` (relative to the tree), `label` (empty where a clip has nothing but numbers), `speaker` and the
    columns that the corpus has. `left_out` and `bad` have the paths by reason; what is in `bad` should have become a
    row. `emptied` has those whose numbers were taken out.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    bad: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    emptied: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def missed(self) -> set[str]:
        """The audio files that are neither clips nor what a corpus, a table or a protocol leaves out on purpose."""
        return {path for reason in NOT_ON_PURPOSE for path in self.left_out.get(reason, [])}.union(*self.bad.values())

    def print_left_out(self) -> None:
        """Prints a line for each reason for which clips were left out, or numbers of them."""
        titled = (("left out", self.left_out), ("left out, please look", self.bad), ("left empty", self.emptied))
        for title, reasons in titled:
            for reason, paths in reasons.items():
                if paths:
                    more = ", ..." if len(paths) > SHOWN else ""
                    print(f"{title}: {len(paths)} {reason}: {', '.join(paths[:SHOWN])}{more}")


def list_tree(root: str | os.PathLike[str]) -> Tree:
    """Lists audio and other files below `root`, following links, each folder once.

    Raises:
        ValueError: if `root` is no folder or holds no audio.
    """
    tree = Tree(Path(root))
    if not tree.root.is_dir():
        raise ValueError(f"{root}: no such folder")
    for path in visible_files(tree.root, follow_links=True):
        if path.is_file():
            name = path.relative_to(tree.root).as_posix()
            try:
                name.encode("utf-8")
            except UnicodeEncodeError:  # names that are not UTF-8 are read as Latin-1
                name = os.fsencode(name).decode("latin-1")
            files = tree.audio if is_audio(path) else tree.texts
            files[unicodedata.normalize("NFC", name)] = path
    if not tree.audio:
        formats = " ".join(suffix[1:] for suffix in (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES))
        raise ValueError(f"{root}: no audio there; files that end in {formats} count as audio")
    return tree


def read_clips(corpus: Corpus, tree: Tree) -> Clips:
    """Returns the rows of a corpus whose naming scheme the registry has.

    Raises:
        ValueError: if no file follows the scheme (names what was expected and what was found), a text file that it
            needs is missing, or a text file gives a clip two labels.
    """
    scheme = corpus.scheme
    patterns, not_clips = (patterns_of(corpus.key, scheme, name) for name in ("clips", "leave_out"))
    rules = scheme.get("columns", {})
    columns = {name: _rule(rule) for name, rule in rules.items()}
    templates = [rule if isinstance(rule, str) else rule["of"] for rule in rules.values()]
    hidden = {name for template in templates for name in PLACEHOLDER.findall(template)} - set(STANDARD_COLUMNS)
    tables = scheme.get("tables", [])
    joins = [(table.get("match", "{stem}"), _read_table(corpus, tree, table)) for table in tables]
    labelling = ["label" in table.get("columns", {}) for table in tables]
    clips = Clips()
    matched = 0
    for path in tree.audio:
        stem = str(PurePosixPath(path).with_suffix(""))
        if any(pattern.fullmatch(stem) for pattern in not_clips):
            clips.left_out["not clips of the corpus"].append(path)
            continue
        match = next(filter(None, (pattern.fullmatch(stem) for pattern in patterns)), None)
        if match is None:
            clips.left_out[NOT_ON_PURPOSE[0]].append(path)
            continue
        matched += 1
        groups = {name: value or "" for name, value in match.groupdict().items()}
        place = PurePosixPath(stem)
        values = {"stem": place.name, "parent": place.parent.name, "path": stem} | groups
        row = {name: value for name, value in groups.items() if name not in hidden and not name.startswith("_")}
        labelled = not any(labelling)  # by the name itself, or named in a table of labels
        try:
            given: dict[str, str] = {}
            for (template, cells), labels in zip(joins, labelling, strict=True):
                found = cells.get(_clip_key(template, values))
                labelled |= labels and found is not None
                found = found or {}
                given |= {name: value for name, value in found.items() if value}
                values |= given
            for name, rule in columns.items():
                if not given.get(name):
                    row[name] = values[name] = rule(values)
            row |= given
        except LookupError as error:
            clips.bad[str(error.args[0])].append(path)
            continue
        for name in [name for name, ends in corpus.scales.items() if row.get(name) and not _within(row[name], *ends)]:
            row[name] = ""
            clips.emptied[f"of {name}, which is {' to '.join(map(str, corpus.scales[name]))}"].append(path)
        rated = any(row.get(name) for name in DIMENSIONS)
        if not row.setdefault("label", "") and not rated:
            reason = f"without an emotion label{' and numbers' if corpus.scales else ''}"
            reason += f", in the corpus's part {row['partition']}" if row.get("partition") else ""
            clips.left_out[reason if labelled or row.get("partition") else NOT_ON_PURPOSE[1]].append(path)
            continue
        if len(corpus.languages) == 1:
            row.setdefault("language", corpus.languages[0])
        clips.rows.append({"path": path, **row})
    if not matched:
        raise ValueError(
            f"{tree.root}: none of its {len(tree.audio)} audio files is named as in {corpus.name}; expected names such "
            f"as {corpus.scheme['example']}, found {', '.join(list(tree.audio)[:SHOWN])}. If this is another edition "
            "of the corpus, give a table of its files: --table labels.csv"
        )
    # Of several forms of a clip, such as .wav and .mp3, in a folder one is kept.
    suffixes = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)
    forms: dict[PurePosixPath, list[dict[str, str]]] = defaultdict(list)
    for row in clips.rows:
        forms[PurePosixPath(row["path"]).with_suffix("")].append(row)
    clips.rows = []
    for rows in forms.values():
        row, *others = sorted(rows, key=lambda row: suffixes.index(Path(row["path"]).suffix.lower()))
        clips.left_out["other forms of a clip that is there"] += [other["path"] for other in others]
        clips.rows.append(row)
    return clips


def _read_table(corpus: Corpus, tree: Tree, table: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The cells of a table of the distribution by the key of their clip."""
    (pattern,) = patterns_of(corpus.key, table, "files")
    columns = {name: _rule(rule) for name, rule in table.get("columns", {}).items()}
    votes = table.get("votes")
    vote = _rule({"of": "{vote}", "table": votes["table"]} if votes else "")
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    files = {path: match for path in tree.texts if (match := pattern.fullmatch(path))}
    if not files and table.get("required", True):
        name = table["files"].replace("\\", "")
        raise ValueError(f"{tree.root}: no file {name} there, which {corpus.name} needs beside its audio")
    for path, match in files.items():
        for number, row in enumerate(_rows(tree.texts[path], table), start=1):
            values = {name: value or "" for name, value in match.groupdict().items()} | row
            try:
                key = _clip_key(table["clip"], values)
                if not key:
                    continue
                for name, rule in columns.items():
                    value = rule(values)
                    before = cells[key].get(name)
                    if name == "label" and before and value and before != value:
                        raise ValueError(f"{path}, row {number}: {key} is {value!r} there, and {before!r} before")
                    if value:
                        cells[key][name] = value
                if votes:
                    words = _fill(votes["of"], values)
                    for word in words.split(votes["separator"]) if "separator" in votes else [words]:
                        if word.strip():
                            counts[key][vote({"vote": word})] += 1
            except LookupError as error:
                raise ValueError(f"{path}, row {number}: {error.args[0]}") from error
    for key, counted in counts.items():
        cells[key] |= {f"votes_{word}": str(count) for word, count in counted.items() if word}
    return cells


def _rows(path: Path, table: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The rows of a text file, as text."""
    with path.open(encoding=table.get("encoding", "utf-8-sig"), errors="replace", newline="") as file:
        if "lines" in table:
            pattern = re.compile(table["lines"])
            carried: dict[str, str] = {}
            for match in (pattern.fullmatch(line.rstrip("\r\n")) for line in file):
                if match:
                    row = {name: value or carried.get(name, "") for name, value in match.groupdict().items()}
                    carried = {name: row[name] for name in table.get("carry", [])}
                    yield row
            return
        separator = table.get("separator", ",")
        lines: Iterable[list[str]]
        lines = (line.split() for line in file) if separator == " " else csv.reader(file, delimiter=separator)
        stripped = ([cell.strip() for cell in line] for line in lines if any(line))
        header = table.get("header") or next(stripped, [])
        for cells in stripped:
            yield dict(zip(header, cells, strict=False))


def _within(text: str, low: float, high: float) -> bool:
    """Whether a text is a number from `low` to `high`."""
    try:
        return low <= float(text) <= high
    except ValueError:
        return False


def _rule(rule: str | Mapping[str, Any]) -> Callable[[Mapping[str, str]], str]:
    """A column's rule as a function of a clip's values; a code that is not in its table is a LookupError."""
    if isinstance(rule, str):
        return lambda values: _fill(rule, values)
    words = {code.strip().lower(): value or "" for key, value in rule["table"].items() for code in key.split(",")}

    def look_up(values: Mapping[str, str]) -> str:
        code = _fill(rule["of"], values)
        word = words.get(code.strip().lower(), words.get("*"))
        if word is None:
            raise LookupError(f"the code {code!r} is none of {', '.join(rule['table'])}")
        return _fill(word, values)

    return look_up


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name in PLACEHOLDER.findall(template):
        if name not in values:
            raise LookupError(f"no value {name!r} for {template!r}; there are {', '.join(values)}")
    return PLACEHOLDER.sub(lambda match: values[match[1]], template).strip()


def _clip_key(template: str, values: Mapping[str, str]) -> str:
    """By what clips are looked up in a table: without an audio file's suffix, in lower case."""
    name = _fill(template, values)
    return (name.rpartition(".")[0] if is_audio(name) else name).lower()
