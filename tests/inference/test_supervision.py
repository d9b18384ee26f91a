"""Replicas that hang or crash: killed, restarted, the culprit under quarantine, the other endpoints served."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import requests

from inference.contracts import Limits
from inference.quarantine import Quarantine
from inference.watchdog import LOAD_LANES, LOOP_LANE, SLOW_LANES, Board, Watchdog, explain_death
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.console import Console
from tests.inference.installation import REPOSITORY, Service, row, tensor, wait_for

FOR_EVER = 2**50


def turns(count: int) -> dict[str, Any]:
    """A request for the model that turns in a loop as often as it is told."""
    return {"inputs": [tensor("x", "INT64", [1], [count])]}


def hang(service: Service, endpoint: str) -> threading.Thread:
    """Send a request that never comes back."""

    def ask() -> None:
        with pytest.raises(requests.RequestException):
            requests.post(
                f"{service.url}/v2/models/{endpoint}/infer",
                data=orjson.dumps(turns(FOR_EVER)),
                headers=service.headers,
                timeout=60,
            )

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


class Caller(threading.Thread):
    """Calls an endpoint again and again, and counts how that went."""

    def __init__(self, service: Service, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.outcomes: Counter[str] = Counter()
        self._service, self._endpoint = service, endpoint
        self._stopping = threading.Event()

    def run(self) -> None:
        """One request after the other, each on a connection of its own."""
        while not self._stopping.is_set():
            try:
                answer = self._service.infer(self._endpoint, row(1, 2, 3))
                self.outcomes[str(answer.status_code)] += 1
            except requests.RequestException as error:
                self.outcomes[type(error).__name__] += 1

    def stop(self) -> Counter[str]:
        """Finish, and say what happened."""
        self._stopping.set()
        self.join()
        return self.outcomes


def test_a_model_that_never_returns_is_quarantined_and_the_others_are_served(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    spinning = installation.endpoint("spin", models.spin())
    installation.publish()
    service = workbench.serve(installation, INFERENCE_HANG_S="1")
    assert service.infer("spin", turns(3)).json()["outputs"][0]["data"] == [3]
    caller = Caller(service, "double")
    caller.start()
    for _ in range(3):
        victim = service.child("replica")
        thread = hang(service, "spin")
        wait_for(lambda victim=victim: victim not in service.children(), 15)
        thread.join()
        wait_for(lambda: service.infer("double", row(1, 2, 3)).ok, 15)
    refused = service.infer("spin", turns(1))
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert "Quarantined" in refused.json()["error"]
    assert "1 s" in refused.json()["error"]
    assert "Quarantined" in service.infer("spin/versions/1", turns(1)).json()["error"]
    outcomes = caller.stop()
    # A request that was in the process when it was killed is lost; those behind it wait in the listener's backlog.
    assert outcomes["200"] > 3
    assert sum(outcomes.values()) - outcomes["200"] <= 3, outcomes

    service.stop()
    service.start()  # the quarantine outlives the parent
    assert service.infer("spin", turns(1)).status_code == 503
    (again,) = spinning.deployments
    installation.endpoint("spin", installation.deployment(models.spin(), version=again.model_version))
    service.stop()
    installation.publish()
    service.start()  # a new deployment of the same version is another chance
    assert service.infer("spin", turns(3)).ok


def test_a_run_without_end_is_stopped_before_it_costs_the_process(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.endpoint("slow", models.slow())
    installation.endpoint("quick-spin", models.spin(), limits=Limits(timeout_ms=1500))
    spinning = models.spin(layers=40)
    installation.endpoint("spin", spinning, limits=Limits(timeout_ms=1500))
    installation.endpoint("spin-too", spinning, limits=Limits(timeout_ms=1500))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_RUN_TIMEOUT_S="2", INFERENCE_POLL_S="0.1")
    replica = service.child("replica")
    caller = Caller(service, "double")
    caller.start()
    answer = service.infer("quick-spin", turns(FOR_EVER))  # on the loop, so everybody waits
    assert (answer.status_code, "was stopped" in answer.json()["error"]) == (504, True)
    assert service.infer("quick-spin", turns(3)).ok
    with ThreadPoolExecutor(2) as pool:
        late = [pool.submit(service.infer, name, turns(FOR_EVER)) for name in ("spin", "spin-too")]
        time.sleep(0.3)
        assert service.infer("slow", {"inputs": [tensor("x", "FP32", [1, 1, 1], [1.0])]}).ok
        assert not any(one.done() for one in late), "one version's runs leave a thread to the others"
        assert [one.result().status_code for one in late] == [504, 504]
    for _ in range(2):  # by now quick-spin is known to be slow, and runs on a thread
        assert service.infer("quick-spin", turns(FOR_EVER)).status_code == 504
    assert service.infer("quick-spin", turns(3)).ok
    assert service.infer("quick-spin", turns(FOR_EVER)).status_code == 504
    wait_for(lambda: "Quarantined" in service.infer("quick-spin", turns(3)).text, 5)
    assert set(caller.stop()) == {"200"}, "nobody else lost a request"
    assert service.child("replica") == replica


@pytest.mark.parametrize("layers", [0, 40], ids=["on the loop", "on a thread"])
def test_a_drain_ends_in_time_whatever_hangs(workbench: Workbench, layers: int) -> None:
    installation = workbench.installation()
    installation.endpoint("spin", models.spin(layers))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_DRAIN_TIMEOUT_S="1")
    thread = hang(service, "spin")
    time.sleep(0.5)
    started = time.monotonic()
    assert service.stop() == 0
    # 1 s to drain, 3 s to be killed, 2 s for the shipper, and leave for a busy machine; 29 s with the default.
    assert time.monotonic() - started < 15
    thread.join()
    is_deaf = layers == 0  # a loop that hangs hears no signal
    assert ("did not stop in time and is killed" in service.log.read_text()) == is_deaf


def test_the_file_takes_a_version_out_of_service_while_it_serves(workbench: Workbench) -> None:
    installation = workbench.installation()
    champion = installation.deployment(models.scale(1), version=1, weight=50)
    canary = installation.deployment(models.scale(2), version=2, weight=50, role="canary")
    installation.endpoint("split", champion, canary, limits=Limits())
    installation.publish()
    service = workbench.serve(installation, INFERENCE_POLL_S="0.1")
    Quarantine(installation.var / "quarantine.json").add(canary.deployment_id, "it crashed")
    wait_for(lambda: service.infer("split/versions/2", row(1, 2, 3)).status_code == 503)
    answers = [service.infer("split", row(1, 2, 3)).json()["model_version"] for _ in range(20)]
    assert set(answers) == {"1"}, "the others on the endpoint take its share"


class Clock:
    """A parent's looks at a board, at times of the test's choosing."""

    def __init__(self) -> None:
        self.board = Board.create()
        self.watchdog = Watchdog(self.board, hang=20, run=60, load=600)
        self.now = 1000.0
        self.board.tick()
        self.watchdog.look(self.now)

    def look(self, seconds: float, *, ticking: bool, step: float = 0.5) -> Any:
        """Look every ``step`` seconds, until there is a finding."""
        for _ in range(int(seconds / step)):
            self.now += step
            if ticking:
                self.board.tick()
            if finding := self.watchdog.look(self.now):
                return finding
        return None


def test_only_what_stands_still_under_the_eyes_of_the_parent_is_hung() -> None:
    clock = Clock()
    assert clock.look(19, ticking=False) is None
    assert clock.look(300, ticking=True) is None
    clock.now += 86_400  # the machine was asleep
    assert clock.look(10, ticking=False) is None
    finding = clock.look(11, ticking=False)
    assert finding.deployment_ids == ()

    clock = Clock()
    clock.board.lane(LOOP_LANE).begin(7)
    assert clock.look(3, ticking=False).is_fatal is False  # asked to stop
    finding = clock.look(19, ticking=False)
    assert (finding.deployment_ids, finding.is_fatal) == ((7,), True)

    clock = Clock()
    clock.board.lane(LOAD_LANES[1]).begin(8)
    assert clock.look(300, ticking=False) is None, "a load may stop the loop for longer than a run may"
    assert clock.look(301, ticking=True).deployment_ids == (8,)

    clock = Clock()
    slow, endless = clock.board.lane(SLOW_LANES[0]), clock.board.lane(SLOW_LANES[1])
    for _ in range(10):
        slow.begin(9)
        assert clock.look(59, ticking=True) is None
        slow.end()
    slow.begin(9, allowed_ms=600_000)  # the endpoint's timeout
    assert clock.look(500, ticking=True) is None
    slow.end()
    endless.begin(10)
    finding = clock.look(61, ticking=True)
    assert (finding.deployment_ids, finding.is_fatal) == ((10,), False)
    finding = clock.look(6, ticking=True)
    assert (finding.deployment_ids, finding.is_fatal) == ((), True), "the strike was for not ending"


CRASH = """
import ctypes, sys, threading
from inference.watchdog import SLOW_LANES, Board
board = Board(int(sys.argv[1]))
board.keep_crashes()
board.lane(SLOW_LANES[0]).begin(1)
def run():
    board.lane(SLOW_LANES[1]).begin(2)
    ctypes.string_at(0)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def test_a_crash_names_the_run_that_crashed() -> None:
    board = Board.create()
    arguments = [sys.executable, "-c", CRASH, str(board.descriptor)]
    status = subprocess.run(arguments, cwd=REPOSITORY, pass_fds=[board.descriptor], check=False).returncode
    finding = explain_death(board, status, was_out_of_memory=False)
    assert finding is not None
    assert finding.deployment_ids == (2,)
    assert "SIGSEGV" in finding.reason
    assert b"Segmentation fault" in board.crash()


