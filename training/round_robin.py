"""Which clips make the batches: round-robin over corpora (paper, section 3.1), the same on any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

_ORDER, _CROP, _MIX, _AUGMENTATION, _TIME_MASK = range(5)  # what a random stream is for


class Draw(NamedTuple):
    """One training sample: clip number `clip` of corpus number `corpus`, in that corpus's pass `pass_`."""

    corpus: int
    pass_: int
    clip: int


class RoundRobinSampler(Sampler[Draw]):
    """Yields the samples of `rounds` rounds; a round is one batch from every corpus, in fixed order.

    A corpus's clips come in a new order in each pass; a batch that reaches the end of a pass is filled from the
    next one, so every corpus gives the same number of batches, whatever its size. The order is a pure function
    of (seed, corpus, pass). Under several processes accelerate deals whole batches to them in turn: with
    `batch_size / processes` samples in each, all processes work on the same corpus in the same update.

    Args:
        sizes: clips of each corpus.
        batch_size: samples per corpus and round, over all processes.
        rounds: how many rounds.
        seed: of the order.
        proportional: batches are drawn from all clips of all corpora instead, so that a corpus gives samples
            in proportion to its size.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, rounds: int, seed: int = 0, proportional: bool = False
    ) -> None:
        assert all(size > 0 for size in sizes), f"an empty corpus: {sizes}"
        self.sizes = list(sizes)
        self.batch_size = batch_size
        self.rounds = rounds
        self.seed = seed
        self.proportional = proportional

    def __len__(self) -> int:
        return self.rounds * len(self.sizes) * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        corpora = range(len(self.sizes))
        if self.proportional:
            yield from itertools.islice(self.passes(_MIX, corpora), len(self))
            return
        streams = [self.passes(_ORDER, [corpus]) for corpus in corpora]
        for _ in range(self.rounds):
            for stream in streams:
                yield from itertools.islice(stream, self.batch_size)

    def passes(self, purpose: int, corpora: Sequence[int]) -> Iterator[Draw]:
        """Yields the clips of some corpora together, without end, in a new order in each pass."""
        clips = [(corpus, clip) for corpus in corpora for clip in range(self.sizes[corpus])]
        for pass_ in itertools.count():
            for place in generator(self.seed, purpose, corpora[0], pass_).permutation(len(clips)):
                corpus, clip = clips[place]
                yield Draw(corpus, pass_, clip)


class ValidationClips(TorchDataset):
    """The clips of several corpora for one loader, whose workers serve them all; it shows one corpus at a time.

    It is indexed by (corpus, clip), as `CorpusSampler` draws them.

    Args:
        corpora: the rows of each corpus, by its name.
    """

    def __init__(self, corpora: Mapping[str, Dataset]) -> None:
        self.corpora = corpora
        self.shown = next(iter(corpora))

    def __len__(self) -> int:
        return len(self.corpora[self.shown])

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        corpus, clip = place  # a worker does not know what is shown by now
        return dict(self.corpora[corpus][clip])


class CorpusSampler(Sampler[tuple[str, int]]):
    """Yields the clips of the corpus that is shown, in order."""

    def __init__(self, clips: ValidationClips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((self.clips.shown, clip) for clip in range(len(self.clips)))


class MultiCorpus(TorchDataset):
    """Several corpora as one map-style dataset, indexed by the sampler's draws.

    A sample is the corpus's row with `draw`; `crop`, a number from 0 to 1 that says where a random crop lies,
    `augmentation_seed` and `time_mask_seed`, all pure functions of (seed, corpus, pass, clip); and `target` where
    targets are given.

    Args:
        corpora: the rows of each corpus.
        seed: of crops, augmentation and SpecAugment.
        targets: for each corpus what its clips are to be classified as, `(clips, classes)`, instead of their labels;
            in pre-training its frames.
    """

    def __init__(
        self, corpora: Sequence[Any], seed: int = 0, targets: Sequence[Sequence[Any] | np.ndarray] | None = None
    ) -> None:
        self.corpora = list(corpora)
        self.seed = seed
        self.targets = targets

    def __len__(self) -> int:
        return sum(len(corpus) for corpus in self.corpora)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        row = dict(self.corpora[draw.corpus][draw.clip])
        row["draw"] = draw
        row["crop"] = generator(self.seed, _CROP, *draw).random()
        row["augmentation_seed"] = int(generator(self.seed, _AUGMENTATION, *draw).integers(2**32))
        row["time_mask_seed"] = int(generator(self.seed, _TIME_MASK, *draw).integers(2**32))
        if self.targets is not None:
            row["target"] = self.targets[draw.corpus][draw.clip]
        return row


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """The random numbers of a purpose, which are independent of those of any other."""
    return np.random.Generator(np.random.PCG64((seed, *purpose)))
