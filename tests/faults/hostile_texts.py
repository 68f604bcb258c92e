"""Tables, recipes, configurations, weights, graphs and checkpoints of strangers: each is read, or refused in one line.

First what is known of a file's structure is changed, to other types, absurd sizes, other places and names; then bytes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

import mutations
from conftest import HUBERT_KINDS, SMALL, make_classifier, make_onnx, write_corpus
from exhubert import train_hf
from exhubert.cli import main
from exhubert.corpora.load import load_corpora
from exhubert.corpora.splits import SPLITS
from exhubert.model_folder import save_model_folder
from exhubert.training.arguments import Recipe, parse
from exhubert.utils.command import quiet_transformers
from tally import Tally
from workers import Trial, Verdict, attempt, by_command, run_trials

UPDATES, RESUMED_FROM = 4, 3
CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors")
RESUME_SECONDS = 60.0


def attack(count: int, seed: int, directory: Path, keep: Path | None = None) -> list[Tally]:
    """Tries so many files of all kinds, in the shares of `KINDS`; see `hostile_audio.attack`."""
    quiet_transformers()
    write_originals(directory)
    tallies = {kind: Tally(kind) for kind in KINDS}
    for trial, verdict in run_trials(trials_of(count, seed), directory, keep=keep):
        line = f"{trial.function} {trial.number}, seed {trial.seed}: {verdict.detail}"
        tallies[trial.kind].add(verdict.outcome, line)
    return list(tallies.values())


def trials_of(count: int, seed: int) -> Iterator[Trial]:
    for kind, (share, function) in KINDS.items():
        patience = (RESUME_SECONDS,) if function is try_checkpoint else ()
        for number in range(round(count * share / WHOLE)):
            yield Trial(kind, f"hostile_texts:{function.__name__}", number, seed, *patience)


def write_originals(directory: Path) -> None:
    """Writes a corpus, a model in two forms, and a run with a checkpoint before its end."""
    write_corpus(directory / "corpus", takes=1, seconds=0.3)
    (directory / "corpus" / "audio" / "link.wav").symlink_to(directory / "corpus" / "audio" / "01_anger_0.wav")
    soundfile.write(directory / "tone.wav", 0.1 * np.sin(np.arange(8000) / 10), 16_000)
    save_model_folder(make_classifier(num_hidden_layers=2), directory / "model")
    shutil.copytree(directory / "model", directory / "onnx")
    make_onnx(directory / "onnx", write_graph().SerializeToString())
    write_corpus(directory / "second", labels=("joy", "boredom"), takes=1, seconds=0.3)
    torch.manual_seed(0)
    HubertModel(HubertConfig(**{**SMALL, **HUBERT_KINDS["large"]})).save_pretrained(directory / "hubert")
    recipe = {
        "model": str(directory / "hubert"),
        "corpora_root": str(directory),
        "corpora": ["corpus", "second"],
        "rounds": UPDATES // 2,
        "batch_size": 4,
        "window_seconds": 0.5,
        "training": {"eval_steps": UPDATES, "save_steps": RESUMED_FROM, "report_to": "none", "use_cpu": True},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code, out, err = by_command(train_hf.main, directory / "recipe.yaml", "--output", directory / "run")
    assert code == 0, out + err


def write_graph() -> Any:
    """A small classifier as an ONNX graph, its matrix large enough to be damaged."""
    helper = onnx.helper
    weights = np.random.default_rng(0).standard_normal((1, 6)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["input_values", "axes"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("input_values", onnx.TensorProto.FLOAT, ["batch", "samples"])]
    outputs = [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 6])]
    constants = [onnx.numpy_helper.from_array(weights, "weights")]
    constants.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    graph = helper.make_graph(nodes, "classifier", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def copied(original: Path, folder: Path) -> Path:
    """A folder of links to a folder's files, whose own files are written in their place."""
    folder.mkdir()
    for path in original.iterdir():
        os.link(path, folder / path.name) if path.is_file() else os.symlink(path, folder / path.name)
    return folder


