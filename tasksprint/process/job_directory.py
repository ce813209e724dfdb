"""A job as its user has it: a directory with a scheduler, a node and a manifest.

Knows the manifest `tasksprint.json`, and how a job is found without one. Knows how the directory
travels: `pack` makes one archive of it, named by its digest, and archive.py makes a directory
of that on another machine. Doesn't know what the cluster does with the archive in between.

The archive is a gzipped tar. It leaves out everything that differs between two copies of the
same files (owner, times, order). So packing twice gives the same digest, and a cluster keeps
one copy.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasksprint.errors import RemoteProtocolError, UsageError
from tasksprint.process.archive import KEEP_DATA_OUT, LIMITS, Names
from tasksprint.process.command_line import is_of_the_job

__all__ = [
    "ATTACHED_PREFIX",
    "MANIFEST_MEMBERS",
    "MANIFEST_NAME",
    "Manifest",
    "pack",
    "parse_manifest",
    "read_job",
]

MANIFEST_NAME = "tasksprint.json"
ATTACHED_PREFIX = "attached:"
MIB = 1024 * 1024
# Bytes in a job's tar for each member, beside its content: headers, a long name, padding.
_MEMBER_BYTES = 4 * 512

# Left behind in a directory by tools; no program misses it.
_SKIPPED_NAMES = frozenset(
    {
        "__pycache__", ".git", ".hg", ".svn", ".mypy_cache", ".pytest_cache",
        ".ruff_cache", ".DS_Store", ".venv", "node_modules",
    }
)  # fmt: skip
_SKIPPED_SUFFIXES = (".pyc", ".pyo", ".swp", "~")
# node.c beside node is its source, not a second node.
_NOT_PROGRAMS = frozenset(
    {
        "", "bak", "c", "cc", "cfg", "class", "cpp", "cs", "csv", "go", "h", "hpp", "hs",
        "html", "ini", "java", "json", "kt", "log", "md", "ml", "mod", "o", "orig", "rs",
        "rst", "sum", "swift", "tmp", "toml", "ts", "txt", "yaml", "yml", "zig",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parts of a job; the fields of `tasksprint.json`."""

    name: str  # for people; by default the directory's name
    scheduler: tuple[str, ...]  # a file of the job and its arguments
    node: tuple[str, ...]  # the same, or ("attached:NAME",)
    params: str = "{}"  # JSON object, as text: a job may use numbers of any size
    seed: int | None = None  # None: chosen at submit
    interpreter: str | None = None  # runs *.py; None: what runs TaskSprint
    setup: tuple[str, ...] = ()  # run once in the unpacked directory, before the first node
    retries: int | None = None  # of tasks whose start_task names none
    timeout_ms: int | None = None  # the same
    # Variables of its programs, on top of those that are alike everywhere.
    environment: tuple[tuple[str, str], ...] = ()
    check_determinism: bool = False  # run a second copy of its scheduler, and compare

    @property
    def attached(self) -> str | None:
        """The name under which nodes attach by hand, or None: the cluster starts them."""
        first = self.node[0]
        return first[len(ATTACHED_PREFIX) :] if first.startswith(ATTACHED_PREFIX) else None

    def encode(self) -> str:
        """Return the manifest as JSON text with every field that isn't its default."""
        fields: dict[str, Any] = {
            "name": self.name,
            "scheduler": list(self.scheduler),
            "node": list(self.node),
        }
        for name in ("seed", "interpreter", "retries", "timeout_ms"):
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name)
        if self.setup:
            fields["setup"] = list(self.setup)
        if self.environment:
            fields["environment"] = dict(self.environment)
        if self.check_determinism:
            fields["check_determinism"] = True
        head = json.dumps(fields, ensure_ascii=False)
        return head if self.params == "{}" else f'{head[:-1]}, "params": {self.params}}}'


@dataclass(slots=True)
class _Tree:
    """The files of a job: archive name -> file."""

    directory: Path
    files: dict[str, Path] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)


# --- the manifest ---


