"""Time and peak memory of reading and splitting a large corpus's metadata; made-up paths, no audio.

python benchmarks/corpora_metadata.py [--clips 150000] [--speakers 2000]
"""

from __future__ import annotations

import argparse
import csv
import resource
import tempfile
import time
from pathlib import Path

LABELS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")


def main() -> None:
    """Writes metadata.csv, then reads and splits it in this process, and prints what that took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=150_000)
    parser.add_argument("--speakers", type=int, default=2_000)
    options = parser.parse_args()

    from exhubert.corpora.readers import read_corpus
    from exhubert.corpora.splits import split_corpus

    before = peak_mebibytes()
    with tempfile.TemporaryDirectory() as scratch:
        with (Path(scratch) / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "label", "speaker", "language", "duration_seconds", "content_hash"])
            for clip in range(options.clips):
                speaker = f"speaker_{clip % options.speakers:05d}"
                name = f"audio/{speaker}/clip_{clip:07d}.wav"
                writer.writerow([name, LABELS[clip * 7 % 8], speaker, "en", "2.5000", f"{clip:032x}"])
        start = time.perf_counter()
        dataset = read_corpus(scratch)
        read = time.perf_counter()
        splits = split_corpus(dataset, "made up")
        end = time.perf_counter()
    clips = {split: len(part) for split, part in splits.items()}
    print(f"read {len(dataset):,} rows in {read - start:.2f} s, split them in {end - read:.2f} s: {clips}")
    print(f"peak memory {peak_mebibytes():,.0f} MiB, {before:,.0f} MiB of it the imports")


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
