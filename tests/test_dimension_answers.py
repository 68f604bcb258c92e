"""Dimensions in answers: pipeline, rows, pictures, embeddings, ONNX, models of others and of the Hub.

python -m pytest tests/test_dimension_answers.py
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from PIL import Image
from transformers import HubertConfig, HubertForSequenceClassification, Wav2Vec2FeatureExtractor

from conftest import ROOT, SMALL, alike, make_classifier, refused, run_without_package, write_corpus
from exhubert import ExHuBERTFeatureExtractor
from exhubert.audio_exhubert import prepare_input
from exhubert.cli import main
from exhubert.configuration_exhubert import SIX_CLASSES
from exhubert.convert.onnx_corpora import compare_on_corpora
from exhubert.evaluation.engine import classify_clips
from exhubert.inference.timeline import plot_timeline
from exhubert.model_folder import load_pipeline, load_trained, save_model_folder
from exhubert.pipeline_exhubert import ExHuBERTPipeline, make_windows, on_scale
from small_models import write_emotion

SCALES = {"arousal": [1, 7], "loudness": [-60, 0], "valence": [1, 7]}
LABELLED = {"label", "probabilities", "arousal", "valence"}


def of_dimensions(kind: str, **changes):
    """A small model of six classes and dimensions ("both"), or of dimensions alone ("alone")."""
    alone = {"problem_type": "regression"} if kind == "alone" else {}
    return make_classifier(0.2, num_hidden_layers=2, dimensions=SCALES, **alone, **changes)


@pytest.fixture(scope="module", params=["both", "alone"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return str(save_model_folder(of_dimensions(kind), tmp_path_factory.mktemp("dimensions") / kind))


@pytest.fixture
def classify(kind):
    return ExHuBERTPipeline(model=of_dimensions(kind), feature_extractor=ExHuBERTFeatureExtractor())


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * 16_000)).astype(np.float32)


def test_a_scale_is_undone():
    values = torch.tensor([[0.0, 0.5], [1.0, 1.25]])
    shown = on_scale(values, {"arousal": [1, 7], "loudness": [-60, 0]})
    assert shown.dtype == np.float64 and shown.tolist() == [[1.0, -30.0], [7.0, 15.0]]
    assert np.isnan(on_scale(np.array([np.nan]), {"arousal": [1, 7]})).all()
    assert on_scale(np.zeros((0, 2)), {"a": [0, 1], "b": [0, 1]}).shape == (0, 2)


def test_clip_and_windows_have_dimensions_on_their_scale(kind, classify):
    samples = noise(5.2)
    result = classify(samples)
    inputs = np.stack([prepare_input(samples[start : start + 48_000]) for start in (0, 24_000, 48_000)])
    with torch.inference_mode():
        outputs = classify.model(torch.from_numpy(inputs))
    raw = (outputs.logits if kind == "alone" else outputs.dimensions).double().numpy()
    low, high = np.array(list(SCALES.values())).T
    expected = low + raw * (high - low)
    for row, values in zip([*result["windows"], result], [*expected, expected.mean(axis=0)], strict=True):
        assert list(row["dimensions"]) == list(SCALES)
        np.testing.assert_allclose(list(row["dimensions"].values()), values, atol=1e-4)
        assert (row.keys() >= LABELLED) == (kind == "both") and (kind == "both" or not LABELLED & row.keys())


def test_dimensions_leave_the_classes_as_they_were_and_the_temperature_is_the_classes_alone():
    """Arousal and valence of the classes stay what they are, whatever dimensions of these names say."""
    samples, extractor = noise(5.2), ExHuBERTFeatureExtractor()
    both = of_dimensions("both", calibration_temperature=2.0)
    classes = make_classifier(num_hidden_layers=2, calibration_temperature=2.0)
    classes.load_state_dict({name: both.state_dict()[name] for name in classes.state_dict()})
    got, expected = (ExHuBERTPipeline(model=model, feature_extractor=extractor)(samples) for model in (both, classes))
    cold = ExHuBERTPipeline(model=of_dimensions("both"), feature_extractor=extractor)(samples)
    for row, cold_row in zip([got, *got["windows"]], [cold, *cold["windows"]], strict=True):
        assert row.pop("dimensions") == cold_row["dimensions"] and row["probabilities"] != cold_row["probabilities"]
    assert got == expected
    assert got["arousal"] == pytest.approx(sum(v * (1 if "high" in n else -1) for n, v in got["probabilities"].items()))


def test_windows_that_are_not_kept_streams_and_embeddings(kind, classify):
    samples = noise(7.5)
    every = classify(samples, hop_seconds=3.0, embeddings=True)
    kept = classify(samples, hop_seconds=3.0, embeddings=True, keep=lambda window: len(window) < 48_000)
    nothing = dict.fromkeys([*(sorted(LABELLED) if kind == "both" else []), "dimensions"])
    assert kept["windows"][:2] == [{"start": start, "end": start + 3, **nothing} for start in (0, 3)]
    assert kept["dimensions"] == kept["windows"][2]["dimensions"]
    assert kept["dimensions"] == pytest.approx(every["windows"][2]["dimensions"], abs=1e-4)
    none = classify(samples, keep=lambda window: False)
    assert {**none, "windows": len(none["windows"])} == {**nothing, "windows": 4}
    assert every["embedding"].shape == (32,) and every["windows"][0]["embedding"].shape == (32,)
    streamed = list(classify.stream(np.array_split(samples, 11), hop_seconds=3.0))
    for row, expected in zip(streamed, every["windows"], strict=True):
        expected.pop("embedding")
        assert alike(row, expected, 1e-4)


def test_an_answer_that_is_not_finite_is_the_clips_error(kind, classify):
    head = classify.model.classifier if kind == "alone" else classify.model.dimension_head
    head.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"the model's answer from 0\.00 s to 1\.00 s is not finite"):
        classify(noise(1.0))


def test_rows_of_all_formats_say_the_same(kind, folder, clips, capsys):
    def said(style, per="clip"):
        assert main(["predict", folder, "clips", "--format", style, "--per", per]) == 0
        return capsys.readouterr().out.splitlines()

    rows = [json.loads(line) for line in said("jsonl")]
    expected = [{"file": row["file"], **load_pipeline(folder)(row["file"])} for row in rows]
    assert alike(rows, expected, 1e-4)
    columns = [f"dimension_{name}" for name in SCALES]
    of_csv = list(csv.DictReader(said("csv")))
    of_classes = ["label", *(f"probability_{name}" for name in SIX_CLASSES), "arousal", "valence"]
    before = ["file", *(of_classes if kind == "both" else [])]
    assert list(of_csv[0]) == [*before, *columns, "seconds", "warning", "error"]
    heading, *lines = said("table")
    before = ["file", *(["label", "probability", "arousal", "valence"] if kind == "both" else [])]
    assert heading.split() == [*before, "arousal[1,7]", "loudness[-60,0]", "valence[1,7]", "seconds"]
    assert {len(line) for line in lines} == {len(heading)}
    for row, cells, line in zip(rows, of_csv, lines, strict=True):
        assert [float(cells[name]) for name in columns] == list(row["dimensions"].values())
        arousal, loudness, valence = row["dimensions"].values()
        assert line.split()[-4:-1] == [f"{arousal:.2f}", f"{loudness:.1f}", f"{valence:.2f}"]
    windows = [window for row in rows for window in row["windows"]]
    of_json = map(json.loads, said("jsonl", "window"))
    for row, cells, window in zip(of_json, csv.DictReader(said("csv", "window")), windows, strict=True):
        assert [row[name] for name in columns] == list(window["dimensions"].values())
        assert [float(cells[name]) for name in columns] == list(window["dimensions"].values())
        assert row.keys() == cells.keys() - {"warning", "error"}


def test_silence_bad_files_and_going_on(kind, folder, clips, capsys):
    pytest.importorskip("silero_vad")
    soundfile.write("clips/zero.wav", np.zeros(80_000), 16_000)
    Path("clips/text.wav").write_text("no audio")
    command = ["predict", folder, "clips/zero.wav", "clips/text.wav", "--vad", "--timeline", "pictures"]
    assert main([*command, "--format", "jsonl"]) == 2
    silent, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert silent["dimensions"] is None and {window["dimensions"] for window in silent["windows"]} == {None}
    assert bad.keys() == {"file", "error"} and Path("pictures/zero.wav.png").is_file()
    assert main(command) == 2
    assert "no speech" in capsys.readouterr().out
    for per in ("clip", "window"):
        assert main([*command, "--output", f"{per}.csv", "--per", per]) == 2
        rows = pandas.read_csv(f"{per}.csv")
        assert rows.filter(like="dimension_").isna().all(axis=None) and rows["error"].notna().sum() == 1
        assert main(["predict", folder, "clips/zero.wav", "--vad", "--output", f"{per}.csv", "--per", per]) == 0
        left = rows[rows["error"].isna()]
        pandas.testing.assert_frame_equal(pandas.read_csv(f"{per}.csv"), left, check_dtype=False)
    assert main(["embed", folder, "clips/b.wav", "--output", "out.parquet"]) == 0
    assert pandas.read_parquet("out.parquet")["embedding"][0].shape == (32,)


def test_rows_of_another_scale_are_not_mixed(folder, clips, tmp_path):
    command = [str(shutil.copytree(folder, tmp_path / "own")), "clips/a.flac", "--output", "out.csv"]
    assert main(["predict", *command]) == 0
    settings = Path("out.csv.settings.json")
    values = json.loads(settings.read_text())
    assert values["dimensions"] == SCALES
    settings.write_text(json.dumps(values | {"dimensions": {**SCALES, "arousal": [1, 5]}}))
    with pytest.raises(ValueError, match=r"begun with dimensions .*; give another --output"):
        main(["predict", *command])


@pytest.mark.filterwarnings("error")
def test_the_picture_has_a_panel_for_each_scale(tmp_path):
    """Blue is valence's: once high, once low; with what leaves its scale, a name with dollars, and a pause."""
    scales = {"valence": (1, 7), "arousal": (1, 7), "$loud$": (-60, 0)}
    windows = [
        {"start": k, "end": k + 2, "dimensions": {"valence": value, "arousal": 4.0, "$loud$": -70.0}}
        for k, value in enumerate([6.9] * 10 + [1.1] * 10)
    ]
    windows.append({"start": 20, "end": 22, "dimensions": None})
    plot_timeline(tmp_path / "alone.png", "clip", windows, [], (), scales)
    with Image.open(tmp_path / "alone.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = np.argwhere(abs(pixels - (0, 0x72, 0xB2)).sum(axis=2) < 30)
    of_line = blue[blue[:, 1] < 0.8 * pixels.shape[1]]  # the legend is to the right
    left, right = of_line[of_line[:, 1] < 200][:, 0], of_line[of_line[:, 1] > 0.6 * pixels.shape[1]][:, 0]
    assert left.max() + 100 < right.min() < pixels.shape[0] / 2
    both = [{"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}, **window} for window in windows[:-1]]
    both.append({"label": None, "probabilities": None, **windows[-1]})
    plot_timeline(tmp_path / "both.png", "clip", both, ["yes", "no"], (), scales)
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.height > pixels.shape[0]


@pytest.fixture
def audeering(tmp_path):
    """As published: the checkpoint, and transformers' own feature extractor with an attention mask."""
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(write_emotion(tmp_path / "audeering"))
    return str(tmp_path / "audeering")


def test_audeerings_model_answers_with_its_three_outputs(audeering, clips, capsys):
    """Whole clips to 30 s, unmasked, as published: the mean of its frames takes padding in."""
    classify = load_pipeline(audeering)
    samples = noise(5.0)
    result = classify(samples)
    normalised = torch.from_numpy(prepare_input(samples, None))[None]
    with torch.inference_mode():
        frames = classify.model.wav2vec2(normalised).last_hidden_state.mean(dim=1)
        head = classify.model.classifier
        raw = head.out_proj(torch.tanh(head.dense(frames)))[0].tolist()
    assert result["dimensions"] == pytest.approx(dict(zip(("arousal", "dominance", "valence"), raw, strict=True)))
    assert result.keys() == {"dimensions", "windows"} and len(result["windows"]) == 1
    assert main(["predict", audeering, "clips", "--format", "jsonl"]) == 0
    for line in capsys.readouterr().out.splitlines():
        row = json.loads(line)
        assert row["dimensions"] == pytest.approx(classify(row["file"])["dimensions"], abs=1e-5)
    assert main(["embed", audeering, "clips", "--output", "out.parquet"]) == 0
    assert pandas.read_parquet("out.parquet")["embedding"][0].shape == (32,)


def test_audeerings_model_is_evaluated_as_each_clip_alone(audeering):
    """Of several lengths in a batch, as an evaluation has them where an extractor asks for a mask."""
    model, extractor = load_trained(audeering)
    assert not extractor.return_attention_mask
    lengths = [1.0, 0.4, 2.0, 1.0]
    clips = [(str(k), make_windows([noise(each)], extractor, clip=k)) for k, each in enumerate(lengths)]
    masked = bool(extractor.return_attention_mask)
    for seconds, answers in zip(lengths, classify_clips(model, extractor, clips, 4, masked), strict=True):
        with torch.inference_mode():
            alone = model(torch.from_numpy(prepare_input(noise(seconds), None))[None]).logits[0]
        torch.testing.assert_close(answers.rows[0].dimensions, alone, atol=1e-5, rtol=0)
        assert torch.equal(answers.rows[0].logits, answers.rows[0].dimensions)


def test_transformers_own_regression_answers_likewise(tmp_path, clips, capsys):
    names = {0: "valence", 1: "arousal"}
    config = HubertConfig(**SMALL, problem_type="regression", id2label=names, label2id={v: k for k, v in names.items()})
    model = HubertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "regression")
    result = load_pipeline(str(tmp_path / "regression"))(noise(3.0))
    with torch.inference_mode():
        raw = model(torch.from_numpy(prepare_input(noise(3.0)))[None]).logits[0].tolist()
    assert result["dimensions"] == pytest.approx({"valence": raw[0], "arousal": raw[1]}, abs=1e-6)
    assert main(["predict", str(tmp_path / "regression"), "clips/a.flac"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["file", "valence[0,1]", "arousal[0,1]", "seconds"]


def test_an_export_answers_dimensions(kind, folder, tmp_path, capsys):
    """In int8 beside classes, where the card says how close float32 is; in float32 alone, on a corpus's own scale."""
    int8, exported = kind == "both", tmp_path / "exported"
    corpus = write_corpus(tmp_path / "rated", takes=1, split=lambda row: "test", arousal=lambda row: str(1 + row % 5))
    command = ["convert", "onnx", folder, exported, "--check", corpus, "--scales"]
    assert "--scales is 'arousal'; a table such as" in refused(capsys, main, *command, "arousal")
    assert main([*map(str, command), "{arousal: [1, 5]}", *(["--int8"] if int8 else [])]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| rated ")]
    assert -1 < float(row.split("|")[-3]) < 1  # CCC of the export
    expected, got = (load_pipeline(str(each)) for each in (folder, exported))
    assert got.dimensions == expected.dimensions and got.class_names == expected.class_names
    inputs = torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs, others = expected.model(inputs), got.model(inputs, output_hidden_states=True)
    name = "dimensions" if int8 else "logits"
    difference = (others[name] - outputs[name]).abs().max().item()
    assert 0 < difference < (0.1 * outputs[name].abs().max() if int8 else 1e-5)
    assert len(others.hidden_states) == 3 and (others.dimensions is None) == (kind == "alone")
    card = (exported / "README.md").read_text()
    of_dimensions = [float(number) for number in re.findall(r"of dimensions (\S+),", card)]
    assert len(of_dimensions) == 2 * int8 and min(of_dimensions, default=0) < 1e-5
    shown = [each(noise(4.0), embeddings=True)["dimensions"] for each in (expected, got)]
    assert shown[1] == pytest.approx(shown[0], abs=10 if int8 else 1e-3)


@pytest.mark.parametrize("kind", ["both", "alone"])
def test_an_export_is_compared_on_corpora(kind, tmp_path):
    """The export is another torch model here, whose answers differ by as much as one in int8."""
    scales = {"arousal": [1, 5], "valence": [1, 5]}
    alone = {"problem_type": "regression"} if kind == "alone" else {}
    model, other = (make_classifier(0.2, num_hidden_layers=2, dimensions=scales, **alone) for _ in range(2))
    head = other.classifier if kind == "alone" else other.dimension_head
    head.bias.data += 0.25
    numbers = {"arousal": lambda row: str(1 + row % 5), "valence": lambda row: "" if row % 2 else str(1 + row % 4)}
    corpus = write_corpus(tmp_path / "iemocap", takes=1, split=lambda row: "test", **numbers)
    lines = compare_on_corpora(model, other, ExHuBERTFeatureExtractor(1.0), [str(corpus)]).splitlines()
    header, _, row, everything = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    of_classes = ["same class", "UAR torch", "UAR ONNX", "largest difference of logits"] if kind == "both" else []
    assert header == ["corpus", "clips", *of_classes, "CCC torch", "CCC ONNX", "largest difference of dimensions"]
    assert row[1:] == everything[1:] and row[:2] == ["iemocap", "12"] and float(row[-1]) == 0.25
    if kind == "both":
        assert row[2] == "100.00 %" and row[3] == row[4] and row[5] == "0"
    assert row[-3] != row[-2] and -1 < float(row[-3]) < 1


def test_a_model_folder_needs_no_package(tmp_path):
    """Its pipeline; and demo/classify.py, which hears the first window of it."""
    samples = noise(4.0)
    np.save(tmp_path / "audio.npy", samples)
    soundfile.write(tmp_path / "audio.wav", samples, 16_000, subtype="FLOAT")
    expected = {}
    for kind in ("both", "alone"):
        model = of_dimensions(kind)
        model.save_pretrained(tmp_path / kind)
        ExHuBERTFeatureExtractor().save_pretrained(tmp_path / kind)
        expected[kind] = load_pipeline(str(tmp_path / kind))({"array": samples, "sampling_rate": 16_000})
    script = f"""
    import contextlib, io, json, runpy, sys
    import numpy as np
    from transformers import pipeline

    given = {{"array": np.load("audio.npy"), "sampling_rate": 16_000}}
    got, said = {{}}, {{}}
    for name in ("both", "alone"):
        by_task = pipeline("speech-emotion-recognition", model=name, trust_remote_code=True)
        got[name] = by_task(given)
        sys.argv = ["classify.py", name, "audio.wav"]
        with contextlib.redirect_stdout(io.StringIO()) as text:
            runpy.run_path({str(ROOT / "demo" / "classify.py")!r})
        said[name] = text.getvalue().splitlines()[1:]
    print(json.dumps({{"got": got, "said": said}}))
    """
    found = run_without_package(tmp_path, script)
    assert alike(found["got"], expected, 1e-4)
    for kind, lines in found["said"].items():
        numbers = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[-len(SCALES) :]}
        dimensions = expected[kind]["windows"][0]["dimensions"]
        for name, (low, high) in SCALES.items():
            value, scale = numbers[name].split(maxsplit=1)
            assert float(value) == pytest.approx(dimensions[name], abs=0.01) and scale == f"on {low} to {high}"
        classes = [line.split()[1] for line in lines[: -len(SCALES)]]
        assert classes == (list(SIX_CLASSES) if kind == "both" else [])
