"""The runner of the fuzzers finds them, and takes what goes wrong for a finding."""

from __future__ import annotations

import os
import time

import pytest

from tests.fuzz import runner
from tests.fuzz.outcome import Outcome, input_random

# This module is a fuzzer as well, for the tests below: the seed says what becomes of it.
NAME = "of the tests"
_FINDS, _ENDS, _HANGS = range(3)


def run(seconds: float, seed: int) -> Outcome:
    if seed == _ENDS:
        os._exit(3)
    if seed == _HANGS:
        time.sleep(60)
    return Outcome(NAME, 5, ["input 4: it is wrong"], 201.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "findings"),
    [
        (_FINDS, ["input 4: it is wrong", "201 MiB of memory, at most 200"]),
        (_ENDS, ["the fuzzer ended with exit code 3"]),
        (_HANGS, ["the fuzzer hangs 0 s after its end"]),
    ],
)
def test_fuzzer_that_finds_something_ends_or_hangs_is_told(seed: int, findings: list[str]) -> None:
    grace_s = 0.0 if seed == _HANGS else 20.0
    outcome = runner.run_alone(NAME, __name__, 0.1, seed, grace_s=grace_s)
    assert outcome.findings == findings


def test_runner_tells_findings_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, float, int]] = []

    def alone(name: str, module: str, seconds: float, seed: int) -> Outcome:
        told.append((name, seconds, seed))
        return Outcome(name, 12, ["input 3: it is wrong"] if name == "two" else [], 31.4)

    monkeypatch.setattr(runner, "fuzzers", lambda: {"one": runner, "two": runner})
    monkeypatch.setattr(runner, "run_alone", alone)
    assert runner.main(["--seconds", "8", "--seed", "5"]) == 1
    assert told == [("one", 4.0, 5), ("two", 4.0, 5)]
    assert capsys.readouterr().out.splitlines() == [
        "seed 5: one, two, 4 s each",
        "one …",
        "one: 12 inputs, 0 findings, 31 MiB at most",
        "two …",
        "WRONG: two: input 3: it is wrong",
        "two: 12 inputs, 1 findings, 31 MiB at most; again: --only two --seed 5",
    ]
    assert runner.main(["--seconds", "8", "--seed", "5", "--only", "one"]) == 0
    assert runner.main(["--only", "three"]) == 64
    assert capsys.readouterr().err == "no fuzzer 'three', there are: one, two\n"


def test_inputs_of_a_seed_are_made_without_those_before_them() -> None:
    assert input_random(1, 2).random() == input_random(1, 2).random()
    assert input_random(1, 2).random() != input_random(1, 3).random()
