"""Whole conversations between replicas, as reviewed text.

`python -m pytest --rewrite` writes them anew; read the diff, and commit it only if you
can explain each line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.consensus.conversation import replay

_FILES = sorted((Path(__file__).parent.parent / "interactions" / "consensus").glob("*.txt"))


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_conversation_goes_as_written(path: Path, request: pytest.FixtureRequest) -> None:
    before = path.read_text(encoding="utf-8")
    after = replay(before)
    if request.config.getoption("--rewrite"):
        path.write_text(after, encoding="utf-8")
    else:
        assert after == before, "if you can explain each line, run this with --rewrite"


def test_there_are_conversations() -> None:
    assert len(_FILES) >= 8
