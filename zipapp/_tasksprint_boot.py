"""The bootstrap of tasksprint.pyz: find what an earlier start unpacked, and use it.

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

This module itself is compiled at every start, so it is short and imports next to nothing;
all that a start seldom needs is in `_tasksprint_unpack`. It knows nothing of TaskSprint
but names.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.abc import PathEntryFinder
    from types import CodeType
    from typing import NoReturn
    from zipimport import zipimporter

    __loader__: zipimporter

__all__ = ["archive", "content", "fill_streams", "key", "sdk_directory", "start", "this_key"]

# What this process runs from; set by `start`.
archive = ""  # the absolute path of the .pyz, whatever the working directory becomes
key = ""
content = ""
zips: "list[str]" = []  # the archive's inner zips for this key
files: "list[tuple[str, int]]" = []  # (path below the content folder, size), sorted

# Every unpacked file has this date (1980, as in the zip), so that one that was written
# to later shows, even with its old size.
FILE_DATE = 315532800
# How often a start renews the date of last use: seldom, it's a write.
USE_RENEWED_S = 24 * 3600
# For a folder that the operator named, all its missing parents are made too.
ANY_PARENTS = 99

EX_CONFIG = 78

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
    global archive, key, content, _root
    fill_streams()
    archive = os.path.abspath(__loader__.archive)
    key = this_key()
    try:
        text = __loader__.get_data(f"native/{key}.set").decode()
    except OSError:
        import _tasksprint_unpack

        supported = __loader__.get_data("native/SUPPORTED").decode().split()
        stop(EX_CONFIG, _tasksprint_unpack.wrong_key_message(key, supported))
    content = parse_set(text, zips, files)
    for root, _, source in places():
        if refusal(root, source) is None and hold(root):
            _root = root
            break
    else:
        # Only after all were looked at. Were a full disk's folder tried first each time,
        # every start would unpack in vain before it reached the place that had worked.
        import _tasksprint_unpack

        _root = _tasksprint_unpack.unpack_somewhere()
    # First, before PYTHONPATH: a user's own package of some name must not replace the one
    # that this program was tested with. The archive itself has done its part.
    rest = [entry for entry in sys.path if os.path.abspath(entry) != archive]
    sys.path[:] = [os.path.join(_root, content, part) for part in ("sdk", "lib")] + rest
    if sys.dont_write_bytecode:
        _keep_bytecode(os.path.join(_root, content, ""))


def _keep_bytecode(folder: str) -> None:
    """Have the bytecode of what lies in our folder kept there.

    Whoever asks for none (many containers do, by PYTHONDONTWRITEBYTECODE) means the folders of
    their own sources. This one is ours, and it's for this that it was unpacked: most of a
    start's time would go into compiling. Everything else keeps the wish.
    """
    from importlib import machinery

    class Loader(machinery.SourceFileLoader):
        def get_code(self, fullname: str) -> "CodeType | None":
            sys.dont_write_bytecode = False
            try:
                return super().get_code(fullname)
            finally:
                sys.dont_write_bytecode = True

    find = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (Loader, machinery.SOURCE_SUFFIXES),
    )

    def find_ours(path: str) -> "PathEntryFinder":
        if not path.startswith(folder):
            raise ImportError("not ours")
        return find(path)

    sys.path_hooks.insert(0, find_ours)


def fill_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is missing.

    First: else a file that is held from here on gets its number.
    """
    descriptor = -1
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor <= 2:
            os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def sdk_directory() -> str:
    """Return the folder with the SDK, unpacked anew if a cleaner took it away.

    Raises:
        OSError: It is gone, and can't be made again.
    """
    folder = os.path.join(_root, content)
    if not is_whole(folder, [file for file in files if file[0].startswith("sdk/")]):
        # By its place: the archive isn't on the path any more, and another build may
        # have taken its place.
        __loader__.load_module("_tasksprint_unpack").restore(_root)
    return os.path.join(folder, "sdk")


def parse_set(text: str, zips: "list[str]", files: "list[tuple[str, int]]") -> str:
    """Read a key's list into `zips` and `files`, and return the content's name."""
    content = ""
    for line in text.splitlines():
        head, _, tail = line.rpartition(" ")
        if head == "content":
            content = tail
        elif head == "zip":
            zips.append(tail)
        else:
            files.append((head, int(tail)))
    return content


def stop(code: int, text: str) -> "NoReturn":
    """Print what is wrong and leave."""
    sys.stderr.write(f"tasksprint: {text}\n")
    sys.exit(code)


def places() -> "list[tuple[str, int, str]]":
    """Return (folder, how many parents may be made, which variable named it), in order."""
    found = []
    folder = os.environ.get("TASKSPRINT_CACHE", "")
    if folder:
        found.append((os.path.abspath(folder), ANY_PARENTS, "TASKSPRINT_CACHE"))
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(folder):
        found.append((os.path.join(folder, "tasksprint"), ANY_PARENTS, "XDG_CACHE_HOME"))
    folder = os.environ.get("HOME", "")
    if os.path.isabs(folder):
        found.append((os.path.join(folder, ".cache", "tasksprint"), 1, "HOME"))
    name = f"tasksprint-{os.geteuid()}"
    for folder in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isabs(folder):
            found.append((os.path.join(folder, name), 0, ""))
    found.append((os.path.join(os.path.dirname(archive), f".{name}"), 0, ""))
    return found


def refusal(root: str, source: str) -> "str | None":
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


def is_whole(folder: str, files: "list[tuple[str, int]]") -> bool:
    """Tell whether every file is there with its size and date."""
    lstat = os.lstat
    prefix = f"{folder}/"
    try:
        for name, size in files:
            state = lstat(prefix + name)
            if (
                state.st_size != size
                or int(state.st_mtime) != FILE_DATE
                or state.st_mode & 0o170000 != 0o100000
            ):
                return False
    except OSError:
        return False
    return True


def hold(root: str) -> bool:
    """Claim the content in this cache for this process, and tell whether it is whole.

    Claimed before the look at the files: who removes unused content claims it alone first.
    """
    global _held
    path = os.path.join(root, content)
    try:
        held = os.open(f"{path}.used", os.O_RDONLY)
    except OSError:
        return False
    if not (try_lock(held, shared=True, unlockable=True) and is_whole(path, files)):
        os.close(held)
        return False
    if _held >= 0:
        os.close(_held)
    _held = held
    import time

    if abs(time.time() - os.fstat(held).st_mtime) > USE_RENEWED_S:
        try:
            os.utime(f"{path}.used")
        except OSError:
            pass  # A cache on a disk that is now read-only still serves.
    return True


def try_lock(file: int, *, shared: bool, unlockable: bool) -> bool:
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
