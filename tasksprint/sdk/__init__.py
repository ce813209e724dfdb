"""Users import this in their nodes and schedulers: pure Python, no packages, fast to load.

    codec        JSON by the C parts of the standard library, without the rest of it
    channel      takes stdin and stdout for the protocol and gives user code stderr
    chance       seeds `random` and NumPy, even if they are imported later
    limits       `@timeout`
    node         `TaskSprintNode`
    coordinator  `TaskSprintCoordinator`

Nothing is imported before it is asked for: a plain node doesn't load the scheduler's half.
The SDK doesn't need the rest of TaskSprint; both ends meet in docs/protocol.md alone. It runs
on Python 3.8 and later, so nodes can live in older environments than the cluster's.
"""

from __future__ import annotations

TYPE_CHECKING = False  # known to type checkers; `typing` itself takes milliseconds to load
if TYPE_CHECKING:
    from typing import Any

    from tasksprint.sdk.coordinator import TaskSprintCoordinator as TaskSprintCoordinator
    from tasksprint.sdk.limits import timeout as timeout
    from tasksprint.sdk.node import TaskFailed as TaskFailed
    from tasksprint.sdk.node import TaskSprintNode as TaskSprintNode

__all__ = ["TaskFailed", "TaskSprintCoordinator", "TaskSprintNode", "timeout"]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` only now."""
    if name == "TaskSprintCoordinator":
        from tasksprint.sdk import coordinator as module
    elif name == "timeout":
        from tasksprint.sdk import limits as module  # type: ignore[no-redef]
    elif name in ("TaskFailed", "TaskSprintNode"):
        from tasksprint.sdk import node as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module 'tasksprint.sdk' has no attribute {name!r}")
    return getattr(module, name)
