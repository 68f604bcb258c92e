"""From a corpus's own label words to the six arousal/valence classes (paper, section 2).

The table is data: `labels.yaml` beside this file, or a file of the same form given by the user, whose entries
add to it or replace its own.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from exhubert.configuration_exhubert import SIX_CLASSES

LABEL_FILE = Path(__file__).with_name("labels.yaml")


def load_label_map(label_file: str | os.PathLike[str] | None = None) -> dict[str, int]:
    """Returns every known word, aliases included, with its class 0 to 5.

    Raises:
        ValueError: if `label_file` is not a table of words with arousal and valence.
    """
    shipped = _read(LABEL_FILE)
    own = {} if label_file is None else _read(Path(label_file))
    # A word's own entry keeps its shipped aliases, and its place wins over that of a shipped alias.
    shipped = {word: entry | own.get(word, {}) for word, entry in shipped.items()}
    return _classes(shipped, LABEL_FILE if label_file is None else label_file) | _classes(own, label_file)


def map_labels(labels: Sequence[str], corpus: str, label_map: dict[str, int]) -> list[int]:
    """Returns the class of each label of a corpus.

    Raises:
        ValueError: for the most frequent label that is not in `label_map`; names the nearest known word and
            how to add it.
    """
    unknown = Counter(label for label in labels if _key(label) not in label_map)
    if unknown:
        label, count = unknown.most_common(1)[0]
        nearest = difflib.get_close_matches(_key(label), label_map, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"corpus {corpus!r}: label {label!r} ({count} clips) has no arousal and valence; the nearest known word "
            f"is {nearest!r}. Correct it in metadata.csv, or add it in a YAML file, e.g. "
            f"`{label}: {{arousal: high, valence: negative}}`, and name that file as `label_file`"
        )
    return [label_map[_key(label)] for label in labels]


def _key(word: object) -> str:
    return str(word).strip().lower()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a label file by word."""
    if not path.is_file():
        raise ValueError(f"{path}: no such label file")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path}: a table `word: {{arousal: ..., valence: ...}}` is needed")
    return {_key(word): entry for word, entry in entries.items()}


def _classes(entries: dict[str, dict[str, Any]], path: object) -> dict[str, int]:
    """The class of every word and alias."""
    words: dict[str, int] = {}
    for word, entry in entries.items():
        place = f"{entry.get('arousal')}/{entry.get('valence')}"
        if place not in SIX_CLASSES:
            raise ValueError(
                f"{path}: {word!r} is {place}; arousal must be low or high, valence negative, neutral or positive"
            )
        aliases = entry.get("aliases") or []
        if not isinstance(aliases, list):
            raise ValueError(f"{path}: the aliases of {word!r} are {aliases!r}; a list in [ ] is needed")
        for name in map(_key, (word, *aliases)):
            if name in words:
                raise ValueError(f"{path}: the word {name!r} stands there twice")
            words[name] = SIX_CLASSES.index(place)
    return words
