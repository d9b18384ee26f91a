"""What serves: signed manifests, digests, traffic splits, switching under load, and the start without a database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.inference_log import read_spool
from inference.router import Router
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.console import Console
from tests.inference.installation import (
    REPOSITORY,
    Service,
    free_port,
    row,
    tensor,
    wait_for,
)


def test_it_follows_the_database_and_reports_what_it_serves(console: Console, workbench: Workbench) -> None:
    installation = console.installation
    service = workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn)  # ready, with nothing to serve
    assert service.infer("double", row(1, 2, 3)).status_code == 401
    installation.endpoint("double", models.scale(2))
    generation = console.publish()
    report = console.wait_for_generation(generation)
    assert report["state"] == "READY"
    (loaded,) = report["loaded"]
    assert loaded["endpoint"] == "double"
    assert loaded["digest"] == installation.endpoints["double"].deployments[0].artifact_digest
    assert loaded["load_ms"] > 0

    installation.endpoint("triple", models.scale(3))
    started = time.monotonic()
    console.publish()
    wait_for(lambda: service.infer("triple", row(1, 2, 3)).ok)
    assert time.monotonic() - started < 1.5, "LISTEN brings a manifest before the poll would"

    installation.endpoint("double", tokens=["another"])
    console.publish()
    wait_for(lambda: service.infer("double", row(1, 2, 3)).status_code == 403, 5)

    assert service.stop() == 0
    assert console.replica()["state"] == "STOPPED"
    assert json.loads((installation.var / "cache" / "last-good-manifest.json").read_text())["signature"]


def test_forged_and_older_manifests_are_refused(console: Console, workbench: Workbench) -> None:
    installation = console.installation
    installation.endpoint("double", models.scale(2))
    installation.generation = 10
    generation = console.publish()
    service = workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn)
    console.wait_for_generation(generation)
    installation.endpoint("double", models.scale(5))
    console.publish(installation.manifest(key=Ed25519PrivateKey.generate()))
    wait_for(lambda: "signature" in str(console.replica()["errors"]))
    changed = installation.manifest()
    console.publish(changed | {"body": changed["body"].replace('"weight":100', '"weight":99')})
    console.connection.execute("DELETE FROM deployments_servingmanifest")
    console.publish(installation.manifest(generation=3))
    wait_for(lambda: "older" in str(console.replica()["errors"]))
    assert service.infer("double", row(1, 2, 3)).json()["outputs"][0]["data"] == [2, 4, 6]


def test_weights_swapped_after_hashing_are_not_served_and_the_old_version_goes_on(
    console: Console, workbench: Workbench
) -> None:
    installation = console.installation
    installation.endpoint("double", models.scale(2))
    console.publish()
    service = workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn)
    evil = installation.deployment(models.scale(666), version=2)
    path = installation.var / "store" / evil.artifact_path
    honest, swapped = path.read_bytes(), models.scale(667)
    assert len(honest) == len(swapped)
    path.write_bytes(swapped)
    installation.endpoint("double", evil)
    report = console.wait_for_generation(console.publish())
    assert report["errors"][0]["deployment_id"] == evil.deployment_id
    assert "SHA-256" in report["errors"][0]["message"]
    assert [one["model_version"] for one in report["loaded"]] == [1]
    assert service.infer("double", row(1, 2, 3)).json()["outputs"][0]["data"] == [2, 4, 6]
    cached = installation.var / "cache" / "artifacts" / f"{evil.artifact_digest}.onnx"
    cached.write_bytes(swapped)  # nor does a poisoned cache help
    path.write_bytes(honest)
    wait_for(lambda: service.infer("double", row(1, 2, 3)).json()["model_version"] == "2", 20)
    assert service.infer("double", row(1, 2, 3)).json()["outputs"][0]["data"] == [666, 1332, 1998]


def test_promotions_and_rollbacks_under_load_lose_nothing(console: Console, workbench: Workbench) -> None:
    installation = console.installation
    first = installation.deployment(models.scale(1), version=1)
    second = installation.deployment(models.scale(2), version=2)

    def activate(active: Any, idle: Any) -> int:
        entries = (replace(active, role="champion", weight=100), replace(idle, role="standby", weight=0))
        installation.endpoint("live", *entries)
        return console.publish()

    generation = activate(first, second)
    service = workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn)
    console.wait_for_generation(generation)
    stopping = threading.Event()
    outcomes: Counter[str] = Counter()

    def ask() -> None:
        with requests.Session() as session:
            url = f"{service.url}/v2/models/live/infer"
            while not stopping.is_set():
                answer = session.post(url, json=row(1, 2, 3), headers=service.headers, timeout=10)
                body = answer.json()
                scaled = body.get("outputs", [{}])[0].get("data", [0])[0]
                outcomes["right" if answer.ok and scaled == int(body["model_version"]) else answer.text] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for turn in range(20):
        pair = (second, first) if turn % 2 == 0 else (first, second)
        started = time.monotonic()
        activate(*pair)
        wanted = str(pair[0].model_version)
        wait_for(lambda wanted=wanted: service.infer("live", row(1, 2, 3)).json()["model_version"] == wanted, 5)
        slowest = max(slowest, time.monotonic() - started)
    stopping.set()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"right"}
    assert outcomes["right"] > 100
    assert slowest < 1.0, "a rollback answers within a second"


def test_it_serves_without_a_database_from_the_last_good_manifest(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation)
    assert service.infer("double", row(1, 2, 3)).json()["outputs"][0]["data"] == [2, 4, 6]


def test_a_saved_manifest_that_was_tampered_with_is_not_served(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    path = installation.var / "cache" / "last-good-manifest.json"
    path.write_text(path.read_text().replace("risk", "evil"))
    service = Service(installation, {})
    workbench.services.append(service)
    service.start(ready=False)
    wait_for(lambda: "not usable" in service.log.read_text(), 20)
    wait_for(lambda: _status(service, "/v2/health/live") == 200, 20)
    assert _status(service, "/v2/health/ready") == 503
    assert service.infer("double", row(1, 2, 3)).status_code == 503


def test_a_model_that_made_up_inputs_do_not_fit_is_served(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("reshape", models.reshape_to(2, 3))
    installation.publish()
    service = workbench.serve(installation)
    fitting = {"inputs": [tensor("x", "FP32", [6], [1, 2, 3, 4, 5, 6])]}
    answer = service.infer("reshape", fitting)
    assert (answer.status_code, answer.json()["outputs"][0]["shape"]) == (200, [2, 3])
    assert service.infer("reshape", {"inputs": [tensor("x", "FP32", [5], [1, 2, 3, 4, 5])]}).status_code == 500


def test_the_split_is_met_and_sticky_callers_stay(workbench: Workbench) -> None:
    installation = workbench.installation()
    champion = installation.deployment(models.scale(1), version=1, weight=80)
    canary = installation.deployment(models.scale(2), version=2, weight=20, role="canary")
    shadow = installation.deployment(models.scale(3), version=3, weight=0, role="shadow")
    standby = installation.deployment(models.scale(4), version=4, weight=0, role="standby")
    installation.endpoint("random", champion, canary, shadow, standby)
    installation.endpoint("sticky", champion, canary, sticky_header="X-Customer")
    installation.publish()
    service = workbench.serve(installation)
    session = requests.Session()

    def version(endpoint: str, customer: str) -> str:
        headers = service.headers | {"x-customer": customer}
        url = f"{service.url}/v2/models/{endpoint}/infer"
        return str(session.post(url, json=row(1, 2, 3), headers=headers, timeout=5).json()["model_version"])

    drawn = Counter(version("random", "one") for _ in range(500))
    assert set(drawn) == {"1", "2"}
    assert 60 <= drawn["2"] <= 145
    by_customer = {f"c{number}": version("sticky", f"c{number}") for number in range(300)}
    assert 30 <= Counter(by_customer.values())["2"] <= 95
    assert all(version("sticky", customer) == known for customer, known in list(by_customer.items())[:50])
    for number, status in (("2", 200), ("3", 404), ("4", 404)):
        url = f"{service.url}/v2/models/random/versions/{number}/infer"
        assert session.post(url, json=row(1, 2, 3), headers=service.headers, timeout=5).status_code == status
    metadata = session.get(f"{service.url}/v2/models/random", headers=service.headers, timeout=5).json()
    assert metadata["versions"] == ["1", "2"]


def test_a_change_of_weights_moves_only_the_keys_that_change_hands() -> None:
    keys = [f"customer-{number}".encode() for number in range(5000)]
    before, after = Router("e", [90, 10]), Router("e", [70, 30])
    moved = [(before.pick(key), after.pick(key)) for key in keys]
    assert set(moved) == {(0, 0), (1, 1), (0, 1)}
    assert 0.15 < sum(pair == (0, 1) for pair in moved) / len(keys) < 0.25
    with pytest.raises(ValueError, match="weight"):
        Router("e", [0, 0])


def test_segments_reach_store_and_catalog_exactly_once_whoever_dies(console: Console, workbench: Workbench) -> None:
    installation = console.installation
    installation.endpoint("double", models.scale(2))
    installation.endpoint("pick", models.pick())
    generation = console.publish()
    service = workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn, INFERENCE_SEAL_S="0.2")
    console.wait_for_generation(generation)
    answered = set()
    for turn in range(4):
        for _ in range(20):
            answered.add(service.infer("double", row(1, 2, 3)).json()["id"])
            answered.add(service.infer("pick", {"inputs": [tensor("x", "INT64", [1], [1])]}).json()["id"])
        victim = service.child("replica" if turn == 2 else "shipper")
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda victim=victim: victim not in service.children())
        service.wait_until_ready()
    wait_for(lambda: not list((installation.var / "spool").glob("*/*.spool")), 20)
    assert service.stop() == 0
    assert not [path for path in (installation.var / "spool").glob("*/*") for _ in read_spool(path)]
    segments = console.connection.execute("SELECT path, row_count FROM monitoring_logsegment").fetchall()
    in_store = {
        str(path.relative_to(installation.var / "store"))
        for path in installation.var.glob("store/segments/**/*.parquet")
    }
    assert {path for path, *_ in segments} == in_store
    shipped = [
        request_id for path, *_ in segments for request_id in _column(installation.var / "store" / path, "request_id")
    ]
    assert len(shipped) == len(set(shipped)) == sum(count for _, count in segments)
    assert set(shipped) == answered
    rollups = console.connection.execute(
        "SELECT sum(requests), max(array_length(latency_histogram, 1)) FROM monitoring_metricrollup"
    ).fetchone()
    assert rollups is not None
    assert 0 < rollups[0] <= len(answered)
    assert rollups[1] == 42


def test_a_start_that_cannot_succeed_is_one_sentence(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.publish()
    service = workbench.serve(installation)

    def start(**environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "inference"],
            cwd=REPOSITORY,
            env=service.environment | {"INFERENCE_PORT": str(free_port())} | environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.returncode, done.stderr.strip()

    code, said = start(INFERENCE_PORT=str(service.port))
    assert (code, said.count("\n")) == (2, 0)
    assert f"127.0.0.1:{service.port}" in said
    code, said = start(INFERENCE_GRPC_PORT=str(service.port))
    assert (code, said.count("\n"), "INFERENCE_GRPC_PORT" in said) == (2, 0, True)
    code, said = start(INFERENCE_REPLICAS="many")
    assert (code, "INFERENCE_REPLICAS" in said) == (2, True)
    (installation.var / "secrets" / "manifest_public_key.pem").write_text("rubbish")
    code, said = start()
    assert (code, said.count("\n"), "manifest_public_key.pem" in said) == (2, 0, True)


def test_nothing_is_left_when_the_supervisor_is_killed(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_REPLICAS="2")
    children = service.children()
    assert len(children) == 3
    service.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    service.start()
    assert service.infer("double", row(1, 2, 3)).ok


def test_accepted_requests_finish_on_sigterm(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("slow", models.slow())
    installation.publish()
    service = workbench.serve(installation)
    body = json.dumps({"inputs": [tensor("x", "FP32", [10, 1, 1], [1.0] * 10)]})
    answers: list[int] = []

    def ask() -> None:
        url = f"{service.url}/v2/models/slow/infer"
        answers.append(requests.post(url, data=body, headers=service.headers, timeout=30).status_code)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    assert service.stop() == 0
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert time.monotonic() - started < 30


def _status(service: Service, path: str) -> int:
    try:
        return requests.get(service.url + path, timeout=2).status_code
    except requests.RequestException:
        return 0


def _column(path: Path, name: str) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path).column(name).to_pylist())
