"""Predictions of a model on corpora: every clip whole, in windows, whatever the batch size or number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
from exhubert.pipeline_exhubert import Window, make_windows, on_scale
from exhubert.utils.command import progress_bar

PROBABILITY = "probability_"  # begins the names of the columns that hold the classes' probabilities
REFERENCE, PREDICTED = "reference_", "predicted_"  # begin those that hold the values of dimensions


class WindowAnswers(NamedTuple):
    """What a model says of all windows of some clips.

    Attributes:
        logits: float64 `(windows, classes)`; of a model of dimensions alone `(windows, dimensions)`.
        clip_of_window: `(windows,)`, the number of each window's clip, counted over all corpora, in order.
        dimensions: float64 `(windows, dimensions)`, from 0 to 1; None of a model of classes alone.
    """

    logits: np.ndarray
    clip_of_window: np.ndarray
    dimensions: np.ndarray | None = None


def classify(
    model: torch.nn.Module,
    extractor: Any,
    corpora: Mapping[str, Dataset],
    batch_size: int = 8,
    condition: str | None = None,
    in_step: Callable[[bool], bool] | None = None,
    description: str = "classifying",
) -> WindowAnswers:
    """Classifies clips in windows and batches, as the pipeline does.

    The clips are dealt to the processes; each process gets all results. Where the model takes an attention mask,
    windows of similar length are batched, padded and masked, else those of one length.

    Args:
        model: a model of classes, dimensions or both, in the mode and on the device that it shall work in.
        extractor: its feature extractor.
        corpora: the clips to classify.
        batch_size: windows in a batch.
        condition: one of `degradations.CONDITIONS`, which the audio is put under first.
        in_step: called before each batch with whether this process has one, and returns whether any process has one;
            a process that has none repeats its last. None lets each process go at its own pace.
        description: of the progress bar.

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

    found: list[tuple[int, int, np.ndarray, np.ndarray | None]] = []
    answered = classify_clips(model, extractor, heard(), batch_size, masked, in_step=in_step)
    with progress_bar(total=len(mine), desc=description, unit="clip", disable=not state.is_main_process) as bar:
        for number, answers in zip(mine, answered, strict=True):
            answers.check()
            for window, row in answers.rows.items():
                values = None if row.dimensions is None else row.dimensions.double().numpy()
                found.append((number, window, row.logits.double().numpy(), values))
            bar.update()
    everyones = {(clip, index): row for clip, index, *row in gather_object(found)}
    keys = sorted(everyones)
    logits, dimensions = zip(*(everyones[key] for key in keys), strict=True)
    return WindowAnswers(
        np.stack(logits),
        np.array([clip for clip, _ in keys]),
        None if dimensions[0] is None else np.stack(dimensions),
    )


def predictions_table(
    corpora: Mapping[str, Dataset],
    class_names: Sequence[str],
    answers: WindowAnswers,
    temperature: float = 1.0,
    dimensions: Mapping[str, Sequence[float]] | None = None,
) -> pandas.DataFrame:
    """Makes a table of what `classify` returned: probabilities and values of a clip are the means over its windows.

    Args:
        corpora: the clips, with `labels`, -100 where a clip has no class, and with dimensions `dimensions`, the
            references from 0 to 1, NaN where there is none; a corpus without that column has none.
        class_names: of the model; none of a model of dimensions alone.
        answers: of `classify`.
        temperature: that logits are divided by.
        dimensions: of the model: name -> lowest and highest value of the scale that values are shown on.

    Returns:
        One row a clip: `corpus`, `file_name`, `start_seconds`, `speaker`, `sex`, `language` (empty where unknown) and
        `windows`; of classes `reference`, "" where there is none, `prediction` (class names) and `probability_<class>`
        for each; of dimensions `reference_<dimension>` and `predicted_<dimension>` for each, on its scale.
    """
    parts = []
    for name, dataset in corpora.items():
        columns: dict[str, Any] = {"corpus": name, "file_name": dataset["file_name"][:]}
        for column, unknown in (("start_seconds", 0.0), ("speaker", ""), ("sex", ""), ("language", "")):
            values = dataset[column][:] if column in dataset.column_names else [None] * len(dataset)
            columns[column] = [unknown if pandas.isna(value) else type(unknown)(value) for value in values]
        if class_names:
            columns["reference"] = [class_names[label] if label >= 0 else "" for label in dataset["labels"][:]]
        parts.append(pandas.DataFrame(columns))
    table = pandas.concat(parts, ignore_index=True)
    windows = np.bincount(answers.clip_of_window)
    table.insert(6, "windows", windows)
    if class_names:
        probabilities = clip_probabilities(answers.logits, answers.clip_of_window, temperature)
        table["prediction"] = [class_names[index] for index in probabilities.argmax(axis=1)]
        found = {f"{PROBABILITY}{name}": row for name, row in zip(class_names, probabilities.T, strict=True)}
        table = table.assign(**found)
    if dimensions:
        assert answers.dimensions is not None
        sums = np.zeros((len(windows), len(dimensions)))
        np.add.at(sums, answers.clip_of_window, answers.dimensions)
        truth = dimension_references(corpora, len(dimensions))
        for prefix, values in ((REFERENCE, truth), (PREDICTED, sums / windows[:, None])):
            shown = on_scale(values, dimensions)
            table = table.assign(**{f"{prefix}{name}": shown[:, number] for number, name in enumerate(dimensions)})
    return table


def dimension_references(corpora: Mapping[str, Dataset], count: int) -> np.ndarray:
    """The references of so many dimensions, from 0 to 1, float64 `(clips, dimensions)`; NaN where there is none."""
    parts = [
        np.array(part["dimensions"][:], dtype=float)
        if "dimensions" in part.column_names
        else np.full((len(part), count), np.nan)
        for part in corpora.values()
    ]
    return np.concatenate([part.reshape(-1, count) for part in parts])


def class_names_of(predictions: pandas.DataFrame) -> list[str]:
    """Returns the class names of a table of predictions, in order."""
    names = [str(column) for column in predictions.columns]
    return [name.removeprefix(PROBABILITY) for name in names if name.startswith(PROBABILITY)]


def confidences(predictions: pandas.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each clip's predicted class `(clips,)`, and whether that class is right `(clips,)`."""
    probabilities = predictions[[PROBABILITY + name for name in class_names_of(predictions)]]
    return probabilities.max(axis=1).to_numpy(), (predictions["prediction"] == predictions["reference"]).to_numpy()


def dimension_names_of(predictions: pandas.DataFrame) -> list[str]:
    """Returns the names of the dimensions in a table of predictions, in order."""
    names = [str(column) for column in predictions.columns]
    return [name.removeprefix(PREDICTED) for name in names if name.startswith(PREDICTED)]
