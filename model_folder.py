"""Writes a model folder: what the Hub repo of a model carries, complete, or not at all."""

from __future__ import annotations

import contextlib
import copy
import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

from exhubert.audio_exhubert import SAMPLING_RATE, WINDOW_SECONDS, ExHuBERTFeatureExtractor
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.model_card import CARD, is_edited, source_metadata, write_card
from exhubert.modeling_onnx import ONNX_FILE, load_onnx
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig, Wav2Vec2EmotionForSequenceClassification
from exhubert.pipeline_exhubert import CUSTOM_PIPELINES, ExHuBERTPipeline

CODE_FILES = ("configuration_exhubert.py", "modeling_exhubert.py", "audio_exhubert.py", "pipeline_exhubert.py")
EMOTION_CODE_FILE = "modeling_wav2vec2_emotion.py"  # carried by the folders of that model alone

AUTO_MAPS = {  # by model type
    ExHuBERTConfig.model_type: {
        "AutoConfig": "configuration_exhubert.ExHuBERTConfig",
        "AutoModel": "modeling_exhubert.ExHuBERTModel",
        "AutoModelForAudioClassification": "modeling_exhubert.ExHuBERTForSequenceClassification",
    },
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
) -> Path:
    """Writes configuration, safetensors, the four code files, the feature extractor and a card.

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

    Raises:
        ValueError: if `directory` holds something else than a model.
    """
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and ((directory / "config.json").exists() or _empty(directory))):
        raise ValueError(f"{directory} exists and is no model folder; give another name, or delete it")
    with folder_beside(directory) as unfinished:
        _write(model, unfinished, window_seconds, state_dict, write_weights)
        source = model.config.name_or_path if source is None else source
        write_card(unfinished, name=directory.name, known=source_metadata(source or ""))
        if directory.is_dir():
            written = {path.name for path in unfinished.iterdir()}
            kept = {CARD} if is_edited(directory / CARD) else set()
            for name in sorted(written - kept):
                os.replace(unfinished / name, directory / name)
            for path in directory.iterdir():  # the shards of what was there
                if path.name not in written and SHARD.fullmatch(path.name):
                    path.unlink()
        else:
            unfinished.rename(directory)
    return directory


