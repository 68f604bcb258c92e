"""ExHuBERT: HuBERT with backbone block expansion (Interspeech 2024, section 3.2), for speech emotion recognition.

What differs from `transformers`' HuBERT:

- after each encoder layer stand `num_copies` copies of it; a copy ends in a linear layer that starts at zero
  (ZLL) and a skip connection carries its input past it: `h = original(h)`, `h = h + ZLL(copy(h))`. At expansion
  the model therefore computes, bit for bit, what the HuBERT before it computed;
- `freeze_og_encoder()` freezes the original layers;
- with `gate_original_layers` the originals end in a linear layer too, which starts as the identity;
- `config.dimensions` are answered beside the classes, by a head of their own, or alone, as a regression;
- `hidden_states[-1]` is `last_hidden_state`, after the final layer norm, on every release of transformers
  (from 5.16 on HuBERT's own is the state before it), and `use_weighted_layer_sum` weighs these states;
- SpecAugment leaves padding alone and takes clips shorter than its span; attentions that the attention
  implementation does not give are an error, not None;
- `set_fast_path()` computes nearly the same in less time on a CPU; without it nothing is computed otherwise.
"""

from __future__ import annotations

import copy
import functools
import math
import re
import types
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.hubert.modeling_hubert import (
    HubertEncoderLayer,
    HubertEncoderLayerStableLayerNorm,
    HubertPreTrainedModel,
    _compute_mask_indices,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .audio_exhubert import ExHuBERTFeatureExtractor
from .configuration_exhubert import AUTO_MAP, CUSTOM_PIPELINES, PIPELINE_TASK, REGRESSION, ExHuBERTConfig
from .fast_path_exhubert import FAST_MODULES, FastLinear
from .pipeline_exhubert import ExHuBERTPipeline
from .segments_exhubert import Turn  # noqa: F401 - transformers 4.57 copies the files that this one names, and no others

try:
    from transformers.utils.output_capturing import maybe_install_capturing_hooks
except ImportError:  # older releases collect hidden states without hooks
    maybe_install_capturing_hooks = None


class ZeroLinear(nn.Linear):
    """The linear layer at the end of a copy; a new one is zero (paper, section 3.2)."""


class IdentityLinear(nn.Linear):
    """The linear layer at the end of an original with `gate_original_layers`; a new one is the identity."""


class Copy(nn.Module):
    """A copy of the layer before it: `h + ZLL(layer(h))`. At expansion the `ZeroLinear` is zero, so it adds nothing."""

    def __init__(self, config: ExHuBERTConfig) -> None:
        super().__init__(config)
        self.zero_linear = ZeroLinear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(hidden_states, *args, **kwargs)
        if isinstance(outputs, tuple):  # releases before 5.16
            return hidden_states + self.zero_linear(outputs[0]), *outputs[1:]
        return hidden_states + self.zero_linear(outputs)


class GatedOriginal(nn.Module):
    """An original layer as the published code has it: it ends in an `IdentityLinear`."""

    def __init__(self, config: ExHuBERTConfig) -> None:
        super().__init__(config)
        self.identity_linear = IdentityLinear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(hidden_states, *args, **kwargs)
        if isinstance(outputs, tuple):  # releases before 5.16
            return self.identity_linear(outputs[0]), *outputs[1:]
        return self.identity_linear(outputs)


class PostNormCopy(Copy, HubertEncoderLayer):
    """Copy of a layer of HuBERT Base (layer norm after attention and feed-forward)."""


class PostNormGatedOriginal(GatedOriginal, HubertEncoderLayer):
    """Gated original of HuBERT Base."""


class PreNormCopy(Copy, HubertEncoderLayerStableLayerNorm):
    """Copy of a layer of HuBERT Large (layer norm before attention and feed-forward)."""


class PreNormGatedOriginal(GatedOriginal, HubertEncoderLayerStableLayerNorm):
    """Gated original of HuBERT Large."""


class ExHuBERTPreTrainedModel(HubertPreTrainedModel):
    """What [`ExHuBERTModel`] and [`ExHuBERTForSequenceClassification`] share: loading, freezing, new weights."""

    config: ExHuBERTConfig
    config_class = ExHuBERTConfig
    base_model_prefix = "hubert"
    source_class: type[HubertPreTrainedModel]

    def freeze_og_encoder(self) -> None:
        """Freezes the original encoder layers (paper, section 3.2); copies and everything else stay as they are."""
        layers = self.base_model.encoder.layers
        for layer in layers[:: self.config.num_copies + 1]:
            layer.requires_grad_(False)

    def freeze_feature_encoder(self) -> None:
        """Freezes the CNN feature encoder (paper, section 4.1); it is then computed without a graph."""
        self.base_model.feature_extractor._freeze_parameters()

    def set_fast_path(self, enabled: bool = True) -> None:
        """Computes the same faster, in float32 on the CPU; elsewhere nothing changes. Not saved with the model.

        Matrix products are oneDNN's instead of MKL's. A frozen CNN is computed channels last, so that its convolutions
        are matrix products without copies. Logits differ by less than 1e-5. In training, dropout draws four of its
        decisions from one random number, and keeps a byte of each; from the same seed it draws others. Gradients of
        gradients are not computed: torch raises.
        """
        for module in self.modules():
            for plain, fast in FAST_PATH.items():
                if type(module) is (plain if enabled else fast):
                    module.__class__ = fast if enabled else plain

    def compile_layers(self, **kwargs: Any) -> None:
        """Compiles the encoder layers: one graph for the originals and one for the copies, whatever their number.

        Shapes are static: an input of another batch size or length is compiled anew, until torch has as many graphs as
        it keeps (8, so of four shapes, training and eval apart); from then on a new one is computed without. Attentions
        are not returned any more. Not saved with the model, and not undone.

        Args:
            kwargs: for `torch.compile`, such as `mode`.
        """
        for layer in self.base_model.encoder.layers:
            layer.attention._forward_hooks.clear()  # which would collect attentions, and cannot be compiled
            compiled = torch.compile(type(layer).forward, **{"dynamic": False, **kwargs})
            layer.forward = types.MethodType(compiled, layer)  # of a deep copy it is the copy's

    def print_trainable_parameters(self) -> None:
        """Prints how many parameters are trained, of how many; a method of the published model."""
        trained, total = self.num_parameters(only_trainable=True), self.num_parameters()
        share = 100 * trained / total
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {share:.2f}")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; all that `config.json` names is in the folder.

        transformers copies the modules that this one imports, and would name the class alone that is saved.
        """
        self.config.auto_map, self.config.custom_pipelines = dict(AUTO_MAP), CUSTOM_PIPELINES
        super().save_pretrained(*args, **kwargs)

    def post_init(self) -> None:
        # Of each model its own layers: FSDP refuses names that do not occur in it.
        layers = {type(layer).__name__ for layer in self.base_model.encoder.layers}
        self._no_split_modules = [*sorted(layers), "HubertPositionalConvEmbedding"]
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By `nn.init` alone: on loading, transformers keeps it away from the tensors that the checkpoint has.
        if isinstance(module, IdentityLinear | ZeroLinear):
            start = nn.init.eye_ if isinstance(module, IdentityLinear) else nn.init.zeros_
            start(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ExHuBERTForSequenceClassification):
            if hasattr(module, "layer_weights"):
                nn.init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))
        elif isinstance(module, parametrize.ParametrizationList):
            # The positional convolution under weight norm, direction and magnitudes. HuBERT writes its start into
            # the weight that is computed from them, where it is lost.
            direction, magnitudes = module.get_parameter("original1"), module.get_parameter("original0")
            nn.init.kaiming_normal_(direction)
            nn.init.constant_(magnitudes, math.sqrt(2 * direction.shape[0] / direction.shape[2]))
        elif isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module):
            nn.init.zeros_(module.get_parameter("bias"))
        else:
            super()._init_weights(module)

    @classmethod
    def from_hubert(
        cls,
        name_or_path: str,
        num_copies: int = 1,
        gate_original_layers: bool = False,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        dimensions: Mapping[str, Any] | None = None,
        problem_type: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a HuBERT checkpoint and expands it; in eval mode the result computes exactly what it computed.

        Args:
            name_or_path: Hub id or folder of a `HubertModel`, `HubertForCTC` (its head is dropped) or
                `HubertForSequenceClassification` (head, labels and layer weights are kept), or of ours without copies
                (both heads are kept).
            num_copies: copies after each original layer; 0 leaves a plain HuBERT.
            gate_original_layers: give the originals a linear layer as well, starting as the identity.
            num_labels, id2label, label2id: other labels than the source's; where their number differs, the
                classifier is newly initialised.
            dimensions, problem_type: as in [`ExHuBERTConfig`]; a head that the source lacks is newly initialised.
            kwargs: passed to the source's `from_pretrained` (`revision`, `token`, `dtype`, ...). Without `dtype` the
                checkpoint's own is kept.

        Raises:
            ValueError: if the checkpoint is not a HuBERT, or lacks or has weights that a HuBERT does not.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", "auto")  # transformers 4 would make it float32
        hub_options = {k: v for k, v in kwargs.items() if k not in ("dtype", "torch_dtype", "attn_implementation")}
        source_config = _read_source_config(name_or_path, **hub_options)
        source_class = cls if isinstance(source_config, ExHuBERTConfig) else cls.source_class
        labels: dict[str, Any] = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id}
        labels |= {"dimensions": dimensions, "problem_type": problem_type}
        labels = {name: value for name, value in labels.items() if value is not None}
        config = ExHuBERTConfig.from_hubert_config(source_config, num_copies, gate_original_layers, **labels)
        config.name_or_path = str(name_or_path)
        source_config.id2label, source_config.label2id = config.id2label, config.label2id

        source = _load_hubert(
            source_class, name_or_path, config=source_config, ignore_mismatched_sizes=bool(labels), **kwargs
        )
        with torch.device("meta"):
            model = cls(config)
        devices = {parameter.device for parameter in source.parameters()}
        if len(devices) > 1 or source.device.type == "meta":  # meta: offloaded
            raise ValueError(
                "from_hubert cannot spread a model over devices: use `exhubert convert hubert`, and load what that "
                "writes with from_pretrained and device_map"
            )
        dtype, device, weights = source.dtype, source.device, source.state_dict()
        del source
        same_dimensions = list(getattr(source_config, "dimensions", ())) == list(config.dimensions)
        if hasattr(model, "dimension_head") and not same_dimensions:
            head = nn.Linear(config.classifier_proj_size, len(config.dimensions), device=device, dtype=dtype)
            model._init_weights(head)
            weights |= head.state_dict(prefix=DIMENSION_HEAD)
        expanded: dict[str, torch.Tensor] = {}
        taken = set()
        for name, like in model.state_dict().items():
            tensor = expanded_weight(name, like.shape, dtype, num_copies, weights.__getitem__)
            expanded[name] = tensor.clone() if id(tensor) in taken else tensor.to(device)
            taken.add(id(tensor))
        model.load_state_dict(expanded, strict=True, assign=True)
        model.config.dtype = model.dtype
        if kwargs.get("attn_implementation"):
            model.set_attn_implementation(kwargs["attn_implementation"])
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; raises ValueError for a checkpoint of another architecture."""
        if isinstance(config, HubertConfig) and pretrained_model_name_or_path is not None:
            # A configuration that is given is not read from the checkpoint, and would hide what that is.
            options = ("revision", "token", "cache_dir", "subfolder", "local_files_only")
            hub_options = {name: kwargs[name] for name in options if name in kwargs}
            try:
                values, _ = ExHuBERTConfig.get_config_dict(pretrained_model_name_or_path, **hub_options)
            except OSError:  # weights alone
                values = {}
            ExHuBERTConfig.refuse_other_architecture(values)
        return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)


