"""TaskSprint: fault-tolerant distributed computation from one file.

Importing this package loads nothing but the version, so a user's program starts in
milliseconds. Schedulers and nodes need a few names of `tasksprint.sdk`. Each is fetched
on its first use.
"""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers; `typing` itself takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.4.0.dev0"

_SDK_NAMES = (
    "TaskSprintNode",
    "TaskSprintCoordinator",
    "TaskFailed",
    "timeout",
)

__all__ = ["__version__", *_SDK_NAMES]


def __getattr__(name: str) -> Any:
    """Return an SDK name, importing the SDK only now."""
    if name in _SDK_NAMES:
        from tasksprint import sdk

        return getattr(sdk, name)
    raise AttributeError(f"module 'tasksprint' has no attribute {name!r}")
