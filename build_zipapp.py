#!/usr/bin/env python3
"""Build tasksprint.pyz: one file that runs any role on every machine it was built for.

    python3 build_zipapp.py                        for this Python on this machine
    python3 build_zipapp.py --platforms linux      Linux x86_64 and aarch64, Python 3.10 to 3.14
    python3 build_zipapp.py --platforms all        and macOS, and musl

Needs the standard library and pip, which downloads the wheels that zipapp/wheels.lock
names, once, into a folder; after that no network is needed. The same sources and
pins give the same bytes, whoever builds them where.

The file is a zip that Python can run. It holds the bootstrap (zipapp/), the sources,
and one small inner zip for each wheel; a list for each supported Python and platform
(its "key") says which inner zips and files belong to it. What the first start does
with that is told in zipapp/_tasksprint_boot.py.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["BuildError", "Pin", "build", "main"]

HERE = os.path.dirname(os.path.abspath(__file__))

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

# What pip is told for each platform. pip takes these tags literally: the newest alone
# would miss, or silently find an older version of, packages that name an older one.
PIP_PLATFORMS = {
    "linux-x86_64-glibc": (
        "manylinux_2_28_x86_64",
        "manylinux_2_17_x86_64",
        "manylinux2014_x86_64",
        "manylinux_2_12_x86_64",
        "manylinux2010_x86_64",
    ),
    "linux-aarch64-glibc": (
        "manylinux_2_28_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ),
    "macos-arm64": ("macosx_11_0_arm64",),
    "macos-x86_64": ("macosx_10_15_x86_64",),
    "linux-x86_64-musl": ("musllinux_1_2_x86_64", "musllinux_1_1_x86_64"),
    "linux-aarch64-musl": ("musllinux_1_2_aarch64", "musllinux_1_1_aarch64"),
}

GROUPS = {
    "linux": ("linux-x86_64-glibc", "linux-aarch64-glibc"),
    "macos": ("macos-arm64", "macos-x86_64"),
    "all": tuple(PIP_PLATFORMS),
}

# The modules at the top that go into the archive beside the package.
TOP_MODULES = ("TaskSprintNode.py", "TaskSprintCoordinator.py")

# What a wheel holds that no program of ours loads: tests, command-line tools, type
# stubs, sources of compiled code, pip's own records. Licences and METADATA stay.
PRUNED_FOLDERS = ("apsw/tests/", "apsw/sqlite_extra_binaries/", "psutil/tests/")
PRUNED_SUFFIXES = (".pyi", ".pyx", ".pxd", ".c", ".h", ".pyc", "/RECORD", "/WHEEL")
# A third of apsw, needed only by its helper modules; `check_imports` keeps us off them.
PRUNED_PREFIXES = ("apsw/_unicode.",)

# Everything has this date: 1980 is where zip's calendar begins.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)

EX_DATAERR = 65
EX_UNAVAILABLE = 69
EX_CONFIG = 78


class BuildError(Exception):
    """The archive can't be built; the message says what to do."""

    def __init__(self, message: str, exit_code: int = EX_CONFIG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Pin:
    """One wheel that a key needs."""

    key: str  # for example cp312-linux-aarch64-glibc
    name: str
    version: str
    wheel: str  # its file name; several keys may share one wheel
    sha256: str


# --- what to build for ---------------------------------------------------------------


def load_bootstrap(folder: str) -> types.ModuleType:
    """Return the bootstrap's module: it knows the keys, and the build must agree with it."""
    module = types.ModuleType("_tasksprint_boot")
    path = os.path.join(folder, "zipapp", "_tasksprint_boot.py")
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    return module


def key_of(python: str, platform: str) -> str:
    """Return the key of one CPython version on one platform."""
    return f"cp{python.replace('.', '')}-{platform}"


def select_keys(platforms: str, pythons: Sequence[str], this_key: str) -> list[str]:
    """Return the keys to build for, in a fixed order.

    Args:
        platforms: "this", a group, or platform names with commas between them.
        pythons: Versions such as "3.12"; none means this Python for "this", and all
            of them otherwise.
        this_key: The key of the Python that runs.
    """
    for python in pythons:
        if python not in PYTHONS:
            raise BuildError(f"unknown Python version {python!r}, expected one of {PYTHONS}")
    if platforms == "this":
        this_platform = this_key.partition("-")[2]
        if not pythons:
            return [this_key]
        return [key_of(python, this_platform) for python in PYTHONS if python in pythons]
    chosen: list[str] = []
    for name in platforms.split(","):
        if name in GROUPS:
            chosen.extend(GROUPS[name])
        elif name in PIP_PLATFORMS:
            chosen.append(name)
        else:
            known = ", ".join(("this", *GROUPS, *PIP_PLATFORMS))
            raise BuildError(f"unknown platform {name!r}, expected one of: {known}")
    return [
        key_of(python, platform)
        for platform in PIP_PLATFORMS
        if platform in chosen
        for python in PYTHONS
        if not pythons or python in pythons
    ]


def read_pins(path: str) -> dict[str, list[Pin]]:
    """Return the pins of every key, from the lock file."""
    pins: dict[str, list[Pin]] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            if not fields or fields[0].startswith("#"):
                continue
            if len(fields) != 5:
                raise BuildError(f"{path}:{number}: expected 5 fields, found {len(fields)}")
            pin = Pin(*fields)
            pins.setdefault(pin.key, []).append(pin)
    return pins


# --- the wheels ----------------------------------------------------------------------


def fetch_wheels(keys: Iterable[str], pins: dict[str, list[Pin]], folder: str) -> None:
    """Bring every wheel of these keys into the folder, those that aren't there yet.

    Raises:
        BuildError: There is no pip, or it can't get a wheel.
    """
    os.makedirs(folder, exist_ok=True)
    pip: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tasksprint-pip-") as scratch:
        for key in keys:
            missing = [pin for pin in pins[key] if not _has(folder, pin)]
            if not missing:
                continue
            pip = pip or find_pip(scratch)
            names = ", ".join(f"{pin.name} {pin.version}" for pin in missing)
            print(f"{key}: fetching {names}", file=sys.stderr, flush=True)
            _download(pip, key, missing, folder)


def _has(folder: str, pin: Pin) -> bool:
    try:
        with open(os.path.join(folder, pin.wheel), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == pin.sha256
    except FileNotFoundError:
        return False


def _download(pip: list[str], key: str, pins: list[Pin], folder: str) -> None:
    lines = [f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n" for pin in pins]
    # Beside the folder's files, so that each moves there whole, by a rename.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        requirements = os.path.join(scratch, "requirements.txt")
        with open(requirements, "w", encoding="utf-8") as file:
            file.writelines(lines)
        pip_download(pip, key, ["--require-hashes", "-r", requirements], scratch)
        for pin in pins:
            source = os.path.join(scratch, pin.wheel)
            if not os.path.exists(source):
                found = sorted(os.listdir(scratch))
                raise BuildError(f"{key}: pip brought {found}, expected {pin.wheel!r}")
            os.replace(source, os.path.join(folder, pin.wheel))


def pip_download(pip: list[str], key: str, arguments: list[str], folder: str) -> None:
    """Run `pip download` for one key.

    Raises:
        BuildError: With the last lines of what pip said.
    """
    python, _, platform = key.partition("-")
    command = [*pip, "download", "--quiet", "--no-input", "--no-deps", "--dest", folder]
    command += ["--disable-pip-version-check", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", f"{python[2]}.{python[3:]}"]
    for tag in PIP_PLATFORMS[platform]:
        command += ["--platform", tag]
    done = subprocess.run(
        command + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = "\n  ".join(done.stdout.strip().splitlines()[-6:])
        raise BuildError(
            f"{key}: pip can't get the wheels:\n  {said}\n"
            "check the network, or copy the folder of wheels from a machine that has them "
            "and name it with --wheels",
            EX_UNAVAILABLE,
        )


def find_pip(scratch: str) -> list[str]:
    """Return a command line that runs pip: this Python's, or that of a venv made for it."""
    own = [sys.executable, "-m", "pip"]
    if _runs([*own, "--version"]):
        return own
    folder = os.path.join(scratch, "venv")
    venv = [os.path.join(folder, "bin", "python"), "-m", "pip"]
    if _runs([sys.executable, "-m", "venv", folder]) and _runs([*venv, "--version"]):
        return venv
    raise BuildError(
        "this Python has neither pip nor a venv to put it in; "
        "on Debian and Ubuntu: sudo apt-get install python3-venv"
    )


def _runs(command: list[str]) -> bool:
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


def repack(path: str) -> tuple[bytes, dict[str, bytes]]:
    """Return a wheel as a small inner zip, and its files by name."""
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith("/") or name.startswith(PRUNED_FOLDERS + PRUNED_PREFIXES):
                continue
            if not name.endswith(PRUNED_SUFFIXES):
                files[name] = wheel.read(name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        for name, data in files.items():
            _add(inner, name, data)
    return buffer.getvalue(), files


# --- the sources ---------------------------------------------------------------------


def read_sources(folder: str) -> dict[str, bytes]:
    """Return the package and the modules beside it, by their names in the archive."""
    paths = [os.path.join(folder, name) for name in TOP_MODULES]
    for parent, folders, names in os.walk(os.path.join(folder, "tasksprint")):
        folders[:] = [name for name in folders if name != "__pycache__" and name[0] != "."]
        paths += [
            os.path.join(parent, name)
            for name in names
            if name[0] != "." and not name.endswith((".pyc", ".orig", ".rej", "~"))
        ]
    sources: dict[str, bytes] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                name = os.path.relpath(path, folder).replace(os.sep, "/")
                sources[name] = file.read()
        except FileNotFoundError:
            raise BuildError(f"no {path!r}; build from a whole checkout") from None
    if "tasksprint/__init__.py" not in sources:
        raise BuildError(f"no package 'tasksprint' in {folder!r}; build from a whole checkout")
    return dict(sorted(sources.items()))


def check_imports(sources: dict[str, bytes]) -> None:
    """Refuse sources that import a module of apsw which needs what was pruned.

    Raises:
        BuildError: Naming the file and the line.
    """
    for name, text in sources.items():
        if not name.endswith(".py") or b"apsw" not in text:
            continue  # (To parse all takes longer than all else.)
        for line, module in imported_modules(ast.parse(text, name)):
            if module.startswith("apsw."):
                raise BuildError(
                    f"{name}:{line} imports {module!r}, which isn't in the archive: only "
                    "'apsw' itself is; drop PRUNED_PREFIXES in build_zipapp.py to allow it",
                    EX_DATAERR,
                )


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every module that a syntax tree imports by full name.

    `from apsw import ext` yields both 'apsw' and, as ext may be a module, 'apsw.ext';
    a name in capitals can't be one.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                if alias.name.islower():
                    yield node.lineno, f"{node.module}.{alias.name}"


# --- the archive ---------------------------------------------------------------------


def build(folder: str, keys: Sequence[str], wheels: str, output: str) -> str:
    """Write the archive and return its SHA-256.

    Args:
        folder: The checkout.
        keys: What to build for.
        wheels: The folder of wheels, complete.
        output: Written beside its place and renamed: processes that still run from an
            older file of that name keep it.
    """
    pins = read_pins(os.path.join(folder, "zipapp", "wheels.lock"))
    sources = read_sources(folder)
    check_imports(sources)
    members: dict[str, bytes] = {}
    for name in ("__main__.py", "_tasksprint_boot.py", "_tasksprint_unpack.py"):
        with open(os.path.join(folder, "zipapp", name), "rb") as file:
            members[name] = file.read()
    repacked: dict[str, tuple[bytes, dict[str, bytes]]] = {}
    lists: dict[str, bytes] = {}
    for key in keys:
        for pin in pins[key]:
            if pin.wheel not in repacked:
                repacked[pin.wheel] = repack(os.path.join(wheels, pin.wheel))
        needed = [pin.wheel for pin in pins[key]]
        lists[f"native/{key}.set"] = make_set(
            key, {wheel: repacked[wheel][1] for wheel in needed}, sources
        )
    members["native/SUPPORTED"] = "".join(f"{key}\n" for key in keys).encode()
    members.update(lists)
    inner = {inner_name(wheel): data for wheel, (data, _) in sorted(repacked.items())}
    with open(os.path.join(folder, "LICENSE"), "rb") as file:
        sources["LICENSE"] = file.read()
    return write_archive(output, plain={**members, **inner}, packed=sources)


def inner_name(wheel: str) -> str:
    """Return the name that a wheel's inner zip has in the archive."""
    return f"native/{wheel.removesuffix('.whl')}.zip"


def make_set(key: str, wheels: dict[str, dict[str, bytes]], sources: dict[str, bytes]) -> bytes:
    """Return what a key's list says: a content id, inner zips, and files with their sizes.

    Plain lines, as the bootstrap reads them at every start without importing anything.
    """
    lines = [f"zip {inner_name(wheel)}" for wheel in wheels]
    digest = hashlib.sha256(key.encode())
    files = {f"sdk/{name}": data for name, data in sources.items()}
    for content in wheels.values():
        files.update({f"lib/{name}": data for name, data in content.items()})
    for name, data in sorted(files.items()):
        lines.append(f"{name} {len(data)}")
        digest.update(f"\n{name} {hashlib.sha256(data).hexdigest()}".encode())
    return "\n".join([f"content {digest.hexdigest()[:20]}", *lines, ""]).encode()


def write_archive(output: str, *, plain: dict[str, bytes], packed: dict[str, bytes]) -> str:
    """Write a zip with a first line that starts it, and return its SHA-256.

    Args:
        output: The file to write.
        plain: Members to store as they are: read at every start, or packed already.
        packed: Members to compress.
    """
    new = f"{output}.new-{os.getpid()}"
    try:
        with open(new, "wb") as file:
            # Before the zip and through the same file: put in front of a finished zip,
            # it would make every offset in it wrong.
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in plain.items():
                    _add(archive, name, data, zipfile.ZIP_STORED)
                for name, data in packed.items():
                    _add(archive, name, data)
        os.chmod(new, 0o755)
        with open(new, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        os.replace(new, output)
    finally:
        if os.path.exists(new):
            os.unlink(new)
    return digest


def _add(
    archive: zipfile.ZipFile, name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED
) -> None:
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.create_system = 3  # Unix, on whatever system this runs.
    info.external_attr = 0o100644 << 16
    info.compress_type = method
    archive.writestr(info, data, compresslevel=9)


# --- the command ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Build as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Build tasksprint.pyz, one file that runs every role of TaskSprint."
    )
    parser.add_argument(
        "--platforms",
        default="this",
        metavar="NAMES",
        help="this (default), linux, macos, all, or platforms with commas between them: "
        + ", ".join(PIP_PLATFORMS),
    )
    parser.add_argument(
        "--python",
        default="",
        metavar="VERSIONS",
        help=f"Python versions with commas between them, of {', '.join(PYTHONS)} "
        "(default: the running one for `this`, else all)",
    )
    parser.add_argument("--output", default="tasksprint.pyz", metavar="FILE")
    parser.add_argument(
        "--wheels",
        default=os.path.join(HERE, "wheels"),
        metavar="DIR",
        help="where wheels are kept between builds (default: wheels/ beside this script)",
    )
    parser.add_argument(
        "--fetch-only", action="store_true", help="only bring the wheels into their folder"
    )
    options = parser.parse_args(arguments)
    try:
        pythons = [version for version in options.python.split(",") if version]
        keys = select_keys(options.platforms, pythons, load_bootstrap(HERE).this_key())
        pins = read_pins(os.path.join(HERE, "zipapp", "wheels.lock"))
        for key in keys:
            if key not in pins:
                raise BuildError(
                    f"no wheels are known for {key} ({sys.executable}); build with CPython "
                    f"{PYTHONS[0]} to {PYTHONS[-1]} on Linux (glibc 2.28 or newer, or musl) "
                    "or macOS, or name platforms with --platforms"
                )
        fetch_wheels(keys, pins, options.wheels)
        if options.fetch_only:
            return 0
        digest = build(HERE, keys, options.wheels, options.output)
    except BuildError as error:
        print(f"build_zipapp.py: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"build_zipapp.py: cannot build {options.output!r}: {error}", file=sys.stderr)
        return 73  # EX_CANTCREAT
    size = os.path.getsize(options.output) / 1e6
    print(f"{options.output}: {size:.1f} MB, sha256 {digest}")
    for platform in PIP_PLATFORMS:
        built = [python for python in PYTHONS if key_of(python, platform) in keys]
        if built:
            print(f"  {platform}: Python {', '.join(built)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
