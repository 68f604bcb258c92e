"""wav2vec 2.0 with the head of audEERING's emotion model: "W2V2 Emotion" of the paper's Table 2.

`audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim` has the model type of a wav2vec 2.0, but on the mean of the
frames a head of its own: dropout, a dense layer, tanh, dropout, an output layer. transformers' own class would leave
that head out and start another one at random, silently; this one keeps it. Its three outputs, arousal, dominance and
valence on 0 to 1, are the answers of the published model (`problem_type` "regression"); with other labels the output
layer is newly initialised wherever their number differs. What it saves has a model type of its own, so that it loads
as what it is, or not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2PreTrainedModel


class Wav2Vec2EmotionConfig(Wav2Vec2Config):
    """The configuration of a wav2vec 2.0; `final_dropout` is the head's."""

    model_type = "wav2vec2_emotion"


class Wav2Vec2EmotionForSequenceClassification(Wav2Vec2PreTrainedModel):
    """wav2vec 2.0, the mean over its frames, and `EmotionHead`."""

    config: Wav2Vec2EmotionConfig
    config_class = Wav2Vec2EmotionConfig
    base_model_prefix = "wav2vec2"
    # `Trainer` would take a forward with **kwargs for one that divides its loss by the accumulation steps itself.
    accepts_loss_kwargs = False

    def __init__(self, config: Wav2Vec2EmotionConfig) -> None:
        pooling = getattr(config, "pooling_mode", "mean")
        if pooling != "mean":
            raise ValueError(f"pooling_mode is {pooling!r}; only 'mean' is implemented for this head")
        super().__init__(config)
        self.wav2vec2 = Wav2Vec2Model(config)
        self.classifier = EmotionHead(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; takes audEERING's checkpoint as well.

        `id2label` makes it a model of those classes, or with `problem_type="regression"` of those dimensions.
        """
        if config is None:
            values, _ = Wav2Vec2EmotionConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            fields = ("id2label", "label2id", "problem_type", "dimensions")
            given = {name: kwargs.pop(name) for name in fields if name in kwargs}
            # What it answered is left behind where it is to answer something else; its model type in any case.
            replaced = fields if "id2label" in given else ()
            for name in ("model_type", "architectures", *replaced):
                values.pop(name, None)
            config = Wav2Vec2EmotionConfig.from_dict(values | given)
        return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    def freeze_feature_encoder(self) -> None:
        """Freezes the CNN feature encoder; it is then computed without a graph."""
        self.wav2vec2.feature_extractor._freeze_parameters()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """Classifies audio.

        Args:
            input_values: 16 kHz mono samples, `(batch, samples)`, normalised.
            attention_mask: 1 for samples, 0 for padding, `(batch, samples)`; the mean is over all frames even so.
            labels: class indices `(batch,)` for cross-entropy; with `problem_type="regression"` targets
                `(batch, num_labels)` for the mean squared error.
            output_hidden_states, return_dict: as in `transformers`.

        Returns:
            `loss` (with `labels`), `logits` `(batch, num_labels)`, `hidden_states` if asked for.
        """
        outputs = self.wav2vec2(
            input_values, attention_mask=attention_mask, output_hidden_states=output_hidden_states, return_dict=True
        )
        logits = self.classifier(outputs.last_hidden_state.mean(dim=1))
        loss = None
        if labels is not None:
            regression = self.config.problem_type == "regression"
            loss = (nn.functional.mse_loss if regression else nn.functional.cross_entropy)(logits, labels)
        result = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return result if return_dict or return_dict is None else result.to_tuple()


class EmotionHead(nn.Module):
    """Dropout, dense, tanh, dropout, output; from `(batch, hidden_size)` to `(batch, num_labels)`."""

    def __init__(self, config: Wav2Vec2EmotionConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.final_dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        dense = torch.tanh(self.dense(self.dropout(pooled)))
        return self.out_proj(self.dropout(dense))


Wav2Vec2EmotionConfig.register_for_auto_class()
Wav2Vec2EmotionForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")

if __name__ == "exhubert.modeling_wav2vec2_emotion":  # a Hub repo's copy is known by the repo's auto_map
    AutoConfig.register(Wav2Vec2EmotionConfig.model_type, Wav2Vec2EmotionConfig, exist_ok=True)
    AutoModelForAudioClassification.register(
        Wav2Vec2EmotionConfig, Wav2Vec2EmotionForSequenceClassification, exist_ok=True
    )
