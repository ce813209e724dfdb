"""The bootstrap's seldom half: unpack the archive into a cache, or say why none will do.

`_tasksprint_boot` tells how the cache is laid out and decides when this is needed. Many
processes may be here at once; the lock lets one work while the others wait and look
again. Where files can't be locked, each unpacks and renaming decides.
"""

import io
import os
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator

import _tasksprint_boot as boot

__all__ = ["restore", "unpack_somewhere", "wrong_key_message"]

# A killed process's leftovers are swept after this: far longer than any unpacking.
LEFTOVER_S = 3600
# What no process used for so long, and none uses now, is removed.
UNUSED_S = 30 * 24 * 3600
# How long to wait for another process that unpacks: it takes less than a second, but it
# may be stopped. Without the lock, renaming decides.
LOCK_WAIT_S = 20

EX_CANTCREAT = 73


class Damaged(Exception):
    """The archive can't be read, or isn't what it was."""


def wrong_key_message(key: str, supported: list[str]) -> str:
    """Return the sentence for a Python or platform that isn't built in."""
    platforms: dict[str, list[str]] = {}
    for name in supported:
        python, _, platform = name.partition("-")
        platforms.setdefault(platform, []).append(f"{python[2]}.{python[3:]}")
    built_for = "\n".join(
        f"  {platform}: CPython {', '.join(versions)}" for platform, versions in platforms.items()
    )
    return (
        f"this file isn't built for {key} ({sys.executable}); it is built for:\n{built_for}\n"
        "start it with one of these, or run build_zipapp.py with the Python that you have here"
    )


def unpack_somewhere() -> str:
    """Unpack into the first place that takes it and return the place, or exit."""
    problems: list[tuple[str, str]] = []
    chosen = boot.places()
    for root, parents, source in chosen:
        if root in [place for place, _ in problems]:
            continue  # TMPDIR is often /tmp itself.
        try:
            _make(root, parents)
            problem = boot.refusal(root, source)
            if problem is None:
                _unpack_into(root)
                if boot.hold(root):
                    break
                problem = "what was unpacked there was changed at once"
        except OSError as error:
            problem = error.strerror or str(error)
        except Damaged as error:
            text = f"{boot.archive!r} can't be unpacked: {error}; copy or build it again"
            boot.stop(boot.EX_CONFIG, text)
        problems.append((root, problem))
    else:
        tried = "\n".join(f"  {place}: {problem}" for place, problem in problems)
        megabytes = sum(size for _, size in boot.files) // 1_000_000 + 1
        boot.stop(
            EX_CANTCREAT,
            f"no folder takes the unpacked program; tried:\n{tried}\n"
            f"set TASKSPRINT_CACHE to a folder of your own, with {megabytes} MB free, on a "
            "disk that isn't mounted noexec",
        )
    if problems and chosen[0][2] == "TASKSPRINT_CACHE":
        place, problem = problems[0]
        sys.stderr.write(
            f"tasksprint: TASKSPRINT_CACHE {place!r} can't be used: {problem}; using {root!r}\n"
        )
    return root


def restore(root: str) -> None:
    """Unpack anew into the cache that this process runs from.

    Raises:
        OSError: The cache doesn't take it, or the archive doesn't give it.
    """
    try:
        _make(root, parents=0)
        _unpack_into(root)
    except Damaged as error:
        raise OSError(f"{boot.archive!r} can't be unpacked: {error}") from error
    boot.hold(root)


def _make(root: str, parents: int) -> None:
    """Make the folder, for this user alone, and up to so many of its parents."""
    missing: list[str] = []
    folder = root
    while not os.path.lexists(folder) and len(missing) <= parents:
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass  # Another process starts just now.


def _unpack_into(root: str) -> None:
    """Bring this archive's content into the cache, whole, unless it is by now.

    Raises:
        OSError: The folder doesn't take it.
        Damaged: The archive doesn't give it.
    """
    lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not boot.try_lock(lock, shared=False, unlockable=True):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        _sweep(root)
        target = os.path.join(root, boot.content)
        # The second look: of many that start at once, one unpacks and the others wait.
        if not boot.is_whole(target, boot.files):
            new = os.path.join(root, f".new-{os.getpid()}-{os.urandom(4).hex()}")
            try:
                _write_files(new)
                _rename(new, target, root)
            finally:
                _remove(new)
        os.close(os.open(f"{target}.used", os.O_RDWR | os.O_CREAT, 0o600))
    finally:
        os.close(lock)


def _write_files(new: str) -> None:
    os.mkdir(new, 0o700)
    folders = {new}
    written = []
    for name, data in _read_files():
        path = os.path.join(new, name)
        folder = os.path.dirname(path)
        if folder not in folders:
            os.makedirs(folder, exist_ok=True)
            folders.add(folder)
        with open(path, "wb") as file:
            file.write(data)
            # A power cut must not leave files of the right size with nothing in them.
            file.flush()
            os.fsync(file.fileno())
        os.utime(path, (boot.FILE_DATE, boot.FILE_DATE))
        written.append((name, len(data)))
    if sorted(written) != boot.files:
        raise Damaged("its files aren't those that it lists")


def _read_files() -> Iterator[tuple[str, bytes]]:
    """Yield (path below the content folder, bytes) of each file in the archive."""
    try:
        with zipfile.ZipFile(boot.archive) as outer:
            text = outer.read(f"native/{boot.key}.set").decode()
            if boot.parse_set(text, [], []) != boot.content:
                raise Damaged("another build has taken its place")
            for name, _ in boot.files:
                if name.startswith("sdk/"):
                    yield name, outer.read(name.removeprefix("sdk/"))
            for inner_name in boot.zips:
                with zipfile.ZipFile(io.BytesIO(outer.read(inner_name))) as inner:
                    for name in inner.namelist():
                        yield f"lib/{name}", inner.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise Damaged(error) from error


def _rename(new: str, target: str, root: str) -> None:
    """Put the new folder in the place of what is there, if anything."""
    try:
        os.rename(new, target)
        return
    except OSError:
        if boot.is_whole(target, boot.files):
            return  # No lock worked here, and another process was first.
    # Aside and not over it: processes that run from it keep what they have open.
    old = os.path.join(root, f".old-{os.getpid()}-{os.urandom(4).hex()}")
    os.rename(target, old)
    os.rename(new, target)
    _remove(old)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def _sweep(root: str) -> None:
    """Remove what killed processes left, and content that nobody has used for long."""
    now = time.time()
    for name in os.listdir(root):
        path = os.path.join(root, name)
        try:
            age = now - os.lstat(path).st_mtime
            if name.startswith((".new-", ".old-")) and age > LEFTOVER_S:
                _remove(path)
            elif name.endswith(".used") and age > UNUSED_S and name != f"{boot.content}.used":
                _remove_unless_used(path)
        except OSError:
            continue  # Another process sweeps too.


def _remove_unless_used(used: str) -> None:
    file = os.open(used, os.O_RDWR)
    try:
        if boot.try_lock(file, shared=False, unlockable=False):
            _remove(used.removesuffix(".used"))
            os.unlink(used)
    finally:
        os.close(file)
