"""Corpus folders to labelled, split datasets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.labels import load_label_map, map_labels
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.corpora.splits import split_corpus


def load_corpora(
    entries: Sequence[str],
    root: str = ".",
    labels: str | Sequence[str] = "six",
    label_file: str | None = None,
    skip_bad_audio: bool = False,
    clips_per_corpus: int | None = None,
) -> tuple[dict[str, dict[str, Dataset]], list[str]]:
    """Reads, labels and splits corpora.

    Args:
        entries: corpus folders, below `root` or as paths of their own.
        root: where `entries` are looked for first.
        labels: six for the arousal/valence classes, native for the corpora's own words, or the class names of a
            model, which are either.
        label_file: a YAML file with further emotion words.
        skip_bad_audio: leave out clips whose audio does not decode.
        clips_per_corpus: use at most so many clips of each corpus, chosen at random but always the same.

    Returns:
        For each corpus, by the name of its folder, the splits train, validation and test, with the class index
        in the column `labels`; and the class names.

    Raises:
        ValueError: for anything wrong with a corpus; names it.
    """
    read: dict[str, Dataset] = {}
    for entry in entries:
        below = Path(root) / entry
        directory = Path(entry) if not below.is_dir() and Path(entry).is_dir() else below
        name = directory.resolve().name
        if name in read:
            raise ValueError(f"two corpora are called {name!r}; rename one of the folders")
        dataset = read_corpus(directory)
        if clips_per_corpus and clips_per_corpus < len(dataset):
            chosen = np.random.RandomState(0).permutation(len(dataset))[:clips_per_corpus]
            dataset = dataset.select(sorted(chosen.tolist()))
        read[name] = check_audio(dataset, skip_bad_audio)

    if labels == "native":
        class_names = sorted({label for dataset in read.values() for label in dataset["label"]})
    else:
        class_names = list(SIX_CLASSES if labels == "six" else labels)
    if class_names == list(SIX_CLASSES):
        words = load_label_map(label_file)
    else:
        words = {name.lower(): index for index, name in enumerate(class_names)}
    corpora = {}
    for name, dataset in read.items():
        indices = map_labels(dataset["label"], name, words)
        corpora[name] = split_corpus(dataset.add_column("labels", indices), name)
    return corpora, class_names
