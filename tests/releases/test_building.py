"""`releases.txt`, and a checkout without the history that it points into."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tasksprint
from tasksprint.settings import RULES
from tests.packaging.standin import CHECKOUT
from tests.releases.building import (
    Release,
    find_last_release,
    read_releases,
    sources_of,
)

NOWHERE = Release("9.9.9", "0123456789" * 4, 1)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.partition(".dev")[0].split(".")]


def test_each_release_is_a_commit_of_its_version_before_this_one(tmp_path: Path) -> None:
    for release in read_releases():
        folder = sources_of(release, tmp_path / release.version)
        text = (folder / "tasksprint" / "__init__.py").read_text(encoding="utf-8")
        assert f'__version__ = "{release.version}"' in text
        asked = "from tasksprint import settings; print(settings.RULES.version)"
        rules = subprocess.run([sys.executable, "-c", asked], cwd=folder, capture_output=True)
        assert int(rules.stdout) == release.rules
        command = ["git", "-C", str(CHECKOUT), "merge-base", "--is-ancestor", release.commit]
        assert subprocess.run([*command, "HEAD"]).returncode == 0


def test_releases_stand_in_their_order_and_none_is_ahead_of_this_checkout() -> None:
    versions = [numbers(release.version) for release in read_releases()]
    assert versions == sorted(versions)
    assert versions[-1] <= numbers(tasksprint.__version__)


def test_upgrades_are_tested_from_the_last_release_whose_rules_are_older() -> None:
    last = find_last_release()
    assert last.rules == RULES.version - 1
    later = [
        release for release in read_releases() if numbers(release.version) > numbers(last.version)
    ]
    assert all(release.rules == RULES.version for release in later)


@pytest.mark.parametrize(("ci", "ends"), [("true", pytest.fail), ("", pytest.skip)])
def test_a_checkout_without_history_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, ends: object
) -> None:
    """With CI=true it fails: upgrades that nobody tests would pass for tested ones."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(ends.Exception) as caught:  # type: ignore[attr-defined]
        sources_of(NOWHERE, tmp_path / "none")
    assert re.fullmatch(
        r"commit 012345678901 of release 9\.9\.9 isn't in the history of this checkout \(.*\), so "
        r"upgrades from it can't be tested; clone all of it, or run `git fetch --unshallow`",
        str(caught.value),
    )
