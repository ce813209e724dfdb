"""A cluster as the commands see it: blocking calls to its leader.

The command line imports this and no asyncio: `status` should answer in a blink.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasksprint.asking.rota import Rota, error_words, leader_hint
from tasksprint.encoding import encode_json
from tasksprint.errors import PeerUnreachable, Refused, RemoteProtocolError, UsageError
from tasksprint.ids import JobId
from tasksprint.net.http_blocking import request_blocking
from tasksprint.net.http_messages import MISDIRECTED, HttpResponse
from tasksprint.net.keys import ClusterKey
from tasksprint.next_steps import program_command
from tasksprint.process.clock import monotonic_ms
from tasksprint.process.job_directory import MANIFEST_NAME, Manifest, pack, read_job
from tasksprint.settings import Settings

__all__ = ["Cluster", "JobOutcome", "parse_params", "read_job_option", "status_of_coordinator"]

_UNAVAILABLE = 503
# How long an ended job's schedulers may be compared, and how often that is looked at.
_COMPARED_MS = 1_500
_COMPARED_PAUSE_S = 0.02
# A sentence names so many coordinators at most, each with its answer or its failure.
_CAUSES_MAX = 5


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job stands, as commands print it."""

    job: JobId
    name: str
    state: str  # "running", "finished", "failed" or "cancelled"
    tasks: dict[str, int]
    values: str | None  # JSON text that `finish` was given
    error: str | None
    seconds: float
    obstacle: dict[str, str] | None = None  # what it waits for: `kind` and `text`
    long_run: dict[str, Any] | None = None  # the task that has been running longest
    failure: dict[str, Any] | None = None  # of a failed job, the last failure: its cause mostly
    log_lines: int = 0  # how many lines its scheduler has logged
    failures: int = 0  # how many attempts have failed
    news: str = ""  # changes with its end, a line, or a failure
    warnings: tuple[str, ...] = ()  # why another run may give another result

    def encode(self) -> bytes:
        """Return one JSON object; the values stand in it as the scheduler wrote them."""
        fields: dict[str, Any] = {
            "job": self.job,
            "name": self.name,
            "state": self.state,
            "tasks": self.tasks,
            "seconds": round(self.seconds, 3),
        }
        if self.error is not None:
            fields["error"] = self.error
        if self.obstacle is not None:
            fields["obstacle"] = self.obstacle
        if self.long_run is not None:
            fields["long_run"] = self.long_run
        if self.failure is not None:
            fields["failure"] = self.failure
        if self.warnings:
            fields["warnings"] = self.warnings
        head = encode_json(fields)
        values = "null" if self.values is None else self.values
        return head[:-1] + b',"values":' + values.encode() + b"}"


