"""The cache of values: what is pinned, what is evicted, and what is put together from it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Coroutine
from random import Random
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tasksprint.coordination.view import Assignment, Input
from tasksprint.execution.effects import AttemptDone, RunTask
from tasksprint.roles.client.values import CachedValue, ValueCache, base64_pieces, task_buffers
from tasksprint.task_spec import TaskSpec

T = TypeVar("T")
VALUE = 100
COST = 500  # of a value of VALUE bytes


def wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really waits; faster than an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits")


class Disk:
    """A store that counts what it is asked."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, int, str, str], CachedValue] = {}
        self.reads: list[tuple[int, int, str, str]] = []

    async def load(self, job: int, tid: int, digest: str, key: str) -> CachedValue | None:
        self.reads.append((job, tid, digest, key))
        return self.values.get((job, tid, digest, key))


def cache_of(values: int, disk: Disk | None = None) -> ValueCache:
    return ValueCache(
        bytes_max=values * COST, load=(disk or Disk()).load, discard=lambda value: None
    )


def put(cache: ValueCache, tid: int, *, key: str = "result", size: int = VALUE) -> None:
    cache.put(1, tid, f"d{tid}", [(key, "bytes", bytes(size))])
    cache.check()


def has(cache: ValueCache, tid: int, key: str = "result") -> bool:
    return cache.get(1, tid, f"d{tid}", key) is not None


def test_value_that_is_not_stored_yet_is_never_evicted() -> None:
    cache = cache_of(2)
    for tid in range(10):
        put(cache, tid)
    assert all(has(cache, tid) for tid in range(10))
    assert cache.total_bytes == 10 * COST


def test_stored_values_are_evicted_the_longest_unused_first() -> None:
    cache = cache_of(3)
    for tid in range(3):
        put(cache, tid)
        cache.stored(1, tid, f"d{tid}")
    assert has(cache, 0)  # Used just now.
    put(cache, 3)
    assert [has(cache, tid) for tid in range(4)] == [True, False, True, True]
    cache.check()


def test_values_beyond_the_limit_go_once_they_are_stored() -> None:
    cache = cache_of(1)
    put(cache, 0, size=10_000)
    assert has(cache, 0)
    cache.stored(1, 0, "d0")
    assert not has(cache, 0)
    assert cache.total_bytes == 0
    cache.check()


def test_value_is_read_from_the_store_once_and_then_from_memory() -> None:
    disk = Disk()
    disk.values[1, 0, "d0", "result"] = ("json", b"3")
    cache = cache_of(3, disk)
    assert wait(cache.read(1, 0, "d0", "result")) == ("json", b"3")
    assert wait(cache.read(1, 0, "d0", "result")) == ("json", b"3")
    assert disk.reads == [(1, 0, "d0", "result")]
    assert wait(cache.read(1, 0, "other", "result")) is None
    cache.check()


def test_other_bytes_of_the_same_task_are_another_value() -> None:
    cache = cache_of(9)
    cache.put(1, 0, "mine", [("result", "json", b"1")])
    cache.put_copy(1, 0, "canonical", (("result", "json", 1, ""),), [("result", "json", b"2")])
    assert cache.get(1, 0, "mine", "result") == ("json", b"1")
    assert cache.get(1, 0, "canonical", "result") == ("json", b"2")


MANIFEST = (("a", "bytes", VALUE, ""), ("b", "bytes", VALUE, ""))


