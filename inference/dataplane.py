"""What happens to a request: authorise, route, decode, batch, run, log, answer. Knows no transport and no database."""

from __future__ import annotations

import secrets
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from inference.batcher import Batcher, BatchResult, Job
from inference.contracts import (
    DeploymentEntry,
    EndpointEntry,
    Outcome,
    ServingManifest,
    TokenEntry,
    token_digest,
)
from inference.errors import (
    InferenceError,
    ModelFailed,
    NotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    RequestRejected,
    RequestTooLarge,
    Unauthenticated,
)
from inference.inference_log import Context, LogUnavailable, Record, Spool
from inference.metrics import Meter, Metrics
from inference.model_store import LoadedModel
from inference.protocol import BatchOutputs, InferRequest, ModelCodec
from inference.router import Router

MAX_CACHED_CALLERS: Final = 4096
ANSWERING_ROLES: Final = ("champion", "canary")


class Call(Job):
    """One prediction request, as a transport hands it in. The transport implements the four methods."""

    __slots__ = ("endpoint", "received_us", "request_id", "served", "token_id")

    endpoint: Endpoint
    served: Served
    received_us: int
    request_id: str
    token_id: int

    @abstractmethod
    def decode(self, codec: ModelCodec) -> InferRequest:
        """Read the request's tensors. Raises ``RequestRejected``."""

    @abstractmethod
    def sticky_key(self, header: str) -> bytes | None:
        """The value that keeps a caller on one version, if the caller sent it."""

    @abstractmethod
    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        """Answer with the rows of ``outputs`` that begin at ``start``."""

    @abstractmethod
    def fail(self, error: InferenceError) -> None:
        """Answer with an error."""


@dataclass(slots=True, eq=False)
class Served:
    """A model version on an endpoint, loaded and ready."""

    entry: DeploymentEntry
    model: LoadedModel
    codec: ModelCodec
    context: Context
    meter: Meter
    batcher: Batcher[Call]


class Endpoint:
    """One endpoint as the current manifest has it."""

    def __init__(self, entry: EndpointEntry, served: Sequence[Served]) -> None:
        self.entry = entry
        self.served = tuple(served)
        self.queued_rows = 0
        self.answering = [one for one in served if one.entry.role in ANSWERING_ROLES]
        targets = [one for one in served if one.entry.weight > 0]
        self._targets = targets
        self._router = Router(entry.name, [one.entry.weight for one in targets]) if targets else None
        self._access = {token.digest: token for token in entry.access}
        self._callers: dict[bytes, TokenEntry] = {}

    def route(self, call: Call) -> Served:
        """Pick the version that answers. Raises ``NotReady``."""
        if self._router is None:
            raise NotReady("No version of this endpoint is ready.", 2)
        header = self.entry.sticky_header
        return self._targets[self._router.pick(call.sticky_key(header) if header else None)]

    def version(self, number: str) -> Served:
        """The version asked for by number. Raises ``NotFound`` when it does not answer on this endpoint."""
        for one in self.answering:
            if str(one.entry.model_version) == number:
                return one
        raise NotFound(f"Version {number} does not serve on this endpoint.")

    def versions(self, number: str | None = None) -> list[Served]:
        """The versions that answer, the champion first; only the one with ``number`` if it is given.

        Raises ``NotReady`` when there is none, and ``NotFound`` as ``version`` does.
        """
        if number is not None:
            return [self.version(number)]
        if not self.answering:
            raise NotReady("No version of this endpoint is ready.", 2)
        return sorted(self.answering, key=lambda one: one.entry.role != "champion")

    def caller(self, authorization: bytes) -> TokenEntry | None:
        """The token behind an ``Authorization`` value that was seen before."""
        return self._callers.get(authorization)

    def admit(self, authorization: bytes, digest: str) -> TokenEntry | None:
        """The token with this digest if it may call the endpoint; remembered for the next time."""
        token = self._access.get(digest)
        if token is not None:
            if len(self._callers) >= MAX_CACHED_CALLERS:
                self._callers.clear()
            self._callers[authorization] = token
        return token


