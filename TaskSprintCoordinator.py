"""The module that schedulers import: `from TaskSprintCoordinator import *`."""

from __future__ import annotations

from tasksprint.sdk.coordinator import TaskSprintCoordinator

__all__ = ["TaskSprintCoordinator"]
