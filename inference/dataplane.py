"""What happens to a request: authorise, route, decode, batch, run, log, answer. Knows no transport and no database."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from inference.batcher import Batcher, BatchResult, Job, Results, part, spans
from inference.contracts import (
    DeploymentEntry,
    EndpointEntry,
    Outcome,
    ServingManifest,
    TokenEntry,
    token_digest,
)
from inference.errors import (
    GuardrailViolated,
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
from inference.guardrails import Guard
from inference.inference_log import Context, LogUnavailable, Record, Spool
from inference.metrics import Meter, Metrics
from inference.model_store import LoadedModel
from inference.protocol import BatchOutputs, InferRequest, ModelCodec
from inference.router import Router
from inference.slow_runs import SlowRuns
from inference.watchdog import Lane

MAX_CACHED_CALLERS: Final = 4096
MAX_SHADOW_ROWS: Final = 1024
"""What waits for a shadow at most; the rest is not copied to it."""
ANSWERING_ROLES: Final = ("champion", "canary")


class Call(Job):
    """One prediction request, as a transport hands it in. The transport implements the four methods."""

    __slots__ = ("endpoint", "received_us", "request_id", "served", "token_id", "traceparent", "violated")

    endpoint: Endpoint
    served: Served
    received_us: int
    request_id: str
    token_id: int
    traceparent: str | None
    violated: Sequence[str]  # names of the guardrails that its rows violated

    @abstractmethod
    def decode(self, codec: ModelCodec) -> InferRequest:
        """Read the request's tensors. Raises ``RequestRejected``."""

    @abstractmethod
    def header(self, name: str) -> bytes | None:
        """The value of a header (metadata, in gRPC), if the caller sent it."""

    @abstractmethod
    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        """Answer with the rows of ``outputs`` that begin at ``start``."""

    @abstractmethod
    def fail(self, error: InferenceError) -> None:
        """Answer with an error."""


class ShadowCall(Job):
    """A copy of a call for a shadow; nobody waits for its answer."""

    __slots__ = ("call", "shadow")

    def __init__(self, call: Call, shadow: Served, request: InferRequest, timeout: float) -> None:
        self.call = call
        self.shadow = shadow
        self.request = request
        self.arrived = time.perf_counter()
        self.deadline = self.arrived + timeout

    @property
    def is_open(self) -> bool:
        return True


@dataclass(slots=True, eq=False)
class Served:
    """A model version on an endpoint, loaded and ready."""

    entry: DeploymentEntry
    model: LoadedModel
    codec: ModelCodec
    context: Context
    meter: Meter
    batcher: Batcher[Any]  # of Call, or of ShadowCall if this is a shadow


