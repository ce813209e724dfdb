"""Where files live by default, and that they are private."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from tasksprint.errors import SettingsError
from tasksprint.process.directories import (
    private_directory,
    state_directory,
    temporary_directory,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_directory_follows_the_xdg_standard(tmp_path: Path) -> None:
    found = state_directory({"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": "/nowhere"})
    assert found == tmp_path / "state" / "tasksprint"
    assert mode(found) == 0o700


def test_state_directory_in_the_home(tmp_path: Path) -> None:
    found = state_directory({"HOME": str(tmp_path), "XDG_STATE_HOME": "not/absolute"})
    assert found == tmp_path / ".local" / "state" / "tasksprint"


def test_state_directory_without_a_home(tmp_path: Path) -> None:
    found = state_directory({"TMPDIR": str(tmp_path)})
    assert found == tmp_path / f"tasksprint-{os.getuid()}"
    assert mode(found) == 0o700


def test_home_that_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a directory")
    found = state_directory({"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)})
    assert found == tmp_path / f"tasksprint-{os.getuid()}"


def test_no_directory_at_all_names_each_and_its_reason(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SettingsError) as caught:
        state_directory({"HOME": str(blocked), "TMPDIR": str(blocked)})
    assert str(caught.value) == (
        "no directory for TaskSprint's state: "
        f"'{blocked}/.local/state/tasksprint': Not a directory; "
        f"'{blocked}/tasksprint-{os.getuid()}': Not a directory; "
        "set XDG_STATE_HOME to a directory of yours that can be written"
    )


def test_directory_that_others_can_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir(mode=0o755)
    assert mode(private_directory(path)) == 0o700


def test_file_in_the_place_of_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(SettingsError) as caught:
        private_directory(path)
    assert str(caught.value) == f"'{path}' is not a directory"


def test_own_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert private_directory(tmp_path / "link") == tmp_path / "link"
    assert mode(tmp_path / "real") == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_directory_and_link_of_somebody_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, 12345, -1)
    with pytest.raises(SettingsError) as caught:
        private_directory(path)
    assert str(caught.value) == f"'{path}' belongs to user 12345, this is user 0"
    link = tmp_path / "trap"
    link.symlink_to(tmp_path)
    os.chown(link, 12345, -1, follow_symlinks=False)
    with pytest.raises(SettingsError) as caught:
        private_directory(link)
    assert str(caught.value) == f"'{link}' is a link made by user 12345"


def test_sockets_get_a_short_place(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    found = temporary_directory({"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(long)})
    assert found == Path(f"/tmp/tasksprint-{os.getuid()}")
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime:
        assert temporary_directory({"XDG_RUNTIME_DIR": runtime}) == Path(runtime, "tasksprint")
