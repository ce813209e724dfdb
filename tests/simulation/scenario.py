"""One seed: a cluster, its clients, and what goes wrong; first faults, then healing.

Everything random comes from the seed, so a seed that fails fails again. In the first
phase only safety is asked for; then everything is healed, and the cluster must decide
new commands and agree.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import combinations
from random import Random

from tasksprint.consensus import (
    Accepted,
    DurableNumbers,
    Envelope,
    Membership,
    Prepare,
    Promise,
)
from tasksprint.consensus.membership import without as membership_without
from tasksprint.errors import TaskSprintError
from tasksprint.ids import Incarnation, ReplicaId, Slot
from tasksprint.settings import Settings
from tests.simulation.checker import Checker, Violation
from tests.simulation.disk import Disk
from tests.simulation.network import Network, NetworkFaults
from tests.simulation.replica_node import ReplicaNode, ReplicaState
from tests.simulation.timeline import Clock, Timeline
from tests.simulation.world import Outcome, violation_of

__all__ = ["Scenario", "run_seed"]

# Virtual milliseconds that a healed cluster may take to decide something and agree.
_HEALING_MS_MAX = 30_000
_STEPS_MAX = 400_000
# Commands that a healed cluster must decide.
_PROBES = 5
# Virtual milliseconds within which a leader whose disk hangs is replaced, if all else works
# (and `hold_back_max_ms` more, if nobody else stood before),
_HANDOVER_MS_MAX = 3_000
# and those for which another one must lead then.
_HANDED_OVER_MS = 2_000


def run_seed(
    seed: int,
    *,
    trace: Callable[[str], None] | None = None,
    node_class: type[ReplicaNode] = ReplicaNode,
) -> Outcome:
    """Run one seed to its end, or to the first broken rule."""
    scenario = Scenario(seed, trace=trace, node_class=node_class)
    violation: Violation | None = None
    try:
        scenario.run()
    except Violation as error:
        violation = error
    except (AssertionError, KeyError, TaskSprintError) as error:
        violation = violation_of("a replica", error)
    counts = scenario.checker.counts
    counts["messages sent"] = scenario.network.sent
    counts["messages lost"] = scenario.network.lost
    counts["messages duplicated"] = scenario.network.duplicated
    counts["slots chosen"] = len(scenario.checker.chosen)
    return Outcome(seed, violation, scenario.timeline.steps, scenario.timeline.now, counts)


class Scenario:
    """The world of one seed."""

    def __init__(
        self,
        seed: int,
        *,
        trace: Callable[[str], None] | None,
        node_class: type[ReplicaNode],
    ) -> None:
        self._random = random = Random(seed)
        self.timeline = Timeline()
        size = random.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5))
        members = tuple(ReplicaId(number) for number in range(1, size + 1))
        self.checker = Checker(
            members=members,
            trace=trace and (lambda text: trace(f"{self.timeline.now:9.2f} {text}")),
        )
        self.network = Network(self.timeline, Random(random.random()), self._deliver)
        self._settings = _draw_settings(random)
        self._node_class = node_class
        self.nodes: dict[ReplicaId, ReplicaNode] = {}
        for member in members:
            self.nodes[member] = self._make_node(member, members, is_joining=False)
        self._wiped: set[ReplicaId] = set()
        self._kept: dict[ReplicaId, list[ReplicaState]] = {}  # copies of disks
        self._wipes_max = (size - 1) // 2
        self._commands = 0
        self._reads = 0
        self._is_healed = False
        self._probes: list[bytes] = []
        self._probes_wanted = _PROBES
        self._hangs_at_the_end = random.random() < 0.5
        self._fault_gap = random.uniform(100, 800)
        self._command_gap = random.uniform(15, 80)
        self._election_crashes = random.choice((0.0, 0.05, 0.2))
        self._disks_age = random.random() < 0.3  # In some seeds disks go back in time.
        # Operators change members in some seeds only, some of them all the time.
        self._change_gap = random.choice((None, None, 200.0, 600.0))

    # --- wiring ---

    def _make_node(
        self, me: ReplicaId, members: tuple[ReplicaId, ...], *, is_joining: bool
    ) -> ReplicaNode:
        random = self._random
        node = self._node_class(
            me=me,
            members=members,
            settings=self._settings,
            timeline=self.timeline,
            clock=Clock(
                self.timeline,
                offset=random.randrange(10_000_000),
                rate=random.uniform(0.97, 1.03),
            ),
            disk=Disk(self.timeline, Random(random.random()), ReplicaState(self._incarnation())),
            random=Random(random.random()),
            send=self._send,
            observer=self.checker,
            is_joining=is_joining,
        )
        node.disk.latency = random.choice(((0.1, 1.0), (0.5, 5.0), (2.0, 30.0)))
        return node

    def _incarnation(self) -> Incarnation:
        return Incarnation(f"{self._random.getrandbits(32):08x}")

    def _send(self, envelope: Envelope) -> None:
        self.network.send(envelope.source, envelope.target, envelope)
        self._crash_at_a_bad_moment(envelope)

    def _deliver(self, source: int, target: int, envelope: Envelope) -> None:
        self.nodes[ReplicaId(target)].receive(envelope)

    # --- phases ---

    def run(self) -> None:
        """Run both phases."""
        random = self._random
        self.network.faults = _draw_network(random)
        for node in self.nodes.values():
            self.timeline.after(random.uniform(0, 300), partial(self._start, node))
        self.timeline.after(self._fault_gap, self._fault)
        self.timeline.after(self._command_gap, self._client)
        if self._change_gap is not None:
            self.timeline.after(self._change_gap, self._change_members)
        self._run_until(random.uniform(2_000, 7_000))
        self._heal()
        self._run_until_settled()
        if self._hangs_at_the_end:
            self._hang_leader()
        self.checker.at_end(self._members_left())

    def _run_until(self, end: float) -> None:
        while self.timeline.now < end and self.timeline.step():
            pass

    def _run_until_settled(self) -> None:
        end = self.timeline.now + _HEALING_MS_MAX
        while not self._is_settled():
            for _ in range(50):
                self.timeline.step()
            if self.timeline.now > end or self.timeline.steps > _STEPS_MAX:
                states = [
                    node.replica.status() if node.replica else None for node in self.nodes.values()
                ]
                raise Violation("no-progress", f"after healing: {states}")

    def _hang_leader(self) -> None:
        """Let the leader's disk hang: another one must lead soon, and go on to."""
        leader = self._leader()
        if leader is None or not self._leaves_quorums({*self._wiped, leader.me}):
            return
        self.checker.say(f"the disk of replica {leader.me}, which leads, hangs")
        self.checker.count("leaders whose disk hung")
        leader.disk.hang()
        self._probes_wanted += 1_000
        end = self.timeline.now + _HANDOVER_MS_MAX + self._settings.hold_back_max_ms
        while self._leader() in (leader, None):
            self.timeline.step()
            if self.timeline.now > end:
                raise Violation("hung-leader", f"replica {leader.me} was not replaced")
        end = self.timeline.now + _HANDED_OVER_MS
        while self.timeline.now < end:
            self.timeline.step()
            if self._leader() is leader:
                raise Violation("hung-leader", f"replica {leader.me} leads again")
        self.checker.say("its disk recovers")
        leader.disk.recover()
        self._probes_wanted = len(self._probes) + 1
        self._run_until_settled()

    def _leader(self) -> ReplicaNode | None:
        """Return who leads, by the highest ballot."""
        leaders = [
            (node.replica.ballot, node)
            for node in self.nodes.values()
            if node.replica is not None and node.replica.is_established
        ]
        return max(leaders, key=lambda pair: pair[0])[1] if leaders else None

    def _is_settled(self) -> bool:
        if len(self._probes) < self._probes_wanted:
            return False
        if any(probe not in self.checker.acknowledged for probe in self._probes):
            return False
        ends = {node.applied_end for node in self._members_left()}
        return len(ends) == 1 and min(ends) >= self.checker.acknowledged_end

    def _members_left(self) -> list[ReplicaNode]:
        membership = self.checker.membership
        return [
            node
            for node in self.nodes.values()
            if node.me not in self._wiped and membership.member(node.me) is not None
        ]

    # --- clients ---

    def _client(self) -> None:
        """Submit a command or a read somewhere; after healing, repeat until acknowledged."""
        random = self._random
        self.timeline.after(random.uniform(0, 2 * self._command_gap), self._client)
        nodes = list(self.nodes.values())
        if self._is_healed:
            open_probes = [p for p in self._probes if p not in self.checker.acknowledged]
            if not open_probes and len(self._probes) < self._probes_wanted:
                self._probes.append(f"probe {len(self._probes)}".encode())
            for probe in open_probes:
                self._submit(random.choice(nodes), probe)
        else:
            for _ in range(random.choice((1, 1, 1, 2, 12))):
                self._commands += 1
                padding = "x" * random.choice((0, 0, 5, 60))
                self._submit(random.choice(nodes), f"command {self._commands}{padding}".encode())
        node = random.choice(nodes)
        self._reads += 1
        if node.read(self._reads):
            self.checker.read_began(self._reads)

    def _submit(self, node: ReplicaNode, command: bytes) -> None:
        # Before the proposal: it may be chosen (and acknowledged) within the call.
        if node.replica is not None and node.replica.is_leader:
            self.checker.proposed(node, command)
        node.propose(command)

    # --- faults ---

    def _fault(self) -> None:
        """Let something go wrong, and something else end."""
        if self._is_healed:
            return
        random = self._random
        self.timeline.after(random.uniform(0, 2 * self._fault_gap), self._fault)
        node = random.choice(list(self.nodes.values()))
        leaders = [n for n in self.nodes.values() if n.replica is not None and n.replica.is_leader]
        if leaders and random.random() < 0.4:
            node = random.choice(leaders)
        fault = random.choice(
            (
                self._crash,
                self._crash,
                self._crash_all,
                self._cut_off,
                self._partition,
                self._strand_leader,
                self._cut_one_way,
                self._mend_network,
                self._mend_network,
                self._slow_disk,
                self._hang_disk,
                self._disconnect,
                self._freeze,
                self._wipe,
                self._spoil_entry,
                self._change_network,
            )
        )
        fault(node)
        if self._disks_age:
            self._keep_disks()
            if random.random() < 0.4:
                self._put_back_disk(random.choice(list(self.nodes.values())))

    def _start(self, node: ReplicaNode) -> None:
        if node.replica is None:
            node.start()

    def _crash(self, node: ReplicaNode) -> None:
        if node.replica is None:
            return
        random = self._random
        self.checker.say(f"replica {node.me} crashes")
        lost, kept = node.crash()
        self.checker.count("crashes")
        if lost:
            self.checker.count("crashes that lost writes")
        if kept:
            self.checker.count("crashes after an unreported write")
        if random.random() < 0.7:  # The process died, and the streams of its peers broke.
            for peer in self.nodes.values():
                if peer is not node:
                    self.timeline.after(random.uniform(0, 30), partial(peer.disconnected, node.me))
        self.timeline.after(random.choice((5, 300, 2_000)), partial(self._start, node))

    def _crash_at_a_bad_moment(self, envelope: Envelope) -> None:
        """Crash who has just said something that it must remember, or who will hear it."""
        if self._is_healed or not isinstance(envelope.message, (Prepare, Promise, Accepted)):
            return
        random = self._random
        chance = 0.002 if isinstance(envelope.message, Accepted) else self._election_crashes
        if random.random() < chance:
            victim = self.nodes[random.choice((envelope.source, envelope.target))]
            self.timeline.after(random.uniform(0, 10), partial(self._crash, victim))

    def _crash_all(self, node: ReplicaNode) -> None:
        if self._random.random() < 0.3:
            for each in self.nodes.values():
                self._crash(each)

    def _cut_off(self, node: ReplicaNode) -> None:
        self.checker.say(f"replica {node.me} is cut off")
        self.checker.count("partitions")
        for peer in self.nodes:
            self.network.cut |= {(node.me, peer), (peer, node.me)}

    def _partition(self, node: ReplicaNode) -> None:
        side = {member for member in self.nodes if self._random.random() < 0.5}
        self.checker.say(f"partition of {sorted(side)} from the others")
        self.checker.count("partitions")
        for source in self.nodes:
            for target in self.nodes:
                if (source in side) != (target in side):
                    self.network.cut.add((source, target))

    def _strand_leader(self, node: ReplicaNode) -> None:
        """Leave a leader with a minority until another is elected, then mend."""
        leaders = [n.me for n in self.nodes.values() if n.replica and n.replica.is_leader]
        if not leaders:
            return
        others = [member for member in self.nodes if member != leaders[0]]
        side = {leaders[0], *self._random.sample(others, max(0, self._wipes_max - 1))}
        self.checker.say(f"leader stranded: {sorted(side)}")
        self.checker.count("leaders stranded")
        for source in self.nodes:
            for target in self.nodes:
                if (source in side) != (target in side):
                    self.network.cut.add((source, target))
        self.timeline.after(self._random.uniform(200, 1_200), partial(self._mend_network, node))

    def _cut_one_way(self, node: ReplicaNode) -> None:
        source, target = self._random.choice(list(self.nodes)), node.me
        if source != target:
            self.checker.say(f"nothing gets through from {source} to {target}")
            self.checker.count("one-way cuts")
            self.network.cut.add((source, target))

    def _mend_network(self, node: ReplicaNode) -> None:
        if self.network.cut:
            self.checker.say("the network is mended")
        self.network.cut.clear()

    def _change_network(self, node: ReplicaNode) -> None:
        self.network.faults = _draw_network(self._random)

    def _slow_disk(self, node: ReplicaNode) -> None:
        node.disk.latency = self._random.choice(((0.1, 1.0), (5.0, 50.0), (100.0, 1_500.0)))
        self.checker.say(f"the disk of replica {node.me} takes {node.disk.latency} ms")
        self.checker.count("disks that changed speed")

    def _hang_disk(self, node: ReplicaNode) -> None:
        self.checker.say(f"the disk of replica {node.me} hangs")
        self.checker.count("disks that hung")
        node.disk.hang()
        self.timeline.after(self._random.choice((200, 2_000)), partial(self._recover_disk, node))

    def _recover_disk(self, node: ReplicaNode) -> None:
        if not self._is_healed:  # Then it has recovered, and may hang for another reason.
            node.disk.recover()

    def _freeze(self, node: ReplicaNode) -> None:
        node.freeze()
        self.checker.say(f"replica {node.me} is frozen")
        self.checker.count("processes frozen")
        self.timeline.after(self._random.choice((20, 500, 3_000)), node.thaw)

    def _disconnect(self, node: ReplicaNode) -> None:
        peer = self._random.choice(list(self.nodes))
        if peer != node.me:
            self.checker.say(f"replica {node.me} loses its stream to {peer}")
            node.disconnected(peer)

    def _wipe(self, node: ReplicaNode) -> None:
        """Replace a disk by an empty one, never so many that no quorum may be left.

        Only once all are founded: before that, losing the founder is not repaired but
        begun anew by the operator.
        """
        if node.disk.state.founding is None if node.is_joining else len(node.members) == 1:
            return  # Nothing is lost yet; or it would found another cluster.
        if node.me in self._wiped or not self._leaves_quorums({*self._wiped, node.me}):
            return
        if any(
            each.disk.state.founding is None and not each.is_joining
            for each in self.nodes.values()
        ):
            return
        self._wiped.add(node.me)
        self._crash(node)
        self.checker.say(f"replica {node.me} loses its disk")
        self.checker.count("disks lost")
        node.disk.state = ReplicaState(self._incarnation())

    def _keep_disks(self) -> None:
        """Make copies of the disks, as somebody does who believes that these are backups."""
        for each in self.nodes.values():
            self._kept.setdefault(each.me, []).append(deepcopy(each.disk.state))

    def _put_back_disk(self, node: ReplicaNode) -> None:
        """Put an older copy in the place of a disk.

        Only if all others remember, on their disks, to have heard of a later write: what
        nobody knows can't be noticed. Such a replica counts as lost from then on.
        """
        kept = [
            state
            for state in self._kept.get(node.me, ())
            if state.incarnation == node.disk.state.incarnation
        ]
        if not kept or node.me in self._wiped:
            return
        if not self._leaves_quorums({*self._wiped, node.me}):
            return
        others = [each for each in self._may_count() if each is not node]
        kept = [
            state
            for state in kept
            if all(_has_seen(each, state.incarnation) > state.durable for each in others)
        ]
        if not kept:
            return
        state = self._random.choice(kept)
        self._wiped.add(node.me)
        self._crash(node)
        self.checker.say(
            f"replica {node.me} has its disk of durable number {state.durable} again, "
            f"it was {node.disk.state.durable}"
        )
        self.checker.count("disks that went back in time")
        self.checker.lost.add(node.me)
        node.disk.state = deepcopy(state)

    def _may_count(self) -> list[ReplicaNode]:
        """Return who may count votes now or later, as far as memberships are known."""
        memberships = [
            *self.checker.last_memberships(2),
            *self.checker.proposed_memberships,
            *(each for node in self.nodes.values() if (each := node.change_taken) is not None),
        ]
        retired = self.checker.membership.retired
        return [
            node
            for node in self.nodes.values()
            if node.me not in self._wiped
            and node.me not in retired
            and any(membership.member(node.me) for membership in memberships)
        ]

    def _spoil_entry(self, node: ReplicaNode) -> None:
        """Let a disk lose chosen entries that weren't applied, and all others know as chosen.

        If one of them merely accepted it, it can't know that this is what was chosen, and
        waits for somebody who does, for ever if there is nobody.
        """
        state = node.disk.state
        slots = [
            slot
            for number in range(state.applied_end, state.chosen_end)
            if (slot := Slot(number)) in state.accepted
            and all(
                slot < each.disk.state.chosen_end and slot in each.disk.state.accepted
                for each in self.nodes.values()
                if each is not node and each.me not in self._wiped
            )
        ]
        if not slots or node.me in self._wiped or len(self.nodes) == 1:
            return
        self._crash(node)
        for slot in self._random.sample(slots, self._random.choice((1, len(slots)))):
            if slot in node.disk.state.accepted and slot >= node.disk.state.applied_end:
                self.checker.say(f"replica {node.me} loses slot {slot}, which is chosen")
                del node.disk.state.accepted[slot]
        self.checker.count("chosen entries spoiled")

    def _leaves_quorums(self, lost: set[ReplicaId], extra: tuple[Membership, ...] = ()) -> bool:
        """Whether the others are a quorum of every membership that governs or may do so."""
        newest = self.checker.membership
        memberships = [
            newest,
            *self.checker.last_memberships(2),
            *(each for each in self.checker.proposed_memberships if each.number > newest.number),
            *(each for node in self.nodes.values() if (each := node.change_taken) is not None),
            *extra,
        ]
        for membership in memberships:
            voters = [member.replica for member in membership.voters]
            learners = [member.replica for member in membership.learners]
            for count in range(len(learners) + 1):
                for promoted in combinations(learners, count):
                    grown = {*voters, *promoted}
                    left = {old for new, old in membership.replaces if new in grown}
                    for gone in (set[ReplicaId](), *({each} for each in left), left):
                        rest = grown - gone
                        if len(rest - lost) < len(rest) // 2 + 1:
                            return False
        return True

    # --- operators ---

    def _change_members(self) -> None:
        """Let an operator add, replace or remove a member, as somebody does who looks first."""
        assert self._change_gap is not None
        if self._is_healed:
            return
        random = self._random
        self.timeline.after(random.uniform(0, 2 * self._change_gap), self._change_members)
        leaders = [n for n in self.nodes.values() if n.replica is not None and n.replica.is_leader]
        if not leaders:
            return
        leader = random.choice(leaders)
        newest = self.checker.membership
        voters = [member.replica for member in newest.voters]
        choice = random.choice(("add", "replace", "remove", "remove"))
        if choice == "remove" and len(voters) > 1:
            victim = random.choice([*voters, *(m.replica for m in newest.learners)])
            if random.random() < 0.3:
                victim = leader.me
            after = membership_without(newest, victim)
            if after.voters and self._leaves_quorums(self._wiped, (after,)):
                self._tell_operator(f"remove {victim}", leader.remove_member(victim))
        elif choice != "remove" and len(voters) < 7 and len(self.nodes) < 14:
            joining = [
                node
                for node in self.nodes.values()
                if node.is_joining
                and node.replica is not None
                and node.replica.founding is None
                and newest.member(node.me) is None
            ]
            if not joining:
                me = ReplicaId(max(self.nodes) + 1)
                self.nodes[me] = self._make_node(me, (me,), is_joining=True)
                self.timeline.after(random.uniform(0, 50), partial(self._start, self.nodes[me]))
                return
            node = random.choice(joining)
            replaces = random.choice(voters) if choice == "replace" else None
            self._tell_operator(
                f"add {node.me} replacing {replaces}", leader.add_member(node, replaces)
            )

    def _tell_operator(self, what: str, refusal: str | None) -> None:
        self.checker.say(f"operator: {what}: {refusal or 'taken'}")
        if refusal is not None:
            self.checker.count("changes refused")

    def _heal(self) -> None:
        self.checker.say("everything is healed")
        self._is_healed = True
        self.network.cut.clear()
        self.network.faults = NetworkFaults()
        for node in self.nodes.values():
            node.disk.latency = (0.1, 1.0)
            node.disk.recover()
            node.thaw()
            self.timeline.after(0, partial(self._start, node))


