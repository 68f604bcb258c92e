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

import numpy as np
import soundfile
import torch
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.model_folder import load_pipeline, save_model_folder

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
    model = options.model or tiny_model(options.directory / "tiny")
    print("| audio | windows | peak memory | seconds | times real time |\n|---|---:|---:|---:|---:|")
    for seconds in (10.0, 3600 * options.hours):
        path = options.directory / f"{seconds:g}s.flac"
        if not path.exists():
            write_noise(path, seconds)
        command = [sys.executable, __file__, options.directory, "--model", model, "--classify", path]
        command += ["--embeddings"] if options.embeddings else []
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        windows, spent, memory = int(printed[0]), float(printed[1]), f"{int(printed[2]) / 2**20:.2f} GiB"
        print(f"| {seconds:,.0f} s | {windows:,} | {memory} | {spent:.1f} | {seconds / spent:.0f} |", flush=True)


def write_noise(path: Path, seconds: float) -> None:
    """Writes a second at a time, each of another loudness."""
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for _ in range(round(seconds)):
            file.write(generator.uniform(0.001, 0.1) * generator.standard_normal((RATE, 2), dtype=np.float32))


def tiny_model(directory: Path) -> Path:
    """Writes a HuBERT with random weights, six classes."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_kernel=(80, 8, 5),
        conv_stride=(16, 4, 5),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        id2label=dict(enumerate(SIX_CLASSES)),
    )
    return save_model_folder(HubertForSequenceClassification(config), directory)


if __name__ == "__main__":
    main()
