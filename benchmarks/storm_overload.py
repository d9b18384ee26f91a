"""Ten times the requests that an endpoint can answer, beside a polite caller of another team's endpoint.

The model costs the same for each row, alone or in a batch, so that the capacity is the model's and not the transport's.
The flood is an open loop: requests arrive on their schedule, whatever the service does.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

from benchmarks.dialects import V2
from benchmarks.load import LOAD_CORE, process_tree
from benchmarks.models import INPUT, Model, make_model
from benchmarks.product import report
from benchmarks.service import Service
from inference.contracts import Limits, ServingManifest, TokenEntry, token_digest
from inference.load_generator import Generator, LoadOrder
from inference.runtime import read_signature

TIMES: Final = 10
FLOODED: Final = "flooded"
POLITE: Final = "polite"
QUEUE_ROWS: Final = 64
WIDTH, LAYERS = 4096, 2000  # some milliseconds for a row
COLUMNS: Final = 30
CAPACITY_CALLERS: Final = 32  # half of what may queue
CAPACITY_S: Final = 5.0
CONNECTIONS: Final = 512
GENERATOR_GRACE_S: Final = 60.0
REFUSALS: Final = {"HTTP 429", "HTTP 503"}
POLITE_PAUSE_S: Final = 0.01
POLITE_LIMIT_MS: Final = 1000.0
WARM_UP_S: Final = 30.0
SAMPLE_S: Final = 1.0
MEMORY_LIMIT_MB: Final = 100.0
USUAL_REQUESTS: Final = 50
USUAL_LIMIT_S: Final = 10.0
USUAL_FACTOR: Final = 2.0


class OverloadService(Service):
    """Two endpoints of two teams, one of which has a short queue."""

    def __init__(self) -> None:
        super().__init__()
        self.polite_token = secrets.token_urlsafe(32)

    def _manifest(self, models: Mapping[str, Model]) -> ServingManifest:
        manifest = super()._manifest(models)
        pepper = self._installation.secret("token_pepper").encode()
        access = (TokenEntry(2, token_digest(self.polite_token, pepper), expires_at=None),)
        changes: dict[str, dict[str, Any]] = {
            FLOODED: {"limits": Limits(queue_rows=QUEUE_ROWS)},
            POLITE: {"team": "polite", "access": access},
        }
        endpoints = tuple(dataclasses.replace(one, **changes[one.name]) for one in manifest.endpoints)
        return dataclasses.replace(manifest, endpoints=endpoints)

    @property
    def logged_bytes(self) -> int:
        """The log's size, shipped or not."""
        folders = (self._installation.store / "segments", self._installation.spool)
        return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


class Caller:
    """One request at a time to one endpoint, on a connection that stays open."""

    def __init__(self, service: Service, endpoint: str, token: str, model: Model) -> None:
        own, self._body = V2.encode(model.rows[0])
        self._client = httpx.Client(headers={**own, "Authorization": f"Bearer {token}"}, timeout=60)
        self._url = f"{service.url}{V2.path.format(model=endpoint)}"

    def call(self) -> tuple[int, float]:
        """Status and milliseconds; a status of 0 is a broken connection."""
        began = time.perf_counter()
        try:
            status = self._client.post(self._url, content=self._body).status_code
        except httpx.HTTPError:
            status = 0
        return status, (time.perf_counter() - began) * 1e3

    def p50(self) -> float:
        """Median latency of some requests, in milliseconds; infinite when one is not answered."""
        calls = [self.call() for _ in range(USUAL_REQUESTS)]
        return statistics.median(ms if status == 200 else float("inf") for status, ms in calls)