def test_copy_stays_until_it_is_released_and_may_be_found_again() -> None:
    cache = cache_of(1)
    cache.put_copy(1, 0, "d0", MANIFEST, [("a", "bytes", bytes(VALUE))])
    put(cache, 5)
    assert has(cache, 0, "a")
    cache.stored(1, 5, "d5")
    assert not has(cache, 5)
    cache.release_copies([(1, 0, "d0"), (1, 7, "d7")])
    cache.check()
    assert cache.find_copy(1, 0, "d0", ["a", "key that it doesn't have"]) == MANIFEST
    assert cache.find_copy(1, 0, "d0", ["b"]) is None
    assert cache.find_copy(1, 0, "other", ["a"]) is None
    assert cache.find_copy(1, 9, "d9", ["a"]) is None
    # Found, so it is kept again.
    put(cache, 6)
    cache.stored(1, 6, "d6")
    assert has(cache, 0, "a")
    cache.release_copies([(1, 0, "d0")])
    put(cache, 7)
    assert not has(cache, 0, "a")
    assert cache.find_copy(1, 0, "d0", ["a"]) is None
    cache.check()


def test_second_key_of_a_copy_joins_the_first() -> None:
    cache = cache_of(1)
    cache.put_copy(1, 0, "d0", MANIFEST, [("a", "bytes", bytes(VALUE))])
    cache.put_copy(1, 0, "d0", MANIFEST, [("b", "bytes", bytes(VALUE))])
    assert cache.find_copy(1, 0, "d0", ["a", "b"]) == MANIFEST
    cache.check()


def test_copy_without_any_of_the_keys_leaves_nothing_behind() -> None:
    cache = cache_of(1)
    cache.put_copy(1, 0, "d0", MANIFEST, [])
    cache.release_copies([(1, 0, "d0")])
    cache.check()
    assert cache.find_copy(1, 0, "d0", []) is None


def test_result_without_values_leaves_nothing_behind() -> None:
    cache = cache_of(1)
    cache.put(1, 0, "d0", [])
    cache.stored(1, 0, "d0")
    cache.check()


def test_drop_forgets_values_but_not_copies_that_are_needed() -> None:
    cache = cache_of(9)
    put(cache, 0)
    put(cache, 1)
    cache.put_copy(1, 2, "d2", MANIFEST, [("result", "bytes", b"x")])
    cache.drop(1, [0, 2, 77])
    cache.drop(8, [0])
    assert [has(cache, tid) for tid in range(3)] == [False, True, True]
    cache.check()
    put(cache, 3)
    cache.drop_job(1, keep=(3,))
    cache.drop_job(8, keep=())
    assert [has(cache, tid) for tid in range(4)] == [False, False, True, True]
    cache.check()
    cache.release_copies([(1, 2, "d2")])
    cache.drop(1, [2, 3])
    assert cache.total_bytes == 0
    cache.check()


INPUTS = (Input(0, "result", "d0", (1,)), Input(1, "x", "d1", (1,)))
TASK = Assignment(1, 9, 2, TaskSpec("merge", "[1,2]", (0, 1), ("result", "x")), INPUTS, 77)
RUN = RunTask(3, 5, TASK, ((0, "result", "d0"), (1, "x", "d1")))


def test_line_of_a_task_from_values_in_memory() -> None:
    cache = cache_of(9)
    cache.put(1, 0, "d0", [("result", "json", b"2.50")])
    assert cache.inputs(RUN) is None
    cache.put(1, 1, "d1", [("x", "bytes", b"raw")])
    inputs = cache.inputs(RUN)
    assert inputs == [("json", b"2.50"), ("bytes", b"raw")]
    assert b"".join(task_buffers(RUN, inputs, frames=True)) == (
        b'{"id":5,"job":1,"task":9,"attempt":2,"name":"merge","args":[1,2,2.50,null],'
        b'"seed":77,"frames":[[3,3]]}\nraw'
    )
    assert b"".join(task_buffers(RUN, inputs, frames=False)) == (
        b'{"id":5,"job":1,"task":9,"attempt":2,"name":"merge","args":[1,2,2.50,"cmF3"],'
        b'"seed":77,"base64":[3]}\n'
    )


