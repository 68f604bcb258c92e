"""Decodes the clips of a batch, cuts and augments them, and makes them model input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exhubert.audio_exhubert import SAMPLING_RATE, audio_seconds, extract_features, read_audio
from exhubert.configuration_exhubert import ExHuBERTConfig
from exhubert.corpora.readers import locate_clip
from exhubert.modeling_exhubert import draw_time_mask
from exhubert.training.augmentation import Augmentation, seeded
from exhubert.training.frame_cache import FrameCache
from exhubert.utils.command import silent_c_libraries


@dataclass
class AudioCollator:
    """Makes a batch of dataset rows: the model's input, `labels`, and of rows with `dimensions` `dimension_targets`.

    `labels` are class indices `(batch,)`, or the classes' shares of the raters' votes `(batch, classes)` where the
    training rows have them; -100 where a clip has no class. `dimension_targets` are float32 `(batch, dimensions)` on 0
    to 1, NaN where a clip has none. Of a clip longer than the window only the window is read: where `crop` says, in
    training; its start, in evaluation, as the feature extractor does. A clip that is part of a file is never left. Rows
    are training rows if they come from `MultiCorpus`, which adds `crop`.

    Args:
        extractor: the model's feature extractor, with its window as `window_seconds`.
        crop: random (the row's `crop`, 0 to 1, says where), start or center; in training.
        augment: changes the cut samples of training rows, before they are padded and normalised.
        time_mask: the configuration of a model that takes `mask_time_indices`, which are then drawn here, for each
            training row by its `time_mask_seed`; None for other models, which draw their own.
        cache: where crops are taken from, in frames, without decoding audio: for a model after `take_frames`, whose
            input is then `(batch, channels, frames)`.
    """

    extractor: Any
    crop: str = "random"
    augment: Augmentation | None = None
    time_mask: ExHuBERTConfig | None = None
    cache: FrameCache | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch; of training rows with `draws`, a list, which stays on the CPU when the batch leaves it."""
        if self.cache is None:
            inputs = torch.from_numpy(np.stack([extract_features(self.samples(row), self.extractor) for row in rows]))
        else:
            frames = [self.cache.crop(row, self.place(row)) for row in rows]
            inputs = torch.from_numpy(np.stack(frames)).transpose(1, 2)
        batch: dict[str, Any] = {self.extractor.model_input_names[0]: inputs}
        training = "crop" in rows[0]
        if training and "target" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["target"] for row in rows]))
        else:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if "dimensions" in rows[0]:
            batch["dimension_targets"] = torch.tensor([row["dimensions"] for row in rows], dtype=torch.float32)
        if training and self.time_mask is not None:
            masks, window = [], torch.empty(1, round(self.extractor.window_seconds * SAMPLING_RATE))
            for row in rows:
                with seeded(row["time_mask_seed"]):
                    masks.append(draw_time_mask(window, None, self.time_mask))
            batch["mask_time_indices"] = torch.cat(masks)
        if training and "draw" in rows[0]:
            batch["draws"] = [row["draw"] for row in rows]
        return batch

    def place(self, row: dict[str, Any]) -> float:
        """Where the window lies in a clip that is longer, 0 to 1."""
        if "crop" not in row or self.crop == "start":
            return 0.0
        return 0.5 if self.crop == "center" else row["crop"]

    def samples(self, row: dict[str, Any]) -> np.ndarray:
        """The clip, or the part of it that the window takes: 16 kHz mono `(samples,)`."""
        window_seconds: float = self.extractor.window_seconds
        audio, start, duration = locate_clip(row)
        with silent_c_libraries():
            if place := self.place(row):
                seconds = audio_seconds(audio) - start
                if duration is not None:
                    seconds = min(seconds, duration)
                spare = max(0.0, seconds - window_seconds)
                offset = spare * place
                start, duration = start + offset, None if duration is None else duration - offset
            window = window_seconds if duration is None else min(duration, window_seconds)
            samples = read_audio(audio, start, window)
        if "crop" in row and self.augment is not None:
            samples = self.augment(samples, row["augmentation_seed"])
        return samples
