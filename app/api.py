"""The endpoints of Gradio's API: `/classify` and `/models`; see `docs/app.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio

from .answers import Limits, answer
from .guard import Uploads

AT_ONCE = 4  # recordings; further ones wait
QUEUED = 100  # requests that wait; further ones are refused


def add_api(pipelines: Mapping[str, Any], limits: Limits, uploads: Uploads) -> None:
    """Adds the endpoints to the page that is being made."""
    first = next(iter(pipelines))

    def classify(
        audio: dict[str, Any],
        model: str = first,
        segments: str | list[dict[str, Any]] | None = None,
        channels: str = "mix",
        least_probability: float | None = None,
        least_seconds: float | None = None,
    ) -> dict[str, Any]:
        """What `exhubert predict --format jsonl` says of a recording, but for its name."""
        path = audio.get("path") if isinstance(audio, dict) else None
        if uploads.folder_of(path) is None:
            raise gradio.Error("audio is no file that was uploaded here", print_exception=False)
        named = str(audio.get("orig_name") or Path(str(path)).name)
        marks = {"least_probability": least_probability, "least_seconds": least_seconds}
        try:
            if model not in pipelines:
                raise ValueError(f"there is no model {model!r}; there is {', '.join(pipelines)}")
            check_turns(segments, limits)
            return answer(pipelines[model], str(path), segments, channels, limits, None, named, **marks)
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        finally:
            uploads.forget(str(path))

    def models() -> list[dict[str, Any]]:
        """The models, what they answer, and what the server takes."""
        return [
            {
                "model": name,
                "classes": pipeline.class_names,
                "dimensions": pipeline.dimensions,
                "window_seconds": getattr(pipeline.feature_extractor, "window_seconds", None),
                "calibration_temperature": getattr(pipeline.model.config, "calibration_temperature", None),
                "limits": limits._asdict(),
            }
            for name, pipeline in pipelines.items()
        ]

    gradio.api(classify, api_name="classify", concurrency_limit=AT_ONCE)
    gradio.api(models, api_name="models", queue=False)


def check_turns(segments: Any, limits: Limits) -> None:
    """Raises ValueError for turns that are together longer than the longest recording; the pipeline checks the rest."""
    if segments is None or isinstance(segments, str):
        return
    try:
        minutes = sum(turn["end"] - turn["start"] for turn in segments) / 60
    except (TypeError, KeyError) as error:
        raise ValueError('segments must be \'speech\' or a list of turns, {"start": ..., "end": ...}') from error
    if minutes > limits.longest_minutes:
        raise ValueError(f"the turns are {minutes:.1f} minutes long; at most {limits.longest_minutes:g} are taken here")
