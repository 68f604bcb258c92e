"""What speed.py measures: each function here gets something ready, and returns what runs it once.

A run is given a `Load` and returns what it found: `seconds`, and whatever else it knows. What cannot run here raises
`Missing` with the reason. The tables at the end say what stands beside what.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader
from transformers import AutoConfig, HubertForSequenceClassification

from exhubert.audio_exhubert import SAMPLING_RATE, iter_audio
from exhubert.benchmarks.arithmetic import (
    FEATURE_ENCODER,
    ORIGINALS,
    Product,
    floor_seconds,
    forward_products,
    product_seconds,
    synchronize,
    total_flops,
    training_products,
)
from exhubert.benchmarks.made_up import LARGE, write_noise, write_random_hubert
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.convert.checkpoint import on_meta
from exhubert.convert.onnx import quantize
from exhubert.model_folder import load_classifier
from exhubert.model_folder.load import make_feature_extractor
from exhubert.model_folder.onnx_model import ONNX_FILE
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification
from exhubert.pipeline_exhubert import make_windows
from exhubert.training.collator import AudioCollator
from exhubert.utils.files import whole_folder, write_text

SMALL_HUBERT = Path(__file__).parent.parent / "demo" / "small_hubert.yaml"
BEST_SHAPE = Product(1, 2048, 2048, 2048)  # large enough for any library to be at its best
FROZEN = (FEATURE_ENCODER, ORIGINALS)
FREEZERS = {FEATURE_ENCODER: "freeze_feature_encoder", ORIGINALS: "freeze_og_encoder"}
COLLATED = 8  # clips in a batch of the training's loader, which are also the windows of a batch of inference


class Missing(Exception):
    """Why something cannot be measured here."""


@dataclass(frozen=True)
class Load:
    """What one run has to do: clips in a batch, seconds of each, files; layers, of a model made for the purpose."""

    batch: int = 1
    seconds: float = 3.0
    files: int = 1
    originals: int | None = None
    copies: int | None = None


@dataclass(frozen=True)
class Place:
    """Where things are measured: the folder for what is made, the size of the model, the device."""

    work: Path
    size: str
    device: str

    @property
    def hubert(self) -> Path:
        """A HuBERT with random weights, made here if it is not there yet."""
        folder = self.work / f"{self.size}-hubert"
        if not folder.is_dir():
            sizes = LARGE if self.size == "large" else yaml.safe_load(SMALL_HUBERT.read_text(encoding="utf-8"))
            write_random_hubert(folder, **{**sizes, "layerdrop": 0.0})
        return folder

    def model(self, kind: str = "exhubert") -> Path:
        """What a conversion made of it: exhubert, onnx or int8."""
        folder = self.work / f"{self.size}-{kind}"
        if kind != "hubert" and not folder.is_dir():
            raise Missing("not there before `conversion`")
        return folder if kind != "hubert" else self.hubert

    def config(self, load: Load, kind: str = "exhubert") -> Any:
        """The configuration of its model, with as many layers as the load says."""
        config = AutoConfig.from_pretrained(self.hubert)
        if load.originals:
            config.num_hidden_layers = load.originals
            return ExHuBERTConfig.from_hubert_config(config, load.copies or 0)
        return config if kind == "hubert" else ExHuBERTConfig.from_hubert_config(config)

    def audio(self, load: Load) -> list[Path]:
        """As many FLAC files as the load says, made here if they are not there yet."""
        folder = self.work / f"noise-{load.seconds:g}s"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{number:05}.flac" for number in range(load.files)]
        for file in files:
            if not file.exists():
                write_noise(file, load.seconds)
        return files


Found = dict[str, Any]
Run = Callable[[Load], Found]


def floor(
    place: Place, kind: str = "exhubert", training: bool = False, frozen: Collection[str] = (), dtype: str = "float32"
) -> Run:
    """The matrix products of a forward or a training step alone, each at its own shape."""

    def run(load: Load) -> Found:
        config = place.config(load, kind)
        shape = (config, load.batch, load.seconds)
        products = training_products(*shape, frozen) if training else forward_products(*shape)
        seconds = {product: product_seconds(product, place.device, getattr(torch, dtype)) for product in set(products)}
        best = product_seconds(BEST_SHAPE, place.device, getattr(torch, dtype))
        found: Found = {"seconds": floor_seconds(products, seconds.__getitem__), "flops": total_flops(products)}
        return {**found, "best_flops_per_second": BEST_SHAPE.flops / best}

    return run


def forward(
    place: Place,
    kind: str = "exhubert",
    attention: str = "sdpa",
    fast: bool = False,
    dtype: str = "float32",
    tf32: bool = False,
    compiled: bool = False,
) -> Run:
    """A forward of torch's model, in eval mode; of the model's folder, or made for the load where that names layers."""
    only_cuda(place, dtype != "float32" or tf32 or compiled)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    prepared: dict[tuple[int | None, int | None], Any] = {}

    def prepare(load: Load) -> Any:
        layers = (load.originals, load.copies)
        if layers not in prepared:
            prepared.clear()  # the one before it
            model = (
                random_classifier(place.config(load)) if load.originals else load_classifier(str(place.model(kind)))[0]
            )
            model.set_attn_implementation(attention)
            if fast:
                model.set_fast_path()
            if compiled:
                model.compile_layers()
            prepared[layers] = model.eval().to(place.device, getattr(torch, dtype))
        return prepared[layers]

    def run(load: Load) -> Found:
        model, clips = prepare(load), made_up_clips(place, load).to(getattr(torch, dtype))
        with torch.inference_mode():
            if compiled:
                model(clips)  # of another size it would be compiled anew
            return timed(lambda: model(clips), place.device)

    return run


def training_step(
    place: Place,
    kind: str = "exhubert",
    frozen: Collection[str] = FROZEN,
    fast: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
) -> Run:
    """Forward, backward and AdamW's update, on one batch in training mode, as `train_hf.py` does it by default."""
    only_cuda(place, bfloat16 or compiled)
    model_class = HubertForSequenceClassification if kind == "hubert" else ExHuBERTForSequenceClassification
    model = model_class.from_pretrained(place.model(kind), dtype=torch.float32).to(place.device).train()
    own_weights(model)
    for part in frozen:
        getattr(model, FREEZERS[part])()
    if fast:
        model.set_fast_path()
    if compiled:
        model.compile_layers()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def run(load: Load) -> Found:
        clips, labels = made_up_clips(place, load), torch.arange(load.batch, device=place.device) % 6

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(place.device, torch.bfloat16, enabled=bfloat16):
                loss = model(clips, labels=labels).loss
            loss.backward()
            optimizer.step()

        return timed(step, place.device)

    return run


