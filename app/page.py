"""The page: a recording or the microphone goes in, and what the models say of it comes out."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio
import soundfile
from gradio.data_classes import FileData
from gradio.processing_utils import save_file_to_cache

from .answers import Limits, answer
from .microphone import Listener
from .timeline import Lane, card_html, clock, lanes_of, percent, plain_name, result_html, waveform

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
LIVE_MINUTES = 10
OURS: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # events of the page alone
# What the page adds to `launch`.
LOOK: dict[str, Any] = {
    # Not as `css`: Gradio leaves out container queries there.
    "head": f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style>"
    f"<script>{(HERE / 'timeline.js').read_text(encoding='utf-8')}</script>",
    "theme": gradio.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace")
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        # what Gradio's own does not have: the contrast of WCAG 2.2 AA
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
    ),
}


class Source(NamedTuple):
    """A visitor's recording: the file, and what its owner calls it."""

    path: str
    name: str


def source_of(uploaded: FileData | None) -> Source | None:
    """What `gradio.File` gives our functions, here with the file's own name, and without the empty file it makes."""
    if uploaded is None:
        return None
    return Source(uploaded.path, Path(uploaded.orig_name or uploaded.path).name)


def html(value: str, elem_id: str | None = None) -> gradio.HTML:
    """HTML that looks as `page.css` says."""
    return gradio.HTML(value, elem_id=elem_id, apply_default_css=False, elem_classes="exh-html")


class Stopped(BaseException):
    """Raised in the pipeline when nobody waits for the answer any more; no error, so nothing catches it."""


def build_page(pipelines: Mapping[str, Any], limits: Limits) -> gradio.Blocks:
    """Makes the page.

    Args:
        pipelines: a pipeline for each model's name.
        limits: what the server takes, to be said before it is hit.
    """
    with gradio.Blocks(title="Emotion in speech", analytics_enabled=False) as page:
        html(header_html(pipelines))
        with gradio.Tabs():
            with gradio.Tab("A recording"):
                recording_tab(page, pipelines, limits)
            with gradio.Tab("Live microphone"):
                live_tab(pipelines)
        html(FOOTER)
    return page


def recording_tab(page: gradio.Blocks, pipelines: Mapping[str, Any], limits: Limits) -> None:
    """Upload or record, options, the answer."""
    names = list(pipelines)
    with gradio.Row(elem_classes="exh-inputs", equal_height=True):
        upload = gradio.File(label="A file", elem_id="exh-upload", height=150)
        upload.preprocess = source_of  # type: ignore[method-assign, assignment]
        microphone = gradio.Audio(
            sources=["microphone"], type="filepath", label="Or record", elem_id="exh-record", buttons=[], editable=False
        )
    html(f"<p class='exh-limits'>{limits_text(limits)}</p>")
    examples = sorted(HERE.glob("examples/*.ogg"))
    buttons = []
    if examples:
        html("<p class='exh-limits'>Or take an example; the voices are synthetic (eSpeak NG), nobody spoke:</p>")
        with gradio.Row(elem_classes="exh-examples"):
            buttons = [
                (gradio.Button(path.stem.replace("_", " ").capitalize(), size="sm", min_width=100), path)
                for path in examples
            ]
    choices = options()
    chosen = gradio.CheckboxGroup(names, value=names[:1], label="Models", visible=len(names) > 1)
    with gradio.Row(elem_classes="exh-run"):
        start = gradio.Button("Analyse", variant="primary", elem_id="exh-start")
        stop = gradio.Button("Stop", visible=False, elem_id="exh-stop")
    status = html("", elem_id="exh-status")
    result = html("", elem_id="exh-result")

    runs: dict[str | None, threading.Event] = {}  # of each visitor; set, the run is to end

    def begin(request: gradio.Request) -> tuple[Any, str, str]:
        runs[request.session_hash] = threading.Event()
        return gradio.update(visible=True), progress_html("Waiting for the model"), ""

    def listen(
        uploaded: Source | None,
        recorded: str | None,
        chosen: Sequence[str],
        segments: str,
        channels: str,
        least_probability: float,
        least_seconds: float,
        request: gradio.Request,
    ) -> Iterator[tuple[str, str]]:
        asked: dict[str, Any] = {"segments": "speech" if segments == "speech" else None, "channels": channels}
        asked |= {"least_probability": least_probability, "least_seconds": least_seconds}
        source = uploaded or (Source(recorded, "Your recording") if recorded else None)
        models = {name: pipelines[name] for name in names if name in chosen}
        stopped = runs.get(request.session_hash, threading.Event())
        yield from answered(source, models, asked, limits, stopped)

    def end(request: gradio.Request) -> None:
        if run := runs.pop(request.session_hash, None):
            run.set()

    def run(event: Any) -> None:
        begun = event(begin, None, [stop, status, result], queue=False, **OURS)
        heard = begun.then(listen, [upload, microphone, chosen, *choices], [status, result], **OURS)
        heard.then(lambda: gradio.update(visible=False), None, stop, queue=False, **OURS)

    run(start.click)
    stop.click(end, queue=False, **OURS)
    page.unload(end)
    for button, path in buttons:

        def example(path: Path = path) -> tuple[str, None, str]:
            each = soundfile.info(str(path)).channels > 1
            return save_file_to_cache(path, upload.GRADIO_CACHE), None, "each" if each else "mix"

        run(button.click(example, None, [upload, microphone, choices[1]], **OURS).then)
    upload.upload(lambda: (None, "", ""), None, [microphone, status, result], queue=False, **OURS)
    microphone.stop_recording(lambda: (None, "", ""), None, [upload, status, result], queue=False, **OURS)
    upload.clear(lambda: ("", ""), None, [status, result], queue=False, **OURS)


