"""Records as arrays: what they look like, what they may lack, and what they may have more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, NewType

import pytest

from tasksprint.arrays import Arrays, Through, added

Number = NewType("Number", int)


class Pair(NamedTuple):
    first: int
    second: Number


@dataclass(frozen=True)
class Leaf:
    name: str
    pairs: tuple[tuple[str, int], ...] = ()
    late: int = added(7, since=2)
    later: tuple[str, ...] = added((), since=3)


@dataclass(frozen=True)
class Other:
    isright: bool
    leaf: Leaf | None


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf | Other, ...]
    pair: Pair
    numbers: tuple[Number, ...]
    upper: Annotated[dict[str, Any], Through(lambda value: {"read": value})]
    text: Annotated[int, Through(int, str)] = 5


class Slot(NamedTuple):
    slot: int
    pair: Pair
    value: bytes


@dataclass(frozen=True)
class Frame:
    pair: Pair
    first: bytes
    slots: tuple[int, ...]
    second: bytes


@dataclass(frozen=True)
class Reply:
    slots: tuple[Slot, ...]
    end: int


TAGS: dict[type, str] = {Leaf: "leaf", Other: "other"}
WRONG = (TypeError, ValueError, LookupError, AttributeError)


def test_an_array_has_the_fields_in_their_order() -> None:
    arrays = Arrays(TAGS)
    leaf = Leaf("a", (("b", 1),))
    tree = Tree((leaf, Other(True, None)), Pair(1, Number(2)), (Number(3),), {}, 4)
    array = [[["leaf", "a", (("b", 1),)], ["other", True, None]], [1, 2], (3,), {}, "4"]
    assert arrays.writer(Tree)(tree) == array
    sent = [[["leaf", "a", [["b", 1]]], ["other", True, None]], [1, 2], [3], {}, "4"]
    assert arrays.reader(Tree)(*sent) == tree
    assert arrays.reader(Tree)(*sent[:3], {"x": 1}, "4").upper == {"read": {"x": 1}}
    with pytest.raises(TypeError):
        arrays.reader(Tree)(*sent[:4], {})  # Only where objects belong need empty ones no look.


@pytest.mark.parametrize(
    ("leaf", "array"),
    [
        (Leaf("a"), ["leaf", "a", []]),
        (Leaf("a", late=8), ["leaf", "a", [], 8]),
        (Leaf("a", later=("x",)), ["leaf", "a", [], 7, ["x"]]),
        (Leaf("a", late=8, later=("x",)), ["leaf", "a", [], 8, ["x"]]),
    ],
)
def test_what_was_added_is_left_out_while_it_is_the_default(leaf: Leaf, array: list[Any]) -> None:
    arrays = Arrays(TAGS)
    written = arrays.writer(Leaf)(leaf)
    assert [list(each) if isinstance(each, tuple) else each for each in written] == array
    assert arrays.reader(Leaf)(*array) == leaf
    assert arrays.writer(Other)(Other(True, leaf)) == ["other", True, written]


@pytest.mark.parametrize(("version", "known"), [(1, 3), (2, 4), (3, 5), (4, 5)])
def test_an_exact_reader_takes_what_its_version_knows_and_no_more(
    version: int, known: int
) -> None:
    read = Arrays(TAGS, version=version, exact=True).reader(Leaf)
    array: list[Any] = ["leaf", "a", [], 8, ["x"], None]
    for length in range(len(array) + 1):
        if 3 <= length <= known:
            expected = [Leaf("a"), Leaf("a", (), 8), Leaf("a", (), 8, ("x",))]
            assert read(*array[:length]) == expected[length - 3]
        else:
            with pytest.raises(TypeError):
                read(*array[:length])


def test_any_other_reader_ignores_what_stands_behind_what_it_knows() -> None:
    read = Arrays(TAGS, version=1).reader(Leaf)
    assert read("leaf", "a", [["b", 1, "more"]], 8, ["x"], None) == Leaf("a", (("b", 1),))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (["leaf", 1, []], "expected text as name, found 1"),
        (["leaf", "a", {}], "expected a list as pairs, found {}"),
        (["leaf", "a", None], "expected a list as pairs, found None"),
        (["leaf", "a", [["b", -1]]], "expected a number from 0 to 2"),
        (["leaf", "a", [["b", 2**63]]], "expected a number from 0 to 2"),
        (["leaf", "a", [["b", True]]], "expected a number from 0 to 2"),
        (["leaf", "a", [["b", 1.0]]], "expected a number from 0 to 2"),
        (["leaf", "a", [["b"]]], "missing 1 required positional argument"),
        (["leaf", "a", [5]], "must be an iterable"),
        (["leaf", "a", [], None], "expected a number from 0 to 2"),
        (["leaf", "a", [], 1, 5], "expected a list as later, found 5"),
        (["leaf", "a", [], 1, [5]], "expected text as each member, found 5"),
        (["other", 1, None], "expected true or false as isright, found 1"),
        (["other", True, "x"], "expected a list or null as leaf, found 'x'"),
        (["thing"], "thing"),
    ],
)
def test_what_is_no_record_is_refused(array: list[Any], message: str) -> None:
    arrays = Arrays(TAGS)
    records = arrays.tagged(Leaf | Other)
    with pytest.raises(WRONG, match=message):
        arrays.reader(records[array[0]])(*array)


def test_bytes_may_stand_beside_and_a_pair_flat_in_the_record_around_it() -> None:
    arrays = Arrays(flat=(Pair,), beside=True)
    frame = Frame(Pair(1, Number(2)), b"a", (5,), b"b")
    assert arrays.writer(Frame)(frame) == [1, 2, (5,)]
    assert arrays.parts(Frame)(frame) == [b"a", b"b"]
    assert arrays.reader(Frame)([b"a", b"b"], 1, 2, [5]) == frame
    reply = Reply((Slot(1, Pair(2, Number(3)), b"x"), Slot(4, Pair(5, Number(6)), b"y")), 7)
    assert arrays.writer(Reply)(reply) == [[[1, 2, 3], [4, 5, 6]], 7]
    assert arrays.parts(Reply)(reply) == [b"x", b"y"]
    assert arrays.reader(Reply)([b"x", b"y"], [[1, 2, 3], [4, 5, 6]], 7) == reply
    with pytest.raises(IndexError):
        arrays.reader(Frame)([b"a"], 1, 2, [5])
    with pytest.raises(IndexError):
        arrays.reader(Reply)([b"x"], [[1, 2, 3], [4, 5, 6]], 7)
