"""How often the 95 % intervals of the UAR hold the truth, for simulated speakers.

    python benchmarks/interval_coverage.py [--simulations 300]

Each speaker has a recall of their own for each of four classes, drawn from a beta distribution around the population's;
the truth is the mean of the population's recalls.
"""

from __future__ import annotations

import argparse

import numpy as np

from exhubert.evaluation.bootstrap import interval, resample
from exhubert.evaluation.metrics import scores_of
from exhubert.utils.text import markdown_table

RECALLS = np.array([0.8, 0.7, 0.5, 0.4])  # of the population
CONCENTRATION = 6.0  # of the speakers' recalls around them
CLIPS = {"balanced": (6, 6, 6, 6), "unbalanced": (20, 10, 4, 2)}  # of each class and speaker
SPEAKERS = (20, 30, 50)


def main() -> None:
    """Prints the share of intervals that hold the truth, for each number of speakers and clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=300, help="of each cell (default: 300)")
    simulations = parser.parse_args().simulations
    rows = []
    for name, clips in CLIPS.items():
        held = [np.mean([holds(speakers, clips, seed) for seed in range(simulations)]) for speakers in SPEAKERS]
        rows.append([name, *(f"{100 * share:.1f} %" for share in held)])
    print(markdown_table(["clips", *(f"{speakers} speakers" for speakers in SPEAKERS)], rows))


def holds(speakers: int, clips: tuple[int, ...], seed: int) -> bool:
    """Whether the interval of one simulated test set holds the population's UAR."""
    rng = np.random.default_rng([speakers, seed])
    recalls = rng.beta(CONCENTRATION * RECALLS, CONCENTRATION * (1 - RECALLS), size=(speakers, len(clips)))
    references = np.tile(np.repeat(np.arange(len(clips)), clips), speakers)
    names = np.repeat([f"s{number}" for number in range(speakers)], sum(clips))
    right = rng.random(len(references)) < np.repeat(recalls, clips, axis=1).ravel()
    wrong = (references + rng.integers(1, len(clips), len(references))) % len(clips)
    drawn = resample(references, [np.where(right, references, wrong)], names.tolist(), len(clips), seed)
    found = interval(scores_of(drawn.matrices[0])["uar"], drawn.units)
    return found is not None and found[0] <= RECALLS.mean() <= found[1]


if __name__ == "__main__":
    main()
