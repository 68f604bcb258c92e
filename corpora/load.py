"""Corpus folders to labelled, split datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from datasets import Dataset

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.corpora.dimensions import check_scales, check_targets, read_dimensions
from exhubert.corpora.labels import load_class_words, map_labels, plain_word
from exhubert.corpora.readers import check_audio, read_corpus
from exhubert.corpora.registry import corpus_key, folder_name
from exhubert.corpora.splits import PROTOCOLS, SPLITS, protocol_labels, split_corpus

VOTES = "votes_"  # begins the name of a column that counts the raters who chose the word after it


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
    soft_labels: bool = False,
    targets: Sequence[str] = (),
    scales: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[dict[str, dict[str, Dataset]], list[str]]:
    """Reads, labels and splits corpora.

    Args:
        entries: corpus folders, below `root` or as paths of their own, or whatever else `read_corpus` reads.
        root: where `entries` are looked for first.
        labels: six for the arousal/valence classes, native for the corpora's own words (in lower case), none where
            only `targets` are wanted, or the class names of a model, which are either.
        label_file: a YAML file with further emotion words; for classes other than the six, which one each word is.
        skip_bad_audio: leave out clips whose audio does not decode.
        clips_per_corpus: use about so many clips of each corpus, the same share of each split, chosen at random
            but always the same.
        protocol: how each corpus is split, and which of its labels are used; see `exhubert.corpora.splits`.
        fold: which fold, from 1, for protocols that have folds.
        needed: the splits to return; a corpus may lack the others.
        soft_labels: count the votes of raters, in columns `votes_<word>`, for the classes of their words.
        targets: columns of numbers, such as arousal. A clip that has one of them need not have a class.
        scales: on which scale they are, where the registry does not say so or says it otherwise; see
            `exhubert.corpora.dimensions.scale_of`.

    Returns:
        For each corpus, by the name of its folder, the splits train, validation and test (or those in `needed`), with
        the class index in the column `labels`, -100 where a clip has `targets` alone; with `soft_labels` the votes for
        each class, in their order, in the column `class_votes`, all 0 where `labels` is -100; with `targets` a list of
        their numbers on 0..1, NaN where a clip or its corpus has none, in the column `dimensions`; and the class names,
        none with `labels` none.

    Raises:
        ValueError: for anything wrong with a corpus; names it. With `train` among `needed` each target must be in one
            of the corpora; with `labels` none each corpus must have one of them.
    """
    if clips_per_corpus is not None and clips_per_corpus < 1:
        raise ValueError(f"clips_per_corpus is {clips_per_corpus}; it must be above 0")
    sources = sources_of(entries, root)
    read = {name: read_by_protocol(source, name, protocol, targets) for name, source in sources.items()}
    class_names = names_of_classes(labels, [dataset for dataset, _ in read.values()], targets)
    training = "train" in needed
    check_scales(scales, targets, list(read) if training else None)
    values = read_dimensions(read, targets, scales, training)
    check_targets(read, values, targets, alone=not class_names, training=training)

    corpora: dict[str, dict[str, Dataset]] = {}
    for name, (dataset, key) in read.items():
        words = load_class_words(class_names, None if labels == "native" else label_file, key)
        rated = (~np.isnan(values[name])).any(axis=1).tolist()
        indices = class_indices(dataset["label"][:], name, words, class_names, protocol, rated)
        dataset = dataset.add_column("labels", indices)
        if targets:
            dataset = dataset.add_column("dimensions", values[name].tolist())
        if soft_labels:
            votes = count_votes(dataset, name, key, protocol, words, len(class_names))
            votes[[index == -100 for index in indices]] = 0.0
            dataset = dataset.add_column("class_votes", votes.tolist())
        # The split comes first: what is left out afterwards must not move speakers from one part to another.
        splits = split_corpus(dataset, key, protocol, fold, needed=needed)
        share = min(1.0, (clips_per_corpus or len(dataset)) / len(dataset))
        corpora[name] = {}
        for split, part in splits.items():
            part = part.select([row for row, index in enumerate(part["labels"][:]) if index is not None])
            if share < 1.0:
                part = random_part(part, max(1, round(share * len(part))))
            corpora[name][split] = check_audio(part, skip_bad_audio)
            if not len(corpora[name][split]):
                raise ValueError(f"corpus {name!r}: no clips with good audio in its {split} split")
    return corpora, class_names


def find_source(entry: str, root: str) -> str | Path:
    """Where a corpus is: below `root`, a path of its own, or what else `read_corpus` takes."""
    below = Path(root) / entry
    return below if below.exists() else Path(entry) if Path(entry).exists() else entry


def random_part(dataset: Dataset, clips: int) -> Dataset:
    """So many clips, chosen at random but always the same, whatever the order of the rows."""
    by_name = np.argsort(dataset["file_name"][:], kind="stable")
    chosen = np.random.RandomState(0).permutation(len(dataset))[:clips]
    return dataset.select(sorted(by_name[chosen]))


def sources_of(entries: Sequence[str], root: str) -> dict[str, str | Path]:
    """Returns where each corpus is, below `root` or as it is named, by its name.

    Raises:
        ValueError: for a name that is taken.
    """
    sources: dict[str, str | Path] = {}
    for entry in entries:
        source = find_source(entry, root)
        name = folder_name(source)
        if name in sources or name == "average":  # what results call the mean over corpora
            raise ValueError(f"{source}: the name {name!r} is taken; rename the folder")
        sources[name] = source
    return sources


def names_of_classes(
    labels: str | Sequence[str], datasets: Sequence[Dataset], targets: Sequence[str] = ()
) -> list[str]:
    """Returns the names of the classes that `load_corpora`'s `labels` are."""
    if labels == "none":
        return []
    words = {label.lower() for dataset in datasets for label in dataset.unique("label")} - {""}
    if not words and (isinstance(labels, str) or not targets):  # a model of both may be tested on numbers alone
        raise ValueError("no clip of these corpora has a label; train their numbers alone with `labels: none`")
    return sorted(words) if labels == "native" else list(SIX_CLASSES if labels == "six" else labels)


