"""What goes wrong, and when: a plan made of a seed, and who carries it out.

The plan names kinds of victims ("the leader", "the second client"); who leads is found out
when the time has come. So one seed is one plan, though never twice the same run: real
processes have real timing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.torture.machines import Machines
from tests.torture.network import cut, mend

__all__ = ["Fault", "Faults", "plan"]

_GAP_S = (0.5, 5.0)
# So often everything is left to heal for a while: jobs should get somewhere.
_STORM_S, _CALM_S = 35.0, 8.0
_STOP_S_MAX = 10.0

_ON_PROCESSES = {
    "kill": 5,
    "kill client": 3,
    "kill all coordinators": 1,
    "kill a majority": 1,
    "stop": 4,
    "stop client": 1,
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


def plan(seed: int, seconds: float, *, has_network: bool) -> list[Fault]:
    """Return what goes wrong within a time, in order."""
    random = Random(seed)
    weights = {**_ON_PROCESSES, **(_ON_NETWORK if has_network else {})}
    found: list[Fault] = []
    at_s = 1.0
    while True:
        at_s += random.uniform(*_GAP_S)
        phase_s = at_s % (_STORM_S + _CALM_S)
        calm_s = at_s - phase_s + _STORM_S
        if phase_s > _STORM_S:
            at_s += _STORM_S + _CALM_S - phase_s
            continue
        if at_s > seconds:
            return found
        kind = random.choices(list(weights), list(weights.values()))[0]
        longest_s = _STOP_S_MAX if kind.startswith("stop") else 7.0
        for_s = random.choice((random.uniform(0.05, 0.6), random.uniform(0.5, longest_s)))
        found.append(
            Fault(
                at_s=round(at_s, 3),
                for_s=round(min(for_s, max(calm_s - at_s, 0.05), max(seconds - at_s, 0.05)), 3),
                kind=kind,
                victim=0 if random.random() < 0.5 else random.randrange(1, 8),
                some=random.getrandbits(16),
            )
        )


class Faults:
    """Carries out a plan on machines.

    In the main thread: the kernel ends a process with the thread that started it, as
    `die_with_parent` asks it to.
    """

    def __init__(
        self, machines: Machines, faults: list[Fault], tell: Callable[[str], None]
    ) -> None:
        self._machines = machines
        self._faults = faults
        self._tell = tell
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

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
        try:
            while (now_s := time.monotonic() - began_s) < seconds and not self.wrong:
                for ended in [each for each in due if each[0] <= now_s]:
                    due.remove(ended)
                    ended[1]()
                if waiting and waiting[0].at_s <= now_s:
                    fault = waiting.pop(0)
                    undo = self._begin(fault)
                    if undo is not None:
                        due.append((fault.end_s, undo))
                self._check_alive()
                time.sleep(0.02)
        finally:
            for _, undo in due:
                with contextlib.suppress(Exception):  # `heal` does what matters all the same.
                    undo()

    def _check_alive(self) -> None:
        """Look for processes that ended though nobody killed them."""
        machines = self._machines
        for name, process in machines.processes.items():
            code = process.poll()
            if code is not None and code != -9:
                self.wrong.append(
                    f"{name} ended by itself with exit code {code}: {machines.log(name)[-1500:]}"
                )
                return

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
                names = machines.coordinators * 2
                first %= len(machines.coordinators)
                return self._kill(fault, *names[first : first + count])
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
                left = [everybody[n] for n in some]
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
        self._tell(f"{fault.at_s:7.2f} s: {fault.kind}: {whom} for {fault.for_s:.2f} s")

    def _kill(self, fault: Fault, *names: str) -> Callable[[], None] | None:
        machines = self._machines
        up = [name for name in names if machines.is_up(name)]
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

    def _stop(self, fault: Fault, name: str) -> Callable[[], None] | None:
        machines = self._machines
        if not machines.is_up(name) or name in machines.stopped:
            return None
        self._say(fault, name)
        machines.stop(name)
        process = machines.processes[name]

        def resume() -> None:
            if machines.processes[name] is process:
                machines.resume(name)

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
