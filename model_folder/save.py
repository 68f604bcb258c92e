"""Writes a model folder: what the Hub repo of a model carries, complete, or not at all."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from exhubert.audio_exhubert import WINDOW_SECONDS
from exhubert.configuration_exhubert import AUTO_MAP, CODE_FILES, CUSTOM_PIPELINES, ExHuBERTConfig
from exhubert.model_folder.card import CARD, is_edited, source_metadata, write_card
from exhubert.model_folder.load import loading, make_feature_extractor
from exhubert.model_folder.onnx_model import ONNX_FILE
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig
from exhubert.utils.files import read_table, whole_file, whole_folder, write_text

EMOTION_CODE_FILE = "modeling_wav2vec2_emotion.py"  # carried by the folders of that model alone

AUTO_MAPS = {  # by model type
    ExHuBERTConfig.model_type: AUTO_MAP,
    Wav2Vec2EmotionConfig.model_type: {
        "AutoConfig": "modeling_wav2vec2_emotion.Wav2Vec2EmotionConfig",
        "AutoModelForAudioClassification": "modeling_wav2vec2_emotion.Wav2Vec2EmotionForSequenceClassification",
    },
}

SHARD = re.compile(r"model(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")


def save_model_folder(
    model: PreTrainedModel,
    directory: str | os.PathLike[str],
    window_seconds: float = WINDOW_SECONDS,
    state_dict: dict[str, Any] | None = None,
    write_weights: Callable[[Path], None] | None = None,
    source: str | None = None,
    sections: Mapping[str, str] | None = None,
) -> Path:
    """Writes configuration, safetensors, the code files, the feature extractor and a card.

    The folder loads with `AutoModelForAudioClassification`, `AutoFeatureExtractor` and
    `pipeline("speech-emotion-recognition")`, also where this package is not installed. It is written beside the
    target and renamed when complete. The files of a model folder that is there already are replaced, each at once, but
    a card that was edited by hand stays.

    Args:
        model: any audio-classification model.
        directory: the target.
        window_seconds: length of the model's input in seconds.
        state_dict: the weights, where they are not `model.state_dict()` (sharded training). LoRA is merged into them.
        write_weights: writes the weights into the folder that it is given, where the model does not hold them (it is
            on the meta device).
        source: folder or Hub id of the weights that it started from, whose licence is its card's; where it was
            loaded from by default.
        sections: further ones of the card, title -> markdown.

    Raises:
        ValueError: if `directory` holds something else than a model.
    """
    directory = Path(directory)
    if directory.exists() and not (
        directory.is_dir() and ((directory / "config.json").exists() or not any(directory.iterdir()))
    ):
        raise ValueError(f"{directory} exists and is no model folder; give another name, or delete it")
    with whole_folder(directory, replace=True) as unfinished:
        if write_weights is None:
            if any(".lora_" in parameter for parameter, _ in model.named_parameters()):
                state_dict = merge_lora(model, model.state_dict() if state_dict is None else state_dict)
            if type(model).__name__.startswith("FSDP"):
                type(model)._auto_class = None  # FSDP2 made this class, and its code, torch's, would be saved
            model.save_pretrained(unfinished, state_dict=state_dict)
        else:
            config = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]
            config.save_pretrained(unfinished)
            write_weights(unfinished)
        config_file = unfinished / "config.json"
        values = read_table(config_file) | {"custom_pipelines": CUSTOM_PIPELINES}
        if values["model_type"] in AUTO_MAPS:  # `save_pretrained` names the saved class alone
            values["auto_map"] = AUTO_MAPS[values["model_type"]]
        config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        make_feature_extractor(model.config, window_seconds).save_pretrained(unfinished)
        own = (EMOTION_CODE_FILE,) if model.config.model_type == Wav2Vec2EmotionConfig.model_type else ()
        for code_file in (*CODE_FILES, *own):
            shutil.copyfile(Path(__file__).parent.parent / code_file, unfinished / code_file)
        source = model.config.name_or_path if source is None else source
        write_card(unfinished, known=source_metadata(source or ""), sections=sections)
        written = {path.name for path in unfinished.iterdir()}
        if is_edited(directory / CARD):
            (unfinished / CARD).unlink()
    for path in directory.iterdir():  # the shards of what was there
        if path.name not in written and SHARD.fullmatch(path.name):
            path.unlink()
    return directory


def merge_lora(model: torch.nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """Returns weights with what LoRA adds to a layer in its weight, under the names of the model without LoRA."""
    merged = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        layer, base, rest = name.partition(".base_layer.")
        if rest == "weight":
            factors = [weights[f"{layer}.lora_{factor}.default.weight"] for factor in "BA"]
            adapter: Any = model.get_submodule(layer)
            tensor = tensor + adapter.scaling["default"] * (factors[0] @ factors[1])
        merged[f"{layer}.{rest}" if base else name] = tensor
    return merged


def check_model_folder(directory: str | os.PathLike[str]) -> Path:
    """Returns `directory` as a path, or raises ValueError naming the first file that a model folder lacks."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such model folder")
    exported = (directory / ONNX_FILE).is_file()
    for name in ("config.json", "preprocessor_config.json", *(() if exported else CODE_FILES)):
        if not (directory / name).is_file():
            remedy = "" if exported or name == "config.json" else f"; `exhubert repair {directory}` adds it"
            raise ValueError(f"{directory} is not a model folder: it lacks {name}{remedy}")
    if not exported and not any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory} is not a model folder: it lacks weights (*.safetensors)")
    return directory


