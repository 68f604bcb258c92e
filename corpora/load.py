"""Corpus folders to labelled, split datasets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.labels import load_class_words, map_labels, plain_word
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.corpora.registry import corpus_key
from exhubert.corpora.splits import PROTOCOLS, SPLITS, protocol_labels, split_corpus


def load_corpora(
    entries: Sequence[str],
    root: str = ".",
    labels: str | Sequence[str] = "six",
    label_file: str | None = None,
    skip_bad_audio: bool = False,
    clips_per_corpus: int | None = None,
    protocol: str = "auto",
    fold: int | None = None,
    needed: Sequence[str] = SPLITS,
) -> tuple[dict[str, dict[str, Dataset]], list[str]]:
    """Reads, labels and splits corpora.

    Args:
        entries: corpus folders, below `root` or as paths of their own, or whatever else `read_corpus` reads.
        root: where `entries` are looked for first.
        labels: six for the arousal/valence classes, native for the corpora's own words (in lower case), or the
            class names of a model, which are either.
        label_file: a YAML file with further emotion words; for classes other than the six, which one each word is.
        skip_bad_audio: leave out clips whose audio does not decode.
        clips_per_corpus: use about so many clips of each corpus, the same share of each split, chosen at random
            but always the same.
        protocol: how each corpus is split, and which of its labels are used; see `exhubert.corpora.splits`.
        fold: which fold, from 1, for protocols that have folds.
        needed: the splits to return; a corpus may lack the others.

    Returns:
        For each corpus, by the name of its folder, the splits train, validation and test (or those in `needed`), with
        the class index in the column `labels`; and the class names.

    Raises:
        ValueError: for anything wrong with a corpus; names it.
    """
    if clips_per_corpus is not None and clips_per_corpus < 1:
        raise ValueError(f"clips_per_corpus is {clips_per_corpus}; it must be above 0")
    read: dict[str, Dataset] = {}
    keys: dict[str, str] = {}
    for entry in entries:
        below = Path(root) / entry
        source = below if below.exists() else Path(entry) if Path(entry).exists() else entry
        name = Path(os.path.abspath(source)).name.removesuffix(".csv")
        if name in read or name == "average":  # what results call the mean over corpora
            raise ValueError(f"{source}: the name {name!r} is taken; rename the folder")
        dataset = read_corpus(source)
        keys[name] = corpus_key(dataset.unique("corpus") if "corpus" in dataset.column_names else [], name)
        labels_used = protocol_labels(dataset["label"][:], keys[name], protocol)
        used = [row for row, label in enumerate(labels_used) if label]
        if len(used) < len(dataset) or labels_used != dataset["label"][:]:
            dataset = dataset.remove_columns("label").add_column("label", labels_used).select(used)
        read[name] = dataset

    if labels == "native":
        class_names = sorted({label.lower() for dataset in read.values() for label in dataset.unique("label")})
    else:
        class_names = list(SIX_CLASSES if labels == "six" else labels)
    six = set(class_names) == set(SIX_CLASSES)
    corpora: dict[str, dict[str, Dataset]] = {}
    for name, dataset in read.items():
        found = dataset["label"][:]
        words = load_class_words(class_names, None if labels == "native" else label_file, keys[name])
        if (
            six
            and protocol.partition(":")[0] not in PROTOCOLS
            and not {plain_word(label) for label in found} <= set(words)
        ):
            raise ValueError(
                f"corpus {name!r}: the protocol {protocol!r} has classes of its own ({', '.join(sorted(set(found)))}); "
                "train with `labels: native`"
            )
        mapped = map_labels(found, name, words, None if six else class_names)
        without = Counter(label for label, index in zip(found, mapped, strict=True) if index is None)
        if without:
            which = f"{without.total()} of {len(found)} clips are left out"
            why = "name no emotion" if six else "are no class of the model"
            print(f"corpus {name!r}: {which}, their labels {why}: {', '.join(without)}")
        # The split comes first: what is left out afterwards must not move speakers from one part to another.
        splits = split_corpus(dataset.add_column("labels", mapped), keys[name], protocol, fold, needed=needed)
        share = min(1.0, (clips_per_corpus or len(dataset)) / len(dataset))
        corpora[name] = {}
        for split, part in splits.items():
            placed = [row for row, index in enumerate(part["labels"][:]) if index is not None]
            corpora[name][split] = check_audio(_part(part.select(placed), share), skip_bad_audio)
            if not len(corpora[name][split]):
                raise ValueError(f"corpus {name!r}: no clips with good audio in its {split} split")
    return corpora, class_names


def class_notices(corpora: Mapping[str, Mapping[str, Dataset]], class_names: Sequence[str]) -> list[str]:
    """Returns a line for each corpus whose training split lacks a class, and one if no corpus has it at all.

    A class that is scored but not trained on is named in it: UAR is over the classes that occur in the scored split.
    """
    notices = []
    learned: set[int] = set()
    for corpus, splits in corpora.items():
        occur = {split: set(dataset["labels"][:]) for split, dataset in splits.items()}
        learned |= occur["train"]
        lacking = [index for index in range(len(class_names)) if index not in occur["train"]]
        if not lacking:
            continue
        line = f"corpus {corpus!r}: no training clip is {' or '.join(class_names[index] for index in lacking)}"
        for split in ("validation", "test"):
            scored = [class_names[index] for index in lacking if index in occur[split]]
            line += f"; its {split} split has {' and '.join(scored)}, which counts in the UAR" if scored else ""
        notices.append(line)
    nowhere = [name for index, name in enumerate(class_names) if index not in learned]
    if nowhere:
        notices.append(f"no corpus has a training clip that is {' or '.join(nowhere)}: the model cannot learn it")
    return notices


def _part(dataset: Dataset, share: float) -> Dataset:
    """A random part of a split, the same whatever the order of its rows."""
    if share == 1.0:
        return dataset
    names = dataset["file_name"][:]
    by_name = sorted(range(len(names)), key=lambda index: names[index])
    chosen = np.random.RandomState(0).permutation(len(names))[: max(1, round(share * len(names)))]
    return dataset.select(sorted(by_name[index] for index in chosen))
