"""The result of a recording as HTML: answers, the plane, the timeline with its waveform, and the table of segments.

Everything is written here and escaped here; `timeline.js` plays it and moves about in it, and adds no text of others.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import soundfile
from webvtt import Caption, WebVTT

# Hue says valence and lightness arousal, in colours that stay apart for the colour-blind: fill and text.
SIX_COLOURS = {
    "high/negative": ("#b5470f", "#ffffff"),
    "low/negative": ("#f5b78e", "#1d1d1f"),
    "high/neutral": ("#666d77", "#ffffff"),
    "low/neutral": ("#c9cdd3", "#1d1d1f"),
    "high/positive": ("#1468b3", "#ffffff"),
    "low/positive": ("#9ccbec", "#1d1d1f"),
}
OTHER_COLOURS = (  # Okabe and Ito's
    ("#0072b2", "#ffffff"),
    ("#e69f00", "#1d1d1f"),
    ("#009e73", "#1d1d1f"),
    ("#cc79a7", "#1d1d1f"),
    ("#56b4e9", "#1d1d1f"),
    ("#d55e00", "#1d1d1f"),
    ("#f0e442", "#1d1d1f"),
    ("#8a8f98", "#1d1d1f"),
)
NO_CLASS = ("#8a8f98", "#1d1d1f")
# Words of the published model's card, and of the table of labels.
SUCH_AS = {
    "high/negative": "anger or fear",
    "low/negative": "sadness or boredom",
    "high/neutral": "surprise",
    "low/neutral": "calm, matter-of-fact speech",
    "high/positive": "joy",
    "low/positive": "kindness",
}
MINUS = "\N{MINUS SIGN}"
SIGNS = {"negative": MINUS, "neutral": "○", "positive": "+"}
QUADRANT = ("arousal", "valence")
COLUMNS = 3000  # of a waveform
MOST_BUTTONS = 400  # of a lane; of more windows, neighbours of one class are one
MANY = 60  # points and steps that are drawn finer
MOST_POINTS = 300  # of a plane
MOST_ROWS = 500  # of a table; the CSV has them all


class Lane(NamedTuple):
    """What one model says of one channel.

    Attributes:
        model: its name.
        channel: from 1; None where they were mixed.
        result: as the pipeline returns it.
        scales: of the model's dimensions.
    """

    model: str
    channel: int | None
    result: Mapping[str, Any]
    scales: Mapping[str, Sequence[float]]

    @property
    def pieces(self) -> list[Mapping[str, Any]]:
        """Its segments, or its windows where there are none, that have an answer."""
        pieces = self.result.get("segments", self.result.get("windows", ()))
        return [piece for piece in pieces if piece.get("label") is not None or piece.get("dimensions")]

    @property
    def what(self) -> str:
        return "segment" if "segments" in self.result else "window"


def lanes_of(model: str, answer: Mapping[str, Any], scales: Mapping[str, Sequence[float]]) -> list[Lane]:
    """The lanes of an answer of the pipeline: one, or one for each channel."""
    if "channels" in answer:
        return [Lane(model, result["channel"], result, scales) for result in answer["channels"]]
    return [Lane(model, None, answer, scales)]


def plain_name(label: str) -> str:
    """A class in plain words: `high/negative` is "High arousal, negative"; others are as they are."""
    arousal, _, valence = label.partition("/")
    return f"{arousal.capitalize()} arousal, {valence}" if label in SUCH_AS else label


def short_name(label: str) -> str:
    """A class in a few characters, for narrow bands: `high/negative` is an arrow up and a minus."""
    arousal, _, valence = label.partition("/")
    return {"high": "↑", "low": "↓"}[arousal] + SIGNS[valence] if label in SUCH_AS else label[:3]


def colours_of(class_names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Fill and text of each class of a model."""
    return {
        name: SIX_COLOURS.get(name, OTHER_COLOURS[number % len(OTHER_COLOURS)])
        for number, name in enumerate(class_names)
    }


