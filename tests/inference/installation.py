"""A var folder with keys, artifacts and a signed manifest, and a real ``python -m inference`` process on it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inference.contracts import (
    DeploymentEntry,
    EndpointEntry,
    Limits,
    LogSettings,
    Role,
    ServingManifest,
    TokenEntry,
    sign_manifest,
    token_digest,
)
from inference.inference_log import StoredRecord, read_spool
from inference.runtime import load_session, read_signature

Result = TypeVar("Result")
REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "csn_test_of_everything"
PEPPER = "pepper-of-the-tests"
START_TIMEOUT_S = 20.0


@dataclass
class Installation:
    """One var folder. ``serve`` starts the service on it; ``publish`` replaces the last good manifest on disk."""

    var: Path
    generation: int = 0
    deployments: int = 0
    endpoints: dict[str, EndpointEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        for name in ("secrets", "store", "cache"):
            (self.var / name).mkdir(parents=True, exist_ok=True)
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (self.var / "secrets" / "manifest_public_key.pem").write_bytes(public)
        (self.var / "secrets" / "token_pepper").write_text(PEPPER)

    def deployment(
        self, model: bytes, *, version: int = 1, role: Role = "champion", weight: int = 100, name: str = "model"
    ) -> DeploymentEntry:
        """Put an artifact into the store and describe it as the console would."""
        digest = hashlib.sha256(model).hexdigest()
        path = f"artifacts/{digest[:2]}/{digest}.onnx"
        (self.var / "store" / path).parent.mkdir(parents=True, exist_ok=True)
        (self.var / "store" / path).write_bytes(model)
        self.deployments += 1
        signature = read_signature(load_session(model))
        return DeploymentEntry(
            self.deployments,
            name,
            version,
            digest,
            path,
            len(model),
            role,
            weight,
            signature,
            promotion_request_id=None,
        )

    def endpoint(
        self,
        name: str,
        *deployments: DeploymentEntry | bytes,
        team: str = "risk",
        tokens: Sequence[str] = (TOKEN,),
        expires_at: float | None = None,
        limits: Limits | None = None,
        log: LogSettings | None = None,
        **more: Any,
    ) -> EndpointEntry:
        """Define an endpoint; ``publish`` makes it known. ``more`` are other fields of the entry."""
        known = self.endpoints.get(name)
        entry = EndpointEntry(
            name=name,
            endpoint_id=known.endpoint_id if known else len(self.endpoints) + 1,
            team=team,
            deployments=tuple(self.deployment(one) if isinstance(one, bytes) else one for one in deployments),
            access=tuple(
                TokenEntry(position, token_digest(token, PEPPER.encode()), expires_at)
                for position, token in enumerate(tokens, start=1)
            ),
            limits=limits or Limits(),
            log=log or LogSettings(),
            **more,
        )
        self.endpoints[name] = entry
        return entry

    def manifest(self, generation: int | None = None, *, key: Ed25519PrivateKey | None = None) -> dict[str, Any]:
        """The next manifest: generation, body and signature."""
        self.generation = self.generation + 1 if generation is None else generation
        manifest = ServingManifest(self.generation, "2026-11-23T12:00:00Z", tuple(self.endpoints.values()))
        body = manifest.to_bytes()
        return {"generation": self.generation, "body": body.decode(), "signature": sign_manifest(body, key or self.key)}

    def publish(self) -> None:
        """Leave the manifest where a replica finds it when it starts without a database."""
        path = self.var / "cache" / "last-good-manifest.json"
        path.write_text(json.dumps(self.manifest()))

    def serve(self, **environment: str) -> Service:
        """Start the service and wait until it is ready."""
        service = Service(self, environment)
        service.start()
        return service

    def records(self) -> list[StoredRecord]:
        """Everything in the spool, in the order it was written."""
        files = [path for path in (self.var / "spool").glob("*/*") if path.suffix in (".open", ".spool")]
        return [record for path in sorted(files, key=lambda path: path.name) for record in read_spool(path)]

    def logged(self, endpoint: str) -> list[StoredRecord]:
        """The records of one endpoint."""
        return [stored for stored in self.records() if stored.context.endpoint == endpoint]

    def weights(self, name: str, *weights: int) -> None:
        """Change the traffic split of an endpoint."""
        entry = self.endpoints[name]
        deployments = tuple(replace(one, weight=weight) for one, weight in zip(entry.deployments, weights, strict=True))
        self.endpoints[name] = replace(entry, deployments=deployments)


class Service:
    """A running ``python -m inference``."""

    def __init__(self, installation: Installation, environment: dict[str, str]) -> None:
        self.installation = installation
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "COUNTERSIGN_VAR": str(installation.var),
            "COUNTERSIGN_DATABASE_DSN": "host=/nonexistent dbname=none",
            "INFERENCE_PORT": str(self.port),
            "INFERENCE_REPLICA_PREFIX": "test",
            **environment,
        }
        self.log = installation.var / "service.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """A caller's headers; a new dict each time, because tritonclient adds to the one it is given."""
        return {"Authorization": f"Bearer {TOKEN}"}

    @property
    def grpc_address(self) -> str:
        """Where gRPC is, if the service was started with its port."""
        return f"127.0.0.1:{self.environment['INFERENCE_GRPC_PORT']}"

    def start(self, *, ready: bool = True) -> None:
        """Start and wait for readiness."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference"], cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log
            )
        if ready:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until predictions are accepted."""

        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                return requests.get(f"{self.url}/v2/health/ready", timeout=2).ok
            except requests.RequestException:
                return False

        wait_for(is_ready, START_TIMEOUT_S, self.log)

    def infer(self, endpoint: str, document: dict[str, Any], **keywords: Any) -> requests.Response:
        """POST a JSON infer request."""
        url = f"{self.url}/v2/models/{endpoint}/infer"
        return requests.post(url, json=document, headers=self.headers | keywords.pop("headers", {}), timeout=20)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def children(self) -> list[int]:
        """Process ids of replicas and shipper."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def child(self, role: str) -> int:
        """The process id of the (first) ``replica`` or the ``shipper``."""
        found: list[int] = []

        def is_found() -> bool:
            found[:] = [pid for pid in self.children() if role in _command_line(pid)]
            return bool(found)

        wait_for(is_found, START_TIMEOUT_S, self.log)
        return found[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the service and return its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return self.process.wait(40)


def run_async(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a thread of its own: a browser test may have left a running event loop on this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def wait_for(condition: Any, timeout: float = 10.0, log: Path | None = None) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "it did not happen in time"
        time.sleep(0.02)


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    """A V2 JSON tensor."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def row(*values: float) -> dict[str, Any]:
    """A request with one FP32 row called x."""
    return {"inputs": [tensor("x", "FP32", [1, len(values)], list(values))]}
