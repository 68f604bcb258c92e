"""One recording through a pipeline, for the page and the API alike: its limits, and errors that people can read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

logger = logging.getLogger(__name__)
UNKNOWN_FRAMES = 2**60  # and more: what libsndfile says of a length that a header leaves open
MOST_CHANNELS = 8  # that are heard each on its own
LONGEST_NAME = 100  # characters


class Limits(NamedTuple):
    """What the server takes, and how long it keeps it.

    Attributes:
        longest_minutes: of a recording.
        largest_megabytes: of a file, of 1,000,000 bytes.
        kept_minutes: how long a file stays when its visitor does, at most.
    """

    longest_minutes: float = 60.0
    largest_megabytes: float = 100.0
    kept_minutes: float = 60.0


def answer(
    classify: Any,
    audio: str | os.PathLike[str],
    segments: str | list[Any] | None = None,
    channels: str = "mix",
    limits: Limits | None = None,
    on_progress: Callable[[float, float | None], None] | None = None,
    name: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Returns what a pipeline says of a recording: its own values, ready for JSON.

    Args:
        classify: the pipeline.
        audio: path of the file, which is touched while it is heard; where it is deleted meanwhile, that ends.
        segments, channels, options: the pipeline's arguments; see `docs/inference.md`.
        limits: what is refused, by its header before the model works, and where that lies while it is decoded; None is
            the defaults.
        on_progress: called with how many seconds are decoded, and of how many, None where the header does not say.
        name: what its owner calls it, and errors; without its folder, if it names one.

    Raises:
        ValueError: for whatever goes wrong, in one line, without a folder's name.
    """
    limits = limits or Limits()
    path = Path(audio)
    name = re.split(r"[/\\]", name or path.name)[-1][-LONGEST_NAME:]
    known, there = _header(path)
    done = 0.0

    def heard(seconds: float) -> None:
        nonlocal done
        os.utime(path)
        done += seconds
        check(done, "longer than that")
        if on_progress is not None:
            on_progress(done, known)

    def check(seconds: float, length: str) -> None:
        if seconds > limits.longest_minutes * 60:
            raise ValueError(f"{name}: at most {limits.longest_minutes:g} minutes are taken here, and this is {length}")

    given = {"segments": segments, "channels": None if channels == "mix" else channels, **options}
    try:
        megabytes = path.stat().st_size / 1e6
        if megabytes > limits.largest_megabytes:
            most = f"at most {limits.largest_megabytes:g} MB are taken here"
            raise ValueError(f"{name}: {most}, and this is {megabytes:.1f} MB")
        check(known or 0.0, f"{(known or 0.0) / 60:.1f} minutes long")
        if channels != "mix" and there > MOST_CHANNELS:
            raise ValueError(
                f"{name}: at most {MOST_CHANNELS} channels are heard each on its own, and this has {there}"
            )
        given = {argument: value for argument, value in given.items() if value is not None}
        result: dict[str, Any] = classify(str(path), on_progress=heard, **given)
        return result
    except FileNotFoundError as error:
        raise ValueError(f"{name}: the file is gone; upload it again") from error
    except (ValueError, ImportError) as error:
        text = str(error).replace(str(path), name).replace(f"{path.parent}{os.sep}", "")
        raise ValueError(" ".join(text.split())) from error
    except Exception as error:
        logger.exception("a recording was not answered")
        raise ValueError(f"{name}: this could not be answered; the server's log says why") from error


def _header(path: Path) -> tuple[float | None, int]:
    """How long a file says it is, in seconds, and how many channels it has; None and 1 where libsndfile cannot tell."""
    try:
        info = soundfile.info(str(path))
    except (OSError, RuntimeError):
        return None, 1
    return info.frames / info.samplerate if 0 < info.frames < UNKNOWN_FRAMES else None, info.channels
