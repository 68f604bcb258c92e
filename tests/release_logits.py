"""What small models compute on each release of transformers, and the table that compares them: `make test-releases`.

python -m pytest --junitxml=FOLDER/tests.xml tests/release_logits.py   # on one release; the report has the numbers
python tests/release_logits.py FOLDER ...                              # all of them; exits with 1 if one is wrong
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from packaging.version import Version
from safetensors.torch import load_file

from conftest import HUBERT_KINDS, ROOT, SMALL
from exhubert import ExHuBERTConfig, ExHuBERTForSequenceClassification
from exhubert.convert.published import convert_published
from exhubert.utils.text import markdown_table

LARGE = HUBERT_KINDS["large"]
MODELS: dict[str, dict[str, Any]] = {
    "post-norm": HUBERT_KINDS["base"],
    "pre-norm": LARGE,
    "two copies": {**LARGE, "num_copies": 2},
    "gated originals": {**LARGE, "gate_original_layers": True},
    "weighted layer sum": {**LARGE, "use_weighted_layer_sum": True},
}
LIMITS = {**dict.fromkeys(MODELS, 5e-6), "published logits": 5e-6, "published hidden states": 5e-5}


def test_small_models_compute(record_testsuite_property):
    """Every model's logits, and how far the published checkpoints' outputs are from those stored, into the report."""
    results = {
        "setting": f"torch {torch.__version__}, Python {sys.version.split()[0]}, CPU, float32",
        "logits": {name: logits(**changes).tolist() for name, changes in MODELS.items()},
        "published": published_differences(),
    }
    record_testsuite_property("results", json.dumps(results))


def logits(num_copies: int = 1, **changes: Any) -> torch.Tensor:
    """Logits `(2, batch, labels)` of a small model, without and with a mask; no release has a hand in its weights."""
    layers = 3 * (num_copies + 1)
    config = ExHuBERTConfig(**{**SMALL, **changes, "num_copies": num_copies, "num_hidden_layers": layers})
    model = ExHuBERTForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith(("layer_norm.weight", "original0")):  # original0 is the weight norm's length
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = math.prod(tensor.shape[1:]) if tensor.dim() > 1 else 4
            tensor.normal_(0, fan_in**-0.5, generator=generator)
    samples = torch.randn(2, 8000, generator=generator)
    mask = torch.ones_like(samples, dtype=torch.long)
    mask[1, 5000:] = 0
    with torch.inference_mode():
        return torch.stack([model(samples).logits, model(samples, mask).logits])


def published_differences() -> dict[str, float]:
    """Largest differences to the stored outputs of the published code; none where its checkpoints are not there."""
    shared = Path(os.environ.get("EXHUBERT_SHARED", ROOT.parent / "shared"))
    differences: dict[str, float] = {}
    for fixture in sorted((shared / "published").glob("*/fixture.safetensors")):
        with tempfile.TemporaryDirectory() as folder:
            convert_published(fixture.parent, f"{folder}/converted")
            model = ExHuBERTForSequenceClassification.from_pretrained(f"{folder}/converted").eval()
        expected = load_file(fixture)
        with torch.inference_mode():
            got = model(expected["input_values"], output_hidden_states=True)
            masked = model(expected["input_values"], attention_mask=expected["attention_mask"].long())
        pairs = {
            "published logits": [(got.logits, expected["logits"]), (masked.logits, expected["logits_masked"])],
            "published hidden states": [
                (state, expected[f"hidden_states.{index}"]) for index, state in enumerate(got.hidden_states)
            ],
        }
        for name, tensors in pairs.items():
            differences[name] = largest([differences.get(name, 0.0), *(largest(a - b) for a, b in tensors)])
    return differences


def largest(values: Any) -> float:
    """The largest magnitude; NaN if one is NaN, which Python's `max` would lose."""
    return torch.as_tensor(values).abs().max().item()


def read_report(folder: Path) -> tuple[dict[str, Any] | None, dict[str, int]]:
    """Results of a release, if it has any, and how many of its tests passed, were skipped and failed."""
    if not (folder / "tests.xml").is_file():
        return None, {"passed": 0}
    suite = ElementTree.parse(folder / "tests.xml").getroot()[0]
    total, skipped, failures, errors = (int(suite.attrib[n]) for n in ("tests", "skipped", "failures", "errors"))
    failed = failures + errors
    results = suite.find("properties/property[@name='results']")
    counts = {"passed": total - skipped - failed, "skipped": skipped, "failed": failed}
    return None if results is None else json.loads(results.attrib["value"]), counts


def table(folders: list[Path]) -> int:
    """Prints the differences and what the tests counted; returns 1 if anything is wrong, else 0."""
    reports = {folder.name: read_report(folder) for folder in sorted(folders, key=lambda folder: Version(folder.name))}
    computed = {release: results for release, (results, _) in reports.items() if results}
    newest = list(computed)[-1] if computed else None
    rows, wrong = [], []
    for release, (results, counts) in reports.items():
        differences = {}
        if results:
            for name, values in results["logits"].items():
                differences[name] = largest(torch.tensor(values) - torch.tensor(computed[newest]["logits"][name]))
            differences |= results["published"]
        said = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "not run"
        if not results or not counts["passed"] or counts["failed"]:
            wrong.append(f"{release}: tests: {said}")
        for name, difference in differences.items():
            if not difference <= LIMITS[name]:
                wrong.append(f"{release}: {name}: {difference:.1e} is more than {LIMITS[name]:.0e}")
        cells = [f"{differences[name]:.2g}" if name in differences else "-" for name in LIMITS]
        rows.append([release, *cells, said])
    if newest:
        print(f"\nLargest differences on each release of transformers ({computed[newest]['setting']}):")
        print(f"of small models' logits to those on {newest}, without and with attention mask; of the published")
        print("checkpoints' outputs, where they are there, to those of the published code.\n")
    print(markdown_table(["transformers", *LIMITS, "tests"], rows))
    print("\n".join(["", *(f"FAILED {line}" for line in wrong)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(table([Path(folder) for folder in sys.argv[1:]]))
