"""Former releases, built from this checkout's history by their own build scripts.

`releases.txt` names them. Upgrades are tested from the last one with older rules.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasksprint.settings import RULES
from tests.packaging.conftest import need_wheels
from tests.packaging.standin import CHECKOUT

__all__ = [
    "Release",
    "build",
    "built_release",
    "find_last_release",
    "read_releases",
    "sources_of",
]

_RELEASES = Path(__file__).parent / "releases.txt"


@dataclass(frozen=True, slots=True)
class Release:
    """A version that people run, its commit, and the newest rules that it has."""

    version: str
    commit: str
    rules: int


def read_releases() -> tuple[Release, ...]:
    """Return the releases that `releases.txt` names, oldest first."""
    found: list[Release] = []
    for line in _RELEASES.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            version, commit, rules = line.split()
            found.append(Release(version, commit, int(rules)))
    return tuple(found)


def find_last_release() -> Release:
    """Return the release that upgrades are tested from: the last one with older rules.

    A release with the rules of this checkout has nothing to be raised from. So upgrades
    are tested from the one before, until rules come that it lacks.
    """
    return [release for release in read_releases() if release.rules < RULES.version][-1]


def sources_of(release: Release, folder: Path) -> Path:
    """Write a release's checkout into a new folder, and return it.

    Where the history lacks the commit, the test is skipped; with CI=true it fails.
    """
    command = ["git", "-C", str(CHECKOUT), "archive", "--format=tar", release.commit]
    try:
        done = subprocess.run(command, capture_output=True)
        code, said = done.returncode, done.stderr.decode(errors="replace").strip()
    except FileNotFoundError:
        code, said = 1, "there is no git here"
    if code:
        text = (
            f"commit {release.commit[:12]} of release {release.version} isn't in the history "
            f"of this checkout ({said}), so upgrades from it can't be tested; clone all of it, "
            "or run `git fetch --unshallow`"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=done.stdout, check=True)
    return folder


def built_release(release: Release, temporary: pytest.TempPathFactory) -> Path:
    """Return the release's tasksprint.pyz; built once for all tests that run side by side."""
    base = temporary.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"release-{release.version}"
    archive = base / f"tasksprint-{release.version}.pyz"
    wheels = need_wheels()  # Those of other versions, which only it needs, it fetches itself.
    with archive.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(sources_of(release, folder), archive, wheels)
    return archive


def build(checkout: Path, archive: Path, wheels: Path) -> None:
    """Build tasksprint.pyz of a checkout by its own script."""
    command = [sys.executable, str(checkout / "build_zipapp.py"), "--output", str(archive)]
    done = subprocess.run(
        [*command, "--wheels", str(wheels)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
