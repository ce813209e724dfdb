"""Runs seeds of the simulator: `python -m tests.simulation --seed 7` or `--seeds 1000`.

Leaves with 0 only if every seed was clean; a seed that fails is printed, and fails again
in the same way.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.scenario import run_seed

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for, and print how often what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed only")
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    began = time.monotonic()
    totals: dict[str, int] = {}
    seen: dict[str, int] = {}
    failed: list[int] = []
    steps = 0
    for seed in seeds:
        outcome = run_seed(seed, trace=print if options.trace else None)
        steps += outcome.steps
        for name, number in outcome.counts.items():
            totals[name] = totals.get(name, 0) + number
            seen[name] = seen.get(name, 0) + (number > 0)
        if outcome.violation is not None:
            failed.append(seed)
            print(f"seed {seed} failed: {outcome.violation}")
    took = time.monotonic() - began
    print(f"{len(seeds)} seeds, {steps} events, {took:.1f} s, {len(failed)} failed")
    for name in sorted(totals):
        print(f"  {name:36} {totals[name]:9}  in {100 * seen[name] / len(seeds):5.1f} % of seeds")
    if failed:
        print("replay with: python -m tests.simulation --trace --seed", failed[0])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
