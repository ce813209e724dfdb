"""A candidate: from a missing leader to a quorum of promises.

Asks whether a new leader is welcome, raises the ballot, and gathers promises
(proposer.py). Knows nothing of leading: the replica takes office for it.
"""

from __future__ import annotations

from random import Random

from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.consensus.catch_up import CatchUp
from tasksprint.consensus.election import Election
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.messages import Canvass, CanvassReply, Nack, Prepare, Promise
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.pace import Pace
from tasksprint.consensus.proposer import Campaign
from tasksprint.consensus.voters import Memberships
from tasksprint.ids import ReplicaId
from tasksprint.settings import Settings

__all__ = ["Candidate"]


class Candidate:
    """One replica's way to be elected, and its answers to others on that way."""

    def __init__(
        self,
        *,
        memberships: Memberships,
        election: Election,
        acceptor: Acceptor,
        learner: Learner,
        catch_up: CatchUp,
        outbox: Outbox,
        pace: Pace,
        settings: Settings,
        random: Random,
    ) -> None:
        self._memberships = memberships
        self._election = election
        self._acceptor = acceptor
        self._learner = learner
        self._catch_up = catch_up
        self._outbox = outbox
        self._pace = pace
        self._settings = settings
        self._random = random
        self.campaign: Campaign | None = None
        # The replicas that could be reached since the start; None: they made a quorum.
        self._reached: set[ReplicaId] | None = {outbox.me}

    @property
    def deadline_ms(self) -> int:
        """When `tick` wants to be called."""
        if self.campaign is None:
            return self._election.deadline_ms
        return min(self.campaign.deadline_ms, self.campaign.resend_ms)

    def tick(self, now_ms: int) -> None:
        """Ask for an election, ask again, or give up, if one of them is due."""
        campaign = self.campaign
        if not self._learner.is_whole:
            # Entries that it knows to be chosen are missing here. It would propose others.
            if now_ms >= self._election.deadline_ms:
                self._election.wait(now_ms)
                self._catch_up.seek(now_ms)
        elif campaign is None:
            if now_ms < self._election.deadline_ms:
                return
            if self._outbox.owes_founding:
                # The disk may yet forget this cluster, so this replica doesn't stand in it.
                self._election.wait(now_ms)
            elif self._pace.holds_back(now_ms, heard_ms=self._election.heard_ms):
                self._election.wait_briefly(now_ms)
            else:
                self.canvass(self._election.reason(), now_ms)
        elif now_ms >= campaign.deadline_ms and self._outbox.me not in campaign.promised_by:
            self.extend(now_ms)  # Our disk is slow: nobody was asked yet.
        elif now_ms >= campaign.deadline_ms:
            self.campaign = None
            self.canvass("was not elected in time", now_ms)
        elif now_ms >= campaign.resend_ms:
            self._ask_for_promises(campaign, now_ms)

    # --- asking first ---

    def reach(self, peer: ReplicaId, now_ms: int) -> None:
        """Take note that a peer can be reached; ask at once if nobody seems to lead.

        After a restart of all replicas nobody leads, and no timeout is needed to see that. If a
        replica has heard no leader since its start, it asks as soon as it can reach a quorum.
        If somebody does lead, the replica is told so, and nothing else happens.
        """
        if self._reached is None:
            return
        self._reached.add(peer)
        if self._is_quorum(self._reached):
            self._reached = None
            if self._election.ballot == NO_BALLOT and self.campaign is None:
                self._election.hurry(now_ms)

    def canvass(self, cause: str, now_ms: int) -> None:
        """Ask the others whether a new leader is welcome; a lone voter stands at once."""
        if self._is_quorum({self._outbox.me}):
            self.stand(cause, now_ms)
            return
        election = self._election
        election.cause = cause
        number = election.start_canvass(self._outbox.me, now_ms)
        ballot = self._acceptor.promised
        self._outbox.note_once(f"ballot={ballot} asks for an election: {cause}")
        self._outbox.send_all(Canvass(number, self._learner.chosen_end))

    def _is_quorum(self, replicas: set[ReplicaId]) -> bool:
        return self._memberships.is_quorum(replicas, self._learner.chosen_end)

    def hear_canvass(
        self, source: ReplicaId, message: Canvass, now_ms: int, *, is_leader: bool
    ) -> None:
        """Answer whether a new leader is welcome here.

        It isn't welcome to a replica that leads, stands for election or hears a leader.
        """
        election = self._election
        is_welcome = not is_leader and self.campaign is None and not election.hears_leader(now_ms)
        if is_welcome and election.canvass is None:
            election.wait_briefly(now_ms)
        self._outbox.send(
            source,
            CanvassReply(message.number, is_welcome, election.round, self._learner.chosen_end),
        )

    def hear_canvass_reply(self, source: ReplicaId, message: CanvassReply, now_ms: int) -> None:
        """Count the answer of a peer; stand if a quorum would welcome us."""
        election = self._election
        election.see_round(message.round)
        if message.number != election.canvass:
            return
        if not message.is_welcome:
            # Somebody hears a leader, or is about to be one; a quorum may yet outvote it.
            election.wait_longer(now_ms)
            return
        election.welcomed_by.add(source)
        if self._is_quorum(election.welcomed_by):
            self.stand(election.cause, now_ms)

    # --- standing ---

    def stand(self, cause: str, now_ms: int) -> None:
        """Raise the ballot, and ask for promises once that is durable.

        This replica's own promise goes to the disk with it. If a ballot were forgotten after it
        was used, it could be used again after a restart, with other values.
        """
        election = self._election
        election.stand(cause)
        ballot = Ballot(max(election.round, self._acceptor.promised.round) + 1, self._outbox.me)
        election.see_round(ballot.round)
        self._acceptor.raise_promise(ballot)
        self.campaign = Campaign(ballot, self._memberships)
        self.extend(now_ms)
        self._outbox.note(f"ballot={ballot} stands for election: {cause}")
        self._ask_for_promises(self.campaign, now_ms)

    def depose(self, leader: ReplicaId, now_ms: int) -> None:
        """Stand at once: the leader wants an entry that its release can't read (batch.py).

        1. Leader A proposes to raise the rules. Only C has accepted that when A dies.
        2. C is put back to release 0.2.0 in this moment. B elects it, and C proposes it anew.
        3. Were B to accept, C would lead on: it can't apply what is chosen by that.
        4. So B doesn't, and stands. C promises, with the entry; B has it chosen, and C ends.
        """
        if self._learner.is_whole and not self._outbox.owes_founding:
            self.stand(f"replica {leader} leads, but can't read what it proposes", now_ms)

    def extend(self, now_ms: int) -> None:
        """Give the campaign a full election timeout from now."""
        if self.campaign is not None:
            self.campaign.deadline_ms = now_ms + self._random.randint(
                self._settings.election_timeout_min_ms, self._settings.election_timeout_max_ms
            )

    def _ask_for_promises(self, campaign: Campaign, now_ms: int) -> None:
        campaign.resend_ms = now_ms + self._settings.resend_interval_ms
        prepare = Prepare(campaign.ballot, self._learner.chosen_end)
        for peer in self._outbox.peers:
            if peer not in campaign.promised_by:
                self._outbox.send_after_persist(peer, prepare)

    def hear_promise(self, source: ReplicaId, message: Promise) -> None:
        """Count a promise for the ballot that we stand under."""
        if self.campaign is not None and message.ballot == self.campaign.ballot:
            self.campaign.add_promise(source, message)

    def hear_nack(self, source: ReplicaId, message: Nack, now_ms: int) -> bool:
        """Give up and return True if this refuses the ballot that we stand under; else False."""
        campaign = self.campaign
        if campaign is None or message.ballot != campaign.ballot:
            return False
        self.campaign = None
        self._outbox.note(
            f"ballot={campaign.ballot} was refused by replica {source}, "
            f"which knows ballot {message.promised}"
        )
        self._election.wait_briefly(now_ms)
        return True

    def yield_to(self, ballot: Ballot) -> None:
        """Give up a campaign under a lower ballot."""
        if self.campaign is not None and self.campaign.ballot < ballot:
            self.campaign = None

    def try_win(self, now_ms: int) -> Campaign | None:
        """End the campaign as won.

        Returns:
            The campaign; or None, and nothing may be proposed yet. Then either no quorum has
            promised, or a voter that promised knows chosen slots that this replica lacks.
            Those are fetched first.
        """
        campaign = self.campaign
        if campaign is None or not campaign.has_quorum(self._learner.chosen_end):
            return None
        chosen_end = self._learner.chosen_end
        if chosen_end < campaign.first_slot and not campaign.do_without(chosen_end):
            assert campaign.helper is not None
            self._catch_up.want(campaign.helper, campaign.first_slot, now_ms)
            return None
        assert self._acceptor.promised == campaign.ballot
        self.campaign = None
        return campaign
