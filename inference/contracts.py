"""What the console and the inference service agree on: the serving manifest, access digests and the log's columns.

Standard library and ``cryptography`` only, so that both sides, and an auditor's script, can import it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from inference.errors import ManifestRejected

MANIFEST_DOMAIN: Final = b"countersign/serving-manifest/v1\n"
MANIFEST_CHANNEL: Final = "serving_manifest"
"""PostgreSQL NOTIFY channel; the payload is the new generation."""

Role = Literal["champion", "canary", "shadow", "standby"]
Outcome = Literal["ok", "guardrail", "rejected", "failed", "shadow"]
"""What became of a request. ``guardrail``: a rule refused it or put its fallback in the answer's place."""
GuardrailAction = Literal["flag", "reject", "fallback"]

LATENCY_BUCKETS_US: Final = tuple(int(50 * 2 ** (step / 2)) for step in range(41))
"""Upper bounds of the latency histogram in microseconds: 50 us to 52 s, two per octave, one overflow bucket after.

A histogram is a list of ``len(LATENCY_BUCKETS_US) + 1`` counts; two of them merge by addition.
"""

RESERVED_LOG_COLUMNS: Final = (
    "request_id",
    "row",  # index of the prediction in its request
    "endpoint",
    "model",
    "model_version",  # the version's number
    "artifact_digest",
    "role",
    "received_at",  # timestamp[us, UTC]
    "queue_us",
    "run_us",
    "total_us",
    "batch_size",
    "outcome",
    "error",  # null where the prediction was answered
    "token_id",
    "guardrails",  # names of the rules that this row violated; null if none
    "traceparent",  # the caller's W3C trace context; null without one
)
"""Columns of every segment, before one ``input.<name>`` and one ``output.<name>`` column per tensor."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model. ``shape`` holds -1 for a free dimension; ``datatype`` is the V2 name."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model version takes and returns."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Signature:
        """Read ``{"inputs": [{"name", "datatype", "shape"}], "outputs": [...]}``."""

        def read(side: str) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(spec["name"], spec["datatype"], tuple(spec["shape"])) for spec in document[side])

        return cls(read("inputs"), read("outputs"))


@dataclass(frozen=True, slots=True)
class DeploymentEntry:
    """A model version on an endpoint. ``standby`` entries stay loaded and get no traffic."""

    deployment_id: int
    model: str
    model_version: int
    artifact_digest: str  # hex SHA-256
    artifact_path: str  # relative to the store's root
    artifact_size: int  # bytes
    role: Role
    weight: int  # per cent of the traffic; the weights of an endpoint sum to 100, shadows and standbys carry 0
    signature: Signature
    promotion_request_id: int | None  # what authorised it; None on an unprotected endpoint


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one endpoint. Rows are counted along the batch dimension."""

    queue_rows: int = 4096
    timeout_ms: int = 30_000  # from the arrival of a request to its answer
    batch_rows: int = 64
    memory_mb: int | None = None  # of each version's model; None: no bound of its own
    cpu_cores: float | None = None  # that each version's runs may take on average; None: no bound


@dataclass(frozen=True, slots=True)
class GuardrailRule:
    """What must hold for each row, and what happens where it does not.

    ``requires`` is an expression of ``inference.guardrails``; one that names an output is checked after the run.
    ``fallback`` has the value of every output for a row that violates the rule, as nested lists without the batch
    dimension; it is None unless the action is ``fallback``.
    """

    name: str
    requires: str
    action: GuardrailAction
    fallback: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How an endpoint's predictions are logged."""

    strict: bool = False  # wait for fdatasync before the answer
    payload_cap_bytes: int = 65_536  # larger tensors are stored as digest and shape
    redact: tuple[str, ...] = ()  # tensor names whose values are not stored


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token that may call an endpoint; ``expires_at`` in seconds since the epoch."""

    token_id: int
    digest: str
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class EndpointEntry:
    """One endpoint: who serves it, who may call it, within which bounds."""

    name: str
    endpoint_id: int
    team: str
    deployments: tuple[DeploymentEntry, ...]
    access: tuple[TokenEntry, ...]
    sticky_header: str | None = None
    sticky_input: str | None = None  # name of the input whose first row is the key; at most one of the two is set
    guardrails: tuple[GuardrailRule, ...] = ()
    limits: Limits = field(default_factory=Limits)
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class ServingManifest:
    """Everything that a replica needs to know, numbered by a strictly growing generation."""

    generation: int
    issued_at: str  # RFC 3339, UTC
    endpoints: tuple[EndpointEntry, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8. These are the bytes that are signed and stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> ServingManifest:
        """Read what ``to_bytes`` wrote. Raises ``ManifestRejected`` for any other shape."""
        try:
            document = json.loads(body)
            endpoints = tuple(endpoint_from_dict(entry) for entry in document["endpoints"])
            return cls(document["generation"], document["issued_at"], endpoints)
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestRejected(f"The manifest cannot be read: {error}") from error


def endpoint_from_dict(entry: dict[str, Any]) -> EndpointEntry:
    """Read one endpoint of a manifest. Raises ``KeyError`` or ``TypeError`` for any other shape."""
    deployments = tuple(
        DeploymentEntry(**{**one, "signature": Signature.from_dict(one["signature"])}) for one in entry["deployments"]
    )
    log = LogSettings(**{**entry["log"], "redact": tuple(entry["log"]["redact"])})
    return EndpointEntry(
        **{
            **entry,
            "deployments": deployments,
            "access": tuple(TokenEntry(**token) for token in entry["access"]),
            "guardrails": tuple(GuardrailRule(**rule) for rule in entry["guardrails"]),
            "limits": Limits(**entry["limits"]),
            "log": log,
        }
    )


def sign_manifest(body: bytes, key: Ed25519PrivateKey) -> str:
    """Sign a manifest's bytes; the domain prefix keeps the signature from meaning anything else. Base64."""
    return base64.b64encode(key.sign(MANIFEST_DOMAIN + body)).decode()


def verify_manifest(body: bytes, signature: str, key: Ed25519PublicKey) -> None:
    """Verify a manifest's signature. Raises ``ManifestRejected``."""
    try:
        key.verify(base64.b64decode(signature, validate=True), MANIFEST_DOMAIN + body)
    except (InvalidSignature, ValueError) as error:
        raise ManifestRejected("The manifest's signature does not fit the pinned key.") from error


def open_manifest(body: bytes, signature: str, key: Ed25519PublicKey) -> ServingManifest:
    """Verify a manifest's signature and read it. Raises ``ManifestRejected``."""
    verify_manifest(body, signature, key)
    return ServingManifest.from_bytes(body)


def token_digest(token: str, pepper: bytes) -> str:
    """Keyed digest of an API token: hex HMAC-SHA-256. Tokens hold 256 random bits, so no slow hash is needed."""
    return hmac.new(pepper, token.encode(), hashlib.sha256).hexdigest()
