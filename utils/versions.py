"""Versions of what shapes a result."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    *("exhubert", "torch", "transformers", "accelerate", "datasets", "evaluate", "numpy"),
    *("soundfile", "soxr", "peft", "audiomentations", "onnxruntime"),
)


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
