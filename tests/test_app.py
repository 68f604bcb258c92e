"""`exhubert app`: the API's answers, its limits, what becomes of uploads, and that nothing goes in or out elsewhere.

python -m pytest tests/test_app.py
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the page and its server are the extra `app`")
import httpx
from app_server import PATIENCE_SECONDS, Server, app_server
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from conftest import ROOT, alike, free_port, refused
from exhubert.app import server
from exhubert.app.answers import Limits, answer
from exhubert.app.guard import Uploads
from exhubert.cli import main
from exhubert.model_folder import load_pipeline

__all__ = ["app_server"]
RATE = 16_000
FILE = {"_type": "gradio.FileData"}


def write_noise(path: Path, seconds: float, seed: int, channels: int = 1, rate: int = RATE) -> Path:
    """Noise whose loudness changes, another for each seed."""
    generator = np.random.default_rng(seed)
    shape = (round(seconds * rate), channels)
    loudness = 0.01 + 0.2 * generator.random() * np.abs(np.sin(np.arange(shape[0]) / (500 + 100 * seed)))
    soundfile.write(path, loudness[:, None] * generator.standard_normal(shape), rate)
    return path


def until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def megabytes(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.fixture
def client(app_server: Server) -> Client:
    return connect(app_server)


def connect(server: Server) -> Client:
    return Client(server.address, verbose=False)


def asked(client: Client, file: Path, *arguments: object, **options: object) -> dict:
    return client.predict(handle_file(str(file)), *arguments, api_name="/classify", **options)


def error_of(client: Client, audio: object, **options: object) -> str:
    """What the API says of a request that it refuses."""
    with pytest.raises(AppError) as caught:
        client.predict(audio, api_name="/classify", **options)
    return str(caught.value)


def upload(server: Server, file: Path) -> str:
    with file.open("rb") as opened:
        return httpx.post(f"{server.address}gradio_api/upload", files={"files": (file.name, opened)}).json()[0]


def said_of(server: Server, **values: object) -> str | None:
    """The error of a request as curl makes it; None where it has none, or Gradio says nothing of it."""
    call = f"{server.address}gradio_api/call"
    event = httpx.post(f"{call}/v2/classify", json=values).json()["event_id"]
    said = httpx.get(f"{call}/classify/{event}", timeout=60).text
    assert said.startswith("event: error\ndata: ")
    return json.loads(said.partition("data: ")[2])["error"]


def uploads(server: Server) -> list[Path]:
    return list(server.files.glob("upload-*"))


def test_the_api_answers_what_the_command_line_and_the_pipeline_answer(app_server, client, tmp_path, capsys):
    file = write_noise(tmp_path / "noise.flac", 7.3, 0, channels=2, rate=22_050)
    for name, folder in app_server.models.items():
        given = asked(client, file, name)
        assert alike(given, load_pipeline(str(folder))(str(file)))
        assert main(["predict", str(folder), str(file), "--format", "jsonl"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row.pop("file") == str(file)
        assert alike(given, row)
    assert uploads(app_server) == []


def test_segments_and_channels_are_those_of_the_pipeline(app_server, client, tmp_path):
    file, folder = ROOT / "app" / "examples" / "call_two_channels.ogg", app_server.models["emotions"]
    classify = load_pipeline(str(folder))
    given = asked(client, file, segments="speech", channels="each", least_seconds=1.0)
    assert alike(given, classify(str(file), segments="speech", channels="each", least_seconds=1.0))
    assert [len(channel["segments"]) for channel in given["channels"]] == [2, 2]
    turns = [{"start": 0.5, "end": 2.0, "speaker": "<i>A</i>"}, {"start": 1.0, "end": 5.0}]
    given = asked(client, file, segments=turns)
    assert alike(given, classify(str(file), segments=turns))
    assert given["segments"][0]["speaker"] == "<i>A</i>"


def test_models_says_what_can_be_asked(client):
    emotions, dimensions = client.predict(api_name="/models")
    assert (emotions["model"], len(emotions["classes"]), emotions["dimensions"]) == ("emotions", 6, {})
    assert (dimensions["classes"], list(dimensions["dimensions"])) == ([], ["arousal", "valence"])
    assert emotions["calibration_temperature"] == 0.5
    assert emotions["limits"] == {"longest_minutes": 2.0, "largest_megabytes": 20.0, "kept_minutes": 60.0}


def test_fifty_requests_of_ten_clients_have_their_own_answers_and_leave_nothing(app_server, tmp_path):
    files = [write_noise(tmp_path / f"{number}.wav", 1.0 + 0.1 * (number % 10), number) for number in range(50)]
    files[3] = tmp_path / "same" / files[4].name  # one name and one content, from two clients
    files[3].parent.mkdir()
    shutil.copy(files[4], files[3])
    classify = load_pipeline(str(app_server.models["emotions"]))
    expected = [classify(str(file)) for file in files]
    clients = [connect(app_server) for _ in range(10)]

    def answers(each: int) -> list[dict]:
        with ThreadPoolExecutor(10) as pool:
            of_clients = pool.map(
                lambda number: [asked(clients[number], file) for file in files[number::10][:each]], range(10)
            )
            return [given for together in zip(*of_clients, strict=True) for given in together]

    answers(1)  # what is made once: threads, and what the allocator keeps for them
    before = megabytes(app_server)
    for given, own in zip(answers(5), expected, strict=True):
        assert alike(given, own)
    assert megabytes(app_server) - before < 32
    assert uploads(app_server) == []
    assert "Traceback" not in app_server.log.read_text()


def test_a_file_that_is_no_audio_is_refused_in_one_line_without_a_path(app_server, tmp_path):
    for name, content in {"text.wav": b"no audio", "empty.wav": b"", "<b>a & '.wav": b"a"}.items():
        (tmp_path / "file.wav").write_bytes(content)
        file = {"path": upload(app_server, tmp_path / "file.wav"), "meta": FILE, "orig_name": name}
        message = said_of(app_server, audio=file)
        assert message.startswith(f"{name}: the audio does not decode") and "\n" not in message
        assert app_server.files.name not in message and "upload-" not in message
    assert uploads(app_server) == []


def test_what_is_too_long_is_refused_whatever_its_header_says(app_server, client, tmp_path):
    told = write_noise(tmp_path / "told.flac", 150.0, 0, rate=8_000)
    untold = bytearray(told.read_bytes())
    untold[21] &= 0xF0
    untold[22:26] = bytes(4)  # the number of samples, as of a FLAC that was written to a pipe
    (tmp_path / "untold.flac").write_bytes(untold)
    most = "at most 2 minutes are taken here, and this is"
    assert error_of(client, handle_file(str(told))) == f"told.flac: {most} 2.5 minutes long"
    assert error_of(client, handle_file(str(tmp_path / "untold.flac"))) == f"untold.flac: {most} longer than that"
    assert uploads(app_server) == []


def test_what_is_too_large_is_refused_while_it_comes_in(app_server):
    files = {"files": ("large.wav", bytes(21_000_000))}
    response = httpx.post(f"{app_server.address}gradio_api/upload", files=files, timeout=60)
    assert response.status_code == 413 and "20000000" in response.text
    assert until(lambda: not uploads(app_server))


def test_what_was_not_uploaded_is_not_read(app_server, client):
    for audio in ({"path": "/etc/passwd"}, {"path": None}, {}, "/etc/passwd", None):
        assert error_of(client, audio) == "audio is no file that was uploaded here"
    assert said_of(app_server, audio={"path": "/etc/passwd", "meta": FILE}) is None
    address = {"path": "https://example.com/a.wav", "meta": FILE}
    response = httpx.post(f"{app_server.address}gradio_api/call/v2/classify", json={"audio": address})
    assert response.status_code == 400 and "nothing is fetched" in response.text
    for path in (
        "gradio_api/file=cli.py",
        "gradio_api/deep_link",
        "gradio_api/proxy=http://localhost/",
        "gradio_api/file=/etc/passwd",
    ):
        assert httpx.get(app_server.address + path).status_code in (403, 404)


def test_wrong_arguments_are_named_with_what_there_is(client, tmp_path):
    file = handle_file(str(write_noise(tmp_path / "a.wav", 1.0, 0)))
    assert error_of(client, file, model="<b>x</b>") == "there is no model '<b>x</b>'; there is emotions, dimensions"
    assert "channels is 'some'" in error_of(client, file, channels="some")
    assert "segments is 'words'" in error_of(client, file, segments="words")
    assert "segments must be 'speech' or a list" in error_of(client, file, segments=[[0, 1]])
    assert "the turn at 0 s has the speaker 3" in error_of(
        client, file, segments=[{"start": 0, "end": 1, "speaker": 3}]
    )
    turns = [{"start": 0, "end": 1}] * 121
    assert "2.0 minutes long; at most 2 are taken" in error_of(client, file, segments=turns)


def test_slow_clients_and_those_that_go_away_hold_up_nobody(app_server, client, tmp_path):
    file = write_noise(tmp_path / "a.wav", 2.0, 0)
    place = app_server.address.removeprefix("http://").strip("/").split(":")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {place[0]}\r\nContent-Length: 100000\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    connections = [socket.create_connection((place[0], int(place[1]))) for _ in range(20)]
    for connection in connections:
        connection.sendall(head.encode() + body + bytes(1000))
    assert until(lambda: len(uploads(app_server)) == 20)
    assert asked(client, file)["label"]
    for connection in connections:
        connection.close()
    assert until(lambda: not uploads(app_server))


def test_uploads_go_when_their_visitor_does(app_server, tmp_path):
    path = upload(app_server, write_noise(tmp_path / "a.wav", 1.0, 0))
    other = upload(app_server, write_noise(tmp_path / "b.wav", 1.0, 1))
    asks = {"data": [{"path": path, "meta": FILE}], "fn_index": 10_000, "session_hash": "visitor"}
    httpx.post(f"{app_server.address}gradio_api/queue/join", json=asks)
    with httpx.stream("GET", f"{app_server.address}gradio_api/heartbeat/visitor") as heartbeat:
        beats = heartbeat.iter_bytes()  # whose end would be that of the connection
        next(beats)
        assert Path(path).is_file()
    assert until(lambda: not Path(path).exists())
    assert Path(other).is_file()
    shutil.rmtree(Path(other).parent.parent)


def test_what_nobody_asks_about_goes_after_its_time(tmp_path):
    uploads = Uploads(tmp_path)
    for name in ("upload-old", "upload-new", "of-the-page"):
        (tmp_path / name).mkdir()
    for name in ("upload-old", "of-the-page"):
        (tmp_path / name / "a.wav").touch()
        for path in (tmp_path / name / "a.wav", tmp_path / name):
            os.utime(path, (0, 0))
    uploads.note("visitor", [str(tmp_path / "upload-old" / "a.wav")])
    uploads.sweep(60.0, frozenset(["of-the-page"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["of-the-page", "upload-new"]
    assert uploads.of_session == {}


def test_nothing_that_is_served_leads_elsewhere(app_server):
    for path in ("", "theme.css", "config"):
        response = httpx.get(app_server.address + path)
        loaded = re.findall(
            r"""(?:href|src|content)=["'](https?:[^"']*)|@import|url\(["']?(https?:[^)]*)""", response.text
        )
        assert response.status_code == 200 and loaded == []
        policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy
        assert str(ROOT) not in response.text and str(app_server.models["emotions"].parent) not in response.text
        assert "googleapis" not in response.text and "cdnjs" not in response.text


def test_an_error_that_nobody_foresaw_is_the_logs_and_not_the_visitors(tmp_path, caplog):
    def classify(audio: str, on_progress: object) -> None:
        raise RuntimeError(f"{audio} and secrets")

    with pytest.raises(ValueError, match=r"^a\.wav: this could not be answered; the server's log says why$"):
        answer(classify, write_noise(tmp_path / "a.wav", 1.0, 0))
    assert "secrets" in caplog.text


def test_what_is_deleted_while_it_is_heard_is_heard_no_further(saved_model, tmp_path):
    file = write_noise(tmp_path / "a.wav", 95.0, 0)
    heard = []
    with pytest.raises(ValueError, match=r"^a\.wav: the file is gone; upload it again$"):
        answer(load_pipeline(str(saved_model)), file, on_progress=lambda *each: (heard.append(each), file.unlink()))
    assert len(heard) == 1


def test_errors_call_a_file_by_its_owners_name_without_the_folder(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio")

    def classify(audio: str, on_progress: object) -> None:
        raise ValueError(f"{audio}: in {tmp_path}/other\n  it is")

    for name in ("C:\\private\\b.wav", "/home/private/b.wav"):
        with pytest.raises(ValueError, match=r"^b\.wav: in other it is$"):
            answer(classify, tmp_path / "a.wav", name=name)


def test_many_channels_are_not_heard_each_on_its_own(saved_model, tmp_path):
    file = write_noise(tmp_path / "a.wav", 1.0, 0, channels=9)
    with pytest.raises(ValueError, match="at most 8 channels are heard each on its own, and this has 9"):
        answer(load_pipeline(str(saved_model)), file, channels="each")


def test_progress_says_how_much_of_how_much(saved_model, tmp_path):
    heard = []
    file = write_noise(tmp_path / "a.wav", 65.0, 0)
    answer(load_pipeline(str(saved_model)), file, limits=Limits(2.0), on_progress=lambda *each: heard.append(each))
    assert len(heard) > 1 and heard[-1] == (65.0, 65.0)


def test_a_taken_port_and_wrong_limits_end_in_one_line(saved_model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, main, "app", saved_model, "--port", port)
        assert f"port {port} of 127.0.0.1 is not to be had" in line and "--port" in line
    assert "--longest is 0" in refused(capsys, main, "app", saved_model, "--longest", "0")
    twice = refused(capsys, main, "app", saved_model, saved_model, "--port", free_port())
    assert f"two models are called {saved_model.parent.name}" in twice


def code_of(document: str, language: str, place: str) -> str:
    """The block of code in a document that has `place` in it."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if place in block)
    return block


