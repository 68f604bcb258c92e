"""Speaker-independent train, validation and test splits (paper, section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

SPLITS = ("train", "validation", "test")
SPEAKER_SHARE = 0.15  # of the speakers, for validation and for test
FILE_SHARE = 0.10  # of the clips, where no speakers are known (paper, section 2)
CANDIDATES = 200


def split_corpus(dataset: Dataset, corpus: str, seed: int = 0) -> dict[str, Dataset]:
    """Splits a corpus into train, validation and test.

    The corpus's own `split` column where it has one; else by speaker, so that nobody is in two splits, with
    classes as evenly spread as the speakers allow; else, where no speaker is known, 10 % and 10 % of the clips.
    The result depends on file names, labels, speakers and `seed` alone: not on the order of the rows or on the
    machine.

    Raises:
        ValueError: for fewer than three speakers, an unknown split name, or a split without clips.
    """
    if "split" in dataset.column_names and any(dataset["split"]):
        assigned = [str(split) for split in dataset["split"]]
        for split in assigned:
            if split not in SPLITS:
                raise ValueError(f"corpus {corpus!r}: split {split!r} in the metadata; it must be {', '.join(SPLITS)}")
        parts = Counter(speaker for speaker, _ in set(zip(dataset["speaker"], assigned, strict=True)) if speaker)
        shared = [speaker for speaker, count in parts.items() if count > 1]
        if shared:
            print(
                f"corpus {corpus!r}: in its own split {len(shared)} of {len(parts)} speakers are in more than one part"
            )
    elif any(dataset["speaker"]):
        of_speaker = split_speakers(dataset["speaker"], dataset["label"], corpus, seed)
        assigned = [of_speaker[speaker] for speaker in dataset["speaker"]]
    else:
        print(f"corpus {corpus!r}: no speakers known; 10 % + 10 % of the clips are validation and test")
        assigned = _split_files(dataset["file_name"], seed)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, split in enumerate(assigned):
        rows[split].append(index)
    for split, indices in rows.items():
        if not indices:
            raise ValueError(f"corpus {corpus!r}: no clips in its {split} split ({len(dataset)} clips in all)")
    return {split: dataset.select(indices) for split, indices in rows.items()}


def split_speakers(speakers: Sequence[str], labels: Sequence[str], corpus: str, seed: int = 0) -> dict[str, str]:
    """Returns the split of each speaker: of many random assignments, the one that spreads the labels best.

    15 % of the speakers, at least one, go to validation and as many to test.

    Raises:
        ValueError: for fewer than three speakers.
    """
    names, words = sorted(set(speakers)), sorted(set(labels))
    if len(names) < len(SPLITS):
        raise ValueError(
            f"corpus {corpus!r} has {len(names)} speaker(s) ({', '.join(names)}); a speaker-independent split needs "
            f"at least {len(SPLITS)}. Give it a `split` column, or leave `speaker` empty to split by file"
        )
    counted = Counter(zip(speakers, labels, strict=True))
    counts = np.array([[counted[name, word] for word in words] for name in names], dtype=float)
    held_out = max(1, round(SPEAKER_SHARE * len(names)))
    wanted = counts.sum(axis=0) * held_out / len(names)  # clips of each label in validation, and in test
    generator = np.random.RandomState(seed)  # its stream is frozen, a Generator's is not

    def imbalance(order: np.ndarray) -> float:
        parts = counts[order[:held_out]], counts[order[held_out : 2 * held_out]]
        return sum(float(np.abs(part.sum(axis=0) - wanted).sum()) for part in parts)

    order = min((generator.permutation(len(names)) for _ in range(CANDIDATES)), key=imbalance)
    splits = ["test"] * held_out + ["validation"] * held_out + ["train"] * (len(names) - 2 * held_out)
    return {names[index]: split for index, split in zip(order, splits, strict=True)}


def _split_files(file_names: Sequence[str], seed: int) -> list[str]:
    order = np.random.RandomState(seed).permutation(len(file_names))
    held_out = max(1, round(FILE_SHARE * len(file_names)))
    ordered = sorted(file_names)
    split_of = {ordered[index]: "train" for index in order}
    split_of |= {ordered[index]: "test" for index in order[:held_out]}
    split_of |= {ordered[index]: "validation" for index in order[held_out : 2 * held_out]}
    return [split_of[name] for name in file_names]
