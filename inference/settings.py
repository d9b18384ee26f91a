"""The service's settings. The environment is read here and nowhere else."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from inference.errors import ConfigurationError
from inference.memory import usable_memory

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may differ between installations. Sizes in bytes, times in seconds."""

    var: Path
    database_dsn: str
    host: str
    port: int
    grpc_port: int  # 0: no gRPC
    replicas: int
    replica_prefix: str
    max_body: int
    max_buffered_bodies: int
    max_connections: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    drain_timeout: float
    keep_warm: float
    poll_interval: float
    spool_cap: int
    seal_interval: float
    hang: float
    run_timeout: float
    load_timeout: float
    model_memory: int
    metrics_token: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read ``COUNTERSIGN_VAR``, ``COUNTERSIGN_DATABASE_DSN`` (or ``DATABASE_URL``) and ``INFERENCE_*``.

        Raises ``ConfigurationError`` naming the variable that does not hold what it should.
        """

        def number(name: str, default: float, low: float, high: float) -> float:
            text = environment.get(name, "").strip()
            try:
                value = float(text) if text else default
            except ValueError:
                value = float("nan")
            if not low <= value <= high:
                raise ConfigurationError(f"{name} must be a number from {low:g} to {high:g}, not {text!r}.")
            return value

        return cls(
            var=Path(environment.get("COUNTERSIGN_VAR") or "var").expanduser().resolve(),
            database_dsn=environment.get("COUNTERSIGN_DATABASE_DSN") or environment.get("DATABASE_URL", ""),
            host=environment.get("INFERENCE_HOST") or "127.0.0.1",
            port=int(number("INFERENCE_PORT", 8080, 0, 65535)),
            grpc_port=int(number("INFERENCE_GRPC_PORT", 0, 0, 65535)),
            replicas=int(number("INFERENCE_REPLICAS", 1, 1, 256)),
            replica_prefix=environment.get("INFERENCE_REPLICA_PREFIX") or socket.gethostname().partition(".")[0],
            max_body=int(number("INFERENCE_MAX_BODY_BYTES", 64 * MIB, 1024, 2048 * MIB)),
            max_buffered_bodies=int(number("INFERENCE_MAX_BUFFERED_BYTES", 512 * MIB, MIB, 1 << 40)),
            max_connections=int(number("INFERENCE_MAX_CONNECTIONS", 4096, 1, 1_000_000)),
            header_timeout=number("INFERENCE_HEADER_TIMEOUT_S", 10, 0.1, 3600),
            body_timeout=number("INFERENCE_BODY_TIMEOUT_S", 30, 0.1, 3600),
            idle_timeout=number("INFERENCE_IDLE_TIMEOUT_S", 75, 0.1, 86_400),
            drain_timeout=number("INFERENCE_DRAIN_TIMEOUT_S", 24, 0, 3600),
            keep_warm=number("INFERENCE_KEEP_WARM_S", 3600, 0, 7 * 86_400),
            poll_interval=number("INFERENCE_POLL_S", 2, 0.05, 60),
            spool_cap=int(number("INFERENCE_SPOOL_CAP_BYTES", 1024 * MIB, 64 * 1024, 1 << 50)),
            seal_interval=number("INFERENCE_SEAL_S", 2, 0.05, 3600),
            hang=number("INFERENCE_HANG_S", 20, 1, 3600),
            run_timeout=number("INFERENCE_RUN_TIMEOUT_S", 60, 0.5, 86_400),
            load_timeout=number("INFERENCE_LOAD_TIMEOUT_S", 600, 1, 86_400),
            model_memory=int(number("INFERENCE_MODEL_MEMORY_BYTES", usable_memory() // 2, MIB, 1 << 50)),
            metrics_token=environment.get("INFERENCE_METRICS_TOKEN", "").strip(),
        )

    @property
    def store(self) -> Path:
        """Root of the store: artifacts, datasets and log segments."""
        return self.var / "store"

    @property
    def spool(self) -> Path:
        """One folder per run of a replica, holding predictions that are not in a segment yet."""
        return self.var / "spool"

    @property
    def metrics(self) -> Path:
        """What each replica counted, for whichever of them is asked."""
        return self.var / "run" / "metrics"

    @property
    def cache(self) -> Path:
        """Verified copies of artifacts and the last good manifest."""
        return self.var / "cache"

    @property
    def quarantine(self) -> Path:
        """The deployments that the parent of the replicas has taken out of service."""
        return self.var / "quarantine.json"

    def manifest_key(self) -> Ed25519PublicKey:
        """The pinned key that signs manifests. Raises ``ConfigurationError``."""
        path = self.var / "secrets" / "manifest_public_key.pem"
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"The manifest's public key {path} cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError(f"The manifest's public key {path} is not an Ed25519 key.")
        return key

    def token_pepper(self) -> bytes:
        """The key of the token digests. Raises ``ConfigurationError``."""
        path = self.var / "secrets" / "token_pepper"
        try:
            pepper = path.read_bytes().strip()
        except OSError as error:
            raise ConfigurationError(f"The token pepper {path} cannot be read: {error}") from error
        if not pepper:
            raise ConfigurationError(f"The token pepper {path} is empty.")
        return pepper
