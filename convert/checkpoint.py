"""Checkpoints larger than memory: read tensor by tensor, written shard by shard, computed module by module.

What every converter shares. Nothing here holds more than a shard, a module or `READ_BYTES` of weights at a time.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from exhubert.audio_exhubert import WINDOW_SECONDS
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.model_folder.load import check_config, not_found
from exhubert.model_folder.save import shard_names
from exhubert.modeling_exhubert import ExHuBERTForSequenceClassification, expanded_weight, misfit
from exhubert.utils.command import named_errors
from exhubert.utils.files import read_table
from exhubert.utils.text import first_line

# Mapped pages count as memory until their file is closed, so it is opened anew after so many bytes.
READ_BYTES = 256 * 2**20
SHARD_BYTES = 10**9
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
CHECK_CLIPS = 2
CHECK_SAMPLES = 16_000
CHECK_SEED = 0

# A name in a checkpoint -> the name in today's HuBERT, or in ours; None: left out on purpose. Any other name stays.
NAMES: dict[str, str | None] = {
    r"lm_head\..+": None,  # of CTC
    # a HuBERT without a head
    r"(?!hubert\.|projector\.|classifier\.|layer_weights$|dimension_head\.|lm_head\.)(.+)": r"hubert.\1",
    r"(.+)\.weight_g": r"\1.parametrizations.weight.original0",  # weight norm before PyTorch 2.1
    r"(.+)\.weight_v": r"\1.parametrizations.weight.original1",
    r"(.+\.layers\.\d*[02468])\.gate_bb_linear\.(.+)": r"\1.identity_linear.\2",  # the published ExHuBERT
    r"(.+\.layers\.\d*[13579])\.gate_bb_linear\.(.+)": r"\1.zero_linear.\2",
}
MASK_VECTOR = "hubert.masked_spec_embed"  # SpecAugment's, for training only

Read = Callable[[str], torch.Tensor]


def current_name(name: str) -> str | None:
    """Today's name of a weight that a checkpoint calls `name`; None for one that is left out on purpose."""
    for pattern, replacement in NAMES.items():
        if re.fullmatch(pattern, name):
            if replacement is None:
                return None
            name = re.sub(pattern, replacement, name)
    return name


