"""Which clips make the batches, on one process and on several.

python -m pytest tests/test_round_robin.py
"""

from __future__ import annotations

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

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
    assert all(0 <= crop < 1 for crop in crops)
