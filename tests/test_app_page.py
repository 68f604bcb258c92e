"""The page in Chromium: files, channels, length, errors, microphone, width, keyboard, dark, and what it may not show.

python -m pytest tests/test_app_page.py

EXHUBERT_SCREENSHOTS names a folder for pictures of what each test has seen.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webvtt
from app_server import write_models

from conftest import ROOT, free_port, make_classifier

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright, in the extra `dev`")
gradio = pytest.importorskip("gradio", reason="the page needs Gradio, in the extra `app`")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Debian's chromium, which is not there")
expect = playwright.expect
expect.set_options(timeout=60_000)
FLAGS = "no-sandbox disable-quic disable-background-networking disable-component-update disable-sync"
FLAGS += " use-fake-device-for-media-stream use-fake-ui-for-media-stream"
CALL = ROOT / "app" / "examples" / "call_two_channels.ogg"
SPOKEN = ROOT / "app" / "examples" / "english_sadness.ogg"
MARKUP = "<img src=x onerror=alert(1)>"
WINDOWS, SPEECH = "Windows of the whole recording", "Each utterance"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three models; names and labels of the third are markup."""
    from exhubert.model_folder import load_pipeline, save_model_folder

    folder = tmp_path_factory.mktemp("models")
    labels = {0: f"{MARKUP}{{{{value}}}}${{value}}", 1: "'\"><script>alert(2)</script>"}
    model = make_classifier(0.2, num_hidden_layers=2, id2label=labels, dimensions={f"<b>{MARKUP}": [0, 1]})
    models = {**write_models(folder), "<b>bold": save_model_folder(model, folder / "<b>bold")}
    return {name: load_pipeline(str(place)) for name, place in models.items()}


