"""Peak memory of the converters on a HuBERT of any size, random weights: `convert_memory.py DIRECTORY`.

The default is HuBERT XLarge (facebook/hubert-xlarge-ll60k's sizes); it needs 20 GB of disk. Each converter runs in a
process of its own. Peak memory is the process's largest resident set, which counts mapped files as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.convert.checkpoint import on_meta, write_weights


def main() -> None:
    """Makes the HuBERT if it is not there yet, expands and contracts it, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    hubert = options.directory / f"hubert-{options.layers}-{options.width}"
    if not hubert.is_dir():
        write_random_hubert(hubert, options.layers, options.width)
    print("| command | source | written | peak memory | seconds |\n|---|---:|---:|---:|---:|")
    expanded, back = Path(f"{hubert}-expanded"), Path(f"{hubert}-contracted")
    for kind, source, target in (("hubert", hubert, expanded), ("contract", expanded, back)):
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "exhubert", "convert", kind, source, target], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"convert {kind} failed")
        seconds = time.monotonic() - start
        sizes = " | ".join(f"{size(folder) / 2**30:.2f} GiB" for folder in (source, target))
        print(f"| convert {kind} | {sizes} | {usage.ru_maxrss / 2**20:.2f} GiB | {seconds:.0f} |", flush=True)


def write_random_hubert(directory: Path, layers: int, width: int) -> None:
    """Writes a HuBERT shard by shard, as big as it may be."""
    config = HubertConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=16,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        architectures=["HubertForSequenceClassification"],
    )
    like = on_meta(HubertForSequenceClassification, config).state_dict()
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    torch.manual_seed(0)
    write_weights(directory, like, lambda name: 0.02 * torch.randn(like[name].shape) + ("norm.weight" in name))


def size(directory: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


if __name__ == "__main__":
    main()
