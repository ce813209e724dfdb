"""The bootstrap of tasksprint.pyz: unpack once, look quickly ever after, put it on the path.

Native code can't be loaded from inside a zip, and sources in a zip are compiled anew at
every start. So the first start unpacks both into a cache folder:

    <cache>/lock              held while something here changes
    <cache>/<content>/sdk/    our package and the two SDK modules: for users' PYTHONPATH too
    <cache>/<content>/lib/    third-party packages: on this program's own path only
    <cache>/<content>.used    held, shared, by each process that runs from it; dated by use
    <cache>/.new-*, .old-*    on the way in, on the way out

<content> is a digest of every byte that is unpacked, so one cache serves many builds and
Pythons. Every start looks at each file's size and date; whatever was truncated, deleted
or overwritten is unpacked anew. A new folder appears by one rename, so a process that is
killed at any moment leaves at worst a .new-* folder, swept later.

This module runs before anything of TaskSprint can be imported, at every start: it knows
nothing of TaskSprint but names, and imports next to nothing until it must unpack.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from zipimport import zipimporter

    __loader__: zipimporter

__all__ = ["archive", "content", "key", "sdk_directory", "start", "this_key"]

# What this process runs from; set by `start`.
archive = ""  # the absolute path of the .pyz, whatever the working directory becomes
key = ""
content = ""

# Every unpacked file has this date (1980, as in the zip), so that one that was written
# to later shows, even with its old size.
_DATE = 315532800

# A killed process's leftovers are swept after this: far longer than any unpacking.
_LEFTOVER_S = 3600
# What no process used for so long, and none uses now, is removed.
_UNUSED_S = 30 * 24 * 3600
# How often a start renews the date of last use: seldom, it's a write.
_USE_RENEWED_S = 24 * 3600
# How long to wait for another process that unpacks: it takes less than a second, but it
# may be stopped. Without the lock, renaming decides.
_LOCK_WAIT_S = 20

_EX_CANTCREAT = 73
_EX_CONFIG = 78

# For a folder that the operator named, all its missing parents are made too.
_ANY_PARENTS = 99


class _Plan:
    """What a key's list in the archive says."""

    def __init__(self, text: str) -> None:
        self.content = ""
        self.zips: list[str] = []  # names in the archive
        self.files: list[tuple[str, int]] = []  # (path below the content folder, size)
        for line in text.splitlines():
            head, _, tail = line.rpartition(" ")
            if head == "content":
                self.content = tail
            elif head == "zip":
                self.zips.append(tail)
            else:
                self.files.append((head, int(tail)))


class _Damaged(Exception):
    """The archive can't be read, or isn't what it was."""


_plan = _Plan("")  # what belongs into the cache
_root = ""  # the cache that this process uses
_held = -1  # the open file that says so to others, for as long as this process lives


def this_key() -> str:
    """Return what decides which native code fits: Python, system, processor, C library."""
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    if sys.implementation.name == "cpython":
        # The flags tell builds with another binary interface: "t" has no global lock.
        python = f"cp{version}{getattr(sys, 'abiflags', '')}"
    else:
        python = f"{sys.implementation.name}{version}"
    if not hasattr(os, "uname"):
        return f"{python}-{sys.platform}"
    machine = os.uname().machine
    if sys.maxsize < 2**32:
        machine += "_32bit"  # a 32-bit Python on a 64-bit kernel
    if sys.platform == "darwin":
        return f"{python}-macos-{machine}"
    if sys.platform != "linux":
        return f"{python}-{sys.platform}-{machine}"
    return f"{python}-linux-{machine}-{_c_library()}"


def _c_library() -> str:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return "musl"
    if name != "glibc":
        return "musl"
    major, minor = version.split(".")[:2]
    # SQLite's wheels need 2.28; anything older is a key of its own, which no archive has.
    return "glibc" if (int(major), int(minor)) >= (2, 28) else f"glibc{version}"


def start() -> None:
    """Make everything importable, or say why not and exit."""
    global archive, key, content, _plan
    archive = os.path.abspath(__loader__.archive)
    key = this_key()
    try:
        _plan = _Plan(__loader__.get_data(f"native/{key}.set").decode())
    except OSError:
        _exit(_EX_CONFIG, _wrong_key_message())
    content = _plan.content
    try:
        problems = _find_place()
    except _Damaged as error:
        _exit(_EX_CONFIG, f"{archive!r} can't be unpacked: {error}; copy or build it again")
    if problems:
        tried = "\n".join(f"  {place}: {problem}" for place, problem in problems)
        megabytes = sum(size for _, size in _plan.files) // 1_000_000 + 1
        _exit(
            _EX_CANTCREAT,
            f"no folder takes the unpacked program; tried:\n{tried}\n"
            f"set TASKSPRINT_CACHE to a folder of your own, with {megabytes} MB free, on a "
            "disk that isn't mounted noexec",
        )
    # First, before PYTHONPATH: a user's own package of some name must not replace the one
    # that this program was tested with. The archive itself has done its part.
    rest = [entry for entry in sys.path if os.path.abspath(entry) != archive]
    sys.path[:] = [os.path.join(_root, content, part) for part in ("sdk", "lib")] + rest


