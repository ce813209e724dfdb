"""Replicas that are broken on purpose: each must be caught within a few seeds.

Without this, a simulator that checks nothing would be as green as one that checks all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, ValuesView
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tasksprint.consensus import (
    ALPHA,
    Accept,
    Chosen,
    DurableNumbers,
    Envelope,
    KnownMark,
    LogEntry,
    Mark,
    Membership,
    Nack,
    Persist,
    Promise,
    Ready,
    Recovered,
    Replica,
    changes,
)
from tasksprint.consensus.acceptor import Acceptor
from tasksprint.consensus.ballot import Ballot
from tasksprint.consensus.effects import FIRST_SLOT
from tasksprint.consensus.leadership import Leadership
from tasksprint.consensus.learner import Learner
from tasksprint.consensus.membership import without
from tasksprint.consensus.outbox import Outbox
from tasksprint.consensus.pace import Pace
from tasksprint.consensus.proposer import Campaign
from tasksprint.consensus.voters import Memberships, Span, Voters
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tests.simulation.bites import confirm_at_once, expects, first_rule, one_member_counts_twice
from tests.simulation.replica_node import ReplicaNode, ReplicaState
from tests.simulation.scenario import run_seed

# Seeds that each broken replica gets before it must have been caught.
_SEEDS_MAX = 60
# Methods that matter seldom, and the seeds in which they do.
_FIRST = {"mark": 29, "look": 21, "change_is_under_way": 11}


def _rule_broken(node_class: type[ReplicaNode] = ReplicaNode, *, first: int = 0) -> str | None:
    """Return the rule that the first seed with a violation breaks, from `first` on."""
    return first_rule(partial(run_seed, node_class=node_class), _SEEDS_MAX, first=first)


class _SpeaksFirst(ReplicaNode):
    """Sends what should wait for the disk at once."""

    def _persist(self, ready: Ready, persist: Persist) -> None:
        for envelope in ready.send_after_persist:
            self._emit(envelope)
        super()._persist(ready._replace(send_after_persist=()), persist)


class _ForgetsPromises(ReplicaNode):
    """Restarts without its promise, but with its log."""

    def _recover(self) -> Recovered:
        return replace(super()._recover(), promised=None)


class _ForgetsOpenEntries(ReplicaNode):
    """Restarts without what it accepted and doesn't know to be chosen."""

    def _recover(self) -> Recovered:
        recovered = super()._recover()
        end = max(recovered.chosen_end, recovered.applied_end)
        kept = tuple(entry for entry in recovered.accepted if entry.slot < end)
        self.disk.state.accepted = {entry.slot: entry for entry in kept}
        return replace(recovered, accepted=kept)


class _KeepsItsName(ReplicaNode):
    """Returns with an empty log under its old incarnation, as if a disk could forget."""

    def _recover(self) -> Recovered:
        state = self.disk.state
        if self.life > 1:
            self.disk.state = ReplicaState(state.incarnation, state.founding)
            self.applied_end, self.digest = FIRST_SLOT, b""
            self._observer.started(self)
        return super()._recover()


class _ForgetsMembers(ReplicaNode):
    """Restarts with the founding members: those of an old dump (bakwc/PySyncObj#133)."""

    def _recover(self) -> Recovered:
        return replace(super()._recover(), memberships=None)


class _AppliesBackwards(ReplicaNode):
    """Applies what was chosen together in the wrong order."""

    def _apply(self, chosen: tuple[Chosen, ...]) -> None:
        super()._apply(tuple(reversed(chosen)))


class _ReappliesOnRestart(ReplicaNode):
    """Applies the last slot before a crash again."""

    def _recover(self) -> Recovered:
        recovered = super()._recover()
        return replace(recovered, applied_end=Slot(max(1, recovered.applied_end - 1)))


