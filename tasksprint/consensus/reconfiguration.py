"""A leader's changes of the members: takes them up, one at a time, and brings them to an end.

Knows which replicas answer the leader, and how far each of them is. changes.py decides whether a
change is allowed; voters.py knows when a membership governs.
"""

from __future__ import annotations

from tasksprint.consensus.batch import encode_alone
from tasksprint.consensus.catch_up import CatchUp
from tasksprint.consensus.changes import addition, next_step, refusal, removal
from tasksprint.consensus.founding import Member
from tasksprint.consensus.leadership import Leadership
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.membership import Membership, encode_membership_value
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.voters import Memberships
from tasksprint.ids import ReplicaId
from tasksprint.settings import Settings

__all__ = ["Reconfiguration"]


class Reconfiguration:
    """The changes of the members that one replica makes while it leads."""

    def __init__(
        self,
        *,
        memberships: Memberships,
        learner: Learner,
        catch_up: CatchUp,
        outbox: Outbox,
        settings: Settings,
    ) -> None:
        self._memberships = memberships
        self._learner = learner
        self._catch_up = catch_up
        self._outbox = outbox
        self._settings = settings
        # The only membership whose next step may follow by itself; None: any.
        self.prepared_number: int | None = None

    def add(
        self, leadership: Leadership, member: Member, replaces: ReplicaId | None, now_ms: int
    ) -> str | None:
        """Propose a learner; return the reason of a refusal, or None."""
        change = addition(self._newest(), member, replaces=replaces)
        return self._take_up(leadership, change, now_ms)

    def remove(self, leadership: Leadership, replica: ReplicaId, now_ms: int) -> str | None:
        """Propose that a voter or learner leaves; as `add`."""
        return self._take_up(leadership, removal(self._newest(), replica), now_ms)

    def _newest(self) -> Membership:
        newest = self._memberships.newest
        assert newest is not None, "who leads is founded"
        return newest

    def _take_up(
        self, leadership: Leadership, change: Membership | str | None, now_ms: int
    ) -> str | None:
        if change is None or isinstance(change, str):
            return change
        if not self.is_done(leadership):
            return "another change of the members is under way: try again when it is done"
        reason = refusal(self._newest(), change, self._heard(leadership, now_ms))
        if reason is None:
            self._propose(leadership, change)
        return reason

    def _propose(self, leadership: Leadership, change: Membership) -> None:
        self._outbox.note(f"proposes membership {change.number}: {change.describe()}")
        leadership.change(encode_membership_value(change))

    def propose_alone(self, leadership: Leadership, command: bytes) -> bool:
        """Propose a command in an entry of its own; False: something else is under way."""
        is_done = self.is_done(leadership)
        if is_done:
            leadership.change(encode_alone(command))
        return is_done

    def _heard(self, leadership: Leadership, now_ms: int) -> set[ReplicaId]:
        return leadership.heard_since(now_ms - self._settings.election_timeout_max_ms)

    def is_done(self, leadership: Leadership) -> bool:
        """Whether the newest membership governs, and a quorum of it knows so.

        Then an election finds the voters, even if the replicas that left are gone for good.
        """
        if leadership.change_is_under_way:
            return False
        newest_slot = self._memberships.newest_slot
        peers = self._outbox.peers
        knowing = {peer for peer in peers if self._catch_up.known_end(peer) >= newest_slot}
        if self._learner.chosen_end >= newest_slot:
            knowing.add(self._outbox.me)
        return self._memberships.at(newest_slot).is_quorum(knowing)

    def go_on(self, leadership: Leadership, now_ms: int) -> None:
        """Make a learner that has caught up a voter, or remove a voter that was replaced."""
        newest = self._newest()
        if not (newest.learners or newest.replaces) or not self.is_done(leadership):
            return
        if self.prepared_number not in (None, newest.number):
            return
        enough = self._learner.chosen_end - self._settings.learner_lag_slots_max
        change = next_step(
            newest,
            self._heard(leadership, now_ms),
            lambda replica: self._catch_up.known_end(replica) >= enough,
        )
        if change is not None:
            self._propose(leadership, change)
