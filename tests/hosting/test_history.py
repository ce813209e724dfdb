"""Schedulers with a long history: what leaves the host's memory, and how it is read back."""

from __future__ import annotations

import pytest

from tasksprint.errors import LocalProtocolError
from tasksprint.hosting import history as host_history
from tasksprint.hosting.history import READ_EVENTS_MAX
from tasksprint.hosting.host import SchedulerHost
from tasksprint.ids import TaskId
from tasksprint.protocol.scheduler_lines import SchedulerAnswer
from tests.hosting.test_host import JOB, MAP, MERGE, SETTINGS, History, make

WINDOW = SETTINGS.scheduler_window_events


def of_history(history: History) -> SchedulerHost:
    """Return a host that has nothing at hand, as after a restart."""
    return SchedulerHost(
        job=JOB,
        replica=2,  # type: ignore[arg-type]
        settings=SETTINGS,
        events=[],
        event_count=len(history.events),
        answers={},
        answered_end=history.next,
        next_tid=TaskId(history.next_tid),
        now_ms=1_000,
    )


def give(host: SchedulerHost, history: History, read: tuple[int, int, int], size: int) -> None:
    """Read `size` of the events asked for."""
    number, first, end = read
    end = min(end, first + size)
    answers = [(*at, digest) for at, digest in history.answers.items() if first <= at[0] < end]
    host.history_read(number, history.events[first:end], answers, 1_000)
    host.check()


def answer_all(host: SchedulerHost, history: History, first: int, end: int) -> None:
    """Answer events as the history says: every tenth starts a task."""
    host.answered(
        [
            SchedulerAnswer(event, 0, True, (MAP,) if (event, 0) in history.answers else ())
            for event in range(first, end)
        ],
        1_000,
    )
    host.check()


def long_history(count: int) -> History:
    history = History(count)
    for event in range(count):
        if event % 10:
            history.choose()
        else:
            history.choose(MAP)
    return history


@pytest.mark.parametrize("size", [700, READ_EVENTS_MAX])
def test_replay_reads_the_history_page_by_page(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_history, "HISTORY_BYTES", 10_000)
    history = long_history(10_000)
    host = of_history(history)
    written = bytearray()
    answered = 0
    longest = 0
    for _ in range(200):
        effects = host.effects()
        if effects is None:
            if answered == 10_000:
                break
            sent = written.count(b'"event":')
            answer_all(host, history, answered, sent)
            answered = sent
            continue
        assert not effects.notes and not effects.propose
        written += effects.write
        longest = max(longest, len(host._history.lines))
        if effects.start:
            host.ready(1_000)
        if effects.read is not None:
            give(host, history, effects.read, size)
    assert answered == 10_000
    assert host.status.state == "live"
    assert written.count(b'"control":"replay"') == written.count(b'"control":"live"') == 1
    lines = [line for line in bytes(written).splitlines() if b"control" not in line]
    assert lines == history.events
    assert longest <= 2 * WINDOW + READ_EVENTS_MAX
    assert len(host._history.answers) <= longest


def test_difference_in_old_history_is_found_by_the_digest_that_was_read() -> None:
    history = long_history(50)
    host = of_history(history)
    effects = host.effects()
    assert effects is not None and effects.start and effects.read is not None
    host.ready(1_000)
    give(host, history, effects.read, 50)
    assert host.effects() is not None
    host.answered([SchedulerAnswer(0, 0, True, (MERGE,))], 1_000)
    effects = host.effects()
    assert effects is not None and effects.stop == "kill"
    assert "the log says something else, this replica says start merge" in effects.notes[0]


def test_answers_chosen_while_a_page_is_read_are_compared_all_the_same() -> None:
    """The page was read before they were chosen, so it lacks them."""
    history = long_history(20)
    history.add_events(5)
    host = of_history(history)
    effects = host.effects()
    assert effects is not None and effects.read == (1, 0, 25)
    host.ready(1_000)
    before = dict(history.answers)
    host.answers_chosen(history.choose(MAP), 1_000)
    after, history.answers = history.answers, before
    give(host, history, effects.read, 25)
    history.answers = after
    assert host.effects() is not None
    answer_all(host, history, 0, 21)
    effects = host.effects()
    assert effects is None or not effects.notes
    assert host.status.state == "live" or host.status.answered_end == 21


def test_new_events_behind_a_gap_are_read_in_their_turn() -> None:
    history = long_history(3_000)
    host = of_history(history)
    effects = host.effects()
    assert effects is not None and effects.read == (1, 0, 2_000)
    host.events_chosen(history.add_events(10), 1_000)
    host.ready(1_000)
    give(host, history, effects.read, 2_000)
    effects = host.effects()
    assert effects is not None and effects.read == (2, 2_000, 3_010) and effects.write
    give(host, history, effects.read, 2_000)
    # From here on the run reaches the last event, and new ones are taken as they come.
    host.events_chosen(history.add_events(10), 1_000)
    assert len(host._history.lines) == 3_020
    host.check()


def test_restart_reads_from_the_beginning_and_drops_what_was_read_for_the_last_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_history, "HISTORY_BYTES", 1_000)
    history = long_history(4_000)
    host = of_history(history)
    while host.status.answered_end < 4_000:
        effects = host.effects()
        if effects is None:
            answer_all(host, history, host.status.answered_end, host._feed.sent_end)
            continue
        if effects.start:
            host.ready(1_000)
        if effects.read is not None:
            give(host, history, effects.read, 2_000)
    history.add_events(3_000)
    host.events_chosen(history.events[4_000:], 1_000)
    assert host._history.first_event > 0
    host.exited("exit code 1", "", 1_000)
    assert (host._history.first_event, host._history.lines) == (0, [])
    host.tick(2_000)
    effects = host.effects()
    assert effects is not None and effects.start and effects.read is not None
    number, first, end = effects.read
    assert (first, end) == (0, READ_EVENTS_MAX)
    host.history_read(number - 1, [b"old"], (), 2_000)
    assert host._history.lines == []
    give(host, history, effects.read, 2_000)
    assert host._history.lines == history.events[:2_000]


def test_small_history_is_replayed_from_memory() -> None:
    history = long_history(20)
    host = make(history)
    effects = host.effects()
    assert effects is not None and effects.start and effects.read is None
    host.ready(1_000)
    assert host.effects() is not None
    answer_all(host, history, 0, 20)
    host.exited("exit code 1", "", 1_000)
    host.tick(5_000)
    effects = host.effects()
    assert effects is not None and effects.start and effects.read is None


def test_mirror_without_the_events_is_our_bug() -> None:
    host = of_history(long_history(3))
    effects = host.effects()
    assert effects is not None and effects.read is not None
    with pytest.raises(LocalProtocolError, match="the mirror lacks event 0 of job 7"):
        host.history_read(effects.read[0], [], (), 1_000)
