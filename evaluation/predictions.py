"""Predictions of a model on corpora: every clip whole, in windows, whatever the batch size or number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Wav2Vec2FeatureExtractor

from exhubert.audio_exhubert import audio_seconds, read_audio
from exhubert.corpora.readers import locate_clip
from exhubert.evaluation.calibration import clip_probabilities
from exhubert.evaluation.degradations import degrade
from exhubert.evaluation.engine import classify_clips
from exhubert.pipeline_exhubert import Window, make_windows
from exhubert.utils.command import progress_bar

PROBABILITY = "probability_"  # begins the names of the columns that hold the classes' probabilities


def classify(
    model: torch.nn.Module,
    extractor: Any,
    corpora: Mapping[str, Dataset],
    batch_size: int = 8,
    condition: str | None = None,
    in_step: Callable[[bool], bool] | None = None,
    description: str = "classifying",
) -> tuple[np.ndarray, np.ndarray]:
    """Classifies clips in windows and batches, as the pipeline does.

    The clips are dealt to the processes; each process gets all results. Where the model takes an attention mask,
    windows of similar length are batched, padded and masked, else those of one length.

    Args:
        model: an audio-classification model, in the mode and on the device that it shall work in.
        extractor: its feature extractor.
        corpora: the clips to classify.
        batch_size: windows in a batch.
        condition: one of `degradations.CONDITIONS`, which the audio is put under first.
        in_step: called before each batch with whether this process has one, and returns whether any process has one;
            a process that has none repeats its last. None lets each process go at its own pace.
        description: of the progress bar.

    Returns:
        The logits of all windows, float64 `(windows, classes)`, and for each the number of its clip, counted over all
        corpora, `(windows,)`, in order.

    Raises:
        ValueError: if audio does not decode, or the model's answer is not finite; names the file.
    """
    state = PartialState()
    clips = [(name, dataset, row) for name, dataset in corpora.items() for row in range(len(dataset))]
    order = list(range(len(clips)))

    def seconds(number: int) -> float:
        _, dataset, row = clips[number]
        audio, start, duration = locate_clip(dataset[row])
        return audio_seconds(audio) - start if duration is None else duration

    of_any_length = isinstance(extractor, Wav2Vec2FeatureExtractor) and not hasattr(extractor, "window_seconds")
    masked = of_any_length and bool(extractor.return_attention_mask)
    if of_any_length:
        order.sort(key=seconds, reverse=True)
    mine = order[state.process_index :: state.num_processes] or order[:1]
    model.eval()

    def windows(position: int, corpus: str, clip: Mapping[str, Any]) -> Iterator[Window]:
        audio, start, duration = locate_clip(clip)
        samples = read_audio(audio, start, duration)
        if condition is not None:
            samples = degrade(samples, condition, f"{corpus}/{clip['file_name']}/{start}")
        yield from make_windows([samples], extractor, clip=position)

    def heard() -> Iterator[tuple[str, Iterator[Window]]]:
        for position, number in enumerate(mine):
            corpus, dataset, row = clips[number]
            clip = dataset[row]
            yield f"{corpus}: {clip['file_name']}", windows(position, corpus, clip)

    found: list[tuple[int, int, np.ndarray]] = []
    answered = classify_clips(model, extractor, heard(), batch_size, masked, in_step=in_step)
    with progress_bar(total=len(mine), desc=description, unit="clip", disable=not state.is_main_process) as bar:
        for number, answers in zip(mine, answered, strict=True):
            answers.check()
            found += [(number, window, row.logits.double().numpy()) for window, row in answers.rows.items()]
            bar.update()
    everyones = {(clip, index): row for clip, index, row in gather_object(found)}
    keys = sorted(everyones)
    return np.stack([everyones[key] for key in keys]), np.array([clip for clip, _ in keys])


def predictions_table(
    corpora: Mapping[str, Dataset],
    class_names: Sequence[str],
    logits: np.ndarray,
    clip_of_window: np.ndarray,
    temperature: float = 1.0,
) -> pandas.DataFrame:
    """Makes a table of what `classify` returned: the clip's probabilities are the mean over its windows.

    Returns:
        One row a clip: `corpus`, `file_name`, `start_seconds`, `speaker`, `sex`, `language` (empty where unknown),
        `windows`, `reference`, `prediction` (class names) and `probability_<class>` for each class.
    """
    probabilities = clip_probabilities(logits, clip_of_window, temperature)
    parts = []
    for name, dataset in corpora.items():
        columns: dict[str, Any] = {"corpus": name, "file_name": dataset["file_name"][:]}
        for column, unknown in (("start_seconds", 0.0), ("speaker", ""), ("sex", ""), ("language", "")):
            values = dataset[column][:] if column in dataset.column_names else [None] * len(dataset)
            columns[column] = [unknown if pandas.isna(value) else type(unknown)(value) for value in values]
        columns["reference"] = [class_names[label] for label in dataset["labels"][:]]
        parts.append(pandas.DataFrame(columns))
    table = pandas.concat(parts, ignore_index=True)
    table.insert(6, "windows", np.bincount(clip_of_window))
    table["prediction"] = [class_names[index] for index in probabilities.argmax(axis=1)]
    return table.assign(**{f"{PROBABILITY}{name}": row for name, row in zip(class_names, probabilities.T, strict=True)})


def class_names_of(predictions: pandas.DataFrame) -> list[str]:
    """Returns the class names of a table of predictions, in order."""
    names = [str(column) for column in predictions.columns]
    return [name.removeprefix(PROBABILITY) for name in names if name.startswith(PROBABILITY)]


def confidences(predictions: pandas.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each clip's predicted class `(clips,)`, and whether that class is right `(clips,)`."""
    probabilities = predictions[[PROBABILITY + name for name in class_names_of(predictions)]]
    return probabilities.max(axis=1).to_numpy(), (predictions["prediction"] == predictions["reference"]).to_numpy()
