"""Training on GPUs: mixed precision, the fused optimiser, resuming, several processes over NCCL.

python -m pytest tests/test_cuda.py

Skipped where there is no GPU. All but the last also run on the CPU, which shows that the tests themselves are right.
"""

from __future__ import annotations

import math

import pytest
import torch

from distributed_run import TORCHRUN, launch, write_recipe

GPUS = torch.cuda.device_count()
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.heavy),
    pytest.param("cuda", marks=pytest.mark.skipif(GPUS < 1, reason="needs a GPU, and there is none")),
]
ROUNDS = 4
UPDATES = 3 * ROUNDS
STOPPED_AFTER = 5


def train(folder, device, runs, processes=1):
    """Trains in so many processes, on a GPU each.

    Args:
        folder: of the recipe and the runs.
        device: cpu or cuda.
        runs: for each name the run folder, the options, and after how many updates it is left, or None.
        processes: their number.

    Returns:
        What the first process recorded of each run.
    """
    recipe = str(write_recipe(folder, use_cpu=device == "cpu"))
    jobs = {}
    for name, (output, options, stop_after) in runs.items():
        arguments = [recipe, "--rounds", str(ROUNDS), "--output", str(folder / output), *options]
        jobs[name] = {"arguments": arguments, "stop_after": stop_after}
    return launch(folder / "launched", {processes: {"runs": jobs}}, TORCHRUN)[processes][0]["runs"]


@pytest.fixture(scope="module", params=DEVICES)
def records(request, tmp_path_factory):
    """The device, and what was recorded of a run in each precision, and of one that was left and resumed."""
    fused, whole = ["--optim", "adamw_torch_fused"], ["--bf16", "false"]
    runs = {
        "float32": ("float32", ["--optim", "adamw_torch", *whole], None),
        "fused": ("fused", [*fused, *whole], None),
        "bf16": ("bf16", ["--bf16", *fused], None),
        "left": ("left", ["--bf16", *fused], STOPPED_AFTER),
        "resumed": ("left", ["--bf16", *fused, "--resume"], None),
    }
    if request.param == "cuda":
        runs["fp16"] = ("fp16", ["--fp16", *fused], None)  # scaling its losses is for GPUs
    return request.param, train(tmp_path_factory.mktemp(request.param), request.param, runs)


def test_mixed_precision_and_the_fused_optimizer_follow_float32(records):
    _, found = records
    expected = found["float32"]["losses"]
    assert len(expected) == UPDATES
    for name in found.keys() - {"float32", "left", "resumed"}:
        losses, half = found[name]["losses"], name.endswith("16")
        assert all(map(math.isfinite, losses)), name
        assert losses == pytest.approx(expected, rel=0, abs=0.05 if half else 1e-4), name
        assert (losses[0] != expected[0]) == half, name  # whether the forward was computed in another precision
        assert {weight.dtype for weight in found[name]["weights"].values()} == {torch.float32}, name


def test_a_resumed_run_goes_on_as_the_undisturbed_one(records):
    device, found = records
    undisturbed, left, resumed = (found[name] for name in ("bf16", "left", "resumed"))
    assert left["draws"][: 8 * STOPPED_AFTER] + resumed["draws"] == undisturbed["draws"]
    assert (len(left["gradients"]), len(resumed["gradients"])) == (STOPPED_AFTER, UPDATES - STOPPED_AFTER)
    # On a GPU the parts of a gradient are not summed in a fixed order.
    tolerance = 0 if device == "cpu" else 1e-3
    assert resumed["losses"] == pytest.approx(undisturbed["losses"], rel=0, abs=tolerance)
    for name, weight in undisturbed["weights"].items():
        assert torch.allclose(resumed["weights"][name], weight, rtol=0, atol=tolerance), name


@pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, and there are {GPUS}")
def test_processes_over_nccl_follow_one_gpu_with_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # its 10 bits would hide what is to be compared
    found = []
    for processes in (1, 4 if GPUS >= 4 else 2):
        folder = tmp_path / f"{processes}"
        folder.mkdir()
        found.append(train(folder, "cuda", {"run": ("run", ["--bf16", "false"], None)}, processes)["run"])
    one, many = found
    assert many["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-4)
    for expected, got in zip(one["gradients"], many["gradients"], strict=True):
        assert all(torch.allclose(got[name], gradient, rtol=0, atol=1e-4) for name, gradient in expected.items())
