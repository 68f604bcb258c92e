"""ONNX exports of audio-classification models, run by onnxruntime in the place of the models that they were made of.

An ONNX model folder, which `exhubert convert onnx` writes, is a model folder with `model.onnx` in the place of the
weights (those of a large model in `model.onnx.data`), and with what the export knows in `config.json` under `onnx`:
`int8`, `parameters` of the model that was exported, and its `layer_weights`, if it has a weighted layer sum.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PretrainedConfig

from exhubert.modeling_exhubert import EmotionOutput

ONNX_FILE = "model.onnx"
NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")  # else onnxruntime tells Microsoft of its use, from the import on
INSTALL = "pip install onnx onnxruntime onnxscript (or exhubert[onnx])"
LOGITS, DIMENSIONS, HIDDEN_STATES = "logits", "dimensions", "hidden_states"  # the names of outputs, or their beginning


class OnnxClassifier(torch.nn.Module):
    """An ONNX model that behaves as the model of transformers that it was made of does for inference.

    It computes in float32 on the CPU, on as many threads as torch does when it is loaded. It has no parameters: moving
    it to another device or changing its mode does nothing.

    Args:
        file: the ONNX model.
        config: of the model, with what the export knows in `onnx`.

    Raises:
        ImportError: without onnxruntime.
        ValueError: if the file cannot be loaded.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, file: Path, config: PretrainedConfig) -> None:
        super().__init__()
        os.environ.setdefault(*NO_TELEMETRY)
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(f"{file} needs onnxruntime: {INSTALL}") from error
        self.file, self.config = file, config
        self.int8 = bool(config.onnx["int8"])
        weights = config.onnx.get("layer_weights")
        self.layer_weights = None if weights is None else torch.tensor(weights)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no other base
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: the ONNX model cannot be loaded ({reason})") from error
        self.main_input_name = self.session.get_inputs()[0].name
        outputs = [output.name for output in self.session.get_outputs()]
        self.answer_names = [name for name in outputs if name in (LOGITS, DIMENSIONS)]
        self.state_names = [name for name in outputs if name.startswith(HIDDEN_STATES)]

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        input_features: torch.Tensor | None = None,
    ) -> EmotionOutput:
        """Classifies audio.

        Args:
            input_values: what the feature extractor makes of windows, `(batch, samples)`; of a model of spectrograms
                as well, where it is the first argument.
            attention_mask: refused: windows of several lengths go through one length at a time.
            output_hidden_states: whether to return `hidden_states`.
            input_features: spectrograms `(batch, ...)`, by their name.

        Returns:
            `logits` `(batch, num_labels)`, `dimensions` `(batch, dimensions)` of a model that has them beside its
            classes, and, if asked for, `hidden_states`, those of the model that was exported, `(batch, frames,
            hidden_size)` each; float32.

        Raises:
            ValueError: for an attention mask, NaN or infinite input, or a shape that the model does not take.
        """
        if attention_mask is not None:
            raise ValueError("an ONNX model takes no attention_mask: give it windows of one length at a time")
        inputs = input_values if input_features is None else input_features
        if inputs is None or 0 in inputs.shape:
            shape = None if inputs is None else tuple(inputs.shape)
            raise ValueError(f"{self.main_input_name} has shape {shape}; a batch of windows is needed")
        if not bool(torch.isfinite(inputs).all()):
            raise ValueError(f"{self.main_input_name} holds NaN or infinite values; remove or repair such audio first")
        names = [*self.answer_names, *(self.state_names if output_hidden_states else [])]
        # In int8 activations are scaled by the largest in the batch: alone, a window's answer is always the same.
        batches = inputs.to(self.device, self.dtype).split(1 if self.int8 else len(inputs))
        try:
            outputs = [self.session.run(names, {self.main_input_name: batch.numpy()}) for batch in batches]
        except Exception as error:  # its errors have no other base
            reason = f"{self.main_input_name} of shape {tuple(batches[0].shape)} ({' '.join(str(error).split())})"
            raise ValueError(f"the ONNX model does not take {reason}") from error
        arrays = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True))
        values = dict(zip(names, arrays, strict=True))
        if tuple(values[LOGITS].shape) != (len(inputs), self.config.num_labels):
            shape, labels = tuple(values[LOGITS].shape), self.config.num_labels
            raise ValueError(f"{self.file}: the answers have shape {shape}, and config.json names {labels} of a window")
        answers = {name: values.pop(name) for name in self.answer_names}
        return EmotionOutput(**answers, hidden_states=tuple(values.values()) or None)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Returns the number of parameters of the model that was exported; none of them can be trained here."""
        return 0 if only_trainable else int(self.config.onnx["parameters"])

    def can_generate(self) -> bool:
        """False; transformers' pipelines ask."""
        return False


def load_onnx(name_or_path: str) -> OnnxClassifier:
    """Loads an ONNX model folder.

    Args:
        name_or_path: folder or Hub id.

    Raises:
        OSError: if it is neither a folder nor to be had from the Hub.
        ImportError: without onnxruntime.
        ValueError: if it lacks the ONNX model, or that cannot be loaded.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(name_or_path, allow_patterns=["*.json", f"{ONNX_FILE}*"]))
    if not (folder / ONNX_FILE).is_file():
        raise ValueError(f"{name_or_path} is no ONNX model folder: it lacks {ONNX_FILE}")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(config.onnx, dict) or not {"int8", "parameters"} <= config.onnx.keys():
        raise ValueError(f"{name_or_path}: `onnx` in config.json is {config.onnx!r}; export the model anew")
    return OnnxClassifier(folder / ONNX_FILE, config)
