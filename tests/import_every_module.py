"""Imports every module that the checkout has from the installed package: `import_every_module.py CHECKOUT`.

A module that the package list in setup.cfg forgets is missing from a wheel, which an editable install hides.
"""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

checkout = Path(sys.argv[1]).resolve()
tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=checkout, check=True, capture_output=True, text=True)
not_packaged = ("tests", "demo", "benchmarks", "replication")
modules = [Path(name) for name in tracked.stdout.split() if not name.startswith(not_packaged)]
for path in modules:
    name = ".".join(("exhubert", *path.with_suffix("").parts)).removesuffix(".__init__")
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # of an extra that is not installed here: the file is there
            if error.name not in ("gradio", "webvtt"):
                raise
        spec = importlib.util.find_spec(name)
        assert spec is not None and checkout not in Path(str(spec.origin)).resolve().parents, f"{name} is not installed"
        print(f"{'imported' if name in sys.modules else 'found'} {name}")
# The data files are there, too.
assert sys.modules["exhubert.corpora.labels"].load_label_map()["anger"] == 3
assert sys.modules["exhubert.corpora.registry"].find_corpus("EMO-DB").scheme
assert sys.modules["exhubert.evaluation.metrics"].classification_scores([0, 1], [0, 1], ["a", "b"])["uar"] == 1.0
recipes = sorted(path.relative_to(checkout) for path in (checkout / "recipes").rglob("*.yaml"))
assert recipes and all(sys.modules["exhubert.training.arguments"].find_recipe(str(name)).is_file() for name in recipes)
print(f"{len(modules)} modules imported, data files read")
