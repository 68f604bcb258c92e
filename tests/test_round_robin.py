"""Which clips make the batches, on one process and on several.

python -m pytest tests/test_round_robin.py
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader

from exhubert.training.round_robin import Draw, MultiCorpus, RoundRobinSampler

SIZES = (3, 10, 100)


def batches(sampler: RoundRobinSampler, size: int) -> list[list[Draw]]:
    return list(BatchSampler(sampler, size, drop_last=False))


def test_a_round_is_one_batch_of_every_corpus_in_fixed_order():
    sampler = RoundRobinSampler(SIZES, batch_size=4, rounds=5)
    drawn = batches(sampler, 4)
    assert len(sampler) == 5 * 3 * 4
    assert [{draw.corpus for draw in batch} for batch in drawn] == 5 * [{0}, {1}, {2}]


def test_every_pass_has_every_clip_once_and_another_order():
    draws = [draw for draw in RoundRobinSampler(SIZES, 4, rounds=50) if draw.corpus == 1]
    passes = {number: [draw.clip for draw in draws if draw.pass_ == number] for number in range(20)}
    assert all(sorted(clips) == list(range(10)) for clips in passes.values())
    assert len({tuple(clips) for clips in passes.values()}) == 20


def test_the_order_follows_from_the_seed_alone():
    assert list(RoundRobinSampler(SIZES, 4, 9, seed=1)) == list(RoundRobinSampler(SIZES, 4, 9, seed=1))
    assert list(RoundRobinSampler(SIZES, 4, 9, seed=1)) != list(RoundRobinSampler(SIZES, 4, 9, seed=2))
    of_last = [draw for draw in RoundRobinSampler(SIZES, 4, 9) if draw.corpus == 2]
    shorter = [draw for draw in RoundRobinSampler((5, 7, 100), 4, 9) if draw.corpus == 2]
    assert of_last == shorter  # a corpus's order does not depend on the others


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_corpus_and_no_sample(processes):
    """What accelerate hands to each process, from the sampler that `Trainer` gets."""
    whole = batches(RoundRobinSampler(SIZES, 8, rounds=6), 8)
    shares = []
    for process in range(processes):
        inner = BatchSampler(RoundRobinSampler(SIZES, 8, rounds=6), 8 // processes, drop_last=False)
        shares.append(list(BatchSamplerShard(inner, processes, process, split_batches=False)))
    assert {len(share) for share in shares} == {len(whole)}
    for update, batch in enumerate(whole):
        together = [draw for share in shares for draw in share[update]]
        assert together == batch
        assert len({draw.corpus for draw in together}) == 1


def test_every_corpus_contributes_the_same_whatever_its_size():
    """Of 10, 500 and 20,000 clips, after any number of rounds; each corpus uses its clips evenly."""
    sizes, rounds = (10, 500, 20_000), 700
    used = [Counter() for _ in sizes]
    given = Counter()
    for number, draw in enumerate(RoundRobinSampler(sizes, 8, rounds), start=1):
        given[draw.corpus] += 1
        used[draw.corpus][draw.clip] += 1
        if number % (8 * len(sizes)) == 0:
            assert set(given.values()) == {number // len(sizes)}
    assert [len(counts) for counts in used] == [10, 500, 5600]  # of the large one no clip came twice
    assert all(max(counts.values()) - min(counts.values()) <= 1 for counts in used)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("processes", "micro_batches"), [(2, 1), (4, 1), (2, 2)])
def test_what_each_process_sees(processes, micro_batches, workers):
    """Through accelerate's own loaders, as `Trainer` makes them: disjoint shares of each batch, of one size."""
    rows = [[{"corpus": corpus, "clip": clip} for clip in range(size)] for corpus, size in enumerate(SIZES)]
    sampler = RoundRobinSampler(SIZES, 8, rounds=5)
    seen = []
    for process in range(processes):
        loader = DataLoader(
            MultiCorpus(rows),
            batch_sampler=BatchSampler(sampler, 8 // processes // micro_batches, drop_last=False),
            collate_fn=as_draws,
            num_workers=workers,
        )
        sharded = prepare_data_loader(
            loader, torch.device("cpu"), num_processes=processes, process_index=process, put_on_device=False
        )
        parts = iter([tuple(draw) for draw in batch] for batch in sharded)
        seen.append(
            [[draw for part in update for draw in part] for update in zip(*[parts] * micro_batches, strict=True)]
        )
    assert [len(updates) for updates in seen] == [15] * processes
    for update, batch in enumerate(batches(sampler, 8)):
        shares = [updates[update] for updates in seen]
        assert {len(share) for share in shares} == {8 // processes}
        assert sorted(draw for share in shares for draw in share) == sorted(batch)
    for corpus, size in enumerate(SIZES):  # within a pass no process has another's clip, nor one twice
        draws = [draw for updates in seen for share in updates for draw in share if draw[0] == corpus]
        assert len(draws) == len(set(draws)) == 5 * 8
        assert Counter(pass_ for _, pass_, _ in draws)[0] == min(size, 40)


def as_draws(samples):
    assert all((sample["corpus"], sample["clip"]) == (sample["draw"].corpus, sample["draw"].clip) for sample in samples)
    return torch.tensor([sample["draw"] for sample in samples]).tolist()


def test_proportional_sampling_follows_the_sizes():
    draws = list(RoundRobinSampler(SIZES, 8, rounds=113, proportional=True))
    assert len(draws) == 8 * 3 * 113 == 24 * sum(SIZES)
    assert Counter(draw.corpus for draw in draws) == {0: 24 * 3, 1: 24 * 10, 2: 24 * 100}


def test_crops_follow_from_seed_corpus_pass_and_clip():
    corpora = [[{"name": f"{corpus}{clip}"} for clip in range(5)] for corpus in range(2)]
    data = MultiCorpus(corpora, seed=4)
    assert data[Draw(1, 0, 3)]["name"] == "13"
    again = MultiCorpus(corpora, seed=4)
    draws = [Draw(corpus, pass_, clip) for corpus in range(2) for pass_ in range(3) for clip in range(5)]
    crops = [data[draw]["crop"] for draw in draws]
    assert crops == [again[draw]["crop"] for draw in reversed(draws)][::-1]
    assert len(set(crops)) == len(draws)
    seeds = [data[draw]["augmentation_seed"] for draw in draws]
    assert seeds == [again[draw]["augmentation_seed"] for draw in reversed(draws)][::-1]
    assert len(set(seeds)) == len(draws)
    assert data[draws[0]]["crop"] != MultiCorpus(corpora, seed=5)[draws[0]]["crop"]
    assert all(0 <= crop < 1 for crop in crops)
