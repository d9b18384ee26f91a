"""Validate an unknown model in a child process that may be killed. Only killing a process is a timeout."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from inference.errors import ArtifactRejected

_ANSWER_CAP: Final = 4 * 2**20  # bytes; the largest signature that is accepted fits in
_PROJECT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What a validation may use. ``memory_bytes`` comes on top of four times the artifact's size."""

    cpu_s: int = 30
    wall_s: float = 90.0
    memory_bytes: int = 4 * 2**30
    max_nodes: int = 200_000
    max_depth: int = 16


def validate_artifact(path: Path, limits: SandboxLimits | None = None) -> dict[str, Any]:
    """Validate the model at ``path`` in a child process.

    Returns ``{"signature", "opset", "producer", "node_count", "load_ms", "warmup_ms", "is_batchable", "warnings",
    "confinement"}``. Raises ``ArtifactRejected`` with what the uploader can do, whatever the model did to the child.
    """
    limits = limits or SandboxLimits()
    memory = limits.memory_bytes + 4 * path.stat().st_size
    order = json.dumps(asdict(limits) | {"memory_bytes": memory})
    with tempfile.TemporaryDirectory(prefix="countersign-sandbox-") as folder, open(path, "rb") as artifact:
        child = subprocess.Popen(
            # -P: nothing is imported from the working directory.
            [sys.executable, "-P", "-m", "inference.validation", order],
            stdin=artifact,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONPATH": str(_PROJECT), "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "PATH": ""},
            start_new_session=True,
            close_fds=True,
        )
        try:
            answer, is_in_time = _read(child, time.monotonic() + limits.wall_s)
        finally:
            _kill(child)
    return _interpret(answer, is_in_time, child.returncode, limits)


def _read(child: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """Everything the child says, up to the cap and the deadline; the second value is False after the deadline."""
    assert child.stdout is not None  # noqa: S101 - it was opened as a pipe
    answer = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([child.stdout], [], [], left)[0]:
            break
        chunk = os.read(child.stdout.fileno(), 65_536)
        if not chunk or len(answer) > _ANSWER_CAP:
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                return bytes(answer), False
            return bytes(answer), True
        answer += chunk
    return bytes(answer), False


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _interpret(answer: bytes, is_in_time: bool, code: int, limits: SandboxLimits) -> dict[str, Any]:
    """The child's report, or why there is none, in words for the uploader."""
    too_much_memory = (
        f"Loading or running the model once takes more than {limits.memory_bytes / 2**30:.1f} GiB of memory beyond its "
        "own size. Make it smaller, and look for constants that are computed when it is loaded."
    )
    if not is_in_time:
        raise ArtifactRejected(
            f"Loading and running the model once takes longer than {limits.wall_s:.0f} s. "
            "Look for a loop without an end, or for work that belongs into training."
        )
    if code == -signal.SIGXCPU:
        raise ArtifactRejected(
            f"Loading and running the model once takes more than {limits.cpu_s} s of processor time. "
            "Look for a loop without an end, or for work that belongs into training."
        )
    if code == -signal.SIGKILL:  # nobody but the system's out-of-memory killer sends it before the deadline
        raise ArtifactRejected(too_much_memory)
    try:
        report: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise ArtifactRejected(
            f"The model crashed ONNX Runtime ({ending}). Export it again with current versions of your converter and "
            "onnx, and run onnx.checker.check_model on it."
        ) from error
    if "rejected" in report:
        raise ArtifactRejected(too_much_memory if report.get("out_of_memory") else report["rejected"])
    return report
