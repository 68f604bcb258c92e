"""Numbers over a long recording: how much of the time has which class, for each minute, speaker and channel."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from exhubert.inference.prediction_rows import file_cell
from exhubert.utils.files import whole_file, write_text
from exhubert.utils.text import as_text, markdown_table, markdown_text, spreadsheet_cell

MINUTE = 60.0
STEP_MINUTES = (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 1440)
MOST_STEPS = 60  # rows of a table that a reader goes through; CSV has every minute
UNKNOWN = "-"
TEXTS = ("", "counted", "from", "most")  # columns of words, not numbers
CALIBRATED = "The probabilities are calibrated: logits were divided by {:.3f}, the model's fitted temperature."
NOT_CALIBRATED = (
    "The probabilities are not calibrated (the model has no fitted temperature): of labels with a probability of 0.9 "
    "more or less than nine in ten may be right."
)
NO_PROBABILITIES = "The model answers dimensions alone, without probabilities."


class Names(NamedTuple):
    """What a model answers.

    Attributes:
        classes: in class order; none of a model of dimensions alone.
        quadrant: arousal and valence, where its classes have them.
        dimensions: the scale of each.
        temperature: by which its logits were divided; 1 is that of a model which was not calibrated.
    """

    classes: Sequence[str]
    quadrant: Sequence[str] = ()
    dimensions: Mapping[str, Sequence[float]] = {}
    temperature: float = 1.0

    @property
    def calibrated(self) -> bool:
        """Whether probabilities are."""
        return self.temperature != 1.0

    @property
    def values(self) -> list[str]:
        """What each window has a number of, in this order."""
        return [*self.classes, *self.quadrant, *self.dimensions]


class Pieces(NamedTuple):
    """What a recording was cut into, segments or windows, in numbers; n of them, those of all channels.

    Attributes:
        start, end: of the time that each stands for, in seconds, float64 `(n,)`.
        values: in the order of `Names.values`, float64 `(n, values)`; NaN where there is no speech.
        uncertain: bool `(n,)`.
        channel: int `(n,)`; 0 where channels were averaged.
        speaker: of each, str `(n,)`; "" where unknown.
        channels: the numbers of all channels, also of one without pieces.
    """

    start: np.ndarray
    end: np.ndarray
    values: np.ndarray
    uncertain: np.ndarray
    channel: np.ndarray
    speaker: np.ndarray
    channels: tuple[int, ...]

    def where(self, chosen: np.ndarray) -> Pieces:
        """Those of a mask `(n,)`."""
        return Pieces._make([*(column[chosen] for column in self[:-1]), self.channels])

    @property
    def heard(self) -> np.ndarray:
        """Which have an answer, bool `(n,)`."""
        return ~np.isnan(self.values).all(axis=1)


class Line(NamedTuple):
    """Numbers of a part of a recording, over all of it or over a minute.

    Attributes:
        part: `recording`, `channel` or `speaker`.
        channel, speaker: of the part, where it is of one.
        start, end: in seconds.
        counted: `all` pieces, or the `certain` ones alone.
        speech: seconds in which one piece or more has an answer, each moment counted once.
        pieces: how many reach into this time and have an answer.
        counted_seconds: how long these are within it, together.
        uncertain: how many of them are uncertain.
        uncertain_seconds: how long these are within it.
        shares: of the time of the pieces the share with each class as label, `(classes,)`; NaN without pieces.
        means: of `Names.values`, weighted by time, `(values,)`; NaN without pieces.
    """

    part: str
    channel: int | None
    speaker: str | None
    start: float
    end: float
    counted: str
    speech: float
    pieces: int
    counted_seconds: float
    uncertain: int
    uncertain_seconds: float
    shares: np.ndarray
    means: np.ndarray


def write_summary(
    path: Path,
    file: str,
    model: str,
    result: Mapping[str, Any],
    names: Names,
    least: tuple[float, float] = (0.5, 0.5),
    seconds: float | None = None,
    given: bool = False,
) -> None:
    """Writes the summary of one recording: `<path>.md`, `<path>.csv` and `<path>.png`.

    Args:
        path: without the suffixes.
        file: the recording's name.
        model: that of the model.
        result: as the pipeline returns it, with windows or segments, of averaged channels or of each.
        names: what the model answers.
        least: the probability of a label and the seconds below which a segment is uncertain.
        seconds: how long the recording is; by default it ends with its last segment or window.
        given: whether segments are turns that somebody else found.

    Raises:
        OSError: if a file cannot be written.
        ImportError: without matplotlib.
    """
    from exhubert.inference.summary_picture import plot_summary

    kind, searched = kind_of(result), is_searched(result)
    pieces = pieces_of(result, names, least)
    seconds = float(max([seconds or 0.0, *pieces.end.tolist()]))
    whole, minutes, steps = (
        list(lines_of(pieces, len(names.classes), seconds, step)) for step in (seconds, MINUTE, step_seconds(seconds))
    )
    write_csv(path.with_name(f"{path.name}.csv"), file, {"whole": whole, "minute": minutes}, names, kind, searched)
    facts = [f"By {markdown_text(as_text(model))}.", *summary_facts(whole[0], result, names, least, given)]
    texts = [f"# {markdown_text(as_text(file))}", "\n".join(f"- {fact}" for fact in facts)]
    texts += [summary_text(whole, steps, names, kind, searched)] if whole[0].pieces else []
    write_text(path.with_name(f"{path.name}.md"), "\n\n".join(texts) + "\n")
    plot_summary(path.with_name(f"{path.name}.png"), f"{file}, by {model}", whole, steps, names, searched)


def channels_of_result(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is said of each channel; of averaged ones all that there is."""
    return list(result["channels"]) if "channels" in result else [result]


