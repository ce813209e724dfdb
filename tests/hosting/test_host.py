"""The scheduler host, event by event: whole effects, no processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasksprint.coordination.applied import ChosenAnswer, EmptyAnswers
from tasksprint.coordination.commands import Answer, AnswerPart, SchedulerOut, answer_digest
from tasksprint.hosting.feed import WINDOW_BYTES
from tasksprint.hosting.host import (
    CLOSING_MS,
    LATE_MS,
    HostEffects,
    SchedulerHost,
)
from tasksprint.hosting.restarts import RESTART_PAUSE_MS, RESTARTS_MAX
from tasksprint.ids import JobId, ReplicaId, TaskId
from tasksprint.protocol.scheduler_lines import SchedulerAnswer
from tasksprint.scheduler_commands import FinishJob, SchedulerCommand, WriteLog
from tasksprint.settings import RULES, Settings
from tasksprint.task_spec import TaskSpec

SETTINGS = Settings()
GRACE = SETTINGS.answer_grace_ms
JOB = JobId(7)
MAP = TaskSpec("map")
MERGE = TaskSpec("merge")


class History:
    """What the state machine would keep of one job."""

    def __init__(self, event_count: int = 0) -> None:
        self.events: list[bytes] = []
        self.answers: dict[tuple[int, int], str] = {}
        self.next = (0, 0)
        self.next_tid = 0
        self.add_events(event_count)

    def add_events(self, count: int) -> list[bytes]:
        new = [line(len(self.events) + index) for index in range(count)]
        self.events += new
        return new

    def choose(
        self, *commands: SchedulerCommand, last: bool = True
    ) -> list[ChosenAnswer | EmptyAnswers]:
        """Choose the next part of an answer."""
        event, part = self.next
        self.next = (event + 1, 0) if last else (event, part + 1)
        if not commands and last and not part:
            return [EmptyAnswers(event, event + 1)]
        digest = answer_digest(TaskId(self.next_tid), last, commands)
        self.answers[event, part] = digest
        started = sum(isinstance(command, TaskSpec) for command in commands)
        self.next_tid += started
        return [ChosenAnswer(event, part, last, digest, started, commands)]

    def choose_empty(self, count: int) -> list[ChosenAnswer | EmptyAnswers]:
        first = self.next[0]
        self.next = (first + count, 0)
        return [EmptyAnswers(first, first + count)]


def line(number: int) -> bytes:
    if number == 0:
        return b'{"event":0,"kind":"init","time_ms":0,"seed":1,"job":7,"params":{}}'
    return b'{"event":%d,"kind":"task_done","time_ms":0,"tid":%d,"values":{}}' % (
        number,
        number - 1,
    )


def lines(first: int, end: int) -> bytes:
    return b"".join(line(number) + b"\n" for number in range(first, end))


def says(
    event: int, *commands: SchedulerCommand, part: int = 0, last: bool = True
) -> SchedulerAnswer:
    return SchedulerAnswer(event, part, last, commands)


def effects(**given: object) -> HostEffects:
    """Return the effects with nothing but what is given."""
    nothing = HostEffects("", False, b"", (), False, None, ())
    return replace(nothing, **given)  # type: ignore[arg-type]


def make(history: History, *, replica: int = 2, settings: Settings = SETTINGS) -> SchedulerHost:
    return SchedulerHost(
        job=JOB,
        replica=ReplicaId(replica),
        settings=settings,
        events=history.events,
        answers=history.answers,
        answered_end=history.next,
        next_tid=history.next_tid,
        now_ms=1_000,
    )


def started(
    history: History, *, replica: int = 2, settings: Settings = SETTINGS, is_leader: bool = False
) -> tuple[SchedulerHost, bytes]:
    """Return a host whose process is ready, and what it was sent first."""
    host = make(history, replica=replica, settings=settings)
    assert host.effects() == effects(start=True)
    host.lead(1_000, is_leader=is_leader)
    host.ready(1_000)
    written = host.effects()
    host.check()
    return host, written.write if written is not None else b""


# --- feeding ---


def test_new_job_is_started_and_fed_without_control_lines() -> None:
    history = History(2)
    host = make(history)
    assert host.effects() == effects(start=True)
    assert host.effects() is None
    host.ready(1_000)
    assert host.effects() == effects(write=lines(0, 2))
    assert host.effects() is None
    host.events_chosen(history.add_events(1), 1_001)
    assert host.effects() == effects(write=lines(2, 3))
    host.check()


def test_restarted_replica_replays_chosen_events_between_control_lines() -> None:
    history = History(4)
    history.choose(MAP, MERGE)
    history.choose_empty(1)
    history.choose(MAP, last=False)  # Event 2 is answered in part: it isn't replay.
    host, written = started(history)
    assert written == (
        b'{"control":"replay","end_event":2}\n'
        + lines(0, 2)
        + b'{"control":"live"}\n'
        + lines(2, 4)
    )
    assert host.status.text == "replaying, 0 of 2 events"
    host.answered([says(0, MAP, MERGE), says(1)], 1_001)
    assert host.status.text == "live, 2 of 4 events answered"
    assert host.effects() is None
    # The first part of event 2 is chosen, the second isn't: that one is proposed.
    host.lead(1_002, is_leader=True)
    host.answered([says(2, MAP, last=False), says(2, MERGE, part=1)], 1_003)
    host.check()
    part = AnswerPart(2, 1, True, TaskId(3), (MERGE,))
    assert host.effects() == effects(propose=(Answer(JOB, (part,)),))


def test_replay_in_windows_puts_the_live_line_in_its_place() -> None:
    history = History(6)
    history.choose_empty(5)
    host, written = started(history, settings=Settings(scheduler_window_events=3))
    assert written == b'{"control":"replay","end_event":5}\n' + lines(0, 3)
    host.answered([says(0)], 1_000)
    assert host.effects() == effects(write=lines(3, 4))
    host.answered([says(1), says(2), says(3)], 1_000)
    assert host.effects() == effects(write=lines(4, 5) + b'{"control":"live"}\n' + lines(5, 6))


def test_no_more_than_the_window_is_unanswered() -> None:
    history = History(10)
    host, written = started(history, settings=Settings(scheduler_window_events=4))
    assert written == lines(0, 4)
    host.events_chosen(history.add_events(5), 1_000)
    assert host.effects() is None
    host.answered([says(0), says(1)], 1_000)
    assert host.effects() == effects(write=lines(4, 6))


def test_few_large_events_fill_the_window_by_their_bytes() -> None:
    history = History()
    history.events.extend([b"x" * (WINDOW_BYTES + 1), b"y" * (WINDOW_BYTES - 10), b"z" * 20])
    host, written = started(history)
    assert written == history.events[0] + b"\n"  # One at least.
    assert host.effects() is None
    host.answered([says(0)], 1_000)
    assert host.effects() == effects(write=history.events[1] + b"\n")
    host.answered([says(1)], 1_000)
    assert host.effects() == effects(write=history.events[2] + b"\n")
    host.check()


# --- proposing ---


def test_leader_proposes_all_answers_at_once_with_runs_of_empty_ones() -> None:
    history = History(8)
    host, _ = started(history, is_leader=True)
    host.answered(
        [says(0, MAP, MAP), says(1), says(2), says(3, MAP), says(4), says(5), says(6)], 1_000
    )
    host.check()
    parts = (
        AnswerPart(0, 0, True, TaskId(0), (MAP, MAP)),
        AnswerPart(3, 0, True, TaskId(2), (MAP,)),
    )
    assert host.effects() == effects(propose=(Answer(JOB, parts, ((1, 3), (4, 7))),))
    host.answered([says(7)], 1_001)
    assert host.effects() == effects(propose=(Answer(JOB, (), ((7, 8),)),))
    assert host.effects() is None


def test_answers_that_are_chosen_leave_the_queue_in_pieces() -> None:
    history = History(5)
    host, _ = started(history, is_leader=True)
    host.answered([says(0, MAP), says(1), says(2), says(3), says(4, MAP)], 1_000)
    assert host.effects() is not None
    host.answers_chosen(history.choose(MAP) + history.choose_empty(2), 1_001)
    host.check()
    host.answers_chosen(history.choose_empty(1) + history.choose(MAP), 1_002)
    host.check()
    assert host.effects() is None
    assert host.deadline_ms is None


def test_large_answers_are_proposed_in_several_commands() -> None:
    history = History(3)
    host, _ = started(history, is_leader=True)
    large = TaskSpec("map", base='["' + "x" * 600_000 + '"]')
    host.answered([says(0, large), says(1), says(2, large)], 1_000)
    assert host.effects() == effects(
        propose=(
            Answer(JOB, (AnswerPart(0, 0, True, TaskId(0), (large,)),), ((1, 2),)),
            Answer(JOB, (AnswerPart(2, 0, True, TaskId(1), (large,)),)),
        )
    )


def test_follower_keeps_its_answers_and_proposes_them_when_it_becomes_leader() -> None:
    history = History(2)
    host, _ = started(history)
    host.answered([says(0, MAP), says(1)], 1_000)
    assert host.effects() is None
    host.lead(1_001, is_leader=True)
    proposal = Answer(JOB, (AnswerPart(0, 0, True, TaskId(0), (MAP,)),), ((1, 2),))
    assert host.effects() == effects(propose=(proposal,))
    # It loses and regains the lead: what it proposed may be lost.
    host.lead(1_002, is_leader=False)
    host.lead(1_003, is_leader=True)
    assert host.effects() == effects(propose=(proposal,))


def test_leader_repeats_a_proposal_that_got_lost_ever_more_slowly() -> None:
    history = History(1)
    host, _ = started(history, is_leader=True)
    host.answered([says(0, MAP)], 1_000)
    first = host.effects()
    assert host.deadline_ms == 1_000 + GRACE
    host.tick(1_000 + GRACE)
    assert host.effects() == first
    assert host.deadline_ms == 1_000 + 3 * GRACE
    host.answers_chosen(history.choose(MAP), 1_000 + 2 * GRACE)
    assert host.deadline_ms is None


@pytest.mark.parametrize("said", [(), (MAP,)], ids=["nothing", "something"])
def test_follower_stands_in_when_its_answer_has_waited_for_the_grace(
    said: tuple[SchedulerCommand, ...],
) -> None:
    history = History(2)
    host, _ = started(history, replica=2)
    host.answered([says(0, MAP)], 1_000)
    due = 1_000 + GRACE + 2 * GRACE // 8
    assert host.deadline_ms == due
    host.tick(due - 1)
    assert host.effects() is None
    host.tick(due)
    first = Answer(JOB, (AnswerPart(0, 0, True, TaskId(0), (MAP,)),))
    assert host.effects() == effects(propose=(first,), forward=True)
    # From now on it doesn't wait …
    host.answers_chosen(history.choose(MAP), due + 1)
    host.answered([says(1)], due + 2)
    second = Answer(JOB, (), ((1, 2),))
    assert host.effects() == effects(propose=(second,), forward=True)
    host.answers_chosen(history.choose(), due + 3)
    # … until somebody else's answers are chosen first.
    host.events_chosen(history.add_events(2), due + 4)
    host.effects()
    host.answered([says(2, *said)], due + 5)
    host.answers_chosen(history.choose(*said), due + 5)
    host.answered([says(3)], due + 6)
    assert host.effects() is None
    host.check()


def test_replica_that_stood_in_and_led_leaves_proposing_to_the_next_leader() -> None:
    history = History(2)
    host, _ = started(history, replica=2)
    host.answered([says(0, MAP)], 1_000)
    due = 1_000 + GRACE + 2 * GRACE // 8
    host.tick(due)
    assert host.effects() is not None
    host.answers_chosen(history.choose(MAP), due + 1)
    host.lead(due + 2, is_leader=True)
    host.lead(due + 3, is_leader=False)
    host.answered([says(1)], due + 4)
    assert host.effects() is None


def test_replicas_stand_in_one_after_the_other() -> None:
    due = set()
    for replica in (1, 2, 3):
        host, _ = started(History(1), replica=replica)
        host.answered([says(0, MAP)], 1_000)
        due.add(host.deadline_ms)
    assert len(due) == 3


# --- differences ---


def differing_follower() -> tuple[History, SchedulerHost]:
    """A follower that said "start merge" to event 2, where the log says "start map"."""
    history = History(3)
    host, _ = started(history)
    host.answered([says(0, MAP), says(1), says(2, MERGE)], 1_000)
    host.answers_chosen(history.choose(MAP) + history.choose_empty(1), 1_001)
    assert host.effects() is None
    host.answers_chosen(history.choose(MAP), 1_002)
    return history, host


def test_different_answer_is_told_and_the_scheduler_replays_once() -> None:
    _history, host = differing_follower()
    assert host.effects() == effects(
        stop="kill",
        notes=(
            "replica 2: event 2 task_done(1): the log says start map, this replica says "
            "start merge; it is started anew and replays",
        ),
        differed="event 2 task_done(1): the log says start map, this replica says start merge",
    )
    host.answered([says(3)], 1_003)  # It was on its way; nobody listens.
    host.exited("signal 9 (SIGKILL)", "", 1_004)
    assert host.effects() is None
    assert host.deadline_ms == 1_004 + RESTART_PAUSE_MS
    host.tick(1_004 + RESTART_PAUSE_MS)
    assert host.effects() == effects(start=True)
    assert host.status.text == f"restarting (1 of at most {RESTARTS_MAX} restarts)"
    host.ready(2_000)
    written = host.effects()
    assert written is not None and written.write.startswith(b'{"control":"replay","end_event":3}')
    host.answered([says(0, MAP), says(1), says(2, MAP)], 2_001)
    assert host.status.state == "live"
    assert host.effects() is None
    host.check()


def test_second_difference_ends_this_replicas_part_in_the_job() -> None:
    _history, host = differing_follower()
    host.effects()
    host.exited("signal 9 (SIGKILL)", "", 1_004)
    host.tick(2_000)
    host.effects()
    host.ready(2_000)
    host.effects()
    host.answered([says(0, MAP), says(1, MAP)], 2_001)
    error = "replica 2: event 1 task_done(0): the log says nothing, this replica says start map"
    out = SchedulerOut(
        ReplicaId(2),
        JOB,
        "diverged",
        f"{error}; a scheduler must depend on nothing but its events, its parameters and its seed",
    )
    differed = error.removeprefix("replica 2: ")
    assert host.effects() == effects(stop="kill", out=out, notes=(error,), differed=differed)
    assert host.status.text == f"out: {out.error}"
    # It is proposed until it is chosen.
    assert host.deadline_ms == 2_001 + GRACE
    host.exited("signal 9 (SIGKILL)", "", 2_002)
    host.tick(2_001 + GRACE)
    assert host.effects() == effects(out=out)
    host.out_chosen()
    assert host.deadline_ms is None
    assert host.effects() is None


def test_empty_answer_where_the_log_says_something_is_a_difference() -> None:
    history = History(1)
    host, _ = started(history)
    host.answered([says(0)], 1_000)
    host.answers_chosen(history.choose(MAP), 1_001)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 0 init(): the log says start map, this replica says nothing"
    )


def test_answer_where_the_log_says_nothing_is_a_difference() -> None:
    history = History(2)
    host, _ = started(history)
    host.answered([says(0), says(1, MAP)], 1_000)
    host.answers_chosen(history.choose_empty(2), 1_001)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 1 task_done(0): the log says nothing, this replica says start map"
    )


def test_answer_that_ends_too_early_is_a_difference() -> None:
    history = History(1)
    host, _ = started(history)
    host.answered([says(0, MAP)], 1_000)
    host.answers_chosen(history.choose(MAP, last=False), 1_001)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 0 init(): the log says that the answer goes on, "
        "this replica says that it ends"
    )


def test_slow_replica_is_compared_when_it_answers() -> None:
    history = History(3)
    host, _ = started(history)
    host.answers_chosen(history.choose(MAP) + history.choose(MAP, last=False), 1_001)
    host.answers_chosen(history.choose(MERGE), 1_002)
    host.answered([says(0, MAP), says(1, MAP, last=False)], 1_003)
    host.check()
    assert host.effects() is None
    host.answered([says(1, MAP, part=1)], 1_004)
    found = host.effects()
    assert found is not None and found.stop == "kill"
    assert found.notes[0].startswith(
        "replica 2: event 1 task_done(0) part 1: the log says start merge, "
        "this replica says start map"
    )


def test_difference_in_a_replay_of_long_ago_is_still_found() -> None:
    history = History(2)
    history.choose(MAP)
    history.choose(MERGE)
    host, _ = started(history)
    host.answered([says(0, MAP), says(1, MAP)], 1_000)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 1 task_done(0): the log says something else, this replica says start map"
    )


def test_slow_replica_that_says_nothing_where_the_log_says_something() -> None:
    history = History(2)
    host, _ = started(history)
    host.answers_chosen(history.choose(MAP), 1_001)
    host.answered([says(0)], 1_002)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 0 init(): the log says start map, this replica says nothing"
    )


def test_slow_replica_that_says_nothing_where_half_an_answer_is_chosen() -> None:
    history = History(2)
    host, _ = started(history)
    host.answers_chosen(history.choose(MAP, last=False), 1_001)
    host.answered([says(0)], 1_002)
    found = host.effects()
    assert found is not None and found.notes[0].startswith(
        "replica 2: event 0 init(): the log says start map, this replica says nothing"
    )


def test_other_number_of_tasks_before_is_no_way_to_look_equal() -> None:
    """A replay that started one task more has differed there, not later."""
    history = History(2)
    history.choose(MAP)
    history.choose(MERGE)
    host, _ = started(history)
    host.answered([says(0, MAP, MAP)], 1_000)
    found = host.effects()
    assert found is not None and "event 0 init()" in found.notes[0]


def test_difference_after_the_process_left_restarts_it() -> None:
    history = History(1)
    host, _ = started(history)
    host.answered([says(0, FinishJob((), "{}"))], 1_000)
    host.exited("exit code 0", "", 1_001)
    assert host.status.state == "finished"
    host.answers_chosen(history.choose(MAP), 1_002)
    found = host.effects()
    assert found is not None and found.stop == ""
    assert host.deadline_ms == 1_002 + RESTART_PAUSE_MS


# --- crashes ---


def test_scheduler_that_crashes_at_its_start_is_restarted_once() -> None:
    history = History(1)
    host = make(history)
    host.effects()
    host.exited("exit code 3", "Traceback\nNameError: x\n", 1_001)
    error = (
        "the scheduler ended before it was ready: "
        "exit code 3; its stderr ended with:\nTraceback\nNameError: x"
    )
    assert host.effects() == effects(notes=(f"replica 2: {error}",))
    assert host.deadline_ms == 1_001 + RESTART_PAUSE_MS
    host.tick(1_001 + RESTART_PAUSE_MS)
    assert host.effects() == effects(start=True)
    host.exited("exit code 3", "Traceback\nNameError: x\n", 1_300)
    out = SchedulerOut(ReplicaId(2), JOB, "crashed", error)
    assert host.effects() == effects(out=out, notes=(f"replica 2: {error}",))


def test_scheduler_that_cannot_be_started_is_out_after_a_second_try() -> None:
    host = make(History(1))
    host.effects()
    host.start_failed("scheduler 'scheduler' isn't executable; chmod +x it", 1_000)
    host.effects()
    host.tick(2_000)
    assert host.effects() == effects(start=True)
    host.start_failed("scheduler 'scheduler' isn't executable; chmod +x it", 2_000)
    found = host.effects()
    assert found is not None and found.out is not None
    assert found.out.kind == "crashed"
    assert found.out.error == "scheduler 'scheduler' isn't executable; chmod +x it"


def test_garbage_kills_and_the_error_has_the_tail_of_stderr() -> None:
    history = History(2)
    host, _ = started(history)
    host.answered([says(0)], 1_000)
    host.garbage("scheduler of job 7 said 'hello', expected a JSON object", 1_001)
    assert host.effects() == effects(stop="kill")
    assert host.deadline_ms is None
    host.garbage("more of it", 1_002)
    host.exited("signal 9 (SIGKILL)", "printed\n", 1_003)
    assert host.effects() == effects(
        notes=(
            "replica 2: scheduler of job 7 said 'hello', expected a JSON object; "
            "its stderr ended with:\nprinted",
        )
    )


def crash(host: SchedulerHost, now_ms: int) -> HostEffects:
    host.exited("exit code 1", "", now_ms)
    found = host.effects()
    assert found is not None
    return found


def run_to(host: SchedulerHost, event_end: int, now_ms: int) -> None:
    """Start the process again and let it answer events below `event_end`."""
    host.tick(now_ms)
    assert host.effects() == effects(start=True)
    host.ready(now_ms)
    host.effects()
    host.answered([says(number) for number in range(event_end)], now_ms)


def test_second_crash_at_the_same_event_ends_it() -> None:
    history = History(9)
    host, _ = started(history)
    host.answered([says(number) for number in range(5)], 1_000)
    assert crash(host, 1_000).out is None
    run_to(host, 5, 20_000)
    out = crash(host, 20_000).out
    assert out is not None
    assert out.error == "the scheduler ended at event 5 task_done(4): exit code 1"


def test_crash_after_more_progress_counts_anew_but_not_for_ever() -> None:
    history = History(99)
    host, _ = started(history)
    host.answered([says(0)], 1_000)
    assert crash(host, 1_000).out is None
    for restart in range(1, RESTARTS_MAX):
        run_to(host, restart + 1, 20_000 * restart)
        assert crash(host, 20_000 * restart).out is None
    run_to(host, RESTARTS_MAX + 1, 20_000 * RESTARTS_MAX)
    assert crash(host, 20_000 * RESTARTS_MAX).out is not None


def test_scheduler_that_is_never_ready_is_killed() -> None:
    host = make(History(1))
    host.effects()
    assert host.deadline_ms == 1_000 + SETTINGS.node_ready_timeout_ms
    host.tick(1_000 + SETTINGS.node_ready_timeout_ms)
    assert host.effects() == effects(stop="kill")
    assert crash(host, 40_000).notes == (
        "replica 2: the scheduler isn't ready after 30000 ms "
        "(node_ready_timeout_ms)",
    )


def test_time_for_setting_up_a_program_is_not_that_for_starting_it() -> None:
    host = make(History(1))
    host.effects()
    host.setting_up(1_000 + 600_000)
    host.tick(500_000)
    assert host.effects() is None
    # It is set up, and starts now.
    host.setting_up(500_000)
    assert host.deadline_ms == 500_000 + SETTINGS.node_ready_timeout_ms
    host.tick(500_000 + SETTINGS.node_ready_timeout_ms)
    assert host.effects() == effects(stop="kill")
    # And what comes too late changes nothing.
    host.setting_up(900_000)
    assert host.deadline_ms is None


def test_what_is_done_before_a_scheduler_can_start_is_told_with_who_does_it() -> None:
    host = make(History(1))
    host.effects()
    host.preparing("fetches the program", 1_000)
    assert host.silence(2_999) is None
    told = "its scheduler isn't started yet: coordinator 2"
    assert host.silence(4_000) == f"{told} fetches the program for 3 s"
    host.setting_up(10_000 + 600_000)
    host.preparing("runs setup 'make'", 10_000)
    assert host.silence(11_000) is None
    assert host.silence(15_500) == f"{told} runs setup 'make' for 5 s; it is ended in 594 s"
    assert host.status.text == "not started yet: this coordinator runs setup 'make'"
    host.preparing("", 20_000)
    host.setting_up(20_000)
    assert host.silence(21_000) is None
    assert host.silence(23_000) == "its scheduler isn't ready for 3 s; it is ended in 27 s"
    assert host.status.text == "starting"


def test_scheduler_that_is_started_after_it_was_given_up_is_killed_then() -> None:
    host = make(History(1))
    host.effects()
    host.tick(1_000 + SETTINGS.node_ready_timeout_ms)
    assert host.effects() == effects(stop="kill")  # The shell had nothing to kill yet.
    host.ready(50_000)
    assert host.effects() == effects(stop="kill")
    assert crash(host, 50_001).notes[0].endswith("(node_ready_timeout_ms)")


def test_start_that_fails_after_it_was_given_up_is_the_end_of_it() -> None:
    host = make(History(1))
    host.effects()
    host.tick(1_000 + SETTINGS.node_ready_timeout_ms)
    host.effects()
    host.start_failed("no such archive", 50_000)
    assert host.deadline_ms == 50_000 + RESTART_PAUSE_MS


def test_scheduler_that_never_answers_is_killed() -> None:
    history = History(3)
    host, _ = started(history, is_leader=True)
    host.answered([says(0, MAP)], 5_000)
    host.effects()
    host.answers_chosen(history.choose(MAP), 5_000)
    due = 5_000 + SETTINGS.scheduler_answer_timeout_ms
    assert host.deadline_ms == due
    # More events give it no more time.
    host.events_chosen(history.add_events(1), 20_000)
    assert host.effects() == effects(write=lines(3, 4))
    assert host.deadline_ms == due
    host.tick(due)
    assert host.effects() == effects(stop="kill")
    assert crash(host, due).notes == (
        "replica 2: the scheduler hasn't answered "
        "event 1 task_done(0) for 30000 ms (scheduler_answer_timeout_ms)",
    )


def test_idle_scheduler_has_no_deadline_and_a_new_event_begins_one() -> None:
    history = History(1)
    host, _ = started(history)
    host.answered([says(0)], 1_000)
    host.answers_chosen(history.choose(), 1_000)
    assert host.deadline_ms is None
    host.events_chosen(history.add_events(1), 90_000)
    assert host.effects() == effects(write=lines(1, 2))
    assert host.deadline_ms == 90_000 + SETTINGS.scheduler_answer_timeout_ms


def test_machine_that_slept_is_not_the_schedulers_fault() -> None:
    history = History(1)
    host, _ = started(history)
    due = 1_000 + SETTINGS.scheduler_answer_timeout_ms
    late = due + LATE_MS + 1
    host.tick(late)
    assert host.effects() is None
    assert host.deadline_ms == late + SETTINGS.scheduler_answer_timeout_ms
    # Once: a scheduler that still doesn't answer is stuck.
    host.tick(late + SETTINGS.scheduler_answer_timeout_ms + LATE_MS + 1)
    assert host.effects() == effects(stop="kill")


def test_answer_to_an_event_that_was_not_sent_is_refused() -> None:
    history = History(1)
    host, _ = started(history)
    host.answered([says(0), says(1)], 1_000)
    assert host.effects() == effects(stop="kill")
    assert crash(host, 1_001).notes == (
        "replica 2: the scheduler answered event 1, which it hasn't been sent",
    )


def test_part_that_fits_no_frame_is_refused() -> None:
    history = History(1)
    settings = replace(SETTINGS, frame_bytes_max=20_000)
    host, _ = started(history, is_leader=True, settings=settings)
    host.answered([says(0, FinishJob((), f'"{"x" * 9_000}"'))], 1_000)
    found = host.effects()
    assert found is not None and len(found.propose) == 1
    other, _ = started(history, is_leader=True, settings=settings)
    other.answered([says(0, WriteLog("x" * 5_000), WriteLog("x" * 5_000))], 1_000)
    assert other.effects() == effects(stop="kill")
    assert crash(other, 1_001).notes == (
        "replica 2: the scheduler answered event 0 with 10128 bytes in one part, expected at "
        "most 10000 (half of frame_bytes_max); let tasks return large values",
    )


def test_part_with_too_many_commands_is_refused() -> None:
    history = History(1)
    host, _ = started(history, is_leader=True)
    host.answered([says(0, *[MAP] * (RULES.commands_per_part_max + 1))], 1_000)
    assert host.effects() == effects(stop="kill")
    assert crash(host, 1_001).notes == (
        "replica 2: the scheduler answered event 0 with 10001 "
        "commands in one part, expected at most 10000 (commands_per_part_max); "
        "cut the answer into parts",
    )


# --- the end ---


def test_scheduler_may_leave_after_finish_and_its_answer_is_still_proposed() -> None:
    history = History(2)
    host, _ = started(history)
    finish = FinishJob((TaskId(0),), "{}")
    host.answered([says(0, MAP), says(1, finish)], 1_000)
    host.exited("exit code 0", "", 1_001)
    assert host.effects() is None
    assert host.status.text == "finished"
    host.lead(1_002, is_leader=True)
    found = host.effects()
    assert found is not None and len(found.propose[0].parts) == 2
    host.answers_chosen(history.choose(MAP) + history.choose(finish), 1_003)
    host.job_ended(1_003)
    assert host.effects() is None


def test_end_of_the_job_asks_the_process_to_stop() -> None:
    history = History(1)
    host, _ = started(history, is_leader=True)
    host.answered([says(0, MAP)], 1_000)
    host.job_ended(1_001)
    assert host.effects() == effects(stop="ask")
    host.exited("exit code 0", "", 1_002)
    assert host.effects() is None
    assert host.deadline_ms is None
    assert host.status.text == "ended"


def behind_at_the_end(events: int = 2) -> tuple[History, SchedulerHost]:
    """A follower that has answered nothing when the job ends, after `events` answers."""
    history = History(events)
    host, _ = started(history)
    host.answers_chosen(history.choose(MAP), 1_000)
    if events > 1:
        host.answers_chosen(history.choose(FinishJob((), "{}")), 1_000)
    host.job_ended(1_001)
    return history, host


def test_scheduler_that_is_behind_is_compared_after_the_end() -> None:
    _, host = behind_at_the_end()
    assert host.effects() is None
    assert host.deadline_ms == 1_001 + CLOSING_MS
    host.answered([says(0, MAP)], 1_100)
    assert host.effects() is None
    host.answered([says(1, FinishJob((), '{"x":1}'))], 1_200)
    error = "event 1 task_done(0): the log says finish [] with values {}, this replica says "
    error += 'finish [] with values {"x":1}'
    assert host.effects() == effects(
        stop="ask",
        notes=(f"replica 2: {error}",),
        differed=error,
    )
    host.exited("exit code 0", "", 1_300)
    assert host.effects() is None and host.deadline_ms is None
    assert host.status.state == "ended"


@pytest.mark.parametrize("end", ["level", "late", "exited", "garbage"])
def test_a_comparison_after_the_end_ends(end: str) -> None:
    """And what a process does that nobody waits for is no failure."""
    _, host = behind_at_the_end()
    assert host.effects() is None
    has_process = True
    match end:
        case "level":
            host.answered([says(0, MAP), says(1, FinishJob((), "{}"))], 1_100)
        case "late":
            host.tick(1_001 + CLOSING_MS)
        case "exited":
            host.exited("exit code 1", "boom", 1_100)
            has_process = False
        case "garbage":
            host.garbage("nonsense", 1_100)
            assert host.effects() == effects(stop="kill")
            host.exited("signal 9 (SIGKILL)", "", 1_100)
            has_process = False
    assert host.effects() == (effects(stop="ask") if has_process else None)
    assert host.status.state == "ended"
    assert host.deadline_ms is None


def test_a_process_that_cannot_start_is_not_started_again_for_an_ended_job() -> None:
    history = History(1)
    host = make(history)
    host.effects()
    host.answers_chosen(history.choose(MAP), 900)
    host.job_ended(1_000)
    host.start_failed("no such file", 1_001)
    assert host.effects() is None
    assert host.status.state == "ended"


@pytest.mark.parametrize("state", ["waiting", "starting", "stopping", "out"])
def test_end_of_the_job_in_any_state_leaves_nothing_to_do(state: str) -> None:
    history = History(1)
    host = make(history)
    if state != "waiting":
        host.effects()
    if state in ("stopping", "out"):
        host.garbage("nonsense", 1_000)
        host.effects()
    if state == "out":
        host.exited("exit code 1", "", 1_000)
        host.tick(2_000)
        host.effects()
        host.start_failed("no", 2_000)
        host.effects()
    assert host.status.state == state
    host.job_ended(2_000)
    assert host.effects() == (effects(stop="ask") if state == "starting" else None)
    assert host.deadline_ms is None
