"""Loads what is in a model folder, or a Hub repo: configuration, model, feature extractor, pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

from exhubert.audio_exhubert import SAMPLING_RATE, WINDOW_SECONDS, ExHuBERTFeatureExtractor
from exhubert.model_folder.onnx_model import load_onnx
from exhubert.modeling_exhubert import misfit
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionForSequenceClassification
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.utils.text import first_line


def load_pipeline(name_or_path: str) -> ExHuBERTPipeline:
    """Loads any audio-classification model, Hub id or folder, ready to classify audio of any length.

    Raises:
        ValueError: as `load_trained`.
    """
    model, extractor = load_trained(name_or_path)
    return ExHuBERTPipeline(model=model, feature_extractor=extractor)


def load_trained(name_or_path: str, **kwargs: Any) -> tuple[Any, SequenceFeatureExtractor]:
    """Loads an audio-classification model that is ready for use, in eval mode, and its feature extractor.

    Raises:
        ValueError: as `load_classifier`, and if the checkpoint has no trained classifier.
    """
    model, new = load_classifier(name_or_path, **kwargs)
    if new:
        raise ValueError(f"{name_or_path} has no trained classifier: it lacks {new[0]} ({len(new)} such weights)")
    return model.eval(), load_feature_extractor(name_or_path, model.config)


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
    published = [name for name in report["unexpected_keys"] if ".gate_bb_linear." in name]
    if published:
        raise ValueError(f"{name_or_path} cannot be loaded: it {misfit((), published)}")
    # Names with both shapes, but bare names before transformers 5.
    reshaped = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    return model, sorted([*report["missing_keys"], *reshaped])


def read_config(name_or_path: str) -> dict[str, Any]:
    """Returns a checkpoint's configuration as its file has it.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
    """
    if Path(name_or_path).is_dir() and not Path(name_or_path, "config.json").is_file():
        below = Path(name_or_path, "model")  # of a run
        remedy = f"; the run's model is in {below}" if (below / "config.json").is_file() else ""
        raise OSError(f"{name_or_path} is no model folder: it lacks config.json{remedy}")
    try:
        values = PretrainedConfig.get_config_dict(name_or_path)[0]
    except OSError as error:
        raise _not_found(name_or_path, error) from error
    if not isinstance(values, dict):
        raise OSError(f"{name_or_path}: config.json is {values!r}, no table of fields")
    return values


def _not_found(name_or_path: str, error: OSError) -> OSError:
    if Path(name_or_path).is_dir():
        return OSError(f"{name_or_path} is no model folder ({first_line(error)})")
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        return OSError(f"{name_or_path}: no such folder or cached model, and the Hub could not be asked for one")
    return OSError(f"{name_or_path}: no such folder, and no such model on the Hub ({first_line(error)})")


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