class Endpoint:
    """One endpoint as the current manifest has it."""

    def __init__(self, entry: EndpointEntry, served: Sequence[Served], refused: Mapping[str, str]) -> None:
        """``refused``: why a version that should answer does not serve, by its number."""
        self.entry = entry
        self.refused = refused
        self.served = tuple(served)
        self.queued_rows = 0
        self.timeout = entry.limits.timeout_ms / 1e3
        self.max_rows = entry.limits.queue_rows
        self.answering = [one for one in served if one.entry.role in ANSWERING_ROLES]
        self._targets = targets = [one for one in served if one.entry.weight > 0]
        inputs = targets[0].model.signature.inputs if targets else ()
        self.shadows = [one for one in served if one.entry.role == "shadow" and one.model.signature.inputs == inputs]
        self._only = targets[0] if len(targets) == 1 else None
        self._router = Router(entry.name, [one.entry.weight for one in targets]) if targets else None
        self._access = {token.digest: token for token in entry.access}
        self.callers: dict[bytes | None, TokenEntry] = {}  # by the ``Authorization`` value that they sent before

    def route(self, call: Call) -> Served:
        """Pick the version that answers. Raises ``NotReady``, and what reading the request raises."""
        if self._only is not None:
            return self._only
        if self._router is None:
            raise self._not_ready()
        return self._targets[self._router.pick(self._sticky_key(call))]

    def _sticky_key(self, call: Call) -> bytes | None:
        if self.entry.sticky_header is not None:
            return call.header(self.entry.sticky_header)
        if self.entry.sticky_input is not None:
            codec = self._targets[0].codec
            return codec.key(call.decode(codec), self.entry.sticky_input)
        return None

    def version(self, number: str) -> Served:
        """The version asked for by number. Raises ``NotFound`` when it does not answer on this endpoint."""
        for one in self.answering:
            if str(one.entry.model_version) == number:
                return one
        if number in self.refused:
            raise NotReady(self.refused[number], 2)
        raise NotFound(f"Version {number} does not serve on this endpoint.")

    def versions(self, number: str | None = None) -> list[Served]:
        """The versions that answer, the champion first; only the one with ``number`` if it is given.

        Raises ``NotReady`` when there is none, and ``NotFound`` as ``version`` does.
        """
        if number is not None:
            return [self.version(number)]
        if not self.answering:
            raise self._not_ready()
        return sorted(self.answering, key=lambda one: one.entry.role != "champion")

    def _not_ready(self) -> NotReady:
        return NotReady(next(iter(self.refused.values()), "No version of this endpoint is ready."), 2)

    def admit(self, authorization: bytes, digest: str) -> TokenEntry | None:
        """The token with this digest if it may call the endpoint; remembered for the next time."""
        token = self._access.get(digest)
        if token is not None:
            if len(self.callers) >= MAX_CACHED_CALLERS:
                self.callers.clear()
            self.callers[authorization] = token
        return token


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the next switch brings: endpoints by name, teams by token digest, and everything that serves then."""

    endpoints: dict[str, Endpoint]
    teams: dict[str, set[str]]
    served: list[Served]


class Dataplane:
    """Everything that happens to requests in one replica. Lives on the event loop's thread."""

    def __init__(
        self, pepper: bytes, log: Spool, metrics: Metrics, *, lane: Lane, slow: SlowRuns, shadows: SlowRuns
    ) -> None:
        """Call on the running event loop; ``lane`` is the loop's.

        ``slow`` runs the batches of slow models, ``shadows`` those of shadows.
        """
        self._pepper = pepper
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        self._slow = slow
        self._shadows = shadows
        self._endpoints: dict[str, Endpoint] = {}
        self.has_manifest = False
        self._teams: dict[str, set[str]] = {}  # token digest -> teams with an endpoint that the token may call
        self.is_ready = False

    # -- what serves -------------------------------------------------------------------------------------------------

    def prepare(
        self,
        manifest: ServingManifest,
        models: Mapping[int, LoadedModel],
        *,
        pending: Collection[int],
        refused: Mapping[int, str],
    ) -> Prepared:
        """Build what is to serve, on any one thread; requests meanwhile are served as before.

        By deployment id, ``models``: the loaded ones; ``pending``: those still being loaded; ``refused``: why one must
        not serve, even if it does. An endpoint whose new traffic-bearing versions are not all loaded keeps its old
        ones, with the new access list; without old ones it waits for those that are pending, so that none gets more
        than its share. What has not changed is kept as it is.
        """
        endpoints = {}
        teams: dict[str, set[str]] = {}
        for entry in manifest.endpoints:
            endpoints[entry.name] = self._endpoint(entry, self._endpoints.get(entry.name), models, pending, refused)
            for token in entry.access:
                teams.setdefault(token.digest, set()).add(entry.team)
        served = [one for endpoint in endpoints.values() for one in endpoint.served]
        return Prepared(endpoints, teams, served)

    def switch(self, prepared: Prepared) -> None:
        """Serve what was prepared. Requests under way finish on the version that they began with."""
        self._endpoints = prepared.endpoints
        self._teams = prepared.teams
        self.has_manifest = True
        self._metrics.keep(one.meter for one in prepared.served)

    def _endpoint(
        self,
        entry: EndpointEntry,
        old: Endpoint | None,
        models: Mapping[int, LoadedModel],
        pending: Collection[int],
        refused: Mapping[int, str],
    ) -> Endpoint:
        wanted = [models.get(one.deployment_id) for one in entry.deployments]
        if old is not None and old.entry is entry and [one.model for one in old.served] == wanted:
            return old  # by far the most, and so worth the haste
        chosen = [one for one in entry.deployments if one.deployment_id in models]
        lacking = [
            one.deployment_id
            for one in entry.deployments
            if one.weight > 0 and one.deployment_id not in models and one.deployment_id not in refused
        ]
        if lacking:
            kept = [one for one in old.served if one.entry.deployment_id not in refused] if old is not None else []
            if any(one.entry.weight > 0 for one in kept):
                models = {one.entry.deployment_id: one.model for one in kept}
                chosen = [one.entry for one in kept]
            elif any(key in pending for key in lacking):
                chosen = [one for one in chosen if one.weight == 0]
        served = [self._served(entry, one, models[one.deployment_id], old) for one in chosen]
        reasons = {
            str(one.model_version): refused[one.deployment_id]
            for one in entry.deployments
            if one.deployment_id in refused and one.role in ANSWERING_ROLES
        }
        if old is not None and (old.entry, old.served, old.refused) == (entry, tuple(served), reasons):
            return old
        return Endpoint(entry, served, reasons)

    def _served(
        self, endpoint: EndpointEntry, entry: DeploymentEntry, model: LoadedModel, old: Endpoint | None
    ) -> Served:
        """The version as it serves already, if nothing about it has changed; else anew."""
        if old is not None and _terms(old.entry) == _terms(endpoint):
            for one in old.served:
                if one.entry == entry and one.model is model:
                    return one
        return self._serve(endpoint, entry, model)

    def _serve(self, endpoint: EndpointEntry, entry: DeploymentEntry, model: LoadedModel) -> Served:
        is_shadow = entry.role == "shadow"
        rules = () if is_shadow else endpoint.guardrails
        meter = self._metrics.meter(endpoint, entry)
        return Served(
            entry=entry,
            model=model,
            codec=ModelCodec(endpoint.name, entry.model_version, model.signature, is_batchable=model.is_batchable),
            context=Context.of(endpoint, entry, is_batch=model.is_batchable),
            meter=meter,
            batcher=Batcher(
                model,
                Guard(rules, model.signature, is_batch=model.is_batchable) if rules else None,
                endpoint.limits,
                deployment_id=entry.deployment_id,
                loop=self._loop,
                lane=self._lane,
                slow_runs=self._shadows if is_shadow else self._slow,
                done=self._complete_shadow if is_shadow else self._complete,
                spent=meter.spend,
                is_shadow=is_shadow,
            ),
        )

    def render_metrics(self, replica_id: str, gauges: dict[str, float]) -> bytes:
        """Prometheus text; ``gauges`` are values of the whole replica."""
        served = [one for endpoint in self._endpoints.values() for one in endpoint.served]
        versions = [(one.meter, one.batcher.queued_rows, one.model.memory_in_use) for one in served]
        return self._metrics.render(replica_id, gauges, versions)

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
        token = endpoint.callers.get(authorization) if endpoint is not None else None
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
        if not self.has_manifest:
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
        """Take a request, whose transport says when it arrived; answer it later by its ``succeed`` or ``fail``."""
        try:
            endpoint, token = self.authorize(name, authorization)
            if endpoint.queued_rows >= endpoint.max_rows:  # before the work of reading the request
                raise Overloaded("The endpoint's queue is full.")
            served = endpoint.route(call) if version is None else endpoint.version(version)
        except InferenceError as error:
            call.fail(error)
            return
        call.endpoint, call.served, call.token_id = endpoint, served, token.token_id
        try:
            request = call.request = call.decode(served.codec)
            if request.id:
                call.request_id = request.id
            rows = endpoint.queued_rows + request.rows
            if rows > endpoint.max_rows:
                raise _no_room(endpoint, request.rows)
            if self._log.is_full:
                raise LogUnavailable("The inference log is full; predictions are not served unlogged.", 5)
        except InferenceError as error:
            self._refuse(call, error)
            return
        endpoint.queued_rows = rows
        timeout = endpoint.timeout
        call.deadline = call.arrived + (timeout if request.timeout_s is None else min(timeout, request.timeout_s))
        served.batcher.submit(call)

    def _refuse(self, call: Call, error: InferenceError) -> None:
        self._conclude([call], BatchResult(time.perf_counter(), 0, 0, (), None, error), [1])

    def _complete(self, calls: Sequence[Call], result: BatchResult) -> None:
        rows = [call.request.rows for call in calls]
        calls[0].endpoint.queued_rows -= sum(rows)
        if result.violations:
            for one, other in self._by_outcome(calls, result):
                self._conclude(one, other, [call.request.rows for call in one])
        else:
            self._conclude(calls, result, rows)
        if result.outputs is not None and calls[0].endpoint.shadows:
            self._shadow(calls)

    def _by_outcome(self, calls: Sequence[Call], result: BatchResult) -> Results[Call]:
        """Calls that a fallback answers apart from the others, because they have another outcome."""
        is_batch = calls[0].served.model.is_batchable
        touched = []
        for call, span in zip(calls, spans(calls, is_batch=is_batch), strict=True):
            found = [one.rule for one in result.violations if one.rows[span].any()]
            call.violated = [rule.name for rule in found]
            if any(rule.action == "fallback" for rule in found):
                touched.append(call)
        if not touched or len(touched) == len(calls):
            return [(calls, result)]
        rest = [call for call in calls if call not in set(touched)]
        return [(some, part(calls, result, some, is_batch=is_batch)) for some in (rest, touched)]

    def _conclude(self, calls: Sequence[Call], result: BatchResult, rows: list[int]) -> None:
        """Log, then answer."""
        served = calls[0].served
        record = _record(_outcome(result), calls, calls, result, rows)
        served.meter.observe(record)
        try:
            self._log.append(served.context, record)
        except LogUnavailable as error:
            _answer(calls, result, error)
            return
        if calls[0].endpoint.entry.log.strict:
            self._log.sync(lambda problem: _answer(calls, result, problem))
        else:
            _answer(calls, result, None)

    # -- shadows: after the answer, and never in its way -------------------------------------------------------------

    def _shadow(self, calls: Sequence[Call]) -> None:
        endpoint = calls[0].endpoint
        for shadow in endpoint.shadows:
            for call in calls:
                if shadow.batcher.queued_rows + call.request.rows > MAX_SHADOW_ROWS:
                    shadow.meter.skipped += 1
                else:
                    shadow.batcher.submit(ShadowCall(call, shadow, shadow.codec.adopt(call.request), endpoint.timeout))

    def _complete_shadow(self, copies: Sequence[ShadowCall], result: BatchResult) -> None:
        shadow = copies[0].shadow
        calls = [copy.call for copy in copies]
        record = _record("shadow", copies, calls, result, [copy.request.rows for copy in copies])
        shadow.meter.observe(record)
        with contextlib.suppress(LogUnavailable):  # the answers, which count, are refused in that case
            self._log.append(shadow.context, record)


