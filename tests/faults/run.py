"""Attacks the package with fixed seeds and prints what came of it: tried, right, refused in one line, failed.

    python tests/faults/run.py [--only PART ...] [--seed 0] [--quick]

A part is a module here that has `attack`. The inputs that failed are kept in runs/faults. The exit code is 1 if
anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tally import table

COUNTS = {
    "hostile_audio": (3_000, 200),
    "hostile_texts": (1_700, 68),
    "kills": (85, 10),
    "disks": (79, 10),
}  # whole, and quick
KEPT = Path("runs/faults")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="PART", default=[*COUNTS], help=", ".join(COUNTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a sample, as in the tests")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    shutil.rmtree(KEPT, ignore_errors=True)
    tallies = []
    for part in options.only:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="faults-") as directory:
            found = importlib.import_module(part).attack(
                COUNTS[part][options.quick], options.seed, Path(directory), KEPT
            )
        tallies += found
        print(
            f"{part}: {sum(tally.tried for tally in found):,} in {time.perf_counter() - begin:.0f} s", file=sys.stderr
        )
    print(table(tallies))
    for tally in tallies:
        for line in tally.failures:
            print(f"{tally.kind}: {line}")
    return 1 if any(tally.failed for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
