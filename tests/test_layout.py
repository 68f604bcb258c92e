"""The layout: which part may import which, what the root holds, and what is imported when.

python -m pytest tests/test_layout.py
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from conftest import ROOT

# Each floor imports only from those below it; the second column is the one exception.
FLOORS = (
    ("configuration_exhubert", "audio_exhubert", "segments_exhubert", "modeling_wav2vec2_emotion", "utils"),
    ("corpora", "reports", "modeling_exhubert", "pipeline_exhubert"),
    ("model_folder", "evaluation"),
    ("training", "inference", "convert", "publish"),
    ("pretrain_hf", "train_hf", "evaluate_hf"),
    ("cli", "__main__", "app", "demo", "benchmarks", "replication"),
)
# Saving the model carries the configuration, audio and pipeline code along.
WITHIN_A_FLOOR = {
    ("modeling_exhubert", "pipeline_exhubert"),
    ("segments_exhubert", "audio_exhubert"),
    ("__main__", "cli"),
}
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "datasets", "sklearn", "scipy")


def modules() -> dict[str, ast.Module]:
    """Every Python file of the package by its path."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {
        name: ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for name in tracked.stdout.split()
        if not name.startswith("tests/") and (ROOT / name).exists()
    }


def imported_parts(tree: ast.Module) -> set[str]:
    """The parts of the package that a file imports, anywhere in it."""
    parts = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("exhubert.")]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "exhubert"):
            names = [f"exhubert.{node.module}" if node.level else str(node.module)]
            if names == ["exhubert"]:
                names = [f"exhubert.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names}
    return parts


def test_imports_run_downwards_only():
    floor_of = {part: number for number, parts in enumerate(FLOORS, start=1) for part in parts}
    upwards = []
    for name, tree in modules().items():
        part = name.split("/")[0].removesuffix(".py")
        if part == "__init__":
            continue
        assert part in floor_of, f"{name}: {part} stands on no floor"
        for other in imported_parts(tree) - {part}:
            below = floor_of.get(other, 0) < floor_of[part]
            if not below and (part, other) not in WITHIN_A_FLOOR:
                upwards.append(f"{name} imports {other}")
    assert not upwards


def test_no_function_is_longer_than_80_lines():
    long = [
        f"{name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80
    ]
    assert not long


def test_the_root_holds_the_scripts_and_the_files_of_hub_repos():
    assert sorted(name for name in modules() if "/" not in name) == [
        "__init__.py",
        "__main__.py",
        "audio_exhubert.py",
        "cli.py",
        "configuration_exhubert.py",
        "evaluate_hf.py",
        "modeling_exhubert.py",
        "modeling_wav2vec2_emotion.py",
        "pipeline_exhubert.py",
        "pretrain_hf.py",
        "segments_exhubert.py",
        "train_hf.py",
    ]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import exhubert", HEAVY),
        ("import exhubert.cli", HEAVY),
        ("from exhubert.cli import main; main(['corpora', 'list'])", HEAVY),
        ("from exhubert.cli import main; main(['corpora', 'show', 'emodb'])", HEAVY),
        (
            "from exhubert.model_folder import load_pipeline, save_model_folder",
            ("pandas", "matplotlib", "datasets", "exhubert.corpora", "exhubert.reports"),
        ),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, absent):
    script = f"import sys\n{code}\nloaded = set({absent!r}) & set(sys.modules)\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("from transformers import AutoConfig\nimport exhubert", marks=pytest.mark.heavy),
        "from exhubert import ExHuBERTConfig",
        pytest.param("import exhubert.model_folder.load", marks=pytest.mark.heavy),
    ],
)
def test_the_auto_classes_know_the_models_of_the_package(first):
    script = f"""{first}
from transformers import AutoConfig, AutoModelForAudioClassification
for model_type in ("exhubert", "wav2vec2_emotion"):
    print(AutoModelForAudioClassification._model_mapping[type(AutoConfig.for_model(model_type))].__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.stdout.split() == ["ExHuBERTForSequenceClassification", "Wav2Vec2EmotionForSequenceClassification"]


# numpy, tqdm, torch and transformers change filters, and make `torchinductor_*` in the folder for temporary files.
LIBRARIES = """
import torch._dynamo
from transformers import AutoModelForAudioClassification, ASTFeatureExtractor, SeamlessM4TFeatureExtractor
from transformers import HubertForSequenceClassification, Pipeline, Wav2Vec2ForSequenceClassification
from transformers import WhisperFeatureExtractor
from transformers.pipelines import PIPELINE_REGISTRY
"""


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("", "import exhubert"),
        ("", "import exhubert.cli"),
        (LIBRARIES, "from exhubert import ExHuBERTConfig; import exhubert.model_folder.load"),
    ],
)
def test_importing_the_package_changes_no_warning_filters_and_makes_no_folder(tmp_path, before, code):
    script = f"""{before}
import os, sys, tempfile, warnings
filters, files = list(warnings.filters), sorted(os.walk(tempfile.gettempdir()))
{code}
assert list(warnings.filters) == filters, set(warnings.filters) - set(filters)
assert sorted(os.walk(tempfile.gettempdir())) == files
"""
    environment = os.environ | {name: str(tmp_path) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
