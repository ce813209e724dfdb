"""`python -m tests.fuzz --seconds S`: runs all fuzzers of this package, and says what they found.

The seconds are shared out evenly. Each fuzzer runs in a process of its own, one after the
other: so each has its own memory, and one that hangs or ends is a finding too. The exit code
is 1 if there is any finding. `--only NAME --seed N` repeats the inputs of one.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType

import tests.fuzz
from tests.fuzz.outcome import PEAK_MIB_MAX, Outcome

__all__ = ["fuzzers", "main", "run_alone"]

_TOLD_MAX = 20
# A fuzzer may take so much longer than it was told, to start and to end its roles.
_GRACE_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzers as the command line says."""
    options = _parse(arguments)
    modules = fuzzers()
    names = [name for name in modules if options.only in (None, name)]
    if not names:
        print(f"no fuzzer {options.only!r}, there are: {', '.join(modules)}", file=sys.stderr)
        return 64
    share_s = options.seconds / len(names)
    print(f"seed {options.seed}: {', '.join(names)}, {share_s:.0f} s each", flush=True)
    found = False
    for name in names:
        print(f"{name} …", flush=True)
        outcome = run_alone(name, modules[name].__name__, share_s, options.seed)
        found |= bool(outcome.findings)
        for text in outcome.findings[:_TOLD_MAX]:
            print(f"WRONG: {name}: {text}")
        again = f"; again: --only {name} --seed {options.seed}" if outcome.findings else ""
        print(
            f"{name}: {outcome.inputs} inputs, {len(outcome.findings)} findings, "
            f"{outcome.peak_mib:.0f} MiB at most{again}",
            flush=True,
        )
    return int(found)


def fuzzers() -> dict[str, ModuleType]:
    """Return the modules of this package that are fuzzers, by their names."""
    found = {}
    for each in pkgutil.iter_modules(tests.fuzz.__path__):
        if each.name.startswith(("_", "test_")):
            continue
        module = importlib.import_module(f"tests.fuzz.{each.name}")
        if hasattr(module, "NAME") and hasattr(module, "run"):
            found[module.NAME] = module
    return found


def run_alone(
    name: str, module: str, seconds: float, seed: int, *, grace_s: float = _GRACE_S
) -> Outcome:
    """Run one fuzzer in a process of its own; its crash or hang is a finding."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(module, seconds, seed, theirs))
    process.start()
    theirs.close()
    what = f"the fuzzer hangs {grace_s:.0f} s after its end"
    outcome: Outcome | None = None
    if ours.poll(seconds + grace_s):
        try:
            outcome = ours.recv()
        except EOFError:
            process.join()
            what = f"the fuzzer ended with exit code {process.exitcode}"
    if outcome is None:
        outcome = Outcome(name, 0, [what], 0.0)
    if process.is_alive():
        process.join(1.0)
        process.kill()
    process.join()
    if outcome.peak_mib > PEAK_MIB_MAX:
        too_much = f"{outcome.peak_mib:.0f} MiB of memory, at most {PEAK_MIB_MAX:.0f}"
        outcome.findings.append(too_much)
    return outcome


def _child(module: str, seconds: float, seed: int, answer: Connection) -> None:
    run: Callable[[float, int], Outcome] = importlib.import_module(module).run
    try:
        answer.send(run(seconds, seed))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for all together")
    parser.add_argument("--only", metavar="NAME", help="run one fuzzer")
    parser.add_argument("--seed", type=int, default=None, help="of the inputs; default: by chance")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(3), "big")
    return options
