"""Answers, size and speed of ONNX in float32 and int8, beside torch's.

    python benchmarks/onnx_int8.py DIRECTORY --model runs/all_four/model --corpora CORPORA/*

A trained model is compared with its exports on the test splits of corpora; a model of the published one's size, with
random weights, for sizes and speed. The latter needs 13 GB of memory and 7 GB of disk; `--layers 24` half of that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.benchmarks.made_up import write_random_model
from exhubert.convert.onnx import convert_onnx, made_up_input
from exhubert.model_folder import load_classifier, load_feature_extractor
from exhubert.utils.command import quiet_transformers
from exhubert.utils.text import markdown_table

ROUNDS = 5
HEADER = ["model", "run by", "weights", "of float32", "3 s of audio", "times torch's speed"]


def main() -> None:
    """Exports both models in both ways, which prints what was compared, and prints a table of sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="for what is made; what is there already is used again")
    parser.add_argument("--model", type=Path, required=True, help="a trained model")
    parser.add_argument("--corpora", nargs="+", required=True, help="corpus folders")
    parser.add_argument("--layers", type=int, default=48, help="of the Large model, originals and copies (default: 48)")
    options = parser.parse_args()
    quiet_transformers()
    large = options.directory / f"large-{options.layers}"
    if not large.is_dir():
        config = ExHuBERTConfig(num_hidden_layers=options.layers)
        write_random_model(large, ExHuBERTForSequenceClassification, config)
    rows = []
    for name, source, corpora in (("trained", options.model, options.corpora), (large.name, large, [])):
        folders = {"torch": source}
        for kind in ("float32", "int8"):
            folders[kind] = options.directory / f"{name}-{kind}"
            if not folders[kind].is_dir():
                convert_onnx(source, folders[kind], int8=kind == "int8", corpora=corpora)
        seconds = measure(folders)
        sizes = {kind: sum(f.stat().st_size for f in folder.glob("model[-.]*")) for kind, folder in folders.items()}
        for kind in folders:
            share, speed = sizes[kind] / sizes["float32"], seconds["torch"] / seconds[kind]
            numbers = [f"{sizes[kind] / 1e6:,.1f} MB", f"{100 * share:.1f} %", f"{seconds[kind]:.3f} s", f"{speed:.1f}"]
            rows.append([name, kind if kind == "torch" else f"ONNX {kind}", *numbers])
    print(f"On {torch.get_num_threads()} thread(s), processor time, the least of {ROUNDS} rounds in turn:")
    print(markdown_table(HEADER, rows, left=(0, 1)))


def measure(folders: dict[str, Path]) -> dict[str, float]:
    """Seconds of processor time that models need for one window of 3 s: the least of some rounds, in turn."""
    models: dict[str, Any] = {kind: load_classifier(str(folder))[0].eval() for kind, folder in folders.items()}
    extractor = load_feature_extractor(str(folders["torch"]), models["torch"].config)
    inputs = made_up_input(extractor, 3.0, 1)
    times: dict[str, list[float]] = {kind: [] for kind in models}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for kind, model in models.items():
                start = time.process_time()
                model(inputs)
                times[kind].append(time.process_time() - start)
    return {kind: min(values) for kind, values in times.items()}


if __name__ == "__main__":
    main()
