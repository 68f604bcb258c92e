"""The recipes: each trains at tiny size, counts at full size, the paper's corpora and optimiser.

python -m pytest tests/test_recipes.py
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForAudioClassification,
    HubertConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

import train_hf
from conftest import HUBERT_KINDS, ROOT
from exhubert import SIX_CLASSES, ExHuBERTConfig
from exhubert.configuration_exhubert import class_names_of_config, dimensions_of_config
from exhubert.corpora.registry import load_registry
from exhubert.model_folder import load_classifier
from exhubert.modeling_wav2vec2_emotion import Wav2Vec2EmotionConfig
from exhubert.training.arguments import Recipe, parse, read_recipe
from exhubert.training.models import parts_table, prepare
from small_models import write_model

pytestmark = pytest.mark.usefixtures("blank_pictures")
RECIPES = sorted(str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").rglob("*.yaml"))
RECIPES = [name for name in RECIPES if not name.startswith(("accelerate/", "pretraining/", "replication/"))]
SIX = list(SIX_CLASSES)
WHAT = ("model", "corpora", "corpora_root", "rounds", "batch_size", "output")


@pytest.fixture
def make_model(tmp_path, make_hubert):
    """See `write_model`."""
    return lambda kind: write_model(kind, tmp_path / "source", make_hubert)


def kind_of(recipe: Recipe) -> str:
    """The family of tiny model that stands in for a recipe's model."""
    for name, kind in (("whisper-large", "whisper v3"), ("whisper", "whisper"), ("xls-r", "xls-r")):
        if name in recipe.model:
            return kind
    return "emotion" if "emotion-msp-dim" in recipe.model or "w2v2_robust_12" in recipe.model else "hubert"


def parsed(name: str) -> Recipe:
    given = ["--output", "unused"]
    if name.startswith("demo_"):
        given += ["--model", "hubert", "--corpora", "c"]
    return parse([str(ROOT / "recipes" / name), *given])[0]


def same_training(name: str) -> str:
    """What a recipe says but for sizes and corpora, and the family of its model."""
    keys = read_recipe(ROOT / "recipes" / name)
    how = {key: value for key, value in keys.items() if key in vars(Recipe()) and key not in WHAT}
    return f"{kind_of(Recipe(model=keys.get('model', '')))} {sorted(how.items())}"


# One recipe of each kind is trained; `heavy` trains the others, too.
ONE_EACH = {same_training(name): name for name in reversed(RECIPES)}.values()
TRAINED = [name if name in ONE_EACH else pytest.param(name, marks=pytest.mark.heavy) for name in RECIPES]


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_takes_two_updates_at_tiny_size(tmp_path, capsys, make_model, make_corpus, name):
    recipe = parsed(name)
    source = make_model(kind_of(recipe))
    numbers = {target: lambda row: f"{1 + row % 4}" for target in recipe.targets}
    known = recipe.corpora[-1] if recipe.targets else "corpus"  # by its name the registry knows its scales
    corpus = make_corpus(known, takes=1, speakers=("a", "b", "c"), votes_anger=lambda row: str(row % 3), **numbers)
    arguments = ["--model", str(source), "--corpora", str(corpus), "--output", str(tmp_path / "run")]
    fast = ["--rounds", "2", "--batch_size", "2", "--window_seconds", "0.5", "--eval_steps", "2"]
    expand = ["--expand_copies", "1"] if name == "demo_stage2.yaml" else []
    silent = ["--report_to", "none", "--disable_tqdm", "true"]
    assert train_hf.main([str(ROOT / "recipes" / name), *arguments, *fast, *expand, *silent]) == 0
    said = capsys.readouterr().out
    assert "| part " in said
    assert ("2 of 3 training clips have raters' votes" in said) == name.endswith("soft_labels.yaml")
    assert ("; class weights " in said) == name.endswith("class_weights.yaml")
    model, new = load_classifier(str(tmp_path / "run" / "model"))
    assert not new, "the folder has not all of its weights"
    assert class_names_of_config(model.config) == ([] if recipe.labels == "none" else SIX)
    highest = 5.0 if known == "msp_improv" else 7.0
    assert dimensions_of_config(model.config) == {target: [1.0, highest] for target in recipe.targets}
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


# The paper's Table 2, in millions, and exactly (measured with the published code).
TABLE_2 = {
    "transfer/w2v2_emotion.yaml": (161.13, 161_129_606),
    "transfer/xlsr_300m.yaml": (311.49, 311_492_486),
    "transfer/hubert_ls960.yaml": (311.49, 311_492_486),
    "transfer/hubert_emoset.yaml": (311.49, 311_492_486),
    "transfer/exhubert_ls960.yaml": (336.68, 336_682_886),
    "transfer/exhubert_emoset.yaml": (336.68, 336_682_886),
    "transfer/exhubert_non_frozen.yaml": (664.18, 664_182_662),
    "transfer/exhubert_xlarge.yaml": (664.18, 664_182_662),
}
PUBLISHED_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "classifier_proj_size": 256,
    "num_labels": 6,
    **HUBERT_KINDS["large"],
}
PUBLISHED_XLARGE = {**PUBLISHED_LARGE, "hidden_size": 1280, "num_hidden_layers": 48, "intermediate_size": 5120}


