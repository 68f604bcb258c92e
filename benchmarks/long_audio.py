"""Memory and time that the pipeline needs for a long file: `long_audio.py DIRECTORY [--hours 10] [--model MODEL]`.

Makes a FLAC of noise bursts, 44.1 kHz stereo (4 GB for ten hours), and, without --model, a tiny HuBERT with random
weights, so that what is measured is everything but the model. Each row is a process of its own; peak memory is its
largest resident set, and the row of ten seconds is what model and libraries need.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from exhubert.benchmarks.made_up import TINY, write_noise, write_random_hubert
from exhubert.model_folder import load_pipeline

RATE = 44_100  # Hz


def main() -> None:
    """Makes what is missing, classifies ten seconds and the whole, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--model", help="Hub id or folder")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--classify", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.classify:
        classify = load_pipeline(options.model)
        start = time.monotonic()
        result = classify(options.classify, embeddings=options.embeddings)
        seconds = time.monotonic() - start
        print(len(result["windows"]), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    options.directory.mkdir(parents=True, exist_ok=True)
    model = options.model or write_random_hubert(options.directory / "tiny", **TINY)
    print("| audio | windows | peak memory | seconds | times real time |\n|---|---:|---:|---:|---:|")
    for seconds in (10.0, 3600 * options.hours):
        path = options.directory / f"{seconds:g}s.flac"
        if not path.exists():
            write_noise(path, seconds, RATE, channels=2)
        command = [sys.executable, __file__, options.directory, "--model", model, "--classify", path]
        command += ["--embeddings"] if options.embeddings else []
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        windows, spent, memory = int(printed[0]), float(printed[1]), f"{int(printed[2]) / 2**20:.2f} GiB"
        print(f"| {seconds:,.0f} s | {windows:,} | {memory} | {spent:.1f} | {seconds / spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
