"""Decodes the clips of a batch and makes them model input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from exhubert.audio_exhubert import WINDOW_SECONDS, audio_seconds, prepare_input, read_audio
from exhubert.corpora.readers import locate_clip


@dataclass
class AudioCollator:
    """Makes `input_values` `(batch, samples)` and `labels` `(batch,)` of dataset rows.

    Of a clip longer than the window only the window is read: where `crop` says, in training; its start, in
    evaluation, as the feature extractor does. A clip that is part of a file is never left.

    Args:
        window_seconds: length of the model's input in seconds.
        crop: random (the row's `crop`, 0 to 1, says where), start or center; for rows that have a `crop`.
    """

    window_seconds: float = WINDOW_SECONDS
    crop: str = "random"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [prepare_input(self._read(row), self.window_seconds) for row in rows]
        return {
            "input_values": torch.from_numpy(np.stack(inputs)),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def _read(self, row: dict[str, Any]) -> np.ndarray:
        audio, start, duration = locate_clip(row)
        if "crop" in row and self.crop != "start":
            seconds = audio_seconds(audio) - start
            if duration is not None:
                seconds = min(seconds, duration)
            spare = max(0.0, seconds - self.window_seconds)
            offset = spare * (0.5 if self.crop == "center" else row["crop"])
            start, duration = start + offset, None if duration is None else duration - offset
        return read_audio(audio, start, self.window_seconds if duration is None else min(duration, self.window_seconds))
