"""Where inputs come from: fetching, holders that fail, results held, values lost."""

from __future__ import annotations

from dataclasses import replace

from .helpers import (
    COMMAND,
    DIGEST,
    ME,
    PROGRAM,
    RESULT,
    SETTINGS,
    AttemptFailed,
    Bench,
    Drop,
    FetchInputs,
    FetchRequest,
    HeldResult,
    Input,
    Note,
    PrepareProgram,
    ReleaseCopies,
    Stop,
    digest_of,
    held_by,
    made_here,
    manifest,
    report,
    run,
    stored,
    task,
)

OTHER = digest_of(manifest("result", salt="other"))


def request(tid: int, *keys: str, digest: str = DIGEST) -> FetchRequest:
    return FetchRequest(1, tid, digest, keys or ("result",))


def test_input_held_by_another_client_is_fetched_at_once() -> None:
    """Though the other input isn't made yet: rolling."""
    bench = Bench()
    bench.serving(1)
    merge = task(2, held_by(7, tid=0), made_here(1))
    bench.view(task(1), merge)
    bench.expect(run(task(1), id=2), FetchInputs(7, (request(0),)))
    bench.fetched(0)
    bench.assert_empty()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(1, id=2), run(merge, id=3, digests=(DIGEST, DIGEST)))
    bench.done(1, 3, after_us=1_000)
    bench.expect(stored(2, id=3), ReleaseCopies(((1, 0, DIGEST),)))


def test_waiting_task_occupies_no_slot() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)), task(2))
    bench.expect(run(task(2), id=2), FetchInputs(7, (request(0),)))


def test_all_keys_of_one_pretask_are_asked_for_together() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0, key="a"), held_by(7, tid=0, key="b")))
    bench.expect(FetchInputs(7, (request(0, "a", "b"),)))


def test_copy_serves_all_tasks_that_want_it_and_is_released_with_the_last() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    tasks = [task(1, held_by(7, tid=0)), task(2, held_by(7, tid=0))]
    bench.view(*tasks)
    bench.expect(FetchInputs(7, (request(0),)))
    bench.fetched(0)
    bench.expect(
        run(tasks[0], node=1, id=2, digests=(DIGEST,)),
        run(tasks[1], node=2, id=2, digests=(DIGEST,)),
    )
    bench.done(2, 2)
    bench.expect(stored(2, node=2, id=2))
    bench.done(1, 2)
    bench.expect(stored(1, id=2), ReleaseCopies(((1, 0, DIGEST),)))


def test_another_key_of_a_copy_is_fetched_after_the_first() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    values = manifest("a", "b")
    digest = digest_of(values)
    first = task(1, held_by(7, tid=0, key="a", digest=digest))
    second = task(2, held_by(7, tid=0, key="b", digest=digest))
    bench.view(first)
    bench.expect(FetchInputs(7, (request(0, "a", digest=digest),)))
    bench.view(second)
    bench.assert_empty()
    bench.fetched(0, values)
    bench.expect(FetchInputs(7, (request(0, "b", digest=digest),)))
    bench.fetched(0, values)
    bench.expect(
        run(first, node=1, id=2, digests=(digest,)),
        run(second, node=2, id=2, digests=(digest,)),
    )


def test_requests_are_grouped_by_client_and_spread_over_holders() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(*[task(10 + tid, held_by(7, 8, tid=tid)) for tid in range(4)])
    bench.expect(
        FetchInputs(7, (request(0), request(2))), FetchInputs(8, (request(1), request(3)))
    )


def test_fetches_under_way_are_limited_and_the_rest_follows() -> None:
    bench = Bench(
        settings=replace(SETTINGS, fetches_per_peer_max=1, fetches_max=2, fetch_batch_max=2)
    )
    bench.serving(1)
    bench.view(*[task(10 + tid, held_by(7, tid=tid)) for tid in range(3)])
    bench.expect(FetchInputs(7, (request(0), request(1))))
    bench.view(task(20, held_by(8, tid=5)), task(21, held_by(9, tid=6)))
    bench.expect(FetchInputs(8, (request(5),)))
    bench.fetched(0)
    bench.expect(run(task(10, held_by(7, tid=0)), id=2, digests=(DIGEST,)))
    bench.fetched(1)
    bench.expect(FetchInputs(7, (request(2),)))
    bench.fetch_failed(5, 8)
    bench.expect(
        Note("job=1 tid=5 holder=8 couldn't be fetched: no answer"),
        FetchInputs(9, (request(6),)),
    )


