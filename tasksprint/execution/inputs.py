"""Where the inputs of tasks are, and how missing ones come here.

Knows this client's own results (digests and sizes), copies of other clients' results, here or
under way, and the tasks that wait for either. Knows nothing of nodes, nor of the later life of
a task whose inputs are all here.

An input is named in one of three ways:

- without a digest: another assignment makes it here, ahead of need. It is here as soon as a
  node has answered, stored or not;
- with the digest of a result that is held here: it is here;
- with another digest: it is fetched from one of its holders, as soon as the view names them.
  The fetch doesn't wait for the task's other inputs ("rolling").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

from tasksprint.coordination.view import Input
from tasksprint.encoding import result_digest
from tasksprint.execution.effects import (
    Effect,
    FetchInputs,
    FetchRequest,
    HeldResult,
    Manifest,
    Note,
    ReleaseCopies,
)
from tasksprint.execution.records import ClientTask, Copy, CopyKey, KeptResult, Key, describe_keys
from tasksprint.execution.timers import Timers
from tasksprint.ids import ClientId, JobId, TaskId
from tasksprint.settings import Settings

__all__ = ["Inputs"]

# The least number of results in one request, if so many are wanted: a request costs more than
# a small value in it.
_BATCH_MIN = 16


class _Fetch:
    """A FetchInputs under way."""

    __slots__ = ("cid", "unanswered")

    def __init__(self, cid: ClientId, unanswered: int) -> None:
        self.cid = cid
        self.unanswered = unanswered  # requests in it


class Inputs:
    """Results held, copies fetched, and the tasks that wait for either."""

    def __init__(
        self,
        *,
        cid: ClientId,
        settings: Settings,
        timers: Timers,
        outbox: list[Effect],
        tasks: Mapping[Key, ClientTask],
        held: Iterable[HeldResult],
        lost: Callable[[Key], None],
    ) -> None:
        """Begin with the results that the store holds.

        Args:
            cid: This client.
            tasks: All assignments, to see whether a value is still being made here.
            held: The results in the store.
            lost: Called with a result that its holder no longer has.
        """
        self.cid = cid
        self.now_ms = 0  # of the last event; set by the workbench
        self._settings = settings
        self._timers = timers
        self._outbox = outbox
        self._tasks = tasks
        self._lost = lost
        self._held: dict[JobId, dict[TaskId, KeptResult]] = {}
        for one in held:
            result = KeptResult(0, one.digest, None, is_stored=True)
            self._held.setdefault(one.job, {})[one.tid] = result
        # Tasks that wait for a value which is made here, or may yet be.
        self._local: dict[Key, dict[Key, ClientTask]] = {}
        self._copies: dict[CopyKey, Copy] = {}
        self._copy_bytes = 0  # of all copies here that some task needs
        self._consuming: dict[Key, ClientTask] = {}  # tasks with copies; all inputs are here
        self._queues: dict[ClientId, dict[CopyKey, Copy]] = {}  # to be asked for, by holder
        self._under_way: dict[ClientId, int] = {}  # FetchInputs, by holder
        self._fetches: dict[int, _Fetch] = {}
        self._last_fetch = 0
        self._released: list[CopyKey] = []

    # --- results made here -----------------------------------------------------------

    def held(self, job: JobId, tid: TaskId) -> KeptResult | None:
        """The result of this task that this client made and keeps, or None."""
        of_job = self._held.get(job)
        return of_job.get(tid) if of_job is not None else None

    def held_results(self) -> list[tuple[JobId, TaskId, str]]:
        """Return (job, tid, digest) of every stored result; a joining client names them."""
        return [
            (job, tid, held.digest)
            for job, of_job in self._held.items()
            for tid, held in of_job.items()
            if held.is_stored
        ]

    def add_held(self, job: JobId, tid: TaskId, held: KeptResult) -> list[ClientTask]:
        """Keep a result that was just made; return the tasks that waited for it alone."""
        of_job = self._held.get(job)
        if of_job is None:
            of_job = self._held[job] = {}
        of_job[tid] = held
        waiting = self._local.pop((job, tid), None)
        if waiting is None:
            return []
        complete: list[ClientTask] = []
        for key, task in waiting.items():
            wanted = task.pending[tid]
            if wanted is None or wanted == held.digest:
                copy = task.copies.pop(tid, None)
                if copy is not None:
                    self._leave_copy(task, copy)
                if self._satisfy(task, tid, held.digest):
                    complete.append(task)
            else:
                self._local.setdefault((job, tid), {})[key] = task
        return complete

    def drop_held(self, job: JobId, tid: TaskId, digest: str | None) -> bool:
        """Forget a result if it has this digest (None: any); False: there is none."""
        of_job = self._held.get(job)
        held = of_job.get(tid) if of_job is not None else None
        if of_job is None or held is None or digest not in (None, held.digest):
            return False
        del of_job[tid]
        if not of_job:
            del self._held[job]
        return True

    def drop_job(self, job: JobId, keep: tuple[TaskId, ...]) -> bool:
        """Forget the results of a job but for those in `keep`; False: there was none to forget."""
        of_job = self._held.pop(job, None)
        if of_job is None:
            return False
        kept = {tid: of_job[tid] for tid in keep if tid in of_job}
        if kept:
            self._held[job] = kept
        return len(kept) < len(of_job)

    # --- inputs of tasks -------------------------------------------------------------

    def resolve(self, task: ClientTask) -> None:
        """Find out which of the task's inputs are here, and ask for the rest.

        Fills `task.pending`, `task.digests` and `task.copies`; they must be empty before.
        """
        assignment = task.assignment
        job = assignment.job
        wanted: dict[TaskId, list[Input]] = {}
        for item in assignment.inputs:
            wanted.setdefault(item.tid, []).append(item)
        for tid, items in wanted.items():
            item = items[0]
            pretask: Key = (job, tid)
            held = self.held(job, tid)
            if item.digest is None:
                # If the pretask has an unfinished assignment here, wait for its value. The
                # held one is of an older attempt, and would only make this attempt void.
                if held is not None and pretask not in self._tasks:
                    task.digests[tid] = held.digest
                    continue
                task.pending[tid] = None
                self._local.setdefault(pretask, {})[task.key] = task
            elif held is not None and held.digest == item.digest:
                task.digests[tid] = item.digest
            else:
                task.pending[tid] = item.digest
                self._local.setdefault(pretask, {})[task.key] = task
                if self.cid in item.holders:
                    self._lost(pretask)
                self._want(task, item, [one.key for one in items])
        if task.pending:
            self._consuming.pop(task.key, None)
        elif task.copies:
            self._consuming[task.key] = task

    def release(self, task: ClientTask) -> None:
        """Undo `resolve`: the task no longer needs its inputs."""
        for tid in task.pending:
            self._stop_waiting_here(task, tid)
        task.pending.clear()
        task.digests.clear()
        self._consuming.pop(task.key, None)
        for copy in task.copies.values():
            self._leave_copy(task, copy)
        task.copies.clear()

    def find_missing_key(self, task: ClientTask) -> str | None:
        """Return an error's text if a pretask has no value under the wanted key, else None.

        To be called once all inputs are here. If a result was made before this start, its
        keys aren't known. Then the shell finds out (`run_refused`).
        """
        job = task.assignment.job
        for item in task.assignment.inputs:
            keys: Iterable[str] | None
            copy = task.copies.get(item.tid)
            if copy is not None:
                keys = copy.keys
            else:
                held = self.held(job, item.tid)
                keys = held.keys if held is not None else None
            if keys is not None and item.key not in keys:
                return (
                    f"{task} needs the value {item.key!r} of task {item.tid}, "
                    f"which returned {describe_keys(sorted(keys))}"
                )
        return None

    def arguments(self, task: ClientTask) -> tuple[tuple[TaskId, str, str], ...] | None:
        """Return (tid, key, digest) of each argument; None: one is no longer here."""
        job = task.assignment.job
        for tid, digest in task.digests.items():
            if tid not in task.copies:
                held = self.held(job, tid)
                if held is None or held.digest != digest:
                    return None
        digests = task.digests
        return tuple([(item.tid, item.key, digests[item.tid]) for item in task.assignment.inputs])

    def made_here(self, task: ClientTask) -> tuple[Key, ...]:
        """The pretasks whose values the task took from this client's own results."""
        job = task.assignment.job
        return tuple([(job, tid) for tid in task.digests if tid not in task.copies])

    def discredit(self, task: ClientTask, tid: TaskId) -> list[ClientTask]:
        """Forget an input that the shell couldn't find; return all tasks that relied on it."""
        copy = task.copies.get(tid)
        if copy is None:
            job = task.assignment.job
            if self.drop_held(job, tid, task.digests.get(tid)):
                self._lost((job, tid))
            return [task]
        self._copy_bytes -= copy.size_bytes
        copy.size_bytes = 0
        copy.present.clear()
        copy.keys = None
        return list(copy.users.values())

    # --- fetching --------------------------------------------------------------------

    def fetched(
        self, job: JobId, tid: TaskId, digest: str, manifest: Manifest
    ) -> list[ClientTask]:
        """Note that the values asked for are in the shell's cache.

        Returns:
            The tasks that waited for this alone.
        """
        copy = self._copies.get((job, tid, digest))
        if copy is None or copy.fetch is None:
            self._released.append((job, tid, digest))
            return []
        assert result_digest(list(manifest)) == digest
        self._answer(copy)
        copy.tried.clear()
        copy.pause_ms = 0
        if copy.keys is None:
            copy.sizes = {key: size for key, _, size, _ in manifest}
            copy.keys = frozenset(copy.sizes)
        for key in copy.requested:
            if key in copy.keys and key not in copy.present:
                copy.present.add(key)
                copy.size_bytes += copy.sizes[key]
                self._copy_bytes += copy.sizes[key]
        copy.requested = ()
        if not copy.users:
            self._forget(copy)
            return []
        if copy.wanted:
            self._enqueue(copy)
            return []
        complete: list[ClientTask] = []
        for task in copy.users.values():
            if task.pending.get(tid) != digest:
                continue
            self._stop_waiting_here(task, tid)
            if self._satisfy(task, tid, digest):
                complete.append(task)
        return complete

    def fetch_failed(
        self, job: JobId, tid: TaskId, digest: str, cid: ClientId, reason: str
    ) -> None:
        """Try another holder, or the same ones after a pause that grows.

        A holder may answer that it doesn't have these bytes. Then it says so in a report of its
        own, too (`Workbench.result_missing`). And the coordinator finds dead holders. Both come
        here as a view with other holders.
        """
        copy = self._copies.get((job, tid, digest))
        if copy is None or copy.fetch is None:
            return
        self._answer(copy)
        copy.wanted = dict.fromkeys([*copy.requested, *copy.wanted])
        copy.requested = ()
        if not copy.users:
            self._forget(copy)
            return
        if not copy.tried and not copy.pause_ms:
            # Say so once for a result, and not for each try.
            self._outbox.append(
                Note(f"job={job} tid={tid} holder={cid} couldn't be fetched: {reason}")
            )
        copy.tried.add(cid)
        self._enqueue(copy)

    def plan(self) -> None:
        """Ask the holders for the wanted values, as far as the limits allow."""
        # In this order: a copy that is wanted again is released first, and then pinned.
        if self._released:
            self._outbox.append(ReleaseCopies(tuple(self._released)))
            self._released.clear()
        if self._queues:
            self._plan_fetches()

    def summary(self) -> dict[str, int]:
        """Return counts for people."""
        return {
            "held": sum(map(len, self._held.values())),
            "copies": len(self._copies),
            "copy_bytes": self._copy_bytes,
            "fetches": len(self._fetches),
        }

    def check(self) -> None:
        """Assert the invariants."""
        assert self._copy_bytes == sum(copy.size_bytes for copy in self._copies.values())
        unanswered: dict[int, int] = {}
        for copy_key, copy in self._copies.items():
            assert copy.copy_key == copy_key
            tid = copy_key[1]
            assert copy.users or copy.fetch is not None, f"nobody needs the copy {copy_key}"
            assert (copy.fetch is not None) == bool(copy.requested)
            assert copy.fetch is None or copy.queued_at is None
            if copy.fetch is not None:
                unanswered[copy.fetch] = unanswered.get(copy.fetch, 0) + 1
            if copy.queued_at is not None:
                assert copy_key in self._queues[copy.queued_at]
                assert copy.wanted
            for task in copy.users.values():
                assert task.copies[tid] is copy
                if tid not in task.pending:
                    continue
                assert copy.wanted or copy.requested, f"{task.key} waits for a copy that is here"
        assert unanswered == {number: one.unanswered for number, one in self._fetches.items()}
        for cid, queue in self._queues.items():
            assert queue
            for copy in queue.values():
                assert copy.queued_at == cid
        assert len(self._fetches) <= self._settings.fetches_max
        assert sum(self._under_way.values()) == len(self._fetches)
        for key, waiting in self._local.items():
            assert waiting, f"empty list of tasks that wait for {key}"
            for task in waiting.values():
                assert key[1] in task.pending, f"{task.key} doesn't wait for {key}"
                assert self._tasks.get(task.key) is task

    # --- private ---------------------------------------------------------------------

    def _satisfy(self, task: ClientTask, tid: TaskId, digest: str) -> bool:
        """Note that an input is here; True: it was the last one."""
        del task.pending[tid]
        task.digests[tid] = digest
        if task.pending:
            return False
        if task.copies:
            self._consuming[task.key] = task
        return True

    def _stop_waiting_here(self, task: ClientTask, tid: TaskId) -> None:
        """Take the task off the list of those that wait for a value made here."""
        pretask: Key = (task.assignment.job, tid)
        waiting = self._local.get(pretask)
        if waiting is not None:
            waiting.pop(task.key, None)
            if not waiting:
                del self._local[pretask]

    def _leave_copy(self, task: ClientTask, copy: Copy) -> None:
        copy.users.pop(task.key, None)
        if not copy.users and copy.fetch is None:
            self._forget(copy)

    def _want(self, task: ClientTask, item: Input, keys: list[str]) -> None:
        """Make the task a user of a copy of this result, and see that it is fetched."""
        assert item.digest is not None
        copy_key = (task.assignment.job, item.tid, item.digest)
        copy = self._copies.get(copy_key)
        if copy is None:
            copy = self._copies[copy_key] = Copy(copy_key)
        copy.users[task.key] = task
        task.copies[item.tid] = copy
        holders = tuple([cid for cid in item.holders if cid != self.cid])
        if holders != copy.holders:
            copy.holders = holders
            copy.tried.intersection_update(holders)
            if copy.queued_at is not None and copy.queued_at not in holders:
                self._dequeue(copy)
        for key in keys:
            if key in copy.present or key in copy.requested:
                continue
            if copy.keys is None or key in copy.keys:
                copy.wanted[key] = None
        if copy.wanted:
            self._enqueue(copy)
        elif not copy.requested:
            self._stop_waiting_here(task, item.tid)
            self._satisfy(task, item.tid, item.digest)

    def _enqueue(self, copy: Copy) -> None:
        """Queue a copy at the best holder not tried yet, or begin a pause if there is none."""
        if copy.fetch is not None or copy.queued_at is not None:
            return
        best: ClientId | None = None
        best_load = 0
        for cid in copy.holders:
            if cid in copy.tried:
                continue
            load = len(self._queues.get(cid, ())) + self._under_way.get(cid, 0)
            if best is None or load < best_load:
                best, best_load = cid, load
        if best is not None:
            copy.queued_at = best
            self._queues.setdefault(best, {})[copy.copy_key] = copy
        elif copy.holders and not copy.is_paused:
            settings = self._settings
            copy.pause_ms = min(
                max(2 * copy.pause_ms, settings.fetch_pause_min_ms), settings.fetch_pause_max_ms
            )
            copy.is_paused = True
            self._timers.start(self.now_ms + copy.pause_ms, partial(self._end_pause, copy))

    def _dequeue(self, copy: Copy) -> None:
        assert copy.queued_at is not None
        queue = self._queues[copy.queued_at]
        del queue[copy.copy_key]
        if not queue:
            del self._queues[copy.queued_at]
        copy.queued_at = None

    def _end_pause(self, copy: Copy, _now_ms: int) -> None:
        copy.is_paused = False
        copy.tried.clear()
        if self._copies.get(copy.copy_key) is copy and copy.wanted:
            self._enqueue(copy)

    def _plan_fetches(self) -> None:
        settings = self._settings
        for cid in list(self._queues):
            queue = self._queues[cid]
            while queue and len(self._fetches) < settings.fetches_max:
                free = settings.fetches_per_peer_max - self._under_way.get(cid, 0)
                if free <= 0:
                    break
                if self._copy_bytes < settings.value_cache_bytes_max:
                    count = max(_BATCH_MIN, -(-len(queue) // free))
                elif not self._fetches and not self._consuming:
                    # Too much is here already, but no task can run with it. Fetch one more
                    # at a time, the oldest first, until a task can run.
                    count = 1
                else:
                    break
                self._fetch(cid, queue, min(count, settings.fetch_batch_max))
            if not queue:
                del self._queues[cid]

    def _fetch(self, cid: ClientId, queue: dict[CopyKey, Copy], count: int) -> None:
        self._last_fetch += 1
        number = self._last_fetch
        requests: list[FetchRequest] = []
        for copy_key in list(islice(queue, count)):
            copy = queue.pop(copy_key)
            copy.queued_at = None
            copy.fetch = number
            copy.requested = tuple(copy.wanted)
            copy.wanted.clear()
            requests.append(FetchRequest(*copy_key, copy.requested))
        self._fetches[number] = _Fetch(cid, len(requests))
        self._under_way[cid] = self._under_way.get(cid, 0) + 1
        self._outbox.append(FetchInputs(cid, tuple(requests)))

    def _answer(self, copy: Copy) -> None:
        """Count the answer to one request of a fetch; the last one ends it."""
        assert copy.fetch is not None
        fetch = self._fetches[copy.fetch]
        fetch.unanswered -= 1
        if not fetch.unanswered:
            del self._fetches[copy.fetch]
            self._under_way[fetch.cid] -= 1
            if not self._under_way[fetch.cid]:
                del self._under_way[fetch.cid]
        copy.fetch = None

    def _forget(self, copy: Copy) -> None:
        """Nobody needs this copy, and it isn't under way."""
        del self._copies[copy.copy_key]
        if copy.queued_at is not None:
            self._dequeue(copy)
        if copy.keys is not None:
            # Even if none of the values asked for exist: the shell keeps the manifest.
            self._copy_bytes -= copy.size_bytes
            self._released.append(copy.copy_key)
