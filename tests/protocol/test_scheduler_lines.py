"""What a coordinator says to a scheduler and hears from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.errors import RemoteProtocolError
from tasksprint.protocol.scheduler_lines import (
    CheckpointState,
    SchedulerAnswer,
    SchedulerMessage,
    SchedulerReader,
    SchedulerReady,
)
from tasksprint.scheduler_commands import (
    FailJob,
    FinishJob,
    HandleEvents,
    KillTask,
    ReleaseTasks,
    StartTimer,
    WriteLog,
)
from tasksprint.task_spec import TaskSpec
from tests.protocol.steady import steady

READY = b'{"ready":{}}\n'
WHO = "scheduler of job 3"


def reader(ready: bytes = READY, *, next_event: int = 0, next_tid: int = 0) -> SchedulerReader:
    made = SchedulerReader(
        who=WHO, line_bytes_max=1 << 20, next_event=next_event, next_tid=next_tid
    )
    if ready:
        assert len(made.feed(ready)) == 1
    return made


def refused(line: bytes, *, tasks: int = 0, ready: bytes = READY) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        reader(ready, next_tid=tasks).feed(line + b"\n")
    return str(caught.value)


def commands(text: str, *, tasks: int = 0) -> tuple[object, ...]:
    (answer,) = reader(next_tid=tasks).feed(f'{{"event":0,"commands":[{text}]}}\n'.encode())
    assert isinstance(answer, SchedulerAnswer)
    return answer.commands


@pytest.mark.parametrize(
    ("line", "expected"),
    [(b'{"ready":{}}', False), (b'{"ready":{},"checkpoints":true}', True)],
)
def test_scheduler_says_what_it_can_do(line: bytes, expected: bool) -> None:
    assert reader(b"").feed(line + b"\n") == [SchedulerReady(expected)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"Somebody joined!",
            f"{WHO} began with 'Somebody joined!', expected {{\"ready\":{{}}}} as its first line; "
            "print to stderr, stdout carries the protocol",
        ),
        (b'{"event":0}', f"{WHO} began with '{{\"event\":0}}', expected"),
        (b'{"ready":{},"window":3}', "said ready with 'window', expected only 'checkpoints'"),
        (b'{"ready":{},"checkpoints":1}', "said ready with checkpoints 1, expected true or"),
    ],
)
def test_wrong_first_line_is_refused(line: bytes, message: str) -> None:
    assert message in refused(line, ready=b"")


def test_answers_are_read_whole_and_byte_by_byte() -> None:
    stream = (
        b'{"event":0,"part":0,"last":false,"commands":[{"start":"a"}]}\n'
        b'{"event":0,"part":1,"last":true,"commands":[{"start":"b"}]}\n'
        b'{"event":1}\n'
        b' { "event" : 2 , "commands" : [ ] } \r\n'
        b'{"checkpoint":2,"state":{"x": 1.50}}\n'
        b'{"event":3,"part":0,"last":true,"commands":[{"kill":1} , {"log":"x"}]}\n'
    )
    expected: list[SchedulerMessage] = [
        SchedulerAnswer(0, 0, False, (TaskSpec("a"),)),
        SchedulerAnswer(0, 1, True, (TaskSpec("b"),)),
        SchedulerAnswer(1, 0, True, ()),
        SchedulerAnswer(2, 0, True, ()),
        CheckpointState(2, '{"x": 1.50}'),
        SchedulerAnswer(3, 0, True, (KillTask(1), WriteLog("x"))),
    ]
    assert reader().feed(stream) == expected
    slow = reader()
    found: list[SchedulerMessage] = []
    for byte in stream:
        found += slow.feed(bytes([byte]))
    assert found == expected
    assert (slow.next_event, slow.next_part, slow.next_tid) == (4, 0, 2)
    assert not slow.is_inside_message
    slow.feed(b'{"event"')
    assert slow.is_inside_message


def test_many_empty_answers_in_one_chunk() -> None:
    chunk = b"".join(b'{"event":%d}\n' % event for event in range(1_000))
    assert reader().feed(chunk) == [SchedulerAnswer(event, 0, True, ()) for event in range(1_000)]


def test_every_command_with_every_member() -> None:
    assert commands(
        '{"start":"merge","base":[ 1.0e5,"نص",1180591620717411303424 ],"pretasks":[0,1],'
        '"prekeys":["result","r"],"keys":["result"],"tid":2,"retries":0,"timeout_ms":5000},'
        '{"kill":2},{"finish":[2,0],"values":{"pi" : 3.140}},{"fail":"no"},'
        '{"timer":1,"after_ms":0},{"release":[]},{"log":"سطر"}',
        tasks=2,
    ) == (
        TaskSpec(
            "merge",
            '[ 1.0e5,"نص",1180591620717411303424 ]',
            (0, 1),
            ("result", "r"),
            ("result",),
            0,
            5000,
        ),
        KillTask(2),
        FinishJob((2, 0), '{"pi" : 3.140}'),
        FailJob("no"),
        StartTimer(1, 0),
        ReleaseTasks(()),
        WriteLog("سطر"),
    )


def test_members_that_are_left_out_or_null() -> None:
    assert commands('{"start":"a","retries":null,"timeout_ms":null},{"finish":[]}') == (
        TaskSpec("a"),
        FinishJob((), "{}"),
    )


def test_task_may_name_one_that_the_same_answer_started() -> None:
    assert commands('{"start":"a"},{"start":"b","pretasks":[0],"prekeys":["r"]}') == (
        TaskSpec("a"),
        TaskSpec("b", "[]", (0,), ("r",)),
    )


def test_numbering_goes_on_after_a_checkpoint() -> None:
    made = reader(next_event=42, next_tid=7)
    assert made.feed(b'{"event":42,"commands":[{"start":"a","tid":7}]}\n') == [
        SchedulerAnswer(42, 0, True, (TaskSpec("a"),))
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b"Task 1 is done",
            f"line from {WHO} isn't a JSON object: 'Task 1 is done'; "
            "print to stderr, stdout carries the protocol",
        ),
        (b'{"event":0} {}', f"line from {WHO} goes on after its JSON object: ' {{}}'"),
        (b'{"commands":[]}', f"{WHO} said '{{\"commands\":[]}}', expected an answer with 'event'"),
        (b'{"event":"0"}', f"{WHO} answered event '0', expected the number of an event"),
        (b'{"event":0,"command":[]}', "answered event 0 with 'command', expected 'part', 'last'"),
        (b'{"event":0,"commands":{}}', "answered event 0 with commands '{}', expected a list"),
        (b'{"event":0,"last":1}', "answered event 0 with last 1, expected true or false"),
        (b'{"event":0,"part":1}', "answered event 0 with part 1, expected part 0"),
        (b'{"event":0,"part":true}', "answered event 0 with part True, expected part 0"),
        (
            b'{"event":1}',
            f"{WHO} answered event 1, expected its answer to event 0; "
            "every event is answered once, in order",
        ),
        (b'{"event":1,"commands":[]}', "answered event 1, expected its answer to event 0"),
        (b'{"checkpoint":1}', "handed out a checkpoint with 'checkpoint', expected"),
        (b'{"checkpoint":"1","state":1}', "handed out checkpoint '1', expected the number"),
        (b'{"event":0,"commands":[1]}', "event 0, command 0 is '1]}', expected a JSON object"),
    ],
)
def test_wrong_line_is_refused_with_a_sentence(line: bytes, message: str) -> None:
    assert message in refused(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"ready":{},"%s":1}' % (b"x" * 5_000),
        b'{"ready":{}}\n{"event":0,"commands%s":[]}' % (b"x" * 5_000),
        b'{"ready":{}}\n{"event":0,"commands":[{"fail":"","%s":1}]}' % (b"x" * 5_000),
        b'{"ready":{}}\n{"event":0,"commands":[{"%s":1}]}' % (b"x" * 5_000),
        b'{"ready":{}}\n{"event":0,"commands":[{%s}]}'
        % b",".join(b'"k%d":1' % number for number in range(3_000)),
        b'{"ready":{}}\n{"checkpoint":1,%s}'
        % b",".join(b'"k%d":1' % number for number in range(3_000)),
    ],
)
def test_names_that_a_scheduler_made_up_are_shortened(line: bytes) -> None:
    one = reader(b"")
    with pytest.raises(RemoteProtocolError) as caught:
        for part in line.split(b"\n"):
            one.feed(part + b"\n")
    assert len(str(caught.value)) < 600


def test_event_that_is_answered_twice_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="answered event 0, expected its answer to eve"):
        reader().feed(b'{"event":0}\n{"event":0}\n')


def test_next_event_before_the_last_part_is_refused() -> None:
    stream = b'{"event":0,"last":false}\n{"event":1}\n'
    with pytest.raises(RemoteProtocolError) as caught:
        reader().feed(stream)
    assert "answered event 1, expected its answer to part 1 of event 0" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            '{"strat":"a"}',
            f"{WHO}: event 0, command 0 has 'strat', expected one of 'fail', 'finish', "
            "'handles', 'kill', 'log', 'release', 'start', 'timer'",
        ),
        ('{"handles":"timer"}', "command 0 has handles 'timer', expected a list of strings"),
        (
            '{"handles":["client_join"]}',
            "command 0 handles 'client_join', expected 'client_dead', 'client_joined', "
            "'task_done', 'task_failed', 'timer'",
        ),
        (
            '{"log":"a"},{"handles":[]}',
            "command 1 has 'handles', which can only begin the answer to event 0",
        ),
        ("{}", "command 0 has no member, expected one of"),
        (
            '{"kill":1,"reason":"x"}',
            f"{WHO}: event 0, command 0 has 'reason', expected 'kill' in 'kill'",
        ),
        ('{"log":"a"},{"start":""}', "event 0, command 1 starts '', expected a task's name"),
        ('{"start":5}', "command 0 starts 5, expected a task's name"),
        ('{"start":"\\ud800"}', "starts '\\ud800', expected a task's name"),
        (
            '{"start":"a","tid":5}',
            "command 0, start 'a' (tid 3) names tid 5, expected 3, the job's next one",
        ),
        ('{"start":"a","tid":3.0}', "names tid 3.0, expected 3"),
        ('{"start":"a","base":{}}', "start 'a' (tid 3) has base '{}', expected a list of argum"),
        ('{"start":"a","base":"x"}', "has base '\"x\"', expected a list of arguments"),
        ('{"start":"a","base":[NaN]}', "holds NaN under key 'base'; JSON has no NaN"),
        ('{"finish":[],"values":{"x":Infinity}}', "holds Infinity under key 'values'"),
        (
            '{"start":"a","pretasks":[1]}',
            "start 'a' (tid 3) has 1 pretasks and 0 prekeys, expected one key for each pretask",
        ),
        (
            '{"start":"a","pretasks":[12],"prekeys":["r"]}',
            "start 'a' (tid 3) has pretasks task 12, which isn't known; "
            "expected a tid from 0 to 2",
        ),
        ('{"start":"a","pretasks":[3],"prekeys":["r"]}', "has pretasks task 3, which isn't known"),
        ('{"start":"a","pretasks":[-1],"prekeys":["r"]}', "has pretasks -1, expected the tid"),
        ('{"start":"a","pretasks":[true],"prekeys":["r"]}', "has pretasks True, expected the tid"),
        ('{"start":"a","pretasks":1,"prekeys":["r"]}', "has pretasks 1, expected a list of tids"),
        ('{"start":"a","keys":"result"}', "has keys 'result', expected a list of strings"),
        ('{"start":"a","keys":[1]}', "has keys with 1, expected strings"),
        ('{"start":"a","retries":-1}', "has retries -1, expected how often it may be tried again"),
        ('{"start":"a","timeout_ms":0}', "has timeout_ms 0, expected milliseconds above 0"),
        ('{"start":"a","timeout_ms":1.5}', "has timeout_ms 1.5, expected milliseconds above 0"),
        (
            '{"start":"a","priority":"high"}',
            "start 'a' (tid 3) has priority 'high', expected a whole number from -2**31 to",
        ),
        ('{"start":"a","priority":2147483648}', "has priority 2147483648, expected a whole"),
        ('{"start":"a","retries":' + "9" * 5_000 + "}", "has a number under key 'retries' that"),
        ('{"kill":3}', "kills task 3, which isn't known; expected a tid from 0 to 2"),
        ('{"kill":[1]}', "kills [1], expected the tid of a task"),
        ('{"finish":1}', "finishes with 1, expected a list of tids"),
        ('{"release":[9]}', "releases task 9, which isn't known"),
        ('{"fail":null}', "fails with None, expected a string"),
        ('{"log":1}', "logs 1, expected a string"),
        ('{"timer":"a","after_ms":1}', "starts timer 'a', expected a number"),
        ('{"timer":1}', "starts timer 1 with after_ms None, expected milliseconds"),
        ('{"kill":1,"kill":2}', "names key 'kill' twice"),
    ],
)
def test_wrong_command_is_refused_with_its_place(command: str, message: str) -> None:
    line = f'{{"event":0,"commands":[{command}]}}'.encode()
    assert message in refused(line, tasks=3)


@pytest.mark.parametrize(("rules", "priority"), [(1, 0), (2, -7)])
def test_priority_means_nothing_in_a_job_of_older_rules(rules: int, priority: int) -> None:
    made = SchedulerReader(who=WHO, line_bytes_max=1 << 20, rules=rules)
    made.feed(READY)
    (answer,) = made.feed(b'{"event":0,"commands":[{"start":"a","priority":-7}]}\n')
    assert isinstance(answer, SchedulerAnswer)
    assert answer.commands == (TaskSpec("a", priority=priority),)


def test_what_a_scheduler_handles_begins_its_first_answer() -> None:
    assert commands('{"handles":["timer","task_done"]},{"log":"a"}') == (
        HandleEvents(("timer", "task_done")),
        WriteLog("a"),
    )
    only = "which can only begin the answer to event 0"
    assert only in refused(b'{"event":0}\n{"event":1,"commands":[{"handles":[]}]}')
    later_part = b'{"event":0,"last":false}\n{"event":0,"part":1,"commands":[{"handles":[]}]}'
    assert only in refused(later_part)


def test_what_came_with_later_rules_is_unknown_to_a_job_of_older_ones() -> None:
    one = SchedulerReader(who=WHO, line_bytes_max=1 << 20, rules=1)
    one.feed(b'{"ready":{}}\n')
    with pytest.raises(RemoteProtocolError, match="has 'handles', expected one of 'fail', 'fin"):
        one.feed(b'{"event":0,"commands":[{"handles":[]}]}\n')


def test_kill_before_any_task_says_so() -> None:
    assert "kills task 0, which isn't known; expected a task that was started before" in refused(
        b'{"event":0,"commands":[{"kill":0}]}'
    )


def test_text_for_people_is_kept_even_if_it_is_broken() -> None:
    assert commands('{"fail":"a\\ud800b"}') == (FailJob("a?b"),)


@steady
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_gives_messages_or_a_protocol_error(chunks: list[bytes]) -> None:
    for ready in (b"", READY):
        made = reader(ready)
        try:
            for chunk in chunks:
                made.feed(chunk)
            made.feed(b"\n")
        except RemoteProtocolError:
            pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.text(max_size=3) | st.just("result"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
members = st.dictionaries(
    st.sampled_from(
        ["start", "base", "pretasks", "prekeys", "keys", "tid", "retries", "timeout_ms", "kill",
         "priority", "finish", "values", "fail", "timer", "after_ms", "release", "log", "other"]
    ),
    json_values,
    max_size=4,
)  # fmt: skip


@steady
@given(st.lists(members | json_values, max_size=3), st.sampled_from([(), ("\\",), ("NaN",)]))
def test_wild_commands_give_an_answer_or_a_protocol_error(
    wild: list[object], damage: tuple[str, ...]
) -> None:
    text = json.dumps({"event": 0, "commands": wild})
    for piece in damage:
        text = text.replace(":", ":" + piece, 2)
    try:
        (answer,) = reader(next_tid=2).feed(text.encode() + b"\n")
    except RemoteProtocolError:
        return
    assert isinstance(answer, SchedulerAnswer)
    assert len(answer.commands) == len(wild)
