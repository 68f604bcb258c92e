"""Writes constraints-hashes.txt: constraints.txt with the SHA-256 of each distribution; `make hashes` runs it.

Not a test. pip says of each what it would install here, and which hash the index states or the file has: those of this
machine's platform and Python. torch is left out, as its builds for CPU and CUDA have one version and many files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("torch",)
HEAD = """\
# constraints.txt with the SHA-256 of what pip installs on Linux x86_64, Python 3.11; written by `make hashes`.
# With HASHES=1 `make demo` and `make test` install these files and no others. torch is not among them: the CPU build
# and each CUDA build have the same version and other files.
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        command += ["--report", str(report), "--requirement", str(ROOT / "constraints.txt")]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = []
    for entry in found:
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        if name not in LEFT_OUT:
            lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    (ROOT / "constraints-hashes.txt").write_text(HEAD + "".join(sorted(lines, key=str.lower)), encoding="utf-8")
    print(f"{len(lines)} of {len(found)} distributions written to constraints-hashes.txt")
