"""One measured run: wrk on its own core against a server on another, and the CPU time that the server spent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.dialects import Dialect
from benchmarks.models import Model

SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
SCRIPT: Final = Path(__file__).resolve().with_name("load.lua")
RESULT: Final = "RESULT "
REQUEST_TIMEOUT_S: Final = 20


class CannotMeasure(Exception):
    """Something that a measurement needs is missing or broke; the message says what to do."""


@dataclass(frozen=True)
class Measurement:
    """What one run told. Latencies are the callers'; CPU time is that of the server's whole process tree."""

    rate: float  # answered requests (in-process: rows) per second
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    user_us: float = 0.0  # per request
    system_us: float = 0.0  # per request
    failed: int = 0


def check_machine() -> None:
    """Raises ``CannotMeasure`` where there are not two cores to pin to, or no wrk."""
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise CannotMeasure(f"The cores {SERVER_CORE} and {LOAD_CORE} are needed: one serves, the other asks.")
    if shutil.which("wrk") is None:
        raise CannotMeasure("wrk makes the load and is not installed: apt-get install wrk")


def pinned(*cores: int) -> Callable[[], None]:
    """For ``preexec_fn``: the child, and every process that it starts, runs on ``cores`` only."""
    return partial(os.sched_setaffinity, 0, set(cores))


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and all its living descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """User and system time of the living ones among ``processes``, in seconds."""
    user = system = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        user, system = user + times.user, system + times.system
    return user, system


@dataclass(frozen=True)
class Target:
    """Where the load goes: a running server's model, asked in a dialect.

    ``endpoints``: the names under which the model is asked for, where it is not only its own.
    """

    url: str
    model: Model
    dialect: Dialect
    headers: Mapping[str, str]  # beyond those of the dialect
    pid: int  # the root of the server's process tree
    endpoints: Sequence[str] = ()

    @property
    def path(self) -> str:
        """The path of the model's predictions."""
        return self.dialect.path.format(model=self.model.name)

    @property
    def paths(self) -> list[str]:
        """All paths that the load is spread over."""
        return [self.dialect.path.format(model=name) for name in self.endpoints or (self.model.name,)]


def put_load(
    target: Target, *, connections: int, lead_in_s: float, seconds: float, settle: Callable[[], None]
) -> Measurement:
    """Send the model's rows in random order over keep-alive connections, as fast as the answers come.

    Rate and latencies are those of ``seconds`` after the lead-in. The CPU time is that of all requests, and includes
    what the server does after the load until ``settle`` returns: work put off is still work.
    """
    before = cpu_seconds(process_tree(target.pid))
    with tempfile.TemporaryDirectory(prefix="countersign-load-") as folder:
        headers = _write_bodies(target, Path(folder))
        arguments = [folder, str(len(target.model.rows)), *headers]
        lead_in, result = (_wrk(target, connections, length, arguments) for length in (lead_in_s, seconds))
    settle()
    after = cpu_seconds(process_tree(target.pid))
    if not result["requests"]:
        raise CannotMeasure(f"{target.url} answered nothing in {seconds:g} s.")
    requests = lead_in["requests"] + result["requests"]
    return Measurement(
        rate=result["requests"] / result["seconds"],
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        user_us=(after[0] - before[0]) / requests * 1e6,
        system_us=(after[1] - before[1]) / requests * 1e6,
        failed=lead_in["failed"] + result["failed"],
    )


def _write_bodies(target: Target, folder: Path) -> list[str]:
    headers: dict[str, str] = {}
    (folder / "paths").write_text("\n".join(target.paths), encoding="ascii")
    for number, row in enumerate(target.model.rows, start=1):
        own, body = target.dialect.encode(row)
        (folder / str(number)).write_bytes(body)
        headers |= own
    return [f"{name}: {value}" for name, value in {**headers, **target.headers}.items()]


def _wrk(target: Target, connections: int, seconds: float, arguments: Sequence[str]) -> dict[str, Any]:
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds:g}s"]
    command += [f"--timeout={REQUEST_TIMEOUT_S}s", f"--script={SCRIPT}", target.url, "--"]
    finished = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, preexec_fn=pinned(LOAD_CORE)
    )
    for line in finished.stdout.splitlines():
        if line.startswith(RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return result
    raise CannotMeasure(f"wrk did not finish: {(finished.stderr or finished.stdout)[-500:]}")
