"""Configuration of ExHuBERT: a HuBERT whose encoder layers stand beside trainable copies of themselves.

The fields are HuBERT's; what is added is `num_copies`, `gate_original_layers`, `calibration_temperature` and
`dimensions`. The defaults are those of the published 48-layer model (HuBERT Large, one copy of each layer, six
classes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import HubertConfig

# Arousal/valence, in the class order of the published model (its model card).
SIX_CLASSES = ("low/negative", "low/neutral", "low/positive", "high/negative", "high/neutral", "high/positive")
QUADRANT = ("arousal", "valence")  # what the parts of these names say
# What a folder with all of its code says, for `transformers` to find the classes: in `auto_map` and `custom_pipelines`.
AUTO_MAP = {
    "AutoConfig": "configuration_exhubert.ExHuBERTConfig",
    "AutoModel": "modeling_exhubert.ExHuBERTModel",
    "AutoModelForAudioClassification": "modeling_exhubert.ExHuBERTForSequenceClassification",
}
PIPELINE_TASK = "speech-emotion-recognition"
CUSTOM_PIPELINES: dict[str, dict[str, Any]] = {
    PIPELINE_TASK: {
        "impl": "pipeline_exhubert.ExHuBERTPipeline",
        "pt": ["AutoModelForAudioClassification"],
        "tf": [],
        "type": "audio",
    }
}
CODE_FILES = (
    *("configuration_exhubert.py", "modeling_exhubert.py", "audio_exhubert.py", "segments_exhubert.py"),
    "pipeline_exhubert.py",
)
LARGEST = {"num_hidden_layers": 10_000, "num_labels": 10_000}  # of more, building the model does not end
REGRESSION = "regression"  # the problem_type of a model whose logits are dimensions
_LABEL_FIELDS = {"num_labels", "id2label", "label2id"}


class ExHuBERTConfig(HubertConfig):
    """Configuration of [`ExHuBERTModel`] and [`ExHuBERTForSequenceClassification`].

    Args:
        num_hidden_layers: every encoder layer, originals and copies (48).
        num_copies: copies after each original layer. 1 is ExHuBERT, 2 is ExHuBERT XLarge (paper, Table 2),
            0 is a plain HuBERT.
        gate_original_layers: whether the original layers end in a linear layer as well, which starts as the
            identity (the layout of the published checkpoint).
        hidden_size, num_attention_heads, intermediate_size, feat_extract_norm, conv_bias,
            do_stable_layer_norm, classifier_proj_size: as in `HubertConfig`; the defaults are HuBERT Large's.
        layerdrop: probability of skipping a layer in training; 0 wherever there are copies.
        calibration_temperature: what the pipeline and the evaluation divide logits by before the softmax; found by
            `evaluate_hf.py --calibrate`. The model's own logits are not changed.
        dimensions: what the model answers as numbers, `{"arousal": [1, 7]}`: each with the scale, lowest and highest
            value, on which answers are shown; the model's own outputs are on 0 to 1. Beside classes they have a head
            of their own, in the order of their names; with `problem_type="regression"` they are all that the model
            answers, and `id2label` is their names.
        kwargs: every other field of `HubertConfig`. Without `num_labels`, `id2label` or `label2id` the labels
            are the six arousal/valence classes, or the dimensions where these are alone.

    Raises:
        ValueError: for a value of another kind, a layer count above 10,000 or that is no multiple of `num_copies + 1`,
            a negative `num_copies`, LayerDrop together with copies, a temperature that is not above 0, a scale that is
            not two numbers of which the second is larger, or a dimension of a class's name.
    """

    model_type = "exhubert"

    def __init__(
        self,
        num_hidden_layers: int = 48,
        num_copies: int = 1,
        gate_original_layers: bool = False,
        hidden_size: int = 1024,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,
        feat_extract_norm: str = "layer",
        conv_bias: bool = True,
        do_stable_layer_norm: bool = True,
        classifier_proj_size: int = 256,
        layerdrop: float = 0.0,
        calibration_temperature: float = 1.0,
        dimensions: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_num_copies(num_copies)
        sizes = {
            "num_hidden_layers": num_hidden_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "classifier_proj_size": classifier_proj_size,
            "num_labels": 1 if kwargs.get("num_labels") is None else kwargs["num_labels"],
        }
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST.get(name, 2**31):
                most = f", at most {LARGEST[name]:,}" if name in LARGEST else ""
                raise ValueError(f"{name} is {value!r}; it must be a whole number above 0{most}")
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            value = kwargs.get(name)
            if isinstance(value, list | tuple) and not all(type(each) is int and each > 0 for each in value):
                raise ValueError(f"{name} is {value!r}; whole numbers above 0 are needed")
        for name, value in {"gate_original_layers": gate_original_layers, "conv_bias": conv_bias}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; it must be true or false")
        if isinstance(layerdrop, bool) or not isinstance(layerdrop, int | float) or not 0 <= layerdrop < 1:
            raise ValueError(f"layerdrop is {layerdrop!r}; it must be a number from 0 to below 1")
        if num_hidden_layers % (num_copies + 1):
            raise ValueError(
                f"num_hidden_layers is {num_hidden_layers}, which counts originals and copies: with "
                f"num_copies={num_copies} it must be a multiple of {num_copies + 1}"
            )
        if num_copies and layerdrop:
            raise ValueError(
                f"layerdrop is {layerdrop}; it must be 0 with copies: a skipped copy gets no gradient, and a "
                "skipped original changes the function that its copy extends"
            )
        if not isinstance(calibration_temperature, int | float) or not calibration_temperature > 0:
            raise ValueError(f"calibration_temperature is {calibration_temperature!r}; a number above 0 is needed")
        dimensions = checked_scales({} if dimensions is None else dimensions)
        alone = bool(dimensions) and kwargs.get("problem_type") == REGRESSION
        if not any(kwargs.get(name) is not None for name in _LABEL_FIELDS):
            kwargs["id2label"] = dict(enumerate(dimensions if alone else SIX_CLASSES))
        if kwargs.get("label2id") and not kwargs.get("id2label"):
            kwargs["id2label"] = {int(index): name for name, index in kwargs["label2id"].items()}
        if kwargs.get("id2label") and not kwargs.get("label2id"):
            kwargs["label2id"] = {name: int(index) for index, name in kwargs["id2label"].items()}
        super().__init__(
            num_hidden_layers=num_hidden_layers,
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            feat_extract_norm=feat_extract_norm,
            conv_bias=conv_bias,
            do_stable_layer_norm=do_stable_layer_norm,
            classifier_proj_size=classifier_proj_size,
            layerdrop=layerdrop,
            **kwargs,
        )
        self.num_copies = num_copies
        self.gate_original_layers = gate_original_layers
        self.calibration_temperature = calibration_temperature
        self.dimensions = dimensions
        _check_names(dimensions, list(self.id2label.values()), alone)

    @classmethod
    def from_hubert_config(
        cls, config: HubertConfig, num_copies: int = 1, gate_original_layers: bool = False, **kwargs: Any
    ) -> ExHuBERTConfig:
        """Returns the configuration of `config`'s model with `num_copies` copies of each encoder layer.

        `config` is not changed. LayerDrop is switched off where there are copies. Labels are kept where the
        source has a classification head or names them, else they are the six classes; `kwargs` set any other
        field.
        """
        _check_num_copies(num_copies)
        ours = config.model_type == cls.model_type and not config.num_copies
        if config.model_type != "hubert" and not ours:
            raise ValueError(f"model_type is {config.model_type!r}; only a 'hubert' configuration can be expanded")
        values = config.to_dict()
        own = ("num_copies", "gate_original_layers")
        for name in ("model_type", "architectures", "auto_map", "transformers_version", "num_labels", *own):
            values.pop(name, None)
        # Labels that mean something, not those that every configuration without a head carries.
        has_head = any("SequenceClassification" in name for name in config.architectures or ())
        named = has_head or config.id2label != {0: "LABEL_0", 1: "LABEL_1"}
        alone = bool(kwargs.get("dimensions")) and kwargs.get("problem_type") == REGRESSION
        if not named or alone or _LABEL_FIELDS & kwargs.keys():
            values.pop("id2label", None)
            values.pop("label2id", None)
        values["num_hidden_layers"] = config.num_hidden_layers * (num_copies + 1)
        if num_copies:
            values["layerdrop"] = 0.0
        values.update(kwargs)
        return cls(num_copies=num_copies, gate_original_layers=gate_original_layers, **values)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PretrainedConfig.from_dict`, but refuses another architecture instead of scrambling its layers."""
        cls.refuse_other_architecture(config_dict)
        if "dimensions" in kwargs:  # transformers would set these fields one by one, unchecked
            names = (_LABEL_FIELDS | {"dimensions", "problem_type"}) & kwargs.keys()
            given = {name: kwargs.pop(name) for name in names}
            new_labels = names & _LABEL_FIELDS or given.get("problem_type") == REGRESSION
            replaced = _LABEL_FIELDS if new_labels else set()
            config_dict = {name: value for name, value in config_dict.items() if name not in replaced} | given
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def refuse_other_architecture(cls, values: dict[str, Any]) -> None:
        """Raises ValueError, with the remedy, if `values` are the configuration of something else."""
        model_type = values.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            remedy = (
                "use `from_hubert`, or `exhubert convert hubert`, which expand it (`exhubert convert published` if it "
                "is the published ExHuBERT)"
                if model_type == "hubert"
                else "load it with its own class"
            )
            raise ValueError(f"this is a {model_type!r} checkpoint, not an 'exhubert' one: {remedy}")

    def to_diff_dict(self) -> dict[str, Any]:
        """As `PretrainedConfig.to_diff_dict`, labels always included: two unnamed ones would be left out as default."""
        return {**super().to_diff_dict(), "id2label": dict(self.id2label), "label2id": dict(self.label2id)}