class Dataplane:
    """Everything that happens to requests in one replica. Lives on the event loop's thread."""

    def __init__(self, pepper: bytes, log: Spool, metrics: Metrics, executor: Executor) -> None:
        self._pepper = pepper
        self._log = log
        self._metrics = metrics
        self._executor = executor
        self._endpoints: dict[str, Endpoint] = {}
        self._has_manifest = False
        self._teams: dict[str, set[str]] = {}  # token digest -> teams with an endpoint that the token may call
        self.is_ready = False

    # -- what serves -------------------------------------------------------------------------------------------------

    def install(self, manifest: ServingManifest, models: Mapping[int, LoadedModel]) -> list[Served]:
        """Switch to a manifest; ``models`` are the loaded ones by deployment id. Returns what serves now.

        An endpoint whose new traffic-bearing versions are not all loaded keeps its old ones, with the new access
        list. Requests under way finish on the version that they began with.
        """
        endpoints = {}
        for entry in manifest.endpoints:
            old = self._endpoints.get(entry.name)
            endpoints[entry.name] = self._endpoint(entry, old, models)
        self._endpoints = endpoints
        self._has_manifest = True
        teams: dict[str, set[str]] = {}
        for entry in manifest.endpoints:
            for token in entry.access:
                teams.setdefault(token.digest, set()).add(entry.team)
        self._teams = teams
        served = [one for endpoint in endpoints.values() for one in endpoint.served]
        self._metrics.keep((one.context.endpoint_id, one.context.deployment_id) for one in served)
        return served

    def _endpoint(self, entry: EndpointEntry, old: Endpoint | None, models: Mapping[int, LoadedModel]) -> Endpoint:
        loaded = [one for one in entry.deployments if one.deployment_id in models]
        is_complete = all(one in loaded for one in entry.deployments if one.weight > 0)
        if old is not None and not is_complete and old.answering:
            kept = {one.entry.deployment_id: one.model for one in old.served}
            return Endpoint(entry, [self._serve(entry, one.entry, kept[one.entry.deployment_id]) for one in old.served])
        if old is not None and old.entry == entry and [one.entry for one in old.served] == loaded:
            return old
        return Endpoint(entry, [self._serve(entry, one, models[one.deployment_id]) for one in loaded])

    def _serve(self, endpoint: EndpointEntry, entry: DeploymentEntry, model: LoadedModel) -> Served:
        return Served(
            entry=entry,
            model=model,
            codec=ModelCodec(endpoint.name, entry.model_version, model.signature, is_batchable=model.is_batchable),
            context=Context.of(endpoint, entry, is_batch=model.is_batchable),
            meter=self._metrics.meter(
                endpoint.name, endpoint.endpoint_id, entry.deployment_id, entry.model, entry.model_version
            ),
            batcher=Batcher(
                model,
                max_rows=endpoint.limits.batch_rows,
                timeout=endpoint.limits.timeout_ms / 1e3,
                executor=self._executor,
                done=self._complete,
            ),
        )

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def accepts_predictions(self) -> bool:
        """Whether a prediction could be served and logged now."""
        return self.is_ready and not self._log.is_full

    def authorize(self, name: str, authorization: bytes | None) -> tuple[Endpoint, TokenEntry]:
        """The endpoint and the caller's token.

        Raises ``Unauthenticated``, ``NotAllowed``, ``NotFound`` (also for an endpoint of another team), ``NotReady``.
        """
        endpoint = self._endpoints.get(name)
        token = endpoint.caller(authorization) if endpoint is not None and authorization else None
        if endpoint is None or token is None:
            endpoint, token = self._authorize_anew(name, endpoint, authorization or b"")
        if token.expires_at is not None and time.time() >= token.expires_at:
            raise Unauthenticated("The token has expired.")
        return endpoint, token

    def _authorize_anew(
        self, name: str, endpoint: Endpoint | None, authorization: bytes
    ) -> tuple[Endpoint, TokenEntry]:
        digest, teams = self.authenticate(authorization)
        if endpoint is None or endpoint.entry.team not in teams:
            raise NotFound(f'There is no endpoint "{name}".')
        token = endpoint.admit(authorization, digest)
        if token is None:
            raise NotAllowed("The token may not call this endpoint.")
        return endpoint, token

    def authenticate(self, authorization: bytes) -> tuple[str, set[str]]:
        """Who calls, before it is known what: the token's digest and the teams that have an endpoint for it.

        Raises ``Unauthenticated`` or ``NotReady``.
        """
        if not self._has_manifest:
            raise NotReady("The service is starting.", 2)
        scheme, _, credentials = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not credentials:
            raise Unauthenticated("Send a token: Authorization: Bearer <token>.")
        digest = token_digest(credentials.strip().decode("latin-1"), self._pepper)
        teams = self._teams.get(digest)
        if teams is None:
            raise Unauthenticated("The token is unknown, expired or revoked.")
        return digest, teams

    def infer(self, call: Call, name: str, version: str | None, authorization: bytes | None) -> None:
        """Take a request; it is answered later through its ``succeed`` or ``fail``."""
        call.arrived = time.perf_counter()
        call.received_us = int(time.time() * 1e6)
        try:
            endpoint, token = self.authorize(name, authorization)
            served = endpoint.route(call) if version is None else endpoint.version(version)
        except InferenceError as error:
            call.fail(error)
            return
        call.endpoint, call.served, call.token_id = endpoint, served, token.token_id
        try:
            request = call.request = call.decode(served.codec)
            if request.id:
                call.request_id = request.id
            self._check_room(endpoint, request.rows)
        except InferenceError as error:
            self._refuse(call, error)
            return
        endpoint.queued_rows += request.rows
        served.batcher.submit(call)

    def _check_room(self, endpoint: Endpoint, rows: int) -> None:
        room = endpoint.entry.limits.queue_rows
        if rows > room:
            raise RequestTooLarge(f"The request has {rows} rows, the endpoint takes at most {room} at a time.")
        if endpoint.queued_rows + rows > room:
            raise Overloaded("The endpoint's queue is full.")
        if self._log.is_full:
            raise LogUnavailable("The inference log is full; predictions are not served unlogged.", 5)

    def _refuse(self, call: Call, error: InferenceError) -> None:
        now = time.perf_counter()
        self._conclude([call], _outcome(error), BatchResult(now, 0, 0, [], None, error), [1])

    def _complete(self, calls: Sequence[Call], result: BatchResult) -> None:
        for call in calls:
            call.endpoint.queued_rows -= call.request.rows
        outcome = "ok" if result.error is None else _outcome(result.error)
        self._conclude(calls, outcome, result, [call.request.rows for call in calls])

    def _conclude(self, calls: Sequence[Call], outcome: Outcome, result: BatchResult, rows: list[int]) -> None:
        """Log, then answer."""
        served = calls[0].served
        now = time.perf_counter()
        total_us = [int((now - call.arrived) * 1e6) for call in calls]
        record = Record(
            outcome,
            [call.request_id for call in calls],
            [call.token_id for call in calls],
            [call.received_us for call in calls],
            rows,
            [int((result.started - call.arrived) * 1e6) for call in calls],
            total_us,
            result.run_us,
            result.rows,
            None if result.error is None else _detail(result.error),
            result.inputs,
            () if result.outputs is None else result.outputs.arrays,
        )
        served.meter.observe(outcome, result.rows if outcome == "ok" else 0, total_us)
        try:
            self._log.append(served.context, record)
        except LogUnavailable as error:
            _answer(calls, result, error)
            return
        if calls[0].endpoint.entry.log.strict:
            self._log.sync(lambda problem: _answer(calls, result, problem))
        else:
            _answer(calls, result, None)


