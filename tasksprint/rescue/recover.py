"""`recover`: a cluster of one from a survivor's files, when the majority is lost for good.

It works offline, on the data directory of one member. Entries behind the chosen prefix that
this member accepted count as chosen. They may have been: a former leader may have had its
majority with this member. The new cluster has another name, and the member a new incarnation.
So even if all former members come back, nothing they say counts here, nor the other way round.

Everything is one transaction of the store. This module knows the log and the state. It writes
a founding entry; from that, consensus/ decides who may vote, as ever.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tasksprint.consensus import (
    Founding,
    LogEntry,
    Member,
    Recovered,
    decode_founding,
    encode_founding,
)
from tasksprint.consensus.membership import Membership, decode_membership_value
from tasksprint.consensus.voters import Memberships
from tasksprint.coordination.rows import Key, Row
from tasksprint.errors import (
    EXIT_OK,
    SettingsError,
    StoreDamaged,
    StoreError,
    StoreLost,
    UsageError,
)
from tasksprint.ids import Incarnation, ReplicaId
from tasksprint.net.addresses import parse_address
from tasksprint.next_steps import program_command
from tasksprint.process.clock import wall_ms
from tasksprint.process.environment import settings_from_environment
from tasksprint.process.terminal import print_answer, print_plain
from tasksprint.rescue.log_skip import apply_entry, stored_state
from tasksprint.store.records import AppliedPoint, Commit
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["Findings", "Survivor", "ago", "new_cluster", "new_incarnation", "run_recover"]


def new_cluster() -> str:
    """Return the name of a cluster that nobody has."""
    return secrets.token_hex(8)


def new_incarnation() -> Incarnation:
    """Return the name of a new life."""
    return Incarnation(secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Findings:
    """The contents of a survivor's store, as `recover --json` prints them."""

    replica: int
    role: str  # "voter" or "learner"
    cluster: str
    members: dict[str, str]  # addresses by id
    shut_out: list[int]  # members whose messages won't count any more
    applied_slot: int  # up to which the stored state goes
    chosen_slot: int  # up to which this replica knows the log to be chosen
    last_slot: int  # up to which it will count as chosen
    last_ballot: list[int] | None  # the ballot that it was accepted under: [round, replica]
    given_up: list[int]  # accepted slots that can't count, for one before them isn't here
    log_ms: int  # time of the log at its end, in milliseconds
    wall_ms: int  # wall time of the last tick; 0: there was none
    jobs_running: int
    jobs_ended: int
    jobs_without_archive: list[int]  # running ones whose programs only others have


