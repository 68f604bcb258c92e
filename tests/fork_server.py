"""Runs Python in forks of a process that has imported torch and transformers, which takes seconds each time.

Not a test: `conftest.Forks` starts it, with the names of what is imported. Each line of standard input is a list of
requests in JSON, which run at once; their process ids are a line of standard output, and their exit codes the next.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import types


def run(code: str, arguments: list[str], folder: str, output: str, errors: str, environment: dict[str, str]) -> None:
    """What `python -c` does, in this process."""
    for number, name in enumerate((os.devnull, output, errors)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0], sys.argv = "", ["-c", *arguments]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        if attribute:  # that is imported when it is asked for
            getattr(imported, attribute)
    gc.freeze()  # forks share what is here, and look at none of it again
    while line := sys.stdin.readline():
        processes: list[int] = []
        for request in json.loads(line):
            processes.append(os.fork())
            if processes[-1] == 0:
                run(**request)
                sys.exit()
        print(json.dumps(processes), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in processes]), flush=True)