def read_job(directory: Path) -> Manifest:
    """Return the manifest of a job directory; programs that it doesn't name are found by name.

    Raises:
        UsageError: There is no such directory, the manifest is wrong, or the scheduler
            or node isn't there or isn't clear.
    """
    if directory.is_file():
        raise UsageError(
            f"{str(directory)!r} is a file, expected the job's directory",
            hint=f"name its directory: {str(directory.parent)!r}",
        )
    if not directory.is_dir():
        raise UsageError(
            f"no job directory {str(directory)!r}",
            hint="a job is a directory with a scheduler.* and a node.*",
        )
    path = directory / MANIFEST_NAME
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        text = "{}"
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {str(path)!r}: {error}") from error
    return parse_manifest(text, directory=directory)


def parse_manifest(text: str, *, directory: Path) -> Manifest:
    """Return the manifest that `text` stands for, checked against the files in `directory`."""
    fields = _load(text)
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], _FIELDS, n=1, cutoff=0.5)
        raise UsageError(
            f"{MANIFEST_NAME} has an unknown field {unknown[0]!r}",
            hint=f"did you mean {nearest[0]!r}?"
            if nearest
            else "its fields are " + ", ".join(_FIELDS),
        )
    for name, value in fields.items():
        kinds, expected = _FIELDS[name]
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
            raise _wrong(name, expected, value)
        end = 2**53 if expected == _COUNT[1] else 2**63
        if isinstance(value, int) and not 0 <= value < end:
            raise _wrong(name, expected, value)
    setup = fields.get("setup", ())
    scheduler = _program(fields, "scheduler", directory, checked=not setup)
    node = _program(fields, "node", directory, checked=not setup)
    return Manifest(
        name=fields.get("name") or os.fsencode(directory.resolve().name).decode(errors="replace")
        or "job",
        scheduler=scheduler,
        node=node,
        params=json.dumps(fields.get("params", {}), ensure_ascii=False, allow_nan=False),
        seed=fields.get("seed"),
        interpreter=_interpreter(fields.get("interpreter"), directory, is_made=bool(setup)),
        setup=_words("setup", setup) if setup else (),
        retries=fields.get("retries"),
        timeout_ms=fields.get("timeout_ms"),
        environment=_environment(fields.get("environment", {})),
        check_determinism=fields.get("check_determinism", False),
    )


_INTEGER = (int,), "an integer from 0 to 2**63 - 1"
_COUNT = (int,), "an integer from 0 to 2**53 - 1"
_TEXT = (str,), "a text"
_COMMAND = (str, list), "a file name, or a list of a file name and its arguments"
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": _TEXT,
    "scheduler": _COMMAND,
    "node": _COMMAND,
    "params": ((dict,), "an object"),
    "seed": _INTEGER,
    "interpreter": _TEXT,
    "setup": ((str, list), "a shell command, or a list of a program and its arguments"),
    "retries": _COUNT,
    "timeout_ms": _COUNT,
    "environment": ((dict,), "an object of names of variables and texts"),
    "check_determinism": ((bool,), "true or false"),
}
MANIFEST_MEMBERS = tuple(_FIELDS)


def _load(text: str) -> dict[str, Any]:
    def refuse_constant(constant: str) -> Any:
        raise UsageError(f"{MANIFEST_NAME} has the number {constant}, which JSON doesn't know")

    def read_float(digits: str) -> float:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise UsageError(f"{MANIFEST_NAME} has the number {digits}, which is too large")
        return number

    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise UsageError(f"{MANIFEST_NAME} has {name!r} twice in one object")
            result[name] = value
        return result

    try:
        fields = json.loads(
            text,
            parse_constant=refuse_constant,
            parse_float=read_float,
            object_pairs_hook=refuse_twice,
        )
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{MANIFEST_NAME} isn't JSON: {error}") from error
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{MANIFEST_NAME} has {error.object[error.start : error.end]!r}, half of a "
            "surrogate pair, in a text"
        ) from None
    if not isinstance(fields, dict):
        raise UsageError(
            f"{MANIFEST_NAME} holds {_json_kind(fields)}, expected an object such as "
            '{"scheduler": "scheduler.py", "node": "node.py"}'
        )
    return fields


