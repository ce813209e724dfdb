"""The cache that the .pyz unpacks into: where it may lie, damage, races, and tidying up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from build_zipapp import PYTHONS
from tests.packaging.conftest import (
    Archive,
    PlainUser,
    cache_of,
    contents_of,
    find_python,
    need_wheels,
)


def apsw_library(home: Path) -> Path:
    [path] = cache_of(home).glob("*/lib/apsw/__init__.*.so")
    return path


def do_nothing(home: Path) -> None:
    """Leave the home empty: the first start of all."""


def truncate(home: Path) -> None:
    """Unpack, then cut a library short: to load it would end in SIGBUS."""
    os.truncate(apsw_library(home), 4096)


def delete(home: Path) -> None:
    apsw_library(home).unlink()


def overwrite(home: Path) -> None:
    """Write zeros of the same length over a library; only its date shows it."""
    path = apsw_library(home)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "at_once"),
    [
        (do_nothing, 3),
        (truncate, 3),
        *(
            pytest.param(damage, 20, marks=pytest.mark.long)
            for damage in (do_nothing, truncate, delete, overwrite)
        ),
    ],
)
def test_starts_at_once_all_work(
    archive: Archive, home: Path, damage: Callable[[Path], None], at_once: int
) -> None:
    if damage is not do_nothing:
        archive.about(home=home)
        damage(home)
    processes = [archive.popen("about", home=home) for _ in range(at_once)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, "")
    cache = cache_of(home)
    [content] = contents_of(cache)
    assert sorted(os.listdir(cache)) == sorted([content, f"{content}.used", "lock"])


@pytest.mark.slow
def test_a_start_that_was_killed_while_it_unpacked_harms_no_later_one(
    archive: Archive, home: Path
) -> None:
    cache = cache_of(home)
    process = archive.popen("about", home=home)
    deadline = time.monotonic() + 30
    while not list(cache.glob(".new-*")):
        assert process.poll() is None, "it unpacked too fast to be caught"
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert contents_of(cache) == []
    [left] = cache.glob(".new-*")
    archive.about(home=home)
    assert left.exists(), "a folder so new may be another process's, where locks don't work"
    # Two hours later, at the next unpacking:
    os.utime(left, (time.time() - 7200,) * 2)
    delete(home)
    archive.about(home=home)
    assert not left.exists()


def test_no_home_falls_back_to_tmpdir(archive: Archive, tmp_path: Path) -> None:
    said = archive.about(home=None, environment={"TMPDIR": str(tmp_path)})
    assert said["sdk"].startswith(str(tmp_path / f"tasksprint-{os.geteuid()}"))
    assert (tmp_path / f"tasksprint-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", ["/dev/null", "relative", "", "/no/such/home"])
def test_a_home_that_is_none_falls_back_to_tmpdir(
    archive: Archive, tmp_path: Path, home: str
) -> None:
    said = archive.about(home=home, environment={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    assert said["sdk"].startswith(str(tmp_path / f"tasksprint-{os.geteuid()}"))
    assert sorted(os.listdir(tmp_path)) == [f"tasksprint-{os.geteuid()}"]


def test_the_named_cache_comes_before_xdg_and_xdg_before_home(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    xdg = {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
    named = {**xdg, "TASKSPRINT_CACHE": str(tmp_path / "new" / "named")}
    assert archive.about(home=home)["sdk"].startswith(str(cache_of(home)))
    said = archive.about(home=home, environment=xdg)
    assert said["sdk"].startswith(str(cache_of(home))), "what is unpacked somewhere is used"
    shutil.rmtree(home / ".cache")
    said = archive.about(home=home, environment=xdg)
    assert said["sdk"].startswith(str(tmp_path / "xdg" / "tasksprint"))
    shutil.rmtree(tmp_path / "xdg")
    said = archive.about(home=home, environment=named)
    assert said["sdk"].startswith(str(tmp_path / "new" / "named"))


def refused_start(archive: Archive, tmp_path: Path, chosen: Path) -> str:
    """Start with a cache that can't be used, and return what is said of it."""
    good = tmp_path / "good"
    environment = {"TASKSPRINT_CACHE": str(chosen), "XDG_CACHE_HOME": str(good)}
    done = archive.start("--version", home=None, environment=environment)
    assert (done.returncode, done.stdout) == (0, "stand-in\n")
    assert contents_of(good / "tasksprint")
    again = archive.start("--version", home=None, environment=environment)
    assert again.stderr == "", "said once, when it is unpacked"
    start = f"tasksprint: TASKSPRINT_CACHE {str(chosen)!r} can't be used: "
    end = f"; using {str(good / 'tasksprint')!r}\n"
    assert done.stderr.startswith(start)
    assert done.stderr.endswith(end)
    return done.stderr.removeprefix(start).removesuffix(end)


