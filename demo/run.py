"""The whole idea, start to finish, in some minutes on two cores: `make demo`.

A small HuBERT from a random start is fine-tuned round-robin on all corpora but the last (stage 1), expanded, and
fine-tuned on the last with its original layers frozen (stage 2). Without --corpora the corpora are synthetic.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas
import torch
import yaml
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

from exhubert.convert.hubert import convert_hubert
from exhubert.corpora.metadata import METADATA_READERS
from exhubert.publish.run_card import write_run_card
from exhubert.utils.command import quiet_transformers, run_with_one_line_errors
from exhubert.utils.files import whole_folder
from synthetic_speech import make_corpora

ROOT = Path(__file__).resolve().parent.parent
SYNTHETIC_CLIPS = 480  # per corpus
SYNTHETIC = "The speech is synthetic: what follows shows that the software works, not how well it hears people."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder for everything that is made")
    parser.add_argument("--corpora", type=Path, help="folder of corpus folders; synthetic ones are made without it")
    parser.add_argument("--limit", type=int, help="clips per corpus")
    parser.add_argument("--rounds", type=int, help="rounds of each stage, instead of the recipes'")
    options = parser.parse_args(arguments)
    run: Path = options.run

    print("\n[1/6] corpora", flush=True)
    if options.corpora:
        corpora = corpus_folders(options.corpora)
    else:
        clips = SYNTHETIC_CLIPS if options.limit is None else min(options.limit, SYNTHETIC_CLIPS)
        corpora = make_corpora(run.parent / "synthetic_corpora", clips)
        print(SYNTHETIC)
    *known, unseen = corpora
    clear(run)
    torch.manual_seed(0)
    config = yaml.safe_load(Path(__file__).with_name("small_hubert.yaml").read_text(encoding="utf-8"))
    HubertModel(HubertConfig(**config)).save_pretrained(run / "hubert")

    print(f"\n[2/6] stage 1: HuBERT on {', '.join(path.name for path in known)}", flush=True)
    limit = ["--clips_per_corpus", str(options.limit)] if options.limit else []
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    train("demo_stage1.yaml", run / "hubert", known, run / "stage1", [*limit, *rounds])

    print("\n[3/6] block expansion", flush=True)
    convert_hubert(str(run / "stage1" / "model"), run / "expanded")

    print(f"\n[4/6] stage 2: ExHuBERT on {unseen.name}, originals frozen", flush=True)
    train("demo_stage2.yaml", run / "expanded", [unseen], run / "stage2", [*limit, *rounds])
    if not options.corpora:
        write_run_card(run / "stage2", sections={"Synthetic speech": SYNTHETIC})
    with whole_folder(run / "model") as unfinished:
        shutil.copytree(run / "stage2" / "model", unfinished, dirs_exist_ok=True)
    report_frozen(run / "expanded", run / "model")

    print("\n[5/6] the model in a new process, from its folder alone", flush=True)
    clips = pandas.read_parquet(run / "stage2" / "predictions.parquet").set_index("file_name")
    surest = clips.filter(regex="^probability_").max(axis=1).idxmax()
    call("demo/classify.py", run / "model", unseen / surest)

    print("\n[6/6] all models on all test splits, clean and under noise, telephone band and a codec", flush=True)
    models = [run / "stage1" / "model", run / "expanded", run / "stage2" / "model"]
    names = ["stage 1", "before stage 2", "after stage 2"]
    evaluation = [
        "--corpora",
        *corpora,
        "--protocol",
        "speakers",
        "--output",
        run / "evaluation",
        "--robustness",
        *limit,
    ]
    call("evaluate_hf.py", "--model", *models, "--names", *names, *evaluation)

    print(f"\nWritten to {run}: model/ (the model and its card); evaluation/ (report.md with all tables and pictures,")
    print("results.json, predictions.parquet and confusion matrices of each model); stage1/ and stage2/, the runs")
    print("(recipe.yaml, checkpoints, curves.png, results.json).")
    return 0


def clear(run: Path) -> None:
    """Makes room for this run: removes an earlier demo, and nothing else."""
    mark = run / ".made_by_the_demo"
    if run.exists() and any(run.iterdir()) and not mark.exists():
        raise ValueError(f"{run} holds something else than a demo; give another --run (make demo RUN=...)")
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    mark.touch()


def corpus_folders(directory: Path) -> list[Path]:
    """The corpus folders in `directory`, by name; ValueError for fewer than two."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder of corpora")
    found = sorted({path.parent for name in METADATA_READERS for path in directory.glob(f"*/{name}")})
    if len(found) < 2:
        raise ValueError(f"{directory}: {len(found)} corpus folder(s) there; two are needed, one of them for stage 2")
    return found


def train(recipe: str, model: Path, corpora: list[Path], output: Path, options: list[str]) -> None:
    """Runs one stage as a user would."""
    arguments = ["--model", model, "--corpora", *corpora, "--output", output, *options]
    call("train_hf.py", ROOT / "recipes" / recipe, *arguments)


def call(script: str, *arguments: object) -> None:
    """Runs a script of this project in a process of its own; its failure ends the demo."""
    sys.stdout.flush()
    finished = subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)])
    if finished.returncode:
        raise SystemExit(finished.returncode)


def report_frozen(before: Path, after: Path) -> None:
    """Says which weights of the encoder layers stage 2 changed; the originals must be bit-identical."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    layers = [name for name in old if ".encoder.layers." in name]
    changed = {name: not torch.equal(old[name], new[name]) for name in layers}
    originals = [name for name in layers if int(name.split(".layers.")[1].split(".")[0]) % 2 == 0]
    copies = [name for name in layers if name not in originals]
    moved = sum(changed[name] for name in originals)
    print(f"encoder weights changed by stage 2: {moved} of {len(originals)} tensors of the original layers, ", end="")
    print(f"{sum(changed[name] for name in copies)} of {len(copies)} of the copies")
    assert moved == 0, "a frozen layer has changed"


if __name__ == "__main__":
    quiet_transformers()
    sys.exit(run_with_one_line_errors(main))
