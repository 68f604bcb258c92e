"""Several processes on CPU: parity with one, who sees which samples, DDP, gradient checkpointing, the launchers' files.

python -m pytest tests/test_distributed.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import HubertConfig, HubertForSequenceClassification

from conftest import HUBERT_KINDS, ROOT, SMALL
from distributed_run import SIZES, environment, launch, train_and_record, write_hubert, write_recipe
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.model_folder import check_model_folder
from exhubert.training.arguments import parse

CONFIGS = ROOT / "recipes" / "accelerate"
TRAINING_CLIPS = (5, 12, 30)
BATCH = 8
ACCELERATE = ("accelerate.commands.launch", "--main_process_port", "0", "--config_file")
UPDATES = {"batch": 12, "round": 4, "batch, both heads": 12}  # 4 rounds of 3 corpora
# What must give the same: processes, parts of each one's share, an update after each batch or each round. With
# dimensions CCC is that of a part of a batch, over all processes.
WAYS = {
    "two processes": (2, 1, "batch"),
    "two processes, both heads": (2, 1, "batch, both heads"),
    "two processes, two parts": (2, 2, "batch"),
    "two processes, by round": (2, 1, "round"),
    "two processes, two parts, by round": (2, 2, "round"),
    "four processes": (4, 1, "batch"),
    "four processes, by round": (4, 1, "round"),
    "four parts": (1, 4, "batch"),
    "two parts, by round": (1, 2, "round"),
}
QUICK = ("two processes", "two processes, both heads", "two processes, two parts, by round", "four parts")
EACH_WAY = pytest.mark.parametrize(
    "way", [name if name in QUICK else pytest.param(name, marks=pytest.mark.heavy) for name in WAYS]
)
# Models with LayerDrop, dropout and SpecAugment as in published checkpoints.
PUBLISHED = {
    "as published": {},
    "layer sum": {"use_weighted_layer_sum": True},
    "layer sum, post-norm": {"use_weighted_layer_sum": True, **HUBERT_KINDS["base"]},
    "no SpecAugment": {"apply_spec_augment": False},
}
FROZEN = {
    "plain": ([], ["feature_encoder"], ["base"]),
    "expanded": ([], ["feature_encoder"], ["originals"], ["feature_encoder", "originals"], ["base"]),
}


@pytest.fixture(scope="module")
def records(request, tmp_path_factory):
    """What each process recorded of the same training in each of `WAYS` that is tested, and in one process at once."""
    folder = tmp_path_factory.mktemp("parity")
    recipe = str(write_recipe(folder, use_cpu=True))
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    ways = [name for name in WAYS if any(given.get("way") == name for given in params)]
    sources = [name for name in PUBLISHED if any(given.get("source") == name for given in params)]

    def run(name, parts, update):
        options = {"output": folder / name, "micro_batches": parts, "update": update.partition(",")[0]}
        options |= {"targets": "arousal", "scales": "{arousal: [0, 6]}"} if "heads" in update else {}
        options["rounds"] = UPDATES[update] // (1 if update == "round" else len(SIZES))
        return {"arguments": [recipe, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]}

    found = {update: [train_and_record(processes=1, **run(update, 1, update))] for update in UPDATES}
    steps = {name: step for source in sources for name, step in ddp_steps(folder, recipe, source).items()}
    jobs = {2: {"runs": {}, "steps": steps}, 4: {"runs": {}}}
    for name in ways:
        processes, parts, update = WAYS[name]
        if processes == 1:
            found[name] = [train_and_record(processes=1, **run(name, parts, update))]
        else:
            jobs[processes]["runs"][name] = run(name, parts, update)
    jobs = {processes: job for processes, job in jobs.items() if any(job.values())}
    for processes, each in launch(folder / "launched", jobs).items():
        for kind, names in (("runs", jobs[processes]["runs"]), ("without_gradient", jobs[processes].get("steps", {}))):
            found |= {name: [record[kind][name] for record in each] for name in names}
    return found


def ddp_steps(folder, recipe, source):
    """A model as in published checkpoints with every freezing policy, or for some models the first one."""
    checkpoint = str(write_hubert(folder / source, layerdrop=0.1, **PUBLISHED[source]))
    steps = {}
    for kind, policies in FROZEN.items():
        for policy in policies[: None if source in ("as published", "layer sum") else 1]:
            options = ["--model", checkpoint, "--expand_copies", str(int(kind == "expanded")), "--output", "unused"]
            freeze = ["--freeze", *policy] if policy else []
            steps[f"{source}, {kind}, frozen: {policy}"] = [recipe, *options, *freeze]
    return steps


@pytest.mark.slow
@EACH_WAY
def test_losses_and_gradients_are_those_of_one_process_with_the_whole_batch(records, way):
    update = WAYS[way][2]
    (reference,) = records[update]
    assert len(reference["losses"]) == len(reference["gradients"]) == UPDATES[update]
    assert len(records[way]) == WAYS[way][0]
    for record in records[way]:
        assert record["losses"] == pytest.approx(reference["losses"], rel=0, abs=1e-5)
        for expected, got in zip(reference["gradients"], record["gradients"], strict=True):
            assert set(got) == set(expected)
            for name, gradient in expected.items():
                assert torch.allclose(got[name], gradient, rtol=0, atol=1e-5), name
    assert len({record["seed"] for record in records[way]}) == len(records[way])  # of dropout
    for record in records[way][1:]:
        assert all(torch.equal(weight, record["weights"][name]) for name, weight in records[way][0]["weights"].items())


@pytest.mark.slow
@EACH_WAY
def test_each_sample_is_seen_by_one_process_in_the_documented_order(records, way):
    processes, parts, update = WAYS[way]
    seen = [record["draws"] for record in records[way]]
    rounds = UPDATES[update] // (1 if update == "round" else len(SIZES))
    share = BATCH // processes
    for draws in seen:  # in every round, so many samples of the first corpus, then of the second, then of the third
        assert [corpus for corpus, _, _ in draws] == rounds * [corpus for corpus in range(3) for _ in range(share)]
    # Each part of each batch is dealt to the processes in turn: put together again, the batches of one process.
    size = share // parts
    together = [
        draw for start in range(0, len(seen[0]), size) for draws in seen for draw in draws[start : start + size]
    ]
    assert together == records[update][0]["draws"]
    assert Counter(corpus for corpus, _, _ in together) == dict.fromkeys(range(3), rounds * BATCH)
    for corpus, clips in enumerate(TRAINING_CLIPS):
        drawn = [(pass_, clip) for number, pass_, clip in together if number == corpus]
        assert len(set(drawn)) == len(drawn)  # no clip twice in a pass, in whichever process
        assert [pass_ for pass_, _ in drawn] == [place // clips for place in range(len(drawn))]
        assert all(0 <= clip < clips for _, clip in drawn)  # so that a whole pass has every clip


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [name if name == "as published" else pytest.param(name, marks=pytest.mark.heavy) for name in PUBLISHED]
)
def test_nothing_trainable_is_without_gradient_under_ddp(records, source):
    """Else DDP, which does not look for such parameters, refuses the second update."""
    begins = (f"{source}, plain, frozen", f"{source}, expanded, frozen")  # of this one alone
    steps = {name: found for name, found in records.items() if name.startswith(begins)}
    assert len(steps) == (8 if source in ("as published", "layer sum") else 2)
    assert {name: found for name, found in steps.items() if found != [[], []]} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--freeze", "feature_encoder"], ["--expand_copies", "1", "--freeze", "feature_encoder", "originals"]]
)
def test_gradient_checkpointing_changes_no_gradient(tmp_path, options):
    recipe = str(write_recipe(tmp_path, use_cpu=True))
    given = [recipe, *options, "--rounds", "1", "--output"]
    plain = train_and_record([*given, str(tmp_path / "plain")], 1)
    saving = train_and_record([*given, str(tmp_path / "saving"), "--gradient_checkpointing", "true"], 1)
    for expected, got in zip(plain["gradients"], saving["gradients"], strict=True):
        assert set(got) == set(expected)
        assert all(torch.allclose(got[name], gradient, rtol=0, atol=1e-6) for name, gradient in expected.items())


@pytest.mark.heavy
def test_accelerate_launch_with_the_file_for_two_cpu_processes_trains_in_two(tmp_path):
    recipe = str(write_recipe(tmp_path))
    options = ["--rounds", "1", "--output", str(tmp_path / "run"), "--use_cpu"]
    command = [sys.executable, "-m", *ACCELERATE, str(CONFIGS / "cpu_2.yaml"), str(ROOT / "train_hf.py"), recipe]
    done = subprocess.run(
        [*command, *options], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("8 clips a batch on 2 processes") == 1  # said by one of them
    assert (tmp_path / "run" / "results.json").is_file()
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["train_batch_size"] == BATCH // 2
    assert len(list((tmp_path / "run" / "checkpoints" / "checkpoint-3").glob("rng_state_*.pth"))) == 2


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("more", [("bf16",)])
def test_fsdp2_of_an_expanded_model_follows_one_process_and_leaves_model_folders(tmp_path, more):
    """On a CPU, which accelerate must be talked into: what it cannot show is a GPU's memory and mixed precision."""
    recipe = str(write_recipe(tmp_path, use_cpu=True))
    options = ["--expand_copies", "1", "--freeze", "feature_encoder", "originals", "--rounds", "2", "--output"]
    runs = {
        "whole": {"arguments": [recipe, *options, str(tmp_path / "whole")], "to_the_end": True},
        "half": {"arguments": [recipe, *options, str(tmp_path / "half")], "stop_after": 4},
        "resumed": {"arguments": [recipe, *options, str(tmp_path / "half"), "--resume"]},
    }
    half = ["--bf16", "--gradient_checkpointing", "true"]
    runs |= {name: {"arguments": [recipe, *options, str(tmp_path / name), *half]} for name in more}
    launcher = [
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / "fsdp2_8.yaml"),
        "--main_process_port",
        "0",
    ]
    records = launch(tmp_path / "launched", {2: {"runs": runs}}, [*launcher, "--num_processes"])[2]
    one = train_and_record([recipe, *options, str(tmp_path / "one")], 1)
    for record in records:
        assert record["runs"]["whole"]["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-5)
        for expected, got in zip(one["gradients"], record["runs"]["whole"]["gradients"], strict=True):
            assert all(torch.allclose(got[name], gradient, rtol=0, atol=1e-5) for name, gradient in expected.items())
        for name in more:
            assert record["runs"][name]["losses"] == pytest.approx(one["losses"], rel=0, abs=0.05)
            assert record["runs"][name]["losses"] != record["runs"]["whole"]["losses"]
        resumed = record["runs"]["resumed"]["weights"]
        assert all(torch.equal(resumed[name], weight) for name, weight in record["runs"]["whole"]["weights"].items())
    plain, spread = (tmp_path / name / "checkpoints" / "checkpoint-6" for name in ("one", "whole"))
    for code in ("*.py", "README.md"):
        texts = [{path.name: path.read_text() for path in folder.glob(code)} for folder in (plain, spread)]
        assert texts[0] == texts[1]
    for folder in ("model", "checkpoints/checkpoint-6"):
        saved = ExHuBERTForSequenceClassification.from_pretrained(check_model_folder(tmp_path / "whole" / folder))
        for name, weight in saved.named_parameters():
            assert torch.equal(weight, records[0]["runs"]["whole"]["weights"][name]), name


def test_processes_that_would_each_train_alone_are_refused(monkeypatch, tmp_path):
    """What accelerate makes of several processes on a machine without CUDA that are not told of the CPU."""
    recipe = str(write_recipe(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="2 processes were started, but each of them would train alone on cpu"):
        parse([recipe, "--output", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("name", "given", "processes", "machines"),
    [
        ("cpu_2.yaml", [], 2, 1),
        ("gpu_1.yaml", [], 1, 1),
        ("gpu_8.yaml", [], 8, 1),
        ("gpu_8.yaml", ["--num_processes", "4"], 4, 1),
        ("nodes_2x8.yaml", ["--machine_rank", "1", "--main_process_ip", "first"], 16, 2),
        ("fsdp2_8.yaml", [], 8, 1),
    ],
)
def test_accelerate_reads_its_files_as_they_are_meant(name, given, processes, machines):
    load_config_from_file(str(CONFIGS / name))
    command = ["--config_file", str(CONFIGS / name), *given, "train_hf.py", "recipe.yaml", "--bf16"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert (parsed.num_processes, parsed.num_machines) == (processes, machines)
    assert parsed.training_script_args == ["recipe.yaml", "--bf16"]
    assert parsed.mixed_precision == "no"  # the recipe's part
    assert parsed.multi_gpu == (processes > 1 and not name.startswith("fsdp"))
    if machines > 1:
        assert (parsed.machine_rank, parsed.main_process_ip, parsed.main_process_port) == (1, "first", 29500)
    if name.startswith("fsdp"):
        assert parsed.use_fsdp
        assert (parsed.fsdp_version, parsed.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
    if name == "gpu_1.yaml":
        assert parsed.gpu_ids == "0"


def test_every_file_for_accelerate_is_tested():
    assert {path.name for path in CONFIGS.iterdir()} == {
        mark.args[1][place][0]
        for mark in test_accelerate_reads_its_files_as_they_are_meant.pytestmark
        for place in range(len(mark.args[1]))
    }


def test_the_layers_that_fsdp_wraps_are_those_of_the_expanded_model():
    named = load_config_from_file(str(CONFIGS / "fsdp2_8.yaml")).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    config = HubertConfig(**{**SMALL, **HUBERT_KINDS["large"]})
    with torch.device("meta"):
        source = HubertForSequenceClassification(config)
        model = ExHuBERTForSequenceClassification(ExHuBERTConfig.from_hubert_config(config))
    assert {type(layer).__name__ for layer in model.hubert.encoder.layers} == set(named.split(","))
    assert {type(layer).__name__ for layer in source.hubert.encoder.layers} == {named.split(",")[0]}