def repair_model_folder(directory: str | os.PathLike[str]) -> list[str]:
    """Adds what a folder with a model in it lacks to be whole; what is there already stays.

    `model.save_pretrained` of a model that is not ours, a copy by hand or an older version leaves such folders.

    Returns:
        The names of the files that were written, `config.json` among them if it named too little.

    Raises:
        ValueError: if there is no configuration that can be used or no weights, which cannot be made up.
    """
    directory = Path(directory)
    config_file = directory / "config.json"
    if not config_file.is_file() or not any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory} cannot be repaired: it lacks config.json or weights (*.safetensors)")
    list(code_references(config_file))
    with loading(str(directory), "config.json cannot be used"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    before = {path.name for path in directory.iterdir()}
    emotion = config.model_type == Wav2Vec2EmotionConfig.model_type
    for name in (*CODE_FILES, *((EMOTION_CODE_FILE,) if emotion else ())):
        if name not in before:
            with whole_file(directory / name) as unfinished:
                shutil.copyfile(Path(__file__).parent.parent / name, unfinished)
    values = read_table(config_file)
    named: dict[str, dict[str, Any]] = {"custom_pipelines": CUSTOM_PIPELINES}
    named["auto_map"] = AUTO_MAPS.get(config.model_type, {})
    whole = values | {name: {**ours, **(values.get(name) or {})} for name, ours in named.items() if ours}
    if whole != values:
        write_text(config_file, json.dumps(whole, indent=2, sort_keys=True) + "\n")
    if "preprocessor_config.json" not in before:
        with tempfile.TemporaryDirectory() as place, whole_file(directory / "preprocessor_config.json") as unfinished:
            make_feature_extractor(config).save_pretrained(place)
            shutil.copyfile(Path(place) / "preprocessor_config.json", unfinished)
    if CARD not in before:
        write_card(directory)
    return sorted(
        {path.name for path in directory.iterdir()} - before | ({"config.json"} if whole != values else set())
    )


def code_references(file: Path) -> Iterator[tuple[str, str]]:
    """Yields where a configuration says that classes are found: (which, `module.Class` or `user/repo--module.Class`).

    Raises:
        ValueError: if the file is none, or says something else.
    """
    values = read_table(file)
    auto_map, pipelines = (values.get(name) or {} for name in ("auto_map", "custom_pipelines"))
    for name, table in {"auto_map": auto_map, "custom_pipelines": pipelines}.items():
        if not isinstance(table, dict):
            raise ValueError(f"{file}: {name} is {str(table)[:80]!r}; a table is needed")
    found = auto_map | {
        task: entry.get("impl") if isinstance(entry, dict) else entry for task, entry in pipelines.items()
    }
    for key, value in found.items():
        for reference in value if isinstance(value, list) else [value]:  # of a tokenizer, two or one and None
            if not isinstance(reference, str | None):
                raise ValueError(f"{file}: {key} is {str(reference)[:80]!r}; module.Class is needed")
            if reference:
                yield key, reference


def shard_names(index: Path) -> dict[str, set[str]]:
    """Returns the files that an index names, each with the names of its weights; raises ValueError if it is none."""
    weight_map = read_table(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) and shard for shard in weight_map.values()):
        raise ValueError(f"{index}: weight_map is {str(weight_map)[:80]!r}; a table of weights and files is needed")
    shards: dict[str, set[str]] = {}
    for weight, shard in weight_map.items():
        shards.setdefault(shard, set()).add(weight)
    return shards


def run_repair(directory: str) -> None:
    """Runs `exhubert repair`."""
    written = repair_model_folder(directory)
    print(f"{directory}: wrote {', '.join(written)}" if written else f"{directory} is whole already")
    if "preprocessor_config.json" in written:
        print(
            f"its window is taken to be {WINDOW_SECONDS:g} s; change window_seconds there if it was trained on another"
        )
