"""What the model costs, beside what its arithmetic costs: `python benchmarks/speed.py [--quick] [--size small]`.

Whatever stands in one table is measured in turn, A B C A B C ..., each in a process of its own, so that a machine that
slows down slows all of them, and peak memory is each one's own. The floor is measured among them: the matrix products
of the model alone (arithmetic.py). Models have random weights and audio is noise; the converters make the models. Rows
that cannot be measured here say why.

Written are `speed.json`, `speed.md` and `speed.png`, in the folder that --output names. On a GPU (--device cuda) the
same tables have rows for bfloat16, tf32 and compiled layers as well.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from exhubert.benchmarks.arithmetic import FEATURE_ENCODER
from exhubert.benchmarks.contestants import (
    FROZEN,
    Load,
    Missing,
    Place,
    Run,
    by_openvino,
    conversion,
    exported,
    files_to_labels,
    first_prediction,
    floor,
    forward,
    inference_windows,
    quantisation,
    training_batches,
    training_step,
    windows_alone,
)
from exhubert.benchmarks.speed_report import write_report
from exhubert.utils.command import quiet_transformers
from exhubert.utils.text import first_line

PLAIN, FAST, FLOOR, EAGER = "plain path", "fast path", "floor", "plain path, eager attention"


class Contestant(NamedTuple):
    """What gets it ready, and the name of its floor in the same table; "" where it has none."""

    prepare: Callable[[Place], Run]
    floor: str = FLOOR


@dataclass(frozen=True)
class Group:
    """Contestants that are measured in turn, under each load.

    `seconds` is how long the turns under one load may take: there are at least `least` of them, at most five, and a
    first one under the first load that is not counted (`warm_up`).
    """

    title: str
    contestants: Mapping[str, Contestant]
    loads: Sequence[Load] = (Load(),)
    seconds: float = 40.0
    least: int = 1
    warm_up: bool = True
    quick: bool = True


# Contestants of the forward and of the training step; those that are not for this device say so.
FORWARD = {
    FLOOR: Contestant(floor, ""),
    PLAIN: Contestant(forward),
    FAST: Contestant(partial(forward, fast=True)),
    EAGER: Contestant(partial(forward, attention="eager")),
    "floor of HuBERT": Contestant(partial(floor, kind="hubert"), ""),
    "HuBERT, half the layers": Contestant(partial(forward, kind="hubert"), "floor of HuBERT"),
}
EXPORTS = {  # apart, as together they need more memory than many machines have
    FLOOR: Contestant(floor, ""),
    PLAIN: Contestant(forward),
    FAST: Contestant(partial(forward, fast=True)),
    "ONNX float32": Contestant(partial(exported, kind="onnx")),
    "ONNX int8": Contestant(partial(exported, kind="int8")),
    "OpenVINO bfloat16": Contestant(partial(by_openvino, precision="bf16")),
}
ON_CUDA = {
    "plain path, tf32": Contestant(partial(forward, tf32=True)),
    "plain path, compiled": Contestant(partial(forward, compiled=True)),
    "floor in bfloat16": Contestant(partial(floor, dtype="bfloat16"), ""),
    "plain path, bfloat16": Contestant(partial(forward, dtype="bfloat16"), "floor in bfloat16"),
    "plain path, bfloat16, compiled": Contestant(
        partial(forward, dtype="bfloat16", compiled=True), "floor in bfloat16"
    ),
}
STEP_FROZEN = {
    FLOOR: Contestant(partial(floor, training=True, frozen=FROZEN), ""),
    PLAIN: Contestant(training_step),
    FAST: Contestant(partial(training_step, fast=True)),
}
STEP_ON_CUDA = {
    "plain path, bfloat16": Contestant(partial(training_step, bfloat16=True)),
    "plain path, bfloat16, compiled": Contestant(partial(training_step, bfloat16=True, compiled=True)),
}
STEP_UNFROZEN = {
    FLOOR: Contestant(partial(floor, training=True, frozen=[FEATURE_ENCODER]), ""),
    PLAIN: Contestant(partial(training_step, frozen=[FEATURE_ENCODER])),
}
STEP_HUBERT = {
    FLOOR: Contestant(partial(floor, kind="hubert", training=True, frozen=[FEATURE_ENCODER]), ""),
    "HuBERT": Contestant(partial(training_step, kind="hubert", frozen=[FEATURE_ENCODER])),
}
CONVERSIONS = {
    "convert hubert": Contestant(partial(conversion, kind="exhubert", arguments=("hubert",), source="hubert"), ""),
    "convert hubert, small": Contestant(
        partial(conversion, kind="exhubert", arguments=("hubert",), source="hubert", size="small"), ""
    ),
    "convert onnx": Contestant(partial(conversion, kind="onnx", arguments=("onnx",)), ""),
    "convert onnx --int8, after the export": Contestant(quantisation, ""),
}
STARTS = {
    "torch": Contestant(first_prediction, ""),
    "ONNX float32": Contestant(partial(first_prediction, kind="onnx"), ""),
    "ONNX int8": Contestant(partial(first_prediction, kind="int8"), ""),
}
FILES = {
    "plain path alone": Contestant(windows_alone, ""),
    "fast path alone": Contestant(partial(windows_alone, fast=True), ""),
    "predict": Contestant(files_to_labels, ""),
    "ONNX int8 alone": Contestant(partial(windows_alone, kind="int8"), ""),
    "predict, ONNX int8": Contestant(partial(files_to_labels, kind="int8"), ""),
}
SMALL_FILES = {
    "plain path alone": Contestant(partial(windows_alone, size="small"), ""),
    "fast path alone": Contestant(partial(windows_alone, size="small", fast=True), ""),
    "predict": Contestant(partial(files_to_labels, size="small"), ""),
}
DATA = {
    "training's batches": Contestant(training_batches, ""),
    "training's batches, 2 workers": Contestant(partial(training_batches, workers=2), ""),
    "inference's windows": Contestant(inference_windows, ""),
}


def groups(options: argparse.Namespace) -> list[Group]:
    """All that is measured, in order."""
    cuda, quick = options.device != "cpu", options.quick
    layers = (6, 12, 24)
    batches = [Load(batch) for batch in ((1, 4) if quick else (1, 4, 16))]
    sweep = {name: FORWARD[name] for name in (FLOOR, PLAIN, FAST)}
    forwards = {**FORWARD, **(ON_CUDA if cuda else {})}
    if quick:
        del forwards[EAGER]
    steps = {**STEP_FROZEN, **(STEP_ON_CUDA if cuda else {})}
    costs = [Load(seconds=seconds) for seconds in (1.0, 3.0, 10.0)]
    costs += [Load(originals=count, copies=0) for count in layers]
    costs += [Load(originals=layers[1], copies=copies) for copies in (1, 2)]
    clips, hour = [Load(files=count) for count in (8, 128, 512)], Load(seconds=3600.0)
    once: dict[str, Any] = {"warm_up": False, "least": 1, "seconds": 0.0}
    return [
        Group("conversion", dict([*CONVERSIONS.items()][:1]) if quick else CONVERSIONS, **once),
        Group("forward", forwards, batches),
        Group("forward of exports", EXPORTS, batches, quick=False),
        Group("training step, originals frozen", steps, [Load(2)], least=2),
        Group("training step, all but the CNN", STEP_UNFROZEN, [Load(2)], seconds=20.0, least=2, quick=False),
        Group("training step of HuBERT, half the layers", STEP_HUBERT, [Load(2)], seconds=20.0, least=2, quick=False),
        Group("from a cold start to the first row", STARTS, warm_up=False, quick=False),
        Group("from files to labels", FILES, [*clips, hour] if cuda else clips[:1], quick=False, **once),
        Group("from files to labels, small model", SMALL_FILES, [*clips[1:], hour], quick=False, **once),
        Group("data alone", DATA, [Load(files=256), hour], seconds=10.0, quick=False),
        Group("cost against seconds, layers and copies", sweep, costs, seconds=5.0, quick=False),
    ]


def main() -> None:
    """Measures what is asked for, and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/speed"), help="folder of the report")
    parser.add_argument("--work", type=Path, help="folder for models and audio, 7 GB (default: in --output)")
    parser.add_argument("--size", default="large", choices=("large", "small"), help="small: the demo's model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="forward and training step with frozen originals only")
    parser.add_argument("--only", metavar="WORD", default="", help="the tables with this word in their titles")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    place = Place(options.work or options.output / "made", options.size, options.device)
    if options.contestant:
        serve(next(group for group in groups(options) if group.title == options.contestant[0]), place, options)
        return
    facts = {"size": options.size, "device": options.device, **machine(options.device)}
    began, report = time.monotonic(), ""
    rows: list[dict[str, Any]] = []
    for group in groups(options):
        if (group.quick or not options.quick) and options.only in group.title:
            print(f"{group.title} ...", file=sys.stderr, flush=True)
            rows += measure(group, options)
            minutes = f"{(time.monotonic() - began) / 60:.1f}"
            report = write_report(options.output, {**facts, "minutes": minutes}, rows)
    print(report)


def measure(group: Group, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures the contestants of a group in turn; returns a row for each of them and each load."""
    processes = {name: Process(group.title, name) for name in group.contestants}
    rows = []
    try:
        for process in processes.values():
            process.answer()  # when it is ready
        for load in group.loads:
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
            turns, began = 0, time.monotonic()
            if group.warm_up and load == group.loads[0]:
                for process in processes.values():
                    process.run(load)
                began = time.monotonic()
            seconds = group.seconds / 5 if options.quick else group.seconds
            while turns < group.least or (turns < 5 and time.monotonic() - began < seconds * turns / (turns + 1)):
                for name, process in processes.items():
                    found[name].append(process.run(load))
                turns += 1
            rows += [row(group, name, load, found) for name in processes]
    finally:
        for process in processes.values():
            process.end()
    return rows


def row(group: Group, name: str, load: Load, found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """What was found of one contestant under one load: medians, and ratios to its floor and to the plain path."""
    described = {"table": group.title, "name": name, "load": asdict(load)}
    answers = [answer for answer in found[name] if "seconds" in answer]
    if len(answers) < len(found[name]) or not answers:
        reason = next(answer["missing"] for answer in found[name] if "missing" in answer)
        return {**described, "missing": reason}
    seconds = [answer["seconds"] for answer in answers]
    result = {**described, "turns": seconds, **answers[-1], "seconds": statistics.median(seconds)}
    of_floor, of_plain = (
        [answer for answer in found.get(other, []) if "seconds" in answer]
        for other in (group.contestants[name].floor or name, PLAIN)
    )
    if group.contestants[name].floor and of_floor:
        result["flops"] = of_floor[0]["flops"]
        result["times_floor"] = result["seconds"] / statistics.median(answer["seconds"] for answer in of_floor)
    if of_plain and name != PLAIN:
        result["times_plain"] = statistics.median(answer["seconds"] for answer in of_plain) / result["seconds"]
    return result


class Process:
    """A contestant in a process of its own, which gets ready, says so, and waits for loads."""

    def __init__(self, title: str, name: str) -> None:
        line = [sys.executable, __file__, *sys.argv[1:], "--contestant", title, name]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.missing: dict[str, Any] = {}

    def run(self, load: Load) -> dict[str, Any]:
        """Lets it run once; returns what it found, or why not under `missing`."""
        if self.missing:
            return self.missing
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(load)) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.missing = {"missing": f"ended with {self.process.wait()}"}  # -9: the memory is not enough
            return self.missing
        found: dict[str, Any] = json.loads(line)
        if "missing" in found:
            self.missing = found
        return found

    def end(self) -> None:
        """Lets it end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve(group: Group, place: Place, options: argparse.Namespace) -> None:
    """Runs one contestant, a line of JSON in, a line out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    quiet_transformers()

    def answer(work: Callable[[], dict[str, Any]]) -> None:
        try:
            found = work()
        except Missing as reason:
            found = {"missing": str(reason)}
        except Exception as error:
            found = {"missing": f"{type(error).__name__}: {first_line(error)}"}
        print(json.dumps(found), file=answers, flush=True)

    prepared: list[Run] = []

    def prepare() -> dict[str, Any]:
        prepared.append(group.contestants[options.contestant[1]].prepare(place))
        return {}

    answer(prepare)
    for line in sys.stdin:
        answer(partial(lambda load: with_memory(prepared[0](load)), Load(**json.loads(line))))


def with_memory(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, with this process's largest resident set so far unless it is another's that was measured."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    # Not `ru_maxrss`, in which a new process inherits its parent's.
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return found if kilobytes is None else {"peak_bytes": 1024 * kilobytes, **found}


def machine(device: str) -> dict[str, str]:
    """What it was measured on, and with."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), processor)
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    threads = {"processor": processor, "threads": str(torch.get_num_threads()), **gpu}
    installed = {}
    for name in ("torch", "transformers", "onnxruntime", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return {**threads, **installed}


if __name__ == "__main__":
    main()
