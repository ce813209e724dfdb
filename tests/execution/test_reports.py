"""What is reported when, and in which order."""

from __future__ import annotations

from dataclasses import replace

from .helpers import (
    DIGEST,
    SETTINGS,
    Bench,
    Drop,
    RunTask,
    SendReport,
    TaskError,
    completion,
    inputs_digest,
    made_here,
    manifest,
    report,
    run,
    task,
)


def _run(bench: Bench, *assignments: object) -> None:
    """Run these to the end, one after the other, on node 1."""
    bench.view(*assignments)  # type: ignore[arg-type]
    for _ in assignments:
        (one,) = [effect for effect in bench.effects() if isinstance(effect, RunTask)]
        bench.done(one.node, one.id, after_us=1_000)
    bench.effects()


def test_one_report_is_under_way_and_the_next_takes_all_that_came_meanwhile() -> None:
    bench = Bench()
    bench.serving(1)
    _run(bench, *[task(tid) for tid in range(4)])
    bench.stored(0)
    bench.expect(report(2, completion(0, run_us=1_000)))
    bench.stored(1)
    bench.stored(2, 3)
    bench.assert_empty()
    bench.acknowledged(2)
    bench.expect(report(3, *[completion(tid, run_us=1_000) for tid in (1, 2, 3)]))
    bench.acknowledged(3)
    bench.assert_empty()


def test_acknowledgement_of_another_report_is_ignored() -> None:
    bench = Bench()
    bench.serving(1)
    _run(bench, task(0), task(1))
    bench.stored(0)
    bench.effects()
    bench.stored(1)
    bench.acknowledged(1)
    bench.acknowledged(2, incarnation="b")
    bench.acknowledged(7)
    bench.assert_empty()
    bench.acknowledged(2)
    bench.expect(report(3, completion(1, run_us=1_000)))


def test_dependent_stored_first_is_reported_after_what_it_consumed() -> None:
    """A completion whose inputs aren't canonical when it is applied would be void."""
    bench = Bench()
    bench.serving(1)
    _run(bench, task(0), task(1, made_here(0)), task(2, made_here(1)), task(3, made_here(0)))
    bench.stored(2, 1, 3)
    bench.assert_empty()
    bench.stored(0)
    digests = inputs_digest(DIGEST)
    bench.expect(
        report(
            2,
            completion(0, run_us=1_000),
            completion(1, run_us=1_000, inputs=digests),
            completion(2, run_us=1_000, inputs=digests),
            completion(3, run_us=1_000, inputs=digests),
        )
    )


def test_result_stored_for_an_attempt_that_was_replaced_is_not_reported() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(0))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.effects()
    bench.view(task(0, attempt=2))
    bench.effects()
    other = manifest("result", salt="other")
    bench.done(1, 3, values=other, after_us=1_000)
    bench.effects()
    bench.stored(0)
    bench.assert_empty()
    bench.stored(0, attempt=2)
    bench.expect(report(2, completion(0, attempt=2, run_us=1_000, values=other)))


def test_report_is_cut_by_count() -> None:
    bench = Bench(settings=replace(SETTINGS, report_tasks_max=2))
    bench.serving(1)
    _run(bench, *[task(tid) for tid in range(5)])
    bench.stored(*range(5))
    for request, tids in ((2, (0, 1)), (3, (2, 3)), (4, (4,))):
        bench.expect(report(request, *[completion(tid, run_us=1_000) for tid in tids]))
        bench.acknowledged(request)
    bench.assert_empty()


def test_report_is_cut_by_bytes_of_values_but_holds_one_at_least() -> None:
    bench = Bench(settings=replace(SETTINGS, report_inline_bytes_max=10_000))
    bench.serving(1)
    sizes = (20_000, 6_000, 4_000, 1)
    bench.view(*[task(tid, keys=("result",)) for tid in range(4)])
    for size in sizes:
        (one,) = [effect for effect in bench.effects() if isinstance(effect, RunTask)]
        bench.done(1, one.id, values=manifest("result", size=size), after_us=1_000)
    bench.effects()
    bench.stored(*range(4))
    seen = []
    for request in (2, 3, 4):
        (sent,) = bench.effects()
        assert isinstance(sent, SendReport)
        seen.append([one.tid for one in sent.completions])
        bench.acknowledged(request)
    assert seen == [[0], [1, 2], [3]]


def test_dropped_result_is_not_reported_any_more() -> None:
    bench = Bench()
    bench.serving(1)
    _run(bench, task(0), task(1))
    bench.stored(0)
    bench.view(drop=(Drop(1, 0, None), Drop(1, 1, None)))
    bench.effects()
    bench.stored(1)
    bench.assert_empty()


def test_attempt_that_ended_is_not_begun_again_by_a_view_that_does_not_know() -> None:
    """1. The report is under way. 2. A view made before it was applied names new holders."""
    bench = Bench()
    bench.serving(1)
    bench.view(task(0), task(1))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.effects()
    bench.failed(1, 3, TaskError("boom"))
    bench.effects()
    bench.view(task(0), task(1))
    bench.assert_empty()
    bench.view(task(1, attempt=2))
    bench.expect(run(task(1, attempt=2), id=4))


def test_dependent_of_a_replaced_attempt_is_reported_after_the_new_one() -> None:
    bench = Bench()
    bench.serving(1)
    _run(bench, task(0), task(1, made_here(0)))
    bench.stored(1)
    bench.view(task(0, attempt=2))
    bench.effects()
    bench.done(1, 4, after_us=1_000)
    bench.effects()
    bench.stored(0, attempt=2)
    bench.expect(
        report(
            2,
            completion(0, attempt=2, run_us=1_000),
            completion(1, run_us=1_000, inputs=inputs_digest(DIGEST)),
        )
    )


def test_completion_whose_values_were_replaced_before_it_was_sent_is_not_sent() -> None:
    bench = Bench()
    bench.serving(1)
    _run(bench, task(0), task(1))
    bench.stored(1)
    bench.expect(report(2, completion(1, run_us=1_000)))
    bench.stored(0)
    bench.view(task(0, attempt=2))
    bench.effects()
    bench.done(1, 4, values=manifest("result", salt="other"), after_us=1_000)
    bench.effects()
    bench.acknowledged(2)
    bench.assert_empty()


def test_failures_with_much_to_say_go_in_several_reports() -> None:
    bench = Bench(settings=replace(SETTINGS, report_inline_bytes_max=10_000))
    bench.serving(1)
    bench.view(*[task(tid) for tid in range(12)])
    sent: list[SendReport] = []

    def carry_out() -> None:
        for effect in bench.effects():
            if isinstance(effect, SendReport):
                sent.append(effect)
            if isinstance(effect, RunTask):
                bench.failed(1, effect.id, TaskError("e", "ж" * 500))  # A bit more than 1 KB.

    for _ in range(13):
        carry_out()
    for _ in range(2):
        bench.acknowledged(sent[-1].request)
        carry_out()
    assert [len(one.failures) for one in sent] == [1, 9, 2]
