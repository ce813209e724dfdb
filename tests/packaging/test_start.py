"""Starting the .pyz: every way to start it, what it puts on the path, whom it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import Archive, cache_of, find_python

OLD_PYTHONS = ("2.7", "3.6", "3.7", "3.8", "3.9")


def test_two_folders_come_first_on_the_path_and_the_archive_leaves_it(
    archive: Archive, home: Path
) -> None:
    said = archive.about(home=home)
    content = cache_of(home) / said["content"]
    assert said["path"][:2] == [str(content / "sdk"), str(content / "lib")]
    assert str(archive.path) not in said["path"]
    assert said["sdk"] == str(content / "sdk")
    assert sorted(os.listdir(content / "sdk")) == [
        "TaskSprintCoordinator.py",
        "TaskSprintNode.py",
        "tasksprint",
    ]
    for path in said["libraries"]:
        assert path.startswith(str(content / "lib"))


def test_what_lies_on_pythonpath_does_not_replace_our_libraries(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('the wrong orjson')\n")
    archive.about(home=home, environment={"PYTHONPATH": str(tmp_path)})


@pytest.mark.slow
def test_starts_by_link_with_spaces_isolated_and_from_anywhere(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    spaced = tmp_path / "a folder" / "task sprint.pyz"
    spaced.parent.mkdir()
    spaced.write_bytes(archive.path.read_bytes())
    link = tmp_path / "link"
    link.symlink_to(archive.path)
    assert archive.about(home=home, path=link)["archive"] == str(link)
    assert archive.about(home=home, path=spaced)["archive"] == str(spaced)
    relative = archive.about(home=home, path=spaced.name, cwd=spaced.parent)
    assert relative["own_command"] == [sys.executable, str(spaced)]
    archive.about(home=home, options=("-I",))
    archive.about(home=home, environment={"PYTHONSAFEPATH": "1"})
    archive.about(home=home, environment={"PYTHONPATH": str(archive.path)})


def test_starts_by_its_first_line(archive: Archive, home: Path) -> None:
    folder = Path(sys.executable).parent
    if not (folder / "python3").exists():
        pytest.skip(f"no 'python3' beside {sys.executable}")
    environment = archive.environment(home, {"PATH": f"{folder}:{os.defpath}"})
    done = subprocess.run(
        [str(archive.path), "--version"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stand-in\n", "")


def test_starts_itself_again_after_a_change_of_directory(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    name = archive.path.name
    done = archive.start("again", str(tmp_path), home=home, path=name, cwd=archive.path.parent)
    said = json.loads(done.stdout)
    assert said["cwd"] == str(tmp_path)
    assert said["archive"] == str(archive.path)


@pytest.mark.slow
def test_a_spawned_child_of_multiprocessing_finds_the_libraries(
    archive: Archive, home: Path
) -> None:
    done = archive.start("spawn", home=home)
    assert (done.stdout, done.stderr) == ("[1, 2]\n", "")


@pytest.mark.slow
def test_a_warm_start_imports_nothing_that_the_program_did_not_ask_for(
    archive: Archive, home: Path
) -> None:
    archive.about(home=home)
    said = archive.about(home=home)
    heavy = {"json", "re", "zipfile", "zlib", "tempfile", "shutil", "sysconfig", "typing"}
    assert not heavy & set(said["before"])
    assert "_tasksprint_unpack" not in said["before"]
    # Beyond what Python itself needs to run any zip:
    assert {"_tasksprint_boot", "fcntl"} <= set(said["before"])


def test_what_is_unpacked_is_compiled_once_whatever_is_wished_for_other_folders(
    archive: Archive, home: Path
) -> None:
    """PYTHONDONTWRITEBYTECODE, which many containers set, must not slow down each start."""
    wish = {"PYTHONDONTWRITEBYTECODE": "1"}
    archive.about(home=home, environment=wish)
    compiled = set(cache_of(home).glob("*/*/**/*.pyc"))
    assert {"installation", "errors"} <= {path.name.partition(".")[0] for path in compiled}
    # User programs are asked to write none, as before, and so is what we import from elsewhere.
    program = "import sys; print(sys.dont_write_bytecode)"
    done = archive.start("user_program", program, home=home, environment=wish)
    assert done.stdout == "True\n"
    assert archive.start("user_program", program, home=home).stdout == "False\n"
    elsewhere = home / "elsewhere.py"
    elsewhere.write_text("")
    path = {"PYTHONPATH": str(home)}
    for environment, said in (({**wish, **path}, "true\n"), (path, "false\n")):
        done = archive.start("load", "elsewhere", home=home, environment=environment)
        assert (done.stdout, done.stderr) == (said, "")
        assert (home / "__pycache__").exists() == (environment is path)


def test_description_names_version_file_key_content_and_python(
    archive: Archive, home: Path
) -> None:
    said = archive.about(home=home)
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert said["description"] == (
        f"tasksprint 0.0.1 ({archive.path}, {said['key']}, content {said['content']}; "
        f"Python {python})"
    )


def test_user_programs_get_the_sdk_and_none_of_our_libraries(archive: Archive, home: Path) -> None:
    """From the cache, as in the archive each of many nodes would compile it anew."""
    program = (
        "import TaskSprintNode, TaskSprintCoordinator, tasksprint\n"
        "print(TaskSprintNode.__file__)\n"
        "for name in 'apsw', 'httptools', 'orjson', 'psutil':\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ModuleNotFoundError:\n"
        "        print('no', name)\n"
    )
    done = archive.start("user_program", program, home=home)
    sdk = cache_of(home) / archive.about(home=home)["content"] / "sdk"
    assert done.stdout.splitlines() == [
        str(sdk / "TaskSprintNode.py"),
        "no apsw",
        "no httptools",
        "no orjson",
        "no psutil",
    ]


def test_the_sdk_can_be_imported_from_the_archive_by_hand(archive: Archive, home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import TaskSprintNode as n; print(n.__file__)"],
        env=archive.environment(home, {"PYTHONPATH": str(archive.path)}),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{archive.path}/TaskSprintNode.py\n"
    assert not cache_of(home).exists()


@pytest.mark.parametrize("version", OLD_PYTHONS)
def test_an_old_python_gets_one_sentence(archive: Archive, home: Path, version: str) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    done = archive.start(home=home, python=python)
    assert done.returncode == 78
    supported = f"3.{sys.version_info[1]}"
    assert re.fullmatch(
        rf"tasksprint: this file needs Python {re.escape(supported)}, "
        rf"found {re.escape(version)}\.\d+ \(.*\); start it as: python{supported} .*\.pyz\n",
        done.stderr,
    )


FEIGNED = [
    ("os.confstr = lambda name: 'glibc 2.17'", r"cp3\d+-linux-\w+-glibc2\.17"),
    ("os.confstr = lambda name: None", r"cp3\d+-linux-\w+-musl"),
    ("del os.confstr; os.confstr = lambda name: int('')", r"cp3\d+-linux-\w+-musl"),
    ("sys.maxsize = 2**31 - 1", r"cp3\d+-linux-\w+_32bit-glibc"),
    ("sys.abiflags = 't'", r"cp3\d+t-linux-\w+-glibc"),
    ("sys.implementation.name = 'pypy'", r"pypy3\d+-linux-\w+-glibc"),
    ("sys.platform = 'freebsd14'", r"cp3\d+-freebsd14-\w+"),
    ("del os.uname; sys.platform = 'win32'", r"cp3\d+-win32"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="feigns from Linux with glibc")
@pytest.mark.parametrize(("feint", "key"), FEIGNED)
def test_a_platform_that_is_not_built_in_gets_its_key_and_the_list(
    archive: Archive, home: Path, feint: str, key: str
) -> None:
    """Real ones (musl, a 32-bit or free-threaded Python, PyPy) aren't at hand, so: feigned."""
    script = (
        f"import os, sys, runpy; {feint}; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(archive.path), "--version"],
        env=archive.environment(home),
        capture_output=True,
        text=True,
    )
    own = archive.about(home=home)["key"]
    python, _, platform = own.partition("-")
    assert done.returncode == 78, done.stderr
    lines = done.stderr.splitlines()
    assert re.fullmatch(
        rf"tasksprint: this file isn't built for {key} \(.*\); it is built for:", lines[0]
    )
    assert lines[1] == f"  {platform}: CPython {python[2]}.{python[3:]}"
    assert lines[2].startswith("start it with one of these, or run build_zipapp.py")
    assert len(lines) == 3


def test_a_damaged_archive_is_one_sentence(archive: Archive, home: Path, tmp_path: Path) -> None:
    """Bytes of a library flipped, as by a broken copy; the ends of a zip are still whole."""
    data = bytearray(archive.path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path = tmp_path / "damaged.pyz"
    path.write_bytes(data)
    done = archive.start("--version", home=home, path=path)
    assert done.returncode == 78
    assert re.fullmatch(
        r"tasksprint: '.*damaged\.pyz' can't be unpacked: .*; copy or build it again\n",
        done.stderr,
    )
    assert list(cache_of(home).glob(".new-*")) == []