def clock(seconds: float, digits: int = 1) -> str:
    """Seconds as `1:02.5`, or `1:01:02.5`."""
    whole = round(seconds * 10**digits)
    minutes, rest = divmod(whole, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    width = 3 + digits if digits else 2
    small = f"{rest / 10**digits:0{width}.{digits}f}"
    return f"{hours}:{minutes:02}:{small}" if hours else f"{minutes}:{small}"


def percent(probability: float) -> str:
    return f"{100 * probability:.0f} %"


def number(value: float, form: str = ".2f") -> str:
    """A number with a minus sign that is no hyphen."""
    return f"{value:{form}}".replace("-", MINUS)


def signed(value: float) -> str:
    return number(value, "+.2f")


def range_of(scale: Sequence[float]) -> str:
    """A scale in words: `1 to 7`."""
    return f"{number(scale[0], 'g')} to {number(scale[1], 'g')}"


def waveform(path: str, columns: int = COLUMNS) -> tuple[float, list[np.ndarray]]:
    """Reads a file in blocks.

    Args:
        path: the file.
        columns: of the picture, at most.

    Returns:
        Its seconds, and for each channel float32 `(columns, 2)`: the lowest and highest sample of each column. Of a
        file that soundfile does not decode 0 and nothing; the pipeline may read it all the same.
    """
    try:
        with soundfile.SoundFile(path) as file:
            size = max(1, math.ceil(min(file.frames, 10 * columns * file.samplerate) / columns))
            ends, frames = [], 0
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                ends.append(np.stack([block.min(axis=0), block.max(axis=0)], axis=-1))
                frames += len(block)
    except (soundfile.LibsndfileError, TypeError):
        return 0.0, []
    if not ends:
        return 0.0, []
    parts = np.array_split(np.clip(np.nan_to_num(np.array(ends)), -1, 1), min(len(ends), columns))
    peaks = np.array([np.stack([part[..., 0].min(axis=0), part[..., 1].max(axis=0)], axis=-1) for part in parts])
    return frames / file.samplerate, list(np.moveaxis(peaks, 1, 0))


def mixed(peaks: Sequence[np.ndarray]) -> np.ndarray:
    """One waveform for all channels: the lowest and highest of any."""
    return np.stack([np.min(peaks, axis=0)[:, 0], np.max(peaks, axis=0)[:, 1]], axis=-1)


# -- the parts of the page ---------------------------------------------------------------------------------------------


def result_html(
    name: str, url: str, seconds: float, peaks: Sequence[np.ndarray], lanes: Sequence[Lane], notes: Sequence[str] = ()
) -> str:
    """All of a result.

    Args:
        name: of the recording, as its owner calls it.
        url: where the browser finds it.
        seconds: its length; 0 where it is not known.
        peaks: of `waveform`.
        lanes: of every model and channel, at least one.
        notes: what is to be known about it, in whole sentences.
    """
    seconds = seconds or max((piece["end"] for lane in lanes for piece in lane.pieces), default=0.0) or 1.0
    several = len({lane.model for lane in lanes}) > 1
    kinds = "".join(f"<p class='exh-note'>{escape(note)}</p>" for note in notes)
    channels = f" · {len(peaks)} channels" if len(peaks) > 1 else ""
    cards = "".join(card_html(lane, several) for lane in lanes)
    return f"""<exhubert-result data-seconds="{seconds:.3f}">
<section class="exh" aria-label="Result">
<header class="exh-file"><h2>{escape(name)}</h2><p>{clock(seconds)}{channels}</p></header>
{kinds}
<div class="exh-cards">{cards}</div>
{timeline_html(url, seconds, peaks, lanes, several)}
{table_html(lanes, several)}
{downloads_html(name, lanes, several)}
</section></exhubert-result>"""


def title_of(lane: Lane, several: bool) -> str:
    """Which model and channel a lane is, in text."""
    parts = [lane.model] if several else []
    return " · ".join(parts + ([f"Channel {lane.channel}"] if lane.channel else []))


def card_html(lane: Lane, several: bool) -> str:
    """The answer for the whole of a lane."""
    result, title = lane.result, title_of(lane, several)
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    if result.get("label") is None and not result.get("dimensions"):
        empty = "<p class='exh-label'>No speech was found</p>"
        advice = "Choose “windows of the whole recording” to have an answer all the same."
        return f"<article class='exh-card'>{heading}{empty}<p class='exh-sub'>{advice}</p></article>"
    answer = ""
    if label := result.get("label"):
        such_as = f"such as {SUCH_AS[label]}" if label in SUCH_AS else ""
        answer = (
            f"<p class='exh-label'>{escape(plain_name(label))}"
            f" <b>{percent(result['probabilities'][label])}</b></p><p class='exh-sub'>{such_as}</p>"
            + bars_html(result["probabilities"], label)
        )
    answer += scales_html(result.get("dimensions") or {}, lane.scales)
    answer = f"<div class='exh-answer'><div>{answer}</div>{plane_html(lane)}</div>"
    return f"<article class='exh-card'>{heading}{answer}</article>"


def bars_html(probabilities: Mapping[str, float], label: str) -> str:
    """The probabilities of all classes, the highest first."""
    colours = colours_of(probabilities)
    rows = "".join(
        f"<li{' class=exh-first' if name == label else ''}><span class='exh-name'>{escape(plain_name(name))}</span>"
        f"<span class='exh-bar'><i style='width:{100 * value:.1f}%;--c:{colours[name][0]}'></i></span>"
        f"<span class='exh-value'>{percent(value)}</span></li>"
        for name, value in sorted(probabilities.items(), key=lambda item: -item[1])
    )
    return f"<ul class='exh-bars' aria-label='Probabilities of all classes'>{rows}</ul>"


def scales_html(dimensions: Mapping[str, float], scales: Mapping[str, Sequence[float]]) -> str:
    """What the model says of its dimensions, each on its scale."""
    rows = []
    for name, value in dimensions.items():
        low, high = scales[name]
        place = min(1.0, max(0.0, (value - low) / (high - low)))
        rows.append(
            f"<li><span class='exh-name'>{escape(name)}</span>"
            f"<span class='exh-scale'><i style='left:{100 * place:.1f}%'></i></span>"
            f"<span class='exh-value'>{number(value)} <small>of {range_of(scales[name])}</small></span></li>"
        )
    return f"<ul class='exh-bars' aria-label='Dimensions'>{''.join(rows)}</ul>" if rows else ""


def place_of(piece: Mapping[str, Any], scales: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """Valence and arousal on -1 to 1, of the classes, or of the dimensions where only these have them."""
    if piece.get("arousal") is not None:
        return piece["valence"], piece["arousal"]
    dimensions = piece.get("dimensions") or {}
    if not set(QUADRANT) <= dimensions.keys():
        return None
    valence, arousal = (
        2 * (dimensions[name] - scales[name][0]) / (scales[name][1] - scales[name][0]) - 1 for name in QUADRANT[::-1]
    )
    return valence, arousal


def plane_html(lane: Lane) -> str:
    """The plane of valence and arousal with a point for each segment, the mean marked."""
    mean = place_of(lane.result, lane.scales)
    if mean is None:
        return ""
    colours = colours_of(lane.result.get("probabilities") or ())

    def at(place: tuple[float, float]) -> tuple[float, float]:
        valence, arousal = (84 * min(1.0, max(-1.0, value)) for value in place)
        return round(110 + valence, 1), round(110 - arousal, 1)

    points = []
    for piece in lane.pieces[:: max(1, len(lane.pieces) // MOST_POINTS)]:
        if (place := place_of(piece, lane.scales)) is not None:
            (x, y), fill = at(place), colours.get(piece.get("label", ""), NO_CLASS)[0]
            unsure = " class='exh-unsure'" if piece.get("uncertain") else ""
            points.append(f"<circle cx='{x}' cy='{y}' r='4' style='--c:{fill}'{unsure}/>")
    x, y = at(mean)
    many = " exh-many" if len(points) > MANY else ""
    if "arousal" in lane.result:
        arousal, valence = (signed(lane.result[name]) for name in QUADRANT)
        of = " <small>of the classes</small>" if lane.scales else ""
    else:
        arousal, valence = (number(lane.result["dimensions"][name]) for name in QUADRANT)
        of = ""
    said = f"Arousal {arousal}, valence {valence}; {len(lane.pieces)} {lane.what}s"
    return f"""<figure class="exh-plane"><svg viewBox="0 0 220 220" role="img" aria-label="{said}">
<rect x="22" y="22" width="176" height="176" rx="6"/><path d="M110 22V198M22 110H198"/>
<text x="110" y="15" text-anchor="middle">high arousal</text>
<text x="110" y="213" text-anchor="middle">low arousal</text>
<text transform="rotate(-90)" x="-110" y="15" text-anchor="middle">negative</text>
<text transform="rotate(90)" x="110" y="-207" text-anchor="middle">positive</text>
<g class="exh-points{many}">{"".join(points)}</g>
<g class="exh-mean"><circle cx="{x}" cy="{y}" r="8"/><path d="M{x - 13} {y}H{x + 13}M{x} {y - 13}V{y + 13}"/></g>
</svg><figcaption>Arousal <b>{arousal}</b> · Valence <b>{valence}</b>{of}</figcaption></figure>"""


def said_of(piece: Mapping[str, Any], lane: Lane, several: bool) -> str:
    """A segment in words, for those who do not see it."""
    parts = [f"{clock(piece['start'])} to {clock(piece['end'])}", title_of(lane, several)]
    parts.append(str(piece["speaker"]) if piece.get("speaker") else "")
    if label := piece.get("label"):
        sure = f" {percent(piece['probabilities'][label])}" if "probabilities" in piece else ""
        parts.append(plain_name(label) + sure)
    if piece.get("arousal") is not None:
        parts += [f"arousal {signed(piece['arousal'])}", f"valence {signed(piece['valence'])}"]
    parts += [f"{name} {number(value)}" for name, value in (piece.get("dimensions") or {}).items()]
    parts.append(f"uncertain: {piece['uncertain']}" if piece.get("uncertain") else piece.get("together", ""))
    return " · ".join(part for part in parts if part)


def edges_of(lane: Lane) -> list[tuple[float, float]]:
    """From where to where each piece is drawn: a segment as it is, a window around its middle."""
    pieces = lane.pieces
    if lane.what == "segment":
        return [(piece["start"], piece["end"]) for piece in pieces]
    middles = [(piece["start"] + piece["end"]) / 2 for piece in pieces]
    edges = []
    for number, piece in enumerate(pieces):  # neighbours meet between their middles where they overlap
        before = number and pieces[number - 1]["end"] >= piece["start"]
        after = number + 1 < len(pieces) and pieces[number + 1]["start"] <= piece["end"]
        left = (middles[number - 1] + middles[number]) / 2 if before else piece["start"]
        right = (middles[number] + middles[number + 1]) / 2 if after else piece["end"]
        edges.append((left, right))
    return edges


def runs_of(lane: Lane) -> Iterator[tuple[Mapping[str, Any], float, float]]:
    """Each piece with where it is drawn; of very many, neighbours of one class as one."""
    drawn = list(zip(lane.pieces, edges_of(lane), strict=True))
    if len(drawn) <= MOST_BUTTONS:
        yield from ((piece, left, right) for piece, (left, right) in drawn)
        return
    run: dict[str, Any] = {}
    for piece, (left, right) in drawn:
        kind = {name: piece.get(name) for name in ("label", "uncertain", "speaker")}
        if run and run["kind"] == kind and left <= run["right"]:
            run |= {"end": piece["end"], "right": right, "count": run["count"] + 1}
            continue
        if run:
            yield {**run["kind"], **run, "together": f"{run['count']} {lane.what}s"}, run["left"], run["right"]
        run = {"kind": kind, "start": piece["start"], "end": piece["end"], "left": left, "right": right, "count": 1}
    yield {**run["kind"], **run, "together": f"{run['count']} {lane.what}s"}, run["left"], run["right"]


def band_html(lane: Lane, seconds: float, several: bool, first: bool) -> str:
    """The segments of a lane as buttons in their places; the first of all takes the keyboard's focus."""
    colours = colours_of(lane.result.get("probabilities") or ())
    buttons = []
    for number, (piece, left, right) in enumerate(runs_of(lane)):
        label = piece.get("label") or ""
        fill, ink = colours.get(label, NO_CLASS)
        times = f"data-start='{piece['start']:.3f}' data-end='{piece['end']:.3f}'"
        place = f"left:{100 * left / seconds:.3f}%;width:{100 * (right - left) / seconds:.3f}%;--c:{fill};--t:{ink}"
        unsure = " exh-unsure" if piece.get("uncertain") else ""
        mark = "? " if unsure else ""
        long, short = (plain_name(label), short_name(label)) if label else (str(number + 1),) * 2
        buttons.append(
            f"<button type='button' class='exh-seg{unsure}' style='{place}'"
            f" tabindex='{-1 if number or not first else 0}' {times}"
            f" aria-label='{escape(said_of(piece, lane, several))}'>"
            f"<span class='exh-long'>{mark}{escape(long)}</span><span class='exh-short'>{escape(short)}</span></button>"
        )
    name = " · ".join(part for part in (title_of(lane, several), f"{lane.what}s") if part)
    many = " exh-many" if len(buttons) > MANY else ""
    name = escape(f"{name}; arrow keys move")
    return f"<div class='exh-band{many}' role='toolbar' aria-label='{name}'>{''.join(buttons)}</div>"


def steps(lane: Lane, values: Sequence[float], seconds: float) -> str:
    """An SVG path of values on 0 (bottom) to 1 (top), a step for each piece."""
    path, end = [], None
    for (left, right), value in zip(edges_of(lane), values, strict=True):
        y = 98 - 96 * min(1.0, max(0.0, value))
        joined = end is not None and abs(end - left) < 1e-6
        path.append(f"{'V' if joined else f'M{1000 * left / seconds:.2f} '}{y:.1f}H{1000 * right / seconds:.2f}")
        end = right
    return "".join(path)


def lines_html(lane: Lane, seconds: float) -> str:
    """Arousal and valence of the classes, and dimensions on their scales, over time."""
    pieces, panels = lane.pieces, []
    if pieces and pieces[0].get("arousal") is not None:
        panels.append({name: [(piece[name] + 1) / 2 for piece in pieces] for name in QUADRANT})
    if lane.scales and pieces and pieces[0].get("dimensions"):
        panels.append(
            {
                f"{name} ({range_of((low, high))})": [
                    (piece["dimensions"][name] - low) / (high - low) for piece in pieces
                ]
                for name, (low, high) in lane.scales.items()
            }
        )
    drawn, many = [], " exh-many" if len(pieces) > MANY else ""
    for lines in panels:
        paths = "".join(
            f"<path class='exh-line exh-line-{k % 4}' d='{steps(lane, values, seconds)}'/>"
            for k, values in enumerate(lines.values())
        )
        key = "".join(f"<span class='exh-key exh-line-{k % 4}'>{escape(name)}</span>" for k, name in enumerate(lines))
        of = ("of the classes, " if len(panels) > 1 else "") + f"{MINUS}1 to 1" if "arousal" in lines else ""
        drawn.append(
            f"<p class='exh-lane-name'>{key}<span>{of}</span></p><svg class='exh-lines{many}'"
            f" viewBox='0 0 1000 100' preserveAspectRatio='none' aria-hidden='true'>"
            f"<path class='exh-zero' d='M0 50H1000'/>{paths}</svg>"
        )
    return "".join(drawn)


def wave_html(peaks: np.ndarray) -> str:
    """A waveform as one SVG shape, as loud as its loudest column."""
    loudest = max(float(np.abs(peaks).max()), 1e-3)
    x = 1000 * (np.arange(len(peaks)) + 0.5) / len(peaks)
    low, high = (50 - 48 * peaks[:, side] / loudest for side in (0, 1))
    there = "L".join(f"{a:.2f} {b:.1f}" for a, b in zip(x, np.minimum(high, 49.4), strict=True))
    back = "L".join(f"{a:.2f} {b:.1f}" for a, b in zip(x[::-1], np.maximum(low, 50.6)[::-1], strict=True))
    return (
        "<svg class='exh-wave' viewBox='0 0 1000 100' preserveAspectRatio='none' aria-hidden='true'>"
        f"<path d='M{there}L{back}Z'/></svg>"
    )


def timeline_html(url: str, seconds: float, peaks: Sequence[np.ndarray], lanes: Sequence[Lane], several: bool) -> str:
    """The player, and below each channel's waveform what the models say of it."""
    parts, first = [], True
    for channel in dict.fromkeys(lane.channel for lane in lanes):
        if channel is not None:
            parts.append(f"<h4 class='exh-lane-name'>Channel {channel}</h4>")
        if peaks and (channel or 1) <= len(peaks):
            parts.append(wave_html(peaks[channel - 1] if channel else mixed(peaks)))
        for lane in lanes:
            if lane.channel != channel:
                continue
            if several:
                parts.append(f"<p class='exh-lane-name exh-model-name'>{escape(lane.model)}</p>")
            if lane.pieces:
                parts.append(band_html(lane, seconds, several, first) + lines_html(lane, seconds))
                first = False
            else:
                parts.append("<p class='exh-lane-name'>No speech was found</p>")
    colours: dict[str, tuple[str, str]] = {}
    for lane in lanes:
        colours |= colours_of(lane.result.get("probabilities") or ())
    legend = "".join(
        f"<li><i style='--c:{fill};--t:{ink}'>{escape(short_name(name))}</i>{escape(plain_name(name))}</li>"
        for name, (fill, ink) in colours.items()
    )
    unsure = any(piece.get("uncertain") for lane in lanes for piece in lane.pieces)
    legend += "<li><i class='exh-unsure'></i>Uncertain: hatched, in the plane hollow</li>" if unsure else ""
    what = f"{lanes[0].what}s"
    return f"""<section class="exh-timeline" aria-label="Timeline">
<h3>Over time</h3>
<audio preload="metadata" src="{escape(url)}"></audio>
<div class="exh-player">
<button type="button" class="exh-play" aria-label="Play all">▶</button>
<output class="exh-clock" aria-label="Position">0:00.0</output><span>/ {clock(seconds)}</span>
<span class="exh-zoom" role="group" aria-label="Zoom">
<button type="button" data-zoom="0.5" aria-label="Zoom out">{MINUS}</button>
<button type="button" data-zoom="2" aria-label="Zoom in">+</button></span>
</div>
<div class="exh-scroll"><div class="exh-lanes">{"".join(parts)}
<div class="exh-axis" aria-hidden="true"></div><div class="exh-head" aria-hidden="true"></div></div></div>
<p class="exh-detail" aria-hidden="true">Choose one of the {what} to hear it; the arrow keys go
from one to the next.</p>
<ul class="exh-legend" aria-label="Colours">{legend}</ul>
</section>"""


# -- the same in words -------------------------------------------------------------------------------------------------


def row_of(piece: Mapping[str, Any], lane: Lane, several: bool) -> dict[str, Any]:
    """A piece as the columns of the CSV."""
    probabilities, dimensions = piece.get("probabilities") or {}, piece.get("dimensions") or {}
    return {
        **({"model": lane.model} if several else {}),
        **({"channel": lane.channel} if lane.channel else {}),
        "start": round(piece["start"], 3),
        "end": round(piece["end"], 3),
        **({"speaker": piece["speaker"]} if piece.get("speaker") else {}),
        **({"label": piece["label"]} if piece.get("label") else {}),
        **{f"probability_{name}": value for name, value in probabilities.items()},
        **{name: piece[name] for name in QUADRANT if piece.get(name) is not None},
        **{f"dimension_{name}": value for name, value in dimensions.items()},
        **({"uncertain": piece["uncertain"]} if "uncertain" in piece else {}),
    }


def csv_text(lanes: Iterable[Lane], several: bool) -> str:
    """All segments, or windows, of all lanes as CSV."""
    rows = [row_of(piece, lane, several) for lane in lanes for piece in lane.pieces]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def vtt_text(lanes: Iterable[Lane], several: bool) -> str:
    """All segments, or windows as they are drawn, as captions."""
    captions = []
    drawn = [
        (start, end, piece, lane)
        for lane in lanes
        for piece, (start, end) in zip(lane.pieces, edges_of(lane), strict=True)
    ]
    for start, end, piece, lane in sorted(drawn, key=lambda each: each[:2]):
        who = " ".join(part for part in (title_of(lane, several), str(piece.get("speaker") or "")) if part)
        what = ", ".join(f"{name} {number(value)}" for name, value in (piece.get("dimensions") or {}).items())
        if label := piece.get("label"):
            what = f"{plain_name(label)} {percent(piece['probabilities'][label])}"
        text = f"{who}: {what}" if who else what
        captions.append(
            Caption(
                vtt_time(start), vtt_time(end), escape(text + (" ?" if piece.get("uncertain") else ""), quote=False)
            )
        )
    return WebVTT(captions=captions).content


def vtt_time(seconds: float) -> str:
    """Seconds as `00:01:02.500`."""
    minutes, thousandths = divmod(round(1000 * seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{thousandths / 1000:06.3f}"


def cells_of(piece: Mapping[str, Any], lane: Lane, several: bool) -> dict[str, str]:
    """A piece as a row of the table, text by the heads of columns."""
    cells = {"Start": clock(piece["start"]), "End": clock(piece["end"])}
    cells |= {"Model": lane.model} if several else {}
    cells |= {"Channel": str(lane.channel)} if lane.channel else {}
    cells |= {"Speaker": str(piece["speaker"])} if piece.get("speaker") else {}
    if label := piece.get("label"):
        cells |= {"Label": plain_name(label), "Probability": percent(piece["probabilities"][label])}
    cells |= {name.capitalize(): signed(piece[name]) for name in QUADRANT if piece.get(name) is not None}
    values = piece.get("dimensions") or {}
    cells |= {f"{name} ({range_of(scale)})": number(values[name]) for name, scale in lane.scales.items()}
    return cells | ({"Uncertain": piece["uncertain"]} if piece.get("uncertain") else {})


def table_html(lanes: Sequence[Lane], several: bool) -> str:
    """The table of segments, or windows: what the picture says."""
    pieces = [(piece, lane) for lane in lanes for piece in lane.pieces]
    pieces.sort(key=lambda each: each[0]["start"])
    if not pieces:
        return ""
    rows = [(piece, cells_of(piece, lane, several)) for piece, lane in pieces[:MOST_ROWS]]
    names = sorted(dict.fromkeys(name for _, cells in rows for name in cells), key="Uncertain".__eq__)
    head = "".join(f"<th scope='col' role='columnheader'>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr role='row'><td role='cell'><button type='button' class='exh-row'"
        f" data-start='{piece['start']:.3f}' data-end='{piece['end']:.3f}'"
        f" aria-label='Play {cells['Start']} to {cells['End']}'>▶</button></td>"
        + "".join(f"<td role='cell' data-name='{escape(name)}'>{escape(cells.get(name, ''))}</td>" for name in names)
        + "</tr>"
        for piece, cells in rows
    )
    what = f"{lanes[0].what}s"
    more = f"The first {MOST_ROWS} of {len(pieces):,} {what}; the CSV has them all." if len(pieces) > MOST_ROWS else ""
    return f"""<details class="exh-table" open>
<summary>Table of {len(pieces):,} {what if len(pieces) > 1 else what[:-1]}</summary>
<div class="exh-rows" tabindex="0" role="region" aria-label="Table of {what}"><table role="table">
<thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader"><span class="exh-hidden">Play</span></th>
{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div><p class="exh-note">{more}</p></details>"""


def downloads_html(name: str, lanes: Sequence[Lane], several: bool) -> str:
    """Buttons that save what they carry; the server keeps no file for them."""
    stem = name.rpartition(".")[0] or name
    if not any(lane.pieces for lane in lanes):
        return ""
    buttons = "".join(
        f"<button type='button' class='exh-save' data-file='{escape(stem)}.emotion.{kind}' data-type='text/{kind}'>"
        f"Download {kind.upper()}</button><textarea hidden readonly>\n{escape(text)}</textarea>"
        for kind, text in (("csv", csv_text(lanes, several)), ("vtt", vtt_text(lanes, several)))
    )
    return f"<div class='exh-downloads'>{buttons}</div>"
