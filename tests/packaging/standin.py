"""A stand-in for the sources: a checkout in which the command line only tells of itself.

So these tests see the archive and its bootstrap, and stay fast and green whatever the
real roles do. The build script and the bootstrap are the real ones.
"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["CHECKOUT", "make_checkout"]

CHECKOUT = Path(__file__).resolve().parents[2]

PACKAGE = '''"""Stand-in for the package."""

__version__ = "0.0.1"
'''

MAIN = '''"""Stand-in for the command line."""

import sys

BEFORE = sorted(sys.modules)


def main(arguments):
    if arguments == ["--version"]:
        print("stand-in")
        return 0
    return globals()[arguments[0]](*arguments[1:])


def show(value):
    import json

    print(json.dumps(value))
    return 0


def about():
    import os

    import apsw
    import httptools
    import orjson
    import psutil

    import _tasksprint_boot as boot
    from tasksprint import installation

    connection = apsw.Connection(":memory:")
    [(answer,)] = connection.execute("select 6 * 7").fetchall()
    return show(
        {
            "answer": answer,
            "archive": installation.archive_path(),
            "before": BEFORE,
            "content": boot.content,
            "cwd": os.getcwd(),
            "description": installation.description(),
            "key": boot.key,
            "libraries": [m.__file__ for m in (apsw, httptools, orjson, psutil)],
            "own_command": installation.own_command(),
            "path": sys.path,
            "sdk": installation.sdk_directory(),
        }
    )


def again(folder):
    """Start this program once more, from another working directory."""
    import os
    import subprocess

    from tasksprint import installation

    os.chdir(folder)
    return subprocess.call([*installation.own_command(), "about"])


def user_program(text):
    """Run a program as a client would: with the SDK on its path."""
    import os
    import subprocess

    from tasksprint import installation

    environment = dict(os.environ, PYTHONPATH=installation.sdk_directory())
    return subprocess.call([sys.executable, "-S", "-c", text], env=environment)


def load(name):
    """Import a module that isn't ours."""
    __import__(name)
    return show(sys.dont_write_bytecode)


def wait():
    """Say that it runs, and run until the end of the input."""
    print("running", flush=True)
    sys.stdin.read()
    return 0


def restore():
    """Look for the SDK again and again, once for each line of input."""
    from tasksprint import installation
    from tasksprint.errors import SettingsError

    print("running", flush=True)
    for line in sys.stdin:
        try:
            print(installation.sdk_directory(), flush=True)
        except SettingsError as error:
            print(f"error: {error}", flush=True)
    return 0


def spawn():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return show(pool.map(abs, [-1, -2]))
'''


def make_checkout(folder: Path) -> Path:
    """Lay out a checkout with the stand-in package and the real build script in `folder`."""
    folder_cli = folder / "tasksprint" / "cli"
    folder_cli.mkdir(parents=True)
    (folder / "tasksprint" / "__init__.py").write_text(PACKAGE)
    (folder_cli / "__init__.py").write_text("")
    (folder_cli / "main.py").write_text(MAIN)
    for name in ("errors.py", "installation.py"):
        shutil.copy(CHECKOUT / "tasksprint" / name, folder / "tasksprint" / name)
    for name in ("TaskSprintNode.py", "TaskSprintCoordinator.py"):
        (folder / name).write_text('"""Stand-in."""\n\nimport tasksprint\n')
    (folder / "README.md").write_text("# A stand-in\n")
    for name in ("build_zipapp.py", "LICENSE", "setup.cfg", "pyproject.toml", "tasksprint.py"):
        shutil.copy(CHECKOUT / name, folder / name)
    shutil.copytree(CHECKOUT / "zipapp", folder / "zipapp", ignore=_ignored)
    return folder


_ignored = shutil.ignore_patterns("__pycache__")
