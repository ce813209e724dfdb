"""The other members of one coordinator: their frames, and which processes are heard as members.

The core decides which process is heard (consensus/lives.py). This module tells it of
connections, and tells a refusal to both sides. A process that is refused as a second one waits
as long as the connection of a dead first one could look alive. Then it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tasksprint.consensus import Envelope, Mark, Message, Replica
from tasksprint.consensus import codec as replica_codec
from tasksprint.errors import SettingsError
from tasksprint.ids import ReplicaId
from tasksprint.release import Speaks
from tasksprint.roles.coordinator.roster import Roster
from tasksprint.roles.coordinator.surroundings import CoordinatorOptions, Surroundings
from tasksprint.roles.coordinator.turns import LoopTurns
from tasksprint.settings import Settings

__all__ = ["Peers"]


class Peers:
    """The messages between one coordinator and the others."""

    def __init__(
        self,
        options: CoordinatorOptions,
        settings: Settings,
        turns: LoopTurns,
        roster: Roster,
        replica: Replica,
        random: Random,
        surroundings: Surroundings,
    ) -> None:
        self._options = options
        self._turns = turns
        self._roster = roster
        self._replica = replica
        self.streams = surroundings.new_streams(
            options.me,
            {peer: address for peer, address in options.peers.items() if peer != options.me},
            options.key,
            settings,
            random,
            on_frame=self._frame_arrived,
            on_frames_end=self._frames_ended,
            on_connected=self.connected,
            on_disconnected=self.disconnected,
            address=options.advertise,
            life=replica.lives.own,
            on_knock=self.knocks,
            on_twin=self.refused,
            speaks=surroundings.release.speaks,
        )
        self._has_heard = False  # frames that make a turn due
        # The first and the last refusal of an unbroken series.
        self._refused_ms: dict[ReplicaId, tuple[int, int]] = {}
        # A machine that lost power leaves a connection behind. It is found dead in this time.
        self._patience_ms = 2 * settings.unacknowledged_timeout_ms
        # A refusing peer is asked again after a pause, of at most half as much more. If it was
        # cut off for longer, nobody knows whom it would have heard meanwhile.
        self._gap_ms = settings.connect_timeout_ms + 2 * settings.reconnect_pause_max_ms

    # --- frames ---

    def send(self, envelopes: Iterable[Envelope]) -> None:
        """Send messages of the replica."""
        said: tuple[Message, Mark] | None = None
        for envelope in envelopes:
            if said is None or said[0] is not envelope.message or said[1] != envelope.mark:
                said = envelope.message, envelope.mark  # Mostly the same is said to all.
                frame = replica_codec.encode(envelope)
            self.streams.send(envelope.target, frame)

    def _frame_arrived(self, source: ReplicaId, frame: bytes) -> None:
        replica, turns = self._replica, self._turns
        envelope = replica_codec.decode(frame, source=source, target=replica.me)
        if not turns.is_over:
            turns.step(replica.receive, envelope, turns.now_ms())
            # The last acceptances of an entry change nothing: a third of a leader's turns.
            if not replica.is_leader or replica.has_work:
                self._has_heard = True

    def _frames_ended(self) -> None:
        """Run a turn at once: peers send no more before they have their answers."""
        if self._has_heard:
            self._has_heard = False
            if not self._turns.is_due:
                self._turns.take()

    # --- connections ---

    def connected(self, peer: ReplicaId) -> None:
        """Take note that a peer takes frames now."""
        self._refused_ms.pop(peer, None)
        self._turns.step(self._replica.connected, peer, self._turns.now_ms())
        self._turns.wake()

    def disconnected(self, peer: ReplicaId) -> None:
        """Take note that a connection with a peer broke."""
        self._turns.step(self._replica.disconnected, peer, self._turns.now_ms())
        self._turns.wake()

    def knocks(
        self, source: ReplicaId, life: int, connected: int | None, address: str, speaks: Speaks
    ) -> str | None:
        """Say why a process isn't heard as `source`, though it asks to be; None: it is heard.

        Args:
            connected: The life of the process that is heard as this replica now.
            address: Where the process says that it listens.
            speaks: What its release can.
        """
        lives = self._replica.lives
        why = lives.greet(source, life, self._turns.now_ms(), connected=connected)
        if why is None:
            lives.speaks[source] = speaks
            return None
        known = self._roster.address_of(source) or "an unknown address"
        text = (
            f"replica {source} (at {known}) runs and {why}: another process that says it is "
            f"replica {source} (at {address}) isn't heard"
        )
        self.streams.warnings.warn(
            (source, "twin"), f"replica={self._roster.me} peer={source} {text}"
        )
        return text

    def refused(self, peer: ReplicaId, text: str) -> None:
        """Take note that a peer hears another process in the place of this one."""
        now_ms = self._turns.now_ms()
        since_ms, last_ms = self._refused_ms.get(peer, (now_ms, now_ms))
        if now_ms - last_ms > self._gap_ms:
            since_ms = now_ms
        self._refused_ms[peer] = since_ms, now_ms
        if now_ms - since_ms > self._patience_ms:
            directory = str(self._options.data_dir)
            self._turns.fail(
                SettingsError(
                    f"data directory {directory!r} is that of a replica which runs elsewhere; "
                    f"replica {peer} says: {text}"
                )
            )
