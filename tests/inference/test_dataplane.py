"""What happens to a request besides its answer: shadows, sticky inputs, deadlines, CPU caps, trace context, metrics."""

from __future__ import annotations

import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from inference.contracts import Limits
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.installation import Service, row, tensor, wait_for

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_shadows_get_every_request_and_never_answer(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint(
        "double",
        installation.deployment(models.scale(2), version=1),
        installation.deployment(models.scale(3), version=2, role="shadow", weight=0),
        installation.deployment(models.pick(), version=3, role="shadow", weight=0),  # takes other inputs
        installation.deployment(models.slow(), version=4, role="shadow", weight=0),  # takes other inputs, too
    )
    installation.publish()
    service = workbench.serve(installation)
    wait_for(lambda: 'model_version="4"' in _metrics(service))  # what does not answer is loaded last
    answers = [service.infer("double", row(number, 1, 1)) for number in range(20)]
    assert [answer.json()["outputs"][0]["data"][0] for answer in answers] == [2 * number for number in range(20)]

    def copies() -> dict[str, float]:
        return {
            request_id: float(stored.tensors[1].values[place][0])
            for stored in installation.logged("double")
            if stored.record.outcome == "shadow" and stored.tensors[1].values is not None
            for place, request_id in enumerate(stored.record.request_ids)
        }

    wait_for(lambda: len(copies()) == 20)
    assert [copies()[answer.json()["id"]] for answer in answers] == [3 * number for number in range(20)]


def test_a_shadow_that_is_slow_and_fails_costs_the_answer_nothing(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint(
        "fast",
        installation.deployment(models.identity("FP32", ["n", 1, 1]), version=1),
        installation.deployment(models.slow(), version=2, role="shadow", weight=0),
    )
    installation.endpoint(
        "failing",
        installation.deployment(models.identity("INT64", ["n"]), version=1),
        installation.deployment(models.pick(), version=2, role="shadow", weight=0),
    )
    installation.publish()
    service = workbench.serve(installation)
    wait_for(lambda: _metrics(service).count('model_version="2"') >= 2)
    asked = {"inputs": [tensor("x", "FP32", [1, 1, 1], [1.0])]}
    took = []
    with requests.Session() as session:
        for _ in range(300):
            before = time.perf_counter()
            url = f"{service.url}/v2/models/fast/infer"
            assert session.post(url, json=asked, headers=service.headers, timeout=5).ok
            took.append(time.perf_counter() - before)
    shadow_run_s = max(
        stored.record.run_us for stored in installation.logged("fast") if stored.record.outcome == "shadow"
    )
    assert float(np.median(took)) < shadow_run_s / 1e6, "an answer waits for its copy"
    assert service.infer("failing", {"inputs": [tensor("x", "INT64", [1], [99])]}).status_code == 200
    wait_for(lambda: any(stored.record.error for stored in installation.logged("failing")))
    assert {stored.record.outcome for stored in installation.logged("failing")} == {"ok", "shadow"}


def test_an_input_keeps_its_caller_on_one_version(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint(
        "sticky",
        installation.deployment(models.scale(1), version=1, weight=50),
        installation.deployment(models.scale(2), version=2, weight=50, role="canary"),
        sticky_input="x",
    )
    installation.publish()
    service = workbench.serve(installation)

    def version(number: int, binary: bool = False) -> str:
        if not binary:
            return str(service.infer("sticky", row(number, 0, 0)).json()["model_version"])
        array = np.array([[number, 0, 0]], np.float32)
        head = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}]}'
        headers = {**service.headers, "Inference-Header-Content-Length": str(len(head))}
        url = f"{service.url}/v2/models/sticky/infer"
        return str(requests.post(url, head + array.tobytes(), headers=headers, timeout=5).json()["model_version"])

    first = {number: version(number) for number in range(60)}
    assert 15 <= list(first.values()).count("1") <= 45
    assert {number: version(number) for number in range(60)} == first
    assert {number: version(number, binary=True) for number in range(20)} == {key: first[key] for key in range(20)}


def test_the_deadline_holds_in_the_queue_and_during_the_run(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("slow", models.slow(layers=150), limits=Limits(timeout_ms=400))
    installation.endpoint("fast", models.scale(2))
    installation.publish()
    service = workbench.serve(installation)
    asked = {"inputs": [tensor("x", "FP32", [1, 1, 1], [1.0])]}

    def ask(place: int) -> tuple[int, float]:
        before = time.perf_counter()
        answer = service.infer("slow", asked, headers={"x-request-id": f"late-{place}"})
        return answer.status_code, time.perf_counter() - before

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, place) for place in range(12)]
        time.sleep(0.1)
        before = time.perf_counter()
        assert service.infer("fast", row(1, 2, 3)).ok, "a slow model must not hold up others"
        assert time.perf_counter() - before < 0.5
        results = [answer.result() for answer in answers]
    assert {status for status, _ in results} <= {200, 503, 504}
    assert 503 in {status for status, _ in results}
    assert max(seconds for _, seconds in results) < 2.5

    def logged() -> list[str]:
        return sorted(one for stored in installation.logged("slow") for one in stored.record.request_ids)

    wait_for(lambda: len(logged()) >= 12)
    assert logged() == sorted(f"late-{place}" for place in range(12)), "each request is logged once"
    short = {**asked, "parameters": {"timeout": 1000}}  # microseconds
    assert service.infer("slow", short).status_code in (503, 504)


