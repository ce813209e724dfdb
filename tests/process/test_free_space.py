"""What follows from how much space is left, without filling anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasksprint.errors import DiskFull
from tasksprint.process import free_space
from tasksprint.process.free_space import FreeSpace, Level, Marks, marks_of
from tasksprint.settings import GIB, MIB, Settings

LARGE = 500 * GIB


def space(directory: Path = Path("/data")) -> FreeSpace:
    return FreeSpace(Settings(), directory)


@pytest.mark.parametrize(
    ("free_bytes", "level"),
    [
        (LARGE, Level.PLENTY),
        (GIB, Level.PLENTY),
        (GIB - 1, Level.LOW),
        (256 * MIB, Level.LOW),
        (256 * MIB - 1, Level.SHORT),
        (64 * MIB, Level.SHORT),
        (64 * MIB - 1, Level.SPENT),
        (0, Level.SPENT),
    ],
)
def test_level_by_the_marks(free_bytes: int, level: Level) -> None:
    free = space()
    assert free.found(free_bytes, LARGE) == (level is not Level.PLENTY)
    assert free.level is level


def test_small_file_systems_have_smaller_marks() -> None:
    assert marks_of(Settings(), LARGE) == Marks(GIB, 256 * MIB, 64 * MIB)
    assert marks_of(Settings(), 2 * GIB) == Marks(2 * GIB // 5, 2 * GIB // 10, 64 * MIB)
    assert marks_of(Settings(), 100 * MIB) == Marks(20 * MIB, 10 * MIB, 5 * MIB)
    settings = Settings(free_warn_bytes=30, free_refuse_bytes=20, free_stop_bytes=10)
    assert marks_of(settings, LARGE) == Marks(30, 20, 10)


def test_level_is_left_upwards_with_a_quarter_more_than_its_mark() -> None:
    free = space()
    assert free.found(200 * MIB, LARGE) and free.level is Level.SHORT
    assert not free.found(300 * MIB, LARGE) and free.level is Level.SHORT
    assert free.found(320 * MIB, LARGE) and free.level is Level.LOW
    assert not free.found(GIB + 1, LARGE) and free.level is Level.LOW
    assert free.found(5 * GIB // 4, LARGE) and free.level is Level.PLENTY
    # And at once downwards, over several.
    assert free.found(1, LARGE) and free.level is Level.SPENT
    # From the worst up to where it stays below a quarter more.
    assert free.found(300 * MIB, LARGE) and free.level is Level.SHORT


def test_words_name_the_directory_the_mark_and_the_setting() -> None:
    free = space()
    free.found(LARGE, LARGE)
    assert free.describe() == "512000.0 MiB are free where '/data' is"
    free.found(200 * MIB, LARGE)
    assert free.describe() == (
        "200.0 MiB are free where '/data' is, expected at least 256.0 MiB (free_refuse_bytes)"
    )
    free.found(300 * MIB, LARGE)
    assert free.describe() == (
        "300.0 MiB are free where '/data' is, expected at least 320.0 MiB (free_refuse_bytes)"
    )
    free.found(50 * MIB, LARGE)
    error = free.spent("replica 2")
    assert str(error) == (
        "replica 2 can't go on: 50.0 MiB are free where '/data' is, expected at least 64.0 MiB "
        "(free_stop_bytes); free some space and start it again; nothing that was acknowledged "
        "is lost"
    )
    assert error.exit_code == 75
    assert free.summary() == {
        "level": "spent",
        "free_bytes": 50 * MIB,
        "size_bytes": LARGE,
    }


def test_process_does_not_start_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = space(tmp_path)
    monkeypatch.setattr(free_space, "free_and_size", lambda directory: (LARGE, LARGE))
    free.require("replica 1")
    assert free.size_bytes == LARGE
    monkeypatch.setattr(free_space, "free_and_size", lambda directory: (1, LARGE))
    with pytest.raises(DiskFull, match=r"replica 1 can't go on: 0\.0 MiB are free"):
        free.require("replica 1")
