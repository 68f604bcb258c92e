"""`make demo` on a small scale, and the README's code blocks on what it leaves.

python -m pytest tests/test_demo.py
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from conftest import ROOT, Forks, forks_of_libraries, forks_with_package, refused

README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the demo ran with few clips and rounds, the code linked into it; and what it said."""
    pytest.importorskip("espeakng_loader", reason="the demo's synthesiser is in the extra `demo`")
    folder = tmp_path_factory.mktemp("fresh")
    for name in ("train_hf.py", "evaluate_hf.py", "recipes", "demo"):
        (folder / name).symlink_to(ROOT / name)
    return folder, run(forks_with_package(), DEMO, folder)


# Its two trainings and its evaluation in forks, which have the libraries; what classifies without the package begins
# anew, as all do for users.
DEMO = """
import os, runpy, sys
import torch

torch.set_num_threads(1)
sys.path.insert(0, "demo")
import run

call = run.call

def in_a_fork(script, *arguments):
    if script == "demo/classify.py":
        return call(script, *arguments)
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        sys.argv = [script, *map(str, arguments)]
        runpy.run_path(str(run.ROOT / script), run_name="__main__")
    assert os.waitpid(process, 0)[1] == 0

run.call = in_a_fork
run.quiet_transformers()
sys.exit(run.main(["--rounds", "1", "--limit", "60"]))
"""


def run(forks: Forks, code: str, folder: Path, *arguments: str) -> str:
    """Runs code with this environment's programs on the path; returns what it said, and shows it if it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = forks(code, *arguments, folder=folder, PATH=path)
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def demo_command(monkeypatch):
    """The demo's own `main`, in this process."""
    monkeypatch.syspath_prepend(ROOT / "demo")
    return importlib.import_module("run").main


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_demo_says_what_matters(demo):
    _, said = demo
    assert "The speech is synthetic" in said
    assert "logits are bit-identical to the source's" in said
    assert re.search(r"0 of 64 tensors of the original layers, [1-9]\d* of 72 of the copies", said)
    table = said[said.index("| UAR in %") :].splitlines()
    rows = {cells[0]: cells[1:] for cells in ([c.strip(" *") for c in line.split("|")[1:-1]] for line in table[:6])}
    assert rows["UAR in %"][:4] == ["synthetic_english", "synthetic_german", "synthetic_polish", "average"]
    assert list(rows)[2:] == ["chance", "stage 1", "before stage 2", "after stage 2"]
    assert rows["stage 1"][:4] == rows["before stage 2"][:4]  # expansion changes nothing
    assert re.search(r"^ {2}5 high/positive +\d+\.\d%$", said, flags=re.MULTILINE)


def test_the_demo_leaves_the_folders_that_the_docs_name(demo):
    folder, _ = demo
    left = folder / "runs" / "demo"
    for name in ("stage1/results.json", "stage2/results.json", "model/model.safetensors", "stage1/model/config.json"):
        assert (left / name).is_file()
    for name in ("stage1/curves.png", "stage2/confusion_synthetic_polish.png"):
        with Image.open(left / name) as picture:
            assert min(picture.size) > 300


def test_the_card_has_the_results_and_its_code_runs(demo):
    folder, _ = demo
    card = ModelCard.load(folder / "runs" / "demo" / "model" / "README.md")
    results = json.loads((folder / "runs" / "demo" / "stage2" / "results.json").read_text())["corpora"]
    shown = {entry.dataset_name: entry.metric_value for entry in card.data.eval_results if entry.metric_type == "uar"}
    assert list(shown.values()) == pytest.approx([scores["uar"] for scores in results.values()], abs=0.0005)
    assert "shows that the software works" in card.text
    code = re.search(r"^```python\n(.*?)^```", card.text, flags=re.MULTILINE | re.DOTALL)[1]
    run(forks_of_libraries(), code, folder / "runs" / "demo")


def test_the_report_is_of_all_models_and_its_pictures_are_there(demo):
    folder, _ = demo
    evaluation = folder / "runs" / "demo" / "evaluation"
    report = (evaluation / "report.md").read_text()
    for heading in ("Comparison", "Training and test corpora", "Training", "By language", "Robustness", "Calibration"):
        assert f"\n## {heading}\n" in report
    pictures = re.findall(r"\]\(([^)]+\.png)\)", report)
    assert len(pictures) >= 4 + 3 * 4
    assert all((evaluation / picture).is_file() for picture in pictures)


def test_the_readmes_python_runs_and_prints_what_it_shows(demo):
    folder, _ = demo
    outputs = [run(forks_of_libraries(), block, folder) for block in blocks("python")]
    shown = blocks("text")[0]

    def without_values(text: str) -> list[str]:
        return re.sub(r"0\.\d\d|1\.00", "?", text).splitlines()

    assert without_values(outputs[0])[1:] == without_values(shown)[1:]
    assert outputs[0].splitlines()[0] in shown  # the class it names is one of the six


# Lines of a shell in one process, so that the libraries are imported once: `exhubert ...` and `python SCRIPT ...`.
SEVERAL = """
import runpy, shlex, subprocess, sys
from accelerate.commands.accelerate_cli import main as accelerate
from exhubert.cli import main
for line in sys.argv[1:]:
    program, *sys.argv = shlex.split(line)
    if program == "python":
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as done:
            assert not done.code, line
    elif program == "exhubert":
        assert main(sys.argv) == 0, line
    elif program == "accelerate":  # which begins a process
        sys.argv.insert(0, program)
        accelerate()
    else:
        subprocess.run(["bash", "-c", line], check=True)
"""


def test_the_readmes_commands_run(demo):
    folder, _ = demo
    commands = [
        line
        for block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if not line.startswith(("make ", "git ", "#"))
    ]
    assert len(commands) >= 4
    run(forks_with_package(), SEVERAL, folder, *commands)
    assert (folder / "runs" / "scores" / "mine" / "results.json").is_file()


def test_the_readmes_map_names_every_file():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    table = README[README.index("## Map") :]
    for name in tracked.stdout.splitlines():
        path = Path(name)
        if path.suffix == ".py" and path.name not in ("__init__.py", "__main__.py") and path.parts[0] != "tests":
            assert path.name in table or f"`{path.parts[0]}/`" in table, f"the README's map does not name {name}"


def test_a_folder_of_something_else_is_not_cleared(tmp_path, capsys, demo_command):
    (tmp_path / "thesis.txt").write_text("precious")
    for name in ("a", "b"):
        (tmp_path / "corpora" / name).mkdir(parents=True)
        (tmp_path / "corpora" / name / "metadata.csv").write_text("file_name,label,speaker\n")
    line = refused(capsys, demo_command, "--run", tmp_path, "--corpora", tmp_path / "corpora")
    assert "holds something else than a demo" in line
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_readmes_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ("nowhere", "error: nowhere: no such folder of corpora"),
        ("recipes", "error: recipes: 0 corpus folder(s) there; two are needed, one of them for stage 2"),
    ],
)
def test_wrong_corpora_end_the_demo_in_one_line(corpora, message, capsys, demo_command, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert refused(capsys, demo_command, "--corpora", corpora) == message