class _IsHeardLate(ReplicaNode):
    """Sound, but half of what it proposes takes long, so that others lead meanwhile."""

    def __init__(self, **options: Any) -> None:
        send = options["send"]
        super().__init__(**{**options, "send": partial(self._send_late, send)})

    def _send_late(self, send: Callable[[Envelope], None], envelope: Envelope) -> None:
        if isinstance(envelope.message, Accept) and self._random.random() < 0.5:
            delay = self._random.uniform(0, 2_000)
            self._timeline.after(delay, partial(send, envelope))
        else:
            send(envelope)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node_class", "rules"),
    [
        (_SpeaksFirst, expects("not-durable")),
        (_ForgetsPromises, expects("promise-back", "former-life", "core")),
        (_ForgetsOpenEntries, expects("two-chosen", "not-chosen", "not-durable", "lost-command")),
        (
            _KeepsItsName,
            # (core: its peers find out by the durable number, and it stops.)
            expects(
                *("promise-back", "two-chosen", "two-values", "not-durable", "former-life"),
                *("stale-read", "core"),
            ),
        ),
        (
            _ForgetsMembers,
            expects("core", "no-progress", "not-chosen", "two-chosen", "stranger-votes"),
        ),
        (_AppliesBackwards, expects("out-of-order")),
        (_ReappliesOnRestart, expects("out-of-order")),
    ],
)
def test_broken_shell_is_caught(node_class: type[ReplicaNode], rules: frozenset[str]) -> None:
    assert _rule_broken(node_class) in rules


def _any_vote_is_a_quorum(self: Voters, voters: set[Any]) -> bool:
    return bool(voters)


def _mark_without_ballots(
    self: Learner, ballot: Ballot, end_slot: Slot, acceptor: Acceptor
) -> None:
    while self.chosen_end < end_slot and self.chosen_end in acceptor.open:
        self.choose(acceptor.close(self.chosen_end), None)


def _adopt_nothing(self: Campaign, slot: Slot) -> bytes | None:
    return None


def _take_own_only(self: Campaign, entries: Iterable[LogEntry]) -> None:
    if isinstance(entries, ValuesView):
        self._highest.update({entry.slot: entry for entry in entries})


def _promise_everybody(self: Acceptor, ballot: Ballot, first_slot: Slot) -> Promise | Nack:
    """Promise to whoever asked last, even below what was promised before."""
    self.promised = ballot
    self._is_promise_new = True
    return Promise(ballot, first_slot, tuple(self.open.values()))


def _follow_everybody(self: Replica, source: ReplicaId, ballot: Ballot) -> bool:
    """Follow whoever spoke last, even below what was promised."""
    if self._leadership is not None or self._candidate.campaign is not None:
        return _follows(self, source, ballot)
    self._election.hear(source, ballot, self._now_ms)
    return True


_follows = Replica._follows


def _accept_everything(self: Acceptor, slot: Slot, ballot: Ballot, value: bytes) -> None:
    held = self.open.get(slot)
    self.open_bytes += len(value) - (0 if held is None else len(held.value))
    self.raise_promise(ballot)
    self.open[slot] = self._writes[slot] = LogEntry(slot, ballot, value)


def _governs_at_once(self: Memberships, slot: Slot, membership: Membership) -> None:
    if membership.number > self.number:
        self._add(Slot(slot + 1), membership)
        self.has_news = True


def _learners_vote(self: Memberships, first_slot: Slot, membership: Membership) -> None:
    everybody = (*membership.voters, *membership.learners)
    self._spans.append(Span(first_slot, membership, Voters(everybody)))


def _changes_at_any_time(self: Leadership) -> bool:
    return self._change is not None


def _open_slots_at_will(original: Callable[..., None]) -> Callable[..., None]:
    def open_slots(self: Leadership, now_ms: int) -> None:
        self._pipeline_slots = 10 * ALPHA
        original(self, now_ms)

    return open_slots


def _without_two(membership: Membership, replica: ReplicaId) -> Membership:
    """Let another voter go in the same step."""
    after = without(membership, replica)
    if len(after.voters) < 2:
        return after
    return replace(without(after, after.voters[0].replica), number=after.number)


_BEYOND = expects("beyond-alpha")
_NO_OVERLAP = expects("no-overlap", "core")