def _has_seen(node: ReplicaNode, incarnation: Incarnation) -> int:
    """Return the highest durable number of a replica that this one's disk remembers."""
    state = node.disk.state
    numbers = DurableNumbers(
        incarnation=state.incarnation, life=1, number=0, known=state.marks
    )
    return numbers.seen(incarnation)


def _draw_settings(random: Random) -> Settings:
    """Return settings that bring the rare paths about: small windows, small pieces."""
    heartbeat = random.choice((30, 60))
    return Settings(
        heartbeat_interval_ms=heartbeat,
        election_timeout_min_ms=4 * heartbeat,
        election_timeout_max_ms=8 * heartbeat,
        slow_write_ms=8 * heartbeat,
        hold_back_min_ms=40 * heartbeat,
        hold_back_max_ms=160 * heartbeat,
        chosen_notice_delay_ms=5 if heartbeat == 60 else 0,
        resend_interval_ms=random.choice((50, 100)),
        pipeline_slots_max=random.choice((1, 2, 8)),
        entry_bytes_max=random.choice((40, 200, 1_000_000)),
        log_window_slots=random.choice((4, 16, 1_024)),
        log_window_bytes_max=random.choice((600, 1_000_000)),
        catch_up_bytes_max=random.choice((50, 500, 1_000_000)),
        spare_delay_ms=random.choice((0, 5, 40)),
    )


def _draw_network(random: Random) -> NetworkFaults:
    return random.choice(
        (
            NetworkFaults(),
            NetworkFaults(loss=0.02, duplication=0.02, delay_max=5.0, straggling=0.02),
            NetworkFaults(loss=0.2, duplication=0.1, delay_max=20.0, straggling=0.1),
            NetworkFaults(duplication=0.5, delay_max=40.0),
        )
    )
