"""How programs are run, and what they get to see of our environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tasksprint.errors import NodeFailed, SchedulerFailed
from tasksprint.installation import sdk_directory
from tasksprint.process.command_line import child_environment, command_line, hash_seed_of


def make(directory: Path, name: str, *, mode: int = 0o644) -> str:
    path = directory / name
    path.write_text("")
    path.chmod(mode)
    return str(path)


def node(
    program: str | list[str], directory: Path, interpreter: str | None = None
) -> tuple[str, ...]:
    return command_line(
        program, directory=directory, what="node", failure=NodeFailed, interpreter=interpreter
    )


def test_python_files_run_with_our_python_whatever_their_mode(tmp_path: Path) -> None:
    path = make(tmp_path, "node.py")
    assert node("node.py", tmp_path) == (sys.executable, path)
    assert node(["node.py", "-v"], tmp_path) == (sys.executable, path, "-v")


def test_manifest_may_name_another_python(tmp_path: Path) -> None:
    path = make(tmp_path, "node.py")
    found = node("node.py", tmp_path, interpreter="sh")
    assert found[0].endswith("/sh") and found[1:] == (path,)


def test_interpreter_that_is_not_here(tmp_path: Path) -> None:
    make(tmp_path, "node.py")
    with pytest.raises(NodeFailed) as caught:
        node("node.py", tmp_path, interpreter="python2.4")
    assert str(caught.value) == (
        "the interpreter 'python2.4' of the node isn't on this machine; install it, or leave "
        f"'interpreter' out of the manifest to use '{sys.executable}'"
    )


def test_shell_and_awk_scripts_need_no_mode(tmp_path: Path) -> None:
    path = make(tmp_path, "node.sh")
    assert node("node.sh", tmp_path) == ("/bin/sh", path)
    path = make(tmp_path, "node.awk")
    assert node("node.awk", tmp_path) == ("awk", "-f", path)


def test_anything_else_must_be_executable(tmp_path: Path) -> None:
    path = make(tmp_path, "node", mode=0o755)
    assert node("node", tmp_path) == (path,)
    make(tmp_path, "scheduler.rb")
    with pytest.raises(SchedulerFailed) as caught:
        command_line("scheduler.rb", directory=tmp_path, what="scheduler", failure=SchedulerFailed)
    assert str(caught.value) == (
        "scheduler 'scheduler.rb' isn't executable; chmod +x it (and give it a #! line if it "
        "is a script), or name it *.py, *.sh or *.awk"
    )


def test_program_that_is_not_there_or_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed) as caught:
        node("./nod.py", tmp_path)
    assert str(caught.value) == f"node './nod.py' doesn't exist in '{tmp_path}'"
    (tmp_path / "node.d").mkdir()
    with pytest.raises(NodeFailed) as caught:
        node("node.d", tmp_path)
    assert str(caught.value) == "node 'node.d' is a directory, expected a program"


def test_bare_name_is_looked_up_in_the_path(tmp_path: Path) -> None:
    found = node(["sh", "-c", "true"], tmp_path)
    assert found[0].startswith("/") and found[1:] == ("-c", "true")


def test_absolute_programs_are_taken_as_they_are(tmp_path: Path) -> None:
    path = make(tmp_path, "mine.py")
    assert node(path, Path("/")) == (sys.executable, path)


ALIKE = {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PWD": "/job"}


def test_environment_has_the_sdk_first_and_nothing_of_ours() -> None:
    base = {
        "PATH": "/bin",
        "PYTHONPATH": "/mine",
        "TASKSPRINT_KEY": "s3cret",
        "TASKSPRINT_KEY_FILE": "/key",
        "TASKSPRINT_TOKEN": "t",
        "TASKSPRINT_COORDINATORS": "a:1",
        "TASKSPRINT_SETTINGS": "{}",
    }
    found = child_environment(hash_seed=7, directory=Path("/job"), base=base)
    assert found == {
        "PATH": "/bin",
        "PYTHONPATH": f"{sdk_directory()}{os.pathsep}/mine",
        "PYTHONHASHSEED": "7",
        **ALIKE,
    }


def test_environment_is_that_of_any_other_machine() -> None:
    """What a shell, a terminal or a country leave in it, and what would change Python."""
    base = {
        **{"LANG": "de_DE", "LANGUAGE": "de", "LC_NUMERIC": "de_DE", "TZ": "Asia/Tokyo"},
        **{"PYTHONHASHSEED": "random", "PYTHONOPTIMIZE": "2", "PYTHONUTF8": "0"},
        **{"COLUMNS": "80", "LINES": "24", "SHLVL": "2", "OLDPWD": "/o", "PWD": "/p", "_": "x"},
    }
    found = child_environment(hash_seed=2**63 - 1, directory=Path("/job"), base=base)
    assert found == {"PYTHONPATH": sdk_directory(), "PYTHONHASHSEED": "4294967295", **ALIKE}


def test_environment_of_the_manifest_comes_last() -> None:
    extra = {"TZ": "Europe/Berlin", "PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1"}
    found = child_environment(hash_seed=1, directory=Path("/job"), extra=extra, base={})
    assert found == {"PYTHONPATH": sdk_directory(), **ALIKE, **extra}


def test_hash_seeds_go_by_names() -> None:
    assert hash_seed_of("") == 0xE3B0C442  # SHA-256 begins so
    assert hash_seed_of("a") != hash_seed_of("b")