@contextlib.contextmanager
def folder_beside(directory: Path) -> Iterator[Path]:
    """Yields a new folder beside `directory`, to be renamed to it when complete; what is left of it is removed.

    What runs that were killed on this machine have left there is removed, too.
    """
    name = f".{directory.name}.unfinished-{socket.gethostname()}-"
    for left in directory.parent.glob(f"{glob.escape(name)}*"):
        if not _runs(left.name[len(name) :]):
            shutil.rmtree(left, ignore_errors=True)
    unfinished = directory.with_name(f"{name}{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _runs(process: str) -> bool:
    if os.name != "posix" or not process.isdigit():  # elsewhere `os.kill` would end it
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def check_model_folder(directory: str | os.PathLike[str]) -> Path:
    """Returns `directory` as a path, or raises ValueError naming the first file that a model folder lacks."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such model folder")
    exported = (directory / ONNX_FILE).is_file()
    for name in ("config.json", "preprocessor_config.json", *(() if exported else CODE_FILES)):
        if not (directory / name).is_file():
            raise ValueError(f"{directory} is not a model folder: it lacks {name}")
    if not exported and not any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory} is not a model folder: it lacks weights (*.safetensors)")
    return directory


def load_classifier(name_or_path: str, **kwargs: Any) -> tuple[Any, list[str]]:
    """Loads any audio-classification model.

    Args:
        name_or_path: Hub id or folder.
        kwargs: for `from_pretrained`; of no account for an ONNX model.

    Returns:
        The model, a `PreTrainedModel` or an `OnnxClassifier`, which can be called as one; and the names of the weights
        that its checkpoint lacks or has in another shape: these are new.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
        ImportError: if it is an ONNX model, and onnxruntime is not installed.
        ValueError: if it is no audio classification model, or its weights cannot be read.
    """
    config = read_config(name_or_path)
    if "onnx" in config:
        return load_onnx(name_or_path), []
    loader: Any = AutoModelForAudioClassification
    if config.get("architectures") == ["Wav2Vec2ForSpeechClassification"]:
        loader = Wav2Vec2EmotionForSequenceClassification  # AutoModel would put a new head in the place of its own
    try:
        model, report = loader.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except OSError as error:
        raise _not_found(name_or_path, error) from error
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: the weights cannot be read ({error})") from error
    if any(".gate_bb_linear." in key for key in report["unexpected_keys"]):
        raise ValueError(f"{name_or_path} has the published ExHuBERT's layout; use `exhubert convert published` first")
    # Names with both shapes, but bare names before transformers 5.
    reshaped = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return model, sorted([*report["missing_keys"], *reshaped])


def read_config(name_or_path: str) -> dict[str, Any]:
    """Returns a checkpoint's configuration as its file has it.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
    """
    if Path(name_or_path).is_dir() and not Path(name_or_path, "config.json").is_file():
        raise OSError(f"{name_or_path} is no model folder: it lacks config.json")
    try:
        values = PretrainedConfig.get_config_dict(name_or_path)[0]
    except OSError as error:
        raise _not_found(name_or_path, error) from error
    if not isinstance(values, dict):
        raise OSError(f"{name_or_path}: config.json is {values!r}, no table of fields")
    return values


def make_feature_extractor(
    config: PretrainedConfig, window_seconds: float = WINDOW_SECONDS
) -> SequenceFeatureExtractor:
    """Returns the feature extractor of a model, with its window as `window_seconds`.

    Models of waveforms get ours; a Whisper, an AST and a wav2vec 2.0 BERT the one that turns audio into their
    spectrogram. Of these a bare call pads to the model's input, but does not cut to the window.

    Raises:
        ValueError: if the window is longer than the model's input.
    """
    longest = float("inf")
    extractor: SequenceFeatureExtractor
    if config.model_type == "whisper":
        longest = config.max_source_positions / 50  # of 20 ms each
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=round(longest))
    elif config.model_type == "audio-spectrogram-transformer":
        longest = config.max_length / 100  # frames of 10 ms
        extractor = ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    elif config.model_type == "wav2vec2-bert":
        mel_bins = config.feature_projection_input_dim // 2  # two frames are one input
        extractor = SeamlessM4TFeatureExtractor(feature_size=mel_bins, num_mel_bins=mel_bins)
    else:
        extractor = ExHuBERTFeatureExtractor()
    if window_seconds > longest:
        raise ValueError(f"window_seconds is {window_seconds}; the input of this {config.model_type} is {longest:g} s")
    extractor.window_seconds = window_seconds
    return extractor


def load_feature_extractor(name_or_path: str, config: PretrainedConfig) -> SequenceFeatureExtractor:
    """Returns the feature extractor that a model's folder or Hub repo has; where it has none, our model's.

    Raises:
        ValueError: if its file cannot be read, or says another rate than 16 kHz.
    """
    try:
        values, _ = FeatureExtractionMixin.get_feature_extractor_dict(name_or_path)
    except OSError as error:
        if "not a valid JSON" in str(error):
            raise ValueError(f"{name_or_path}: preprocessor_config.json cannot be read ({error})") from error
        return make_feature_extractor(config)
    if "window_seconds" in values:
        return make_feature_extractor(config, float(values["window_seconds"]))
    extractor = AutoFeatureExtractor.from_pretrained(name_or_path, trust_remote_code=False)
    if extractor.sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"{name_or_path} hears {extractor.sampling_rate} Hz; only models of {SAMPLING_RATE} Hz run here"
        )
    return extractor


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


def _not_found(name_or_path: str, error: OSError) -> OSError:
    reason = str(error).strip().splitlines()[0]
    if Path(name_or_path).is_dir():
        return OSError(f"{name_or_path} is no model folder ({reason})")
    return OSError(f"{name_or_path}: no such folder, and no such model on the Hub ({reason})")


def _empty(directory: Path) -> bool:
    return not any(directory.iterdir())


def _write(
    model: PreTrainedModel,
    directory: Path,
    window_seconds: float,
    state_dict: dict[str, Any] | None,
    write_weights: Callable[[Path], None] | None,
) -> None:
    if write_weights is None:
        if any(".lora_" in parameter for parameter, _ in model.named_parameters()):
            state_dict = merge_lora(model, model.state_dict() if state_dict is None else state_dict)
        if type(model).__name__.startswith("FSDP"):
            type(model)._auto_class = None  # FSDP2 made this class, and its code, torch's, would be saved
        model.save_pretrained(directory, state_dict=state_dict)
    else:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(directory)
        write_weights(directory)
    config_file = directory / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["custom_pipelines"] = CUSTOM_PIPELINES
    if config["model_type"] in AUTO_MAPS:  # `save_pretrained` names the saved class alone
        config["auto_map"] = AUTO_MAPS[config["model_type"]]
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    make_feature_extractor(model.config, window_seconds).save_pretrained(directory)
    package = Path(__file__).parent
    own = (EMOTION_CODE_FILE,) if config["model_type"] == Wav2Vec2EmotionConfig.model_type else ()
    for code_file in (*CODE_FILES, *own):
        shutil.copyfile(package / code_file, directory / code_file)


def load_trained(name_or_path: str, **kwargs: Any) -> tuple[Any, SequenceFeatureExtractor]:
    """Loads an audio-classification model that is ready for use, in eval mode, and its feature extractor.

    Raises:
        ValueError: as `load_classifier`, and if the checkpoint has no trained classifier.
    """
    model, new = load_classifier(name_or_path, **kwargs)
    if new:
        raise ValueError(f"{name_or_path} has no trained classifier: it lacks {new[0]} ({len(new)} such weights)")
    return model.eval(), load_feature_extractor(name_or_path, model.config)


def load_pipeline(name_or_path: str) -> ExHuBERTPipeline:
    """Loads any audio-classification model, Hub id or folder, ready to classify audio of any length.

    Raises:
        ValueError: as `load_trained`.
    """
    model, extractor = load_trained(name_or_path)
    return ExHuBERTPipeline(model=model, feature_extractor=extractor)
