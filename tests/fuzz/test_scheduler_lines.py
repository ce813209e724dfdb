"""The fuzzer of scheduler lines finds nothing today, and would find what it is there for."""

from __future__ import annotations

import pytest

from tasksprint.coordination.schedule import Schedule
from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.scheduler_lines import SchedulerReader
from tests.fuzz.outcome import input_random
from tests.fuzz.scheduler_lines import conversation, what_is_wrong

INPUTS = [conversation(input_random(1, number)) for number in range(60)]


def test_made_up_schedulers_are_refused_or_served() -> None:
    assert [wrong for each in INPUTS if (wrong := what_is_wrong(each)) is not None] == []


def test_what_the_reader_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(self: SchedulerReader, data: bytes) -> list[object]:
        raise KeyError("event")

    monkeypatch.setattr(SchedulerReader, "feed", feed)
    assert what_is_wrong(INPUTS[0]) == "KeyError: 'event'"


def test_a_refusal_without_an_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(self: SchedulerReader, data: bytes) -> list[object]:
        raise RemoteProtocolError("x" * 5_000)

    monkeypatch.setattr(SchedulerReader, "feed", feed)
    assert str(what_is_wrong(INPUTS[0])).endswith("isn't one sentence")


def test_what_applying_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: Schedule) -> None:
        raise AssertionError("counts differ")

    monkeypatch.setattr(Schedule, "check", check)
    assert "AssertionError: counts differ" in map(what_is_wrong, INPUTS)
