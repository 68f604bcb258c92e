"""Dependencies: each that setup.cfg names is imported by something, nothing else is, and each pinned one has a hash.

python -m pytest tests/test_dependencies.py
"""

from __future__ import annotations

import ast
import configparser
import functools
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_layout import modules

from conftest import ROOT
from exhubert.configuration_exhubert import CODE_FILES

NOT_PACKAGED = ("demo/", "benchmarks/", "replication/")
# What the package imports that imports these.
NEEDED_BY = {"tensorboard": "torch.utils.tensorboard:SummaryWriter", "onnxscript": "torch"}  # torch.onnx.export
OPTIONAL = {"openvino", "flash_attn", "librosa"}  # benchmarks and tests use them where they are installed
TOOLS = {
    "build",
    "mypy",
    "pandas-stubs",
    "pytest",
    "pytest-xdist",
    "ruff",
    "types-PyYAML",
    "types-tqdm",
}  # of developers
# Whose modules have another name, also where they are not installed.
MODULES = {
    "espeakng-loader": {"espeakng_loader"},
    "jinja2": {"jinja2"},
    "kaldi-native-fbank": {"kaldi_native_fbank"},
    "lazy-loader": {"lazy_loader"},
    "pillow": {"PIL"},
    "pyyaml": {"yaml"},
    "scikit-learn": {"sklearn"},
    "silero-vad": {"silero_vad"},
    "webvtt-py": {"webvtt"},
    "huggingface-hub": {"huggingface_hub"},
}


sources = functools.cache(modules)


def requirements() -> dict[str, list[str]]:
    """What setup.cfg names, as written: "" -> those of the package, extra -> its."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    sections = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {extra: [line for line in text.splitlines() if line and line[0] != "#"] for extra, text in sections.items()}


def names_of(extra: str) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements()[extra]}


def modules_of(name: str) -> set[str]:
    return MODULES.get(canonicalize_name(name), {name.replace("-", "_")})


BY_NAME = ("find_spec", "import_module", "importorskip")


def imports(tree: ast.AST) -> set[str]:
    """What a file imports of others, anywhere in it: `module` and `module:name`; also by name, as `find_spec` does."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {str(node.module), *(f"{node.module}:{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("find_spec", "import_module", "importorskip")
        ):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def top(names: set[str]) -> set[str]:
    """The outermost packages, but for Python's own and ours."""
    packages = {re.split("[.:]", name)[0] for name in names}
    return packages - set(sys.stdlib_module_names) - {"exhubert", "__main__", "space"}


@functools.cache
def of(*folders: str) -> set[str]:
    """What the files of the package import; of `folders` where they are given, which are not packaged."""
    found = set()
    for name, tree in sources().items():
        if name.startswith(folders) if folders else not name.startswith(NOT_PACKAGED):
            found |= imports(tree)
    return found


@functools.cache
def of_tests() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("*.py") for name in imports(ast.parse(path.read_text("utf-8")))}


@pytest.mark.parametrize("extra", requirements())
def test_each_dependency_is_imported_by_something(extra):
    found = of(*(("demo/",) if extra == "demo" else ())) | (of_tests() if extra == "dev" else set())
    for line in requirements()[extra]:
        name = Requirement(line).name
        if extra == "dev" and name in TOOLS:
            continue
        imported = modules_of(name) & top(found) or NEEDED_BY.get(name) in found
        assert imported, f"{name}, which {extra or 'install_requires'} names, is imported by nothing"


def named(*but: str) -> set[str]:
    """The modules of all that setup.cfg names, but in some extras."""
    return {
        module
        for extra in requirements()
        if extra not in but
        for name in names_of(extra)
        for module in modules_of(name)
    }


def test_the_package_imports_nothing_that_is_not_named():
    assert top(of()) <= named("dev")


def test_developers_have_what_their_tests_and_tools_import():
    own = {
        path.stem for folder in ("tests", "tests/faults", *NOT_PACKAGED, ".") for path in (ROOT / folder).glob("*.py")
    } | {"tests", "faults"}
    assert top(of_tests() | of(*NOT_PACKAGED)) - OPTIONAL - own <= named()


def test_what_is_imported_first_is_installed_without_extras():
    """The heads of the modules that every model needs: its code, saving, loading, classifying, pushing."""
    base = {module for name in names_of("") for module in modules_of(name)}
    places = (*CODE_FILES, "cli.py", "__init__.py", "utils/", "model_folder/", "convert/", "publish/", "inference/")
    of_train = (
        "convert/onnx_corpora.py",
        "inference/summary_picture.py",
        "inference/timeline.py",
        "utils/figures.py",
    )  # imported when needed
    for name, tree in sources().items():
        if name.startswith(places) and name not in of_train:
            heads = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
            assert top(imports(heads)) <= base, name


def test_installed_names_are_those_of_the_table():
    """`MODULES` is right of what is installed here."""
    installed = {name: set(map(canonicalize_name, owners)) for name, owners in packages_distributions().items()}
    for extra in requirements():
        for name in names_of(extra) - {canonicalize_name(tool) for tool in TOOLS}:
            of_distribution = {module for module, owners in installed.items() if name in owners}
            assert not of_distribution or modules_of(name) <= of_distribution, name


PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s]+)(?: --hash=sha256:([0-9a-f]{64}))?")


def pins(file: str) -> dict[str, tuple[str, str | None]]:
    """Version and hash of each distribution that a file pins; every line that is no comment has to."""
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): (match[2], match[3]) for match in matches}


def test_every_pinned_distribution_has_a_hash_but_torch():
    """`make hashes` writes the file anew when constraints.txt has changed."""
    hashed, pinned = pins("constraints-hashes.txt"), pins("constraints.txt")
    assert hashed.keys() == pinned.keys() - {"torch"}
    assert all(digest for _, digest in hashed.values())
    assert {name: version for name, (version, _) in hashed.items()} == {
        name: version for name, (version, _) in pinned.items() if name != "torch"
    }
    assert {name for extra in requirements() for name in names_of(extra)} <= {*pinned}
