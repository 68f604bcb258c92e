"""Decodes the clips of a batch, cuts and augments them, and makes them model input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exhubert.audio_exhubert import audio_seconds, extract_features, read_audio
from exhubert.corpora.readers import locate_clip
from exhubert.training.augmentation import Augmentation


@dataclass
class AudioCollator:
    """Makes a batch of dataset rows: the model's input and `labels`.

    `labels` are class indices `(batch,)`, or the classes' shares of the raters' votes `(batch, classes)` where the
    training rows have them. Of a clip longer than the window only the window is read: where `crop` says, in training;
    its start, in evaluation, as the feature extractor does. A clip that is part of a file is never left. Rows are
    training rows if they come from `MultiCorpus`, which adds `crop`.

    Args:
        extractor: the model's feature extractor, with its window as `window_seconds`.
        crop: random (the row's `crop`, 0 to 1, says where), start or center; in training.
        augment: changes the cut samples of training rows, before they are padded and normalised.
    """

    extractor: Any
    crop: str = "random"
    augment: Augmentation | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns the batch; of training rows with `draws` `(batch, 3)`, the corpus, pass and clip that each is."""
        inputs = [extract_features(self.samples(row), self.extractor) for row in rows]
        batch = {self.extractor.model_input_names[0]: torch.from_numpy(np.stack(inputs))}
        training = "crop" in rows[0]
        if training and "target" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["target"] for row in rows]))
        else:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if training and "draw" in rows[0]:
            batch["draws"] = torch.tensor([row["draw"] for row in rows])
        return batch

    def samples(self, row: dict[str, Any]) -> np.ndarray:
        """The clip, or the part of it that the window takes: 16 kHz mono `(samples,)`."""
        window_seconds: float = self.extractor.window_seconds
        training = "crop" in row
        audio, start, duration = locate_clip(row)
        if training and self.crop != "start":
            seconds = audio_seconds(audio) - start
            if duration is not None:
                seconds = min(seconds, duration)
            spare = max(0.0, seconds - window_seconds)
            offset = spare * (0.5 if self.crop == "center" else row["crop"])
            start, duration = start + offset, None if duration is None else duration - offset
        window = window_seconds if duration is None else min(duration, window_seconds)
        samples = read_audio(audio, start, window)
        if training and self.augment is not None:
            samples = self.augment(samples, row["augmentation_seed"])
        return samples