class Survivor:
    """The opened store of a member, with all that can count applied to its state.

    Raises:
        SettingsError: The store is no founded member's, or needs no recovery.
        StoreError: It can't be trusted.
    """

    def __init__(self, store: ReplicaStore) -> None:
        self._store = store
        recovery = store.recover(after_slot=store.applied.slot)
        recovered = recovery.consensus
        if recovered.founding is None:
            raise SettingsError(
                f"replica {store.replica} never belonged to a cluster, so it has nothing to "
                "go on with",
                hint="recover another member's data directory",
            )
        self.founding = decode_founding(recovered.founding)
        membership = _newest_membership(recovered)
        self.schedule = stored_state(store, recovered)
        self._rows: dict[tuple[str, Key], Row] = {}
        last, given_up = self._apply(recovered.accepted)
        for entry in recovered.accepted:  # what was applied just now may have changed it
            told = decode_membership_value(entry.value)
            if told is not None and entry.slot <= self.schedule.applied_slot:
                membership = told
        me = store.replica
        member = membership.member(me)
        if member is None or member.incarnation != recovered.incarnation:
            raise SettingsError(
                f"replica {me} is not a member of cluster {self.founding.cluster!r} (any more)",
                hint="recover another member's data directory",
            )
        if membership.is_voter(me) and len(membership.voters) == 1:
            raise SettingsError(
                f"replica {me} is the only one that votes, so its cluster has its majority",
                hint="start it: tasksprint coordinator --data-dir …",
            )
        if last is None and store.applied.slot:  # it stands in the tail of the log, if anywhere
            slot = store.applied.slot
            with contextlib.suppress(StoreDamaged):  # It is only told, and isn't needed.
                last = next(iter(store.read_log(slot, slot + 1, 1)), None)
        self.member = member
        self.membership = membership
        known = (*membership.voters, *membership.learners)
        jobs = self.schedule.jobs()
        running = len(self.schedule.running_jobs())
        self.findings = Findings(
            replica=me,
            role="voter" if membership.is_voter(me) else "learner",
            cluster=self.founding.cluster,
            members={str(each.replica): each.address for each in known},
            shut_out=[each.replica for each in known if each.replica != me],
            applied_slot=store.applied.slot,
            chosen_slot=max(recovered.known_end, recovered.chosen_end) - 1,
            last_slot=self.schedule.applied_slot,
            last_ballot=None if last is None else [last.ballot.round, last.ballot.replica],
            given_up=given_up,
            log_ms=self.schedule.log_time_ms,
            wall_ms=self.schedule.wall_ms,
            jobs_running=running,
            jobs_ended=len(jobs) - running,
            jobs_without_archive=self._without_archive(),
        )

    def _without_archive(self) -> list[int]:
        schedule, here = self.schedule, set(self._store.blobs())
        return [
            job
            for job in schedule.running_jobs()
            if (summary := schedule.job_summary(job)) is None or summary["program"] not in here
        ]

    def _apply(self, accepted: Iterable[LogEntry]) -> tuple[LogEntry | None, list[int]]:
        """Apply entries up to the first gap; return the last one, and the slots behind the gap."""
        schedule = self.schedule
        last: LogEntry | None = None
        given_up: list[int] = []
        for entry in accepted:
            if entry.slot != schedule.applied_slot + 1:
                given_up.append(entry.slot)
                continue
            self._take(apply_entry(schedule, entry).rows)
            last = entry
        return last, given_up

    def _take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._rows[row.table, row.key] = row

    def recover(self, cluster: str, incarnation: Incarnation, address: str) -> None:
        """Make the store that of a cluster of one, in one transaction."""
        me = self.member.replica
        retired = {*self.membership.retired, *map(ReplicaId, self.findings.shut_out)}
        founding = Founding(
            cluster,
            (Member(me, incarnation, address),),
            origins=(*self.founding.origins, self.founding.cluster),
            retired=tuple(sorted(retired)),
            rules=self.schedule.rules.version,
        )
        self._take(self.schedule.found_anew(cluster, (me,)))
        applied = AppliedPoint(self.schedule.applied_slot, self.schedule.digest)
        commit = Commit(rows=tuple(self._rows.values()), applied=applied)
        self._store.begin_anew(encode_founding(founding), cluster, commit)


def _newest_membership(recovered: Recovered) -> Membership:
    memberships = Memberships.remembered(recovered.founding, recovered.memberships)
    assert memberships.newest is not None
    return memberships.newest


# --- the command ---

# Not a replica's usual advice on damage: "start it again" drops the state, for another's copy.
_REMEDY = "nothing was changed; recover another member's data directory, or restore a backup"


def run_recover(options: argparse.Namespace) -> int:
    """Carry out `recover`."""
    if options.advertise is not None:
        parse_address(options.advertise)
    settings = settings_from_environment()
    try:
        store = ReplicaStore.open_there(Path(options.data_dir), settings=settings)
    except (StoreDamaged, StoreLost) as error:
        raise StoreError(error.args[0], hint=_REMEDY) from error
    with contextlib.closing(store):
        survivor = _look(store)
        findings = survivor.findings
        print_answer(asdict(findings), _describe(findings), as_json=options.json)
        if options.dry_run:
            return EXIT_OK
        _confirm(findings, options.yes_lose)
        cluster = new_cluster()
        address = options.advertise or survivor.member.address
        with _damage_of_log():
            survivor.recover(cluster, new_incarnation(), address)
    print_plain(
        f"replica {findings.replica} is the only member of the new cluster {cluster} now, at "
        f"{address}; start it as before. Delete the data directories of the former members "
        f"({_listed(findings.shut_out)}), start new ones with new ids, empty directories and "
        f"--join {address}, and add each: {program_command('member', 'add')} ID=HOST:PORT",
        file=sys.stderr,
    )
    return EXIT_OK


