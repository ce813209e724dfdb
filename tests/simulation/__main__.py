"""Runs seeds of the simulator: `python -m tests.simulation --seed 7` or `--seeds 1000`.

Leaves with 0 only if every seed was clean and, in a batch of 50 or more, enough of them saw
what matters (changes of the leader and of the members, lost writes, short logs), and few left
a history that is too hard to judge. A seed that fails is printed, and fails again in the same way.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from tests.simulation import scenario, whole
from tests.simulation.world import Outcome

__all__ = ["main"]

# Seeds from which on the shares are asked for.
_BATCH_MIN = 50
# What so many of a batch's seeds must have seen: (share, figure, what it is).
_SHARES = (
    (1 / 2, "leader changes", "a change of the leader"),
    (1 / 4, "crashes that lost writes", "a crash that lost unsynced writes"),
    (1 / 5, "changes of members that govern", "a change of the members that came to govern"),
    (1 / 5, "logs truncated", "a truncation of the log"),
    (1 / 5, "clocks that jumped", "a clock that jumped"),
    (1 / 5, "rules raised", "members of two releases, and rules that were raised"),
    (1 / 20, "worlds on real files", "real SQLite files"),
    (1 / 5, "requests of strangers refused", "a stranger that asked for something"),
)
# … and at most, as such a seed says nothing of the rule.
_SHARES_MAX = ((1 / 50, "histories too hard to judge", "a history too hard to judge"),)
_RUNNERS: dict[str, Callable[..., Outcome]] = {
    "coordinator": whole.run_whole,
    "consensus": scenario.run_seed,
}


@dataclass
class _Result:
    """A seed's outcome, in words that travel between processes."""

    seed: int
    violation: str | None
    steps: int
    virtual_ms: float
    counts: dict[str, int] = field(default_factory=dict)


def _run(run: Callable[..., Outcome], seed: int) -> _Result:
    outcome = run(seed)
    violation = None if outcome.violation is None else str(outcome.violation)
    return _Result(seed, violation, outcome.steps, outcome.virtual_ms, outcome.counts)


def _results(run: Callable[..., Outcome], seeds: range, workers: int) -> Iterator[_Result]:
    """Run seeds on several processes; the results come in the order of seeds."""
    if workers == 1 or len(seeds) == 1:
        yield from map(partial(_run, run), seeds)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_run, run), seeds, chunksize=2)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print how often what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed only")
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument(
        "--only",
        choices=sorted(_RUNNERS),
        default="coordinator",
        help="the whole coordinator (default), or its consensus core alone",
    )
    parser.add_argument(
        "--on-files",
        action="store_true",
        help="let all whole coordinators run on real SQLite files, not one seed in ten",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that share the seeds (default: one for each CPU)",
    )
    options = parser.parse_args(arguments)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    else:
        seeds = range(options.first, options.first + options.seeds)
    began = time.monotonic()
    run = _RUNNERS[options.only]
    if options.on_files:
        if options.only != "coordinator":
            parser.error("--on-files is for whole coordinators")
        run = partial(run, on_files=True)
    if options.trace:
        results: Iterable[_Result] = map(partial(_run, partial(run, trace=print)), seeds)
    else:
        results = _results(run, seeds, options.workers)
    return _report(results, seeds, options.only, began)


def _report(results: Iterable[_Result], seeds: range, only: str, began: float) -> int:
    totals: dict[str, int] = {}
    seen: dict[str, int] = {}
    failed: list[int] = []
    steps = 0
    virtual_ms = 0.0
    for result in results:
        steps += result.steps
        virtual_ms += result.virtual_ms
        for name, number in result.counts.items():
            totals[name] = totals.get(name, 0) + number
            seen[name] = seen.get(name, 0) + (number > 0)
        if result.violation is not None:
            failed.append(result.seed)
            print(f"seed {result.seed} failed: {result.violation}")
            print(f"  python -m tests.simulation --only {only} --trace --seed {result.seed}")
            sys.stdout.flush()
    took = time.monotonic() - began
    print(
        f"{len(seeds)} seeds, {steps} events, {virtual_ms / 3_600_000:.2f} virtual hours, "
        f"{took:.1f} s, {len(failed)} failed"
    )
    for name in sorted(totals):
        print(f"  {name:36} {totals[name]:9}  in {100 * seen[name] / len(seeds):5.1f} % of seeds")
    is_rich = only != "coordinator" or len(seeds) < _BATCH_MIN or _has_shares(seen, len(seeds))
    return 0 if not failed and is_rich else 1


def _has_shares(seen: dict[str, int], count: int) -> bool:
    """Whether enough of the seeds saw what they are for; tell of each."""
    is_enough = True
    for share, name, what in _SHARES:
        found = seen.get(name, 0) / count
        verdict = "enough" if found >= share else "TOO FEW"
        is_enough = is_enough and found >= share
        print(f"{100 * found:5.1f} % of seeds had {what}, at least {100 * share:.0f} %: {verdict}")
    for share, name, what in _SHARES_MAX:
        found = seen.get(name, 0) / count
        verdict = "few enough" if found <= share else "TOO MANY"
        is_enough = is_enough and found <= share
        print(f"{100 * found:5.1f} % of seeds had {what}, at most {100 * share:.0f} %: {verdict}")
    return is_enough


if __name__ == "__main__":
    sys.exit(main())