def class_names_of_config(config: Any) -> list[str]:
    """Returns the names of a model's classes, in the order of its logits; none where its logits are dimensions.

    Args:
        config: of any audio-classification model, or its `config.json` as a dict.
    """
    return [] if _field(config, "problem_type") == REGRESSION else _output_names(config)


def dimensions_of_config(config: Any) -> dict[str, list[float]]:
    """Returns a model's dimensions, in the order of its outputs, each with the lowest and highest value of its scale.

    They are empty for a model of classes alone. A regression model of others, such as audEERING's, is on 0 to 1.

    Args:
        config: as in `class_names_of_config`.
    """
    scales = _field(config, "dimensions") or {}
    if _field(config, "problem_type") == REGRESSION:
        return {name: list(scales.get(name, (0.0, 1.0))) for name in _output_names(config)}
    return {name: list(scales[name]) for name in sorted(scales)}  # config.json does not keep another order


def checked_scales(scales: Any) -> dict[str, list[float]]:
    """Returns dimensions and their scales as numbers, in the order of their names.

    Raises:
        ValueError: for what is no table of names and scales `[lowest, highest]`.
    """
    if not isinstance(scales, Mapping) or not all(isinstance(name, str) and name.strip() for name in scales):
        raise ValueError(f"dimensions is {scales!r}; a table of names and scales such as arousal: [1, 7] is needed")
    for name, scale in scales.items():
        pair = isinstance(scale, list | tuple) and len(scale) == 2
        if not pair or not all(type(end) in (int, float) and math.isfinite(end) for end in scale):
            raise ValueError(f"the scale of {name!r} is {scale!r}; its lowest and highest value are needed, as [1, 7]")
        if not scale[0] < scale[1]:
            raise ValueError(f"the scale of {name!r} is {list(scale)}; the second value must be above the first")
    return {name: [float(end) for end in scales[name]] for name in sorted(scales)}


def _check_names(dimensions: Mapping[str, Any], labels: list[str], alone: bool) -> None:
    """Refuses labels that are not the dimensions where these are alone, or one of them where they are beside these."""
    if alone and set(labels) != set(dimensions):
        raise ValueError(
            f"dimensions are {', '.join(dimensions)}, and id2label names {', '.join(labels)}: with "
            f"problem_type={REGRESSION!r} they are the same; leave id2label out, or problem_type for both"
        )
    if not alone and set(labels) & set(dimensions):
        raise ValueError(f"dimensions has {min(set(labels) & set(dimensions))!r}, which is a class; rename one of them")


def _field(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _output_names(config: Any) -> list[str]:
    named = {int(index): name for index, name in (_field(config, "id2label") or {}).items()}
    return [named[index] for index in sorted(named)]


def _check_num_copies(num_copies: Any) -> None:
    if isinstance(num_copies, bool) or not isinstance(num_copies, int) or num_copies < 0:
        raise ValueError(f"num_copies is {num_copies!r}; it must be 0, 1, 2 or more copies of each layer")


ExHuBERTConfig.register_for_auto_class()
