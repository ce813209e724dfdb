"""The log's commands as bytes: whole round trips, and bad bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasksprint.coordination.commands import (
    Answer,
    AnswerPart,
    CancelJob,
    Claim,
    Command,
    Completion,
    Failure,
    ForgetJob,
    Held,
    JobObserved,
    JoinClient,
    LeaveClient,
    Lost,
    NodesAttached,
    RaiseRules,
    Report,
    SchedulerOut,
    SilentClient,
    SubmitJob,
    Tick,
    answer_digest,
    decode_command,
    encode_command,
    inputs_digest,
)
from tasksprint.errors import RemoteProtocolError
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

numbers = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=8)
maybe_numbers = st.none() | numbers


def tuples(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


scheduler_commands = st.one_of(
    st.builds(
        TaskSpec,
        texts,
        texts,
        tuples(numbers),
        tuples(texts),
        tuples(texts),
        maybe_numbers,
        maybe_numbers,
        st.integers(-(2**31), 2**31 - 1),
    ),
    st.builds(KillTask, numbers),
    st.builds(FinishJob, tuples(numbers), texts),
    st.builds(FailJob, texts),
    st.builds(StartTimer, numbers, numbers),
    st.builds(ReleaseTasks, tuples(numbers)),
    st.builds(WriteLog, texts),
)
completions = st.builds(
    Completion,
    numbers,
    numbers,
    numbers,
    texts,
    numbers,
    st.none() | texts,
    numbers,
    st.dictionaries(texts, st.tuples(st.sampled_from(["json", "bytes"]), lines), max_size=2),
)
failures = st.builds(
    Failure,
    numbers,
    numbers,
    numbers,
    texts,
    st.booleans(),
    st.dictionaries(texts, st.none() | texts | numbers, max_size=2),
)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        Tick,
        numbers,
        numbers,
        tuples(st.builds(SilentClient, numbers, texts, numbers)),
        st.none() | st.builds(Claim, numbers, texts),
    ),
    st.builds(
        JoinClient,
        texts,
        texts,
        st.none() | texts,
        texts,
        numbers,
        tuples(st.builds(Held, numbers, numbers, texts)),
    ),
    st.builds(LeaveClient, numbers, texts),
    st.builds(NodesAttached, numbers, texts, numbers, tuples(st.tuples(texts, numbers))),
    st.builds(
        Report,
        numbers,
        texts,
        numbers,
        numbers,
        tuples(completions),
        tuples(failures),
        tuples(st.builds(Lost, numbers, numbers)),
    ),
    st.builds(SubmitJob, texts, numbers, texts, numbers, texts, texts, texts),
    st.builds(
        Answer,
        numbers,
        tuples(
            st.builds(
                AnswerPart, numbers, numbers, st.booleans(), numbers, tuples(scheduler_commands)
            )
        ),
        tuples(st.tuples(numbers, numbers)),
    ),
    st.builds(CancelJob, texts, numbers, numbers, texts),
    st.builds(ForgetJob, texts, numbers, numbers),
    st.builds(SchedulerOut, numbers, numbers, texts, texts),
    st.builds(JobObserved, numbers, texts, texts, texts),
)


SAMPLES: list[Command] = [
    Tick(500, 1_700_000_000_000, (SilentClient(2, "aa", 7),), Claim(9, "ab"), ((3, 8),)),
    Tick(500, 0),
    JoinClient("id", "aa", None, "host", 4, (Held(1, 2, "dd"),)),
    JoinClient("id", "aa", "ж:1", "host", 0),
    LeaveClient(1, "aa"),
    RaiseRules(2),
    NodesAttached(1, "aa", 2, (("gpu", 3),)),
    Report(
        1,
        "f0",
        3,
        2,
        (
            Completion(1, 2, 1, "dd", 10, "ee", 250, {"k": ("json", "[1.0]"), "b": ("bytes", "")}),
            Completion(1, 3, 1, "dd", 2**62, None, 0),
        ),
        (Failure(1, 3, 2, "boom\n", False, {"exit_code": 1, "signal": None}),),
        (Lost(1, 4),),
    ),
    SubmitJob("me", 1, "pi", 2**63 - 1, "{}", "pp", '{"name":"pi"}'),
    Answer(
        1,
        (
            AnswerPart(
                3,
                0,
                False,
                5,
                (
                    TaskSpec("merge", "[1]", (0, 1), ("a", "b"), ("c",), 2, 5_000),
                    TaskSpec("bare"),
                    TaskSpec("first", priority=-5),
                    KillTask(4),
                    FinishJob((1, 2), '{"x":1}'),
                    FailJob("no"),
                    StartTimer(1, 500),
                    ReleaseTasks((1,)),
                    WriteLog("half way"),
                ),
            ),
            AnswerPart(3, 1, True, 7, ()),
        ),
        ((4, 9),),
    ),
    CancelJob("me", 2, 1, "enough"),
    Answer(1, (AnswerPart(0, 0, True, 0, (HandleEvents(("client_joined", "timer")),)),)),
    ForgetJob("me", 3, 1),
    SchedulerOut(3, 1, "crashed", "exit 1"),
    JobObserved(1, "differs", "replica 2", "event 3: the log says nothing"),
]


@given(commands)
def test_each_command_survives_its_encoding(command: Command) -> None:
    data = encode_command(command)
    assert decode_command(data) == command
    assert encode_command(decode_command(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"null",
        b"3",
        b"[]",
        b"{}",
        b'["unknown"]',
        b'[["tick"]]',
        b'["tick",1]',
        b'["tick",1,2,3]',
        b'["tick",-1,2,[],null,[]]',
        b'["tick",1.5,2,[],null]',
        b'["tick",9223372036854775808,2,[],null]',
        b'["tick",true,2,[],null]',
        b'["tick",1,2,[[1,2]],null]',
        b'["tick",1,2,[]]',
        b'["tick",1,2,[],[1]]',
        b'["tick",1,2,[],[1,2]]',
        b'["tick",1,2,[],["a","b"]]',
        b'["leave",1,2]',
        b'["report",1,"a",1,1,[[1,2,3]],[],[]]',
        b'["report",1,"a",1,1,[[1,2,3,"d",1,null,1,{"k":["text","1"]}]],[],[]]',
        b'["report",1,"a",1,1,[[1,2,3,"d",1,null,1,{"k":["json","1\\n2"]}]],[],[]]',
        b'["report",1,"a",1,1,[[1,2,3,"d",-1,null,1,{}]],[],[]]',
        b'["report",1,"a",1,1,[],[[1,2,3,"e",0,{}]],[]]',
        b'["answer",1,[[0,0,true,0,[["s"]]]],[]]',
        b'["answer",1,[[0,0,true,0,["s"]]],[]]',
        b'["answer",1,[[0,0,true,0,[["z",1]]]],[]]',
        b'["answer",1,[[0,0,true,0,[["r",[-1]]]]],[]]',
        b'["answer",1,[[0,0,true,0,[["s","n","[]",[],[1],[],null,null]]]],[]]',
        b'["answer",1,[],[[1]]]',
    ],
)
def test_bytes_that_are_no_command_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_command(data)


@given(st.binary(max_size=30))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_command(data)


def test_answers_differ_by_anything_that_counts() -> None:
    command = TaskSpec("map")
    digests = [
        answer_digest(0, True, (command,)),
        answer_digest(1, True, (command,)),
        answer_digest(0, False, (command,)),
        answer_digest(0, True, (TaskSpec("map", keys=("k",)),)),
        answer_digest(0, True, ()),
    ]
    assert len(set(digests)) == len(digests)
    assert answer_digest(0, True, (command,)) == digests[0]


def test_what_an_attempt_consumed_depends_on_the_order() -> None:
    assert inputs_digest(["a", "b"]) != inputs_digest(["b", "a"])


@pytest.mark.parametrize("priority", ["5", "{}", "null", "true", "1.0", '"1"', "2147483648"])
def test_a_task_has_a_priority_from_rules_2_on(priority: str) -> None:
    start = f'["s","a","[]",[],[],[],null,null,{priority}]'
    data = f'["answer",1,[[0,0,true,0,[{start}]]],[]]'.encode()
    if priority == "5":
        assert encode_command(decode_command(data, 2)) == data
    else:
        with pytest.raises(RemoteProtocolError):
            decode_command(data, 2)
    with pytest.raises(RemoteProtocolError):
        decode_command(data, 1)
