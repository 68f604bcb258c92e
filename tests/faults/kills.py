"""Every command is killed, from outside its process and at random moments, and given again: nothing may be lost.

A life is a process of one command, forked from one that has imported everything. It ends by kill -9, SIGTERM, or for
want of memory; at a moment drawn from the time that an undisturbed life takes, when a file has just appeared under the
hidden name by which it is unfinished, or between two changes of the disk. Whatever has its name then must be whole; the
same command again must end with what the undisturbed life left, and with nothing else.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import HubertConfig, HubertForSequenceClassification
from transformers.trainer_pt_utils import safe_globals
from unlabelled import recipe_in, write_talk

from conftest import HUBERT_KINDS, ROOT, SMALL, Forks, free_port, make_classifier, write_corpus
from exhubert.cli import entry_point
from exhubert.model_folder import save_model_folder
from hub_stand_in import WRITER, HubStandIn
from lives import hear_changes, write_run
from tally import FAILED, REFUSED, RIGHT, Tally

PATIENCE_SECONDS = 150.0  # for a life that takes some on an idle machine
REDRAWS = 12  # of a moment that came after the end
OURS = os.environ.get("EXHUBERT_SHARED", str(ROOT.parent / "shared"))
# Ends of keys: the clock's, and the checkout's commit, which may move on meanwhile.
UNSTEADY = ("_runtime", "_per_second", "data_wait", "epoch", "seconds", "commit")
UNFINISHED = re.compile(r"\.unfinished(-|/|$)")
# What all lives need; not onnxruntime, which starts a thread that a fork is without.
IMPORTS = [
    *("kills", "exhubert.train_hf", "exhubert.pretrain_hf", "exhubert.evaluate_hf", "exhubert.publish.push"),
    *("exhubert.inference.predict", "exhubert.inference.embed", "exhubert.corpora.prepare", "exhubert.convert.hubert"),
    *("exhubert.convert.published", "exhubert.convert.onnx", "exhubert.reports.plots", "sklearn.metrics"),
    *("onnxscript", "torch.onnx._internal.exporter._core", "torch.distributed", "tensorboard"),
]
LIFE = "import kills; kills.live()"
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


class Work(NamedTuple):
    """A command, in whose arguments `{inputs}` and `{place}` stand for folders.

    Attributes:
        kind: what it is called.
        arguments: of the command line.
        resumed: whether it goes on with `--resume`.
        whole: a folder that is there as a whole or not at all, and which the same command again refuses.
        processes: how many there are.
    """

    kind: str
    arguments: str
    resumed: bool = False
    whole: str = ""
    processes: int = 1


FOLDER = "{inputs}/model {inputs}/clips --device cpu --batch-size 4 --output {place}"
SPEECH = f"{{inputs}}/model {OURS}/corpora/emodb/audio/03*F*.flac --device cpu --segments speech --output {{place}}"
EVALUATED = "--split test --output {place}/report --device cpu"
WORKS = (
    Work("train", "train {inputs}/train/recipe.yaml --rounds 4 --output {place}/run", resumed=True),
    Work("pretrain", "pretrain {inputs}/pretrain/recipe.yaml --output {place}/run", resumed=True),
    Work(
        "train, with workers",
        "train {inputs}/train/recipe.yaml --rounds 4 --output {place}/run --dataloader_num_workers 2",
        True,
    ),
    Work("convert hubert", "convert hubert {inputs}/hubert {place}/model", whole="model"),
    Work("convert published", f"convert published {OURS}/published/a {{place}}/model", whole="model"),
    Work("convert onnx", "convert onnx {inputs}/model {place}/model", whole="model"),
    Work(
        "corpora prepare",
        "corpora prepare mine {inputs}/corpus {place}/corpus --audio flac --table {inputs}/corpus/metadata.csv",
        whole="corpus",
    ),
    Work("predict", f"predict {FOLDER}/rows.jsonl"),
    Work("predict, by window", f"predict {FOLDER}/rows.csv --per window --timeline {{place}}/pictures"),
    Work("predict, by segment", f"predict {SPEECH}/rows.jsonl --segment-files {{place}}/files"),
    Work("embed", f"embed {FOLDER}/rows.parquet"),
    Work("embed, by window", f"embed {FOLDER}/rows.parquet --per window"),
    Work("embed, by segment", f"embed {SPEECH}/rows.parquet"),
    Work("predict, two processes", f"predict {FOLDER}/rows.jsonl", processes=2),
    Work("embed, two processes", f"embed {FOLDER}/rows.parquet", processes=2),
    Work("evaluate", f"evaluate --model {{inputs}}/model --corpora {{inputs}}/corpus {EVALUATED}"),
    Work("push", "push {inputs}/model user/model"),
)
QUICK = ("convert hubert", "corpora prepare", "predict", "embed", "push")  # test_resume.py has trainings
WAYS = ("kill -9", "in a write", "SIGTERM", "between changes", "memory")
SIGNALS = {"SIGTERM": signal.SIGTERM}  # kill -9 otherwise
# For want of memory: by the kernel, or by libraries that do not ask whether they have got some.
KILLED = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV)


def write_inputs(inputs: Path) -> None:
    """Writes corpora, recipes and small models: what all commands read."""
    for name in ("train", "pretrain"):
        (inputs / name).mkdir(parents=True)
    write_run(inputs / "train")
    training = {"learning_rate": 3.0e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    training |= {"logging_steps": 2, "eval_steps": 4, "save_steps": 2}
    recipe_in(write_talk(inputs / "pretrain"), training=training)
    torch.manual_seed(0)
    changes = {**SMALL, **HUBERT_KINDS["large"], "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 1024}
    HubertForSequenceClassification(HubertConfig(**changes)).save_pretrained(inputs / "hubert")
    save_model_folder(make_classifier(0.2, num_hidden_layers=2, use_weighted_layer_sum=True), inputs / "model")
    write_corpus(inputs / "corpus", labels=("anger", "neutral", "sadness", "joy"))
    (inputs / "clips").mkdir()
    generator = np.random.default_rng(0)
    for number in range(10):
        seconds = 0.5 + 0.7 * (number * 7 % 10)
        times = np.arange(round(seconds * 16_000)) / 16_000
        tone = np.sin(2 * np.pi * (110 + 9 * number) * times * (1 + 0.1 * np.sin(3 * times))) * (np.sin(2 * times) > 0)
        name = inputs / "clips" / f"{number:02}{('.wav', '.flac', '.ogg')[number % 3]}"
        soundfile.write(name, 0.3 * tone + 0.01 * generator.standard_normal(len(times)), 16_000)


# Within a life


def live() -> None:
    """What the process of a life does; its wishes are in the environment."""
    wishes = json.loads(os.environ["LIFE"]) if os.environ.get("RANK", "0") == "0" else {}
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = memory_of(os.getpid())
    if "cgroup" in wishes:
        Path(wishes["cgroup"], "cgroup.procs").write_text(str(os.getpid()))
    if "file_bytes" in wishes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wishes["file_bytes"], wishes["file_bytes"]))
    if "as others" in wishes:
        heed_modes()
    if "address_bytes" in wishes:
        most = before["VmSize"] + wishes["address_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    moments = 0

    def moment() -> None:
        nonlocal moments
        moments += 1
        if moments == wishes.get("moment"):
            os.kill(os.getpid(), signal.SIGKILL)

    if "measured" in wishes or "moment" in wishes:
        hear_changes(wishes["place"], moment)
    try:
        code = entry_point()
    finally:
        if "measured" in wishes:
            after = memory_of(os.getpid())
            grown = {"address_bytes": after["VmPeak"] - before["VmSize"], "bytes": after["VmHWM"] - before["VmRSS"]}
            Path(wishes["measured"]).write_text(json.dumps({**grown, "moments": moments}))
    sys.stdout.flush()
    sys.exit(code)


def heed_modes() -> None:
    """Gives up root's right to write where a folder's mode does not allow it."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for place in range(3):  # effective, permitted, inheritable: of the first 32 capabilities
        sets[place] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(header, sets):
        raise OSError("capset")


