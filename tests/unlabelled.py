"""What tests of pre-training share: audio without labels, and a recipe of a small model; not a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import yaml

from small_models import LARGE


def recipe_in(directory: Path, **changes: object) -> str:
    """Writes a recipe, and what it needs: a model's shape, and clips of tones that change."""
    shape = {name: list(value) if isinstance(value, tuple) else value for name, value in LARGE.items()}
    (directory / "shape.yaml").write_text(yaml.safe_dump({**shape, "hidden_dropout": 0.0}), encoding="utf-8")
    values = {"model": str(directory / "shape.yaml"), "corpora_root": str(directory), "corpora": ["talk"]}
    values |= {"clusters": 6, "window_seconds": 0.6, "updates": 8, "batch_size": 4, "mask_length": 5}
    values |= {"output": str(directory / "run")}
    values["training"] = {"learning_rate": 3.0e-3, "report_to": "none", "use_cpu": True, "logging_steps": 2}
    values["training"] |= {"eval_steps": 4}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return str(directory / "recipe.yaml")


def write_talk(directory: Path, clips: int = 12) -> Path:
    """A folder of audio, without metadata: three pitches, each for 0.2 s, in changing order."""
    (directory / "talk" / "deeper").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(clips):
        pitch = np.repeat(generator.permutation([150, 600, 2400, 600, 150]), 3200)
        tone = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.01 * generator.standard_normal(len(pitch))
        where = directory / "talk" / ("deeper" if number % 2 else "")
        soundfile.write(where / f"{number}.flac", tone[: 16_000 - 700 * number], 16_000)
    return directory
