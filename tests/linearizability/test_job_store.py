"""The model of jobs, on histories that are known, and cut by job against one search over all."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from random import Random

import pytest

from tests.linearizability.checker import Operation, check, is_linearizable_slowly
from tests.linearizability.job_store import (
    ABSENT,
    FORGOTTEN,
    JobModel,
    JobState,
    check_history,
)

RUNNING = ("running",)
FINISHED = ("ended", "finished", "7")
CANCELLED = ("ended", "cancelled", None)


def done(invoked: int, returned: int, *call: Hashable, reply: Hashable) -> Operation:
    return Operation("p", invoked, returned, call, reply)


def lost(invoked: int, *call: Hashable) -> Operation:
    return Operation("p", invoked, None, call, None)


def submitted(invoked: int, returned: int, request: int, job: int) -> Operation:
    return done(invoked, returned, "submit", "a", request, reply=("job", job))


GOOD = {
    "a job from its submit to its end": [
        done(0, 1, "status", 1, reply=ABSENT),
        submitted(2, 3, 1, 1),
        done(4, 5, "status", 1, reply=RUNNING),
        done(6, 7, "status", 1, reply=FINISHED),
        done(8, 9, "status", 1, reply=FINISHED),
    ],
    "a submit that got no answer and was repeated": [
        lost(0, "submit", "a", 1),
        done(1, 2, "list", reply=((1, RUNNING),)),
        submitted(3, 4, 1, 1),
    ],
    "a cancel beats the end": [
        submitted(0, 1, 1, 1),
        done(2, 3, "cancel", "a", 2, 1, reply=("state", "cancelled")),
        done(4, 5, "status", 1, reply=CANCELLED),
    ],
    "the end beats a cancel": [
        submitted(0, 1, 1, 1),
        done(2, 3, "cancel", "a", 2, 1, reply=("state", "finished")),
        done(4, 5, "status", 1, reply=FINISHED),
    ],
    "a cancel that got no answer took effect, and its repetition says so": [
        submitted(0, 1, 1, 1),
        lost(2, "cancel", "a", 2, 1),
        done(3, 4, "status", 1, reply=CANCELLED),
        done(5, 6, "cancel", "a", 2, 1, reply=("state", "cancelled")),
    ],
    "a status that waits is told that a job is forgotten which ended meanwhile": [
        submitted(0, 1, 1, 1),
        submitted(2, 3, 2, 2),
        done(4, 9, "status", 1, reply=ABSENT),
        done(6, 8, "forget", "a", 3, 1, reply=("forgotten",)),
    ],
    "two jobs made at the same time": [submitted(0, 5, 1, 2), submitted(1, 4, 2, 1)],
    "a job that has ended is forgotten, while a later one is made": [
        submitted(0, 1, 1, 1),
        done(2, 3, "forget", "a", 2, 1, reply=RUNNING),
        done(4, 5, "status", 1, reply=FINISHED),
        submitted(4, 5, 3, 2),
        done(6, 9, "forget", "a", 4, 1, reply=("forgotten",)),
        done(7, 8, "status", 1, reply=FINISHED),
        done(8, 9, "status", 1, reply=ABSENT),
        done(10, 11, "forget", "a", 4, 1, reply=("forgotten",)),
        done(10, 11, "forget", "a", 5, 1, reply=ABSENT),
        done(12, 13, "list", reply=((2, RUNNING),)),
    ],
    "a cancel of a job that wasn't there yet is answered so again": [
        done(0, 1, "cancel", "a", 9, 1, reply=ABSENT),
        submitted(0, 5, 1, 1),
        submitted(4, 5, 2, 2),
        done(6, 7, "cancel", "a", 9, 1, reply=ABSENT),
    ],
    "ids may have gaps": [submitted(0, 1, 1, 3), submitted(2, 3, 2, 9)],
}

BAD = {
    "an acknowledged job is lost": (
        [submitted(0, 1, 1, 1), done(2, 3, "status", 1, reply=ABSENT)],
        "job 1: not linearizable",
    ),
    "an acknowledged job is missing in a list": (
        [submitted(0, 1, 1, 1), done(2, 3, "list", reply=())],
        "job 1: not linearizable",
    ),
    "a request made two jobs": (
        [submitted(0, 1, 1, 1), submitted(2, 3, 1, 2)],
        "request 1 of a is job 1 and job 2",
    ),
    "two requests have one job": (
        [submitted(0, 1, 1, 1), submitted(2, 3, 2, 1)],
        "job 1: not linearizable",
    ),
    "a job that has ended runs again": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "status", 1, reply=FINISHED),
            done(4, 5, "status", 1, reply=RUNNING),
        ],
        "job 1: not linearizable",
    ),
    "a job ends in two ways": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "status", 1, reply=FINISHED),
            done(4, 5, "status", 1, reply=("ended", "finished", "8")),
        ],
        "job 1: not linearizable",
    ),
    "a job is cancelled that nobody cancelled": (
        [submitted(0, 1, 1, 1), done(2, 3, "status", 1, reply=CANCELLED)],
        "job 1: not linearizable",
    ),
    "a cancelled job is running": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "cancel", "a", 2, 1, reply=("state", "cancelled")),
            done(4, 5, "status", 1, reply=RUNNING),
        ],
        "job 1: not linearizable",
    ),
    "a repeated cancel is answered in another way": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "cancel", "a", 2, 1, reply=("state", "cancelled")),
            done(4, 5, "cancel", "a", 2, 1, reply=("state", "finished")),
        ],
        "job 1: not linearizable",
    ),
    "a forgotten job is there": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "forget", "a", 2, 1, reply=("forgotten",)),
            done(4, 5, "status", 1, reply=FINISHED),
        ],
        "job 1: not linearizable",
    ),
    "a job is gone before anybody forgets it": (
        [
            submitted(0, 1, 1, 1),
            done(2, 3, "status", 1, reply=ABSENT),
            done(4, 5, "forget", "a", 2, 1, reply=("forgotten",)),
        ],
        "job 1: not linearizable",
    ),
    "a job is known before its submit": (
        [done(0, 1, "status", 1, reply=RUNNING), submitted(2, 3, 1, 1)],
        "job 1: not linearizable",
    ),
    "a later job has a smaller id": (
        [submitted(0, 1, 1, 2), submitted(2, 3, 2, 1)],
        "job 2 was known at 1, but job 1, which has a smaller id, wasn't made before 2",
    ),
    "a job that a forget denied after a later one was known": (
        [
            submitted(3, 5, 2, 2),
            submitted(3, 8, 1, 1),
            done(7, 7, "forget", "a", 3, 1, reply=ABSENT),
        ],
        "job 2 was known at 5, but job 1, which has a smaller id, wasn't made before 7",
    ),
    "a job that was denied after a later one was known": (
        [
            submitted(0, 3, 2, 2),
            done(4, 5, "status", 1, reply=ABSENT),
            submitted(0, 9, 1, 1),
        ],
        "job 2 was known at 3, but job 1, which has a smaller id, wasn't made before 4",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_history_that_jobs_may_have(name: str) -> None:
    assert check_history(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_history_that_jobs_must_not_have(name: str) -> None:
    history, sentence = BAD[name]
    wrong = check_history(history)
    assert any(line.startswith(sentence) for line in wrong), wrong


@dataclass(frozen=True, slots=True)
class StoreState:
    """All jobs at once."""

    next_id: int = 1
    jobs: tuple[tuple[int, JobState], ...] = ()


class StoreModel:
    """The whole store as one object, without any cutting; ids may leave gaps."""

    initial = StoreState()
    ids_end = 4

    def step(self, state: StoreState, operation: Operation) -> tuple[StoreState, ...]:
        jobs = dict(state.jobs)
        if operation.call[0] == "submit":
            _, sender, number = operation.call
            assert isinstance(sender, str) and isinstance(number, int)
            request = (sender, number)
            for job in jobs:
                if jobs[job].made_by == request:
                    is_same = operation.reply in (None, ("job", job))
                    return (state,) if is_same else ()
            return tuple(
                [
                    StoreState(job + 1, _put(jobs, job, after))
                    for job in range(state.next_id, self.ids_end)
                    if operation.reply in (None, ("job", job))
                    # (It may have answered requests before there was one.)
                    for after in JobModel().step(jobs.get(job, JobState()), operation)
                ]
            )
        if operation.call[0] == "list":
            return self._list(state, operation)
        named = operation.call[-1]
        assert isinstance(named, int)
        after = JobModel().step(jobs.get(named, JobState()), operation)
        return tuple([StoreState(state.next_id, _put(jobs, named, each)) for each in after])

    def _list(self, state: StoreState, operation: Operation) -> tuple[StoreState, ...]:
        if operation.returned is None:
            return (state,)
        assert isinstance(operation.reply, tuple)
        statuses = dict(operation.reply)
        jobs = dict(state.jobs)
        for job in {*jobs, *statuses}:
            seen = replace(operation, call=("status", job), reply=statuses.get(job, ABSENT))
            after = JobModel().step(jobs.get(job, JobState()), seen)
            if not after:
                return ()
            jobs = dict(_put(jobs, job, *after))
        return (StoreState(state.next_id, tuple(jobs.items())),)

    def is_idle(self, operation: Operation) -> bool:
        return False


def _put(
    jobs: dict[int, JobState], job: int, state: JobState
) -> tuple[tuple[int, JobState], ...]:
    after = {**jobs, job: state}
    return tuple([(number, after[number]) for number in sorted(after)])


def random_history(random: Random) -> list[Operation]:
    """Return a history that is often right, and often nearly right."""
    found: list[Operation] = []
    time = 0
    for _ in range(random.randrange(1, 7)):
        time += random.choice((0, 1, 3))
        end = time + random.choice((0, 2, 5))
        job = random.choice((1, 2))
        match random.randrange(8):
            case 0 | 1:
                request = random.choice((1, 2, job))
                found.append(submitted(time, end, request, job))
            case 2:
                request = random.choice((1, 2))
                found.append(lost(time, "submit", "a", request))
            case 3:
                reply = random.choice((ABSENT, RUNNING, RUNNING, FINISHED, CANCELLED))
                found.append(done(time, end, "status", job, reply=reply))
            case 4:
                replies = [("state", "cancelled"), ("state", "finished"), ABSENT]
                found.append(done(time, end, "cancel", "a", 9, job, reply=random.choice(replies)))
            case 5 | 6:
                request = random.choice((7, 8))
                answer = random.choice((ABSENT, RUNNING, FORGOTTEN, FORGOTTEN))
                found.append(done(time, end, "forget", "a", request, job, reply=answer))
            case _:
                found.append(lost(time, "forget", "a", random.choice((7, 8)), job))
    return found


def with_known_ids(history: list[Operation]) -> list[Operation]:
    """Leave out lost submits whose id no answer names.

    They may have made any job: the cutting leaves them out, and then a status of that job
    has nobody who made it.
    """
    requests = {each.call[2] for each in history if each.call[0] == "submit" and each.reply}
    return [
        each
        for each in history
        if each.call[0] != "submit" or each.reply is not None or each.call[2] in requests
    ]


def may_be_forgotten(history: list[Operation]) -> bool:
    refused = {each.call for each in history if each.reply in (ABSENT, RUNNING)}
    return any(each.call[0] == "forget" and each.call not in refused for each in history)


def test_cutting_by_job_says_the_same_as_one_search_over_all_jobs() -> None:
    """Where a job may have been forgotten it may miss something, and never finds too much."""
    random = Random(7)
    verdicts = {(True, True): 0, (True, False): 0, (False, False): 0}
    forgotten = 0
    for _ in range(6_000):
        history = with_known_ids(random_history(random))
        cut = not check_history(history)
        whole = check(history, StoreModel()).is_linearizable
        forgotten += may_be_forgotten(history)
        assert cut == whole or (cut and may_be_forgotten(history)), [
            each.describe() for each in history
        ]
        verdicts[cut, whole] += 1
    assert min(verdicts[True, True], verdicts[False, False], forgotten) > 1_000, verdicts
    assert verdicts[True, False] < 10, verdicts


def random_list(random: Random) -> Operation:
    """Return a list of two jobs at most."""
    time = random.randrange(12)
    statuses = [(job, random.choice((ABSENT, RUNNING, FINISHED))) for job in (1, 2)]
    reply = tuple([each for each in statuses if each[1] != ABSENT])
    return done(time, time + random.choice((0, 3, 6)), "list", reply=reply)


def test_cutting_finds_nothing_wrong_with_lists_that_one_search_allows() -> None:
    random = Random(9)
    verdicts = {(True, True): 0, (True, False): 0, (False, False): 0}
    for _ in range(3_000):
        history = with_known_ids([*random_history(random), random_list(random)])
        cut = not check_history(history)
        whole = check(history, StoreModel()).is_linearizable
        assert cut or not whole, [each.describe() for each in history]
        verdicts[cut, whole] += 1
    assert min(verdicts[True, True], verdicts[False, False]) > 150, verdicts


def test_model_of_one_job_says_the_same_as_trying_all_orders() -> None:
    random = Random(8)
    verdicts = {True: 0, False: 0}
    for _ in range(2_000):
        history = [
            replace(each, call=(*each.call[:-1], 1)) if each.call[0] != "submit" else each
            for each in random_history(random)
        ]
        slowly = is_linearizable_slowly(history, JobModel())
        assert check(history, JobModel()).is_linearizable == slowly
        verdicts[slowly] += 1
    assert min(verdicts.values()) > 300, verdicts