@pytest.fixture(scope="module")
def address(pipelines: dict[str, Any]) -> Iterator[str]:
    """Of a server in this process, which takes recordings of 12 minutes and files of 15 MB."""
    from exhubert.app.answers import Limits
    from exhubert.app.server import serving

    with serving(pipelines, Limits(12, 15), port=free_port()) as place:
        yield place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        flags = [f"--{flag}" for flag in FLAGS.split()]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(address: str, browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens the page; in the end nothing has left the machine, failed, opened a dialog or broken the policy."""
    contexts, wrong = [], []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.on("request", lambda asked: inside(asked.url) or wrong.append(asked.url))
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: "Content Security" in said.text and wrong.append(said.text))
        page.set_default_timeout(60_000)
        page.goto(address)
        page.wait_for_selector("#exh-start")
        return page

    def inside(url: str) -> bool:
        return url.startswith((address, "blob:", "data:"))

    yield opened
    for number, context in enumerate(contexts):
        if folder := os.environ.get("EXHUBERT_SCREENSHOTS"):
            context.pages[0].screenshot(path=f"{folder}/{request.node.name}_{number}.png", full_page=True)
        assert "exhubert-app-" not in context.pages[0].inner_text("body")  # as the server's folder is called
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def pipeline(pipelines: dict[str, Any]) -> Any:
    return pipelines["emotions"]


def analyse(page: Any, file: Path, segments: str = WINDOWS) -> None:
    page.set_input_files("#exh-upload input[type=file]", str(file))
    expect(page.locator("#exh-upload .file-preview")).to_be_visible()
    page.get_by_label(segments).check()
    page.get_by_role("button", name="Analyse").click()


def table_of(page: Any) -> list[dict[str, str]]:
    """The rows of the table of segments, by the heads of its columns."""
    page.wait_for_selector("#exh-result .exh-rows")
    return page.evaluate("""() => [...document.querySelectorAll(".exh-rows tbody tr")].map((row) =>
        Object.fromEntries([...row.cells].map((cell) => [cell.dataset.name, cell.textContent])))""")


def as_shown(piece: dict[str, Any]) -> dict[str, str]:
    """What the table says of a window or segment of the pipeline."""
    from exhubert.app.timeline import clock, percent, plain_name, signed

    return {
        "Start": clock(piece["start"]),
        "End": clock(piece["end"]),
        "Label": plain_name(piece["label"]),
        "Probability": percent(piece["probabilities"][piece["label"]]),
        "Arousal": signed(piece["arousal"]),
        "Valence": signed(piece["valence"]),
    }


def test_an_upload_gets_the_pipelines_answer(visit, pipeline, tmp_path):
    page = visit()
    expect(page.locator(".exh-title")).to_contain_text("emotions · 6 classes · probabilities are calibrated")
    expect(page.get_by_text("At most 12 minutes and 15 MB")).to_be_visible()
    analyse(page, SPOKEN)
    rows, answer = table_of(page), pipeline(str(SPOKEN))
    shown = as_shown({**answer, "start": 0, "end": 0})
    expect(page.locator(".exh-label")).to_have_text(f"{shown['Label']} {shown['Probability']}")
    assert [{name: row[name] for name in shown} for row in rows] == [as_shown(each) for each in answer["windows"]]
    assert page.locator(".exh-seg").count() == page.locator(".exh-points circle").count() == len(answer["windows"])
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    assert saved.value.suggested_filename == "english_sadness.emotion.csv"
    saved.value.save_as(tmp_path / "saved.csv")
    for row, window in zip(csv.DictReader((tmp_path / "saved.csv").open()), answer["windows"], strict=True):
        assert row["label"] == window["label"]
        assert float(row["arousal"]) == pytest.approx(window["arousal"], abs=1e-5)
        assert float(row["probability_low/neutral"]) == pytest.approx(window["probabilities"]["low/neutral"], abs=1e-5)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download VTT").click()
    saved.value.save_as(tmp_path / "saved.vtt")
    captions = webvtt.read(str(tmp_path / "saved.vtt")).captions
    assert [caption.text.rpartition(" ")[0].rpartition(" ")[0] for caption in captions] == [
        row["Label"] for row in rows
    ]


def test_each_channel_has_its_lane_and_the_rows_of_its_own_turns(visit, pipeline):
    page = visit()
    page.get_by_label("Each on its own").check()
    page.get_by_role("button", name="What counts as uncertain").click()
    page.get_by_label("number input for Probability below").fill("0.2")
    page.get_by_label("number input for Shorter than").fill("1.5")
    analyse(page, CALL, SPEECH)
    rows = table_of(page)
    marks = {"least_probability": 0.2, "least_seconds": 1.5}
    answers = pipeline(str(CALL), segments="speech", channels="each", **marks)["channels"]
    assert len(answers) == 2 and all(answer["segments"] for answer in answers)
    for answer in answers:
        expected = [as_shown(segment) | {"Channel": str(answer["channel"])} for segment in answer["segments"]]
        found = [row for row in rows if row["Channel"] == str(answer["channel"])]
        assert [{name: row[name] for name in expected[0]} for row in found] == expected
        lane = page.get_by_role("toolbar", name=f"Channel {answer['channel']}")
        assert lane.get_by_role("button").count() == len(expected)
    assert page.locator(".exh-wave").count() == 2
    unsure = [segment for answer in answers for segment in answer["segments"] if segment["uncertain"]]
    assert page.locator(".exh-seg.exh-unsure").count() == len(unsure) == 1


def test_a_long_file_shows_how_far_it_is_and_can_be_stopped(visit, tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000 * 600).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 8000, subtype="PCM_U8")
    page = visit()
    page.evaluate("""() => { window.said = []; const status = document.querySelector("#exh-status");
        const watch = new MutationObserver(() => said.push(status.textContent));
        watch.observe(status, {childList: true, subtree: true}) }""")
    analyse(page, tmp_path / "long.wav")
    expect(page.locator(".exh-table summary")).to_have_text("Table of 399 windows")
    assert re.search(r"Heard: \d+:\d\d of 10:00", " ".join(page.evaluate("said")))
    narrowest = "Math.min(...[...document.querySelectorAll('.exh-seg')].slice(1, -1).map((each) => each.offsetWidth))"
    assert page.evaluate(narrowest) >= 12 and page.evaluate("document.querySelector('.exh-scroll').scrollLeft") == 0
    for _ in range(3):
        page.get_by_role("button", name="Zoom out").click()
    assert page.evaluate("document.querySelector('.exh-lines').scrollWidth <= innerWidth")
    expect(page.locator("#exh-stop")).to_be_hidden()
    page.get_by_label("dimensions", exact=True).check()
    page.evaluate("""() => { const stop = () => {
        if (document.querySelector("#exh-status progress[value]")) document.querySelector("#exh-stop").click();
        else requestAnimationFrame(stop); }; stop() }""")
    page.get_by_role("button", name="Analyse").click()
    expect(page.locator("#exh-status")).to_have_text("Stopped.")
    expect(page.locator("#exh-stop")).to_be_hidden()
    assert page.locator("#exh-result .exh").count() == 0


def test_the_work_of_a_visitor_who_leaves_ends(visit, pipelines, monkeypatch):
    heard = []

    def endless(path: str, on_progress: Callable[[float], None], **options: Any) -> None:
        while True:
            heard.append(time.monotonic())
            on_progress(0.01)
            time.sleep(0.02)

    monkeypatch.setitem(pipelines, "emotions", endless)
    page = visit()
    analyse(page, SPOKEN)
    page.wait_for_selector("#exh-status progress[value]")
    page.goto("about:blank")
    end = time.monotonic() + 20
    while time.monotonic() - heard[-1] < 0.5:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_bad_file_gives_a_plain_message_and_the_page_goes_on(visit, tmp_path):
    (tmp_path / "notes.wav").write_text("no audio")
    soundfile.write(tmp_path / "too_long.flac", np.zeros(8000 * 13 * 60), 8000)
    page = visit()
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a file")
    for name, words in (("notes.wav", "notes.wav: "), ("too_long.flac", "at most 12 minutes")):
        analyse(page, tmp_path / name)
        expect(page.locator("#exh-status [role=alert]")).to_contain_text(words)
        assert not re.search(r"/\w|Traceback|Error", page.inner_text("#exh-status"))
        page.locator("#exh-upload").get_by_role("button", name="Clear").click()
    analyse(page, SPOKEN)
    assert table_of(page)


def test_several_models_answer_side_by_side_and_all_text_is_text(visit, tmp_path):
    named = tmp_path / f"a{MARKUP}.ogg".replace("/", "")
    shutil.copy(SPOKEN, named)
    page = visit()
    for name in ("dimensions", "<b>bold"):
        page.get_by_label(name, exact=True).check()
    analyse(page, named)
    expect(page.locator(".exh-file h2")).to_have_text(named.name)
    assert page.locator(".exh-card h3").all_inner_texts() == ["emotions", "dimensions", "<b>bold"]
    assert {row["Model"] for row in table_of(page)} == {"emotions", "dimensions", "<b>bold"}
    card = page.locator(".exh-card").nth(2)
    expect(card).to_contain_text(f"{MARKUP}{{{{value}}}}${{value}}")
    expect(card).to_contain_text("'\"><script>alert(2)</script>")
    expect(card).to_contain_text(f"<b>{MARKUP}")
    expect(page.locator(".exh-card").nth(1)).to_contain_text("of 1 to 7")
    assert page.locator(".exh img, .exh script, .exh b b").count() == 0


def test_the_microphone_is_heard_as_a_recording_and_live(visit):
    page = visit()
    page.get_by_label(WINDOWS).check()
    page.locator("#exh-record .record-button").click()
    page.wait_for_timeout(1500)
    page.locator("#exh-record .stop-button").click()
    expect(page.locator("#exh-record").get_by_role("button", name="Record")).to_have_count(0)
    page.get_by_role("button", name="Analyse").click()
    assert len(table_of(page)) == 1
    expect(page.locator(".exh-file h2")).to_have_text("Your recording")

    page.get_by_role("tab", name="Live microphone").click()
    page.locator("#exh-live").get_by_role("button", name="Record").click()
    expect(page.locator("#exh-heard caption")).to_contain_text("2 of 2 windows")
    expect(page.locator("#exh-heard h3").first).to_have_text("Now: 0:01.5 to 0:04.5")
    page.locator("#exh-live").get_by_role("button", name="Stop").click()
    expect(page.locator("#exh-heard h3").first).to_contain_text("The last window")


def test_the_keyboard_alone_is_enough(visit):
    page = visit()

    def tab_to(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", wanted):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"no visible focus on {wanted}"
                return
        raise AssertionError(f"the tab key does not come to {wanted}")

    tab_to(".exh-examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#exh-result .exh")
    tab_to(".exh-seg")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    chosen = page.evaluate("({...document.activeElement.dataset})")
    assert page.evaluate("document.activeElement.parentElement.ariaLabel").startswith("Channel 2")
    page.keyboard.press("Space")
    page.wait_for_selector("exhubert-result[playing]")
    expect(page.locator(".exh-detail")).to_have_text(page.evaluate("document.activeElement.ariaLabel"))
    page.wait_for_selector("exhubert-result:not([playing])")  # it stops where the segment ends
    assert page.evaluate("document.querySelector('audio').currentTime") == pytest.approx(float(chosen["end"]), abs=0.01)


def test_a_phone_scrolls_downwards_only(visit):
    page = visit(viewport={"width": 360, "height": 780}, device_scale_factor=2, has_touch=True)
    page.get_by_label("Each on its own").check()
    analyse(page, CALL, SPEECH)
    assert table_of(page)
    for tab in ("A recording", "Live microphone"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("tab", name="A recording").click()
    wide = """() => [...document.querySelectorAll(".exh *:not(.exh-scroll *, thead, thead *)")]
        .filter((each) => each.getBoundingClientRect().right > 361).map((each) => each.className || each.tagName)"""
    assert page.evaluate(wide) == []


def test_very_many_windows_are_drawn_as_runs_and_the_csv_has_them_all():
    from exhubert.app.timeline import MOST_ROWS, Lane, csv_text, result_html

    labels = ["calm", "cross"]
    windows = [
        {
            "start": 1.5 * n,
            "end": 1.5 * n + 3,
            "label": labels[n // 100 % 2],
            "probabilities": dict.fromkeys(labels, 0.5),
        }
        for n in range(1000)
    ]
    lane = Lane("model", None, {**windows[0], "windows": windows}, {})
    html = result_html("an hour.wav", "url", 1501.5, [], [lane])
    bands = re.findall(r"left:([\d.]+)%;width:([\d.]+)%", html)
    assert len(bands) == 10 and sum(float(width) for _, width in bands) == pytest.approx(100, abs=0.02)
    assert html.count("exh-row'") == MOST_ROWS and "500 of 1,000 windows" in html
    assert csv_text([lane], False).count("\n") == 1001


def test_the_live_microphone_gives_what_the_stream_gives_and_ends_by_itself(pipeline, monkeypatch):
    from exhubert.app import microphone

    monkeypatch.setattr(microphone, "PATIENCE_SECONDS", 0.2)
    samples = 0.1 * np.random.default_rng(0).standard_normal(48_000 * 6).astype(np.float32)
    listener = microphone.Listener(pipeline, 48_000)
    for chunk in np.split(samples, 12):
        listener.feed(chunk)
    listener.finish()
    expected = list(pipeline.stream([samples], sampling_rate=48_000))
    assert [window["label"] for window in listener.windows] == [window["label"] for window in expected]
    assert listener.count == len(expected) == 3

    left = microphone.Listener(pipeline, 16_000)
    left.feed(samples[:16_000])
    left._thread.join(60)
    assert not left._thread.is_alive() and left.count == 1


def test_text_stands_out_in_dark_and_light(visit):
    """The contrast of WCAG 2.2 AA, 4.5, for all text of the page."""
    page = visit(color_scheme="dark")
    analyse(page, SPOKEN, SPEECH)
    table_of(page)
    page.wait_for_timeout(300)  # what changes its colour slowly
    ink = "getComputedStyle(document.querySelector('h1')).color"
    dark, weak = page.evaluate(ink), page.evaluate(CONTRAST)
    page.get_by_role("button", name="Dark or light").click()
    page.wait_for_timeout(300)
    assert page.evaluate(ink) != dark and (weak, page.evaluate(CONTRAST)) == ([], [])


# Text whose contrast with what is behind it is below 4.5; of a colour with alpha what shows through counts.
CONTRAST = r"""() => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, k) => value * a + below[k] * (1 - a));
  const behind = (element) => element
    ? over(numbers(getComputedStyle(element).backgroundColor), behind(element.parentElement))
    : [255, 255, 255];
  const light = (colour) => colour.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, textarea, script, style, :disabled")) continue;
    const back = behind(element);
    const [one, other] = [light(over(numbers(getComputedStyle(element).color), back)), light(back)];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.push(`${element.className} ${element.textContent.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
