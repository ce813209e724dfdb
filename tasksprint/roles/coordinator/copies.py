"""Copies of the mirror: for a replica that was away for too long, and for backups.

Sometimes a replica lacks entries, and no replica within its reach keeps them any more. It then
opens a session at a replica that can give a copy. The giver makes a snapshot of its mirror, and
holds it for a bounded time while it goes on serving. The receiver asks for the pieces one by
one, by number. If the last given piece got lost, it can be asked for again. Each piece has its
own SHA-256, and that of all pieces up to it: so nothing is missing and nothing came twice. When
all pieces are there, the copy must name the slot and digest that the session began with. Then
it replaces the receiver's mirror in one transaction.

    POST /v1/mirror?replica=ID          {"session", "cluster", "slot", "digest", "memberships",
                                         "origins", "rules"}
    GET  /v1/mirror/{session}/{number}  a header line (JSON), then rows (JSON)
    POST /v1/mirror/{session}/close

A receiver that names no replica takes a copy for a backup: the log isn't kept for it.

Knows sessions, pieces and their checks. Only the stores know the contents of a piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from tasksprint.bounded_text import bounded_repr
from tasksprint.consensus import Replica
from tasksprint.coordination.state_rows import digest_row, rules_of
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError, StoreDamaged
from tasksprint.ids import ReplicaId, Slot
from tasksprint.net.http_client import HttpClient
from tasksprint.net.router import Handler, Request, Response, json_response
from tasksprint.release import Release
from tasksprint.roles.coordinator.ports import Log, Mirror, Turns, Writer, logger
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.settings import Settings
from tasksprint.store.copy_pieces import check_piece, piece_body
from tasksprint.store.mirror_snapshot import FIRST_PLACE, MirrorSnapshot
from tasksprint.store.mirror_tables import CopyPlace
from tasksprint.store.records import AppliedPoint
from tasksprint.store.replica_store import ReplicaStore

__all__ = ["MirrorFetcher", "MirrorPaths"]

_SESSIONS_MAX = 2
_GONE = 410
_BYTES = "application/octet-stream"
_BUSY = 503
# A lost answer is asked for again after this, and a whole copy begun anew.
_PIECE_PAUSE_S = 0.2
_COPY_PAUSE_S = 1.0


# --- giving ---


class _Session:
    """One open snapshot, and how far it was given."""

    def __init__(self, snapshot: MirrorSnapshot, taker: ReplicaId | None, now_ms: int) -> None:
        self.snapshot = snapshot
        self.taker = taker
        self.end_slot = Slot(snapshot.applied.slot + 1)
        self.opened_ms = now_ms
        self.used_ms = now_ms
        self.next_number = 0
        self.next_place: CopyPlace | None = FIRST_PLACE
        self.hasher = hashlib.sha256()
        self.last_body = b""  # of the piece before `next_number`
        # The piece `reading_number` is being read: until then the thread has these fields.
        self.reading: asyncio.Future[bytes] | None = None
        self.reading_number = 0


class MirrorPaths:
    """Gives copies of this replica's mirror."""

    def __init__(
        self,
        settings: Settings,
        turns: Turns,
        replica: Replica,
        mirror: Mirror,
        writer: Writer,
        random: Random,
    ) -> None:
        self._settings = settings
        self._turns = turns
        self._replica = replica
        self._mirror = mirror
        self._writer = writer
        self._random = random
        self._sessions: dict[str, _Session] = {}
        self._opening = 0  # sessions that are about to be there
        # Replicas that took a copy: its slot, and how long they are waited for.
        self._following: dict[ReplicaId, tuple[Slot, int]] = {}
        # Snapshots are read beside the loop and beside the writer.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._sweep: asyncio.TimerHandle | None = None

    def add_to(self, add: Callable[[str, str, Handler], None]) -> None:
        """Add the paths; only members and `backup` may ask, for they have the key."""
        add("POST", "/v1/mirror", self._open)
        add("GET", "/v1/mirror/{session:text}/{number}", self._piece)
        add("POST", "/v1/mirror/{session:text}/close", self._close)

    async def _open(self, request: Request) -> Response:
        self._close_old()
        if len(self._sessions) + self._opening >= _SESSIONS_MAX:
            raise Refused(f"this replica gives {_SESSIONS_MAX} copies already", status=_BUSY)
        self._opening += 1
        try:
            return await self._open_one(request)
        finally:
            self._opening -= 1

    async def _open_one(self, request: Request) -> Response:
        taker = ReplicaId(request.query_integer("replica", 0)) or None
        # The rows that wait for company are part of the copy, too.
        await self._mirror.handed_over()
        snapshot, rules = await self._writer.run(_open_snapshot)
        founding = self._replica.founding
        name = self._random.randbytes(16).hex()
        self._sessions[name] = _Session(snapshot, taker, self._turns.now_ms())
        self._close_old()
        logger.info(
            "replica=%d gives a copy of its state at slot %d to %s",
            self._replica.me,
            snapshot.applied.slot,
            request.peer,
        )
        return json_response(
            {
                "session": name,
                "cluster": snapshot.cluster,
                "slot": snapshot.applied.slot,
                "digest": snapshot.applied.digest,
                "origins": () if founding is None else founding.origins,
                "rules": rules,
                "memberships": None
                if snapshot.memberships is None
                else snapshot.memberships.decode(),
            }
        )

    def keep_from(self, now_ms: int) -> Slot | None:
        """Return the first slot from which the log must stay for receivers of copies.

        While a copy travels, the log grows behind it. If only its usual tail were kept, a large
        copy of a busy cluster would always come too late, and so would the next one. So the log
        stays from the oldest copy on. For a replica that has taken one, it stays until that
        replica is level. All this is bounded in time.
        """
        if not self._sessions and not self._following:
            return None
        slots = [each.end_slot for each in self._sessions.values() if each.taker is not None]
        if self._following:
            status = self._replica.status()
            for taker, (end_slot, until_ms) in list(self._following.items()):
                peer = status.peers.get(taker)
                known_end = end_slot if peer is None else max(peer.chosen_end, end_slot)
                is_level = status.chosen_end - known_end < self._settings.log_tail_slots // 2
                if is_level or now_ms >= until_ms:
                    del self._following[taker]
                else:
                    slots.append(known_end)
        return min(slots, default=None)

    async def _piece(self, request: Request) -> Response:
        name, number = request.text("session"), request.integer("number")
        session = self._sessions.get(name)
        if session is None:
            raise Refused(f"copy {name!r} was closed; begin a new one", status=_GONE)
        session.used_ms = self._turns.now_ms()
        reading = session.reading
        if reading is None and number == session.next_number - 1:
            return Response(200, session.last_body, _BYTES, covers_line=True)
        if reading is None and number == session.next_number and session.next_place is not None:
            reading = self._begin_reading(session)
        if reading is None or number != session.reading_number:
            expected = session.next_number if session.reading is None else session.reading_number
            raise Refused(f"piece {number} can't be given, expected {expected}", status=409)
        try:
            # If an answer was late and the receiver asks again, it waits for the same reading.
            # If it has gone, the reading goes on.
            body = await asyncio.shield(reading)
        except StoreDamaged as error:
            raise Refused("the state of this replica is damaged", status=_BUSY) from error
        return Response(200, body, _BYTES, covers_line=True)

    def _begin_reading(self, session: _Session) -> asyncio.Future[bytes]:
        assert session.next_place is not None
        session.reading_number = session.next_number
        session.reading = asyncio.get_running_loop().run_in_executor(
            self._executor, self._read, session, session.next_place
        )

        def done(reading: asyncio.Future[bytes]) -> None:
            session.reading = None
            session.used_ms = self._turns.now_ms()
            error = None if reading.cancelled() else reading.exception()
            if isinstance(error, StoreDamaged):
                self._turns.fail(error)

        session.reading.add_done_callback(done)
        return session.reading

    def _read(self, session: _Session, place: CopyPlace) -> bytes:
        """Read the next piece; on the thread."""
        piece = session.snapshot.piece(
            place,
            rows_max=self._settings.mirror_piece_rows,
            bytes_max=self._settings.mirror_piece_bytes_max,
        )
        session.hasher.update(piece.text)
        session.last_body = piece_body(piece, session.next_number, session.hasher.hexdigest())
        session.next_place = piece.next_place
        session.next_number += 1
        return session.last_body

    async def _close(self, request: Request) -> Response:
        self._drop(request.text("session"))
        return json_response({})

    def _drop(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            until_ms = self._turns.now_ms() + self._settings.mirror_session_max_ms
            if session.taker is not None:
                self._following[session.taker] = session.end_slot, until_ms
            # On the thread: behind a piece that is being read.
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self._executor, session.snapshot.close)

    def _close_old(self) -> None:
        """Close sessions that are too old, and come back for the others."""
        now_ms = self._turns.now_ms()
        settings = self._settings
        for name, session in list(self._sessions.items()):
            is_idle = now_ms - session.used_ms >= settings.mirror_session_idle_ms
            is_old = now_ms - session.opened_ms >= settings.mirror_session_max_ms
            if (is_idle and session.reading is None) or is_old:
                logger.warning(
                    "replica=%d closes a copy of its state after %d pieces: %s",
                    self._replica.me,
                    session.next_number,
                    "it took too long" if is_old else "nobody asked for more",
                )
                self._drop(name)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._sessions:
            delay_s = settings.mirror_session_idle_ms / 1000 / 2
            self._sweep = asyncio.get_running_loop().call_later(delay_s, self._close_old)

    def close(self) -> None:
        """Close everything."""
        if self._sweep is not None:
            self._sweep.cancel()
        for name in list(self._sessions):
            self._drop(name)
        self._executor.shutdown()


