"""Whether a history of operations is linearizable.

The algorithm is Wing and Gong's search ("Testing and Verifying Concurrent Objects",
1993): of the operations that no other one preceded entirely, try each as the next one,
and go back where the model forbids it. With Lowe's two additions ("Testing for
linearizability", 2017): a configuration (which operations are in, and the state they
lead to) that failed once isn't tried again, and a history that consists of independent
objects is cut into one history for each (`tests/linearizability/job_store.py` does the
cutting, and says why it may). And one of our own: an operation that the state allows
and that doesn't change it is taken at once, without alternatives, if the model says that
it couldn't change a later state either (`Model.is_idle`; a read): whatever order continues
with it later continues as well with it now.

Models may be nondeterministic: an operation leads from a state to any of several.

An operation of unknown outcome (a timeout, a broken connection) may take effect at any
time after it was invoked, or never.

Verifies: there is one order of all operations that the model allows, in which each stands
between its invocation and its response. Doesn't verify: that the model is right, that
anything ever gets done, nor what nobody observed. It is exact, so it takes exponential
time in the worst case, in the number of operations at the same time; `steps_max` bounds it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["Model", "Operation", "TooHard", "Verdict", "check", "is_linearizable_slowly"]

StateT = TypeVar("StateT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a history; times are from one monotonic clock."""

    process: str
    invoked: int
    returned: int | None  # None: the outcome is unknown
    call: tuple[Hashable, ...]
    reply: Hashable  # None where the outcome is unknown

    def __post_init__(self) -> None:
        assert self.returned is None or self.invoked <= self.returned
        assert self.returned is not None or self.reply is None

    def describe(self) -> str:
        """Return one line for people."""
        end = "?" if self.returned is None else f"{self.returned}"
        words = " ".join(str(word) for word in self.call)
        return f"[{self.invoked} .. {end}] {self.process}: {words} -> {self.reply}"


class Model(Protocol[StateT]):
    """What a single, sequential object does."""

    @property
    def initial(self) -> StateT:
        """The state before the first operation."""

    def step(self, state: StateT, operation: Operation) -> tuple[StateT, ...]:
        """Return the states that the operation may lead to; none: it can't be so.

        For an operation of unknown outcome, those that any reply might lead to.
        """

    def is_idle(self, operation: Operation) -> bool:
        """Whether an operation that changes nothing now could change nothing later on."""


@dataclass(frozen=True, slots=True)
class Verdict(Generic[StateT]):
    """What the search found."""

    is_linearizable: bool
    steps: int
    # If it isn't: the longest order that was found, where it leads, and the operations of
    # which none can be the next.
    longest: tuple[Operation, ...] = ()
    state: StateT | None = None
    stuck: tuple[Operation, ...] = ()

    def describe(self) -> str:
        """Return what went wrong, in some lines."""
        if self.is_linearizable:
            return f"linearizable ({self.steps} steps)"
        lines = ["not linearizable; the longest order that works ends with"]
        lines += [f"    {operation.describe()}" for operation in self.longest[-8:]]
        lines += [f"  in the state {self.state}; none of these can be the next:"]
        lines += [f"    {operation.describe()}" for operation in self.stuck]
        return "\n".join(lines)


class TooHard(Exception):
    """The search took more steps than it may."""


def check(
    operations: Iterable[Operation], model: Model[StateT], *, steps_max: int = 1_000_000
) -> Verdict[StateT]:
    """Search an order of the operations that the model allows.

    Raises:
        TooHard: There was no answer within `steps_max` steps.
    """
    history = sorted(operations, key=lambda operation: operation.invoked)
    search = _Search(history, model, steps_max)
    return search.run()


class _Search(Generic[StateT]):
    """One run of the search, with its own stack: histories are longer than Python's."""

    def __init__(
        self, history: Sequence[Operation], model: Model[StateT], steps_max: int
    ) -> None:
        self._history = history
        self._model = model
        self._steps_max = steps_max
        self._steps = 0
        # Bit n: operation n is in the order.
        self._known = 0
        for number, operation in enumerate(history):
            if operation.returned is not None:
                self._known |= 1 << number

    def run(self) -> Verdict[StateT]:
        history = self._history
        seen: set[tuple[int, StateT]] = set()
        order: list[int] = []
        longest: tuple[list[int], int, StateT] = ([], 0, self._model.initial)
        # Of each configuration on the way: where it goes on, and how long the order was.
        stack: list[tuple[int, StateT, int, int | None]] = [(0, self._model.initial, 0, None)]
        while stack:
            taken, state, length, chosen = stack.pop()
            del order[length:]
            if chosen is not None:
                order.append(chosen)
            if taken & self._known == self._known:
                return Verdict(True, self._steps)
            if (taken, state) in seen:
                continue
            seen.add((taken, state))
            if len(order) > len(longest[0]):
                longest = (list(order), taken, state)
            depth = len(order)
            branches: list[tuple[int, StateT, int, int | None]] = []
            for number in self._next(taken):
                self._steps += 1
                if self._steps > self._steps_max:
                    raise TooHard(f"no answer after {self._steps_max} steps")
                operation = history[number]
                states = self._model.step(state, operation)
                bit = 1 << number
                is_known = operation.returned is not None
                if states == (state,) and is_known and self._model.is_idle(operation):
                    branches = [(taken | bit, state, depth, number)]
                    break
                branches += [
                    (taken | bit, after, depth, number)
                    for after in states
                    # One of unknown outcome that changes nothing may as well wait.
                    if is_known or after != state
                ]
            stack += reversed(branches)
        order, taken, state = longest
        return Verdict(
            False,
            self._steps,
            tuple([history[number] for number in order]),
            state,
            tuple([history[number] for number in self._next(taken)]),
        )

    def _next(self, taken: int) -> list[int]:
        """Return the operations that may be the next: none left over precedes them entirely."""
        found: list[int] = []
        end: int | None = None
        number = _first_zero(taken)
        while number < len(self._history):
            operation = self._history[number]
            if end is not None and operation.invoked > end:
                break  # All later ones were invoked even later.
            if not taken >> number & 1:
                found.append(number)
                if operation.returned is not None and (end is None or operation.returned < end):
                    end = operation.returned
            number += 1
        # The scan met some before it knew of an end that excludes them.
        return [each for each in found if end is None or self._history[each].invoked <= end]


def _first_zero(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1


def is_linearizable_slowly(operations: Sequence[Operation], model: Model[StateT]) -> bool:
    """Say the same as `check`, obviously: try all orders of all subsets that may be. For tests."""

    def search(left: frozenset[int], state: StateT) -> bool:
        if all(operations[number].returned is None for number in left):
            return True
        for number in left:
            operation = operations[number]
            if any(_precedes(operations[other], operation) for other in left):
                continue
            for after in model.step(state, operation):
                if search(left - {number}, after):
                    return True
        return False

    return search(frozenset(range(len(operations))), model.initial)


def _precedes(first: Operation, second: Operation) -> bool:
    return first.returned is not None and first.returned < second.invoked