class Cluster:
    """Calls to one cluster.

    Args:
        name: Coordinators of other clusters don't answer; None: any cluster is right.
    """

    def __init__(
        self,
        addresses: list[str],
        key: ClusterKey,
        settings: Settings,
        *,
        name: str | None = None,
    ) -> None:
        self._name = name
        self._addresses = list(addresses)
        self._rota = Rota(addresses)
        self._key = key
        self._settings = settings

    @property
    def settings(self) -> Settings:
        """The tunables of this process."""
        return self._settings

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        wait_ms: int = 0,
        give_up_ms: int | None = None,
    ) -> HttpResponse:
        """Return the leader's answer.

        Raises:
            PeerUnreachable: No coordinator led within `give_up_ms` (default: a setting).
            Refused: The leader refused; with its words.
            RemoteProtocolError: At every address a stranger answered, or one with
                another key.
        """
        limit_ms = self._settings.find_leader_timeout_ms if give_up_ms is None else give_up_ms
        started_ms = monotonic_ms()
        answers: dict[str, str] = {}  # the last words from each address that answered …
        failures: dict[str, str] = {}  # … and why the others didn't
        strange: set[str] = set()  # where something answers that can't be believed
        while True:
            address = self._rota.address
            try:
                response = self._ask(address, method, path, query, body, wait_ms)
            except (PeerUnreachable, RemoteProtocolError) as error:
                pause_s = self._rota.failed()
                failures[address] = str(error)
                answers.pop(address, None)
                strange.discard(address)
                if isinstance(error, RemoteProtocolError):
                    strange.add(address)
                    if strange.issuperset(self._rota.known):
                        raise
            else:
                strange.discard(address)
                failures.pop(address, None)
                if response.status == MISDIRECTED:
                    pause_s = self._rota.redirected(leader_hint(response))
                    answers[address] = error_words(response) or f"{address} doesn't lead"
                elif response.status == _UNAVAILABLE:
                    pause_s = self._rota.failed()
                    answers[address] = error_words(response) or "not ready"
                else:
                    self._rota.answered()
                    return response.checked()
            if monotonic_ms() - started_ms >= limit_ms:
                raise self._nobody(answers, failures)
            time.sleep(pause_s)

    def _nobody(self, answers: dict[str, str], failures: dict[str, str]) -> PeerUnreachable:
        """Return an error with everybody who was asked for the leader, and their answers."""
        what, hint = "answers", f"start one with '{program_command('coordinator')}'"
        if answers:
            what = "leads"
            hint = f"a majority of them must be up: see '{program_command('status')}'"
        # A coordinator that answers and doesn't lead tells more than one that is gone.
        causes = [self._cause(*said) for said in (*answers.items(), *failures.items())]
        if len(causes) > _CAUSES_MAX:
            causes[_CAUSES_MAX:] = [f"{len(causes) - _CAUSES_MAX} more"]
        return PeerUnreachable(
            f"no coordinator {what} at {', '.join(self._addresses)}: {'; '.join(causes)}",
            hint=f"{hint}; or name others with --coordinators",
        )

    def _cause(self, address: str, text: str) -> str:
        """Return the words from an address; they begin with it, unless it is plain already."""
        is_named = address in text or text.startswith("replica ") or len(self._addresses) == 1
        return text if is_named else f"{address}: {text}"

    def also_ask(self, addresses: list[str]) -> None:
        """Look for the leader at these addresses, too."""
        new = [address for address in addresses if address not in self._addresses]
        self._addresses += new
        self._rota.add(new)

    def direct(
        self,
        address: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        checks_rest: bool = False,
        repeatable: bool = True,
    ) -> HttpResponse:
        """Ask one process, whether it leads or not.

        Args:
            checks_rest, repeatable: As for `request_blocking`.
        """
        response = self._ask(
            address,
            method,
            path,
            query,
            body,
            0,
            checks_rest=checks_rest,
            repeatable=repeatable,
        )
        return response.checked()

    def _ask(
        self,
        address: str,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        body: bytes,
        wait_ms: int,
        *,
        checks_rest: bool = False,
        repeatable: bool = True,
    ) -> HttpResponse:
        if self._name is not None:
            query = {**(query or {}), "cluster": self._name, "exact": 1}
        return request_blocking(
            address,
            method,
            path,
            key=self._key,
            settings=self._settings,
            query=query,
            body=body,
            wait_ms=wait_ms,
            checks_rest=checks_rest,
            repeatable=repeatable,
        )

    # --- jobs ---

    def submit(self, directory: Path, manifest: Manifest, *, seed: int, params: str) -> JobId:
        """Hand a job to the cluster, once, and return its id."""
        archive, _ = pack(directory, archive_bytes_max=self._settings.archive_bytes_max)
        digest = self.request("POST", "/v1/programs", body=archive).json()["digest"]
        reply = self.order(
            "/v1/jobs",
            name=manifest.name,
            seed=seed,
            params=params,
            program=digest,
            manifest=manifest.encode(),
        )
        return JobId(reply["job"])

    def order(self, path: str, **fields: str | int) -> Any:
        """Have something done once, however often it must be asked for; return the reply.

        Raises:
            Refused: The state machine says no; with its words.
        """
        body = encode_json({"sender": os.urandom(8).hex(), "request": 1, **fields})
        reply = self.request("POST", path, body=body).json()
        if "error" in reply:
            raise Refused(reply["error"])
        return reply

    def job(self, job: JobId, *, wait_ms: int = 0, seen: str = "") -> tuple[JobOutcome, str]:
        """Return how a job stands, and a version to name as `seen` the next time."""
        query: dict[str, str | int] = {"wait_ms": wait_ms, "seen": seen}
        path = f"/v1/jobs/{job}"
        summary = self.request("GET", path, query=query, wait_ms=wait_ms).json()
        return _outcome(summary), summary["version"]

    def job_with_news(
        self, job: JobId, *, wait_ms: int, heard: str, give_up_ms: int
    ) -> JobOutcome:
        """Return how a job stands, as soon as there is news since the last answer."""
        query: dict[str, str | int] = {"wait_ms": wait_ms, "heard": heard}
        path = f"/v1/jobs/{job}"
        return _outcome(
            self.request(
                "GET", path, query=query, wait_ms=wait_ms, give_up_ms=give_up_ms
            ).json()
        )

    def job_notes(
        self, job: JobId, first_line: int, first_failure: int
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the lines that the scheduler logged and the failures, from these numbers on."""
        found = self.job_log(job, first_line=first_line, first_failure=first_failure)
        return found["log"], found["failures"]

    def job_log(
        self, job: JobId, *, first_line: int = 0, first_failure: int = 0
    ) -> dict[str, Any]:
        """Return a coordinator's answer about a job's log, with all lines from a number on."""
        lines: list[str] = []
        while True:
            query = {"first_line": first_line + len(lines), "first_failure": first_failure}
            found = self.request("GET", f"/v1/jobs/{job}/log", query=query).json()
            lines += found["log"]
            # (An answer has 8 MiB of them at most.)
            if not found["log"] or first_line + len(lines) >= found["log_lines"]:
                return {**found, "log": lines}

    def follow(self, job: JobId) -> Iterator[JobOutcome]:
        """Yield how a job stands each time that this changed; last, how it ended."""
        seen = ""
        while True:
            outcome, version = self.job(job, wait_ms=self._settings.view_poll_max_ms, seen=seen)
            if version != seen:
                seen = version
                yield outcome
            if outcome.state != "running":
                return

    def with_warnings(self, outcome: JobOutcome) -> JobOutcome:
        """Return how an ended job stands once its schedulers have been compared everywhere.

        This takes a moment longer than the job if one scheduler is behind. It never takes longer
        than a coordinator compares, and doesn't wait for coordinators that can't be reached.
        """
        limit_ms = monotonic_ms() + _COMPARED_MS
        addresses = list(self._addresses)
        while addresses and monotonic_ms() < limit_ms:
            addresses = [each for each in addresses if self._compares(each, outcome.job)]
            if addresses:
                time.sleep(_COMPARED_PAUSE_S)
        return self.job(outcome.job)[0]

    def _compares(self, address: str, job: JobId) -> bool:
        try:
            status = self.direct(address, "GET", "/v1/status").json()
            return bool(status["schedulers"].get(str(job), {}).get("is_compared"))
        except (PeerUnreachable, Refused, RemoteProtocolError, KeyError, TypeError):
            return False

    def task_values(self, job: JobId, tid: int) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Return the facts about a task, and (key, kind) of each of its values."""
        info = self.request("GET", f"/v1/jobs/{job}/tasks/{tid}").json()
        if not info.get("holders"):
            return info, []
        manifest = self._from_holder(info, f"/v1/values/{job}/{tid}").json()
        return info, [(key, kind) for key, kind, _, _ in manifest]

    def task_value(self, info: dict[str, Any], job: JobId, tid: int, key: str) -> bytes:
        """Return the bytes of one value of a task."""
        return self._from_holder(info, f"/v1/values/{job}/{tid}/{quote(key, safe='')}").body

    def _from_holder(self, info: dict[str, Any], path: str) -> HttpResponse:
        failures: list[str] = []
        for address in info["addresses"]:
            try:
                return self.direct(address, "GET", path)
            except (PeerUnreachable, Refused, RemoteProtocolError) as error:
                failures.append(str(error))
        raise PeerUnreachable("no client that has it answers: " + "; ".join(failures))


def status_of_coordinator(cluster: Cluster, address: str) -> dict[str, Any]:
    """Return a coordinator's words about itself.

    Raises:
        RemoteProtocolError: Something else answers: a client, or what isn't ours.
    """
    status = cluster.direct(address, "GET", "/v1/status").json_object()
    kinds = {"replica": int, "members": dict, "applied_slot": int, "cluster": str | None}
    if not all(isinstance(status.get(name), kind) for name, kind in kinds.items()):
        raise RemoteProtocolError(f"what answers at {address} is no coordinator")
    return status


def _outcome(summary: dict[str, Any]) -> JobOutcome:
    return JobOutcome(
        job=JobId(summary["job"]),
        name=summary["name"],
        state=summary["state"],
        tasks=summary["tasks"],
        values=summary.get("values"),
        error=summary.get("error"),
        seconds=summary["seconds"],
        obstacle=summary.get("obstacle"),
        long_run=summary.get("long_run"),
        warnings=tuple(summary.get("warnings", ())),
        failure=summary.get("failure"),
        log_lines=summary["log_lines"],
        failures=summary["failures"],
        news=summary.get("news", ""),
    )


# --- a job on the command line ---


def read_job_option(text: str, *, check_determinism: bool = False) -> tuple[Path, Manifest]:
    """Return the directory and the manifest of the JOB that the command line names.

    Args:
        check_determinism: Check its scheduler, whatever the manifest says.
    """
    path = Path(text)
    if path.name == MANIFEST_NAME and path.is_file():
        path = path.parent
    manifest = read_job(path)
    return path, replace(manifest, check_determinism=True) if check_determinism else manifest


def parse_params(manifest: Manifest, options: list[str]) -> str:
    """Return the job's parameters: the manifest's, and NAME=VALUE of the command line over them.

    A value that is valid JSON keeps its text; any other becomes a string. If the manifest has
    parameters at all, it has all of them: another name is a slip.

    Raises:
        UsageError: An option is malformed, or its name is unknown or was given before.
    """
    if not options:
        return manifest.params
    members: dict[str, str] = {}
    for name, value in json.loads(manifest.params, parse_float=_Number, parse_int=_Number).items():
        members[name] = _dump(value)
    declared = tuple(members)
    given: set[str] = set()
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--param {option!r} is not NAME=VALUE")
        if not _is_utf8(option):
            raise UsageError(f"--param {option!r} isn't UTF-8")
        if declared and name not in declared:
            nearest = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
            raise UsageError(
                f"--param {name!r} is none of the job's parameters",
                hint=f"did you mean {nearest[0]!r}?"
                if nearest
                else f"{MANIFEST_NAME} has {', '.join(map(repr, declared))}",
            )
        if name in given:
            raise UsageError(f"--param {name!r} is given twice")
        given.add(name)
        try:
            # As text: Python's own limit of digits says nothing about JSON.
            json.loads(value, parse_constant=_refuse_constant, parse_int=_Number)
            members[name] = value.strip()
        except RecursionError:
            raise UsageError(f"--param {name!r} is nested too deeply") from None
        except ValueError:
            members[name] = json.dumps(value, ensure_ascii=False)
    pairs = (f"{json.dumps(name, ensure_ascii=False)}:{text}" for name, text in members.items())
    return "{" + ",".join(pairs) + "}"


def _is_utf8(text: str) -> bool:
    """Return whether a text of the command line has no bytes that aren't UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Number(str):
    """A number of the manifest, as the text that stands there."""


def _dump(value: Any) -> str:
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_dump(name)}:{_dump(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_dump(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _refuse_constant(constant: str) -> Any:
    raise ValueError(constant)