def memory_of(process: int) -> dict[str, int]:
    """Bytes of a process, by their names in /proc."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}


# From outside


class Ended(NamedTuple):
    """How a life ended: the exit codes of its processes, what they said, and where it was killed."""

    codes: list[int]
    output: str
    lines: list[str]  # the last one of each process on standard error
    killed: str = ""  # "before" anything was written, "in" it, or "" if it ended on its own

    @property
    def in_a_line(self) -> bool:
        """Whether it ended with exit code 1 and one line."""
        plain = self.lines[self.codes.index(1)].startswith("error: ") if 1 in self.codes else False
        return plain and "Traceback" not in self.output


class Lives:
    """Lives of works, each in a place of its own."""

    def __init__(self, directory: Path, hub: HubStandIn) -> None:
        self.directory, self.hub = directory, hub
        path = os.pathsep.join(map(str, (ROOT.parent, ROOT, ROOT / "tests", ROOT / "tests" / "faults")))
        given = hub.environment(directory / "home", WRITER) | {"TRANSFORMERS_VERBOSITY": "error"}
        given |= {"OMP_NUM_THREADS": "1", "EXHUBERT_LAUNCHED": "", "PYTHONPATH": path}
        self.forks = Forks(IMPORTS, given)
        (directory / "tmp").mkdir()

    def __enter__(self) -> Lives:
        return self

    def __exit__(self, *error: object) -> None:
        self.forks.process.communicate()

    def new_place(self, name: str) -> Path:
        """An empty folder, and an empty Hub."""
        place = self.directory / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        self.hub.repos.clear()
        self.hub.requests.clear()
        for content in self.hub.storage.iterdir():
            content.unlink()
        return place

    def __call__(
        self,
        work: Work,
        place: Path,
        again: bool = False,
        wait: Callable[[float], bool] | None = None,
        number: int = signal.SIGKILL,
        apart: bool = False,
        **wishes: Any,
    ) -> Ended:
        """One life.

        Args:
            work, place: what is done where.
            again: whether it goes on with what an earlier one left.
            wait: is asked again and again whether the signal is to be sent now, with the seconds since the start.
            number: of the signal.
            apart: whether several processes know nothing of each other.
            wishes: see `live`.
        """
        names = {"inputs": self.directory / "inputs", "place": place}
        arguments = [part.format(**names) for part in work.arguments.split()]
        arguments += ["--resume"] if work.resumed and again and (place / "run").exists() else []
        logs, requests, port = [], [], str(free_port())
        for rank in range(work.processes):
            logs.append(self.directory / "tmp" / f"{place.name}-{rank}.log")
            for log in (logs[-1], Path(f"{logs[-1]}.errors")):
                log.unlink(missing_ok=True)
            given = {"LIFE": json.dumps({"place": str(place), **wishes}), "TMPDIR": str(self.directory / "tmp")}
            if work.processes > 1 and not apart:
                given |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(work.processes)}
                given |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            files = {"output": str(logs[-1]), "errors": f"{logs[-1]}.errors"}
            requests.append(
                {"code": LIFE, "arguments": arguments, "folder": str(self.directory), "environment": given, **files}
            )
        before = listing(place)
        self.processes = processes = self.forks.start(*requests)
        begin = time.monotonic()
        codes, killed = None, ""
        while codes is None:
            seconds = time.monotonic() - begin
            if wait is not None and not killed and wait(seconds):
                killed = "in" if listing(place) != before or (work.kind == "push" and self.hub.requests) else "before"
                for process in processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, number)
            if seconds > PATIENCE_SECONDS:
                for process in processes:
                    os.kill(process, signal.SIGABRT)
            codes = self.forks.codes(0.002 if wait is not None and not killed else 1.0)
        if killed and not any(codes):
            killed = ""  # it had done all before the signal reached it
        texts = [Path(f"{log}{end}").read_text(errors="replace") for end in ("", ".errors") for log in logs]
        lines = [(text.strip().splitlines() or [""])[-1] for text in texts[len(logs) :]]
        return Ended(codes, "".join(texts), lines, killed)


def listing(place: Path) -> set[str]:
    """The names of all that is below a folder, and the sizes of files."""
    found = set()
    for folder, folders, files in os.walk(place):
        found |= {os.path.join(folder, name) for name in folders}
        for name in files:
            with contextlib.suppress(OSError):  # gone already
                found.add(f"{folder}/{name} {os.lstat(os.path.join(folder, name)).st_size}")
    return found


def under_way(lives: Lives, work: Work, place: Path) -> set[str]:
    """The files that are there under a hidden name, but for locks; of a push what the Hub was asked for."""
    if work.kind == "push":
        return {f"{number} {request}" for number, request in enumerate(lives.hub.requests)}
    return {
        os.path.join(folder, name)
        for folder, _, names in os.walk(place)
        for name in names
        if UNFINISHED.search(os.path.join(folder, name)) and ".lock." not in name
    }


class Undisturbed(NamedTuple):
    """What an undisturbed life took and left."""

    seconds: float
    address_bytes: int
    bytes: int
    moments: int
    unfinished: int  # how many files were seen under hidden names
    file_bytes: list[int]  # of what was left
    state: dict[str, Any]


def undisturbed_life(lives: Lives, work: Work) -> Undisturbed:
    """Measures one life."""
    measured, seen = lives.directory / "tmp" / "measured.json", set[str]()
    place = lives.new_place("undisturbed")
    lives.forks.start()  # nothing: the server answers when it has imported everything
    lives.forks.codes()

    def watch(_: float) -> bool:
        seen.update(under_way(lives, work, place))
        return False

    begin = time.monotonic()
    ended = lives(work, place, wait=watch, measured=str(measured))
    seconds = time.monotonic() - begin
    if any(ended.codes):
        raise RuntimeError(f"{work.kind}: without any fault it ends with {ended.codes}: {ended.output}")
    known = json.loads(measured.read_text())
    known["file_bytes"] = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    return Undisturbed(seconds, state=state_of(work, lives, place), unfinished=len(seen), **known)


# What is left


def state_of(work: Work, lives: Lives, place: Path, partly: bool = False) -> dict[str, Any]:
    """What a life has left: the content of each file, by its name, what the Hub has, and what else lies about.

    Raises:
        Exception: any, if a file cannot be read whole. Of `partly` written rows the last one may be cut off.
    """
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if "/logs/" in f"/{name}" or (partly and UNFINISHED.search(name)):
            continue
        if path.is_file() or UNFINISHED.search(name):
            found[name] = content_of(path, place, partly) if path.is_file() else "a folder"
    if work.kind == "push" and (repo := lives.hub.repos.get(("models", "user/model"))):
        tree = repo.commits[repo.branches["main"]]
        found["Hub"] = {path: (lives.hub.storage / digest).read_bytes() for path, (digest, _) in tree.items()}
    return found


def content_of(path: Path, place: Path, partly: bool = False) -> Any:
    """A file's content, in a form that is equal where the content is; times and the place do not count."""
    if path.suffix == ".safetensors":
        return plain(load_file(path))
    if path.suffix in (".pt", ".pth"):
        with safe_globals():
            return plain(torch.load(path, weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        return table.to_pylist(), table.schema.metadata
    if path.suffix == ".bin":
        return "pickled arguments"
    content = path.read_bytes().replace(str(place).encode(), b"PLACE")
    if path.suffix == ".png":
        assert content.endswith(b"IEND\xaeB`\x82"), f"{path} is cut off"
        return "a timeline" if path.parent.name == "pictures" else content
    if path.suffix in (".flac", ".wav"):
        return soundfile.read(path)[0].tobytes()
    if path.suffix == ".json":
        return steady(json.loads(content))
    if path.suffix == ".yaml":
        return yaml.safe_load(content)
    if path.name.startswith("rows."):
        lines = content.splitlines(keepends=True)
        lines = [line for line in lines if line.endswith(b"\n")] if partly else lines
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines]
        cells = csv.reader(line.decode() for line in lines)
        return [[float(cell) if re.fullmatch(r"-?\d+\.\d+(e-\d+)?", cell) else cell for cell in row] for row in cells]
    return re.sub(rb"\d{4}-\d\d-\d\d", b"DATE", content)


def steady(values: Any) -> Any:
    """JSON's values but for those of the clock."""
    if isinstance(values, dict):
        return {name: steady(value) for name, value in values.items() if not name.endswith(UNSTEADY)}
    return [steady(value) for value in values] if isinstance(values, list) else values


def plain(values: Any) -> Any:
    """Tensors, in whatever holds them, as their bytes."""
    if isinstance(values, torch.Tensor):
        return (
            str(values.dtype),
            tuple(values.shape),
            values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(values, np.ndarray):
        return values.tobytes()
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items()}
    return [plain(value) for value in values] if isinstance(values, list | tuple) else values


def difference(found: dict[str, Any], expected: dict[str, Any], work: Work) -> str:
    """What is not as it should be, or nothing.

    What goes on has other batches, by which answers of `predict` and `embed` may differ, by 1e-5 at most.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is left"
        if not same(found[name], expected[name], 1e-5 if work.kind.startswith(("predict", "embed")) else 0.0):
            return f"{name} differs"
    return ""


def same(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two contents are equal, but for numbers that are not whole, by a tolerance."""
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=0, abs_tol=tolerance)
    if type(found) is not type(expected):
        return False
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key], tolerance) for key in found)
    if isinstance(found, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected, [tolerance] * len(found)))
    return bool(found == expected)


