"""Many clips through a model at once: order, batches, bad clips, threads, devices and types, several processes.

python -m pytest tests/test_engine.py
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import evaluate_hf
from conftest import alike, make_classifier, refused, write_bad_files
from distributed_run import TORCHRUN, environment
from exhubert import ExHuBERTFeatureExtractor, ExHuBERTForSequenceClassification
from exhubert.cli import main
from exhubert.evaluation import engine
from exhubert.evaluation.engine import classify_clips
from exhubert.inference.predict import files_of_team
from exhubert.inference.processes import Team
from exhubert.model_folder import load
from exhubert.pipeline_exhubert import ExHuBERTPipeline, Row, Window, make_windows

EXTRACTOR = ExHuBERTFeatureExtractor(window_seconds=0.5)


@pytest.fixture(scope="module")
def model():
    return make_classifier(num_hidden_layers=2)


def noise(number: int, seconds: float) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(round(seconds * 16_000)).astype(np.float32)


def made(lengths):
    """Clips of noise, by their seconds; a negative one breaks off after that many."""

    def windows(number, seconds):
        def chunks():
            yield noise(number, abs(seconds))
            if seconds < 0:
                raise ValueError("broken")

        yield from make_windows(chunks(), EXTRACTOR, clip=number)

    for number, seconds in enumerate(lengths):
        yield f"clip {number}", windows(number, seconds)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_clip_is_answered_in_its_place_as_alone(model, threads, monkeypatch):
    """Clips of one window and of fifty, among which some break off, in their first window or far behind it."""
    monkeypatch.setattr(engine, "model_threads", lambda *_: threads)
    lengths = [0.2, -0.3, 13.0, *[0.6] * 20, -9.0, 0.5, 4.0, -0.1]
    before = torch.get_num_threads()
    found = list(classify_clips(model, EXTRACTOR, made(lengths), batch_size=4))
    assert torch.get_num_threads() == before
    assert [answers.name for answers in found] == [f"clip {number}" for number in range(len(lengths))]
    alone = ExHuBERTPipeline(model=model, feature_extractor=EXTRACTOR)
    for number, (seconds, answers) in enumerate(zip(lengths, found, strict=True)):
        if seconds < 0:
            with pytest.raises(ValueError, match="broken"):
                answers.check()
        else:
            answers.check()
            got = alone.postprocess({"answers": answers, "warning": ""})
            assert alike(got, alone({"array": noise(number, seconds), "sampling_rate": 16_000}))


def test_the_first_clip_waits_for_no_other(model):
    """And neither do those before one that is slow to come."""
    go_on = threading.Event()

    def clips():
        first, second, third, fourth = made([0.2] * 4)

        def slow():
            assert go_on.wait(60)
            yield from fourth[1]

        yield from (first, second, third, ("slow", slow()))

    answers = classify_clips(model, EXTRACTOR, clips(), batch_size=8)
    assert [next(answers).name for _ in range(3)] == ["clip 0", "clip 1", "clip 2"]
    go_on.set()
    assert [each.name for each in answers] == ["slow"]


def test_what_is_read_ahead_is_little_and_ends_with_the_caller(model):
    made_windows = 0

    def endless(number):
        nonlocal made_windows
        for window in itertools.count():
            made_windows += 1
            yield Window(number, window, 0.5 * window, 0.5 * window + 0.5, np.zeros(8_000, np.float32))

    def clips():
        yield from made([0.2])
        yield from ((f"endless {number}", endless(number)) for number in itertools.count(1))

    answers = classify_clips(model, EXTRACTOR, clips(), batch_size=4)
    assert next(answers).name == "clip 0"
    answers.close()
    assert made_windows <= engine.WINDOWS_AHEAD + engine.WINDOWS_AT_A_TIME
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_a_window_that_the_model_does_not_take_costs_no_other_its_answer(model, monkeypatch):
    answer = engine.answer_batch

    def choosy(model, extractor, batch, *rest):
        if any(window.clip == 2 and window.number == 1 for window in batch):
            raise RuntimeError("out of memory")
        return answer(model, extractor, batch, *rest)

    monkeypatch.setattr(engine, "answer_batch", choosy)
    found = list(classify_clips(model, EXTRACTOR, made([0.6] * 5), batch_size=4))
    assert [str(answers.error) if answers.error else None for answers in found] == [
        *(None, None, "clip 2: from 0.25 s to 0.60 s: out of memory", None, None)
    ]


@pytest.mark.parametrize("before", [[0.2], [0.2, 0.2]])  # the second of which waits for others to fill its batch
def test_a_row_of_bad_clips_is_answered_on_the_way(model, before):
    taken = 0

    def clips():
        nonlocal taken
        for clip in made([*before, *[-0.1] * 1000]):
            taken += 1
            yield clip

    answers = classify_clips(model, EXTRACTOR, clips(), batch_size=4)
    found = list(itertools.islice(answers, len(before) + 2))
    assert [str(each.error) for each in found] == [*["None"] * len(before), "broken", "broken"]
    assert taken < 500
    answers.close()


@pytest.mark.parametrize(
    ("device", "in_step"), [("cpu", lambda more: more), ("cuda", None)], ids=["in step", "on a GPU"]
)
def test_a_forward_gets_the_whole_batch_where_no_others_run_beside_it(monkeypatch, device, in_step):
    batches = []

    def answer(model, extractor, batch, *rest):
        batches.append(len(batch))
        return [Row(torch.zeros(6))] * len(batch)

    monkeypatch.setattr(engine, "answer_batch", answer)
    model = Namespace(device=torch.device(device))
    assert len(list(classify_clips(model, EXTRACTOR, made([0.2] * 9), batch_size=4, in_step=in_step))) == 9
    assert sorted(batches) == [1, 4, 4]


def test_a_process_whose_clips_are_all_bad_says_so_although_others_go_on(model):
    (answers,) = classify_clips(model, EXTRACTOR, made([-0.1]), in_step=lambda more: True)
    assert str(answers.error) == "broken"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "batch_size is 0; it must be above 0"),
        (["--device", "gpu"], "device is 'gpu'; there is cpu"),
        (["--device", "cuda:99"], "device is 'cuda:99'; there is cpu"),
    ],
)
def test_mistakes_end_in_one_line(clips, classifier_folder, make_corpus, capsys, options, message):
    for command in (["predict"], ["embed", "--output", "out.parquet"]):
        assert message in refused(capsys, main, *command, classifier_folder, "clips", *options)
    given = ["--model", classifier_folder, "--corpora", make_corpus(), "--output", "scores"]
    assert message in refused(capsys, evaluate_hf.main, *given, *options)


def test_a_type_that_torch_lacks_is_refused(monkeypatch):
    def lacking(*_):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv1d", lacking)
    with pytest.raises(ValueError, match="dtype is 'float16', in which torch does not compute on cpu"):
        load.choose_device("cpu", "float16")


def test_half_precision_answers_nearly_the_same_and_its_rows_are_not_mixed(clips, classifier_folder, make_corpus):
    command = ["predict", classifier_folder, "clips", "--output", "out.jsonl", "--device", "cpu"]
    assert main([*command, "--output", "half.jsonl", "--dtype", "float16"]) == 0
    assert main(command) == 0
    half, whole = (Path(name).read_text() for name in ("half.jsonl", "out.jsonl"))
    assert half != whole and alike(half, whole, 0.02)
    with pytest.raises(ValueError, match="begun with dtype 'float32', now it is 'float16'"):
        main([*command, "--dtype", "float16"])
    given = ["--model", classifier_folder, "--corpora", str(make_corpus()), "--output", "scores"]
    assert evaluate_hf.main([*given, "--dtype", "float16", "--batch-size", "3"]) == 0
    assert json.loads(Path("scores/results.json").read_text())["dtype"] == "float16"


def test_the_fast_path_is_used_in_float32_on_the_cpu_unless_it_must_be_exact(clips, classifier_folder, monkeypatch):
    asked = []

    def switch(self, enabled=True):
        asked.append(enabled)

    monkeypatch.setattr(ExHuBERTForSequenceClassification, "set_fast_path", switch)
    for options, expected in (([], [True]), (["--exact"], []), (["--dtype", "float16"], [])):
        for command in (["predict"], ["embed", "--output", f"{len(options)}{options[-1:]}.parquet"]):
            asked.clear()
            assert main([*command, classifier_folder, "clips/a.flac", "--device", "cpu", *options]) == 0
            assert asked == expected


def launched(*arguments: str) -> subprocess.CompletedProcess:
    """`exhubert ...` in two processes."""
    command = [sys.executable, "-m", *TORCHRUN, "2", "-m", "exhubert", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


def test_two_processes_write_what_one_does(clips, classifier_folder, capsys):
    """With bad files in the share of each, rows of a run that was killed, and a summary that is said once."""
    write_bad_files()
    shutil.copy("clips/b.wav", "clips/f.wav")
    assert main(["predict", classifier_folder, "clips", "--output", "one.jsonl"]) == 2
    said = capsys.readouterr().err.splitlines()
    one = Path("one.jsonl").read_text()
    # What two processes leave that were killed: the second within its second row.
    shutil.copy("one.jsonl.settings.json", "two.jsonl.settings.json")
    rows = one.splitlines(keepends=True)
    Path("two.jsonl.unfinished-0").write_text("".join(rows[:3:2]))
    Path("two.jsonl.unfinished-1").write_text(rows[1] + rows[3][:-20])
    done = launched("predict", classifier_folder, "clips", "--output", "two.jsonl")
    assert alike(Path("two.jsonl").read_text(), one)
    errors = done.stderr.splitlines()
    assert [line for line in errors if line.startswith("bad: ")] == [line for line in said if line.startswith("bad: ")]
    assert sum(" files (" in line and "times real time" in line for line in errors) == 1
    assert done.returncode == 1  # the launcher's, for the 2 of each
    assert sorted(name for name in os.listdir() if name.startswith((".", "two"))) == [
        *("two.jsonl", "two.jsonl.settings.json")
    ]

    for name in ("text.wav", "empty.wav", "nan.wav", "cut.flac"):
        os.remove(f"clips/{name}")
    assert main(["embed", classifier_folder, "clips", "--output", "one.parquet", "--per", "window"]) == 0
    done = launched("embed", classifier_folder, "clips", "--output", "two.parquet", "--per", "window")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rows written to two.parquet") == 1
    one, two = (pandas.read_parquet(f"{name}.parquet") for name in ("one", "two"))
    pandas.testing.assert_frame_equal(two, one, rtol=0, atol=1e-5)
    assert not [name for name in os.listdir() if "unfinished" in name]


def test_one_process_takes_over_what_several_left(clips, classifier_folder):
    command = ["predict", classifier_folder, "clips", "--output"]
    assert main([*command, "one.csv"]) == 0
    header, *rows = Path("one.csv").read_text().splitlines(keepends=True)
    shutil.copy("one.csv.settings.json", "two.csv.settings.json")
    Path("two.csv.unfinished-0").write_text(header + rows[0])
    Path("two.csv.unfinished-1").write_text("")
    assert main([*command, "two.csv"]) == 0
    lines = Path("two.csv").read_text().splitlines(keepends=True)
    assert lines[0] == header and alike(sorted(lines), sorted([header, *rows]))
    assert not [name for name in os.listdir() if "unfinished" in name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["clips"], "give --output"), (["-", "--output", "out.csv"], "cannot read a file from standard input")],
)
def test_what_several_processes_cannot_do_is_refused(arguments, message):
    output = arguments[-1] if "--output" in arguments else None
    with pytest.raises(ValueError, match=message):
        files_of_team(Team(0, 2), arguments[:1], None, output)