class PoliteCaller(threading.Thread):
    """Calls until stopped and notes how long each answer took."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(daemon=True)
        self._caller = caller
        self._stopping = threading.Event()
        self.latencies_ms: list[float] = []
        self.refused: list[int] = []

    def run(self) -> None:
        """Until ``stop``."""
        while not self._stopping.wait(POLITE_PAUSE_S):
            status, ms = self._caller.call()
            if status == 200:
                self.latencies_ms.append(ms)
            else:
                self.refused.append(status)

    def stop(self) -> None:
        """Let the request under way finish."""
        self._stopping.set()
        self.join()


def run(seconds: float) -> bool:
    """Flood one endpoint for so long."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="countersign-overload-") as folder,
        OverloadService() as service,
        ProcessPoolExecutor(1, mp_context=context, initializer=_prepare_generator) as generator,
    ):
        models = {FLOODED: _costly_model(Path(folder)), POLITE: make_model("lr")}
        service.publish(models)
        service.start()
        order = _order(service, models[FLOODED], Path(folder) / "requests")
        flooded = Caller(service, FLOODED, service.token, models[FLOODED])
        usual_ms = {FLOODED: flooded.p50()}
        polite = Caller(service, POLITE, service.polite_token, models[POLITE])
        usual_ms[POLITE] = polite.p50()
        step = generator.submit(_measure_capacity, order).result()
        capacity: float = step["throughput"]
        report("storm_capacity", per_second=round(capacity, 1), connections=CAPACITY_CALLERS, errors=step["errors"])
        processes, before = set(process_tree(service.pid)), service.logged_bytes
        guest = PoliteCaller(polite)
        guest.start()
        future = generator.submit(_flood, dataclasses.replace(order, step_s=seconds), capacity * TIMES)
        memory_mb = _sample_memory(service, future, seconds)
        results = [_check_flood(future.result(), capacity, service.logged_bytes - before)]
        guest.stop()
        results += [
            _check_memory(memory_mb, min(WARM_UP_S, seconds / 2)),
            _check_polite(guest, usual_ms[POLITE]),
            _check_after(service, processes, {FLOODED: flooded, POLITE: polite}, usual_ms),
        ]
        return all(results)


def _prepare_generator() -> None:
    os.sched_setaffinity(0, {LOAD_CORE})
    gc.disable()  # a pause here would look like one of the service


def _measure_capacity(order: LoadOrder) -> dict[str, Any]:
    generator = Generator(order)
    generator.preflight()
    return generator.closed(CAPACITY_CALLERS)


def _flood(order: LoadOrder, rate: float) -> dict[str, Any]:
    return Generator(order).open(rate, None)


def _order(service: Service, model: Model, requests: Path) -> LoadOrder:
    requests.write_bytes(b"\n".join(V2.encode(row)[1] for row in model.rows))
    return LoadOrder(
        port=service.port,
        path=V2.path.format(model=FLOODED),
        token=service.token,
        requests=str(requests),
        rows_per_request=1,
        outputs=[dataclasses.asdict(spec) for spec in read_signature(model.session()).outputs],
        service_pid=service.pid,
        concurrency=[CONNECTIONS],
        step_s=CAPACITY_S,
        arrivals="poisson",
        slo_rate=None,
    )


def _sample_memory(service: Service, future: Future[dict[str, Any]], seconds: float) -> list[float]:
    """Memory of the service's processes, shared pages divided among them, in MB, once a second while it is flooded."""
    samples, until = [], time.monotonic() + seconds + GENERATOR_GRACE_S
    while not future.done():
        if time.monotonic() > until:
            raise TimeoutError("The flood does not end.")
        samples.append(sum(_memory(process) for process in process_tree(service.pid)) / 1e6)
        time.sleep(SAMPLE_S)
    return samples


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    pss: int = full.pss
    return pss


