"""What an import leaves behind: nothing but modules. No socket, no file, no thread, no process, no global state.

python -m pytest tests/test_import.py
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_layout import modules

from conftest import ROOT
from exhubert.configuration_exhubert import CODE_FILES

# Run first: hears what a process does, and looks at its state. What is not imported has none yet.
WATCH = """
from importlib import import_module
import gc, locale, logging, multiprocessing, os, random, signal, socket, sys, tempfile, threading, warnings

def state():
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items() if hasattr(logger, "handlers")}
    found = {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "import hooks": [list(map(id, sys.meta_path)), list(map(id, sys.path_hooks))],
        "exception hooks": [sys.excepthook, threading.excepthook, sys.unraisablehook],
        "streams": [sys.stdin, sys.stdout, sys.stderr],
        "recursion": sys.getrecursionlimit(),
        "garbage": [gc.isenabled(), gc.get_threshold(), list(map(id, gc.callbacks))],
        "locale": locale.setlocale(locale.LC_ALL),
        "random": random.getstate(),
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "root logger": [logging.root.level, list(logging.root.handlers), logging.root.disabled],
        "signals": [signal.getsignal(each) for each in signal.valid_signals()],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "socket": socket.getdefaulttimeout(),
        "temporary files": tempfile.tempdir,
        "threads": [sorted(thread.name for thread in threading.enumerate()), len(os.listdir("/proc/self/task"))],
        "files": sorted(os.readlink(f"/proc/self/fd/{each}") for each in open_files()),
    }
    for name in KNOWN_LOGGERS:
        found[f"logger {name}"] = [loggers[name].level, list(loggers[name].handlers), loggers[name].propagate]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = [kind, hash(keys.tobytes()), rest, numpy.geterr(), numpy.get_printoptions()]
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch's numbers"] = hash(torch.get_rng_state().numpy().tobytes())
        found["torch's threads"] = [torch.get_num_threads(), torch.get_num_interop_threads()]
        found["torch's types"] = [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]
        found["torch's ways"] = [
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.mkldnn.enabled,
            torch.multiprocessing.get_sharing_strategy(),
        ]
    if "matplotlib" in sys.modules:
        found["matplotlib"] = dict(sys.modules["matplotlib"].rcParams)
    if "pandas" in sys.modules:
        found["pandas"] = sys.modules["pandas"].describe_option(_print_desc=False)
    return found

def open_files():
    return [each for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")]

def heard(event, arguments):
    if not WATCHING:
        return
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            HEARD.append((event, path, mode, flags))
    elif event.startswith(("socket.", "subprocess.", "os.")) or event == "_thread.start_new_thread":
        if event not in ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr"):
            HEARD.append((event, *map(str, arguments)))

HEARD, WATCHING, KNOWN_LOGGERS = [], [], []
sys.addaudithook(heard)

def check(what, threads=False, leave_out=()):
    KNOWN_LOGGERS[:] = [n for n, logger in logging.root.manager.loggerDict.items() if hasattr(logger, "handlers")]
    before = state()
    WATCHING.append(True)
    what()
    WATCHING.clear()
    after = state()
    heard = [each for each in HEARD if not threads or each[0] != "_thread.start_new_thread"]
    assert not heard, heard
    names = [name for name in before if before[name] != after[name] and name not in leave_out]
    changed = [f"{name}: {before[name]} -> {after[name]}" for name in names]
    assert not changed, "\\n".join(changed)
"""
NOT_PACKAGED = ("demo/", "benchmarks/", "replication/")


def theirs() -> list[str]:
    """What the package imports of others, which is imported before: what that changes is theirs."""
    names = set()
    for name, tree in modules().items():
        for node in () if name.startswith(NOT_PACKAGED) else ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names |= {f"{node.module}:{alias.name}" for alias in node.names}
    own = ("exhubert", "__future__", "sounddevice")  # the last needs PortAudio
    return sorted(name for name in names if not name.startswith(own) and find_spec(name.split(":")[0].split(".")[0]))


OURS = [
    f"exhubert.{name.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}"
    for name in modules()
    if not name.startswith(NOT_PACKAGED) and name not in ("__init__.py", "__main__.py")
]
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads threads and open files from /proc")


def run(script: str, home: Path, folder: Path) -> None:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub")}
    environment |= {name: str(home) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + script], env=environment, cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_package_alone(tmp_path):
    """In a process that has imported nothing else, and imports nothing of weight."""
    run(
        "check(lambda: import_module('exhubert.cli'))\nassert not {'torch', 'numpy'} & set(sys.modules)",
        tmp_path,
        ROOT.parent,
    )
    assert not list(tmp_path.iterdir())


def test_every_module_and_loading_a_model(tmp_path, model_folder):
    """The code files of Hub repos, all of the package, a model and an answer; what libraries do once is theirs."""
    (tmp_path / "home").mkdir()
    script = f"""
for name in {theirs()}:
    module, _, attribute = name.partition(":")
    if attribute and not hasattr(import_module(module), attribute):
        import_module(f"{{module}}.{{attribute}}")
    import_module(module)
import torch._dynamo, PIL.Image, numpy
for names in ({", ".join(f"['exhubert.{name.removesuffix('.py')}']" for name in CODE_FILES)}, {OURS}):
    check(lambda: [import_module(name) for name in names])
from exhubert.model_folder.load import load_for_answers, load_pipeline
speech = {{"array": numpy.ones(16_000, numpy.float32), "sampling_rate": 16_000}}
load = lambda: [load_pipeline("model"), load_for_answers("model")]
load()[0](speech)
# Threads that load are transformers', and it draws weights before it reads them, its own models' as well.
check(load, threads=True, leave_out=["threads", "torch's numbers"])
classify = load_pipeline("model")
check(lambda: classify(speech), threads=True, leave_out=["threads"])
"""
    run(script, tmp_path / "home", model_folder.parent)
    assert len(OURS) > 80