def test_what_the_document_says_for_python_and_curl_runs(app_server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "app" / "examples" / "call_two_channels.ogg", "call.ogg")
    here = (app_server.address.strip("/"), "http://127.0.0.1:7860")
    exec(code_of("app.md", "python", "gradio_client").replace(here[1], here[0]), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["1", "1", "2", "2"] and lines[0].startswith(
        "1   0.86 to  2.85 s"
    )
    for program in ("curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    code = code_of("app.md", "bash", "curl").replace(here[1], here[0])
    said = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("event: complete\ndata: ")
    channels = json.loads(said.partition("data: ")[2])[0]["channels"]
    assert alike([channel["label"] for channel in channels], [lines[0].split()[-1], lines[2].split()[-1]])


def test_whoever_listens_to_others_is_warned_and_a_signal_ends_it(saved_model, monkeypatch, capsys):
    @contextlib.contextmanager
    def serving(pipelines: object, limits: object, host: str, port: int):
        ends = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        ends.start()
        yield "an address"
        ends.cancel()

    monkeypatch.setattr(server, "serving", serving)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["app", str(saved_model), "--host", "0.0.0.0", "--port", str(free_port())]) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr()
    assert "an address (ctrl-c ends it)" in said.out
    assert said.err == "warning: --host 0.0.0.0: whoever reaches this machine can use the models\n"


# The folder alone, where the package is not: a local folder of a model stands for its Hub id.
SPACE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "exhubert":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
runpy.run_path("app.py", run_name="__main__")
"""


def test_the_folder_alone_is_a_space_that_ends_clean(app_server, tmp_path):
    space, temporary = shutil.copytree(ROOT / "app", tmp_path / "space"), tmp_path / "tmp"
    temporary.mkdir()
    port, models = free_port(), app_server.models
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"EXHUBERT_MODELS": f"{models['emotions']},{models['dimensions']}", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"GRADIO_SERVER_PORT": str(port), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", SPACE], cwd=space, env=environment, stdout=log, stderr=log)
    try:
        said = lambda: (tmp_path / "log").read_text()  # noqa: E731
        assert until(lambda: "ctrl-c" in said() or process.poll() is not None, PATIENCE_SECONDS)
        file = write_noise(tmp_path / "a.wav", 4.0, 0)
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        for name, folder in models.items():
            assert alike(asked(client, file, name), load_pipeline(str(folder))(str(file)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0, said()
        assert list(temporary.glob("exhubert-app-*")) == []
    finally:
        process.kill()
