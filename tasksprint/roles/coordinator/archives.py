"""Jobs' archives on one replica: kept in its store, copied to a quorum, unpacked for schedulers.

An archive is durable on a quorum before the command that names its digest is proposed. So a
replica that applies the command finds the archive at some living member.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus import Member
from tasksprint.consensus.voters import Voters
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SchedulerFailed,
    StoreDamaged,
    TaskSprintError,
)
from tasksprint.ids import ReplicaId
from tasksprint.net.http_client import HttpClient
from tasksprint.process.program_setup import scheduler_needs_setup, set_up
from tasksprint.roles.coordinator.disk_space import INSUFFICIENT_STORAGE
from tasksprint.roles.coordinator.ports import Log, Turns, Writer, logger
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.surroundings import Surroundings
from tasksprint.roles.last_use import (
    LastUse,
    delete_folders,
    folders_in,
    leftovers_in,
    take_away,
)
from tasksprint.settings import Settings
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["Archives"]

_NOT_FOUND = 404
_RETRY_S = 0.2
_SOUND_MAX = 10_000  # digests of archives that were checked
_SWEEPS = 4  # within the time after which something counts as unused


def _drop(store: ReplicaStore, digest: str) -> None:
    store.drop_blob(digest)


class Archives:
    """The archives of one coordinator.

    Args:
        directory: Where they are unpacked.
        why_not_level: Says why this replica doesn't know all of the log; None: it does.
    """

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        turns: Turns,
        log: Log,
        roster: Roster,
        writer: Writer,
        http: HttpClient,
        surroundings: Surroundings,
        *,
        why_not_level: Callable[[], str | None],
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._turns = turns
        self._log = log
        self._roster = roster
        self._writer = writer
        self._http = http
        self._surroundings = surroundings
        self._why_not_level = why_not_level
        self._archive_uses = LastUse(settings.program_unused_max_ms)
        self._folder_uses = LastUse(settings.program_unused_max_ms)
        self._sound: set[bytes] = set()  # digests of archives that can be unpacked
        self._leftovers = leftovers_in(self._directory)
        self._sweeping: asyncio.Task[None] | None = None
        self._unpacking: dict[str, asyncio.Task[Path]] = {}
        self._wanted: dict[str, int] = {}  # how many wait for each of `_unpacking`
        self._obtained: set[str] = set()  # which of these are here, and being unpacked
        self._obtaining: dict[str, list[Callable[[], None]]] = {}  # whom to tell so
        # One setup at a time in one folder.
        self._setting_up: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._bringing: dict[str, asyncio.Lock] = {}  # by the receiver's address

    def start(self) -> None:
        """Begin to delete unused archives and folders, now and then."""
        self._sweeping = self._turns.background(self._sweep_for_ever())

    def close(self) -> None:
        """Stop deleting."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep_for_ever(self) -> None:
        if self._leftovers:
            await self._delete(self._leftovers)
        pause_s = self._settings.program_unused_max_ms / 1000 / _SWEEPS
        while True:
            await asyncio.sleep(pause_s)
            await self.sweep()

    async def sweep(self) -> None:
        """Delete archives that no job refers to, and folders that no running job uses."""
        schedule = self._log.schedule
        if schedule is None:
            return
        kept = await self._writer.run(lambda store: store.blobs())
        of_jobs, of_running = schedule.programs()
        if self._why_not_level() is not None:
            # The log may name any of them by now: others rely on what was kept here. From
            # when it is level again all have their full time.
            of_jobs = set(kept)
        now_ms = self._turns.now_ms()
        expired = self._archive_uses.expired(kept, of_jobs, now_ms)
        # All at once: an archive that comes in again later is written behind this.
        drops = [self._writer.run(_drop, digest) for digest in expired]
        folders = folders_in(self._directory)
        for digest in self._folder_uses.expired(folders, of_running, now_ms):
            with contextlib.suppress(OSError):  # The next sweep tries again.
                gone = take_away(self._directory, digest)
                await self._delete([gone])
        for digest, drop in zip(expired, drops, strict=True):
            await drop
            logger.info("replica=%d dropped archive %s", self._roster.me, digest)

    async def _delete(self, folders: list[Path]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, delete_folders, folders)

    async def keep(self, archive: bytes) -> str:
        """Write an archive to this replica's store, and return its digest."""
        digest = hashlib.sha256(archive).hexdigest()
        self._archive_uses.use(digest, self._turns.now_ms())
        await self._writer.run(lambda store: store.put_blob(digest, archive))
        return digest

    async def require_sound(self, archive: bytes) -> None:
        """Refuse an archive that no machine would unpack.

        Before anything names it in the log: there it would only fail its job.

        Raises:
            RemoteProtocolError: It can't be unpacked, and why.
        """
        # Not on the loop: a large one takes seconds.
        await asyncio.get_running_loop().run_in_executor(None, self._check, archive)

    def _check(self, archive: bytes) -> None:
        digest = hashlib.sha256(archive).digest()
        if digest not in self._sound:
            self._surroundings.check_archive(archive)
            if len(self._sound) >= _SOUND_MAX:
                self._sound.clear()
            self._sound.add(digest)

    async def take(self, archive: bytes) -> str:
        """Check an archive, and write it here and on enough other members to be a quorum.

        Raises:
            RemoteProtocolError: It can't be unpacked.
            PeerUnreachable, Refused: As for `keep_on_quorum`.
        """
        await self.require_sound(archive)
        return await self.keep_on_quorum(archive)

    async def obtain_sound(self, digest: str) -> bytes | None:
        """Return an archive as `obtain` does, if it can be unpacked.

        Raises:
            RemoteProtocolError: It can't.
        """
        archive = await self.obtain(digest)
        if archive is not None:
            await self.require_sound(archive)
        return archive

    async def keep_on_quorum(self, archive: bytes) -> str:
        """Write an archive here and on enough other members to be a quorum.

        Raises:
            PeerUnreachable: Too few members answered in time.
            Refused: Too few have space for it.
        """
        digest = await self.keep(archive)
        await self._reach(
            self._roster.voters, lambda address: self._copy(address, archive), "the job's archive"
        )
        return digest

    async def _reach(
        self,
        voters: Sequence[Member],
        bring: Callable[[str], Coroutine[Any, Any, TaskSprintError | None]],
        what: str,
    ) -> None:
        """Bring something from here to so many other voters that a quorum has it.

        Returns:
            Once it is there. The rest go on behind: a member that lacks it fetches it when it
            needs it.
        """
        members, have = Voters(voters), {self._roster.me}

        async def bring_to(member: Member) -> tuple[ReplicaId, TaskSprintError | None]:
            return member.replica, await bring(member.address)

        if members.is_quorum(have):
            return
        others = [member for member in voters if member.replica not in have]
        errors: list[TaskSprintError] = []
        for done in asyncio.as_completed(
            [self._turns.spawn(bring_to(member)) for member in others]
        ):
            replica, error = await done
            if error is not None:
                errors.append(error)
                continue
            have.add(replica)
            if members.is_quorum(have):
                return
        text = (
            f"{what} reached {len(have.intersection(members.ids))} of {len(members.ids)} "
            f"coordinators, expected {members.quorum_size}: " + "; ".join(map(str, errors))
        )
        if any(isinstance(e, Refused) and e.status == INSUFFICIENT_STORAGE for e in errors):
            raise Refused(text, status=INSUFFICIENT_STORAGE)
        raise PeerUnreachable(text)

    async def spread(self, members: Sequence[Member]) -> None:
        """Bring the archives of running jobs to a quorum of these members.

        Copies on their way go on even if the caller gives up: a repeated call builds on them.

        Raises:
            PeerUnreachable: Too few answered in time, or nobody who answers has one.
            Refused: Too few have space for them.
        """
        digests: list[str] = []
        for digest in sorted(self._of_running()):
            # (None: its job has ended meanwhile.)
            if await self.has(digest) or await self.obtain(digest) is not None:
                digests.append(digest)
        if digests:
            await self._reach(
                members,
                lambda address: self._bring(address, digests),
                "the archives of running jobs",
            )

    async def _bring(self, address: str, digests: list[str]) -> TaskSprintError | None:
        """Let another member have these archives; return why it hasn't."""
        # One after the other: a later call finds the archives that earlier ones brought.
        bringing = self._bringing.setdefault(address, asyncio.Lock())
        async with bringing:
            try:
                for digest in await self._lacking(address, digests):
                    archive = await self.obtain(digest)
                    if archive is None:
                        continue
                    if (error := await self._copy(address, archive)) is not None:
                        return error
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                return error
            finally:
                # Waiting calls hold this lock. A call after this makes a new one, and may
                # ask at the same time as the last of them.
                if self._bringing.get(address) is bringing:
                    del self._bringing[address]
        return None

    async def _lacking(self, address: str, digests: list[str]) -> list[str]:
        """Return which of these archives another member hasn't."""
        response = await self._http.request(
            address, "POST", "/v1/archives/lacking", body=encode_json({"digests": digests})
        )
        lacking = response.checked().json_object().get("lacking")
        if (
            not isinstance(lacking, list)
            or not all(isinstance(each, str) for each in lacking)
            or not set(digests).issuperset(lacking)
        ):
            said = bounded_repr(lacking, 80)
            raise RemoteProtocolError(f"{address} lacks {said}, asked for others")
        return lacking

    async def lacking(self, digests: Iterable[str]) -> list[str]:
        """Return which of these archives this replica hasn't; the others it keeps for a while."""
        lacking: list[str] = []
        for digest in digests:
            if await self.has(digest):
                self._archive_uses.use(digest, self._turns.now_ms())
            else:
                lacking.append(digest)
        return lacking

    async def has(self, digest: str) -> bool:
        """Whether this replica has an archive."""
        return await self._writer.run(lambda store: store.has_blob(digest))

    async def _copy(self, address: str, archive: bytes) -> TaskSprintError | None:
        """Write an archive to another member; return why it failed."""
        try:
            response = await self._http.request(
                address,
                "POST",
                "/v1/archives",
                body=archive,
                content_type="application/octet-stream",
            )
            response.checked()
        except (PeerUnreachable, Refused, RemoteProtocolError) as error:
            return error
        return None

    async def read(self, digest: str) -> bytes | None:
        """Return an archive that this replica has, or None."""
        return await self._writer.run(_read, digest)

    async def obtain(self, digest: str) -> bytes | None:
        """Return an archive that this replica or another member has.

        Returns:
            Or None: a quorum doesn't have it, and no running job needs it. It was never kept
            on a quorum, or the members have changed since. If somebody wants it there, they
            bring it.

        Raises:
            PeerUnreachable: Nobody who answered has it, but too few did to deny it.
        """
        self._archive_uses.use(digest, self._turns.now_ms())
        archive = await self.read(digest)
        if archive is not None:
            return archive
        voters, lacking = Voters(self._roster.voters), {self._roster.me}
        failures: list[str] = []
        for member, address in self._roster.others().items():
            try:
                archive = await self._fetch(address, digest)
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                failures.append(str(error))
                continue
            if archive is not None:
                await self.keep(archive)
                return archive
            lacking.add(member)
        if voters.is_quorum(lacking) and digest not in self._of_running():
            return None
        raise PeerUnreachable(
            f"no archive {digest!r} at {len(lacking.intersection(voters.ids))} of "
            f"{len(voters.ids)} coordinators, and the others may have it: " + "; ".join(failures)
        )

    async def prepared(
        self,
        digest: str,
        manifest: Mapping[str, Any],
        *,
        on_obtained: Callable[[], None],
        on_step: Callable[[str], None],
    ) -> Path:
        """Return the folder with an archive's files, set up if the scheduler needs that.

        Args:
            manifest: The job's manifest.
            on_obtained: Called once the archive is here: the rest is work on this machine.
            on_step: Called with the next step, in words: its setup, or the wait for that.

        Raises:
            RemoteProtocolError: The archive can't be unpacked.
            SchedulerFailed: Its setup failed.
        """
        directory = await self.unpacked(digest, on_obtained=on_obtained)
        if scheduler_needs_setup(directory, manifest):
            setup = f"setup {shlex.join(manifest['setup'])!r:.200}"
            lock = self._setting_up.setdefault(digest, asyncio.Lock())
            if lock.locked():
                on_step(f"waits for {setup}, which runs for another scheduler of this program")
            async with lock:
                on_step(f"runs {setup}")
                await set_up(
                    directory,
                    manifest["setup"],
                    manifest.get("environment", {}),
                    timeout_ms=self._settings.setup_timeout_ms,
                    failure=SchedulerFailed,
                )
        return directory

    async def unpacked(
        self, digest: str, *, on_obtained: Callable[[], None] = lambda: None
    ) -> Path:
        """Return the folder with an archive's files, fetching it from a member if need be.

        It waits for as long as no living member has it.
        """
        self._folder_uses.use(digest, self._turns.now_ms())
        task = self._unpacking.get(digest)
        if task is None:
            task = self._turns.spawn(self._unpack(digest))
            self._unpacking[digest] = task
        if digest in self._obtained:
            on_obtained()
        else:
            self._obtaining.setdefault(digest, []).append(on_obtained)
        self._wanted[digest] = self._wanted.get(digest, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._wanted[digest] -= 1
            if not self._wanted[digest]:
                # Done, or nobody wants it any more: its job has ended.
                del self._wanted[digest], self._unpacking[digest]
                self._obtaining.pop(digest, None)
                self._obtained.discard(digest)
                task.cancel()

    async def _unpack(self, digest: str) -> Path:
        found: bytes | None = None
        while found is None:
            try:
                found = await self.obtain(digest)
            except PeerUnreachable:
                pass  # It stands in the log, so somebody has it and will be back.
            if found is None:
                await asyncio.sleep(_RETRY_S)
        self._obtained.add(digest)
        for on_obtained in self._obtaining.pop(digest, ()):
            on_obtained()
        unpack = self._surroundings.unpack
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, unpack, found, digest, self._directory)

    async def _fetch(self, address: str, digest: str) -> bytes | None:
        """Return an archive that another member has; None: it hasn't."""
        response = await self._http.request(
            address, "GET", f"/v1/archives/{digest}", query={"here": 1}, digest=digest
        )
        return None if response.status == _NOT_FOUND else response.checked().body

    def _of_running(self) -> Collection[str]:
        schedule = self._log.schedule
        return () if schedule is None else schedule.programs()[1]


def _read(store: ReplicaStore, digest: str) -> bytes | None:
    try:
        return store.read_blob(digest)
    except StoreDamaged as error:
        logger.warning("%s; it is fetched anew", error.args[0])
        store.drop_blob(digest)
        return None