def rewritten(path: Path, data: bytes) -> None:
    """Writes what is linked elsewhere, there as it was."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


# Tables of clips

NAMES = (
    *("../secret.wav", "/etc/passwd", "audio/../../secret.wav", "..", ".", "", " ", "C:\\a.wav", "\\\\host\\a.wav"),
    *("audio\\01_anger_0.wav", "audio/./01_anger_0.wav", "audio//01_anger_0.wav", "audio/link.wav", "audio", "audio/"),
    *("a\0.wav", "audio/01_anger_0.wav\0", "x" * 5000 + ".wav", "audio/" * 3000 + "a.wav", "file:///etc/passwd"),
    *("http://localhost/a.wav", "a\u0308.wav", "\xe4.wav", "\u202egnp.wav", "=cmd()", "~/a.wav", "$HOME/a.wav", "-"),
    *("audio/01_anger_0.wav ", "audio/01_anger_0.wav\n", "metadata.csv", "|touch x", "pipe:0", "\x1b[31mred.wav"),
)
CELLS = (
    *("", " ", "anger", "ANGER", "nothing known", "x" * 200_000, "-1", "nan", "inf", "1e300", "abc", "\0", "\x1b[2J"),
    *("train", "validation", "test", "dev", "\xe4\u0301", "a,b", 'a"b', "a\nb", "1e-300", "0", "0.1", "99999999", "=1"),
)
COLUMNS = (
    *("file_name", "label", "speaker", "split", "start_seconds", "duration_seconds", "arousal", "valence", "audio"),
    *("labels", "crop", "corpus", "votes_anger", "partition", "class_votes", "dimensions", "", " label", "x" * 3000),
)
OBJECTS = (None, 5, -1.5, float("nan"), 10**30, True, [], ["a"], {"a": 1}, {"path": "/etc/passwd", "bytes": None})


def try_manifest(number: int, seed: int, folder: Path) -> Verdict:
    """A changed table of a corpus: for training, every fifth for `exhubert corpora check`."""
    drawn, directory = random.Random(f"{seed} manifest {number}"), folder.parents[1]
    with (directory / "corpus" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    table = [[*columns, "split"], *([*row, SPLITS[max(0, int(row[2]) - 2)]] for row in rows)]
    form = drawn.choice(("csv", "csv", "tsv", "jsonl", "jsonl", "parquet"))
    corpus = folder / "mine"
    corpus.mkdir()
    (corpus / "audio").symlink_to(directory / "corpus" / "audio")
    if drawn.randrange(6):
        change_table(drawn, table, CELLS if form in ("csv", "tsv") else (*CELLS, *OBJECTS))
    data = WRITERS[form](drawn, table)
    if drawn.randrange(4) == 0:
        data = mutations.damaged(drawn, data)
    (corpus / f"metadata.{form}").write_bytes(data)

    def read() -> str:
        if number % 5 == 0:
            by_command(main, "corpora", "check", corpus)
            return ""
        corpora, _ = load_corpora([str(corpus)], skip_bad_audio=number % 2 == 0)
        for splits in corpora.values():
            for part in splits.values():
                for row in part.select_columns(["audio", "file_name"]):
                    if not os.path.normpath(row["audio"]["path"]).startswith(str(corpus)):
                        return f"it reads {row['audio']['path']}"
        return ""

    return attempt(folder, [corpus, "corpus 'mine'"], read)


def change_table(drawn: random.Random, table: list[list[Any]], cells: Sequence[Any]) -> None:
    """Changes some cells, columns or rows of a table, whose first row are the columns."""
    for _ in range(drawn.choice((1, 1, 2, 5))):
        row, column, kind = drawn.randrange(len(table)), drawn.randrange(len(table[0])), drawn.randrange(9)
        if kind < 3:
            table[row][0] = drawn.choice(NAMES)
        elif kind < 5:
            table[row][column] = drawn.choice(cells)
        elif kind == 5:
            table[0].append(drawn.choice(COLUMNS))
            same = drawn.choice((None, drawn.choice(cells)))
            for each in table[1:]:
                each.append(drawn.choice(cells) if same is None else same)
        elif kind == 6:
            table[0][column] = drawn.choice(COLUMNS)
        elif kind == 7 and len(table[0]) > 1:
            for each in table:
                del each[column]
        else:
            times = drawn.choice((0, 1, 50))
            table[1:] = [[*each] for each in table[1:] * times] or table[1 : drawn.choice((1, 2, 4))]


def encoded(drawn: random.Random, text: str) -> bytes:
    others = ("utf-8-sig", "utf-16", "latin-1", "utf-32", "cp037")
    encoding = drawn.choice(others) if drawn.randrange(5) == 0 else "utf-8"
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def write_separated(drawn: random.Random, table: list[list[Any]], separators: str = ",") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=drawn.choice(separators), escapechar="\\").writerows(table)
    text, kind = buffer.getvalue(), drawn.randrange(12)
    if kind == 0:
        text = drawn.choice(("sep=;", "sep=", "\ufeff", "", "\n\n", "#")) + "\n" + text
    elif kind == 1:
        text = text.replace('"', "").replace("\n", drawn.choice(("\r", "\r\n", ",\n", '"\n')))
    elif kind == 2:
        text = text[:50] + '"' + text[50:]
    elif kind == 3:
        text = "\n".join(line + "," * drawn.choice((1, 100, 2_000, 50_000)) for line in text.splitlines())
    return encoded(drawn, text)


def write_lines(drawn: random.Random, table: list[list[Any]]) -> bytes:
    ascii = drawn.randrange(2) == 0
    lines = [json.dumps(dict(zip(map(str, table[0]), row, strict=True)), ensure_ascii=ascii) for row in table[1:]]
    kind = drawn.randrange(10)
    if kind == 0:
        other = drawn.choice(("[1]", "5", "null", "{", "[" * 5000, '{"a":1e999}', '{"file_name": ' + "9" * 5000 + "}"))
        lines.insert(drawn.randrange(len(lines) + 1), other)
    elif kind == 1 and lines:
        lines[0] = '{"label": "x", ' + lines[0][1:]  # a key twice
    return encoded(drawn, "\n".join(lines))


def write_parquet(drawn: random.Random, table: list[list[Any]]) -> bytes:
    """Of a column that Arrow cannot hold the cells become text; of duplicate columns the last one stays."""
    columns, kind = {}, drawn.randrange(8)
    for number, name in enumerate(table[0]):
        cells = [row[number] for row in table[1:]]
        try:
            columns[str(name)] = pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError, UnicodeError):
            columns[str(name)] = pyarrow.array([str(cell).encode("utf-8", "replace").decode() for cell in cells])
        if kind == 0:
            columns[str(name)] = columns[str(name)].dictionary_encode()
        elif kind == 1:  # very many rows in few bytes
            values = pyarrow.array(["audio/01_anger_0.wav"] * 10).dictionary_encode()
            columns[str(name)] = pyarrow.chunked_array([values] * 3_000)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


WRITERS: dict[str, Callable[[random.Random, list[list[Any]]], bytes]] = {
    "csv": write_separated,
    "tsv": lambda drawn, table: write_separated(drawn, table, "\t;|\t"),
    "jsonl": write_lines,
    "parquet": write_parquet,
}


# Recipes

YAMLS = (
    "!!python/object/apply:os.system ['touch marker']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'marker']]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "2026-01-01",
    "1:2:3:4:5:6:7",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e999999",
    ".nan",
    "-.inf",
    "~",
    "[" * 3000,
    "{" * 3000,
    "- " * 500 + "a",
    "&a [*a, *a]",
    "*unknown",
    "<<: *x",
    "|\n" + "  x\n" * 5000,
    "'unclosed",
    "\t\tx",
    "%YAML 9.9",
    "? [a, b]\n: c",
)


def bomb_of_anchors(depth: int) -> str:
    """A list of nine of the list before it, and so on: 9 ** depth of them, were they written out."""
    lines = ["x0: &x0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines)


def try_recipe(number: int, seed: int, folder: Path) -> Verdict:
    drawn, directory = random.Random(f"{seed} recipe {number}"), folder.parents[1]
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text()) | {"output": "run"}
    kind = drawn.randrange(6)
    keys = [spec.name for spec in fields(Recipe)]
    training = [spec.name for spec in fields(TrainingArguments)]
    if kind == 0:
        recipe = mutations.changed_value(drawn, recipe)
    elif kind == 1:
        for key in drawn.sample(keys, drawn.choice((1, 1, 3))):
            recipe[key] = drawn.choice(mutations.VALUES)
    elif kind == 2:
        for key in drawn.sample(training, drawn.choice((1, 1, 3))):
            recipe["training"][key] = drawn.choice(mutations.VALUES)
    elif kind == 3:
        recipe["extends"] = drawn.choice(
            (f"{number}.yaml", "/etc/passwd", "../../../../etc/passwd", "nothing.yaml", ".", "a\0b", "x" * 5000, folder)
        )
        recipe["extends"] = str(recipe["extends"])
    try:
        text = yaml.safe_dump(recipe, allow_unicode=True)
    except (RecursionError, yaml.YAMLError):
        text = "lora: " + "[" * 5000
    if kind == 4:
        key, value = drawn.choice((*keys, "extends", "training")), drawn.choice(YAMLS)
        text = f"{text}\n{key}: {value}\n" if drawn.randrange(2) else f"{key}: {value}\n{text}"
    elif kind == 5 and drawn.randrange(3) == 0:
        depth = drawn.choice((3, 9, 30))
        text = f"{bomb_of_anchors(depth)}\n{text}\n{drawn.choice(keys)}: *x{depth - 1}\n"
        text = text if drawn.randrange(2) else text.replace("x0:", "lora:").replace(f"x{depth - 1}:", "corpora:")
    data = text.encode("utf-8", "surrogatepass")
    if kind == 5 and drawn.randrange(2):
        data = mutations.damaged(drawn, data)
    path = folder / f"{number}.yaml"
    path.write_bytes(data)

    def read() -> str:
        parse([str(path)])
        return ""

    return attempt(folder, [folder, "/etc/passwd"], read)


# Models

SIZES = {
    "hidden_size": (4, 2**20, 2**31 - 1, 64),
    "intermediate_size": (2**20, 2**31 - 1, 65),
    "classifier_proj_size": (2**20, 2**31 - 1, 17),
    "num_hidden_layers": (1, 4, 10_000, 9_998),
    "num_attention_heads": (1, 32, 3, 2**31 - 1),
    "num_labels": (7, 10_000, 10**9),
    "conv_dim": ([2**20] * 3, [2**31] * 3, [16, 16], [16] * 4, [16, 16, 2**24]),
    "conv_kernel": ([2**24, 8, 5], [2**31, 1, 1], [1, 1, 1], [10**9] * 3),
    "conv_stride": ([2**31, 4, 5], [1, 1, 1], [10**9] * 3),
    "num_conv_pos_embeddings": (2**31, 2**24, 0, 1, -1, 17),
    "num_conv_pos_embedding_groups": (0, 1, 3, 2**31, -1),
    "vocab_size": (10**12, 0, -1),
    "num_copies": (0, 3, 2**31),
    "mask_time_length": (0, 10**9, -1),
    "initializer_range": (1e300, -1.0),
    "adapter_kernel_size": (10**9,),
    "num_adapter_layers": (10**9,),
    "output_hidden_size": (10**9,),
    "add_adapter": (True,),
    "torch_dtype": ("float64", "int8", "float8_e4m3fn", "complex64"),
    "dtype": ("float64", "int8", "complex64", "bool"),
    "architectures": (["HubertForCTC"], ["os.system"], [], None, ["WhisperForAudioClassification"]),
    "model_type": ("hubert", "whisper", "bert", "wav2vec2", "unknown", "audio-spectrogram-transformer", "../x"),
    "auto_map": ({"AutoConfig": "../../evil.Config"}, {"AutoModelForAudioClassification": "evil--repo.Model"}, "x", 5),
    "quantization_config": ({"quant_method": "bitsandbytes"}, {"quant_method": "gptq", "bits": 4}, {}),
    "attn_implementation": ("kernels-community/evil", "flash_attention_2", 5),
    "id2label": ({"0": "a"}, {"x": "a"}, {str(n): "a" for n in range(6)}, {"999999999": "a"}),
    "calibration_temperature": (1e-300, 1e300, -1, 0),
    "problem_type": ("regression", "x", 5),
    "dimensions": ({"arousal": [1, 7]}, {"arousal": [7, 1]}, {"": [0, 1]}, {"arousal": [0, 1e308]}),
    "use_weighted_layer_sum": (True, "x"),
    "onnx": ({}, {"int8": True, "parameters": 1}, 5, {"int8": False, "parameters": "x"}),
    "pruned_heads": ({"0": [0]}, {"x": 1}),
    "is_decoder": (True,),
    "_name_or_path": ("../../x",),
}
OF_EXTRACTORS = {
    "window_seconds": (0, -1, 1e-9, 0.001, 1e9, 1e300, "3", "nan", "inf", True, [3.0], 1e5, 86_400),
    "sampling_rate": (8000, 0, -1, 2**31, 16_000.0, "16000"),
    "feature_size": (0, 2, 2**31, -1, "1"),
    "padding_value": (1e300, "x", None),
    "feature_extractor_type": (
        *("WhisperFeatureExtractor", "SeamlessM4TFeatureExtractor", "ASTFeatureExtractor", "os.system", 5, None),
        *("Wav2Vec2FeatureExtractor", "EncodecFeatureExtractor", "ClapFeatureExtractor", "ViTImageProcessor"),
    ),
    "auto_map": ({"AutoFeatureExtractor": "../../evil.X"}, {"AutoFeatureExtractor": "evil--repo.X"}, 5),
    "return_attention_mask": ("x", 5, True),
    "do_normalize": ("x", False),
    "chunk_length": (10**9, 0, -1),
    "n_fft": (2**31, 0),
    "hop_length": (0, 1, -1),
    "num_mel_bins": (10**6, 0),
    "max_length": (10**9, 0, -1),
    "nb_max_frames": (10**9,),
    "padding_side": ("up", "left"),
    "processor_class": ("x",),
}


def changed_json(drawn: random.Random, path: Path, known: dict[str, tuple[Any, ...]]) -> bytes:
    """A file of JSON with another value somewhere, of a known field an absurd one, or damaged as text."""
    values = json.loads(path.read_text())
    kind = drawn.randrange(8)
    if kind < 4:
        for name in drawn.sample([*known], drawn.choice((1, 1, 1, 2))):
            values[name] = drawn.choice(known[name])
    elif kind < 7:
        name = drawn.choice(list(values))
        if kind == 4:
            values[name] = drawn.choice(mutations.VALUES)
        else:
            values = mutations.changed_value(drawn, values)
    try:
        data = json.dumps(values, indent=2).encode("utf-8", "surrogatepass")
    except RecursionError:
        data = b'{"a": ' + b"[" * 5000
    return mutations.damaged(drawn, data) if kind == 7 else data


def predicted(folder: Path, model: Path) -> Verdict:
    """Classifies a tone by a model; what is wrong with it is said of it, or of the answer."""

    def run() -> str:
        code, out, err = by_command(main, "predict", model, folder.parents[1] / "tone.wav", "--format", "jsonl")
        if code:
            bad = [line for line in err.splitlines() if line.startswith("bad: ")]
            if len(bad) != 1 or not bad[0].isprintable():
                return f"code {code}, {err[-300:]!r}"
            raise ValueError(bad[0])
        scores = json.loads(out)
        numbers = [value for value in scores.values() if isinstance(value, float)]
        return "" if np.isfinite(numbers).all() else f"answers that are no numbers: {out[:300]}"

    return attempt(folder, [model, "tone.wav: "], run)


def try_config(number: int, seed: int, folder: Path) -> Verdict:
    drawn, model = random.Random(f"{seed} config {number}"), copied(folder.parents[1] / "model", folder / "model")
    rewritten(model / "config.json", changed_json(drawn, model / "config.json", SIZES))
    return predicted(folder, model)


def try_extractor(number: int, seed: int, folder: Path) -> Verdict:
    drawn, model = random.Random(f"{seed} extractor {number}"), copied(folder.parents[1] / "model", folder / "model")
    path = model / "preprocessor_config.json"
    if drawn.randrange(2):  # as other packages' models have it: transformers reads it
        values = json.loads(path.read_text())
        values.pop("window_seconds")
        values["feature_extractor_type"] = "Wav2Vec2FeatureExtractor"
        values.pop("auto_map", None)
        rewritten(path, json.dumps(values).encode())
    rewritten(path, changed_json(drawn, path, OF_EXTRACTORS))
    return predicted(folder, model)


def try_weights(number: int, seed: int, folder: Path) -> Verdict:
    """Another header of the safetensors; in the form that it has, or none."""
    drawn, model = random.Random(f"{seed} weights {number}"), copied(folder.parents[1] / "model", folder / "model")
    data = (model / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, weights = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    kind, name = drawn.randrange(12), drawn.choice(names)
    entry, size = header[name], len(weights)
    if kind < 3:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = drawn.choice(
            (
                [0, 4],
                [begin, end + 4],
                [end, begin],
                [-4, end],
                [begin, 2**63],
                [size, size + 4],
                [begin, begin],
                [0, size],
            )
        )
    elif kind == 3:
        entry["shape"] = drawn.choice(
            ([], [0], [2**31, 2**31], [-1], [2**40], entry["shape"][::-1], [1, *entry["shape"]], ["1"])
        )
    elif kind == 4:
        entry["dtype"] = drawn.choice(("F64", "F16", "I8", "BOOL", "F8_E4M3", "X", "", 5, "F4", "C64"))
    elif kind == 5:
        del header[name]
    elif kind == 6:
        header[drawn.choice(("extra", "", "x" * 5000, "\x1b[2J", "../x", "classifier.weight.x"))] = header.pop(name)
    elif kind == 7:
        header["__metadata__"] = drawn.choice(({"format": "tf"}, {}, 5, {"format": 5}, None, {"format": "flax"}, "x"))
    elif kind == 8:
        header = mutations.changed_value(drawn, header)
    elif kind == 9:  # a whole tensor's shape and place
        other = drawn.choice(names)
        header[name], header[other] = header[other], header[name]
    try:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
    except RecursionError:
        text = b'{"a": ' + b"[" * 5000
    text = text.ljust(len(text) + drawn.choice((0, 7, 10**6)) if kind == 10 else len(text))
    stated = drawn.choice((0, 1, 2**63, 2**64 - 1, 10**8, len(text) + 1, len(text) - 1)) if kind == 11 else len(text)
    if drawn.randrange(5) == 0:
        weights = mutations.damaged(drawn, weights)
    rewritten(model / "model.safetensors", struct.pack("<Q", stated) + text + weights)
    return predicted(folder, model)


def try_graph(number: int, seed: int, folder: Path) -> Verdict:
    drawn, model = random.Random(f"{seed} graph {number}"), copied(folder.parents[1] / "onnx", folder / "model")
    (folder / "secret").write_bytes(bytes(1000))
    graph = write_graph()
    kind, weights = drawn.randrange(10), graph.graph.initializer[0]
    if kind == 0:
        graph.opset_import[0].version = drawn.choice((0, 1, -1, 7, 99, 2**31, 2**62))
    elif kind == 1:
        graph.ir_version = drawn.choice((0, 1, -1, 99, 2**62))
    elif kind < 4:
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        place = drawn.choice(
            ("../secret", "/etc/passwd", str(folder / "secret"), "", "nothing", ".", "config.json", "link")
        )
        entries = {
            "location": place,
            "offset": drawn.choice(("0", "-1", str(2**63), "x")),
            "length": drawn.choice(("24", "-1", str(2**62))),
        }
        for key, value in entries.items():
            weights.external_data.add(key=key, value=value)
        (model / "link").symlink_to(folder / "secret")
    elif kind == 4:
        del weights.dims[:]
        weights.dims.extend(drawn.choice(([2**40, 6], [1, -6], [0], [6, 1], [2**31, 2**31, 2**31], [1, 7])))
    elif kind == 5:
        node = graph.graph.node[drawn.randrange(2)]
        node.op_type = drawn.choice(("Add", "Unknown", "", "Loop", "If", "Scan", "PyOp", "Exp", "ReduceSum"))
        node.domain = drawn.choice(("", "com.microsoft", "evil"))
    elif kind == 6:
        node = graph.graph.node[drawn.randrange(2)]
        node.input[drawn.randrange(2)] = drawn.choice(("logits", "nothing", "", "input_values", "mean"))
    elif kind == 7:
        place = drawn.choice((graph.graph.input[0], graph.graph.output[0]))
        place.type.tensor_type.elem_type = drawn.choice((0, 7, 8, 99, 10, 16))
        place.name = drawn.choice((place.name, "x", "", "hidden_states.0"))
    data = graph.SerializeToString()
    if kind > 7:
        data = mutations.damaged(drawn, data)
    rewritten(model / "model.onnx", data)
    return predicted(folder, model)


# Checkpoints


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


STATES: dict[str, tuple[Any, ...]] = {
    "global_step": (0, -1, 10**18, 2.5, "3", None, 99, 4),
    "max_steps": (0, -1, 10**18, None, "x"),
    "epoch": (-1, 1e300, None, "x", float("nan")),
    "log_history": (5, [5], [{"step": "x"}], [{}], [{"eval_average_uar": "x", "step": 2}], None),
    "best_metric": ("x", float("nan"), 1e300, None),
    "best_global_step": (99, -1, "x", 3),
    "best_model_checkpoint": ("/etc", "../../../..", 5, "/nothing/checkpoint-2", "\0"),
    "stateful_callbacks": ({"os": {"args": {}, "attributes": {}}}, 5, {"EarlyStoppingCallback": {"args": {"x": 1}}}),
    "train_batch_size": (0, -1, "x", 10**9),
    "num_train_epochs": (0, -1, 10**18, "x"),
    "eval_steps": (0, -1, "x"),
    "trial_params": (5,),
    "is_world_process_zero": ("x", False),
}


def damaged_archive(drawn: random.Random, data: bytes, folder: Path) -> bytes:
    """What torch saved, with a payload, another tree, records that are lost, lie or are bombs, or damaged bytes."""
    kind, buffer = drawn.randrange(9), io.BytesIO()
    if kind == 0:
        torch.save({"state": Payload(folder / "marker")}, buffer)
        return buffer.getvalue()
    if kind == 1:
        with contextlib.suppress(RecursionError), safe_globals():
            torch.save(mutations.changed_value(drawn, torch.load(io.BytesIO(data), weights_only=True)), buffer)
        return buffer.getvalue()
    if kind == 2:
        return drawn.choice(
            (pickle.dumps(Payload(folder / "marker")), pickle.dumps({}), b"", b"\x80\x02.", data[:2] * 99)
        )
    if kind < 7:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
            chosen = drawn.choice(old.namelist())
            for name in old.namelist():
                content, compression = old.read(name), zipfile.ZIP_STORED
                if kind == 3 and name == chosen:
                    content, compression = bytes(drawn.choice((10**6, 6 * 10**8))), zipfile.ZIP_DEFLATED
                elif kind == 4 and name.endswith("data.pkl"):
                    content = mutations.damaged(drawn, content)
                elif kind == 5 and name == chosen:
                    name = drawn.choice(("../../../evil", "/tmp/evil", f"{name}x", name.upper()))
                elif kind == 6 and name == chosen:
                    content = content[: len(content) // 2]
                new.writestr(name, content, compression)
        return buffer.getvalue()
    return mutations.damaged(drawn, data)


def try_checkpoint(number: int, seed: int, folder: Path) -> Verdict:
    """A changed file of the checkpoint that a run goes on from; another end than the undisturbed one is a failure."""
    drawn, directory = random.Random(f"{seed} checkpoint {number}"), folder.parents[1]
    run, whole = folder / "run", directory / "run"
    checkpoint = run / "checkpoints" / f"checkpoint-{RESUMED_FROM}"
    shutil.copytree(whole / "checkpoints" / checkpoint.name, checkpoint)
    for name in ("recipe.yaml", "environment.json"):
        shutil.copy(whole / name, run)
    name = CHECKPOINT_FILES[number % len(CHECKPOINT_FILES)]
    path = checkpoint / name
    data = path.read_bytes()
    if name == "trainer_state.json":
        path.write_bytes(changed_json(drawn, path, STATES))
    elif name == "model.safetensors":
        head = 8 + struct.unpack("<Q", data[:8])[0]  # what follows are numbers, without a checksum
        whole_header = mutations.damaged(drawn, data[:head]) + data[head:]
        path.write_bytes(whole_header if drawn.randrange(3) else data[: drawn.randrange(len(data))])
    else:
        path.write_bytes(damaged_archive(drawn, data, folder))

    def resume() -> str:
        code, _, err = by_command(train_hf.main, directory / "recipe.yaml", "--output", run, "--resume")
        if code or (folder / "marker").exists():
            return f"exit code {code}, {err[-300:]!r}; payload run: {(folder / 'marker').exists()}"
        found, expected = (load_file(each / "model" / "model.safetensors") for each in (run, whole))
        differing = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
        return f"it ends with other weights: {differing[:1]}" if differing else ""

    return attempt(folder, [run], resume, may_write=True)


KINDS: dict[str, tuple[int, Callable[[int, int, Path], Verdict]]] = {
    "manifests": (500, try_manifest),
    "recipes": (300, try_recipe),
    "config.json": (200, try_config),
    "preprocessor_config.json": (200, try_extractor),
    "safetensors": (200, try_weights),
    "ONNX": (200, try_graph),
    "checkpoints": (100, try_checkpoint),
}
WHOLE = sum(share for share, _ in KINDS.values())
