"""Deleting what nobody has used for a while: archives and unpacked programs."""

from __future__ import annotations

from pathlib import Path

from tasksprint.roles.last_use import (
    LastUse,
    delete_folders,
    folders_in,
    leftovers_in,
    take_away,
)


def test_things_expire_so_long_after_their_last_use() -> None:
    uses = LastUse(100)
    uses.use("a", 0)
    assert uses.expired(["a", "b"], (), 50) == []  # b is seen for the first time
    assert uses.expired(["a", "b"], (), 100) == ["a"]
    uses.use("a", 120)
    assert uses.expired(["a", "b"], ("b",), 150) == []
    assert uses.expired(["a", "b"], (), 249) == ["a"]
    assert uses.expired(["a", "b"], (), 250) == ["a", "b"]


def test_what_is_in_use_never_expires_and_what_is_gone_is_forgotten() -> None:
    uses = LastUse(10)
    for now_ms in range(0, 100, 10):
        assert uses.expired(["a"], ("a",), now_ms) == []
    assert uses.expired([], (), 200) == []
    assert uses.expired(["a"], (), 300) == []


def test_deleted_program_takes_the_mark_of_its_setup_along(tmp_path: Path) -> None:
    assert folders_in(tmp_path / "file") == []
    assert folders_in(tmp_path / "none") == leftovers_in(tmp_path / "none") == []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.py").write_text("")
        (tmp_path / f"{name}.setup").write_text("make")
    gone = take_away(tmp_path, "one")
    assert [path.name for path in gone.iterdir()] == ["node.py"]
    assert folders_in(tmp_path) == ["two"]
    # As if the process were killed here.
    assert leftovers_in(tmp_path) == [gone]
    delete_folders(leftovers_in(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two", "two.setup"]