def sdk_directory() -> str:
    """Return the folder with the SDK, unpacked anew if a cleaner took it away.

    Raises:
        OSError: It is gone, and can't be made again.
    """
    folder = os.path.join(_root, content)
    if not _is_whole(folder, [file for file in _plan.files if file[0].startswith("sdk/")]):
        try:
            _make(_root, 0)
            _unpack_into(_root)
        except _Damaged as error:
            raise OSError(f"{archive!r} can't be unpacked: {error}") from error
        _hold(_root)
    return os.path.join(folder, "sdk")


def _wrong_key_message() -> str:
    platforms: dict[str, list[str]] = {}
    for supported in __loader__.get_data("native/SUPPORTED").decode().split():
        python, _, platform = supported.partition("-")
        platforms.setdefault(platform, []).append(f"{python[2]}.{python[3:]}")
    built_for = "\n".join(
        f"  {platform}: CPython {', '.join(versions)}" for platform, versions in platforms.items()
    )
    return (
        f"this file isn't built for {key} ({sys.executable}); it is built for:\n{built_for}\n"
        "start it with one of these, or run build_zipapp.py with the Python that you have here"
    )


def _exit(code: int, text: str) -> None:
    sys.stderr.write(f"tasksprint: {text}\n")
    sys.exit(code)


# --- where ---------------------------------------------------------------------------


def _places() -> list[tuple[str, int, str]]:
    """Return (folder, how many parents may be made, which variable named it), in order."""
    places = []
    chosen = os.environ.get("TASKSPRINT_CACHE", "")
    if chosen:
        places.append((os.path.abspath(chosen), _ANY_PARENTS, "TASKSPRINT_CACHE"))
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):
        places.append((os.path.join(folder, "tasksprint"), _ANY_PARENTS, "XDG_CACHE_HOME"))
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        places.append((os.path.join(home, ".cache", "tasksprint"), 1, "HOME"))
    name = f"tasksprint-{os.geteuid()}"
    for folder in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isabs(folder):
            places.append((os.path.join(folder, name), 0, ""))
    places.append((os.path.join(os.path.dirname(archive), f".{name}"), 0, ""))
    # TMPDIR is often /tmp itself.
    return list({os.path.normpath(place[0]): place for place in reversed(places)}.values())[::-1]


def _find_place() -> list[tuple[str, str]]:
    """Settle on a cache that holds everything.

    Returns:
        Nothing; or, if there is no such cache, each place with what is wrong there.
    """
    global _root
    places = _places()
    # Two rounds. Were a full disk's folder tried first each time, every start would
    # unpack in vain before it reached the place that had worked.
    for root, _, source in places:
        if _refusal(root, source) is None and _hold(root):
            _root = root
            return []
    problems = []
    for root, parents, source in places:
        try:
            _make(root, parents)
            problem = _refusal(root, source)
            if problem is None:
                _unpack_into(root)
                if _hold(root):
                    _root = root
                    break
                problem = "what was unpacked there was changed at once"
        except OSError as error:
            problem = error.strerror or str(error)
        problems.append((root, problem))
    else:
        return problems
    if problems and places[0][2] == "TASKSPRINT_CACHE":
        place, problem = problems[0]
        sys.stderr.write(
            f"tasksprint: TASKSPRINT_CACHE {place!r} can't be used: {problem}; using {_root!r}\n"
        )
    return []


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


def _refusal(root: str, source: str) -> str | None:
    """Return why native code from this folder can't be trusted or run, or None."""
    try:
        state = os.lstat(root)
        if state.st_mode & 0o170000 != 0o040000:
            return "it is a link or a file, expected a folder"
        me = os.geteuid()
        if state.st_uid != me:
            return f"it belongs to user {state.st_uid}, this is user {me}"
        if state.st_mode & 0o022:
            return f"others may write there (mode {state.st_mode & 0o7777:04o}, expected 0700)"
        if source == "HOME":
            # Under sudo, HOME may still be that of the user, who couldn't use our files.
            owner = os.stat(os.environ["HOME"]).st_uid
            if owner != me:
                return f"HOME belongs to user {owner}, this is user {me}"
        if os.statvfs(root).f_flag & getattr(os, "ST_NOEXEC", 0):
            return "it is mounted noexec"
    except OSError as error:
        return error.strerror or str(error)
    return None


# --- what is there -------------------------------------------------------------------


