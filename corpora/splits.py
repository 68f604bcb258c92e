"""Splits of a corpus: official, speaker-independent, by file, and folds (paper, section 2).

Everything depends on file names, labels, speakers, audio hashes and the seed alone: not on the order of the rows, nor
on the machine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from exhubert.corpora.registry import USABLE, corpus_or_none

SPLITS = ("train", "validation", "test")
# All that a split depends on. `partition` is what the corpus itself calls a clip's part, which protocols may name.
SPLIT_COLUMNS = ("file_name", "label", "speaker", "split", "session", "content_hash", "partition")
SPLIT_NAMES = {
    **{"dev": "validation", "development": "validation", "valid": "validation", "val": "validation"},
    **{"training": "train", "testing": "test"},
}
SPEAKER_SHARE = 0.15  # of the clips and of each label (`speakers`: of the speakers), for validation and for test
FILE_SHARE = 0.10  # of the clips, where no speakers are known (paper, section 2)
CANDIDATES = 200
FOLDS = 5
BY_SPEAKER = ("speaker_balanced", "speakers")
# docs/corpora.md says what each does; the last four have folds, and the number of those in COUNTED follows as `:K`.
WITH_FOLDS = ("leave_one_speaker_out", "speaker_folds", "session_folds", "folds")
COUNTED = ("speaker_folds", "folds")
PROTOCOLS = ("auto", "official", *BY_SPEAKER, "files", *WITH_FOLDS)


def split_corpus(
    dataset: Dataset,
    corpus: str,
    protocol: str = "auto",
    fold: int | None = None,
    seed: int = 0,
    needed: Sequence[str] = SPLITS,
) -> dict[str, Dataset]:
    """Splits a corpus into train, validation and test.

    Args:
        dataset: rows with `file_name`, `label`, `speaker`, and where known `split`, `session` and `content_hash`.
        corpus: its name, for messages; protocols of its registry entry are found by it.
        protocol: one of `PROTOCOLS`, or a protocol of the corpus's registry entry.
        fold: which fold, from 1, for protocols that have folds.
        seed: of the splits that are made here.
        needed: the splits to return; a corpus may lack the others.

    Raises:
        ValueError: for an unknown protocol or fold, too few speakers or sessions, a split without clips, or one
            that shares speakers or identical audio with another (but see `official`).
    """
    known = [name for name in SPLIT_COLUMNS if name in dataset.column_names]
    columns = {name: ["" if value is None else str(value) for value in dataset[name][:]] for name in known}
    assigned = assign_splits(columns, corpus, protocol, fold, seed)
    rows = {split: [index for index, own in enumerate(assigned) if own == split] for split in needed}
    for split in needed:
        if not rows[split]:
            raise ValueError(f"corpus {corpus!r}: no clips in its {split} split ({len(dataset)} clips in all)")
    return {split: dataset.select(rows[split]) for split in needed}


def protocol_labels(labels: Sequence[str], corpus: str, protocol: str) -> list[str | None]:
    """Returns the labels as the protocol of that name renames them for this corpus; None where a clip is left out.

    Raises:
        ValueError: for an unknown protocol, or if none of the labels is among its own.
    """
    words = _named_protocol(corpus, protocol).get("labels")
    if words is None:
        return list(labels)
    words = {word: word for word in words.values()} | words  # what was renamed before stays
    renamed = [words.get(label.strip().lower()) for label in labels]
    if not any(renamed):
        raise ValueError(f"corpus {corpus!r}: none of its labels is in the protocol {protocol!r}: {', '.join(words)}")
    return renamed


def protocol_taken(columns: Mapping[str, Sequence[str]], protocol: str) -> str:
    """What `auto` is for a corpus: its own split, else by its speakers, else by file; any other protocol is itself."""
    if protocol != "auto":
        return protocol
    if any(columns.get("split") or []):
        return "official"
    nobody = [""] * len(columns["file_name"])
    groups = speaker_groups(columns.get("speaker") or nobody, columns.get("content_hash") or nobody)
    return "speaker_balanced" if len(set(groups)) >= len(SPLITS) else "files"


def assign_splits(
    columns: Mapping[str, Sequence[str]], corpus: str, protocol: str = "auto", fold: int | None = None, seed: int = 0
) -> list[str]:
    """Returns the split of each row; see `split_corpus`, whose dataset's columns `columns` are, as text.

    Empty where a row has a `partition` that the protocol does not name, or else one and no split of its own.
    """
    named = _named_protocol(corpus, protocol)
    if fold is not None and not (named.get("folds") or protocol.partition(":")[0] in WITH_FOLDS):
        raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} has no folds; leave `fold` out")
    own, partitions = columns.get("split") or [], columns.get("partition") or []
    if "partitions" in named:
        of_partition = {name: split for split, names in named["partitions"].items() for name in names}
        assigned = [of_partition.get(partition, "") for partition in partitions]
        if "test" not in assigned:
            wanted = " or ".join(named["partitions"]["test"])
            raise ValueError(f"corpus {corpus!r}: no clip of its {wanted} is there; {named.get('rule', '')}")
        _check_overlap(assigned, columns, corpus, protocol)
        return assigned
    apart = [bool(part) and any(own) and not own[row] for row, part in enumerate(partitions)]
    if not any(apart):
        return _assign_all(columns, corpus, protocol, fold, seed)
    rest = [row for row, alone in enumerate(apart) if not alone]
    some = {name: [values[row] for row in rest] for name, values in columns.items()}
    of_rest = dict(zip(rest, _assign_all(some, corpus, protocol, fold, seed), strict=True))
    return [of_rest.get(row, "") for row in range(len(apart))]


def _assign_all(
    columns: Mapping[str, Sequence[str]], corpus: str, protocol: str, fold: int | None, seed: int
) -> list[str]:
    """As `assign_splits`, of rows that are all in some split."""
    file_names, labels = columns["file_name"], columns["label"]
    speakers = columns.get("speaker") or [""] * len(file_names)
    hashes = columns.get("content_hash") or [""] * len(file_names)
    groups = speaker_groups(speakers, hashes)
    own = [SPLIT_NAMES.get(split.lower(), split.lower()) for split in columns.get("split") or []]
    named = _named_protocol(corpus, protocol)
    kind = protocol.partition(":")[0]
    has_folds = bool(named.get("folds")) or kind in WITH_FOLDS

    if "labels" in named and not {"folds", "splits"} & set(named):
        kind = "official"  # its labels on the corpus's own split
    if kind in ("auto", "official") and any(own):
        for split in own:
            if split not in SPLITS:
                raise ValueError(f"corpus {corpus!r}: split {split!r} in the metadata; it must be {', '.join(SPLITS)}")
        if set(own) == {"train", "test"}:  # 15 % of the speakers in train, or 10 % of its clips, are validation
            train = [index for index, split in enumerate(own) if split == "train"]
            of_train = [groups[index] for index in train]
            if all(speakers) and len(set(of_train)) >= 2:
                of_group = split_speakers(of_train, [labels[i] for i in train], "", seed, held_out_parts=1)
                moved = [of_group[group] != "train" for group in of_train]
            else:
                parts = split_files([file_names[i] for i in train], [hashes[i] for i in train], seed)
                moved = [part == "test" for part in parts]
            for index in np.flatnonzero(moved):
                own[train[index]] = "validation"
            print(f"corpus {corpus!r}: its own split has no validation part; it is taken from train")
        problem = overlap(own, speakers, hashes)
        if problem and kind == "auto" and len(set(groups)) >= len(SPLITS):
            raise ValueError(
                f"corpus {corpus!r}: in its own split {problem}. `protocol: official` takes it as it is; "
                "`protocol: speaker_balanced` makes one in which nobody is in two parts"
            )
        if problem:
            print(f"corpus {corpus!r}: in its own split {problem}; training takes it with `protocol: official`")
        return own
    if has_folds:
        assigned = _fold(columns, groups, corpus, protocol, fold)
        if kind == "folds":  # which has said whether they are shared
            speakers = [""] * len(file_names)
    elif "splits" in named:
        of_speaker = {speaker: split for split, group in named["splits"].items() for speaker in group}
        assigned = [of_speaker.get(speaker, "") for speaker in speakers]
        if not all(assigned):
            unknown = speakers[assigned.index("")]
            raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} knows no speaker {unknown!r}")
    else:
        names = sorted({speaker for speaker in speakers if speaker})
        if kind != "files" and names:
            _check_speakers_known(speakers, corpus)
        if kind != "files" and len(set(groups)) >= len(SPLITS):
            rule = split_speakers if kind == "speakers" else balance_speakers
            of_group = rule(groups, labels, corpus, seed)
            assigned = [of_group[group] for group in groups]
        elif kind in BY_SPEAKER:
            raise ValueError(
                f"corpus {corpus!r} has {len(names)} speaker(s) ({', '.join(names[:3])}); a speaker-independent split "
                f"needs at least {len(SPLITS)}. `protocol: files` splits by file"
            )
        else:
            why = "the protocol shares speakers" if kind == "files" else f"{len(names) or 'no'} speaker(s) known"
            print(f"corpus {corpus!r}: {why}; 10 % + 10 % of the clips are validation and test")
            assigned = split_files(file_names, hashes, seed)
            speakers = [""] * len(file_names)  # shared, as was said
    missing = [split for split in SPLITS if split not in assigned]
    if missing:
        raise ValueError(f"corpus {corpus!r}: {len(assigned)} clip(s) are too few for a split; none is in {missing[0]}")
    _check_overlap(assigned, {**columns, "speaker": speakers}, corpus, protocol)
    return assigned


def _check_overlap(splits: Sequence[str], columns: Mapping[str, Sequence[str]], corpus: str, protocol: str) -> None:
    """Raises ValueError if parts that a protocol makes share speakers or audio."""
    nothing = [""] * len(splits)
    problem = overlap(splits, columns.get("speaker") or nothing, columns.get("content_hash") or nothing)
    if problem:
        raise ValueError(f"corpus {corpus!r}: in the protocol {protocol!r} {problem}")


def overlap(splits: Sequence[str], speakers: Sequence[str], hashes: Sequence[str]) -> str | None:
    """Says which speakers or identical audio (equal non-empty hashes) are in more than one split; None if none."""
    for what, values in (("speakers", speakers), ("recordings (identical audio)", hashes)):
        pairs = {(value, split) for value, split in zip(values, splits, strict=True) if value and split}
        parts = Counter(value for value, _ in pairs)
        shared = sorted(value for value, count in parts.items() if count > 1)
        if shared:
            return f"{len(shared)} of {len(parts)} {what} are in more than one part, e.g. {shared[0]}"
    return None


def balance_speakers(speakers: Sequence[str], labels: Sequence[str], corpus: str, seed: int = 0) -> dict[str, str]:
    """Returns the split of each speaker, so that 15 % of the clips and of each label are test and as many validation.

    Speakers are dealt out in many random orders: each to the part that it brings nearer to what is wanted, else to
    train, where the speaker with the most clips is in any case. The result that comes nearest is taken.

    Raises:
        ValueError: for fewer than three speakers.
    """
    names, counts = _counts(speakers, labels)
    if len(names) < len(SPLITS):
        raise ValueError(f"corpus {corpus!r} has {len(names)} speaker(s); {len(SPLITS)} are needed")
    generator = np.random.RandomState(seed)
    others = np.delete(np.arange(len(names)), counts.sum(axis=1).argmax())
    orders = np.stack([generator.permutation(others) for _ in range(CANDIDATES)])
    counts = 100 * counts.astype(np.int64)  # whole numbers, for sums of fractions may differ between machines
    wanted = round(SPEAKER_SHARE * 100) * counts.sum(axis=0) // 100

    def distance(filled: np.ndarray) -> np.ndarray:
        """How many clips, times 100, are too many or too few, by label and in all, of parts `(..., labels)`."""
        return np.abs(filled - wanted).sum(axis=-1) + np.abs(filled.sum(axis=-1) - wanted.sum())

    filled = np.zeros((2, CANDIDATES, len(wanted)), dtype=np.int64)  # test and validation
    part_of = np.full((CANDIDATES, len(names)), -1)
    for place, chosen in enumerate(orders.T):
        gain = distance(filled) - distance(filled + counts[chosen])
        # The first two speakers go to one part each, that none is empty.
        part = np.full(CANDIDATES, place) if place < 2 else np.where(gain.max(axis=0) < 0, -1, gain.argmax(axis=0))
        part_of[np.arange(CANDIDATES), chosen] = part
        (held_out,) = np.nonzero(part >= 0)
        filled[part[held_out], held_out] += counts[chosen[held_out]]
    best = part_of[distance(filled).sum(axis=0).argmin()]
    return {name: ("test", "validation", "train")[part] for name, part in zip(names, best, strict=True)}


def split_speakers(
    speakers: Sequence[str], labels: Sequence[str], corpus: str, seed: int = 0, held_out_parts: int = 2
) -> dict[str, str]:
    """Returns the split of each speaker by the older rule, which is kept for the splits that were made by it.

    15 % of the speakers, at least one, go to test and as many to validation, with `held_out_parts` 1 to validation
    only: of many random assignments, the one that spreads the labels best.

    Raises:
        ValueError: for fewer speakers than parts.
    """
    names, counts = _counts(speakers, labels)
    if len(names) <= held_out_parts:
        raise ValueError(f"corpus {corpus!r} has {len(names)} speaker(s); {held_out_parts + 1} are needed")
    held_out = max(1, round(SPEAKER_SHARE * len(names)))
    wanted = counts.sum(axis=0) * held_out / len(names)  # clips of each label in validation, and in test
    generator = np.random.RandomState(seed)  # its stream is frozen, a Generator's is not

    def imbalance(order: np.ndarray) -> float:
        parts = order[: held_out_parts * held_out].reshape(held_out_parts, held_out)
        return float(np.abs(counts[parts].sum(axis=1) - wanted).sum())

    order = min((generator.permutation(len(names)) for _ in range(CANDIDATES)), key=imbalance)
    splits = ["validation"] * held_out if held_out_parts == 1 else ["test"] * held_out + ["validation"] * held_out
    splits += ["train"] * (len(names) - len(splits))
    return {names[index]: split for index, split in zip(order, splits, strict=True)}


def split_files(file_names: Sequence[str], hashes: Sequence[str], seed: int) -> list[str]:
    """Returns the split of each file: 10 % of the clips, at least one, are test and as many validation."""
    units = [content_hash or name for name, content_hash in zip(file_names, hashes, strict=True)]
    # Sorted by name, so that the split is that of the names alone where nothing is identical.
    ordered = list(dict.fromkeys(unit for _, unit in sorted(zip(file_names, units, strict=True))))
    order = np.random.RandomState(seed).permutation(len(ordered))
    held_out = max(1, round(FILE_SHARE * len(ordered)))
    split_of = dict.fromkeys(ordered, "train")
    split_of |= {ordered[index]: "test" for index in order[:held_out]}
    split_of |= {ordered[index]: "validation" for index in order[held_out : 2 * held_out]}
    return [split_of[unit] for unit in units]


def _check_speakers_known(speakers: Sequence[str], corpus: str) -> None:
    """Raises ValueError for clips without a speaker."""
    unknown = sum(not speaker for speaker in speakers)
    if unknown:
        raise ValueError(
            f"corpus {corpus!r}: {unknown} of {len(speakers)} clips have no speaker; fill them in, leave all empty, "
            "or use `protocol: files`"
        )


def _fold(
    columns: Mapping[str, Sequence[str]], groups: Sequence[str], corpus: str, protocol: str, fold: int | None
) -> list[str]:
    """The split of each row: fold number `fold` is test, the one after it validation, the others train."""
    speakers, sessions = columns.get("speaker") or [], columns.get("session") or []
    kind, _, wanted = protocol.partition(":")
    folds = _named_protocol(corpus, protocol).get("folds", kind)
    if folds == "folds":
        known = len(set(speakers) - {""})
        if known:
            _check_speakers_known(speakers, corpus)
        if len(set(groups)) < int(wanted or FOLDS):
            print(f"corpus {corpus!r}: {known or 'no'} speaker(s) known; its folds are of clips, and share speakers")
            names, hashes = columns["file_name"], columns.get("content_hash") or [""] * len(groups)
            groups = [content_hash or name for name, content_hash in zip(names, hashes, strict=True)]
            speakers = []
    if folds in ("session", "session_folds"):
        if not all(sessions) or not sessions:
            raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} needs a `session` in every row")
        of_row = np.unique(sessions, return_inverse=True)[1].tolist()
    elif folds != "folds" and not any(speakers):
        raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} needs speakers, and none is known")
    elif isinstance(folds, list):
        numbers = {speaker: number for number, group in enumerate(folds) for speaker in group}
        unknown = sorted(set(speakers) - set(numbers))
        if unknown:
            raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} knows no speaker {unknown[0]!r}")
        of_row = [numbers[speaker] for speaker in speakers]
    elif folds in COUNTED:
        # The largest group first, each to the fold that it leaves the most even.
        names, counts = _counts(groups, columns["label"])
        count = int(wanted or FOLDS)
        if len(names) < count:
            what = "speakers" if any(speakers) else "clips"
            raise ValueError(f"corpus {corpus!r}: {count} folds of {len(names)} {what}; give fewer")
        filled = np.zeros((count, counts.shape[1]))
        share = counts.sum(axis=0) / count
        fold_of = {}
        for index in sorted(range(len(names)), key=lambda index: (-counts[index].sum(), names[index])):
            # What a fold has beyond its share of a label counts, what it still lacks does not.
            excess = [np.square(np.maximum(0, row + counts[index] - share)).sum() for row in filled]
            best = min(range(count), key=lambda number: (excess[number], filled[number].sum(), number))
            filled[best] += counts[index]
            fold_of[names[index]] = best
        of_row = [fold_of[group] for group in groups]
    else:
        of_row = np.unique(groups, return_inverse=True)[1].tolist()
    count = len(set(of_row))
    if count < len(SPLITS):
        raise ValueError(f"corpus {corpus!r}: the protocol {protocol!r} gives {count} folds; at least 3 are needed")
    if fold is None or not 1 <= fold <= count:
        raise ValueError(f"corpus {corpus!r}: fold is {fold}; the protocol {protocol!r} has the folds 1 to {count}")
    part = {(fold - 1) % count: "test", fold % count: "validation"}
    return [part.get(number, "train") for number in of_row]


def speaker_groups(speakers: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Returns what must stay together, by row: speakers; those who share identical audio under the first one's name."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.get(name, name) != name:
            name = first[name]
        return name

    having: dict[str, set[str]] = defaultdict(set)
    for speaker, content_hash in zip(speakers, hashes, strict=True):
        if content_hash:
            having[content_hash].add(speaker)
    for together in having.values():
        lowest, *others = sorted({root(speaker) for speaker in together})
        first |= dict.fromkeys(others, lowest)
    roots = {speaker: root(speaker) for speaker in set(speakers)}
    return [roots[speaker] for speaker in speakers]


def _counts(groups: Sequence[str], labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The sorted groups, and the clips of each group (rows) and label (columns); of clips without one where none has.

    So clips without a label follow those with one, and where the latter go does not depend on them.
    """
    names, words = sorted(set(groups)), sorted(set(labels) - {""}) or [""]
    counted = Counter(zip(groups, labels, strict=True))
    return names, np.array([[counted[name, word] for word in words] for name in names], dtype=float)


def _named_protocol(corpus: str, protocol: str) -> Mapping[str, Any]:
    """The registry's protocol of that name for this corpus; empty for one of `PROTOCOLS`."""
    kind, colon, folds = protocol.partition(":")
    if kind in PROTOCOLS and (not colon or (kind in COUNTED and folds.isdigit() and int(folds) > 0)):
        return {}
    entry = corpus_or_none(corpus)
    own = {name: value for name, value in (entry.protocols if entry else {}).items() if set(value) & USABLE}
    if protocol in own:
        return own[protocol]
    known = ", ".join([*PROTOCOLS, *own])
    raise ValueError(f"corpus {corpus!r}: no protocol {protocol!r}; there are {known}")
