"""The other two ways to run it: from a checkout, and as an installed package."""

from __future__ import annotations

import configparser
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tasksprint import installation
from tests.packaging.standin import CHECKOUT, make_checkout

ABOUT = (
    "import json; from tasksprint import installation as i; "
    "print(json.dumps([i.archive_path(), i.sdk_directory(), i.own_command(), i.description()]))"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout")


def start(*command: str, cwd: Path | str = "/", **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-S", *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **environment},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("options", [[], ["-I"], ["-E"]])
def test_the_script_of_a_checkout_starts_from_anywhere(checkout: Path, options: list[str]) -> None:
    script = str(checkout / "tasksprint.py")
    assert start(*options, script, "--version") == (0, "stand-in\n", "")
    assert start(script, "--version", PYTHONSAFEPATH="1") == (0, "stand-in\n", "")
    assert start("tasksprint.py", "--version", cwd=checkout) == (0, "stand-in\n", "")


def test_the_script_of_a_checkout_starts_through_a_link(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "ts").symlink_to(checkout / "tasksprint.py")
    assert start(str(tmp_path / "ts"), "--version") == (0, "stand-in\n", "")


def test_the_script_copied_away_alone_says_what_is_missing(tmp_path: Path) -> None:
    copy = tmp_path / "tasksprint.py"
    shutil.copy(CHECKOUT / "tasksprint.py", copy)
    code, stdout, stderr = start(str(copy), "--version")
    assert (code, stdout) == (78, "")
    assert stderr == (
        f"tasksprint: the folder 'tasksprint' isn't beside {str(copy)!r}; this script starts "
        "a checkout only; to carry one file, build tasksprint.pyz with build_zipapp.py\n"
    )


def test_a_checkout_knows_its_root_and_its_script(checkout: Path) -> None:
    code, stdout, stderr = start("-c", ABOUT, PYTHONPATH=str(checkout))
    assert code == 0, stderr
    archive, sdk, own_command, description = json.loads(stdout)
    assert archive is None
    assert sdk == str(checkout)
    assert own_command[1:] == [str(checkout / "tasksprint.py")]
    assert f"(checkout {checkout}; Python " in description


def test_an_installed_package_gives_user_programs_its_three_names_only(
    checkout: Path, tmp_path: Path
) -> None:
    """All else in site-packages must not come before what the user's Python has."""
    site = tmp_path / "site-packages"
    site.mkdir()
    for name in ("tasksprint", "TaskSprintNode.py", "TaskSprintCoordinator.py"):
        (checkout / name).rename(site / name)
    (site / "orjson.py").write_text("raise SystemExit('the wrong orjson')\n")
    environment = {"PYTHONPATH": str(site), "TMPDIR": str(tmp_path)}
    for _ in range(2):  # The second time, the links are there.
        code, stdout, stderr = start("-c", ABOUT, **environment)
        assert code == 0, stderr
        archive, sdk, own_command, description = json.loads(stdout)
        assert archive is None
        assert sorted(os.listdir(sdk)) == [
            "TaskSprintCoordinator.py",
            "TaskSprintNode.py",
            "tasksprint",
        ]
        assert os.path.samefile(Path(sdk) / "tasksprint", site / "tasksprint")
        assert own_command[-2:] == ["-m", "tasksprint"]
        assert f"(package {site / 'tasksprint'}; Python " in description
    (tmp_path / f"tasksprint-links-{os.geteuid()}").chmod(0o777)
    code, _, stderr = start("-c", ABOUT, **environment)
    assert code == 1
    assert "is not a folder that only this user may write" in stderr
    assert "set TMPDIR to a folder that this user may write" in stderr


def test_this_very_checkout_answers_too() -> None:
    assert installation.archive_path() is None
    assert (Path(installation.sdk_directory()) / "tasksprint" / "installation.py").exists()


@pytest.mark.long
def test_a_wheel_holds_the_package_and_the_two_modules_and_nothing_else(
    checkout: Path, tmp_path: Path
) -> None:
    """And, unlike the wheel, an editable installation: each imports from any folder."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(checkout)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if done.returncode != 0 and "Could not find a version" in done.stderr + done.stdout:
        if os.environ.get("CI") == "true":
            pytest.fail(done.stderr)
        pytest.skip("no package registry can be reached for setuptools")
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in file.namelist() if name.endswith("/METADATA")]
        text = file.read(metadata).decode()
    packaged = {str(path.relative_to(checkout)) for path in checkout.rglob("tasksprint/**/*.py")}
    build = {name for name in packaged if name.startswith("build/")}
    assert names == (packaged - build) | {"TaskSprintNode.py", "TaskSprintCoordinator.py"}
    assert "Version: 0.0.1\n" in text
    assert "Requires-Python: >=3.10\n" in text
    for package in ("apsw", "httptools", "orjson", "psutil"):
        assert f"Requires-Dist: {package}\n" in text
    assert "Requires-Dist: pytest; extra == \"test\"" in text
    subprocess.run(
        [*pip, "install", "--no-deps", "-e", str(checkout)], check=True, timeout=200
    )
    done = subprocess.run(
        [*pip[:1], "-c", "import TaskSprintNode, TaskSprintCoordinator, tasksprint as t; "
         "print(t.__version__)"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert done.stdout == "0.0.1\n"


def test_the_installed_command_exists_and_can_be_called_without_arguments() -> None:
    settings = configparser.ConfigParser()
    settings.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    [script] = settings["options.entry_points"]["console_scripts"].strip().splitlines()
    name, _, target = script.partition(" = ")
    assert name == "tasksprint"
    module, _, function = target.partition(":")
    inspect.signature(getattr(importlib.import_module(module), function)).bind()