def exported(place: Place, kind: str) -> Run:
    """A forward of the ONNX export by onnxruntime."""
    if place.device != "cpu":
        raise Missing("runs on the CPU only")
    try:
        model = load_classifier(str(place.model(kind)))[0]
    except ImportError as error:
        raise Missing("not installed") from error

    def run(load: Load) -> Found:
        clips = made_up_clips(place, load)
        model(clips[:1])  # brings back what the system has put away while others took their turns
        return timed(lambda: model(clips), place.device)

    return run


def by_openvino(place: Place, precision: str = "f32") -> Run:
    """A forward of the float32 ONNX export by OpenVINO, which computes in float32 (f32) or bfloat16 (bf16)."""
    if place.device != "cpu":
        raise Missing("runs on the CPU only")
    file = place.model("onnx") / ONNX_FILE
    try:
        import openvino
    except ImportError as error:
        raise Missing("not installed") from error
    core = openvino.Core()
    model = core.read_model(file)
    for output in list(model.outputs):
        if "logits" not in output.get_names():
            model.remove_result(output.get_node())  # hidden states, which would be computed unasked
    hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", {**hints, "INFERENCE_PRECISION_HINT": precision}).create_infer_request()

    def run(load: Load) -> Found:
        clips = made_up_clips(place, load).numpy()
        request.infer([clips[:1]])  # as in `exported`
        return timed(lambda: request.infer([clips]), place.device)

    return run


def first_prediction(place: Place, kind: str = "exhubert", options: Collection[str] = ()) -> Run:
    """`exhubert predict` on one clip, from the start of the process to its row."""
    model = place.model(kind)

    def run(load: Load) -> Found:
        found = command("predict", model, *place.audio(load), "--format", "jsonl", *options)
        return {"seconds": found["seconds_to_first_line"], "peak_bytes": found["peak_bytes"]}

    return run


def files_to_labels(place: Place, kind: str = "exhubert", size: str = "", options: Collection[str] = ()) -> Run:
    """`exhubert predict` on many files, without what it takes for the first; with a model of another size if asked."""
    model = replace(place, size=size or place.size).model(kind)

    def run(load: Load) -> Found:
        first = command("predict", model, *place.audio(Load()), "--format", "jsonl", *options)
        every = command("predict", model, *place.audio(load), "--format", "jsonl", *options)
        windows = every["windows"] - first["windows"]
        seconds = every["seconds"] - first["seconds"]
        return {"seconds": seconds, "windows": windows, "peak_bytes": every["peak_bytes"]}

    return run


