"""How well the turns of speech of `segments="speech"` are found, against recordings whose turns are known.

python benchmarks/speech_turns.py CORPUS...

A recording is clips of a corpus, in seeded random order, with pauses of 0.6 to 4 s between them. Of each clip there is
the part from its first to its last loud frame: one that is at most 30 dB below the loudest, and at least
10 dB above what the clip is at its quietest. These parts are the truth, but for pauses of half a second and more in
them. Clips that are nowhere 20 dB above their quietest say nothing of where the speech is, and are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exhubert.audio_exhubert import SAMPLING_RATE, read_audio
from exhubert.corpora.readers import locate_clip, read_corpus
from exhubert.evaluation.degradations import add_noise
from exhubert.segments_exhubert import PAUSE_SECONDS, SpeechTurns, Turn

FRAME_SAMPLES = 160  # 10 ms
LOUD_DB = 30.0  # below the loudest frame
ABOVE_QUIET_DB = 10.0
LEAST_RANGE_DB = 20.0
PAUSES = (0.6, 4.0)  # seconds
LEVEL = 0.05  # of the loud frames of all clips, where they are levelled
FAINT_NOISE = 10 ** (-70 / 20)  # of full scale
CONDITIONS = ("digital silence", "faint noise", "noise 20 dB", "noise 20 dB, levels as recorded")
Span = tuple[int, int]  # the first sample, and the one after the last


def loud_spans(samples: np.ndarray) -> tuple[list[Span], float]:
    """Where there is speech in a clip, as the module says, and its level; nothing where that cannot be told."""
    count = len(samples) // FRAME_SAMPLES
    powers = (samples[: count * FRAME_SAMPLES].reshape(count, FRAME_SAMPLES).astype(np.float64) ** 2).mean(axis=1)
    levels = 10 * np.log10(np.convolve(powers, np.ones(3) / 3, "same") + 1e-12)
    loudest, quietest = levels.max(), np.percentile(levels, 5)
    if loudest - quietest < LEAST_RANGE_DB:
        return [], 0.0
    loud = np.flatnonzero(levels >= max(loudest - LOUD_DB, quietest + ABOVE_QUIET_DB))
    breaks = np.flatnonzero(np.diff(loud) * FRAME_SAMPLES >= PAUSE_SECONDS * SAMPLING_RATE)
    begins, ends = [loud[0], *loud[breaks + 1]], [*loud[breaks], loud[-1]]
    spans = [
        (int(begin) * FRAME_SAMPLES, (int(end) + 1) * FRAME_SAMPLES) for begin, end in zip(begins, ends, strict=True)
    ]
    return spans, float(np.sqrt(powers[loud].mean()))


def make_recording(clips: Sequence[np.ndarray], draw: np.random.Generator, levelled: bool) -> tuple[Any, list[Span]]:
    """Joins clips by silence; returns the samples and where there is speech in them."""

    def pause() -> np.ndarray:
        return np.zeros(round(draw.uniform(*PAUSES) * SAMPLING_RATE), np.float32)

    parts, truth = [pause()], []
    for clip in clips:
        spans, level = loud_spans(clip)
        if spans:
            begin, position = spans[0][0], sum(map(len, parts))
            truth += [(start - begin + position, end - begin + position) for start, end in spans]
            parts += [clip[begin : spans[-1][1]] * (LEVEL / level if levelled else 1.0), pause()]
    return np.concatenate(parts, dtype=np.float32), truth


def score(samples: np.ndarray, truth: Sequence[Span]) -> np.ndarray:
    """The seconds of speech, those of them that are in no turn, and those of turns in which there is no speech."""
    turns: list[Turn] = []
    finder = SpeechTurns(3.0, None, turns)
    finder.push(samples)
    finder.end()
    speech, found = np.zeros((2, len(samples)), bool)
    for begin, end in truth:
        speech[begin:end] = True
    for turn in turns:
        found[round(turn.start * SAMPLING_RATE) : round(turn.end * SAMPLING_RATE)] = True
    return np.array([speech.sum(), (speech & ~found).sum(), (found & ~speech).sum()]) / SAMPLING_RATE


def recordings(folder: str, half: int, count: int, clips: int) -> Iterator[tuple[str, np.ndarray, list[Span]]]:
    """Makes `count` recordings of half of a corpus's speakers, each in all conditions."""
    rows = list(read_corpus(folder))
    speakers = sorted({row["speaker"] for row in rows})
    mine = [row for row in rows if speakers.index(row["speaker"]) % 2 == half]
    for number in range(count):
        seed, key = [half, number, len(rows)], f"{Path(folder).name}/{half}/{number}"
        chosen = np.random.default_rng(seed).choice(len(mine), min(clips, len(mine)), replace=False)
        audio = [read_audio(*locate_clip(mine[each])) for each in chosen]
        recorded, truth = make_recording(audio, np.random.default_rng(seed), levelled=False)
        levelled, _ = make_recording(audio, np.random.default_rng(seed), levelled=True)
        faint = FAINT_NOISE * np.random.default_rng(seed).standard_normal(len(recorded), dtype=np.float32)
        sounds = recorded, recorded + faint, add_noise(levelled, key, 20.0), add_noise(recorded, key, 20.0)
        yield from ((condition, sound, truth) for condition, sound in zip(CONDITIONS, sounds, strict=True))


def main() -> None:
    """Prints missed and false time as shares of the speech, for each corpus and on average, of both halves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", help="corpus folders, with speakers")
    parser.add_argument("--recordings", type=int, default=6, help="of each half of each corpus")
    parser.add_argument("--clips", type=int, default=20, help="in a recording")
    arguments = parser.parse_args()
    for half, what in enumerate(("the speakers that the constants were chosen on", "the other speakers")):
        sums = {}
        for folder in arguments.corpora:
            of_corpus = {condition: np.zeros(3) for condition in CONDITIONS}
            for condition, samples, truth in recordings(folder, half, arguments.recordings, arguments.clips):
                of_corpus[condition] += score(samples, truth)
            sums[Path(folder).name] = of_corpus
        seconds = sum(each[CONDITIONS[0]][0] for each in sums.values())
        print(f"\n{what}, {seconds:.0f} s of speech: missed / false, %\n")
        print("| condition | " + " | ".join(sums) + " | average |\n|---|" + "---|" * (len(sums) + 1))
        for condition in CONDITIONS:
            shares = [100 * each[condition][1:] / each[condition][0] for each in sums.values()]
            cells = [f"{missed:.1f} / {false:.1f}" for missed, false in [*shares, np.mean(shares, axis=0)]]
            print(f"| {condition} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
