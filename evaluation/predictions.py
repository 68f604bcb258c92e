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
from tqdm import tqdm
from transformers import Wav2Vec2FeatureExtractor

from exhubert.audio_exhubert import audio_seconds, extract_features, iter_windows, longest_input_seconds, read_audio
from exhubert.corpora.readers import locate_clip
from exhubert.evaluation.calibration import clip_probabilities
from exhubert.evaluation.degradations import degrade

Window = tuple[int, int, np.ndarray]  # the number of its clip, its number in the clip, its input


def classify(
    model: torch.nn.Module,
    extractor: Any,
    corpora: Mapping[str, Dataset],
    batch_size: int = 8,
    condition: str | None = None,
    in_step: Callable[[bool], bool] | None = None,
    description: str = "classifying",
) -> tuple[np.ndarray, np.ndarray]:
    """Classifies clips in the overlapping windows of `iter_windows`, as the pipeline does.

    The clips are dealt to the processes; each process gets all results. Windows of one length are batched, so that
    no result depends on what else is in its batch. Where the model takes an attention mask, windows of similar length
    are padded and masked instead.

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
    of_any_length = isinstance(extractor, Wav2Vec2FeatureExtractor) and not hasattr(extractor, "window_seconds")
    masked = of_any_length and bool(extractor.return_attention_mask)
    if of_any_length:
        order.sort(key=lambda clip: -_seconds(clips[clip][1][clips[clip][2]]))
    mine = order[state.process_index :: state.num_processes] or order[:1]
    name = extractor.model_input_names[0]
    model.eval()
    parameter = next(model.parameters(), torch.zeros(0))
    bar = tqdm(total=len(mine), desc=description, unit="clip", disable=not state.is_main_process)

    def windows() -> Iterator[Window]:
        for number in mine:
            corpus, dataset, row = clips[number]
            clip = dataset[row]
            audio, start, duration = locate_clip(clip)
            samples = read_audio(audio, start, duration)
            if condition is not None:
                samples = degrade(samples, condition, f"{corpus}/{clip['file_name']}/{start}")
            for index, (_, window) in enumerate(iter_windows([samples], longest_input_seconds(extractor))):
                yield number, index, extract_features(window, extractor)
            bar.update()

    answers: list[tuple[int, int, np.ndarray]] = []
    batches = _batches(windows(), batch_size, masked)
    batch: list[Window] = []
    with bar, torch.no_grad():
        while True:
            following = next(batches, None)
            anyone = following is not None if in_step is None else in_step(following is not None)
            if not anyone:
                break
            batch = following or batch
            inputs = _stack(name, [window for _, _, window in batch], masked)
            inputs[name] = inputs[name].to(parameter.dtype)
            logits = model(**{key: value.to(parameter.device) for key, value in inputs.items()}).logits
            for (number, index, _), row in zip(batch, logits.double().cpu().numpy(), strict=True):
                if not np.isfinite(row).all():
                    corpus, dataset, position = clips[number]
                    file_name = dataset[position]["file_name"]
                    raise ValueError(f"{corpus}: {file_name}: the model's answer is {row.tolist()}; it is broken")
                answers.append((number, index, row))
    everyones = {(number, index): row for number, index, row in gather_object(answers)}
    keys = sorted(everyones)
    return np.stack([everyones[key] for key in keys]), np.array([number for number, _ in keys])


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
        columns["start_seconds"] = _column(dataset, "start_seconds", 0.0)
        for column in ("speaker", "sex", "language"):
            columns[column] = _column(dataset, column, "")
        parts.append(pandas.DataFrame({**columns, "reference": [class_names[label] for label in dataset["labels"][:]]}))
    table = pandas.concat(parts, ignore_index=True)
    table.insert(6, "windows", np.bincount(clip_of_window))
    table["prediction"] = [class_names[index] for index in probabilities.argmax(axis=1)]
    for index, label in enumerate(class_names):
        table[f"probability_{label}"] = probabilities[:, index]
    return table


def class_names_of(predictions: pandas.DataFrame) -> list[str]:
    """Returns the class names of a table of predictions, in order."""
    names = [str(column) for column in predictions.columns]
    return [name.removeprefix("probability_") for name in names if name.startswith("probability_")]


def _column(dataset: Dataset, name: str, unknown: Any) -> list[Any]:
    if name not in dataset.column_names:
        return [unknown] * len(dataset)
    return [unknown if value is None or value != value else value for value in dataset[name][:]]


def _seconds(row: dict[str, Any]) -> float:
    audio, start, duration = locate_clip(row)
    return audio_seconds(audio) - start if duration is None else duration


def _batches(windows: Iterator[Window], batch_size: int, masked: bool) -> Iterator[list[Window]]:
    """Batches of windows of one shape; of any shape, in order, where a mask tells them from their padding."""
    waiting: dict[Any, list[Window]] = {}
    for window in windows:
        shape = None if masked else window[2].shape
        group = waiting.setdefault(shape, [])
        group.append(window)
        if len(group) == batch_size:
            yield waiting.pop(shape)
    yield from waiting.values()


def _stack(name: str, windows: Sequence[np.ndarray], masked: bool) -> dict[str, torch.Tensor]:
    if not masked:
        return {name: torch.from_numpy(np.stack(windows))}
    longest = max(len(window) for window in windows)
    padded = np.stack([np.pad(window, (0, longest - len(window))) for window in windows])
    mask = np.stack([np.arange(longest) < len(window) for window in windows])
    return {name: torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask).long()}