def published_config(name: str):
    """The configuration of a recipe's model at its published size."""
    if "xls-r" in name:
        return Wav2Vec2Config(**(PUBLISHED_XLARGE if "1b" in name else PUBLISHED_LARGE))
    if "emotion-msp-dim" in name or "w2v2_robust_12" in name:
        return Wav2Vec2EmotionConfig(**{**PUBLISHED_LARGE, "num_hidden_layers": 12})
    if "whisper-medium" in name:
        size = {"d_model": 1024, "encoder_layers": 24, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096}
        return WhisperConfig(num_mel_bins=80, num_labels=6, **size)
    if "whisper-large-v3" in name:
        size = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
        return WhisperConfig(num_mel_bins=128, num_labels=6, **size)
    return HubertConfig(**(PUBLISHED_XLARGE if "hubert-xlarge" in name else PUBLISHED_LARGE))


def full_size(recipe: Recipe):
    """A recipe's model at its published size, without memory."""
    config = published_config(recipe.model)
    if recipe.labels == "none":
        config.num_labels = len(recipe.targets)
    with torch.device("meta"):
        if config.model_type == "hubert" and (recipe.expand_copies or recipe.weighted_layer_sum or recipe.targets):
            gates = recipe.gate_original_layers
            scales = {target: [1.0, 7.0] for target in recipe.targets}
            config = ExHuBERTConfig.from_hubert_config(
                config, recipe.expand_copies, gates, num_labels=6, dimensions=scales
            )
        model = AutoModelForAudioClassification.from_config(config)
        prepare(model, recipe)
    return model


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("demo_")])
def test_the_recipes_give_the_papers_parameter_counts(name):
    """And those that docs/paper.md says."""
    model = full_size(parsed(name))
    trainable = model.num_parameters(only_trainable=True)
    if name in TABLE_2:
        millions, exactly = TABLE_2[name]
        assert trainable == exactly
        assert round(trainable / 1e6, 2) == millions
    if "/" in name:
        rows = [line for line in (ROOT / "docs" / "paper.md").read_text().splitlines() if f"`{name}`" in line]
        assert any(f"{trainable:,}" in row for row in rows), f"docs/paper.md has not {trainable:,} for {name}"


def test_the_parts_of_exhubert():
    """The numbers of one layer, a copy's linear layer and the CNN are known."""
    table = parts_table(full_size(parsed("transfer/exhubert_emoset.yaml")))
    rows = {line.split("|")[1].strip(): re.findall(r"[\d,]+", line.split("|", 2)[2]) for line in table.splitlines()[2:]}
    assert rows["CNN feature encoder"] == ["4,210,176", "0"]
    assert rows["original layers"] == [f"{24 * 12_596_224:,}", "0"]
    assert rows["copies"] == [f"{24 * (12_596_224 + 1_049_600):,}"] * 2
    assert rows["head"] == ["263,942", "263,942"]


def test_all_eight_systems_of_table_2_have_a_recipe():
    assert {name for name in RECIPES if name.startswith("transfer/")} == set(TABLE_2)


def test_the_recipes_name_the_papers_corpora():
    parts = {key: corpus.part for key, corpus in load_registry().items()}
    emoset = {key for key, part in parts.items() if part == "emoset"}
    new = {key for key, part in parts.items() if part == "emoset++"}
    for name in RECIPES:
        if name.startswith("selection/"):
            assert sorted(parsed(name).corpora) == sorted(emoset), name
            assert parsed(name).rounds == 3000
    assert sorted(parsed("emoset_plus_plus/hubert_large.yaml").corpora) == sorted(emoset | new)
    assert sorted(parsed("dimensions/stage1.yaml").corpora) == sorted({*emoset, *new, "msp_podcast"})
    part = parsed("emoset_plus_plus/hubert_large_31.yaml").corpora
    assert len(part) == len(set(part)) == 31
    assert emoset < set(part) < emoset | new


@pytest.mark.parametrize("name", [name for name in RECIPES if "/" in name])
def test_the_papers_optimiser(name):
    recipe, training, _ = parse([str(ROOT / "recipes" / name), "--output", "unused"])
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (training.lr_scheduler_type, training.max_grad_norm) == ("constant", 0.0)
    assert training.weight_decay == (0.0 if name == "dimensions/w2v2.yaml" else 0.01)
    if not name.startswith(("baselines/", "dimensions/w2v2")):
        assert training.learning_rate == 1e-5
    if name.startswith(("transfer/", "baselines/")):
        assert recipe.rounds == 10_000
        assert recipe.corpora == ["aesi"]


def test_each_baseline_says_what_it_changes():
    changed = {
        name.removeprefix("baselines/"): {
            key
            for key, value in vars(parsed(name)).items()
            if value != getattr(parsed("transfer/hubert_emoset.yaml"), key)
        }
        - {"output"}
        for name in RECIPES
        if name.startswith("baselines/")
    }
    assert changed == {
        "class_weights.yaml": {"class_weights"},
        "lora.yaml": {"lora"},
        "soft_labels.yaml": {"soft_labels"},
        "weighted_sum.yaml": {"freeze", "weighted_layer_sum"},
    }


def test_averages_in_the_docs_follow_from_their_rows():
    """Of each table of UARs in docs/paper.md: the row `recomputed` is the mean of the rows above `printed`."""
    tables = re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / "paper.md").read_text(encoding="utf-8"), re.MULTILINE)
    checked = 0
    for table in tables:
        cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        rows = {row[0]: row[1:] for row in cells}
        if "average, recomputed" not in rows:
            continue
        names = [row[0] for row in cells]
        corpora = names[2 : names.index("average, printed")]
        for column, said in enumerate(rows["average, recomputed"]):
            assert said == f"{np.mean([float(rows[name][column]) for name in corpora]) + 1e-9:.1f}", cells[0][
                column + 1
            ]
            checked += 1
    assert checked == 16
