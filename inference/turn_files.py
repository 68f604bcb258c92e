"""Who speaks when, as other tools say it: RTTM, Audacity labels, Praat TextGrids and CSV, and whose turns these are."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from exhubert.segments_exhubert import Turn
from exhubert.utils.text import as_text, in_one_line

KNOWN = ".rttm, .txt (Audacity labels), .TextGrid or .csv"
CSV_COLUMNS = ("file", "channel", "start", "end", "duration", "speaker")
# Praat's text files are numbers, texts and flags that stand free; all else in them is for people.
PRAAT_TOKEN = re.compile(r'"[^"]*(?:""[^"]*)*(?:"|$)|(?<!\S)[-+]?\d[\d.eE+-]*(?!\S)|<\w+>|(?<!\S)!.*')


class Entry(NamedTuple):
    """A turn as it is in a file, with its line there."""

    line: int
    start: str
    end: str
    speaker: str = ""
    channel: str = ""
    file: str | None = None
    duration: str | None = None  # in place of the end


def read_turns(path: str | os.PathLike[str]) -> dict[str | None, list[Turn]]:
    """Reads a file of turns; what it is, its name says.

    - `.rttm`: the lines that begin with SPEAKER; others are left out. Where all are of channel 0, they are of any.
    - `.txt`: labels as Audacity exports them, whose text is the speaker; frequencies are left out.
    - `.TextGrid`: long or short text. Each interval with a text is a turn. The speaker is the name of its tier; where
      one tier alone has turns, the interval's text.
    - `.csv`, `.tsv`: a header with `start` and `end` or `duration` in seconds, and if need be `speaker`, `channel`
      (from 1) and `file`, in any order, between commas, semicolons or tabs. Other columns are left out.

    Text is UTF-8, or UTF-16 with a byte order mark.

    Returns:
        The turns of each recording that is named, in the order of the file; under None those of a file that names none.
        A file in which nobody speaks gives an empty dict.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else, or a turn is none; with the number of the line.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: segments are `speech`, a file of turns ({KNOWN}), or a folder of such files")
    turns: dict[str | None, list[Turn]] = {}
    try:
        for entry in reader(_decoded(path.read_bytes())):
            turns.setdefault(entry.file, []).append(_turn(entry))
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    return turns


