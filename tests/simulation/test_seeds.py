"""Seeds of the consensus core alone: those that once found something, and the first ones.

`python -m tests.simulation --only consensus --trace --seed N` shows what happens in one.
"""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import main
from tests.simulation.scenario import run_seed

# Seeds that find a bug when it is there. The worlds behind the numbers change with
# scenario.py, so each of these bugs also has a test of its own in tests/consensus/.
FOUND = {
    11: "a replica whose memory was full of later entries refused the first open slot",
    136: "a founder canvassed before its founding entry was durable",
    259: "a cluster of one with a slow disk gave up its candidacy, and asked nobody",
    900158: "a replica with an older disk was believed after another start",
    5399: "the first open slot was repeated more and more rarely, and all waited for it",
}
SEEDS = 50
# Of the first ones, so many are part of each plain run.
SEEDS_PLAIN = 12


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(
            seed, marks=() if seed < SEEDS_PLAIN or seed in FOUND else pytest.mark.long
        )
        for seed in sorted({*range(SEEDS), *FOUND})
    ],
)
def test_fixed_seed_is_clean(seed: int) -> None:
    outcome = run_seed(seed)
    assert outcome.violation is None, f"seed {seed}: {outcome.violation}"


def test_seed_replays_exactly() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        run_seed(11, trace=trace.append)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 100


@pytest.mark.slow
def test_command_line_prints_shares_and_ends_with_0_only_if_clean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "consensus", "--seeds", "2", "--first", "3", "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 seeds, ")
    assert "0 failed" in printed
    assert "leaderships" in printed and "% of seeds" in printed