def kind_of(result: Mapping[str, Any]) -> str:
    """What a recording was cut into: `segments` or `windows`."""
    return "segments" if any("segments" in each for each in channels_of_result(result)) else "windows"


def is_searched(result: Mapping[str, Any]) -> bool:
    """Whether it is known where there is speech: with segments, and with windows that were searched for it."""
    every = [window for each in channels_of_result(result) for window in each["windows"]]
    return kind_of(result) == "segments" or any("speech" in window for window in every)


def pieces_of(result: Mapping[str, Any], names: Names, least: tuple[float, float] = (0.5, 0.5)) -> Pieces:
    """The segments of a result, else its windows, each for the time that it stands for.

    A segment stands for its own time. Windows overlap; one stands for the time around its middle, from half way to the
    one before until half way to the next, the first from the start and the last until the end.
    """
    kind, columns, numbers = kind_of(result), [], []
    for channel in channels_of_result(result):
        found = channel[kind]
        values = values_of(found, names)
        starts, ends = (np.array([each[key] for each in found], np.float64) for key in ("start", "end"))
        if kind == "segments":
            uncertain = np.array([bool(each["uncertain"]) for each in found], bool)
        else:
            likeliest = values[:, : len(names.classes)].max(axis=1, initial=-np.inf)
            uncertain = (ends - starts < least[1]) | ((likeliest < least[0]) & (len(names.classes) > 0))
            edges = window_edges(starts, ends)
            starts, ends = edges[:-1], edges[1:]
        numbers.append(channel.get("channel", 0))
        speakers = np.array([each.get("speaker") or "" for each in found], object)
        columns.append((starts, ends, values, uncertain, np.full(len(found), numbers[-1]), speakers))
    return Pieces._make([*map(np.concatenate, zip(*columns, strict=True)), tuple(numbers)])


def values_of(pieces: Sequence[Mapping[str, Any]], names: Names) -> np.ndarray:
    """The numbers of windows or segments, `(n, values)`, in the order of `Names.values`; NaN without speech."""
    values = np.full((len(pieces), len(names.values)), np.nan)
    for row, piece in zip(values, pieces, strict=True):
        if piece["probabilities" if names.classes else "dimensions"] is not None:
            row[:] = [
                *(piece["probabilities"][name] for name in names.classes),
                *(piece[name] for name in names.quadrant),
                *(piece["dimensions"][name] for name in names.dimensions),
            ]
    return values


def window_edges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Between which times each window stands alone, `(windows + 1,)` in seconds: half way between their middles."""
    if not len(starts):
        return np.zeros(1)
    middles = (starts + ends) / 2
    return np.array([starts[0], *(middles[:-1] + middles[1:]) / 2, ends[-1]])


def overlaps(starts: np.ndarray, ends: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """How many seconds of each span lie from `low` to `high`."""
    return np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0.0, None)


def joined(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans as few that do not overlap."""
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.append(True, starts[1:] > ends[:-1])[: len(starts)]
    return starts[first], ends[np.append(first[1:], True)[: len(starts)]]


def step_seconds(seconds: float) -> float:
    """In how long steps a table or picture goes through a recording: minutes, more of them in a long one."""
    return MINUTE * next((step for step in STEP_MINUTES if seconds <= MOST_STEPS * MINUTE * step), STEP_MINUTES[-1])


