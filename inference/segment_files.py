"""Segments with what was heard in them, as files that other tools open: captions, labels, TextGrids, tables."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exhubert.inference.prediction_rows import file_cell
from exhubert.utils.files import whole_file, write_text
from exhubert.utils.text import as_text, in_one_line, spreadsheet_cell

STYLES = {  # how a file of each is called behind the recording's name
    "vtt": ".vtt",
    "srt": ".srt",
    "audacity": ".txt",
    "textgrid": ".TextGrid",
    "elan": ".elan.txt",
    "csv": ".csv",
}
CSV_COLUMNS = ("file", "channel", "start", "duration", "speaker", "label", "probability", "arousal", "valence")
TIER_DIGITS = 4  # of smaller numbers Python writes an exponent, which not all readers take
ONLY_TIER = "emotion"  # where there is neither speaker nor channel
# SubRip has no escapes: what its players take for markup.
NO_MARKUP = str.maketrans("<>{}", "[]()")

Spoken = tuple[int | None, Mapping[str, Any]]  # channel, from 1, where there are several; segment


def check_styles(styles: Sequence[str]) -> None:
    """Raises ImportError if what writes a style is not installed."""
    try:
        if {"vtt", "srt"} & set(styles):
            import webvtt  # noqa: F401
        if "textgrid" in styles:
            import praatio  # noqa: F401
    except ImportError as error:
        raise ImportError("files of segments need webvtt-py and praatio: pip install webvtt-py praatio") from error


def write_segments(
    path: Path,
    style: str,
    name: str,
    result: Mapping[str, Any],
    seconds: float,
    dimensions: Sequence[str] = (),
) -> None:
    """Writes the segments of one recording, of all its channels, in the order of their beginnings.

    The text of a segment is its label with its probability, or, of a model of dimensions alone, these; before it
    channel and speaker, where there are any; behind it `?` where it is uncertain.

    Args:
        path: the file; it is replaced.
        style: one of `STYLES`.
        name: of the recording, for csv.
        result: what the pipeline returns with `segments`.
        seconds: how long the recording is, for TextGrids.
        dimensions: the names of those that the model has.

    Raises:
        OSError: if it cannot be written.
    """
    writers: dict[str, Callable[[], str]] = {
        "vtt": lambda: captions(result, lambda text: html.escape(text, quote=False)).content,
        "srt": lambda: _srt(result),
        "audacity": lambda: "".join(_audacity(result)),
        "elan": lambda: "".join(_elan(result)),
        "csv": lambda: _csv(name, result, dimensions),
    }
    if style == "textgrid":
        _write_textgrid(path, result, seconds)
    else:
        write_text(path, writers[style]())


def spoken(result: Mapping[str, Any]) -> list[Spoken]:
    """The segments of all channels, in the order of their beginnings."""
    found = [
        (each.get("channel"), segment) for each in result.get("channels", [result]) for segment in each["segments"]
    ]
    return sorted(found, key=lambda one: one[1]["start"])


def answer_text(segment: Mapping[str, Any]) -> str:
    """What was heard in a segment, for people: `high/negative 0.83`, with `?` where that is uncertain."""
    if segment.get("probabilities"):
        text = f"{segment['label']} {segment['probabilities'][segment['label']]:.2f}"
    else:
        text = ", ".join(f"{name} {value:.2f}" for name, value in (segment.get("dimensions") or {}).items())
    return in_one_line(f"{text} ?" if segment.get("uncertain") else text)


def tier_name(channel: int | None, segment: Mapping[str, Any]) -> str:
    """Who speaks, as far as it is known: `channel 1, anna`."""
    parts = [*([] if channel is None else [f"channel {channel}"]), in_one_line(segment.get("speaker") or "")]
    return ", ".join(part for part in parts if part)


def _texts(result: Mapping[str, Any]) -> Iterator[tuple[float, float, str]]:
    for channel, segment in spoken(result):
        who = tier_name(channel, segment)
        yield segment["start"], segment["end"], f"{who}: {answer_text(segment)}" if who else answer_text(segment)


def captions(result: Mapping[str, Any], escape: Callable[[str], str]) -> Any:
    """The segments as a `webvtt.WebVTT`, their texts escaped."""
    from webvtt import Caption, WebVTT

    texts = _texts(result)
    return WebVTT(captions=[Caption(_clock(start), _clock(end), escape(text)) for start, end, text in texts])


def _srt(result: Mapping[str, Any]) -> str:
    file = io.StringIO()
    captions(result, lambda text: text.translate(NO_MARKUP)).write(file, format="srt")
    return f"{file.getvalue()}\n"


def _clock(seconds: float) -> str:
    """`01:02:03.450`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _audacity(result: Mapping[str, Any]) -> Iterator[str]:
    for start, end, text in _texts(result):
        yield f"{start:.6f}\t{end:.6f}\t{text}\n"


def _tiers(result: Mapping[str, Any]) -> dict[str, list[tuple[float, float, str]]]:
    """Start, end and text by tier; one for each speaker and channel, and more where segments of one overlap."""
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    for channel, segment in spoken(result):
        name = own = tier_name(channel, segment) or ONLY_TIER
        number = 1
        start, end = (round(segment[what], TIER_DIGITS) for what in ("start", "end"))
        while name in tiers and tiers[name][-1][1] > start:
            number += 1
            name = f"{own} ({number})"
        tiers.setdefault(name, []).append((start, max(end, start + 10**-TIER_DIGITS), answer_text(segment)))
    return tiers


def _elan(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Tier\tBegin Time\tEnd Time\tAnnotation\n"
    for name, entries in _tiers(result).items():
        for start, end, text in entries:
            yield f"{name}\t{_clock(start)}\t{_clock(end)}\t{text}\n"


def _write_textgrid(path: Path, result: Mapping[str, Any], seconds: float) -> None:
    from praatio.data_classes.interval_tier import IntervalTier
    from praatio.data_classes.textgrid import Textgrid

    tiers = _tiers(result) or {ONLY_TIER: []}
    starts = (start for entries in tiers.values() for start, _, _ in entries)  # rounded: one may be after the end
    last = max([seconds, *(start + 10**-TIER_DIGITS for start in starts)])
    grid = Textgrid(0.0, last)
    for name, entries in tiers.items():
        within = [(start, min(end, last), text) for start, end, text in entries]
        grid.addTier(IntervalTier(name, within, 0.0, last))
    with whole_file(path) as unfinished:
        grid.save(str(unfinished), "long_textgrid", includeBlankSpaces=True)


def _csv(name: str, result: Mapping[str, Any], dimensions: Sequence[str]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "uncertain", *(f"dimension_{name}" for name in dimensions)])
    for channel, segment in spoken(result):
        probabilities = segment.get("probabilities") or {}
        who, label = (spreadsheet_cell(in_one_line(segment.get(key) or "")) for key in ("speaker", "label"))
        place = [file_cell(as_text(name)), channel, segment["start"]]
        place += [round(segment["end"] - segment["start"], 6), who]
        answer = [label, probabilities.get(segment.get("label")), segment.get("arousal"), segment.get("valence")]
        of_dimensions = [(segment.get("dimensions") or {}).get(name) for name in dimensions]
        writer.writerow([*place, *answer, segment.get("uncertain"), *of_dimensions])
    return file.getvalue()
