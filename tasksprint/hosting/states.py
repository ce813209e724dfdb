"""The states of a scheduler's process on one replica, and what leads from one to another.

host.py alone moves a process by this table.
"""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["HOST_STATES", "HOST_TRANSITIONS", "HostEvent", "HostState"]

HostState = Literal[
    "waiting",  # it is to be started, at once or after a pause
    "starting",  # it hasn't said that it is ready
    "replaying",  # it repeats what was chosen before it was ready
    "live",
    "stopping",  # killed, and not gone yet
    "finished",  # it has said all that it will, and is gone; its last answers may be unchosen
    "out",  # given up
    "ended",  # its job has; it is asked to leave
]
HostEvent = Literal[
    "started", "ready", "caught up", "left", "killed", "paused", "given up", "job ended"
]
HOST_STATES: tuple[HostState, ...] = get_args(HostState)

# What happened, as state before -> state behind. What isn't in it can't happen.
HOST_TRANSITIONS: dict[HostEvent, dict[HostState, HostState]] = {
    "started": {"waiting": "starting"},
    "ready": {"starting": "replaying"},
    "caught up": {"replaying": "live"},
    "left": {"replaying": "finished", "live": "finished"},
    # For what it did, or didn't do in time.
    "killed": dict.fromkeys(("starting", "replaying", "live"), "stopping"),
    # It is gone, and gets another try.
    "paused": dict.fromkeys(
        ("starting", "replaying", "live", "stopping", "finished"), "waiting"
    ),
    # Once too often; one that differs is killed now.
    "given up": dict.fromkeys(("starting", "replaying", "live", "stopping", "finished"), "out"),
    "job ended": dict.fromkeys(HOST_STATES, "ended"),
}
