"""Corpora whose dimensions the signal itself defines, loudness and pitch, and what a small model needs to learn them.

    python benchmarks/signal_dimensions.py FOLDER CORPUS...
    python train_hf.py FOLDER/recipe.yaml

Of each clip it takes the middle 1.5 s, all of the model's input, so that nothing is padded. Two columns are made:

- `loudness`: the mean over frames of 64 ms of their RMS in dB, of the samples at unit variance, as the model hears
  them; no frame counts as less than -60 dB. The level of the recording is lost to the normalisation, so that this says
  how the energy lies in time: near -1 where it is even, lower the more of the excerpt is pauses.
- `pitch`: the mean over the voiced frames of the pitch by `librosa.yin` (65 to 500 Hz), in semitones above 55 Hz. For
  voiced count those within 12 dB of the loudest frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pandas
import torch
import yaml
from transformers import HubertConfig, HubertForSequenceClassification

from exhubert.audio_exhubert import SAMPLING_RATE, audio_seconds, read_audio
from exhubert.corpora.readers import locate_clip, read_corpus
from exhubert.utils.command import progress_bar

SECONDS = 1.5
FRAME, HOP = 1024, 256  # samples
QUIETEST = -60.0  # dB
LOWEST, HIGHEST, REFERENCE = 65.0, 500.0, 55.0  # Hz
VOICED = 12.0  # dB below the loudest frame
SCALES = {"loudness": [-30.0, 0.0], "pitch": [0.0, 40.0]}
# A frame of 20 ms from three convolutions. Group norm over time, as in HuBERT Base: layer norm, as in HuBERT Large,
# would take the level of each frame away.
CNN = {"conv_dim": (48, 48, 48), "conv_kernel": (80, 8, 5), "conv_stride": (16, 4, 5), "feat_extract_norm": "group"}
ENCODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
CONVOLUTION = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 64}
PLAIN = {"apply_spec_augment": False, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
RECIPE = {
    "labels": "none",
    "targets": list(SCALES),
    "window_seconds": SECONDS,
    "protocol": "speakers",
    "rounds": 240,
    "batch_size": 16,
    "training": {"learning_rate": 2.0e-3, "lr_scheduler_type": "linear", "warmup_steps": 40, "eval_steps": 120},
}


def main() -> None:
    """Writes the corpora, the small HuBERT from a random start, and the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what is written")
    parser.add_argument("corpora", type=Path, nargs="+", help="corpus folders")
    options = parser.parse_args()
    for corpus in options.corpora:
        rows = read_corpus(corpus)
        kept = [measured(row) for row in progress_bar(rows, desc=corpus.name, unit="clip")]
        table = pandas.DataFrame([row for row in kept if row])
        folder = options.folder / corpus.name
        folder.mkdir(parents=True)
        for part in {Path(name).parts[0] for name in table["file_name"]}:
            (folder / part).symlink_to((corpus / part).resolve())
        table.to_csv(folder / "metadata.csv", index=False)
        print(f"{corpus.name}: {len(table)} of {len(rows)} clips", table[list(SCALES)].describe(), sep="\n")
    torch.manual_seed(0)
    start = HubertForSequenceClassification(HubertConfig(**CNN, **ENCODER, **CONVOLUTION, **PLAIN))
    start.save_pretrained(options.folder / "start")
    paths = {"model": str(options.folder / "start"), "output": str(options.folder / "run")}
    corpora = {"corpora_root": str(options.folder), "corpora": [corpus.name for corpus in options.corpora]}
    recipe = paths | corpora | RECIPE | {"scales": SCALES}
    (options.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def measured(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of the clip's middle, with both dimensions; None for a clip that is shorter, or silent."""
    audio, start, duration = locate_clip(row)
    seconds = audio_seconds(audio) - start if duration is None else duration
    if seconds < SECONDS:
        return None
    start = round(start + (seconds - SECONDS) / 2, 3)
    samples = read_audio(audio, start, SECONDS)
    if not np.ptp(samples):
        return None
    dimensions = {"loudness": loudness(samples), "pitch": pitch(samples)}
    kept = {name: row[name] for name in ("file_name", "label", "speaker", "language") if name in row}
    return kept | {"start_seconds": start, "duration_seconds": SECONDS} | dimensions


def levels(samples: np.ndarray) -> np.ndarray:
    """The RMS of frames in dB, of the samples at unit variance."""
    normal = (samples - samples.mean()) / samples.std()
    rms = librosa.feature.rms(y=normal, frame_length=FRAME, hop_length=HOP, center=False)[0]
    levels: np.ndarray = 20 * np.log10(np.maximum(rms, 10 ** (QUIETEST / 20)))
    return levels


def loudness(samples: np.ndarray) -> float:
    """In dB; see above."""
    return round(float(levels(samples).mean()), 3)


def pitch(samples: np.ndarray) -> float:
    """In semitones above 55 Hz; see above."""
    settings: dict[str, Any] = {"sr": SAMPLING_RATE, "frame_length": FRAME, "hop_length": HOP, "center": False}
    found = librosa.yin(samples, fmin=LOWEST, fmax=HIGHEST, **settings)
    loud = levels(samples)
    return round(float(12 * np.log2(found[loud > loud.max() - VOICED] / REFERENCE).mean()), 3)


if __name__ == "__main__":
    main()
