"""The inference service as the benchmarks run it: the real processes with everything on, on a real database."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.load import SERVER_CORE, CannotMeasure, pinned
from benchmarks.models import INPUT, Model
from benchmarks.product import free_port, wait_for
from console.installation import REPOSITORY, Installation
from console.postgres import EmbeddedPostgres
from inference.contracts import (
    DeploymentEntry,
    EndpointEntry,
    GuardrailRule,
    LogSettings,
    ServingManifest,
    TokenEntry,
    sign_manifest,
    token_digest,
)
from inference.runtime import read_signature

SERVICE: Final = (sys.executable, "-m", "inference")
MANAGE: Final = (sys.executable, str(REPOSITORY / "manage.py"))
UNLOGGED: Final = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent / "unlogged"), str(REPOSITORY)])}
"""The environment in which the service forgets its log."""
GUARDRAILS: Final = (
    GuardrailRule("inputs in range", f"0 <= {INPUT} <= 10000", "reject"),
    GuardrailRule("probabilities", "0 <= output.probabilities <= 1.0001", "flag"),
)
"""Hold for every row of every model here."""
PAYLOAD_CAP_BYTES: Final = 16 * 1024
"""Rows of a table are logged whole, images as digest and shape: thousands of them in a second would fill any disk."""
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 40.0
SHIP_TIMEOUT_S: Final = 180.0


class Service:
    """An installation of its own with a database and signed endpoints, on which the service can be started.

    Use as a context manager: at the end everything is stopped and removed.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """``environment``: what its processes get beside what they need."""
        self._extra = environment or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = secrets.token_urlsafe(32)
        # Not below a private folder: as root, the embedded database's account must be able to pass.
        self._work = Path(tempfile.mkdtemp(prefix="countersign-bench-"))
        self._work.chmod(0o711)
        self._installation = Installation(self._work / "var")
        self._database = EmbeddedPostgres(self._installation)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        environment = self._environment | {"COUNTERSIGN_DATABASE_ROLE": "owner"}
        try:
            self._installation.prepare()
            self._installation.ensure_signing_key("manifest")
            self._database.start()
            subprocess.run([*MANAGE, "prepare_database"], env=environment, check=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()
        self._database.destroy()
        shutil.rmtree(self._work, ignore_errors=True)

    @property
    def headers(self) -> dict[str, str]:
        """What a caller has to send."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def pid(self) -> int:
        """The supervisor's process id; replicas and shipper are its children."""
        assert self._process is not None, "it is not running"
        return self._process.pid

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "COUNTERSIGN_VAR": str(self._installation.var_dir),
            "COUNTERSIGN_DATABASE_DSN": self._installation.database_dsn("app"),
            "INFERENCE_PORT": str(self.port),
            "INFERENCE_REPLICA_PREFIX": "bench",
            **self._extra,
        }

    def publish(self, models: Mapping[str, Model]) -> None:
        """Sign a manifest with one endpoint per entry of ``models``; the service reads it when it starts."""
        body = self._manifest(models).to_bytes()
        key = load_pem_private_key(self._installation.ensure_signing_key("manifest").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        document = {"body": body.decode(), "signature": sign_manifest(body, key)}
        (self._installation.cache / "last-good-manifest.json").write_text(json.dumps(document), encoding="utf-8")

    def _manifest(self, models: Mapping[str, Model]) -> ServingManifest:
        """What is switched on in all benchmarks is switched on here."""
        pepper = self._installation.secret("token_pepper").encode()
        access = (TokenEntry(1, token_digest(self.token, pepper), expires_at=None),)
        endpoints = tuple(
            EndpointEntry(
                name=name,
                endpoint_id=number,
                team="bench",
                deployments=(self._deployment(number, model),),
                access=access,
                guardrails=GUARDRAILS,
                log=LogSettings(payload_cap_bytes=PAYLOAD_CAP_BYTES),
            )
            for number, (name, model) in enumerate(models.items(), start=1)
        )
        return ServingManifest(1, "2026-01-01T00:00:00Z", endpoints)

    def _deployment(self, number: int, model: Model) -> DeploymentEntry:
        content = model.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        path = f"artifacts/{digest[:2]}/{digest}.onnx"
        stored = self._installation.store / path
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(content)
        return DeploymentEntry(
            deployment_id=number,
            model=model.name,
            model_version=1,
            artifact_digest=digest,
            artifact_path=path,
            artifact_size=len(content),
            role="champion",
            weight=100,
            signature=read_signature(model.session()),
            promotion_request_id=number,
        )

    def start(self, command: Sequence[str] = SERVICE, *, cores: Sequence[int] = (SERVER_CORE,)) -> float:
        """Start the whole tree on ``cores``, a replica on each; returns the seconds until every endpoint is served."""
        began = time.monotonic()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=self._environment | {"INFERENCE_REPLICAS": str(len(cores))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=pinned(*cores),
            )
        wait_for(self._is_ready, START_TIMEOUT_S, "starting the inference service")
        return time.monotonic() - began

    def stop(self) -> None:
        """Drain and stop, if it runs."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def settle(self) -> None:
        """Wait until every answered prediction is in a segment. Raises ``TimeoutError``."""
        wait_for(self._is_shipped, SHIP_TIMEOUT_S, "shipping the inference log")

    @property
    def _log(self) -> Path:
        return self._work / "service.log"

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise CannotMeasure(f"The inference service stopped: {self._log.read_text(encoding='utf-8')[-2000:]}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/ready", timeout=5).is_success
        return False

    def _is_shipped(self) -> bool:
        return not any(path.suffix in (".open", ".spool") for path in self._installation.spool.glob("*/*"))
