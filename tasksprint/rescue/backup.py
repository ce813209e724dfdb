"""`backup`: the state of a running cluster, taken from one replica, in one file.

Any coordinator that is up will do. The named ones are asked first, then the other members. It
gives a copy of its mirror piece by piece, as it would to another replica
(store/copy_pieces.py), and serves meanwhile. The archives of the jobs in the copy follow. The
file is written beside its place, synced, read back and checked. Only then it gets its name.

Blocking, as all commands: nothing here needs a loop.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasksprint.asking.cluster import Cluster, status_of_coordinator
from tasksprint.asking.rota import parse_addresses
from tasksprint.durable_files import sync_directory
from tasksprint.errors import (
    EXIT_OK,
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    StoreError,
    UsageError,
)
from tasksprint.net.http_messages import HttpResponse
from tasksprint.process.clock import monotonic_ms, wall_ms
from tasksprint.process.signals import interrupted_by_signals
from tasksprint.process.terminal import print_answer, print_plain
from tasksprint.rescue.recover import ago
from tasksprint.store.backup_file import VERSION, BackupWriter, Contents, check_backup
from tasksprint.store.copy_pieces import check_piece

__all__ = ["run_backup"]

# A replica so many slots behind is as good as the one that is furthest.
_LAG_SLOTS = 1_000
_PIECE_PAUSE_S = 0.2
_GONE = 410
_UNAVAILABLE = 503
_PROGRESS_S = 1.0


def run_backup(cluster: Cluster, options: argparse.Namespace) -> int:
    """Carry out `backup`."""
    path = Path(options.file)
    if path.is_dir():
        raise UsageError(f"{options.file!r} is a directory", hint="name a file in it")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # A link, a pipe or a device (/dev/null) would be replaced by a file, for everybody.
        raise UsageError(f"{options.file!r} is no ordinary file", hint="name another one")
    if path.exists() and not options.force:
        raise _exists_already(path)
    sources = _sources(cluster, parse_addresses(options.coordinators))
    with interrupted_by_signals():
        told = _make_from_any(cluster, sources, path, may_replace=options.force)
    text = (
        f"backed up cluster {told['cluster']} at slot {told['slot']} from replica "
        f"{told['replica']}: {told['jobs']} jobs ({told['jobs_running']} running), "
        f"{told['archives']} archives, {told['bytes']} bytes in {options.file!r}; its last "
        f"tick was {ago(told['wall_ms'])}"
    )
    print_answer(told, [text], as_json=options.json)
    return EXIT_OK


def _exists_already(path: Path) -> UsageError:
    return UsageError(f"{str(path)!r} exists already", hint="--force overwrites it")


@dataclass(frozen=True, slots=True)
class _Source:
    """A replica that may give the backup."""

    address: str
    replica: int
    cluster: str
    slot: int
    is_leader: bool
    members: tuple[str, ...]  # the addresses of all


class _NotGiven(PeerUnreachable):
    """This coordinator gives no copy of its state; another one may."""


def _make_from_any(
    cluster: Cluster,
    sources: Iterator[_Source],
    path: Path,
    *,
    may_replace: bool,
) -> dict[str, Any]:
    """Make the backup from the first coordinator that gives one; return the report of it."""
    failures: list[str] = []
    for source in sources:
        try:
            return _Backup(cluster, source, path).make(may_replace=may_replace)
        except _NotGiven as error:
            failures.append(f"{source.address}: {error.args[0]}")
    raise PeerUnreachable(
        "no coordinator gives a copy of its state: " + "; ".join(failures), hint="try again later"
    )


def _sources(cluster: Cluster, named: list[str]) -> Iterator[_Source]:
    """Yield the coordinators to ask, one by one: first the named ones, then other members."""
    found, failures = _asked(cluster, named)
    if not found:
        raise PeerUnreachable(
            "no coordinator can be backed up: " + "; ".join(failures),
            hint="name others with --coordinators",
        )
    if len(clusters := sorted({source.cluster for source in found})) > 1:
        raise UsageError(
            f"coordinators of several clusters answer: {', '.join(clusters)}",
            hint="name one with --cluster",
        )
    yield from _in_order(found)
    members = {address for source in found for address in source.members}
    others, _ = _asked(cluster, sorted(members.difference(named)))
    asked = {source.replica for source in found}  # A named one may have two addresses.
    yield from _in_order(
        [each for each in others if each.cluster == clusters[0] and each.replica not in asked]
    )


def _asked(cluster: Cluster, addresses: list[str]) -> tuple[list[_Source], list[str]]:
    """Return the coordinators that answer with a state, and the faults of the others."""
    found: list[_Source] = []
    failures: list[str] = []
    for address in addresses:
        try:
            status = status_of_coordinator(cluster, address)
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            failures.append(f"{address}: {error}")
            continue
        replica = status["replica"]
        if status["cluster"] is None:
            failures.append(f"{address}: replica {replica} is in no cluster yet")
            continue
        found.append(
            _Source(
                address=address,
                replica=replica,
                cluster=status["cluster"],
                slot=status["applied_slot"],
                is_leader=status["leader"] == replica,
                members=tuple(status["members"].values()),
            )
        )
    return found, failures


def _in_order(sources: list[_Source]) -> list[_Source]:
    """Put coordinators that are far enough first, and the leader last of these."""
    far = max([source.slot for source in sources], default=0) - _LAG_SLOTS
    return sorted(
        sources, key=lambda source: (source.slot < far, source.is_leader, -source.slot)
    )


class _Backup:
    """One backup being made."""

    def __init__(self, cluster: Cluster, source: _Source, path: Path) -> None:
        self._cluster = cluster
        self._source = source
        self._path = path
        self._settings = cluster.settings
        self._contents = Contents()
        self._archives = 0
        self._told_s = time.monotonic()

    def make(self, *, may_replace: bool) -> dict[str, Any]:
        """Make it, and return the report of it."""
        partial = self._path.with_name(f"{self._path.name}.partial-{secrets.token_hex(4)}")
        try:
            with _errors_about(partial):
                told = self._write(partial)
            checked = check_backup(partial)
            if checked.problems:
                raise StoreError(
                    f"the backup isn't what was written: {checked.problems[0]}",
                    hint="check the disk",
                )
            with _errors_about(self._path):
                _give_name(partial, self._path, may_replace=may_replace)
                sync_directory(self._path.parent)
            return {**told, "bytes": checked.size}
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()

    def _write(self, partial: Path) -> dict[str, Any]:
        # First: no coordinator shall keep a copy for somebody who can't write the file.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            return self._fill(file)

    def _fill(self, file: IO[bytes]) -> dict[str, Any]:
        with _not_given():
            opened = self._ask("POST", "/v1/mirror", repeatable=False).json_object()
        session = opened["session"]
        head = {
            "version": VERSION,
            "replica": self._source.replica,
            "rules": opened.get("rules") or 1,
            "made_ms": wall_ms(),
            **{name: opened[name] for name in ("cluster", "origins", "slot", "digest")},
        }
        writer = BackupWriter(file)
        writer.add("backup", **head)
        try:
            with _not_given():
                self._write_rows(writer, session)
        finally:
            # If it doesn't hear this, it closes the copy by itself after a while.
            with contextlib.suppress(PeerUnreachable, Refused, RemoteProtocolError):
                self._ask("POST", f"/v1/mirror/{session}/close")
        problem = self._contents.problem(opened["slot"], opened["digest"])
        if problem is not None:
            who = f"replica {self._source.replica}"
            raise RemoteProtocolError(f"{who} gave half a state: {problem}")
        self._write_archives(writer)
        writer.end()
        _sync_file(file)
        contents = self._contents
        return {
            **{name: head[name] for name in ("cluster", "replica", "slot", "digest")},
            "wall_ms": contents.wall_ms,
            "jobs": contents.jobs,
            "jobs_running": len(contents.running),
            "rows": contents.rows,
            "archives": self._archives,
        }

    def _write_rows(self, writer: BackupWriter, session: str) -> None:
        who = f"replica {self._source.replica}"
        hasher = hashlib.sha256()
        number, is_last = 0, False
        while not is_last:
            body = self._piece(session, number)
            table, text, is_last = check_piece(body, number, hasher, who=who)
            rows = self._contents.take(table, text)
            writer.add("rows", text, table=table, rows=rows)
            number += 1
            self._tell(writer)

    def _piece(self, session: str, number: int) -> bytes:
        """Fetch one piece, again and again while the giver holds the session."""
        give_up_ms = monotonic_ms() + self._settings.mirror_session_idle_ms
        while True:
            try:
                # (`check_piece` checks the rest.)
                return self._ask("GET", f"/v1/mirror/{session}/{number}", checks_rest=True).body
            except PeerUnreachable:
                if monotonic_ms() >= give_up_ms:
                    raise
            time.sleep(_PIECE_PAUSE_S)

    def _write_archives(self, writer: BackupWriter) -> None:
        for program, jobs in sorted(self._contents.programs.items()):
            running = sorted(self._contents.running.intersection(jobs))
            try:
                archive = self._ask("GET", f"/v1/archives/{program}").body
                is_right = hashlib.sha256(archive).hexdigest() == program
            except Refused as error:
                # Nobody who is up has it. An ended job doesn't need it any more.
                if running:
                    raise PeerUnreachable(
                        f"no coordinator that is up has the archive of job {running[0]}: {error}",
                        hint="start the others, and try again",
                    ) from error
                continue
            if not is_right:
                raise RemoteProtocolError(
                    f"replica {self._source.replica} gave another archive than {program}"
                )
            writer.add("archive", archive)
            self._archives += 1
            self._tell(writer)

    def _ask(
        self, method: str, path: str, *, checks_rest: bool = False, repeatable: bool = True
    ) -> HttpResponse:
        return self._cluster.direct(
            self._source.address,
            method,
            path,
            checks_rest=checks_rest,
            repeatable=repeatable,
        )

    def _tell(self, writer: BackupWriter) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _PROGRESS_S:
            self._told_s = now_s
            print_plain(
                f"{self._contents.rows} rows, {self._archives} archives, "
                f"{writer.size / 1e6:.1f} MB",
                file=sys.stderr,
            )


def _give_name(partial: Path, path: Path, *, may_replace: bool) -> None:
    """Give a whole backup its name.

    Raises:
        UsageError: Another one got it meanwhile.
    """
    if not may_replace:
        try:
            os.link(partial, path)
            return
        except FileExistsError:
            raise _exists_already(path) from None
        except OSError:
            # A file system without links, where two at once can't be told apart.
            if path.exists():
                raise _exists_already(path) from None
    os.replace(partial, path)


@contextlib.contextmanager
def _not_given() -> Iterator[None]:
    """Tell faults of one coordinator, where another may help, from faults of all."""
    try:
        yield
    except PeerUnreachable as error:
        raise _NotGiven(error.args[0]) from error
    except Refused as error:
        if error.status in (_UNAVAILABLE, _GONE):
            raise _NotGiven(error.args[0]) from error
        raise


@contextlib.contextmanager
def _errors_about(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write backup {str(path)!r}: {error.strerror}") from error


def _sync_file(file: IO[bytes]) -> None:
    """Bring a file to the disk, and out of memory: it is read back from the disk."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
