"""From a corpus's own label words to the six arousal/valence classes (paper, section 2).

The table is data: `labels.yaml` beside this file, or a file of the same form given by the user, whose entries
add to it or replace its own.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.registry import corpus_or_none, find_corpus
from exhubert.utils.files import LOADER_OF_OWN_FILES, read_table
from exhubert.utils.text import nearest

LABEL_FIELDS = {"arousal", "valence", "aliases", "source", "disputed", "note", "corpora"}
ALIKE = 0.7  # from there on a known word is named for an unknown one
LABEL_FILE = Path(__file__).with_name("labels.yaml")


def load_label_map(
    label_file: str | os.PathLike[str] | None = None, corpus: str | None = None
) -> dict[str, int | None]:
    """Returns every known word, aliases included, with its class 0 to 5, or None where it names no emotion.

    With `corpus` the codes of its naming scheme are known as well, such as 05 of RAVDESS.

    Args:
        label_file: a table of the same form whose entries add to the shipped ones or replace them.
        corpus: the corpus that the words are of, by its registry key or an alias; what a word means there wins.

    Raises:
        ValueError: if `label_file` is not a table of words with arousal and valence.
    """
    return _load(label_file, corpus)[0]


def load_class_words(
    class_names: Sequence[str], label_file: str | os.PathLike[str] | None = None, corpus: str | None = None
) -> dict[str, int | None]:
    """Returns words with the index of the class that a model has for them, or None where their clips are left out.

    Args:
        class_names: of the model. If they are the six, in any order, the words are those of `load_label_map`; else the
            names themselves.
        label_file: for the six as in `load_label_map`; else a YAML table `word: class name`, null to leave clips out.
        corpus: as in `load_label_map`.

    Raises:
        ValueError: if `label_file` is not such a table.
    """
    if set(class_names) == set(SIX_CLASSES):
        words = load_label_map(label_file, corpus)
        order = [class_names.index(name) for name in SIX_CLASSES]
        return {word: None if index is None else order[index] for word, index in words.items()}
    known: dict[str, int | None] = {plain_word(name): index for index, name in enumerate(class_names)}
    for word, name in ({} if label_file is None else _read_words(Path(label_file))).items():
        if name is not None and plain_word(name) not in known:
            raise ValueError(f"{label_file}: {word!r} is {name!r}; the model's classes are {', '.join(class_names)}")
        known[plain_word(word)] = None if name is None else known[plain_word(name)]
    return known


def label_table(
    label_file: str | os.PathLike[str] | None = None, corpus: str | None = None, style: str = "table"
) -> str:
    """Returns every word with its class, source and aliases; `*` marks disputed ones, explained at the end.

    Args:
        label_file: as in `load_label_map`.
        corpus: only the words of this corpus, by its registry key or an alias, as they are meant there.
        style: "table", of lines that fit the terminal, or "csv", a row a word.
    """
    classes, entries = _load(label_file, corpus)
    if corpus is not None:
        wanted = {plain_word(label) for label in find_corpus(corpus).labels}
        names = {word: {word, *map(plain_word, entry.get("aliases") or [])} for word, entry in entries.items()}
        entries = {word: entry for word, entry in entries.items() if wanted & names[word]}
    if style == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["word", "arousal", "valence", "class", "source", "aliases", "disputed", "note"])
        for word, entry in entries.items():
            number = classes[word]
            place = ["", "", ""] if number is None else [*SIX_CLASSES[number].split("/"), str(number)]
            others, doubt = ", ".join(entry.get("aliases") or []), "yes" if entry.get("disputed") else "no"
            writer.writerow([word, *place, entry.get("source", ""), others, doubt, entry.get("note", "")])
        return text.getvalue().rstrip("\n")
    width = shutil.get_terminal_size((100, 24)).columns
    lines: list[str] = []
    notes: list[str] = []

    def add(to: list[str], text: str, indent: str) -> None:
        # Some scripts' letters take two columns.
        wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
        to += textwrap.wrap(text, max(40, width - min(wide, 20)), subsequent_indent=indent)

    for word, entry in entries.items():
        name, number = word + "*" * bool(entry.get("disputed")), classes[word]
        class_ = "no class" if number is None else f"{number} {SIX_CLASSES[number]}"
        add(lines, f"{name:20} {class_:15} ({entry.get('source', '')})", " " * 38)
        if entry.get("aliases"):
            add(lines, f"    {', '.join(entry['aliases'])}", "    ")
        if entry.get("note"):
            add(notes, f"{name}: {entry['note']}", "    ")
        for where, meant in (entry.get("corpora") or {}).items():
            notes.append(f"{word} in {where}: {meant['arousal']}/{meant['valence']}")
    aliases = sum(len(entry.get("aliases") or []) for entry in entries.values())
    disputed = sum(bool(entry.get("disputed")) for entry in entries.values())
    counts = f"{len(entries)} words, {aliases} aliases; * {disputed} disputed"
    return "\n".join([*lines, counts, *notes])


def words_without_class(labels: Iterable[str], corpus: str) -> str:
    """Says in a line which labels of a corpus are none of the six classes, or not known, and of how many clips."""
    classes = load_label_map(corpus=corpus)
    lines = ""
    for what, unmapped in (
        ("no class of the six, left out in training with them", lambda word: classes.get(word, -1) is None),
        ("unknown words, to be placed in a `label_file`", lambda word: word not in classes),
    ):
        found = Counter(label for label in labels if label and unmapped(plain_word(label)))
        if found:
            lines += f"{what}: {', '.join(f'{label!r} ({count} clips)' for label, count in found.most_common())}\n"
    return lines


def map_labels(
    labels: Sequence[str], corpus: str, label_map: Mapping[str, int | None], class_names: Sequence[str] | None = None
) -> list[int | None]:
    """Returns the class of each label of a corpus; None for words whose clips are left out.

    Raises:
        ValueError: for the most frequent label that is not in `label_map`; says how to add it.
    """
    unknown = Counter(label for label in labels if plain_word(label) not in label_map)
    if unknown:
        label, count = unknown.most_common(1)[0]
        if class_names is not None:
            raise ValueError(
                f"corpus {corpus!r}: label {label!r} ({count} clips) is no class of the model, which has "
                f"{', '.join(class_names)}. Say which of them it is in a YAML file, `{label}: <class>` (null leaves "
                "such clips out), and name that file as `label_file`"
            )
        alike = nearest(plain_word(label), label_map, ALIKE)
        raise ValueError(
            f"corpus {corpus!r}: label {label!r} ({count} clips) has no arousal and valence"
            + (f"; the nearest known word is {alike!r}" if alike else "")
            + f". Correct it in metadata.csv, or add it in a YAML file, `{label}: {{arousal: <low or high>, valence: "
            "<negative, neutral or positive>}` (none and none leave such clips out), and name it as `label_file`"
        )
    return [label_map[plain_word(label)] for label in labels]


def plain_word(word: object) -> str:
    """A label as it is looked up: lower case, blanks for underscores, accents composed."""
    return unicodedata.normalize("NFC", str(word)).strip().lower().replace("_", " ")


def _read_words(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such label file")
    return read_table(path, "YAML", LOADER_OF_OWN_FILES) if path == LABEL_FILE else read_table(path, "YAML")


def _load(
    label_file: str | os.PathLike[str] | None, corpus: str | None
) -> tuple[dict[str, int | None], dict[str, dict[str, Any]]]:
    """The class of every word and alias; and the entries, sorted, changed by those of `label_file`."""
    found = None if corpus is None else corpus_or_none(corpus)
    key = found.key if found else corpus
    own = {} if label_file is None else _read(Path(label_file), key)
    # A word's own entry keeps its shipped aliases, and its place wins over that of a shipped alias.
    shipped = {word: entry | own.get(word, {}) for word, entry in _read(LABEL_FILE, key).items()}
    placed = {word: {name: shipped.get(word, {}).get(name) for name in ("arousal", "valence")} for word in own}
    own = {word: placed[word] | entry for word, entry in own.items()}
    classes = _classes(shipped, LABEL_FILE if label_file is None else label_file) | _classes(own, label_file)
    # What a corpus's own codes mean wins, `dis` of EmoFilm (contempt) for example, but not over the user's file.
    codes = {} if found is None else {plain_word(code): plain_word(word) for code, word in found.label_codes.items()}
    classes |= {code: classes.get(word) for code, word in codes.items() if code not in own and word in {"", *classes}}
    added = {word: {"source": str(label_file)} | entry for word, entry in own.items() if word not in shipped}
    return classes, dict(sorted((shipped | added).items()))


def _read(path: Path, corpus: str | None) -> dict[str, dict[str, Any]]:
    """The entries of a label file by word, as they hold for a corpus."""
    entries = _read_words(path)
    if not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path}: a table `word: {{arousal: ..., valence: ...}}` is needed")
    known = {}
    for word, entry in entries.items():
        for name in set(entry) - LABEL_FIELDS:
            fields = ", ".join(sorted(LABEL_FIELDS))
            raise ValueError(f"{path}: {word!r} has the unknown field {name!r}; there are {fields}")
        here = {}
        places = entry.get("corpora") or {}
        if not isinstance(places, dict) or not all(isinstance(place, dict) for place in places.values()):
            needed = "a table `key: {arousal: ..., valence: ...}` is needed"
            raise ValueError(f"{path}: `corpora` of {word!r} is {places!r}; {needed}")
        for name, place in places.items():
            found = corpus_or_none(str(name))
            if corpus is not None and corpus == (found.key if found else name):
                here = place
        known[plain_word(word)] = entry | here
    return known


def _classes(entries: dict[str, dict[str, Any]], path: object) -> dict[str, int | None]:
    """The class of every word and alias."""
    words: dict[str, int | None] = {}
    for word, entry in entries.items():
        for where in (entry, *(entry.get("corpora") or {}).values()):
            place = f"{where.get('arousal')}/{where.get('valence')}"
            if place not in (*SIX_CLASSES, "none/none"):
                raise ValueError(
                    f"{path}: {word!r} is {place}; arousal must be low or high, valence negative, neutral or positive, "
                    "or both none where the word names no emotion"
                )
        place = f"{entry['arousal']}/{entry['valence']}"
        aliases = entry.get("aliases") or []
        if not isinstance(aliases, list):
            raise ValueError(f"{path}: the aliases of {word!r} are {aliases!r}; a list in [ ] is needed")
        for name in map(plain_word, (word, *aliases)):
            if name in words:
                raise ValueError(f"{path}: the word {name!r} stands there twice")
            words[name] = SIX_CLASSES.index(place) if place in SIX_CLASSES else None
    return words