def _open_snapshot(store: ReplicaStore) -> tuple[MirrorSnapshot, int | None]:
    snapshot = store.open_snapshot()
    try:
        return snapshot, rules_of(snapshot)
    except BaseException:
        snapshot.close()
        raise


# --- taking ---


def _add_copied(store: ReplicaStore, table: str, text: bytes) -> None:
    store.add_copied(table, text)


class MirrorFetcher:
    """Takes a copy whenever the replica core says that only a copy helps."""

    def __init__(
        self,
        settings: Settings,
        turns: Turns,
        log: Log,
        roster: Roster,
        replica: Replica,
        writer: Writer,
        http: HttpClient,
        random: Random,
        *,
        install: Callable[[AppliedPoint, bytes | None], Awaitable[None]],
        release: Release,
    ) -> None:
        """Begin with none.

        Args:
            install: Puts the copy that the store has gathered in the place of our mirror.
            release: A state that was made by other rules than it has isn't taken.
        """
        self._settings = settings
        self._turns = turns
        self._log = log
        self._roster = roster
        self._replica = replica
        self._writer = writer
        self._http = http
        self._random = random
        self._install = install
        self._release = release
        self._task: asyncio.Task[None] | None = None
        # The progress of a copy, for `status`; None: no copy is under way.
        self.status: dict[str, Any] | None = None

    def turn(self) -> None:
        """Begin if it is needed; called in each turn of the loop."""
        if self._task is None and self._replica.state_givers:
            self._task = self._turns.background(self._run())

    def close(self) -> None:
        """Give up."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while givers := self._replica.state_givers:
                giver = self._random.choice(givers)
                try:
                    await self._take(giver)
                except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                    logger.warning(
                        "replica=%d the copy of the state from replica %d ended: %s",
                        self._roster.me,
                        giver,
                        error,
                    )
                    await asyncio.sleep(_COPY_PAUSE_S)
        finally:
            self._task = self.status = None

    async def _take(self, giver: ReplicaId) -> None:
        address = self._roster.address_of(giver)
        assert address is not None
        who = f"replica {giver}"
        response = await self._http.request(
            address,
            "POST",
            "/v1/mirror",
            query={"replica": self._roster.me},
            repeatable=False,
        )
        opened = response.checked().json()
        try:
            session, cluster = str(opened["session"]), opened["cluster"]
            applied = AppliedPoint(int(opened["slot"]), str(opened["digest"]))
            told = opened["memberships"]
            memberships = None if told is None else str(told).encode()
            rules = opened.get("rules")
            if not isinstance(rules, int | None):
                raise TypeError("a version is a number")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            said = bounded_repr(opened, 80)
            raise RemoteProtocolError(f"{who} opened a copy by {said}") from error
        if cluster != (ours := self._roster.cluster):
            raise RemoteProtocolError(
                f"{who} gives the state of cluster {bounded_repr(cluster)}, expected {ours!r}"
            )
        if rules is not None:
            self._release.find_rules(rules, f"the state of {who}")
        logger.info(
            "replica=%d takes a copy of the state at slot %d from %s",
            self._roster.me,
            applied.slot,
            who,
        )
        self.status = progress = {"from": giver, "slot": applied.slot, "pieces": 0, "bytes": 0}
        try:
            await self._fill(address, session, who, progress)
            row = digest_row(Slot(applied.slot), applied.digest)
            found = await self._writer.run(
                lambda store: store.read_copied(row.table, row.key)
            )
            if found != row:
                raise RemoteProtocolError(
                    f"the state from {who} says {found!r:.200}, expected slot {applied.slot} "
                    f"and digest {applied.digest}"
                )
            if self._log.require_schedule().applied_slot < applied.slot:
                await self._install(applied, memberships)
            else:  # Somebody came back who had the log.
                await self._writer.run(lambda store: store.drop_copy())
        except (PeerUnreachable, Refused, RemoteProtocolError):
            await self._writer.run(lambda store: store.drop_copy())
            raise
        finally:
            self._turns.background(self._close_session(address, session))

    async def _fill(
        self, address: str, session: str, who: str, progress: dict[str, Any]
    ) -> None:
        """Fetch all pieces; while one is written, the next one is on its way."""
        await self._writer.run(lambda store: store.begin_copy())
        hasher = hashlib.sha256()
        number = 0
        fetching = self._turns.spawn(self._fetch(address, session, number))
        try:
            while True:
                body = await fetching
                table, text, is_last = check_piece(body, number, hasher, who=who)
                number += 1
                if not is_last:
                    fetching = self._turns.spawn(self._fetch(address, session, number))
                await self._writer.run(_add_copied, table, text)
                progress["pieces"] = number
                progress["bytes"] += len(body)
                if is_last:
                    return
        finally:
            fetching.cancel()

    async def _fetch(self, address: str, session: str, number: int) -> bytes:
        """Fetch one piece, again and again while the giver holds the session."""
        path = f"/v1/mirror/{session}/{number}"
        give_up_ms = self._turns.now_ms() + self._settings.mirror_session_idle_ms
        while True:
            try:
                # (`check_piece` checks the rest.)
                response = await self._http.request(address, "GET", path, checks_rest=True)
                return response.checked().body
            except PeerUnreachable:
                if self._turns.now_ms() >= give_up_ms:
                    raise
            await asyncio.sleep(_PIECE_PAUSE_S)

    async def _close_session(self, address: str, session: str) -> None:
        # If it doesn't hear this, it closes it by itself after a while.
        with contextlib.suppress(PeerUnreachable, Refused, RemoteProtocolError):
            await self._http.request(address, "POST", f"/v1/mirror/{session}/close")
