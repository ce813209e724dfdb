"""Each rule that the simulator's headers promise is one that catches some broken build."""

from __future__ import annotations

import re

from tests.simulation import checker, test_checkers_bite, test_rules_bite, test_whole_bites
from tests.simulation.bites import EXPECTED
from tests.simulation.end_to_end import RULES

# Beside those of checker.py and end_to_end.py: of whole.py and people.py.
OTHERS = {"no-progress", "mirrors-differ", "answer", "stranger-served", "raised-too-early"}


def test_each_rule_is_expected_to_catch_something() -> None:
    """(Not "too-short": a seed in which too little happened is none that counts.)"""
    assert (
        test_checkers_bite and test_rules_bite and test_whole_bites
    )  # They say what they expect.
    header = checker.__doc__ or ""
    rules = set(re.findall(r"^  ([a-z][a-z-]*)  +\w", header, re.MULTILINE))
    assert {"two-chosen", "core", "crash", "hung-leader"} <= rules
    rules |= {rule.name for rule in RULES} | OTHERS
    assert rules == EXPECTED