def parts_of_recording(pieces: Pieces) -> Iterator[tuple[str, int | None, str | None, np.ndarray]]:
    """The recording, its channels if there are several, and its speakers if any is known: name and mask of each."""
    yield "recording", None, None, np.ones(len(pieces.start), bool)
    for channel in pieces.channels if len(pieces.channels) > 1 else ():
        yield "channel", channel, None, pieces.channel == channel
    found = sorted(set(zip(pieces.channel.tolist(), pieces.speaker.tolist(), strict=True)))
    for channel, name in found if any(pieces.speaker) else ():
        yield "speaker", channel or None, name, (pieces.channel == channel) & (pieces.speaker == name)


def lines_of(pieces: Pieces, classes: int, seconds: float, step: float) -> Iterator[Line]:
    """Yields two lines, `all` and `certain`, for each part of a recording and each step of so many seconds."""
    edges = [*np.arange(0.0, seconds, step).tolist(), seconds] if seconds else [0.0, 0.0]
    pieces = pieces.where(pieces.heard)
    labels = pieces.values[:, :classes].argmax(axis=1) if classes else np.zeros(len(pieces.start), int)
    for part, channel, speaker, chosen in parts_of_recording(pieces):
        for counted, mask in (("all", chosen), ("certain", chosen & ~pieces.uncertain)):
            own, label = pieces.where(mask), labels[mask]
            spans = joined(own.start, own.end)
            for start, end in itertools.pairwise(edges):
                weights = overlaps(own.start, own.end, start, end)
                total, unsure = weights.sum(), weights[own.uncertain]
                counts = np.bincount(label, weights, minlength=classes)[:classes]
                yield Line(
                    *(part, channel, speaker, start, end, counted),
                    speech=float(overlaps(*spans, start, end).sum()),
                    pieces=int((weights > 0).sum()),
                    counted_seconds=float(total),
                    uncertain=int((unsure > 0).sum()),
                    uncertain_seconds=float(unsure.sum()),
                    shares=counts / total if total else np.full(classes, np.nan),
                    means=weights @ own.values / total if total else np.full(own.values.shape[1], np.nan),
                )


def write_csv(
    path: Path, file: str, lines: Mapping[str, Sequence[Line]], names: Names, kind: str, searched: bool
) -> None:
    """Writes the lines over the whole and over each minute as CSV, to six decimals; what is not known is empty."""
    header = ["file", "over", "part", "channel", "speaker", "start", "end", "counted", "seconds", "speech_seconds"]
    header += [kind, "counted_seconds", f"uncertain_{kind}", "uncertain_seconds"]
    header += ["label", "calibrated"] if names.classes else []
    header += [f"share_{name}" for name in names.classes] + [f"probability_{name}" for name in names.classes]
    header += [*names.quadrant, *(f"dimension_{name}" for name in names.dimensions)]
    file = file_cell(as_text(file))
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(header)
        for over, line in ((over, line) for over, each in lines.items() for line in each):
            speaker = spreadsheet_cell(as_text(line.speaker or ""))
            place = [file, over, line.part, line.channel, speaker, line.start, line.end, line.counted]
            times = [line.end - line.start, line.speech if searched else None, line.pieces, line.counted_seconds]
            times += [line.uncertain, line.uncertain_seconds]
            label = [spreadsheet_cell(main_class(line, names)), "yes" if names.calibrated else "no"]
            cells = [*place, *times, *(label if names.classes else []), *line.shares.tolist(), *line.means.tolist()]
            writer.writerow([_csv_number(cell) if isinstance(cell, float) else cell for cell in cells])


def _csv_number(value: float) -> Any:
    return "" if math.isnan(value) else round(value, 6) + 0.0


def main_class(line: Line, names: Names) -> str:
    """The class that most of the time is labelled with; "" without speech."""
    return names.classes[int(line.shares.argmax())] if line.pieces and names.classes else ""


