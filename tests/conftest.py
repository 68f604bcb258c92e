"""Small models and made-up corpora for the tests; nothing here is downloaded."""

from __future__ import annotations

import atexit
import csv
import functools
import gc
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import (
    AutoModelForAudioClassification,
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
)

from exhubert.utils.command import run_with_one_line_errors

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (80, 8, 5),
    "conv_stride": (16, 4, 5),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
HUBERT_KINDS = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "distilled": {"num_hidden_layers": 2, "feat_proj_layer_norm": False},
    "batch norm": {"conv_pos_batch_norm": True},
}
HEADS = {"none": HubertModel, "ctc": HubertForCTC, "classifier": HubertForSequenceClassification}
# The longest, of those that come late in the alphabet: they begin early, so that no worker ends long after the others.
EARLY = ("test_training.py", "test_training_models.py", "test_resume.py", "test_recipes.py", "test_resume_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in EARLY)


def pytest_collection_finish() -> None:
    gc.freeze()  # the libraries: accelerate looks through everything for garbage after each training


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real corpora and published checkpoints."""
    directory = Path(os.environ.get("EXHUBERT_SHARED", ROOT.parent / "shared"))
    if not directory.is_dir():
        pytest.skip(f"needs real recordings and published checkpoints; {directory} (EXHUBERT_SHARED) is not there")
    return directory


@pytest.fixture
def make_hubert(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small HuBERT checkpoint with random weights and returns its folder."""

    def make(kind: str = "large", head: str = "classifier", name: str = "hubert", **changes: object) -> Path:
        torch.manual_seed(0)
        model = HEADS[head](HubertConfig(**{**SMALL, **HUBERT_KINDS[kind], **changes}))
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes would not show
            parameter.data += 0.02 * torch.randn_like(parameter)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer += 0.1 * torch.rand_like(buffer)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files without anything in them: drawing takes a third of a tiny run's time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: Path(path).touch())


@pytest.fixture
def samples() -> torch.Tensor:
    """Seeded input `(2, 8000)`."""
    return torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask(samples: torch.Tensor) -> torch.Tensor:
    """Of `samples`: the second clip is shorter."""
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 5000:] = 0
    return mask


