"""The archive of the real sources: complete, and quick to say its version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tasksprint
from tests.packaging.conftest import Archive, built_archive
from tests.packaging.standin import CHECKOUT

EVERY_MODULE = """
import pkgutil, sys
sys.path.insert(0, sys.argv[1])
import _tasksprint_boot
_tasksprint_boot.start()
import tasksprint, TaskSprintNode, TaskSprintCoordinator
names = [module.name for module in pkgutil.walk_packages(tasksprint.__path__, "tasksprint.")]
for name in names:
    __import__(name)
print(len(names))
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """This very checkout, built."""
    return Archive(built_archive(tmp_path_factory), CHECKOUT)


def test_it_tells_its_version(real: Archive, home: Path) -> None:
    done = real.start("--version", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"tasksprint {tasksprint.__version__}")


@pytest.mark.slow
def test_every_module_finds_all_that_it_imports(real: Archive, home: Path) -> None:
    """Without site-packages: a library that the archive lacks would not be found."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", EVERY_MODULE, str(real.path)],
        capture_output=True,
        text=True,
        cwd="/",
        env=real.environment(home),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 20


def test_a_warm_version_loads_nothing_heavy(real: Archive, home: Path) -> None:
    real.start("--version", home=home)
    done = real.start("--version", home=home, options=("-S", "-X", "importtime"))
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"apsw", "argparse", "asyncio", "httptools", "json", "orjson", "psutil"}
    assert not loaded & (heavy | {"_tasksprint_unpack", "tempfile", "zipfile"})
    assert "tasksprint.cli.main" in loaded
