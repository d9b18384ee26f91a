"""The load test's engine: a real service and generator, and a generator against a service whose pace is known."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from inference.contracts import Signature
from inference.load_generator import Generator, LoadFailed, LoadOrder, latency_figures
from inference.load_test import (
    Candidate,
    LoadPlan,
    encode_request,
    encode_requests,
    run_load_test,
    summarise,
)
from inference.runtime import example_inputs, load_session, read_signature
from tests.inference import onnx_models as models
from tests.inference.installation import REPOSITORY, wait_for


def candidate(folder: Path, onnx: bytes) -> Candidate:
    """A version of these bytes."""
    path = folder / "model.onnx"
    path.write_bytes(onnx)
    return Candidate(path, hashlib.sha256(onnx).hexdigest(), "model", 3, read_signature(load_session(onnx)))


def made_up(signature: Signature, count: int = 20) -> list[bytes]:
    """Requests that fit."""
    return [encode_request(signature, example_inputs(signature, seed=seed)) for seed in range(count)]


def processes_in(folder: Path) -> list[psutil.Process]:
    """Everything that runs on a var folder below ``folder``, or generates load for it."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get("COUNTERSIGN_VAR", "").startswith(str(folder))
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_version_is_driven_and_measured_and_nothing_is_left(tmp_path: Path) -> None:
    tested = candidate(tmp_path, models.logistic_regression(4))
    work, said = tmp_path / "work", []
    work.mkdir()
    result = run_load_test(
        tested,
        made_up(tested.signature),
        LoadPlan(step_s=0.3, max_concurrency=3, slo_rate=200),
        folder=work,
        progress=lambda share, message: said.append((share, message)),
    )
    assert [step["concurrency"] for step in result["closed"]] == [1, 2, 3]
    assert [step["fraction"] for step in result["open"]] == [0.3, 0.5, 0.7, 0.8, 0.9, None]
    for step in result["closed"]:
        # Little's law: callers = throughput x mean latency, but for the generator's own share of each turn.
        assert 0.6 < step["throughput"] * step["mean_ms"] / 1e3 / step["concurrency"] < 1.1
        assert step["errors"] == {}
        assert step["p50_ms"] <= step["p95_ms"] <= step["p99_ms"] <= step["max_ms"]
        assert 0 < step["cpu_s_per_thousand"] < 100
    assert result["open"][-1]["rate"] == 200
    assert 100 < result["open"][-1]["throughput"] < 300
    assert result["capacity"] == max(step["throughput"] for step in result["closed"])
    assert result["knee"] in result["closed"]
    assert 20e6 < result["loaded_rss_bytes"] <= result["peak_rss_bytes"] < 1e9
    assert result["rows_per_request"] == 1
    assert result["host"]["cores"] >= 1
    assert result["host"]["countersign"]
    assert said[0] == (0.0, "Starting a service of its own")
    assert "Step 2 of 9: 2 callers" in {message for _, message in said}
    assert list(work.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    tested = candidate(tmp_path, models.logistic_regression(4))

    def progress(share: float, message: str) -> None:
        if message.startswith("Step 2"):
            assert len(processes_in(tmp_path)) >= 3
            raise InterruptedError("cancelled")

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(InterruptedError):
        run_load_test(tested, made_up(tested.signature), LoadPlan(0.2, 64), folder=tmp_path, progress=progress)
    assert processes_in(tmp_path) == []
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.skipif(sys.platform != "linux", reason="the replicas of a killed supervisor end by Linux' parent signal")
def test_killing_its_process_group_leaves_nothing(tmp_path: Path) -> None:
    """As the worker does with a job that was cancelled or takes too long."""
    tested = candidate(tmp_path, models.logistic_regression(4))
    (tmp_path / "requests").write_bytes(b"\n".join(made_up(tested.signature)))
    script = f"""
from pathlib import Path
from inference.load_test import *
from tests.inference.test_load_test import candidate
folder = Path({str(tmp_path)!r})
tested = candidate(folder, (folder / "model.onnx").read_bytes())
requests = (folder / "requests").read_bytes().splitlines()
run_load_test(tested, requests, LoadPlan(5.0, 4), folder=folder, progress=lambda *said: print(*said, flush=True))
"""
    job = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert job.stdout is not None
    try:
        with job.stdout as lines:
            assert any("Step 1" in line for line in lines)
        started = processes_in(tmp_path)
        generators = [one for one in psutil.Process(job.pid).children() if "inference.load_generator" in one.cmdline()]
        assert len(generators) == 1
        assert len(started) >= 3
        assert min(one.nice() for one in [*started, *generators]) == 10
        with contextlib.suppress(FileNotFoundError):  # not every kernel has it
            assert Path(f"/proc/{generators[0].pid}/autogroup").read_text().endswith("nice 10\n")
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
    wait_for(lambda: not any(one.is_running() and one.status() != "zombie" for one in [*started, *generators]))


def test_a_version_that_refuses_the_rows_says_why(tmp_path: Path) -> None:
    tested = candidate(tmp_path, models.pick(4))
    inside, beyond = ({"x": np.array([position])} for position in (1, 9))
    requests = [encode_request(tested.signature, inside), encode_request(tested.signature, beyond)]
    with pytest.raises(LoadFailed, match=r"Request 2 .* HTTP 500, The model failed on these inputs"):
        run_load_test(tested, requests, LoadPlan(0.2, 1), folder=tmp_path)


def test_a_version_that_takes_too_much_memory_is_stopped(tmp_path: Path) -> None:
    tested = candidate(tmp_path, models.scale(2))
    with pytest.raises(LoadFailed, match=r"more than 0\.0 GiB of memory"):
        run_load_test(tested, made_up(tested.signature), LoadPlan(0.5, 1, memory_bytes=1_000_000), folder=tmp_path)
    assert processes_in(tmp_path) == []


class PacedService(threading.Thread):
    """Answers one request after the other, each after ``pause_s``, and stalls once for ``stall_s``."""

    def __init__(self, *, pause_s: float = 0.0, stall_after: int = -1, stall_s: float = 0.0, status: int = 200) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.pause_s, self.stall_after, self.stall_s = pause_s, stall_after, stall_s
        body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1.0]}]}'
        self.answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        self.turn = threading.Lock()
        self.answered = 0

    def run(self) -> None:
        """Accept for ever; a thread per connection, one answer at a time."""
        while True:
            threading.Thread(target=self.serve, args=(self.listener.accept()[0],), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        """Every request of a generator is one segment on loopback. Without an answer to give, it hangs up."""
        with connection, contextlib.suppress(OSError):
            while connection.recv(65_536) and self.answer:
                with self.turn:
                    self.answered += 1
                    time.sleep(self.stall_s if self.answered == self.stall_after else self.pause_s)
                connection.sendall(self.answer)


def generator(folder: Path, service: PacedService, **changes: Any) -> Generator:
    """A generator for a service that already runs."""
    service.start()
    (folder / "requests").write_bytes(b'{"inputs":[]}')
    values: dict[str, Any] = {
        "port": service.port,
        "path": "/",
        "token": "t",
        "requests": str(folder / "requests"),
        "rows_per_request": 1,
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        "service_pid": os.getpid(),
        "concurrency": [1],
        "step_s": 1.0,
        "arrivals": "constant",
        "slo_rate": None,
    }
    return Generator(LoadOrder(**values | changes))


def test_a_stall_is_counted_from_when_requests_were_due(tmp_path: Path) -> None:
    """Half a second in which nobody is answered: it holds up one request of the closed loop, half of the open one's.

    Only the first 64 of these have a connection to be sent on; the others wait, and their wait counts.
    """
    closed = generator(tmp_path, PacedService(stall_after=100, stall_s=0.5)).closed(1)
    assert closed["p95_ms"] < 100
    assert closed["max_ms"] > 450
    opened = generator(tmp_path, PacedService(stall_after=300, stall_s=0.5)).open(1_000.0, None)
    assert opened["unanswered"] == 0
    assert opened["mean_ms"] > 90  # 500 requests that waited a quarter of a second on average


def test_requests_that_are_never_answered_count_with_their_wait(tmp_path: Path) -> None:
    opened = generator(tmp_path, PacedService(stall_after=20, stall_s=60), step_s=0.5).open(100.0, None)
    assert opened["unanswered"] > 25
    assert opened["p50_ms"] > 1_900
    assert opened["is_cut_short"] is False


def test_an_arrival_rate_beyond_the_capacity_shows_in_the_latency(tmp_path: Path) -> None:
    """100 requests/s are served where 400 arrive."""
    opened = generator(tmp_path, PacedService(pause_s=0.01), step_s=0.5).open(400.0, None)
    assert opened["throughput"] < 130
    assert opened["p99_ms"] > 1_000
    assert opened["generator_cores"] < 0.9


def test_answers_that_are_not_as_they_should_be_are_errors_and_no_throughput(tmp_path: Path) -> None:
    refused = generator(tmp_path, PacedService(pause_s=0.001, status=503), step_s=0.2).closed(2)
    assert refused["errors"].keys() == {"HTTP 503"}
    assert (refused["answered"], refused["throughput"], refused["p99_ms"]) == (0, 0.0, None)
    other = [{"name": "z", "datatype": "FP32", "shape": [-1]}]
    with pytest.raises(LoadFailed, match="not those of the signature"):
        generator(tmp_path, PacedService(), outputs=other).preflight()


def test_a_service_that_goes_away_ends_the_test(tmp_path: Path) -> None:
    service = PacedService()
    service.answer = b""
    with pytest.raises(LoadFailed, match="closed a connection"):
        generator(tmp_path, service).closed(2)


def test_the_knee_is_where_power_is_greatest() -> None:
    steps = [
        {"concurrency": n, "throughput": x, "mean_ms": n / x * 1e3}
        for n, x in [(1, 100.0), (2, 190.0), (4, 320.0), (8, 440.0), (16, 460.0)]
    ]
    found = summarise(steps)
    # 8 callers bring 440/320 = 1.375 times the throughput of 4: less than the square root of two.
    assert found["knee"]["concurrency"] == 4
    assert (found["capacity"], found["capacity_concurrency"]) == (460.0, 16)


def test_percentiles_are_observed_values() -> None:
    figures = latency_figures([position / 1e3 for position in range(1, 201)])
    assert (figures["p50_ms"], figures["p95_ms"], figures["p99_ms"]) == pytest.approx((100, 190, 198))
    assert figures["mean_ms"] == pytest.approx(100.5)
    assert set(latency_figures([]).values()) == {None}


def test_requests_have_the_rows_that_the_model_takes() -> None:
    free = read_signature(load_session(models.scale(2)))
    bodies = encode_requests(free, {"x": np.arange(12, dtype=np.float32).reshape(4, 3)})
    assert len(bodies) == 4
    assert bodies[1] == b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[3.0,4.0,5.0]}]}'
    fixed = read_signature(load_session(models.identity("FP32", [2, 2])))
    bodies = encode_requests(fixed, {"x": np.arange(10, dtype=np.float32).reshape(5, 2)})
    assert [body.count(b"[2,2]") for body in bodies] == [1, 1]
    exact = read_signature(load_session(models.identity("UINT64", ["n", 1])))
    assert b"18446744073709551615" in encode_requests(exact, {"x": np.array([[2**64 - 1]], np.uint64)})[0]