def test_a_cpu_cap_slows_only_its_own_endpoint(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("capped", models.slow(), limits=Limits(cpu_cores=0.2, batch_rows=1))
    installation.publish()
    service = workbench.serve(installation)
    asked = {"inputs": [tensor("x", "FP32", [1, 1, 1], [1.0])]}
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            service.infer("capped", asked)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    before = _cpu_s(service.child("replica"))
    time.sleep(3)
    used = _cpu_s(service.child("replica")) - before
    stopping.set()
    for thread in threads:
        thread.join()
    assert used < 3 * 0.5, f"{used:.2f} CPU seconds in 3 s with a cap of 0.2 cores for the model's runs"


def test_trace_context_comes_back_and_is_logged(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation)
    assert service.infer("double", row(1, 2, 3), headers={"traceparent": TRACE}).headers["traceparent"] == TRACE
    assert "traceparent" not in service.infer("double", row(1, 2, 3), headers={"traceparent": "nonsense"}).headers
    assert [stored.record.traceparents for stored in installation.logged("double")] == [[TRACE], []]


def test_metrics_tell_stages_batches_outcomes_and_cost(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.endpoint("idle", models.scale(2))
    installation.publish()
    service = workbench.serve(installation)
    for _ in range(50):
        service.infer("double", row(1, 2, 3))
    service.infer("double", row(1, 2))

    def value(name: str, **labels: str) -> float:
        for line in _metrics(service).splitlines():
            if line.startswith(f"{name}{{") and all(f'{key}="{one}"' in line for key, one in labels.items()):
                return float(line.rpartition(" ")[2])
        return -1

    wait_for(lambda: value("inference_cpu_seconds_total", endpoint="double") > 0)
    assert value("inference_requests_total", endpoint="double", outcome="ok") == 50
    assert value("inference_requests_total", endpoint="double", outcome="rejected") == 1
    for stage, count in (("queue", 51), ("run", 50), ("total", 51)):
        assert value("inference_duration_seconds_count", endpoint="double", stage=stage) == count
    assert value("inference_batch_rows_bucket", endpoint="double", le="1") == 50
    assert value("inference_queued_rows", endpoint="idle") == 0
    assert value("inference_requests_total", endpoint="idle") == -1
    for line in _metrics(service).splitlines():
        assert re.fullmatch(r'# TYPE \w+ \w+|\w+\{(\w+="[^"\\]*",?)+\} [-+.e\d]+', line), line


def test_any_replica_tells_the_metrics_of_all(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_REPLICAS="2")
    for _ in range(40):
        service.infer("double", row(1, 2, 3))  # each on a connection of its own, which the kernel gives to either

    def counted() -> list[int]:
        pattern = r'inference_requests_total\{.*outcome="ok",replica="test-\d"\} (\d+)'
        return [int(count) for count in re.findall(pattern, _metrics(service))]

    wait_for(lambda: len(counted()) == 2 and sum(counted()) == 40, 20)
    heads = [line for line in _metrics(service).splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))


def test_metrics_are_not_for_everybody(workbench: Workbench) -> None:
    address = next((one for one in _addresses() if not one.startswith("127.")), None)
    if address is None:
        pytest.skip("this machine has only a loopback address")
    installation = workbench.installation()
    installation.publish()
    service = workbench.serve(installation, INFERENCE_HOST="0.0.0.0", INFERENCE_METRICS_TOKEN="sesame")  # noqa: S104
    url = f"http://{address}:{service.port}/metrics"
    assert requests.get(url, timeout=5).status_code == 401
    assert requests.get(url, headers={"Authorization": "Bearer wrong"}, timeout=5).status_code == 401
    assert requests.get(url, headers={"Authorization": "Bearer sesame"}, timeout=5).ok
    assert "inference_memory_bytes" in _metrics(service)


def _addresses() -> list[str]:
    found = psutil.net_if_addrs().values()
    return [address.address for some in found for address in some if address.family == socket.AF_INET]


def _metrics(service: Service) -> str:
    return requests.get(f"{service.url}/metrics", timeout=5).text


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
