"""Every exception that TaskSprint raises on purpose.

    TaskSprintError
    ├── LocalProtocolError        our bug: this process was about to break a protocol
    │   └── CommandFailed         … or can't apply a command of the log
    ├── RemoteProtocolError       somebody else broke a protocol; the connection or attempt ends
    │   └── UnprovenAnswer        an answer doesn't prove the cluster key: it means nothing
    ├── NodeFailed                a node crashed, hung, or answered nonsense; the attempt ends
    ├── SchedulerFailed           a scheduler crashed, hung, or answered nonsense
    ├── PeerUnreachable           another process doesn't answer; retried where that makes sense
    ├── Refused                   another process answered "no", with a reason
    ├── JobFailed                 a job ended without a result, with its cause
    ├── UsageError                the command line, manifest or job directory is wrong
    ├── SettingsError             the operator must change a setting, key, address or directory
    │   └── UnknownRules          … or start a newer release: the log is at rules this one lacks
    ├── StateDiffers              this replica's state isn't that of the others; it must not go on
    └── StoreError                the operator must look at a disk or database file
        ├── StoreDamaged          part of a file is spoiled; the next start finds out what is left
        ├── StoreLost             … and it is a part without which a replica can't go on
        └── DiskFull              … must free space on it, and can start the process again

Each carries `hint`, one more sentence for the reader (or ""), and `exit_code`. A command
that ends by the exception leaves with that code. The codes follow BSD's sysexits.h where
one fits, so scripts can tell "the job failed" from "nobody answered".
"""

from __future__ import annotations

__all__ = [
    "EXIT_OK",
    "CommandFailed",
    "DiskFull",
    "JobFailed",
    "LocalProtocolError",
    "NodeFailed",
    "PeerUnreachable",
    "Refused",
    "RemoteProtocolError",
    "SchedulerFailed",
    "SettingsError",
    "StateDiffers",
    "StoreDamaged",
    "StoreError",
    "StoreLost",
    "TaskSprintError",
    "UnknownRules",
    "UnprovenAnswer",
    "UsageError",
]

EXIT_OK = 0


class TaskSprintError(Exception):
    """The root of the tree; never raised itself."""

    exit_code = 70  # EX_SOFTWARE: an error without a better class is our bug.

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; {self.hint}" if self.hint else text


class LocalProtocolError(TaskSprintError):
    """This process was about to break a protocol: our bug, so it stops."""


class CommandFailed(LocalProtocolError):
    """A chosen command can't be applied: our bug, the same on every replica.

    With too little memory, or on a broken machine, it is this replica's fault alone (`is_local`).
    """

    def __init__(
        self, slot: int, command: int, digest: str, cause: BaseException | str, *, of: int
    ) -> None:
        """Say which command it is.

        Args:
            slot: The entry's place in the log.
            command: Its index in the entry; equal to `of` if nobody knows which one it is
                (then `is_exact` is false, and the message names the last one).
            digest: SHA-256 of its bytes, hex.
            cause: The exception, or its words.
            of: The number of commands in the entry.
        """
        self.slot, self.command, self.digest, self.of = slot, command, digest, of
        self.is_exact = command < of
        self.is_local = isinstance(cause, MemoryError | RecursionError | OSError)
        words = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
        self.why = words.rstrip(": ")
        if self.is_local:
            hint = (
                "that is this machine's doing, and the others go on; see to its memory and its "
                "disk, and start this replica again"
            )
        else:
            hint = (
                "this is a bug of TaskSprint that stops every replica here; to go on without "
                "this command, stop all coordinators, and for each run: tasksprint log skip "
                f"{slot} {min(command, of - 1)} {digest} --data-dir DIR"
            )
        super().__init__(
            f"command {min(command, of - 1)} of slot {slot} (SHA-256 {digest}) can't be "
            f"applied: {self.why}",
            hint=hint,
        )


class RemoteProtocolError(TaskSprintError):
    """Another process sent something that its protocol doesn't allow."""

    exit_code = 76  # EX_PROTOCOL


class UnprovenAnswer(RemoteProtocolError):
    """An answer without a good proof: anybody may have given it, so it means nothing."""

    exit_code = 77  # EX_NOPERM: mostly the key is another one.

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status  # the HTTP status that it claims


class NodeFailed(TaskSprintError):
    """A node couldn't be started, died, or answered what no node may answer."""


class SchedulerFailed(TaskSprintError):
    """A scheduler couldn't be started, died, or answered what no scheduler may answer."""


class PeerUnreachable(TaskSprintError):
    """No coordinator (or other process) could be reached in time."""

    exit_code = 69  # EX_UNAVAILABLE


class Refused(TaskSprintError):
    """Another process understood the request and refused it."""

    exit_code = 77  # EX_NOPERM

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status  # the HTTP status of the refusal


class JobFailed(TaskSprintError):
    """A job ended as failed or cancelled."""

    exit_code = 1


class UsageError(TaskSprintError):
    """The command line, a manifest or a job directory can't be used as given."""

    exit_code = 64  # EX_USAGE


class SettingsError(TaskSprintError):
    """A setting, key, address or data directory must be changed by the operator."""

    exit_code = 78  # EX_CONFIG


class UnknownRules(SettingsError):
    """Something must be applied by a version of the rules that this release doesn't have."""

    def __init__(self, what: str, version: int, known: list[int]) -> None:
        self.version = version
        span = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
        super().__init__(
            f"{what} is at version {version} of the rules, and this release can apply {span}",
            hint="start a release that can; see docs/operations.md, 'Upgrading'",
        )


class StateDiffers(TaskSprintError):
    """The same log gave this replica another state than the others: a bug, or bad memory."""

    exit_code = 65  # EX_DATAERR


class StoreError(TaskSprintError):
    """A database file can't be opened, read or written."""

    exit_code = 74  # EX_IOERR


class StoreDamaged(StoreError):
    """Part of a database file isn't as it was written; others may still have what is lost."""


class ValueSpoiled(StoreError):
    """A value in a client's store is gone, or doesn't match its digest: it counts as lost."""


class StoreLost(StoreError):
    """A replica's file may have forgotten promises that it gave: it can't take part again."""


class DiskFull(StoreError):
    """There is too little space to go on; once there is more, the process can start again."""

    exit_code = 75  # EX_TEMPFAIL
