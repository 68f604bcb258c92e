"""A Hugging Face Space: the page of the models that the variable EXHUBERT_MODELS names, with spaces or commas between.

This folder is the whole Space; the package `exhubert` is not needed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import import_module
from pathlib import Path


def main() -> int:
    """Serves the page; returns the exit code."""
    models = os.environ.get("EXHUBERT_MODELS", "").replace(",", " ").split()
    if not models:
        print("error: the variable EXHUBERT_MODELS names no model; give Hub ids (Settings, Variables)", file=sys.stderr)
        return 1
    # The files import each other as those of a package, whatever this folder is called.
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "space", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["space"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    code: int = import_module("space.server").run_app(models, host, int(port))
    return code


if __name__ == "__main__":
    sys.exit(main())
