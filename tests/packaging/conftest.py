"""Wheels, archives and interpreters for the packaging tests; each is made once a session."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import build_zipapp
from tests.packaging.standin import CHECKOUT, make_checkout

# Kept between runs, and shared with builds by hand.
WHEELS = CHECKOUT / "wheels"

# The user that is nobody, on every system that we know.
NOBODY = 65534


@functools.cache
def find_python(version: str) -> str | None:
    """Return a CPython of this version on this machine, or None."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    kept = glob.glob(f"{root}/versions/{version}.*/bin/python")
    paths = [shutil.which(f"python{version}"), *sorted(kept)]
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in paths:
        if path is not None:
            done = subprocess.run([path, "-c", script], capture_output=True, text=True)
            if done.stdout.strip() == version:
                return path
    return None


def need_wheels(*arguments: str) -> Path:
    """Return the folder with the wheels for these options of the build, or skip.

    They are fetched once: of tests that run side by side, the others wait for the first.
    """
    command = [sys.executable, str(CHECKOUT / "build_zipapp.py"), "--fetch-only", *arguments]
    WHEELS.mkdir(exist_ok=True)
    with (WHEELS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [*command, "--wheels", str(WHEELS)], capture_output=True, text=True, timeout=300
        )
    if done.returncode != 0:
        assert done.returncode == build_zipapp.EX_UNAVAILABLE, done.stderr
        if os.environ.get("CI") == "true":
            pytest.fail(f"no wheels: {done.stderr}")
        pytest.skip(f"no package registry can be reached: {done.stderr.strip()}")
    return WHEELS


def built_archive(temporary: pytest.TempPathFactory) -> Path:
    """Return tasksprint.pyz, built from this checkout; once for all that run side by side."""
    folder = temporary.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "tasksprint.pyz"
    command = [sys.executable, str(CHECKOUT / "build_zipapp.py"), "--output", str(path)]
    wheels = need_wheels()
    with (folder / "tasksprint.pyz.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            done = subprocess.run(
                [*command, "--wheels", str(wheels)], capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The folder of wheels, with those for this Python."""
    return need_wheels()


@dataclasses.dataclass(frozen=True)
class Archive:
    """A built .pyz of the stand-in, and how to start it."""

    path: Path
    checkout: Path

    def start(
        self,
        *arguments: str,
        home: Path | str | None,
        python: str = sys.executable,
        options: tuple[str, ...] = ("-S",),
        path: Path | str | None = None,
        cwd: Path | str = "/",
        environment: dict[str, str] | None = None,
        **others: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, in an environment of its own.

        -S by default: a machine's site-packages may import half of Python at each start.
        """
        return subprocess.run(
            [python, *options, str(path or self.path), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env=self.environment(home, environment),
            check=False,
            **others,
        )

    def popen(self, *arguments: str, home: Path) -> subprocess.Popen[str]:
        """Start it with pipes, and don't wait."""
        return subprocess.Popen(
            [sys.executable, "-S", str(self.path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(home),
        )

    def about(self, **where: Any) -> dict[str, Any]:
        """Run `about` and return what it says."""
        done = self.start("about", **where)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        said: dict[str, Any] = json.loads(done.stdout)
        assert said["answer"] == 42
        return said

    @staticmethod
    def environment(
        home: Path | str | None, more: dict[str, str] | None = None
    ) -> dict[str, str]:
        """Return an environment in which only HOME, if given, names a cache."""
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", **(more or {})}
        return environment if home is None else {**environment, "HOME": str(home)}


@pytest.fixture(scope="session")
def archive(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """The stand-in's .pyz for this Python."""
    checkout = make_checkout(tmp_path_factory.mktemp("checkout"))
    output = checkout / "tasksprint.pyz"
    command = [sys.executable, str(checkout / "build_zipapp.py"), "--output", str(output)]
    done = subprocess.run(
        [*command, "--wheels", str(wheels)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Archive(output, checkout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home directory; its cache is `cache_of(home)`."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may read, which pytest's own aren't."""
    folder = Path(tempfile.mkdtemp(prefix="tasksprint-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@dataclasses.dataclass(frozen=True)
class PlainUser:
    """Somebody who isn't root, and a Python that they may run."""

    uid: int
    python: str
    options: dict[str, Any]  # for subprocess


@pytest.fixture
def plain_user() -> PlainUser:
    """A user whom file permissions bind: this one, or nobody if this one is root."""
    if os.geteuid() != 0:
        return PlainUser(os.geteuid(), sys.executable, {})
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    script = "import sys, zlib; print('%d.%d' % sys.version_info[:2])"
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            done = subprocess.run(
                [python, "-S", "-c", script], capture_output=True, text=True, cwd="/", **options
            )
        except OSError:
            continue
        if done.stdout.strip() == version:
            return PlainUser(NOBODY, python, options)
    pytest.skip(f"no Python {version} here that a user other than root may run")


@pytest.fixture(scope="session")
def mount_namespace() -> list[str]:
    """The start of a command line that may mount what nobody else sees."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a noexec or a full disk")
    command = ["unshare", "--mount", "sh", "-ec"]
    try:
        subprocess.run([*command, "mount -t tmpfs tmpfs /mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine allows no mount namespaces (in a container, perhaps)")
    return command


def cache_of(home: Path) -> Path:
    """Return where a start with this HOME keeps its cache."""
    return home / ".cache" / "tasksprint"


def contents_of(cache: Path) -> list[str]:
    """Return the content ids in a cache."""
    return sorted(path.stem for path in cache.glob("*.used"))
