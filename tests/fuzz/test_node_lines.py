"""The fuzzer of node lines sees what it is there for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasksprint.protocol.node_lines import NodeMessage, NodeReader
from tasksprint.roles.client.node_shell import NodeShell
from tests.fuzz import node_lines
from tests.fuzz.outcome import input_random


def test_reader_that_is_as_it_should_be_gives_no_finding() -> None:
    for number in range(20):
        assert node_lines.what_is_wrong(input_random(7, number)) == []


@pytest.mark.parametrize("fault", ["raises", "depends on chunks"])
def test_faulty_reader_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    really_feed = NodeReader.feed

    def feed(self: NodeReader, data: bytes) -> list[NodeMessage]:
        messages = really_feed(self, data)
        if fault == "raises" and len(messages) > 1:
            raise KeyError("no such thing")
        return messages[:1]

    monkeypatch.setattr(NodeReader, "feed", feed)
    wrong = "KeyError: 'no such thing' for" if fault == "raises" else "other messages with other"
    found = [each for n in range(40) for each in node_lines.what_is_wrong(input_random(7, n))]
    assert any(each.startswith(wrong) for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "ends the client"])
def test_client_is_fed_until_something_is_wrong(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault:

        def take(self: NodeShell, *_: Any) -> None:
            self._turns.fail(ZeroDivisionError(fault))

        monkeypatch.setattr(NodeShell, "_take", take)
    number, findings = asyncio.run(
        node_lines._feed_client(7, 0, go_on=lambda number: number < 40)
    )
    assert number == (20 if fault else 40)
    if fault:
        (finding,) = findings
        assert finding.startswith("inputs 1 to 20: the client ended: ZeroDivisionError(")
    else:
        assert findings == []