def test_inputs_that_the_store_lost_are_named() -> None:
    disk = Disk()
    disk.values[1, 0, "d0", "result"] = ("json", b"1")
    cache = cache_of(9, disk)
    assert wait(cache.load_inputs(RUN)) == ([("json", b"1")], (1,))
    disk.values[1, 1, "d1", "x"] = ("json", b"2")
    assert wait(cache.load_inputs(RUN)) == ([("json", b"1"), ("json", b"2")], ())


def test_inline_values_of_a_report() -> None:
    disk = Disk()
    cache = cache_of(9, disk)
    done = AttemptDone(1, 0, 1, "d0", 9, None, 50, (("a", "json"), ("b", "bytes")))
    cache.put(1, 0, "d0", [("a", "json", '"é"'.encode())])
    assert cache.inline(done) is None
    assert wait(cache.load_inline(done)) is None
    disk.values[1, 0, "d0", "b"] = ("bytes", b"\0")
    expected = {"a": ("json", '"é"'), "b": ("bytes", "AA==")}
    assert wait(cache.load_inline(done)) == expected
    assert cache.inline(done) == expected


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["put", "stored", "put_copy", "find", "release", "drop", "drop_job", "get", "read"]
        ),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(STEPS)
def test_any_sequence_keeps_pinned_values_and_the_limit(
    steps: list[tuple[str, int, str]],
) -> None:
    disk = Disk()
    cache = cache_of(4, disk)
    pinned: dict[tuple[int, str], dict[str, bytes]] = {}  # (tid, digest) -> values

    def content(key: str) -> bytes:
        return key.encode() * 200

    for step, tid, key in steps:
        mine, copied = f"m{tid}", f"c{tid}"
        value = (key, "bytes", content(key))
        match step:
            case "put":
                cache.put(1, tid, mine, [value])
                disk.values[1, tid, mine, key] = value[1:]
                pinned.setdefault((tid, mine), {})[key] = value[2]
            case "stored":
                cache.stored(1, tid, mine)
                pinned.pop((tid, mine), None)
            case "put_copy":
                cache.put_copy(1, tid, copied, MANIFEST, [value])
                pinned.setdefault((tid, copied), {})[key] = value[2]
            case "find":
                if cache.find_copy(1, tid, copied, [key]) is not None:
                    pinned.setdefault((tid, copied), {})[key] = value[2]
            case "release":
                cache.release_copies([(1, tid, copied)])
                pinned.pop((tid, copied), None)
            case "drop":
                cache.drop(1, [tid])
                pinned.pop((tid, mine), None)
            case "drop_job":
                cache.drop_job(1, [tid])
                for other in range(4):
                    if other != tid:
                        pinned.pop((other, f"m{other}"), None)
            case "get":
                found = cache.get(1, tid, mine, key)
                assert found in (None, ("bytes", content(key)))
            case "read":
                wanted = disk.values.get((1, tid, mine, key))
                assert wait(cache.read(1, tid, mine, key)) in (wanted, ("bytes", content(key)))
        cache.check()
        for (of, digest), values in pinned.items():
            for name, expected in values.items():
                assert cache.get(1, of, digest, name) == ("bytes", expected)


@pytest.mark.parametrize("piece_bytes", [1024 * 1024, 700_001, 786_432])
@pytest.mark.parametrize("size", [0, 1, 3, 1024 * 1024 + 1, 3 * 1024 * 1024 + 2])
def test_base64_in_pieces_is_that_of_the_whole(size: int, piece_bytes: int) -> None:
    assert_same_base64(Random(size).randbytes(size), piece_bytes)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5])
def test_base64_in_tiny_pieces_is_that_of_the_whole(piece_bytes: int) -> None:
    for size in range(12):
        assert_same_base64(bytes(range(size)), piece_bytes)


def assert_same_base64(data: bytes, piece_bytes: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for first in range(0, len(data), piece_bytes):
            yield data[first : first + piece_bytes]

    async def joined() -> bytes:
        return b"".join([text async for text in base64_pieces(pieces())])

    assert wait(joined()) == base64.b64encode(data)
