"""What a run of the torture did, for people: one table at its end."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from tests.torture.audit import Audit
from tests.torture.faults import Faults
from tests.torture.load import Load
from tests.torture.machines import Machines
from tests.torture.membership import Operator

__all__ = ["report"]

_LED = re.compile(r"ballot=(\d+\.\d+) became leader")


def report(
    machines: Machines, load: Load, faults: Faults, operator: Operator, audit: Audit
) -> list[str]:
    """Return the lines of the report."""
    logs = {name: machines.log(name) for name in machines.processes}
    led = {ballot for log in logs.values() for ballot in _LED.findall(log)}
    copies = sum(log.count("takes a copy of the state") for log in logs.values())
    deaths = {
        line.partition(" slot=")[2]
        for log in logs.values()
        for line in log.splitlines()
        if " dead: " in line
    }
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for (kind, outcome), count in load.counts.items():
        by_kind[kind][outcome] += count
    kinds = Counter(job.kind for job in load.requests)
    return [
        "operations:",
        *(f"  {kind:<12}{_listed(outcomes)}" for kind, outcomes in sorted(by_kind.items())),
        f"jobs: {_listed(kinds)}; acknowledged: {len(load.acknowledged)}",
        f"longest time without an acknowledged submit: {load.longest_wait_s():.2f} s",
        f"faults: {_listed(faults.counts)}",
        f"longest stop of a coordinator: {faults.longest_stop_s:.1f} s",
        f"changes of members: {operator.changes}; voters at last: "
        + ", ".join(machines.coordinators),
        f"leaders: {len(led)} in turn; copies of the mirror: {copies}; "
        f"times that a client was declared dead: {len(deaths)}",
        f"events seen in mirrors while they ran: {audit.events}, in {audit.looks} looks",
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
