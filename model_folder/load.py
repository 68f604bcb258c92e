"""Loads what is in a model folder, or a Hub repo: configuration, model, feature extractor, pipeline."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import find_adapter_config_file, is_peft_available

from exhubert.audio_exhubert import SAMPLING_RATE, WINDOW_SECONDS, ExHuBERTFeatureExtractor, longest_input_seconds
from exhubert.configuration_exhubert import LARGEST
from exhubert.model_folder.onnx_model import load_onnx
from exhubert.modeling_exhubert import misfit
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionForSequenceClassification
from exhubert.pipeline_exhubert import ExHuBERTPipeline
from exhubert.utils.command import named_errors, one_line
from exhubert.utils.files import read_table
from exhubert.utils.text import first_line

LARGEST_MODEL = 20 * 10**9  # parameters
SPARE_PARAMETERS, MOST_A_BYTE = 5 * 10**7, 4  # of a model beside its weights: a new head, and weights of 2 bits
FEWEST_BYTES_A_LAYER, SMALL_BYTES = 1024, 2**20
FEWEST_SAMPLES_A_FRAME = 16  # of 16,000 a second: of more frames attention does not end
WINDOWS = (0.1, 600.0)  # seconds
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("eager", "sdpa", "flex_attention")  # that torch has; all else may be fetched from the Hub


def load_pipeline(name_or_path: str, trust_remote_code: bool = False) -> ExHuBERTPipeline:
    """Loads any audio-classification model, Hub id or folder, ready to classify audio of any length.

    Raises:
        ValueError: as `load_trained`.
    """
    model, extractor = load_trained(name_or_path, trust_remote_code)
    return ExHuBERTPipeline(model=model, feature_extractor=extractor)


def choose_device(device: str | None = None, dtype: str = "float32") -> torch.device:
    """Returns the device to compute on; of several processes that a launcher started, each gets a GPU of its own.

    Args:
        device: as torch calls it: cpu, cuda, cuda:1, ...; None is a GPU where there is one, else the CPU.
        dtype: one of `DTYPES`.

    Raises:
        ValueError: if there is no such device, or torch does not compute in that type on it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be {', '.join(DTYPES)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError) as error:
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise ValueError(f"device is {device!r}; there is {there}") from error
    try:
        values = torch.zeros(1, 8, 8, device=chosen, dtype=getattr(torch, dtype))
        torch.nn.functional.conv1d(values @ values, values)
    except RuntimeError as error:
        raise ValueError(f"dtype is {dtype!r}, in which torch does not compute on {name}") from error
    return chosen


def load_for_answers(
    name_or_path: str,
    device: str | None = None,
    dtype: str = "float32",
    exact: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Any, SequenceFeatureExtractor]:
    """As `load_trained`, on a device and in a type, as fast as that gives the same answers.

    In float32 on the CPU a model that has a faster forward, whose logits differ by 1e-5 at most, uses it. On a GPU
    float32 is float32: TF32, with 10 bits of precision, is for the other types' float32 parts alone.

    Args:
        name_or_path, trust_remote_code: as for `load_trained`.
        device, dtype: as for `choose_device`.
        exact: use the plain forward.

    Raises:
        ValueError: as `load_trained` and `choose_device`, and for an ONNX model in another type or on another device.
    """
    chosen = choose_device(device, dtype)
    model, extractor = load_trained(name_or_path, trust_remote_code, dtype=getattr(torch, dtype))
    if next(model.parameters(), None) is None:
        if device not in (None, "cpu") or dtype != "float32":
            raise ValueError(f"{name_or_path} is an ONNX model, which takes float32 on the CPU alone")
        return model, extractor
    if chosen.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype != "float32"
    if chosen.type == "cpu" and dtype == "float32" and not exact and hasattr(model, "set_fast_path"):
        model.set_fast_path()
    return model.to(chosen), extractor


def precision_note(device: torch.device, dtype: str) -> str:
    """A line for a GPU that computes in float32 although it has a faster type; else nothing."""
    if device.type != "cuda" or dtype != "float32":
        return ""
    faster = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    name = torch.cuda.get_device_name(device)
    return f"note: float32 on {name}; --dtype {faster} is faster there, and less exact (docs/inference.md)"


def load_trained(
    name_or_path: str, trust_remote_code: bool = False, **kwargs: Any
) -> tuple[Any, SequenceFeatureExtractor]:
    """Loads an audio-classification model that is ready for use, in eval mode, and its feature extractor.

    Raises:
        ValueError: as `load_classifier`, and if the checkpoint has no trained classifier.
    """
    model, new = load_classifier(name_or_path, trust_remote_code, **kwargs)
    if new:
        raise ValueError(f"{name_or_path} has no trained classifier: it lacks {new[0]} ({len(new)} such weights)")
    extractor = load_feature_extractor(name_or_path, model.config, trust_remote_code)
    if extractor.model_input_names[0] != model.main_input_name:
        given, taken = extractor.model_input_names[0], model.main_input_name
        what = f"preprocessor_config.json is of a {type(extractor).__name__}, which gives {given}"
        raise ValueError(f"{name_or_path}: {what}; the model takes {taken}; take both anew")
    if isinstance(model, Wav2Vec2EmotionForSequenceClassification):
        extractor.return_attention_mask = False  # its mean takes padding in: a batch is of windows of one length
    return model.eval(), extractor