def test_another_holder_is_asked_when_one_fails() -> None:
    bench = Bench()
    bench.serving(1)
    merge = task(1, held_by(7, 8, tid=0))
    bench.view(merge)
    bench.expect(FetchInputs(7, (request(0),)))
    bench.fetch_failed(0, 7, "connection refused")
    bench.expect(
        Note("job=1 tid=0 holder=7 couldn't be fetched: connection refused"),
        FetchInputs(8, (request(0),)),
    )
    bench.fetched(0)
    bench.expect(run(merge, id=2, digests=(DIGEST,)))


def test_when_all_holders_fail_they_are_asked_again_after_growing_pauses() -> None:
    """And the note comes once."""
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)))
    bench.fetch_failed(0, 7)
    bench.expect(Note("job=1 tid=0 holder=7 couldn't be fetched: no answer"))
    for pause_ms in (100, 200, 400, 400):
        bench.pass_time(pause_ms - 1)
        bench.assert_empty()
        bench.pass_time(1)
        bench.expect(FetchInputs(7, (request(0),)))
        bench.fetch_failed(0, 7)
    bench.assert_empty()


def test_new_holder_in_the_view_ends_the_pause() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)))
    bench.effects()
    bench.fetch_failed(0, 7)
    bench.effects()
    bench.view(task(1, held_by(8, tid=0)))
    bench.expect(FetchInputs(8, (request(0),)))
    bench.fetched(0)
    bench.expect(run(task(1, held_by(8, tid=0)), id=2, digests=(DIGEST,)))
    bench.pass_time(1_000)
    bench.assert_empty()


def test_input_without_holders_waits_for_the_view() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, Input(0, "result", DIGEST, ())))
    bench.assert_empty()
    bench.view(task(1, held_by(7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)))


def test_copy_under_way_for_a_stopped_task_is_released_on_arrival() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)))
    bench.effects()
    bench.view(stop=(Stop(1, 1, 1),))
    bench.assert_empty()
    bench.fetched(0)
    bench.expect(ReleaseCopies(((1, 0, DIGEST),)))


def test_answer_to_nobody_is_released() -> None:
    bench = Bench()
    bench.fetched(0)
    bench.expect(ReleaseCopies(((1, 0, DIGEST),)))
    bench.fetch_failed(0, 7)
    bench.assert_empty()


def test_result_in_the_store_at_the_start_is_an_input() -> None:
    bench = Bench(held=(HeldResult(1, 0, DIGEST),))
    bench.serving(1)
    merge = task(1, held_by(ME, 7, tid=0))
    bench.view(merge)
    bench.expect(run(merge, id=2, digests=(DIGEST,)))
    assert bench.workbench.held_results() == [(1, 0, DIGEST)]


def test_result_held_with_other_bytes_is_not_the_input() -> None:
    bench = Bench(held=(HeldResult(1, 0, OTHER),))
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)))


def test_holder_that_does_not_hold_says_so_and_asks_others() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(ME, 7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)), report(2, lost=((1, 0),)))


def test_result_that_a_peer_asked_for_in_vain_is_reported_lost() -> None:
    bench = Bench(held=(HeldResult(1, 5, DIGEST),))
    bench.workbench.result_missing(1, 4)
    bench.workbench.result_missing(1, 5)
    bench.view(task(6))
    bench.workbench.result_missing(1, 6)
    bench.expect(PrepareProgram(PROGRAM, COMMAND), report(1, lost=((1, 4),)))


def test_result_that_cannot_be_read_any_more_is_lost_and_fetched() -> None:
    bench = Bench(held=(HeldResult(1, 0, DIGEST),))
    bench.serving(1)
    merge = task(1, held_by(ME, 7, tid=0))
    bench.view(merge)
    bench.expect(run(merge, id=2, digests=(DIGEST,)))
    bench.workbench.run_refused(1, 2, {0: None}, bench.now_ms)
    bench.expect(FetchInputs(7, (request(0),)), report(2, lost=((1, 0),)))
    bench.fetched(0)
    bench.expect(run(merge, id=3, digests=(DIGEST,)))
    assert bench.workbench.held_results() == []


def test_copy_that_the_cache_has_lost_is_fetched_again_for_all() -> None:
    bench = Bench()
    bench.serving(1)
    tasks = [task(1, held_by(7, tid=0)), task(2, held_by(7, tid=0))]
    bench.view(*tasks)
    bench.effects()
    bench.fetched(0)
    bench.expect(run(tasks[0], id=2, digests=(DIGEST,)))
    bench.workbench.run_refused(1, 2, {0: None}, bench.now_ms)
    bench.expect(FetchInputs(7, (request(0),)))
    bench.fetched(0)
    bench.expect(run(tasks[0], id=3, digests=(DIGEST,)))