# Trials


class Problem(Exception):
    """What was promised was not kept."""


def attack(count: int, seed: int, directory: Path, keep: Path | None = None) -> list[Tally]:
    """Kills so many lives, of all works in turn and in all ways; of ten at most those of `QUICK`.

    Args:
        count: how many.
        seed: of the moments.
        directory: an empty folder.
        keep: where to put what a failure has left.
    """
    known = WORKS if Path(OURS).is_dir() else [work for work in WORKS if OURS not in work.arguments]
    works = [work for work in known if count > 10 or work.kind in QUICK]
    tallies = {work.kind: Tally(f"killed: {work.kind}") for work in works}
    undisturbed: dict[str, Undisturbed] = {}
    landed: Counter[str] = Counter()
    with HubStandIn(directory / "hub") as hub, cgroup() as group, Lives(directory, hub) as lives:
        write_inputs(directory / "inputs")  # meanwhile the server of lives imports
        for number in range(count):
            work = works[number % len(works)]
            way = WAYS[sum(divmod(number, len(works))) % len(WAYS)]
            if work.kind not in undisturbed:
                undisturbed[work.kind] = undisturbed_life(lives, work)
            trial = Trial(lives, work, way, undisturbed[work.kind], landed, group)
            try:
                verdict = trial(f"trial-{number}", np.random.default_rng([seed, number]))
            except Problem as problem:
                verdict = (FAILED, f"number {number}, seed {seed}, {way}: {problem}")
                print(f"{work.kind}: {verdict[1]}", file=sys.stderr, flush=True)
                if keep is not None:
                    shutil.copytree(directory / f"trial-{number}", keep / f"kills-{number}", symlinks=True)
            if verdict is not None:
                tallies[work.kind].add(*verdict)
            shutil.rmtree(directory / f"trial-{number}", ignore_errors=True)
    print(f"kills: {', '.join(f'{many} {where}' for where, many in sorted(landed.items()))}", file=sys.stderr)
    return list(tallies.values())


