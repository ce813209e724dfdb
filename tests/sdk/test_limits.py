"""`@timeout` interrupts what runs for too long, and nothing else."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from tasksprint.sdk.limits import forget_limits, timeout


def forever() -> None:
    while True:
        pass


def test_method_is_interrupted_with_its_name() -> None:
    class Node:
        steps = 0

        @timeout(0.02)
        def process(self) -> None:
            """Never ends."""
            while True:
                self.steps += 1

    node = Node()
    with pytest.raises(TimeoutError) as caught:
        node.process()
    assert str(caught.value) == "process ran for more than 0.02 s"
    assert node.steps > 0
    assert Node.process.__name__ == "process" and Node.process.__doc__ == "Never ends."


def test_method_may_catch_it_inside() -> None:
    @timeout(0.02)
    def process() -> str:
        try:
            forever()
        except TimeoutError:
            return "caught"
        return "not reached"

    assert process() == "caught"


def test_faster_method_returns_and_leaves_no_alarm() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert timeout(0.01)(lambda a, b=0: a + b)(1, b=2) == 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_error_of_the_method_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        timeout(5)(lambda: 1 / 0)()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_inner_limit_ends_first_and_the_outer_goes_on() -> None:
    @timeout(0.01)
    def inner() -> None:
        forever()

    @timeout(5)
    def outer() -> str:
        with pytest.raises(TimeoutError, match=r"inner ran for more than 0.01 s"):
            inner()
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        return "alarm set" if 4 < left <= 5 else f"{left}"

    assert outer() == "alarm set"


def test_outer_limit_is_not_taken_for_the_inner_one() -> None:
    """Steps with a limit each, in a loop that forgives them, end when the loop's time is over."""
    steps = []

    @timeout(5)
    def step() -> None:
        steps.append(1)
        time.sleep(0.001)  # Real time: the limits are timers of the system.

    @timeout(0.03)
    def loop() -> None:
        while True:
            try:
                step()
            except TimeoutError:
                pass

    with pytest.raises(TimeoutError, match=r"loop ran for more than 0.03 s"):
        loop()
    assert steps
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_method_that_swallows_its_own_timeout_gets_another() -> None:
    swallowed = []

    @timeout(0.01)
    def stubborn() -> None:
        for _ in range(2):
            try:
                forever()
            except TimeoutError:
                swallowed.append(1)
        forever()

    with pytest.raises(TimeoutError, match=r"stubborn ran for more than 0.01 s"):
        stubborn()
    assert len(swallowed) == 2


def test_method_that_calls_itself_has_a_limit_each_time() -> None:
    @timeout(0.05)
    def dive(depth: int) -> int:
        return depth if depth == 20 else dive(depth + 1)

    assert dive(0) == 20

    @timeout(0.02)
    def sink(depth: int) -> None:
        if depth == 5:
            forever()
        sink(depth + 1)

    with pytest.raises(TimeoutError, match=r"sink ran for more than 0.02 s"):
        sink(0)


def test_alarm_of_somebody_else_is_given_back() -> None:
    def theirs(signum: int, frame: Any) -> None:
        pass

    before = signal.signal(signal.SIGALRM, theirs)
    try:
        signal.setitimer(signal.ITIMER_REAL, 100, 7)
        with pytest.raises(TimeoutError):
            timeout(0.01)(forever)()
        assert signal.getsignal(signal.SIGALRM) is theirs
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 90 < left < 100 and interval == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_limit_that_lasts_for_ever_is_none() -> None:
    assert timeout(float("inf"))(lambda: 1)() == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "5", None, True, forever])
def test_limit_that_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"expected seconds above 0, as in @timeout\(5\)"):
        timeout(seconds)


def test_other_threads_are_told_that_it_can_t_work() -> None:
    found: list[str] = []

    def run() -> None:
        try:
            timeout(1)(forever)()
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["@timeout(1) of forever works only in the main thread"]


def test_forgotten_limits_ring_no_more() -> None:
    @timeout(100)
    def method() -> tuple[float, float]:
        forget_limits()
        return signal.getitimer(signal.ITIMER_REAL)

    assert method() == (0.0, 0.0)