def turns_of_files(source: str, files: Sequence[str]) -> Callable[[str], list[Turn]]:
    """Finds out which turns belong to which audio file.

    Args:
        source: a file as `read_turns` takes it, which names its recordings, by their paths, names, or names without
            the ending, or stands for one audio file; or a folder with a file of turns for each, `call1.rttm` for
            `call1.wav`.
        files: the audio files.

    Returns:
        A function from the name of an audio file to its turns. It raises ValueError where there are none for it, and
        where its file in the folder is a bad one.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has no turns for any of the files, or says not whose they are.
    """
    if os.path.isdir(source):
        return _turns_in_folder(Path(source), files)
    try:
        turns = read_turns(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: no such file of turns") from error
    if not turns:
        raise ValueError(f"{source}: there are no turns in it")
    if None in turns and len(files) > 1:
        remedy = "give a .csv with a column `file`, an .rttm, or a folder with a file for each"
        raise ValueError(
            f"{source} does not say whose turns it has, and there are {len(files):,} audio files; {remedy}"
        )
    keys_of, found, owners = _finder(turns), dict[str, list[Turn]](), dict[str | None, str]()
    for name in files:
        for key in keys_of(name):
            if owners.setdefault(key, name) != name:
                raise ValueError(f"{source}: {key} may be {owners[key]} or {name}; give paths in a .csv")
            found.setdefault(name, []).extend(turns[key])
    if not found:
        named = ", ".join(sorted(map(str, turns))[:3])
        raise ValueError(f"{source} has turns of none of the audio files: it names {named}")

    def turns_of(name: str) -> list[Turn]:
        if name not in found:
            raise ValueError(f"there are no turns for it in {source}")
        return found[name]

    return turns_of


def turns_version(source: str, files: Sequence[str]) -> str:
    """A short hash of what `turns_of_files` reads, by which a change is noticed."""
    digest = hashlib.blake2b(digest_size=8)
    of_files = _files_in_folder(Path(source), files) if os.path.isdir(source) else {"": Path(source)}
    for name, path in of_files.items():
        content = path.read_bytes()
        digest.update(f"{as_text(Path(name).stem)}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _turns_in_folder(folder: Path, files: Sequence[str]) -> Callable[[str], list[Turn]]:
    of_files = _files_in_folder(folder, files)
    if not of_files:
        example = f"{Path(files[0]).stem}.rttm"
        raise ValueError(f"{folder} has no turns of the audio files; for {files[0]} there could be {example}")

    def turns_of(name: str) -> list[Turn]:
        if name not in of_files:
            raise ValueError(f"there are no turns for it in {folder}")
        turns = read_turns(of_files[name])
        keys = _finder(turns)(name)
        if turns and not keys:
            raise ValueError(f"{of_files[name]} has turns of {', '.join(map(str, turns))} alone")
        return [turn for key in keys for turn in turns[key]]

    return turns_of


def _files_in_folder(folder: Path, files: Sequence[str]) -> dict[str, Path]:
    """The file of turns of each audio file that has one; raises ValueError where it is not clear whose one is."""
    owners: dict[str, str] = {}
    of_files: dict[str, Path] = {}
    for name in files:
        if (other := owners.setdefault(Path(name).stem, name)) != name:
            raise ValueError(f"{folder}: turns of {Path(name).stem} may be of {other} or {name}; give paths in a .csv")
    for path in sorted(folder.iterdir()):
        owner = owners.get(path.stem)
        if owner is not None and path.suffix.lower() in READERS and of_files.setdefault(owner, path) != path:
            raise ValueError(f"{folder} has both {of_files[owner].name} and {path.name}; keep one of them")
    return of_files


def _finder(turns: Iterable[str | None]) -> Callable[[str], list[str | None]]:
    """A function from an audio file to the names that it has in a file of turns; if that has no names, to None."""
    known = dict.fromkeys(turns)
    by_path: dict[str, list[str | None]] = {}
    for key in known:
        if key is not None and (os.sep in key or "/" in key):
            by_path.setdefault(os.path.abspath(key), []).append(key)

    def keys_of(name: str) -> list[str | None]:
        path = os.path.abspath(as_text(name))
        names = dict.fromkeys((None, Path(path).name, Path(path).stem))
        return [*(key for key in names if key in known), *by_path.get(path, [])]

    return keys_of


def _decoded(content: bytes) -> list[str]:
    """The lines of a text, with their ends; raises ValueError if it is none."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line}: no text in {'UTF-16' if wide else 'UTF-8; save it as that'}") from error
    if "\0" in text:
        raise ValueError(f"line {text[: text.index(chr(0))].count(chr(10)) + 1}: null bytes, so it is no text")
    return list(io.StringIO(text, newline=None))


def _turn(entry: Entry) -> Turn:
    start = _number(entry.line, "start", entry.start)
    if entry.duration is None:
        end = _number(entry.line, "end", entry.end)
    else:
        end = round(start + _number(entry.line, "duration", entry.duration), 9)  # 2.898, where the sum is 2.8979...
    if start < 0:
        raise ValueError(f"line {entry.line}: the turn begins at {start:g} s, before the recording")
    if end <= start:
        raise ValueError(f"line {entry.line}: the turn begins at {start:g} s and ends at {end:g} s")
    channel = None
    if entry.channel:
        number = _number(entry.line, "channel", entry.channel)  # 1.0, as pandas writes a column with gaps
        if number < 1 or number != int(number):
            raise ValueError(f"line {entry.line}: the channel is {entry.channel!r}; they are counted from 1")
        channel = int(number)
    return Turn(start, end, in_one_line(entry.speaker) or None, channel)


def _number(line: int, what: str, text: str) -> float:
    """A finite number; in German and other spreadsheets it has a comma."""
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"line {line}: the {what} is {_short(text)}, and no number")
    return number


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def _rttm(lines: Sequence[str]) -> Iterator[Entry]:
    speaks = [(number, fields) for number, fields in enumerate(map(str.split, lines), 1) if fields[:1] == ["SPEAKER"]]
    if not speaks and any(map(str.strip, lines)):
        raise ValueError("line 1: in an .rttm a turn is a line that begins with SPEAKER, and there is none")
    # Kaldi writes 0 where it heard no channel on its own; beside others it would be the first.
    of_all = {"<NA>"} if {"".join(fields[2:3]) for _, fields in speaks} - {"0", "<NA>"} else {"<NA>", "0"}
    for number, fields in speaks:
        if len(fields) < 8:
            raise ValueError(
                f"line {number}: {len(fields)} fields; `SPEAKER file channel start duration ...` has 8 to 10"
            )
        file, channel, start, duration, speaker = *fields[1:5], fields[7]
        channel = "" if channel in of_all else channel
        yield Entry(number, start, "", speaker.replace("<NA>", ""), channel, file, duration)


def _audacity(lines: Sequence[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):  # the frequencies of the label before
            continue
        start, *rest = line.rstrip("\n").split("\t", 2)
        if not rest:
            raise ValueError(f"line {number}: {_short(line.strip())} is no Audacity label: start, tab, end, tab, text")
        yield Entry(number, start, *rest)


def _table(lines: Sequence[str]) -> Iterator[Entry]:
    number = next((number for number, line in enumerate(lines) if line.strip()), None)
    if number is None:
        raise ValueError("line 1: no header with `start` and `end`")
    headers = {
        mark: [name.strip().lower() for name in next(csv.reader([lines[number]], delimiter=mark))] for mark in ",;\t"
    }
    mark, header = max(headers.items(), key=lambda found: len(set(CSV_COLUMNS) & set(found[1])))
    if "start" not in header or not {"end", "duration"} & set(header):
        raise ValueError(f"line {number + 1}: the header needs `start` and `end`, it has {_short(', '.join(header))}")
    if twice := [name for name in CSV_COLUMNS if header.count(name) > 1]:
        raise ValueError(f"line {number + 1}: the header has {twice[0]!r} twice")
    rows = csv.reader(lines[number + 1 :], delimiter=mark)
    try:
        for cells in rows:
            line = number + 1 + rows.line_num
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(header):
                raise ValueError(f"line {line}: {len(cells)} cells, where the header has {len(header)}")
            row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
            if row.get("file") == "":
                raise ValueError(f"line {line}: `file` is empty")
            duration = None if row.get("end") else row.get("duration")
            values = (row["start"], row.get("end", ""), row.get("speaker", ""), row.get("channel", ""))
            yield Entry(line, *values, row.get("file"), duration)
    except csv.Error as error:
        raise ValueError(f"line {number + 1 + rows.line_num}: {error}") from error


def _textgrid(lines: Sequence[str]) -> Iterator[Entry]:
    tokens = _praat_tokens("".join(lines))
    line = 1

    def following(what: str, kind: str) -> str:
        nonlocal line
        line, token = next(tokens, (line, ""))
        if not token or (kind == "number") != (token[0] not in '"<') or (kind == "text") != (token[0] == '"'):
            raise ValueError(f"line {line}: {what} is missing; is it a TextGrid, as text, and whole?")
        return token[1:-1].replace('""', '"') if kind == "text" else token

    if following("`ooTextFile`", "text") not in ("ooTextFile", "ooTextFile short"):
        raise ValueError("line 1: no TextGrid, neither long nor short; save it in Praat as text")
    following("`TextGrid`", "text")
    for what in ("xmin", "xmax"):
        following(what, "number")
    following("`<exists>`", "flag")
    tiers: dict[str, list[Entry]] = {}
    for _ in range(int(_number(line, "size", following("the number of tiers", "number")))):
        of_intervals = following("the tier's class", "text") == "IntervalTier"
        name = following("the tier's name", "text")
        for what in ("xmin", "xmax"):
            following(what, "number")
        for _ in range(int(_number(line, "size", following("the tier's size", "number")))):
            start = following("a time", "number")
            end = following("a time", "number") if of_intervals else ""
            text = following("a text", "text").strip()
            if text and of_intervals:
                tiers.setdefault(name, []).append(Entry(line, start, end, text))
    for name, entries in tiers.items():
        for entry in entries:
            yield entry if len(tiers) == 1 else entry._replace(speaker=name)


def _praat_tokens(text: str) -> Iterator[tuple[int, str]]:
    """Yields the numbers, texts in their quotes, and flags, each with its line."""
    line, end = 1, 0
    for match in PRAAT_TOKEN.finditer(text):
        line += text.count("\n", end, match.start())
        end, token = match.start(), match[0]
        if token.startswith('"') and (len(token) == 1 or token.count('"') % 2):
            raise ValueError(f"line {line}: a text without its closing quotes")
        if not token.startswith("!"):
            yield line, token


READERS = {".rttm": _rttm, ".txt": _audacity, ".textgrid": _textgrid, ".csv": _table, ".tsv": _table}
