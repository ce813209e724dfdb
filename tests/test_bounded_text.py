"""What others sent is shown, however deeply it is nested."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasksprint.bounded_text import bounded_repr

VALUES: list[Any] = [
    *(None, True, 5, -1.5, "it's", "", [], {}, [[]], {"a": {}}),
    [1, "two", [3, {"four": [5, 6]}], None],
    {"one": [1, {"two": 2}], "three": {"four": "x" * 100}, "five": []},
    [[[1], 2], 3],
    list(range(1_000)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_it_is_the_beginning_of_what_repr_says(value: Any) -> None:
    whole = repr(value)
    for size in (*range(60), len(whole), len(whole) + 1):
        assert bounded_repr(value, size) == whole[:size]


@pytest.mark.parametrize("opening, closing", ["[]", ('{"a":', "}"), ('[{"a":[', "]}]")])
def test_nesting_that_repr_fails_for_is_shown(opening: str, closing: str) -> None:
    value: Any = json.loads(opening * 200 + "7" + closing * 200)
    for _ in range(1_000):
        value = [value]
    with pytest.raises(RecursionError):
        repr(value)
    assert bounded_repr(value) == "[" * 50