def load_classifier(name_or_path: str, trust_remote_code: bool = False, **kwargs: Any) -> tuple[Any, list[str]]:
    """Loads any audio-classification model; ours with the classes of this package, whatever code lies beside it.

    Args:
        name_or_path: Hub id or folder.
        trust_remote_code: whether code that the folder or repo brings may run, and kernels that it names be fetched.
        kwargs: for `from_pretrained`; of no account for an ONNX model.

    Returns:
        The model, a `PreTrainedModel` or an `OnnxClassifier`, which can be called as one; and the names of the weights
        that its checkpoint lacks or has in another shape: these are new.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
        ImportError: if it is an ONNX model, and onnxruntime is not installed.
        ValueError: if it is no audio classification model, its weights cannot be read, or it needs code of its own.
    """
    config = read_config(name_or_path, trust_remote_code)
    if "onnx" in config:
        return load_onnx(name_or_path), []
    loader: Any = AutoModelForAudioClassification
    if config.get("architectures") == ["Wav2Vec2ForSpeechClassification"]:
        loader = Wav2Vec2EmotionForSequenceClassification  # AutoModel would put a new head in the place of its own
    reshape = kwargs.pop("ignore_mismatched_sizes", False)
    kwargs |= {"trust_remote_code": trust_remote_code, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading(name_or_path, "config.json cannot be used"):
        plain = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    check_size(name_or_path, plain, trust_remote_code)
    with loading(name_or_path, "the model cannot be loaded"):
        model, report = loader.from_pretrained(name_or_path, **kwargs)
    published = [name for name in report["unexpected_keys"] if ".gate_bb_linear." in name]
    if published:
        raise ValueError(f"{name_or_path} cannot be loaded: it {misfit((), published)}")
    # Names with both shapes, but bare names before transformers 5.
    reshaped = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if reshaped and not reshape:
        many = f"{reshaped[0]} has another shape ({len(reshaped)} such weights)"
        raise ValueError(f"{name_or_path}: the weights are not those of its config.json: {many}; take both anew")
    return model, sorted([*report["missing_keys"], *reshaped])


def read_config(name_or_path: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Returns a checkpoint's configuration as its file has it.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
        ValueError: if it is none, is of a model without end, or names a kernel of the Hub, which is code.
    """
    if Path(name_or_path).is_dir() and not Path(name_or_path, "config.json").is_file():
        below = Path(name_or_path, "model")  # of a run
        remedy = f"; the run's model is in {below}" if (below / "config.json").is_file() else ""
        raise OSError(f"{name_or_path} is no model folder: it lacks config.json{remedy}")
    with loading(name_or_path, "config.json cannot be read"):
        values = PretrainedConfig.get_config_dict(name_or_path)[0]
    if not isinstance(values, dict):
        raise OSError(f"{name_or_path}: config.json is {values!r}, no table of fields")
    check_config(values, f"{name_or_path}: config.json", trust_remote_code)
    with loading(name_or_path, "adapter_config.json cannot be used"):
        adapter = find_adapter_config_file(name_or_path) if is_peft_available() else None
        base = read_table(adapter).get("base_model_name_or_path") if adapter else None
    if base and base != name_or_path:  # whose configuration is taken instead
        with loading(base, "config.json cannot be read"):
            of_base = PretrainedConfig.get_config_dict(base)[0]
        where = f"{base}, which {name_or_path}: adapter_config.json names: config.json"
        check_config(of_base, where, trust_remote_code)
    return values


def check_config(values: Mapping[str, Any], where: str, trust_remote_code: bool = False) -> None:
    """Raises ValueError, which begins with `where`, for what must not get as far as building a model."""
    for name, most in LARGEST.items():
        if isinstance(values.get(name), int | float) and values[name] > most:
            raise ValueError(f"{where}: {name} is {values[name]!r}; at most {most:,} are possible")
    strides = values.get("conv_stride")
    whole = isinstance(strides, list) and all(type(stride) is int for stride in strides)
    if whole and math.prod(strides) < FEWEST_SAMPLES_A_FRAME:
        raise ValueError(
            f"{where}: conv_stride is {strides!r}, whose product, the samples a frame, is {math.prod(strides)}; at "
            f"least {FEWEST_SAMPLES_A_FRAME} are needed"
        )
    for name, value in values.items():
        if "attn_implementation" in name and not trust_remote_code:
            for kind in value.values() if isinstance(value, Mapping) else [value]:
                if kind not in (None, *ATTENTION):
                    raise ValueError(
                        f"{where}: {name} is {value!r}, which may be code from the Hub; take it out, write "
                        f"{', '.join(ATTENTION)}, or give --trust-remote-code"
                    )
        elif isinstance(value, Mapping):
            check_config(value, where, trust_remote_code)


def check_size(name_or_path: str, config: PretrainedConfig, trust_remote_code: bool = False) -> None:
    """Raises ValueError for the configuration of a model that is far larger than the weights beside it, or than any.

    What a checkpoint lacks, or has in another shape, is made new, whatever memory that takes.
    """
    folder, stored = Path(name_or_path), 0
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        stored = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    most, why = LARGEST_MODEL, "no speech model has so many"
    if stored:
        most, why = SPARE_PARAMETERS + MOST_A_BYTE * stored, f"the weights there have {stored:,} bytes"
    layers = getattr(config, "num_hidden_layers", 0)
    if stored and layers > max(stored, SMALL_BYTES) / FEWEST_BYTES_A_LAYER:
        raise ValueError(f"{name_or_path}: config.json is of a model of {layers:,} layers; {why}; take both anew")
    try:
        with torch.random.fork_rng([]), torch.device("meta"):
            model = AutoModelForAudioClassification.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # loading says what is wrong
        return
    parameters = model.num_parameters()
    if parameters > most:
        what = f"config.json is of a model of {parameters:,} parameters"
        raise ValueError(f"{name_or_path}: {what}; {why}; take both anew")


@contextlib.contextmanager
def loading(name_or_path: str, problem: str) -> Iterator[None]:
    """Turns whatever loading raises into an error of one line that names the model, and how to mend it."""
    try:
        with named_errors(f"{name_or_path}: {problem}", "get the model anew, or mend that"):
            yield
    except OSError as error:
        raise not_found(name_or_path, error) from error
    except ImportError as error:  # of a quantised model
        raise ImportError(f"{name_or_path}: {problem} ({one_line(error)})") from error
    except ValueError as error:
        if "trust_remote_code" not in str(error.__cause__):
            raise
        raise ValueError(
            f"{name_or_path} needs code of its own (auto_map in its JSON files), which does not run unasked; read it, "
            "and give --trust-remote-code (in Python trust_remote_code=True) to let it run"
        ) from error


def not_found(name_or_path: str, error: Exception) -> OSError:
    """The error of a name that is neither a folder nor to be had from the Hub; it tells "no" from "not asked"."""
    if Path(name_or_path).is_dir():
        return OSError(f"{name_or_path} is no model folder ({first_line(error)})")
    if isinstance(error, LocalEntryNotFoundError) or isinstance(error.__cause__, LocalEntryNotFoundError):
        return OSError(f"{name_or_path}: no such folder or cached model, and the Hub could not be asked for one")
    return OSError(f"{name_or_path}: no such folder, and no such model on the Hub ({first_line(error)})")


def make_feature_extractor(
    config: PretrainedConfig, window_seconds: float = WINDOW_SECONDS
) -> SequenceFeatureExtractor:
    """Returns the feature extractor of a model, with its window as `window_seconds`.

    Models of waveforms get ours; a Whisper, an AST and a wav2vec 2.0 BERT the one that turns audio into their
    spectrogram. Of these a bare call pads to the model's input, but does not cut to the window.

    Raises:
        ValueError: if the window is not one of 0.1 to 600 s, or longer than the model's input.
    """
    if not WINDOWS[0] <= window_seconds <= WINDOWS[1]:
        shortest, most = WINDOWS
        raise ValueError(f"window_seconds is {window_seconds}; it must be from {shortest:g} to {most:g}")
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


def load_feature_extractor(
    name_or_path: str, config: PretrainedConfig, trust_remote_code: bool = False
) -> SequenceFeatureExtractor:
    """Returns the feature extractor that a model's folder or Hub repo has; where it has none, our model's.

    Raises:
        ValueError: if its file cannot be read, says another rate than 16 kHz, or needs code of its own.
    """
    unreadable = "preprocessor_config.json cannot be read"
    try:
        with named_errors(f"{name_or_path}: {unreadable}", "get it anew"):
            values, _ = FeatureExtractionMixin.get_feature_extractor_dict(name_or_path)
            if "window_seconds" in values:
                return make_feature_extractor(config, float(values["window_seconds"]))
    except OSError as error:
        if "not a valid JSON" in str(error):
            raise ValueError(f"{name_or_path}: {unreadable} ({error})") from error
        return make_feature_extractor(config)
    with loading(name_or_path, "preprocessor_config.json cannot be used"):
        extractor = AutoFeatureExtractor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        seconds = longest_input_seconds(extractor)
    if not WINDOWS[0] <= seconds <= WINDOWS[1]:
        raise ValueError(
            f"{name_or_path}: preprocessor_config.json is of windows of {seconds:g} s; from {WINDOWS[0]:g} to "
            f"{WINDOWS[1]:g} s are possible"
        )
    if extractor.sampling_rate != SAMPLING_RATE:
        raise ValueError(
            f"{name_or_path} hears {extractor.sampling_rate} Hz; only models of {SAMPLING_RATE} Hz run here"
        )
    return extractor