def _program(
    fields: dict[str, Any], what: str, directory: Path, *, checked: bool
) -> tuple[str, ...]:
    if what not in fields:
        return (_find_program(what, directory),)
    words = _words(what, fields[what])
    first = words[0]
    if what == "node" and first.startswith(ATTACHED_PREFIX):
        if first == ATTACHED_PREFIX or len(words) > 1:
            raise _wrong("node", f"'{ATTACHED_PREFIX}NAME' and nothing else", fields[what])
        return words
    if first.startswith("/") or ".." in first.split("/"):
        raise _wrong(what, "a file inside the job directory", first)
    # A setup command may make the program, and a bare name may be found in PATH.
    if checked and not (directory / first).is_file():
        if len(words) > 1 and "/" not in first and shutil.which(first):
            return words
        present = sorted(path.name for path in directory.iterdir() if path.is_file())
        nearest = difflib.get_close_matches(first, present, n=1)
        raise UsageError(
            f"{MANIFEST_NAME} names the {what} {first!r}, which isn't in {str(directory)!r}",
            hint=f"did you mean {nearest[0]!r}?" if nearest else "",
        )
    return words


def _interpreter(name: str | None, directory: Path, *, is_made: bool) -> str | None:
    if name is None or not is_of_the_job(name):
        return name
    parts = name.split("/")
    if ".." in parts or "\0" in name:
        raise _wrong("interpreter", "a file inside the job directory, or a name in PATH", name)
    hint = (
        "let 'setup' make it on each machine, for example "
        '"setup": "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"'
    )
    if not is_made and any(part in _SKIPPED_NAMES for part in parts):
        raise UsageError(
            f"{MANIFEST_NAME} names the interpreter {name!r}, which doesn't travel with the job",
            hint=hint,
        )
    if not is_made and not (directory / name).is_file():
        raise UsageError(
            f"{MANIFEST_NAME} names the interpreter {name!r}, which isn't in {str(directory)!r}",
            hint=hint,
        )
    return name


def _find_program(what: str, directory: Path) -> str:
    found = []
    for path in sorted(directory.iterdir()):
        stem, dot, suffix = path.name.partition(".")
        runnable = suffix.lower() not in _NOT_PROGRAMS if dot else os.access(path, os.X_OK)
        if stem == what and runnable and path.is_file() and not path.name.endswith("~"):
            found.append(path.name)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{str(directory)!r} has {len(found)} {what}s: {', '.join(map(repr, found))}",
            hint=f"say which in {MANIFEST_NAME}, for example "
            f"{json.dumps({what: found[0]}, ensure_ascii=False)}",
        )
    raise UsageError(
        f"{str(directory)!r} has no {what}",
        hint=f"name a program {what}.py (or .sh, .awk, or any that is executable), "
        f"or say which it is in {MANIFEST_NAME}",
    )


