"""Where this very program lies: how to start it again, and where users' programs find the SDK.

TaskSprint runs from one of three places: the one file (`tasksprint.pyz`; its bootstrap
unpacks it into a cache), a checkout, or an installed package. Roles ask here how to start
one more process of the same program, and for the folder that users' programs get on
PYTHONPATH. Nothing else needs to know the place.

This module doesn't unpack anything itself: that is the bootstrap's (zipapp/).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types

import tasksprint
from tasksprint.errors import SettingsError

__all__ = ["archive_path", "description", "own_command", "sdk_directory"]

# The folder on users' PYTHONPATH holds these names and no others. PYTHONPATH comes before
# site-packages: one more name would hide the user's own package of that name.
_SDK_NAMES = ("TaskSprintNode.py", "TaskSprintCoordinator.py", "tasksprint")

# The absolute path at import: a role may change its working directory later.
_PACKAGE = os.path.dirname(os.path.abspath(tasksprint.__file__))


def archive_path() -> str | None:
    """Return the absolute path of the .pyz that this process runs from, or None."""
    boot = _bootstrap()
    return None if boot is None else str(boot.archive)


def sdk_directory() -> str:
    """Return the folder that users' programs get on PYTHONPATH.

    From the .pyz it is the cache's `sdk/`. A cleaner may have emptied the cache meanwhile;
    then this puts it in order again. So call this for each program that is started, and
    don't keep the answer. In a checkout it is the checkout's root.

    Raises:
        SettingsError: The cache is gone and can't be made anew.
    """
    boot = _bootstrap()
    if boot is not None:
        try:
            return str(boot.sdk_directory())
        except OSError as error:
            raise SettingsError(
                f"cannot restore the unpacked program: {error}",
                hint="start this process again, or set TASKSPRINT_CACHE to a lasting folder",
            ) from error
    if _is_checkout():
        return os.path.dirname(_PACKAGE)
    return _linked_directory()


def own_command() -> list[str]:
    """Return the first arguments of a command line that starts this program once more.

    It works from any working directory. Append a role and its arguments.
    """
    boot = _bootstrap()
    if boot is not None:
        return [sys.executable, str(boot.archive)]
    if _is_checkout():
        return [sys.executable, os.path.join(os.path.dirname(_PACKAGE), "tasksprint.py")]
    # -P: a folder `tasksprint` in the working directory must not be taken for us.
    options = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *options, "-m", "tasksprint"]


def description() -> str:
    """Return one line for `--version` and `status`: version, kind of installation, Python."""
    boot = _bootstrap()
    if boot is not None:
        origin = f"{boot.archive}, {boot.key}, content {boot.content}"
    elif _is_checkout():
        origin = f"checkout {os.path.dirname(_PACKAGE)}"
    else:
        origin = f"package {_PACKAGE}"
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"tasksprint {tasksprint.__version__} ({origin}; Python {python})"


def _bootstrap() -> types.ModuleType | None:
    """Return the bootstrap's module if it started this process from the .pyz.

    It is a module and not an environment variable. Children inherit the environment: one that
    was *not* started from the .pyz would believe that it was.
    """
    boot = sys.modules.get("_tasksprint_boot")
    return boot if boot is not None and hasattr(boot, "archive") else None


@functools.cache
def _is_checkout() -> bool:
    root = os.path.dirname(_PACKAGE)
    names = ("tasksprint.py", "TaskSprintNode.py", "TaskSprintCoordinator.py")
    return all(os.path.isfile(os.path.join(root, name)) for name in names)


def _linked_directory() -> str:
    """Return a folder of links to the three names, for a package among site-packages.

    site-packages itself can't go on PYTHONPATH: its packages would come before those of
    the user's own interpreter.
    """
    import hashlib
    import stat
    import tempfile

    root = os.path.dirname(_PACKAGE)
    name = hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    parent = os.path.join(tempfile.gettempdir(), f"tasksprint-links-{os.geteuid()}")
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        state = os.lstat(parent)
        is_ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()
        if not is_ours or state.st_mode & 0o022:
            raise PermissionError(f"{parent!r} is not a folder that only this user may write")
        folder = os.path.join(parent, name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for entry in _SDK_NAMES:
            link = os.path.join(folder, entry)
            target = os.path.join(root, entry)
            if os.path.exists(target):
                # Another process may make the same link at the same time.
                with contextlib.suppress(FileExistsError):
                    os.symlink(target, link)
    except OSError as error:
        raise SettingsError(
            f"cannot make a folder for users' programs: {error}",
            hint="set TMPDIR to a folder that this user may write",
        ) from error
    return folder
