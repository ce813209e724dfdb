"""Somebody who changes the members of the cluster, by HTTP and by the commands.

One change after the other: it is tried until it is acknowledged, and then looked at until
the cluster has brought it to its end. Every try and every look is an operation of the
history. Which coordinator is to go, and whether its disk is gone already, is decided in
`faults.py`, which also starts the new one first: so there are never fewer voters than at
the founding but for the one that lost its disk, and the torture destroys no majority.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from random import Random

from tasksprint.errors import PeerUnreachable, Refused
from tests.linearizability.member_list import DONE
from tests.torture.load import Load, now
from tests.torture.machines import Machines, number_of

__all__ = ["Change", "Operator"]

_PAUSE_S = 0.2
# Of the commands: short, so that some give up in the middle of a change.
_COMMAND_TIMEOUT_S = 5
_COMMAND_LIMIT_S = 60
_WHO = "operator"


@dataclass(frozen=True, slots=True)
class Change:
    """One coordinator takes the place of another."""

    old: str
    new: str
    # Add one, then remove the other; else both as one replacement.
    in_two_steps: bool


class Operator:
    """A thread of the load that carries out one change at a time."""

    def __init__(self, machines: Machines, load: Load, tell: Callable[[str], None]) -> None:
        self._machines = machines
        self._load = load
        self._tell = tell
        self._lock = threading.Lock()
        self._current: Change | None = None
        self._done: list[Change] = []
        self.changes = 0

    @property
    def is_busy(self) -> bool:
        """Whether a change is under way, or its end wasn't taken note of."""
        with self._lock:
            return self._current is not None or bool(self._done)

    def begin(self, change: Change) -> None:
        """Carry out a change, in a thread."""
        assert not self.is_busy
        with self._lock:
            self._current = change
        self._load.run(self.carry_out)

    def take_done(self) -> list[Change]:
        """Return the changes that have come to their end since the last call."""
        with self._lock:
            done, self._done = self._done, []
        return done

    def carry_out(self, random: Random, give_up: Callable[[], bool] | None = None) -> None:
        """Do what is left of the current change, if there is one.

        Args:
            give_up: Whether to leave it; default: once the load is over.
        """
        change = self._current
        if change is None:
            return
        old, new = number_of(change.old), number_of(change.new)
        is_over = give_up or (lambda: self._load.is_over)
        steps: list[tuple[tuple[Hashable, ...], Callable[[_Listing], bool]]]
        if change.in_two_steps:
            steps = [
                (("add", new), lambda listing: new in listing.voters),
                (("remove", old), lambda listing: old in listing.retired),
            ]
        else:
            steps = [
                (
                    ("replace", old, new),
                    lambda listing: new in listing.voters and old in listing.retired,
                )
            ]
        for call, is_done in steps:
            # A change that is done already, by a try that got no answer, changes nothing.
            while self._try(call, change, random) is None:
                if is_over():
                    return
                time.sleep(_PAUSE_S)
            while not ((listing := self._look(random)) and is_done(listing)):
                if is_over():
                    return
                time.sleep(_PAUSE_S)
        with self._lock:
            self._current = None
            self._done.append(change)
            self.changes += 1
        self._tell(f"{change.new} has taken the place of {change.old}")

    def _try(
        self, call: tuple[Hashable, ...], change: Change, random: Random
    ) -> Hashable:
        """Ask once for a change; None: it isn't known to be made."""
        kind = str(call[0])
        if random.random() < 0.5:
            return self._command(kind, call, change)
        body: dict[str, object] = {"change": kind, "replica": call[1]}
        if kind == "replace":
            body["with"] = call[2]
        if kind != "remove":
            body["address"] = self._machines.addresses[change.new]
        return self._load.change_members(_WHO, call, json.dumps(body).encode(), random)

    def _command(self, kind: str, call: tuple[Hashable, ...], change: Change) -> Hashable:
        """Run `tasksprint member …`."""
        machines = self._machines
        words = [str(word) for word in call[1:]]
        if kind != "remove":
            words[-1] += f"={machines.addresses[change.new]}"
        invoked = now()
        done = subprocess.run(
            [
                *(*machines.command, "member", kind, *words),
                *("--coordinators", ",".join(machines.member_addresses())),
                *("--key-file", str(machines.folder / "key")),
                *("--timeout", str(_COMMAND_TIMEOUT_S)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=machines.environment,
            timeout=_COMMAND_LIMIT_S,
        )
        returned = now()
        if done.returncode == Refused.exit_code:
            self._load.count(kind, "refused")
            return None
        assert done.returncode in (0, PeerUnreachable.exit_code), done.stderr
        reply = DONE if done.returncode == 0 else None
        self._load.record(_WHO, invoked, returned, call, reply)
        return reply

    def _look(self, random: Random) -> _Listing | None:
        shown = self._load.list_members(_WHO, random)
        if shown is None:
            return None
        assert isinstance(shown, tuple)
        return _Listing(shown[1], shown[4])


@dataclass(frozen=True, slots=True)
class _Listing:
    voters: tuple[int, ...]
    retired: tuple[int, ...]
