"""What build_zipapp.py makes: the same bytes every time, a clean zip, every key complete."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import build_zipapp
from build_zipapp import PYTHONS, BuildError, Pin
from tests.packaging.conftest import WHEELS, Archive, find_python
from tests.packaging.standin import CHECKOUT, make_checkout

LOCK = CHECKOUT / "zipapp" / "wheels.lock"
PACKAGES = ["apsw", "httptools", "orjson", "psutil"]


@pytest.fixture
def fake_checkout(tmp_path: Path) -> Path:
    """A checkout whose pins are small invented wheels, so that no network is needed."""
    checkout = make_checkout(tmp_path / "checkout")
    folder = checkout / "wheels"
    folder.mkdir()
    lines = []
    for pins in build_zipapp.read_pins(str(LOCK)).values():
        for pin in pins:
            path = folder / pin.wheel
            if not path.exists():
                with zipfile.ZipFile(path, "w") as wheel:
                    wheel.writestr(f"{pin.name}/__init__.py", f"name = {pin.wheel!r}\n")
                    wheel.writestr(f"{pin.name}/__init__.pyi", "name: str\n")
                    wheel.writestr(f"{pin.name}/tests/__init__.py", "")
                    wheel.writestr(f"{pin.name}-{pin.version}.dist-info/METADATA", "License\n")
                    wheel.writestr(f"{pin.name}-{pin.version}.dist-info/RECORD", "")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{pin.key} {pin.name} {pin.version} {pin.wheel} {digest}\n")
    (checkout / "zipapp" / "wheels.lock").write_text("".join(lines))
    return checkout


def run_build(
    checkout: Path, *arguments: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(checkout / "build_zipapp.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=checkout,
        timeout=120,
        check=False,
    )


def test_every_key_is_pinned_to_one_wheel_of_each_package() -> None:
    pins = build_zipapp.read_pins(str(LOCK))
    assert list(pins) == build_zipapp.select_keys("all", [], "")
    assert len(pins) == len(PYTHONS) * 6
    for key, wheels in pins.items():
        assert [pin.name for pin in wheels] == PACKAGES
        python, system, machine = key.split("-")[:3]
        for pin in wheels:
            assert pin.wheel.startswith(f"{pin.name}-{pin.version}-")
            assert re.fullmatch("[0-9a-f]{64}", pin.sha256)
            assert f"-{python}-" in pin.wheel or "-abi3-" in pin.wheel
            assert machine in pin.wheel or "universal2" in pin.wheel
            kind = {"linux": "linux", "macos": "macosx"}[system]
            assert kind in pin.wheel
            assert ("musl" in pin.wheel) == ("musl" in key)


def test_a_wheel_has_one_hash_and_no_package_two_versions_on_one_key() -> None:
    hashes: dict[str, str] = {}
    for pins in build_zipapp.read_pins(str(LOCK)).values():
        for pin in pins:
            assert hashes.setdefault(pin.wheel, pin.sha256) == pin.sha256


@pytest.mark.slow
def test_two_folders_umasks_and_pythons_build_the_same_bytes(
    archive: Archive, wheels: Path, tmp_path: Path
) -> None:
    key = build_zipapp.load_bootstrap(str(CHECKOUT)).this_key()
    python, _, platform = key.partition("-")
    others = [find_python(version) for version in PYTHONS if version != f"3.{python[3:]}"]
    other = next((path for path in others if path is not None), sys.executable)
    checkout = make_checkout(tmp_path / "elsewhere, with other dates")
    for path in checkout.rglob("*.py"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o600)
    done = run_build(
        checkout,
        *("--platforms", platform, "--python", f"3.{python[3:]}"),
        *("--wheels", str(wheels), "--output", "again.pyz"),
        python=other,
    )
    assert done.returncode == 0, done.stderr
    assert (checkout / "again.pyz").read_bytes() == archive.path.read_bytes()
    if other == sys.executable:
        pytest.skip("built twice by one Python; this machine has no second one from 3.10 on")


def test_the_zip_has_nothing_in_front_that_its_offsets_do_not_count(archive: Archive) -> None:
    first_line = archive.path.read_bytes().split(b"\n")[0]
    assert first_line == b"#!/usr/bin/env python3"
    with zipfile.ZipFile(archive.path) as file:
        assert min(info.header_offset for info in file.infolist()) == len(first_line) + 1
        assert file.testzip() is None
    unzip = shutil.which("unzip")
    if unzip is not None:
        done = subprocess.run(
            [unzip, "-tqq", str(archive.path)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_every_key_lists_inner_zips_and_files_that_are_there(fake_checkout: Path) -> None:
    done = run_build(fake_checkout, "--platforms", "all", "--output", "all.pyz")
    assert done.returncode == 0, done.stderr
    check_sets(fake_checkout / "all.pyz", build_zipapp.select_keys("all", [], ""), fake_checkout)


@pytest.mark.long
def test_real_wheels_of_both_linux_platforms_go_into_one_file(tmp_path: Path) -> None:
    keys = build_zipapp.select_keys("linux", [], "")
    pins = build_zipapp.read_pins(str(LOCK))
    if any(not (WHEELS / pin.wheel).exists() for key in keys for pin in pins[key]):
        pytest.skip(
            "the wheels of other platforms aren't in wheels/ (37 MB); "
            "fetch them: python3 build_zipapp.py --platforms linux --fetch-only"
        )
    checkout = make_checkout(tmp_path / "checkout")
    output = tmp_path / "linux.pyz"
    build_zipapp.build(str(checkout), keys, str(WHEELS), str(output))
    check_sets(output, keys, checkout)
    assert output.stat().st_size < 26_000_000


def check_sets(output: Path, keys: list[str], checkout: Path) -> None:
    """Check each key's list against the archive's members and the pins."""
    pins = build_zipapp.read_pins(str(checkout / "zipapp" / "wheels.lock"))
    with zipfile.ZipFile(output) as archive:
        members = {info.filename: info for info in archive.infolist()}
        assert archive.read("native/SUPPORTED").decode().split() == keys
        contents = set()
        used = set()
        for key in keys:
            zips: list[str] = []
            files: list[tuple[str, int]] = []
            text = archive.read(f"native/{key}.set").decode()
            boot = build_zipapp.load_bootstrap(str(checkout))
            contents.add(boot.parse_set(text, zips, files))
            assert zips == [build_zipapp.inner_name(pin.wheel) for pin in pins[key]]
            used.update(zips)
            expected = [
                (f"sdk/{name}", members[name].file_size)
                for name in members
                if name.startswith(("tasksprint/", "TaskSprint"))
            ]
            for name in zips:
                assert members[name].compress_type == zipfile.ZIP_STORED
                with archive.open(name) as file, zipfile.ZipFile(file) as inner:
                    infos = inner.infolist()
                    expected += [(f"lib/{info.filename}", info.file_size) for info in infos]
            assert files == sorted(expected)
            names = [name for name, _ in files]
            for pin in pins[key]:
                assert f"lib/{pin.name}-{pin.version}.dist-info/METADATA" in names
            assert not [name for name in names if name.endswith((".pyi", "/RECORD"))]
            assert not [name for name in names if name.startswith("lib/apsw/tests/")]
        assert len(contents) == len(keys)
        inner_zips = {name for name in members if name.endswith(".zip")}
        assert inner_zips == used  # psutil's serves five Pythons, and is there once


def test_the_second_build_needs_neither_pip_nor_network(fake_checkout: Path) -> None:
    pins = build_zipapp.read_pins(str(fake_checkout / "zipapp" / "wheels.lock"))
    key = next(iter(pins))
    build_zipapp.fetch_wheels([key], pins, str(fake_checkout / "wheels"))


def test_a_wheel_with_other_bytes_than_pinned_is_fetched_again(
    fake_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = build_zipapp.read_pins(str(fake_checkout / "zipapp" / "wheels.lock"))
    key, [first, *_] = next(iter(pins.items()))
    (fake_checkout / "wheels" / first.wheel).write_bytes(b"not it")
    fetched: list[Pin] = []
    monkeypatch.setattr(build_zipapp, "find_pip", lambda scratch: ["pip"])
    monkeypatch.setattr(
        build_zipapp, "_download", lambda pip, key, pins, folder: fetched.extend(pins)
    )
    build_zipapp.fetch_wheels([key], pins, str(fake_checkout / "wheels"))
    assert fetched == [first]


@pytest.mark.slow
def test_without_a_registry_the_build_says_what_to_do(fake_checkout: Path) -> None:
    shutil.rmtree(fake_checkout / "wheels")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(fake_checkout),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run(
        [sys.executable, "build_zipapp.py"],
        capture_output=True,
        text=True,
        cwd=fake_checkout,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69
    assert "pip can't get the wheels" in done.stderr
    assert "name it with --wheels" in done.stderr
    assert not (fake_checkout / "tasksprint.pyz").exists()


def test_no_pip_anywhere_is_one_line_that_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_zipapp, "_runs", lambda command: False)
    with pytest.raises(BuildError, match="sudo apt-get install python3-venv"):
        build_zipapp.find_pip("/nowhere")


def test_a_python_without_pip_gets_one_from_a_temporary_venv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[list[str]] = []

    def runs(command: list[str]) -> bool:
        tried.append(command)
        return len(tried) > 1

    monkeypatch.setattr(build_zipapp, "_runs", runs)
    python = str(tmp_path / "venv" / "bin" / "python")
    assert build_zipapp.find_pip(str(tmp_path)) == [python, "-m", "pip"]
    assert tried[1] == [sys.executable, "-m", "venv", str(tmp_path / "venv")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--platforms", "amiga"], "unknown platform 'amiga', expected one of: this, linux"),
        (["--python", "3.9"], "unknown Python version '3.9', expected one of ('3.10',"),
        (["--output", "no/such/folder/x.pyz"], "cannot build 'no/such/folder/x.pyz'"),
    ],
)
def test_wrong_options_end_in_one_sentence(
    fake_checkout: Path, arguments: list[str], said: str
) -> None:
    done = run_build(fake_checkout, *arguments)
    assert done.returncode in (73, 78)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_import_of_a_pruned_module_of_apsw_fails_the_build(fake_checkout: Path) -> None:
    path = fake_checkout / "tasksprint" / "cli" / "main.py"
    path.write_text("import apsw.bestpractice\n")
    done = run_build(fake_checkout)
    assert done.returncode == 65
    assert "tasksprint/cli/main.py:1 imports 'apsw.bestpractice'" in done.stderr


def test_a_checkout_without_the_sdk_modules_is_refused(fake_checkout: Path) -> None:
    (fake_checkout / "TaskSprintNode.py").unlink()
    done = run_build(fake_checkout)
    assert done.returncode == 78
    assert "TaskSprintNode.py'; build from a whole checkout" in done.stderr


def test_editors_leavings_and_bytecode_stay_out(fake_checkout: Path) -> None:
    package = fake_checkout / "tasksprint"
    (package / "__pycache__").mkdir()
    for name in ("__pycache__/x.cpython-311.pyc", "x.py~", ".x.py.swp", "y.orig"):
        (package / name).write_text("")
    (package / "page.html").write_text("<p>")
    names = list(build_zipapp.read_sources(str(fake_checkout)))
    assert "tasksprint/page.html" in names
    assert not [name for name in names if "x" in name.rpartition("/")[2].partition(".")[0]]
    assert not [name for name in names if name.endswith((".orig", ".swp", "~"))]


def test_a_running_program_keeps_the_file_that_a_build_replaces(fake_checkout: Path) -> None:
    output = fake_checkout / "tasksprint.pyz"
    assert run_build(fake_checkout).returncode == 0
    with output.open("rb") as held:
        before = held.read()
        (fake_checkout / "tasksprint" / "__init__.py").write_text('__version__ = "2"\n')
        assert run_build(fake_checkout).returncode == 0
        held.seek(0)
        assert held.read() == before != output.read_bytes()
    assert not list(fake_checkout.glob("*.new-*"))
