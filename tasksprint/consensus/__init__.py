"""The replicated log: multi-Paxos for one replica, without I/O.

- `ballot`, `batch`, `messages`, `effects`: words
- `acceptor`: this replica's promises and acceptances
- `proposer`, `leadership`: phase 1 of a candidate, phase 2 of a leader
- `learner`: the chosen prefix, and catching up
- `election`: when to ask for a new leader
- `founding`, `admission`: the members of the cluster, each in one life
- `membership`, `voters`: the voters of each slot
- `changes`, `reconfiguration`: how members come and go
- `marks`: disks that went back in time
- `outbox`: messages, and the writes that must be durable before them
- `pace`: whether a leader's disk keeps up with the others
- `replica`: the facade over all of it

Sources: Lamport, "Paxos Made Simple" (2001); Chandra, Griesemer and Redstone, "Paxos
Made Live" (2007); van Renesse and Altinbuken, "Paxos Made Moderately Complex" (2015).

Departures from them, each explained where it is made:

- A replica asks before it raises its ballot (`Canvass`). Otherwise a replica that merely
  lost its own connection would dethrone a working leader. The papers leave the choice of a
  leader open; nothing of safety rests on it.
- A promise reports only the slots that its sender doesn't know to be chosen. It names the
  first of them, and a candidate fetches all slots below before it proposes anything.
  In "Paxos Made Simple" a promise reports all accepted values. That grows without bound,
  and can't work once the log is truncated.
- A heartbeat alone makes a follower, without a promise. Only `Prepare` and `Accept` raise
  the promise, so heartbeats cost no writes.
- A leader sends `Accept` while its own acceptance is still being written, and counts its
  own vote only after that. Its ballot was durable before, and is never used after a restart.
- Entries go first to the peers of a recent quorum, and to the others a few milliseconds
  later, as "thrifty" in Moraru et al., "There Is More Consensus in Egalitarian Parliaments".
- A leader goes on if only a minority refuses its ballot, and raises it later if the refusal
  lasts. "Paxos Made Moderately Complex" preempts such a leader at once.
- A value is a batch of commands; an empty batch is the no-op.
- A follower learns chosen entries from the leader's word (`chosen_end`), for values that it
  accepted under that leader's ballot. It doesn't count every acceptor's `Accepted`.
- A leader resigns if its writes are far slower than those of a quorum of the others. Then it
  leaves elections to them for a while. The papers know no slow disks.
- Reads are confirmed by a round of heartbeats instead of by the leases of "Paxos Made
  Live": no clock is trusted.
- Lost disks are noticed; the papers take it that no disk loses anything. The incarnation shows
  an empty disk. The durable number shows a disk that went back in time: a restored copy, or one
  that lost writes it had reported. It is seen once its replica speaks with another that heard of
  a later number.
"""

from __future__ import annotations

from tasksprint.consensus.ballot import NO_BALLOT, Ballot
from tasksprint.consensus.batch import NOOP, decode_batch, encode_batch
from tasksprint.consensus.effects import (
    Chosen,
    PeerStatus,
    Persist,
    ReadLog,
    Ready,
    Recovered,
    Status,
)
from tasksprint.consensus.founding import (
    Founding,
    Member,
    decode_founding,
    encode_founding,
)
from tasksprint.consensus.log_entry import LogEntry
from tasksprint.consensus.marks import NO_MARK, DurableNumbers, KnownMark, Mark
from tasksprint.consensus.membership import (
    ALPHA,
    Membership,
    decode_membership,
    decode_membership_value,
    encode_membership,
    encode_membership_value,
)
from tasksprint.consensus.messages import (
    Accept,
    Accepted,
    Canvass,
    CanvassReply,
    CatchUpReply,
    CatchUpRequest,
    ChosenNotice,
    Envelope,
    Forward,
    Found,
    Heartbeat,
    HeartbeatReply,
    Hello,
    Marks,
    Message,
    Nack,
    Prepare,
    Promise,
    Resign,
    Stale,
    Stranger,
)
from tasksprint.consensus.replica import Replica

__all__ = [
    "ALPHA",
    "NOOP",
    "NO_BALLOT",
    "NO_MARK",
    "Accept",
    "Accepted",
    "Ballot",
    "Canvass",
    "CanvassReply",
    "CatchUpReply",
    "CatchUpRequest",
    "Chosen",
    "ChosenNotice",
    "DurableNumbers",
    "Envelope",
    "Forward",
    "Found",
    "Founding",
    "Heartbeat",
    "HeartbeatReply",
    "Hello",
    "KnownMark",
    "LogEntry",
    "Mark",
    "Marks",
    "Member",
    "Membership",
    "Message",
    "Nack",
    "PeerStatus",
    "Persist",
    "Prepare",
    "Promise",
    "ReadLog",
    "Ready",
    "Recovered",
    "Replica",
    "Resign",
    "Stale",
    "Status",
    "Stranger",
    "decode_batch",
    "decode_founding",
    "decode_membership",
    "decode_membership_value",
    "encode_batch",
    "encode_founding",
    "encode_membership",
    "encode_membership_value",
]
