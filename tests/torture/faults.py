"""What goes wrong, and when: a plan made of a seed, and who carries it out.

The plan names kinds of victims ("the leader", "the second client"); who leads is found out
when the time has come. So one seed is one plan, though never twice the same run: real
processes have real timing.

Coordinators change, too: a fresh one takes the place of another, which may be well, or cut
off, or have lost its disk. One such change is begun when the last one has come to its end,
so at most one disk is lost for good among the voters: no fault here destroys a majority for
longer than it lasts.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import psutil

from tests.torture.machines import Machines
from tests.torture.membership import Change, Operator
from tests.torture.network import cut, mend

__all__ = ["Fault", "Faults", "plan"]

_GAP_S = (0.5, 5.0)
# So often everything is left to heal for a while: jobs should get somewhere.
_STORM_S, _CALM_S = 35.0, 8.0
_FOR_S_MAX, _STOP_S_MAX = 7.0, 10.0
# Runs of so many seconds have long stops, too, one after the other, and through calm
# phases: a minority is silent meanwhile. One of them is the leader's, for the longest time.
_LONG_RUN_S = 300.0
_LONG_STOP_S = (10.0, 60.0)
# Runs of so many seconds have a change of the members at about this time at the latest.
_CHANGES_FROM_S = 40.0
_CHANGE_AT_S = (6.0, 15.0)
_PROGRESS_S = 10.0

_ON_PROCESSES = {
    "kill": 5,
    "kill some": 2,
    "kill a majority": 1,
    "kill all coordinators": 1,
    "kill client": 3,
    "kill scheduler": 2,
    "kill node": 1,
    "restart": 2,
    "restart client": 1,
    "stop": 4,
    "stop client": 1,
}
_ON_MEMBERS = {
    "lose disk": 2,
    "replace": 2,
    "add and remove": 1,
}
_ON_NETWORK = {
    "isolate": 3,
    "lose what it sends": 2,
    "lose what it hears": 2,
    "split": 2,
    "flap": 2,
    "isolate client": 1,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    for_s: float
    kind: str
    # 0: the leader (of coordinators); else the n-th one, counted around.
    victim: int
    # For what concerns some of them: one bit for each.
    some: int

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.at_s + self.for_s

    def overlaps(self, other: Fault) -> bool:
        """Whether both last at the same time."""
        return self.at_s < other.end_s and other.at_s < self.end_s


def plan(seed: int, seconds: float, *, has_network: bool) -> list[Fault]:
    """Return what goes wrong within a time, in order."""
    random = Random(seed)
    weights = {**_ON_PROCESSES, **_ON_MEMBERS, **(_ON_NETWORK if has_network else {})}
    found = _fixed(random, seconds)
    long_stops = [each for each in found if each.kind == "stop"]
    at_s = 1.0
    while True:
        at_s += random.uniform(*_GAP_S)
        phase_s = at_s % (_STORM_S + _CALM_S)
        calm_s = at_s - phase_s + _STORM_S
        if phase_s > _STORM_S:
            at_s += _STORM_S + _CALM_S - phase_s
            continue
        if at_s > seconds:
            return sorted(found, key=lambda fault: fault.at_s)
        kind = random.choices(list(weights), list(weights.values()))[0]
        longest_s = _STOP_S_MAX if kind.startswith("stop") else _FOR_S_MAX
        for_s = random.choice((random.uniform(0.05, 0.6), random.uniform(0.5, longest_s)))
        fault = Fault(
            at_s=round(at_s, 3),
            for_s=round(min(for_s, max(calm_s - at_s, 0.05), max(seconds - at_s, 0.05)), 3),
            kind=kind,
            victim=0 if random.random() < 0.5 else random.randrange(1, 8),
            some=random.getrandbits(16),
        )
        if kind == "stop" and seconds >= _LONG_RUN_S and random.random() < 0.4:
            longer = replace(fault, for_s=round(random.uniform(*_LONG_STOP_S), 3))
            if longer.end_s < seconds and not any(map(longer.overlaps, long_stops)):
                fault = longer
                long_stops.append(longer)
        found.append(fault)


def _fixed(random: Random, seconds: float) -> list[Fault]:
    """Return what every run has that is long enough."""
    found: list[Fault] = []
    if seconds >= _CHANGES_FROM_S:
        kind = random.choice(list(_ON_MEMBERS))
        at_s = round(random.uniform(*_CHANGE_AT_S), 3)
        found.append(Fault(at_s, 0.05, kind, random.randrange(4), random.getrandbits(16)))
    if seconds >= _LONG_RUN_S:
        at_s = round(random.uniform(30, seconds - 2 * _LONG_STOP_S[1]), 3)
        found.append(Fault(at_s, _LONG_STOP_S[1], "stop", 0, 0))
    return found


class Faults:
    """Carries out a plan on machines.

    In the main thread: the kernel ends a process with the thread that started it, as
    `die_with_parent` asks it to.
    """

    def __init__(
        self,
        machines: Machines,
        faults: list[Fault],
        operator: Operator,
        tell: Callable[[str], None],
        progress: Callable[[], str],
    ) -> None:
        self._machines = machines
        self._faults = faults
        self._operator = operator
        self._tell = tell
        self._progress = progress
        self.counts: Counter[str] = Counter()
        self.longest_stop_s = 0.0  # of a coordinator
        self.wrong: list[str] = []
        self._spared: set[str] = set()  # those that are stopped for long, so that they are

    def heal(self) -> None:
        """Put everything right again, but start no process."""
        for name in list(self._machines.stopped):
            self._machines.resume(name)
        if self._machines.network is not None:
            self._machines.network.heal()

    def run(self, seconds: float) -> None:
        """Let things go wrong for so long, or until something is wrong that shouldn't be."""
        began_s = time.monotonic()
        # What ends a fault, and when.
        due: list[tuple[float, Callable[[], None]]] = []
        waiting = list(self._faults)
        progress_s = _PROGRESS_S
        try:
            while (now_s := time.monotonic() - began_s) < seconds and not self.wrong:
                if now_s >= progress_s:
                    progress_s += _PROGRESS_S
                    self._tell(self._progress())
                for ended in [each for each in due if each[0] <= now_s]:
                    due.remove(ended)
                    ended[1]()
                if waiting and waiting[0].at_s <= now_s:
                    fault = waiting.pop(0)
                    undo = self._begin(fault)
                    if undo is not None:
                        due.append((fault.end_s, undo))
                self.take_changes()
                self.wrong += self._machines.ended_wrongly()
                time.sleep(0.02)
        finally:
            for _, undo in due:
                with contextlib.suppress(Exception):  # `heal` does what matters all the same.
                    undo()

    def take_changes(self) -> None:
        """Take note of members that have been replaced."""
        for change in self._operator.take_done():
            self._machines.leave(change.old)

    # --- faults ---

    def _coordinator(self, victim: int) -> str:
        machines = self._machines
        if victim == 0:
            leader = machines.leader()
            if leader is not None:
                return leader
        return machines.coordinators[victim % len(machines.coordinators)]

    def _begin(self, fault: Fault) -> Callable[[], None] | None:
        """Let it go wrong; return what ends it."""
        machines, network = self._machines, self._machines.network
        everybody = [machines.host(name) for name in machines.coordinators]
        client = machines.clients[fault.victim % len(machines.clients)]
        some = [n for n, name in enumerate(machines.coordinators) if fault.some >> n & 1]
        match fault.kind:
            case "kill":
                return self._kill(fault, self._coordinator(fault.victim))
            case "kill client":
                return self._kill(fault, client)
            case "kill all coordinators":
                return self._kill(fault, *machines.coordinators)
            case "kill a majority":
                count = len(machines.coordinators) // 2 + 1
                first = fault.victim
                names = [*machines.coordinators, *machines.coordinators]
                first %= len(machines.coordinators)
                return self._kill(fault, *names[first : first + count])
            case "kill some":
                return self._kill(fault, *[machines.coordinators[n] for n in some])
            case "kill scheduler":
                self._kill_child(fault, self._coordinator(fault.victim), "scheduler.py")
                return None
            case "kill node":
                self._kill_child(fault, client, "node.py")
                return None
            case "restart":
                return self._restart(fault, self._coordinator(fault.victim))
            case "restart client":
                return self._restart(fault, client)
            case "lose disk" | "replace" | "add and remove":
                self._change_members(fault)
                return None
            case "stop":
                return self._stop(fault, self._coordinator(fault.victim))
            case "stop client":
                return self._stop(fault, client)
            case _:
                pass
        assert network is not None
        match fault.kind:
            case "isolate":
                name = self._coordinator(fault.victim)
                one = machines.host(name)
                others = [host for host in everybody if host != one]
                self._say(fault, name)
                cut(network, [one], others)
                return lambda: mend(network, [one], others)
            case "lose what it sends" | "lose what it hears":
                name = self._coordinator(fault.victim)
                one = machines.host(name)
                others = [host for host in everybody if host != one]
                pairs = [(one, other) for other in others]
                if fault.kind == "lose what it hears":
                    pairs = [(target, source) for source, target in pairs]
                self._say(fault, name)
                for source, target in pairs:
                    network.lose(source, target)

                def pass_on() -> None:
                    for source, target in pairs:
                        network.pass_on(source, target)

                return pass_on
            case "split":
                # At least one on each side.
                sides = 1 + fault.some % (2 ** len(everybody) - 2)
                left = [host for n, host in enumerate(everybody) if sides >> n & 1]
                right = [host for host in everybody if host not in left]
                self._say(fault, f"{left} from {right}")
                cut(network, left, right)
                return lambda: mend(network, left, right)
            case "flap":
                name = self._coordinator(fault.victim)
                one = machines.host(name)
                self._say(fault, name)
                return self._flap(fault, one)
            case "isolate client":
                one = machines.host(client)
                side = [everybody[n] for n in some]
                side += [machines.host(each) for each in machines.clients if each != client]
                self._say(fault, f"{client} from {side}")
                cut(network, [one], side)
                return lambda: mend(network, [one], side)
            case _:
                raise AssertionError(f"no such fault: {fault}")

    def _say(self, fault: Fault, whom: str) -> None:
        self.counts[fault.kind] += 1
        self._tell(f"{fault.kind}: {whom} for {fault.for_s:.2f} s")

    def _kill(self, fault: Fault, *names: str) -> Callable[[], None] | None:
        machines = self._machines
        up = [name for name in names if machines.is_up(name) and name not in self._spared]
        if not up:
            return None
        self._say(fault, " ".join(up))
        self.counts["processes killed"] += len(up)
        machines.kill(*up)
        order = sorted(up, key=lambda name: hash((fault.some, name.encode()[-1])))

        def restart() -> None:
            for name in order:
                if not machines.is_up(name):
                    machines.start(name)

        return restart

    def _kill_child(self, fault: Fault, name: str, program: str) -> None:
        """Kill one of the users' programs that a process runs; it looks after them."""
        machines = self._machines
        if not machines.is_up(name):
            return
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(machines.processes[name].pid).children(recursive=True)
            found = [
                child for child in children if any(program in word for word in child.cmdline())
            ]
            if found:
                found[fault.some % len(found)].kill()
                self._say(fault, f"one of {len(found)} of {name}")

    def _restart(self, fault: Fault, name: str) -> Callable[[], None] | None:
        """Ask a process to end in good order, and start it again."""
        machines = self._machines
        if not machines.is_up(name) or name in self._spared | machines.leavers | machines.ending:
            return None
        self._say(fault, name)
        machines.ask_to_end(name)
        process = machines.processes[name]

        def restart() -> None:
            if machines.processes[name] is not process or name not in machines.ending:
                return  # It was killed meanwhile.
            code = machines.restart(name)
            if code not in (0, -signal.SIGTERM):
                self.wrong.append(f"{name} ended with exit code {code} when it was asked to end")

        return restart

    def _change_members(self, fault: Fault) -> None:
        """Have a new coordinator take the place of another."""
        machines, operator = self._machines, self._operator
        old = self._coordinator(fault.victim)
        if operator.is_busy or (fault.kind == "lose disk" and old in self._spared):
            return
        if fault.kind == "lose disk":
            machines.lose_disk(old)
            machines.leave(old)
        machines.leavers.add(old)
        new = machines.join()
        self._say(fault, f"{old}, {new} takes its place")
        operator.begin(Change(old, new, in_two_steps=fault.kind == "add and remove"))

    def _stop(self, fault: Fault, wanted: str) -> Callable[[], None] | None:
        machines = self._machines
        among = machines.clients if wanted in machines.clients else machines.coordinators
        able = [each for each in among if machines.is_up(each) and each not in machines.stopped]
        if not able:
            return None
        name = wanted if wanted in able else able[fault.some % len(able)]
        self._say(fault, name)
        machines.stop(name)
        process = machines.processes[name]
        if fault.for_s >= _LONG_STOP_S[0]:
            self._spared.add(name)

        def resume() -> None:
            self._spared.discard(name)
            if machines.processes[name] is process and name in machines.stopped:
                machines.resume(name)
                if name in machines.addresses:
                    self.longest_stop_s = max(self.longest_stop_s, fault.for_s)

        return resume

    def _flap(self, fault: Fault, host: int) -> Callable[[], None]:
        """Plug a cable in and out, in a thread, until it is over."""
        network = self._machines.network
        assert network is not None
        over = threading.Event()

        def flap() -> None:
            is_in = True
            random = Random(fault.some)
            while not over.wait(random.uniform(0.02, 0.5)):
                is_in = not is_in
                network.plug(host, is_in=is_in)
            network.plug(host, is_in=True)

        thread = threading.Thread(target=flap)
        thread.start()

        def end() -> None:
            over.set()
            thread.join()

        return end
