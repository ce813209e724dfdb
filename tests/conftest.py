"""Options of the whole suite, and what its clusters run."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.torture.machines import copy_of_checkout

__all__ = ["command", "pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="write the golden files of tests/interactions and tests/state_tables anew, and those "
        "of tests/golden that are of no release; read the diff",
    )


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start, also where the suite runs in the background.

    A shell starts background jobs deaf to it, and programs inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory() -> Iterator[None]:
    """Give processes a temporary directory that nobody else uses.

    `run` cleans up there behind killed ones, and says so: behind those of others, too.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("TMPDIR", folder)
        # Set in many containers: each of hundreds of processes would compile all it imports.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs a copy of this checkout, which an edit in mid-run doesn't change."""
    return copy_of_checkout(tmp_path_factory.mktemp("checkout") / "code")
