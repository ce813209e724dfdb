"""Founding a cluster, and keeping those out who lost their disk."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tasksprint.consensus import (
    Accept,
    Envelope,
    Found,
    Founding,
    Heartbeat,
    Hello,
    Member,
    Membership,
    Ready,
    Recovered,
    Replica,
    Stranger,
    decode_founding,
    encode_founding,
    encode_membership,
)
from tasksprint.consensus.skips import Skip, encode_skips
from tasksprint.errors import RemoteProtocolError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.release import SILENT
from tasksprint.settings import Settings
from tests.consensus.helpers import ballot, drain, founded, from_peer, make, sent, value

_MEMBERS = (ReplicaId(1), ReplicaId(2), ReplicaId(3))


def _membership(count: int) -> bytes:
    return encode_membership(Membership(0, decode_founding(founded(count)).members))


def _unfounded(me: int) -> Replica:
    return make(me, 3, founding=None)


def _hello(source: int, *, heard: str | None, cluster: str | None = None) -> Hello:
    return Hello(f"h{source}", None if heard is None else Incarnation(heard), cluster, _MEMBERS)


def test_founding_entry_comes_back_as_it_was() -> None:
    founding = Founding("c1", (Member(ReplicaId(1), Incarnation("ab"), "[::1]:7070"),))
    assert decode_founding(encode_founding(founding)) == founding
    again = replace(founding, origins=("a", "b"), retired=(ReplicaId(2), ReplicaId(3)))
    assert decode_founding(encode_founding(again)) == again


def test_founder_waits_for_everyone_and_writes_before_it_tells() -> None:
    replica = _unfounded(1)
    replica.receive(from_peer(2, 1, _hello(2, heard="inc1")), 0)
    assert sent(drain(replica)) == []
    replica.receive(from_peer(3, 1, _hello(3, heard="inc1")), 0)
    ready = replica.ready()
    assert ready is not None and ready.persist is not None
    assert ready.persist.founding is not None
    founding = decode_founding(ready.persist.founding)
    assert [(m.replica, m.incarnation, m.address) for m in founding.members] == [
        (1, "inc1", "h1"),
        (2, "inc2", "h2"),
        (3, "inc3", "h3"),
    ]
    assert ready.send_now == ()
    assert sent([ready]) == [
        (peer, Found(ready.persist.founding, _membership(3))) for peer in (2, 3)
    ]


def test_founder_does_not_stand_before_its_founding_entry_is_durable() -> None:
    replica = _unfounded(1)
    for peer in (2, 3):
        replica.receive(from_peer(peer, 1, _hello(peer, heard="inc1")), 0)
    ready = replica.ready()
    assert ready is not None
    now_ms = 0
    for _ in range(3):
        now_ms = replica.deadline_ms
        replica.tick(now_ms)
        assert replica.ready() is None
    replica.persisted(ready.sequence, now_ms)
    assert replica.status().role == "canvassing"


def test_hello_from_before_this_life_founds_nothing() -> None:
    """See founding.py: the race that `Hello.heard` prevents."""
    replica = _unfounded(1)
    replica.receive(from_peer(2, 1, _hello(2, heard="a former life")), 0)
    replica.receive(from_peer(3, 1, _hello(3, heard=None)), 0)
    readies = drain(replica)
    assert replica.founding is None
    assert sent(readies) == [
        (2, Hello("h1", Incarnation("inc2"), None, _MEMBERS)),
        (3, Hello("h1", Incarnation("inc3"), None, _MEMBERS)),
    ]


def test_others_than_the_lowest_id_found_nothing() -> None:
    replica = _unfounded(2)
    for peer in (1, 3):
        replica.receive(from_peer(peer, 2, _hello(peer, heard="inc2")), 0)
    assert drain(replica) == []


def test_member_that_is_named_writes_the_founding_entry_and_takes_part() -> None:
    replica = _unfounded(2)
    accept = Accept(ballot(1, 1), Slot(1), value("a"), Slot(1))
    replica.receive(from_peer(1, 2, accept), 0)
    # It takes no part yet, and asks who speaks with it so.
    hello = Hello("h2", Incarnation("inc1"), None, _MEMBERS)
    (ready,) = drain(replica)
    assert sent([ready]) == [(1, hello)]
    assert ready.persist is None
    replica.receive(from_peer(1, 2, Found(founded(3), _membership(3))), 0)
    replica.receive(from_peer(1, 2, accept), 0)
    (ready,) = drain(replica)
    assert ready.persist is not None and ready.persist.founding == founded(3)
    assert ready.notes[0] == "replica=2 joined cluster c0ffee"


def test_founded_member_passes_the_founding_entry_on() -> None:
    replica = make(2, 3)
    replica.receive(from_peer(3, 2, _hello(3, heard=None)), 0)
    assert sent(drain(replica)) == [(3, Found(founded(3), _membership(3)))]


def test_member_takes_over_what_the_others_skip() -> None:
    skips = encode_skips([Skip(Slot(17), 3, "ab" * 32)])
    replica = _unfounded(2)
    replica.receive(from_peer(1, 2, Found(founded(3), _membership(3), skips)), 0)
    (ready,) = drain(replica)
    assert ready.persist is not None and ready.persist.skips == skips
    assert replica.skips == {"ab" * 32: 17}
    # And passes it on.
    replica.receive(from_peer(3, 2, _hello(3, heard=None)), 0)
    assert sent(drain(replica)) == [(3, Found(founded(3), _membership(3), skips))]


def test_members_that_skip_other_commands_do_not_hear_each_other() -> None:
    skips = encode_skips([Skip(Slot(17), 3, "ab" * 32)])
    replica = make(2, 3)
    hello = replace(_hello(3, heard=None, cluster="c0ffee"), skips=skips)
    beat = Heartbeat(ballot(1, 3), 1, Slot(1))
    replica.receive(from_peer(3, 2, hello), 0)
    (ready,) = drain(replica)
    # It is told what is skipped here, and says no more: else they would go on for ever.
    assert sent([ready]) == [(3, Hello("h2", Incarnation("inc3"), "c0ffee", _MEMBERS))]
    assert ready.notes == (
        "replica=2 refuses messages of replica 3: it skips other commands of the log (command 3 "
        "of slot 17) than replica 2 (none); stop both, and let 'tasksprint log skip' mark the "
        "same ones in the data directories of all members",
    )
    replica.receive(from_peer(3, 2, replace(hello, heard=Incarnation("inc2"))), 0)
    replica.receive(from_peer(3, 2, beat), 0)
    assert sent(drain(replica)) == []
    assert replica.leader is None
    # Started anew with the same marks, it is heard.
    replica.receive(from_peer(3, 2, replace(hello, skips=b"")), 0)
    replica.receive(from_peer(3, 2, beat), 0)
    assert replica.leader == 3


def test_who_skips_something_says_so_before_anything_else() -> None:
    skips = encode_skips([Skip(Slot(17), 3, "ab" * 32)])
    replica = make(2, 3, skips=skips)
    drain(replica)
    replica.connected(ReplicaId(1), 0)
    assert sent(drain(replica)) == [(1, Hello("h2", None, "c0ffee", _MEMBERS, skips))]
    silent = make(2, 3)
    drain(silent)
    silent.connected(ReplicaId(1), 0)
    assert sent(drain(silent)) == []


def test_member_with_another_incarnation_is_told_and_refused() -> None:
    replica = make(1, 3)
    accept = Accept(ballot(7, 2), Slot(1), value("a"), Slot(1))
    for message in (_hello(2, heard=None), accept):
        replica.receive(from_peer(2, 1, message, incarnation="new2"), 0)
    stranger = Stranger("c0ffee", Incarnation("inc2"), Incarnation("new2"), _membership(3))
    readies = drain(replica)
    assert sent(readies) == [(2, stranger), (2, stranger)]
    assert [ready.persist for ready in readies] == [None]
    assert readies[0].notes == (
        "replica=1 refuses messages: replica 2 lost its disk (its incarnation is new2, "
        "the cluster knows inc2); replace it by a new one: start that with a new --id and --join, "
        "then tasksprint member replace 2 ID=HOST:PORT",
    )


def test_replica_that_is_told_that_it_lost_its_disk_stops_with_one_sentence() -> None:
    replica = _unfounded(2)
    stranger = Stranger("c0ffee", Incarnation("old"), Incarnation("inc2"), _membership(3))
    replica.receive(from_peer(1, 2, stranger), 0)
    (ready,) = drain(replica)
    assert ready.fatal == (
        "replica 2 lost its disk (its incarnation is inc2, the cluster knows old); "
        "replace it by a new one: start that with a new --id and --join, "
        "then tasksprint member replace 2 ID=HOST:PORT"
    )
    replica.receive(from_peer(1, 2, Found(founded(3), _membership(3))), 0)
    replica.tick(10**9)
    assert replica.ready() is None
    assert replica.status().role == "stopped"


def test_replica_that_lost_its_disk_is_told_by_members_that_it_never_heard_of() -> None:
    """All other founding members may have left: it greets them in vain."""
    blank = _unfounded(2)
    later = make(3, 3)  # Let 3 be one that was added later.
    blank.receive(from_peer(3, 2, Heartbeat(ballot(5, 3), 1, Slot(1))), 0)
    ((target, hello),) = sent(drain(blank))
    assert target == 3
    later.receive(from_peer(2, 3, hello, incarnation="new2"), 0)
    ((_, stranger),) = sent(drain(later))
    assert isinstance(stranger, Stranger)
    assert (stranger.expected, stranger.found) == ("inc2", "new2")


def test_replica_that_is_no_member_is_told_so() -> None:
    replica = make(1, 3)
    replica.receive(from_peer(4, 1, _hello(4, heard=None)), 0)
    stranger = Stranger("c0ffee", None, Incarnation("inc4"), _membership(3))
    assert sent(drain(replica)) == [(4, stranger)]
    outsider = make(4, 4, founding=None)
    outsider.receive(from_peer(1, 4, stranger), 0)
    (ready,) = drain(outsider)
    assert ready.fatal == (
        "replica 4 is not a member of cluster 'c0ffee'; "
        "add it as a member, or start it with the peers of its own cluster"
    )


def test_found_that_names_another_life_stops_the_replica() -> None:
    replica = make(2, 3, founding=None)
    replica._admission._incarnation = Incarnation("new2")
    replica.receive(from_peer(1, 2, Found(founded(3), _membership(3))), 0)
    (ready,) = drain(replica)
    assert ready.fatal is not None and ready.fatal.startswith("replica 2 lost its disk")


def test_stranger_said_about_a_former_life_is_ignored() -> None:
    replica = _unfounded(2)
    stranger = Stranger(
        "c0ffee", Incarnation("inc2"), Incarnation("a life long ago"), _membership(3)
    )
    replica.receive(from_peer(1, 2, stranger), 0)
    assert drain(replica) == []


def test_own_disk_under_another_name_is_noticed_at_the_start() -> None:
    replica = Replica(
        me=ReplicaId(2),
        address="h2",
        recovered=Recovered(incarnation=Incarnation("copied"), founding=founded(3)),
        settings=Settings(),
        random=Random(0),
        now_ms=0,
    )
    ready = replica.ready()
    assert ready is not None and ready.fatal is not None
    assert "the cluster knows inc2" in ready.fatal


def test_different_peers_on_the_command_line_are_noted_once() -> None:
    replica = _unfounded(1)
    hello = Hello("h2", Incarnation("inc1"), None, (ReplicaId(1), ReplicaId(2)))
    for _ in range(2):
        replica.receive(from_peer(2, 1, hello), 0)
    (ready,) = drain(replica)
    assert ready.notes == (
        "replica=1 replica 2 was started with the members 1, 2, replica 1 with 1, 2, 3; "
        "start all with the same",
    )
    assert replica.founding is None


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            _hello(2, heard="inc1", cluster="beef"),
            "replica 2 belongs to cluster 'beef', this replica to 'c0ffee'; "
            "start them with the peers of their own cluster",
        ),
        (
            Found(encode_founding(Founding("beef", ())), _membership(3)),
            "replica 2 offered cluster 'beef', but this replica belongs to 'c0ffee'; "
            "one of them needs its own data",
        ),
        (
            Stranger("beef", None, Incarnation("inc1"), _membership(3)),
            "replica 2 of cluster 'beef' refuses this replica of 'c0ffee'; "
            "start them with the peers of their own cluster",
        ),
    ],
)
def test_another_cluster_is_noted_and_not_joined(
    message: Hello | Found | Stranger, text: str
) -> None:
    replica = make(1, 3)
    replica.receive(from_peer(2, 1, message), 0)
    (ready,) = drain(replica)
    assert ready.notes == (f"replica=1 {text}",)
    assert ready.fatal is None


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"version":1}', "founding entry has version 1, expected 3; use the TaskSprint release"),
        (b'{"version":2}', "not a founding entry: b'{\"version\":2}'"),
        (b"[]", "not a founding entry: b'[]'"),
        (
            b'{"version":2,"members":[[1,' + b"[" * 1_000 + b"]" * 1_000 + b',"h"]]}',
            'not a founding entry: b\'{"version":2,"members":[[1,[[[',
        ),
        (b"{", "not JSON: "),
    ],
)
def test_founding_entry_that_cannot_be_read_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_founding(data)
    assert str(caught.value).startswith(text)


def _founder(said: dict[int, tuple[int, int]]) -> tuple[Replica, list[Ready]]:
    """Return the founder with rules 2 to 4, once it has heard which ones the others have."""
    replica = Replica(
        me=ReplicaId(1),
        address="h1",
        peers={member: f"h{member}" for member in _MEMBERS},
        recovered=Recovered(incarnation=Incarnation("inc1")),
        settings=Settings(),
        random=Random(1),
        now_ms=0,
        speaks=replace(SILENT, rules=(2, 4)),
    )
    ((_, hello), *_) = sent(drain(replica), Hello)
    assert isinstance(hello, Hello) and hello.speaks.rules == (2, 4)
    for peer, rules in said.items():
        heard = replace(_hello(peer, heard="inc1"), speaks=replace(SILENT, rules=rules))
        replica.receive(from_peer(peer, 1, heard), 0)
    return replica, drain(replica)


def test_cluster_begins_with_the_newest_rules_that_all_founders_have() -> None:
    replica, _ = _founder({2: (1, 3), 3: (1, 2)})
    assert replica.founding is not None and replica.founding.rules == 2
    data = encode_founding(replica.founding)
    assert decode_founding(data) == replica.founding


@pytest.mark.parametrize("third", [(1, 1), (5, 6)], ids=["too old", "too new"])
def test_founders_without_rules_in_common_found_nothing(third: tuple[int, int]) -> None:
    """Neither by rules that one of them has no more, nor by such as it doesn't have yet."""
    replica, readies = _founder({2: (1, 9), 3: third})
    assert replica.founding is None
    said = f"{third[0]} to {third[1]}"
    told = [f"replica {me} runs release 0.2.0 or older, which has the rules" for me in (1, 2, 3)]
    note = (
        f"replica=1 can't found a cluster: {told[0]} 2 to 4; {told[1]} 1 to 9; {told[2]} {said}; "
        "start all with the same release"
    )
    assert [text for ready in readies for text in ready.notes] == [note]
    # It does once that one was replaced.
    heard = replace(_hello(3, heard="inc1"), speaks=replace(SILENT, rules=(4, 5)))
    replica.receive(from_peer(3, 1, heard), 0)
    drain(replica)
    assert replica.founding is not None and replica.founding.rules == 4


def test_founding_entry_with_the_first_rules_is_that_of_the_last_release() -> None:
    """And one with others is of a version that the last release refuses."""
    founding = Founding("c1", (Member(ReplicaId(1), Incarnation("ab"), "h1"),))
    assert encode_founding(founding) == (
        b'{"version":2,"cluster":"c1","members":[[1,"ab","h1"]],"origins":[],"retired":[]}'
    )
    assert encode_founding(replace(founding, rules=2)).startswith(b'{"version":3,')


def test_hellos_are_repeated_until_founded() -> None:
    replica = _unfounded(3)
    assert replica.deadline_ms == 300
    replica.tick(300)
    assert [target for target, _ in sent(drain(replica), Hello)] == [1, 2]
    assert replica.deadline_ms == 600


def test_own_messages_and_those_to_others_are_ignored() -> None:
    replica = make(1, 3)
    accept = Accept(ballot(7, 2), Slot(1), value("a"), Slot(1))
    replica.receive(from_peer(1, 1, accept), 0)
    replica.receive(from_peer(2, 3, accept), 0)
    replica.receive(Envelope(ReplicaId(2), Incarnation("x"), ReplicaId(3), accept), 0)
    assert drain(replica) == []