def _terms(endpoint: EndpointEntry) -> tuple[object, ...]:
    """What of an endpoint is in force within its versions."""
    return endpoint.endpoint_id, endpoint.limits, endpoint.log, endpoint.guardrails


def _no_room(endpoint: Endpoint, rows: int) -> InferenceError:
    if rows > endpoint.max_rows:
        return RequestTooLarge(
            f"The request has {rows} rows, the endpoint takes at most {endpoint.max_rows} at a time."
        )
    return Overloaded("The endpoint's queue is full.")


def _record(
    outcome: Outcome, jobs: Sequence[Job], calls: Sequence[Call], result: BatchResult, rows: list[int]
) -> Record:
    now, started, error = time.perf_counter(), result.started, result.error
    traceparents = [call.traceparent for call in calls]
    return Record(
        outcome,
        [call.request_id for call in calls],
        [call.token_id for call in calls],
        [call.received_us for call in calls],
        rows,
        [int((started - job.arrived) * 1e6) for job in jobs],
        [int((now - job.arrived) * 1e6) for job in jobs],
        result.run_us,
        result.rows,
        None if error is None else error.detail if isinstance(error, ModelFailed) else str(error),
        [(one.rule.name, np.flatnonzero(one.rows).tolist()) for one in result.violations],
        traceparents if any(traceparents) else [],
        result.inputs,
        () if result.outputs is None else result.outputs.arrays,
    )


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


def _outcome(result: BatchResult) -> Outcome:
    error = result.error
    if error is None:
        return "guardrail" if any(one.rule.action == "fallback" for one in result.violations) else "ok"
    if isinstance(error, GuardrailViolated):
        return "guardrail"
    return "rejected" if isinstance(error, RequestRejected | RequestTooLarge | Overloaded) else "failed"


class RequestIds:
    """Makes UUIDv7: a sorts-by-time prefix, then bits of this process's own, then a counter with a random start."""

    def __init__(self) -> None:
        self._process = f"-7{secrets.randbits(12):03x}-{0x8000 | secrets.randbits(14):04x}-"
        self._counter = secrets.randbits(47)
        self._milliseconds = 0
        self._prefix = ""

    def next(self, now_us: int) -> str:
        """An id that sorts after those made before. ``now_us``: microseconds since the epoch."""
        milliseconds = now_us // 1000
        if milliseconds != self._milliseconds:
            self._milliseconds = milliseconds
            text = f"{milliseconds:012x}"
            self._prefix = f"{text[:8]}-{text[8:]}{self._process}"
        self._counter += 1
        return f"{self._prefix}{self._counter:012x}"
