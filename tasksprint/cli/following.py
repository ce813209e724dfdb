"""Follows a job to its end, for `run`, `submit --wait` and `result --wait`.

A thread asks the leader. It answers at once when there are news, and after a second if there
are none. The caller's thread shows the news. It also says each second how the job stands, even
while nobody answers.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from tasksprint.asking.cluster import Cluster, JobOutcome
from tasksprint.cli.progress import Progress
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError
from tasksprint.ids import JobId

__all__ = ["follow_to_end"]

_ASK_MS = 1_000
# A task that was given up may end its job within so long: then it is told with the end.
_CAUSE_MS = 300


@dataclass(frozen=True, slots=True)
class _News:
    """The news from one answer."""

    outcome: JobOutcome
    lines: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()
    missed: int = 0
    output: tuple[tuple[int, int, int, str], ...] = ()  # (cid, tid, attempt, text)


def follow_to_end(
    cluster: Cluster,
    job: JobId,
    *,
    stream: TextIO | None = None,
    as_json: bool = False,
    with_logs: bool = False,
    with_hints: bool = True,
    is_known: bool = False,
    check: Callable[[], None] = lambda: None,
) -> JobOutcome:
    """Show on a stream how a job goes, until it has ended; return how it did.

    A job that was there once isn't lost while no coordinator answers: the waiting goes on.

    Args:
        stream: stderr, if none is named.
        is_known: A coordinator has taken the job. If not, and none ever answers, that is
            given up.
        with_logs: Show what nodes write to stderr, too.
        with_hints: If the job waits for something, say what can be done about it.
        check: Called every second or so; it may raise.
    """
    progress = Progress(
        stream or sys.stderr, now_s=time.monotonic(), as_json=as_json, with_hints=with_hints
    )
    found: queue.Queue[_News | BaseException] = queue.Queue()
    follower = _Follower(cluster, job, found.put, with_logs=with_logs, is_known=is_known)
    threading.Thread(target=follower.run, name="follow", daemon=True).start()
    try:
        return _show(progress, found, check)
    finally:
        follower.is_over = True
        progress.end()


def _show(
    progress: Progress,
    found: queue.Queue[_News | BaseException],
    check: Callable[[], None],
) -> JobOutcome:
    while True:
        now_s = time.monotonic()
        if now_s >= progress.line_due_s:
            check()
            progress.tell(now_s)
        try:
            item = found.get(timeout=max(progress.line_due_s - now_s, 0.01))
        except queue.Empty:
            continue
        now_s = time.monotonic()
        if isinstance(item, _Unanswered):
            progress.unanswered(str(item), now_s)
            continue
        if isinstance(item, BaseException):
            check()  # It may know better why nobody answers.
            raise item
        outcome = item.outcome
        if item.missed:
            progress.missed(item.missed)
        for cid, tid, attempt, text in item.output:
            progress.printed(cid, tid, attempt, text)
        for line in item.lines:
            progress.logged(line)
        for failure in item.failures:
            # The cause of the job's end stands beneath the sentence that tells the end.
            is_cause = outcome.failure is not None and (
                outcome.failure["number"] == failure["number"]
            )
            progress.failed(failure, in_full=failure["final"] and not is_cause)
        progress.stands(outcome, now_s)
        if outcome.state != "running":
            progress.tell(now_s)
            return outcome


class _Unanswered(Exception):
    """No coordinator has answered so far; the follower goes on."""


class _Follower:
    """Asks how a job stands, again and again, and hands over the news."""

    def __init__(
        self,
        cluster: Cluster,
        job: JobId,
        put: Callable[[_News | BaseException], None],
        *,
        with_logs: bool,
        is_known: bool,
    ) -> None:
        self.is_over = False  # Nobody waits for it any more.
        self._cluster = cluster
        self._job = job
        self._put = put
        self._with_logs = with_logs
        self._is_known = is_known  # the job, as a coordinator has taken it or told of it
        self._lines = 0  # those that were handed over
        self._failures = 0
        self._heard = ""
        self._outputs: dict[int, int] = {}  # the next piece of output, by client
        self._lost_since_s: float | None = None

    def run(self) -> None:
        """Ask until the job has ended, or nobody has ever answered for too long."""
        try:
            while not self.is_over and self._step():
                pass
        except BaseException as error:  # for the other thread, which waits
            self._put(error)

    def _step(self) -> bool:
        """Ask once; return whether to go on."""
        try:
            news = self._ask()
        except PeerUnreachable as error:
            now_s = time.monotonic()
            if self._lost_since_s is None:
                self._lost_since_s = now_s
            limit_s = self._cluster.settings.find_leader_timeout_ms / 1000
            if not self._is_known and now_s - self._lost_since_s >= limit_s:
                raise
            self._put(_Unanswered(str(error)))
            return True
        self._lost_since_s = None
        self._is_known = True
        self._put(news)
        return news.outcome.state == "running"

    def _ask(self) -> _News:
        outcome = self._outcome(_ASK_MS)
        lines: list[str] = []
        failures: list[dict[str, Any]] = []
        missed = 0
        if outcome.log_lines > self._lines or outcome.failures > self._failures:
            lines, failures = self._cluster.job_notes(self._job, self._lines, self._failures)
            self._lines += len(lines)
            if failures:
                missed = failures[0]["number"] - self._failures
                self._failures = failures[-1]["number"] + 1
        if outcome.state == "running" and any(failure["final"] for failure in failures):
            # Mostly its scheduler fails the job for it, a moment later.
            outcome = self._outcome(_CAUSE_MS)
        output = self._output() if self._with_logs else []
        return _News(outcome, tuple(lines), tuple(failures), missed, tuple(output))

    def _outcome(self, wait_ms: int) -> JobOutcome:
        outcome = self._cluster.job_with_news(
            self._job, wait_ms=wait_ms, heard=self._heard, give_up_ms=_ASK_MS
        )
        self._heard = outcome.news
        return outcome

    def _output(self) -> list[tuple[int, int, int, str]]:
        """Return what nodes wrote to stderr since the last time."""
        found: list[tuple[int, int, int, str]] = []
        for client in self._cluster.request("GET", "/v1/clients", give_up_ms=_ASK_MS).json():
            cid, address = client["cid"], client["address"]
            if client["state"] != "alive" or address is None:
                continue
            path = f"/v1/output/{self._job}"
            query = {"first": self._outputs.get(cid, 0)}
            try:
                answer = self._cluster.direct(address, "GET", path, query=query).json()
            except (PeerUnreachable, Refused, RemoteProtocolError):
                continue  # It is shown as soon as it can be had; 'logs' has it as well.
            self._outputs[cid] = answer["next"]
            found += [(cid, one["tid"], one["attempt"], one["text"]) for one in answer["parts"]]
        return found