def windows_alone(place: Place, kind: str = "exhubert", size: str = "", fast: bool = False) -> Run:
    """The forwards that files of a load need, in batches of `COLLATED`: the model of `files_to_labels` alone."""
    place = replace(place, size=size or place.size)
    of_batch = forward(place, kind, fast=fast) if kind == "exhubert" else exported(place, kind)
    of_batch(Load(batch=COLLATED))  # the first is slower

    def run(load: Load) -> Found:
        windows = load.files * max(1, round(load.seconds / 1.5) - 1) - 1
        batches = max(1, round(windows / COLLATED))
        seconds = sum(of_batch(Load(batch=COLLATED))["seconds"] for _ in range(batches))
        return {"seconds": seconds * windows / (batches * COLLATED), "windows": windows}

    return run


def training_batches(place: Place, workers: int = 0) -> Run:
    """The training's batches alone: FLAC decoded, cut, normalised."""
    collator = AudioCollator(make_feature_extractor(AutoConfig.from_pretrained(place.hubert)))

    def run(load: Load) -> Found:
        rows: Any = [{"audio": {"path": str(file)}, "labels": 0, "crop": 0.5} for file in place.audio(load)]
        loader: Any = DataLoader(rows, COLLATED, num_workers=workers, collate_fn=collator)
        return {**timed(lambda: list(loader), "cpu"), "windows": load.files}

    return run


def inference_windows(place: Place) -> Run:
    """The windows of files alone, as inference reads them."""
    extractor = make_feature_extractor(AutoConfig.from_pretrained(place.hubert))

    def run(load: Load) -> Found:
        files, windows = place.audio(load), 0
        start = time.perf_counter()
        for file in files:
            windows += sum(1 for _ in make_windows(iter_audio(str(file)), extractor))
        return {"seconds": time.perf_counter() - start, "windows": windows}

    return run


def conversion(place: Place, kind: str, arguments: Sequence[str], source: str = "exhubert", size: str = "") -> Run:
    """`exhubert convert`, which makes the models that the rest is measured with."""
    place = replace(place, size=size or place.size)
    if kind != "exhubert" and place.device != "cpu":
        raise Missing("runs on the CPU only")

    def run(load: Load) -> Found:
        target = place.work / f"{place.size}-{kind}"
        if target.is_dir():
            raise Missing("is there already")
        name, *options = arguments
        found = command("convert", name, place.model(source), target, *options)
        return {"seconds": found["seconds"], "peak_bytes": found["peak_bytes"]}

    return run


def quantisation(place: Place) -> Run:
    """The second half of `exhubert convert onnx --int8`, of the float32 export that is there."""

    def run(load: Load) -> Found:
        source, target = place.model("onnx"), place.work / f"{place.size}-int8"
        if target.is_dir():
            raise Missing("is there already")
        with whole_folder(target) as unfinished:
            for file in source.glob("*.json"):
                shutil.copy(file, unfinished)
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
            config["onnx"]["int8"] = True
            write_text(unfinished / "config.json", json.dumps(config))
            return timed(lambda: quantize(source / ONNX_FILE, unfinished / ONNX_FILE), "cpu")

    return run


# What several of them need.


def random_classifier(config: ExHuBERTConfig) -> ExHuBERTForSequenceClassification:
    """A classifier with random weights."""
    model = on_meta(ExHuBERTForSequenceClassification, config).to_empty(device="cpu")
    for weight in (*model.parameters(), *model.buffers()):
        torch.nn.init.uniform_(weight, -0.03, 0.03)
    return model


def own_weights(model: torch.nn.Module) -> None:
    """Takes weights that are mapped from files into memory, where the system cannot put them away between turns."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory counts from here


def command(*arguments: object) -> Found:
    """Runs `exhubert ...` in a process of its own: seconds to its first line and to its end, windows, peak memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        line = [sys.executable, "-m", "exhubert", *map(str, arguments)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        found: Found = {"windows": 0}
        for row in process.stdout:
            found.setdefault("seconds_to_first_line", time.perf_counter() - start)
            found["windows"] += len(json.loads(row)["windows"]) if row.startswith("{") else 0
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise Missing(errors.read().strip().splitlines()[-1])
    return {**found, "seconds": time.perf_counter() - start, "peak_bytes": 1024 * usage.ru_maxrss}


def only_cuda(place: Place, needed: bool) -> None:
    """Says that a variant is for a GPU."""
    if needed and not place.device.startswith("cuda"):
        raise Missing("is for a GPU")


def made_up_clips(place: Place, load: Load) -> torch.Tensor:
    """Normalised noise `(batch, samples)`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(load.batch, round(load.seconds * SAMPLING_RATE), generator=generator).to(place.device)


def timed(work: Callable[[], Any], device: str) -> Found:
    """Seconds of some work; on a GPU by its own clock."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - start}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.reset_peak_memory_stats()
    begin.record()
    work()
    end.record()
    synchronize(device)
    return {"seconds": begin.elapsed_time(end) / 1000, "gpu_bytes": torch.cuda.max_memory_allocated()}
