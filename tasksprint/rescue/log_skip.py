"""`log skip`: leave out a command of the log that no replica can apply.

Applying an entry must never fail. If it does, this is a bug of ours, and equal on all replicas.
They stop there with a sentence that names the command. This module marks the command, offline,
in the data directory of each member. Replicas then leave it out when they apply the log
(coordination/schedule.py). Members with different marks don't hear each other.

If it isn't plain which command of an entry failed, this module finds out. It applies less and
less of the entry to the state before it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
from pathlib import Path

from tasksprint.consensus import LogEntry, Recovered, decode_batch, decode_founding
from tasksprint.consensus.batch import stands_alone
from tasksprint.consensus.membership import decode_membership_value
from tasksprint.consensus.skips import Skip, decode_skips, encode_skips, first_slots
from tasksprint.coordination.schedule import Applied, Schedule
from tasksprint.errors import (
    EXIT_OK,
    CommandFailed,
    SettingsError,
    StateDiffers,
    TaskSprintError,
    UsageError,
)
from tasksprint.ids import Slot
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.terminal import print_plain
from tasksprint.release import THIS_RELEASE
from tasksprint.settings import Settings
from tasksprint.store.replica_store import ReplicaStore
from tasksprint.store.vital import SLOTS_END

__all__ = ["apply_entry", "explain", "find_culprit", "mark", "run_skip", "stored_state"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


def run_skip(options: argparse.Namespace) -> int:
    """Carry out `log skip`."""
    settings = settings_from_environment()
    skip = Skip(Slot(options.slot), options.command_index, options.digest)
    there = ReplicaStore.open_there(Path(options.data_dir), settings=settings)
    with contextlib.closing(there) as store:
        text = mark(store, skip, is_undone=options.undo)
    print_plain(text)
    return EXIT_OK


def mark(store: ReplicaStore, skip: Skip, *, is_undone: bool = False) -> str:
    """Mark a command in a store as left out, or take the mark back; return a report.

    Raises:
        UsageError: The log has no such command.
        SettingsError: The store's state has the command already, or is of no member.
    """
    if not (0 < skip.slot < SLOTS_END and skip.command >= 0 and _DIGEST.fullmatch(skip.digest)):
        raise UsageError(
            f"{skip.slot} {skip.command} {skip.digest} is not SLOT COMMAND DIGEST",
            hint="take them from the sentence with which the coordinators stopped",
        )
    recovered = store.recover(after_slot=store.applied.slot).consensus
    me, what = store.replica, f"command {skip.command} of slot {skip.slot}"
    if recovered.founding is None:
        raise SettingsError(
            f"replica {me} never belonged to a cluster: it takes over what others leave out"
        )
    skips = decode_skips(recovered.skips)
    if not is_undone and skip in skips:
        return f"replica {me} leaves out {what} already"
    if is_undone and skip not in skips:
        raise UsageError(f"replica {me} doesn't leave out {what} with this digest")
    if skip.slot <= store.applied.slot:
        raise SettingsError(
            f"the state of replica {me} goes up to slot {store.applied.slot}, so slot "
            f"{skip.slot} is applied already",
            hint="nothing was changed",
        )
    if is_undone:
        store.write_skips(encode_skips([each for each in skips if each != skip]))
        return f"replica {me} applies {what} again; so must all members"
    entry = next((each for each in recovered.accepted if each.slot == skip.slot), None)
    if entry is not None:
        _require(entry, skip)
    store.write_skips(encode_skips([*skips, skip]))
    unseen = "" if entry is not None else f" (its log has no slot {skip.slot} yet)"
    return (
        f"replica {me} leaves out {what}{unseen}; mark it in the data directories of all other "
        "members, too, and then start them"
    )


def _require(entry: LogEntry, skip: Skip) -> None:
    commands = decode_batch(entry.value) if decode_membership_value(entry.value) is None else ()
    if skip.command >= len(commands):
        raise UsageError(
            f"slot {skip.slot} has {len(commands)} commands, numbered from 0, and so no "
            f"command {skip.command}",
            hint=f"see 'tasksprint log show --slot {skip.slot}'",
        )
    found = hashlib.sha256(commands[skip.command]).hexdigest()
    if found != skip.digest:
        raise UsageError(
            f"command {skip.command} of slot {skip.slot} has the SHA-256 {found}, "
            f"not {skip.digest}",
            hint="nothing was changed",
        )


# --- which command it is -------------------------------------------------------------------


def explain(error: CommandFailed, data_dir: Path, settings: Settings) -> TaskSprintError:
    """Return a report of a command that couldn't be applied, once the store is closed.

    The command is tried again, on the state in the store. If it fails only sometimes, it isn't
    a bug that all replicas share.
    """
    if error.is_local:
        return error
    try:
        with contextlib.closing(ReplicaStore.open_there(data_dir, settings=settings)) as store:
            found = find_culprit(store, Slot(error.slot))
    except TaskSprintError:
        return error  # The store has a trouble of its own, which the next start tells.
    if found is None:
        return StateDiffers(
            f"command {error.command} of slot {error.slot} couldn't be applied "
            f"({error.why}), and can be now",
            hint="check this machine's memory, and start this replica again",
        )
    return found


def find_culprit(store: ReplicaStore, slot: Slot) -> CommandFailed | None:
    """Return which command of a slot can't be applied; None: all can."""
    recovered = store.recover(after_slot=store.applied.slot).consensus
    entry = next((each for each in recovered.accepted if each.slot == slot), None)
    if entry is None:
        return None
    commands = decode_batch(entry.value)
    failed = _try(store, recovered, slot, len(commands))
    if failed is None or failed.is_exact or failed.is_local:
        return failed
    # The first ones can all be applied up to `good`, and can't be up to `bad`.
    good, bad = 0, len(commands)
    while bad - good > 1:
        middle = (good + bad) // 2
        found = _try(store, recovered, slot, middle)
        if found is None:
            good = middle
        else:
            bad, failed = middle, found
    digest = hashlib.sha256(commands[bad - 1]).hexdigest()
    return CommandFailed(slot, bad - 1, digest, failed.why, of=len(commands))


def _try(
    store: ReplicaStore, recovered: Recovered, slot: Slot, count: int
) -> CommandFailed | None:
    """Apply the log up to a slot, and there only the first `count` commands."""
    schedule = stored_state(store, recovered)
    for entry in recovered.accepted:
        try:
            apply_entry(schedule, entry, count if entry.slot == slot else None)
        except CommandFailed as error:
            return error if entry.slot == slot else None
        if entry.slot == slot:
            break
    return None


def stored_state(store: ReplicaStore, recovered: Recovered) -> Schedule:
    """Return the state that a member's store holds: its log can be applied to it."""
    assert recovered.founding is not None
    founding = decode_founding(recovered.founding)
    return Schedule(
        cluster=founding.cluster,
        members=tuple(member.replica for member in founding.members),
        rules=THIS_RELEASE.rules_of_beginning(founding.rules),
        mirror=store if store.applied.slot else None,
        skips=first_slots(recovered.skips),
    )


def apply_entry(schedule: Schedule, entry: LogEntry, count: int | None = None) -> Applied:
    """Apply an entry of the log, or the first `count` of its commands."""
    membership = decode_membership_value(entry.value)
    voters = None
    if membership is not None:
        voters = tuple(member.replica for member in membership.voters)
    return schedule.apply(
        entry.slot,
        decode_batch(entry.value)[:count],
        members=voters,
        is_alone=stands_alone(entry.value),
    )