def test_only_a_death_that_a_model_can_have_caused_is_held_against_it() -> None:
    board = Board.create()
    lane = board.lane(LOOP_LANE)
    lane.begin(5)
    assert explain_death(board, -9, was_out_of_memory=False) is None  # somebody's kill -9
    assert explain_death(board, 0, was_out_of_memory=True) is None
    finding = explain_death(board, -9, was_out_of_memory=True)
    assert finding is not None
    assert finding.deployment_ids == (5,)
    board.lane(SLOW_LANES[3]).begin(6)
    finding = explain_death(board, -9, was_out_of_memory=True)
    assert finding is not None
    assert finding.deployment_ids == (), "one of two cannot be told from the other"
    lane.end()
    assert [run.deployment_id for run in board.runs() if run.deployment_id] == [6]


def test_quarantine_and_what_is_loaded_reach_the_console_and_only_when_they_change(
    console: Console, workbench: Workbench
) -> None:
    installation = console.installation
    installation.endpoint("double", models.scale(2))
    bad = installation.deployment(models.spin())
    installation.endpoint("spin", bad)
    generation = console.publish()
    workbench.serve(installation, COUNTERSIGN_DATABASE_DSN=console.dsn, INFERENCE_POLL_S="0.1")
    loaded = console.wait_for_generation(generation)["loaded"]
    assert {one["endpoint"] for one in loaded} == {"double", "spin"}
    assert all(one["memory_bytes"] > 0 and one["is_in_memory"] for one in loaded)

    console.connection.execute("UPDATE deployments_replica SET loaded = '[]', seen_at = '2000-01-01'")
    wait_for(lambda: console.replica()["seen_at"].year > 2000, 5)
    assert console.replica()["loaded"] == [], "a heartbeat does not repeat what is known"

    Quarantine(installation.var / "quarantine.json").add(bad.deployment_id, "it crashed")
    wait_for(lambda: bool(console.replica()["errors"]), 5)
    (error,) = console.replica()["errors"]
    assert error["deployment_id"] == bad.deployment_id
    assert "Quarantined" in error["message"]
    assert "it crashed" in error["message"]
    assert [one["endpoint"] for one in console.replica()["loaded"]] == ["double"]

    again = installation.deployment(models.spin(), version=bad.model_version)
    installation.endpoint("spin", again)
    report = console.wait_for_generation(console.publish())
    assert report["errors"] == []
    assert {one["deployment_id"] for one in report["loaded"]} >= {again.deployment_id}
