"""Configuration of ExHuBERT: a HuBERT whose encoder layers stand beside trainable copies of themselves.

The fields are HuBERT's; what is added is `num_copies` and `gate_original_layers`. The defaults are those of
the published 48-layer model (HuBERT Large, one copy of each layer, six classes).
"""

from __future__ import annotations

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
CODE_FILES = ("configuration_exhubert.py", "modeling_exhubert.py", "audio_exhubert.py", "pipeline_exhubert.py")
LARGEST = {"num_hidden_layers": 10_000, "num_labels": 10_000}  # of more, building the model does not end
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
        kwargs: every other field of `HubertConfig`. Without `num_labels`, `id2label` or `label2id` the labels
            are the six arousal/valence classes.

    Raises:
        ValueError: for a value of another kind, a layer count above 10,000 or that is no multiple of `num_copies + 1`,
            a negative `num_copies`, LayerDrop together with copies, or a temperature that is not above 0.
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
        if not any(kwargs.get(name) is not None for name in _LABEL_FIELDS):
            kwargs["id2label"] = dict(enumerate(SIX_CLASSES))
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
        if config.model_type != "hubert":
            raise ValueError(f"model_type is {config.model_type!r}; only a 'hubert' configuration can be expanded")
        values = config.to_dict()
        for name in ("model_type", "architectures", "auto_map", "transformers_version", "num_labels"):
            values.pop(name, None)
        # Labels that mean something, not those that every configuration without a head carries.
        has_head = any("SequenceClassification" in name for name in config.architectures or ())
        named = has_head or config.id2label != {0: "LABEL_0", 1: "LABEL_1"}
        if not named or _LABEL_FIELDS & kwargs.keys():
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


def _check_num_copies(num_copies: Any) -> None:
    if isinstance(num_copies, bool) or not isinstance(num_copies, int) or num_copies < 0:
        raise ValueError(f"num_copies is {num_copies!r}; it must be 0, 1, 2 or more copies of each layer")


ExHuBERTConfig.register_for_auto_class()