class ExHuBERTModel(ExHuBERTPreTrainedModel, HubertModel):
    """The expanded HuBERT without a head.

    Original layer `i` is `encoder.layers[i * (num_copies + 1)]`, its copies follow it.
    """

    source_class = HubertModel
    # A classifier's head.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        *(r"^projector\.", r"^classifier\.", "^layer_weights$", r"^dimension_head\.")
    ]
    bfloat16_was_tried = False  # on the CPU

    def __init__(self, config: ExHuBERTConfig) -> None:
        super().__init__(config)
        original, copy = (PostNormGatedOriginal, PostNormCopy)
        if config.do_stable_layer_norm:
            original, copy = (PreNormGatedOriginal, PreNormCopy)
        for index in range(config.num_hidden_layers):
            if index % (config.num_copies + 1):
                self.encoder.layers[index] = copy(config)
            elif config.gate_original_layers:
                self.encoder.layers[index] = original(config)
        self.post_init()
        if maybe_install_capturing_hooks is not None:
            # Else the first call that asks for hidden states installs them, which torch.compile cannot trace.
            maybe_install_capturing_hooks(self)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple[torch.Tensor, ...]:
        """Encodes audio.

        Args:
            input_values: 16 kHz mono samples, `(batch, samples)`, floating point, normalised as
                `audio_exhubert.prepare_input` does.
            attention_mask: 1 for samples, 0 for padding, `(batch, samples)`. The published model was trained
                without one.
            mask_time_indices: frames to replace by the SpecAugment vector, boolean, `(batch, frames)`. Without
                them training draws some (`mask_time_prob`), never padding.
            output_attentions: needs `attn_implementation="eager"`.
            output_hidden_states, return_dict: as in `transformers`.
            kwargs: what clients of text models pass without having it: `input_ids=None`, `inputs_embeds=None`,
                `num_items_in_batch`.

        On a GPU nothing waits for it: the values of input, mask and labels are checked on the CPU only. SpecAugment
        draws on the CPU, and needs the mask's lengths there; `mask_time_indices` spares that.

        Returns:
            `last_hidden_state` `(batch, frames, hidden_size)`; `hidden_states`, if asked for, one tensor more
            than there are layers: the first layer's input, then the state after each layer, the last one being
            `last_hidden_state`; `attentions`, if asked for, `(batch, heads, frames, frames)` for each layer.

        Raises:
            ValueError: for input of another shape or dtype, shorter than the CNN's receptive field, or with
                NaN or infinite samples; for attentions that the attention implementation does not give.
            TypeError: for any other keyword.
        """
        _check_keywords(kwargs)
        self._check_kernels(input_values.device)
        if input_values.dim() != 3 or not hasattr(self.feature_extractor, "takes_frames"):  # else they were through it
            _check_input(input_values, attention_mask, self.config)
        if return_dict is None:
            return_dict = self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError(
                f"output_attentions needs eager attention, and this model has {self.config._attn_implementation!r}: "
                'load it with attn_implementation="eager" or call model.set_attn_implementation("eager")'
            )
        augment = self.training and self.config.apply_spec_augment and self.config.mask_time_prob > 0
        if mask_time_indices is None and augment:
            mask_time_indices = draw_time_mask(input_values, attention_mask, self.config)
        outputs = super().forward(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        if outputs.hidden_states is not None:
            outputs.hidden_states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
        return outputs if return_dict else outputs.to_tuple()

    def _mask_hidden_states(
        self, hidden_states: torch.Tensor, mask_time_indices: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        # HubertModel assigns by a boolean mask, which reads the mask from the device.
        if mask_time_indices is not None and self.config.apply_spec_augment:
            shape, needed = tuple(mask_time_indices.shape), tuple(hidden_states.shape[:2])
            if shape != needed or mask_time_indices.dtype != torch.bool:
                given = f"{mask_time_indices.dtype} of shape {shape}"
                raise ValueError(f"mask_time_indices is {given}; torch.bool of shape {needed}, a frame each, is needed")
            vector = self.masked_spec_embed.to(hidden_states.dtype)
            replaced = mask_time_indices[..., None].to(hidden_states.device)
            hidden_states = torch.where(replaced, vector, hidden_states)
        if not (self.training and self.config.apply_spec_augment and self.config.mask_feature_prob > 0):
            return hidden_states
        batch, _, features = hidden_states.shape
        length, least = self.config.mask_feature_length, self.config.mask_feature_min_masks
        drawn = _compute_mask_indices((batch, features), self.config.mask_feature_prob, length, min_masks=least)
        return hidden_states.masked_fill(torch.from_numpy(drawn)[:, None].to(hidden_states.device), 0.0)

    def _check_kernels(self, device: torch.device) -> None:
        """Refuses what torch is known to compute wrongly, and silently, on some processors."""
        if device.type != "cpu":
            return
        head_size = self.config.hidden_size // self.config.num_attention_heads
        if self.config._attn_implementation == "flex_attention" and head_size < FLEX_HEAD_SIZE and not HAS_AVX512:
            raise ValueError(
                f"flex attention with heads of {head_size} values is wrong on this processor, which has no AVX-512: "
                'use attn_implementation="sdpa"'
            )
        if torch.compiler.is_compiling() or (
            self.dtype != torch.bfloat16
            and not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        ):
            return
        for name, module in self.named_modules() if not self.bfloat16_was_tried else ():
            if isinstance(module, nn.Conv1d):
                kernel, stride = module.kernel_size[0], module.stride[0]
                error = bfloat16_error(module.in_channels, module.out_channels, kernel, stride, module.groups)
                if not error < LARGEST_BFLOAT16_ERROR:
                    raise ValueError(
                        f"torch computes {name} ({module.in_channels} -> {module.out_channels} channels, kernel "
                        f"{kernel}, stride {stride}, {module.groups} groups) wrongly in bfloat16 on this processor, by "
                        f"{100 * error:.0f} %: set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before torch is imported, or "
                        "use float32"
                    )
        self.bfloat16_was_tried = True


@dataclass
class EmotionOutput(SequenceClassifierOutput):
    """The output of [`ExHuBERTForSequenceClassification`].

    Args:
        dimensions: `(batch, dimensions)`, of a model that has them beside its classes; on 0 to 1, the ends of each
            one's scale, in the order of `dimensions_of_config`.
    """

    dimensions: torch.FloatTensor | None = None


class ExHuBERTForSequenceClassification(ExHuBERTPreTrainedModel):
    """The expanded HuBERT with the published head: a projection of every frame, their mean, a linear classifier.

    With `config.dimensions` beside classes, a second linear layer, `dimension_head`, answers them from the same mean.
    """

    source_class = HubertForSequenceClassification
    # `Trainer` would take a forward with **kwargs for one that divides its loss by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: ExHuBERTConfig) -> None:
        super().__init__(config)
        self.hubert = ExHuBERTModel(config)
        if config.use_weighted_layer_sum:
            self.layer_weights = nn.Parameter(torch.full((config.num_hidden_layers + 1,), 1.0))
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        if config.dimensions and config.problem_type != REGRESSION:
            self.dimension_head = nn.Linear(config.classifier_proj_size, len(config.dimensions))
        self.post_init()

    def freeze_base_model(self) -> None:
        """Freezes everything but the head."""
        self.hubert.requires_grad_(False)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`; a head put in the place of ours is saved with its own sizes."""
        own, sizes = self.config, {}
        if isinstance(self.projector, nn.Linear) and isinstance(self.classifier, nn.Linear):
            sizes = {"classifier_proj_size": self.projector.out_features, "num_labels": self.classifier.out_features}
        else:
            warnings.warn(
                "the head is more than two nn.Linear: its weights are saved, and load only after it was put in again",
                stacklevel=2,
            )
        try:
            if any(getattr(own, name) != size for name, size in sizes.items()):
                self.config = copy.deepcopy(own)  # the model's, and its caller's, is left as it is
                for name, size in sizes.items():
                    setattr(self.config, name, size)
            super().save_pretrained(*args, **kwargs)
        finally:
            self.config = own

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> EmotionOutput | tuple[torch.Tensor, ...]:
        """Classifies audio.

        Args:
            input_values, attention_mask, output_attentions, output_hidden_states, return_dict, mask_time_indices,
                kwargs: as in [`ExHuBERTModel`].
            labels: class indices `(batch,)` or `(batch, 1)` for cross-entropy, -100 leaving a clip out; with
                `problem_type="regression"` targets `(batch, num_labels)`, on 0 to 1 if they are dimensions, for the
                mean squared error. Dimensions beside classes are in no loss here; `train_hf.py` trains both.

        Returns:
            `loss` (with `labels`), `logits` `(batch, num_labels)`, `hidden_states` and `attentions` if asked for,
            `dimensions` `(batch, dimensions)` of a model that has them beside its classes.

        Raises:
            ValueError: as [`ExHuBERTModel`], and for labels of another shape or dtype, or that are no class.
            TypeError: as [`ExHuBERTModel`].
        """
        if return_dict is None:
            return_dict = self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.hubert(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=output_hidden_states or self.config.use_weighted_layer_sum,
            return_dict=True,
            **kwargs,
        )
        frames = self.projector(self._classified_states(outputs))
        if attention_mask is None:
            pooled = frames.mean(dim=1)
        else:
            valid = self._get_feature_vector_attention_mask(frames.shape[1], attention_mask)
            pooled = frames.masked_fill(~valid[..., None], 0.0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        logits = self.classifier(pooled)

        result = EmotionOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
            dimensions=self.dimension_head(pooled) if hasattr(self, "dimension_head") else None,
        )
        return result if return_dict else result.to_tuple()

    def extract_features(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Returns the states that the head classifies: the last ones, or the weighted sum of all layers'.

        A method of the published model.

        Args:
            input_values, attention_mask: as in `forward`.
            kwargs: the other arguments of `forward`, which change nothing here.

        Returns:
            `(batch, frames, hidden_size)`.
        """
        states = self.config.use_weighted_layer_sum
        return self._classified_states(self.hubert(input_values, attention_mask, output_hidden_states=states))

    def _classified_states(self, outputs: BaseModelOutput) -> torch.Tensor:
        if not self.config.use_weighted_layer_sum:
            return outputs.last_hidden_state
        states = outputs.hidden_states
        weights: torch.Tensor = self.layer_weights
        if not (self.training or torch.compiler.is_compiling()):
            # Summing zeros would change the order of the additions, and the last bit of the result with it. On a GPU
            # this is the one look at a value that a forward takes.
            kept = [index for index, weight in enumerate(weights.tolist()) if weight > LEFT_OUT / 2]
            states, weights = tuple(states[index] for index in kept), weights[kept]
        shares = nn.functional.softmax(weights, dim=-1)
        return (torch.stack(states, dim=1) * shares.view(-1, 1, 1)).sum(dim=1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type or "single_label_classification"
        shape, (batch, classes), unchecked = tuple(labels.shape), logits.shape, torch.compiler.is_compiling()
        if problem == REGRESSION:
            if not unchecked and shape != (batch, classes) and (shape, classes) != ((batch,), 1):
                needed = f"regression needs a target for each logit, {(batch, classes)}"
                raise ValueError(f"labels has shape {shape}; {needed}")
            return nn.functional.mse_loss(logits.float(), labels.float().view_as(logits))
        if problem != "single_label_classification":
            raise ValueError(f"problem_type is {problem!r}; it must be 'single_label_classification' or 'regression'")
        if unchecked:
            return nn.functional.cross_entropy(logits, labels.long().view(-1))
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels is {labels.dtype}; class indices are needed, or problem_type='regression'")
        if shape == (batch, 1):
            labels, shape = labels.view(-1), (batch,)
        if shape != (batch,):
            raise ValueError(f"labels has shape {shape}; one class index for each clip is needed, {(batch,)}")
        labels = labels.long()
        wrong = labels[:0]
        if labels.device.type == "cpu":
            wrong = labels[(labels != -100) & ((labels < 0) | (labels >= classes))]
        if len(wrong):
            known = f"the classes are 0 to {classes - 1} (-100 leaves a clip out)"
            raise ValueError(f"labels holds {int(wrong[0])}; {known}")
        return nn.functional.cross_entropy(logits, labels)


# torch 2.13's compiled flex attention reads memory that was never written for heads of 8 and 16 values and some numbers
# of frames (8, 24, 40) on processors without AVX-512; heads of 24, 32 and 64 are right there. HuBERT's have 64 or 80.
FLEX_HEAD_SIZE = 32
HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
# Of the values' size. Right convolutions are off by 0.003, those that oneDNN computes wrongly with AMX by 1.
LARGEST_BFLOAT16_ERROR = 0.1

# A layer weight whose share under softmax is exactly zero. Finite, as optimisers make NaN of an infinite one.
LEFT_OUT = -1e4
DIMENSION_HEAD = "dimension_head."
HEAD = ("projector.", "classifier.", "layer_weights", DIMENSION_HEAD)


def hubert_name(name: str, num_copies: int) -> str | None:
    """Name of the HuBERT weight that the expanded model's weight `name` starts as; None for a new linear layer."""
    match = re.fullmatch(r"((?:hubert\.)?encoder\.layers\.)(\d+)(\..+)", name)
    if match is None:
        return name
    prefix, index, suffix = match.groups()
    if suffix.startswith((".zero_linear.", ".identity_linear.")):
        return None
    return f"{prefix}{int(index) // (num_copies + 1)}{suffix}"


def expanded_weight(
    name: str, shape: Sequence[int], dtype: torch.dtype, num_copies: int, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """Returns the weight `name` of the expanded model as it is at expansion.

    Args:
        name, shape: of the expanded model's weight.
        dtype: of a linear layer that expansion adds.
        num_copies: copies of each original layer.
        read: gives a HuBERT weight by its name.
    """
    source = hubert_name(name, num_copies)
    if source is None and name.endswith("identity_linear.weight"):
        return torch.eye(*shape, dtype=dtype)
    if source is None:
        return torch.zeros(shape, dtype=dtype)
    tensor = read(source)
    if name != "layer_weights":
        return tensor
    # A source layer's state is its block's state, the one after the last copy; the others are left out.
    expanded = tensor.new_full(tuple(shape), LEFT_OUT)
    expanded[:: num_copies + 1] = tensor
    return expanded


def _read_source_config(name_or_path: str, **hub_options: Any) -> HubertConfig:
    """Reads the configuration of a HuBERT, or of an ExHuBERT without copies; refuses that of anything else."""
    try:
        values, _ = HubertConfig.get_config_dict(name_or_path, **hub_options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(f"{name_or_path}: no such folder, and not to be had from the Hub ({reason})") from error
    kind = values.get("model_type")
    if kind == "hubert":
        return HubertConfig.from_dict(values)
    ours = kind == ExHuBERTConfig.model_type
    if ours and values.get("num_copies") == 0 and not values.get("gate_original_layers"):
        return ExHuBERTConfig.from_dict(values)
    remedy = ": it is expanded already, use from_pretrained" if ours else ""
    raise ValueError(f"{name_or_path}: model_type is {kind!r}, not 'hubert'{remedy}")


def _load_hubert(source_class: Any, name_or_path: str, **kwargs: Any) -> Any:
    """Loads a HuBERT; refuses a checkpoint that does not fill it, the rest of which would be random."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a head that is new or dropped is meant; what is not is refused below
    try:
        source, report = source_class.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"{name_or_path}: the weights cannot be read ({error})") from error
    finally:
        logging.set_verbosity(verbosity)
    wanted = source.state_dict()
    # Names with both shapes, but bare names before transformers 5.
    reshaped = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    headless = not any(name.startswith(HEAD) for name in wanted)
    dropped = ("lm_head.", "hubert.masked_spec_embed", "masked_spec_embed", *(HEAD if headless else ()))
    problem = misfit(
        set(report["missing_keys"]) - reshaped,
        [name for name in report["unexpected_keys"] if not name.startswith(dropped)],
        [name for name in reshaped if not name.startswith(HEAD)],
        wanted,
    )
    if problem:
        raise ValueError(f"{name_or_path} is not a HuBERT checkpoint: it {problem}")
    return source


def misfit(
    missing: Iterable[str],
    unexpected: Iterable[str] = (),
    reshaped: Iterable[str] = (),
    wanted: Collection[str] | None = None,
) -> str | None:
    """Says which weights keep a checkpoint from being a model's, as what "it" does wrong; None if it fits.

    Args:
        missing: names of weights that the model has and the checkpoint lacks.
        unexpected: names that the checkpoint has and the model lacks.
        reshaped: names of those that it has in another shape.
        wanted: all names of the model's weights, where SpecAugment's vector, which is for training alone, and a head of
            which nothing is there may be missing, since these start anew; None if nothing may be missing.
    """
    missing, unexpected = set(missing), set(unexpected)
    if wanted is not None:
        head = {name for name in wanted if name.startswith(HEAD)}
        missing -= {name for name in missing if name.endswith("masked_spec_embed")}
        for part in (head, {name for name in head if name.startswith(DIMENSION_HEAD)}):
            missing -= part if part <= missing else set()
    for problem, names in (("lacks", missing), ("has unknown", unexpected), ("has another shape of", set(reshaped))):
        if names:
            published = any(".gate_bb_linear." in name for name in unexpected)
            remedy = ": it is the published ExHuBERT's layout, use `exhubert convert published`" if published else ""
            return f"{problem} {min(names)} ({len(names)} such weights){remedy}"
    return None


def _check_keywords(given: Mapping[str, Any]) -> None:
    """Refuses keywords, but for those that peft and `Trainer` hand to every model."""
    for name, value in given.items():
        if name in ("input_ids", "inputs_embeds") and value is not None:
            raise TypeError(f"{name} is given; a model of audio takes input_values, by that name")
        if name not in ("input_ids", "inputs_embeds", "num_items_in_batch"):
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")


def _check_input(input_values: torch.Tensor, attention_mask: torch.Tensor | None, config: ExHuBERTConfig) -> None:
    if torch.compiler.is_compiling():
        return
    shape = tuple(input_values.shape)
    if input_values.dim() != 2 or 0 in shape:
        raise ValueError(f"input_values has shape {shape}; (batch, samples) is needed, neither of them 0")
    if not input_values.is_floating_point():
        raise ValueError(f"input_values is {input_values.dtype}; floating-point samples are needed")
    needed, _ = frame_samples(config)
    if shape[1] < needed:
        raise ValueError(f"input_values has {shape[1]} samples; at least {needed} are needed (16 kHz)")
    if attention_mask is not None and tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; that of input_values is needed: {shape}"
        )
    if input_values.device.type != "cpu":  # each look at a value would wait for the device
        return
    if not bool(torch.isfinite(input_values).all()):
        raise ValueError("input_values holds NaN or infinite samples; remove or repair such audio first")
    if attention_mask is None:
        return
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError("attention_mask holds other values than 1, for samples, and 0, for padding")
    mask = attention_mask.long()
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError("attention_mask has a 1 after a 0; padding must be at the end of a clip")
    marked = attention_mask.sum(dim=-1).tolist()
    if min(marked) < needed:
        clip = marked.index(min(marked))
        raise ValueError(f"attention_mask marks {min(marked)} samples of clip {clip}; at least {needed} are needed")


@functools.cache
def bfloat16_error(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> float:
    """How far a convolution in bfloat16 on the CPU is from float32, as a share of its values' size; tried once."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        samples = torch.randn(1, in_channels, kernel + 31 * stride, generator=generator).bfloat16()
        weight = torch.randn(out_channels, in_channels // groups, kernel, generator=generator).bfloat16()
        expected = nn.functional.conv1d(samples.float(), weight.float(), stride=stride, groups=groups)
        got = nn.functional.conv1d(samples, weight, stride=stride, groups=groups).float()
        return float((got - expected).norm() / expected.norm())


def frame_samples(config: ExHuBERTConfig) -> tuple[int, int]:
    """Samples that the CNN needs for one frame, and for each one more."""
    first, more = 1, 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        first, more = (first - 1) * stride + kernel, more * stride
    return first, more


def draw_time_mask(
    input_values: torch.Tensor, attention_mask: torch.Tensor | None, config: ExHuBERTConfig
) -> torch.Tensor:
    """Frames for SpecAugment to replace, `(batch, frames)`: no padding, and none of a clip shorter than one span.

    `HubertModel` would draw them itself, but without the attention mask, and raise where no span fits.
    """
    first, more = frame_samples(config)
    batch, samples = input_values.shape
    frames = (samples - first) // more + 1
    lengths = torch.tensor([samples] * batch) if attention_mask is None else attention_mask.sum(dim=-1).cpu()
    valid = torch.arange(frames) < ((lengths - first) // more + 1)[:, None]
    if frames < config.mask_time_length:
        return torch.zeros_like(valid).to(input_values.device)
    drawn = _compute_mask_indices(
        (batch, frames),
        mask_prob=config.mask_time_prob,
        mask_length=config.mask_time_length,
        attention_mask=valid,
        min_masks=config.mask_time_min_masks,
    )
    return (torch.from_numpy(drawn) & valid).to(input_values.device)


class FastZeroLinear(FastLinear, ZeroLinear):
    """[`FastLinear`] at the end of a copy."""


class FastIdentityLinear(FastLinear, IdentityLinear):
    """[`FastLinear`] at the end of a gated original."""


FAST_PATH = FAST_MODULES | {ZeroLinear: FastZeroLinear, IdentityLinear: FastIdentityLinear}


ExHuBERTModel.register_for_auto_class("AutoModel")
ExHuBERTForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")

if PIPELINE_TASK not in PIPELINE_REGISTRY.get_supported_tasks():  # for a model in memory; a folder names its own
    PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, ExHuBERTPipeline, pt_model=AutoModelForAudioClassification)
if __name__ == "exhubert.modeling_exhubert":  # a Hub repo's copy is known by the repo's auto_map
    AutoConfig.register(ExHuBERTConfig.model_type, ExHuBERTConfig, exist_ok=True)
    AutoModel.register(ExHuBERTConfig, ExHuBERTModel, exist_ok=True)
    AutoModelForAudioClassification.register(ExHuBERTConfig, ExHuBERTForSequenceClassification, exist_ok=True)
    AutoFeatureExtractor.register(ExHuBERTConfig, ExHuBERTFeatureExtractor, exist_ok=True)
