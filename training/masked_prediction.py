"""HuBERT's pre-training: masked frames are classified as clusters, by cosines with the clusters' embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import EvalPrediction, HubertConfig, HubertModel

from exhubert.audio_exhubert import SAMPLING_RATE, extract_features, read_audio
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.corpora.readers import locate_clip
from exhubert.model_folder.load import check_config, loading, read_config
from exhubert.model_folder.save import save_model_folder
from exhubert.modeling_exhubert import ExHuBERTModel, ExHuBERTPreTrainedModel, draw_time_mask, frame_samples
from exhubert.training.arguments import check_names, find_recipe
from exhubert.training.augmentation import seeded
from exhubert.training.pretraining_recipe import PretrainingRecipe
from exhubert.training.targets import frame_count, perplexity
from exhubert.utils.command import named_errors, silent_c_libraries
from exhubert.utils.files import read_table

TEMPERATURE = 0.1
FEWEST_SPANS = 2  # of a clip, as in fairseq
NO_TARGET = -100


class HubertForMaskedPrediction(ExHuBERTPreTrainedModel):
    """A HuBERT, without copies of layers, that predicts the clusters of masked frames.

    `hubert` computes what transformers' `HubertModel` does, has its weights under the same names, and masks without
    waiting for a GPU. The clusters are `config.num_labels`, the projection has `config.classifier_proj_size` values.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: ExHuBERTConfig) -> None:
        super().__init__(config)
        self.hubert = ExHuBERTModel(config)
        self.final_proj = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.label_embeddings = nn.Parameter(torch.empty(config.num_labels, config.classifier_proj_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HubertForMaskedPrediction):
            nn.init.normal_(module.label_embeddings)

    def forward(
        self, input_values: torch.Tensor, mask_time_indices: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Returns `logits`, float32 `(batch, frames, clusters)`: the cosines over 0.1.

        Args:
            input_values: as `ExHuBERTModel` takes them, `(batch, samples)`.
            mask_time_indices: the frames that are masked, boolean `(batch, frames)`.
            kwargs: what else `ExHuBERTModel` takes.
        """
        states = self.hubert(input_values, mask_time_indices=mask_time_indices, return_dict=True, **kwargs)
        projected = functional.normalize(self.final_proj(states.last_hidden_state).float(), dim=-1)
        embeddings = functional.normalize(self.label_embeddings.float(), dim=-1)
        return {"logits": projected @ embeddings.T / TEMPERATURE}


def masked_prediction_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """`Trainer`'s `compute_loss_func`: the share of these clips in the cross entropy of an update's masked frames.

    Args:
        outputs: the model's, with `logits` `(batch, frames, clusters)`.
        labels: the clusters of masked frames, -100 elsewhere, `(batch, frames)`.
        num_items_in_batch: masked frames in the whole update, over its micro-batches and processes; None if these are
            all.
    """
    total = functional.cross_entropy(
        outputs["logits"].float().flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    return total / ((labels != NO_TARGET).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)


def count_hits(logits: torch.Tensor, *targets: torch.Tensor) -> torch.Tensor:
    """For each of several targets, -100 where there is none, how many frames are predicted right of how many.

    Args:
        logits: `(batch, frames, clusters)`.
        targets: `(batch, frames)` each.

    Returns:
        int64 `(batch, 2 * targets)`.
    """
    predicted = logits.argmax(dim=-1)
    counts = [count.sum(dim=1) for each in targets for count in (predicted == each, each != NO_TARGET)]
    return torch.stack(counts, dim=1)


def clip_statistics(logits: Any, labels: Any) -> torch.Tensor:
    """What `validation_metrics` adds up, for each clip `(batch, 5 + 2 * clusters)`; the logits are never gathered."""
    masked, unmasked = labels
    logits = (logits[0] if isinstance(logits, tuple) else logits).float()
    losses = functional.cross_entropy(logits.transpose(1, 2), masked, ignore_index=NO_TARGET, reduction="none")
    valid = masked != NO_TARGET
    histograms = [
        torch.zeros(len(logits), logits.shape[-1], device=logits.device).scatter_add_(
            1, each.clamp(min=0), valid.float()
        )
        for each in (logits.argmax(dim=-1), masked)
    ]
    counts = count_hits(logits, masked, unmasked).float()
    return torch.cat([losses.sum(dim=1, keepdim=True), counts, *histograms], dim=1)


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Loss and accuracies over all frames, and perplexities of the clusters that masked frames have and are given."""
    sums = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
    loss, masked_hits, masked, unmasked_hits, unmasked = sums[:5]
    predicted, targets = np.split(sums[5:], 2)
    return {
        "loss": loss / max(masked, 1),
        "accuracy_masked": masked_hits / max(masked, 1),
        "accuracy_unmasked": unmasked_hits / max(unmasked, 1),
        "perplexity_predicted": perplexity(predicted),
        "perplexity_targets": perplexity(targets),
    }


@dataclass
class MaskedPredictionCollator:
    """Cuts, masks and normalises clips: the model's input, `mask_time_indices`, `labels` and `unmasked_labels`.

    A clip longer than the window is cut where its `crop`, 0 to 1, says, at a frame, so that its frames are those that
    its `target` is of. A shorter one is zero-padded and then normalised, as in fine-tuning; padding is never masked.
    The masked frames follow from `time_mask_seed`.

    Args:
        extractor: the model's feature extractor, with its window as `window_seconds`.
        config: of the model, with the shares and lengths of SpecAugment's time masks.
    """

    extractor: Any
    config: ExHuBERTConfig

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch; of training rows with `draws`, a list, which stays on the CPU when the batch leaves it."""
        inputs, masks, targets = [], [], []
        for row in rows:
            samples, of_clip = self.cut(row)
            values = torch.from_numpy(extract_features(samples, self.extractor))
            target = torch.full((frame_count(len(values), self.config),), NO_TARGET)
            target[: len(of_clip)] = torch.from_numpy(of_clip.astype(np.int64))
            there = (torch.arange(len(values)) < len(samples)).long()
            with seeded(row["time_mask_seed"]):
                masks.append(draw_time_mask(values[None], there[None], self.config)[0])
            inputs.append(values)
            targets.append(target)
        mask, target = torch.stack(masks), torch.stack(targets)
        batch: dict[str, Any] = {"input_values": torch.stack(inputs), "mask_time_indices": mask}
        batch["labels"] = target.masked_fill(~mask, NO_TARGET)
        batch["unmasked_labels"] = target.masked_fill(mask, NO_TARGET)
        if "draw" in rows[0]:
            batch["draws"] = [row["draw"] for row in rows]
        return batch

    def cut(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The samples that the window takes, 16 kHz mono, at most the window's, and the targets of their frames."""
        window_seconds: float = self.extractor.window_seconds
        window = round(SAMPLING_RATE * window_seconds)
        frames, of_clip = frame_count(window, self.config), row["target"]
        begin = int(row["crop"] * (max(0, len(of_clip) - frames) + 1))
        offset = begin * frame_samples(self.config)[1] / SAMPLING_RATE
        audio, start, duration = locate_clip(row)
        with silent_c_libraries():
            length = window_seconds if duration is None else min(duration - offset, window_seconds)
            samples = read_audio(audio, start + offset, length)[:window]
        return samples, of_clip[begin : begin + frame_count(len(samples), self.config)]


def read_start(recipe: PretrainingRecipe) -> tuple[HubertConfig, bool]:
    """Returns the configuration of a recipe's model, and whether its weights start at random.

    Raises:
        OSError: if there is no such model or file.
        ValueError: if it is no HuBERT, or the file has other fields than a HubertConfig.
    """
    if recipe.model.endswith((".yaml", ".yml")):
        file = find_recipe(recipe.model)
        if not file.is_file():
            raise OSError(f"model: {recipe.model}: no such file")
        values = read_table(file, "YAML")
        check_names(values, list(HubertConfig().to_dict()), f"{file}: HubertConfig has no field")
        check_config(values, str(file))
        with named_errors(f"{file}: no HuBERT can be made of it"):
            return HubertConfig(**values), True
    return hubert_config(recipe.model), False


def hubert_config(name_or_path: str) -> HubertConfig:
    """The configuration of a HuBERT; raises ValueError if it is another model."""
    values = read_config(name_or_path)
    if values.get("model_type") != "hubert":
        raise ValueError(f"{name_or_path}: model_type is {values.get('model_type')!r}; pre-training needs a 'hubert'")
    with loading(name_or_path, "config.json cannot be used"):
        return HubertConfig.from_dict(values)


def load_encoder(name_or_path: str) -> ExHuBERTModel:
    """Loads a HuBERT, frozen, in eval mode, in float32; on the CPU it takes the fast path."""
    hubert_config(name_or_path)
    with loading(name_or_path, "the model cannot be loaded"):
        model: ExHuBERTModel = ExHuBERTModel.from_hubert(name_or_path, num_copies=0, dtype=torch.float32)
    return frozen(model)


def random_encoder(config: HubertConfig) -> ExHuBERTModel:
    """A HuBERT of random weights, always the same ones, otherwise as `load_encoder`'s."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return frozen(ExHuBERTModel(ExHuBERTConfig.from_hubert_config(config, num_copies=0)))


def frozen(model: ExHuBERTModel) -> ExHuBERTModel:
    """The model in eval mode, without gradients, on its fast path."""
    model.requires_grad_(False)
    model.set_fast_path()
    return model.eval()


def make_model(
    recipe: PretrainingRecipe, config: HubertConfig, encoder: ExHuBERTModel | None
) -> HubertForMaskedPrediction:
    """Returns a recipe's `HubertForMaskedPrediction`, with an encoder's weights, or random ones.

    LayerDrop is off, as in fine-tuning; masks are those of the recipe.

    Raises:
        ValueError: if no masked span fits into the window.
    """
    own = ExHuBERTConfig.from_hubert_config(
        config,
        num_copies=0,
        layerdrop=0.0,
        apply_spec_augment=True,
        mask_time_prob=recipe.mask_share * recipe.mask_length,  # transformers' share is that of masked frames
        mask_time_length=recipe.mask_length,
        mask_time_min_masks=FEWEST_SPANS,
        mask_feature_prob=0.0,
        id2label={number: str(number) for number in range(recipe.clusters)},
    )
    frames = frame_count(round(recipe.window_seconds * SAMPLING_RATE), own)
    if frames < recipe.mask_length:
        raise ValueError(
            f"mask_length is {recipe.mask_length}, but the window of {recipe.window_seconds:g} s has {frames} frames; "
            "give a shorter mask_length, or a longer window_seconds"
        )
    model = HubertForMaskedPrediction(own)
    if encoder is not None:
        missing, unexpected = model.hubert.load_state_dict(encoder.state_dict(), strict=False)
        assert not unexpected and set(missing) <= {"masked_spec_embed"}, (missing, unexpected)
    if recipe.freeze:
        model.freeze_feature_encoder()
    return model


def save_hubert(
    model: HubertForMaskedPrediction, config: HubertConfig, directory: Path, window_seconds: float, source: str
) -> None:
    """Writes a `HubertModel`'s folder with the trained weights; `config` is that of the model that it started from."""
    with torch.device("meta"):
        plain = HubertModel(config)
    trained = model.hubert.state_dict()
    plain.load_state_dict({name: trained[name] for name in plain.state_dict()}, strict=True, assign=True)
    save_model_folder(plain, directory, window_seconds, source=source)
