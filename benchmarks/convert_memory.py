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

from exhubert.benchmarks.made_up import LARGE, write_random_hubert


def main() -> None:
    """Makes the HuBERT if it is not there yet, expands and contracts it, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    hubert = options.directory / f"hubert-{options.layers}-{options.width}"
    if not hubert.is_dir():
        width = {"hidden_size": options.width, "intermediate_size": 4 * options.width}
        write_random_hubert(hubert, **{**LARGE, **width, "num_hidden_layers": options.layers})
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


def size(directory: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


if __name__ == "__main__":
    main()
