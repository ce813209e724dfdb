"""Which client runs which task: a deterministic rule over replicated facts alone.

**Load.** A task counts in its client's queue with the estimated run time of its name, at
least Rules.task_us_min and at most Rules.ahead_us: one slot's worth of queue. A task of
that length, or of unknown length, is *heavy*: it needs a slot of its own. The others are
*light*. A client is open to heavy tasks while it has fewer of them than slots, and open
to light ones while its queue is shorter than Rules.ahead_us for each slot; so a long
task never waits behind an endless queue of short ones, nor a short one for a long one.

**Choice.** The open client that holds the most bytes of the inputs; else the one with
the shortest queue for each slot; among equals the one with fewest tasks, then the lowest
cid. A client on which the task failed last comes after all others. Ready tasks go out by
tid within a job, and round robin between jobs.

**Ahead of need.** Once all ready tasks that can be placed are placed, a light task may
follow an input that is still being made to the same client, if its other inputs are
done or being made there too. At most one dependent follows each task, and their loads are
counted apart from those that can run (`ahead_us`), with an allowance of the same size;
so chains are handed out by the hundred and keep no slot from other work. Followers are
chosen in the order in which their inputs were placed, so that several chains share.

**Attached nodes.** Tasks of a job whose nodes people attach by hand go only to clients
that have such nodes, and are counted by name, apart from the slots: one for each node if
they are heavy, else as many as take Rules.ahead_us; none is placed ahead of need.

Everything here is a function of replicated state and the order of commands: the heaps hold
no decision of their own and are built anew when a replica restarts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from heapq import heapify, heappop, heappush, heapreplace

from tasksprint.coordination.clients import Client
from tasksprint.coordination.jobs import Job, Task
from tasksprint.coordination.state import State
from tasksprint.coordination.task_states import ASSIGNED, DONE, READY, WAITING
from tasksprint.coordination.view import Stop
from tasksprint.ids import ClientId, JobId

__all__ = ["Placement"]

# Of a task's dependents so many are looked at for one that may follow it …
FOLLOWERS_SEEN_MAX = 8
# … and one with more inputs that aren't done than this waits until they are.
PENDING_AHEAD_MAX = 16
# Loads are divided by slots as integers of this unit.
FINENESS = 64
# Heaps are rebuilt when stale entries outnumber clients so far.
STALE_ENTRIES_MAX = 64
# Estimates are kept for so many names of a job; tasks of further names count as unknown.
NAMES_MAX = 10_000


class Placement:
    """Places ready tasks, and takes tasks from clients; see the module."""

    __slots__ = (
        "_ahead_us",
        "_assigned_max",
        "_attached",
        "_attached_heaps",
        "_extendable",
        "_heavies",
        "_lights",
        "_loosened",
        "_queues",
        "_state",
        "_task_us_min",
        "_tries",
    )

    def __init__(self, state: State) -> None:
        """Take up the state as it is, be it empty or restored."""
        self._state = state
        self.take_limits()
        self._lights: list[tuple[int, int, int]] = []
        self._heavies: list[tuple[int, int, int]] = []
        # Of this entry: clients whose queue became shorter (or who came), those in which a
        # follower may be placed, and the names (None: no attached nodes) of which ready tasks
        # may find a client now. Empty between entries.
        self._loosened: dict[Client, None] = {}
        self._extendable: dict[Client, None] = {}
        self._tries: dict[str | None, None] = {}
        # Living clients by the names of the nodes that are attached to them, and a heap of
        # their entries for each name.
        self._attached: dict[str, dict[ClientId, Client]] = {}
        self._attached_heaps: dict[str, list[tuple[int, int]]] = {}
        # Jobs with ready tasks, sorted: by the name of their attached nodes (None: they have
        # none), and by whether the first of these tasks is light (1) or heavy (0), or for
        # attached nodes by how many of its kind one may have. So all that stand in one queue
        # find a client, or none does.
        self._queues: dict[str | None, dict[int, list[JobId]]] = {}
        for job in state.running.values():
            job.ready = sorted(task.tid for task in job.tasks.values() if task.state == READY)
            self._requeue(job)
        for client in state.clients.values():
            self._enter(client)
            self._index_attached(client)

    def take_limits(self) -> None:
        """Keep to the limits of the state's rules, which are other ones.

        Queues and counts rest on `ahead_us` and `task_us_min`: rules that raise others have the
        same (tests/coordination/test_rules.py).
        """
        rules = self._state.rules
        self._ahead_us = rules.ahead_us
        self._task_us_min = rules.task_us_min
        self._assigned_max = rules.assigned_max

    # --- what happens to tasks ---

    def make_ready(self, task: Task) -> None:
        """Queue a task whose inputs are all done."""
        job = task.job
        job.counts[task.state] -= 1
        job.counts[READY] += 1
        task.state = READY
        heappush(job.ready, task.tid)
        if len(job.ready) > 2 * job.counts[READY] + STALE_ENTRIES_MAX:
            job.ready = sorted(
                tid
                for tid in dict.fromkeys(job.ready)
                if (one := job.tasks.get(tid)) is not None and one.state == READY
            )
        self._state.changes.tasks[task] = None
        self._state.changes.jobs[job] = None

    def input_done(self, task: Task) -> None:
        """Note that an assigned task can run: the last of its inputs came to exist."""
        assert task.cid is not None
        client = self._state.clients[task.cid]
        client.ahead_us -= task.load_us
        client.queued_us += task.load_us
        self._extendable[client] = None

    def may_follow(self, task: Task) -> None:
        """Look again for a follower of an assigned task, which got a new dependent."""
        if task.state == ASSIGNED and not task.ahead and not task.may_extend:
            assert task.cid is not None
            client = self._state.clients[task.cid]
            self._may_extend(task, client)
            self._state.changes.tasks[task] = None

    def take_done(self, task: Task) -> None:
        """Take a task from the client that has completed the current attempt.

        What was placed ahead on it stays: its input exists there now.
        """
        self._take(task)

    def take_back(self, task: Task, *, is_told: bool) -> None:
        """Take a task from its client, with all that was placed there ahead on it.

        Args:
            is_told: Whether the client must be told to stop; not, if it said itself that
                the attempt has ended, or is dead. What was placed ahead is told always,
                unless the client is dead.
        """
        state = self._state
        stack = [task]
        while stack:
            one = stack.pop()
            if one.state != ASSIGNED:
                continue
            assert one.cid is not None
            client = state.clients[one.cid]
            if client.is_alive and (is_told or one is not task):
                stop = Stop(one.job.job, one.tid, one.attempt)
                client.changes.stops.append((state.slot, stop))
                state.changes.views[client.cid] = None
            if one.ahead:
                tasks = one.job.tasks
                for tid in one.dependents or ():
                    dependent = tasks.get(tid)
                    if dependent is not None and dependent.state == ASSIGNED:
                        stack.append(dependent)
            self._take(one)
            if one.pending:
                self.make_waiting(one)
            else:
                self.make_ready(one)

    def make_waiting(self, task: Task) -> None:
        """Let a task, assigned to nobody, wait for its inputs."""
        job = task.job
        job.counts[task.state] -= 1
        job.counts[WAITING] += 1
        task.state = WAITING
        self._state.changes.tasks[task] = None
        self._state.changes.jobs[job] = None

    def _take(self, task: Task) -> None:
        assert task.cid is not None
        client = self._state.clients[task.cid]
        del client.changes.run[task]
        client.assigned -= 1
        if (name := task.job.attached) is not None:
            client.attached_tasks[name] -= 1
            if not client.attached_tasks[name]:
                del client.attached_tasks[name]
        if task.pending:
            client.ahead_us -= task.load_us
            tasks = task.job.tasks
            for tid in task.spec.pretasks:
                pretask = tasks[tid]
                if pretask.state != DONE:
                    pretask.ahead -= 1
        else:
            client.queued_us -= task.load_us
            if task.load_us >= self._ahead_us:
                client.heavy -= 1
        task.cid = None
        task.load_us = 0
        task.placed = 0
        task.may_extend = False
        self._loosened[client] = None
        self._extendable[client] = None

    def client_changed(self, client: Client) -> None:
        """Note that a client came, went, or has other slots or attached nodes."""
        self._loosened[client] = None

    def _index_attached(self, client: Client) -> None:
        entries = client.attached_entries
        for name in [name for name in entries if name not in client.attached]:
            del entries[name]
            clients = self._attached[name]
            del clients[client.cid]
            if not clients:
                del self._attached[name], self._attached_heaps[name]
        for name in client.attached:
            self._attached.setdefault(name, {})[client.cid] = client
            heap = self._attached_heaps.setdefault(name, [])
            if len(heap) > 2 * len(self._attached[name]) + STALE_ENTRIES_MAX:
                heap[:] = [
                    entry
                    for cid, one in self._attached[name].items()
                    if cid != client.cid and (entry := one.attached_entries[name]) is not None
                ]
                heapify(heap)
            entries[name] = entry = _attached_key(client, name)
            heappush(heap, entry)

    # --- at the end of an entry ---

    def settle(self) -> None:
        """Place what can be placed."""
        for client in self._loosened:
            self._enter(client)
            self._tries[None] = None
            if client.attached_entries or client.attached:
                self._index_attached(client)
                for name in client.attached:
                    self._tries[name] = None
        self._loosened.clear()
        changes = self._state.changes
        for job in changes.jobs:
            self._requeue(job)
        for job in changes.forgotten:  # It may have ended in this very entry.
            self._requeue(job)
        if self._tries:
            self._place_ready()
            self._tries.clear()
        if self._extendable:
            for client in self._extendable:
                if client.extend:
                    self._extend(client)
            self._extendable.clear()

    def _requeue(self, job: Job) -> None:
        """Put a job into the queue where its first ready task belongs, or into none."""
        queue: tuple[str | None, int] | None = None
        if job.is_running:
            ready = job.ready
            tasks = job.tasks
            while ready:
                task = tasks.get(ready[0])
                if task is not None and task.state == READY:
                    queue = (job.attached, self._depth(job, task.spec.name))
                    self._tries[job.attached] = None
                    break
                heappop(ready)
        before = job.queue
        if queue == before:
            return
        if before is not None:
            queues = self._queues[before[0]]
            jobs = queues[before[1]]
            del jobs[bisect_left(jobs, job.job)]
            if not jobs:
                del queues[before[1]]
                if not queues:
                    del self._queues[before[0]]
        job.queue = queue
        if queue is not None:
            name, depth = queue
            insort(self._queues.setdefault(name, {}).setdefault(depth, []), job.job)

    def _depth(self, job: Job, name: str) -> int:
        """Return by what `_queues` tells jobs apart whose first ready task has this name."""
        load_us = self._load_us(job, name)
        if job.attached is None:
            return int(load_us < self._ahead_us)
        return self._ahead_us // load_us

    def _place_ready(self) -> None:
        """Give out ready tasks, round robin between jobs, until no client is open to any."""
        state = self._state
        running = state.running
        closed: set[tuple[str | None, int]] = set()
        is_new = True
        while True:
            if is_new:
                queues = [
                    (jobs, (name, depth))
                    for name in self._tries
                    for depth, jobs in self._queues.get(name, {}).items()
                    if (name, depth) not in closed
                ]
                is_new = False
                if not queues:
                    return
            last_job = state.last_job
            chosen = (2, JobId(0))
            for jobs, queue in queues:
                turn = bisect_right(jobs, last_job)
                found = (0, jobs[turn]) if turn < len(jobs) else (1, jobs[0])
                if found < chosen:
                    chosen, place = found, queue
            job = running[chosen[1]]
            ready = job.ready
            task = job.tasks[ready[0]]
            task_name = task.spec.name
            name, depth = place
            if name is not None:
                client = self._choose_attached(task, name, depth)
                load_us = 1  # It takes nothing from the client's own nodes.
            else:
                load_us = self._load_us(job, task_name)
                client = self._choose(task, load_us >= self._ahead_us)
            if client is None:
                closed.add(place)  # Its jobs wait; others may have tasks of another weight.
                is_new = True
                continue
            heappop(ready)
            self._assign(task, client, load_us)
            state.last_job = job.job
            if ready:
                after = job.tasks.get(ready[0])
                if after is not None and after.spec.name is task_name and after.state == READY:
                    continue
            self._requeue(job)
            is_new = is_new or job.queue != place

    def _load_us(self, job: Job, name: str) -> int:
        estimate_us = job.estimates_us.get(name)
        if estimate_us is None or estimate_us > self._ahead_us:
            return self._ahead_us
        return estimate_us if estimate_us > self._task_us_min else self._task_us_min

    def _assign(self, task: Task, client: Client, load_us: int) -> None:
        state = self._state
        job = task.job
        job.counts[task.state] -= 1
        job.counts[ASSIGNED] += 1
        task.state = ASSIGNED
        task.attempt += 1
        task.cid = client.cid
        task.load_us = load_us
        state.placements = task.placed = state.placements + 1
        client.assigned += 1
        if (name := job.attached) is not None:
            client.attached_tasks[name] = client.attached_tasks.get(name, 0) + 1
        if task.pending:
            client.ahead_us += load_us
            tasks = job.tasks
            for tid in task.spec.pretasks:
                pretask = tasks[tid]
                if pretask.state != DONE:
                    pretask.ahead += 1
        else:
            client.queued_us += load_us
            if load_us >= self._ahead_us:
                client.heavy += 1
        client.changes.run[task] = state.slot
        changes = state.changes
        changes.tasks[task] = None
        changes.views[client.cid] = None
        changes.jobs[job] = None
        if task.users and not task.ahead:
            self._may_extend(task, client)

    def _may_extend(self, task: Task, client: Client) -> None:
        extend = client.extend
        if len(extend) > 2 * client.assigned + STALE_ENTRIES_MAX:
            extend[:] = [
                (placed, one) for placed, one in extend if one.placed == placed and one.may_extend
            ]
            heapify(extend)
        task.may_extend = True
        heappush(extend, (task.placed, task))
        self._extendable[client] = None

    def check(self) -> None:
        """Assert that the indexes say what the state says, and that nothing more can be placed."""
        running = self._state.running
        queued = {
            (name, depth, job): None
            for name, queues in self._queues.items()
            for depth, jobs in queues.items()
            for job in jobs
        }
        assert all(jobs and jobs == sorted(jobs) for queues in self._queues.values()
                   for jobs in queues.values())  # fmt: skip
        expected: dict[tuple[str | None, int, JobId], None] = {}
        for job in running.values():
            ready = [tid for tid, task in job.tasks.items() if task.state == READY]
            if ready:
                task = job.tasks[ready[0]]
                assert job.queue == (job.attached, self._depth(job, task.spec.name)), job.queue
                name, depth = job.queue
                expected[name, depth, job.job] = None
            else:
                assert job.queue is None
        assert sorted(queued, key=repr) == sorted(expected, key=repr)
        clients = self._state.clients.values()
        names: dict[str, dict[ClientId, Client]] = {}
        for client in clients:
            assert sorted(client.attached) == sorted(client.attached_entries)
            for attached in client.attached:
                names.setdefault(attached, {})[client.cid] = client
        assert self._attached == names
        assert sorted(self._attached_heaps) == sorted(names)
        for name, queues in self._queues.items():
            for depth in queues:
                if name is None:
                    is_open = any(self._is_open(client, not depth) for client in clients)
                else:
                    is_open = any(
                        client.assigned < self._assigned_max
                        and _attached_key(client, name)[0] < depth * FINENESS
                        for client in names.get(name, {}).values()
                    )
                assert not is_open, f"ready tasks of {name!r} could be placed"

    # --- the choice of a client ---

    def _choose(self, task: Task, is_heavy: bool) -> Client | None:
        """Return the client for a task; None if none is open to it."""
        best = self._least_loaded(is_heavy)
        if best is None:
            return None
        avoided = task.failed_on
        if task.spec.pretasks:
            near = self._nearest(task, is_heavy)
            if near is not None and near.cid != avoided:
                return near
        if best.cid == avoided:
            return self._second_least_loaded(is_heavy) or best
        return best

    def _choose_attached(self, task: Task, name: str, depth: int) -> Client | None:
        """Return the client with attached nodes for a task; None if none is open to it.

        Args:
            depth: Tasks like this one that a node may have.
        """
        best: Client | None = None
        best_rank = (0, 0, 0)
        for cid, size_bytes in self._held(task).items():
            client = self._state.clients[cid]
            if cid == task.failed_on or name not in client.attached:
                continue
            if client.assigned >= self._assigned_max:
                continue
            load, _ = _attached_key(client, name)
            rank = (-size_bytes, load, cid)
            if load < depth * FINENESS and (best is None or rank < best_rank):
                best, best_rank = client, rank
        if best is None:
            best = self._least_attached(name, depth)
            if best is not None and best.cid == task.failed_on:
                heap = self._attached_heaps[name]
                top = heappop(heap)
                best = self._least_attached(name, depth) or best
                heappush(heap, top)
        return best

    def _least_attached(self, name: str, depth: int) -> Client | None:
        """Return the client with the least to do for each attached node, if it is open.

        As for `_least_loaded`, the entries on top may be of before more was assigned.
        """
        heap = self._attached_heaps.get(name)
        clients = self._attached.get(name, {})
        while heap:
            entry = heap[0]
            client = clients.get(ClientId(entry[1]))
            if client is None or client.attached_entries.get(name) is not entry:
                heappop(heap)
                continue
            if client.assigned >= self._assigned_max:
                heappop(heap)  # It comes back when it has less to do.
                client.attached_entries[name] = None
                continue
            key = _attached_key(client, name)
            if key == entry:
                return client if key[0] < depth * FINENESS else None
            heapreplace(heap, key)
            client.attached_entries[name] = key
        return None

    def _held(self, task: Task) -> dict[ClientId, int]:
        """Return how many bytes of a task's inputs each client holds, of those that hold any."""
        held: dict[ClientId, int] = {}
        tasks = task.job.tasks
        for tid in task.spec.pretasks:
            pretask = tasks[tid]
            for cid in pretask.holders:
                # One more: the holder of an empty value saves a request, too.
                held[cid] = held.get(cid, 0) + pretask.size_bytes + 1
        return held

    def _nearest(self, task: Task, is_heavy: bool) -> Client | None:
        """Return the open client that holds most bytes of the inputs, if one holds any."""
        best: Client | None = None
        best_rank = (0, 0, 0, 0)
        for cid, size_bytes in self._held(task).items():
            client = self._state.clients[cid]
            if cid == task.failed_on or not self._is_open(client, is_heavy):
                continue
            load, count, _ = self._key(client, is_heavy)
            rank = (-size_bytes, load, count, cid)
            if best is None or rank < best_rank:
                best, best_rank = client, rank
        return best

    def _is_open(self, client: Client, is_heavy: bool) -> bool:
        if not client.is_alive or client.assigned >= self._assigned_max:
            return False
        if is_heavy:
            return client.heavy < client.slots
        return client.queued_us < self._ahead_us * client.slots

    def _key(self, client: Client, is_heavy: bool) -> tuple[int, int, int]:
        """Return how loaded a client is; the open client with the lowest key is chosen.

        The first part alone decides whether the client is open (the limit on assigned
        tasks aside), so if the lowest isn't open, none is.
        """
        slots = client.slots
        queued = client.queued_us * FINENESS // slots
        if is_heavy:
            return (client.heavy * FINENESS // slots, queued, client.cid)
        return (queued, client.assigned * FINENESS // slots, client.cid)

    def _least_loaded(self, is_heavy: bool) -> Client | None:
        """Return the open client with the lowest key.

        Each open client has one valid entry, whose key is its own or a lower one from
        before more was assigned to it; those are corrected here, when they are on top.
        """
        heap = self._heavies if is_heavy else self._lights
        clients = self._state.clients
        while heap:
            entry = heap[0]
            client = clients.get(ClientId(entry[2]))
            if client is None or _entry(client, is_heavy) is not entry:
                heappop(heap)  # A newer one of this client is in the heap, or none.
                continue
            if not self._is_open(client, is_heavy):
                heappop(heap)  # It comes back when its queue has become shorter.
                self._set_entry(client, is_heavy, None)
                continue
            key = self._key(client, is_heavy)
            if key == entry:
                return client
            heapreplace(heap, key)
            self._set_entry(client, is_heavy, key)
        return None

    def _second_least_loaded(self, is_heavy: bool) -> Client | None:
        """Return the open client that comes after the one on top of the heap."""
        heap = self._heavies if is_heavy else self._lights
        top = heappop(heap)
        second = self._least_loaded(is_heavy)
        heappush(heap, top)
        return second

    @staticmethod
    def _set_entry(client: Client, is_heavy: bool, entry: tuple[int, int, int] | None) -> None:
        if is_heavy:
            client.heavy_entry = entry
        else:
            client.light_entry = entry

    def _enter(self, client: Client) -> None:
        """Put a client's entries into the heaps, as it is now."""
        for is_heavy in (False, True):
            entry = None
            if self._is_open(client, is_heavy):
                heap = self._heavies if is_heavy else self._lights
                if len(heap) > 2 * len(self._state.clients) + STALE_ENTRIES_MAX:
                    self._rebuild(is_heavy)
                entry = self._key(client, is_heavy)
                heappush(heap, entry)
            self._set_entry(client, is_heavy, entry)

    def _rebuild(self, is_heavy: bool) -> None:
        """Drop the stale entries of a heap."""
        heap = self._heavies if is_heavy else self._lights
        clients = self._state.clients
        heap[:] = [
            entry
            for entry in heap
            if (client := clients.get(ClientId(entry[2]))) is not None
            and _entry(client, is_heavy) is entry
        ]
        heapify(heap)

    # --- ahead of need ---

    def _extend(self, client: Client) -> None:
        """Place followers on a client while its allowance lasts."""
        changes = self._state.changes
        extend = client.extend
        limit_us = self._ahead_us * client.slots
        # Half of the places stay free for tasks that can run.
        count_max = self._assigned_max // 2
        while extend and client.ahead_us < limit_us and client.assigned < count_max:
            placed, task = heappop(extend)
            if task.placed != placed or not task.may_extend:
                continue  # It was taken back, or placed anew, since.
            task.may_extend = False
            changes.tasks[task] = None
            follower = self._find_follower(task, client)
            if follower is not None:
                load_us = self._load_us(follower.job, follower.spec.name)
                self._assign(follower, client, load_us)

    def _find_follower(self, task: Task, client: Client) -> Task | None:
        """Return the first dependent that may follow an assigned task to its client."""
        job = task.job
        if task.ahead or not task.users or job.attached is not None:
            return None
        tasks = job.tasks
        cid = client.cid
        seen = 0
        for tid in task.dependents or ():
            dependent = tasks.get(tid)
            if dependent is None:
                continue  # Released; a restored replica doesn't even know its tid.
            seen += 1
            if seen > FOLLOWERS_SEEN_MAX:
                break
            if dependent.state != WAITING:
                continue
            if dependent.pending > PENDING_AHEAD_MAX or dependent.failed_on == cid:
                continue
            if self._load_us(job, dependent.spec.name) >= self._ahead_us:
                continue
            for other in dependent.spec.pretasks:
                pretask = tasks[other]
                if pretask.state != DONE and pretask.cid != cid:
                    break
            else:
                return dependent
        return None

    # --- estimates ---

    def ran(self, job: Job, name: str, run_us: int) -> None:
        """Learn from a finished attempt how long tasks of this name run.

        An exponential average in integers: the first run counts whole, each later one
        an eighth.
        """
        estimates = job.estimates_us
        estimate_us = estimates.get(name)
        if estimate_us is None:
            if len(estimates) >= NAMES_MAX:
                return
            estimates[name] = run_us
        else:
            changed_us = estimate_us + (run_us - estimate_us) // 8
            if changed_us == estimate_us:
                return
            estimates[name] = changed_us
        self._state.changes.estimates[job, name] = None


def _entry(client: Client, is_heavy: bool) -> tuple[int, int, int] | None:
    return client.heavy_entry if is_heavy else client.light_entry


def _attached_key(client: Client, name: str) -> tuple[int, int]:
    """Return how much a client has to do for each node attached by a name.

    A client is open to a task if the first part is below the depth of a node's queue.
    """
    tasks = client.attached_tasks.get(name, 0)
    return (tasks * FINENESS // client.attached[name], client.cid)