def _vote_before_the_write(original: Callable[..., None]) -> Callable[..., None]:
    def work(self: Leadership, now_ms: int) -> None:
        original(self, now_ms)
        self.vote(self._me, list(self._open))

    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "broken_method", "rules"),
    [
        (Voters, "is_quorum", _any_vote_is_a_quorum, expects("not-chosen", "two-chosen", "core")),
        (
            Voters,
            "is_quorum",
            one_member_counts_twice,
            expects("not-chosen", "two-chosen", "core"),
        ),
        (Learner, "mark", _mark_without_ballots, expects("not-chosen")),
        (Acceptor, "promise", _promise_everybody, expects("promise-back", "core")),
        (Campaign, "adopt", _adopt_nothing, expects("two-chosen", "core")),
        (Campaign, "_take", _take_own_only, expects("two-chosen", "core")),
        (
            Memberships,
            "note",
            _governs_at_once,
            expects("not-chosen", "two-chosen", "too-soon", "core"),
        ),
        (
            Memberships,
            "_add",
            _learners_vote,
            expects("not-chosen", "two-chosen", "no-progress", "core"),
        ),
        (
            Leadership,
            "change_is_under_way",
            property(_changes_at_any_time),
            expects("too-soon", "core"),
        ),
        (Leadership, "_confirm_reads", confirm_at_once, expects("stale-read")),
        (Leadership, "_open_slots", _open_slots_at_will(Leadership._open_slots), _BEYOND),
        (changes, "without", _without_two, _NO_OVERLAP),
        (Pace, "look", lambda self, now_ms: None, expects("hung-leader")),
        (
            Leadership,
            "work",
            _vote_before_the_write(Leadership.work),
            expects("not-chosen", "lost-command"),
        ),
    ],
)
def test_broken_core_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    broken_method: Any,
    rules: frozenset[str],
) -> None:
    monkeypatch.setattr(owner, name, broken_method)
    assert _rule_broken(first=_FIRST.get(name, 0)) in rules


@pytest.mark.slow
def test_acceptor_that_accepts_below_what_it_promised_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Replica, "_follows", _follow_everybody)
    monkeypatch.setattr(Acceptor, "accept", _accept_everything)
    assert _rule_broken(_IsHeardLate, first=10) in expects("promise-back")


@pytest.mark.long
def test_acceptor_that_accepts_below_what_it_promised_breaks_nothing_unexpected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Replica, "_follows", _follow_everybody)
    monkeypatch.setattr(Acceptor, "accept", _accept_everything)
    outcomes = [run_seed(seed, node_class=_IsHeardLate) for seed in range(_SEEDS_MAX)]
    rules = {each.violation.rule for each in outcomes if each.violation is not None}
    assert "promise-back" in rules and rules <= {"promise-back", "two-chosen", "core"}


@pytest.mark.slow
def test_replicas_that_believe_older_disks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever doesn't compare durable numbers counts votes that a disk has forgotten."""
    hear, take = DurableNumbers.hear, DurableNumbers.take

    def hear_all(self: DurableNumbers, source: Incarnation, mark: Mark) -> bool:
        hear(self, source, mark)
        return True

    def take_all(self: DurableNumbers, marks: Iterable[KnownMark]) -> None:
        take(self, marks)

    monkeypatch.setattr(DurableNumbers, "hear", hear_all)
    monkeypatch.setattr(DurableNumbers, "take", take_all)
    rules = expects("not-chosen", "two-chosen", "lost-command", "stale-read", "core")
    assert _rule_broken() in rules


@pytest.mark.slow
def test_outbox_that_lets_answers_overtake_writes_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repeated message must not be answered while the first answer's write is under way."""

    def take_persist(self: Outbox, now_ms: int) -> Persist | None:
        persist = original(self, now_ms)
        return None if persist == Persist() else persist

    original = Outbox._take_persist
    monkeypatch.setattr(Outbox, "_take_persist", take_persist)
    assert _rule_broken() in expects("not-durable", "promise-back")
