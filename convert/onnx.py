"""Any audio-classification model to an ONNX model folder: the same answers without the model's code, or int8."""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor
from transformers.utils import cached_file

from exhubert.audio_exhubert import SAMPLING_RATE, extract_features, longest_input_seconds
from exhubert.model_folder.card import CARD, fill_template, with_section, with_weights
from exhubert.model_folder.load import load_trained, read_config
from exhubert.model_folder.onnx_model import (
    DIMENSIONS,
    HIDDEN_STATES,
    INSTALL,
    LOGITS,
    NO_TELEMETRY,
    ONNX_FILE,
    OnnxClassifier,
)
from exhubert.utils.files import locked, whole_folder, write_text
from exhubert.utils.text import first_line

SECTION = Path(__file__).with_name("onnx_card_section.md")
VERSIONED = (".json", ".safetensors", ".bin", ".py")  # files by which versions of a model are told apart
OPSET = 20  # the first with GELU as one operator; onnxruntime knows it from 1.17 on
EXTERNAL_DATA_BYTES = 10**9  # larger weights lie beside the graph, for a protobuf file holds no more than 2 GiB
LARGEST_DIFFERENCE = 1e-4  # of float32 logits and dimensions; of hidden states, relative to the largest
CHECK_SECONDS = 10.0  # of a model whose input may be longer
BACKENDS = {"torch": "", "onnx": "float32", "int8": "int8"}  # what computes, and how exact its export is
CHECK_PARTS = ((0.25, 1), (0.7, 2), (1.0, 3))  # made-up audio: part of the window, clips


