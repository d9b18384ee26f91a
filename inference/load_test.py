"""What can this version do on this host? Serve it for a minute as it would be served, drive it, and measure.

``run_load_test`` starts ``python -m inference`` (one replica) on a var folder, a key and a token of its own, and
``inference.load_generator`` beside it. Both stay in the caller's process group, so that killing the group leaves
nothing; whatever happens here, both are ended before it returns.

Both run at a lower priority (nice). That falsifies nothing on a host with a free processor, and on a busy one live
traffic goes first: the figures are then too low, never too high, and ``other_cores`` says how busy it was.

What the figures leave out: the inference log's conversion to Parquet (another process, after the answer).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import orjson
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inference.contracts import (
    DeploymentEntry,
    EndpointEntry,
    ServingManifest,
    Signature,
    TokenEntry,
    sign_manifest,
    token_digest,
)
from inference.datatypes import Array
from inference.load_generator import MAX_RAMP_S, OPEN_FRACTIONS, RAMP_SHARE, Arrivals, LoadFailed, LoadOrder, to_json

FORMAT: Final = "countersign/load-test/v1"
ENDPOINT: Final = "load-test"
MAX_REQUESTS: Final = 2_000
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024  # of all bodies together
NICENESS: Final = 10
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 5.0
LOOK_S: Final = 0.25  # how often memory, spool and the caller's wish to stop are looked at
SPOOL_CAP: Final = 4 * 1024**3
_PREFIX: Final = "load-test-"
_PROJECT: Final = Path(__file__).resolve().parent.parent

Progress = Callable[[float, str], None]  # share done, 0..1, and what is being done; may raise to stop the test


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version to drive; ``artifact`` is its file, ``digest`` the hex SHA-256 of it."""

    artifact: Path
    digest: str
    model: str
    model_version: int
    signature: Signature


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to drive it. ``slo_rate`` (requests/s) adds a step at exactly that rate."""

    step_s: float = 5.0
    max_concurrency: int = 64
    arrivals: Arrivals = "poisson"
    slo_rate: float | None = None
    memory_bytes: int = 4 * 1024**3

    @property
    def concurrency(self) -> list[int]:
        """1, 2, 4 … and the maximum itself."""
        powers = [1 << power for power in range(self.max_concurrency.bit_length())]
        return sorted({*(one for one in powers if one <= self.max_concurrency), self.max_concurrency})

    @property
    def labels(self) -> list[str]:
        """What is done in each step, in order."""
        closed = [f"{count} caller{'' if count == 1 else 's'}" for count in self.concurrency]
        opened = [f"arrivals at {fraction:.0%} of the capacity" for fraction in OPEN_FRACTIONS]
        return [*closed, *opened, *([] if self.slo_rate is None else [f"{self.slo_rate:g} requests/s"])]

    @property
    def seconds(self) -> float:
        """How long all steps take together, if none has to be stretched."""
        return len(self.labels) * (self.step_s + min(RAMP_SHARE * self.step_s, MAX_RAMP_S))


def run_load_test(
    candidate: Candidate,
    requests: Sequence[bytes],
    plan: LoadPlan,
    *,
    folder: Path,
    progress: Progress = lambda share, message: None,
) -> dict[str, Any]:
    """Drive the candidate with ``requests`` (JSON bodies, sent in turn) and return the result document.

    ``folder`` takes the temporary files; on the disk of the store, writing the log costs what it will cost. Raises
    ``LoadFailed`` with what the person can do, and whatever ``progress`` raises.
    """
    progress(0.0, "Starting a service of its own")
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as name,
        _Service(Path(name), candidate) as service,
    ):
        service.wait_until_ready(progress)
        loaded_rss = service.memory()
        order = LoadOrder(
            port=service.port,
            path=f"/v2/models/{ENDPOINT}/infer",
            token=service.token,
            requests=str(_write_requests(Path(name), requests)),
            rows_per_request=rows_per_request(candidate.signature),
            outputs=[asdict(spec) for spec in candidate.signature.outputs],
            service_pid=service.process.pid,
            concurrency=plan.concurrency,
            step_s=plan.step_s,
            arrivals=plan.arrivals,
            slo_rate=plan.slo_rate,
        )
        steps = _drive(order, plan, service, progress)
        return summarise(steps) | {
            "format": FORMAT,
            "host": describe_host() | {"countersign": service.version()},
            "distinct_requests": len(requests),
            "rows_per_request": order.rows_per_request,
            "request_bytes": round(sum(map(len, requests)) / len(requests)),
            "loaded_rss_bytes": loaded_rss,
            "peak_rss_bytes": service.peak_rss,
        }


def remove_leftovers(folder: Path) -> None:
    """Remove what tests that were killed have left in ``folder``; call it only while none runs there."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def rows_per_request(signature: Signature) -> int:
    """One, or as many as the model's first dimension demands."""
    first = signature.inputs[0].shape[:1]
    return first[0] if first and first[0] > 0 else 1