def test_missing_key_of_a_result_from_before_the_start_is_told_as_such() -> None:
    """The keys weren't known; the shell found out when it wanted to write the line."""
    bench = Bench(held=(HeldResult(1, 0, DIGEST),))
    bench.serving(1)
    bench.view(task(1, held_by(ME, tid=0, key="reslut"), name="merge"))
    bench.effects()
    bench.workbench.run_refused(1, 2, {0: RESULT}, bench.now_ms)
    error = "task 1 'merge' needs the value 'reslut' of task 0, which returned 'result'"
    bench.expect(report(2, failures=(AttemptFailed(1, 1, 1, error, True, {}),)))


def test_missing_key_of_a_copy_fails_the_task_for_good() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0, key="reslut"), name="merge"))
    bench.effects()
    bench.fetched(0)
    error = "task 1 'merge' needs the value 'reslut' of task 0, which returned 'result'"
    bench.expect(
        ReleaseCopies(((1, 0, DIGEST),)),
        report(2, failures=(AttemptFailed(1, 1, 1, error, True, {}),)),
    )


def test_new_attempt_at_a_pretask_is_waited_for() -> None:
    """The value of the older attempt is void; to consume it would make this one void."""
    bench = Bench(held=(HeldResult(1, 0, OTHER),))
    bench.serving(1)
    merge = task(1, made_here(0))
    bench.view(task(0, attempt=2), merge)
    bench.expect(run(task(0, attempt=2), id=2))
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2, attempt=2), run(merge, id=3, digests=(DIGEST,)))


def test_input_that_becomes_canonical_elsewhere_before_the_task_runs_is_fetched() -> None:
    """1. Task 0 is made here; its dependent waits for a slot. 2. The log counts another
    client's completion of task 0, with other bytes. 3. The dependent must consume those."""
    bench = Bench()
    bench.serving(1)
    merge = task(2, made_here(0))
    bench.view(task(0), task(1), merge)
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2), run(task(1), id=3))
    canonical = task(2, held_by(7, tid=0, digest=OTHER))
    bench.view(canonical)
    bench.expect(FetchInputs(7, (request(0, digest=OTHER),)))
    bench.fetched(0, manifest("result", salt="other"))
    bench.done(1, 3, after_us=1_000)
    bench.expect(stored(1, id=3), run(canonical, id=4, digests=(OTHER,)))


def test_value_made_here_with_the_digest_wanted_makes_the_fetch_needless() -> None:
    """A lost result is made again here while its only holder can't be reached."""
    bench = Bench()
    bench.serving(1)
    merge = task(1, held_by(7, tid=0))
    bench.view(task(0, attempt=2), merge)
    bench.expect(run(task(0, attempt=2), id=2), FetchInputs(7, (request(0),)))
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2, attempt=2), run(merge, id=3, digests=(DIGEST,)))
    bench.fetch_failed(0, 7)
    bench.assert_empty()


def test_value_made_here_with_another_digest_is_not_the_one_wanted() -> None:
    bench = Bench()
    bench.serving(1)
    merge = task(1, held_by(7, tid=0, digest=OTHER))
    bench.view(task(0, attempt=2), merge)
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(0, id=2, attempt=2))
    bench.fetched(0, manifest("result", salt="other"))
    bench.expect(run(merge, id=3, digests=(OTHER,)))


def test_dropped_value_that_a_ready_task_counted_on_is_looked_for_again() -> None:
    bench = Bench(held=(HeldResult(1, 0, DIGEST),))
    bench.serving(1)
    bench.view(task(5))
    bench.effects()
    bench.view(task(1, held_by(ME, 7, tid=0)))
    bench.view(drop=(Drop(1, 0, DIGEST),))
    bench.effects()
    bench.done(1, 2, after_us=1_000)
    bench.expect(
        stored(5, id=2), FetchInputs(7, (request(0),)), report(2, lost=((1, 0),))
    )