@contextlib.contextmanager
def _damage_of_log() -> Iterator[None]:
    """Give advice if the state is whole, and pages of the log can't be read."""
    try:
        yield
    except StoreDamaged as error:
        hint = "nothing was changed; start this replica once: it mends its log and keeps its state"
        raise StoreError(error.args[0], hint=hint) from error


def _look(store: ReplicaStore) -> Survivor:
    """Find out the contents of a store; a store with a damaged state is refused.

    All of the state is looked through. Once this replica is alone, nobody can replace what is
    missing here.
    """
    try:
        store.check_state()
    except StoreDamaged as error:
        raise StoreError(error.args[0], hint=_REMEDY) from error
    with _damage_of_log():
        survivor = Survivor(store)
    findings = survivor.findings
    if not findings.last_slot and findings.chosen_slot:
        raise StoreError(
            f"replica {findings.replica} has lost its state to a damaged disk: of the slots "
            f"1 to {findings.chosen_slot} it has nothing",
            hint=_REMEDY,
        )
    return survivor


def _describe(findings: Findings) -> list[str]:
    last = findings.last_slot
    since = f"after {_time(findings.wall_ms)}" if findings.wall_ms else f"after slot {last}"
    ballot = findings.last_ballot
    under = "" if ballot is None else f", accepted under ballot {ballot[0]}.{ballot[1]}"
    members = ", ".join(f"{number}={where}" for number, where in findings.members.items())
    lines = [
        f"replica {findings.replica}, a {findings.role} of cluster {findings.cluster}",
        f"  members: {members}",
        f"  log: known to be chosen up to slot {findings.chosen_slot}, goes on up to slot {last}"
        + under,
        f"  last tick: {_time(findings.wall_ms)}, {ago(findings.wall_ms)}",
        f"  jobs: {findings.jobs_running} running, {findings.jobs_ended} ended",
        "what recovery does:",
        f"  - makes a new cluster whose only member is replica {findings.replica}, and shuts out "
        f"{_listed(findings.shut_out)} for ever, even if all of them come back",
    ]
    if last > findings.chosen_slot:
        lines.append(
            f"  - counts the slots {findings.chosen_slot + 1} to {last} as chosen: they were "
            "accepted here, and may have been"
        )
    if findings.given_up:
        lines.append(
            f"  - gives up {len(findings.given_up)} accepted slots from "
            f"{findings.given_up[0]} on: slot {last + 1} before them isn't here"
        )
    lines.append("what may be lost:")
    if last < findings.chosen_slot:
        lines.append(
            f"  - the slots {last + 1} to {findings.chosen_slot}: they were chosen, and are "
            "damaged or missing here"
        )
    if findings.jobs_without_archive:
        listed = ", ".join(map(str, findings.jobs_without_archive))
        lines.append(
            f"  - the programs of the running jobs {listed}: their archives aren't here; cancel "
            "them, and hand them in again"
        )
    return [
        *lines,
        f"  - everything that was acknowledged {since} and that only others heard of: jobs, "
        "cancellations, results",
        "before you go on: run this with --dry-run on every data directory that is left, and "
        "recover the one with the highest ballot, among equals the one that goes on furthest",
    ]


def _confirm(findings: Findings, given: str | None) -> None:
    """Let the operator type the cluster's name."""
    if given is None:
        if not sys.stdin.isatty():
            raise UsageError(
                "recovery needs to be confirmed, and nobody is at a terminal",
                hint=f"nothing was changed; --yes-lose {findings.cluster} confirms it",
            )
        print_plain(
            f"type the cluster's name ({findings.cluster}) to go on: ", end="", file=sys.stderr
        )
        sys.stderr.flush()
        given = sys.stdin.readline().strip()
    if given != findings.cluster:
        raise UsageError(
            f"{given!r} is not the cluster's name, {findings.cluster!r}",
            hint="nothing was changed",
        )


def _listed(replicas: list[int]) -> str:
    return ", ".join(f"replica {replica}" for replica in replicas)


def _time(then_ms: int) -> str:
    if not then_ms:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then_ms / 1000))


def ago(then_ms: int) -> str:
    """Return how long ago a wall time was, for people."""
    seconds = max(wall_ms() - then_ms, 0) / 1000
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.1f} s ago"
