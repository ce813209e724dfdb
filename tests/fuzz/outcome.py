"""What a fuzzer says in the end, and what fuzzers share."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from random import Random

__all__ = ["PEAK_MIB_MAX", "Outcome", "input_random", "own_peak_mib"]

# More than this no role may take, whatever it is fed with.
PEAK_MIB_MAX = 200.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a fuzzer found."""

    name: str
    inputs: int  # how many were fed
    findings: list[str]  # each begins with the number of its input; empty: all is well
    peak_mib: float  # resident memory of what was fed, at its most


def input_random(seed: int, number: int) -> Random:
    """Return what makes one input: so it can be made again without those before it."""
    return Random(f"{seed}/{number}")


def own_peak_mib() -> float:
    """Return the most resident memory that this process had: of a fuzzer that feeds itself."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
