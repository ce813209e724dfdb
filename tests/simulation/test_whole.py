"""Seeds of the whole coordinator: those that once found something, and the first ones.

`python -m tests.simulation --trace --seed N` shows what happens in one of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest

from tests.simulation.__main__ import main
from tests.simulation.whole import ENTRIES_MIN, run_whole

# Seeds that found something when it was there. The worlds behind the numbers change with the
# simulator, so each of these bugs also has a test of its own, which is named here.
FOUND = {
    2: "a replica whose disk had spoiled entries took back the mark of what is chosen "
    "(tests/consensus/test_replica.py)",
    49: "a read that waited for a member that was removed hung, and all others behind it "
    "(tests/consensus/test_membership.py)",
    53: "a client knew only the coordinators it was started with (tests/asking/test_leader.py)",
    162: "a replica stopped when a replaced leader repeated another value for a slot that is "
    "chosen (tests/consensus/test_replica.py)",
    406: "all who held the archive of a running job were replaced before a new member had it "
    "(tests/roles/test_programs.py)",
    244: "a client that came back after a silence was declared dead by the next tick, for "
    "the silence of its former process",
    10075: "a leader with a hanging disk that could not hand over spun, and was not heard "
    "(tests/consensus/test_pace.py)",
    1208: "the last member asked those of --peers for a quorum of archives, and took no job "
    "any more (tests/roles/test_programs.py)",
    474: "a client whose joins were not answered was declared dead, though it was heard "
    "(tests/roles/test_coordinator.py)",
    1763: "no bug: a client got an answer seconds after it was heard, and the rule of fair "
    "judges was mistaken (tests/simulation/end_to_end.py)",
    41689: "no bug: a client was heard while the tick that called it silent was on its way, "
    "and the rule of fair judges was mistaken",
    20660: "a client that was closing answered a request for a value with a trace",
    20753: "a client that joined was not told what to drop, as the replica that it asked had "
    "been restarted since (tests/coordination/test_clients.py)",
}
SEEDS = 14
# Those that are compared on real files and in memory: with lost writes and copies of the state;
# with a row that is spoiled.
ON_FILES = (2, pytest.param(15, marks=pytest.mark.long))
# Those of each plain run: the first ones, and those that found what no test of its own holds.
# The others, like hundreds more (see .ci/run), are run before a commit is called good.
PLAIN = {0, 1, 2, 3, 244, 20660}


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=() if seed in PLAIN else pytest.mark.long)
        for seed in sorted({*range(SEEDS), *FOUND})
    ],
)
def test_fixed_seed_is_clean(seed: int) -> None:
    outcome = run_whole(seed)
    assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
    assert outcome.counts["entries chosen"] >= ENTRIES_MIN
    assert not outcome.counts.get("histories too hard to judge")


@pytest.mark.slow
def test_seed_replays_exactly_whatever_ran_before_and_however_texts_are_hashed() -> None:
    lines: list[str] = []
    run_whole(3)
    run_whole(5, trace=lines.append)
    assert len(lines) > 1_000
    here = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    other_hashes = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    program = (
        "import hashlib\n"
        "from tests.simulation.whole import run_whole\n"
        "lines = []\n"
        "run_whole(5, trace=lines.append)\n"
        "print(hashlib.sha256('\\n'.join(lines).encode()).hexdigest())\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": other_hashes},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


@pytest.mark.slow
@pytest.mark.parametrize("seed", ON_FILES)
def test_seed_goes_the_same_way_on_real_files_as_in_memory(seed: int) -> None:
    in_memory: list[str] = []
    on_files: list[str] = []
    first = run_whole(seed, trace=in_memory.append, on_files=False)
    second = run_whole(seed, trace=on_files.append, on_files=True)
    assert second.counts.pop("worlds on real files") == 1
    assert first.counts.pop("worlds on real files") == 0
    assert second == first
    seen = "crashes that lost writes" if seed == 2 else "stores repaired"
    assert first.counts[seen]
    # What is said of damage names the file, and what becomes of it.
    about_files = re.compile("replica store '|repaired its store|damaged file is kept")
    assert len(in_memory) > 1_000
    assert [line for line in on_files if not about_files.search(line)] == [
        line for line in in_memory if not about_files.search(line)
    ]


@pytest.mark.slow
def test_command_prints_hours_and_figures_and_ends_with_0_if_all_is_clean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(With several workers: see test_seeds.py.)"""
    assert main(["--seeds", "1", "--first", "6"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("1 seeds, ")
    assert "virtual hours" in printed and "0 failed" in printed
    assert "leaderships" in printed and "% of seeds" in printed


def test_batch_that_saw_too_little_fails(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.simulation.__main__ import _has_shares

    seen = {
        "leader changes": 30,
        "crashes that lost writes": 15,
        "changes of members that govern": 12,
        "logs truncated": 12,
        "clocks that jumped": 12,
        "rules raised": 12,
        "worlds on real files": 3,
        "requests of strangers refused": 12,
    }
    assert _has_shares(seen, 60)
    assert "TOO FEW" not in capsys.readouterr().out
    assert not _has_shares({**seen, "logs truncated": 11}, 60)
    assert "18.3 % of seeds had a truncation of the log" in capsys.readouterr().out
    assert _has_shares({**seen, "histories too hard to judge": 1}, 60)
    assert not _has_shares({**seen, "histories too hard to judge": 2}, 60)
    assert "at most 2 %: TOO MANY" in capsys.readouterr().out
