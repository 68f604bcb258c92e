"""Training on dimensions: losses, what is refused, both heads, dimensions alone, resuming, two processes.

python -m pytest tests/test_training_dimensions.py
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict

import numpy as np
import pandas
import pytest
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import train_hf
from conftest import free_port, refused, write_corpus
from exhubert.configuration_exhubert import SIX_CLASSES, class_names_of_config, dimensions_of_config
from exhubert.corpora.load import one_class_notices
from exhubert.evaluation.metrics import average_metrics
from exhubert.model_folder import load_trained, save_model_folder
from exhubert.training.arguments import Recipe
from exhubert.training.dimensions import DimensionLoss, Truth, ccc_loss, dimension_notices, mse_loss
from exhubert.training.losses import ClassificationLoss, balanced_weights, vote_targets
from exhubert.training.models import load_model
from exhubert.training.run_folder import check_recipe
from small_models import make_model, write_model

pytestmark = pytest.mark.usefixtures("blank_pictures")
NAN = float("nan")
SIX = list(SIX_CLASSES)
SCALES = {"arousal": [1, 7], "valence": [-1, 1]}


def drawn(clips: int, dimensions: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, clips, dimensions, generator=generator, dtype=torch.float64)
    return values[0].requires_grad_(), values[1]


def with_gaps(targets: torch.Tensor, *clips: int) -> torch.Tensor:
    targets = targets.clone()
    targets[list(clips), 0] = NAN
    return targets


# The losses

CASES = {
    "all targets": lambda p, t: (p, t),
    "some clips without": lambda p, t: (p, with_gaps(t, 0, 2)),
    "one clip with": lambda p, t: (p, with_gaps(t, 0, 1, 2, 3, 4)),
    "a dimension without": lambda p, t: (p, with_gaps(t, *range(6))),
    "nobody has any": lambda p, t: (p, torch.full_like(t, NAN)),
    "equal targets": lambda p, t: (p, torch.full_like(t, 0.3)),
    "equal predictions": lambda p, t: (torch.full_like(p, 0.3).requires_grad_(), t),
    "all equal": lambda p, t: (torch.full_like(p, 0.3).requires_grad_(), torch.full_like(t, 0.3)),
    "one clip": lambda p, t: (p[:1], t[:1]),
}


@pytest.mark.parametrize("loss", [ccc_loss, mse_loss])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_right_and_finite(case, loss):
    predictions, targets = CASES[case](*drawn(6))
    assert torch.autograd.gradcheck(lambda values: loss(values, targets), predictions)
    found = loss(predictions, targets)
    (gradient,) = torch.autograd.grad(found, predictions)
    assert torch.isfinite(found) and torch.isfinite(gradient).all()
    assert not gradient[torch.isnan(targets)].any()  # nothing is learnt from a target that is not there


def test_ccc_loss_is_one_less_ccc_of_the_dimensions_that_have_one():
    predictions, targets = drawn(9, 3)
    targets = with_gaps(targets, 1, 4)
    targets[:, 1] = 0.5  # has no CCC
    cccs = []
    for column in (0, 2):
        known = torch.isfinite(targets[:, column])
        x, y = predictions[known, column].detach().numpy(), targets[known, column].numpy()
        cccs.append(2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    assert ccc_loss(predictions, targets).item() == pytest.approx(1 - np.mean(cccs), abs=1e-9)
    assert ccc_loss(targets[:, 2:], targets[:, 2:]).item() == pytest.approx(0, abs=1e-12)
    assert ccc_loss(torch.full_like(targets, 0.3), targets).item() == 1  # equal answers
    assert ccc_loss(predictions[:1], targets[:1]).item() == 0


def test_equal_targets_in_float32_are_equal():
    """Rounding leaves them a variance; of that no gradient may be made."""
    predictions = torch.full((7, 1), 0.1, requires_grad=True)
    loss = ccc_loss(predictions, torch.full((7, 1), 0.1) + torch.tensor([[1e-7]]) * torch.arange(7)[:, None])
    assert loss.item() == 0 and not torch.autograd.grad(loss, predictions)[0].any()


def test_both_losses_are_added_and_clips_without_a_class_count_in_one():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 6, generator=generator), torch.tensor([0, -100, 5, 2, -100, 1])
    answers, targets = torch.rand(2, 6, 2, generator=generator)
    of_classes = ClassificationLoss(SIX)
    loss = DimensionLoss("ccc", 0.5, of_classes)
    found = loss({"logits": logits, "dimensions": answers}, Truth(labels, targets, 1), torch.tensor(4))
    known = labels >= 0
    expected = of_classes({"logits": logits[known]}, labels[known]) + 0.5 * ccc_loss(answers, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    without = loss((logits, answers), Truth(torch.full((6,), -100), targets, 1), torch.tensor(0))
    assert without.item() == pytest.approx(0.5 * ccc_loss(answers, targets).item())
    assert str(loss) == "cross entropy; plus 0.5 x 1 - CCC of dimensions"
    alone = DimensionLoss("mse")
    assert alone({"logits": answers}, Truth(labels, targets, 1)).item() == pytest.approx(
        ((answers - targets) ** 2).mean().item()
    )


def test_parts_of_a_batch_add_up():
    """CCC is that of each part, over which the mean is taken; the squared error is that of the batch."""
    predictions, targets = (values.detach().float() for values in drawn(8))
    targets = with_gaps(targets, 0, 6)
    halves = [slice(0, 4), slice(4, 8)]
    for kind, expected in (
        ("ccc", torch.stack([ccc_loss(predictions[half], targets[half]) for half in halves]).mean()),
        ("mse", mse_loss(predictions, targets)),
    ):
        loss = DimensionLoss(kind)
        none = torch.full((4,), -100)
        parts = sum(loss((predictions[half],), Truth(none, targets[half], 2)) for half in halves)
        assert parts.item() == pytest.approx(expected.item(), rel=1e-6)


def gradient_in(rank: int, processes: int, port: int, kind: str, folder: str) -> None:
    """One of several processes: the loss and gradient of a linear layer as DDP and `Trainer` make them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    PartialState._reset_state()
    if processes > 1:
        PartialState(cpu=True)
        assert torch.distributed.get_world_size() == processes
    inputs, targets = (values.detach().float() for values in drawn(8, 3))
    targets, weight = with_gaps(targets, 0, 6), torch.eye(3, requires_grad=True)
    mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    labels = torch.full((8 // processes,), -100)
    loss = processes * DimensionLoss(kind)((inputs[mine] @ weight,), Truth(labels, targets[mine], 1))
    loss.backward()
    found = torch.cat([weight.grad.flatten(), loss.detach()[None]])
    if processes > 1:
        torch.distributed.all_reduce(found)
        torch.distributed.destroy_process_group()
    torch.save(found / processes, f"{folder}/{kind}-{processes}-{rank}.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process whose autograd has device threads cannot be forked")
@pytest.mark.parametrize("kind", ["ccc", "mse"])
def test_two_processes_have_the_loss_and_gradient_of_the_whole_batch(tmp_path, kind):
    for processes in (1, 2):
        arguments = (processes, free_port(), kind, str(tmp_path))
        torch.multiprocessing.start_processes(gradient_in, arguments, nprocs=processes, start_method="fork")
    whole, *halves = (torch.load(tmp_path / f"{kind}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert whole[:-1].abs().min() > 0
    for half in halves:
        assert torch.allclose(half, whole, rtol=1e-5, atol=1e-7)


def test_class_weights_and_votes_leave_out_clips_without_a_class():
    labels = np.array([0, 0, 1, -100, -100])
    assert balanced_weights([labels], 3) == pytest.approx(balanced_weights([labels[:3]], 3))
    votes = [[3.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    (shares,), _ = vote_targets({"a": Dataset.from_dict({"labels": [0, 1, -100], "class_votes": votes})}, ["x", "y"])
    assert shares.tolist() == [[0.75, 0.25], [0, 1], [-100, -100]]
    assert balanced_weights([shares], 2) == pytest.approx(balanced_weights([shares[:2]], 2))
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    loss, targets = ClassificationLoss(["x", "y"]), torch.tensor(shares)
    found = loss({"logits": logits}, targets, num_items_in_batch=torch.tensor(4))  # entries that are not -100
    assert found.item() == pytest.approx(loss({"logits": logits[:2]}, targets[:2]).item(), rel=1e-6)


def test_dimensions_cost_two_small_products():
    """Of a model as small as this a thousandth, of the published one 2e-8; losses and metrics are of a clip each."""
    counts = []
    for dimensions in ({}, SCALES):
        model = make_model(dimensions=dimensions)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(4, 8000), labels=torch.zeros(4, dtype=torch.long))
        counts.append(counter.get_total_flops())
    assert counts[1] - counts[0] == 2 * 4 * model.config.classifier_proj_size * len(SCALES)
    assert counts[1] < 1.0001 * counts[0]


# What is refused

RECIPE = {"model": "m", "corpora": ["a"], "output": "o"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": "none"}, "labels is none and there are no targets"),
        ({"labels": "none", "targets": ["arousal"], "soft_labels": True}, "soft_labels is for classes"),
        ({"labels": "none", "targets": ["arousal"], "class_weights": "balanced"}, "class_weights: balanced is for"),
        ({"targets": ["arousal"], "dimension_loss": "mae"}, "dimension_loss is 'mae'; it must be ccc or mse"),
        ({"targets": ["arousal"], "dimension_weight": 0.0}, "dimension_weight is 0.0; it must be above 0"),
        ({"targets": ["arousal"], "scales": {"valence": [1, 7]}}, "'valence' is none of the targets, arousal"),
        ({"targets": ["arousal"], "scales": {"arousal": [7, 1]}}, "arousal"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**{**RECIPE, **changes}).check()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": "none", "training": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor is for classes"),
        ({"soft_labels": True, "training": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor is for classes"),
        ({"labels": "none", "training": {"metric_for_best_model": "average_uar"}}, "no 'average_uar'; the nearest"),
        (
            {"early_stopping": 2, "training": {"metric_for_best_model": "average_uar"}},
            "mean of average UAR and average",
        ),
        (
            {"targets": ["arousel"], "scales": {}},
            "no corpus has numbers in a column 'arousel'; the nearest is 'arousal'",
        ),
        ({"corpora": ["second"], "labels": "none"}, "values are never invented from class words"),
        ({"model": "xls-r"}, "targets beside labels are for a HuBERT or ExHuBERT, and .* is a 'wav2vec2' model"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(ground, capsys, changes, says):
    line = refused(capsys, train_hf.main, ground(**changes))
    assert re.search(says, line), line


def test_a_metric_that_the_validation_does_not_define_is_refused():
    def rows(values):
        return Dataset.from_dict({"labels": [0] * len(values), "dimensions": [[value] for value in values]})

    corpora = {"a": {"train": rows([0.1, NAN]), "validation": rows([0.5, 0.5])}}
    assert dimension_notices(corpora, ["arousal"]) == ["corpus 'a': of 2 training clips 1 have arousal"]
    with pytest.raises(ValueError, match="the best model cannot be chosen by average_ccc"):
        dimension_notices(corpora, ["arousal"], "average_ccc")
    corpora["b"] = {"train": rows([NAN]), "validation": rows([0.1, 0.2])}
    assert "no targets; it trains classes alone" in dimension_notices(corpora, ["arousal"], "average_ccc")[1]
    with pytest.raises(ValueError, match="two classes or more"):
        dimension_notices(corpora, ["arousal"], "average_score")
    unlabelled = Dataset.from_dict({"labels": [-100, -100]})
    with pytest.raises(ValueError, match="no clip of its validation split has a class; UAR is not defined"):
        one_class_notices({"a": {"validation": unlabelled, "test": unlabelled}}, SIX, "eval_average_uar")
    assert one_class_notices({"a": {"validation": unlabelled, "test": unlabelled}}, []) == []


def test_averages_of_both():
    metrics = {"eval_a_uar": 0.4, "eval_b_uar": 0.6, "eval_a_ccc": 0.2, "eval_a_ccc_arousal": 0.2, "eval_b_ccc": 0.4}
    averages = average_metrics(metrics, ["a", "b"], dimensions=["arousal"])
    expected = {"eval_average_uar": 0.5, "eval_average_ccc": 0.3, "eval_average_ccc_arousal": 0.2}
    assert averages == pytest.approx(expected | {"eval_average_score": 0.4})


def test_a_run_with_ccc_goes_on_with_the_parts_of_a_batch_that_it_began_with(tmp_path):
    for kind, parts in (("ccc", 1), ("mse", 1), ("mse", 2)):
        recipe = asdict(Recipe(**RECIPE, targets=["arousal"], dimension_loss=kind)) | {"training": {}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        check_recipe(tmp_path, recipe | {"micro_batches": parts})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"dimension_loss": "ccc"}))
    with pytest.raises(ValueError, match=r"micro_batches is 2, but the run in .* began with 1"):
        check_recipe(tmp_path, recipe | {"dimension_loss": "ccc", "micro_batches": 2})


# Loading


def test_heads_are_kept_or_start_anew_by_what_they_were_trained_for(tmp_path):
    save_model_folder(make_model(num_copies=0, dimensions=SCALES), tmp_path / "both")
    recipe = Recipe(model=str(tmp_path / "both"))
    trained = load_file(tmp_path / "both" / "model.safetensors")
    same, new = load_model(recipe, SIX, dimensions=SCALES)
    assert not new and torch.equal(same.dimension_head.weight, trained["dimension_head.weight"])
    other, new = load_model(recipe, SIX, dimensions={"arousal": [1, 7], "dominance": [1, 7]})
    assert new == ["dimension_head.bias", "dimension_head.weight"]
    assert torch.equal(other.classifier.weight, trained["classifier.weight"])
    classes, new = load_model(recipe, SIX)
    assert not new and classes.config.dimensions == {} and not hasattr(classes, "dimension_head")
    _, new = load_model(recipe, list("abcdef"), dimensions=SCALES)
    assert new == ["classifier.bias", "classifier.weight"]
    expanded, new = load_model(Recipe(model=recipe.model, expand_copies=1), SIX, dimensions=SCALES)
    assert not new and expanded.config.num_copies == 1
    assert torch.equal(expanded.dimension_head.weight, trained["dimension_head.weight"])
    alone, new = load_model(recipe, [], dimensions=SCALES)
    assert new[:2] == ["classifier.bias", "classifier.weight"] and class_names_of_config(alone.config) == []
    save_model_folder(alone, tmp_path / "alone")
    back, new = load_model(Recipe(model=str(tmp_path / "alone")), ["arousal word", "valence word"])
    assert new == ["classifier.bias", "classifier.weight"]  # numbers are no classes
    assert class_names_of_config(back.config) == ["arousal word", "valence word"]


@pytest.mark.parametrize("kind", ["hubert", "exhubert", "emotion", "whisper", "xls-r", "wavlm", "bert"])
def test_every_model_answers_dimensions_alone(tmp_path, make_hubert, kind):
    folder = write_model(kind, tmp_path / kind, make_hubert)
    model, new = load_model(Recipe(model=str(folder)), [], dimensions=SCALES)
    assert new and model.config.problem_type == "regression"
    assert class_names_of_config(model.config) == [] and dimensions_of_config(model.config) == SCALES
    save_model_folder(model, tmp_path / "saved", window_seconds=0.6)
    loaded, _ = load_trained(str(tmp_path / "saved"))
    assert dimensions_of_config(loaded.config) == SCALES


def test_audeerings_outputs_are_trained_on_where_the_targets_are_its_own(tmp_path, make_hubert):
    folder = write_model("emotion", tmp_path / "emotion", make_hubert)
    scales = {"arousal": [1, 7], "dominance": [1, 7], "valence": [1, 7]}
    model, new = load_model(Recipe(model=str(folder)), [], dimensions=scales)
    weights = load_file(folder / "model.safetensors")
    assert not new and torch.equal(model.classifier.out_proj.weight, weights["classifier.out_proj.weight"])
    assert dimensions_of_config(model.config) == scales


@pytest.mark.parametrize("keys", [{"freeze": ["base"]}, {"lora": {"rank": 2}}, {"weighted_layer_sum": True}])
def test_what_is_trained_of_a_model_has_both_heads(tmp_path, make_hubert, keys):
    recipe = Recipe(model=str(make_hubert()), **keys)
    model, new = load_model(recipe, SIX, dimensions=SCALES)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"dimension_head.weight", "dimension_head.bias", "classifier.weight"} <= trained
    assert "dimension_head.weight" in new
    result = model.train()(torch.zeros(1, 8000).normal_(generator=torch.Generator().manual_seed(0)))
    (result.dimensions.sum() + result.logits.sum()).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


# Runs

FAST = {"rounds": 2, "batch_size": 4, "window_seconds": 0.6, "targets": list(SCALES), "scales": SCALES}
TRAINING = {"learning_rate": 1.0e-3, "eval_steps": 2, "report_to": "none"}


@pytest.fixture
def ground(tmp_path, make_hubert):
    """Two corpora, of which the first is annotated, but for some clips; writes recipes over them."""
    write_corpus(
        tmp_path / "first",
        speakers=("a", "b", "c", "d"),
        arousal=lambda row: "" if row % 5 == 0 else str(1 + row % 7),
        valence=lambda row: str(row % 3 - 1),
    )
    table = pandas.read_csv(tmp_path / "first" / "metadata.csv", dtype=str, keep_default_na=False)
    table.loc[::7, "label"] = ""  # these train dimensions alone
    table.to_csv(tmp_path / "first" / "metadata.csv", index=False)
    write_corpus(tmp_path / "second", labels=("joy", "boredom"), speakers=("e", "f", "g"))
    make_hubert(head="none")

    def write(**changes):
        values = {"model": "hubert", "corpora": ["first", "second"], "output": str(tmp_path / "run")} | FAST | changes
        kind = values["model"]
        if kind == "xls-r":
            write_model(kind, tmp_path / kind, make_hubert)
        values |= {"model": str(tmp_path / kind), "corpora_root": str(tmp_path)}
        values["training"] = TRAINING | changes.get("training", {})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "recipe.yaml")

    return write


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_both_heads_are_trained_saved_resumed_and_expanded(tmp_path, ground, capsys):
    recipe = ground(freeze=["feature_encoder"], cnn_cache=str(tmp_path / "cache"))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train_hf.main([recipe, "--output", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "corpus 'first': of 12 training clips" in said and "corpus 'second': no targets; it trains classes" in said
    assert "dimension arousal: answered on 1 to 7" in said
    assert "loss: cross entropy; plus 1 - CCC of dimensions" in said

    results = json.loads((whole / "results.json").read_text())
    assert results["dimensions"] == SCALES and len(results["classes"]) == 6
    first, second = results["corpora"]["first"], results["corpora"]["second"]
    assert first["dimensions"]["arousal"]["clips"] < first["dimensions"]["valence"]["clips"]
    table = pandas.read_parquet(whole / "predictions.parquet").query("corpus == 'second'")
    recalls = (table["prediction"] == table["reference"]).groupby(table["reference"]).mean()
    assert second["ccc"] is None and second["uar"] == pytest.approx(recalls.mean())
    model, _ = load_trained(str(whole / "model"))
    assert dimensions_of_config(model.config) == SCALES and class_names_of_config(model.config) == SIX
    curves = json.loads((whole / "curves_ccc.json").read_text())
    assert [step for step, _ in curves["first"]] == [2, 4] and "second" not in curves
    state = json.loads((whole / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    averages = {step["step"]: step for step in state["log_history"] if "eval_average_score" in step}
    assert state["best_metric"] == max(each["eval_average_score"] for each in averages.values())

    assert train_hf.main([recipe, "--output", str(halves), "--rounds", "1"]) == 0
    assert train_hf.main([recipe, "--output", str(halves), "--resume"]) == 0
    for name, weight in weights_of(whole).items():
        assert torch.equal(weights_of(halves)[name], weight), name

    second_stage = ["--model", str(whole / "model"), "--expand_copies", "1", "--corpora", "first", "--rounds", "1"]
    second_stage += ["--freeze", "feature_encoder", "originals", "--output", str(tmp_path / "stage2")]
    assert train_hf.main([recipe, *second_stage, "--micro_batches", "2"]) == 0
    stage2, before = weights_of(tmp_path / "stage2"), weights_of(whole)
    assert any("zero_linear" in name for name in stage2)
    moved = stage2["dimension_head.weight"] - before["dimension_head.weight"]
    assert 0 < moved.abs().max() < 0.1  # it goes on from what stage 1 learnt


def test_dimensions_alone_are_trained_with_the_squared_error(tmp_path, ground):
    recipe = ground(labels="none", corpora=["first"], dimension_loss="mse", lora={"rank": 2}, rounds=4)
    assert train_hf.main([recipe]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["classes"] == [] and "uar" not in results["average"]
    assert results["average"]["ccc"] == results["corpora"]["first"]["ccc"]
    assert not (tmp_path / "run" / "curves.json").exists() and (tmp_path / "run" / "curves.png").exists()
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert any("eval_first_ccc_arousal" in entry for entry in state["log_history"])
    assert state["best_metric"] == max(e["eval_average_ccc"] for e in state["log_history"] if "eval_average_ccc" in e)
    table = pandas.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert {"reference_arousal", "predicted_valence"} <= set(table) and "prediction" not in table
    assert table["reference_arousal"].dropna().between(1, 7).all()