def options() -> list[gradio.components.Component]:
    """What to answer, of which channels, and below which probability and seconds a segment is uncertain."""
    with gradio.Row(elem_classes="exh-options"):
        segments = gradio.Radio(
            [("Each utterance", "speech"), ("Windows of the whole recording", "windows")],
            value="speech" if detector_is_there() else "windows",
            label="Answer for",
            min_width=280,
        )
        channels = gradio.Radio(
            [("Mixed to one", "mix"), ("Each on its own", "each")],
            value="mix",
            label="Channels of the file",
            min_width=280,
        )
    with gradio.Accordion("What counts as uncertain", open=False), gradio.Row():
        probability = gradio.Slider(0, 1, 0.5, step=0.01, label="Probability below", min_width=280)
        seconds = gradio.Slider(0, 5, 0.5, step=0.1, label="Shorter than, in seconds", min_width=280)
    return [segments, channels, probability, seconds]


def answered(
    source: Source | None,
    models: Mapping[str, Any],
    asked: Mapping[str, Any],
    limits: Limits,
    stopped: threading.Event,
) -> Iterator[tuple[str, str]]:
    """Yields status and result, as HTML, while the models hear the recording and when they have, or are stopped.

    `asked` has what `answer` takes: segments, channels and the pipeline's options.
    """
    if source is None or not models:
        what = "Choose at least one model." if source else "Choose a file, record something, or take an example first."
        yield error_html(what), ""
        return
    so_far = [progress_html("Reading")]

    def work() -> str:
        lanes: list[Lane] = []
        for number, (name, pipeline) in enumerate(models.items()):

            def heard(done: float, known: float | None, number: int = number, name: str = name) -> None:
                if stopped.is_set():
                    raise Stopped
                of = f" of {clock(known, 0)}" if known else ""
                by = f" by {name}" if len(models) > 1 else ""
                share = (number + min(1.0, done / known)) / len(models) if known else None
                so_far[0] = progress_html(f"Heard{by}: {clock(done, 0)}{of}", share)

            result = answer(pipeline, source.path, limits=limits, on_progress=heard, name=source.name, **asked)
            lanes += lanes_of(name, result, pipeline.dimensions)
        notes = dict.fromkeys(lane.result["warning"] for lane in lanes if lane.result.get("warning"))
        url = f"gradio_api/file={quote(source.path)}"
        return result_html(source.name, url, *waveform(source.path), lanes, list(notes))

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.callback(stopped.set)
        future = pool.submit(work)
        while not wait([future], timeout=0.4).done and not stopped.is_set():
            yield so_far[0], ""
        try:
            shown = future.result()
        except Stopped:
            yield status_html("Stopped."), ""
        except ValueError as error:
            yield error_html(str(error)), ""
        except Exception:
            logger.exception("a result was not shown")
            yield error_html(f"{source.name}: this could not be shown; the server's log says why"), ""
        else:
            yield status_html("Done. The result is below."), shown


def live_tab(pipelines: Mapping[str, Any]) -> None:
    """The microphone, each window's answer as soon as it ends."""
    names = list(pipelines)
    html(
        "<p class='exh-limits'>Press record and speak: each window is answered as it ends, the first after its"
        f" length. {LIVE_MINUTES} minutes at a time; nothing is kept.</p>"
    )
    model = gradio.Radio(names, value=names[0], label="Model", visible=len(names) > 1)
    microphone = gradio.Audio(
        sources=["microphone"], streaming=True, type="filepath", label="Microphone", elem_id="exh-live", buttons=[]
    )
    heard = html(live_html(None, {}), elem_id="exh-heard")
    state = gradio.State(
        None, time_to_live=60 * LIVE_MINUTES, delete_callback=lambda listener: listener and listener.finish(0)
    )

    def hear(chunk: str | None, model: str, listener: Listener | None) -> tuple[Listener | None, str]:
        scales = pipelines[model].dimensions
        if chunk is not None:
            samples, rate = soundfile.read(chunk, dtype="float32", always_2d=True)
            delete(Path(chunk), Path(microphone.GRADIO_CACHE))
            if listener is None:
                listener = Listener(pipelines[model], rate)
            listener.feed(samples.mean(axis=1))
        return listener, live_html(listener, scales)

    def end(model: str, listener: Listener | None) -> str:
        if listener is not None:
            listener.finish()
        return live_html(listener, pipelines[model].dimensions, over=True)

    microphone.start_recording(lambda: None, None, state, queue=False, **OURS)
    microphone.stream(
        hear, [microphone, model, state], [state, heard], time_limit=60 * LIVE_MINUTES, concurrency_limit=8, **OURS
    )
    microphone.stop_recording(end, [model, state], heard, **OURS)