def test_a_cache_that_is_a_link_is_refused(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    reason = refused_start(archive, tmp_path, tmp_path / "link")
    assert reason == "it is a link or a file, expected a folder"


def test_a_cache_that_others_may_write_is_refused(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    reason = refused_start(archive, tmp_path, tmp_path / "open")
    assert reason == "others may write there (mode 1777, expected 0700)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another user")
def test_a_cache_that_others_own_is_refused(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir(mode=0o700)
    os.chown(tmp_path / "foreign", 12345, 12345)
    reason = refused_start(archive, tmp_path, tmp_path / "foreign")
    assert reason == "it belongs to user 12345, this is user 0"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another user")
def test_a_home_of_another_user_stays_untouched(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    """Under sudo HOME may be the user's: what root left there would lock the user out."""
    cache_of(home).mkdir(parents=True, mode=0o700)
    os.chown(home, 12345, 12345)
    said = archive.about(home=home, environment={"TMPDIR": str(tmp_path)})
    assert said["sdk"].startswith(str(tmp_path / "tasksprint-0"))
    assert os.listdir(cache_of(home)) == []


def test_a_read_only_home_falls_back(
    archive: Archive, plain_user: PlainUser, public_folder: Path
) -> None:
    home = public_folder / "home"
    scratch = public_folder / "tmp"
    for folder in (home, scratch):
        folder.mkdir()
        os.chown(folder, plain_user.uid, -1)
    home.chmod(0o500)
    path = public_folder / "tasksprint.pyz"
    shutil.copy(archive.path, path)
    said = archive.about(
        home=home,
        path=path,
        python=plain_user.python,
        environment={"TMPDIR": str(scratch)},
        **plain_user.options,
    )
    assert said["sdk"].startswith(str(scratch / f"tasksprint-{plain_user.uid}"))


def test_a_foreign_folder_of_our_name_in_tmp_is_refused(
    archive: Archive, plain_user: PlainUser, public_folder: Path
) -> None:
    """Somebody else made TMPDIR/tasksprint-UID first, to have us load their code."""
    if plain_user.uid == os.geteuid():
        pytest.skip("needs root, to be two users")
    (public_folder / f"tasksprint-{plain_user.uid}").mkdir(mode=0o755)
    home = public_folder / "home"
    home.mkdir()
    os.chown(home, plain_user.uid, -1)
    path = public_folder / "tasksprint.pyz"
    shutil.copy(archive.path, path)
    environment = {
        "TMPDIR": str(public_folder),
        "TASKSPRINT_CACHE": str(public_folder / f"tasksprint-{plain_user.uid}"),
    }
    done = archive.start(
        "--version",
        home=home,
        path=path,
        python=plain_user.python,
        environment=environment,
        **plain_user.options,
    )
    assert done.returncode == 0
    assert f"it belongs to user 0, this is user {plain_user.uid}" in done.stderr
    assert contents_of(cache_of(home))


def in_namespace(
    archive: Archive, command: list[str], script: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    start = f'exec "{sys.executable}" -S "{archive.path}" --version'
    return subprocess.run(
        [*command, f"{script}\n{start}"],
        env={**os.environ, **archive.environment(None, environment)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_noexec_home_is_passed_over(
    archive: Archive, home: Path, tmp_path: Path, mount_namespace: list[str]
) -> None:
    done = in_namespace(
        archive,
        mount_namespace,
        f'mount -t tmpfs -o noexec tmpfs "{home}"',
        {"HOME": str(home), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stand-in\n", "")
    assert contents_of(tmp_path / f"tasksprint-{os.geteuid()}")


def test_a_full_home_is_passed_over(
    archive: Archive, home: Path, tmp_path: Path, mount_namespace: list[str]
) -> None:
    done = in_namespace(
        archive,
        mount_namespace,
        f'mount -t tmpfs -o size=1m tmpfs "{home}"',
        {"HOME": str(home), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stand-in\n", "")
    assert contents_of(tmp_path / f"tasksprint-{os.geteuid()}")


def test_noexec_everywhere_names_each_place_with_its_reason(
    archive: Archive, home: Path, tmp_path: Path, mount_namespace: list[str]
) -> None:
    name = f"tasksprint-{os.geteuid()}"
    path = tmp_path / "tasksprint.pyz"
    shutil.copy(archive.path, path)
    script = (
        f'for folder in /tmp /var/tmp /dev/shm "{tmp_path}"; do\n'
        '    mount --bind "$folder" "$folder"\n'
        '    mount -o remount,bind,noexec "$folder"\n'
        "done"
    )
    done = in_namespace(
        Archive(path, archive.checkout),
        mount_namespace,
        script,
        {"HOME": str(home), "TMPDIR": "", "XDG_CACHE_HOME": ""},
    )
    assert done.returncode == 73, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "tasksprint: no folder takes the unpacked program; tried:"
    assert lines[1:-1] == [
        f"  {place}: it is mounted noexec"
        for place in (
            cache_of(home),
            f"/tmp/{name}",
            f"/var/tmp/{name}",
            f"/dev/shm/{name}",
            tmp_path / f".{name}",
        )
    ]
    assert lines[-1].startswith("set TASKSPRINT_CACHE to a folder of your own, with ")


@pytest.mark.long
def test_content_unused_for_a_month_goes_and_what_runs_stays(
    archive: Archive, home: Path
) -> None:
    cache = cache_of(home)
    running = archive.popen("wait", home=home)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "running\n"
    [held] = contents_of(cache)
    month = time.time() - 31 * 24 * 3600
    for content in ("0" * 20, "1" * 20):
        (cache / content / "lib").mkdir(parents=True)
        (cache / f"{content}.used").touch()
    os.utime(cache / f"{held}.used", (month, month))
    os.utime(cache / f"{'0' * 20}.used", (month, month))
    # Another build comes along and unpacks; that is when old content is looked for.
    other = archive.checkout / "other.pyz"
    main = archive.checkout / "tasksprint" / "cli" / "extra.py"
    main.write_text("")
    try:
        command = [sys.executable, "build_zipapp.py", "--output", str(other), "--wheels"]
        subprocess.run(
            [*command, str(need_wheels())], cwd=archive.checkout, check=True, capture_output=True
        )
    finally:
        main.unlink()
    said = archive.about(home=home, path=other)
    assert contents_of(cache) == sorted([said["content"], held, "1" * 20])
    assert not (cache / ("0" * 20)).exists()
    running.communicate("", timeout=60)
    assert running.returncode == 0


def test_a_start_renews_the_date_of_last_use(archive: Archive, home: Path) -> None:
    archive.about(home=home)
    [used] = cache_of(home).glob("*.used")
    os.utime(used, (time.time() - 3 * 24 * 3600,) * 2)
    archive.about(home=home)
    assert time.time() - used.stat().st_mtime < 3600


def test_a_cache_emptied_under_a_running_program_is_filled_again(
    archive: Archive, home: Path
) -> None:
    """As a cleaner of /tmp does to a client that runs for weeks."""
    running = archive.popen("restore", home=home)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "running\n"
    shutil.rmtree(cache_of(home))
    running.stdin.write("\n")
    running.stdin.flush()
    sdk = Path(running.stdout.readline().strip())
    assert (sdk / "TaskSprintNode.py").exists()
    running.communicate("", timeout=60)


def test_a_cache_emptied_after_the_archive_was_replaced_is_an_error_with_a_remedy(
    archive: Archive, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tasksprint.pyz"
    shutil.copy(archive.path, path)
    running = Archive(path, archive.checkout).popen("restore", home=home)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "running\n"
    shutil.rmtree(cache_of(home))
    path.unlink()
    stdout, stderr = running.communicate("\n", timeout=60)
    assert stdout.startswith("error: cannot restore the unpacked program: ")
    assert "start this process again, or set TASKSPRINT_CACHE to a lasting folder" in stdout
    assert stderr == ""


@pytest.mark.long
def test_one_file_and_one_home_serve_every_python_of_this_machine(
    archive: Archive, home: Path
) -> None:
    pythons = {version: find_python(version) for version in PYTHONS}
    found = {version: python for version, python in pythons.items() if python is not None}
    platform = archive.about(home=home)["key"].partition("-")[2]
    wanted = ["--platforms", platform, "--python", ",".join(found)]
    output = archive.checkout / "several.pyz"
    command = [sys.executable, "build_zipapp.py", *wanted, "--output", str(output)]
    subprocess.run(
        [*command, "--wheels", str(need_wheels(*wanted))],
        cwd=archive.checkout,
        check=True,
        capture_output=True,
    )
    for version, python in found.items():
        for _ in range(2):
            said = archive.about(home=home, path=output, python=python)
            assert said["key"] == f"cp3{version[2:]}-{platform}"
    assert len(contents_of(cache_of(home))) == len(found)
    if len(found) == 1:
        pytest.skip("run by one Python; this machine has no second one from 3.10 on")
