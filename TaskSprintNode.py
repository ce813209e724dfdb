"""The module that nodes import: `from TaskSprintNode import *`."""

from __future__ import annotations

from tasksprint.sdk.limits import timeout
from tasksprint.sdk.node import TaskSprintNode

__all__ = ["TaskSprintNode", "timeout"]