def write_corpus(
    directory: Path,
    labels: Sequence[str] = ("anger", "neutral", "sadness"),
    speakers: Sequence[str] = ("01", "02", "03", "04"),
    takes: int = 2,
    seconds: float = 0.6,
    **columns: Callable[[int], str],
) -> Path:
    """Writes a corpus folder of tones, one pitch a label; `columns` are functions of the row number."""
    (directory / "audio").mkdir(parents=True)
    rows = []
    generator = np.random.default_rng(0)
    for speaker_number, speaker in enumerate(speakers):
        for label_number, label in enumerate(labels):
            for take in range(takes):
                name = f"audio/{speaker}_{label}_{take}.wav"
                time = np.arange(round(16_000 * (seconds + 0.1 * take))) / 16_000
                tone = 0.3 * np.sin(2 * np.pi * (150 * 2**label_number + 5 * speaker_number) * time)
                soundfile.write(directory / name, tone + 0.01 * generator.standard_normal(len(time)), 16_000)
                row = {"file_name": name, "label": label, "speaker": speaker, "language": "xx"}
                rows.append(row | {key: value(len(rows)) for key, value in columns.items()})
    with (directory / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return directory


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small corpus folder; see `write_corpus`."""
    return lambda name="corpus", **options: write_corpus(tmp_path / name, **options)


def write_steps(path: Path, seconds: int, rate: int = 16_000) -> None:
    """A recording whose every second is a tone of its own: 100 Hz, 200 Hz, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_ = np.arange(rate) / rate
    steps = [0.5 * np.sin(2 * np.pi * 100 * (number + 1) * time_) for number in range(seconds)]
    soundfile.write(path, np.concatenate(steps), rate)


def hertz(samples: np.ndarray) -> float:
    """The frequency of 16 kHz samples."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


def write_video(path: Path, samples: np.ndarray, rate: int = 16_000, codec: str = "", title: str = "") -> None:
    """Writes mono samples as the sound of a container that FFmpeg knows, without pictures; needs av."""
    av = pytest.importorskip("av", reason="reading video needs PyAV, in the extra `video`")
    with av.open(str(path), "w") as container:
        if title:
            container.metadata["title"] = title
        codec = codec or {".webm": "libopus", ".avi": "pcm_s16le"}.get(path.suffix, "aac")
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((32767 * samples[None]).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


# Run first in the other process: the package cannot be imported there, nor anything be asked of the Hub.
WITHOUT_PACKAGE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "exhubert":
            raise ModuleNotFoundError(f"{name} is hidden from this process")

sys.meta_path.insert(0, Hidden())
"""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


class Forks:
    """Runs Python as `python -c` does, in forks of a process that has imported what takes seconds to import.

    Args:
        imports: modules, or `module:name`.
        environment: of that process. Libraries read most of theirs when they are imported.
        own_home: a folder of ours, made for these runs, whose content is gone before each; it never comes from the
            environment, where it may be the user's.
    """

    def __init__(self, imports: Sequence[str], environment: dict[str, str], own_home: str | None = None) -> None:
        self.own_home = own_home
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fork_server.py"), *imports],
            stdin=subprocess.PIPE,  # its end ends the process
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,  # so that `select` sees what is there
        )

    def start(self, *requests: dict[str, Any]) -> list[int]:
        """Starts what `fork_server.run` is to do, all at once; returns the process ids."""
        self.process.stdin.write(json.dumps(requests).encode() + b"\n")
        return json.loads(self.process.stdout.readline())

    def codes(self, patience_seconds: float | None = None) -> list[int] | None:
        """The exit codes of what was started, when all have ended; None if that is not within the patience."""
        ended, _, _ = select.select([self.process.stdout], [], [], patience_seconds)
        return json.loads(self.process.stdout.readline()) if ended else None

    def __call__(
        self, code: str, *arguments: object, folder: Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        if self.own_home is not None:
            shutil.rmtree(self.own_home, ignore_errors=True)
        with tempfile.TemporaryDirectory() as place:
            files = [os.path.join(place, name) for name in ("output", "errors")]
            request = {"code": textwrap.dedent(code), "arguments": [str(argument) for argument in arguments]}
            request |= {"folder": str(folder), "output": files[0], "errors": files[1], "environment": environment}
            self.start(request)
            (status,) = self.codes()
            return subprocess.CompletedProcess(code, status, *(Path(name).read_text() for name in files))

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()


@functools.cache
def forks_with_package() -> Forks:
    """Of a process that has the package's scripts and what they import when they need it."""
    imports = ["exhubert.train_hf", "exhubert.evaluate_hf", "exhubert.inference.predict", "exhubert.publish.push"]
    imports += ["exhubert.convert.hubert", "exhubert.convert.contract", "exhubert.reports.plots", "sklearn.metrics"]
    return Forks(imports, {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"})


def environment_without_package(home: str | Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    return environment | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


# What our model files, and users' scripts, import.
LIBRARIES = ["torch._dynamo", "soundfile", "soxr"] + [
    f"transformers:{name}"
    for name in ("AutoModel", "AutoModelForAudioClassification", "AutoFeatureExtractor", "HubertModel", "pipeline")
]


@functools.cache
def forks_of_libraries() -> Forks:
    """Of a process that has not imported the package; the cache of each is empty."""
    home = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Forks(LIBRARIES, environment_without_package(home), own_home=home)


def run_without_package(tmp_path: Path, script: str, fresh: bool = False) -> dict:
    """Runs a script that prints JSON in its last line, with an empty cache, in a fork or in a process of its own."""
    code = WITHOUT_PACKAGE + textwrap.dedent(script)
    if fresh:
        given = environment_without_package(tmp_path / "cache")
        done = subprocess.run([sys.executable, "-c", code], env=given, cwd=tmp_path, capture_output=True, text=True)
    else:
        done = forks_of_libraries()(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: object) -> str:
    """Runs a command in this process; it must end in one line on standard error and exit code 1. Returns that line."""
    assert run_with_one_line_errors(lambda: main([str(argument) for argument in arguments])) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def alike(found: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    """Whether two answers are the same but for what other batches change: numbers, in text too, by 1e-5 at most."""
    numbers = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    one, other = str(found), str(expected)
    near = np.allclose(*([float(each) for each in numbers.findall(text)] for text in (one, other)), 0, tolerance)
    return near and numbers.sub("", one) == numbers.sub("", other)


def make_classifier(noise: float = 0.05, **changes: object):
    """A small ExHuBERT of random weights, the zero linear layers' too, whose answers to different windows differ."""
    from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification

    torch.manual_seed(0)
    model = ExHuBERTForSequenceClassification(ExHuBERTConfig(**{**SMALL, "num_hidden_layers": 4, **changes}))
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small ExHuBERT with a weighted layer sum."""
    from exhubert.model_folder import save_model_folder

    model = make_classifier(0.2, num_hidden_layers=2, use_weighted_layer_sum=True)
    return str(save_model_folder(model, tmp_path_factory.mktemp("classifier") / "model"))


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with audio of several kinds and lengths in `clips`."""
    monkeypatch.chdir(tmp_path)
    Path("clips/more/.hidden").mkdir(parents=True)
    for name, seconds, rate in (
        ("b.wav", 5.2, 16_000),
        ("a.flac", 1.0, 8_000),
        ("more/c.ogg", 3.0, 48_000),
        ("more/.hidden/d.wav", 1.0, 16_000),
        ("._b.wav", 1.0, 16_000),
    ):
        time = np.arange(round(seconds * rate)) / rate
        noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
        tone = (0.3 + 0.2 * np.sin(time)) * np.sin(2 * np.pi * 100 * time**2)
        soundfile.write(f"clips/{name}", tone + noise, rate)
    Path("clips/notes.txt").write_text("no audio")
    return tmp_path


def write_bad_files() -> None:
    """Adds files to `clips` that do not decode."""
    Path("clips/text.wav").write_text("no audio")
    Path("clips/empty.wav").touch()
    soundfile.write("clips/nan.wav", np.full(100, np.nan), 16_000, subtype="FLOAT")
    Path("clips/cut.flac").write_bytes(Path("clips/a.flac").read_bytes()[:3000])


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a small ExHuBERT with random weights, for tests that only read it; see `model_folder`."""
    from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
    from exhubert.model_folder import save_model_folder

    torch.manual_seed(0)
    config = ExHuBERTConfig(**{**SMALL, **HUBERT_KINDS["large"], "num_hidden_layers": 4})
    return save_model_folder(ExHuBERTForSequenceClassification(config), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model_folder(tmp_path: Path, saved_model: Path) -> Path:
    """A copy of the small model's folder, `model`, to be changed."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


MODEL_FILES = [
    *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    *("audio_exhubert.py", "configuration_exhubert.py", "fast_path_exhubert.py"),
    *("modeling_exhubert.py", "pipeline_exhubert.py", "segments_exhubert.py"),
]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]


def split_weights(folder: Path) -> None:
    """Stores a model folder's weights in two shards."""
    model = AutoModelForAudioClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=int(0.7 * size))
    assert [(folder / name).is_file() for name in SHARDS] == [True] * 3


def make_onnx(folder: Path, graph: bytes = b"\0graph") -> None:
    """Makes a model folder what an export leaves: other weights, and no model code."""
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config | {"onnx": {"int8": False, "parameters": 1}}))
    (folder / "model.onnx").write_bytes(graph)
    for path in (folder / "model.safetensors", *folder.glob("*.py")):
        if path.name != "audio_exhubert.py":
            path.unlink()


@pytest.fixture
def write_keys(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe for two corpora, with changed keys, and returns its name; nothing that it names is there."""
    keys = {"model": "m", "corpora": ["first", "second"], "output": "run", "rounds": 12, "batch_size": 8}

    def write(name: str = "recipe.yaml", /, **changes: object) -> str:
        (tmp_path / name).write_text(yaml.safe_dump(keys | changes), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of `live` are."""
    return tmp_path_factory.mktemp("lives")


@pytest.fixture(scope="module")
def live(folder: Path):
    """Lives of a run of twelve updates, each in a process of its own; see `lives.Lives`."""
    from lives import lives_of_a_run

    with lives_of_a_run(folder) as lives:
        yield lives
