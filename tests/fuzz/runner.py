"""`python -m tests.fuzz --seconds S`: runs all fuzzers of this package, and says what they found.

The seconds are shared out evenly. Each fuzzer runs in a process of its own, one after the
other: so each has its own memory, and one that hangs or ends is a finding too. The exit code
is 1 if there is any finding. `--only NAME --seed N` repeats the inputs of one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import tests.fuzz
from tests.fuzz.outcome import PEAK_MIB_MAX, Outcome

__all__ = ["fuzzers", "main", "run_alone"]

_TOLD_MAX = 20
_CHILD = """
import dataclasses, importlib, json, sys
module, seconds, seed = sys.argv[1:]
outcome = importlib.import_module(module).run(float(seconds), int(seed))
print(json.dumps(dataclasses.asdict(outcome)))
"""
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
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, module, str(seconds), str(seed)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        said, _ = process.communicate(timeout=seconds + grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(name, 0, [f"the fuzzer hangs {grace_s:.0f} s after its end"], 0.0)
    if process.returncode:
        what = f"the fuzzer ended with exit code {process.returncode}"
        return Outcome(name, 0, [what], 0.0)
    outcome = Outcome(**json.loads(said.splitlines()[-1]))
    if outcome.peak_mib > PEAK_MIB_MAX:
        too_much = f"{outcome.peak_mib:.0f} MiB of memory, at most {PEAK_MIB_MAX:.0f}"
        outcome.findings.append(too_much)
    return outcome


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
