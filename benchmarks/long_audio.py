"""Memory and time that the pipeline needs for a long file: `long_audio.py DIRECTORY [--hours 10] [--model MODEL]`.

Makes a FLAC of noise bursts, 44.1 kHz stereo (4 GB for ten hours), and, without --model, a tiny HuBERT with random
weights, so that what is measured is everything but the model. Each row is a process of its own; peak memory is its
largest resident set, and the row of ten seconds is what model and libraries need.

`long_audio.py DIRECTORY --calls CORPUS ...` makes calls of the clips of corpora instead, two channels at 8 kHz, a
speaker on each, with pauses. Two of --hours go through `exhubert predict --segments speech --channels each --summary`,
which is killed when the first is done, and begun again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from exhubert.audio_exhubert import SAMPLING_RATE, read_audio
from exhubert.benchmarks.made_up import TINY, write_noise, write_random_hubert
from exhubert.model_folder import load_pipeline

RATE = 44_100  # Hz
CALL_RATE = 8_000  # Hz
CLIPS = 400  # of the corpora, at most
PAUSES = (0.3, 3.0)  # seconds between two turns
NOISE = 1e-4  # loudness of a line on which nobody speaks


def main() -> None:
    """Makes what is missing, classifies ten seconds and the whole, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--model", help="Hub id or folder")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--calls", type=Path, nargs="+", metavar="CORPUS", help="corpora, to make calls of")
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
    if options.calls:
        measure_calls(options.directory, str(model), options.calls, 3600 * options.hours)
        return
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


def measure_calls(directory: Path, model: str, corpora: Sequence[Path], seconds: float) -> None:
    """Classifies a call of ten seconds, then two long ones, killed after the first and begun again; prints a table."""
    clips = list(clips_of(corpora))
    calls = {name: directory / f"{name}.flac" for name in ("short", "first", "second")}
    for seed, (name, path) in enumerate(calls.items()):
        if not path.exists():
            write_call(path, 10.0 if name == "short" else seconds, clips, seed)
    predict = [sys.executable, "-m", "exhubert", "predict", model, "--segments", "speech", "--channels", "each"]
    print("| run | audio | segments | peak memory | seconds | times real time |\n|---|---|---:|---:|---:|---:|")
    for name, files, killed in (
        ("ten seconds", ["short"], False),
        ("killed", ["first", "second"], True),
        ("begun again", ["first", "second"], False),
    ):
        output, summaries = directory / f"{files[0]}.jsonl", directory / f"{files[0]}_summaries"
        if name != "begun again":
            output.unlink(missing_ok=True)
            Path(f"{output}.settings.json").unlink(missing_ok=True)
            shutil.rmtree(summaries, ignore_errors=True)
        before = rows_by_file(output)
        audio = [str(calls[file]) for file in files]
        command = [*predict, *audio, "--output", str(output), "--summary", str(summaries)]
        begin = time.monotonic()
        process = subprocess.Popen(command)
        while killed and not rows_by_file(output):
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise SystemExit("predict ended before there was a row")
            time.sleep(0.5)
        if killed:
            time.sleep(5.0)  # to be in the middle of the second file
            os.kill(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        spent, new = time.monotonic() - begin, rows_by_file(output) - before
        if not killed and status:
            raise SystemExit(f"predict ended with status {status}")
        heard = sum(soundfile.info(file).duration for file in new)
        columns = [name, f"{heard:,.0f} s", f"{new.total():,}", f"{usage.ru_maxrss / 2**20:.2f} GiB"]
        print("| " + " | ".join([*columns, f"{spent:.1f}", f"{heard / spent:.0f}"]) + " |", flush=True)


def rows_by_file(output: Path) -> Counter[str]:
    """How many whole rows each file has."""
    lines = output.read_bytes().splitlines(keepends=True) if output.exists() else []
    return Counter(json.loads(line)["file"] for line in lines if line.endswith(b"\n"))


def clips_of(corpora: Sequence[Path]) -> Iterator[np.ndarray]:
    """Yields clips of corpora by chance, at the rate of a call."""
    files = []
    for corpus in corpora:
        with (corpus / "metadata.csv").open(encoding="utf-8", newline="") as file:
            files += [corpus / row["file_name"] for row in csv.DictReader(file)]
    for number in np.random.default_rng(0).permutation(len(files))[:CLIPS]:
        yield soxr.resample(read_audio(files[number]), SAMPLING_RATE, CALL_RATE)


def write_call(path: Path, seconds: float, clips: Sequence[np.ndarray], seed: int) -> None:
    """Writes a call: who speaks in a turn is drawn by lot, and so is the clip."""
    generator = np.random.default_rng(seed)
    left = round(seconds * CALL_RATE)
    with soundfile.SoundFile(path, "w", CALL_RATE, 2) as file:
        while left > 0:
            clip = clips[int(generator.integers(len(clips)))]
            pause = round(generator.uniform(*PAUSES) * CALL_RATE)
            turn = NOISE * generator.standard_normal((min(left, pause + len(clip)), 2))
            spoken = clip[: max(0, len(turn) - pause)]
            turn[pause : pause + len(spoken), generator.integers(2)] += spoken
            file.write(turn)
            left -= len(turn)


if __name__ == "__main__":
    main()