def read_by_protocol(source: str | Path, name: str, protocol: str, targets: Sequence[str] = ()) -> tuple[Dataset, str]:
    """Returns the clips of a corpus that a protocol uses, with the labels that it gives them, and the corpus's key."""
    dataset = read_corpus(source, targets=targets)
    key = corpus_key(dataset.unique("corpus") if "corpus" in dataset.column_names else [], name)
    labels = protocol_labels(dataset["label"][:], key, protocol)
    used = [row for row, label in enumerate(labels) if label is not None]
    if len(used) < len(dataset) or labels != dataset["label"][:]:
        dataset = dataset.remove_columns("label").add_column("label", labels).select(used)
    return dataset, key


def class_indices(
    labels: Sequence[str],
    corpus: str,
    words: Mapping[str, int | None],
    class_names: Sequence[str],
    protocol: str,
    rated: Sequence[bool],
) -> list[int | None]:
    """Returns the class of each label; -100 where there is none but the clip is `rated`, None where it is left out.

    Says how many there are of either.

    Raises:
        ValueError: for a label that is no known word.
    """
    if not class_names:
        return [-100 if has else None for has in rated]
    six = set(class_names) == set(SIX_CLASSES)
    own_classes = protocol.partition(":")[0] not in PROTOCOLS
    given = [label for label in labels if label]
    if six and own_classes and not {plain_word(label) for label in given} <= set(words):
        raise ValueError(
            f"corpus {corpus!r}: the protocol {protocol!r} has classes of its own ({', '.join(sorted(set(given)))}); "
            "train with `labels: native`"
        )
    indices = iter(map_labels(given, corpus, words, None if six else class_names))
    found = [next(indices) if label else None for label in labels]
    why = "name no emotion" if six else "are no class of the model"
    for what, among in (("are left out", False), ("train dimensions alone", True)):
        without = Counter(
            label for label, index, has in zip(labels, found, rated, strict=True) if index is None and has == among
        )
        unlabelled = without.pop("", 0)
        reasons = [f"their labels {why}: {', '.join(without)}"] if without else []
        if unlabelled:
            reasons = [f"{unlabelled} without a label", *(f"{without.total()} as {reason}" for reason in reasons)]
        if reasons:
            print(
                f"corpus {corpus!r}: {without.total() + unlabelled} of {len(labels)} clips {what}, {'; '.join(reasons)}"
            )
    return [-100 if index is None and has else index for index, has in zip(found, rated, strict=True)]


def count_votes(
    dataset: Dataset, corpus: str, key: str, protocol: str, words: Mapping[str, int | None], classes: int
) -> np.ndarray:
    """Returns how many raters chose each class, float64 `(clips, classes)`; their words mean what the labels mean.

    Raises:
        ValueError: for a count that is no number, 0 or more.
    """
    columns = [column for column in dataset.column_names if column.startswith(VOTES)]
    voted = [column.removeprefix(VOTES) for column in columns]
    votes, ignored = np.zeros((len(dataset), classes)), []
    # With the labels, of which the protocol knows some.
    meant = protocol_labels([*voted, *dataset.unique("label")], key, protocol)
    for column, word, label in zip(columns, voted, meant[: len(voted)], strict=True):
        index = None if label is None else words.get(plain_word(label))
        if index is None:
            ignored.append(word)
            continue
        for clip, value in enumerate(dataset[column][:]):
            try:
                count = 0.0 if value in (None, "") or value != value else float(value)
            except ValueError:
                count = -1.0
            if not 0 <= count < float("inf"):
                raise ValueError(
                    f"corpus {corpus!r}: {column} of {dataset['file_name'][clip]} is {value!r}; a number of raters, "
                    "0 or more, is needed"
                )
            votes[clip, index] += count
    if ignored:
        print(f"corpus {corpus!r}: votes for {', '.join(ignored)} name no class")
    return votes


def one_class_notices(
    corpora: Mapping[str, Mapping[str, Dataset]], class_names: Sequence[str], metric: str | None = None
) -> list[str]:
    """Returns a line for each validation or test split that has a single class or none, so that UAR is not defined.

    Raises:
        ValueError: if `metric`, by which the best model would be chosen, is not defined on the validation splits.
    """
    notices = []
    without = []
    for split in ("validation", "test"):
        for corpus, splits in corpora.items():
            labels = [label for label in splits[split]["labels"][:] if label != -100]
            if not class_names or len(set(labels)) > 1:
                continue
            without += [corpus] if split == "validation" else []
            one = f"all {len(labels):,} clips of its {split} split are {class_names[labels[0]]}" if labels else ""
            what = f"{one}; UAR over one class" if one else f"no clip of its {split} split has a class; UAR"
            notices.append(f"corpus {corpus!r}: {what} is not defined and counts in no average")
    without += ["average"] if len(without) == len(corpora) else []
    if (metric or "").removeprefix("eval_") in {f"{name}_{score}" for name in without for score in ("uar", "macro_f1")}:
        remedy = "give corpora whose validation splits have two classes or more, or train with `labels: native`"
        raise ValueError(f"{notices[0]}, so the best model cannot be chosen by {metric}; {remedy}")
    return notices


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
