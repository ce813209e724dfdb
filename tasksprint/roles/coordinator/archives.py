"""Jobs' archives on one replica: kept in its store, copied to a quorum, unpacked for schedulers.

An archive is durable on a quorum before the command that names its digest is
proposed; so whoever applies that command finds it at some living member.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from tasksprint.consensus import Member
from tasksprint.encoding import encode_json
from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SchedulerFailed,
    StoreDamaged,
    TaskSprintError,
)
from tasksprint.process.program_setup import scheduler_needs_setup, set_up
from tasksprint.roles.coordinator.disk_space import INSUFFICIENT_STORAGE
from tasksprint.roles.coordinator.metrics import why_not_level
from tasksprint.roles.last_use import (
    LastUse,
    delete_folders,
    folders_in,
    leftovers_in,
    take_away,
)
from tasksprint.store.replica_store import ReplicaStore

if TYPE_CHECKING:
    from tasksprint.roles.coordinator.coordinator import Coordinator

__all__ = ["Programs"]

_log = logging.getLogger("tasksprint.coordinator")

_NOT_FOUND = 404
_RETRY_S = 0.2
_SOUND_MAX = 10_000  # digests of archives that were checked
_SWEEPS = 4  # within the time after which something counts as unused


def _keep(store: ReplicaStore, digest: str, archive: bytes) -> None:
    store.put_blob(digest, archive)


def _drop(store: ReplicaStore, digest: str) -> None:
    store.drop_blob(digest)


class Programs:
    """The archives of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._directory = coordinator.options.data_dir / "programs"
        unused_max_ms = coordinator.settings.program_unused_max_ms
        self._archive_uses = LastUse(unused_max_ms)
        self._folder_uses = LastUse(unused_max_ms)
        self._sound: set[bytes] = set()  # digests of archives that can be unpacked
        self._leftovers = leftovers_in(self._directory)
        self._sweeping: asyncio.Task[None] | None = None
        self._unpacking: dict[str, asyncio.Task[Path]] = {}
        self._wanted: dict[str, int] = {}  # how many wait for each of `_unpacking`
        self._obtained: set[str] = set()  # which of these are here, and being unpacked
        self._obtaining: dict[str, list[Callable[[], None]]] = {}  # whom to tell so
        # One setup at a time in one folder.
        self._setting_up: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._bringing: dict[str, asyncio.Lock] = {}  # by the address of who gets archives

    def start(self) -> None:
        """Begin to delete what nobody uses, now and then."""
        self._sweeping = self._coordinator.background(self._sweep_for_ever())

    def close(self) -> None:
        """End that."""
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep_for_ever(self) -> None:
        if self._leftovers:
            await self._delete(self._leftovers)
        pause_s = self._coordinator.settings.program_unused_max_ms / 1000 / _SWEEPS
        while True:
            await asyncio.sleep(pause_s)
            await self.sweep()

    async def sweep(self) -> None:
        """Delete archives that no job refers to, and folders that no running job uses."""
        coordinator = self._coordinator
        if coordinator.schedule is None:
            return
        kept = await coordinator.writer.run(lambda store: store.blobs())
        of_jobs, of_running = coordinator.schedule.programs()
        if why_not_level(coordinator) is not None:
            # The log may name any of them by now: others rely on what was kept here. From
            # when it is level again all have their full time.
            of_jobs = set(kept)
        now_ms = coordinator.monotonic_ms()
        expired = self._archive_uses.expired(kept, of_jobs, now_ms)
        # All at once: an archive that comes in again later is written behind this.
        drops = [coordinator.writer.run(_drop, digest) for digest in expired]
        folders = folders_in(self._directory)
        for digest in self._folder_uses.expired(folders, of_running, now_ms):
            with contextlib.suppress(OSError):  # The next sweep tries again.
                gone = take_away(self._directory, digest)
                await self._delete([gone])
        for digest, drop in zip(expired, drops, strict=True):
            await drop
            _log.info("replica=%d dropped archive %s", coordinator.options.me, digest)

    async def _delete(self, folders: list[Path]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, delete_folders, folders)

    async def keep(self, archive: bytes) -> str:
        """Write an archive to this replica's store, and return its digest."""
        digest = hashlib.sha256(archive).hexdigest()
        self._archive_uses.use(digest, self._coordinator.monotonic_ms())
        await self._coordinator.writer.run(_keep, digest, archive)
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
            self._coordinator.surroundings.check_archive(archive)
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
        others = self._other_voters()
        # (One that is to be added keeps it, too, but has no vote yet.)
        is_voter = self._is_voter()
        needed = (len(others) + is_voter) // 2 + 1 - is_voter
        if needed == 0:
            return digest

        tasks = [self._coordinator.tasks.spawn(self._copy(address, archive)) for address in others]
        kept = 0
        failures: list[str] = []
        is_short = False
        for done in asyncio.as_completed(tasks):
            if (error := await done) is not None:
                failures.append(str(error))
                is_short |= isinstance(error, Refused) and error.status == INSUFFICIENT_STORAGE
                continue
            kept += 1
            if kept >= needed:
                # The rest go on behind: a member that lacks it fetches it when it needs it.
                return digest
        text = (
            f"the job's archive reached {kept + is_voter} of {len(others) + is_voter} "
            f"coordinators, expected {needed + is_voter}: " + "; ".join(failures)
        )
        if is_short:
            raise Refused(text, status=INSUFFICIENT_STORAGE)
        raise PeerUnreachable(text)

    async def spread(self, members: Collection[Member]) -> None:
        """Let enough of these members to be a quorum have the archives of running jobs.

        What is on its way stays so, whoever waits for it: a repeated call goes on from there.

        Raises:
            PeerUnreachable: Too few answered in time, or nobody who answers has one.
        """
        coordinator = self._coordinator
        me = coordinator.options.me
        digests: list[str] = []
        for digest in sorted(self._of_running()):
            # (None: its job has ended meanwhile.)
            if await self.has(digest) or await self.obtain(digest) is not None:
                digests.append(digest)
        needed = len(members) // 2 + 1
        kept = sum(member.replica == me for member in members)
        if not digests or kept >= needed:
            return
        tasks = [
            coordinator.background(self._bring(member.address, digests))
            for member in members
            if member.replica != me
        ]
        failures: list[str] = []
        for done in asyncio.as_completed(tasks):
            if (error := await done) is not None:
                failures.append(str(error))
                continue
            kept += 1
            if kept >= needed:
                return
        raise PeerUnreachable(
            f"the archives of running jobs reached {kept} of {len(members)} coordinators "
            f"that are to vote, expected {needed}: " + "; ".join(failures)
        )

    async def _bring(self, address: str, digests: list[str]) -> TaskSprintError | None:
        """Let another member have these archives; return why it hasn't."""
        # One after the other: who comes later finds there what was brought before.
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
                # Whoever waits has it; who comes after that asks beside the last of them.
                if self._bringing.get(address) is bringing:
                    del self._bringing[address]
        return None

    async def _lacking(self, address: str, digests: list[str]) -> list[str]:
        """Return which of these archives another member hasn't."""
        response = await self._coordinator.http.request(
            address, "POST", "/v1/archives/lacking", body=encode_json({"digests": digests})
        )
        lacking = response.checked().json_object().get("lacking")
        if not isinstance(lacking, list) or not set(digests).issuperset(map(str, lacking)):
            raise RemoteProtocolError(f"{address} lacks {lacking!r:.80}, asked for others")
        return lacking

    async def lacking(self, digests: Iterable[str]) -> list[str]:
        """Return which of these archives this replica hasn't; the others it keeps for a while."""
        lacking: list[str] = []
        for digest in digests:
            if await self.has(digest):
                self._archive_uses.use(digest, self._coordinator.monotonic_ms())
            else:
                lacking.append(digest)
        return lacking

    async def has(self, digest: str) -> bool:
        """Whether this replica has an archive."""
        return await self._coordinator.writer.run(lambda store: store.has_blob(digest))

    async def _copy(self, address: str, archive: bytes) -> TaskSprintError | None:
        """Write an archive to another member; return why it failed."""
        try:
            response = await self._coordinator.http.request(
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
        return await self._coordinator.writer.run(_read, digest)

    async def obtain(self, digest: str) -> bytes | None:
        """Return an archive that this replica or another member has.

        Returns:
            Or None: a quorum doesn't have it, and no running job needs it. It was never kept
            on a quorum, or the members have changed since: who wants it there brings it.

        Raises:
            PeerUnreachable: Nobody who answered has it, but too few did to deny it.
        """
        self._archive_uses.use(digest, self._coordinator.monotonic_ms())
        archive = await self.read(digest)
        if archive is not None:
            return archive
        voters = self._other_voters()
        total = len(voters) + self._is_voter()
        lacking = int(self._is_voter())
        failures: list[str] = []
        for address in self._others():
            try:
                archive = await self._fetch(address, digest)
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                failures.append(str(error))
                continue
            if archive is not None:
                await self.keep(archive)
                return archive
            lacking += address in voters
        if lacking > total // 2 and digest not in self._of_running():
            return None
        raise PeerUnreachable(
            f"no archive {digest!r} at {lacking} of {total} coordinators, "
            "and the others may have it: " + "; ".join(failures)
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
            manifest: Of the job.
            on_obtained: Called once the archive is here: what follows is work on this machine.
            on_step: Called with what comes next, in words: its setup, or to wait for that.

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
                    timeout_ms=self._coordinator.settings.setup_timeout_ms,
                    failure=SchedulerFailed,
                )
        return directory

    async def unpacked(
        self, digest: str, *, on_obtained: Callable[[], None] = lambda: None
    ) -> Path:
        """Return the folder with an archive's files, fetching it from a member if need be.

        It waits for as long as no living member has it.
        """
        self._folder_uses.use(digest, self._coordinator.monotonic_ms())
        task = self._unpacking.get(digest)
        if task is None:
            task = self._coordinator.tasks.spawn(self._unpack(digest))
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
        unpack = self._coordinator.surroundings.unpack
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, unpack, found, digest, self._directory)

    async def _fetch(self, address: str, digest: str) -> bytes | None:
        """Return an archive that another member has; None: it hasn't."""
        response = await self._coordinator.http.request(
            address, "GET", f"/v1/archives/{digest}", query={"here": 1}, digest=digest
        )
        return None if response.status == _NOT_FOUND else response.checked().body

    def _of_running(self) -> Collection[str]:
        schedule = self._coordinator.schedule
        return () if schedule is None else schedule.programs()[1]

    def _others(self) -> list[str]:
        members, me = self._coordinator.members.known(), self._coordinator.options.me
        return [address for member, address in members.items() if member != me]

    def _is_voter(self) -> bool:
        membership = self._coordinator.replica.membership
        return membership is None or membership.is_voter(self._coordinator.options.me)

    def _other_voters(self) -> list[str]:
        membership = self._coordinator.replica.membership
        if membership is None:
            return self._others()
        me = self._coordinator.options.me
        return [voter.address for voter in membership.voters if voter.replica != me]


def _read(store: ReplicaStore, digest: str) -> bytes | None:
    try:
        return store.read_blob(digest)
    except StoreDamaged as error:
        _log.warning("%s; it is fetched anew", error.args[0])
        store.drop_blob(digest)
        return None
