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

import yaml
from exhubert.configuration_exhubert import SIX_CLASSES

LABEL_FILE = Path(__file__).with_name("labels.yaml")


def load_label_map(label_file: str | os.PathLike[str] | None = None) -> dict[str, int]:
    """Returns every known word, aliases included, with its class 0 to 5.

    Raises:
        ValueError: if `label_file` is not a table of words with arousal and valence.
    """
    words = _read(LABEL_FILE)
    if label_file is not None:
        own = _read(Path(label_file))
        words = {word: index for word, index in words.items() if word not in own} | own
    return words


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
            f"`{label}: {{arousal: high, valence: negative}}`, and name that file as `label_file` in the recipe"
        )
    return [label_map[_key(label)] for label in labels]


def _key(word: str) -> str:
    return word.strip().lower()


def _read(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise ValueError(f"{path}: no such label file")
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: a table `word: {{arousal: ..., valence: ...}}` is needed")
    words: dict[str, int] = {}
    for word, entry in entries.items():
        place = f"{entry.get('arousal')}/{entry.get('valence')}" if isinstance(entry, dict) else str(entry)
        if place not in SIX_CLASSES:
            raise ValueError(
                f"{path}: {word!r} is {place}; arousal must be low or high, valence negative, neutral or positive"
            )
        for name in (word, *entry.get("aliases", ())):
            if _key(str(name)) in words:
                raise ValueError(f"{path}: the word {name!r} stands there twice")
            words[_key(str(name))] = SIX_CLASSES.index(place)
    return words
