"""The model of jobs, on histories that are known, and cut by job against one search over all."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from random import Random

import pytest

from tests.linearizability.checker import Operation, check, is_linearizable_slowly
from tests.linearizability.job_store import ABSENT, JobModel, JobState, check_history

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
                    StoreState(job + 1, (*state.jobs, (job, JobState(request, RUNNING))))
                    for job in range(state.next_id, self.ids_end)
                    if operation.reply in (None, ("job", job))
                ]
            )
        named = operation.call[-1]
        assert isinstance(named, int)
        after = JobModel().step(jobs.get(named, JobState()), operation)
        return tuple([StoreState(state.next_id, _put(jobs, named, each)) for each in after])

    def is_idle(self, operation: Operation) -> bool:
        return False


def _put(
    jobs: dict[int, JobState], job: int, state: JobState
) -> tuple[tuple[int, JobState], ...]:
    if state == JobState():
        jobs = {number: each for number, each in jobs.items() if number != job}
        return tuple(jobs.items())
    return tuple({**jobs, job: state}.items())


def random_history(random: Random) -> list[Operation]:
    """Return a history that is often right, and often nearly right."""
    found: list[Operation] = []
    time = 0
    for _ in range(random.randrange(1, 7)):
        time += random.choice((0, 1, 3))
        end = time + random.choice((0, 2, 5))
        job = random.choice((1, 2))
        match random.randrange(5):
            case 0 | 1:
                request = random.choice((1, 2, job))
                found.append(submitted(time, end, request, job))
            case 2:
                request = random.choice((1, 2))
                found.append(lost(time, "submit", "a", request))
            case 3:
                reply = random.choice((ABSENT, RUNNING, RUNNING, FINISHED, CANCELLED))
                found.append(done(time, end, "status", job, reply=reply))
            case _:
                state = random.choice(("cancelled", "finished"))
                found.append(done(time, end, "cancel", "a", 9, job, reply=("state", state)))
    return found


def test_cutting_by_job_says_the_same_as_one_search_over_all_jobs() -> None:
    random = Random(7)
    verdicts = {True: 0, False: 0}
    for _ in range(3_000):
        history = random_history(random)
        named = {each.reply for each in history if each.call[0] == "submit" and each.reply}
        requests = {each.call[2] for each in history if each.reply in named}
        # A lost submit whose id no answer names may have made any job: the cutting leaves
        # it out, and then a status of that job has nobody who made it.
        history = [
            each
            for each in history
            if each.call[0] != "submit" or each.reply is not None or each.call[2] in requests
        ]
        cut = not check_history(history)
        whole = check(history, StoreModel()).is_linearizable
        assert cut == whole, [each.describe() for each in history]
        verdicts[whole] += 1
    assert min(verdicts.values()) > 300, verdicts


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