class Trial(NamedTuple):
    """A life that is killed, and the lives after it."""

    lives: Lives
    work: Work
    way: str
    undisturbed: Undisturbed
    landed: Counter[str]
    group: Path | None

    def __call__(self, name: str, generator: np.random.Generator) -> tuple[str, str] | None:
        """Returns an outcome for `Tally.add`, or None where all faults came after the end; raises Problem."""
        for draw in range(REDRAWS):
            place = self.lives.new_place(name)
            ended = self.fault(place, generator, draw)
            self.check(ended, place)
            if any(ended.codes):
                break
            self.landed[f"{self.way}: after the end"] += 1
        else:
            return None
        self.landed[f"{self.way}: {ended.killed or 'ended in a line'}"] += 1
        done = bool(self.work.whole) and (place / self.work.whole).exists()
        if self.way == "kill -9" and not done and generator.random() < 1 / 3:  # the life after it as well
            later = self.killed_at(place, generator.uniform(0, self.undisturbed.seconds), again=True)
            self.check(later, place)
            self.landed["kill -9 of the life after it"] += any(later.codes)
        return self.again(place, ended)

    def fault(self, place: Path, generator: np.random.Generator, draw: int) -> Ended:
        """A life that meets its fault."""
        number = SIGNALS.get(self.way, signal.SIGKILL)
        if self.way == "memory":
            share = generator.uniform(0.02, 0.9) / 2**draw
            if self.group is not None and generator.random() < 0.5:
                limit = int(share * self.undisturbed.bytes)
                limit_file(self.group).write_text(str(limit))
                ended = self.lives(self.work, place, cgroup=str(self.group))
            else:
                ended = self.lives(self.work, place, address_bytes=int(share * self.undisturbed.address_bytes))
            return ended._replace(killed="killed" if ended.codes[0] < 0 else "")
        if self.way == "between changes" and self.undisturbed.moments:
            moment = int(generator.integers(1, self.undisturbed.moments + 1))
            ended = self.lives(self.work, place, moment=moment)
            return ended._replace(killed="in" if any(ended.codes) else "")
        if self.way in ("kill -9", "SIGTERM"):
            return self.killed_at(place, generator.uniform(0, self.undisturbed.seconds), number)
        wanted, delay = int(generator.integers(1, self.undisturbed.unfinished + 1)), generator.uniform(0, 0.005)
        seen, since = set[str](), float("inf")

        def wait(seconds: float) -> bool:
            nonlocal since
            seen.update(under_way(self.lives, self.work, place))
            since = min(since, seconds) if len(seen) >= wanted else since
            return seconds >= since + delay

        return self.lives(self.work, place, wait=wait, number=number)

    def killed_at(self, place: Path, moment: float, number: int = signal.SIGKILL, again: bool = False) -> Ended:
        return self.lives(self.work, place, again, wait=lambda seconds: seconds >= moment, number=number)

    def check(self, ended: Ended, place: Path) -> None:
        """Raises Problem if a life ended otherwise than it should, or what has its name then is not whole."""
        code = ended.codes[0]
        expected = {0, -SIGNALS.get(self.way, signal.SIGKILL)}
        expected |= {*KILLED, 1} if self.way == "memory" else set()
        expected |= {3} if self.way == "SIGTERM" and self.work.resumed else set()
        if code not in expected:
            raise Problem(f"it ended with {ended.codes}: {ended.output[-600:]!r}")
        if code == 1 and not ended.in_a_line:
            raise Problem(f"it ended in more than a line: {ended.output[-1500:]!r}")
        self.check_whole(place)

    def check_whole(self, place: Path) -> None:
        """Raises Problem if what has its name is not whole."""
        try:
            state = state_of(self.work, self.lives, place, partly=True)
        except Exception as error:
            raise Problem(f"what has its name is not whole: {error!r}") from error
        there = self.work.whole and (place / self.work.whole).exists()
        pushed = len(state.get("Hub", ())) > 1  # more than what a new repository has
        if (there or pushed) and (problem := difference(state, self.undisturbed.state, self.work)):
            raise Problem(f"it is there, and not whole: {problem}")

    def again(self, place: Path, killed: Ended) -> tuple[str, str]:
        """The life after a fault, which ends as if there had been none; returns the outcome of both."""
        there = bool(self.work.whole) and (place / self.work.whole).exists()
        ended = self.lives(self.work, place, again=True)
        refused = there and ended.in_a_line and "exists" in ended.lines[0]
        if any(ended.codes) and not refused:
            raise Problem(f"the same command again ends with {ended.codes}: {ended.output[-600:]!r}")
        found, expected = state_of(self.work, self.lives, place), self.undisturbed.state
        if self.way == "SIGTERM" and self.work.resumed:
            found, expected = of_the_end(found), of_the_end(expected)
        if problem := difference(found, expected, self.work):
            raise Problem(f"after the same command again {problem}")
        return (REFUSED, "") if refused or killed.codes == [1] else (RIGHT, "")


def of_the_end(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a run but for what an interruption adds: a checkpoint, and the losses since the last log."""
    number = re.compile(r"checkpoint-(\d+)/")
    numbers = {name: int(found[1]) for name in state if (found := number.search(name))}
    last = max(numbers.values(), default=0)
    kept = {name: state[name] for name in state if numbers.get(name, last) == last and not name.endswith("curves.png")}
    for name in kept:
        if name.endswith("trainer_state.json"):
            log = [entry for entry in kept[name]["log_history"] if "loss" not in entry]
            kept[name] = kept[name] | {"log_history": log}
    return kept


@contextlib.contextmanager
def cgroup() -> Iterator[Path | None]:
    """Makes a group of processes with a memory limit of its own, where this process may; None elsewhere."""
    base = Path("/sys/fs/cgroup")
    base = base / "memory" if (base / "memory").is_dir() else base
    group = base / f"exhubert-faults-{os.getpid()}"
    try:
        group.mkdir()
        if not limit_file(group).exists():  # the controller is not for groups of ours
            group.rmdir()
            raise OSError("no memory controller")
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def limit_file(group: Path) -> Path:
    """Where the limit is written, of either generation of cgroups."""
    return group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