def _words(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        # `setup` is a command line, as in a Makefile; a program is a file name.
        words = ("/bin/sh", "-c", value) if name == "setup" else (value,)
    else:
        words = tuple(value)
    if not words or not all(isinstance(word, str) and word for word in words):
        raise _wrong(name, _FIELDS[name][1], value)
    if any("\0" in word for word in words):
        raise _wrong(name, "no NUL characters", value)
    return words


def _environment(variables: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name:
            raise _wrong("environment", "names without '=' and NUL", variables)
        if not isinstance(value, str) or "\0" in value:
            raise UsageError(
                f"{MANIFEST_NAME} has 'environment' with {name!r}: {_shown(value)}, "
                "expected a text"
            )
    return tuple(variables.items())


def _wrong(name: str, expected: str, value: Any) -> UsageError:
    return UsageError(f"{MANIFEST_NAME} has {name!r}: {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _json_kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return f"{json.dumps(value)[:40]}"


# --- the archive ---


def pack(directory: Path, *, archive_bytes_max: int) -> tuple[bytes, str]:
    """Return the archive of a job directory, and its SHA-256 in hex.

    Leftovers of tools are left out (`__pycache__`, `.git` …). A link to a file
    inside the directory is followed; any other link is refused.

    Raises:
        UsageError: The directory holds what can't travel, or is too large.
    """
    return _pack(_walk(directory), archive_bytes_max)


def _walk(directory: Path) -> _Tree:
    tree = _Tree(directory)
    names = Names()
    inside = directory.resolve()
    waiting = [(directory, "")]
    while waiting:
        folder, prefix = waiting.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name in _SKIPPED_NAMES or entry.name.endswith(_SKIPPED_SUFFIXES):
                continue
            name, path = prefix + entry.name, Path(entry.path)
            try:
                name.encode()
            except UnicodeEncodeError:
                raise UsageError(f"the file name {name!r} isn't UTF-8") from None
            try:
                # No machine would unpack it: so it isn't packed.
                names.add(name, is_directory=entry.is_dir(follow_symlinks=False))
            except RemoteProtocolError as error:
                raise UsageError(f"can't pack {str(directory)!r}: {error}") from error
            if entry.is_symlink():
                resolved = path.resolve()
                if not resolved.is_file() or inside not in resolved.parents:
                    raise UsageError(
                        f"{name!r} in {str(directory)!r} is a link to "
                        f"{os.readlink(path)!r}, which is no file inside the job directory",
                        hint="put a copy there instead, or move it out",
                    )
                tree.files[name] = resolved
            elif entry.is_dir():
                tree.directories.append(name)
                waiting.append((path, name + "/"))
            elif entry.is_file():
                tree.files[name] = path
            else:
                raise UsageError(
                    f"{name!r} in {str(directory)!r} is neither a file nor a directory",
                    hint="move it out of the job directory",
                )
    return tree


def _pack(tree: _Tree, archive_bytes_max: int) -> tuple[bytes, str]:
    sizes = {name: path.stat().st_size for name, path in tree.files.items()}
    members = len(tree.files) + len(tree.directories)
    if sum(sizes.values()) + _MEMBER_BYTES * members > LIMITS.unpacked_bytes_max:
        raise _too_large(
            tree, sizes, f"more than {LIMITS.unpacked_bytes_max} bytes, which no job may unpack to"
        )
    target = _Bounded(archive_bytes_max)
    try:
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted([*tree.directories, *tree.files]):
                _add(tar, name, tree.files.get(name))
                tar.members.clear()  # type: ignore[attr-defined]  # It keeps each for nothing.
    except _TooLarge:
        raise _too_large(
            tree, sizes, f"which don't pack into {archive_bytes_max} bytes (archive_bytes_max)"
        ) from None
    except OSError as error:
        raise UsageError(f"can't pack {str(tree.directory)!r}: {error}") from error
    archive = target.getvalue()
    return archive, hashlib.sha256(archive).hexdigest()


def _too_large(tree: _Tree, sizes: dict[str, int], why: str) -> UsageError:
    largest = max(sizes, key=lambda name: sizes[name], default="")
    return UsageError(
        f"the job in {str(tree.directory)!r} has {sum(sizes.values()) / MIB:.1f} MiB, {why}; the "
        f"largest file is {largest!r} with {sizes.get(largest, 0) / MIB:.1f} MiB",
        hint=KEEP_DATA_OUT,
    )


def _add(tar: tarfile.TarFile, name: str, path: Path | None) -> None:
    member = tarfile.TarInfo(name)  # owner 0, no names, time 0
    if path is None:
        member.type = tarfile.DIRTYPE
        member.mode = 0o700
        tar.addfile(member)
        return
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        member.size = found.st_size
        member.mode = 0o600 | (found.st_mode & stat.S_IXUSR)
        tar.addfile(member, file)


class _TooLarge(Exception):
    """The archive has outgrown its limit; never leaves this module."""


class _Bounded(io.BytesIO):
    """A buffer that refuses to grow beyond its limit, so a huge directory fails early."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__()
        self._bytes_max = bytes_max

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > self._bytes_max:
            # Nothing more is taken, so closing the archive on the way out can't fail anew.
            self._bytes_max, over = 1 << 62, self._bytes_max
            raise _TooLarge(over)
        return super().write(data)