def encode_requests(signature: Signature, tensors: dict[str, Array]) -> list[bytes]:
    """Open Inference Protocol bodies, each with ``rows_per_request`` rows of the tensors [rows, …].

    Rows that do not fill the last request are left out, as is what goes beyond ``MAX_REQUESTS`` bodies or
    ``MAX_REQUEST_BYTES`` together.
    """
    size = rows_per_request(signature)
    rows = min(len(tensor) for tensor in tensors.values())
    bodies: list[bytes] = []
    total = 0
    for start in range(0, rows - size + 1, size):
        body = encode_request(signature, {name: tensor[start : start + size] for name, tensor in tensors.items()})
        total += len(body)
        if bodies and (len(bodies) == MAX_REQUESTS or total > MAX_REQUEST_BYTES):
            break
        bodies.append(body)
    return bodies


def encode_request(signature: Signature, tensors: dict[str, Array]) -> bytes:
    """The body of one request with these tensors as they are."""
    inputs = []
    for spec in signature.inputs:
        tensor = tensors[spec.name]
        data = tensor.ravel().tolist()
        inputs.append({"name": spec.name, "datatype": spec.datatype, "shape": list(tensor.shape), "data": data})
    return orjson.dumps({"inputs": inputs})


def summarise(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Closed and open steps apart, with the capacity (requests/s) and the knee (a closed step).

    The *knee* is the closed step of the greatest power, throughput divided by mean latency (Kleinrock, "Power and
    deterministic rules of thumb for probabilistic problems in computer communications", 1979). By Little's law the
    power of a closed loop is throughput²/callers: past the knee, twice the callers bring less than √2 times the
    throughput, and wait for it in full. It needs no threshold of anybody's choosing.
    """
    closed = [step for step in steps if "concurrency" in step]
    best = max(closed, key=lambda step: float(step["throughput"]))
    return {
        "closed": closed,
        "open": [step for step in steps if "rate" in step],
        "capacity": best["throughput"],
        "capacity_concurrency": best["concurrency"],
        "knee": max(closed, key=lambda step: step["throughput"] / step["mean_ms"] if step["mean_ms"] else 0.0),
    }


def describe_host() -> dict[str, Any]:
    """What the figures hold for: they say nothing about another machine."""
    import onnxruntime

    return {
        "hostname": platform.node(),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class _Service:
    """``python -m inference`` on a folder of its own, serving one endpoint with one version."""

    def __init__(self, folder: Path, candidate: Candidate) -> None:
        self.port = _free_port()
        self.token = f"csn_{token_hex(32)}"
        self.peak_rss = 0
        self._spool = folder / "spool"
        self._log = folder / "service.log"
        self._environment = _environment(folder, self.port)
        _install(folder, candidate, self.token)

    def __enter__(self) -> _Service:
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference"],
                cwd=_PROJECT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _yield_to_others(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        family = self._family()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in family:  # a replica ends with its supervisor; on Linux even when that is killed
            with contextlib.suppress(psutil.Error):
                process.kill()

    def wait_until_ready(self, progress: Progress) -> None:
        """Until the version answers. Raises ``LoadFailed`` with what the service says when it does not come to that."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._get("/v2/health/ready")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LoadFailed(f"The service did not start: {self._last_words()}")
            progress(0.0, "Loading the version")
            time.sleep(0.05)
        if self._get(f"/v2/models/{ENDPOINT}/ready")[0] != 200:
            raise LoadFailed(f"The version cannot be served: {self._last_words()}")

    def version(self) -> str:
        """The product's version, as the service itself tells it."""
        return str(json.loads(self._get("/v2")[1])["version"])

    def memory(self) -> int:
        """Resident bytes of the serving process; remembers the peak, and clears away what has been logged."""
        resident = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error, OSError):
                if "shipper" not in process.cmdline():
                    now = process.memory_info().rss
                    resident += now
                    self.peak_rss = max(self.peak_rss, now, _high_water_mark(process.pid))
        # In place of the shipper, which has no database here: the log must not fill the disk.
        for sealed in self._spool.glob("*/*.spool"):
            sealed.unlink(missing_ok=True)
        return resident

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][-400:] if lines else "it said nothing"