def _answer(calls: Sequence[Call], result: BatchResult, problem: Exception | None) -> None:
    error = problem if isinstance(problem, InferenceError) else result.error
    if error is not None or result.outputs is None:
        for call in calls:
            call.fail(error or ModelFailed("no outputs"))
        return
    start = 0
    for call in calls:
        call.succeed(result.outputs, start)
        start += call.request.rows


def _outcome(error: InferenceError) -> Outcome:
    return "rejected" if isinstance(error, RequestRejected | RequestTooLarge | Overloaded) else "failed"


def _detail(error: InferenceError) -> str:
    return error.detail if isinstance(error, ModelFailed) else str(error)


class RequestIds:
    """Makes UUIDv7: a sorts-by-time prefix, then bits of this process's own, then a counter with a random start."""

    def __init__(self) -> None:
        self._process = f"-7{secrets.randbits(12):03x}-{0x8000 | secrets.randbits(14):04x}-"
        self._counter = secrets.randbits(47)
        self._milliseconds = 0
        self._prefix = ""

    def next(self) -> str:
        """An id that sorts after those made before."""
        milliseconds = time.time_ns() // 1_000_000
        if milliseconds != self._milliseconds:
            self._milliseconds = milliseconds
            text = f"{milliseconds:012x}"
            self._prefix = f"{text[:8]}-{text[8:]}{self._process}"
        self._counter += 1
        return f"{self._prefix}{self._counter:012x}"
