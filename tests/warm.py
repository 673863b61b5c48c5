"""New processes that start fast: forked from one that has imported torch and the package, and has done nothing else.

Starting Python and importing takes two seconds, and most commands that tests give take less. What such a process has
of its own is all but the imports: its arguments, folder, environment and module path. Where a test is about starting
itself, or sends signals, it starts a process by `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import ffstream

_OURS = [found.name for found in pkgutil.walk_packages(ffstream.__path__, "ffstream.")]
_MODULES = ["torchvision", "torch._dynamo", *(name for name in _OURS if name != "ffstream.__main__"), "tests.warm"]


def run_python(*arguments, cwd, environment=None):
    """What `python ARGUMENTS` does in a new process: `-m MODULE …`, `-c CODE …` or a file. As `subprocess.run` says it.

    Reads nothing. `environment` is all of it; that of this process by default.
    """
    arguments = [str(argument) for argument in arguments]
    environment = dict(os.environ if environment is None else environment)
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / "output", Path(folder) / "error"]
        process = context.Process(target=_become, args=(arguments, str(Path(cwd).resolve()), environment, outputs))
        process.start()
        process.join()
        output, error = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(arguments, process.exitcode, output, error)


def _become(arguments, cwd, environment, outputs):
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    named = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*named, *(place for place in sys.path if place not in ("", cwd))]
    first, *rest = arguments
    if first == "-m":
        sys.path.insert(0, cwd)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")