def _drive(order: LoadOrder, plan: LoadPlan, service: _Service, progress: Progress) -> list[dict[str, Any]]:
    """Run the generator to its end and return its steps, while memory and the caller's wishes are watched."""
    generator = subprocess.Popen(
        [sys.executable, "-m", "inference.load_generator"],
        cwd=_PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        _yield_to_others(generator.pid)
        assert generator.stdin is not None  # noqa: S101 - it was opened as a pipe
        generator.stdin.write(to_json(order))
        generator.stdin.close()
        steps: list[dict[str, Any]] = []
        began, labels = time.monotonic(), plan.labels
        for document in _documents(generator):
            if "failed" in document:
                raise LoadFailed(document["failed"])
            if "step" in document:
                steps.append(document["step"])
            if service.memory() > plan.memory_bytes:
                allowed = f"{plan.memory_bytes / 1024**3:.1f} GiB"
                raise LoadFailed(f"The serving process took more than {allowed} of memory and was stopped.")
            share = min((time.monotonic() - began) / plan.seconds, 0.99)
            progress(share, f"Step {len(steps) + 1} of {len(labels)}: {[*labels, 'summing up'][len(steps)]}")
        if len(steps) < len(labels):
            raise LoadFailed("The load generator ended before its last step.")
        return steps
    finally:
        generator.kill()
        generator.wait()


def _documents(generator: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The generator's lines as they come, and an empty document whenever there was none for a moment."""
    assert generator.stdout is not None  # noqa: S101 - it was opened as a pipe
    rest = b""
    with generator.stdout as pipe:
        while True:
            if not select.select([pipe], [], [], LOOK_S)[0]:
                yield {}
                continue
            chunk = os.read(pipe.fileno(), 65_536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)


def _install(folder: Path, candidate: Candidate, token: str) -> None:
    """Key, pepper, artifact and signed manifest, where a replica without a database looks for them."""
    key, pepper = Ed25519PrivateKey.generate(), token_hex(32)
    path = f"artifacts/{candidate.digest[:2]}/{candidate.digest}.onnx"
    for one in ("secrets", "cache", f"store/{Path(path).parent}"):
        (folder / one).mkdir(parents=True)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "secrets" / "manifest_public_key.pem").write_bytes(public)
    (folder / "secrets" / "token_pepper").write_text(pepper)
    try:
        os.link(candidate.artifact, folder / "store" / path)
    except OSError:  # another file system
        shutil.copyfile(candidate.artifact, folder / "store" / path)
    deployment = DeploymentEntry(
        deployment_id=1,
        model=candidate.model,
        model_version=candidate.model_version,
        artifact_digest=candidate.digest,
        artifact_path=path,
        artifact_size=candidate.artifact.stat().st_size,
        role="champion",
        weight=100,
        signature=candidate.signature,
        promotion_request_id=None,
    )
    access = (TokenEntry(1, token_digest(token, pepper.encode()), None),)
    endpoint = EndpointEntry(ENDPOINT, 1, "load-test", (deployment,), access)
    body = ServingManifest(1, datetime.now(UTC).isoformat(), (endpoint,)).to_bytes()
    document = {"body": body.decode(), "signature": sign_manifest(body, key)}
    (folder / "cache" / "last-good-manifest.json").write_text(json.dumps(document))


def _environment(folder: Path, port: int) -> dict[str, str]:
    """The caller's environment without anything that belongs to its own installation."""
    foreign = ("COUNTERSIGN_", "INFERENCE_", "DATABASE_", "DJANGO_", "PG")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return inherited | {
        "COUNTERSIGN_VAR": str(folder),
        "COUNTERSIGN_DATABASE_DSN": f"host={folder} dbname=none connect_timeout=1",
        "INFERENCE_HOST": "127.0.0.1",
        "INFERENCE_PORT": str(port),
        "INFERENCE_REPLICA_PREFIX": "load-test",
        "INFERENCE_DRAIN_TIMEOUT_S": "0",
        "INFERENCE_SPOOL_CAP_BYTES": str(SPOOL_CAP),
    }


def _write_requests(folder: Path, requests: Sequence[bytes]) -> Path:
    path = folder / "requests.jsonl"
    path.write_bytes(b"\n".join(requests))
    return path


def _yield_to_others(pid: int) -> None:
    """Lower the priority of a process just started, and so of those that it will start.

    Where Linux shares processors between sessions before it shares them between processes (autogroup), a process's own
    value counts for nothing beyond its session. A job has a session to itself, which then steps back as a whole.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, pid)))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))


def _high_water_mark(pid: int) -> int:
    """The peak of resident memory in bytes, where the kernel tells it; else 0."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
