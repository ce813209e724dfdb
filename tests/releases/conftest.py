"""The archives of the last release and of this checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.conftest import built_archive
from tests.releases.building import Release, built_release, find_last_release


@pytest.fixture(scope="session")
def last_release() -> Release:
    """The release that upgrades are tested from."""
    return find_last_release()


@pytest.fixture(scope="session")
def old_archive(last_release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasksprint.pyz of the last release."""
    return built_release(last_release, tmp_path_factory)


@pytest.fixture(scope="session")
def new_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasksprint.pyz of this checkout."""
    return built_archive(tmp_path_factory)


@pytest.fixture(scope="session")
def archives(old_archive: Path, new_archive: Path) -> dict[str, Path]:
    """Both, as "old" and "new"."""
    return {"old": old_archive, "new": new_archive}
