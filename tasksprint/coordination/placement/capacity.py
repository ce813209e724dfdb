"""Which clients are open to more tasks, and which of them has the least to do.

Each open client has one valid entry in a heap. The entry's key may be too low: it may be older
than the last tasks that were assigned to the client. It is corrected once it is on top. The
heaps hold no decision of their own: they are built anew when a replica restarts.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from tasksprint.coordination.clients import Client
from tasksprint.coordination.state import STALE_ENTRIES_MAX, State
from tasksprint.ids import ClientId

__all__ = ["Capacity"]

# Loads are divided by capacities as integers of this unit.
FINENESS = 64


class Capacity:
    """The clients by their load: on their own nodes, and on nodes attached to them."""

    __slots__ = (
        "_attached",
        "_attached_heaps",
        "_heavies",
        "_lights",
        "_state",
    )

    def __init__(self, state: State) -> None:
        self._state = state
        self._lights: list[tuple[int, int, int]] = []
        self._heavies: list[tuple[int, int, int]] = []
        # Living clients by the names of the nodes that are attached to them, and a heap of
        # their entries for each name.
        self._attached: dict[str, dict[ClientId, Client]] = {}
        self._attached_heaps: dict[str, list[tuple[int, int]]] = {}
        for client in state.clients.values():
            self.enter(client)

    def enter(self, client: Client) -> None:
        """Put a client's entries into the heaps, as it is now."""
        for is_heavy in (False, True):
            entry = None
            if self.is_open(client, is_heavy):
                heap = self._heavies if is_heavy else self._lights
                if len(heap) > 2 * len(self._state.clients) + STALE_ENTRIES_MAX:
                    self._rebuild(is_heavy)
                entry = self.key(client, is_heavy)
                heappush(heap, entry)
            self._set_entry(client, is_heavy, entry)
        if client.attached_entries or client.attached:
            self._enter_attached(client)

    # --- their own nodes ---

    def is_open(self, client: Client, is_heavy: bool) -> bool:
        """Whether a client may get one more task, of this weight."""
        rules = self._state.rules
        if not client.is_alive or client.assigned >= rules.assigned_max:
            return False
        if is_heavy:
            return client.heavy < client.capacity
        return client.queued_us < rules.ahead_us * client.capacity

    @staticmethod
    def key(client: Client, is_heavy: bool) -> tuple[int, int, int]:
        """Return the load of a client as a key; the open client with the lowest key is chosen.

        The first part alone decides whether the client is open (the limit on assigned
        tasks aside). So if the lowest isn't open, none is.
        """
        capacity = client.capacity
        queued = client.queued_us * FINENESS // capacity
        if is_heavy:
            return (client.heavy * FINENESS // capacity, queued, client.cid)
        return (queued, client.assigned * FINENESS // capacity, client.cid)

    def least_loaded(self, is_heavy: bool) -> Client | None:
        """Return the open client with the lowest key."""
        heap = self._heavies if is_heavy else self._lights
        clients = self._state.clients
        while heap:
            entry = heap[0]
            client = clients.get(ClientId(entry[2]))
            if client is None or _entry(client, is_heavy) is not entry:
                heappop(heap)  # It is stale: the client has a newer one in the heap, or none.
                continue
            if not self.is_open(client, is_heavy):
                heappop(heap)  # It comes back when its queue has become shorter.
                self._set_entry(client, is_heavy, None)
                continue
            key = self.key(client, is_heavy)
            if key == entry:
                return client
            heapreplace(heap, key)
            self._set_entry(client, is_heavy, key)
        return None

    def second_least_loaded(self, is_heavy: bool) -> Client | None:
        """Return the open client that comes after the one on top of the heap."""
        heap = self._heavies if is_heavy else self._lights
        top = heappop(heap)
        second = self.least_loaded(is_heavy)
        heappush(heap, top)
        return second

    @staticmethod
    def _set_entry(client: Client, is_heavy: bool, entry: tuple[int, int, int] | None) -> None:
        if is_heavy:
            client.heavy_entry = entry
        else:
            client.light_entry = entry

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

    # --- nodes attached by hand ---

    def _enter_attached(self, client: Client) -> None:
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

    def attached_load(self, client: Client, name: str, depth: int) -> int | None:
        """Return the load of a client's attached nodes; None: it isn't open.

        Args:
            depth: Tasks of the kind in question that a node may have.
        """
        if name not in client.attached or client.assigned >= self._state.rules.assigned_max:
            return None
        load, _ = _attached_key(client, name)
        return load if load < depth * FINENESS else None

    def least_attached(self, name: str, depth: int) -> Client | None:
        """Return the client with the least to do for each attached node, if it is open."""
        heap = self._attached_heaps.get(name)
        clients = self._attached.get(name, {})
        while heap:
            entry = heap[0]
            client = clients.get(ClientId(entry[1]))
            if client is None or client.attached_entries.get(name) is not entry:
                heappop(heap)
                continue
            if client.assigned >= self._state.rules.assigned_max:
                heappop(heap)  # It comes back when it has less to do.
                client.attached_entries[name] = None
                continue
            key = _attached_key(client, name)
            if key == entry:
                return client if key[0] < depth * FINENESS else None
            heapreplace(heap, key)
            client.attached_entries[name] = key
        return None

    def second_least_attached(self, name: str, depth: int) -> Client | None:
        """Return the client that comes after the one on top of the heap, if it is open."""
        heap = self._attached_heaps[name]
        top = heappop(heap)
        second = self.least_attached(name, depth)
        heappush(heap, top)
        return second

    def check(self) -> None:
        """Assert that the indexes agree with the state."""
        names: dict[str, dict[ClientId, Client]] = {}
        for client in self._state.clients.values():
            assert sorted(client.attached) == sorted(client.attached_entries)
            for attached in client.attached:
                names.setdefault(attached, {})[client.cid] = client
        assert self._attached == names
        assert sorted(self._attached_heaps) == sorted(names)

    def check_closed(self, name: str | None, depth: int) -> None:
        """Assert that no client is open to the tasks of such a queue."""
        for client in self._state.clients.values():
            if name is None:
                is_open = self.is_open(client, not depth)
            else:
                is_open = self.attached_load(client, name, depth) is not None
            assert not is_open, f"ready tasks of {name!r} could be placed on {client}"


def _entry(client: Client, is_heavy: bool) -> tuple[int, int, int] | None:
    return client.heavy_entry if is_heavy else client.light_entry


def _attached_key(client: Client, name: str) -> tuple[int, int]:
    """Return the key of a client for the nodes attached by a name: its load for each node.

    A client is open to a task if the first part is below the depth of a node's queue.
    """
    tasks = client.attached_tasks.get(name, 0)
    return (tasks * FINENESS // client.attached[name], client.cid)