class Checkpoint:
    """A checkpoint folder, each weight read from its file when it is asked for.

    Args:
        source: folder or Hub id with `config.json` and weights: safetensors, or else PyTorch's pickles (which are
            read as tensors only), whole or in shards.
        revision: of the Hub repo: commit, branch or tag.

    Attributes:
        config: the values in `config.json`.
        like: for every weight, by its current name, a tensor of its shape and dtype on the meta device.
        stored: the name in the files for every current name.
        left_out: the names in the files that have no current one.
        window_seconds: length of the model's input, as its feature extractor has it; 3 where it has none.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
        ValueError: if it has no configuration or weights, or they cannot be read.
    """

    def __init__(self, source: str | os.PathLike[str], revision: str | None = None) -> None:
        self.source = str(source)
        self.directory = Path(source)
        is_folder = self.directory.is_dir()
        files: list[Path] = []
        for weights in (WEIGHTS, PICKLE):
            index = f"{weights}.index.json"
            if not is_folder:
                shards = f"{Path(weights).stem}-*{Path(weights).suffix}"
                patterns = ["config.json", "preprocessor_config.json", weights, index, shards]
                try:
                    self.directory = Path(snapshot_download(self.source, revision=revision, allow_patterns=patterns))
                except (OSError, ValueError) as error:
                    raise not_found(self.source, error) from error
            if (self.directory / weights).is_file():
                files = [self.directory / weights]
                break
            if (self.directory / index).is_file():
                files = sorted({self.directory / Path(name).name for name in shard_names(self.directory / index)})
                break
        if not (self.directory / "config.json").is_file():
            raise ValueError(f"{source} is no checkpoint: it lacks config.json")
        self.config = read_table(self.directory / "config.json")
        check_config(self.config, f"{self.source}: config.json")
        extractor = self.directory / "preprocessor_config.json"
        values = read_table(extractor) if extractor.is_file() else {}
        self.window_seconds: float = values.get("window_seconds", WINDOW_SECONDS)
        self.like: dict[str, torch.Tensor] = {}
        self.stored: dict[str, str] = {}
        self.left_out: list[str] = []
        self._new: dict[str, torch.Tensor] = {}
        self._files: dict[str, Path] = {}
        self._opened: tuple[Path, Read] | None = None
        self._bytes_read = 0
        if not files:
            neither = f"neither {WEIGHTS} nor {PICKLE}, nor shards of them with an index"
            raise ValueError(f"{source} holds no weights: {neither}")
        for file in files:
            if not file.is_file():
                raise ValueError(f"{source} lacks {file.name}, which {index} names")
            names, get = _open(file)
            for stored in names:
                name = current_name(stored)
                if name is None:
                    self.left_out.append(stored)
                    continue
                if name in self.stored:
                    raise ValueError(f"{source} holds the same weight twice: {self.stored[name]} and {stored}")
                tensor = get(stored)
                self.like[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                self.stored[name], self._files[name] = stored, file

    def make_config(self, config_class: type[PretrainedConfig]) -> Any:
        """Returns its configuration as one of this class; raises ValueError if it is none."""
        with named_errors(f"{self.source}: config.json cannot be used", "get the model anew, or mend that"):
            return config_class.from_dict(self.config)

    @property
    def dtype(self) -> torch.dtype:
        """Of the linear layer at the end of the first encoder layer; what is added has it too."""
        name = "hubert.encoder.layers.0.feed_forward.output_dense.weight"
        if name not in self.like:
            raise ValueError(f"{self.source} lacks {name}, which every HuBERT has")
        return self.like[name].dtype

    def read(self, name: str) -> torch.Tensor:
        """Returns the weight with this current name, in memory of its own; KeyError if there is none."""
        if name in self._new:
            return self._new[name].clone()
        file = self._files[name]
        if self._opened is None or self._opened[0] != file or self._bytes_read > READ_BYTES:
            self._opened = None  # unmapped before it is mapped again
            self._opened, self._bytes_read = (file, _open(file)[1]), 0
        tensor = self._opened[1](self.stored[name])
        self._bytes_read += tensor.nbytes
        if not tensor.nbytes:
            return tensor.clone()
        # Memory that goes back to the system with the tensor: the C heap would keep it, in fragments, for gigabytes.
        own = torch.frombuffer(mmap.mmap(-1, tensor.nbytes), dtype=tensor.dtype).view(tensor.shape)
        return own.copy_(tensor)

    def fit(self, model: PreTrainedModel) -> list[str]:
        """Checks that it has the weights of `model`, which is on the meta device, and no others.

        What may be missing, SpecAugment's vector and a head of which nothing is there, is given the start that a new
        model has, the same on every run.

        Returns:
            The names of the weights that are new.

        Raises:
            ValueError: naming the first weight that `model` has not, has in another shape, or has and this lacks.
        """
        wanted = model.state_dict()
        if MASK_VECTOR in self.like and MASK_VECTOR not in wanted:  # the configuration has no SpecAugment
            self.left_out.append(self.stored[MASK_VECTOR])
            del self.like[MASK_VECTOR]
        lacking = [name for name in wanted if name not in self.like]
        shapes = {
            name: f"{self.stored[name]}, {tuple(like.shape)} instead of {tuple(wanted[name].shape)}"
            for name, like in self.like.items()
            if name in wanted and like.shape != wanted[name].shape
        }
        unknown = [self.stored[name] for name in self.like if name not in wanted]
        if problem := misfit(lacking, unknown, shapes.values(), wanted):
            raise ValueError(f"{self.source} is no {type(model).__name__} of its configuration: it {problem}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for path, module in model.named_modules():
                names = {name: f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
                if not any(name in lacking for name in names.values()):
                    continue
                module.to_empty(device="cpu", recurse=False)
                model._init_weights(module)
                for own, name in names.items():
                    if name in lacking:
                        self._new[name] = getattr(module, own).detach().to(self.dtype)
                        self.like[name] = self._new[name].to("meta")
                module.to_empty(device="meta", recurse=False)
        return lacking


def is_at_start(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a linear layer's weight or bias is what expansion makes it: the identity, or zero."""
    tensor = checkpoint.read(name)
    return torch.equal(tensor, expanded_weight(name, tensor.shape, tensor.dtype, 1, checkpoint.read))


def as_trained(hubert: PreTrainedModel) -> PreTrainedModel:
    """Returns what computes a HuBERT's weighted layer sum over the states that it was trained with, on any release.

    From 5.16 on transformers' own classifier takes another last state.
    """
    if not hubert.config.use_weighted_layer_sum or not hasattr(hubert, "layer_weights"):
        return hubert
    return on_meta(ExHuBERTForSequenceClassification, ExHuBERTConfig.from_hubert_config(hubert.config, num_copies=0))


def on_meta(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Returns a model without weights, on the meta device."""
    with torch.device("meta"):
        return model_class(config)


def check_same_function(
    of: str, reference: tuple[PreTrainedModel, Read], converted: tuple[PreTrainedModel, Read]
) -> None:
    """Computes two models on the meta device from their files, and raises ValueError unless their outputs are equal.

    Attention is eager, and everything is in the dtype of the CNN, on the CPU.

    Args:
        of: whose outputs the reference's are, for the messages.
        reference, converted: a model, and what gives its weights by their names. Logits are compared, or last hidden
            states where there is no head.
    """
    samples = torch.randn(CHECK_CLIPS, CHECK_SAMPLES, generator=torch.Generator().manual_seed(CHECK_SEED))
    outputs = []
    with torch.inference_mode():
        for model, read in (reference, converted):
            dtype = read(next(name for name, _ in model.named_parameters() if "feature_extractor." in name)).dtype
            model.set_attn_implementation("eager")
            outputs.append(compute_from_files(model, read, dtype)(samples.to(dtype))[0])
    expected, got = outputs
    what = "logits" if expected.dim() == 2 else "last hidden states"
    where = f"on {CHECK_CLIPS} x {CHECK_SAMPLES} samples (seed {CHECK_SEED})"
    if not torch.isfinite(expected).all():
        raise ValueError(f"{of} {what} are not finite {where}: its weights are damaged")
    difference = (got.float() - expected.float()).abs().max().item()
    if not torch.equal(got, expected):
        raise ValueError(f"the converted model's {what} differ from {of} by up to {difference:.3g} {where}")
    print(f"{what} are bit-identical to {of} {where}: largest difference {difference}")


def write_weights(directory: Path, like: Mapping[str, torch.Tensor], read: Read) -> None:
    """Writes safetensors, shard by shard; one shard is in memory at a time.

    Args:
        directory: where `model.safetensors`, or its shards and their index go.
        like: for every weight a tensor of its shape and dtype, on the meta device.
        read: gives the weight of a name, in memory of its own.
    """
    plan = split_torch_state_dict_into_shards(dict(like), max_shard_size=SHARD_BYTES)
    for file, names in plan.filename_to_tensors.items():
        try:
            save_file({name: read(name) for name in names}, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk
            raise OSError(f"{directory / file} cannot be written ({error})") from error
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / f"{WEIGHTS}.index.json").write_text(text, encoding="utf-8")


def compute_from_files(model: nn.Module, read: Read, dtype: torch.dtype) -> nn.Module:
    """Returns `model`, on the meta device, such that it computes with one module's weights in memory at a time.

    Args:
        model: the model; its weights are of no account.
        read: gives the weight of a name; KeyError for one that is not there, as the forward does not need it.
        dtype: what it computes in.
    """
    prefixes = {module: f"{path}." if path else "" for path, module in model.named_modules()}

    def load(module: nn.Module, _: Any) -> None:
        for name, old in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            try:
                tensor = read(prefixes[module] + name)
            except KeyError:
                continue
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            is_parameter = isinstance(old, nn.Parameter)
            setattr(module, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

    def drop(module: nn.Module, *_: Any) -> None:
        module.to_empty(device="meta", recurse=False)

    for module in prefixes:
        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop)
    return model.eval()


def _open(file: Path) -> tuple[list[str], Read]:
    """Names in the file, and what gives the tensor of a name: mapped, not read, wherever the format allows it."""
    try:
        if file.suffix == ".safetensors":
            handle = safe_open(file, framework="pt")
            return list(handle.keys()), handle.get_tensor
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            weights = torch.load(file, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is no file of tensors alone, and what else a pickle holds could run code: not loaded"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: the weights cannot be read ({first_line(error)})") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{file} holds something else than tensors by name; a state dict is needed")
    return list(weights), weights.__getitem__
