"""The jobs of a cluster as people see them: the model, and how a history is cut for it.

Operations and their replies:

    ("submit", sender, request)          ("job", id)
    ("status", id)                       ("absent",), ("running",), or
                                         ("ended", state, what it ended with)
    ("cancel", sender, request, id)      ("absent",) or ("state", state)
    ("forget", sender, request, id)      ("absent",), ("running",) or ("forgotten",)
    ("list",)                            ((id, status), …), all jobs there are

A job ends by itself at any time, as finished or failed, and stays what it is from then
on; it is cancelled only by a cancel. One that has ended and is forgotten is absent again. A
request that is repeated is answered as it was the first time, and changes nothing.

What is verified, for a whole history (`check_history`):

1. A request has one id, and an id one request.
2. For each job: all operations on it are linearizable (`checker.check`).
3. The order of ids: jobs were made one after the other in the order of their ids. Each
   one's making lies between two times that the operations on it allow: after the first
   submit was invoked and the last answer "absent" was asked for (before anybody asked to
   forget it and wasn't refused), before the first answer that knows of the job.

Cutting by job is sound: operations on one job say nothing of another, but for the ids,
and they are (3). It loses nothing there: a job may be made at any time between its two
times whatever happens to it later, so (2) and (3) together are the same as one search
over all jobs, as long as none is forgotten.

Several tries of one request whose outcomes are unknown count as the first of them: what
a later one can do, that one can, and only one of them does anything.

It does lose this: a "list" is one look at all jobs at once, and is taken here as one status
of each job, at times of their own. And an answer "absent" after somebody asked to forget the
job says nothing of when it was made, even where no order has the forgetting before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from tests.linearizability.checker import Operation, check

__all__ = [
    "ABSENT",
    "FORGOTTEN",
    "RUNNING",
    "JobModel",
    "JobState",
    "check_history",
    "job_histories",
]

ABSENT = ("absent",)
RUNNING = ("running",)
FORGOTTEN = ("forgotten",)


@dataclass(frozen=True, slots=True)
class JobState:
    """One job, and what was said to the requests that cancel or forget it."""

    made_by: tuple[str, int] | None = None  # sender and request; None: not there
    status: tuple[Hashable, ...] = ABSENT
    # (sender, request): the reply
    replies: frozenset[tuple[tuple[str, int], tuple[Hashable, ...]]] = field(
        default_factory=frozenset
    )


class JobModel:
    """One job; ends that nobody has seen yet happen when they are seen."""

    initial = JobState()

    def step(self, state: JobState, operation: Operation) -> tuple[JobState, ...]:
        """Return where an operation may lead to."""
        match operation.call:
            case ("submit", str() as sender, int() as request):
                return self._submit(state, (sender, request))
            case ("status", _):
                return self._status(state, operation)
            case ("cancel" | "forget", str() as sender, int() as request, _):
                return self._once(state, (sender, request), operation)
            case _:
                raise AssertionError(f"not an operation on a job: {operation}")

    def is_idle(self, operation: Operation) -> bool:
        """Say yes for all: what was done stays done, and what is seen stays so."""
        return True

    def _submit(self, state: JobState, request: tuple[str, int]) -> tuple[JobState, ...]:
        # Submits of other requests are not in this history, unless they got this id too.
        if state.made_by is None:
            return (replace(state, made_by=request, status=RUNNING),)
        return (state,) if state.made_by == request else ()

    def _status(self, state: JobState, operation: Operation) -> tuple[JobState, ...]:
        if operation.returned is None or operation.reply == state.status:
            return (state,)
        assert isinstance(operation.reply, tuple)
        seen: tuple[Hashable, ...] = operation.reply
        match seen:
            case ("ended", "finished" | "failed", _):
                was_running = state.status == RUNNING
            case _:
                was_running = False
        # A cancel says how a job ended, but not with what.
        is_more = state.status == (*seen[:2], None)
        return (replace(state, status=seen),) if was_running or is_more else ()

    def _once(
        self, state: JobState, request: tuple[str, int], operation: Operation
    ) -> tuple[JobState, ...]:
        before = dict(state.replies).get(request)
        if before is not None:
            is_same = operation.returned is None or operation.reply == before
            return (state,) if is_same else ()
        found: list[tuple[tuple[Hashable, ...], tuple[Hashable, ...]]] = []  # reply, status
        if operation.call[0] == "forget":
            if state.status == ABSENT:
                found.append((ABSENT, ABSENT))
            else:
                if state.status == RUNNING:
                    found.append((RUNNING, RUNNING))
                # (It may have ended just before, by itself.)
                found.append((FORGOTTEN, ABSENT))
        elif state.status == ABSENT:
            found.append((ABSENT, ABSENT))
        elif state.status == RUNNING:
            found.append((("state", "cancelled"), ("ended", "cancelled", None)))
            for name in ("finished", "failed"):  # It had ended just before.
                found.append((("state", name), ("ended", name, None)))
        else:
            found.append((("state", state.status[1]), state.status))
        return tuple(
            [
                replace(state, status=status, replies=state.replies | {(request, reply)})
                for reply, status in found
                if operation.returned is None or operation.reply == reply
            ]
        )


def check_history(operations: Sequence[Operation]) -> list[str]:
    """Return everything that is wrong with a history of a whole cluster; nothing: none."""
    wrong: list[str] = []
    ids: dict[tuple[str, int], int] = {}
    for operation in operations:
        match operation.call, operation.reply:
            case ("submit", str() as sender, int() as request), ("job", int() as job):
                known = ids.setdefault((sender, request), job)
                if known != job:
                    wrong.append(f"request {request} of {sender} is job {known} and job {job}")
    histories = job_histories(operations)
    for job, history in sorted(histories.items()):
        verdict = check(history, JobModel())
        if not verdict.is_linearizable:
            wrong.append(f"job {job}: {verdict.describe()}")
    wrong += _check_ids(histories)
    return wrong


def job_histories(operations: Sequence[Operation]) -> dict[int, list[Operation]]:
    """Cut a history into one for each job.

    A submit of unknown outcome goes to the job that another try of the same request was
    answered with; without any, it had no effect that anybody saw.
    """
    ids: dict[tuple[Hashable, Hashable], int] = {}
    found: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        match operation.call, operation.reply:
            case ("submit", sender, request), ("job", int() as job):
                ids[sender, request] = job
                found[job].append(operation)
            case ("status", int() as job), _:
                found[job].append(operation)
            case ("cancel" | "forget", _, _, int() as job), _:
                found[job].append(operation)
    for operation in operations:
        match operation.call, operation.reply:
            case ("submit", sender, request), None if (sender, request) in ids:
                found[ids[sender, request]].append(operation)
            case ("list",), tuple() as listed:
                # An id that no answer named stays out: its submit isn't known.
                statuses = dict(listed)
                for job, history in found.items():
                    seen = statuses.get(job, ABSENT)
                    call = ("status", job)
                    history.append(replace(operation, call=call, reply=seen))
    return {job: _first_tries(history) for job, history in found.items()}


def _first_tries(history: list[Operation]) -> list[Operation]:
    """Leave out tries of unknown outcome but the first one of each request."""
    tried: set[tuple[Hashable, ...]] = set()
    found: list[Operation] = []
    for operation in sorted(history, key=lambda each: each.invoked):
        if operation.returned is None:
            if operation.call[0] == "status" or operation.call in tried:
                continue
            tried.add(operation.call)
        found.append(operation)
    return found


def _asked_first(operation: Operation, history: list[Operation]) -> int:
    """Return when the operation was invoked, or the first of those that it repeats."""
    if operation.call[0] == "status":
        return operation.invoked
    return min(each.invoked for each in history if each.call == operation.call)


def _check_ids(histories: dict[int, list[Operation]]) -> list[str]:
    """Check that the jobs can have been made in the order of their ids."""
    latest, latest_job = None, 0
    for job, history in sorted(histories.items()):
        submits = [each.invoked for each in history if each.call[0] == "submit"]
        if not submits:
            continue
        refused = {each.call for each in history if each.reply in (ABSENT, RUNNING)}
        forgets = [
            each.invoked
            for each in history
            if each.call[0] == "forget" and each.call not in refused
        ]
        denied = [
            _asked_first(each, history)
            for each in history
            if each.reply == ABSENT
            and each.returned is not None
            and not (forgets and min(forgets) <= each.returned)
        ]
        knows = [
            each.returned
            for each in history
            if each.returned is not None and each.reply not in (ABSENT, None)
        ]
        begin = max([min(submits), *denied])
        if latest is None or begin > latest:
            latest, latest_job = begin, job
        # One that was known before its own making is (2)'s to tell.
        if knows and min(knows) < latest and latest_job != job:
            return [
                f"job {job} was known at {min(knows)}, but job {latest_job}, which has a "
                f"smaller id, wasn't made before {latest}"
            ]
    return []