def convert_onnx(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    int8: bool = False,
    corpora: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Path:
    """Exports a model to ONNX and compares what it computes with torch; what was compared is printed and in the card.

    The folder is written beside `destination`, and renamed only if float32 agrees with torch.

    Args:
        source: Hub id or folder of an audio-classification model.
        destination: the ONNX model folder; must not exist, or be empty.
        int8: multiply by int8 matrices; see `quantize`.
        corpora: corpus folders, on whose test splits torch and ONNX are compared as well.
        trust_remote_code: whether code that the source brings may run.

    Raises:
        OSError: if the source is neither a folder nor to be had from the Hub.
        ImportError: without the libraries that it needs.
        ValueError: if the source is no trained audio-classification model or does not export, the destination is
            taken, a corpus is not as it should be, or the float32 model differs from torch's.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"exporting to ONNX needs {name}: {INSTALL}") from error
    source = str(source)
    with whole_folder(destination) as unfinished:
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        loaded: tuple[Any, Any] = load_trained(source, trust_remote_code, **options)
        model, extractor = loaded
        if isinstance(model, OnnxClassifier):
            raise ValueError(f"{source} is an ONNX model already")
        if isinstance(extractor, Wav2Vec2FeatureExtractor):
            extractor.return_attention_mask = False  # the ONNX model takes none
        config = copy.deepcopy(model.config)
        for name in ("auto_map", "custom_pipelines"):  # name code of torch's model, which does not come along
            vars(config).pop(name, None)
        config.architectures = [type(model).__name__]
        config.onnx = {"int8": False, "parameters": model.num_parameters()}
        if hasattr(model, "layer_weights"):
            config.onnx["layer_weights"] = model.layer_weights.tolist()
        print(f"{source}: {type(model).__name__}, {model.num_parameters():,} parameters, to ONNX opset {OPSET}")

        float32 = unfinished.with_name("float32.onnx") if int8 else unfinished / ONNX_FILE
        export(model, extractor, float32)
        exported = OnnxClassifier(float32, config)
        found = [compare(model, exported, extractor)]
        if int8:
            del exported  # the quantiser needs its memory
            quantize(float32, unfinished / ONNX_FILE)
            config.onnx["int8"] = True
            exported = OnnxClassifier(unfinished / ONNX_FILE, config)
            found.append(compare(model, exported, extractor))
            size, before = stored_bytes(unfinished / ONNX_FILE), stored_bytes(float32)
            share = 100 * size / before
            found.append(f"int8 takes {size / 1e6:,.1f} MB, {share:.1f} % of float32's {before / 1e6:,.1f} MB")
        print("\n".join(found))
        table = ""
        if corpora:
            from exhubert.convert.onnx_corpora import compare_on_corpora  # needs what training needs

            table = compare_on_corpora(model, exported, extractor, corpora)
            print(table)
        config.save_pretrained(unfinished)
        extractor.save_pretrained(unfinished)
        write_text(unfinished / CARD, with_weights(onnx_card(source, int8, found, table), unfinished))
    print(f"written to {os.path.realpath(destination)}")
    return Path(destination)


def model_for_backend(
    name_or_path: str,
    backend: str = "torch",
    trust_remote_code: bool = False,
    device: str | None = None,
    dtype: str = "float32",
) -> str:
    """Returns the folder or Hub id to load where a backend shall compute a model; exports the model if it has to.

    Exports are kept in Hugging Face's cache folder, below `exhubert`, one for each version of a model. Of several
    processes that need one, the first makes it, and the others wait.

    Args:
        name_or_path: Hub id or folder of an audio-classification model.
        backend: torch: the model as it is; onnx, int8: its export, which onnxruntime runs on the CPU.
        trust_remote_code: whether code that the model brings may run.
        device, dtype: what the model shall compute on and in.

    Raises:
        ValueError: for an ONNX model, another device than the CPU or another type than float32, and another backend
            than torch; and as `convert_onnx`.
        OSError, ImportError: as `convert_onnx`.
    """
    if not BACKENDS[backend]:
        return name_or_path
    if device not in (None, "cpu") or dtype != "float32":
        raise ValueError(f"--backend {backend} computes in float32 on the CPU alone: leave --device and --dtype out")
    if "onnx" in read_config(name_or_path, trust_remote_code):
        raise ValueError(f"{name_or_path} is an ONNX model, which onnxruntime runs as it is: leave --backend out")
    folder, files = Path(name_or_path), []
    if folder.is_dir():
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.suffix in VERSIONED]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    else:
        folder = Path(cached_file(name_or_path, "config.json")).parent  # named by its commit
    version = hashlib.blake2b(repr((os.path.abspath(folder), files)).encode(), digest_size=8).hexdigest()
    kept = Path(HF_HOME, "exhubert", f"{Path(name_or_path).name}-{version}-{BACKENDS[backend]}")
    if not kept.is_dir():
        with locked(f"{kept}.export", wait=True), redirect_stdout(sys.stderr):  # standard output is for rows
            if not kept.is_dir():  # another process may have made it meanwhile
                print(f"{name_or_path} is exported, which takes some minutes, once")
                convert_onnx(name_or_path, kept, backend == "int8", trust_remote_code=trust_remote_code)
    return str(kept)


def export(model: PreTrainedModel, extractor: Any, file: Path) -> None:
    """Writes a model as ONNX: for any batch size and, of waveforms, any length.

    The outputs are `logits`, `dimensions` of a model that has them beside its classes, and every hidden state,
    `hidden_states.0`, ...; what a call does not ask for costs no time.

    Args:
        model: in eval mode and float32. Weight norm is dissolved into its weights.
        extractor: its feature extractor.
        file: to write; weights that are larger than `EXTERNAL_DATA_BYTES` go to `<file>.data`.

    Raises:
        ValueError: if the model does not export.
    """
    import onnx

    for module in model.modules():
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    seconds = check_seconds(extractor)
    example, longer = (made_up_input(extractor, part * seconds, 2) for part in (0.5, 1.0))
    varying = [0, *(axis for axis in range(1, example.dim()) if example.shape[axis] != longer.shape[axis])]
    with torch.inference_mode():
        outputs = model(example, output_hidden_states=True)
    names = [LOGITS, *([] if getattr(outputs, DIMENSIONS, None) is None else [DIMENSIONS])]
    names += [f"{HIDDEN_STATES}.{index}" for index in range(len(outputs.hidden_states or ()))]
    try:
        with quiet():
            program: Any = torch.onnx.export(
                Outputs(model),
                (example,),
                input_names=[extractor.model_input_names[0]],
                output_names=names,
                dynamic_shapes=({axis: torch.export.Dim.DYNAMIC for axis in varying},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever it is that torch cannot trace
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise ValueError(f"this {type(model).__name__} does not export to ONNX ({reason})") from error
    size = sum(parameter.nbytes for parameter in model.parameters())
    program.save(file, external_data=size > EXTERNAL_DATA_BYTES)
    written = onnx.load(file, load_external_data=False)
    del written.graph.value_info[:]  # inner shapes: onnxruntime infers them, and its quantiser would contradict them
    for part in (written, written.graph, *written.graph.node, *(n for f in written.functions for n in f.node)):
        del part.metadata_props[:]  # the exporter's traces, with the paths of this machine
        part.doc_string = ""
    onnx.save(written, file)


def quantize(source: Path, destination: Path) -> None:
    """Writes an ONNX model with its matrices in int8 (onnxruntime's dynamic quantisation).

    Every product with a constant matrix is quantised: attention's four projections, the feed-forward layers, the linear
    layers of block expansion, feature projection and projector. Each output channel of a matrix has a scale of its
    own, and activations are scaled while the model runs. Convolutions, norms, attention's own products and the
    classifier stay float32: of HuBERT Large's weights 4 %.

    Weights take 7 of the 8 bits: products with 8 overflow, silently, on x86 processors without VNNI instructions.
    """
    import onnx

    os.environ.setdefault(*NO_TELEMETRY)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(source, load_external_data=False).graph.node
    head = [f"{node.name}_MatMul" for node in nodes if node.op_type == "Gemm"]  # what the quantiser makes of them
    with quiet():
        quantize_dynamic(
            source,
            destination,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=head,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=stored_bytes(source) / 4 > EXTERNAL_DATA_BYTES,
        )


def compare(model: PreTrainedModel, exported: OnnxClassifier, extractor: Any) -> str:
    """Compares a model with its export on made-up audio of several lengths, in batches of several sizes.

    Returns:
        A sentence with the largest difference of logits, that of dimensions beside classes, and that of hidden states,
        relative to the largest value of each state.

    Raises:
        ValueError: if that is too much for float32, or not a number.
    """
    logits = dimensions = states = 0.0
    seconds = check_seconds(extractor)
    for part, batch in CHECK_PARTS:
        inputs = made_up_input(extractor, part * seconds, batch)
        with torch.inference_mode():
            expected, got = (each(inputs, output_hidden_states=True) for each in (model, exported))
        logits = max(logits, (got.logits - expected.logits).abs().max().item())
        if (values := getattr(expected, DIMENSIONS, None)) is not None:
            dimensions = max(dimensions, (got.dimensions - values).abs().max().item())
        for state, other in zip(expected.hidden_states or (), got.hidden_states or (), strict=True):
            states = max(states, ((other - state).abs().max() / state.abs().max()).item())
    clips = ", ".join(f"{batch} x {part * seconds:g} s" for part, batch in CHECK_PARTS)
    beside = f"of dimensions {dimensions:.2g}, " if DIMENSIONS in exported.answer_names else ""
    found = (
        f"{'int8' if exported.int8 else 'float32'} on made-up audio ({clips}): largest difference of logits "
        f"{logits:.2g}, {beside}of hidden states {states:.2g} of the largest value"
    )
    if not exported.int8 and not max(logits, dimensions, states) <= LARGEST_DIFFERENCE:
        raise ValueError(f"the exported {type(model).__name__} is another function than torch's: {found}")
    return found


def check_seconds(extractor: Any) -> float:
    """The length of the longest made-up audio."""
    return min(longest_input_seconds(extractor), CHECK_SECONDS)


def made_up_input(extractor: Any, seconds: float, batch: int) -> torch.Tensor:
    """Returns what a model takes, of seeded noise: `(batch, samples)` or `(batch, ...)` of spectrograms."""
    generator = np.random.default_rng(batch)
    noise = generator.standard_normal((batch, round(seconds * SAMPLING_RATE)), dtype=np.float32)
    return torch.from_numpy(np.stack([extract_features(samples, extractor, seconds) for samples in noise]))


def onnx_card(source: str, int8: bool, found: Sequence[str], table: str) -> str:
    """Returns the card of an export: the source's without the code that loads torch's model, with a section "ONNX".

    Args:
        source: Hub id or folder of the model. If it is no folder with a card, the card names the source alone.
        int8: whether the export is quantised.
        found: sentences on what was compared.
        table: of torch and ONNX on corpora, markdown; empty if none was asked for.
    """
    file = Path(source) / CARD
    if file.is_file():
        card = file.read_text(encoding="utf-8")
    else:
        base = "" if Path(source).is_dir() else f"base_model: {source}\n"
        card = f"---\npipeline_tag: audio-classification\n{base}---\n\n# {Path(source).name}\n"
    section = fill_template(SECTION, file=ONNX_FILE, opset=OPSET, int8=int8, found=found, table=table)
    return with_section(card, "ONNX", section, leave_out=["Use"])


class Outputs(torch.nn.Module):
    """A model that returns a tuple: its logits, its dimensions beside them, then its hidden states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(inputs, output_hidden_states=True)
        dimensions = getattr(outputs, DIMENSIONS, None)
        return outputs.logits, *([] if dimensions is None else [dimensions]), *(outputs.hidden_states or ())


def stored_bytes(file: Path) -> int:
    """Size of an ONNX model with its weights."""
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves the terminal to our own lines: the exporter warns of its insides, and prints whole graphs that fail."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