def _check_flood(step: dict[str, Any], capacity: float, logged_bytes: int) -> bool:
    """Whether it was a flood, and every request got an answer; at a broken connection the generator has given up."""
    errors: Mapping[str, int] = step["errors"]
    offered = (step["answered"] + sum(errors.values())) / step["seconds"] / capacity
    report(
        "storm_flood",
        seconds=round(step["seconds"], 1),
        offered_times_capacity=round(offered, 2),
        answered=step["answered"],
        answered_share_of_capacity=round(step["throughput"] / capacity, 2),
        refused_or_failed=errors,
        never_answered=step["unanswered"],
        p50_ms=_rounded(step["p50_ms"]),
        p99_ms=_rounded(step["p99_ms"]),
        logged_mb=round(logged_bytes / 1e6, 1),
    )
    is_flood = not step["is_cut_short"] and offered > 0.9 * TIMES
    return is_flood and bool(errors) and errors.keys() <= REFUSALS and step["answered"] > 0 and not step["unanswered"]


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)


def _check_memory(samples_mb: list[float], warm_up_s: float) -> bool:
    settled = samples_mb[int(warm_up_s / SAMPLE_S) :] or samples_mb
    growth = max(settled) - min(settled)
    report(
        "storm_memory",
        samples=len(samples_mb),
        first_mb=round(samples_mb[0], 1),
        lowest_mb=round(min(settled), 1),
        highest_mb=round(max(settled), 1),
        last_mb=round(settled[-1], 1),
        spread_mb=round(growth, 1),
        limit=MEMORY_LIMIT_MB,
    )
    return growth <= MEMORY_LIMIT_MB


def _check_polite(guest: PoliteCaller, usual_ms: float) -> bool:
    p50, p99 = np.quantile(guest.latencies_ms or [float("inf")], [0.5, 0.99], method="inverted_cdf").tolist()
    longest = max(guest.latencies_ms, default=float("inf"))
    report(
        "storm_polite",
        answered=len(guest.latencies_ms),
        not_answered=len(guest.refused),
        statuses=sorted(set(guest.refused)),
        p50_ms=round(p50, 2),
        p99_ms=round(p99, 2),
        longest_ms=round(longest, 2),
        p50_without_flood_ms=round(usual_ms, 2),
        limit=POLITE_LIMIT_MS,
    )
    return not guest.refused and p99 <= POLITE_LIMIT_MS


def _check_after(
    service: Service, processes: set[psutil.Process], callers: Mapping[str, Caller], usual_ms: Mapping[str, float]
) -> bool:
    """All processes are those of before, and answers take what they took before, within seconds."""
    died = len(processes - set(process_tree(service.pid)))
    began = time.monotonic()
    p50_ms = {name: caller.p50() for name, caller in callers.items()}
    while not (is_usual := all(p50_ms[name] <= USUAL_FACTOR * usual_ms[name] for name in callers)):
        if time.monotonic() - began > USUAL_LIMIT_S:
            break
        p50_ms = {name: caller.p50() for name, caller in callers.items()}
    report(
        "storm_after_flood",
        died=died,
        p50_ms={name: round(ms, 2) for name, ms in p50_ms.items()},
        p50_before_ms={name: round(ms, 2) for name, ms in usual_ms.items()},
        as_usual_after_s=round(time.monotonic() - began, 2) if is_usual else None,
        limit=USUAL_LIMIT_S,
    )
    return not died and is_usual


def _costly_model(folder: Path) -> Model:
    """``mean(tanh(...tanh(X @ w)))``: its cost is that of its elementwise layers, equal for each row."""
    names = [f"h{number}" for number in range(LAYERS + 1)]
    nodes = [helper.make_node("MatMul", [INPUT, "w"], [names[0]])]
    nodes += [helper.make_node("Tanh", [names[layer]], [names[layer + 1]]) for layer in range(LAYERS)]
    nodes.append(helper.make_node("ReduceMean", [names[-1]], ["probabilities"], axes=[1], keepdims=1))
    graph = helper.make_graph(
        nodes,
        "costly",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.full((COLUMNS, WIDTH), 1 / COLUMNS, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = np.random.default_rng(1).random((64, COLUMNS)).round(3).astype(np.float32)
    path = folder / "costly.onnx"
    path.write_bytes(model.SerializeToString())
    return Model("costly", path, rows, ())
