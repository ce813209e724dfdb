"""Finding the coordinator that leads, and asking it, on the loop of a client."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from tasksprint.asking.rota import Rota, error_words, leader_hint, other_cluster
from tasksprint.errors import (
    PeerUnreachable,
    Refused,
    RemoteProtocolError,
    SettingsError,
    UnprovenAnswer,
)
from tasksprint.net.gate import CountedWarnings
from tasksprint.net.http_client import HttpClient
from tasksprint.net.http_messages import MISDIRECTED, HttpResponse

__all__ = ["MEMBERS_HEADER", "LeaderFinder"]

AnswerT = TypeVar("AnswerT")

_WRONG_KEY = 401
_UNAVAILABLE = 503
# Each view carries the members' addresses: so a client finds members that were added since.
MEMBERS_HEADER = "members"

_log = logging.getLogger("tasksprint.client")

# Longer than an election: after this a process says once that it finds nobody.
_WARN_AFTER_MS = 2_000
# So long a wrong answer is shown where people look.
_SHOWN_MS = 600_000
_SHOWN_CHARS = 200


def _refusal(cluster: str) -> Exception:
    return SettingsError(f"all coordinators that were named are of cluster {cluster!r}")


class LeaderFinder:
    """Asks whoever leads, through elections and restarts.

    A bad answer (no proof, a bug, nonsense) ends nothing. The next coordinator is asked, one
    warning is logged, and `complaint` tells of it for a while.

    Args:
        now_ms: The clock.
        refuse: Makes the error with which asking ends once all known coordinators belong to
            another cluster. It gets the name of one such cluster.
        ends_by_wrong_key: Whether to end once all that answer call the key wrong. Anybody
            could say so: set it only if no coordinator has ever taken this key.
    """

    def __init__(
        self,
        addresses: list[str],
        http: HttpClient,
        rng: random.Random,
        now_ms: Callable[[], int],
        *,
        refuse: Callable[[str], Exception] = _refusal,
        ends_by_wrong_key: bool = False,
    ) -> None:
        # Only members of this cluster, or of one that goes on for it, count; None: anybody.
        self.cluster: str | None = None
        self._refuse = refuse
        self._elsewhere: dict[str, str] = {}  # the clusters of those who aren't, by address
        self.ends_by_wrong_key = ends_by_wrong_key
        self._refusing_key: dict[str, bool] = {}  # address -> it says so; False: silent
        self._wrong: tuple[int, str] | None = None  # the last wrong answer: when, what
        self._warnings = CountedWarnings(_log, now_ms=now_ms)
        self._rota = Rota(addresses)
        self._http = http
        self._random = rng
        self._now_ms = now_ms
        self._addresses = addresses
        self._missed_since_ms: int | None = None
        self._has_warned = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        wait_ms: int = 0,
        give_up_ms: int | None = None,
    ) -> HttpResponse:
        """As `ask`, for callers that take every answer as it is."""
        return await self.ask(
            method,
            path,
            lambda response: response,
            query=query,
            body=body,
            wait_ms=wait_ms,
            give_up_ms=give_up_ms,
        )

    async def ask(
        self,
        method: str,
        path: str,
        read: Callable[[HttpResponse], AnswerT],
        *,
        query: Mapping[str, str | int] | None = None,
        body: bytes = b"",
        wait_ms: int = 0,
        give_up_ms: int | None = None,
        digest: str | None = None,
    ) -> AnswerT:
        """Return what `read` makes of the leader's answer.

        Args:
            read: Gets the first answer that isn't "not me", whatever its status. If `read`
                raises `Refused` or `RemoteProtocolError`, this was a bad answer.
            wait_ms: How long the answer itself may take on purpose (a long poll).
            give_up_ms: Stop looking after this; None: look for ever.
            digest: SHA-256 that the body of a 2xx answer must have.

        Raises:
            PeerUnreachable: Nobody led within `give_up_ms`.
            UnprovenAnswer: All that answer have another key.
            Exception: The one made by `refuse`.
        """
        settings = self._http.settings
        if self.cluster is not None:
            query = {**(query or {}), "cluster": self.cluster}
        answer_ms = settings.leader_answer_timeout_ms
        started_ms = self._now_ms()
        while True:
            address = self._rota.address
            asked_ms = self._now_ms()
            try:
                response = await self._http.request(
                    address,
                    method,
                    path,
                    query=query,
                    body=body,
                    wait_ms=wait_ms,
                    answer_timeout_ms=answer_ms,
                    digest=digest,
                )
            except PeerUnreachable as error:
                pause_s, cause = self._rota.failed(), str(error)
                self._refusing_key[address] = False
                if self._now_ms() - asked_ms >= answer_ms:
                    # Not stalled but slow, perhaps: then it must get its time in the end.
                    answer_ms = min(2 * answer_ms, settings.answer_timeout_ms)
            except RemoteProtocolError as error:
                pause_s, cause = self._rota.failed(), str(error)
                self._take_wrong(address, error)
            else:
                self._refusing_key.pop(address, None)
                cluster = other_cluster(response) if response.status == MISDIRECTED else None
                if cluster is not None:
                    pause_s, cause = self._rota.failed(), f"{address} is of cluster {cluster}"
                    self._elsewhere[address] = cluster
                    if self._elsewhere.keys() >= set(self._rota.known):
                        raise self._refuse(cluster)
                elif response.status == MISDIRECTED:
                    pause_s = self._rota.redirected(leader_hint(response))
                    cause = error_words(response) or f"{address} doesn't lead"
                    self._elsewhere.pop(address, None)
                elif response.status == _UNAVAILABLE:
                    pause_s, cause = self._rota.failed(), f"{address} is not ready"
                else:
                    self._elsewhere.pop(address, None)
                    try:
                        answer = read(response)
                    except (Refused, RemoteProtocolError) as error:
                        pause_s, cause = self._rota.failed(), f"{address} answers: {error}"
                        self._take_wrong(address, error)
                    else:
                        self._rota.answered()
                        self._found(address)
                        return answer
            self._missed(cause)
            if give_up_ms is not None and self._now_ms() - started_ms >= give_up_ms:
                raise PeerUnreachable(f"no coordinator answers: {cause}")
            await asyncio.sleep(pause_s * (1 + self._random.random() / 4))

    @property
    def complaint(self) -> str | None:
        """The latest bad answer of a coordinator, if it isn't older than a while."""
        if self._wrong is None or self._now_ms() - self._wrong[0] > _SHOWN_MS:
            return None
        return self._wrong[1]

    def _take_wrong(self, address: str, error: Refused | RemoteProtocolError) -> None:
        """Take note of an answer that is impossible, or can't be believed."""
        text = str(error.args[0])
        if address not in text:
            text = f"{address} answers: {text}"
        self._wrong = (self._now_ms(), text[:_SHOWN_CHARS])
        self._warnings.warn(
            (address, text[:40]), f"an answer is disregarded, another coordinator is asked: {text}"
        )
        is_refusing = isinstance(error, UnprovenAnswer) and error.status == _WRONG_KEY
        if not is_refusing:
            self._refusing_key.pop(address, None)
            return
        self._refusing_key[address] = True
        if self.ends_by_wrong_key and self._refusing_key.keys() >= set(self._rota.known):
            raise error

    def learn(self, addresses: list[str]) -> None:
        """Take the addresses of the members as the leader knows them: they change."""
        self._rota.learn(addresses)

    def _missed(self, cause: str) -> None:
        now_ms = self._now_ms()
        if self._missed_since_ms is None:
            self._missed_since_ms = now_ms
        elif not self._has_warned and now_ms - self._missed_since_ms >= _WARN_AFTER_MS:
            self._has_warned = True
            _log.warning(
                "no coordinator leads at %s, still looking: %s", ", ".join(self._addresses), cause
            )

    def _found(self, address: str) -> None:
        if self._has_warned:
            _log.info("the coordinator at %s leads", address)
            self._has_warned = False
        self._missed_since_ms = None
