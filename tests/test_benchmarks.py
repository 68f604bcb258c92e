"""The benchmarks: what is counted is what is computed; the tables say what was measured and what could not be.

python -m pytest tests/test_benchmarks.py
"""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import HUBERT_KINDS, ROOT, SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.benchmarks import scaling
from exhubert.benchmarks.arithmetic import (
    FEATURE_ENCODER,
    ORIGINALS,
    forward_products,
    total_flops,
    training_products,
)
from exhubert.benchmarks.contestants import FREEZERS, Load
from exhubert.benchmarks.long_audio import CALL_RATE, write_call
from exhubert.benchmarks.speed import FLOOR, PLAIN, Contestant, Group, measure, row
from exhubert.benchmarks.speed_report import write_report


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"num_copies": 0}, [FEATURE_ENCODER]),
        ({"num_copies": 2}, [FEATURE_ENCODER, ORIGINALS]),
        ({"num_copies": 2, "gate_original_layers": True}, [FEATURE_ENCODER]),
        ({"num_copies": 0, **HUBERT_KINDS["base"], "num_conv_pos_embeddings": 15}, [FEATURE_ENCODER]),
    ],
)
def test_the_counted_operations_are_those_that_torch_computes(changes, frozen, training):
    options = {"attn_implementation": "eager", "mask_time_prob": 0.0}
    if training:  # where torch counts the gradients of a grouped convolution as if it had one group
        options["num_conv_pos_embedding_groups"] = 1
    config = ExHuBERTConfig(**{**SMALL, **options, **changes})
    model = ExHuBERTForSequenceClassification(config).train()
    for part in frozen:
        getattr(model, FREEZERS[part])()
    clips = torch.randn(2, 8000)
    counted = training_products(config, 2, 0.5, frozen) if training else forward_products(config, 2, 0.5)
    with FlopCounterMode(display=False) as counter:
        loss = model(clips, labels=torch.tensor([0, 1])).loss
        if training:
            loss.backward()
    assert total_flops(counted) == counter.get_total_flops()


def test_the_report_has_ratios_spread_memory_and_what_is_missing(tmp_path):
    contestants = {
        FLOOR: Contestant(print, ""),
        PLAIN: Contestant(print),
        "fast path": Contestant(print),
        "elsewhere": Contestant(print, "floor of another"),
        "ONNX": Contestant(print),
    }
    rows = []
    for batch in (1, 4):
        found = {
            FLOOR: [{"seconds": 0.5 * batch, "flops": 200e9 * batch, "best_flops_per_second": 450e9}] * 3,
            PLAIN: [{"seconds": seconds * batch, "peak_bytes": 3 * 2**30} for seconds in (0.9, 5.0, 1.0)],
            "fast path": [{"seconds": 0.6 * batch}] * 3,
            "elsewhere": [{"seconds": 0.6 * batch}] * 3,
            "ONNX": [{"missing": "not installed"}] * 3,
        }
        rows += [row(Group("forward", contestants), name, Load(batch), found) for name in contestants]
    text = write_report(tmp_path, {"processor": "made up"}, rows)
    assert text == (tmp_path / "speed.md").read_text() and "made up" in text
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "speed.json").read_text())["rows"] == json.loads(json.dumps(rows))
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    table = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in lines}
    assert header[1] == "clips" and "of seconds" not in header  # all loads are 3 s
    plain = table[PLAIN, "4"]
    assert (plain["seconds"], plain["lowest to highest"]) == ("4.000", "3.600 to 20.000")
    assert (plain["x floor"], plain["peak memory"]) == ("2.00", "3.00 GiB")
    assert (table["fast path", "1"]["x floor"], table["fast path", "1"]["x plain path's speed"]) == ("1.20", "1.67")
    assert table["elsewhere", "1"]["x floor"] == ""
    assert table["ONNX", "4"]["seconds"] == "not installed"
    assert "2048 cubed, in the same run: 450 GFLOP/s" in text


def test_contestants_take_turns_and_the_first_turn_is_not_counted(monkeypatch):
    order = []

    class Stub:
        def __init__(self, title, name):
            self.name = name

        def answer(self):
            order.append(f"{self.name} is ready")

        def run(self, load):
            order.append(self.name)
            return {"missing": "killed"} if self.name == "B" else {"seconds": float(len(order))}

        def end(self):
            order.append(f"{self.name} ends")

    monkeypatch.setattr("exhubert.benchmarks.speed.Process", Stub)
    group = Group("forward", {name: Contestant(print, "") for name in "AB"}, seconds=0.0, least=2)
    first, second = measure(group, Namespace(quick=False))
    assert order == ["A is ready", "B is ready", *"AB" * 3, "A ends", "B ends"]
    assert first["turns"] == [5.0, 7.0] and first["seconds"] == 6.0
    assert second["missing"] == "killed" and "seconds" not in second


def test_the_tables_of_the_documentation_are_those_that_are_computed(capsys):
    scaling.main()

    def numbers(text):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        return [row for row in rows if any(cell[:1].isdigit() for cell in row[1:])]

    computed = numbers(capsys.readouterr().out)
    written = numbers((ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"))
    assert len(written) > 30
    assert not [row for row in written if row not in computed]


def test_loudness_and_pitch_are_those_of_a_tone():
    """220 Hz are two octaves above 55; the level is that of the samples at unit variance, whatever the gain was."""
    pytest.importorskip("librosa")
    from exhubert.benchmarks.signal_dimensions import SECONDS, loudness, pitch

    time = np.arange(round(16_000 * SECONDS)) / 16_000
    tone = np.sin(2 * np.pi * 220 * time)
    assert pitch(0.1 * tone) == pytest.approx(24, abs=0.1)
    assert loudness(0.1 * tone) == pytest.approx(0, abs=0.05)
    half = np.where(time < SECONDS / 2, tone, 0)  # twice the variance in one half, -60 dB in the other
    assert loudness(half) == loudness(0.01 * half) == pytest.approx((3 - 60) / 2, abs=2)  # some frames lie in both
    assert pitch(half) == pytest.approx(24, abs=0.1)


def test_in_a_made_up_call_one_speaks_at_a_time(tmp_path):
    clips = [np.full(round(seconds * CALL_RATE), 0.5) for seconds in (0.5, 1.0)]
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_call(tmp_path / f"{name}.flac", 20.3, clips, seed)
    one, rate = soundfile.read(tmp_path / "one.flac")
    assert one.shape == (round(20.3 * CALL_RATE), 2) and rate == CALL_RATE
    spoken = one > 0.4
    assert spoken.any(axis=0).all() and not spoken.all(axis=1).any() and 0.2 < spoken.any(axis=1).mean() < 0.7
    assert (soundfile.read(tmp_path / "again.flac")[0] == one).all()
    assert (soundfile.read(tmp_path / "other.flac")[0] != one).any()
