"""The fuzzer of the ports sees what it is there for."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fuzz.http import Target, conversation
from tests.fuzz.outcome import input_random

_TIME = "2026-01-02 03:04:05,678"


def test_lines_that_are_no_sentence_are_told_once(tmp_path: Path) -> None:
    log = tmp_path / "client-1.log"
    log.write_text(
        f"{_TIME} INFO peer=127.0.0.1:1 refused 'GET' '/x' with 401: no Authorization\n"
        f"{_TIME} ERROR GET '/x' failed\nTraceback (most recent call last):\n"
        f"{_TIME} WARNING \x1b[2J\n{_TIME} WARNING half a li"
    )
    target = Target("client-1", "127.0.0.1:1", os.getpid(), log)
    *lines, ended = target.check()
    assert [line.partition(_TIME)[2] or line for line in lines] == [
        " ERROR GET '/x' failed\"",
        "client-1 logged 'Traceback (most recent call last):'",
        " WARNING \\x1b[2J'",
    ]
    assert ended.startswith("client-1 doesn't answer: ")
    assert len(target.check()) == 1
    assert target.peak_mib() > 1


def test_conversation_is_made_again_from_its_seed_and_number() -> None:
    talks = [conversation(input_random(3, 5), "127.0.0.1:7070", "token") for _ in range(2)]
    assert talks[0] == talks[1]
