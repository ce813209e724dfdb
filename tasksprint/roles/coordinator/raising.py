"""Raising the rules of the log; the leading coordinator does it.

Knows the members, and the abilities that each connected one announced. hosting/raising.py decides
whether it is time. Looks with each tick: so an idle cluster is raised as well, and a proposal
that was lost with a leader is made again.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from tasksprint.consensus import Replica
from tasksprint.coordination.commands import RaiseRules, encode_command
from tasksprint.errors import Refused
from tasksprint.hosting.raising import Raising, Said, lacking
from tasksprint.net.streams import PeerStreams
from tasksprint.release import Release
from tasksprint.roles.coordinator.ports import Log, Turns, logger
from tasksprint.roles.coordinator.roster import membership_of
from tasksprint.settings import Settings

__all__ = ["RulesRaising"]

_CONFLICT = 409


class RulesRaising:
    """One coordinator's part in raising the rules."""

    def __init__(
        self,
        settings: Settings,
        release: Release,
        turns: Turns,
        log: Log,
        replica: Replica,
        streams: PeerStreams,
    ) -> None:
        self._release = release
        self._turns = turns
        self._log = log
        self._replica = replica
        self._streams = streams
        self._settle_ms = settings.rules_settle_ms
        self.begin()

    def begin(self) -> None:
        """Begin to lead: observations of an earlier leadership say nothing about this one."""
        self._raising = Raising(self._settle_ms)

    def ticked(self) -> None:
        """Raise the rules if it is time; called with each tick that this leader proposes."""
        at = self._log.require_schedule().rules.version
        if at == max(self._release.rules):
            return
        version = self._raising.look(self._turns.now_ms(), at, self._said())
        if version is not None and self._propose(version):
            logger.info("replica=%d raises the rules to version %d", self._replica.me, version)

    def raise_now(self) -> None:
        """Raise the rules to the newest version of this release, without waiting.

        Raises:
            NotLeader: This replica doesn't lead any more.
            Refused: A member can't go on by them, or the members are being changed.
        """
        newest = max(self._release.rules)
        if self._log.require_schedule().rules.version >= newest:
            return
        missing = lacking(self._said(), newest)
        if missing:
            raise Refused(
                f"the rules can't be raised to version {newest}: {'; '.join(missing.values())}",
                status=_CONFLICT,
                hint="replace these processes by ones of this release, or remove the members",
            )
        if not self._propose(newest):
            if not self._replica.is_leader:
                raise self._log.not_leader()
            raise Refused(
                "a change of the members or of the rules is under way: try again when it is done",
                status=_CONFLICT,
            )

    def _propose(self, version: int) -> bool:
        propose = partial(self._replica.propose, is_alone=True)
        command = encode_command(RaiseRules(version))
        is_proposed = self._turns.step(propose, command, self._turns.now_ms())
        self._turns.wake()
        return is_proposed

    def _said(self) -> Said:
        membership, me = membership_of(self._replica), self._replica.me
        speaks, said_by = self._release.speaks, self._streams.said_by
        return {
            each.replica: speaks if each.replica == me else said_by(each.replica)
            for each in (*membership.voters, *membership.learners)
        }

    def listing(self) -> dict[str, Any]:
        """Return the members' abilities and the obstacles; in the leader's view."""
        membership, said = membership_of(self._replica), self._said()
        newest = max(self._release.rules)
        return {
            "rules": self._log.require_schedule().rules.version,
            "newest": newest,
            "members": [
                {
                    "replica": each.replica,
                    "address": each.address,
                    "role": "voter" if membership.is_voter(each.replica) else "learner",
                    "is_leader": each.replica == self._replica.leader,
                    "speaks": None if (speaks := said[each.replica]) is None else asdict(speaks),
                }
                for each in sorted(
                    (*membership.voters, *membership.learners), key=lambda each: each.replica
                )
            ],
            "missing": [*lacking(said, newest).values()],
        }