def delete(file: Path, root: Path) -> None:
    """Deletes a file below `root`, and the folders that it leaves empty."""
    file.unlink(missing_ok=True)
    for folder in file.resolve().parents:
        if folder == root.resolve() or any(folder.iterdir()):
            break
        folder.rmdir()


# -- words -------------------------------------------------------------------------------------------------------------


def header_html(pipelines: Mapping[str, Any]) -> str:
    """The title, and what each model is."""
    rows = "".join(f"<li>{model_text(name, pipeline)}</li>" for name, pipeline in pipelines.items())
    return f"""<header class="exh-title"><h1>Emotion in speech</h1>
<p>How does it sound? A recording of speech goes in; out come arousal, valence and class over time.</p>
<ul class="exh-models" aria-label="Models">{rows}</ul></header>"""


def model_text(name: str, pipeline: Any) -> str:
    """What a model answers, and whether its probabilities are calibrated."""
    classes, dimensions = pipeline.class_names, list(pipeline.dimensions)
    what = [f"{len(classes)} classes"] if classes else []
    what += [", ".join(dimensions)] if dimensions else []
    calibrated = getattr(pipeline.model.config, "calibration_temperature", 1.0) != 1.0
    state = "calibrated" if calibrated else "not calibrated: read them as an order, not as chances"
    text = f"<b>{escape(name)}</b> · {escape(' and '.join(what))}"
    return text + (f" · probabilities are {state}" if classes else "")


def limits_text(limits: Limits) -> str:
    """What may be given, in words."""
    kinds = "WAV, FLAC, OGG, Opus or MP3"
    if importlib.util.find_spec("av"):
        kinds += ", or the sound of MP4, M4A or WebM"
    most = f"{limits.longest_minutes:g} minutes and {limits.largest_megabytes:g} MB"
    return f"{kinds}. At most {most}. Deleted when you leave, after {limits.kept_minutes:g} minutes at the latest."


def detector_is_there() -> bool:
    """Whether speech can be told from the rest."""
    return all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))


def status_html(text: str) -> str:
    return f"<p class='exh-said'>{escape(text)}</p>"


def error_html(text: str) -> str:
    return f"<p class='exh-error' role='alert'>{escape(text)}</p>"


def progress_html(text: str, done: float | None = None) -> str:
    """How far it is; without `done` that it goes on."""
    value = "" if done is None else f" value='{done:.3f}'"
    return (
        f"<div class='exh-progress'><progress max='1'{value} aria-label='Progress'></progress>"
        f"<span aria-hidden='true'>{escape(text)}</span></div>"
    )


def live_html(listener: Listener | None, scales: Mapping[str, Sequence[float]], over: bool = False) -> str:
    """The newest window in full, and those before it in short."""
    if listener is None or not listener.windows:
        text = "Nothing was heard." if over else "Listening…" if listener else ""
        return error_html(listener.error) if listener and listener.error else status_html(text)
    windows = list(listener.windows)
    newest = windows[-1]
    lane = Lane("", None, {**newest, "windows": windows}, scales)
    rows = "".join(
        f"<tr><td>{clock(window['start'])}</td><td>{clock(window['end'])}</td>"
        f"<td>{escape(plain_name(window['label']))}</td><td>{percent(window['probabilities'][window['label']])}</td></tr>"
        for window in reversed(windows)
        if window.get("label")
    )
    wrong = error_html(listener.error) if listener.error else ""
    return f"""<section class="exh" aria-label="What was heard">{wrong}
<h3>{"The last window" if over else "Now"}: {clock(newest["start"])} to {clock(newest["end"])}</h3>
<div class="exh-cards">{card_html(lane, False)}</div>
<table class="exh-live"><caption>The last {len(windows)} of {listener.count} windows, the newest first</caption>
<thead><tr><th scope="col">Start</th><th scope="col">End</th><th scope="col">Label</th>
<th scope="col">Probability</th></tr></thead><tbody>{rows}</tbody></table></section>"""


FOOTER = """<footer class="exh-footer"><p>A machine's guess at how speech sounds, learned from actors and raters. It
does not know what somebody feels. Do not decide about people by it.</p>
<button type="button" class="exh-theme">Dark or light</button></footer>"""