def _is_whole(folder: str, files: list[tuple[str, int]]) -> bool:
    """Tell whether every file is there with its size and date."""
    lstat = os.lstat
    prefix = f"{folder}/"
    try:
        for name, size in files:
            state = lstat(prefix + name)
            if (
                state.st_size != size
                or int(state.st_mtime) != _DATE
                or state.st_mode & 0o170000 != 0o100000
            ):
                return False
    except OSError:
        return False
    return True


def _hold(root: str) -> bool:
    """Claim the content in this cache for this process, and tell whether it is whole.

    Claimed before the look at the files: who removes unused content claims it alone first.
    """
    global _held
    path = os.path.join(root, _plan.content)
    try:
        held = os.open(f"{path}.used", os.O_RDONLY)
    except OSError:
        return False
    if not (_try_lock(held, shared=True, unlockable=True) and _is_whole(path, _plan.files)):
        os.close(held)
        return False
    if _held >= 0:
        os.close(_held)
    _held = held
    import time

    if abs(time.time() - os.fstat(held).st_mtime) > _USE_RENEWED_S:
        try:
            os.utime(f"{path}.used")
        except OSError:
            pass  # A cache on a disk that is now read-only still serves.
    return True


def _try_lock(file: int, *, shared: bool, unlockable: bool) -> bool:
    """Lock an open file if nobody is in the way.

    Args:
        file: Its descriptor.
        shared: Others may hold it so too.
        unlockable: The answer where files can't be locked (some network file systems).
    """
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unlockable
    return True


# --- unpacking -----------------------------------------------------------------------


def _unpack_into(root: str) -> None:
    """Bring this archive's content into the cache, whole, unless it is by now.

    Raises:
        OSError: The folder doesn't take it.
        _Damaged: The archive doesn't give it.
    """
    lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _wait_for(lock)
        _sweep(root)
        target = os.path.join(root, _plan.content)
        # The second look: of many that start at once, one unpacks and the others wait.
        if not _is_whole(target, _plan.files):
            new = os.path.join(root, f".new-{os.getpid()}-{os.urandom(4).hex()}")
            try:
                _write_files(new)
                _rename(new, target, root)
            finally:
                _remove(new)
        os.close(os.open(f"{target}.used", os.O_RDWR | os.O_CREAT, 0o600))
    finally:
        os.close(lock)


def _wait_for(lock: int) -> None:
    import time

    deadline = time.monotonic() + _LOCK_WAIT_S
    while not _try_lock(lock, shared=False, unlockable=True) and time.monotonic() < deadline:
        time.sleep(0.01)


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
        os.utime(path, (_DATE, _DATE))
        written.append((name, len(data)))
    if sorted(written) != _plan.files:
        raise _Damaged("its files aren't those that it lists")


def _read_files() -> "Iterator[tuple[str, bytes]]":
    """Yield (path below the content folder, bytes) of each file in the archive."""
    import io
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(archive) as outer:
            if _Plan(outer.read(f"native/{key}.set").decode()).content != content:
                raise _Damaged("another build has taken its place")
            for name, _ in _plan.files:
                if name.startswith("sdk/"):
                    yield name, outer.read(name.removeprefix("sdk/"))
            for inner_name in _plan.zips:
                with zipfile.ZipFile(io.BytesIO(outer.read(inner_name))) as inner:
                    for name in inner.namelist():
                        yield f"lib/{name}", inner.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise _Damaged(error) from error


def _rename(new: str, target: str, root: str) -> None:
    """Put the new folder in the place of what is there, if anything."""
    try:
        os.rename(new, target)
        return
    except OSError:
        if _is_whole(target, _plan.files):
            return  # No lock worked here, and another process was first.
    # Aside and not over it: processes that run from it keep what they have open.
    old = os.path.join(root, f".old-{os.getpid()}-{os.urandom(4).hex()}")
    os.rename(target, old)
    os.rename(new, target)
    _remove(old)


def _remove(path: str) -> None:
    import shutil

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def _sweep(root: str) -> None:
    """Remove what killed processes left, and content that nobody has used for long."""
    import time

    now = time.time()
    for name in os.listdir(root):
        path = os.path.join(root, name)
        try:
            age = now - os.lstat(path).st_mtime
            if name.startswith((".new-", ".old-")) and age > _LEFTOVER_S:
                _remove(path)
            elif name.endswith(".used") and age > _UNUSED_S:
                _remove_unused(path)
        except OSError:
            continue  # Another process sweeps too.


def _remove_unused(used: str) -> None:
    if used == os.path.join(_root, f"{content}.used"):
        return
    file = os.open(used, os.O_RDWR)
    try:
        if _try_lock(file, shared=False, unlockable=False):
            _remove(used.removesuffix(".used"))
            os.unlink(used)
    finally:
        os.close(file)