def test_full_cache_holds_fetches_back_until_copies_are_released() -> None:
    bench = Bench(settings=replace(SETTINGS, value_cache_bytes_max=100, fetch_batch_max=1))
    bench.serving(1)
    big = manifest("result", size=60)
    digest = digest_of(big)
    tasks = [task(10 + tid, held_by(7, tid=tid, digest=digest)) for tid in range(6)]
    bench.view(*tasks)
    bench.expect(*[FetchInputs(7, (request(tid, digest=digest),)) for tid in range(4)])
    for tid in range(4):
        bench.fetched(tid, big)
    bench.expect(run(tasks[0], id=2, digests=(digest,)))
    for number in range(2):
        bench.done(1, 2 + number, after_us=1_000)
        bench.expect(
            stored(10 + number, id=2 + number),
            run(tasks[number + 1], id=3 + number, digests=(digest,)),
            ReleaseCopies(((1, number, digest),)),
        )
    bench.done(1, 4, after_us=1_000)
    bench.expect(
        stored(12, id=4),
        run(tasks[3], id=5, digests=(digest,)),
        ReleaseCopies(((1, 2, digest),)),
        *[FetchInputs(7, (request(tid, digest=digest),)) for tid in (4, 5)],
    )


def test_copy_that_is_released_and_wanted_again_at_once_stays_pinned() -> None:
    """The shell pins it when it is asked for: a release behind that would undo it."""
    bench = Bench()
    bench.serving(1)
    values = manifest("result")
    digest = digest_of(values)
    first, second = (task(tid, held_by(7, tid=0, digest=digest)) for tid in (10, 11))
    bench.view(first)
    bench.expect(FetchInputs(7, (request(0, digest=digest),)))
    bench.fetched(0, values)
    bench.expect(run(first, id=2, digests=(digest,)))
    bench.done(1, 2, after_us=1_000)
    bench.view(second)
    bench.expect(
        stored(10, id=2),
        ReleaseCopies(((1, 0, digest),)),
        FetchInputs(7, (request(0, digest=digest),)),
    )


def test_task_with_more_inputs_than_the_cache_takes_still_runs() -> None:
    """One input at a time, since nothing else would ever make room."""
    bench = Bench(settings=replace(SETTINGS, value_cache_bytes_max=100, fetch_batch_max=1))
    bench.serving(1)
    big = manifest("result", size=200)
    digest = digest_of(big)
    merge = task(9, *[held_by(7, tid=tid, digest=digest) for tid in range(7)])
    bench.view(merge)
    bench.expect(*[FetchInputs(7, (request(tid, digest=digest),)) for tid in range(4)])
    for tid in range(4):
        bench.fetched(tid, big)
    for tid in range(4, 7):
        bench.expect(FetchInputs(7, (request(tid, digest=digest),)))
        bench.fetched(tid, big)
    bench.expect(run(merge, id=2, digests=(digest,) * 7))


def test_dependent_of_a_new_attempt_does_not_run_with_the_older_value() -> None:
    bench = Bench(slots=2, held=(HeldResult(1, 0, OTHER),))
    bench.serving(1, 2)
    bench.view(task(0, attempt=2), task(1, made_here(0)))
    bench.expect(run(task(0, attempt=2), id=2))


def test_holder_that_went_and_came_back_is_asked_at_once() -> None:
    bench = Bench()
    bench.serving(1)
    bench.view(task(1, held_by(7, tid=0)), task(2, held_by(7, tid=0)))
    bench.effects()
    bench.fetch_failed(0, 7)
    bench.effects()
    bench.view(task(1, Input(0, "result", DIGEST, ())))
    bench.view(task(1, held_by(7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)))


def test_request_that_waits_for_a_client_that_is_no_holder_any_more_goes_to_another() -> None:
    """Others of the same job still need the copy, so it lives through the change."""
    bench = Bench(settings=replace(SETTINGS, fetches_per_peer_max=1, fetch_batch_max=1))
    bench.serving(1)
    bench.view(task(10, held_by(7, tid=0)))
    bench.expect(FetchInputs(7, (request(0),)))
    bench.view(task(11, held_by(7, tid=1)), task(12, held_by(7, tid=1)))
    bench.assert_empty()
    bench.view(task(11, held_by(8, tid=1)))
    bench.expect(FetchInputs(8, (request(1),)))
    bench.fetched(1)
    bench.expect(run(task(11, held_by(8, tid=1)), id=2, digests=(DIGEST,)))


def test_lost_copy_does_not_disturb_a_task_that_runs_with_it() -> None:
    bench = Bench(slots=2)
    bench.serving(1, 2)
    tasks = [task(1, held_by(7, tid=0)), task(2, held_by(7, tid=0))]
    bench.view(*tasks)
    bench.effects()
    bench.fetched(0)
    bench.effects()
    bench.workbench.run_refused(2, 2, {0: None}, bench.now_ms)
    bench.expect(FetchInputs(7, (request(0),)))
    bench.done(1, 2, after_us=1_000)
    bench.expect(stored(1, id=2))
    bench.fetched(0)
    bench.expect(run(tasks[1], node=1, id=3, digests=(DIGEST,)))
