"""Decodes the clips of a batch, cuts and augments them, and makes them model input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from exhubert.audio_exhubert import WINDOW_SECONDS, audio_seconds, prepare_input, read_audio
from exhubert.corpora.readers import locate_clip
from exhubert.training.augmentation import Augmentation
from exhubert.training.inputs import model_input


@dataclass
class AudioCollator:
    """Makes a batch of dataset rows: the model's input and `labels`.

    `labels` are class indices `(batch,)`, or the classes' shares of the raters' votes `(batch, classes)` where the
    training rows have them. Of a clip longer than the window only the window is read: where `crop` says, in training;
    its start, in evaluation, as the feature extractor does. A clip that is part of a file is never left. Rows are
    training rows if they come from `MultiCorpus`, which adds `crop`.

    Args:
        window_seconds: length of the model's input in seconds.
        crop: random (the row's `crop`, 0 to 1, says where), start or center; in training.
        config: of the model, which says how it takes audio; None for the raw waveform, `input_values`.
        augment: changes the cut samples of training rows, before they are padded and normalised.
        draws: adds `draws` `(batch, 3)`, the corpus, pass and clip that each training row is.
    """

    window_seconds: float = WINDOW_SECONDS
    crop: str = "random"
    config: PretrainedConfig | None = None
    augment: Augmentation | None = None
    draws: bool = False

    def __post_init__(self) -> None:
        self.input_name = "input_values"
        self.make_input: Callable[[np.ndarray], np.ndarray] = partial(prepare_input, window_seconds=self.window_seconds)
        if self.config is not None:
            self.input_name, self.make_input = model_input(self.config, self.window_seconds)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [self.make_input(self._samples(row)) for row in rows]
        training = "crop" in rows[0]
        batch = {self.input_name: torch.from_numpy(np.stack(inputs))}
        if training and "target" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["target"] for row in rows]))
        else:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if training and self.draws:
            batch["draws"] = torch.tensor([row["draw"] for row in rows])
        return batch

    def _samples(self, row: dict[str, Any]) -> np.ndarray:
        """The clip, or the part of it that the window takes: 16 kHz mono `(samples,)`."""
        training = "crop" in row
        audio, start, duration = locate_clip(row)
        if training and self.crop != "start":
            seconds = audio_seconds(audio) - start
            if duration is not None:
                seconds = min(seconds, duration)
            spare = max(0.0, seconds - self.window_seconds)
            offset = spare * (0.5 if self.crop == "center" else row["crop"])
            start, duration = start + offset, None if duration is None else duration - offset
        window = self.window_seconds if duration is None else min(duration, self.window_seconds)
        samples = read_audio(audio, start, window)
        if training and self.augment is not None:
            samples = self.augment(samples, row["augmentation_seed"])
        return samples