def summary_facts(
    whole: Line, result: Mapping[str, Any], names: Names, least: tuple[float, float], given: bool
) -> list[str]:
    """What a reader of the numbers must know: how much there is, how sure, how computed; a sentence or two each."""
    kind, searched = kind_of(result), is_searched(result)
    channels = [each["channel"] for each in channels_of_result(result) if "channel" in each]
    of_channels = f" on {len(channels)} channels, each on its own" if len(channels) > 1 else ""
    if not whole.pieces:
        return [f"{clock(whole.end)} of audio{of_channels}. No speech was found in it."]
    speech = f", {clock(whole.speech)} ({_percent(whole.speech / whole.end)} %) of it speech" if searched else ""
    counted = f"{whole.pieces:,} {kind}" if whole.pieces > 1 else f"1 {kind[:-1]}"
    facts = [f"{clock(whole.end)} of audio{of_channels}{speech}, in {counted}."]
    if kind == "windows":
        facts.append("A window stands for the time around its middle, until half way to the next one.")
    else:
        facts.append(f"Segments are {'turns that were given' if given else 'utterances, found by speech detection'}.")
    calibration = CALIBRATED.format(names.temperature) if names.calibrated else NOT_CALIBRATED
    facts.append(calibration if names.classes else NO_PROBABILITIES)
    limits = [f"its label has a probability below {least[0]:g}"] if names.classes else []
    limits = [f"it is shorter than {least[1]:g} s", *limits]
    facts.append(
        f"A {kind[:-1]} is uncertain where {' or '.join(limits)}: {whole.uncertain:,} of {whole.pieces:,}, "
        f"{clock(whole.uncertain_seconds)}. They are part of the numbers; rows `certain` are without them."
    )
    if result.get("warning"):
        facts.append(f"Warning: {markdown_text(result['warning'])}.")
    return facts


def summary_text(whole: Sequence[Line], steps: Sequence[Line], names: Names, kind: str, searched: bool) -> str:
    """The tables of a summary, as markdown."""
    of_parts = [(line, {"": part_name(line), "counted": line.counted}) for line in whole]
    rows = [{**row, **_times(line, kind, searched), **_numbers(line, names)} for line, row in of_parts]
    texts = ["## Parts", _table(rows)]
    if names.classes:
        texts += ["## Share of time in %", _table([{**row, **_shares(line.shares, names)} for line, row in of_parts])]
        rows = [{**row, **_shares(line.means[: len(names.classes)], names)} for line, row in of_parts]
        texts += ["## Mean probability in %", _table(rows)]
    minutes = round(step_seconds(whole[0].end) / MINUTE)
    texts.append("## Minute by minute" if minutes == 1 else f"## In steps of {minutes} minutes")
    rows = []
    for line in sorted(lanes_of(steps), key=lambda line: line.start):  # channels beside each other
        lane = {"": part_name(line)} if line.part == "channel" else {}
        most = {"most": main_class(line, names) or UNKNOWN, "in %": _percent(line.shares.max(initial=-1.0))}
        row = {"from": clock(line.start), **lane, **_times(line, kind, searched), **(most if names.classes else {})}
        rows.append({**row, **_numbers(line, names)})
    return "\n\n".join([*texts, _table(rows)])


def lanes_of(lines: Iterable[Line], counted: str = "all") -> list[Line]:
    """Those of each channel, or of the recording where there is one channel alone."""
    lines = [line for line in lines if line.counted == counted]
    return [line for line in lines if line.part == "channel"] or [line for line in lines if line.part == "recording"]


def part_name(line: Line) -> str:
    """What a line is about, for people."""
    channel = "" if line.channel is None else f"channel {line.channel}"
    if line.part != "speaker":
        return channel or line.part
    return ", ".join(filter(None, [line.speaker or "nobody named", channel]))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def uncertain_share(line: Line) -> float:
    """Which share of the time of its pieces is uncertain; NaN without pieces."""
    return line.uncertain_seconds / line.counted_seconds if line.counted_seconds else math.nan


def _times(line: Line, kind: str, searched: bool) -> dict[str, str]:
    """How much there is, and how much of it is uncertain."""
    span = line.end - line.start
    speech = {"speech": f"{clock(line.speech)} ({_percent(line.speech / span)} %)"} if searched else {}
    unsure = _percent(uncertain_share(line)) if line.counted == "all" else UNKNOWN
    return {kind: f"{line.pieces:,}", **speech, "uncertain in %": unsure}


def _shares(values: np.ndarray, names: Names) -> dict[str, str]:
    return {name: _percent(value) for name, value in zip(names.classes, values, strict=True)}


def _numbers(line: Line, names: Names) -> dict[str, str]:
    """Arousal, valence and dimensions, these to about a hundredth of their scale."""
    means = iter(line.means[len(names.classes) :].tolist())
    cells = {name: f"{next(means):+.2f}" for name in names.quadrant}
    for name, (low, high) in names.dimensions.items():
        cells[f"{name} [{low:g}, {high:g}]"] = f"{next(means):.{max(0, 2 - int(math.log10(high - low)))}f}"
    return {name: cell if line.pieces else UNKNOWN for name, cell in cells.items()}


def _percent(share: float) -> str:
    return UNKNOWN if math.isnan(share) else f"{100 * share:.0f}"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    header = [markdown_text(name) for name in rows[0]]
    left = [place for place, name in enumerate(rows[0]) if name in TEXTS]
    return markdown_table(header, [[markdown_text(cell) for cell in row.values()] for row in rows], left)
